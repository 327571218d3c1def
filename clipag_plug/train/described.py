"""The loss that tells what an image has besides its subject: colours and brightness."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses.attributes import KINDS


@dataclass
class Described:
    """Captions of K classes with each of A attributes, and how much of these N images have.

    captions: text features (K, A, D); own: place of each image's class among the K (N,); amounts (N, A), in which each
    kind of attribute sums to 1, see `attributes.amounts`; weight: factor on the loss.
    """

    captions: Tensor
    own: Tensor
    amounts: Tensor
    weight: float

    def __getitem__(self, rows: slice) -> Described:
        """That of some of the images."""
        return dataclasses.replace(self, own=self.own[rows], amounts=self.amounts[rows])

    def loss(self, features: Tensor, scale: Tensor) -> Tensor:
        """Per image (N,): the cross-entropy of each kind's amounts under the softmax of the image's similarities to
        its own class's captions of that kind; their mean, weighted.

        The class is the same in all of them, so only the attribute can tell them apart.
        """
        captions = F.normalize(self.captions, dim=-1)[self.own]
        scores = scale * torch.einsum("nd,nad->na", F.normalize(features, dim=-1), captions)
        parts = [-(self.amounts[:, k] * scores[:, k].log_softmax(1)).sum(1) for k in KINDS]
        return self.weight * torch.stack(parts).mean(0)
