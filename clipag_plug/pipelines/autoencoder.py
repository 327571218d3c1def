"""The vector-quantised autoencoder of VQGAN (Esser et al. 2021), with the names of its published state dicts.

Same computation and same state dict as `taming.models.vqgan.VQModel` without its loss, so that weights pass from one
to the other; needs none of that package's requirements.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32  # of every normalisation: widths are multiples of it


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a `ddconfig` of taming-transformers says, and the codebook's size.

    factor: pixels a side that one code stands for, 2 ** (levels - 1). ValueError for what cannot be built.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024
    in_channels: int = 3
    out_ch: int = 3

    @property
    def factor(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @classmethod
    def of(cls, params: dict[str, Any]) -> Shape:
        """From the `model.params` of a published yaml file."""
        inner = dict(params.get("ddconfig", {}))
        if inner.get("double_z"):
            raise ValueError("the config says double_z, as autoencoders without a codebook do")
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {name: inner[name] for name in inner if name in known}
        values.update({name: params[name] for name in ("embed_dim", "n_embed") if name in params})
        for name in ("ch_mult", "attn_resolutions"):
            values[name] = tuple(values.get(name, ()))
        shape = cls(**values)
        if not shape.ch_mult or any(shape.ch * times % GROUPS for times in shape.ch_mult):
            raise ValueError(
                f"ch {shape.ch} and ch_mult {shape.ch_mult} give widths that are not multiples of {GROUPS}"
            )
        return shape

    def params(self) -> dict[str, Any]:
        """The `model.params` of a yaml file for taming-transformers, which then needs no download for its loss."""
        names = [field.name for field in dataclasses.fields(self)]
        inner = {
            name: getattr(self, name) for name in names if name not in ("embed_dim", "n_embed")
        }
        for name in ("ch_mult", "attn_resolutions"):
            inner[name] = list(inner[name])
        return {
            "embed_dim": self.embed_dim,
            "n_embed": self.n_embed,
            "ddconfig": {"double_z": False, "dropout": 0.0, **inner},
            "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
        }


class VQModel(nn.Module):
    """Encoder, codebook and decoder. Images here are (N, 3, H, W) in [-1, 1], sides multiples of `factor`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quantize = Codebook(shape.n_embed, shape.embed_dim)
        self.quant_conv = nn.Conv2d(shape.z_channels, shape.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(shape.embed_dim, shape.z_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Continuous codes (N, embed_dim, h, w), before the codebook."""
        codes: Tensor = self.quant_conv(self.encoder(images))
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Images from codes; values may leave [-1, 1]."""
        images: Tensor = self.decoder(self.post_quant_conv(codes))
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction, and the codebook's loss."""
        codes = self.encode(images)
        nearest = self.quantize(codes)
        return self.decode(codes + (nearest - codes).detach()), self.quantize.loss(codes, nearest)


class Codebook(nn.Module):
    """`embedding`: n_embed vectors; a code is replaced by the nearest of them."""

    def __init__(self, count: int, width: int, beta: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / count, 1.0 / count)
        self.beta = beta

    def indices(self, codes: Tensor) -> Tensor:
        """Index of the nearest vector (N, h, w)."""
        flat = codes.movedim(1, -1).reshape(-1, codes.shape[1])
        table = self.embedding.weight
        distance = table.square().sum(1) - 2 * flat @ table.T  # the code's own square is left out
        return distance.argmin(1).view(codes.shape[0], *codes.shape[2:])

    def forward(self, codes: Tensor) -> Tensor:
        """The nearest vectors (N, width, h, w); differentiable in the codebook alone."""
        return F.embedding(self.indices(codes), self.embedding.weight).movedim(-1, 1)

    def loss(self, codes: Tensor, nearest: Tensor) -> Tensor:
        """Commitment, weighted as VQ-VAE does (van den Oord et al. 2017), plus the codebook's own term."""
        return self.beta * F.mse_loss(codes, nearest.detach()) + F.mse_loss(nearest, codes.detach())


class Encoder(nn.Module):
    """Pixels to features at 1 / factor of the side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(shape.in_channels, shape.ch, 3, 1, 1)
        side, width = shape.resolution, shape.ch
        self.down = nn.ModuleList()
        last = len(shape.ch_mult) - 1
        for level, times in enumerate(shape.ch_mult):
            stage = _Stage()
            for _ in range(shape.num_res_blocks):
                stage.block.append(ResnetBlock(width, shape.ch * times))
                width = shape.ch * times
                if side in shape.attn_resolutions:
                    stage.attn.append(AttnBlock(width))
            if level != last:
                stage.downsample = _Downsample(width)
                side //= 2
            self.down.append(stage)
        self.mid = _Middle(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, shape.z_channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        last = len(shape.ch_mult) - 1
        self.num_resolutions = len(shape.ch_mult)
        width, side = shape.ch * shape.ch_mult[last], shape.resolution // 2**last
        self.conv_in = nn.Conv2d(shape.z_channels, width, 3, 1, 1)
        self.mid = _Middle(width)
        stages: list[nn.Module] = []
        for level in range(last, -1, -1):
            stage = _Stage()
            for _ in range(shape.num_res_blocks + 1):
                stage.block.append(ResnetBlock(width, shape.ch * shape.ch_mult[level]))
                width = shape.ch * shape.ch_mult[level]
                if side in shape.attn_resolutions:
                    stage.attn.append(AttnBlock(width))
            if level:
                stage.upsample = _Upsample(width)
                side *= 2
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, shape.out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in range(len(self.up) - 1, -1, -1):
            x = self.up[level](x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class _Stage(nn.Module):
    """Blocks of one resolution, attention after each where there is any, then a change of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.attn = nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttnBlock(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, 1, 1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        short: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return short + h


class AttnBlock(nn.Module):
    """Self-attention of one head over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        out: Tensor = x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))
        return out


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def count_parameters(model: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in model.parameters())
