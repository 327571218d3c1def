"""Class-conditional generators for the search: the protocol, SAGAN's and BigGAN's kind, and the one in the package."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SIDE = 64  # pixels of the generator in the package
SHARPNESS = 4.0  # of the softmax over prototypes: with it one of them mostly has it all
LIMITS = (24, 12, 12)  # of brightness and the two colour planes: frequencies u + v below are kept
FILE = "generator.safetensors"


class Generator(Protocol):
    """A class-conditional generator, as `pipelines.search` takes one.
    name: for the recipe. classes: names of its labels. dim_z: length of z. soft: class weights take gradients. latents:
    draws (n, dim_z) of z. Called, it makes pictures (n, 3, S, S) in [-1, 1] of z and class weights (n, C)."""

    name: str
    classes: list[str]
    dim_z: int
    soft: bool

    def latents(self, count: int, generator: torch.Generator) -> Tensor: ...

    def __call__(self, z: Tensor, y: Tensor) -> Tensor: ...


class Labelled:
    """A generator of SAGAN's kind (Zhang et al. 2019) behind the protocol; its class takes no gradient.

    Args:
        network: takes z (n, dim_z) from N(0, I) and label numbers (n,), gives (n, 3, S, S) in [-1, 1], as those of
            `pytorch-pretrained-gans` do.
        classes: names in the order of the labels.
    """

    soft = False

    def __init__(
        self, network: Any, dim_z: int, classes: Sequence[str], name: str = "sagan"
    ) -> None:
        self.network, self.dim_z, self.classes, self.name = network, dim_z, list(classes), name

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.dim_z, generator=generator)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return self.network(z, y.argmax(dim=1))


class BigGan(nn.Module):
    """BigGAN-deep (Brock et al. 2019) of the package pytorch-pretrained-biggan behind the protocol.

    Args:
        network: a `pytorch_pretrained_biggan.BigGAN`.
        truncation: of the noise and of the network's own statistics, in (0, 1].
        classes: names in the order of the labels; default: ImageNet's.
    Raises: ValueError for a truncation out of range or another number of names.
    """

    name, soft = "biggan", True

    def __init__(
        self, network: Any, *, truncation: float = 0.4, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation is {truncation}; it must be above 0 and at most 1")
        if classes is None:
            from open_clip import IMAGENET_CLASSNAMES

            classes = IMAGENET_CLASSNAMES
        self.network = network.eval().requires_grad_(False)
        self.truncation, self.classes = truncation, list(classes)
        self.dim_z: int = network.config.z_dim
        if len(self.classes) != network.config.num_classes:
            raise ValueError(
                f"{len(self.classes)} names for the {network.config.num_classes} classes of the network; "
                "give classes=, a name for each"
            )

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """z from a normal distribution cut at +-2, times the truncation."""
        low = torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64))
        share = torch.rand(count, self.dim_z, generator=generator, dtype=torch.float64)
        return self.truncation * torch.special.ndtri(low + share * (1 - 2 * low)).float()

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.network(z, y, self.truncation)


class PrototypeGenerator(nn.Module):
    """The generator in the package: a class's prototypes mixed by z, and noise of one covariance, in a cosine basis.

    z is a selector (P), whose softmax mixes the prototypes, then a residual (R). The prototypes are k-means centroids
    of photographs; benchmarks/make/generator.py fits them.

    Args:
        prototypes: (C, P, K). factor: (R, K), of the covariance. scale: (K,), of the coefficients. All float32.
        classes: names in the order of the labels.
    """

    prototypes: Tensor
    factor: Tensor
    scale: Tensor
    name, soft = "bundled", True
    truncation = 0.3  # how far the residual goes, 1 for the photographs' own spread

    def __init__(
        self, prototypes: Tensor, factor: Tensor, scale: Tensor, classes: list[str]
    ) -> None:
        super().__init__()
        for name, values in (("prototypes", prototypes), ("factor", factor), ("scale", scale)):
            self.register_buffer(name, values)
        self.classes, self.dim_z = classes, prototypes.shape[1] + factor.shape[0]

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.dim_z, generator=generator)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        shares = (SHARPNESS * z[:, : self.prototypes.shape[1]]).softmax(dim=1)
        chosen = torch.einsum("nc,np,cpk->nk", y, shares, self.prototypes)
        residual = z[:, self.prototypes.shape[1] :] @ self.factor
        return decode((chosen + self.truncation * residual) * self.scale).clamp(-1, 1)

    @classmethod
    def load(cls, path: str | Path) -> PrototypeGenerator:
        """Reads a file. Raises: FileNotFoundError, or ValueError where the file holds something else."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"generator {str(path)!r} does not exist")
        try:
            with safe_open(str(path), framework="pt") as file:
                named = {name: file.get_tensor(name).float() for name in list(file.keys())}
                return cls(**named, classes=json.loads(file.metadata()["classes"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} is no generator of clipag_plug ({error}); "
                "give one that benchmarks/make/generator.py wrote"
            ) from error


def bundled_generator() -> PrototypeGenerator:
    """The generator in the package: 202 classes, 64 x 64 pixels."""
    with resources.as_file(resources.files("clipag_plug.bundled").joinpath(FILE)) as path:
        return PrototypeGenerator.load(path)


def load_generator(name: str, truncation: float) -> Generator:
    """A generator by name: bundled, a .safetensors file, biggan:NAME (downloaded) or biggan:FOLDER.
    Raises: ValueError for another name, FileNotFoundError for a missing file, ImportError without BigGAN's package."""
    kind, _, which = name.partition(":")
    if kind == "biggan":
        return load_biggan(which or "biggan-deep-256", truncation)
    if name != "bundled" and Path(name).suffix != ".safetensors":
        raise ValueError(
            f"--generator is {name!r}; it must be bundled, a .safetensors file, or biggan:NAME"
        )
    generator = bundled_generator() if name == "bundled" else PrototypeGenerator.load(name)
    generator.truncation = truncation
    return generator


def load_biggan(name: str, truncation: float = 0.4) -> BigGan:
    """A published BigGAN by name (`biggan-deep-128`, `-256`, `-512`), or a folder of its two files.
    Raises: ImportError without the package, FileNotFoundError where a file is missing."""
    try:
        from pytorch_pretrained_biggan import BigGAN
        from pytorch_pretrained_biggan.model import PRETRAINED_MODEL_ARCHIVE_MAP as known
    except ImportError as error:
        raise ImportError(
            "BigGAN needs pytorch-pretrained-biggan: pip install 'clipag_plug[search]'"
        ) from error
    needed = () if name in known else ("pytorch_model.bin", "config.json")
    missing = [file for file in needed if not (Path(name) / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"there is no BigGAN {name!r}: no {' and no '.join(missing)} in it; "
            f"give a folder with both, or one of {', '.join(known)}"
        )
    return BigGan(BigGAN.from_pretrained(name), truncation=truncation)


def decode(coefficients: Tensor) -> Tensor:
    """Pictures (n, 3, 64, 64) of cosine coefficients (n, K), brightness first; values may leave [-1, 1]."""
    basis = cosines().to(coefficients)
    spectrum = coefficients.new_zeros(len(coefficients), 3, SIDE, SIDE)
    masks = [kept(limit) for limit in LIMITS]
    parts = coefficients.split([int(mask.sum()) for mask in masks], dim=1)
    for plane, (mask, part) in enumerate(zip(masks, parts)):
        spectrum[:, plane, mask] = part
    return torch.einsum("dc,ndhw->nchw", colours().to(coefficients), basis.T @ spectrum @ basis)


@functools.cache
def colours() -> Tensor:
    """An orthonormal turn of RGB (3, 3): brightness, red against blue, green against both."""
    brightness, red = [1 / math.sqrt(3)] * 3, 1 / math.sqrt(2)
    green = [-1 / math.sqrt(6), 2 / math.sqrt(6), -1 / math.sqrt(6)]
    return torch.tensor([brightness, [red, 0.0, -red], green])


@functools.cache
def cosines() -> Tensor:
    """The orthonormal DCT-II matrix (64, 64), frequencies along the rows."""
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * math.pi / SIDE
    matrix = (torch.arange(SIDE, dtype=torch.float64)[:, None] * places).cos() * math.sqrt(2 / SIDE)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


@functools.cache
def kept(limit: int) -> Tensor:
    """Mask (64, 64) of the frequencies whose sum is below `limit`."""
    index = torch.arange(SIDE)
    return index[:, None] + index < limit
