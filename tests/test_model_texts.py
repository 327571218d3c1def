"""Texts: lists of any length and rows cut short have open_clip's features; the model's own tokenizer is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY
from model_helpers import ARCHITECTURES, CLIPA_TEXT, CLIPA_VISION, config, inputs, open_clip_model
from torch import Tensor

from clipag_plug import clip
from clipag_plug.model import CLIP, TEXT_CHUNK, build


def long_list(count: int) -> Tensor:
    words = ("a cat", "a painting of the sea at night", "an orange", "x")
    return clip.tokenize([f"{words[i % len(words)]} {i}" for i in range(count)])


def test_long_lists_of_texts_agree_with_open_clip(tiny_clip: CLIP) -> None:
    theirs = open_clip_model(TINY)
    theirs.load_state_dict(tiny_clip.state_dict())
    tokens = long_list(2 * TEXT_CHUNK + 7)
    with torch.no_grad():
        assert (tiny_clip.encode_text(tokens) - theirs.encode_text(tokens)).abs().max() < 1e-5
        assert torch.equal(
            tiny_clip.encode_text(tokens[:TEXT_CHUNK]), theirs.encode_text(tokens[:TEXT_CHUNK])
        )


def seen_shapes(model: CLIP, tokens: Tensor) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    pieces = model._text_features
    model._text_features = lambda text: shapes.append(tuple(text.shape)) or pieces(text)
    model.encode_text(tokens)
    del model._text_features
    return shapes


def test_long_lists_are_taken_in_pieces_when_no_gradient_is_kept(tiny_clip: CLIP) -> None:
    tokens = long_list(TEXT_CHUNK + 1)
    with torch.no_grad():
        pieces = seen_shapes(tiny_clip, tokens)
    assert [count for count, _ in pieces] == [TEXT_CHUNK, 1]
    assert max(length for _, length in pieces) < 20
    assert seen_shapes(tiny_clip, tokens) == [
        (TEXT_CHUNK + 1, 77)
    ]  # the graph of all texts is wanted
    frozen = tiny_clip.requires_grad_(False)
    assert len(seen_shapes(frozen, tokens)) == 2  # gradients enabled, but nobody would receive one


def test_towers_that_are_not_causal_are_never_cut() -> None:
    made = ARCHITECTURES["CLIPA"]
    model, theirs = build(made, open_clip_model(made).state_dict()), open_clip_model(made)
    _, tokens = inputs(model, texts=TEXT_CHUNK + 3)
    with torch.no_grad():
        assert (model.encode_text(tokens) - theirs.encode_text(tokens)).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match=r"model that reads \(N, 16\)"):
        model.encode_text(tokens[:2, :10])


def test_shorter_rows_give_the_same_features_and_longer_ones_an_error(tiny_clip: CLIP) -> None:
    tokens = clip.tokenize(["a cat", "a dog"])
    assert torch.allclose(
        tiny_clip.encode_text(tokens), tiny_clip.encode_text(tokens[:, :4]), atol=1e-5
    )
    with pytest.raises(RuntimeError, match="model.tokenize"):
        tiny_clip.encode_text(torch.zeros(2, 78, dtype=torch.int))
    with pytest.raises(RuntimeError, match="model.tokenize"):
        tiny_clip.encode_text(tokens[0])


def test_a_model_tokenizes_to_its_own_context_length() -> None:
    model = build(config(text={**TINY["text_cfg"], "context_length": 12}), None)
    assert model.tokenize("a cat").shape == (1, 12)
    assert torch.equal(model.tokenize(["a cat"]), clip.tokenize(["a cat"], 12))
    with pytest.raises(RuntimeError, match="context length 12"):
        model.tokenize("cat " * 20)
    assert model.tokenize("cat " * 20, truncate=True)[0, -1] == 49407


def test_a_model_with_a_foreign_tokenizer_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import tokenizer as open_clip_tokenizer

    from clipag_plug import simple_tokenizer

    class Fake:
        def __init__(self, name: str, **options: Any) -> None:
            assert (name, options) == ("bert-base-uncased", {"strip_sep_token": True})
            self.clean_fn = str.lower
            self.tokenizer = lambda text: type("Ids", (), {"input_ids": [1, *map(ord, text), 2]})()

        def __call__(self, texts: list[str], context_length: int) -> Tensor:
            rows = [self.tokenizer(text.lower()).input_ids[:context_length] for text in texts]
            return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    monkeypatch.setattr(open_clip_tokenizer, "HFTokenizer", Fake)
    simple_tokenizer._foreign.cache_clear()
    text = {**CLIPA_TEXT, "tokenizer_kwargs": {"strip_sep_token": True}}
    model = build(config(CLIPA_VISION, text), None)
    tokens = model.tokenize(["AB", "c"])
    assert tokens.dtype == torch.int32 and tokens[0, :5].tolist() == [1, 97, 98, 2, 0]
    assert model.encode_text(tokens).shape == (2, 32)
    with pytest.raises(RuntimeError, match="too long for context length 16"):
        model.tokenize("x" * 15)
    assert model.tokenize("x" * 15, truncate=True).shape == (1, 16)
    simple_tokenizer._foreign.cache_clear()
