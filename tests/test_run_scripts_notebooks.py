"""`clipag run` on notebooks: cell by cell, by number, and errors that name their cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_scripts_helpers import clipag_run, nothing_is_left_behind  # noqa: F401

from clipag_plug import cli


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with a text cell in front of the given code cells."""
    table = [{"cell_type": "markdown", "source": ["# strokes"]}]
    table += [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 0, "cells": table}))
    return path


INSTALL = "import subprocess\n!pip install svgwrite\nsubprocess.check_output(['no-such-compiler-at-all'])\n"
SETUP = (
    "#@title Imports\n%tensorflow_version 2.x\nimport os, sys\nimport clip\nimport moviepy.editor as mvp\n"
    "from IPython.display import Image, clear_output\n!nvidia-smi -L\nprint(sys.argv[1:])\n"
)
LOAD = (
    "import torch, pydiffvg, ttools.modules\n%cd /content/diffvg/apps/\ndevice = torch.device('cuda')\n"
    "model, preprocess = clip.load('ViT-B/32', device, jit=False)\n"
)
DRAW = (
    "points = torch.rand(4, 2) * 64\npath = pydiffvg.Path(torch.tensor([2]), points, stroke_width=torch.tensor(2.), "
    "is_closed=False)\ngroup = pydiffvg.ShapeGroup(torch.tensor([0]), None, stroke_color=torch.rand(4))\n"
    "scene = pydiffvg.RenderFunction.serialize_scene(64, 64, [path], [group])\n"
    "image = pydiffvg.RenderFunction.apply(64, 64, 2, 2, 0, None, *scene)\n"
    "pydiffvg.imwrite(image.cpu(), '/content/res/iter_0.png', gamma=1.0)\nimage.shape\n"
)


def test_a_notebook_runs_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipag_plug.adapters import pydiffvg_api

    written = []

    def imwrite(image: Any, filename: str, *arguments: Any, **keywords: Any) -> None:
        if filename.startswith("/content"):
            raise PermissionError(13, "Permission denied", filename)
        written.append(filename)

    monkeypatch.setattr(pydiffvg_api, "imwrite", imwrite)
    path = notebook(tmp_path / "clipdraw.ipynb", INSTALL, SETUP, LOAD, DRAW)
    assert clipag_run(str(path), "--flag") == 0
    out, err = capsys.readouterr()
    assert out == "['--flag']\ntorch.Size([64, 64, 4])\n", "the last expression of a cell is shown"
    assert written == ["content/res/iter_0.png"]
    for line in (
        "adapter clipdraw",
        "cell 1: skipped !pip install svgwrite",
        "cell 1 installs packages and failed",
        "cell 2: Imports",
        "cell 2: skipped !nvidia-smi -L",
        "%cd /content/diffvg/apps/: No such file",
    ):
        assert line in err


def test_cells_are_chosen_by_number_and_an_error_names_its_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(
        tmp_path / "n.ipynb", "print('one')", "print('two')", "x = 1\n1 / 0", "print('four')"
    )
    assert cli.main(["run", "--cells", "2,4", str(path)]) == 0
    assert capsys.readouterr().out == "two\nfour\n"
    assert cli.main(["run", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n" and "n.ipynb[3]" in err and "1 / 0" in err
    assert cli.main(["run", "--cells", "0", str(path)]) == 2
    assert "there is no code cell 0 in n.ipynb; there are 1, 2, 3, 4" in capsys.readouterr().err


def test_a_file_that_is_no_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.ipynb").write_text("{}")
    assert cli.main(["run", str(tmp_path / "n.ipynb")]) == 2
    assert "is no Jupyter notebook" in capsys.readouterr().err
