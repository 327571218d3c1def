"""What `load` takes, and that it gives a module of one's own (points 1 and 3 of the contract)."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_helpers import tiny_224  # noqa: F401
from torch import Tensor

import clipag_plug as clip
from clipag_plug.model import CLIP


def test_point_1_signature_is_openais_with_precision_added() -> None:
    load = inspect.signature(clip.load).parameters
    assert list(load) == ["name", "device", "jit", "download_root", "precision"]
    assert load["precision"].kind is inspect.Parameter.KEYWORD_ONLY
    assert str(inspect.signature(clip.tokenize)).startswith("(texts")
    assert list(inspect.signature(clip.tokenize).parameters) == [
        "texts",
        "context_length",
        "truncate",
    ]


@pytest.mark.parametrize(
    "arguments, keywords",
    [
        (("clipag", "cpu"), {}),
        (("clipag", torch.device("cpu")), {"jit": False}),
        ((), {"name": "clipag", "device": "cpu"}),
        (("clipag",), {"device": torch.device("cpu"), "download_root": "models"}),
        (("clipag", "cpu", False, None), {"precision": "fp32"}),
    ],
)
def test_point_1_load_takes_what_programs_pass(arguments: tuple, keywords: dict[str, Any]) -> None:
    model, preprocess = clip.load(*arguments, **keywords)
    assert isinstance(model, CLIP) and callable(preprocess)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.dtype == torch.float32


def test_point_1_the_default_device_is_asked_for_at_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clip.load("clipag")[0].logit_scale.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    wanted = []
    monkeypatch.setattr(CLIP, "to", lambda self, device: wanted.append(device) or self)
    clip.load("clipag")
    assert wanted[-1] == "cuda"


def test_point_1_jit_is_ignored_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        clip.load("clipag", "cpu", jit=False)
        assert caplog.messages == []
        model, _ = clip.load("clipag", "cpu", jit=True)
    assert "jit=True is ignored" in caplog.text
    assert isinstance(model, CLIP)
    sizes = (model.input_resolution, model.context_length, model.vocab_size)
    assert [size.item() for size in sizes] == [224, 77, 49408]
    assert model.encode_text(model.tokenize("a")).shape == (1, 32)


def test_point_1_precision_by_keyword() -> None:
    assert clip.load("clipag", "cpu", precision="fp16")[0].dtype == torch.float16
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        clip.load("clipag", "cpu", precision="half")


def test_point_1_a_path_may_be_given(tiny_checkpoint: Path) -> None:
    assert clip.load(str(tiny_checkpoint), "cpu")[0].name == str(tiny_checkpoint)
    assert clip.load(tiny_checkpoint, "cpu")[0].name == str(tiny_checkpoint)


def test_point_3_every_load_is_a_new_module_in_evaluation_mode() -> None:
    first, second = clip.load("clipag", "cpu")[0], clip.load("clipag", "cpu")[0]
    assert first is not second and first.visual is not second.visual
    assert not first.training and not any(module.training for module in first.modules())
    seen: list[Tensor] = []
    first.visual.transformer.resblocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    second.encode_image(torch.rand(1, 3, 224, 224))
    assert seen == []
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_point_3_freezing_and_moving_chain_on_the_same_module() -> None:
    loaded = clip.load("clipag", jit=False)[0]
    assert loaded.eval().requires_grad_(False).to("cpu") is loaded
    assert loaded.requires_grad_(False).eval().to(torch.device("cpu")) is loaded
    assert sum(p.numel() for p in loaded.parameters()) > 0
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    loaded.encode_image(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in loaded.parameters())
    loaded.zero_grad()


def test_point_3_loading_inside_inference_mode_gives_ordinary_parameters() -> None:
    with torch.inference_mode():
        loaded, _ = clip.load("clipag", "cpu")
    assert not any(parameter.is_inference() for parameter in loaded.parameters())
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    assert torch.autograd.grad(loaded.encode_image(x).sum(), x)[0].abs().sum() > 0


def test_nothing_is_written_and_no_path_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.load("clipag", "cpu", download_root="models")
    assert os.listdir(tmp_path) == []
