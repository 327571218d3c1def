"""Every metric: against a plain implementation, batch by batch, and in cases with a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipag_plug.bench import metrics
from clipag_plug.bench.gradients import picture


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ranks_and_top_equal_a_plain_count() -> None:
    scores, truth = draw(20, 30), torch.arange(20)
    for row in range(20):
        order = sorted(range(30), key=lambda c, row=row: -float(scores[row, c]))
        assert int(metrics.ranks(scores, truth)[row]) == order.index(row)
        for k in (1, 5):
            assert bool(metrics.top(scores, truth, k)[row]) == (
                row in scores[row].topk(k).indices.tolist()
            )


def test_a_scorer_that_says_the_same_of_everything_scores_nothing() -> None:
    assert metrics.top(torch.ones(4, 10), torch.arange(4), 5).sum() == 0
    assert metrics.r_precision(torch.ones(4, 8), torch.ones(4, 8)).sum() == 0


def test_r_precision_is_retrieval_of_the_own_caption() -> None:
    texts = draw(12, 16)
    assert metrics.r_precision(texts * 3, texts).tolist() == [1.0] * 12
    assert metrics.r_precision(texts.roll(1, 0), texts).sum() == 0
    images = texts + draw(12, 16, seed=1)
    for row in range(12):
        cosines = [float(torch.cosine_similarity(images[row], text, dim=0)) for text in texts]
        assert bool(metrics.r_precision(images, texts)[row]) == (max(cosines) == cosines[row])


def test_similarity_is_the_cosine() -> None:
    a, b = draw(5, 16), draw(5, 16, seed=1)
    expected = [float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b)]
    assert metrics.similarity(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics.similarity(a, 7 * a).tolist() == pytest.approx([1.0] * 5)


def test_margin_equals_its_definition() -> None:
    logits, classes = 8 * draw(6, 9), torch.tensor([[0, 4], [1, 8], [2, 2], [3, 0], [4, 1], [5, 7]])
    for row in range(6):
        for column in range(2):
            a = int(classes[row, column])
            others = [math.exp(float(logits[row, c])) for c in range(9) if c != a]
            expected = float(logits[row, a]) - math.log(sum(others) / len(others))
            assert float(metrics.margin(logits, classes)[row, column]) == pytest.approx(
                expected, abs=1e-4
            )


def test_margin_conventions() -> None:
    flat = torch.full((3, 5), 2.0)
    assert metrics.margin(flat, torch.tensor([[0], [1], [2]])).abs().max() < 1e-6
    two = torch.tensor([[3.0, -1.0]])
    assert metrics.margin(two, torch.tensor([[0, 1]]))[0].tolist() == pytest.approx([4.0, -4.0])
    # A logit of 1e4 would overflow exp.
    assert torch.isfinite(metrics.margin(1e4 * draw(3, 5), torch.tensor([[0], [1], [2]]))).all()


def test_target_effect_is_what_only_the_own_target_gained() -> None:
    before = draw(40, 200)
    targets = torch.arange(40)
    controls = metrics.shuffled_targets(targets, 16, torch.Generator().manual_seed(0))
    assert metrics.target_effect(before, before + 5, targets, controls).abs().max() < 1e-5
    only = before.clone()
    only[torch.arange(40), targets] += 3
    # The own margin rises by 3; of the others' it falls by what the target adds to their background.
    effect = metrics.target_effect(before, only, targets, controls)
    assert (effect > 3).all() and (effect < 3.5).all()
    every = before.clone()
    every[:, targets] += 3  # an attack that lights up every target alike recovers none
    assert metrics.target_effect(before, every, targets, controls).abs().mean() < 0.1


def test_controls_are_other_targets_in_use() -> None:
    targets = torch.tensor([3, 3, 3, 9, 50])
    controls = metrics.shuffled_targets(targets, 64, torch.Generator().manual_seed(0))
    assert controls.shape == (5, 64)
    assert not (controls == targets[:, None]).any()
    assert set(controls.flatten().tolist()) == {3, 9, 50}
    with pytest.raises(ValueError, match="one class"):
        metrics.shuffled_targets(torch.tensor([1, 1]), 4, torch.Generator())


def test_share_inside_a_mask() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    assert metrics.inside(torch.ones(2, 3, 8, 8), mask).tolist() == pytest.approx([0.5, 0.5])
    gradient = torch.zeros(2, 3, 8, 8)
    gradient[0, 1, 2, 2], gradient[1, 0, 7, 7] = -4, 0.1
    assert metrics.inside(gradient, mask).tolist() == pytest.approx([1, 0])
    noise = draw(2, 3, 8, 8)
    expected = [float((g**2 * m).sum() / (g**2).sum()) for g, m in zip(noise, mask)]
    assert metrics.inside(noise, mask).tolist() == pytest.approx(expected)
    assert torch.isfinite(metrics.inside(torch.zeros(2, 3, 8, 8), mask)).all()


def test_items_do_not_depend_on_their_batch() -> None:
    logits, targets = draw(10, 30), torch.arange(10)
    later = logits + draw(10, 30, seed=1)
    controls = metrics.shuffled_targets(targets, 4, torch.Generator().manual_seed(0))
    gradients, masks = draw(10, 3, 8, 8), (draw(10, 1, 8, 8, seed=2) > 0).float()
    features, texts = draw(10, 16), draw(10, 16, seed=3)
    together = (
        metrics.ranks(logits, targets),
        metrics.top(logits, targets, 5),
        metrics.similarity(features, texts),
        metrics.target_effect(logits, later, targets, controls),
        metrics.inside(gradients, masks),
    )
    for row in range(10):
        part = slice(row, row + 1)
        alone = (
            metrics.ranks(logits[part], targets[part]),
            metrics.top(logits[part], targets[part], 5),
            metrics.similarity(features[part], texts[part]),
            metrics.target_effect(logits[part], later[part], targets[part], controls[part]),
            metrics.inside(gradients[part], masks[part]),
        )
        for whole, single in zip(together, alone):
            assert torch.allclose(whole[part].float(), single.float(), atol=1e-6)


def test_a_gradient_picture_is_centred_and_scale_free() -> None:
    gradient = draw(3, 32, 32)
    shown = picture(gradient)
    assert torch.allclose(picture(1e-6 * gradient), shown, atol=1e-5)
    assert torch.allclose(picture(-gradient), 1 - shown, atol=1e-6)
    assert float(shown.min()) == 0 and float(shown.max()) == 1
    assert torch.equal(picture(torch.zeros(3, 8, 8)), torch.full((3, 8, 8), 0.5))
