"""The transformers of CLIP (Radford et al. 2021), of texts and of images, with the modules and names of `clip`.

Tensors of tokens are (L, N, D) at every module, as in `clip`, so hooks and callers see what they see there; in memory
they lie as (N, L, D), and plain features are computed by the very operations of open_clip, equal to the last bit. Where
a gradient flows to the pixels (a frozen model that guides a picture, or one in training mode) two of them are written
as larger matrix products, which round differently and take a third less time on a CPU.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TORCH_ATTENTION = (nn.MultiheadAttention.forward, F.multi_head_attention_forward)
ATTENTION_OPTIONS = (
    *("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal"),
)


def exporting() -> bool:
    """Whether torch records the operations (trace, compile, export) instead of just running them."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., I), weight (O, I), bias (O,) -> (..., O), equal to it but for rounding.

    torch multiplies fp32 on a CPU by MKL, which gives AMD's processors code for AVX2; oneDNN, which comes with torch,
    has AVX-512 for them as well: on one thread of an EPYC of the Zen 5 kind 200 GFLOP/s and not 97.
    """
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    if _recorded() or not (plain and _amd()) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The three products of a linear layer, each by oneDNN; its gradient is made of such layers again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), (x, weight), needed = gradients, ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_x = linear(gradient, weight.t()) if needed[0] else None
        to_weight = linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needed[1] else None
        return to_x, to_weight, rows.sum(0) if needed[2] else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _recorded() -> bool:
    """Whether operations are recorded, counted or transformed (compile, torch.func, forward mode, dispatch modes)."""
    if exporting() or torch._C._are_functorch_transforms_active():
        return True
    level: int = (
        torch.autograd.forward_ad._current_level
    )  # torch 2.4 cannot compile what asks for it
    return level >= 0 or torch._C._len_torch_dispatch_stack() > 0


def _replaced() -> bool:
    """Whether a program has put its own function in the place of torch's attention, to look at it or change it."""
    return (nn.MultiheadAttention.forward, F.multi_head_attention_forward) != TORCH_ATTENTION


def _autocast(x: Tensor) -> bool:
    kind = (
        x.device.type
    )  # "meta" cannot be asked, and torch 2.4 cannot compile the question whether it can
    known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    return known and torch.is_autocast_enabled(kind)


@functools.cache
def _amd() -> bool:
    """Whether this is a processor of AMD with AVX-512 under Linux, and torch has oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    about = Path("/proc/cpuinfo")
    known = about.is_file() and "AuthenticAMD" in about.read_text(errors="replace")[:2000]
    return known and torch.backends.mkldnn.is_available()


def in_memory_order(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a function of the last axis to (L, N, D) without copying it from its order in memory."""
    if x.ndim != 3 or x.is_contiguous() or exporting():
        return function(x)
    return function(x.transpose(0, 1)).transpose(0, 1)


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what passes through the module, either way."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the precision of its weights, which stay fp32 in a model of lower precision."""

    def forward(self, x: Tensor) -> Tensor:
        return in_memory_order(super().forward, x.to(self.weight.dtype)).to(x.dtype)


