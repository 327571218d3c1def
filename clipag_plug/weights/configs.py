"""Model configs: open_clip's files, transformers' files, and the named architecture that fits some tensors."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import open_clip_folders
from .registry import PREPROCESSING, BadFileError

SHOWN = 6
_TEXT_PARTS = re.compile(
    r"(token_embedding|positional_embedding|transformer|ln_final|text_projection|cls_emb)\b"
)
DEEPEST, LARGEST, LONGEST_FILE = 512, 2**24, 2**24
# Keys of older or foreign configs that concern the tokenizer's files and no tensor.
_TOKENIZER_FILES = ("vocab_path", "bpe_path")
_NOT_BUILT = ("custom_text", "preprocess_cfg")


@functools.cache
def _files() -> dict[str, Path]:
    """open_clip's config files by name, found without importing open_clip."""
    for folder in open_clip_folders():
        if files := {file.stem: file for file in sorted(folder.glob("model_configs/*.json"))}:
            return files
    raise ImportError("open_clip is not installed; pip install open_clip_torch")


def named(arch: str) -> dict[str, Any]:
    """A config by open_clip's name (`ViT-B-32` or `ViT-B/32`), or from a JSON file of one of three kinds: open_clip's,
    transformers', or one with a "config". ValueError if there is none."""
    if Path(arch).is_file():
        value = read_json(Path(arch))
        read = from_transformers if "model_type" in value else from_open_clip
        return read(arch, value)
    name = arch.replace("/", "-")
    if name not in _files():
        like = [known for known in _files() if known.startswith(name.split("-")[0])][:6]
        raise ValueError(
            f"open_clip has no architecture {arch!r} and there is no such file; some it has: "
            f"{', '.join(like or list(_files())[:6])}"
        )
    return read_json(_files()[name])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Raises BadFileError for anything else."""
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadFileError(path, "it holds no table")
    return value


def from_open_clip(path: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """The model config in an `open_clip_config.json`, or in the JSON file beside our own weights."""
    config = value.get("model_cfg") or value.get("config") or value
    kinds = (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    if not isinstance(config, dict) or not all(isinstance(config.get(n), k) for n, k in kinds):
        raise BadFileError(
            path, "it is no open_clip config: embed_dim, vision_cfg and text_cfg belong in it"
        )
    text = {n: v for n, v in config["text_cfg"].items() if n not in _TOKENIZER_FILES}
    config = {**config, "text_cfg": text}
    _bound(path, config)
    if "/" in str(config["vision_cfg"].get("timm_model_name", "")):
        raise BadFileError(path, "its timm_model_name is an address; a name of timm belongs there")
    if (text.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise BadFileError(path, "its tokenizer asks to run code from the network")
    return config


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether its image tower is one of this package's own, whose constructor checks the tensors."""
    return bool({"mini", "lite"} & config["vision_cfg"].keys())


def _bound(path: Any, config: Any) -> None:
    """Refuses numbers and nests that would take for ever to build."""
    layers, waiting = 0, [(0, "", config)]
    while waiting:
        depth, key, value = waiting.pop()
        number = isinstance(value, int | float)
        if number and isinstance(value, int) and re.search("layer|depth|block", key):
            layers += abs(value)
        large = number and not (abs(value) <= LARGEST and math.isfinite(value))
        if depth > 8 or layers > DEEPEST or large:
            raise BadFileError(path, f"its config has an absurd {key} ({str(value)[:40]})")
        if isinstance(value, dict):
            waiting += [(depth + 1, str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, key, item) for item in value]


_RESAMPLE = {2: "bilinear", 3: "bicubic", None: None}  # Pillow's numbers
_VISION = {
    "image_size": ("image_size", 224),
    "layers": ("num_hidden_layers", 12),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "mlp": ("intermediate_size", 3072),
    "patch_size": ("patch_size", 32),
}
_TEXT = {
    "context_length": ("max_position_embeddings", 77),
    "vocab_size": ("vocab_size", 49408),
    "width": ("hidden_size", 512),
    "heads": ("num_attention_heads", 8),
    "layers": ("num_hidden_layers", 12),
    "mlp": ("intermediate_size", 2048),
}


