"""VQGAN+CLIP (Crowson et al. 2022): the codes of a VQGAN moved by the gradient of CLIP."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import read_image
from ..options.generate import parse_size
from ..options.vqgan import Vqgan
from ..paint import Guide, Step
from ..paint.starts import fitted
from .common import Artwork, Run, check_targets, guides, options_of, perform, write_artworks
from .cuts import cutouts
from .weights import load_autoencoder

_PART = re.compile(
    r"(?P<text>.*?)(?::\s*(?P<weight>[+-]?[\d.]+(?:e[+-]?\d+)?))?(?::\s*(?P<stop>[+-]?[\d.]+(?:e[+-]?\d+)?))?\s*",
    re.DOTALL | re.IGNORECASE,
)


def vqgan_clip(
    prompts: str | Sequence[str],
    *,
    model: Any = "clipag-mini",
    autoencoder: Any = "vqgan-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Artwork]:
    """Pictures of the prompts, in order; with compare=True first all under the vanilla model.

    A prompt is 'text', 'text:weight' or 'text:weight:stop', several joined by '|'; a negative weight repels, and
    a part whose loss has reached `stop` pulls no more. model: a key, a file, a CLIP, or a `Guide`. autoencoder: a
    name or file, or a module with encode and decode. options: fields of `Vqgan`.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    named = {"autoencoder": autoencoder} if isinstance(autoencoder, str) else {}
    chosen = options_of(Vqgan, {**options, **named, "prompts": given}, model)
    return draw(chosen, model, callback, autoencoder=None if named else autoencoder)


def draw(
    options: Vqgan,
    model: Any = None,
    callback: Callable[[Step], object] | None = None,
    bar: bool = False,
    autoencoder: Any = None,
) -> list[Artwork]:
    """`vqgan_clip` with its options in one object."""
    if not options.prompts:
        raise ValueError('no prompt; say what to draw, as in clipag vqgan "a goldfish"')
    parsed = [parts_of(prompt) for prompt in options.prompts]
    resolved = options.resolved()
    chosen = guides(resolved, None if isinstance(model, str) else model)
    if autoencoder is None:
        autoencoder = load_autoencoder(resolved.autoencoder, resolved.config, resolved.backend)
    runs = (
        Latents(resolved, guide, text, parts, autoencoder)
        for guide in chosen
        for text, parts in zip(resolved.prompts, parsed)
    )
    return perform(runs, callback, bar)


def run(options: Vqgan) -> int:
    """`clipag vqgan`: draws, writes, prints the paths."""
    import sys

    check_targets(options)
    for path in write_artworks(options, draw(options, bar=True), len(options.prompts)):
        sys.stdout.write(f"{path}\n")
    return 0


def parts_of(prompt: str) -> list[tuple[str, float, float]]:
    """Texts, weights (1) and stops (none: -inf) of 'text:weight:stop | ...'. ValueError where nothing is asked for."""
    found = []
    for piece in prompt.split("|"):
        match = _PART.fullmatch(piece.strip())
        text = match["text"].strip() if match else ""
        if match is None or not text:
            raise ValueError(
                f"prompt {prompt!r} has an empty part; write text, text:weight or text:weight:stop"
            )
        try:
            weight, stop = float(match["weight"] or 1), float(match["stop"] or -math.inf)
        except ValueError as error:
            raise ValueError(
                f"prompt {prompt!r}: {error}; write text, text:weight or text:weight:stop"
            ) from error
        found.append((text, weight, stop))
    if not any(weight for _, weight, _ in found):
        raise ValueError(f"prompt {prompt!r} has only weights of 0: nothing would be drawn")
    return found


