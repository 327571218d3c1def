"""Which model a program gets for the name it asks for: through `clip` or a copy of it, open_clip, transformers."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.util
import inspect
import os
import tempfile
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .. import clip
from ..clip import ROBUST_COUNTERPART
from ..model import CLIP, as_open_clip
from .imports import definitions
from .patching import Patch, current

PRECISIONS = {"fp16": "fp16", "pure_fp16": "fp16", "bf16": "bf16", "pure_bf16": "bf16"}
FACTORIES = (
    *("create_model", "create_model_and_transforms", "create_model_from_pretrained"),
    *("load_openai_model", "get_tokenizer"),
)

KEPT = (  # options of a factory that a ready model has an answer of its own to
    *("force_quick_gelu", "force_custom_text", "force_patch_dropout", "force_image_size"),
    *("force_context_length", "force_preprocess_cfg", "image_mean", "image_std"),
)


def contents(patch: Patch, kind: str, copy: Path | None) -> dict[str, Any]:
    """Names and values of a module of OpenAI's package: "clip", "model" or "simple_tokenizer".

    copy: the program's own file in its place; where its `load` differs, the answer takes its form.
    """
    module = importlib.import_module(f"..{kind}", __package__)
    names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    names["__file__"] = module.__file__
    if kind == "simple_tokenizer":
        return names
    names["build_model"] = build_model
    if kind == "model":  # with what `from clip.model import *` brings besides
        typed = {"Tuple": tuple, "Union": typing.Union, "OrderedDict": collections.OrderedDict}
        return names | typed | {"np": numpy}
    answer = _in_the_form_of(patch, copy) or load
    patch.ours += [load, answer, tokenize, available_models, build_model]
    ours = {"load": answer, "tokenize": tokenize, "available_models": available_models}
    return names | ours | {"__all__": list(ours), "__getattr__": _private}


def _private(name: str) -> Any:
    """A private name of `clip.clip`; the models of `_MODELS` are those that the patch gives."""
    patch = current()
    if name == "_MODELS" and patch is not None:
        return {model: f"clipag_plug:{_key(patch, model)}" for model in available_models()}
    return clip.__getattr__(name)


def build_model(state_dict: Any, *more: Any, **named: Any) -> CLIP:
    """OpenAI's `build_model`. TypeError for what only a changed copy of `clip` builds its changed model by."""
    if more or named:
        raise TypeError(
            f"the program's own build_model takes {len(more) + len(named)} arguments beside the weights: it changes "
            "the network inside, and the models of this package have no such changes"
        )
    model, patch = clip.build_model(state_dict), current()
    if patch is not None:
        what = f"build_model gives {model.name!r}"
        patch.answered("model", what, model.visual.output_dim)
    return model


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, Any]:
    """OpenAI's `load`, under the patch that is on; behind it, this package's own."""
    patch = current()
    if patch is None:
        return clip.load(name, device, jit, download_root)
    key = _key(patch, os.fspath(name))
    model, transform = clip.load(key, device, jit, download_root)
    if patch.attention:
        keep_attention(model)
    for copy in patch.copies:
        own = own_module(copy.with_name("model.py"))
        borrow(model, own.get("CLIP"))
        borrow(model.visual, own.get(type(model.visual).__name__))
    patch.answered("model", f"clip.load({name!r}) gives {model.name!r}", model.visual.output_dim)
    return model, transform


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
    """OpenAI's `tokenize`."""
    return clip.tokenize(texts, context_length, truncate)


def available_models() -> list[str]:
    """OpenAI's `available_models`; every name of OpenAI's is there once a model stands for all of them."""
    patch, names = current(), clip.available_models()
    return [*(n for n in ROBUST_COUNTERPART if patch and patch.model and n not in names), *names]


def _key(patch: Patch, name: str) -> str:
    """A program's own file or key is taken at its word; OpenAI's names and unknown ones mean `--model`."""
    known = name not in ROBUST_COUNTERPART and name in clip.available_models()
    if patch.model is None or os.path.exists(name) or known:
        return name
    return patch.model


