"""Auto-PGD against a plain transcription of the paper's algorithm, and what every attack must keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plug.attacks import apgd, apgd_ce, apgd_targeted, pgd
from clipag_plug.losses import margins

CLASSES = 6


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 49, CLASSES))
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(240, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels(net, images) -> Tensor:
    return net(images).argmax(1)


def cross_entropy(net: nn.Module, labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(net(x), labels, reduction="none")


def transcription(
    loss: Callable[[Tensor], Tensor], x: Tensor, eps: float, norm: str, steps: int, rho: float
) -> Tensor:
    """Algorithm 1 of Croce & Hein (2020) for one image (1, 3, H, W), its start the image itself. Where the paper and
    the authors' code differ, the code: whole numbers of steps in a window, `<=` in condition 1."""

    def project(z: Tensor) -> Tensor:
        delta = z - x
        if norm == "linf":
            delta = delta.clamp(-eps, eps)
        elif float(delta.norm()) > eps:
            delta = delta * (eps / delta.norm())
        return (x + delta).clamp(0, 1)

    def f(z: Tensor) -> tuple[float, Tensor]:
        z = z.clone().requires_grad_()
        value = loss(z).sum()
        value.backward()
        gradient = z.grad.sign() if norm == "linf" else z.grad / z.grad.norm()
        return float(value.detach()), gradient

    checkpoints, window = [0], int(0.22 * steps) or 1
    while checkpoints[-1] + window <= steps:
        checkpoints.append(checkpoints[-1] + window)
        window = max(window - (int(0.03 * steps) or 1), int(0.06 * steps) or 1)
    points, values, eta = [x], [], 2 * eps
    value, gradient = f(x)
    values.append(value)
    best = (value, x, gradient)
    history = [(eta, value)]  # step and best value at each checkpoint
    current, previous = x, x
    for k in range(1, steps + 1):
        z = project(current + eta * gradient)
        alpha = 0.75 if k > 1 else 1.0
        moved = project(current + alpha * (z - current) + (1 - alpha) * (current - previous))
        previous, current = current, moved
        value, gradient = f(current)
        points.append(current)
        values.append(value)
        if value > best[0]:
            best = (value, current, gradient)
        if k in checkpoints:
            last = checkpoints[checkpoints.index(k) - 1]
            rising = sum(values[i + 1] > values[i] for i in range(last, k))
            kept = len(history) > 1 and history[-1][0] == history[-2][0]
            seen, history = history, [*history, (eta, best[0])]
            if rising <= rho * (k - last) or (kept and seen[-1][1] >= best[0]):
                history[-1] = (eta / 2, best[0])
                eta, current, gradient = eta / 2, best[1], best[2]
    return best[1]


@pytest.mark.parametrize("norm, eps", [("l2", 0.5), ("linf", 0.02)])
@pytest.mark.parametrize("steps", [1, 5, 20, 50])
@pytest.mark.parametrize("name", ["ce", "dlr"])
def test_equals_the_algorithm_of_the_paper(net, images, labels, norm, eps, steps, name) -> None:
    rows = slice(0, 12)
    per_sample = getattr(margins, name)
    ours = apgd(
        lambda x: per_sample(net(x), labels[rows]),
        images[rows],
        eps=eps,
        norm=norm,
        steps=steps,
        random_start=False,
    )
    for row in range(12):
        label = labels[row : row + 1]
        expected = transcription(
            lambda x, y=label: per_sample(net(x), y), images[row : row + 1], eps, norm, steps, 0.75
        )
        # The same point; where rounding parts two paths that are nearly a tie, at least the same height.
        same = (ours[row] - expected[0]).abs().max() < 1e-4
        high = per_sample(net(ours[row : row + 1]), label) - per_sample(net(expected), label)
        assert bool(same) or abs(float(high)) < 1e-5


@pytest.mark.parametrize("norm, eps", [("l2", 0.6), ("linf", 0.05)])
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_ball_and_range(net, images, labels, norm, eps, random_start) -> None:
    settings = {"eps": eps, "norm": norm, "steps": 9, "random_start": random_start}
    settings["generator"] = torch.Generator().manual_seed(3)
    some, own = images[:40], labels[:40]
    for out in (
        apgd(cross_entropy(net, own), some, **settings),
        apgd_ce(net, some, own, **settings),
        apgd_targeted(net, some, own, targets=3, **settings),
    ):
        size = (out - some).flatten(1).norm(dim=1) if norm == "l2" else (out - some).abs().amax()
        assert float(size.max()) <= eps + 1e-5
        assert float(out.min()) >= 0 and float(out.max()) <= 1 and not out.requires_grad


