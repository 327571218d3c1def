"""Attacks around any `loss(images)`, one a file: projected gradient ascent and Auto-PGD."""

from __future__ import annotations

from .apgd import apgd as apgd
from .apgd import apgd_ce as apgd_ce
from .apgd import apgd_targeted as apgd_targeted
from .pgd import BALLS as BALLS
from .pgd import Ball as Ball
from .pgd import LinfBall as LinfBall
from .pgd import Loss as Loss
from .pgd import pgd as pgd
from .pgd import value_and_gradient as value_and_gradient
