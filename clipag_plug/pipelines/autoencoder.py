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
NO_LOSS = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a `ddconfig` of taming-transformers says, and the codebook: `n_embed` vectors of width `embed_dim`."""

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

    @classmethod
    def of(cls, params: dict[str, Any]) -> Shape:
        """From the `model.params` of a published yaml file. Raises: ValueError for what cannot be built."""
        values = {**params, **params.get("ddconfig", {})}
        if values.get("double_z"):
            raise ValueError("the config says double_z, as autoencoders without a codebook do")
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        values |= {name: tuple(values.get(name, ())) for name in ("ch_mult", "attn_resolutions")}
        shape = cls(**values)
        if not shape.ch_mult or any(shape.ch * times % GROUPS for times in shape.ch_mult):
            raise ValueError(
                f"ch {shape.ch} and ch_mult {shape.ch_mult} give widths that are not multiples of {GROUPS}"
            )
        return shape

    def params(self) -> dict[str, Any]:
        """The `model.params` of a yaml file for taming-transformers, which then needs no download for its loss."""
        values = dataclasses.asdict(self).items()
        inner = {name: list(v) if isinstance(v, tuple) else v for name, v in values}
        outer = {name: inner.pop(name) for name in ("embed_dim", "n_embed")}
        return outer | {
            "ddconfig": {"double_z": False, "dropout": 0.0, **inner},
            "lossconfig": NO_LOSS,
        }


class VQModel(nn.Module):
    """Encoder, codebook and decoder. Images here are (N, 3, H, W) in [-1, 1].
    Sides are multiples of 2 ** (len(ch_mult) - 1), the pixels a side that one code stands for."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quantize = Codebook(shape.n_embed, shape.embed_dim)
        self.quant_conv = nn.Conv2d(shape.z_channels, shape.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(shape.embed_dim, shape.z_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Continuous codes (N, embed_dim, h, w), before the codebook."""
        return self.quant_conv(self.encoder(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Images from codes; values may leave [-1, 1]."""
        return self.decoder(self.post_quant_conv(codes))

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction from the nearest vectors of the codebook."""
        return self.decode(self.quantize(self.encode(images)))


class Codebook(nn.Module):
    """`embedding`: `count` vectors; a code is replaced by the nearest of them."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / count, 1.0 / count)

    def indices(self, codes: Tensor) -> Tensor:
        """Index of the nearest vector (N, h, w) of codes (N, width, h, w)."""
        return nearest(codes, self.embedding.weight)

    def forward(self, codes: Tensor) -> Tensor:
        """The nearest vectors (N, width, h, w); differentiable in the codebook alone."""
        return F.embedding(self.indices(codes), self.embedding.weight).movedim(-1, 1)


def nearest(codes: Tensor, table: Tensor) -> Tensor:
    """Index (N, h, w) of the nearest vector of a table (K, D) to codes (N, D, h, w)."""
    flat = codes.movedim(1, -1)
    return (table.square().sum(1) - 2 * flat @ table.T).argmin(
        -1
    )  # the code's own square is left out


class Encoder(nn.Module):
    """Pixels to features at a fraction of the side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv_in = conv(shape.in_channels, shape.ch)
        self.down, width = nn.ModuleList(), shape.ch
        for level, times in enumerate(shape.ch_mult):
            attention = shape.resolution // 2**level in shape.attn_resolutions
            stage = Stage(width, shape.ch * times, shape.num_res_blocks, attention)
            width = shape.ch * times
            if level < len(shape.ch_mult) - 1:
                stage.downsample = Resample(width, down=True)
            self.down.append(stage)
        self.mid = Middle(width)
        self.norm_out = norm(width)
        self.conv_out = conv(width, shape.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_resolutions = len(shape.ch_mult)
        width, last = shape.ch * shape.ch_mult[-1], self.num_resolutions - 1
        self.conv_in = conv(shape.z_channels, width)
        self.mid = Middle(width)
        self.up = nn.ModuleList()
        for level in reversed(range(self.num_resolutions)):
            attention = shape.resolution // 2**last * 2 ** (last - level) in shape.attn_resolutions
            wide = shape.ch * shape.ch_mult[level]
            stage = Stage(width, wide, shape.num_res_blocks + 1, attention)
            width = wide
            if level:
                stage.upsample = Resample(width, down=False)
            self.up.insert(0, stage)
        self.norm_out = norm(width)
        self.conv_out = conv(width, shape.out_ch)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Stage(nn.Module):
    """Blocks of one resolution, attention after each where there is any, then a change of the resolution."""

    def __init__(self, width_in: int, width: int, blocks: int, attention: bool) -> None:
        super().__init__()
        ends = [width_in, *[width] * blocks]
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(ends, ends[1:]))
        self.attn = nn.ModuleList(AttnBlock(width) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = self.attn[index](block(x)) if len(self.attn) else block(x)
        change = self.downsample or self.upsample
        return change(x) if change else x


class Middle(nn.Sequential):
    """A block, attention, and a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttnBlock(width)
        self.block_2 = ResnetBlock(width, width)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = norm(width_in)
        self.conv1 = conv(width_in, width)
        self.norm2 = norm(width)
        self.conv2 = conv(width, width)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention of one head over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """Half or twice the side: a convolution of stride 2, padded at the right and below, or one after repeating."""

    def __init__(self, width: int, down: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, *((2, 0) if down else (1, 1)))
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0)
        return self.conv(x)


def conv(width_in: int, width: int) -> nn.Conv2d:
    """3x3, the side kept."""
    return nn.Conv2d(width_in, width, 3, 1, 1)


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)
