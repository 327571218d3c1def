"""Frozen models that a run learns from beside its captions: of images, and of texts."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..model import CLIP
from ..vocabulary import in_template

PROBE = ("a photo of a dog", "an orange on a blue background")  # texts that tell text towers apart
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Ensemble:
    """The mean of several CLIPs' unit features of an image: (N, 3, H, W) in [0, 1] -> (N, D).

    models: with the text tower of the model that learns, so that their images can be compared with its texts.
    Raises ValueError for one with another.
    """

    def __init__(self, models: Sequence[CLIP], student: CLIP) -> None:
        self.models = [model.eval().requires_grad_(False) for model in models]
        wanted = _probed(student)
        for model in self.models:
            found = _probed(model)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=2e-2):
                raise ValueError(
                    f"--teachers {model.name!r} reads texts otherwise than the model that is trained; "
                    "a teacher must have the same text tower: give --init and --teachers of one family"
                )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        each = [model.encode_image(model.normalize(images)).float() for model in self.models]
        return torch.stack([F.normalize(features, dim=-1) for features in each]).mean(0)


@torch.no_grad()
def _probed(model: CLIP) -> Tensor:
    tokens = model.tokenize(list(PROBE)).to(model.logit_scale.device)
    return F.normalize(model.encode_text(tokens).float(), dim=-1)


@dataclass
class ImageTeacher:
    """A frozen classifier or encoder with its own input: images (N, 3, H, W) in [0, 1] -> logits or features.

    network: normalised images (N, 3, side, side) -> logits (N, C), or features (N, C) where `features` is set.
    """

    network: Callable[[Tensor], Tensor]
    side: int
    mean: Sequence[float]
    std: Sequence[float]
    names: list[str] = dataclasses.field(default_factory=list)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.side:
            images = F.interpolate(
                images, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return self.network((images - mean) / std).float()


def open_image_teacher(
    name: str, features: bool, clip: Callable[[str], CLIP], device: str, side: int = 0
) -> ImageTeacher:
    """`timm:NAME[@FILE]`, `torchvision:NAME@FILE`, or a CLIP's image tower by any name that load() takes.

    features: the output in front of the classifier is wanted. clip: opens a CLIP. side: pixels that it sees instead of
    its own input's. Without @FILE timm gets its own
    published weights. Raises ImportError where the library is missing, ValueError where a CLIP shall classify.
    """
    kind, _, rest = name.partition(":")
    arch, _, file = rest.partition("@")
    if kind == "timm":
        import timm

        try:
            network: Any = timm.create_model(arch, pretrained=not file, checkpoint_path=file)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"--image-teacher {name!r} cannot be had: {error}") from error
        config = timm.data.resolve_model_data_config(network)
        own, mean, std = int(config["input_size"][-1]), config["mean"], config["std"]
        if features:
            network.reset_classifier(0)
    elif kind == "torchvision":
        import torchvision

        network = torchvision.models.get_model(arch, weights=None if file else "DEFAULT")
        if file:
            state = torch.load(file, map_location="cpu", weights_only=True)
            network.load_state_dict(state.get("state_dict", state))
        own, mean, std = 224, IMAGENET_MEAN, IMAGENET_STD
        if features:
            setattr(network, [child for child, _ in network.named_children()][-1], nn.Identity())
    else:
        model = clip(name)
        if not features:
            raise ValueError(
                f"--image-teacher {name!r} is an encoder without classes; take --image-teacher-loss features, or "
                "--teachers for a model with the same text tower"
            )
        network, own, mean, std = (
            model.visual,
            model.visual.input_resolution,
            model.mean,
            model.std,
        )
    network.eval().requires_grad_(False).to(device)
    names = _imagenet() if kind == "timm" and getattr(network, "num_classes", 0) == 1000 else []
    return ImageTeacher(network, side or own, mean, std, names)


def _imagenet() -> list[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]


class TextTeacher:
    """Unit vectors of texts by a frozen encoder: list of N texts -> (N, T).

    name: a folder or a hub name of transformers, as sentence-transformers' are; or a file of stored vectors: `.npz`
    with the arrays `texts` (N,) and `vectors` (N, T), or `.safetensors` with `vectors` and, as metadata, `texts`, a
    JSON list. An `.npz` may besides have `templates` (K,), sentences with a gap for a text ("two {s}"), and `offsets`
    (K, T), what each adds to a text's vector; and `known`, of which the last says how many of the first texts shall
    make up half of what is drawn.
    Raises ValueError for a text that a file does not hold.
    """

    def __init__(self, name: str, device: str, option: str = "--text-teacher") -> None:
        self.name, self.device, self._known = name, device, dict[str, Tensor]()
        self.option = option
        self._templates: list[tuple[str, Tensor]] = []
        self._first_known = 0
        self._encoder: Any = None
        try:
            self._read(name, device)
        except ImportError:
            raise
        except Exception as error:  # numpy, safetensors and transformers have many types
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"{option} {name!r} cannot be read: {first}") from error

    def _read(self, name: str, device: str) -> None:
        if name.endswith(".npz"):
            import numpy as np

            with np.load(name) as file:
                texts, vectors = file["texts"].tolist(), torch.from_numpy(file["vectors"])
                if "templates" in file:
                    offsets = torch.from_numpy(file["offsets"]).float()
                    self._templates = list(zip(file["templates"].tolist(), offsets, strict=True))
                self._first_known = int(file["known"][-1]) if "known" in file else 0
        elif name.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(name, "pt") as file:
                texts, vectors = json.loads(file.metadata()["texts"]), file.get_tensor("vectors")
        else:
            self._open(name, device)
            return
        if len(texts) != len(vectors):
            raise ValueError(f"it holds {len(texts)} texts and {len(vectors)} vectors")
        for text, vector in zip(texts, F.normalize(vectors.float(), dim=-1), strict=True):
            self._known.setdefault(text, vector)  # of equal texts the first counts

    def _open(self, name: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._encoder = AutoModel.from_pretrained(name).eval().requires_grad_(False).to(device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
        pooling = Path(name, "1_Pooling", "config.json")
        said = json.loads(pooling.read_text()) if pooling.is_file() else {}
        self._first = bool(said.get("pooling_mode_cls_token"))

    @property
    def width(self) -> int:
        """Size T of a vector."""
        if self._encoder is not None:
            return int(self._encoder.config.hidden_size)
        return len(next(iter(self._known.values())))

    @property
    def texts(self) -> list[str]:
        """The texts met so far; of a file, all that it holds."""
        return list(self._known)

    def drawn(
        self, texts: Sequence[str], count: int, rng: random.Random
    ) -> tuple[list[str], Tensor]:
        """`count` of the texts, each in a template where the file has some, and their unit vectors (count, T)."""
        first = min(self._first_known, len(texts))
        half = count // 2 if 0 < first < len(texts) else 0
        chosen = [texts[rng.randrange(first)] for _ in range(half)]
        chosen += rng.sample(texts, min(count - half, len(texts)))
        vectors = self(chosen)
        if not self._templates:
            return chosen, vectors
        templates = [rng.choice(self._templates) for _ in chosen]
        filled = [in_template(t, word) for (t, _), word in zip(templates, chosen, strict=True)]
        offsets = torch.stack([offset for _, offset in templates]).to(vectors.device)
        return filled, F.normalize(vectors + offsets, dim=-1)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new and self._encoder is None:
            raise ValueError(f"{self.option} {self.name!r} holds no vector of {new[0]!r}")
        for start in range(0, len(new), 256):
            chunk = new[start : start + 256]
            tokens = self._tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(self.device)
            states = self._encoder(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            pooled = states[:, 0] if self._first else (states * mask).sum(1) / mask.sum(1)
            self._known.update(zip(chunk, F.normalize(pooled, dim=-1).cpu(), strict=True))
        return torch.stack([self._known[text] for text in texts]).to(self.device)


def geometry(
    features: Tensor,
    vectors: Tensor,
    head: nn.Module | None,
    others: tuple[Tensor, Tensor] | None = None,
    direct: bool = False,
) -> Tensor:
    """How far text features (N, D) are from a teacher's unit vectors (N, T), per text (N,).

    head: a linear map to the teacher's space, then 1 - cosine; direct: that without a map. Else the distance of the
    two matrices of cosine similarities (similarity-preserving distillation, Tung and Mori 2019), to the M texts of
    `others`, features and vectors, or to one another: the mean squared difference of a row.
    """
    if head is not None or direct:
        return losses.cosine(features if head is None else head(features), vectors)
    columns, known = (features, vectors) if others is None else others
    mine = losses.logits(features, columns, 1.0)
    return (mine - vectors @ known.T).square().mean(1)
