"""PGD against foolbox, and what every attack must keep: the ball, the pixel range, the weights' gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipag_plug.attacks import l2, pgd, project, random_perturbation, steepest


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 49, 5)
    ).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def cross_entropy(net: nn.Module, labels: torch.Tensor):
    return lambda x: F.cross_entropy(net(x), labels, reduction="none")


@pytest.mark.parametrize("norm, eps", [("l2", 0.7), ("linf", 0.03)])
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_foolbox(net, images, norm, eps, steps) -> None:
    foolbox = pytest.importorskip("foolbox")
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    attack = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm]
    reference = attack(abs_stepsize=eps / 3, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, expected, _ = reference(model, images, labels, epsilons=eps)
    ours = pgd(
        cross_entropy(net, labels), images, eps=eps, norm=norm, steps=steps, step_size=eps / 3
    )
    assert (ours - expected).abs().max() < 1e-6


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_ball_and_range(net, images, norm, random_start) -> None:
    labels = torch.arange(6) % 5
    generator = torch.Generator().manual_seed(3)
    out = pgd(
        cross_entropy(net, labels),
        images,
        eps=0.5,
        norm=norm,
        steps=7,
        step_size=1.0,
        random_start=random_start,
        generator=generator,
    )
    size = l2(out - images) if norm == "l2" else (out - images).abs().amax()
    assert float(size.max()) <= 0.5 + 1e-5
    assert float(out.min()) >= 0 and float(out.max()) <= 1


@pytest.mark.parametrize("norm, eps", [("l2", 1.0), ("linf", 0.05)])
def test_raises_the_loss_of_every_image(net, images, norm, eps) -> None:
    loss = cross_entropy(net, torch.arange(6) % 5)
    assert bool((loss(pgd(loss, images, eps=eps, norm=norm, steps=10)) > loss(images)).all())


def test_leaves_weight_gradients_alone(net, images) -> None:
    pgd(cross_entropy(net, torch.zeros(6, dtype=torch.long)), images, eps=1.0, steps=3)
    assert all(p.grad is None for p in net.parameters())


def test_works_under_no_grad_and_returns_no_graph(net, images) -> None:
    with torch.no_grad():
        out = pgd(cross_entropy(net, torch.zeros(6, dtype=torch.long)), images, eps=1.0, steps=2)
    assert not out.requires_grad and not torch.equal(out, images)


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": 1.0, "steps": 0}])
def test_no_budget_returns_the_images(net, images, settings) -> None:
    out = pgd(cross_entropy(net, torch.zeros(6, dtype=torch.long)), images, **settings)
    assert torch.equal(out, images) and out.data_ptr() != images.data_ptr()


def test_images_do_not_influence_each_other(net, images) -> None:
    labels = torch.arange(6) % 5
    together = pgd(cross_entropy(net, labels), images, eps=1.0, steps=5)
    alone = pgd(cross_entropy(net, labels[2:3]), images[2:3], eps=1.0, steps=5)
    assert torch.allclose(together[2:3], alone, atol=1e-6)


def test_best_is_never_below_the_last_iterate(net, images) -> None:
    loss = cross_entropy(net, torch.arange(6) % 5)
    settings = {"eps": 1.0, "steps": 6, "step_size": 1.5}  # steps this long overshoot
    assert bool(
        (
            loss(pgd(loss, images, best=True, **settings))
            >= loss(pgd(loss, images, **settings)) - 1e-6
        ).all()
    )


def test_best_needs_per_sample_losses(net, images) -> None:
    with pytest.raises(ValueError, match="one loss per sample"):
        pgd(lambda x: net(x).sum(), images, eps=1.0, steps=2, best=True)


def test_momentum_accumulates_unit_steps() -> None:
    # On a linear loss every direction is the same, so momentum only changes the radius: eps is reached either way.
    weight = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = pgd(
        lambda x: (x * weight).flatten(1).sum(1), torch.full((1, 3, 4, 4), 0.5), eps=0.1, steps=4
    )
    heavy = pgd(
        lambda x: (x * weight).flatten(1).sum(1),
        torch.full((1, 3, 4, 4), 0.5),
        eps=0.1,
        steps=4,
        momentum=0.9,
    )
    assert torch.allclose(plain, heavy, atol=1e-6)


def test_random_start_is_uniform_in_the_l2_ball() -> None:
    noise = random_perturbation(
        torch.zeros(4000, 1, 1, 2), 2.0, "l2", torch.Generator().manual_seed(0)
    )
    radius = l2(noise).flatten()
    assert float(radius.max()) <= 2 + 1e-5
    # In two dimensions a quarter of the area lies within half of the radius.
    assert abs(float((radius < 1).float().mean()) - 0.25) < 0.03


def test_project_and_steepest_conventions() -> None:
    x = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    assert torch.allclose(project(x, 1.0, "l2").flatten(), torch.tensor([0.6, 0.8]))
    assert torch.equal(project(x, 10.0, "l2"), x)
    assert torch.equal(project(x, 3.5, "linf").flatten(), torch.tensor([3.0, 3.5]))
    assert torch.allclose(l2(steepest(x, "l2")), torch.ones(1, 1, 1, 1))
    assert torch.equal(steepest(-x, "linf").flatten(), torch.tensor([-1.0, -1.0]))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"norm": "l1", "eps": 1.0}, "'l2', 'linf'"),
        ({"eps": -1.0}, "negative"),
        ({"eps": 1.0, "steps": -2}, "negative"),
    ],
)
def test_bad_settings_are_named(images, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        pgd(lambda x: x.flatten(1).sum(1), images, **settings)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_normalised_images_are_refused(attack: str) -> None:
    """Cut back into [0, 1] they would leave the ball."""
    from clipag_plug.attacks import apgd

    run = pgd if attack == "pgd" else apgd
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="before normalisation"):
        run(lambda x: x.sum((1, 2, 3)), images, eps=0.1, steps=1)
    moved = run(lambda x: x.sum((1, 2, 3)), images, eps=0.1, steps=1, project_range=None)
    assert float((moved - images).flatten(1).norm(dim=1).max()) <= 0.1 + 1e-5
