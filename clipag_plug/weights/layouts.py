"""From whatever names a weight file uses to one flat state dict with OpenAI's names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .registry import BadFileError

log = logging.getLogger("clipag_plug")
# What wraps a model or one of its parts: torch.compile, data parallelism, sharding, accelerate.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_module)\."
)
# Stored by some, part of no model: sizes kept as tensors, masks and positions that are computed.
_COMPUTED = re.compile(
    r"(^|\.)(input_resolution|context_length|vocab_size|n_averaged|attn_mask|position_ids)$"
)
_TOWERS = re.compile(r"(?s)(.*?)(?<![^./])(visual|vision_model)\.")
_TOWER_ALONE = re.compile(
    r"(?s)(.*?)(?<![^./])(class_embedding|attnpool\.positional_embedding|trunk\..*)$"
)
_SECOND = re.compile(
    r"(?:^|[._/])(?:ema|averag|swa|teacher|shadow|momentum|target|original|initial|reference|old)"
)
_NO_MODEL = re.compile(
    r"(?:^|[._/])(?:optim|exp_avg|sched|grad|scaler|loss|criterion|metric)", re.IGNORECASE
)
STOPPED_RUN = {"weights", "optimizer"}
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


def choose(path: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the one CLIP in a file, under the names they have inside the model.

    The model is found by its image tower, wherever it lies. Raises BadFileError where there is none, or several.
    """
    if {re.split("[./]", name)[0] for name in found} >= STOPPED_RUN:
        # The moving average is the result of such a run.
        parts = ("weights.", "weights/", "average.", "average/")
        found = {n.removeprefix(p): v for p in parts for n, v in found.items() if n.startswith(p)}
    plain: dict[str, Any] = {}
    for name, item in found.items():
        short = _WRAPPERS.sub("", name)
        if plain.setdefault(short, item) is not item:
            raise BadFileError(path, f"it holds two tensors for {short!r}; save one model alone")
    names = [name for name in plain if not _COMPUTED.search(name)]
    if not names:
        raise BadFileError(path, "it holds no tensors under any name that a checkpoint uses")
    whole = _place(path, names, _TOWERS)
    prefix = _place(path, names, _TOWER_ALONE) if whole is None else whole
    if prefix is None:
        why = f"it holds no image tower of a CLIP; its first tensor is {names[0]!r}"
        raise BadFileError(path, why)
    chosen = {name[len(prefix) :]: plain[name] for name in names if name.startswith(prefix)}
    beside = [name for name in chosen if _NO_MODEL.match(name) or _SECOND.match(name)]
    chosen = {name: item for name, item in chosen.items() if name not in beside}
    left = len(found) - len(chosen)
    if left:
        log.info("%s: %d other tensors beside the model %r are left out", path, left, prefix)
    return (
        chosen if whole is not None else {f"visual.{name}": item for name, item in chosen.items()}
    )


def _place(path: Any, names: list[str], tower: re.Pattern[str]) -> str | None:
    """The prefix of the one model, a moving average or a teacher only where there is nothing else."""
    matches = (tower.match(name) for name in names)
    places = {match[1] for match in matches if match}
    places = {place for place in places if not _NO_MODEL.search(place)}
    first = {place for place in places if not _SECOND.search(place)} or places
    if len(first) > 1:
        raise BadFileError(
            path, f"it holds {len(first)} models ({', '.join(sorted(first)[:4])}); save one alone"
        )
    return next(iter(first), None)


def unify(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names for those of transformers or of open_clip's separate text tower; floats become fp32."""
    state = {re.sub(r"^visual\.vision_model\.", "vision_model.", n): v for n, v in tensors.items()}
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        state = from_transformers(state)
    if any(name.startswith("text.token_embedding.") for name in state):
        state = {name.removeprefix("text."): value for name, value in state.items()}
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
        result[new] = value.T if new in _TRANSPOSED and value.ndim == 2 else value
    for name, parts in joined.items():
        if set(parts) == set("qkv"):
            result[name] = torch.cat([parts[letter] for letter in "qkv"])
        else:
            result.update({f"{name}.{letter}": part for letter, part in parts.items()})
    return result


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_transformers`, for a ViT with OpenAI's layout."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _renamed(name, tuple((new, old) for old, new in _TRANSFORMERS))
        stem, block, rest = new.partition(".encoder.layers.")
        index, _, rest = rest.partition(".")
        at = f"{stem}.encoder.layers.{index}."
        if block and rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[f"{at}self_attn.{letter}_proj.{kind}"] = part
            continue
        if block:
            new = at + _renamed(rest, tuple((new, old) for old, new in _BLOCK))
        result[new] = value.T if name in _TRANSPOSED else value
    return result


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name
