"""Every metric: against a plain implementation, batch by batch, and in cases with a known answer."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipag_plug.bench import judges, metrics
from clipag_plug.bench.stats import mean, paired_difference
from clipag_plug.bench.tasks.gradients import picture
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.priors import Mixture
from clipag_plug.vocabulary import bundled_vocabulary


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


def wave(cycles: int, side: int = 32) -> Tensor:
    """A cosine of so many cycles across the picture, in every colour: frequency 2 * cycles / side of Nyquist."""
    row = (2 * math.pi * cycles * torch.arange(side) / side).cos()
    return row.expand(1, 3, side, side).contiguous()


def test_a_single_wave_lies_on_one_side_of_the_limit() -> None:
    assert float(metrics.fine_share(wave(3))) == pytest.approx(0, abs=1e-6)  # 0.19 of Nyquist
    assert float(metrics.fine_share(wave(5))) == pytest.approx(1, abs=1e-6)  # 0.31
    both = wave(3) + 2 * wave(5)
    assert float(metrics.fine_share(both)) == pytest.approx(4 / 5, abs=1e-6)
    assert float(metrics.fine_share(both + 7)) == pytest.approx(4 / 5, abs=1e-5)  # no mean
    noise = metrics.fine_share(draw(20, 3, 64, 64)).mean()
    assert float(noise) == pytest.approx(1 - math.pi * 0.25**2 / 4, abs=0.01)


def test_power_is_the_sum_of_squares() -> None:
    gradients = draw(2, 3, 16, 16)
    centred = gradients - gradients.mean((2, 3), keepdim=True)
    spectrum, _ = metrics.power(gradients)
    assert torch.allclose(
        spectrum.sum((1, 2)) / 256, centred.double().square().sum((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0, -3.0])
def test_the_slope_of_noise_with_a_known_spectrum(exponent: float) -> None:
    side = 64
    axis = torch.fft.fftfreq(side) * side
    frequency = (axis[:, None] ** 2 + axis**2).sqrt().clamp_min(1)
    shaped = torch.fft.ifft2(
        torch.fft.fft2(draw(30, 3, side, side)) * frequency ** (exponent / 2)
    ).real
    assert float(metrics.slope(shaped).mean()) == pytest.approx(exponent, abs=0.1)
    assert torch.allclose(metrics.slope(1e-6 * shaped), metrics.slope(shaped), atol=1e-3)
    assert float(metrics.slope(torch.zeros(1, 3, 16, 16))) == 0


def test_roughness() -> None:
    noise = metrics.roughness(draw(10, 3, 64, 64))
    assert noise.mean().item() == pytest.approx(math.sqrt(2), rel=0.01)
    halves = torch.ones(1, 3, 64, 64)
    halves[..., 32:] = -1
    assert float(metrics.roughness(halves)) == pytest.approx(2 / 63 / 2)
    gradients = draw(3, 3, 8, 9)
    for g, found in zip(gradients, metrics.roughness(gradients)):
        down = sum(abs(float(a - b)) for a, b in zip(g[:, 1:].flatten(), g[:, :-1].flatten())) / 189
        right = sum(abs(float(a - b)) for a, b in zip(g[..., 1:].flatten(), g[..., :-1].flatten()))
        expected = (down + right / 192) / 2 / float(g.abs().mean())
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_stability_is_a_cosine() -> None:
    one, two = draw(4, 3, 8, 8), draw(4, 3, 8, 8, seed=1)
    expected = [float((a * b).sum() / a.norm() / b.norm()) for a, b in zip(one, two)]
    assert metrics.stability(one, two).tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics.stability(one, 3 * one).tolist() == pytest.approx([1.0] * 4)
    assert metrics.stability(one, -one).tolist() == pytest.approx([-1.0] * 4)


def test_items_do_not_depend_on_their_batch_and_come_out_the_same_again() -> None:
    one, two = draw(6, 3, 16, 16), draw(6, 3, 16, 16, seed=1)
    measures = (
        lambda rows: metrics.fine_share(one[rows]),
        lambda rows: metrics.slope(one[rows]),
        lambda rows: metrics.roughness(one[rows]),
        lambda rows: metrics.stability(one[rows], two[rows]),
    )
    for measure in measures:
        whole = measure(slice(None))
        assert torch.equal(whole, measure(slice(None)))
        alone = torch.cat([measure(slice(row, row + 1)) for row in range(6)])
        assert torch.allclose(alone, whole, atol=1e-5)


def test_fid_against_the_definition_and_between_gaussians_of_known_distance() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    one, two = draw(60, 8).double(), 1.5 * draw(50, 8, seed=1).double() + 0.3
    a, b = np.cov(one.numpy(), rowvar=False), np.cov(two.numpy(), rowvar=False)
    gap = (one.mean(0) - two.mean(0)).square().sum()
    expected = float(gap) + float(np.trace(a + b - 2 * scipy.sqrtm(a @ b).real))
    assert metrics.fid(one, two) == pytest.approx(expected, rel=1e-6)
    assert metrics.fid(one, one) == pytest.approx(0, abs=1e-6)
    assert metrics.fid(one, one + 2) == pytest.approx(4 * 8, rel=1e-6)  # a shift by 2 in 8 axes
    assert metrics.fid(one, two) == pytest.approx(metrics.fid(two, one), rel=1e-6)
    assert metrics.fid(one[torch.randperm(60)], two) == pytest.approx(expected, rel=1e-6)


def test_kid_against_the_sums_of_its_definition() -> None:
    one, two = draw(12, 6).double(), draw(12, 6, seed=1).double() + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 6 + 1) ** 3)

    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    within = sum(kernel(one[i], one[j]) + kernel(two[i], two[j]) for i, j in pairs) / len(pairs)
    across = sum(kernel(one[i], two[j]) for i in range(12) for j in range(12)) / 144
    assert metrics.kid(one, two) == pytest.approx(within - 2 * across, rel=1e-9)
    assert metrics.kid(one, torch.cat([two, draw(5, 6).double()])) == metrics.kid(one, two)


def test_inception_score_of_sure_unsure_and_split_classifiers() -> None:
    sure = 50 * torch.eye(10).double().repeat(3, 1)
    assert metrics.inception_score(sure) == pytest.approx(10, rel=1e-6)
    assert metrics.inception_score(torch.zeros(30, 10)) == pytest.approx(1)
    assert metrics.inception_score(sure[:1].repeat(30, 1)) == pytest.approx(1)
    logits = draw(40, 7).double()
    p = logits.softmax(1)
    kl = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert metrics.inception_score(logits) == pytest.approx(math.exp(kl), rel=1e-9)


@pytest.mark.parametrize("count", [20, 57])
def test_the_jackknife_of_a_mean_is_the_error_of_the_mean(count: int) -> None:
    data = draw(count).double()
    found, _ = metrics.jackknife(lambda rows: float(data[rows].mean()), count, blocks=count)
    assert found == pytest.approx(data.tolist(), abs=1e-9)  # delete-one gives the items back
    blocked, blocks = metrics.jackknife(lambda rows: float(data[rows].mean()), count, blocks=10)
    assert float(torch.tensor(blocked).mean()) == pytest.approx(float(data.mean()), abs=1e-6)
    assert blocks == 10 and len(set(blocked)) == 10
    sizes = torch.bincount(torch.arange(count) * 10 // count).double()
    means = torch.stack([part.mean() for part in data.split(sizes.int().tolist())])
    if count == 20:
        assert blocked[::2] == pytest.approx(means.tolist())


def test_pairs_of_sets_cancel_what_they_share() -> None:
    one, real = draw(80, 5).double(), draw(300, 5, seed=9).double()
    first, blocks = metrics.jackknife(lambda rows: metrics.fid(one[rows], real), 80)
    second, _ = metrics.jackknife(lambda rows: metrics.fid(one[rows] + 0.5, real), 80)
    units = [[row * blocks // 80 for row in range(80)]]
    assert mean(first).value == pytest.approx(metrics.fid(one, real), rel=1e-6)
    gap, own = paired_difference(second, first, units), mean(second, units)
    assert gap.low > 0 and gap.high - gap.low < own.high - own.low
    with pytest.raises(ValueError, match="at least 3"):
        metrics.jackknife(lambda rows: 0.0, 2)


def test_the_same_numbers_every_time_whatever_the_global_seed() -> None:
    one, two = draw(30, 5).double(), draw(40, 5, seed=1).double()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed)
        found.append(
            (
                metrics.jackknife(lambda rows: metrics.fid(one[rows], two), 30),
                metrics.jackknife(lambda rows: metrics.kid(one[rows], two[rows]), 30),
                metrics.jackknife(lambda rows: metrics.inception_score(one[rows]), 30),
            )
        )
    assert found[0] == found[1]


def test_the_aesthetic_head_collapses_to_one_vector() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(12, 8), nn.Dropout(), nn.Linear(8, 5), nn.Dropout(), nn.Linear(5, 1)]
    head = nn.Sequential(*layers).eval()
    state = {f"layers.{key}": value for key, value in head.state_dict().items()}
    weight, bias = judges.collapse(state)
    features = draw(6, 12).float()
    with torch.no_grad():
        expected = head(nn.functional.normalize(features, dim=1))[:, 0]
    predictor = judges.Predictor(weight, bias, lambda images: images.flatten(1))
    images = features.view(6, 3, 2, 2)
    assert torch.allclose(predictor(images), expected, atol=1e-5)
    alone = torch.cat([predictor(image[None]) for image in images])
    assert torch.allclose(alone, expected, atol=1e-5)
    assert torch.allclose(predictor(7 * images), expected, atol=1e-5)  # of unit features
    with pytest.raises(ValueError, match="one number"):
        judges.collapse({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)})


def test_without_its_files_the_predictor_is_a_reason_and_never_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", str(tmp_path)):
        reason = judges.find_predictor(folder)
        assert isinstance(reason, str) and judges.HEAD in reason and "--aesthetic" in reason
    (tmp_path / judges.HEAD).write_bytes(b"another head")
    (tmp_path / judges.BACKBONE).write_bytes(b"another backbone")
    with pytest.raises(ValueError, match=hashlib.sha256(b"another head").hexdigest()[:12]):
        judges.find_predictor(str(tmp_path))


def test_the_mixtures_score_is_the_gradient_of_its_log_density() -> None:
    drawn = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 5, generator=drawn))[0].T
    mixture = Mixture(
        torch.rand(3, 12, generator=drawn),
        torch.randn(3, 2, 5, generator=drawn),
        basis,
        0.1 + torch.rand(3, 1, generator=drawn),
        ["a", "b", "c"],
    )
    images = torch.rand(4, 3, 2, 2, generator=drawn).requires_grad_(True)
    labels = torch.tensor([0, 2, 2, 1])
    total = torch.zeros(())
    for image, label in zip(images.flatten(1), labels.tolist()):
        factors = mixture.factors[label] @ basis
        covariance = factors.T @ factors + torch.diag(mixture.rest[label].expand(12))
        own = torch.distributions.MultivariateNormal(mixture.means[label], covariance)
        total = total + own.log_prob(image)
    (expected,) = torch.autograd.grad(total, images)
    found = metrics.mixture_score(mixture, images.detach(), labels)
    assert torch.allclose(found, expected.flatten(1), rtol=1e-3, atol=1e-3)


def test_the_bundled_mixture_has_the_photographs_classes() -> None:
    photos, mixture = bundled_photos(), Mixture.load()
    small = torch.nn.functional.adaptive_avg_pool2d(
        photos.pixels(range(505)), mixture.side
    ).flatten(1)
    far = [(small - mixture.means[photos.labels + by]).square().mean() for by in (0, -1)]
    assert len(mixture.classes) == len(bundled_vocabulary().class_names) and far[0] < 0.9 * far[1]
