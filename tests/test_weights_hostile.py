"""Hostile and damaged weight files: refused, nothing run, memory bounded."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import save_file

from clipag_plug.weights import open_checkpoint, pickles, tensorfile, weights
from clipag_plug.weights.registry import BadFileError


class Payload:
    """Runs a command when a pickle of it is loaded in the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def forge(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """A zip like torch's with a description of our own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def refused(path: Path, reason: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFileError, match=reason) as caught:
        weights.read(path)
    assert str(path) in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, (
        f"{grown} KiB were used to refuse a file of {path.stat().st_size} bytes"
    )


def test_pickles_with_code_run_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    files = [
        helpers.save(
            tmp_path / "a.pt", {"state_dict": {"w": torch.zeros(2)}, "extra": Payload(proof)}
        ),
        helpers.save(tmp_path / "b.pt", Payload(proof)),
        str(forge(tmp_path / "c.pt", pickle.dumps(Payload(proof), 4))),
    ]
    for file in files:
        refused(Path(file), "(posix|nt).system, which is not data and may run code")
    bare = tmp_path / "d.pt"
    bare.write_bytes(pickle.dumps(Payload(proof)))
    refused(bare, "bare pickle, which runs code")
    old = tmp_path / "e.pt"
    torch.save({"a": Payload(proof)}, old, _use_new_zipfile_serialization=False)
    refused(old, "bare pickle")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02(S'touch x'\nios\nsystem\n.", "instruction STRING"),
        (b"\x80\x02(X\x01\x00\x00\x00aios\nsystem\n.", "instruction INST, which makes an object"),
        (b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00aoR.", "OBJ|os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.", "os.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x02c__torch__.M\nM\nX\x01\x00\x00\x001\x85R.", "__torch__"),
        (b"\x80\x02]}X\x01\x00\x00\x00ak\x00b.", "damaged|inner state"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02}", "damaged|ends too early"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02(" + b"\x85" * 50 + b".", "damaged"),
        (b"\x80\x02})\x85K\x01s.", "tuple as a key"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged|BINBYTES8"),
        (b"", "damaged|ends"),
    ],
)
def test_forged_descriptions(tmp_path: Path, pickled: bytes, reason: str) -> None:
    refused(forge(tmp_path / "f.pt", pickled), reason)


def test_a_description_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAXIMUM", 100)
    with pytest.raises(pickles.Refused, match="at most 100 are read"):
        pickles.read(b"\x80\x02" + b"N0" * 100 + b"N.", lambda x: x, lambda f, a: a)


def refuse(function: Any, arguments: Any) -> Any:
    raise pickles.Refused(str(function))


def test_every_opcode_that_makes_objects_is_refused() -> None:
    """Whatever `pickletools` knows: nothing but data comes out, for each opcode in turn."""
    import pickletools

    for code in pickletools.opcodes:
        data = (
            b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85"
            + code.code.encode("latin1")
            + b"\x01\x00\x00\x00a\n."
        )
        try:
            result = pickles.read(
                data,
                lambda identity: identity,
                refuse,
            )
        except pickles.Refused:
            continue
        assert not callable(result), code.name


def test_zip_bombs(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(300_000_000))
    refused(bomb, "compressed.*zip bomb")
    state = {"a": torch.zeros(1).expand(50_000, 50_000)}
    refused(Path(helpers.save(tmp_path / "stride.pt", state)), "larger than the file")
    block = torch.zeros(1000)
    many = {f"w{index}": block for index in range(4000)}
    refused(Path(helpers.save(tmp_path / "many.pt", many)), "larger than the file")


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "archive/../../x", "C:\\x", "a\\..\\..\\b"]
)
def test_names_that_lead_out_of_the_archive(tmp_path: Path, name: str) -> None:
    refused(forge(tmp_path / "t.pt", b"\x80\x02}.", **{name: b"x"}), "leads out of the archive")


def test_archives_of_another_kind(tmp_path: Path) -> None:
    other = tmp_path / "photos.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("cat.png", b"x")
    refused(other, "not one that torch.save")
    import tarfile

    tar = tmp_path / "w.pth.tar"
    with tarfile.open(tar, "w") as archive_:
        info = tarfile.TarInfo("../../evil")
        archive_.addfile(info, io.BytesIO())
    refused(tar, "tar archive")
    for content, reason in (
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "neither"),
        (b"garbage" * 9, "neither"),
    ):
        path = tmp_path / "x.pt"
        path.write_bytes(content)
        refused(path, reason)


def header(entries: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),  # overlap
        header({"a": entry(0, 8, [2])}, bytes(4)),  # beyond the end
        header({"a": entry(0, 2**62, [2**60])}, bytes(8)),
        header({"a": entry(8, 0, [2])}, bytes(8)),  # backwards
        header({"a": entry(0, 8, [3])}, bytes(8)),  # shape and bytes disagree
        header({"a": entry(0, 8, [2**32, 2**32, 2])}, bytes(8)),  # product overflows
        header({"a": entry(4, 12, [2])}, bytes(12)),  # a hole
        header({"a": entry(0, 8, [2])}, bytes(8), length=2**63),
        header({"a": entry(0, 8, [2])}, bytes(8), length=3),
        header({"a": {**entry(0, 8, [2]), "dtype": "Z9"}}, bytes(8)),
        header({"a": [1]}, b""),
    ],
)
def test_safetensors_with_impossible_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    refused(path, "safetensors|neither")


def test_a_hundred_random_corruptions(tmp_path: Path) -> None:
    """A byte changed, a stretch zeroed or shuffled, an end cut off: 50 in a torch file, 50 in one of
    ours. A foreign safetensors file has no checksum, so there only its structure can be found out."""
    state = {
        name: value for name, value in helpers.weights(small=True).items() if value.numel() < 9000
    }
    torch_file, own = tmp_path / "a.pt", tmp_path / "b.safetensors"
    torch.save({"state_dict": state, "epoch": 1}, torch_file)
    tensorfile.write(own, state)
    randomness = random.Random(5)
    outcomes = {"refused": 0, "harmless": 0}
    for index in range(100):
        source = torch_file if index % 2 else own
        data = bytearray(source.read_bytes())
        at = randomness.randrange(len(data))
        kind = index // 2 % 4
        if kind == 0:
            data[at] ^= 1 << randomness.randrange(8)
        elif kind == 1:
            data[at : at + 200] = bytes(len(data[at : at + 200]))
        elif kind == 2:
            data[at : at + 64] = randomness.randbytes(len(data[at : at + 64]))
        else:
            del data[at:]
        path = tmp_path / f"c{source.suffix}"
        path.write_bytes(data)
        try:
            read, _ = weights.read(path)
        except BadFileError:
            outcomes["refused"] += 1
            continue
        # Padding, zip fields that nobody reads: then the weights must be the right ones.
        assert read.keys() == state.keys(), index
        assert all(torch.equal(read[name], value) for name, value in state.items()), index
        outcomes["harmless"] += 1
    assert sum(outcomes.values()) == 100
    assert outcomes["refused"] >= 80, outcomes


def test_foreign_safetensors_files_cut_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(helpers.weights(small=True), path)
    whole = path.read_bytes()
    for end in (9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(path, "safetensors|neither")


def test_hostile_configs_beside_the_weights(tmp_path: Path) -> None:
    save_file(helpers.weights(small=True), tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    for text in ("{", "[]", "[" * 100_000, '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": "x"}}'):
        config.write_text(text)
        with pytest.raises(BadFileError, match="open_clip_config.json"):
            open_checkpoint(f"local-dir:{tmp_path}")
