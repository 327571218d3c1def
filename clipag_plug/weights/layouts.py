"""From whatever a weight file holds to one flat state dict with OpenAI's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import BadFileError

# Where the weights lie in files that hold more than weights, most specific first.
_WRAPPERS = ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model", "weights")
# Stored by some, part of no model: sizes kept as tensors, masks and positions that are computed.
_IGNORED = re.compile(r"(^|\.)(input_resolution|context_length|vocab_size|attn_mask|position_ids)$")
_TRANSFORMERS = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("logit_scale", "logit_scale"),
)
_BLOCK = (
    ("self_attn.out_proj.", "attn.out_proj."),
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)
_QKV = re.compile(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)$")
_TRANSPOSED = ("text_projection", "visual.proj")


def flatten(path: Any, value: Any, is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """Dotted names and tensors of a weight file: unwrapped, prefixes and computed tensors dropped.

    value: what the file describes, nested tables for TorchScript. Raises BadFileError when it
    holds no tensors. An image tower stored alone gets the prefix `visual.`.
    """
    alone = False
    while isinstance(value, dict):
        wrapper = next((name for name in _WRAPPERS if isinstance(value.get(name), dict)), None)
        if wrapper is None:
            break
        alone = alone or wrapper == "vision_encoder_state_dict"
        value = value[wrapper]
    if not isinstance(value, dict):
        raise BadFileError(
            path, f"it holds a {type(value).__name__} where a table of tensors belongs"
        )
    found: dict[str, Any] = {}
    _collect("", value, found, is_tensor)
    names = [name for name in found if not _IGNORED.search(name)]
    if not names:
        raise BadFileError(path, "it holds no tensors under any name that a checkpoint uses")
    for prefix in ("module.", "_orig_mod.", "module.", "clip.", "model."):
        if all(name.startswith(prefix) for name in names):
            found = {name.removeprefix(prefix): found[name] for name in names}
            names = list(found)
    found = {name: found[name] for name in names}
    if alone or _is_image_tower(names):
        found = {
            name if name.startswith("visual.") else f"visual.{name}": item
            for name, item in found.items()
        }
    return found


def _is_image_tower(names: list[str]) -> bool:
    roots = {name.split(".")[0] for name in names}
    vit = {"class_embedding", "conv1", "transformer"} <= roots and "token_embedding" not in roots
    resnet = {"conv1", "layer1", "attnpool"} <= roots
    timm = roots <= {"trunk", "head"}
    return (vit or resnet or timm) and "visual" not in roots


def _collect(
    prefix: str, value: dict[Any, Any], found: dict[str, Any], is_tensor: Callable[[Any], bool]
) -> None:
    for key, item in value.items():
        if is_tensor(item):
            found[f"{prefix}{key}"] = item
        elif isinstance(item, dict) and prefix.count(".") < 12:
            _collect(f"{prefix}{key}.", item, found, is_tensor)


def unify(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names for transformers' or open_clip's custom-text names; numbers become fp32."""
    state = dict(tensors)
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        state = from_transformers(state)
    if any(name.startswith("visual.vision_model.") for name in state):
        state = from_transformers(
            {name.removeprefix("visual."): value for name, value in state.items()}
        )
    if "text.token_embedding.weight" in state:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(())
    # Contiguous too: a transposed matrix gives the same product with other rounding.
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIPModel names to OpenAI's: q, k and v joined, projections transposed.

    A name without a counterpart is kept, so that the check of the whole names it.
    """
    result: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        new = _renamed(name, _TRANSFORMERS)
        match = _QKV.match(new)
        if match:
            joined.setdefault(f"{match[1]}attn.in_proj_{match[3]}", {})[match[2]] = value
            continue
        head, block, rest = new.partition(".resblocks.")
        if block:
            index, _, rest = rest.partition(".")
            new = f"{head}.resblocks.{index}.{_renamed(rest, _BLOCK)}"
        result[new] = value.T if new in _TRANSPOSED else value
    for name, parts in joined.items():
        if set(parts) == set("qkv"):
            result[name] = torch.cat([parts[letter] for letter in "qkv"])
        else:
            result.update({f"{name}.{letter}": part for letter, part in parts.items()})
    return result


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_transformers`, for a ViT with OpenAI's layout."""
    back = tuple((new, old) for old, new in _TRANSFORMERS)
    block_back = tuple((new, old) for old, new in _BLOCK)
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _renamed(name, back)
        stem, block, rest = new.partition(".encoder.layers.")
        if block:
            index, _, rest = rest.partition(".")
            at = f"{stem}.encoder.layers.{index}."
            if rest.startswith("attn.in_proj_"):
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    result[f"{at}self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}"] = (
                        part
                    )
                continue
            new = at + _renamed(rest, block_back)
        result[new] = value.T if name in _TRANSPOSED else value
    return {name: value.contiguous() for name, value in result.items()}


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name
