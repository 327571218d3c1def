"""Number formats of training: fp32, or bf16 and fp16 under autocast with fp32 weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 2.0**-10  # a run that gets here has skipped dozens of steps in a row
ATTACK_SCALE = 2.0**10  # fp16 holds gradients of single pixels only when they are enlarged


class Precision:
    """Autocast for the encoder and, in fp16, a loss scale that adapts (Micikevicius et al. 2018).

    Losses, features and optimiser stay in fp32 in every format.
    """

    def __init__(self, name: str, device: str) -> None:
        self.low, self.kind = LOW.get(name), torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.kind, enabled=name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """For the forward pass of the encoder."""
        if self.low is None:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.low)

    @property
    def attack_scale(self) -> float:
        """Factor on the inner loss; an attack follows the gradient's direction alone."""
        return ATTACK_SCALE if self.scaler.is_enabled() else 1.0

    def backward(self, outputs: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
        """Backward pass from the features, whose gradients are scaled where the format needs it."""
        factor = 1.0
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.kind))  # it makes its scale on first use
            factor = float(self.scaler.get_scale())
        torch.autograd.backward(list(outputs), [gradient * factor for gradient in gradients])

    def enlarge(self, weights: Iterable[Tensor]) -> None:
        """Scales gradients that did not come through `backward` as those that did."""
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.kind))
            for weight in weights:
                if weight.grad is not None:
                    weight.grad *= float(self.scaler.get_scale())

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Brings the weights' gradients back to their true size, before they are clipped or looked at."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps, or in fp16 leaves a step with overflown gradients out and lowers the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise FloatingPointError(
                "gradients overflow fp16 at every loss scale, so the model or the data is not finite; "
                "the last checkpoint is kept. Use --precision bf16 or fp32"
            )
