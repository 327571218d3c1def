"""What steers a run: a CLIP with its resolution, its normalisation, its features and its texts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lite import LiteVisual
from .mini import MiniVisual
from .model import OPENAI_MEAN, OPENAI_STD
from .precision import resolve
from .vocabulary import bundled_vocabulary, sentence, unheard

log = logging.getLogger(__name__)

OWN_CONTRAST = 30.0  # benchmarks/results/synthesis.md
KIN = 0.6  # cosine from which on a known thing is no rival of a text: kinds of it, what it is a kind of, look-alikes
BUNDLED = ("clip-mini", "clipag-mini", "judge-mini")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Guide:
    """A CLIP that steers a run.

    The bundled models reduce 224 pixels (`resolution`, what their preprocessing gives) to their own `image_size` by
    area averaging; views are drawn at that size (`side`) right away: the same picture for a twentieth of the pixels.

    Args:
        model: a `clipag_plug.model.CLIP`, or any module with `encode_image`, `encode_text` and a `visual` that says
            its resolution.
        tokenizer, mean, std: for a model that does not have them as `tokenize`, `mean` and `std`.
        precision: of the encoder, `fp32`, `bf16` or `fp16`, the low ones by autocast; or `auto`, see `precision.py`.

    Attributes:
        contrast: the scale of `--contrast -1`; 0 for all but the bundled models: for others it was not measured.
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
        if not all(hasattr(model, part) for part in ("visual", "encode_image", "encode_text")):
            raise ValueError(
                f"{type(model).__name__} is no CLIP: it needs encode_image, encode_text and visual; "
                "give a key, a file, or a model of clipag_plug, clip or open_clip"
            )
        visual: Any = model.visual
        self.name = name or getattr(model, "name", None) or type(model).__name__
        self.side, self.resolution = _sides(visual)
        parameter = next(visual.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.precision = resolve(precision, visual, self.device)
        mean = mean or getattr(model, "mean", None) or OPENAI_MEAN
        std = std or getattr(model, "std", None) or OPENAI_STD
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        own = isinstance(visual, MiniVisual | LiteVisual)
        self._bundled = self._listed or (own and self.name in BUNDLED)
        self.contrast = OWN_CONTRAST if own else 0.0
        self._rivals: Tensor | None = None
        self._heard: set[str] = set()
        self._tokenize = tokenizer or getattr(model, "tokenize", None) or _tokenize
        encode: Callable[[Tensor], Tensor] = model.encode_image
        self._encode = torch.compile(encode) if compile else encode

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (M, D) of texts. ValueError where one is empty or too long for the model.

        Words that a bundled model does not know are named in the log, once a text.
        """
        features = self._texts(texts)
        for text, feature in zip(texts, features, strict=True):
            if text not in self._heard:
                self._heard.add(text)
                if self._bundled and (words := unheard(text)):
                    near = ", ".join(name for name, _ in self.nearest(feature, 2))
                    log.warning(
                        "%s does not know: %s; to it %r is nearest to: %s",
                        *(self.name, ", ".join(words), text, near),
                    )
        return features

    def nearest(self, feature: Tensor, count: int) -> list[tuple[str, float]]:
        """The known things nearest to a text's unit feature (D,), and their cosines."""
        close = (self._known() @ feature).topk(count)
        names = self._names()
        return [(names[i], v) for v, i in zip(*(part.tolist() for part in close), strict=True)]

    @property
    def _listed(self) -> bool:
        return bool(getattr(self.model, "vocabulary", None)) and isinstance(
            self.model.visual, LiteVisual
        )

    def _names(self) -> list[str]:
        return list(self.model.vocabulary) if self._listed else bundled_vocabulary().class_names

    def _known(self) -> Tensor:
        if self._rivals is None:
            self._rivals = self._texts([sentence(name, "a {}") for name in self._names()])
        return self._rivals

    def _texts(self, texts: Sequence[str]) -> Tensor:
        if not all(text.strip() for text in texts):
            raise ValueError("a prompt is empty; write what to draw")
        try:
            tokens = self._tokenize(list(texts)).to(self.device)
        except RuntimeError as error:
            longest = max(texts, key=len)
            said = str(error).replace(longest, repr(f"{longest[:40]}…")).partition("; ")[0]
            raise ValueError(f"{self.name} cannot read a prompt: {said}; shorten it") from error
        with torch.no_grad():
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def rivals(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit features (K, D) of the things that the model knows, and which of them each text speaks of, bool (M, K).

        A model with a list of what it knows (`vocabulary`) is asked for its own; any other for the classes of the
        bundled photographs, which a text speaks of where it says their names.
        """
        known = self._known()
        if self._listed:
            return known, self._texts(texts) @ known.T > KIN
        own = torch.zeros(len(texts), len(known), dtype=torch.bool, device=self.device)
        for row, text in enumerate(texts):
            own[row, list(bundled_vocabulary().meant(text))] = True
        return known, own

    def features(self, views: Tensor, *, normalize: bool = True) -> Tensor:
        """Unit features (V, D) of views (V, 3, side, side) in [0, 1]; `normalize`: with the model's mean and std."""
        images = (views - self.mean) / self.std if normalize else views
        low = PRECISIONS[self.precision] if self.dtype == torch.float32 else None
        with torch.autocast(self.device.type, dtype=low) if low else contextlib.nullcontext():
            features = self._encode(images.to(self.dtype))
        return F.normalize(features.float(), dim=-1)


@contextlib.contextmanager
def frozen(models: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights; both are put back at the end.

    Without gradients for the weights autograd keeps a fraction of the activations.
    """
    training = [(module, module.training) for model in models for module in model.modules()]
    wanted = [p for model in models for p in model.parameters() if p.requires_grad]
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
