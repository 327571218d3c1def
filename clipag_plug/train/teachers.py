"""Models that a run learns from beside the captions: knowledge distillation (Hinton et al. 2015) from an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model import CLIP

# Whatever it says, towers that read it alike are taken for the same.
_PROBE = ("a photo of a dog", "an orange on a blue background")


class Teachers:
    """The mean of several models' unit features of an image: (N, 3, H, W) in [0, 1] -> (N, D).

    models: with the text tower of the model that learns, so that their images can be compared with its texts.
    Raises ValueError for one with another.
    """

    def __init__(self, models: Sequence[CLIP], pupil: CLIP) -> None:
        self.models = [model.eval().requires_grad_(False) for model in models]
        wanted = _read(pupil)
        for model in self.models:
            found = _read(model)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=2e-2):
                raise ValueError(
                    f"--teachers {model.name!r} reads texts otherwise than the model that is trained; "
                    "a teacher must have the same text tower: give --init and --teachers of one family"
                )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        each = [model.encode_image(model.normalize(images)).float() for model in self.models]
        return torch.stack([F.normalize(features, dim=-1) for features in each]).mean(0)


@torch.no_grad()
def _read(model: CLIP) -> Tensor:
    from ..clip import tokenize

    device = model.logit_scale.device
    return F.normalize(model.encode_text(tokenize(list(_PROBE)).to(device)).float(), dim=-1)
