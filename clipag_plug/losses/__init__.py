"""Losses, one kind a file; those on features are reached as `losses.cosine` and so on."""

from __future__ import annotations

from .contrastive import contrastive as contrastive
from .contrastive import cosine as cosine
from .contrastive import distillation as distillation
from .contrastive import fare as fare
from .contrastive import image_to_text as image_to_text
from .contrastive import logits as logits
from .contrastive import multi_positive as multi_positive
from .contrastive import tecoa as tecoa
from .contrastive import trades as trades
