"""What is missing or makes no sense is one sentence; what is the script's own error stays its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from run_scripts_helpers import clipag_run, nothing_is_left_behind  # noqa: F401

from clipag_plug import cli


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


def test_without_the_flag_cuda_is_left_alone_and_the_flag_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    script = tmp_path / "script.py"
    script.write_text("import torch, clip\ntorch.zeros(1, device='cuda')")
    assert cli.main(["run", "--model", "clipag-mini", str(script)]) == 1
    assert "--device cpu" in capsys.readouterr().err.splitlines()[-1]


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