@pytest.mark.parametrize("norm, eps", [("l2", 1.0), ("linf", 0.05)])
def test_never_below_the_start(net, images, labels, norm, eps) -> None:
    loss = cross_entropy(net, labels)
    for steps in (1, 2, 7):
        out = apgd(loss, images, eps=eps, norm=norm, steps=steps, random_start=False)
        assert bool((loss(out) > loss(images)).all())


@pytest.mark.parametrize("norm, eps", [("l2", 0.12), ("linf", 0.006)])
@pytest.mark.parametrize("steps", [10, 40])
def test_never_weaker_than_pgd(net, images, labels, norm, eps, steps) -> None:
    def survivors(out: Tensor) -> int:
        return int((net(out).argmax(1) == labels).sum())

    settings = {"eps": eps, "norm": norm, "steps": steps}
    loss = cross_entropy(net, labels)
    plain = survivors(pgd(loss, images, **settings))
    assert 0.1 * len(images) < plain < 0.9 * len(images)  # else the comparison says nothing
    generator = torch.Generator().manual_seed(0)
    assert survivors(apgd_ce(net, images, labels, generator=generator, **settings)) <= plain
    assert (
        survivors(apgd_targeted(net, images, labels, targets=3, generator=generator, **settings))
        <= plain
    )
    # As for the loss itself: at least as high on the whole.
    high = loss(apgd(loss, images, generator=generator, **settings)).mean()
    assert float(high) >= float(loss(pgd(loss, images, **settings)).mean()) - 1e-4


def test_a_seed_repeats_itself_and_another_does_not(net, images, labels) -> None:
    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return apgd_ce(
            net, images[:20], labels[:20], eps=0.05, steps=4, restarts=2, generator=generator
        )

    torch.manual_seed(1)
    first = run(0)
    torch.manual_seed(2)
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))


def test_images_do_not_influence_each_other(net, images, labels) -> None:
    settings = {"eps": 0.2, "steps": 12, "random_start": False}
    for attack in (apgd_ce, apgd_targeted):
        more = {"targets": 3} if attack is apgd_targeted else {}
        together = attack(net, images[:30], labels[:30], **settings, **more)
        alone = attack(net, images[7:8], labels[7:8], **settings, **more)
        assert torch.allclose(together[7:8], alone, atol=1e-5)


def test_misclassified_images_come_back_untouched(net, images, labels) -> None:
    wrong = (labels + 1) % CLASSES
    assert torch.equal(apgd_ce(net, images, wrong, eps=0.5, steps=5), images)


def test_leaves_a_sample_alone_once_it_is_beaten(net, images, labels) -> None:
    seen = []

    def watching(x: Tensor) -> Tensor:
        seen.append(len(x))
        return net(x)

    out = apgd_ce(watching, images, labels, eps=1.5, steps=30, random_start=False)
    assert bool((net(out).argmax(1) != labels).all())
    assert seen[:2] == [240, 240] and seen == sorted(seen, reverse=True) and len(seen) < 30


def test_restarts_help_and_never_harm(net, images, labels) -> None:
    # Steps too few to climb: what counts is where a run starts.
    loss = cross_entropy(net, labels)
    values = [
        loss(
            apgd(
                lambda x: loss(x).detach() + 0 * x.flatten(1).sum(1),
                images,
                eps=1.0,
                steps=1,
                restarts=restarts,
                generator=torch.Generator().manual_seed(0),
            )
        )
        for restarts in (1, 4)
    ]
    assert bool((values[1] >= values[0] - 1e-6).all()) and bool((values[1] > values[0]).any())


