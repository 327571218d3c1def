"""What a user gets from each way of installing: wheel, sdist, editable in three modes, raw clone."""

from __future__ import annotations

import configparser
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = (
    *("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "CITATION.cff", "Makefile", "hubconf.py", ".pre-commit-config.yaml"),
)
FOLDERS = ("clipag_plug", "adapters", "examples", "benchmarks", "docs", "tests", ".ci")
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*_cache")

# Everything that must hold of an installation, whatever its kind; torch is not needed for it.
PROBE = """
import importlib.resources, json, os, sys
import clipag_plug, clipag_plug.adapters, clipag_plug.cli
from clipag_plug.options.base import Options
where = os.path.dirname(clipag_plug.__file__)
assert clipag_plug.adapters.__version__ == clipag_plug.__version__
assert importlib.resources.files("clipag_plug").joinpath("py.typed").is_file()
json.loads(importlib.resources.files("clipag_plug.bundled").joinpath("vocabulary.json").read_text("utf-8"))
try:
    import adapters
except ImportError:
    pass
else:
    sys.exit("`adapters` is importable on its own")
assert clipag_plug.cli.main(["--version"]) == 0
print(where)
"""


def run(*command: str | Path, cwd: Path, path: str = "") -> str:
    """Runs a command that must succeed, with PYTHONPATH set to `path` alone; returns its stdout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(PYTHONPATH=path, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probe(*python: str | Path, cwd: Path, path: str = "") -> Path:
    """Checks an installation and returns where the package lies; `-S` hides site-packages."""
    return Path(run(*python, "-c", PROBE, cwd=cwd, path=path).splitlines()[-1])


def copy_tree(target: Path) -> Path:
    """A copy of the repository: builds leave files behind, and must not see old ones."""
    target.mkdir()
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    for name in filter(lambda name: (ROOT / name).is_dir(), FOLDERS):
        shutil.copytree(ROOT / name, target / name, ignore=LITTER)
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist and the wheel that was built from it, offline."""
    pytest.importorskip("build", reason="pip install build")
    place = tmp_path_factory.mktemp("dist")
    source = copy_tree(place / "source")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", place, source, cwd=place)
    return place


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents in a folder of their own."""
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def tree() -> set[str]:
    """Names of every package of the repository, as they are installed."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "clipag_plug").rglob("__init__.py")
    }
    return found | {
        ".".join(("clipag_plug", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "adapters").rglob("__init__.py")
    }


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    assert listed == sorted(listed)
    assert set(listed) == tree()


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("clipag_plug", "adapters"):
        for path in (ROOT / folder).rglob("*.py"):
            home = (
                path.parent if path.name != "sitecustomize.py" else path.parents[1]
            )  # a folder for sys.path
            assert (home / "__init__.py").is_file(), f"{path.parent} needs an __init__.py"


def test_the_wheel_installs_clipag_plug_and_nothing_else(unpacked: Path) -> None:
    info = next(unpacked.glob("*.dist-info"))
    assert {path.name for path in unpacked.iterdir()} == {"clipag_plug", info.name}
    assert (info / "top_level.txt").read_text().split() == ["clipag_plug"]
    assert "clipag = clipag_plug.cli:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").is_file()


def test_the_wheel_holds_every_file_of_the_packages(unpacked: Path) -> None:
    expected = set()
    for folder, target in (
        (ROOT / "clipag_plug", "clipag_plug"),
        (ROOT / "adapters", "clipag_plug/adapters"),
    ):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                expected.add(f"{target}/{path.relative_to(folder).as_posix()}")
    packed = {
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()
    }
    assert expected - packed == set()
    assert {name for name in packed if ".dist-info/" not in name} - expected == set()


def test_the_sdist_holds_what_a_packager_needs(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {*FILES, ".ci/run", "adapters/__init__.py", "tests/test_packaging.py"}
    assert wanted - names == set()
    assert not [
        name for name in names if "__pycache__" in name or name.startswith((".venv", "build/"))
    ]


def test_the_wheel_works_from_a_folder_on_the_path(unpacked: Path, tmp_path: Path) -> None:
    where = probe(sys.executable, "-S", cwd=tmp_path, path=str(unpacked))
    assert where.samefile(unpacked / "clipag_plug")


def test_a_raw_clone_works_on_the_path(tmp_path: Path) -> None:
    clone = copy_tree(tmp_path / "clone")
    # In the root of a clone a plain `import adapters` finds the folder, and must fail all the same.
    where = probe(sys.executable, "-S", cwd=clone, path=str(clone))
    assert where.samefile(clone / "clipag_plug")


@pytest.mark.parametrize("mode", ["", "strict", "compat"])
def test_editable_installs_work(mode: str, tmp_path: Path) -> None:
    clone = copy_tree(tmp_path / "clone")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    if not python.exists():
        python = scripts / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", ask, cwd=tmp_path).strip())
    # Lends pip and setuptools. A path added this way does not have its own .pth files read, so an
    # editable clipag_plug of this very environment stays out of sight.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    settings = ["--config-settings", f"editable_mode={mode}"] if mode else []
    run(
        *(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--ignore-installed", *settings, "--editable", clone),
        cwd=tmp_path,
    )
    where = probe(python, cwd=tmp_path)
    assert (where / "cli.py").resolve().samefile(clone / "clipag_plug" / "cli.py")
    assert "clipag_plug" in run(scripts / "clipag", "--version", cwd=tmp_path)


def test_torch_hub_finds_strict_entry_points() -> None:
    torch = pytest.importorskip("torch")
    public = {
        name for name, value in runpy.run_path(str(ROOT / "hubconf.py")).items() if callable(value)
    }
    assert {name for name in public if not name.startswith("_")} == {"load", "tokenize"}
    with pytest.raises(TypeError, match="nmae"):
        torch.hub.load(str(ROOT), "load", source="local", nmae="clipag-mini")
    tokens = torch.hub.load(str(ROOT), "tokenize", source="local", texts=["a cat", "a dog"])
    assert tokens.shape == (2, 77) and tokens.dtype == torch.int32
