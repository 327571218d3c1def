"""`clipag run` on small programs that touch `clip` in the ways of well-known ones."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from run_scripts_helpers import SCRIPTS, clipag_run, nothing_is_left_behind  # noqa: F401

from clipag_plug import cli


@pytest.mark.parametrize(
    "script",
    [
        *("clipasso.py", "styleclip.py", "stylegan_nada.py", "disco.py", "openclip_style.py"),
        *("clipig.py", "pixray.py", "fusedream.py", "clipstyler.py"),
    ],
)
def test_a_script_runs_unmodified(script: str) -> None:
    assert clipag_run(str(SCRIPTS / script)) == 0


def test_a_package_with_a_copy_of_clip(capsys: pytest.CaptureFixture[str]) -> None:
    assert clipag_run(str(SCRIPTS / "deep_daze_style" / "imagine.py"), "a fox") == 0
    out, err = capsys.readouterr()
    assert out == "imagined\n"
    assert "`deep_daze.clip` is answered" in err


def test_a_predictor_runs_as_by_cog(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert clipag_run(str(SCRIPTS / "clipdraw.py"), "-i", "num_paths=3", "-o", "fox.png") == 0
    assert Image.open("fox.png").size == (224, 224) and os.listdir() == ["fox.png"]
    err = capsys.readouterr().err
    for shim in ("cog", "pydiffvg", "cuda", "model"):
        assert f"clipag: {shim}: " in err
    for unused in ("lightning", "torch_load", "numpy", "lpips", "pillow"):
        assert f"clipag: {unused}: " not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nothing=3"], "has no input 'nothing'; its inputs: prompt, num_paths"),
        (["-i", "num_paths=many"], "must be of type int"),
        (["--prompt", "a fox"], "takes -i NAME=VALUE"),
    ],
)
def test_a_predictor_refuses_other_inputs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipag_run(str(SCRIPTS / "clipdraw.py"), *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def vqgan_folder(tmp_path: Path) -> Path:
    """The script with stand-ins for the libraries it needs, and a checkpoint as of 2020 in the working folder."""
    folder = tmp_path / "vqgan"
    (folder / "pytorch_lightning" / "utilities").mkdir(parents=True)
    shutil.copy(SCRIPTS / "vqgan_clip.py", folder)
    (folder / "CLIP" / "data").mkdir(parents=True)  # a clone of openai/CLIP is a namespace package
    for name in ("__init__.py", "utilities/__init__.py", "callbacks.py"):
        (folder / "pytorch_lightning" / name).touch()
    rank_zero = "def rank_zero_only(function):\n    return function\n"
    (folder / "pytorch_lightning" / "utilities" / "rank_zero.py").write_text(rank_zero)

    class ModelCheckpoint:
        """Of a library that is not there when the file is read."""

        __module__, __qualname__ = "callbacks_of_2020", "ModelCheckpoint"

    import types

    home = types.ModuleType("callbacks_of_2020")
    vars(home)["ModelCheckpoint"] = ModelCheckpoint
    sys.modules[home.__name__] = home
    try:
        state = {
            "callbacks": {ModelCheckpoint: {"best": 1}},
            "state_dict": {"weight": torch.ones(2)},
        }
        torch.save(state, "checkpoint.ckpt")
    finally:
        del sys.modules[home.__name__]
    return folder


def test_vqgan_style(vqgan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        clipag_run(str(vqgan_folder / "vqgan_clip.py"), "-p", "a fox:1 | a dog", "-m", "ViT-B/16")
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "done cpu\n"
    for shim in (
        "names: `CLIP.clip`",
        "lightning: ",
        "torch_six: ",
        "torch_load: checkpoint.ckpt holds more",
    ):
        assert f"clipag: {shim}" in err
    assert "ViT-B/16" in err


def test_vqgan_style_by_its_adapter_alone(vqgan_folder: Path) -> None:
    script = str(vqgan_folder / "vqgan_clip.py")
    assert (
        cli.main(
            [
                "run",
                "--adapter",
                "VQGAN-CLIP",
                "--model=clipag-mini",
                "--device=cpu",
                "-q",
                script,
                "-p",
                "a fox:1 | a dog",
            ]
        )
        == 0
    )


def test_the_working_folder_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    relative = os.path.relpath(SCRIPTS / "clipstyler.py")
    assert clipag_run(relative) == 0
    assert os.path.isfile("styled.png")
