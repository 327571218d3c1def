"""The losses of CLIPStyler (Kwon & Ye 2022, equations 1 to 5), in the form of its published code."""

from __future__ import annotations

import functools
import json
from importlib import resources

import torch
from torch import Tensor
from torch.nn import functional as F

from ..paint import Guide

SOURCE = "a Photo"


@functools.cache
def templates() -> tuple[str, ...]:
    """The 79 sentences that a text is put into (OpenAI's for ImageNet, MIT licence; see templates.json)."""
    text = resources.files(__package__).joinpath("templates.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["templates"])


def text_direction(guide: Guide, prompt: str, source: str = SOURCE) -> Tensor:
    """The unit vector (1, D) from the source's to the prompt's mean over the templates.

    source: "" for the origin. It suits a model that knows no word for a photograph in general and whose features lie
    around the origin, as the bundled ones' do; there "a Photo" is as far from the middle as any class.
    ValueError where both come out the same, as for a text of words that a small model does not know.
    """
    with torch.no_grad():
        ends = []
        for text in (prompt, source) if source else (prompt,):
            guide.texts([text])  # says what is wrong with an empty or an overlong one
            sentences = [form.format(text) for form in templates()]
            tokens = guide._tokenize(sentences).to(guide.device)
            ends.append(F.normalize(guide.model.encode_text(tokens).float().mean(0, True), dim=-1))
        step = ends[0] - ends[1] if source else ends[0]
        if float(step.norm()) < 1e-4:
            raise ValueError(
                f"{guide.name} does not tell {prompt!r} from {source!r}; use words it knows (model.vocabulary)"
            )
        return F.normalize(step, dim=-1)


def directional(features: Tensor, source: Tensor, direction: Tensor) -> Tensor:
    """1 - cosine of each picture's step from `source` with the text's: unit features (N, D), (1 or N, D) -> (N,)."""
    return 1 - F.cosine_similarity(features - source, direction, dim=1)


def patch_loss(values: Tensor, threshold: float) -> Tensor:
    """Mean of directional losses (N,), those below the threshold counted as 0."""
    return torch.where(values < threshold, torch.zeros_like(values), values).mean()


def total_variation(images: Tensor) -> Tensor:
    """The sum of the L2 norms of the differences along the axes and both diagonals."""
    right = images[..., :-1] - images[..., 1:]
    below = images[..., :-1, :] - images[..., 1:, :]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    return right.norm() + below.norm() + rising.norm() + falling.norm()


def content_loss(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """The sum over layers of the mean squared difference of features."""
    return torch.stack([F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)]).sum()
