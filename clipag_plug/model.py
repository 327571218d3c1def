"""The model object of `clip`: OpenAI's attributes, calls and axis order on weights of any public CLIP."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .simple_tokenizer import foreign_rows, token_rows
from .towers.config import OPENAI_PARTS, Undrawn, causal, draw_texts, openai_config, towers_of
from .towers.resnet import AttentionPool2d as AttentionPool2d
from .towers.resnet import Bottleneck as Bottleneck
from .towers.resnet import ModifiedResNet as ModifiedResNet
from .towers.vit import Attention, exporting, hooked
from .towers.vit import LayerNorm as LayerNorm
from .towers.vit import QuickGELU as QuickGELU
from .towers.vit import ResidualAttentionBlock as ResidualAttentionBlock
from .towers.vit import Transformer as Transformer
from .towers.vit import VisionTransformer as VisionTransformer
from .weights.registry import OPENAI_MEAN as OPENAI_MEAN
from .weights.registry import OPENAI_STD as OPENAI_STD

VisualTransformer = VisionTransformer  # its name in the first versions of `clip`
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# Longer lists of texts, encoded without gradients, are taken in pieces of this many.
TEXT_CHUNK = 256
# Entries of OpenAI's files that describe the model and are no weights; RECIPE is `clip._download`'s.
RECIPE = "clipag_plug_recipe"
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", RECIPE)
OPEN_CLIP_KINDS = (("open_clip.model", "CLIP"), ("open_clip.model", "CustomTextCLIP"))


class CLIP(nn.Module):
    """A CLIP with the attributes, calls, axis order and state-dict keys of OpenAI's, and its constructor.

    Beside OpenAI's attributes there are `name`, `card` (a dict), `mean` and `std` of its input, `vocabulary` (the
    words a small model was taught, or None), `normalize`, `tokenize` and `features`. Parts of open_clip's that are
    handed in (`wrap`) or that open_clip builds (towers with options that CLIP has not) keep open_clip's order
    (N, L, D), and their transformers say `batch_first`.
    """

    visual: Any
    transformer: Any
    attn_mask: Tensor | None
    input_resolution: int  # of a model loaded with jit=True alone

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | Sequence[int],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ) -> None:
        super().__init__()
        vision = {"image_size": image_resolution, "layers": vision_layers, "width": vision_width}
        vision |= {"patch_size": vision_patch_size} if vision_patch_size else {}
        text = {"context_length": context_length, "vocab_size": vocab_size}
        text |= {"width": transformer_width, "heads": transformer_heads}
        text |= {"layers": transformer_layers}
        config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
        self._assemble(*towers_of({**config, "quick_gelu": True}, None))

    def _assemble(self, visual: Any, text: Any, logit_scale: Any, logit_bias: Any) -> CLIP:
        """Takes the parts as its own. text: anything with the attributes of open_clip's text tower."""
        self.visual = visual
        if isinstance(text, nn.Module):
            self.text = text
        else:
            self.transformer = text.transformer
            self.token_embedding = text.token_embedding
            self.positional_embedding = text.positional_embedding
            self.ln_final = text.ln_final
            self.text_projection = text.text_projection
            self.register_buffer("attn_mask", text.attn_mask, persistent=False)
            self.text_pool_type, self.text_eos_id = text.pool_type, text.eos_id
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.context_length, self.vocab_size = int(text.context_length), int(text.vocab_size)
        self.visual.input_resolution = _resolution(visual)
        if not hasattr(visual, "output_dim"):  # timm's
            matrix = text.text_projection
            matrix = matrix.weight.T if isinstance(matrix, nn.Linear) else matrix
            self.visual.output_dim = int(text.output_dim if matrix is None else matrix.shape[1])
        self._describe()
        return self

    def _describe(
        self,
        name: str = "custom",
        card: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        vocabulary: Sequence[str] | None = None,
        tokenizer: tuple[str, Mapping[str, Any]] | None = None,
    ) -> CLIP:
        self.name, self.card = name, dict(card or {})
        mean = mean or getattr(self.visual, "image_mean", None) or OPENAI_MEAN
        std = std or getattr(self.visual, "image_std", None) or OPENAI_STD
        self.mean, self.std = (tuple(map(float, values)) for values in (mean, std))
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._tokenizer = tokenizer
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype images are cast to: that of the image tower's first matrix."""
        weights = (getattr(module, "weight", None) for module in self.visual.modules())
        return next(w.dtype for w in weights if isinstance(w, Tensor) and w.ndim > 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> the model's input."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Texts -> int32 tokens (N, context_length), by the tokenizer this model was trained with.

        RuntimeError for a text that does not fit, unless `truncate`. ImportError where the model
        has a tokenizer of `transformers` and that package is absent.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self._tokenizer:
            rows = foreign_rows(texts, self.context_length, truncate, *self._tokenizer)
        else:
            rows = token_rows(texts, self.context_length, truncate)
        return torch.tensor(rows, dtype=torch.int32).reshape(-1, self.context_length)

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised images (N, 3, R, R), cast to `dtype` -> raw features (N, D)."""
        return cast(Tensor, self.visual(image.to(self.dtype)))

    def encode_text(self, text: Tensor) -> Tensor:
        """Tokens (N, context_length) -> raw features (N, D).

        More than `TEXT_CHUNK` texts of which no gradient is kept, and that no hook looks at, are encoded in pieces,
        each cut behind its last end-of-text token: attention is causal, so nothing behind that token reaches the
        features (they agree to rounding, about 1e-6).
        """
        if exporting():
            return self._text_features(text)
        self._check_tokens(text)
        if len(text) <= TEXT_CHUNK or self._keeps_text_graph() or any(map(hooked, self.modules())):
            return self._text_features(text)
        pieces = text.split(TEXT_CHUNK)
        return torch.cat([self._text_features(self._cut(piece)) for piece in pieces])

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times the logit scale: (images, texts) and its transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp().squeeze() * image_features @ text_features.t()
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.t()

    @property
    def layers(self) -> list[str]:
        """Names of the image tower's blocks or stages from first to last, and "output", for `features`."""
        return [*_blocks(self.visual), "output"]

    def features(
        self, images: Tensor, layers: Sequence[str] | None = None, *, spatial: bool = False
    ) -> dict[str, Tensor]:
        """What layers of the image tower give for a batch; gradients flow, and no hooks are left behind.

        Args:
            images: normalised images (N, 3, R, R), as for `encode_image`.
            layers: names of modules of `visual` (`visual.named_modules()`), "output" the features themselves;
                None takes all of `model.layers`.
            spatial: maps (N, C, h, w), class tokens left out, in place of everything as one row (N, ...);
                "output" stays a row.

        Raises:
            ValueError: no such layer, or a layer without places where maps are asked for.
        """
        modules, found, thread = dict(self.visual.named_modules()), {}, threading.get_ident()
        modules["output"] = self.visual
        names = self.layers if layers is None else list(layers)
        names = [layers] if isinstance(layers, str) else names
        unknown = [name for name in names if name not in modules]
        if unknown:
            raise ValueError(
                f"the image tower has no layer {unknown[0]!r}; its blocks: {', '.join(self.layers)}"
            )

        def keep(name: str, module: Any, given: Any, output: Any) -> None:
            if threading.get_ident() == thread:  # another thread may use the model just now
                found[name] = output[0] if isinstance(output, tuple) else output

        with contextlib.ExitStack() as hooks:
            for name in dict.fromkeys(names):
                hook = modules[name].register_forward_hook(functools.partial(keep, name))
                hooks.callback(hook.remove)
            CLIP.encode_image(self, images)
        absent = [name for name in names if name not in found]
        if absent:
            raise ValueError(f"the image tower never calls its layer {absent[0]!r}")
        return {name: self._laid_out(name, found[name], spatial) for name in names}

    def _laid_out(self, name: str, output: Tensor, spatial: bool) -> Tensor:
        """A layer's output with its samples in front, as maps or as rows."""
        if output.ndim == 3 and name.split(".")[0] == "transformer":
            batch_first = getattr(self.visual.transformer, "batch_first", False)
            output = output if batch_first else output.transpose(0, 1)
        if not spatial or name == "output":
            return output.flatten(1)
        if output.ndim == 3:
            side = math.isqrt(output.shape[1])
            places = output[:, output.shape[1] - side * side :]
            output = places.transpose(1, 2).unflatten(2, (side, side))
        if output.ndim != 4:
            raise ValueError(f"layer {name!r} gives {tuple(output.shape)}, which has no places")
        return output

    def build_attention_mask(self) -> Tensor:
        """The causal mask (L, L): zeros, and minus infinity above the diagonal."""
        return causal(self.context_length)

    def initialize_parameters(self) -> None:
        """Draws the text tower's weights anew as in Radford et al. (2021), and those of a `ModifiedResNet`."""
        if isinstance(self.visual, ModifiedResNet):
            self.visual.initialize_parameters()
        draw_texts(self)

    def _text_features(self, text: Tensor) -> Tensor:
        if hasattr(self, "text"):
            return cast(Tensor, self.text(text))
        dtype, length = self.dtype, text.shape[1]
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[:length].to(dtype)
        if getattr(self.transformer, "batch_first", False):
            mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
            x = self.transformer(x, attn_mask=mask)
        else:
            x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self._pool(self.ln_final(x), text)
        if isinstance(self.text_projection, nn.Linear):
            return cast(Tensor, self.text_projection(x))
        return x if self.text_projection is None else x @ self.text_projection

    def _pool(self, x: Tensor, text: Tensor) -> Tensor:
        """One position of each text: (N, L, W) -> (N, W)."""
        if self.text_pool_type == "first":
            return x[:, 0]
        if self.text_pool_type == "last":
            return x[:, -1]
        # The end-of-text token of CLIP's vocabulary has the highest number.
        marks = (text == self.text_eos_id).int() if self.text_pool_type == "eos" else text
        return x[torch.arange(x.shape[0], device=x.device), marks.argmax(dim=-1)]

    @property
    def _is_causal(self) -> bool:
        if hasattr(self, "text"):
            return False
        first = self.transformer.resblocks[0]
        return self.attn_mask is not None or getattr(first, "attn_mask", None) is not None

    def _cut(self, text: Tensor) -> Tensor:
        if not self._is_causal or self.text_pool_type != "argmax":
            return text
        return text[:, : int(text.argmax(dim=-1).max()) + 1]

    def _keeps_text_graph(self) -> bool:
        trained = (p for name, p in self.named_parameters() if not name.startswith("visual."))
        return torch.is_grad_enabled() and any(p.requires_grad for p in trained)

    def _check_tokens(self, text: Tensor) -> None:
        """Cut rows are fine where attention is causal, as in `_cut`; anything else has one length."""
        length = text.shape[-1]
        fits = length == self.context_length or (self._is_causal and length < self.context_length)
        if text.ndim != 2 or not fits:
            raise RuntimeError(
                f"tokens of shape {tuple(text.shape)} for a model that reads (N, {self.context_length}); "
                "model.tokenize(texts) makes them as this model needs them"
            )


class OpenCLIP(CLIP):
    """A `CLIP` with the calls and the axis order of open_clip's: made by `as_open_clip`."""

    output_dict = False

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Normalised images (N, 3, R, R) -> features (N, D), of length 1 where `normalize`."""
        features = super().encode_image(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Tokens (N, context_length) -> features (N, D), of length 1 where `normalize`."""
        features = super().encode_text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities (images, texts) and their transpose."""
        return super().forward(image, text)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Normalised features (None where there was no input), logit scale and, if any, bias; or a dict of them."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        names = ("image_features", "text_features", "logit_scale", "logit_bias")
        values = (images, texts, self.logit_scale.exp(), self.logit_bias)
        count = 3 if self.logit_bias is None else 4
        return dict(zip(names[:count], values)) if self.output_dict else values[:count]

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the image tower but for its last groups (Zhai et al. 2022), by open_clip's own function."""
        from open_clip import model as theirs

        self.visual.requires_grad_(False)
        kind = getattr(theirs, type(self.visual).__name__, None)
        if kind is not None:
            kind.lock(self.visual, unlocked_groups, freeze_bn_stats)
        elif unlocked_groups:
            raise ValueError(
                f"a {type(self.visual).__name__} is locked whole; use unlocked_groups=0"
            )

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the text tower but for its last groups: the projection, the last block with `ln_final`, and so on."""
        if not freeze_layer_norm:
            raise ValueError(
                "normalisations are frozen with their block; use freeze_layer_norm=True"
            )
        part: Any = self.text if hasattr(self, "text") else self
        first = [part.token_embedding, part.positional_embedding, getattr(part, "cls_emb", None)]
        *blocks, last = part.transformer.resblocks
        groups = [first, *([block] for block in blocks), [last, part.ln_final]]
        groups += [] if part.text_projection is None else [[part.text_projection]]
        for left, group in zip(range(len(groups), 0, -1), groups):
            for each in filter(lambda x: x is not None, group):
                each.requires_grad_(left <= unlocked_layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are run again on the way back in place of keeping their activations."""
        if hasattr(self.visual, "set_grad_checkpointing"):
            self.visual.set_grad_checkpointing(enable)
        part: Any = self.text if hasattr(self, "text") else self
        part.transformer.grad_checkpointing = enable


def as_open_clip(model: CLIP, *, output_dict: bool = False, batch_first: bool = True) -> OpenCLIP:
    """The same model, changed in place, for callers of open_clip: its calls, and (N, L, D) with masks as arguments.

    batch_first: False for callers of an open_clip of 2023 or before, whose transformers take (L, N, D).
    """
    blocks: Any = () if hasattr(model, "text") else model.transformer.resblocks
    for block in blocks:
        if isinstance(block, ResidualAttentionBlock):
            model.attn_mask = block.attn_mask
            block.attn_mask = None if batch_first else block.attn_mask
    for module in model.modules():
        if isinstance(module, Transformer | Attention):
            module.batch_first = batch_first
    visual, side = model.visual, model.visual.input_resolution
    if not hasattr(visual, "image_size"):
        visual.image_size = (side, side)
    visual.image_mean, visual.image_std = model.mean, model.std
    visual.preprocess_cfg = {"size": side, "mode": "RGB", "fill_color": 0}
    visual.preprocess_cfg |= {"mean": model.mean, "std": model.std}
    model.__class__ = OpenCLIP
    cast(OpenCLIP, model).output_dict = output_dict
    return cast(OpenCLIP, model)


def build(
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None,
    *,
    precision: str = "fp32",
    device: str | int | torch.device | None = None,
    **about: Any,
) -> CLIP:
    """The model of an open_clip model config, in evaluation mode.

    Args:
        config: `embed_dim`, `vision_cfg`, `text_cfg` and the entries of `EXTRAS`; a `vision_cfg` with the name of one
            of `TOWERS` makes that tower.
        state_dict: tensors under open_clip's or OpenAI's names, which become the parameters where dtype allows,
            without a copy; None draws fresh weights.
        precision: "fp32", "fp16" or "bf16".
        device: where the model goes; None leaves it where the tensors are.
        about: `name`, `card`, `mean`, `std` and `vocabulary` of the model, as far as they are known.

    Raises:
        RuntimeError: tensors that are missing, unexpected or of another shape, by name.
        ValueError: a config or precision that is not supported.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    low = PRECISIONS[precision]
    if state_dict is None:
        model = _assembled(*towers_of(config, low))
    else:
        floats = {n: t.float() if t.is_floating_point() else t for n, t in state_dict.items()}
        model = _filled(config, floats, low)
    if low is not None:
        convert_weights(model, low)
    text = config["text_cfg"]
    tokenizer = None
    if text.get("hf_tokenizer_name"):
        tokenizer = (text["hf_tokenizer_name"], dict(text.get("tokenizer_kwargs") or {}))
    model._describe(tokenizer=tokenizer, **about)
    for parameter in model.parameters():  # as safetensors and parameters_to_vector need them
        parameter.data = parameter.data.contiguous()
    # The causal mask is made here; the weights are where the caller has them.
    return model.to(model.logit_scale.device if device is None else device).eval()


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """The model of a state dict in OpenAI's layout, in evaluation mode and fp16, as `clip.model.build_model` makes it.

    One of `clip._download` says which model it is; any other is taken for OpenAI's, whose activation is QuickGELU.
    """
    if RECIPE in state_dict:
        recipe = json.loads(bytes(state_dict[RECIPE].tolist()))
    else:
        recipe = {"config": openai_config(state_dict)}
    model = build(recipe.pop("config"), state_dict, **recipe)
    convert_weights(model)
    return model


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """OpenAI's mixed precision, in place: matrices in `dtype`, normalisation layers and embeddings as they are."""
    if hasattr(getattr(model, "visual", None), "trunk"):
        # A timm trunk has no mixed precision: open_clip casts such a model whole, and norms that ask for it back.
        model.to(dtype=dtype)
        for module in model.modules():
            if isinstance(module, LayerNorm) or type(module).__name__ == "LayerNormFp32":
                module.float()
        return
    for module in model.modules():
        names: tuple[str, ...] = ("text_projection", "proj")
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            names = ("weight", "bias")
        elif hasattr(module, "in_proj_weight"):
            names = tuple(n for n in module._parameters if n[:2] in ("in", "q_", "k_", "v_", "bi"))
        for parameter in (module._parameters.get(name) for name in names):
            if parameter is not None:
                parameter.data = parameter.data.to(dtype)


def wrap(model: nn.Module, *, name: str | None = None) -> CLIP:
    """A model of open_clip, or of OpenAI's `clip`, as a `CLIP` on the same weights.

    It is put in evaluation mode. open_clip's parts are used as they are; OpenAI's weights are
    shared by an equal network. A `CLIP` is returned as it is; anything else is a ValueError.
    """
    if isinstance(model, CLIP):
        return model
    kind, source = type(model).__name__, cast(Any, model)
    if any((base.__module__, base.__name__) in OPEN_CLIP_KINDS for base in type(model).__mro__):
        text = source.text if hasattr(source, "text") else SimpleNamespace(
            **{part: getattr(source, part) for part in OPENAI_PARTS[1:-1]},
            **{part: getattr(source, part) for part in ("attn_mask", "context_length", "vocab_size")},
            pool_type=source.text_pool_type,
            eos_id=getattr(source, "text_eos_id", 2),  # new in open_clip 3
        )  # fmt: skip
        made = _assembled(source.visual, text, source.logit_scale, source.logit_bias)
        return made._describe(name or f"open_clip {kind}").eval()
    blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    if isinstance(blocks, nn.Sequential) and all(hasattr(model, part) for part in OPENAI_PARTS):
        state, block = model.state_dict(), source.transformer.resblocks[0]
        config = openai_config(state)
        config["quick_gelu"] = type(block.mlp.gelu).__name__ == "QuickGELU"
        config["text_cfg"]["heads"] = block.attn.num_heads
        pooling, vision = getattr(source.visual, "attnpool", None), config["vision_cfg"]
        heads = (pooling or source.visual.transformer.resblocks[0].attn).num_heads
        vision["head_width"] = vision["width"] * (32 if pooling else 1) // heads
        made = _filled(config, state, None)
        for key, parameter in model.named_parameters():
            made.get_parameter(key).requires_grad_(parameter.requires_grad)
        return made._describe(name or "clip").to(source.logit_scale.device).eval()
    raise ValueError(
        f"{type(model).__module__}.{kind} is no CLIP of clipag_plug, open_clip or OpenAI's clip "
        "(a scripted one must be loaded with jit=False)"
    )


def _assembled(*parts: Any) -> CLIP:
    model = CLIP.__new__(CLIP)
    nn.Module.__init__(model)
    return model._assemble(*parts)


def _filled(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], low: torch.dtype | None
) -> CLIP:
    """The model on the given tensors: nothing is drawn at random first and nothing is held twice."""
    with torch.device("meta"), Undrawn():
        model = _assembled(*towers_of(config, low))
    given = {name: tensor for name, tensor in state_dict.items() if name not in NOT_WEIGHTS}
    if hasattr(model, "text"):
        if model.text.attn_mask is not None:
            model.text.attn_mask = model.build_attention_mask()
        if "text_projection" in given:
            from open_clip.model import convert_to_custom_text_state_dict

            given = convert_to_custom_text_state_dict(given)
    elif model.attn_mask is not None:
        model.attn_mask = model.build_attention_mask()
    for name in model.state_dict():
        # A counter that evaluation never reads, absent from older files.
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=torch.long, device="cpu"))
    try:
        model.load_state_dict(given, assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split()).partition(": ")[2]
        raise RuntimeError(f"these weights do not fit the architecture: {why[:1000]}") from None
    return model


def _blocks(visual: nn.Module) -> list[str]:
    """Names of the blocks of a transformer, or of the stages of a residual network, in the tower."""
    modules = dict(visual.named_modules())
    for path in ("transformer.resblocks", "trunk.blocks", "trunk.stages", "stages", "blocks"):
        if path in modules:
            return [f"{path}.{name}" for name, _ in modules[path].named_children()]
    return [name for name in modules if re.fullmatch(r"(trunk\.)?layer\d", name)]


def _resolution(visual: Any) -> int:
    """The side of the images a tower takes."""
    size = getattr(visual, "input_resolution", None) or visual.image_size
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        raise ValueError(
            f"the image tower takes {size[0]}x{size[1]} images; only square ones are supported"
        )
    return int(size[0])
