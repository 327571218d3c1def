"""The model object of `clip`: OpenAI's attributes and calls on open_clip's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .simple_tokenizer import foreign_rows, token_rows
from .towers import build_network, empty_network, fill

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# Longer lists of texts, encoded without gradients, are taken in pieces of this many.
TEXT_CHUNK = 256
OPEN_CLIP_KINDS = (("open_clip.model", "CLIP"), ("open_clip.model", "CustomTextCLIP"))
OPENAI_PARTS = (
    *("visual", "transformer", "token_embedding", "positional_embedding", "ln_final"),
    *("text_projection", "logit_scale"),
)


class CLIP(nn.Module):
    """A CLIP with the attributes, calls and state-dict keys of OpenAI's.

    net: an open_clip `CLIP` or `CustomTextCLIP` or a `MiniCLIP`, whose parts become this module's own
    (the text tower of the second stays under `text`). Beside OpenAI's attributes there are `name`, `card` (a
    dict), `mean` and `std` of its input, `vocabulary` (the words a small model was taught, or
    None), `normalize` and `tokenize`.

    On image towers that are transformers, hooks on `visual.transformer.resblocks` receive (L, N, D)
    as in `clip`, unless `visual.transformer.batch_first` is true (an open_clip model handed in).
    """

    visual: Any
    transformer: Any
    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.Module
    text_projection: nn.Parameter | nn.Linear | None
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    attn_mask: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str = "custom",
        card: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        vocabulary: Sequence[str] | None = None,
        tokenizer: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        source: Any = net
        self.visual = source.visual
        if hasattr(source, "text"):
            self.text = source.text
        else:
            self.transformer = source.transformer
            self.token_embedding = source.token_embedding
            self.positional_embedding = source.positional_embedding
            self.ln_final = source.ln_final
            self.text_projection = source.text_projection
            self.register_buffer("attn_mask", source.attn_mask, persistent=False)
            self.text_pool_type = source.text_pool_type
            self.text_eos_id = source.text_eos_id
        self.logit_scale = source.logit_scale
        self.logit_bias = source.logit_bias
        self.context_length, self.vocab_size = int(source.context_length), int(source.vocab_size)
        self.visual.input_resolution = _resolution(self.visual)
        if not hasattr(self.visual, "output_dim"):
            self.visual.output_dim = _output_dim(source)
        self.name = name
        self.card = dict(card or {})
        self.mean = _triple(mean or getattr(self.visual, "image_mean", None) or OPENAI_MEAN)
        self.std = _triple(std or getattr(self.visual, "image_std", None) or OPENAI_STD)
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._tokenizer = tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The dtype images are cast to: that of the image tower's first convolution."""
        if hasattr(self.visual, "conv1"):
            return cast(torch.dtype, self.visual.conv1.weight.dtype)
        return next(self.visual.parameters()).dtype

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

        More than `TEXT_CHUNK` texts of which no gradient is kept are encoded in pieces, and each
        piece is cut behind its last end-of-text token: attention is causal, so nothing behind that
        token reaches the features (they agree to rounding, about 1e-6).
        """
        self._check_tokens(text)
        if len(text) <= TEXT_CHUNK or self._keeps_text_graph():
            return self._text_features(text)
        return torch.cat(
            [self._text_features(self._cut(piece)) for piece in text.split(TEXT_CHUNK)]
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times the logit scale: (images, texts) and its transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp().squeeze() * image_features @ text_features.t()
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.t()

    def _text_features(self, text: Tensor) -> Tensor:
        if hasattr(self, "text"):
            return cast(Tensor, self.text(text))
        dtype = self.transformer.get_cast_dtype()
        length = text.shape[1]
        mask = self.attn_mask if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[:length].to(dtype)
        x = self.ln_final(self.transformer(x, attn_mask=mask))
        x = self._pool(x, text)
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
        return x[torch.arange(len(x), device=x.device), marks.argmax(dim=-1)]

    def _cut(self, text: Tensor) -> Tensor:
        if getattr(self, "attn_mask", None) is None or self.text_pool_type != "argmax":
            return text
        return text[:, : int(text.argmax(dim=-1).max()) + 1]

    def _keeps_text_graph(self) -> bool:
        trained = (p for name, p in self.named_parameters() if not name.startswith("visual."))
        return torch.is_grad_enabled() and any(p.requires_grad for p in trained)

    def _check_tokens(self, text: Tensor) -> None:
        """Cut rows are fine where attention is causal, as in `_cut`; anything else has one length."""
        causal = getattr(self, "attn_mask", None) is not None
        fits = (
            text.shape[-1] <= self.context_length
            if causal
            else text.shape[-1] == self.context_length
        )
        if text.ndim != 2 or not fits:
            raise RuntimeError(
                f"tokens of shape {tuple(text.shape)} for a model that reads (N, {self.context_length}); "
                "model.tokenize(texts) makes them as this model needs them"
            )


def build(
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None,
    *,
    name: str = "custom",
    card: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    vocabulary: Sequence[str] | None = None,
    precision: str = "fp32",
) -> CLIP:
    """The model of an open_clip model config, in evaluation mode, on the tensors' device.

    `vision_cfg` with an entry "mini" makes a `MiniVisual`. The tensors of `state_dict` (open_clip's
    or OpenAI's keys) become the parameters without a copy; None draws fresh weights. RuntimeError
    names tensors that are missing, unexpected or of another shape.
    """
    net = build_network(config, state_dict, precision)
    text = config["text_cfg"]
    tokenizer = None
    if text.get("hf_tokenizer_name"):
        tokenizer = (text["hf_tokenizer_name"], dict(text.get("tokenizer_kwargs") or {}))
    model = CLIP(
        net, name=name, card=card, mean=mean, std=std, vocabulary=vocabulary, tokenizer=tokenizer
    )
    # The causal mask is made here; the weights are where the caller has them.
    return model.to(model.logit_scale.device).eval()


def wrap(model: nn.Module, *, name: str | None = None) -> CLIP:
    """A model of open_clip, or of OpenAI's `clip`, as a `CLIP` on the same weights.

    It is put in evaluation mode. open_clip's parts are used as they are; OpenAI's weights are
    shared by an equal network. A `CLIP` is returned as it is; anything else is a ValueError.
    """
    if isinstance(model, CLIP):
        return model
    kind = type(model).__name__
    if any((base.__module__, base.__name__) in OPEN_CLIP_KINDS for base in type(model).__mro__):
        return CLIP(model, name=name or f"open_clip {kind}").eval()
    blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    if isinstance(blocks, nn.Sequential) and all(hasattr(model, part) for part in OPENAI_PARTS):
        return _from_openai(model, name or "clip").eval()
    raise ValueError(
        f"{type(model).__module__}.{kind} is no CLIP of clipag_plug, open_clip or OpenAI's clip "
        "(a scripted one must be loaded with jit=False)"
    )


def _from_openai(source: Any, name: str) -> CLIP:
    net = empty_network(_openai_config(source), _mixed(source.visual.conv1.weight.dtype))
    fill(net, source.state_dict())
    for key, parameter in source.named_parameters():
        net.get_parameter(key).requires_grad_(parameter.requires_grad)
    return CLIP(net, name=name).to(source.logit_scale.device)


def _openai_config(source: Any) -> dict[str, Any]:
    """open_clip's model config of an OpenAI model, read off its modules."""
    visual, block = source.visual, source.transformer.resblocks[0]
    if hasattr(visual, "class_embedding"):
        width, heads = visual.conv1.out_channels, visual.transformer.resblocks[0].attn.num_heads
        vision = {
            "layers": len(visual.transformer.resblocks),
            "patch_size": visual.conv1.kernel_size[0],
        }
        head_width = width // heads
    else:
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        width = visual.layer1[0].conv1.out_channels
        vision = {"layers": [len(stage) for stage in stages], "patch_size": None}
        head_width = width * 32 // visual.attnpool.num_heads
    vision |= {"width": width, "head_width": head_width, "image_size": int(visual.input_resolution)}
    return {
        "embed_dim": source.text_projection.shape[1],
        "quick_gelu": type(block.mlp.gelu).__name__ == "QuickGELU",
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": source.positional_embedding.shape[0],
            "vocab_size": source.token_embedding.weight.shape[0],
            "width": source.ln_final.weight.shape[0],
            "heads": block.attn.num_heads,
            "layers": len(source.transformer.resblocks),
        },
    }


def _mixed(dtype: torch.dtype) -> torch.dtype | None:
    return None if dtype == torch.float32 else dtype


def _resolution(visual: Any) -> int:
    """The side of the images a tower takes, which MiniVisual already says itself."""
    size = getattr(visual, "input_resolution", None) or visual.image_size
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        raise ValueError(
            f"the image tower takes {size[0]}x{size[1]} images; only square ones are supported"
        )
    return int(size[0])


def _output_dim(net: Any) -> int:
    text = getattr(net, "text", net)
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return int(text.output_dim if projection is None else projection.shape[1])


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
