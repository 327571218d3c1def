"""Which model a program gets for the name it asks for: through `clip` or a copy of it, open_clip, transformers."""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import clip, weights
from ..clip import ROBUST_COUNTERPART
from ..model import CLIP
from ..simple_tokenizer import SimpleTokenizer
from .imports import definitions
from .patching import Patch, current

PRECISIONS = {"fp16": "fp16", "pure_fp16": "fp16", "bf16": "bf16", "pure_bf16": "bf16"}
FACTORIES = (
    *("create_model", "create_model_and_transforms", "create_model_from_pretrained"),
    *("load_openai_model", "get_tokenizer", "tokenize"),
)


def contents(patch: Patch, kind: str, copy: Path | None) -> dict[str, Any]:
    """Names and values of a module of OpenAI's package: "clip", "model" or "simple_tokenizer".

    copy: the program's own file in its place; where its `load` differs, the answer takes its form.
    """
    module = importlib.import_module(f"..{kind}", __package__)
    names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    if kind != "clip":
        return names
    answer = _in_the_form_of(patch, copy) or load
    patch.ours += [load, answer, tokenize, available_models]
    ours = {"load": answer, "tokenize": tokenize, "available_models": available_models}
    return names | ours | {"__all__": list(ours)}


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
    model, transform = clip.load(key, device, False, download_root)
    if patch.attention:
        keep_attention(model)
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
        batched = query if self.batch_first else query.transpose(0, 1)
        n, length, width = batched.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        parts = nn.functional.linear(batched, weight, bias).chunk(3, dim=-1)
        q, k, v = (
            part.reshape(n, length, self.num_heads, -1).transpose(1, 2).flatten(0, 1)
            for part in parts
        )
        logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        mask = keywords.get("attn_mask")
        if mask is not None:
            logits = (
                logits.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            )
        probabilities = logits.softmax(dim=-1)
        self.block.attn_probs = probabilities
        if probabilities.requires_grad:
            probabilities.register_hook(functools.partial(setattr, self.block, "attn_grad"))
        out = (probabilities @ v).unflatten(0, (n, self.num_heads)).transpose(1, 2).flatten(2)
        out = self.out_proj(out)
        return (out if self.batch_first else out.transpose(0, 1)), None


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


