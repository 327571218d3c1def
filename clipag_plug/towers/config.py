"""Towers of a model config: by this package's networks where they know every entry of it, else by open_clip's."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .resnet import ModifiedResNet
from .vit import LayerNorm, QuickGELU, Transformer, VisionTransformer

# Image towers of this package beside CLIP's own: an entry of `vision_cfg` with that name holds the options of
# the class, which is made as Class(embed_dim, **options, input_resolution=image_size).
TOWERS = {"mini": "mini.MiniVisual", "lite": "lite.LiteVisual"}
EXTRAS = ("custom_text", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")  # fmt: skip
# What our own networks know of open_clip's two configs; with any other entry open_clip builds that tower.
PLAIN_VISION = {
    *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"),
    *("pool_type", "no_ln_pre", "final_ln_after_pool"),
}
PLAIN_TEXT = {
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
    *("no_causal_mask", "pool_type", "hf_tokenizer_name", "tokenizer_kwargs"),
}
OPENAI_PARTS = (
    *("visual", "transformer", "token_embedding", "positional_embedding", "ln_final"),
    *("text_projection", "logit_scale"),
)


class Undrawn(TorchFunctionMode):
    """Skips fills without storage: on the meta device they go through torch's compiler, whose import takes seconds."""

    FILLS = frozenset(
        ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "triu_")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in self.FILLS and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


def towers_of(
    config: Mapping[str, Any], low: torch.dtype | None
) -> tuple[nn.Module, Any, nn.Parameter, nn.Parameter | None]:
    """Image tower, text tower, logit scale and bias of a config, refused by name where unsupported."""
    lacking = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in config]
    if lacking:
        raise ValueError(f"the model config lacks {', '.join(lacking)}; it has {', '.join(config)}")
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    known = ("embed_dim", "vision_cfg", "text_cfg", *EXTRAS)
    unknown = [key for key in config if key not in known]
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
    if set(TOWERS) & set(vision) and (config.get("quick_gelu") or config.get("custom_text")):
        raise ValueError("a bundled kind of model has GELU and no text tower of its own kind")
    act = QuickGELU if config.get("quick_gelu") else nn.GELU
    try:
        visual = _image_tower(config["embed_dim"], vision, act, low)
        tower = _text_tower(config["embed_dim"], text, act, low, bool(config.get("custom_text")))
    except TypeError as error:
        raise ValueError(
            f"the model config has an entry that its network does not know: {error}"
        ) from error
    shape = [1] if config.get("nonscalar_logit_scale") else []
    scale = torch.full(shape, float(config.get("init_logit_scale", math.log(1 / 0.07))))
    bias = config.get("init_logit_bias")
    logit_bias = None if bias is None else nn.Parameter(torch.full(shape, float(bias)))
    return visual, tower, nn.Parameter(scale), logit_bias


