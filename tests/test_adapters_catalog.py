"""The adapters' files say what a pipeline needs, and which pipeline a script belongs to."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
from clipag_plug.adapters import available_adapters, catalog, loading, shims


@pytest.mark.parametrize("name", available_adapters())
def test_an_adapters_file_says_what_it_says(name: str) -> None:
    adapter = catalog.read(name)
    assert adapter.title and adapter.aliases and set(adapter.shims) <= set(shims.SHIMS)
    assert name == catalog.GENERIC or adapter.repository.startswith("https://")
    for weights in adapter.weights:
        assert weights.name and (
            "http" in weights.source or "README" in weights.source or "your own" in weights.source
        )
        path = f"/somewhere/{weights.file.replace('*', 'x')}"
        sentence = loading.missing(path, adapter)
        assert sentence and path in sentence and weights.name in sentence and "\n" not in sentence


def test_a_download_that_failed_names_the_weights() -> None:
    class ConnectionFailed(OSError):
        request = types.SimpleNamespace(
            url="https://s3.example/biggan/biggan-deep-128-pytorch_model.bin?x=1"
        )

    adapter = catalog.read("big_sleep")
    try:
        try:
            raise ConnectionFailed("no route")
        except OSError as error:
            raise RuntimeError("cannot load") from error
    except RuntimeError as error:
        sentence = loading.unreachable(error, adapter)
    assert (
        sentence
        and "BigGAN-deep is missing" in sentence
        and ".pytorch_pretrained_biggan" in sentence
    )
    assert loading.unreachable(RuntimeError("x"), adapter) is None


def test_the_pipelines_of_the_readme_have_an_adapter() -> None:
    assert {
        "clipdraw",
        "vqgan_clip",
        "clipstyler",
        "clipag",
        "clipasso",
        "deep_daze",
        "generic",
    } <= set(available_adapters())


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
    found = catalog.detect(tmp_path / "script.py")
    assert found.name == expected
    assert set(found.shims) >= set(catalog.read("generic").shims)


def test_listing_the_adapters_imports_nothing_heavy() -> None:
    code = "import sys, clipag_plug.adapters as a; a.available_adapters(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