def from_transformers(path: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's config for the `config.json` of a CLIPModel; of a vision model alone there is no text_cfg."""
    kind = value.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise BadFileError(
            path, f"it describes a {kind!r}; 'clip' (CLIPModel) or 'clip_vision_model' can be read"
        )
    vision = value if kind == "clip_vision_model" else value.get("vision_config") or {}
    text = None if kind == "clip_vision_model" else value.get("text_config") or {}
    towers = [tower for tower in (vision, text) if tower is not None]
    if not all(isinstance(tower, dict) for tower in towers):
        raise BadFileError(path, "its vision_config and text_config are no tables")
    acts = {tower.get("hidden_act", "quick_gelu") for tower in towers}
    if acts not in ({"gelu"}, {"quick_gelu"}):
        raise BadFileError(
            path, f"its activations are {acts}; 'gelu' or 'quick_gelu' in both towers can be read"
        )
    if any(tower.get("layer_norm_eps", 1e-5) != 1e-5 for tower in towers):
        raise BadFileError(path, "its layer_norm_eps is not CLIP's 1e-05")
    if text and text.get("eos_token_id", 2) not in (2, 49407, text.get("vocab_size", 49408) - 1):
        raise BadFileError(path, "its eos_token_id is not that of CLIP's vocabulary")
    config: dict[str, Any] = {
        "embed_dim": value.get("projection_dim", 512),
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {name: vision.get(*theirs) for name, theirs in _VISION.items()},
        "text_cfg": {name: (text or {}).get(*theirs) for name, theirs in _TEXT.items()},
    }
    _bound(path, config)
    for tower in (config["vision_cfg"], config["text_cfg"]):
        if not all(isinstance(number, int) and number > 0 for number in tower.values()):
            raise BadFileError(path, f"its sizes are no positive numbers ({tower})")
        tower["mlp_ratio"] = tower.pop("mlp") / tower["width"]
    tower = config["vision_cfg"]
    tower["head_width"] = tower["width"] // tower.pop("heads")
    return config if text is not None else {**config, "text_cfg": None}


def to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIPModel `config.json`. Raises ValueError for what transformers' CLIPModel cannot express."""
    vision = {"head_width": 64, "mlp_ratio": 4.0, **config["vision_cfg"]}
    text = {"mlp_ratio": 4.0, **config["text_cfg"]}
    ours = ({*_VISION, "head_width", "mlp_ratio"}, {*_TEXT, "mlp_ratio"})
    odd = (set(vision) - ours[0]) | (set(text) - ours[1])
    if odd or config.get("custom_text") or not isinstance(vision.get("layers"), int):
        raise ValueError(
            "transformers' CLIPModel is a plain ViT and text transformer; this model has "
            f"{', '.join(sorted(odd)) or 'another kind of tower'}; export it with --format open_clip"
        )
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    common = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": config["embed_dim"]}

    def tower(table: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        sizes = {theirs: values.get(name, default) for name, (theirs, default) in table.items()}
        sizes["intermediate_size"] = int(sizes["hidden_size"] * values["mlp_ratio"])
        return {**common, **sizes}

    vision["heads"] = vision.get("width", 768) // vision["head_width"]
    vision.setdefault("patch_size", 16)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "vision_config": {**tower(_VISION, vision), "model_type": "clip_vision_model"},
        # CLIPModel takes the features at the highest token id when eos_token_id is 2, and OpenAI's
        # models do the same: it is not the id of the end-of-text token.
        "text_config": tower(_TEXT, text)
        | {"model_type": "clip_text_model", "bos_token_id": 49406, "eos_token_id": 2, "pad_token_id": 1},
    }  # fmt: skip


def preprocessing(path: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """Mean, std, interpolation and resize_mode as far as open_clip's `preprocess_cfg`, a card of ours or transformers'
    `preprocessor_config.json` says them. BadFileError for what this package's transform cannot do."""
    found: dict[str, Any] = {name: value.get(name) for name in PREPROCESSING}
    if "image_mean" in value or "do_normalize" in value:
        size = value.get("size") or {}
        squashed = isinstance(size, dict) and "height" in size and not value.get("do_center_crop")
        plain = value.get("do_normalize", True)
        found = {
            "mean": value.get("image_mean") if plain else [0.0] * 3,
            "std": value.get("image_std") if plain else [1.0] * 3,
            "interpolation": _RESAMPLE.get(value.get("resample"), "?"),
            "resize_mode": "squash" if squashed else "shortest",
        }
        factor = value.get("rescale_factor", 1 / 255) * 255
        if not value.get("do_rescale", True) or abs(factor - 1) > 1e-3:
            why = "its pixels are not scaled to [0, 1] before they are normalised"
            raise BadFileError(path, why)
    known = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "squash")}
    for name, choices in known.items():
        if found[name] not in (None, *choices):
            why = f"its {name} is {found[name]!r}; {' or '.join(choices)} can be done"
            raise BadFileError(path, why)
    found = {name: item for name, item in found.items() if item is not None}
    for name in sorted({"mean", "std"} & found.keys()):
        numbers = found[name]
        fits = isinstance(numbers, list | tuple) and len(numbers) == 3
        if not fits or not all(isinstance(n, int | float) and abs(n) < 1e4 for n in numbers):
            why = f"its {name} is {str(numbers)[:60]}; three numbers belong there"
            raise BadFileError(path, why)
        if name == "std" and min(numbers) <= 0:
            raise BadFileError(path, f"its std is {numbers}; it must be positive")
        found[name] = tuple(map(float, numbers))
    return found


