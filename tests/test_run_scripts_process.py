"""A script finds what plain Python gives it: arguments, exit codes, signals, threads, logging, children."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from run_scripts_helpers import clipag_run, nothing_is_left_behind  # noqa: F401


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


def test_a_helper_called_clip_is_no_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.py").write_text("def cut(x):\n    return x[:1]\n")
    script = tmp_path / "script.py"
    script.write_text("import clip\nprint(clip.cut('abc'))")
    assert clipag_run(str(script)) == 0
    out, err = capsys.readouterr()
    assert out == "a\n" and "answered" not in err


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
