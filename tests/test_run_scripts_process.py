"""A program finds what plain Python gives it, and so do the processes that it starts; what it lacks is a sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from adapters_helpers import SCRIPTS, clipag_run, old_file, process  # noqa: F401
from clipag_plug.adapters import patching

from clipag_plug import cli

pytestmark = pytest.mark.usefixtures("process")
Capture = pytest.CaptureFixture[str]


def written(folder: Path, code: str, name: str = "script.py") -> str:
    (folder / name).write_text(code)
    return str(folder / name)


def test_argv_path_and_main_are_those_of_python(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "some where"
    folder.mkdir()
    written(folder, "name = __name__\n", "beside.py")
    code = (
        "import json, sys, beside, __main__, logging\nclass Thing: pass\n"
        "bare = not [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "print(json.dumps([sys.argv, sys.path[0], __name__, __file__, __main__.Thing is Thing, __spec__, bare]))\n"
    )
    script = written(folder, code)
    arguments = ["--model", "x", "-q", "--", "--device", "tpu", "-o", "", "a b"]
    assert clipag_run(script, *arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [
        *([script, *arguments], str(folder), "__main__", script, True, None, True)
    ]
    assert "clipag: adapter generic" in err and "nothing was answered" in err


def test_a_module_runs_as_by_dash_m(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tool").mkdir()
    written(Path("tool"), "import clip, wandb\nassert wandb.Image", "__init__.py")
    written(Path("tool"), "import sys\nprint('deeper', sys.argv[1:])", "deeper.py")
    written(
        Path("tool"),
        "import sys, clip\nfrom . import __name__ as n\nprint(n, sys.argv[1:])",
        "__main__.py",
    )
    assert cli.main(["run", "--model", "clipag-mini", "-m", "tool", "--model", "x", "a"]) == 0
    assert capsys.readouterr().out == "tool ['--model', 'x', 'a']\n"
    assert cli.main(["run", "--model", "clipag-mini", "-m", "tool.deeper", "b"]) == 0
    assert capsys.readouterr().out == "deeper ['b']\n"
    assert cli.main(["run", "-m", "tool.nosuch"]) == 2
    assert "there is no module 'tool.nosuch'" in capsys.readouterr().err
    assert cli.main(["run", "-m", "clipag-mini", "x.py"]) == 2
    assert "a model is --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "expected", "last"),
    [
        ("", 0, "nothing was answered"),
        ("import clip; clip.load('ViT-B/32')", 0, "gives 'clipag-mini'"),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("raise SystemExit('no such prompt')", 1, "no such prompt"),
        ("exit(4)", 4, ""),
        ("import clip; clip.load('ViT-B/32'); raise KeyError('x')", 1, "KeyError: 'x'"),
        ("1 +", 1, "SyntaxError"),
        ("open('face.jpg')", 1, "FileNotFoundError"),
        ("import no_such_module_at_all", 1, "ModuleNotFoundError"),
        ("import sys, io; sys.stdout = io.StringIO(); sys.stdout.close()", 0, ""),
        ("import sys, io; sys.stdout = io.StringIO(); sys.stdout.close(); 1 / 0", 1, "ZeroDivisionError"),
        ("import sys; sys.excepthook = lambda *e: print('mine', file=sys.stderr); 1 / 0", 1, "mine"),
        ("import clip\nraise KeyboardInterrupt", 130, ""),
        ("import torch, threading\nthreading.Thread(target=lambda: torch.zeros(1).cuda()).start()", 0, ""),
        ("import clip\nclip.load('ViT-B/32')[0].visual.transformer", 1, "a ViT has it: `--model clipag`"),
        ("import numpy as n, torch, clip\nm = clip.load('ViT-B/32')[0]\n"
         "torch.nn.Linear(768, 1)(m.encode_image(torch.zeros(1, 3, 224, 224)))", 1, "768"),
    ],
)  # fmt: skip
def test_exit_code_and_last_line_are_the_programs_own(
    code: str, expected: int, last: str, tmp_path: Path, capsys: Capture
) -> None:
    assert clipag_run(written(tmp_path, code)) == expected
    err = capsys.readouterr().err
    lines = [
        line for line in err.splitlines() if "nothing was answered" not in line or last in line
    ]
    assert last in lines[-1]
    if "Traceback" in err:
        first = err.split("Traceback")[1].splitlines()[1]
        assert "adapters" not in first and "runpy" not in first, "frames that lead to the program"


def test_packages_that_import_lazily(tmp_path: Path) -> None:
    # tensorboard's stub of tensorflow has a number for its path, and lazy modules import when they are asked.
    (tmp_path / "lazy_package").mkdir()
    code = (
        "import sys, types\nclass Lazy(types.ModuleType):\n"
        "    def __getattr__(self, name): raise RuntimeError(name)\n"
        "stub = sys.modules['lazy_package.stub'] = Lazy('lazy_package.stub')\nstub.__path__ = 0\n"
    )
    written(tmp_path / "lazy_package", code, "__init__.py")
    real = ", torch.utils.tensorboard" if importlib.util.find_spec("tensorboard") else ""
    assert clipag_run(written(tmp_path, f"import clip, lazy_package{real}")) == 0
    patch = patching.current()
    assert patch is not None
    patch.undo()
    assert "clip" not in sys.modules
    # The stub would break whoever looks through the modules.
    for name in ("lazy_package.stub", "lazy_package"):
        sys.modules.pop(name)


CHILD = "import sys, cog\nprint(cog.BasePredictor.__module__, sys.argv[1:], flush=True)\n"
START = """
import os, subprocess, sys
os.chdir(os.path.dirname(os.path.abspath(__file__)))
subprocess.run(["python", "child.py", "--device", "x"], check=True)
subprocess.run([sys.executable, "-u", "child.py", "--device", "x"], check=True)
subprocess.run("python3 child.py --device x", shell=True, check=True)
assert os.system("python child.py --device x") == 0
"""


def test_python_that_a_program_starts_is_patched_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, CHILD, "child.py")
    assert clipag_run(written(tmp_path, START)) == 0
    assert capfd.readouterr().out == "clipag_plug.adapters.cog ['--device', 'x']\n" * 4


SPAWN = """
import multiprocessing as mp
import clip