class QuickGELU(nn.Module):
    """The approximation x * sigmoid(1.702 x) of GELU (Hendrycks and Gimpel 2016), which OpenAI's weights need."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of which self-attention takes torch's quickest way.

    That module puts L first before it projects, and torch then multiplies L matrices of N rows each instead of one of
    N * L rows: a quarter of a ViT-B/32's time on a CPU.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *given: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        options = {
            **options,
            **dict(zip(ATTENTION_OPTIONS, given)),
        }  # by name, as `clip` gives them
        own = query.ndim == 3 and query is key and key is value
        if not own or _replaced() or (_recorded() and not exporting()):
            return super().forward(query, key, value, **options)
        mask, padding = options.get("attn_mask"), options.get("key_padding_mask")
        x = query if self.batch_first else query.transpose(0, 1)
        # Under autocast torch's own copies the weights once for each image (25 times a ViT-B/32's whole time).
        wanted = _autocast(x) or _gradient_flows(self, self.in_proj_weight, x)
        quick = mask is None and not {"average_attn_weights", "is_causal"} & options.keys()
        dropped, asked = self.training and self.dropout, options.get("need_weights", True)
        weights = None
        if (quick and wanted or exporting()) and not (asked or dropped or padding is not None):
            x = self._one_product(x, mask)
        else:
            # torch's own computation, told that the batch comes first: only then does it take its fast path.
            # Of the own class, whose properties parametrised weights are.
            twin = object.__new__(type(self))
            twin.__dict__ = {**self.__dict__, "batch_first": True}
            x, weights = nn.MultiheadAttention.forward(twin, x, x, x, **options)
        return x if self.batch_first else x.transpose(0, 1), weights

    def _one_product(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, length, width = x.shape
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)
        shape = (count, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).reshape(count, length, width)
        return linear(y, self.out_proj.weight, self.out_proj.bias)


class MLP(nn.Sequential):
    """The two linear layers of a block; parts that are hooked or replaced are called on (L, N, D), as in `clip`."""

    PLAIN = (nn.Linear, QuickGELU, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        if all(type(part) in self.PLAIN and not hooked(part) for part in self):
            two = [type(part) for part in self][::2] == [nn.Linear, nn.Linear]
            quick = two and _gradient_flows(self, cast(Tensor, self[0].weight), x)
            return in_memory_order(self._quick if quick else super().forward, x)
        return cast(Tensor, super().forward(x))

    def _quick(self, x: Tensor) -> Tensor:
        wide, act, narrow = cast(Any, self)
        return linear(act(linear(x, wide.weight, wide.bias)), narrow.weight, narrow.bias)


class ResidualAttentionBlock(nn.Module):
    """A pre-norm transformer block. forward: (L, N, D) -> (L, N, D).

    Args:
        d_model, n_head: width and heads.
        attn_mask: additive (L, L), or None; shorter inputs take its upper left corner.
        mlp_ratio: hidden width over width. act: class of the activation.
    """

    attn_mask: Tensor | None

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_ratio: float = 4.0,
        act: type[nn.Module] = QuickGELU,
    ) -> None:
        super().__init__()
        hidden = int(d_model * mlp_ratio)
        self.attn = Attention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        layers = (("c_fc", nn.Linear(d_model, hidden)), ("gelu", act()))
        self.mlp = MLP(OrderedDict([*layers, ("c_proj", nn.Linear(hidden, d_model))]))
        self.ln_2 = LayerNorm(d_model)
        self.register_buffer("attn_mask", attn_mask, persistent=False)

    def attention(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Self-attention of normalised tokens under a mask, by default the block's own."""
        mask = self.attn_mask if attn_mask is None else attn_mask
        if mask is not None:
            length = x.shape[1 if getattr(self.attn, "batch_first", False) else 0]
            mask = mask[:length, :length].to(x.device, x.dtype)
        return cast(Tensor, self.attn(x, x, x, need_weights=False, attn_mask=mask)[0])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        given = () if attn_mask is None else (attn_mask,)
        x = x + self.attention(self.ln_1(x), *given)
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Blocks of one width. forward: (L, N, D) -> (L, N, D), under the mask that each block holds.

    With `batch_first` it takes (N, L, D) and a mask as open_clip's does (`model.as_open_clip`).
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.heads = width, layers, heads
        self.batch_first = self.grad_checkpointing = False
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, attn_mask, **options) for _ in range(layers))
        )

    def get_cast_dtype(self) -> torch.dtype:
        """The dtype of the matrices."""
        return next(p.dtype for p in self.parameters() if p.ndim > 1)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if (
            not self.batch_first
        ):  # what a caller made contiguous in this order is laid out once for all blocks
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        if self.grad_checkpointing and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            for block in self.resblocks:
                x = cast(Tensor, checkpoint(block, x, attn_mask, use_reentrant=False))
            return x
        if attn_mask is None:
            return cast(Tensor, self.resblocks(x))
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class Patches(nn.Conv2d):
    """A convolution whose stride is its kernel, as the one matrix product that it is.

    The way back to the pixels, which every attack and every picture takes, is 15 times as fast on a CPU as that of
    a convolution. forward: (N, C, H, W) -> (N, D, H / p, W / p); a rest at the border is left out as in a convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        changed = self.stride != self.kernel_size or any(self.padding) or set(self.dilation) != {1}
        wanted = _gradient_flows(self, self.weight, x) or x.device.type == "mps"
        if changed or not wanted or x.ndim != 4:
            return super().forward(x)
        (count, channels, height, width), (p, q) = x.shape, self.kernel_size
        rows, columns = height // p, width // q
        x = x[:, :, : rows * p, : columns * q].reshape(count, channels, rows, p, columns, q)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(count * rows * columns, channels * p * q)
        x = linear(x, self.weight.flatten(1), self.bias)
        return x.view(count, rows, columns, len(self.weight)).permute(0, 3, 1, 2)


class VisionTransformer(nn.Module):
    """The ViT of CLIP. forward: normalised images (N, 3, R, R) -> features (N, output_dim).

    Args:
        input_resolution, patch_size: R and the side of a patch, in pixels.
        width, layers, heads: of the transformer. output_dim: D of the features.
        pool_type: "tok", the class token, or "avg", the mean of the patches (CLIPA; Li et al. 2023).
        no_ln_pre, final_ln_after_pool: as in open_clip's config. options: `mlp_ratio`, `act`.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        *,
        pool_type: str = "tok",
        no_ln_pre: bool = False,
        final_ln_after_pool: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.patch_size, self.pool_type = patch_size, pool_type
        self.ln_after_pool = final_ln_after_pool
        scale, grid = width**-0.5, input_resolution // patch_size
        self.conv1 = Patches(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = _drawn(scale, width)
        self.positional_embedding = _drawn(scale, grid**2 + 1, width)
        self.ln_pre = nn.Identity() if no_ln_pre else LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, **options)
        self.ln_post = LayerNorm(width)
        self.proj = _drawn(scale, width, output_dim)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep their input alone and are run again on the way back (Chen et al. 2016)."""
        self.transformer.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        token = self.class_embedding.expand(x.shape[0], 1, -1).to(x.dtype)
        x = torch.cat([token, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x)
        if getattr(self.transformer, "batch_first", False):
            x = self.transformer(x)
        else:
            x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        if self.pool_type == "tok":
            x = self.ln_post(x[:, 0])
        elif self.ln_after_pool:
            x = self.ln_post(x[:, 1:].mean(dim=1))
        else:
            x = self.ln_post(x)[:, 1:].mean(dim=1)
        return x if self.proj is None else x @ self.proj


def _drawn(std: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


def _gradient_flows(layer: nn.Module, weight: Tensor, x: Tensor) -> bool:
    return x.requires_grad and (layer.training or not weight.requires_grad)
