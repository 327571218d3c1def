"""`clipag doctor`, and repositories of the hub as the hub's cache holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import save_file

from clipag_plug.options.tools import Doctor
from clipag_plug.weights import doctor, fetch, open_checkpoint, read, registry
from clipag_plug.weights.registry import FetchError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def findings(model: str = "") -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(model)}


def text_capable() -> dict[str, Any]:
    """A config whose text tower reads CLIP's vocabulary, which the reference sentences need."""
    config = helpers.config(False, helpers.SMALL)
    config["text_cfg"] |= {"context_length": 77, "vocab_size": 49408}
    return config


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    import open_clip

    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_file(open_clip.CLIP(**text_capable()).state_dict(), path)
    (tmp_path / "config.js").write_text(json.dumps(text_capable() | {"quick_gelu": None}))
    return path


def test_installation_alone() -> None:
    found = findings()
    assert "torch" in found["versions"].says
    assert found["device"].good and found["cache"].good


def test_sound_file_is_compared_under_both_activations(weights_file: Path) -> None:
    found = findings(f"{weights_file}#gelu,arch={weights_file.parent}/config.js")
    assert found["contents"].good
    assert found["activation"].says.startswith("GELU; the other one would turn the features")
    assert "nan" not in found["activation"].says


def test_reference_features_depend_on_the_activation(weights_file: Path) -> None:
    opened = open_checkpoint(f"{weights_file}#gelu,arch={weights_file.parent}/config.js")
    gelu, quick = (doctor._reference(opened, quick)[0] for quick in (False, True))
    assert 1e-7 < 1 - float(gelu @ quick) < 0.5
    again, _ = doctor._reference(opened, False)
    assert torch.equal(gelu, again)


def test_better_fitting_activation_is_reported(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The margin of the right sentence decides, whichever activation has it."""
    features = torch.nn.functional.normalize(torch.ones(4), dim=0)
    monkeypatch.setattr(
        doctor, "_reference", lambda opened, quick: (features, 0.2 if quick else 0.05)
    )
    found = findings(f"{weights_file}#gelu,arch={weights_file.parent}/config.js")["activation"]
    assert not found.good
    assert "QuickGELU fits better" in found.advice and "#quickgelu" in found.advice


def test_unstated_activation_is_measured_both_ways(weights_file: Path) -> None:
    found = findings(f"{weights_file}#arch={weights_file.parent}/config.js")["activation"]
    assert not found.good
    assert "under GELU" in found.says and "under QuickGELU" in found.says
    assert f"{weights_file}#gelu" in found.advice


def test_nan_and_bad_files_are_found(tmp_path: Path) -> None:
    state = helpers.weights(small=True)
    state["visual.proj"][0, 0] = float("nan")
    path = helpers.save(tmp_path / "w.pt", state)
    assert (
        "visual.proj"
        in findings(f"{path}#gelu,{helpers.arch(tmp_path, small=True)}")["numbers"].says
    )
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04garbage")
    found = findings(str(tmp_path / "bad.pt"))["contents"]
    assert not found.good and "damaged" in found.says


def test_model_that_is_not_downloaded_yet(home: Path) -> None:
    found = findings("clipag")
    assert (
        not found["weights"].good
        and "load('clipag') fetches https://zenodo.org" in found["weights"].advice
    )
    assert "contents" not in found
    home.mkdir()
    (home / "clipag.v2.download.partial").write_bytes(b"123")
    fetch.Trust(home).put("clipag", "a" * 64, 3)
    found = findings("clipag")
    assert "3 bytes of a broken download are kept" in found["weights"].says
    assert "recorded on" in found["hash"].says


def test_forget_makes_the_next_load_a_first_contact(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    fetch.Trust(home).put("clipag", "a" * 64, 3)
    for name in (
        "clipag.v2.safetensors",
        "clipag.v2.download.partial",
        "clipag-mini.v2.safetensors",
    ):
        (home / name).write_bytes(b"")
    assert doctor.run(Doctor("clipag", forget=True)) == 0
    assert "2 cached file(s) and the recorded hash" in capsys.readouterr().out
    assert (home / "clipag-mini.v2.safetensors").exists()
    assert fetch.Trust(home).get("clipag") is None


def test_exit_code_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pt").write_bytes(b"<html>")
    assert doctor.run(Doctor(str(tmp_path / "bad.pt"), json=True)) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row for row in rows if row["what"] == "contents" and "web page" in row["says"]]
    assert doctor.run(Doctor()) == 0


def snapshot(folder: Path, repository: str, files: dict[str, Any]) -> Path:
    """A repository as the hub's cache holds it."""
    base = folder / f"models--{repository.replace('/', '--')}"
    where = base / "snapshots" / "abc"
    where.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("abc")
    for name, value in files.items():
        if isinstance(value, str):
            (where / name).write_text(value)
        elif name.endswith(".safetensors"):
            save_file(value, where / name)
        else:
            torch.save(value, where / name)
    return where


def open_clip_config(quick_gelu: bool | None) -> str:
    config = helpers.config(False, helpers.SMALL)
    del config["quick_gelu"]
    if quick_gelu is not None:
        config["quick_gelu"] = quick_gelu
    preprocess = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    return json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})