class Latents(Run):
    """One picture; codes: (1, embed_dim, h, w), continuous; shown through the nearest vectors of the codebook."""

    def __init__(
        self,
        options: Any,
        guide: Guide,
        prompt: str,
        parts: Sequence[tuple[str, float, float]],
        autoencoder: Any,
    ) -> None:
        self.prepare(options, guide, prompt)
        self.autoencoder = autoencoder.to(guide.device)
        self.table: Tensor = autoencoder.quantize.embedding.weight.detach()
        self.parts = [(guide.texts([text]), weight, stop) for text, weight, stop in parts]
        self.codes = self._start().requires_grad_(True)
        kinds: dict[str, Any] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }
        self.optimizer = kinds[str(options.optimizer)]([self.codes], lr=options.lr)

    def _start(self) -> Tensor:
        factor = 2 ** (self.autoencoder.decoder.num_resolutions - 1)
        size = parse_size(str(self.options.size or ""))
        picture = read_image(self.options.image) if self.options.image else None
        if size is None:
            side = 512 if self.guide.device.type == "cuda" else 256
            size = (side, side) if picture is None else tuple(picture.shape[-2:])  # type: ignore[assignment]
        height, width = (side // factor * factor for side in size or ())
        if min(height, width) < factor * 4:
            raise ValueError(
                f"--size {self.options.size!r} leaves fewer than 4 codes a side; "
                f"one code is {factor} pixels: give at least {4 * factor}"
            )
        if picture is None and self.options.init == "codes":
            shape = (1, height // factor, width // factor)
            chosen = torch.randint(len(self.table), shape, generator=self.generator)
            return self.table[chosen.to(self.table.device)].movedim(-1, 1).contiguous()
        if picture is None:
            picture = torch.rand(3, height, width, generator=self.generator)
        start = fitted(picture, (height, width)).to(self.guide.device)[None]
        with torch.no_grad():
            codes = self.autoencoder.encode(start * 2 - 1)
        codes = codes[0] if isinstance(codes, tuple) else codes
        return quantized(codes, self.table).contiguous()

    def image(self) -> Tensor:
        """The picture (1, 3, H, W) in [0, 1], with its graph."""
        decoded = self.autoencoder.decode(quantized(self.codes, self.table))
        shown: Tensor = _Clamp.apply((decoded + 1) / 2)
        return shown

    def picture(self) -> Tensor:
        with torch.no_grad():
            return self.image()[0].clamp(0, 1).cpu()

    def loss(self, index: int) -> Tensor:
        options = self.options
        cut = cutouts(
            self.image(),
            int(options.cuts),
            self.guide.side,
            str(options.cut_method),
            float(options.cut_power),
            self.generator,
        )
        features = self.guide.features(cut)
        total = features.new_zeros(())
        if options.init_weight:
            total = total + self.codes.square().mean() * options.init_weight / ((2 * index + 1) * 2)
        for text, weight, stop in self.parts:
            total = total + spherical(features, text, weight, stop)
        return total

    def update(self, index: int, loss: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            low, high = self.table.amin(0).view(1, -1, 1, 1), self.table.amax(0).view(1, -1, 1, 1)
            self.codes.copy_(torch.minimum(torch.maximum(self.codes, low), high))
        return float(self.options.lr)


def spherical(features: Tensor, text: Tensor, weight: float, stop: float = -math.inf) -> Tensor:
    """|w| * mean of sign(w) * 2 arcsin(|a - b| / 2)^2 over unit features (N, D) and a text (1, D).

    The value is always the true one; where it is below `stop`, the gradient is that of a constant.
    """
    half = ((features - text).norm(dim=-1) / 2).clamp(max=1 - 1e-7)
    distance = half.arcsin().square() * 2 * math.copysign(1.0, weight)
    held = distance.clamp(min=stop)
    return abs(weight) * (held + (distance - held).detach()).mean()


def quantized(codes: Tensor, table: Tensor) -> Tensor:
    """The nearest vectors of the table (K, D) to codes (N, D, h, w); the gradient passes straight through."""
    flat = codes.detach().movedim(1, -1).reshape(-1, codes.shape[1])
    distance = table.square().sum(1) - 2 * flat @ table.T
    nearest = F.embedding(distance.argmin(1), table)
    nearest = nearest.view(codes.shape[0], *codes.shape[2:], -1).movedim(-1, 1)
    return codes + (nearest - codes).detach()


class _Clamp(torch.autograd.Function):
    """To [0, 1]; a gradient that would bring a value back in passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        gradient = gradients[0]
        return gradient * (gradient * (values - values.clamp(0, 1)) >= 0)
