"""The text tower in training: features of captions, and what it can learn alone before any image is seen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..model import CLIP
from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .teachers import TextTeacher, geometry

CACHE_LIMIT = 200_000  # sentences; at 512 floats each about 400 MB
CHUNK, LENGTH_CLASS = 64, 11  # seven length classes up to CLIP's 77 tokens
SCALE = 20.0  # logit scale that the image tower starts with
SOFT_SCALE = 8.0  # of the spreading: the lower, the longer close classes go on repelling each other
Report = Callable[[int, float], None]


class TextFeatures:
    """Captions (list of N) -> raw features (N, D).

    A frozen tower encodes each distinct caption once; its features are constants. When the cache is full the oldest
    captions go first. A tower that trains gets a graph. stored: a file's features, in place of the tower's.
    """

    def __init__(self, model: CLIP, trained: bool, stored: TextTeacher | None = None) -> None:
        self.model, self.trained, self.stored = model, trained, stored
        self._cache: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        if self.stored is not None:
            return self.stored(texts)
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

    def _tokens(self, texts: list[str]) -> Tensor:
        tokens, known = self.model.tokenize(texts, truncate=True), self.model.vocab_size
        if int(tokens.max()) >= known:
            raise ValueError(
                f"the model's vocab_size is {known}, and its tokenizer gives the token "
                f"{int(tokens.max())}; its config lacks the vocab_size, or the tokenizer, that belong together"
            )
        return tokens

    def _encode(self, texts: list[str]) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        tokens = self._tokens(distinct)
        lengths = self._lengths(tokens)
        order = lengths.argsort(
            stable=True
        )  # in parts, the short ones without the long one's padding
        device, parts = self.model.logit_scale.device, []
        for rows in order.split(CHUNK):
            part = tokens[rows, : int(lengths[rows].max())]
            parts.append(self.model.encode_text(part.to(device)).float())
        place = {distinct[row]: at for at, row in enumerate(order.tolist())}
        return torch.cat(parts)[torch.tensor([place[text] for text in texts], device=device)]

    def _fixed_shapes(self, texts: list[str]) -> Iterator[tuple[list[str], Tensor]]:
        """Captions in padded chunks of one shape per length class.

        Rounding depends on the shape of a batch. With fixed shapes a caption's features do not depend on which
        captions it was first met with, so a resumed run computes the same ones as the run that it continues.
        """
        if not texts:
            return
        tokens = self._tokens(texts)
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
        if not model._is_causal or model.text_pool_type not in ("argmax", "eos"):
            return torch.full((len(tokens),), tokens.shape[1])
        ends = (tokens == model.text_eos_id) if model.text_pool_type == "eos" else tokens
        return ends.int().argmax(dim=-1) + 1


def lower(
    model: CLIP,
    loss_of_step: Callable[[], Tensor],
    steps: int,
    lr: float,
    report: Report,
    more: Sequence[nn.Parameter] = (),
) -> None:
    """Lowers a loss by the weights of the text tower, and of `more`, and leaves the model frozen.

    loss_of_step: the next step's loss, a scalar. lr: the peak, after 20 steps; then a cosine to zero. report hears
    each step and its loss.
    """
    weights = [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit_"))]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([*weights, *more], lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(step, loss.item())
    model.requires_grad_(False)


def learn_geometry(
    model: CLIP,
    teacher: TextTeacher,
    texts: list[str],
    steps: int,
    *,
    kind: str = "linear",
    batch: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
    report: Report = lambda step, loss: None,
) -> None:
    """Trains the text tower alone towards the geometry of a frozen encoder's vectors; see `teachers.geometry`.

    kind: "linear", through a linear map, thrown away afterwards; "cosine", the vectors being the features' own;
    "similarity", by the similarities within a batch. ValueError without texts, or for vectors of another size.
    """
    if not texts:
        raise ValueError(
            "--text-steps under --text-teacher needs texts; give --text-teacher-texts FILE with one a line"
        )
    encode, rng, head = TextFeatures(model, trained=True), random.Random(seed), None
    size = int(model.visual.output_dim)
    if kind == "cosine" and teacher.width != size:
        raise ValueError(
            f"--text-teacher-loss cosine needs vectors of the features' size, {size}; those of {teacher.name!r} have "
            f"{teacher.width}: take linear"
        )
    if kind == "linear":
        head = nn.Linear(size, teacher.width, bias=False)
        head = head.to(model.logit_scale.device)

    def loss() -> Tensor:
        chosen, vectors = teacher.drawn(texts, batch, rng)
        return geometry(encode(chosen), vectors, head, direct=kind == "cosine").mean()

    lower(model, loss, steps, lr, report, [] if head is None else list(head.parameters()))


def spread_classes(
    model: CLIP,
    vocabulary: Vocabulary,
    steps: int,
    *,
    lr: float = 2e-3,
    seed: int = 0,
    report: Report = lambda step, loss: None,
) -> None:
    """Trains the text tower alone: captions of one class together, those of different classes apart.

    Each step writes two captions for every class, with names and templates drawn afresh. A fresh text tower gives all
    captions nearly the same feature, and image and text towers that start together keep the classes in a few
    dimensions for a long time; spread apart first, the classes are as far from each other as a classifier's weights.
    A group word follows the mean of its classes, which are constants to it: pulled by their groups, classes of one
    group would end up close together. Leaves the logit scale at `SCALE`.
    """
    encode, rng, count = (
        TextFeatures(model, trained=True),
        random.Random(seed),
        len(vocabulary.names),
    )

    def caption(word: str) -> str:
        return sentence(word, rng.choice(TEMPLATES))

    def loss() -> Tensor:
        first, second = (
            encode([caption(vocabulary.sample_word(c, rng, 0.0)) for c in range(count)])
            for _ in range(2)
        )
        same = torch.eye(count, dtype=torch.bool, device=first.device)
        apart = losses.contrastive(first, second, SOFT_SCALE, same)
        if not vocabulary.groups:
            return apart
        members = torch.zeros(len(vocabulary.groups), count, device=first.device)
        for row, group in enumerate(vocabulary.groups.values()):
            members[row, list(group)] = 1
        groups = encode([caption(word) for word in vocabulary.groups])
        return apart + losses.cosine(groups, members @ F.normalize(second.detach(), dim=-1)).mean()

    lower(model, loss, steps, lr, report)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))


@torch.no_grad()
def silence_unknown_tokens(model: CLIP, vocabulary: Vocabulary) -> None:
    """Zeroes the embedding of every token that no caption of the vocabulary uses.

    Such rows never receive a gradient, so they stay zero: a word that the model was not taught adds nothing to a
    prompt, where a random row would add noise. The zero rows cost no space in the packed file either.
    """
    # The tokeniser works word by word, so words and templates need not be crossed.
    texts = [sentence(word, template) for word in ("orange", "lemon") for template in TEMPLATES]
    used = torch.unique(model.tokenize([*texts, *vocabulary.words], truncate=True).long())
    keep = torch.zeros(model.token_embedding.weight.shape[0], 1)
    keep[used] = 1
    keep[0] = 0  # padding behind the end-of-text token, which a causal tower never reads
    model.token_embedding.weight.mul_(keep.to(model.token_embedding.weight.device))
