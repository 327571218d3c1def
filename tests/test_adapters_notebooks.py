"""Notebooks: magics and shell lines become harmless Python, and the published one's pictures are bundled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clipag_plug.adapters import notebooks, standins

import clipag_plug


def test_magics_become_pass_and_lines_stay() -> None:
    source = "\n".join(
        [
            "#@title Imports {vertical-output: true}",
            "%tensorflow_version 2.x",
            "!pip install a \\",
            "    b",
            "x = 7 \\",
            "  % 4",
            "if x:",
            "    !nvidia-smi -L",
            "text = '''",
            "!not a command",
            "%s''' % 3",
            "y = (x",
            "  % 2)",
            "files = !ls",
            "%cd /no/such/folder",
            "%time z = 3",
            "%matplotlib inline",
        ]
    )
    cell = notebooks.convert(source, 4)
    assert len(cell.source.splitlines()) == len(source.splitlines())
    calls: list[Any] = []
    names: dict[str, Any] = {"__magic__": lambda *given: calls.append(given)}
    exec(cell.source, names)
    assert (names["x"], names["y"], names["z"], names["files"]) == (3, 1, 3, [])
    assert names["text"] == "\n!not a command\n3"
    assert calls == [("cd", "/no/such/folder")]
    assert cell.installs and cell.title.startswith("Imports")
    assert cell.notices == ["skipped !pip install a \\", "skipped !nvidia-smi -L", "skipped !ls"]


@pytest.mark.parametrize(
    ("source", "ran"),
    [("%%bash\nls\necho 'x", False), ("%%time\nran = True", True), ("%%html\n<b>", False)],
)
def test_cell_magics(source: str, ran: bool) -> None:
    cell = notebooks.convert(source)
    names: dict[str, Any] = {}
    exec(cell.source, names)
    assert names.get("ran", False) is ran and len(cell.notices) == (0 if ran else 1)


def test_the_start_pictures_of_the_notebook_need_no_download() -> None:
    with clipag_plug.patch("clipag") as patch:
        datasets = standins.datasets(patch, "datasets")
        data = datasets.load_dataset("Maysee/tiny-imagenet", split="valid").with_format("torch")
        images, labels = data["image"], data["label"]
        with pytest.raises(ImportError, match="pip install datasets"):
            datasets.load_dataset("imagenet")
    assert len(images) == len(labels) == 50 * 200 and images[0].shape == (3, 64, 64)
    from clipag_plug.priors import Mixture

    mean = torch.stack(images[:50]).float().div(255).mean(0)[:, ::4, ::4].flatten()
    assert (mean - Mixture.load().means[0].float()).abs().mean() < 0.05
