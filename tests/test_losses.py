"""Losses against direct transcriptions of their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from clipag_plug import losses


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 12, generator=generator), torch.randn(7, 12, generator=generator)


def test_contrastive_equals_open_clip(features) -> None:
    from open_clip.loss import ClipLoss

    image, text = (F.normalize(f, dim=-1) for f in features)
    assert torch.allclose(
        losses.contrastive(*features, 30.0), ClipLoss()(image, text, torch.tensor(30.0)), atol=1e-6
    )


def test_multi_positive_against_transcription(features) -> None:
    positives = torch.rand(7, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    positives |= torch.eye(7, dtype=torch.bool)
    scores = losses.logits(*features, 10.0)
    for i in range(7):
        total = sum(math.exp(float(scores[i, j])) for j in range(7))
        chosen = [j for j in range(7) if positives[i, j]]
        expected = -sum(math.log(math.exp(float(scores[i, j])) / total) for j in chosen) / len(
            chosen
        )
        assert float(losses.multi_positive(scores, positives)[i]) == pytest.approx(
            expected, rel=1e-5
        )


def test_row_without_positive_contributes_nothing(features) -> None:
    positives = torch.zeros(7, 7, dtype=torch.bool)
    assert torch.equal(
        losses.multi_positive(losses.logits(*features, 5.0), positives), torch.zeros(7)
    )


def test_same_class_images_are_not_negatives() -> None:
    # Two images of one class with perfect features: marked as positives of both captions, the loss is at its floor.
    image = text = F.one_hot(torch.tensor([0, 0, 1, 2]), 4).float()
    labels = torch.tensor([0, 0, 1, 2])
    positives = labels[:, None] == labels[None, :]
    shared = losses.contrastive(image, text, 100.0, positives)
    naive = losses.contrastive(image, text, 100.0)
    assert float(shared) == pytest.approx(math.log(2) / 2, abs=1e-4)
    gradient = torch.autograd.functional.jacobian(
        lambda x: losses.contrastive(x, text, 100.0, positives), image
    )
    assert float(gradient.abs().max()) < 1e-4
    assert float(naive) == pytest.approx(float(shared), abs=1e-4)


def test_tecoa_against_transcription(features) -> None:
    image, prompts = features
    labels = torch.arange(7)
    expected = []
    for i in range(7):
        cosines = [100 * float(image[i] @ p / image[i].norm() / p.norm()) for p in prompts]
        top = max(cosines)
        expected.append(
            top + math.log(sum(math.exp(c - top) for c in cosines)) - cosines[int(labels[i])]
        )
    assert torch.allclose(
        losses.tecoa(image, prompts, labels, 100.0), torch.tensor(expected), rtol=1e-4
    )


def test_fare_against_transcription(features) -> None:
    image, original = features
    expected = torch.tensor(
        [
            sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
            for x, y in zip(image, original, strict=True)
        ]
    )
    assert torch.allclose(losses.fare(image, original), expected, rtol=1e-5)


def test_cosine_conventions() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert torch.allclose(
        losses.cosine(x, torch.tensor([[5.0, 0.0]])), torch.tensor([0.0, 1.0, 1 - math.sqrt(0.5)])
    )