def _image_tower(embed_dim: int, vision: dict[str, Any], act: Any, low: Any) -> nn.Module:
    side = vision.get("image_size", 224)
    for kind, path in TOWERS.items():
        if kind in vision:
            module, _, name = path.rpartition(".")
            tower = getattr(importlib.import_module(f"...{module}", __name__), name)
            return cast(nn.Module, tower(embed_dim, **vision[kind], input_resolution=side))
    given = {name for name, value in vision.items() if value is not None}
    pooling, width = vision.get("pool_type", "tok"), vision.get("width", 768)
    if given <= PLAIN_VISION and isinstance(side, int) and pooling in ("tok", "avg"):
        layers, head_width = vision.get("layers", 12), vision.get("head_width", 64)
        if not isinstance(layers, int):
            return ModifiedResNet(layers, embed_dim, width * 32 // head_width, side, width)
        names = ("pool_type", "no_ln_pre", "final_ln_after_pool", "mlp_ratio")
        options = {name: vision[name] for name in names if name in vision}
        sizes = (side, vision.get("patch_size", 16), width, layers, width // head_width, embed_dim)
        return VisionTransformer(*sizes, act=act, **options)
    from open_clip.model import _build_vision_tower

    if vision.get("timm_model_name"):  # weights come from the caller, never from the network
        vision["timm_model_pretrained"] = False
    return cast(nn.Module, _build_vision_tower(embed_dim, vision, act is QuickGELU, low))


def _text_tower(embed_dim: int, text: dict[str, Any], act: Any, low: Any, custom: bool) -> Any:
    """A module where `custom`, else the parts of one."""
    if custom or not set(text) <= PLAIN_TEXT:
        from open_clip.model import _build_text_tower

        tower = _build_text_tower(embed_dim, text, act is QuickGELU, low)
        return tower if custom else SimpleNamespace(**tower.__dict__, **tower._modules,
            **tower._parameters, **tower._buffers)  # fmt: skip
    width, layers, heads = text.get("width", 512), text.get("layers", 12), text.get("heads", 8)
    length, size = text.get("context_length", 77), text.get("vocab_size", 49408)
    mask = None if text.get("no_causal_mask") else causal(length)
    tower = SimpleNamespace(
        transformer=Transformer(width, layers, heads, mask, act=act, mlp_ratio=text.get("mlp_ratio", 4.0)),
        token_embedding=nn.Embedding(size, width),
        positional_embedding=nn.Parameter(torch.empty(length, width)),
        ln_final=LayerNorm(width),
        text_projection=nn.Parameter(torch.empty(width, embed_dim)),
        attn_mask=None,  # its blocks hold it
        pool_type=text.get("pool_type", "argmax"),
        eos_id=2,
        context_length=length,
        vocab_size=size,
    )  # fmt: skip
    draw_texts(tower)
    return tower


def openai_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's model config of a state dict in OpenAI's layout; heads leave no trace and are OpenAI's, 64 wide."""

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    absent = [name for name in (*OPENAI_PARTS[3:4], "text_projection") if name not in state]
    if absent or not any(name.startswith("visual.") for name in state):
        raise RuntimeError(
            f"this is no state dict of OpenAI's clip ({', '.join(absent) or 'visual.*'} is missing); "
            "clipag_plug.load(path) reads the other layouts"
        )
    kernel = state["visual.conv1.weight"]
    if "visual.proj" in state:
        patch = kernel.shape[-1]
        side = math.isqrt(len(state["visual.positional_embedding"]) - 1) * patch
        vision: dict[str, Any] = {"layers": count("visual.transformer.resblocks.")}
        vision["patch_size"] = patch
        width = kernel.shape[0]
    else:
        vision = {"layers": [count(f"visual.layer{i}.") for i in (1, 2, 3, 4)]}
        width = state["visual.layer1.0.conv1.weight"].shape[0]
        side = math.isqrt(len(state["visual.attnpool.positional_embedding"]) - 1) * 32
    length, text_width = state["positional_embedding"].shape
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {**vision, "width": width, "image_size": side},
        "text_cfg": {
            "context_length": length,
            "vocab_size": len(state["token_embedding.weight"]),
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": count("transformer.resblocks."),
        },
    }


def draw_texts(part: Any) -> None:
    """Draws the weights of a text tower, or of a model with its parts, as in Radford et al. (2021)."""
    nn.init.normal_(part.token_embedding.weight, std=0.02)
    nn.init.normal_(part.positional_embedding, std=0.01)
    width, layers = part.transformer.width, part.transformer.layers
    spread = {
        "attn.in_proj_weight": width**-0.5,
        "attn.out_proj.weight": (2 * layers * width) ** -0.5,
        "mlp.c_fc.weight": (2 * width) ** -0.5,
        "mlp.c_proj.weight": (2 * layers * width) ** -0.5,
    }
    for block in part.transformer.resblocks:
        for name, std in spread.items():
            nn.init.normal_(block.get_parameter(name), std=std)
    if part.text_projection is not None:
        nn.init.normal_(part.text_projection, std=width**-0.5)


def causal(length: int) -> Tensor:
    return torch.full((length, length), -math.inf, device="cpu").triu_(1)