def work(given):
    load, transform, model = given
    import clip as there
    return there.load is load and load('RN50')[0].name == model.name and callable(transform)

if __name__ == "__main__":
    model, transform = clip.load("ViT-B/32")
    with mp.get_context(METHOD).Pool(1) as pool:
        assert pool.map(work, [(clip.load, transform, model)]) == [True]
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_workers_are_patched_and_take_what_is_handed_out(
    method: str, tmp_path: Path
) -> None:
    assert clipag_run(written(tmp_path, SPAWN.replace("METHOD", repr(method)))) == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("open('checkpoints/vqgan_imagenet_f16_16384.ckpt')", "16384 codes) is missing: expected at"),
        ("import torch; torch.load('./models/vgg_normalised.pth')", "get it from https://drive"),
        ("from torchvision import models; models.vgg19(weights='IMAGENET1K_V1')",
         "vgg19-dcbb9e9d.pth', size 548.1 MB, hash dcbb9e9d"),
        ("import urllib.request as u; u.urlretrieve('http://127.0.0.1:9/a.pt', 'b.pt')",
         "downloads http://127.0.0.1:9/a.pt, which cannot be reached"),
        ("import taming.models.vqgan", "pip install taming-transformers-rom1504"),
        ("import cog_is_not_this", ""),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_sentence(
    code: str, words: str, tmp_path: Path, capsys: Capture
) -> None:
    if "taming" in code and importlib.util.find_spec("taming"):
        pytest.skip("taming is installed")
    assert clipag_run(written(tmp_path, code)) == (2 if words else 1)
    err = capsys.readouterr().err
    if words:
        last = err.splitlines()[-1]
        assert last.startswith("clipag: error: ") and words in last and "Traceback" not in err


