"""Notebooks: magics become Python, cells run in order, pictures are saved, what is left out is said and counted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from adapters_helpers import clipag_run, process  # noqa: F401
from clipag_plug.adapters import notebooks

from clipag_plug import cli

Capture = pytest.CaptureFixture[str]
MAGICS = """#@title Imports {vertical-output: true}
%tensorflow_version 2.x
!pip install a \\
    b
x = 7 \\
  % 4
if x:
    !nvidia-smi -L
text = '''
!not a command
%s''' % 3
y = (x
  % 2)
files = !ls
%cd /no/such/folder
%time z = 3
!python train.py \\
  --steps {z}
%run other.py
%matplotlib inline"""


def test_magics_become_python_and_lines_stay() -> None:
    cell = notebooks.convert(MAGICS, 4)
    assert len(cell.source.splitlines()) == len(MAGICS.splitlines())
    calls: list[Any] = []
    names: dict[str, Any] = {"__magic__": lambda *given: calls.append(given)}
    exec(cell.source, names)
    assert (names["x"], names["y"], names["z"], names["files"]) == (3, 1, 3, [])
    assert names["text"] == "\n!not a command\n3"
    assert calls[0] == ("cd", "/no/such/folder") and calls[2] == ("run", "other.py")
    assert calls[1][0] == "shell" and calls[1][1].split() == [
        "python",
        "train.py",
        "--steps",
        "{z}",
    ]
    assert cell.installs and cell.title.startswith("Imports")
    assert cell.skipped == ["!ls"], "what is installed already, and a view of the GPU, are no loss"


@pytest.mark.parametrize(
    ("source", "ran"),
    [("%%bash\nls\necho 'x", False), ("%%time\nran = True", True), ("%%html\n<b>", False)],
)
def test_cell_magics(source: str, ran: bool) -> None:
    cell = notebooks.convert(source)
    names: dict[str, Any] = {}
    exec(cell.source, names)
    assert names.get("ran", False) is ran and len(cell.skipped) == (0 if ran else 1)


def notebook(path: Path, *cells: str) -> str:
    """A notebook with a text cell in front of the given code cells."""
    table = [{"cell_type": "markdown", "source": ["# strokes"]}]
    table += [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 0, "cells": table}))
    return str(path)


INSTALL = "import subprocess\n!pip install svgwrite\nsubprocess.check_output(['no-such-compiler-at-all'])\n"
SETUP = (
    "#@title Imports\n%tensorflow_version 2.x\nimport os, sys\nimport clip\nimport moviepy.editor as mvp\n"
    "from IPython.display import Image, clear_output, display\n!nvidia-smi -L\nprint(sys.argv[1:])\n"
    "print('IPython' in sys.modules)\n"
)
DRAW = (
    "import torch, pydiffvg, ttools.modules\n%cd /content/diffvg/apps/\ndevice = torch.device('cuda')\n"
    "model, preprocess = clip.load('ViT-B/32', device, jit=False)\n"
    "points = torch.rand(4, 2) * 64\npath = pydiffvg.Path(torch.tensor([2]), points, stroke_width=torch.tensor(2.), "
    "is_closed=False)\ngroup = pydiffvg.ShapeGroup(torch.tensor([0]), None, stroke_color=torch.rand(4))\n"
    "scene = pydiffvg.RenderFunction.serialize_scene(64, 64, [path], [group])\n"
    "image = pydiffvg.RenderFunction.apply(64, 64, 2, 2, 0, None, *scene)\n"
    "pydiffvg.imwrite(image.cpu(), '/content/res/iter_0.png', gamma=1.0)\nimage.shape\n"
)
SHOW = (
    "import matplotlib.pyplot as plt\nfrom PIL import Image as Pictures\nfor n in range(2):\n"
    "    plt.imshow([[n]])\n    plt.show()\nplt.plot([1, 2])\n"
    "display(Pictures.new('RGB', (8, 8)))\nplt.gcf()\n"
)


@pytest.mark.usefixtures("process")
def test_a_notebook_runs_and_its_pictures_are_saved(tmp_path: Path, capsys: Capture) -> None:
    path = notebook(tmp_path / "clipdraw.ipynb", INSTALL, SETUP, DRAW, SHOW)
    assert clipag_run(path, "--flag") == notebooks.SKIPPED
    out, err = capsys.readouterr()
    assert out == "['--flag']\nTrue\ntorch.Size([64, 64, 4])\n", "the last expression is shown"
    pictures = {f"clipdraw-4-{n}.png" for n in (1, 2, 3, 4)}
    if not os.path.isdir("/content"):
        assert Path("content/res/iter_0.png").is_file()
        pictures |= {"content"}
    assert set(os.listdir()) == pictures, "two shown figures, a picture, and the last figure"
    for line in (
        *("adapter clipdraw", "cell 1 installs packages and failed", "cell 2: Imports"),
        *("%cd /content/diffvg/apps/: No such file", "2 lines were skipped or failed; exit code 3"),
    ):
        assert line in err


@pytest.mark.usefixtures("process")
def test_await_stands_at_the_top_of_cells(tmp_path: Path, capsys: Capture) -> None:
    first = (
        "import asyncio, clip\nclip.load('RN50')\nlock = asyncio.Lock()\nawait asyncio.sleep(0, 7)"
    )
    second = "async def f():\n    async with lock: return 4\nx = await f()\nx + await f()"
    path = notebook(tmp_path / "n.ipynb", first, second)
    assert clipag_run(str(path)) == 0
    assert capsys.readouterr().out.splitlines() == ["7", "8"]


def test_run_and_python_lines_are_executed_with_the_patch(tmp_path: Path, capfd: Capture) -> None:
    Path("other.py").write_text("import sys, clip\nfound = clip.load.__module__, sys.argv\n")
    Path("tool.py").write_text("import sys, cog\nprint(cog.Predictor.__module__, sys.argv[1])\n")
    cells = (
        "n = 3\n%run other.py a b",
        "found",
        "lines = !python tool.py $n\nlines",
        "!python -c 'exit(1)'",
    )
    assert clipag_run(notebook(tmp_path / "n.ipynb", *cells[:3])) == 0
    out = capfd.readouterr().out
    assert "('clipag_plug.adapters.models', ['other.py', 'a', 'b'])" in out
    assert "['clipag_plug.adapters.cog 3']" in out
    assert clipag_run(notebook(tmp_path / "n.ipynb", cells[3])) == notebooks.SKIPPED


@pytest.mark.usefixtures("process")
def test_cells_are_chosen_by_number_and_an_error_names_its_cell(
    tmp_path: Path, capsys: Capture
) -> None:
    path = notebook(
        tmp_path / "n.ipynb", "print('one')", "print('two')", "x = 1\n1 / 0", "print('four')"
    )
    assert cli.main(["run", "--cells", "2,4", path]) == 0
    assert capsys.readouterr().out == "two\nfour\n"
    assert cli.main(["run", path]) == 1
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n" and "n.ipynb[3]" in err and "1 / 0" in err
    assert cli.main(["run", "--cells", "0", path]) == 2
    assert "there is no code cell 0 in n.ipynb; there are 1, 2, 3, 4" in capsys.readouterr().err
    (tmp_path / "n.ipynb").write_text("{}")
    assert cli.main(["run", path]) == 2
    assert "is no Jupyter notebook" in capsys.readouterr().err
