"""Text features for training: cached while the text tower is frozen, recomputed with a graph while it trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model import CLIP

CACHE_LIMIT = 200_000  # sentences; at 512 floats each about 400 MB
CHUNK = 64
LENGTH_CLASS = 11  # seven classes up to CLIP's 77 tokens


class TextFeatures:
    """Captions (list of N) -> raw features (N, D).

    A frozen tower encodes each distinct caption once; its features are constants. When the cache is full the oldest
    captions go first.
    """

    def __init__(self, model: CLIP, trained: bool) -> None:
        self.model, self.trained = model, trained
        self._cache: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        return self._encode(texts) if self.trained else self._cached(texts)

    @torch.no_grad()
    def _cached(self, texts: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        for chunk, tokens in self._fixed_shapes(new):
            features = self.model.encode_text(tokens.to(self.model.logit_scale.device)).float()
            self._cache.update(zip(chunk, features.clone().unbind(), strict=False))
        features = torch.stack([self._cache[text] for text in texts])
        while len(self._cache) > CACHE_LIMIT:
            del self._cache[next(iter(self._cache))]
        return features

    def _encode(self, texts: list[str]) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(distinct)}
        tokens = self.model.tokenize(distinct, truncate=True)
        tokens = tokens[:, : int(self._lengths(tokens).max())]
        device = self.model.logit_scale.device
        features: Tensor = self.model.encode_text(tokens.to(device)).float()
        return features[torch.tensor([place[text] for text in texts], device=device)]

    def _fixed_shapes(self, texts: list[str]) -> Iterator[tuple[list[str], Tensor]]:
        """Captions in padded chunks of one shape per length class.

        Rounding depends on the shape of a batch. With fixed shapes a caption's features do not depend on which
        captions it was first met with, so a resumed run computes the same ones as the run that it continues.
        """
        if not texts:
            return
        tokens = self.model.tokenize(texts, truncate=True)
        classes = (self._lengths(tokens) + LENGTH_CLASS - 1) // LENGTH_CLASS
        for length in classes.unique().tolist():
            rows = (classes == length).nonzero()[:, 0]
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                padded = torch.cat([chunk, chunk[:1].expand(CHUNK - len(chunk))])
                cut = min(length * LENGTH_CLASS, tokens.shape[1])
                yield [texts[int(row)] for row in chunk], tokens[padded, :cut]

    def _lengths(self, tokens: Tensor) -> Tensor:
        """Tokens up to and with the end of the text, behind which a causal tower that reads out there sees nothing;
        for any other tower all of them."""
        model = self.model
        causal = getattr(model, "attn_mask", None) is not None
        if not causal or model.text_pool_type not in ("argmax", "eos"):
            return torch.full((len(tokens),), tokens.shape[1])
        ends = (tokens == model.text_eos_id) if model.text_pool_type == "eos" else tokens
        return ends.int().argmax(dim=-1) + 1