def test_without_the_flag_cuda_is_left_alone_and_the_flag_is_offered(
    tmp_path: Path, capsys: Capture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    script = written(tmp_path, "import torch, clip\ntorch.zeros(1, device='cuda')")
    assert cli.main(["run", "--model", "clipag-mini", script]) == 1
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_script.py"], "there is no script 'no_such_script.py'"),
        ([], "Run needs a value for script"),
        (["--device", "tpu", "x.py"], "--device is 'tpu'"),
        (["--cells", "two", "x.py"], "--cells is 'two'"),
        (["--adapter", "clipdrow", __file__], "did you mean 'clipdraw'?"),
        (["--model", "nosuch", __file__], "no model is called 'nosuch'"),
        (["--model", "nosuch.pt", __file__], "'nosuch.pt' does not exist"),
        (
            [str(SCRIPTS / "clipdraw.py"), "-i", "nothing=3"],
            "no input 'nothing'; its inputs: prompt",
        ),
        ([str(SCRIPTS / "clipdraw.py"), "-i", "num_paths=many"], "must be of type int"),
        ([str(SCRIPTS / "clipdraw.py"), "--prompt", "a fox"], "takes -i NAME=VALUE"),
    ],
)
def test_requests_that_make_no_sense(arguments: list[str], words: str, capsys: Capture) -> None:
    assert cli.main(["run", *arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        *("clipasso.py --target_file camel.png --num_paths 16", "stylegan_nada.py", "disco.py"),
        *("styleclip.py --description hair", "openclip_style.py", "clipig.py", "pixray.py"),
        *("fusedream.py", "clipstyler.py", "deep_daze_style/imagine.py fox"),
    ],
)
def test_small_programs_in_the_manner_of_known_ones(words: str, capsys: Capture) -> None:
    name, *arguments = words.split()
    assert clipag_run(os.path.relpath(SCRIPTS / name), *arguments) == 0
    err = capsys.readouterr().err
    assert "nothing was answered" not in err
    assert "deep_daze" not in name or "`deep_daze.clip` is answered" in err


@pytest.mark.parametrize(
    "arguments", [["-i", "num_paths=3", "-o", "fox.png"], ["num_paths=3", "-o=fox.png"]]
)
def test_a_predictor_runs_as_by_cog(arguments: list[str], capsys: Capture) -> None:
    from PIL import Image

    assert clipag_run(str(SCRIPTS / "clipdraw.py"), *arguments) == 0
    assert Image.open("fox.png").size == (224, 224) and os.listdir() == ["fox.png"]
    err = capsys.readouterr().err
    assert all(f"clipag: {shim}: " in err for shim in ("cog", "pydiffvg", "cuda", "model"))
    assert not any(f"clipag: {shim}: " in err for shim in ("lightning", "torch_load", "numpy"))


def test_vqgan_style(tmp_path: Path, capsys: Capture) -> None:
    """With stand-ins for the libraries it needs, a folder CLIP, and a checkpoint as of 2020."""
    (tmp_path / "pytorch_lightning" / "utilities").mkdir(parents=True)
    (tmp_path / "CLIP" / "data").mkdir(
        parents=True
    )  # a clone of openai/CLIP is a namespace package
    for name in ("__init__.py", "utilities/__init__.py", "callbacks.py"):
        (tmp_path / "pytorch_lightning" / name).touch()
    rank_zero = "def rank_zero_only(function):\n    return function\n"
    (tmp_path / "pytorch_lightning" / "utilities" / "rank_zero.py").write_text(rank_zero)
    old_file(Path.cwd()).rename("checkpoint.ckpt")
    script = written(tmp_path, (SCRIPTS / "vqgan_clip.py").read_text())
    (tmp_path / "taming_like.py").write_text((SCRIPTS / "taming_like.py").read_text())
    assert (
        clipag_run("--adapter", "VQGAN-CLIP", script, "-p", "a fox:1 | a dog", "-m", "ViT-B/16")
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "done cpu\n"
    for shim in ("names: `CLIP.clip`", "lightning: ", "torch_six: ", "torch_load: checkpoint.ckpt"):
        assert f"clipag: {shim}" in err


def test_the_page_of_whole_programs_says_what_the_script_runs() -> None:
    root = Path(__file__).parent.parent
    table = tomllib.loads((root / "benchmarks" / "programs.toml").read_text())
    page = (root / "docs" / "programs.md").read_text()
    for row in table["program"]:
        found = [line for line in page.splitlines() if f"| `{row['command']}` |" in line]
        assert found and row["commit"] in found[0] and row["repository"] in found[0], row["name"]


def test_a_python_that_is_started_says_nothing_of_its_own() -> None:
    """Also where no other sitecustomize is installed."""
    paths = {"PYTHONPATH": str(patching.HERE / "child"), "CLIPAG_RUN": "{}"}
    code = "import clip, sys; print(clip.__name__, 'sitecustomize' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | paths, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("clip True\n", "")


def test_a_thread_that_outlives_the_program_is_waited_for(capsys: Capture, tmp_path: Path) -> None:
    code = "import clip, threading, time\ndef work():\n    time.sleep(0.2)\n    clip.load('RN50')\n"
    assert clipag_run(written(tmp_path, code + "threading.Thread(target=work).start()\n")) == 0
    assert "nothing was answered" not in capsys.readouterr().err
