"""Projected gradient ascent around any `loss(images)`, and the balls that attacks keep to.

The attacks know no model: normalisation belongs inside the loss. Gradients are taken with respect to the images alone,
so the `.grad` of weights is never touched. The first axis counts the samples; a tensor of one or three axes is one
sample, as a picture (3, H, W). Half precision is attacked in float32 and shown to the loss in its own type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OVERSHOOT = 1e-3  # what a sharp resampling may leave beyond the limits
Loss = Callable[[Tensor], Tensor]
Range = tuple[float | Tensor, float | Tensor] | None


class Ball:
    """The images within `eps` in L2 of given ones and inside the valid values.

    An attack asks a norm for `size`, `normalise`, `project` and `start`; for another norm give a subclass as `norm=`.
    """

    def __init__(self, eps: float, limits: Range) -> None:
        self.eps, self.limits = eps, limits

    def size(self, x: Tensor) -> Tensor:
        """The norm of each sample, (N, 1, 1, 1) for (N, C, H, W)."""
        return torch.linalg.vector_norm(x, dim=_axes(x), keepdim=True)

    def normalise(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of norm 1, or 0 for a gradient of 0."""
        return gradient / self.size(gradient).clamp_min(1e-12)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation inside the ball."""
        return delta * (self.eps / self.size(delta).clamp_min(1e-12)).clamp(max=1)

    def start(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """A perturbation drawn uniformly from the ball: a uniform direction at radius eps * U^(1/d)."""
        like: dict[str, Any] = {
            "generator": generator,
            "device": images.device,
            "dtype": images.dtype,
        }
        noise = torch.randn(images.shape, **like)
        size = self.size(noise)
        radius = torch.rand(size.shape, **like) ** (size.numel() / noise.numel())
        return noise / size.clamp_min(1e-12) * self.eps * radius

    def inside(self, images: Tensor, delta: Tensor) -> Tensor:
        """The perturbation, cut where the images would leave the valid values."""
        if self.limits is None:
            return delta
        low, high = (torch.as_tensor(limit).to(images) for limit in self.limits)
        return (images + delta).clamp(low, high) - images

    def rounded(self, points: Tensor, images: Tensor) -> Tensor:
        """The points in the type of the images; what rounding carries out of the ball moves back to the image."""
        found = points.to(images.dtype)
        if found.dtype != points.dtype:
            delta, kind = points - images, torch.finfo(found.dtype)
            unit = (points.abs() * kind.eps).clamp_min(
                kind.tiny
            )  # at least the distance of two neighbours
            for nearer in ((points - unit * delta.sign()).to(found.dtype), images):
                moved = found.to(points.dtype) - images
                outside = (self.size(moved) > self.eps) & (moved.abs() > delta.abs())
                found = torch.where(outside, nearer, found)
        return found


class LinfBall(Ball):
    """The images whose pixels are each within `eps` of the given ones."""

    def size(self, x: Tensor) -> Tensor:
        return x.abs().amax(_axes(x), keepdim=True)

    def normalise(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def start(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        like: dict[str, Any] = {
            "generator": generator,
            "device": images.device,
            "dtype": images.dtype,
        }
        return (2 * torch.rand(images.shape, **like) - 1) * self.eps


BALLS: dict[str, type[Ball]] = {"l2": Ball, "linf": LinfBall}


@torch.inference_mode(False)  # who evaluates under it attacks, too
def pgd(
    loss: Loss,
    images: Tensor,
    *,
    eps: float,
    norm: str | type[Ball] = "l2",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = False,
    momentum: float = 0.0,
    normalised_velocity: bool = False,
    best: bool = False,
    project_range: Range = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018): images within `eps` of the given ones that raise `loss`.

    Args:
        loss: maps images of the given shape to per-sample losses (N,), or to their sum.
        images: (N, 3, H, W) in [0, 1], or any other shape.
        eps, step_size: in the units of the images; L2 is over all of one sample. The default step is 2.5 * eps / steps.
        norm: "l2", "linf", or a subclass of `Ball`.
        momentum: decay of the accumulated direction (Dong et al. 2018); 0 is plain PGD.
        normalised_velocity: accumulate on the normalised direction, as RobustVLM does (Schlarmann et al. 2024).
        best: keep each sample's highest-loss iterate instead of the last one (needs per-sample losses).
        project_range: valid values of a pixel; None for no limit.
    Returns: images of the given shape and type, detached.
    Raises: ValueError for an unknown norm, negative eps or steps, images that are not finite or outside
        `project_range`, and a loss or a gradient that is not finite.
    """
    ball, clean, images = prepare(norm, eps, steps, project_range, images)
    if steps == 0 or eps == 0:
        return images.clone()
    step = 2.5 * eps / steps if step_size is None else step_size
    delta = ball.start(clean, generator) if random_start else torch.zeros_like(clean)
    delta, velocity = ball.inside(clean, delta), torch.zeros_like(clean)
    found, highest = images, torch.full_like(ball.size(clean), -torch.inf)
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    for number in range(steps + best):
        point = ball.rounded(clean + delta, images)
        values, gradient = value_and_gradient(loss, point, backward=number < steps)
        finite &= ~values.isnan().any() & gradient.isfinite().all()
        if best:
            if values.ndim > 1 or values.numel() != highest.numel():
                raise ValueError(f"best=True needs one loss per sample; got {tuple(values.shape)}")
            better = values.view_as(highest) > highest
            highest = torch.where(better, values.view_as(highest), highest)
            found = torch.where(better, point, found)
        velocity = momentum * velocity + ball.normalise(gradient.to(clean.dtype))
        direction = ball.normalise(velocity) if momentum else velocity
        velocity = direction if normalised_velocity else velocity
        delta = ball.inside(clean, ball.project(delta + step * direction))
    if not finite:
        raise ValueError(NOT_FINITE)
    return found if best else ball.rounded(clean + delta, images)


