"""VQGAN+CLIP (Crowson et al. 2022): the codes of a VQGAN moved by the gradient of CLIP."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.nn import functional as F

from ..augment import cutouts
from ..guide import Guide
from ..images import read_image
from ..options.generate import parse_size
from ..options.vqgan import Vqgan
from ..paint.objective import split_prompt
from ..paint.results import Step, Synthesis
from ..paint.starts import fitted
from .autoencoder import nearest
from .loading import load_autoencoder
from .run import Run, command, descend, guides, options_of, perform

OPTIMIZERS: Any = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop}


def vqgan_clip(
    prompts: str | Sequence[str],
    *,
    model: Any = "clipag-mini",
    autoencoder: Any = "vqgan-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Synthesis]:
    """Pictures of the prompts from the codes of a VQGAN (Crowson et al. 2022).

    Args:
        prompts: one or several; 'a fox | fog:-0.5 | text:1:0.8' has weights, of which negative ones repel, and a stop:
            a part whose loss has reached it pulls no more.
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        autoencoder: a name or file, or a module like `autoencoder.VQModel`.
        callback: called with each `Step`.
        options: fields of `Vqgan`; with compare=True the pictures under the vanilla model come first.
    Raises: ValueError for options that make no sense, FileNotFoundError for a file that is not there.
    """
    if isinstance(autoencoder, str):
        options["autoencoder"], autoencoder = autoencoder, None
    chosen = options_of(Vqgan, prompts, model, options)
    return perform(chosen, maker(chosen, autoencoder), guides(chosen, model), callback)


def run(options: Vqgan) -> int:
    """`clipag vqgan`."""
    return command(options, maker(options))


def maker(options: Vqgan, autoencoder: Any = None) -> Callable[[Any, Guide, str], Latents]:
    """`Latents` with the autoencoder that the options name, unless one is given; prompts are checked first."""
    for prompt in options.prompts:
        split_prompt(prompt, numbers=2)
    loaded = autoencoder or load_autoencoder(options.autoencoder, options.config, options.backend)
    return functools.partial(Latents, autoencoder=loaded)


class Latents(Run):
    """One picture. codes: (1, D, h, w), continuous; shown through the nearest vectors of the codebook (K, D)."""

    def __init__(self, options: Any, guide: Guide, prompt: str, autoencoder: Any) -> None:
        super().__init__(options, guide, prompt)
        self.steps = int(options.steps)
        self.autoencoder = autoencoder.to(guide.device)
        self.codebook: Tensor = autoencoder.quantize.embedding.weight.detach()
        self.parts = []
        for text, numbers in split_prompt(prompt, numbers=2):
            weight, stop = [*numbers, *(1.0, -math.inf)[len(numbers) :]]
            self.parts.append((guide.texts([text]), weight, stop))
        self.codes = self._start().requires_grad_(True)
        self.optimizer = OPTIMIZERS[options.optimizer]([self.codes], lr=options.lr)

    def _start(self) -> Tensor:
        """The first codes; `size` is set to (H, W) of the picture, which cuts off what is over of the last codes."""
        options = self.options
        factor = 2 ** (self.autoencoder.decoder.num_resolutions - 1)
        picture = read_image(options.image) if options.image else None
        side = 512 if self.guide.device.type == "cuda" else 256
        own = (side, side) if picture is None else (picture.shape[-2], picture.shape[-1])
        self.size = height, width = parse_size(options.size or "") or own
        rows, columns = -(-height // factor), -(-width // factor)
        if min(rows, columns) < 4:
            raise ValueError(
                f"--size {options.size!r} leaves fewer than 4 codes a side; "
                f"one code is {factor} pixels: give at least {3 * factor + 1}"
            )
        if picture is None and options.init == "codes":
            chosen = torch.randint(len(self.codebook), (1, rows, columns), generator=self.generator)
            return self.codebook[chosen.to(self.codebook.device)].movedim(-1, 1).contiguous()
        if picture is None:
            picture = torch.rand(3, height, width, generator=self.generator)
        start = fitted(picture, self.size).to(self.guide.device)[None]
        beyond = (0, columns * factor - width, 0, rows * factor - height)
        with torch.no_grad():
            codes = self.autoencoder.encode(F.pad(start, beyond, mode="replicate") * 2 - 1)
        codes = codes[0] if isinstance(codes, tuple) else codes
        return quantized(codes, self.codebook).contiguous()

    def image(self) -> Tensor:
        """The picture (1, 3, H, W) in [0, 1], with its graph."""
        decoded = self.autoencoder.decode(quantized(self.codes, self.codebook))
        return _Clamp.apply((decoded[..., : self.size[0], : self.size[1]] + 1) / 2)

    @torch.no_grad()
    def picture(self) -> Tensor:
        return self.image()[0].cpu()

    def loss(self, index: int) -> Tensor:
        options, sides = self.options, (int(self.options.cuts), self.guide.side)
        how = str(options.cut_method), float(options.cut_power)
        cut = cutouts(self.image(), *sides, *how, self.generator)
        features = self.guide.features(cut)
        total = sum((spherical(features, *part) for part in self.parts), features.new_zeros(()))
        if options.init_weight:
            total = total + self.codes.square().mean() * options.init_weight / ((2 * index + 1) * 2)
        return total

    def update(self, index: int, loss: Tensor) -> float:
        descend(loss, [self.optimizer])
        with torch.no_grad():
            low, high = (end.view(1, -1, 1, 1) for end in self.codebook.aminmax(dim=0))
            self.codes.clamp_(low, high)
        return float(self.options.lr)


def spherical(features: Tensor, text: Tensor, weight: float, stop: float = -math.inf) -> Tensor:
    """|w| * mean of sign(w) * 2 arcsin(|a - b| / 2)^2 over unit features (N, D) and a text (1, D).
    The value is always the true one; where it is below `stop`, the gradient is that of a constant."""
    half = ((features - text).norm(dim=-1) / 2).clamp(max=1 - 1e-7)
    distance = half.arcsin().square() * 2 * math.copysign(1.0, weight)
    held = distance.clamp(min=stop)
    return abs(weight) * (held + (distance - held).detach()).mean()


def quantized(codes: Tensor, codebook: Tensor) -> Tensor:
    """The nearest vectors of the codebook (K, D) to codes (N, D, h, w); the gradient passes straight through."""
    found = F.embedding(nearest(codes.detach(), codebook), codebook).movedim(-1, 1)
    return codes + (found - codes).detach()


class _Clamp(torch.autograd.Function):
    """To [0, 1]; a gradient that would bring a value back in passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradients[0] * (gradients[0] * (values - values.clamp(0, 1)) >= 0)
