"""Which model a script gets for the name it asks for, through `clip` and through open_clip."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import clip
from ..clip import ROBUST_COUNTERPART
from ..model import CLIP

_log = logging.getLogger("clipag_plug.adapters")
PRECISIONS = {
    **dict.fromkeys(("fp16", "pure_fp16"), "fp16"),
    **dict.fromkeys(("bf16", "pure_bf16"), "bf16"),
}


class Guide:
    """`load`, `tokenize` and `available_models` for scripts, and open_clip's factories.

    model: a key or a path that stands for every model of OpenAI's names; None gives each name's robust
    counterpart, as `clipag_plug.load` does.
    """

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.said: list[tuple[str, str]] = []
        self.loaded: list[Callable[[CLIP], None]] = []  # called on every model that a script loads

    def say(self, shim: str, what: str) -> None:
        """Logs, once, that something of the script's surroundings was changed."""
        if (shim, what) not in self.said:
            self.said.append((shim, what))
            _log.info("%s: %s", shim, what)

    def functions(self) -> dict[str, Any]:
        """Names of the modules `clip` and `clip.clip`."""
        names = ("load", "tokenize", "available_models")
        return {
            **{name: getattr(self, name) for name in names},
            "__all__": list(names),
            "_transform": _transform,
        }

    @functools.cached_property
    def load(self) -> Any:
        """OpenAI's `load(name, device, jit, download_root)`."""

        def load(
            name: str,
            device: str | torch.device | None = None,
            jit: bool = False,
            download_root: str | None = None,
        ) -> tuple[CLIP, Any]:
            key = self._key(os.fspath(name))
            model, transform = clip.load(key, device, False, download_root)
            for function in self.loaded:
                function(model)
            return model, transform

        return load

    @functools.cached_property
    def tokenize(self) -> Any:
        """OpenAI's `tokenize(texts, context_length, truncate)`."""

        def tokenize(
            texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
        ) -> Tensor:
            return clip.tokenize(texts, context_length, truncate)

        return tokenize

    @functools.cached_property
    def available_models(self) -> Any:
        """OpenAI's `available_models()`; every name of OpenAI's is there once a model stands for all of them."""

        def available_models() -> list[str]:
            names = clip.available_models()
            return [*(n for n in ROBUST_COUNTERPART if self.model and n not in names), *names]

        return available_models

    def _key(self, name: str) -> str:
        """A script's own file or key is taken at its word; OpenAI's names and unknown ones mean `model`."""
        if self.model is None or os.path.exists(name):
            return name
        if name not in ROBUST_COUNTERPART and name in clip.available_models():
            return name
        self.say("model", f"clip.load({name!r}) gives {self.model!r}")
        return self.model

    def open_clip_key(self, name: str, pretrained: Any) -> str | None:
        """The model for open_clip's (architecture, pretrained); None to leave it to open_clip."""
        weights = os.path.expanduser(os.fspath(pretrained or ""))
        if not weights and ":" not in name:
            return None  # fresh weights were asked for
        if self.model is not None:
            return self.model
        if weights and os.path.isfile(weights):
            return weights
        if ":" in name:
            return name
        if os.path.basename(weights).upper().startswith("CLIPAG"):
            return "clipag"
        return ROBUST_COUNTERPART.get(openai_name(name))

    def open_clip_model(self, name: str, pretrained: Any, precision: str, device: Any) -> Any:
        """A model and transform for open_clip's factories, or None to leave the request to open_clip."""
        key = self.open_clip_key(name, pretrained)
        if key is None:
            self.say("open_clip", f"{name!r} with pretrained={pretrained!r} is left to open_clip")
            return None
        self.say("open_clip", f"{name!r} with pretrained={pretrained!r} gives {key!r}")
        model, transform = clip.load(key, device, precision=PRECISIONS.get(precision, "fp32"))
        model.__class__ = OpenClipCLIP
        return model, transform


class OpenClipCLIP(CLIP):
    """A `CLIP` with the calls of open_clip's: features normalised on request, `forward` gives features."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = super().encode_image(image)
        return torch.nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        features = super().encode_text(text)
        return torch.nn.functional.normalize(features, dim=-1) if normalize else features

    def forward(  # type: ignore[override]
        self, image: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Normalised features, None where there was no input, and the scale of the logits."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        return images, texts, self.logit_scale.exp()


def openai_name(name: str) -> str:
    """open_clip's `ViT-B-32-quickgelu` -> OpenAI's `ViT-B/32`."""
    plain = name.removesuffix("-quickgelu").replace("/", "-")
    family = plain.rpartition("-")
    if plain.endswith("-336"):
        return plain.removesuffix("-336").replace("L-14", "L/14@336px")
    return f"{family[0]}/{family[2]}" if plain.startswith("ViT-") else plain


def _transform(n_px: int) -> Any:
    """OpenAI's private helper, which some scripts call: the picture steps of a model for n_px pixels."""
    from torchvision import transforms

    from ..model import OPENAI_MEAN, OPENAI_STD

    return transforms.Compose(
        [
            transforms.Resize(n_px, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(n_px),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_MEAN, OPENAI_STD),
        ]
    )
