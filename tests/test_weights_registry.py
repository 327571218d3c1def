"""The registry, the names that lead to it, and `clipag models`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipag_plug.files import root
from clipag_plug.options.tools import Models
from clipag_plug.weights import configs, doctor, fetch, registry

# The published robust models, each with its method, norm and radius.
PUBLISHED = {
    "clipag": ("ViT-B-32", False, "l2", 1.5),
    "fare4-b32-laion": ("ViT-B-32", False, "linf", 4 / 255),
    "tecoa4-b32-laion": ("ViT-B-32", False, "linf", 4 / 255),
    "fare4-b16-laion": ("ViT-B-16", False, "linf", 4 / 255),
    "tecoa4-b16-laion": ("ViT-B-16", False, "linf", 4 / 255),
    "fare4-convnext": ("convnext_base_w", False, "linf", 4 / 255),
    "tecoa4-convnext": ("convnext_base_w", False, "linf", 4 / 255),
    "fare1-b32": ("ViT-B-32", True, "linf", 1 / 255),
    "tecoa1-b32": ("ViT-B-32", True, "linf", 1 / 255),
    "fare4-b32": ("ViT-B-32", True, "linf", 4 / 255),
    "tecoa4-b32": ("ViT-B-32", True, "linf", 4 / 255),
    "fare2-l14": ("ViT-L-14", True, "linf", 2 / 255),
    "fare4-l14": ("ViT-L-14", True, "linf", 4 / 255),
    "tecoa2-l14": ("ViT-L-14", True, "linf", 2 / 255),
    "tecoa4-l14": ("ViT-L-14", True, "linf", 4 / 255),
    "tecoa-b32-columbia": ("ViT-B-32", True, "linf", 1 / 255),
    "delta-clip-l14-224": ("ViT-L-14-CLIPA", None, "linf", None),
    "leaf-l14": ("ViT-L-14", True, "linf", 2 / 255),
    "leaf-h14": ("ViT-H-14", False, "linf", 2 / 255),
    "openai/ViT-B/32": ("ViT-B-32", True, None, None),
    "laion/ViT-B/32": ("ViT-B-32", False, None, None),
}


@pytest.mark.parametrize("key", list(PUBLISHED))
def test_published_models_are_registered(key: str) -> None:
    record = registry.find(key)
    arch, quick_gelu, norm, eps = PUBLISHED[key]
    assert (record.arch, record.quick_gelu, record.norm) == (arch, quick_gelu, norm)
    assert record.eps == (None if eps is None else pytest.approx(eps))


def test_records_are_complete_and_unambiguous() -> None:
    records = registry.checkpoints()
    spoken = [name.casefold() for record in records for name in (record.key, *record.aliases)]
    assert len(spoken) == len(set(spoken))
    for record in records:
        assert record.bundled or record.sources or record.note, record.key
        assert record.bundled or record.arch in configs._files(), record.key
        for source in record.sources:
            assert re.fullmatch(r"https://\S+|hf-hub:[\w.-]+/[\w.-]+", source), source
        for other in filter(None, (record.base, record.text_from)):
            assert registry.get(other) is not None, f"{record.key} refers to {other}"
        assert record.sha256 is None or re.fullmatch("[0-9a-f]{64}", record.sha256)
        # OpenAI's weights and what came of them compute QuickGELU, LAION's GELU.
        roots = {"openai": True, "laion": False}
        if record.base:
            assert record.quick_gelu == roots[record.base.split("/")[0]], record.key


def test_hashes_of_openai_are_those_in_the_address() -> None:
    for record in registry.match("openai/*"):
        assert record.sha256 == record.sources[0].split("/")[-2]


def test_find_is_case_blind_and_helps_with_typos() -> None:
    assert registry.find("CLIPAG") is registry.find("clipag") is registry.find("clipag/vit-b/32")
    with pytest.raises(ValueError, match="did you mean 'fare4-b32'"):
        registry.find("fare4-b3")


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("fare*b32", {"fare1-b32", "fare4-b32"}),
        ("FARE4-*laion", {"fare4-b32-laion", "fare4-b16-laion"}),
        ("mini", {"clip-mini", "clipag-mini", "judge-mini"}),
        ("delta-clip-?14-336", {"delta-clip-l14-336", "delta-clip-h14-336"}),
    ],
)
def test_patterns(pattern: str, wanted: set[str]) -> None:
    assert {record.key for record in registry.match(pattern)} == wanted


def test_a_pattern_without_a_match_is_an_error() -> None:
    with pytest.raises(ValueError, match="no model fits 'zzz\\*'"):
        registry.match("zzz*")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("clipag", registry.Name("key", "clipag")),
        ("hf-hub:a/b", registry.Name("hf-hub", "a/b")),
        ("hf-hub:a/b@v2", registry.Name("hf-hub", "a/b@v2")),
        ("hf-hub:a/b#quickgelu", registry.Name("hf-hub", "a/b", quick_gelu=True)),
        ("clipag#arch=ViT-B/32, gelu", registry.Name("key", "clipag", False, "ViT-B/32")),
    ],
)
def test_names(name: str, wanted: registry.Name) -> None:
    assert registry.parse(name) == wanted


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "chs20/fare2-clip",
            ValueError,
            "'hf-hub:chs20/fare2-clip' or 'local-dir:chs20/fare2-clip'",
        ),
        ("clipagg", ValueError, "did you mean 'clipag'"),
        ("", ValueError, "empty"),
        ("https://x.org/w.pt", ValueError, "download the file"),
        ("hf-hub:only", ValueError, "hf-hub:org/name"),
        ("weights.pt", FileNotFoundError, "weights.pt"),
        ("local-dir:nowhere", FileNotFoundError, "nowhere"),
        ("clipag#relu", ValueError, "gelu or quickgelu"),
        (".", ValueError, "local-dir:."),
    ],
)
def test_names_that_are_refused_say_what_to_type(
    name: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        registry.parse(name)


def test_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a#b.pt"
    file.write_bytes(b"")
    assert registry.parse(file) == registry.Name(
        "file", str(file)
    )  # a '#' of its own is no statement
    assert registry.parse(f"local-dir:{tmp_path}") == registry.Name("local-dir", str(tmp_path))


def test_table_and_json_show_the_same_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.models(Models()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        record.key for record in registry.checkpoints()
    ]
    assert re.search(r"^clipag +ViT-B-32 +GELU +clipag l2 1.5 +not stated", "\n".join(lines), re.M)
    assert re.search(
        r"^fare4-b32 +ViT-B-32 +QuickGELU +fare linf 4/255 +MIT", "\n".join(lines), re.M
    )
    assert doctor.models(Models("tecoa*", json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["key"] for row in rows} == {record.key for record in registry.match("tecoa*")}
    assert all(row["arch"] and "weights" in row for row in rows)


def test_cached_models_are_shown_as_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path))
    record = registry.find("clipag")
    assert fetch.whereabouts(record) == "1,311 MB"
    fetch.converted("clipag").write_bytes(b"")
    assert fetch.whereabouts(record) == "cached"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert fetch.whereabouts(registry.find("fare2-l14")) == "hub"
    (tmp_path / "hub/models--chs20--fare2-clip/snapshots").mkdir(parents=True)
    assert fetch.whereabouts(registry.find("fare2-l14")) == "cached"


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from clipag_plug.weights import doctor, registry; from clipag_plug.options.tools import Models;"
        "registry.parse('clipag'); doctor.models(Models('clipag'));"
        "assert not {'torch', 'open_clip', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"CLIPAG_HOME": "/a"}, "/a"),
        ({"CLIPAG_HOME": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/clipag_plug"),
        ({"HOME": "/h"}, "/h/.cache/clipag_plug"),
    ],
)
def test_cache_root(given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIPAG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert root() == Path(wanted)
    assert root("/mine") == Path("/mine")
