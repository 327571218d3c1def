"""`block.attn_probs` of the image tower, which the copy of `clip` in CLIPasso keeps of every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..model import CLIP
    from .patching import Patch


def keep(patch: Patch) -> None:
    """Lets every model that is loaded under the patch tell its attention."""
    patch.guide.loaded.append(lambda model: tell(patch, model))


def tell(patch: Patch, model: CLIP) -> None:
    """Gives the blocks of a transformer `attn_probs`, (heads * N, L, L) of the last call, worked out when asked for."""
    transformer = getattr(model.visual, "transformer", None)
    for block in getattr(transformer, "resblocks", ()):
        if not isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
            continue
        kind = type(block)
        # The blocks may receive (L, N, D) while their attention reads (N, L, D).
        block.swap_axes = getattr(transformer, "batch_first", True) != block.attn.batch_first
        probabilities = property(lambda block: _probabilities(patch, block))
        block.__class__ = type(kind.__name__, (kind,), {"attn_probs": probabilities})
        block.register_forward_pre_hook(_remember)


def _remember(block: Any, inputs: tuple[Tensor, ...]) -> None:
    block.last_input = inputs[0].detach()


def _probabilities(patch: Patch, block: Any) -> Tensor:
    patch.say("attention", "attn_probs of a block is worked out from its last input")
    x = block.ln_1(block.last_input.transpose(0, 1) if block.swap_axes else block.last_input)
    weights: Tensor = block.attn(x, x, x, need_weights=True, average_attn_weights=False)[1]
    return weights.flatten(0, 1)