def test_hub_repository_offline_is_mapped_in_place(tmp_path: Path, home: Path) -> None:
    state = helpers.weights(small=True)
    snapshot(
        tmp_path / "hub",
        "me/x",
        {"open_clip_config.json": open_clip_config(True), "open_clip_model.safetensors": state},
    )
    found = open_checkpoint("hf-hub:me/x", tmp_path / "hub")
    assert found.config["quick_gelu"] is True
    assert (found.record.mean, found.record.interpolation, found.record.resize_mode) == (
        (0.5,) * 3,
        "bilinear",
        "squash",
    )
    assert "snapshots" in found.files[0]
    assert not list((tmp_path / "hub").glob("*.safetensors"))


@pytest.mark.parametrize("layout", ["bin", "transformers"])
def test_other_hub_layouts_are_converted_once(tmp_path: Path, layout: str) -> None:
    from clipag_plug.weights import configs, layouts

    state = helpers.weights(small=True)
    if layout == "bin":
        files: dict[str, Any] = {
            "open_clip_config.json": open_clip_config(None),
            "open_clip_pytorch_model.bin": state,
        }
    else:
        config = json.dumps(configs.to_transformers(helpers.config(False, helpers.SMALL)))
        files = {
            "config.json": config,
            "model.safetensors": {
                n: v.contiguous() for n, v in layouts.to_transformers(state).items()
            },
        }
    snapshot(tmp_path / "hub", "me/x", files)
    first = open_checkpoint("hf-hub:me/x", tmp_path / "hub")
    made = list((tmp_path / "hub").glob("hf-me-x-*.safetensors"))
    assert [str(path) for path in made] == list(first.files)
    second = open_checkpoint("hf-hub:me/x", tmp_path / "hub")
    assert second.files == first.files and second.config == first.config
    assert all(torch.equal(second.state_dict[name], value) for name, value in state.items())


def test_registry_and_config_that_contradict_each_other_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(
        tmp_path / "hub",
        "me/x",
        {
            "open_clip_config.json": open_clip_config(None),
            "open_clip_model.safetensors": helpers.weights(small=True),
        },
    )
    record = registry.Checkpoint("known", quick_gelu=True, sources=("hf-hub:me/x",))
    monkeypatch.setattr(registry, "_table", lambda: {"known": record})
    with pytest.raises(ValueError, match="says GELU, the registry QuickGELU.*known#gelu"):
        open_checkpoint("known", tmp_path / "hub")
    assert open_checkpoint("known#quickgelu", tmp_path / "hub").config["quick_gelu"] is True


def test_absent_repository_offline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        FetchError, match="not in the local cache and HF_HUB_OFFLINE.*local-dir:FOLDER"
    ):
        fetch.repository("me/nothing", tmp_path)
    with pytest.raises(
        FetchError,
        match="could not be had from any of its 2 sources.*HF_HUB_OFFLINE.*HF_HUB_OFFLINE",
    ):
        open_checkpoint("fare2-l14", tmp_path)


def test_model_published_by_hand_only_says_where(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="Google Drive.*FILE#quickgelu,text=openai/ViT-B/32"):
        open_checkpoint("tga-zsr", tmp_path)


def test_written_files_are_read_by_the_safetensors_package(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = {
        "h": torch.ones(3).half(),
        "i": torch.arange(5),
        "f": torch.randn(2, 3),
        "s": torch.tensor(1.5),
        "b": torch.tensor([True]),
        "e": torch.zeros(0, 4),
        "t": torch.randn(4, 3).T,
    }
    read.write(tmp_path / "x.safetensors", state, {"who": "\u00e9"})
    theirs = load_file(tmp_path / "x.safetensors")
    ours, metadata = read.tensors(tmp_path / "x.safetensors")
    assert metadata["who"] == "\u00e9"
    for name, value in state.items():
        assert torch.equal(theirs[name], value) and torch.equal(ours[name], value)