def _in_the_form_of(patch: Patch, copy: Path | None) -> Callable[..., Any] | None:
    """`load` with the parameters and the number of results of a program's own copy, where they differ."""
    import ast

    theirs = definitions(copy).get("load")
    if not isinstance(theirs, ast.FunctionDef):
        return None
    names = [argument.arg for argument in (*theirs.args.args, *theirs.args.kwonlyargs)]
    returned = [node.value for node in ast.walk(theirs) if isinstance(node, ast.Return)]
    counts = [len(value.elts) for value in returned if isinstance(value, ast.Tuple)] or [2]
    if names[:3] == ["name", "device", "jit"] and len(names) <= 4 and counts[-1] == 2:
        return None
    patch.say(
        "names",
        f"the program's own load({', '.join(names)}) differs from clip's: name, device, jit and download_root are "
        f"followed, and it returns {counts[-1]} values: the model, then the transform of its pictures",
    )
    return functools.partial(_load_as, tuple(names), counts[-1])


def _load_as(names: tuple[str, ...], count: int, *arguments: Any, **keywords: Any) -> Any:
    given = dict(zip(names, arguments, strict=False)) | keywords
    known = {key: given[key] for key in ("device", "jit", "download_root") if key in given}
    model, transform = load(given[names[0]], **known)
    return (model, *[transform] * (count - 1)) if count > 1 else model


class Attention(nn.MultiheadAttention):
    """Attention that leaves its probabilities, (heads * N, L, L), and their gradient in its block's `attn_probs` and
    `attn_grad`, as the copies of `clip` in CLIPasso, Text2LIVE and Transformer-MM-Explainability do."""

    block: Any

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **keywords: Any) -> Any:  # type: ignore[override]
        """Shapes as of nn.MultiheadAttention."""
        x = query if self.batch_first else query.transpose(0, 1)
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (
            projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        )
        logits, mask = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, keywords.get("attn_mask")
        probabilities = (logits if mask is None else logits + mask).softmax(dim=-1)
        self.block.attn_probs = probabilities
        if probabilities.requires_grad:
            probabilities.register_hook(functools.partial(setattr, self.block, "attn_grad"))
        heads = (probabilities @ v).unflatten(0, (-1, self.num_heads))
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        wanted = keywords.get("need_weights", True)
        weights = probabilities.unflatten(0, (-1, self.num_heads)).mean(1) if wanted else None
        return (out if self.batch_first else out.transpose(0, 1)), weights


def keep_attention(model: CLIP) -> None:
    """Has the blocks of both towers keep the attention of their last call."""
    for tower in (model.visual, model):
        for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
            if isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
                block.attn.__class__ = Attention
                object.__setattr__(
                    block.attn, "block", block
                )  # not as a submodule: it is its parent
                block.attn_probs = block.attn_grad = None


def open_clip_factories(patch: Patch, module: Any) -> None:
    """open_clip's functions, answered by this package's models. The package's own use of it does not pass here."""

    def tokenizer(original: Any, model_name: str = "", *given: Any, **keywords: Any) -> Any:
        # Whatever stands for the model reads CLIP's vocabulary; others keep their own tokenizer.
        kind: Any = getattr(getattr(module, "tokenizer", None), "SimpleTokenizer", None)
        known = "context_length" in inspect.signature(kind).parameters if kind else False
        if not (known and (patch.model or open_clip_key(patch, model_name, "any"))):
            return original(model_name, *given, **keywords)
        return kind(context_length=keywords.get("context_length") or 77)

    for name in FACTORIES:
        call: Any = functools.partial(_create, patch, module, name)
        call = tokenizer if name == "get_tokenizer" else call
        for owner in (module, getattr(module, "factory", None)):
            if hasattr(owner, name):
                patch.wrap(owner, name, call)


def _create(
    patch: Patch,
    module: Any,
    factory: str,
    original: Any,
    model_name: str,
    *given: Any,
    **keywords: Any,
) -> Any:
    """A model, and its transforms where the factory gives them; the original's answer if none of ours stands for it."""
    openai = factory == "load_openai_model"
    order = ("precision", "device") if openai else ("pretrained", "precision", "device")
    asked = dict(zip(order, given, strict=False)) | keywords
    pretrained = "openai" if openai else asked.get("pretrained")
    key = open_clip_key(patch, model_name, pretrained)
    what = f"{model_name!r} with pretrained={pretrained!r}"
    if key is None:
        patch.say("open_clip", f"{what} is left to open_clip")
        return original(model_name, *given, **keywords)
    if kept := [name for name in KEPT if asked.get(name)]:
        said = f"{what}: {', '.join(kept)} not followed, {key!r} has its own"
        patch.say("open_clip", said)
    precision = PRECISIONS.get(asked.get("precision") or "fp32", "fp32")
    model, transform = clip.load(key, asked.get("device") or "cpu", precision=precision)
    model = _as_in(module, model, bool(asked.get("output_dict")))
    patch.answered("open_clip", f"{what} gives {key!r}", model.visual.output_dim)
    if factory == "create_model_and_transforms":
        return model, _for_training(module, model, asked.get("aug_cfg")) or transform, transform
    both = factory == "create_model_from_pretrained" and asked.get("return_transform", True)
    return (model, transform) if both else model


