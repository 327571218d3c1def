"""Whatever is done to a user's files, nothing is lost and no loaded model changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import save_file

from clipag_plug.weights import export, open_checkpoint, read
from clipag_plug.weights.opening import Opened

State = dict[str, torch.Tensor]


def tiny(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(v.shape, generator=generator) for n, v in helpers.weights(small=True).items()
    }


def save(path: Path, state: State) -> None:
    """Over whatever is there, in place and not by replacement, as torch.save and save_file do it."""
    if path.suffix == ".safetensors":
        save_file(state, path.with_suffix(".tmp"))
        path.write_bytes(path.with_suffix(".tmp").read_bytes())
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pt")


def act(
    folder: Path,
    choice: random.Random,
    models: list[tuple[Opened, State]],
    there: dict[Path, State],
) -> None:
    """One of: load, save a loaded model over a file, replace a file, cut it short, delete it, train, export."""
    path = folder / choice.choice(("a.pt", "b.old", "c.safetensors", "d#e.pt"))
    step = choice.choice(
        ("load", "load", "save back", "replace", "truncate", "delete", "train", "export")
    )
    if step == "load" and path in there:
        opened = open_checkpoint(f"{path}#gelu,arch={folder / 'arch.json'}")
        models.append((opened, there[path]))
    elif step == "save back" and models:
        opened, _ = choice.choice(models)
        save(path, opened.state_dict)
        there[path] = {n: v.clone() for n, v in opened.state_dict.items()}
    elif step == "replace":
        there[path] = tiny(choice.randrange(5))
        save(path, there[path])
    elif step == "truncate" and path in there:
        os.truncate(path, choice.randrange(100))
        del there[path]
    elif step == "delete" and path in there:
        path.unlink()
        del there[path]
    elif step == "train" and models:
        index = choice.randrange(len(models))
        opened, _ = models[index]
        opened.state_dict["visual.proj"].add_(1)
        models[index] = opened, {n: v.clone() for n, v in opened.state_dict.items()}
    elif step == "export" and models:
        opened, state = choice.choice(models)
        export.save_pretrained(opened, folder / "out")
        again = open_checkpoint(f"local-dir:{folder / 'out'}")
        models.append((again, state))


def run(folder: Path, seeds: range) -> None:
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        helpers.arch(folder, small=True)
        choice, models, there = random.Random(seed), [], {}  # type: ignore[var-annotated]
        for _ in range(8):
            act(folder, choice, models, there)
            for opened, wanted in models:
                assert all(torch.equal(opened.state_dict[n], v) for n, v in wanted.items()), seed
            assert set(there) == {p for p in there if p.is_file()}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture is the same in every step, so its shapes are asked for once."""
    from clipag_plug.weights import configs

    known = configs.shapes("x", helpers.config(False, helpers.SMALL))
    monkeypatch.setattr(configs, "shapes", lambda path, config: known)


def test_sequences(tmp_path: Path, quick: None) -> None:
    run(tmp_path / "s", range(20))


@pytest.mark.long
def test_two_hundred_sequences(tmp_path: Path, quick: None) -> None:
    run(tmp_path / "s", range(20, 220))


def test_written_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        read.write(tmp_path / "w.safetensors", tiny(0))
        opened = open_checkpoint(str(saved(tmp_path)))
        written = [
            tmp_path / "w.safetensors",
            *export.save_pretrained(opened, tmp_path / "out", "bundled"),
        ]
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def saved(folder: Path) -> Path:
    """Our own layout: weights and a JSON file beside them."""
    save_file(tiny(0), folder / "own.safetensors")
    about: dict[str, Any] = {
        "config": helpers.config(True, helpers.SMALL),
        "card": {"mean": [0.5] * 3},
    }
    (folder / "own.json").write_text(json.dumps(about))
    return folder / "own.safetensors"


def test_pixels_survive_every_layout_or_are_refused(tmp_path: Path) -> None:
    opened = open_checkpoint(str(saved(tmp_path)))
    for form in ("open_clip", "transformers", "bundled"):
        *_, readme = export.save_pretrained(opened, tmp_path / form, form)
        again = open_checkpoint(f"local-dir:{tmp_path / form}")
        assert again.record.mean == (0.5,) * 3 == tuple(again.card["mean"])
        assert "0.5, 0.5, 0.5;" in readme.read_text()
    with pytest.raises(ValueError, match="mean 0.5, 0.5, 0.5.*OpenAI's clip cannot prepare"):
        export.save_pretrained(opened, tmp_path / "openai", "openai")


@pytest.mark.parametrize("form", ["bundled", "openai"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    """A limit on the size of files stands for it; the file that was there stays as it was."""
    import resource
    import signal

    (folder := tmp_path / "out").mkdir()
    opened = open_checkpoint(str(saved(tmp_path)))
    opened = Opened(opened.record, opened.config, opened.state_dict, {})
    opened.record = type(opened.record)("own", quick_gelu=True)
    before = export.save_pretrained(opened, folder, form)
    kept = {path: path.read_bytes() for path in before}
    opened.state_dict["visual.proj"].add_(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            export.save_pretrained(opened, folder, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "own" in str(caught.value.filename or caught.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
