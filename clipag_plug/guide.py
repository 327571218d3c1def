"""What the loop needs of a model: its resolution, its normalisation, its features and its texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mini import MiniVisual

# OpenAI's normalisation, which every CLIP here uses unless it says otherwise.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OWN_CONTRAST = 30.0  # benchmarks/results/synthesis.md
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Guide:
    """A CLIP that steers a run.

    model: a `clipag_plug.model.CLIP`, or any module with `encode_image`, `encode_text` and a `visual` that says its
    resolution. tokenizer, mean, std: for one that does not have them as `tokenize`, `mean` and `std`.

    resolution: what its preprocessing gives it; side: that of the views it is shown here. The bundled models reduce
    224 to their own `image_size` by area averaging; views are drawn at that size right away: the same picture for a
    twentieth of the pixels.

    contrast: the scale of `--contrast -1`, 0 for all but the bundled models: for others it was not measured.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        self.model: Any = model
        visual: Any = getattr(model, "visual", None)
        if (
            visual is None
            or not hasattr(model, "encode_image")
            or not hasattr(model, "encode_text")
        ):
            raise ValueError(
                f"{type(model).__name__} is no CLIP: it needs encode_image, encode_text and visual; "
                "give a key, a file, or a model of clipag_plug, clip or open_clip"
            )
        self.name = name or getattr(model, "name", None) or type(model).__name__
        self.side, self.resolution = _sides(visual)
        parameter = next(visual.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.precision = precision
        mean = mean or getattr(model, "mean", None) or MEAN
        std = std or getattr(model, "std", None) or STD
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.contrast = OWN_CONTRAST if isinstance(visual, MiniVisual) else 0.0
        self._tokenize = tokenizer or getattr(model, "tokenize", None) or _tokenize
        encode: Callable[[Tensor], Tensor] = model.encode_image
        self._encode = torch.compile(encode) if compile else encode

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (M, D) of texts. ValueError where one is empty or too long for the model."""
        for text in texts:
            if not text.strip():
                raise ValueError("a prompt is empty; write what to draw")
        try:
            tokens = self._tokenize(list(texts)).to(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"a prompt cannot be read by {self.name}: {error}; shorten it"
            ) from error
        with torch.no_grad():
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def features(self, views: Tensor, *, normalize: bool = True) -> Tensor:
        """Unit features (V, D) of views (V, 3, side, side) in [0, 1]."""
        images = (views - self.mean) / self.std if normalize else views
        low = PRECISIONS[self.precision]
        context: Any = contextlib.nullcontext()
        if low is not None and self.dtype == torch.float32:
            context = torch.autocast(self.device.type, dtype=low)
        with context:
            features = self._encode(images.to(self.dtype))
        return F.normalize(features.float(), dim=-1)


@contextlib.contextmanager
def frozen(models: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights; both are put back at the end.

    Without gradients for the weights autograd keeps a fraction of the activations.
    """
    training = [(module, module.training) for model in models for module in model.modules()]
    wanted = [
        parameter for model in models for parameter in model.parameters() if parameter.requires_grad
    ]
    for model in models:
        model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, was in training:
            module.training = was


def guide_for(
    model: Any, *, device: str | None = None, precision: str = "fp32", compile: bool = False
) -> Guide:
    """A guide from a key, a file, a model of clipag_plug, clip or open_clip, or a ready `Guide`."""
    if isinstance(model, Guide):
        return model
    if isinstance(model, str):
        from . import clip

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = clip.load_model(model, device=device)
        return Guide(loaded, name=model, precision=precision, compile=compile)
    from .model import wrap

    return Guide(wrap(model), precision=precision, compile=compile)


def _sides(visual: Any) -> tuple[int, int]:
    """The resolution that the tower works at, and the one that it asks for."""
    sizes = [getattr(visual, name, None) for name in ("image_size", "input_resolution")]
    sides = [int(size[0] if isinstance(size, (tuple, list)) else size) for size in sizes if size]
    if not sides:
        raise ValueError(
            f"{type(visual).__name__} does not say its resolution (image_size or input_resolution)"
        )
    return min(sides), max(sides)


def _tokenize(texts: Sequence[str]) -> Tensor:
    from . import clip

    return clip.tokenize(list(texts))
