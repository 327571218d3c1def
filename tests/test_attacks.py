"""PGD against foolbox and transcriptions; the ball, the range, the shape, the type and the weights that it keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plug.attacks import BALLS, Ball, apgd, pgd

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 49, 5))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def loss(net) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(net(x), LABELS[: len(x)], reduction="none")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    change = (a.float() - b.float()).flatten(1)
    return change.norm(dim=1) if norm == "l2" else change.abs().amax(1)


@pytest.mark.parametrize("norm, eps", [("l2", 0.7), ("linf", 0.03)])
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_foolbox(net, loss, images, norm, eps, steps) -> None:
    foolbox = pytest.importorskip("foolbox")
    attack = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm]
    reference = attack(abs_stepsize=eps / 3, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, expected, _ = reference(model, images, LABELS, epsilons=eps)
    ours = pgd(loss, images, eps=eps, norm=norm, steps=steps, step_size=eps / 3)
    assert (ours - expected).abs().max() < 1e-6


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("norm, eps", [("l2", 0.7), ("linf", 0.03)])
def test_momentum_equals_a_transcription(loss, images, norm, eps, normalised) -> None:
    """Ours keeps the sum of directions (Dong et al. 2018), RobustVLM's train/pgd_train.py the normalised sum."""

    def unit(x: Tensor) -> Tensor:
        return x.sign() if norm == "linf" else F.normalize(x.flatten(1)).view_as(x)

    delta, velocity = torch.zeros_like(images), torch.zeros_like(images)
    for _ in range(3):
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(images + delta).sum(), delta)
        with torch.no_grad():
            velocity = 0.9 * velocity + unit(gradient)
            direction = unit(velocity)
            velocity = direction if normalised else velocity
            delta = delta + eps / 2 * direction
            if norm == "linf":
                delta = delta.clamp(-eps, eps)
            else:
                delta = torch.renorm(delta, p=2, dim=0, maxnorm=eps)
            delta = (images + delta).clamp(0, 1) - images
    settings = {"momentum": 0.9, "normalised_velocity": normalised, "step_size": eps / 2}
    ours = pgd(loss, images, eps=eps, norm=norm, steps=3, **settings)
    assert (ours - images - delta).abs().max() < 1e-6
    other = pgd(
        loss,
        images,
        eps=eps,
        norm=norm,
        steps=3,
        **settings | {"normalised_velocity": not normalised},
    )
    plain = pgd(loss, images, eps=eps, norm=norm, steps=3, step_size=eps / 2)
    # Signs of a normalised sum of signs are the signs of the last gradient.
    assert torch.equal(ours, plain) == (norm == "linf" and normalised)
    assert norm == "linf" or not torch.equal(ours, other)


def test_the_default_step_is_two_and_a_half_radii_over_the_steps(loss, images) -> None:
    for norm, steps in (("l2", 4), ("linf", 10)):
        settings = {"eps": 0.1, "norm": norm, "steps": steps}
        named = pgd(loss, images, step_size=2.5 * 0.1 / steps, **settings)
        assert torch.equal(pgd(loss, images, **settings), named)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_ball_and_range(loss, images, norm, random_start) -> None:
    settings = {"norm": norm, "steps": 7, "step_size": 1.0, "random_start": random_start}
    out = pgd(loss, images, eps=0.5, generator=generator(3), **settings)
    assert float(distance(out, images, norm).max()) <= 0.5 + 1e-5
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    again = pgd(loss, images, eps=0.5, generator=generator(3), **settings)
    assert torch.equal(out, again)
    other = pgd(loss, images, eps=0.5, generator=generator(4), **settings)
    assert torch.equal(out, other) != random_start
    free = pgd(loss, images, eps=0.5, project_range=None, generator=generator(3), **settings)
    assert float(free.max()) > 1 and float(distance(free, images, norm).max()) <= 0.5 + 1e-5
    channels = torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1)
    low = (images * channels, torch.zeros(3, 1, 1))
    kept = pgd(loss, low[0], eps=0.5, project_range=(low[1], channels), **settings)
    assert bool((kept <= channels + 1e-6).all()) and float(kept[:, 2].max()) > 0.9


