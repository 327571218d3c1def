"""open_clip's image and text networks from a config and weights, in the layout OpenAI's users expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .blocks import Blocks, Patches
from .mini import MiniVisual
from .minitext import MiniCLIP

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# Scalars in OpenAI's files that describe the model and are no weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
EXTRAS = (
    "custom_text",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)
NAMED_AT_MOST = 8


def build_network(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None, precision: str = "fp32"
) -> nn.Module:
    """open_clip's `CLIP` or `CustomTextCLIP`, or a `MiniCLIP`, of a model config, on the given or (None) fresh weights.

    The given tensors become the parameters themselves where dtype and layout allow: nothing is
    drawn at random first and nothing is held twice. RuntimeError names missing, unexpected and
    mis-shaped tensors; ValueError, a config that this package does not support.
    """
    low = _low(precision)
    if state_dict is None:
        net = _construct(config, low)
    else:
        net = empty_network(config, low)
        fill(net, {name: _as_float(tensor) for name, tensor in state_dict.items()})
    if low is not None:
        _lower(net, low)
    return net


def empty_network(config: Mapping[str, Any], low: torch.dtype | None) -> nn.Module:
    """The network on the meta device: every shape, no storage, but its causal mask in place."""
    with torch.device("meta"), _Undrawn():
        net = _construct(config, low)
    text: Any = getattr(net, "text", net)
    if text.attn_mask is not None:
        length = text.attn_mask.shape[-1]
        text.attn_mask = torch.full((length, length), float("-inf"), device="cpu").triu_(1)
    return net


class _Undrawn(TorchFunctionMode):
    """Skips fills without storage: on the meta device they go through torch's compiler, whose import takes seconds."""

    FILLS = frozenset(
        ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "triu_")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def fill(net: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Makes the given tensors the network's own. RuntimeError unless they are exactly what it has."""
    given = {name: tensor for name, tensor in state_dict.items() if name not in NOT_WEIGHTS}
    if hasattr(net, "text") and "text_projection" in given:
        from open_clip.model import convert_to_custom_text_state_dict

        given = convert_to_custom_text_state_dict(given)
    wanted = net.state_dict()
    for name in wanted:  # a counter that evaluation never reads, absent from older files
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=torch.long, device="cpu"))
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
    }
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        raise RuntimeError(f"these weights do not fit the architecture; {'; '.join(found)}")
    net.load_state_dict(given, assign=True)
    if isinstance(net.visual, MiniVisual):
        net.visual.to(memory_format=torch.channels_last)


def _construct(config: Mapping[str, Any], low: torch.dtype | None) -> nn.Module:
    vision, text, extras = _parts(config)
    try:
        if "mini" in vision:
            if any(extras.pop(name, False) for name in ("quick_gelu", "custom_text")):
                raise ValueError("a mini model has GELU and no text tower of its own kind")
            side = vision.get("image_size", 224)
            return MiniCLIP(
                config["embed_dim"], vision["mini"], text, input_resolution=side, **extras
            )
        from open_clip import model as open_clip_model

        custom = extras.pop("custom_text", False)
        kind = open_clip_model.CustomTextCLIP if custom else open_clip_model.CLIP
        net = kind(config["embed_dim"], vision, text, cast_dtype=low, **extras)
    except TypeError as error:
        raise ValueError(
            f"the model config has an entry that its network does not know: {error}"
        ) from error
    transformer = getattr(net.visual, "transformer", None)
    blocks = list(getattr(transformer, "resblocks", ()))
    if blocks and all(type(block) is _open_clip_block() for block in blocks):
        net.visual.transformer = Blocks(transformer)
        if Patches.fits(net.visual.conv1):
            Patches.of(net.visual.conv1)
    return cast(nn.Module, net)


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Image config, text config and the other entries, refused by name where unsupported."""
    lacking = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in config]
    if lacking:
        raise ValueError(f"the model config lacks {', '.join(lacking)}; it has {', '.join(config)}")
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    extras = {
        key: value
        for key, value in config.items()
        if key not in ("embed_dim", "vision_cfg", "text_cfg")
    }
    unknown = [key for key in extras if key not in EXTRAS]
    if unknown:
        raise ValueError(
            f"the model config has {', '.join(unknown)}, which makes it no plain CLIP; "
            f"supported beside the two towers: {', '.join(EXTRAS)}"
        )
    if text.get("hf_model_name"):
        raise ValueError(
            f"the text tower is the transformers model {text['hf_model_name']!r}; "
            "only open_clip's own text towers are supported"
        )
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = (
            False  # weights come from the caller, never from the network
        )
    return vision, text, extras


def _open_clip_block() -> type[nn.Module]:
    from open_clip.transformer import ResidualAttentionBlock

    return cast("type[nn.Module]", ResidualAttentionBlock)


def _low(precision: str) -> torch.dtype | None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _lower(net: nn.Module, dtype: torch.dtype) -> None:
    """OpenAI's mixed precision: matrices in `dtype`, normalisation layers and embeddings in fp32."""
    from open_clip.model import convert_weights_to_lp
    from open_clip.transformer import LayerNormFp32

    if not hasattr(net.visual, "trunk"):
        convert_weights_to_lp(net, dtype=dtype)
        if isinstance(net, MiniCLIP):  # open_clip converts this matrix on its own classes alone
            net.text_projection.data = net.text_projection.data.to(dtype)
        return
    # A timm trunk has no mixed precision: open_clip casts such a model whole.
    net.to(dtype=dtype)
    for module in net.modules():
        if isinstance(module, LayerNormFp32):
            module.float()


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