class OpenClipCLIP(CLIP):
    """A `CLIP` with the calls of open_clip's: features normalised on request, `forward` gives features."""

    output_dict = False

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(N, 3, R, R) -> (N, D)."""
        features = super().encode_image(image)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(N, L) -> (N, D)."""
        features = super().encode_text(text)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times the scale: (images, texts) and its transpose."""
        return super().forward(image, text)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:  # type: ignore[override]
        """Normalised features, None where there was no input, and the scale of the logits."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        scale = self.logit_scale.exp()
        if self.output_dict:
            return {"image_features": images, "text_features": texts, "logit_scale": scale}
        return images, texts, scale

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the image tower; groups can be left free where it is a tower of open_clip's."""
        if unlocked_groups:
            self.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)
        else:
            self.visual.requires_grad_(False)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the text tower but its last `unlocked_layers` blocks; the norms too, or not."""
        from open_clip.transformer import lock_text_tower

        lock_text_tower(self, unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True, **keywords: Any) -> None:
        """Trades time for memory, where the towers can."""
        for part in (self.visual, getattr(self, "transformer", None)):
            for name in ("transformer", "grad_checkpointing"):
                owner = part if name == "grad_checkpointing" else getattr(part, name, None)
                if hasattr(owner, "grad_checkpointing"):
                    owner.grad_checkpointing = enable


class Tokenizer:
    """open_clip's `SimpleTokenizer` as far as programs call it: a text that is too long is cut, rows are int64."""

    def __init__(self, context_length: int | None = None) -> None:
        self.context_length = context_length or 77
        self._words = SimpleTokenizer()
        self.encoder, self.decoder = self._words.encoder, self._words.decoder
        self.vocab_size, self.all_special_ids = len(self.encoder), [49406, 49407]
        self.sot_token_id, self.eot_token_id = self.all_special_ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """(N, context_length)."""
        return clip.tokenize(texts, context_length or self.context_length, truncate=True).long()

    def encode(self, text: str) -> list[int]:
        """Numbers of a text, without start and end."""
        return list(self._words.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of such numbers."""
        return str(self._words.decode([int(token) for token in tokens]))


def open_clip_factories(patch: Patch, module: Any) -> None:
    """Patches open_clip once it is imported. This package's own use of it does not pass here."""
    for name in FACTORIES:
        if hasattr(module, name):
            answer = _factory(patch, name, getattr(module, name))
            for owner in (module, module.factory):
                if hasattr(owner, name):
                    patch.replace(owner, name, answer)


def _factory(patch: Patch, name: str, original: Any) -> Any:
    """One of open_clip's functions, answered by this package's models under its own signature."""

    @functools.wraps(original)
    def tokenizer(model_name: str = "", *arguments: Any, **keywords: Any) -> Any:
        # Whatever stands for the model reads CLIP's vocabulary; others keep their own tokenizer.
        if not patch.active or not (patch.model or open_clip_key(patch, model_name, "any")):
            return original(model_name, *arguments, **keywords)
        return Tokenizer(keywords.get("context_length"))

    @functools.wraps(original)
    def tokens(texts: Any, context_length: int = 77) -> Any:
        return Tokenizer(context_length)(texts) if patch.active else original(texts, context_length)

    @functools.wraps(original)
    def model(model_name: str, *arguments: Any, **keywords: Any) -> Any:
        order = ("precision", "device") if name == "load_openai_model" else None
        positions = order or ("pretrained", "precision", "device")
        given = dict(zip(positions, arguments, strict=False)) | keywords
        pretrained = "openai" if order else given.get("pretrained")
        key = open_clip_key(patch, model_name, pretrained) if patch.active else None
        if key is None:
            if patch.active:
                text = f"{model_name!r} with pretrained={pretrained!r} is left to open_clip"
                patch.say("open_clip", text)
            return original(model_name, *arguments, **keywords)
        precision = PRECISIONS.get(given.get("precision") or "fp32", "fp32")
        made, transform = clip.load(key, given.get("device") or "cpu", precision=precision)
        made.__class__ = OpenClipCLIP
        made.output_dict = bool(given.get("output_dict", False))
        text = f"{model_name!r} with pretrained={pretrained!r} gives {key!r}"
        patch.answered("open_clip", text, made.visual.output_dim)
        if name == "create_model_and_transforms":
            return made, transform, transform
        both = name == "create_model_from_pretrained" and given.get("return_transform", True)
        return (made, transform) if both else made

    return {"get_tokenizer": tokenizer, "tokenize": tokens}.get(name, model)


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
    def from_pretrained(kind: Any, name: Any, *arguments: Any, **keywords: Any) -> Any:
        repository = os.fspath(name)
        if not patch.active or os.path.exists(repository) or "openai/clip-" not in repository:
            return original(kind, name, *arguments, **keywords)
        plain = (
            repository.rpartition("clip-vit-")[2].replace("-patch", "/").replace("-336", "@336px")
        )
        key = patch.model or ROBUST_COUNTERPART.get(
            f"ViT-{plain[:1].upper()}/{plain.partition('/')[2]}"
        )
        if key is None:
            return original(kind, name, *arguments, **keywords)
        with tempfile.TemporaryDirectory() as folder:
            weights.save_pretrained(key, folder, format="transformers")
            model = original(kind, folder, *arguments, **keywords)
        text = f"CLIPModel.from_pretrained({repository!r}) gives {key!r}"
        patch.answered("transformers", text, model.config.projection_dim)
        return model

    patch.replace(module.CLIPModel, "from_pretrained", classmethod(from_pretrained))
