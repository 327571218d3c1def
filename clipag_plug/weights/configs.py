"""Model configs: open_clip's files, transformers' files, and what the shapes of the tensors say."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import BadFileError

# Keys of older or foreign configs that concern the tokenizer's files and no tensor.
_HARMLESS = ("vocab_path", "bpe_path")


@functools.cache
def _files() -> dict[str, Path]:
    """open_clip's config files by name, found without importing open_clip."""
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ImportError("open_clip is not installed; pip install open_clip_torch")
    return {file.stem: file for file in sorted(Path(folders[0], "model_configs").glob("*.json"))}


def named(arch: str) -> dict[str, Any]:
    """open_clip's config of that name (`ViT-B-32` or `ViT-B/32`). Raises ValueError if there is none."""
    name = arch.replace("/", "-")
    if name not in _files():
        like = [known for known in _files() if known.startswith(name.split("-")[0])][:6]
        raise ValueError(
            f"open_clip has no architecture {arch!r}; some it has: {', '.join(like or list(_files())[:6])}"
        )
    return json.loads(_files()[name].read_text(encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Raises BadFileError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadFileError(path, "it holds no table")
    return value


def from_open_clip(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model config and preprocessing of an `open_clip_config.json`."""
    value = read_json(path)
    config = value.get("model_cfg", value)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind)
        for name, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    ):
        raise BadFileError(
            path, "it is no open_clip config: embed_dim, vision_cfg and text_cfg belong in it"
        )
    config["text_cfg"] = {
        key: item for key, item in config["text_cfg"].items() if key not in _HARMLESS
    }
    return config, dict(value.get("preprocess_cfg") or {})


def from_transformers(path: Path) -> dict[str, Any]:
    """open_clip's config for the `config.json` of a transformers CLIPModel."""
    value = read_json(path)
    if value.get("model_type") != "clip":
        raise BadFileError(
            path,
            f"it describes a {value.get('model_type')!r}; a 'clip' model (CLIPModel) can be read",
        )
    vision = {**_VISION_DEFAULTS, **(value.get("vision_config") or {})}
    text = {**_TEXT_DEFAULTS, **(value.get("text_config") or {})}
    acts = {vision["hidden_act"], text["hidden_act"]}
    if len(acts) != 1 or not acts <= {"gelu", "quick_gelu"}:
        raise BadFileError(
            path,
            f"its activations are {sorted(acts)}; 'gelu' or 'quick_gelu' in both towers can be read",
        )
    for part in (vision, text):
        if part["layer_norm_eps"] != 1e-5:
            raise BadFileError(
                path, f"layer_norm_eps is {part['layer_norm_eps']}; CLIP's 1e-05 can be read"
            )
    return {
        "embed_dim": value.get("projection_dim", 512),
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }


def to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIPModel `config.json`. Raises ValueError for what transformers' CLIPModel cannot express."""
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    plain_vision = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"}
    plain_text = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    odd = (set(vision) - plain_vision) | (set(text) - plain_text)
    if odd or not isinstance(vision.get("layers"), int):
        what = ", ".join(sorted(odd)) or "a ResNet"
        raise ValueError(
            f"transformers' CLIPModel is a plain ViT and text transformer; this model has {what}; "
            "export it with --format open_clip"
        )
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    width, text_width = vision.get("width", 768), text.get("width", 512)
    common = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": config["embed_dim"]}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "vision_config": {
            **common,
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
            "num_attention_heads": width // vision.get("head_width", 64),
            "num_hidden_layers": vision["layers"],
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
        },
        "text_config": {
            **common,
            "model_type": "clip_text_model",
            "hidden_size": text_width,
            "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
            "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12),
            "max_position_embeddings": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "bos_token_id": 49406,
            # CLIPModel takes the features at the highest token id when this is 2, and OpenAI's
            # models do the same: it is not the id of the end-of-text token.
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
    }


_VISION_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}


def from_shapes(path: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config that the shapes imply, for files that carry none; the activation is not in it.

    Heads leave no trace in the shapes: those of the open_clip config with the same shapes are
    taken, or else one for every 64 channels, as OpenAI does. Raises BadFileError where the tensors
    are no ViT with OpenAI's layout.
    """

    def side(name: str, axis: int) -> int:
        if name not in state or state[name].ndim <= axis:
            raise BadFileError(
                path,
                f"its architecture cannot be told from its tensors ({name!r} is missing or has another rank); "
                f"state it, for example '{path}#gelu,arch=ViT-B-32'",
            )
        return state[name].shape[axis]

    grid = round((side("visual.positional_embedding", 0) - 1) ** 0.5)
    config: dict[str, Any] = {
        "embed_dim": side("visual.proj", 1),
        "vision_cfg": {
            "image_size": grid * side("visual.conv1.weight", 2),
            "layers": _depth(state, "visual."),
            "width": side("visual.conv1.weight", 0),
            "patch_size": side("visual.conv1.weight", 2),
        },
    }
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    if "token_embedding.weight" in state:
        width = side("token_embedding.weight", 1)
        text = {
            "context_length": side("positional_embedding", 0),
            "vocab_size": side("token_embedding.weight", 0),
            "width": width,
            "heads": max(1, width // 64),
            "layers": _depth(state, ""),
        }
    config["text_cfg"] = text
    return _known(config, "token_embedding.weight" in state)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    found = (
        re.match(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.", name) for name in state
    )
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _known(config: dict[str, Any], with_text: bool) -> dict[str, Any]:
    def sizes(one: dict[str, Any]) -> tuple[Any, ...]:
        vision, text = one["vision_cfg"], one["text_cfg"]
        seen = tuple(vision.get(name) for name in ("image_size", "layers", "width", "patch_size"))
        if not with_text:
            return one["embed_dim"], *seen
        return (
            one["embed_dim"],
            *seen,
            *(text.get(name) for name in ("context_length", "vocab_size", "width", "layers")),
        )

    plain = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    for name in _files():
        known = named(name)
        if (
            set(known["vision_cfg"]) <= plain
            and not known.get("custom_text")
            and sizes(known) == sizes(config)
        ):
            known.pop("quick_gelu", None)
            return deepcopy(known)
    return config