def _for_training(module: Any, model: CLIP, augmentation: Any) -> Any:
    """open_clip's own transform of training pictures, with the model's size and normalisation."""
    make = getattr(module, "image_transform", None)
    options: dict[str, Any] = {"aug_cfg": augmentation} if augmentation else {}
    options |= {"mean": model.mean, "std": model.std}
    return make and make(model.visual.input_resolution, is_train=True, **options)


def _as_in(module: Any, model: CLIP, output_dict: bool) -> Any:
    """A model for callers of this open_clip: a program's own copy may be older, of (L, N, D), and have more methods."""
    own = "site-packages" not in (module.__file__ or "")
    parts = vars(module).get("transformer"), vars(module).get("model")
    blocks, kind = (getattr(part, name, None) for part, name in zip(parts, ("Transformer", "CLIP")))
    old = own and blocks and "batch_first" not in inspect.signature(blocks).parameters
    made = as_open_clip(model, output_dict=output_dict, batch_first=not old)
    borrow(made, kind if own else None)
    return made


@functools.cache
def own_module(path: Path) -> dict[str, Any]:
    """The names of a module of a program's own copy of `clip`; none where it is not there or does not run alone."""
    spec = importlib.util.spec_from_file_location("clipag_own_copy", path)
    if not path.is_file() or spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    with contextlib.suppress(Exception):
        spec.loader.exec_module(module)
    return vars(module)


def borrow(part: nn.Module, kind: Any) -> None:
    """Gives a part of a model the methods that a program's own class has beside those of ours."""
    for name, value in vars(kind).items() if inspect.isclass(kind) else ():
        if isinstance(value, types.FunctionType) and not hasattr(part, name):
            setattr(part, name, functools.partial(value, part))  # unlike a method it pickles
        if isinstance(value, staticmethod) and not hasattr(part, name):
            setattr(part, name, value.__func__)


def open_clip_key(patch: Patch, name: str, pretrained: Any) -> str | None:
    """The model for open_clip's (architecture, pretrained); None to leave it to open_clip."""
    weights = os.path.expanduser(os.fspath(pretrained or ""))
    if (not weights and ":" not in name) or name.lower().startswith("coca"):
        return None  # fresh weights, or a model that writes captions, which none of ours does
    if patch.model is not None:
        return patch.model
    if weights and os.path.isfile(weights):
        return weights
    if ":" in name:
        return name
    if os.path.basename(weights).upper().startswith("CLIPAG"):
        return "clipag"
    return ROBUST_COUNTERPART.get(openai_name(name))


def openai_name(name: str) -> str:
    """open_clip's `ViT-B-32-quickgelu` -> OpenAI's `ViT-B/32`."""
    plain = name.removesuffix("-quickgelu").replace("/", "-")
    family = plain.rpartition("-")
    if plain.endswith("-336"):
        return plain.removesuffix("-336").replace("L-14", "L/14@336px")
    return f"{family[0]}/{family[2]}" if plain.startswith("ViT-") else plain


def transformers_model(patch: Patch, module: Any) -> None:
    """`CLIPModel.from_pretrained` of OpenAI's repositories gives this package's model in transformers' layout."""
    original = module.CLIPModel.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(kind: Any, name: Any, *given: Any, **keywords: Any) -> Any:
        family = os.fspath(name).rpartition("openai/clip-vit-")[2]
        size, _, patch_size = family.replace("-336", "@336px").partition("-patch")
        key = patch.model or ROBUST_COUNTERPART.get(f"ViT-{size[:1].upper()}/{patch_size}")
        if not patch.active or key is None or not patch_size or os.path.exists(name):
            return original(kind, name, *given, **keywords)
        from ..weights.export import save_pretrained

        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(key, folder, format="transformers")
            model = original(kind, folder, *given, **keywords)
        what = f"CLIPModel.from_pretrained({name!r}) gives {key!r}"
        patch.answered("transformers", what, model.config.projection_dim)
        return model

    patch.replace(module.CLIPModel, "from_pretrained", classmethod(from_pretrained))
