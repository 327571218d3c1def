"""What trains and how it moves: chosen weights, AdamW and Muon, schedules, number formats, the moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..model import CLIP, OpenCLIP
from ..options.train import Train
from ..towers.vit import VisionTransformer

Weights = dict[str, nn.Parameter]
MOMENTUM, ROUNDS = 0.95, 5
# Of the odd polynomial whose repetition takes singular values between 0 and 1 to about 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
SMALLEST_SCALE = 2.0**-10  # a run in fp16 that gets here has skipped dozens of steps in a row


def trained_weights(model: CLIP, options: Train) -> Weights:
    """The parameters that train, by name; every other one is frozen. ValueError where nothing would train."""
    image = {id(p) for p in model.visual.parameters()}
    if options.image == "frozen":
        groups = options.lock_image_unlocked_groups
        image = _unlocked(model, groups) if groups else set()
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if (id(p) in image if n.startswith("visual.") else options.text == "train")
        or (options.train_scale and n in ("logit_scale", "logit_bias"))
    }
    if not chosen:
        raise ValueError("nothing trains: --image and --text are both frozen; take --text train")
    model.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _unlocked(model: CLIP, groups: int) -> set[int]:
    """Ids of the parameters of the image tower's last groups of layers: as open_clip locks it where it can, else of its
    parts in order, a sequence counting as so many parts."""
    visual = model.visual.requires_grad_(True)
    if isinstance(visual, VisionTransformer):
        OpenCLIP.lock_image_tower(cast(OpenCLIP, model), groups)
    elif hasattr(visual, "lock"):  # open_clip's, or a timm model in it
        visual.lock(groups)
    else:
        several = (p if isinstance(p, nn.Sequential) else [p] for p in visual.children())
        parts = [part for each in several for part in each if any(True for _ in part.parameters())]
        for part in parts[: len(parts) - groups]:
            part.requires_grad_(False)
    return {id(p) for p in visual.parameters() if p.requires_grad}


def make_optimizer(model: CLIP, weights: Weights, options: Train) -> AdamWMuon:
    """AdamW over the weights; with `optimizer = "muon"`, Muon for the kernels that it suits.

    A group's "lr_scale" is what the schedule's learning rate is multiplied with for it; "low": multiply in bf16.
    Raises ValueError where Muon is asked for and the image tower has no such kernel, or `lr` is 0.
    """
    kernels = _kernels(model) if options.optimizer == "muon" else set()
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": options.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, weight in weights.items():
        if id(weight) not in kernels:
            groups[0 if decays(name, weight, options.decay) else 1]["params"].append(weight)
    if options.optimizer == "muon":
        chosen = [p for p in weights.values() if id(p) in kernels]
        if not chosen:
            raise ValueError(
                "--optimizer muon turns kernels of convolutions without a bias, and the image tower has none; "
                "take --optimizer adamw"
            )
        if not options.lr:
            raise ValueError("--lr is 0; with --optimizer muon give one above 0, for AdamW's part")
        scale, low = options.muon_lr / options.lr, options.precision == "bf16"
        more = {"weight_decay": 0.0, "muon": True, "lr_scale": scale, "low": low}
        groups.append({"params": chosen, **more})
    betas = options.beta1, options.beta2
    return AdamWMuon(groups, lr=options.lr, betas=betas, eps=options.adam_eps)


def decays(name: str, weight: Tensor, rule: str) -> bool:
    """Whether a weight decays: "matrices" and kernels but no embeddings; as in open_clip, whose trainer spares what has
    one dimension or is called bn, ln, bias or logit_scale; or "all", as in RobustVLM."""
    if rule == "all":
        return True
    spared = ("embedding",) if rule == "matrices" else ("bn", "ln", "bias", "logit_scale")
    return weight.ndim >= 2 and not any(part in name for part in spared)


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
    ahead = gradient.lerp(state["momentum"], MOMENTUM).permute(0, 2, 3, 1)
    # Columns in the order of memory: for kernels in channels_last this is a view, and the order does not matter.
    flat = ahead.flatten(1)
    direction = orthogonal(flat, low).view(ahead.shape).permute(0, 3, 1, 2)
    kernel.sub_(direction * (state["norm"] / min(flat.shape) ** 0.5), alpha=lr)
    kernel.mul_(state["norm"] / kernel.norm().clamp_min(1e-12))  # a kernel of zeros stays one


def orthogonal(matrix: Tensor, low: bool = False) -> Tensor:
    """The matrix (R, C) with its singular values brought near 1 (0.7 to 1.2), by Newton-Schulz rounds without an SVD.

    low: multiplied in bf16, good to some 3 % of its norm; a processor with bf16 units takes half the time.
    """
    a, b, c = QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / (wide.norm() + 1e-7)).to(torch.bfloat16 if low else wide.dtype)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def learning_rate(options: Train, index: int, steps: int) -> float:
    """Linear warm-up; then cosine to zero, constant, or constant with a linear cool-down to zero at the end."""
    warm = max(1, round(options.warmup * steps))
    if index < warm:
        return options.lr * (index + 1) / warm
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "const-cooldown":
        return options.lr * min(1.0, (steps - index) / max(1, round(options.cooldown * steps)))
    return options.lr * 0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, steps - warm)))


def radius(options: Train, index: int, steps: int, shrink: float) -> float:
    """Radius of the attack in the units of the training images.

    shrink: side of the training images over the model's input resolution. An L2 ball of radius eps at the input
    resolution matches one of eps * shrink on the smaller images: the same root-mean-square change of a pixel.
    """
    ramp = options.eps_ramp * steps
    size = options.eps * (shrink if options.norm == "l2" else 1.0)
    return size * (min(1.0, (index + 1) / ramp) if ramp else 1.0)


class Precision:
    """Autocast for the encoder and, in fp16, a loss scale that adapts (Micikevicius et al. 2018).

    Losses, features and optimiser stay in fp32. attack_scale: factor on the inner loss, whose gradients of single
    pixels fp16 holds only when they are enlarged; an attack follows their direction alone.
    """

    def __init__(self, name: str, device: str) -> None:
        self.low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.kind = torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.kind, enabled=name == "fp16")
        self.attack_scale = 2.0**10 if name == "fp16" else 1.0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """For the forward pass of the encoder."""
        return torch.autocast(self.kind, self.low) if self.low else contextlib.nullcontext()

    def backward(
        self, pairs: Iterable[tuple[Tensor, Tensor | None]], through: Iterable[Tensor] = ()
    ) -> None:
        """Backward pass from (feature, gradient) pairs, enlarged where the format needs it; so are the gradients that
        the weights `through` have already."""
        factor = 1.0
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.kind))  # it makes its scale on first use
            factor = float(self.scaler.get_scale())
            for weight in through:
                weight.grad = None if weight.grad is None else weight.grad * factor
        needed = [(f, g * factor) for f, g in pairs if f.requires_grad and g is not None]
        if needed:
            torch.autograd.backward([f for f, _ in needed], [g for _, g in needed])

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps, or in fp16 leaves a step with overflown gradients out and lowers the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise FloatingPointError(
                "gradients overflow fp16 at every loss scale, so the model or the data is not finite; "
                "the last checkpoint is kept. Use --precision bf16 or fp32"
            )


class Average:
    """Moving average of what trains: weights, and the running statistics of the image tower's normalisations."""

    def __init__(self, model: CLIP, weights: Weights, decay: float) -> None:
        buffers = {f"visual.{n}": b for n, b in model.visual.named_buffers()}
        moving = {n: b for n, b in buffers.items() if "running_" in n}
        self.live: dict[str, Tensor] = {**weights, **moving}
        self.held = {name: value.detach().clone() for name, value in self.live.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the weights. It warms up: early weights are far from the end and must not linger."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.live.items():
            self.held[name].lerp_(value.detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is the average inside."""
        kept = {name: value.detach().clone() for name, value in self.live.items()}
        self._write(self.held)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, value in self.live.items():
            value.copy_(values[name])
