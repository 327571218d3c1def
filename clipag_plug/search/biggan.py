"""BigGAN-deep (Brock et al. 2019) through the package pytorch-pretrained-biggan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INSTALL = "BigGAN needs pytorch-pretrained-biggan: pip install 'clipag_plug[search]'"


class BigGan:
    """A `pytorch_pretrained_biggan.BigGAN` behind the protocol of `search`.

    truncation: of the noise and of the network's own statistics, in (0, 1]. classes: names in the order of the
    network's labels; default: those of ImageNet.
    """

    soft = True
    name = "biggan"

    def __init__(
        self, network: Any, *, truncation: float = 0.4, classes: Sequence[str] | None = None
    ) -> None:
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation is {truncation}; it must be above 0 and at most 1")
        self.network = network.eval().requires_grad_(False)
        self.truncation = truncation
        self.dim_z: int = network.config.z_dim
        self.classes = list(classes or imagenet_names())
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

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        output: Tensor = self.network(z, y, self.truncation)
        return output


def load_biggan(name: str, truncation: float = 0.4) -> BigGan:
    """A published BigGAN by name (`biggan-deep-128`, `-256`, `-512`; downloaded), or from a folder with
    `pytorch_model.bin` and `config.json`. Raises ImportError without the package, FileNotFoundError otherwise.
    """
    try:
        from pytorch_pretrained_biggan import BigGAN
        from pytorch_pretrained_biggan.model import PRETRAINED_MODEL_ARCHIVE_MAP as known
    except ImportError as error:
        raise ImportError(INSTALL) from error
    if name not in known:
        missing = [
            f for f in ("pytorch_model.bin", "config.json") if not (Path(name) / f).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f"there is no BigGAN {name!r}: no {' and no '.join(missing)} in it; "
                f"give a folder with both, or one of {', '.join(known)}"
            )
    return BigGan(BigGAN.from_pretrained(name), truncation=truncation)


def imagenet_names() -> list[str]:
    """The 1000 class names of ImageNet, in the order of its labels."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)
