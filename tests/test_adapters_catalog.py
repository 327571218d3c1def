"""The adapters' files say what a pipeline needs, and which pipeline a program belongs to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from clipag_plug.adapters import available_adapters, catalog


@pytest.mark.parametrize("name", available_adapters())
def test_an_adapters_file_says_what_it_says(name: str) -> None:
    adapter = catalog.read(name)
    assert adapter.title
    assert name == catalog.GENERIC or (adapter.imports and adapter.repository[:8] == "https://")
    for weights in adapter.weights:
        assert weights.name and any(
            word in weights.source for word in ("http", "README", "your own")
        )
        path = f"/somewhere/{weights.file.replace('*', 'x')}"
        known = catalog.known_weights(path, adapter)
        assert known == weights and path in known.missing(path) and "\n" not in known.missing(path)


def test_the_pipelines_of_the_readme_have_an_adapter() -> None:
    named = {"clipdraw", "vqgan_clip", "clipstyler", "clipag", "clipasso", "deep_daze", "generic"}
    assert named <= set(available_adapters())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import clip, pydiffvg", "clipdraw"),
        ("from CLIP import clip\nfrom taming.models import vqgan", "vqgan_clip"),
        ("import helper", "clipdraw"),
        ("import clip", "generic"),
        ("import open_clip", "clipag"),
        ("import CLIP_.clip as clip\nimport pydiffvg", "clipasso"),
        ("1 +", "generic"),
    ],
)
def test_auto_tells_the_pipeline_by_its_imports(code: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import clip\nimport pydiffvg\n")
    (tmp_path / "script.py").write_text(code)
    assert catalog.detect(tmp_path / "script.py").name == expected


def test_the_listing_and_a_patched_process_import_nothing_heavy() -> None:
    code = "import sys, clipag_plug.adapters as a; a.available_adapters(); a.start('clipag-mini', 'cpu')"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)