def test_leaves_weight_gradients_alone_and_works_under_no_grad(images, labels) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    with torch.no_grad():
        out = apgd_ce(net, images[:5], net(images[:5]).argmax(1), eps=0.3, steps=3)
    assert all(p.grad is None for p in net.parameters()) and not torch.equal(out, images[:5])


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": 1.0, "steps": 0}])
def test_no_budget_returns_a_copy(net, images, labels, settings) -> None:
    for out in (
        apgd(cross_entropy(net, labels), images, **settings),
        apgd_ce(net, images, labels, **settings),
    ):
        assert torch.equal(out, images) and out.data_ptr() != images.data_ptr()


def test_losses_of_scores() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0, -1.0], [1.0, 3.0, 0.0, -1.0]])
    labels, targets = torch.tensor([0, 0]), torch.tensor([3, 1])
    assert torch.allclose(margins.ce(scores, labels), -scores.log_softmax(1)[:, 0])
    # (other - own) / (1st - 3rd): (1 - 3) / 3 and (3 - 1) / 3
    assert torch.allclose(margins.dlr(scores, labels), torch.tensor([-2 / 3, 2 / 3]))
    # (target - own) / (1st - mean of 3rd and 4th): (-1 - 3) / 3.5 and (3 - 1) / 3.5
    assert torch.allclose(
        margins.targeted_dlr(scores, labels, targets), torch.tensor([-4 / 3.5, 2 / 3.5])
    )
    for shifted in (scores + 5, scores * 7):
        assert torch.allclose(margins.dlr(shifted, labels), margins.dlr(scores, labels))
    assert margins.likeliest_others(scores, labels, 2).tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda n, x, y: apgd(lambda z: n(z).sum(), x, eps=1.0), "one loss per sample"),
        (lambda n, x, y: apgd_ce(n, x, y, eps=1.0, norm="l1"), "'l2', 'linf'"),
        (lambda n, x, y: apgd_ce(n, x, y + 1, eps=1.0), "classes from 0 to 5"),
        (lambda n, x, y: apgd_ce(n, x, y - 1, eps=1.0), "classes from 0 to 5"),
        (lambda n, x, y: apgd_targeted(n, x, y * 99, eps=1.0, targets=2), "classes from 0 to 5"),
        (lambda n, x, y: apgd_ce(n, x, y[:5], eps=1.0), "labels must be"),
        (lambda n, x, y: apgd_ce(n, x, y.float(), eps=1.0), "labels must be .* torch.float32"),
        (lambda n, x, y: apgd_ce(n, x, y > 0, eps=1.0), "labels must be .* torch.bool"),
        (lambda n, x, y: apgd_ce(lambda x: n(x)[:, 0], x, y, eps=1.0), r"scores \(N, C\)"),
        (lambda n, x, y: apgd_ce(lambda x: n(x) * float("nan"), x, y, eps=1.0), "without NaN"),
        (lambda n, x, y: apgd(lambda x: x.flatten(1).sum(1), x[0], eps=1.0), "one loss per sample"),
        (lambda n, x, y: apgd_ce(n, x * 2, y, eps=1.0), "before normalisation"),
        (
            lambda n, x, y: apgd_ce(n, x, y, eps=1.0, restarts=2, random_start=False),
            "random_start=True",
        ),
        (lambda n, x, y: apgd_ce(n, x, y, eps=1.0, restarts=0), "at least 1"),
        (lambda n, x, y: apgd_ce(n, x, y, eps=1.0, loss="hinge"), "'ce', 'dlr'"),
        (lambda n, x, y: apgd_targeted(n, x, y, eps=1.0, targets=6), "give 1 to 5"),
        (lambda n, x, y: margins.dlr(n(x)[:, :2], y), "at least 3 classes"),
        (lambda n, x, y: margins.targeted_dlr(n(x)[:, :3], y, y), "at least 4 classes"),
    ],
)
def test_bad_settings_are_named(net, images, labels, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(net, images, labels)


@pytest.mark.parametrize("attack", [apgd_ce, partial(apgd_targeted, targets=2)])
def test_labels_of_any_whole_type_also_under_inference_mode(net, images, labels, attack) -> None:
    def run(given: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return attack(net, images, given, eps=1.0, steps=3, generator=generator)

    want = run(labels)
    for given in (labels.int(), labels.to(torch.uint8), labels.tolist()):
        assert torch.equal(run(given), want)
    with torch.inference_mode():
        assert torch.equal(run(labels.clone()), want)
