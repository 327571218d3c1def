"""The parts of a transformer image tower: open_clip's weights, OpenAI's axis order, and a quicker way to the pixels.

Plain features are computed by the very operations of open_clip, and are equal to the last bit. Where a gradient flows
(a frozen model that guides a picture, or one in training mode) two of them are written as larger matrix products, which
round differently and take a third less time on a CPU.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual attention block of open_clip's image tower behind OpenAI's axis order.

    forward: (L, N, D) -> (L, N, D), so a hook sees what it sees in `clip`. The inside works on contiguous (N, L, D)
    tensors, as open_clip's block.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        x = x + self.ls_1(attention(self.attn, self.ln_1(x)))
        x = x + self.ls_2(self.mlp(self.ln_2(x)))
        return x.transpose(0, 1)


class Blocks(nn.Module):
    """The `transformer` of an image tower: open_clip's (N, L, D) outside, OpenAI's order at the blocks."""

    batch_first = False  # of what the blocks, and hooks on them, receive; open_clip's own says True

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.width, self.layers = transformer.width, transformer.layers
        self.grad_checkpointing = False
        self.resblocks = nn.Sequential(*(Block(block) for block in transformer.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x.transpose(0, 1)
        for block in self.resblocks:
            if self.grad_checkpointing:
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
        return x.transpose(0, 1)


class Patches(nn.Conv2d):
    """A convolution whose stride is its kernel, as the one matrix product that it is.

    The way back to the pixels, which every attack and every picture takes, is 15 times as fast on a CPU as that of
    a convolution. forward: (N, C, H, W) -> (N, D, H / p, W / p); a rest at the border is left out as in a convolution.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Patches:
        """The same layer; its weight stays the same parameter."""
        conv.__class__ = cls
        return cast(Patches, conv)

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether a layer cuts pictures into patches without overlap."""
        return (
            type(layer) is nn.Conv2d
            and layer.kernel_size == layer.stride
            and (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not _gradient_flows(self, self.weight, x):
            return super().forward(x)
        (count, channels, height, width), (p, q) = x.shape, self.kernel_size
        rows, columns = height // p, width // q
        x = x[:, :, : rows * p, : columns * q].reshape(count, channels, rows, p, columns, q)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(count * rows * columns, channels * p * q)
        x = F.linear(x, self.weight.flatten(1), self.bias)
        return x.view(count, rows, columns, -1).permute(0, 3, 1, 2)


def attention(attn: Any, x: Tensor) -> Tensor:
    """Self-attention of x (N, L, D) by the weights of a `nn.MultiheadAttention`.

    That module puts L first before it projects, and torch then multiplies L matrices of N rows each instead of one of
    N * L rows: a quarter of a ViT-B/32's time on a CPU. A module that is hooked, that drops out, or that is of another
    kind is called as it is.
    """
    if not (_plain(attn) and _gradient_flows(attn, attn.in_proj_weight, x)):
        return cast(Tensor, attn(x, x, x, need_weights=False)[0])
    count, length, width = x.shape
    heads = attn.num_heads
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.view(count, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    y = y.transpose(1, 2).reshape(count, length, width)
    return F.linear(y, attn.out_proj.weight, attn.out_proj.bias)


def _plain(attn: Any) -> bool:
    if type(attn) is not nn.MultiheadAttention or attn.in_proj_weight is None:
        return False
    hooks = any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks
        for module in (attn, attn.out_proj)
    )  # fmt: skip
    extras = attn.bias_k is not None or attn.add_zero_attn or (attn.training and attn.dropout)
    return not (hooks or extras)


def _gradient_flows(layer: nn.Module, weight: Tensor, x: Tensor) -> bool:
    return x.requires_grad and (layer.training or not weight.requires_grad)
