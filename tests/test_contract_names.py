"""Which model a name means, and the package's own names (points 2 and 11 of the contract)."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

import pytest
from contract_helpers import tiny_224  # noqa: F401

import clipag_plug as clip
from clipag_plug.clip import ROBUST_COUNTERPART
from clipag_plug.model import CLIP


@pytest.mark.parametrize("name", ["ViT-B/33", "nonsense", "", "RN18"])
def test_point_2_an_unknown_name_lists_what_is_available(name: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        clip.load(name, "cpu")
    assert str(caught.value).startswith(f"Model {name} not found")
    assert f"available models = {clip.available_models()}" in str(caught.value)


def test_point_2_a_bare_repository_name_is_refused_with_both_spellings() -> None:
    with pytest.raises(RuntimeError, match="'hf-hub:org/name' or 'local-dir:org/name'"):
        clip.load("org/name", "cpu")


def test_point_2_generic_names_mean_their_robust_counterpart_and_say_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip.clip, "_said", set())
    assert clip.load("ViT-B/32", "cpu")[0].name == "clipag"
    assert clip.load("ViT-B/32", "cpu")[0].name == "clipag"
    (record,) = caplog.records
    assert record.name == "clipag_plug.clip"
    assert "'ViT-B/32' gives 'clipag'" in record.getMessage().replace("load(", "").replace(")", "")
    assert "openai/ViT-B/32" in record.getMessage()
    assert clip.load("ViT-B/16", "cpu")[0].name == "fare4-b16-laion"
    assert len(caplog.records) == 2


@pytest.mark.parametrize("name", ["openai/ViT-B/32", "laion/ViT-B/32", "clipag", "fare2-l14"])
def test_point_2_keys_give_themselves_in_silence(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert clip.load(name, "cpu")[0].name == name
    assert caplog.records == []


@pytest.mark.parametrize("name", [name for name, key in ROBUST_COUNTERPART.items() if key is None])
def test_point_2_without_a_counterpart_there_are_no_other_weights(name: str) -> None:
    assert name not in clip.available_models()
    with pytest.raises(RuntimeError) as caught:
        clip.load(name, "cpu")
    assert "no robust counterpart" in str(caught.value) and "'clipag'" in str(caught.value)
    assert "CLIPAG_PLUG_MODEL" in str(caught.value)


@pytest.mark.parametrize("name", ROBUST_COUNTERPART)
def test_point_2_the_environment_redirects_every_generic_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "clipag-mini")
    assert clip.load(name, "cpu")[0].name == "clipag-mini"
    assert name in clip.available_models()
    assert clip.load("openai/ViT-B/32", "cpu")[0].name == "openai/ViT-B/32"


def test_point_2_a_redirection_may_itself_be_a_generic_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "ViT-L/14")
    assert clip.load("RN50", "cpu")[0].name == "fare4-l14"
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "RN50")
    with pytest.raises(RuntimeError, match="Model RN50 not found"):
        clip.load("ViT-B/32", "cpu")


def test_point_2_every_counterpart_is_a_robust_model_of_the_registry() -> None:
    from clipag_plug.weights import registry

    for name, key in ROBUST_COUNTERPART.items():
        if key is not None:
            record = registry.find(key)
            assert record.key == key and record.method != "vanilla"
            assert record.arch == name.replace("/", "-")
    models = clip.available_models()
    assert len(models) == len(set(models))
    assert {"ViT-B/32", "clipag", "clipag-mini", "openai/ViT-B/32"} <= set(models)


def test_point_11_the_packages_names_and_submodules() -> None:
    from clipag_plug import clip as submodule
    from clipag_plug.clip import __all__ as names
    from clipag_plug.simple_tokenizer import SimpleTokenizer

    assert sorted(names) == ["available_models", "load", "tokenize"]
    assert submodule.load is clip.load and submodule.tokenize is clip.tokenize
    assert clip.model.CLIP is CLIP and clip.simple_tokenizer.SimpleTokenizer is SimpleTokenizer


SURFACE = json.loads((Path(__file__).parent / "clip_names.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", SURFACE["names"])
@pytest.mark.parametrize("patched", [False, True])
def test_what_public_code_takes_from_clip_is_there_or_explained(module: str, patched: bool) -> None:
    """Counted names of clip_names.json: name -> [files, repositories]; names of changed copies raise a sentence."""
    assert SURFACE["files"] >= 200 and len(SURFACE["repositories"]) >= 60
    with clip.patch(model="clipag-mini") if patched else contextlib.nullcontext():
        ours = importlib.import_module(
            module if patched else module.replace("clip", "clipag_plug", 1)
        )
        for name, (_, repositories) in SURFACE["names"][module].items():
            if hasattr(ours, name):
                assert callable(getattr(ours, name)) or name in ("_MODELS", "clip")
            else:
                assert repositories == 1, name
                with pytest.raises(AttributeError, match="has no attribute"):
                    getattr(ours, name)


def test_private_names_of_clip_clip_behave() -> None:
    from PIL import Image

    from clipag_plug import simple_tokenizer
    from clipag_plug.clip import _MODELS, BICUBIC, _convert_image_to_rgb, _tokenizer, _transform

    assert BICUBIC.value == "bicubic" and _tokenizer.encode("a cat") == [320, 2368]
    assert _convert_image_to_rgb(Image.new("L", (4, 4))).mode == "RGB"
    assert _transform(32)(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert list(_MODELS) == clip.available_models()
    assert simple_tokenizer.get_pairs("abab") == {("a", "b"), ("b", "a")}
    with pytest.raises(AttributeError, match="its own changed copy"):
        clip.clip.get_similarity_map  # noqa: B018
