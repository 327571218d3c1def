"""`clipag run` on small programs that touch `clip` in the ways of well-known ones."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from clipag_plug import cli

SCRIPTS = Path(__file__).parent / "upstream_scripts"


def surroundings() -> dict[str, Any]:
    """Everything that a patch or a script could leave behind."""
    import numpy
    import open_clip
    import torchvision
    from PIL import Image

    owners = {
        "torch": torch,
        "torch.cuda": torch.cuda,
        "torch.hub": torch.hub,
        "torch.jit": torch.jit,
        "torchvision.utils": torchvision.utils,
        "open_clip": open_clip,
        "open_clip.factory": open_clip.factory,
        "numpy": numpy,
        "PIL.Image": Image,
        "Thread": threading.Thread,
        "Popen": subprocess.Popen,
        "logging": logging.getLogger(),
    }
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "argv": (sys.argv, list(sys.argv)),
        "path": (sys.path, list(sys.path)),
        "finders": list(sys.meta_path),
        "modes": _get_current_function_mode_stack(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
        ),
        "attributes": {name: dict(vars(owner)) for name, owner in owners.items()},
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in before.keys() - {"attributes"}:
        assert before[name] == after[name], name
    for name, values in before["attributes"].items():
        now = after["attributes"][name]
        # A library may have imported a submodule of its own in between; nothing may be changed or gone.
        for key, value in values.items():
            assert now.get(key) is value or now.get(key) == value, f"{name}.{key}"
        extra = {k for k in now.keys() - values.keys() if not isinstance(now[k], type(sys))}
        assert not extra, f"{name}: {extra}"


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Holds for every test here, whether its script ends well, raises or exits."""
    import torch._dynamo  # what imports of a script bring in plainly is not the patch's

    assert torch._dynamo
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    modules, before = dict(sys.modules), surroundings()
    yield
    same(before, surroundings())
    for name, module in modules.items():
        assert sys.modules.get(name) is module, name
    new = set(sys.modules) - set(modules)
    names = (
        "clip",
        "CLIP",
        "CLIP_",
        "cog",
        "pydiffvg",
        "wandb",
        "deep_daze",
        "styler_helper",
        "taming_like",
        "torch._six",
    )
    assert not {
        name for name in new if name in names or name.startswith(tuple(f"{n}." for n in names))
    }


def clipag_run(*arguments: str, model: str = "clipag-mini") -> int:
    own = ["--model", model] if model else []
    return cli.main(["run", *own, "--device", "cpu", *arguments])


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


