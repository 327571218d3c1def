"""Projected gradient ascent on images in L2 and Linf balls, around any `loss(images)`.

The attacks know no model: normalisation belongs inside the loss. Gradients are taken with respect to the
perturbation alone, so the `.grad` of weights is never touched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NORMS = ("l2", "linf")
OVERSHOOT = 1e-3  # what a sharp resampling may leave beyond the limits
Loss = Callable[[Tensor], Tensor]


def pgd(
    loss: Loss,
    images: Tensor,
    *,
    eps: float,
    norm: str = "l2",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = False,
    momentum: float = 0.0,
    best: bool = False,
    project_range: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018): images within `eps` of the given ones that raise `loss`.

    loss: maps images (N, 3, H, W) to per-sample losses (N,), or to their sum.
    eps, step_size: in the units of the images; L2 is over C*H*W of one sample. `step_size` defaults to
    2.5 * eps / steps. momentum: decay of the accumulated direction (Dong et al. 2018), 0 is plain PGD.
    best: keep each sample's highest-loss iterate instead of the last one (needs per-sample losses).
    project_range: valid values of a pixel; None for no limit.
    Returns adversarial images, detached. Raises ValueError for an unknown norm, negative eps or steps, and images
    outside `project_range`.
    """
    check_budget(eps, norm, steps)
    images = images.detach()
    check_range(images, project_range)
    if steps == 0 or eps == 0:
        return images.clone()
    step = 2.5 * eps / steps if step_size is None else step_size
    delta = (
        random_perturbation(images, eps, norm, generator)
        if random_start
        else torch.zeros_like(images)
    )
    delta = into_range(images, delta, project_range)
    velocity = torch.zeros_like(images)
    keeper = _Best(images) if best else None
    for _ in range(steps):
        values, gradient = value_and_gradient(loss, images + delta)
        if keeper is not None:
            keeper.update(values, images + delta)
        velocity = momentum * velocity + steepest(gradient, norm)
        direction = steepest(velocity, norm) if momentum else velocity
        delta = project(delta + step * direction, eps, norm)
        delta = into_range(images, delta, project_range)
    if keeper is not None:
        with torch.no_grad():
            keeper.update(loss(images + delta), images + delta)
        return keeper.images
    return images + delta


def value_and_gradient(loss: Loss, images: Tensor) -> tuple[Tensor, Tensor]:
    """Loss values (detached) and the gradient of their sum with respect to the images, both detached."""
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        values = loss(images)
        (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """Unit direction of steepest ascent under `norm`: the sign for Linf, the normalised gradient for L2."""
    if norm == "linf":
        return gradient.sign()
    return gradient / l2(gradient).clamp_min(1e-12)


def project(delta: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest perturbation inside the ball of radius `eps`."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / l2(delta).clamp_min(1e-12)).clamp(max=1)


def random_perturbation(
    images: Tensor, eps: float, norm: str, generator: torch.Generator | None
) -> Tensor:
    """A point drawn uniformly from the ball: per pixel for Linf; for L2 a uniform direction at radius eps * U^(1/d)."""
    if norm == "linf":
        uniform = torch.rand(
            images.shape, generator=generator, device=images.device, dtype=images.dtype
        )
        return (2 * uniform - 1) * eps
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    radius = torch.rand(
        images.shape[0], 1, 1, 1, generator=generator, device=images.device, dtype=images.dtype
    )
    return noise / l2(noise).clamp_min(1e-12) * eps * radius ** (1 / images[0].numel())


def l2(x: Tensor) -> Tensor:
    """L2 norm of each sample over C*H*W, shape (N, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class _Best:
    """Each sample's iterate of highest loss so far."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.values = torch.full((images.shape[0],), -torch.inf, device=images.device)

    def update(self, values: Tensor, images: Tensor) -> None:
        if values.shape != self.values.shape:
            raise ValueError(
                f"best=True needs one loss per sample, shape {tuple(self.values.shape)}; got {tuple(values.shape)}"
            )
        better = values > self.values
        self.values = torch.where(better, values, self.values)
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)


def into_range(images: Tensor, delta: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """The perturbation, cut where `images + delta` would leave the valid values; None sets no limit."""
    return delta if limits is None else (images + delta).clamp(*limits) - images


def check_range(images: Tensor, limits: tuple[float, float] | None) -> None:
    """Raises ValueError for images beyond their limits: cutting them back would change them by more than eps."""
    if limits is None or not images.numel():
        return
    low, high = limits  # numbers, or tensors of limits per channel
    if bool(((images < low - OVERSHOOT) | (images > high + OVERSHOOT)).any()):
        least, most = (float(end) for end in images.aminmax())
        raise ValueError(
            f"the images span {least:.3g} to {most:.3g}, beyond the valid values; give them in [0, 1], before "
            "normalisation, which belongs inside the loss, or set project_range"
        )


def check_budget(eps: float, norm: str, steps: int) -> None:
    """Raises ValueError for an unknown norm, or a negative radius or number of steps."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(map(repr, NORMS))}")
    if eps < 0 or steps < 0:
        raise ValueError(f"eps and steps must not be negative; got eps={eps}, steps={steps}")
