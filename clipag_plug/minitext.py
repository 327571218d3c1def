"""The bundled models as a whole: the small image tower beside CLIP's text transformer.

The text tower has open_clip's parts, names and operations, and gives its features to the last bit. It is written out
because importing open_clip and torchvision takes longer than painting a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .mini import MiniVisual


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the precision of its weights, which is fp32 in a model of lower precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class TextBlock(nn.Module):
    """Residual attention block with the normalisation first (Radford et al. 2019); x (N, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(y.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """Blocks of one width. forward: (N, L, width) and an additive mask (L, L) -> (N, L, width)."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))

    def get_cast_dtype(self) -> torch.dtype:
        """The dtype of the matrices."""
        return self.resblocks[0].get_parameter("mlp.c_fc.weight").dtype

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class MiniCLIP(nn.Module):
    """The parts of a CLIP whose image tower is a `MiniVisual`, under open_clip's names; `CLIP` puts them to work.

    mini: options of `MiniVisual`. text: `width`, `heads`, `layers`, `context_length`, `vocab_size`. Fresh weights are
    drawn as in Radford et al. (2021). TypeError for an option that neither has.
    """

    logit_bias = None
    text_pool_type = "argmax"
    text_eos_id = 2

    def __init__(
        self,
        embed_dim: int,
        mini: Mapping[str, Any],
        text: Mapping[str, Any],
        *,
        input_resolution: int = 224,
        init_logit_scale: float = math.log(1 / 0.07),
    ) -> None:
        super().__init__()
        self.visual = MiniVisual(embed_dim, **mini, input_resolution=input_resolution)
        self._add_text(embed_dim, **text)
        self.logit_scale = nn.Parameter(torch.tensor(init_logit_scale))

    def _add_text(
        self,
        embed_dim: int,
        context_length: int = 77,
        vocab_size: int = 49408,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
    ) -> None:
        self.context_length, self.vocab_size = context_length, vocab_size
        self.transformer = TextTransformer(width, layers, heads)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        mask = torch.full((context_length, context_length), float("-inf")).triu_(1)
        self.register_buffer("attn_mask", mask, persistent=False)
        self._draw()

    def _draw(self) -> None:
        width, layers = self.transformer.width, self.transformer.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        spread = {
            "attn.in_proj_weight": width**-0.5,
            "attn.out_proj.weight": (2 * layers * width) ** -0.5,
            "mlp.c_fc.weight": (2 * width) ** -0.5,
            "mlp.c_proj.weight": (2 * layers * width) ** -0.5,
        }
        for block in self.transformer.resblocks:
            for name, std in spread.items():
                nn.init.normal_(block.get_parameter(name), std=std)
        nn.init.normal_(self.text_projection, std=width**-0.5)