def test_argv_path_and_main_are_those_of_python(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    package = tmp_path / "some where"
    package.mkdir()
    (package / "beside.py").write_text("name = __name__\n")
    script = package / "script.py"
    script.write_text(
        "import json, sys, beside, __main__\n"
        "class Thing: pass\n"
        "print(json.dumps([sys.argv, sys.path[0], __name__, __file__, __main__.Thing is Thing, __spec__ is None]))\n"
    )
    arguments = ["--model", "x", "-q", "--", "--device", "tpu", "-o", "", "a b"]
    assert clipag_run(str(script), *arguments) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen == [[str(script), *arguments], str(package), "__main__", str(script), True, True]
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('no such prompt')", 1),
        ("exit(4)", 4),
        ("import clip; clip.load('ViT-B/32'); raise KeyError('x')", 1),
        ("1 +", 1),
        (
            "import torch; torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); 1 / 0",
            1,
        ),
        (
            "import signal, os, warnings; signal.signal(signal.SIGINT, print); os.environ['NEW'] = '1'; os.chdir('/')",
            0,
        ),
        (
            "import os, sys, torch; del os.environ['PATH']; sys.path.append('x'); sys.argv.clear(); torch.load = None",
            0,
        ),
    ],
)
def test_exit_codes_pass_and_everything_is_put_back(
    code: str, expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    load = torch.load
    try:
        assert clipag_run(str(script)) == expected
        assert torch.load is load
    finally:
        torch.load = load
    err = capsys.readouterr().err
    if "KeyError" in code:
        assert err.splitlines()[-3:] == ["KeyError: 'x'"] or err.rstrip().endswith("KeyError: 'x'")
        assert "adapters" not in err.split("Traceback")[1], (
            "frames that lead to the script are not the user's"
        )
    if "prompt" in code:
        assert "no such prompt" in err


def test_ctrl_c_puts_everything_back(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import clip\nraise KeyboardInterrupt")
    assert clipag_run(str(script)) == 130


def test_threads_end_before_the_shims_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, time, torch\n"
        "def work():\n"
        "    time.sleep(0.2)\n"
        "    print(torch.zeros(1, device='cuda').device)\n"
        "threading.Thread(target=work).start()\n"
    )
    assert clipag_run(str(script)) == 0
    assert capsys.readouterr().out == "cpu\n"


def test_without_the_flag_cuda_is_left_alone_and_the_flag_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    script = tmp_path / "script.py"
    script.write_text("import torch, clip\ntorch.zeros(1, device='cuda')")
    assert cli.main(["run", "--model", "clipag-mini", str(script)]) == 1
    assert "--device cpu" in capsys.readouterr().err.splitlines()[-1]


def test_a_scripts_own_logging_is_configured_by_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, sys\n"
        "assert not [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='mine %(message)s')\n"
    )
    assert clipag_run(str(script)) == 0
    assert "clipag: adapter generic, found by its imports" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "open('checkpoints/vqgan_imagenet_f16_16384.ckpt')",
            "VQGAN (ImageNet, f=16, 16384 codes) is missing: expected at",
        ),
        (
            "import torch; torch.load('./models/vgg_normalised.pth')",
            "hash unknown; get it from https://drive",
        ),
        ("open('U2Net_/saved_models/u2net.pth', 'rb')", "U2Net"),
        (
            "from torchvision import models; import clip; models.vgg19(weights='IMAGENET1K_V1')",
            "VGG19 (torchvision, ImageNet) is missing: expected at",
        ),
        ("import no_such_module_at_all", "pip install no_such_module_at_all"),
        ("import taming.models.vqgan", "pip install taming-transformers-rom1504"),
    ],
)
def test_what_is_missing_is_one_sentence(
    code: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "taming" in code and importlib.util.find_spec("taming"):
        pytest.skip("taming is installed")
    script = tmp_path / "script.py"
    script.write_text(code)
    assert clipag_run(str(script)) == 2
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("clipag: error: ") and message in last
    assert "Traceback" not in err
    if "vgg19" in code:
        assert "vgg19-dcbb9e9d.pth" in last and "548.1 MB" in last and "dcbb9e9d" in last


def test_a_missing_input_is_the_scripts_own_affair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("open('face.jpg')")
    assert clipag_run(str(script)) == 1
    assert "FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no_such_script.py"], "there is no script 'no_such_script.py'"),
        (["run"], "Run needs a value for script"),
        (["run", "--device", "tpu", "x.py"], "--device is 'tpu'"),
        (["run", "--cells", "two", "x.py"], "--cells is 'two'"),
        (["run", "--adapter", "clipdrow", __file__], "did you mean 'clipdraw'?"),
    ],
)
def test_requests_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_helper_called_clip_is_no_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.py").write_text("def cut(x):\n    return x[:1]\n")
    script = tmp_path / "script.py"
    script.write_text("import clip\nprint(clip.cut('abc'))")
    assert clipag_run(str(script)) == 0
    out, err = capsys.readouterr()
    assert out == "a\n" and "answered" not in err


def test_the_working_folder_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    relative = os.path.relpath(SCRIPTS / "clipstyler.py")
    assert clipag_run(relative) == 0
    assert os.path.isfile("styled.png")


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


def test_a_script_that_starts_another_takes_the_model_along(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "child.py").write_text(
        "import sys, clip\nprint(clip.available_models.__module__, sys.argv[1:])\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess\n"
        "folder = os.path.dirname(os.path.abspath(__file__))\n"
        "subprocess.run(['python', 'child.py', '--device', 'x'], cwd=folder, check=True)\n"
        "assert subprocess.run(['true']).returncode == 0\n"
    )
    assert clipag_run(str(script)) == 0
    out, err = capfd.readouterr()
    assert out == "clipag_plug.adapters.guide ['--device', 'x']\n"
    assert "child.py runs under clipag too" in err
