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
        for chunk, tokens in _fixed_shapes(new):
            features = self.model.encode_text(tokens.to(self.model.logit_scale.device))
            self._cache.update(zip(chunk, features.clone().unbind(), strict=False))
        features = torch.stack([self._cache[text] for text in texts])
        while len(self._cache) > CACHE_LIMIT:
            del self._cache[next(iter(self._cache))]
        return features

    def _encode(self, texts: list[str]) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(distinct)}
        tokens = _tokens(distinct)
        tokens = tokens[:, : int(_lengths(tokens).max())]
        device = self.model.logit_scale.device
        features: Tensor = self.model.encode_text(tokens.to(device))
        return features[torch.tensor([place[text] for text in texts], device=device)]


def _fixed_shapes(texts: list[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Captions in padded chunks of one shape per length class.

    Rounding depends on the shape of a batch. With fixed shapes a caption's features do not depend on which captions
    it was first met with, so a resumed run computes the same ones as the run that it continues.
    """
    if not texts:
        return
    tokens = _tokens(texts)
    classes = (_lengths(tokens) + LENGTH_CLASS - 1) // LENGTH_CLASS
    for length in classes.unique().tolist():
        rows = (classes == length).nonzero()[:, 0]
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            padded = torch.cat([chunk, chunk[:1].expand(CHUNK - len(chunk))])
            yield [texts[int(row)] for row in chunk], tokens[padded, : length * LENGTH_CLASS]


def _tokens(texts: list[str]) -> Tensor:
    from ..clip import tokenize

    tokens: Tensor = tokenize(texts, truncate=True)
    return tokens


def _lengths(tokens: Tensor) -> Tensor:
    """Tokens up to and with the end-of-text token, which has the highest number. A causal tower reads out there, so
    cutting the padding behind it changes nothing."""
    return tokens.argmax(dim=-1) + 1