NOT_FINITE = "the loss or its gradient is not finite; compute the loss in float32, or scale it down"


def prepare(
    norm: str | type[Ball], eps: float, steps: int, limits: Range, images: Tensor
) -> tuple[Ball, Tensor, Tensor]:
    """The ball, the images in the type to compute in, and the images, checked and detached."""
    if norm not in BALLS and not (isinstance(norm, type) and issubclass(norm, Ball)):
        raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(map(repr, BALLS))}")
    if not isinstance(images, Tensor):
        raise ValueError(f"the images are a {type(images).__name__}; give a tensor (N, 3, H, W)")
    if not eps >= 0 or steps < 0:
        raise ValueError(f"eps and steps must not be negative; got eps={eps}, steps={steps}")
    if not images.is_floating_point() or not bool(images.isfinite().all()):
        kind = "hold NaN or infinity" if images.is_floating_point() else f"are {images.dtype}"
        raise ValueError(f"the images {kind}; give finite floats, in [0, 1] as a rule")
    low, high = limits or (-torch.inf, torch.inf)
    # Cut back into the limits, they would change by more than eps.
    if bool(((images < low - OVERSHOOT) | (images > high + OVERSHOOT)).any()):
        least, most = (float(end) for end in images.aminmax())
        raise ValueError(
            f"the images span {least:.3g} to {most:.3g}, beyond the valid values; give them in [0, 1], before "
            "normalisation, which belongs inside the loss, or set project_range"
        )
    ball = (BALLS[norm] if isinstance(norm, str) else norm)(eps, limits)
    half = images.dtype in (torch.float16, torch.bfloat16)
    images = images.clone() if images.is_inference() else images.detach()
    return ball, images.float() if half else images, images


def value_and_gradient(
    loss: Loss, images: Tensor, *, backward: bool = True
) -> tuple[Tensor, Tensor]:
    """Loss values and the gradient of their sum with respect to the images, detached; zeros without `backward`."""
    with torch.set_grad_enabled(backward):
        images = images.detach().requires_grad_(backward)
        values = loss(images)
        if not isinstance(values, Tensor) or (backward and not values.requires_grad):
            what = (
                "is a constant" if isinstance(values, Tensor) else f"is a {type(values).__name__}"
            )
            raise ValueError(
                f"the loss {what}; give a function that makes a tensor of the images, without detach() or no_grad()"
            )
        if backward:
            (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient if backward else torch.zeros_like(images)


def _axes(x: Tensor) -> tuple[int, ...]:
    """The axes that make up one sample."""
    return tuple(range(0 if x.ndim in (1, 3) else 1, x.ndim))
