"""open_clip knows this registry's models as tags: loaded from the official layout, with our reading and activation."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_tiny

import clipag_plug
from clipag_plug import clip
from clipag_plug.weights import registry


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """open_clip with our tags, and as it was afterwards."""
    import open_clip as module
    from open_clip import factory, pretrained

    kept = [(owner, name, getattr(owner, name)) for owner in (module, factory, pretrained)
            for name in ("create_model", "download_pretrained") if hasattr(owner, name)]  # fmt: skip
    monkeypatch.setattr(
        pretrained, "_PRETRAINED", {k: dict(v) for k, v in pretrained._PRETRAINED.items()}
    )
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    clipag_plug.register_open_clip()
    clipag_plug.register_open_clip()
    yield module
    for owner, name, value in kept:
        setattr(owner, name, value)


def test_every_row_is_a_tag_of_its_architecture(open_clip: Any) -> None:
    tags = set(open_clip.list_pretrained())
    for record in registry.checkpoints():
        assert (record.arch, open_clip.pretrained._clean_tag(record.key)) in tags
    assert ("ViT-B-32", "laion2b_s34b_b79k") in tags


@pytest.mark.parametrize("tag, quick", [("clipag", False), ("fare1-b32", True)])
def test_a_tag_loads_the_official_layout_with_the_right_activation(
    open_clip: Any,
    tag: str,
    quick: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training file as the authors publish theirs (`module.`, numpy scalars), from a server on this machine."""
    import dataclasses

    served, source = tmp_path / "served", make_tiny()
    served.mkdir()
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"epoch": np.float64(3), "state_dict": state}, served / "official.pt")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/official.pt"
    row = dataclasses.replace(
        registry.find(tag), sources=(url,), size=None, sha256=None, text_from=None
    )
    monkeypatch.setitem(registry._table(), tag, row)
    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # loopback is in reach
    from clipag_plug.weights import configs

    known = configs.named
    monkeypatch.setattr(
        configs, "named", lambda name: dict(TINY) if name == "ViT-B-32" else known(name)
    )
    open_clip.factory._MODEL_CONFIGS["ViT-B-32"] = dict(TINY)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=tag)
    finally:
        server.shutdown()
    assert type(model).__module__ == "open_clip.model"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert (type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU") == quick
    assert preprocess.transforms[0].size == 64
    assert open_clip.get_tokenizer("ViT-B-32")(["a cat"]).shape == (1, 77)


def test_bundled_models_are_tags_of_mini(open_clip: Any) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms("mini", pretrained="clipag-mini")
    want = clip.load("clipag-mini", "cpu")[0]
    tokens = open_clip.get_tokenizer("mini")(["a lemon"])
    image = torch.rand(1, 3, 224, 224)
    assert torch.equal(model.encode_image(image), want.encode_image(image))
    assert torch.equal(model.encode_text(tokens), want.encode_text(tokens.int()))
    assert preprocess.transforms[-1].mean == pytest.approx(want.mean)
    assert len(model(image, tokens)) == 3


def test_other_models_are_open_clips_own(open_clip: Any) -> None:
    open_clip.factory._MODEL_CONFIGS["ViT-B-32"] = dict(TINY)
    assert type(open_clip.create_model("ViT-B-32")).__module__ == "open_clip.model"
    with pytest.raises(RuntimeError, match="nosuch"):
        open_clip.create_model("ViT-B-32", pretrained="nosuch")
    for tag in (None, "nosuch"):
        with pytest.raises(ValueError, match="only known with weights: .*clipag_mini"):
            open_clip.create_model("mini", pretrained=tag)
