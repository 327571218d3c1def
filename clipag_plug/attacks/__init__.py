"""Attacks around any `loss(images)`, one a file: projected gradient ascent and Auto-PGD."""

from __future__ import annotations

from .apgd import apgd as apgd
from .apgd import apgd_ce as apgd_ce
from .apgd import apgd_targeted as apgd_targeted
from .pgd import Loss as Loss
from .pgd import l2 as l2
from .pgd import pgd as pgd
from .pgd import project as project
from .pgd import random_perturbation as random_perturbation
from .pgd import steepest as steepest
from .pgd import value_and_gradient as value_and_gradient