@pytest.mark.parametrize("norm, eps", [("l2", 1.0), ("linf", 0.05)])
def test_raises_the_loss_of_every_image_and_leaves_weights_alone(
    net, loss, images, norm, eps
) -> None:
    with torch.no_grad():
        net.zero_grad(set_to_none=True)
        out = pgd(loss, images, eps=eps, norm=norm, steps=10)
    assert bool((loss(out) > loss(images)).all()) and not out.requires_grad
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": 1.0, "steps": 0}])
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_no_budget_returns_a_copy(loss, images, attack, settings) -> None:
    out = attack(loss, images, **settings)
    assert torch.equal(out, images) and out.data_ptr() != images.data_ptr()


def test_images_do_not_influence_each_other(net, images) -> None:
    def attack(rows: slice) -> Tensor:
        return pgd(
            lambda x: F.cross_entropy(net(x), LABELS[rows], reduction="none"), images[rows], eps=1.0
        )

    assert torch.allclose(attack(slice(0, 6))[2:3], attack(slice(2, 3)), atol=1e-6)


def test_best_keeps_the_highest_of_all_iterates() -> None:
    """On a loss with its peak in the middle, long steps jump over it: the first step's point is the best of three."""
    target = torch.tensor([0.3, 0.5]).view(2, 1, 1, 1)
    seen: list[Tensor] = []

    def peak(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return -(x - target).flatten(1).abs().sum(1)

    start = torch.zeros(2, 1, 2, 2)
    settings = {"eps": 1.0, "norm": "linf", "steps": 2, "step_size": 0.4}
    found = pgd(peak, start, best=True, **settings)
    assert len(seen) == 3  # the start and two steps
    losses = torch.stack([peak(x) for x in seen[:3]])
    assert torch.equal(peak(found), losses.amax(0))
    assert bool((peak(found) > peak(pgd(peak, start, **settings))).all())
    rising = pgd(lambda x: x.flatten(1).sum(1), start, best=True, **settings)
    assert torch.allclose(rising, torch.full_like(rising, 0.8))  # the last point counts too


def test_random_starts_are_uniform() -> None:
    noise = BALLS["l2"](2.0, None).start(torch.zeros(4000, 1, 1, 2), generator(0))
    radius = noise.flatten(1).norm(dim=1)
    assert 1.9 < float(radius.max()) <= 2 + 1e-5
    # In two dimensions a quarter of the area lies within half of the radius, and every direction is as likely.
    assert abs(float((radius < 1).float().mean()) - 0.25) < 0.03
    assert noise.mean(0).abs().max() < 0.06
    flat = BALLS["linf"](2.0, None).start(torch.zeros(4000, 2), generator(0))
    assert -2 <= float(flat.min()) < -1.99 and 1.99 < float(flat.max()) <= 2
    assert abs(float(flat.mean())) < 0.05 and abs(float(flat.std()) - 4 / 12**0.5) < 0.03


def test_the_hooks_of_a_ball() -> None:
    x = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
    l2, linf = BALLS["l2"], BALLS["linf"]
    assert torch.allclose(l2(1.0, None).project(x).flatten(), torch.tensor([0.6, -0.8]))
    assert torch.equal(l2(10.0, None).project(x), x)
    assert torch.equal(linf(3.5, None).project(x).flatten(), torch.tensor([3.0, -3.5]))
    assert torch.allclose(l2(1.0, None).normalise(x).flatten(), torch.tensor([0.6, -0.8]))
    assert torch.equal(linf(1.0, None).normalise(x).flatten(), torch.tensor([1.0, -1.0]))
    assert l2(1.0, None).size(x).item() == 5 and linf(1.0, None).size(x).item() == 4
    assert torch.equal(linf(1.0, (0, 1)).inside(x / 10, x).flatten(), torch.tensor([0.7, 0.4]))


def test_another_norm_is_a_subclass(loss, images) -> None:
    class Frozen(Ball):
        def project(self, delta: Tensor) -> Tensor:
            return delta * 0

    for attack in (pgd, apgd):
        out = attack(loss, images, eps=0.5, norm=Frozen, steps=2, random_start=False)
        assert torch.equal(out, images)


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (7,), (4, 7), (4, 3, 8, 8), (2, 3, 4, 5, 6)])
def test_every_shape_is_kept(attack, norm, shape) -> None:
    """One or three axes are one sample, whose norm is over all of it; otherwise the first axis counts the samples."""
    x = torch.rand(shape, generator=generator(0)) * 0.5 + 0.25
    rows = x[None] if len(shape) in (1, 3) else x
    weight = torch.rand(rows.shape, generator=generator(1)) + 0.1

    def score(z: Tensor) -> Tensor:
        assert z.shape == shape
        values = (z.view_as(rows) * weight).flatten(1).sum(1)
        return values[0] if rows is not x else values

    out = attack(score, x, eps=0.1, norm=norm, steps=5)
    assert out.shape == x.shape
    assert torch.allclose(distance(out.view_as(rows), rows, norm), torch.tensor(0.1), atol=1e-3)
    if attack is pgd:
        assert torch.allclose(pgd(score, x, eps=0.1, norm=norm, steps=5, best=True), out)


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("norm, eps", [("l2", 0.3), ("linf", 8 / 255), ("linf", 1e-3)])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_keeps_its_type_and_the_ball(attack, norm, eps, dtype) -> None:
    x = torch.rand(4, 3, 9, 9, generator=generator(0)).to(dtype)
    weight = torch.randn(3, 9, 9, generator=generator(1))

    def score(z: Tensor) -> Tensor:
        assert z.dtype == dtype
        return (z.float() * weight).flatten(1).sum(1)

    out = attack(score, x, eps=eps, norm=norm, steps=5, generator=generator(2))
    assert out.dtype == dtype and bool((score(out) >= score(x)).all())
    assert float(distance(out, x, norm).max()) <= eps
    if eps > 0.01:
        assert float(distance(out, x, norm).min()) > eps / 2


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.0, 1e-7])
def test_zero_and_tiny_gradients_stay_finite(attack, norm, dtype, slope) -> None:
    x = torch.full((2, 3, 4, 4), 0.5, dtype=dtype)
    out = attack(lambda z: (z * slope).flatten(1).sum(1), x, eps=0.1, norm=norm, steps=3)
    assert bool(out.isfinite().all()) and out.dtype == dtype
    if attack is pgd:
        assert torch.equal(out, x) == (slope == 0)


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize(
    "change, settings, message",
    [
        (lambda x: x, {"norm": "l1"}, "'l2', 'linf'"),
        (lambda x: x, {"eps": -1.0}, "negative"),
        (lambda x: x, {"eps": float("nan")}, "negative"),
        (lambda x: x, {"steps": -2}, "negative"),
        (lambda x: x * float("nan"), {}, "NaN"),
        (lambda x: x / 0, {"project_range": None}, "NaN or infinity"),
        (lambda x: (x * 255).byte(), {}, "uint8"),
        (lambda x: x * 4 - 2, {}, "before normalisation"),
        (lambda x: x + 0.01, {}, "beyond the valid values"),
        (lambda x: x - 0.01, {}, "beyond the valid values"),
        (lambda x: x, {"norm": 2}, "'l2', 'linf'"),
        (lambda x: x.numpy(), {}, "the images are a ndarray"),
        (lambda x: x, {"nan": "constant"}, "the loss is a constant"),
        (lambda x: x, {"nan": "float"}, "the loss is a float"),
        (lambda x: x, {"nan": "loss"}, "not finite"),
        (lambda x: x, {"nan": "gradient"}, "not finite"),
    ],
)
def test_bad_input_is_one_sentence(loss, images, attack, change, settings, message) -> None:
    nan = settings.pop("nan", "") if (settings := dict(settings)) is not None else ""

    def odd(x: Tensor) -> Tensor:
        return {
            "loss": lambda: loss(x) * float("nan"),
            "constant": lambda: loss(x).detach(),
            "float": lambda: 1.0,
            "gradient": lambda: loss(x) + (x - x.detach()).abs().sqrt().flatten(1).sum(1),
        }.get(nan, lambda: loss(x))()

    pinned = images.clone()
    pinned[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=message):
        attack(odd, change(pinned), **{"eps": 0.1, "steps": 2, **settings})


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_under_inference_mode_the_attack_is_the_same(loss, images, attack) -> None:
    want = attack(loss, images, eps=0.5, steps=3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = images.clone()
        found = attack(loss, own, eps=0.5, steps=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, want) and not torch.equal(found, images)


def test_what_a_resampling_overshoots_is_accepted(loss, images) -> None:
    out = pgd(loss, images * 1.0008, eps=0.1, steps=2)
    assert float(out.max()) <= 1


def test_best_needs_per_sample_losses(loss, images) -> None:
    with pytest.raises(ValueError, match="one loss per sample"):
        pgd(lambda x: loss(x).sum(), images, eps=1.0, steps=2, best=True)
