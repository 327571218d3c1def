"""What turns gradients into steps: AdamW, and beside it Muon for the kernels of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model import CLIP
from ..options.train import Train
from .weights import decay_groups

MOMENTUM = 0.95
ROUNDS = 5
# Of the odd polynomial whose repetition takes singular values between 0 and 1 to about 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def make_optimizer(
    model: CLIP, weights: dict[str, nn.Parameter], options: Train
) -> torch.optim.Optimizer:
    """AdamW over the weights; with `optimizer = "muon"`, Muon for the kernels that it suits.

    A group's "lr_scale" is what the schedule's learning rate is multiplied with for it; "low" has Muon multiply in
    bf16, as the rest of such a run does.
    Raises ValueError where Muon is asked for and the image tower has no such kernel, or `lr`, which its schedule is
    a multiple of, is 0.
    """
    groups = decay_groups(model, weights, options.weight_decay)
    if options.optimizer == "muon":
        kernels = _kernels(model)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in kernels]
        chosen = [p for p in weights.values() if id(p) in kernels]
        if not chosen:
            raise ValueError(
                "--optimizer muon turns kernels of convolutions without a bias, and the image tower has none; "
                "take --optimizer adamw"
            )
        if not options.lr:
            raise ValueError("--lr is 0; with --optimizer muon give one above 0, for AdamW's part")
        scale = options.muon_lr / options.lr
        low = options.precision == "bf16"
        muon = {"params": chosen, "weight_decay": 0.0, "muon": True, "lr_scale": scale, "low": low}
        groups.append(muon)
    return AdamWMuon(groups, lr=options.lr, betas=(0.9, options.beta2), eps=1e-6)


def _kernels(model: CLIP) -> set[int]:
    """The convolutions without a bias: a normalisation follows, so that only a kernel's direction matters.

    Not those on pixels, whose three channels are no directions to balance, and not depthwise ones.
    """
    return {
        id(layer.weight)
        for layer in model.visual.modules()
        if isinstance(layer, nn.Conv2d)
        and layer.bias is None
        and layer.groups == 1
        and layer.in_channels > 3
    }


class AdamWMuon(torch.optim.AdamW):
    """AdamW, and for the groups marked "muon" the step of Muon at a fixed norm of each kernel.

    A kernel of C outputs is a matrix of C rows; its momentum, made orthogonal, is the direction (Jordan et al. 2024,
    "Muon"). Here lr is the length of a step relative to the kernel, whose norm stays what it was at the start, as in
    that author's CIFAR-10 records: a normalisation behind it makes the norm arbitrary, and decay needless.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """AdamW's step on its own groups, then Muon's on the others."""
        groups = self.param_groups
        self.param_groups = [g for g in groups if not g.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for kernel in group["params"] if group.get("muon") else ():
                if kernel.grad is not None:
                    lr, low = float(group["lr"]), bool(group.get("low"))
                    turn(kernel, kernel.grad, self.state[kernel], lr, low)
        return loss


def turn(
    kernel: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, low: bool = False
) -> None:
    """One step of a kernel (O, I, H, W) at its own norm; `state` keeps that norm and the momentum. low: in bf16."""
    if not state:
        state["norm"], state["momentum"] = kernel.norm(), torch.zeros_like(gradient)
        state["step"] = torch.tensor(0.0)  # AdamW wants one in every state that it loads
    state["step"] += 1
    state["momentum"].lerp_(gradient, 1 - MOMENTUM)
    ahead = gradient.lerp(state["momentum"], MOMENTUM)
    # Columns in the order of memory: for kernels in channels_last this is a view, and the order does not matter.
    flat = ahead.permute(0, 2, 3, 1).flatten(1)
    direction = orthogonal(flat, low).view(ahead.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    length = state["norm"] / min(flat.shape) ** 0.5
    kernel.sub_(direction * length, alpha=lr)
    kernel.mul_(state["norm"] / kernel.norm().clamp_min(1e-12))  # a kernel of zeros stays one


def orthogonal(matrix: Tensor, low: bool = False) -> Tensor:
    """The matrix (R, C) with its singular values brought near 1 (0.7 to 1.2), by Newton-Schulz rounds without an SVD.

    The rounds multiply the matrix by polynomials of its Gram matrix, on the shorter side. In fp32 they are run on that
    small matrix and applied once: for kernels, several times wider than high, less than half of the work. low: in bf16,
    and round by round as published, since a Gram matrix rounded that far has eigenvalues below 0, which the rounds
    would raise; the result is good to some 3 % of its norm, and a processor with bf16 units takes half the time.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    wide = _rounds_in_bf16(wide) if low else _polynomial(wide) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _polynomial(wide: Tensor) -> Tensor:
    """What all rounds together multiply `wide` (R, C) with, from the left: (R, R)."""
    a, b, c = QUINTIC
    gram = wide @ wide.T
    total = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(ROUNDS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        total = factor @ total
        gram = factor @ gram @ factor
    return total


def _rounds_in_bf16(wide: Tensor) -> Tensor:
    a, b, c = QUINTIC
    low = wide.bfloat16()
    for _ in range(ROUNDS):
        gram = low @ low.T
        low = torch.addmm(low, torch.addmm(gram, gram, gram, beta=b, alpha=c), low, beta=a)
    return low.to(wide.dtype)