def published(arch: str) -> dict[str, Any]:
    """The preprocessing of open_clip's own weights of an architecture, where all agree; SigLIP's, for one, is another
    than CLIP's."""
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    cfgs = [get_pretrained_cfg(arch, tag) for tag in list_pretrained_tags_by_model(arch)]
    found = [preprocessing(arch, cfg) for cfg in cfgs]
    return found[0] if found and all(one == found[0] for one in found) else {}


def infer(path: Any, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and config of open_clip's model whose tensors are exactly these, without `quick_gelu`: heads and activations
    leave no trace in shapes, so nothing else is guessed. BadFileError where there is none."""
    measured = _sizes(state)
    for name in _files():
        config = named(name)
        stated = {f"text.{key}": value for key, value in (_USUAL_TEXT | config["text_cfg"]).items()}
        for key, value in (_USUAL_VISION | config["vision_cfg"]).items():
            stated[f"vision.{key}"] = value
        odd = "text.hf_model_name" in stated or "multimodal_cfg" in config
        odd = odd or name.endswith("-quickgelu")
        if odd or any(stated.get(key, value) != value for key, value in measured.items()):
            continue
        config.pop("quick_gelu", None)
        with contextlib.suppress(ValueError):
            fit(path, state, config)
            return name, config
    raise BadFileError(
        path,
        "its architecture cannot be told from its tensors: no config of open_clip has the same, and heads "
        f"leave no trace in them; state it, as in '{path}#gelu,arch=ViT-B-32' or '{path}#gelu,arch=CONFIG.json'",
    )


_USUAL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12}
_USUAL_VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
_SIDES = {
    "text.context_length": ("positional_embedding", 0),
    "text.vocab_size": ("token_embedding.weight", 0),
    "text.width": ("token_embedding.weight", 1),
    "vision.width": ("visual.class_embedding", 0),
    "vision.patch_size": ("visual.conv1.weight", 2),
}


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What shapes say of a config, as far as they say it: for speed alone, `fit` decides."""

    def depth(prefix: str) -> int:
        return len({n.removeprefix(prefix).split(".")[0] for n in state if n.startswith(prefix)})

    sizes: dict[str, Any] = {
        key: state[name].shape[axis]
        for key, (name, axis) in _SIDES.items()
        if name in state and state[name].ndim > axis
    }
    if "visual.class_embedding" not in state:
        sizes.pop("vision.patch_size", None)
    sizes["text.layers"] = depth("transformer.resblocks.")
    stages = [depth(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
    sizes["vision.layers"] = stages if stages[0] else depth("visual.transformer.resblocks.")
    return {name: size for name, size in sizes.items() if size}


def fit(path: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under the names of open_clip's model with this config. BadFileError that names every difference."""
    expected = shapes(path, config)
    state = separate(state) if config.get("custom_text") else dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in expected and state[name].numel() == 1:
            state[name] = state[name].reshape(expected[name])

    def fits(name: str, shape: tuple[int, ...]) -> bool:
        kind = state[name].is_floating_point() or name.endswith("num_batches_tracked")
        return kind and tuple(state[name].shape) == shape

    # A counter that evaluation never reads, absent from older files.
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {tuple(state[name].shape)} {state[name].dtype}, not {shape}"
        for name, shape in expected.items()
        if name in state and not fits(name, shape)
    ]
    extra = [name for name in state if name not in expected]
    problems = []
    for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", wrong)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    if problems:
        why = f"its tensors are not those of its architecture ({'; '.join(problems)})"
        raise BadFileError(path, why)
    return state


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of what `unify` does to a text tower that is a module of its own."""
    return {f"text.{name}" if _TEXT_PARTS.match(name) else name: v for name, v in state.items()}


def shapes(path: Any, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's model with this config; nothing is allocated."""
    from open_clip import model as open_clip

    keywords = {name: value for name, value in config.items() if name not in _NOT_BUILT}
    keywords["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    if config["text_cfg"].get("hf_model_name"):
        raise BadFileError(
            path, "its text tower is a model of transformers; open_clip's own can be read"
        )
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    try:
        with torch.device("meta"):
            model = kind(**keywords)
    except Exception as error:  # whatever the numbers of a foreign config lead to
        raise BadFileError(
            path, f"open_clip builds no model of its config ({type(error).__name__}: {error})"
        ) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
