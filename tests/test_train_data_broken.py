"""Broken input of every kind among good samples: skipped, counted by cause, and fatal above the limit."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from train_data_helpers import encoded, flat, numbered, write_tar
from train_helpers import prepared

from clipag_plug.train.command import train
from clipag_plug.train.data import Batches, open_data
from clipag_plug.train.decode import CAUSES, BadSample, pixels
from clipag_plug.train.tally import Tally
from clipag_plug.vocabulary import bundled_vocabulary

TXT = {"txt": b"a thing"}
BATCH = 8


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces a size and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def tiff(mode: str) -> bytes:
    """A TIFF of 32-bit numbers, for which nothing says what white is."""
    stream = io.BytesIO()
    Image.fromarray(np.ones((16, 16), "float32" if mode == "F" else "int32")).save(stream, "TIFF")
    return stream.getvalue()


def damaged_png() -> bytes:
    data = bytearray(encoded(kind="PNG"))
    data[60:80] = bytes(20)
    return bytes(data)


# Cause -> samples of a shard that must be skipped for it.
IN_SHARDS: dict[str, list[dict[str, bytes]]] = {
    "no image": [TXT, {**TXT, "mp4": b"film"}],
    "empty image": [{**TXT, "jpg": b""}],
    "broken image": [
        {**TXT, "jpg": encoded()[:200]},
        {**TXT, "jpg": encoded()[:-300]},
        {**TXT, "png": damaged_png()},
    ],
    "not an image": [{**TXT, "jpg": b"<!DOCTYPE html><p>404"}, {**TXT, "png": b"\0" * 99}],
    "image too large": [{**TXT, "png": png_of(20000, 20000)}],
    "image too small": [{**TXT, "png": flat(3, 1)}, {**TXT, "jpg": encoded(size=(300, 7))}],
    "unsupported colour mode": [{**TXT, "png": tiff("F")}, {**TXT, "png": tiff("I")}],
    "no caption": [{"jpg": encoded()}, {"jpg": encoded(), "json": b'{"url": "x"}'}],
    "empty caption": [{"jpg": encoded(), "txt": b""}, {"jpg": encoded(), "txt": b" \n\t"}],
    "caption not UTF-8": [{"jpg": encoded(), "txt": "café".encode("latin-1")}],
    "broken metadata": [{"jpg": encoded(), "json": b"{"}, {"jpg": encoded(), "json": b"[1]"}],
}
# Modes that are converted: none of these is an error.
GOOD = [
    *(("JPEG", mode) for mode in ("L", "CMYK", "RGB")),
    *(("PNG", mode) for mode in ("1", "P", "LA", "RGBA", "I;16")),
    *(("TIFF", mode) for mode in ("YCbCr", "LAB")),
    ("GIF", "P"),
    ("WEBP", "RGBA"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[list[str], Counter[str]]:
    """--data of 1,000 samples with 16 kinds of broken input among them, and how many there are of each."""
    folder = tmp_path_factory.mktemp("mixed")
    bad = [sample for samples in IN_SHARDS.values() for sample in samples]
    odd = [{**TXT, "png": encoded(mode, kind=kind)} for kind, mode in GOOD]
    expected = Counter({cause: len(samples) for cause, samples in IN_SHARDS.items()})
    usual = [{**TXT, "jpg": encoded(seed=n)} for n in range(30)]
    many = [usual[n % 30] for n in range(1000 - 3 - 10 - len(bad) - len(odd))]
    samples = [*many[:300], *bad, *odd, *many[300:]]
    np.random.default_rng(0).shuffle(samples)
    keyed = {f"{n:05d}": sample for n, sample in enumerate(samples)}
    write_tar(folder / "a-0.tar", dict(list(keyed.items())[:500]))
    write_tar(folder / "a-1.tar", dict(list(keyed.items())[500:]))
    # 4 samples, of which the cut leaves 3.
    whole = write_tar(folder / "a-2.tar", {str(n): usual[n] for n in range(4)}).read_bytes()
    last = whole.rindex(b"3.jpg")
    (folder / "a-2.tar").write_bytes(whole[: last + 700])
    (folder / "a-3.tar").write_bytes(b"this is no archive" * 100)
    expected.update({"truncated shard": 1, "unreadable shard": 1})
    # A table of 6 good rows, 2 whose file is missing, 2 that lack a column.
    for n in range(6):
        (folder / f"{n}.jpg").write_bytes(usual[n]["jpg"])
    rows = [f"{n}.jpg,a thing" for n in range(6)] + ["no.jpg,a thing", "nowhere/1.jpg,a thing"]
    table = "\n".join(["filepath,title", *rows, "5.jpg", ",a thing"])
    (folder / "t.csv").write_text(table + "\n")
    expected.update({"missing file": 2, "broken row": 2})
    write_tar(folder / "piped.tar", {"x": usual[0]})
    command = f"cat '{folder / 'piped.tar'}'; exit 3"
    expected["failed command"] = 1
    return [f"{folder}/a-*.tar", f"{folder}/t.csv", f"pipe:{command}"], expected


def batches(data: object, **settings) -> Batches:
    common = {"crop": 0.8, "flip": True, "seed": 0, "vocabulary": None, "group_share": 0.2}
    return Batches(data, settings.pop("batch_size", BATCH), 16, **{**common, **settings})


@pytest.mark.parametrize("where", ["memory", "stream", "disk"])
def test_trains_to_the_end_and_counts_by_kind(mixed, where, tmp_path_factory, tmp_path) -> None:
    specs, expected = mixed
    expected = Counter(expected)
    if where == "disk":  # without the command all of it can be read in any order
        specs, expected = specs[:2], expected - Counter({"failed command": 1})
    assert len(expected) >= 15
    data = open_data(specs, 16, memory=4.0 if where == "memory" else 0.0, shuffle=50)
    stream = batches(data, decoders=2, batch_size=1 if where == "disk" else BATCH)
    good = write_tar(tmp_path / "good.tar", {"0": {**TXT, "jpg": encoded()}} | numbered(0, 24))
    steps = 20 if where == "memory" else 125  # a pass over a stream takes all of them
    trainer = prepared(good, tmp_path / "run", captions="text", attack_steps=0, samples=8 * steps)
    if where == "disk":
        for index in range(stream.per_epoch):
            assert stream[index].images.isfinite().all()
    else:
        trainer.batches = stream
        train(trainer, tmp_path / "run")
        assert trainer.index == steps
        assert all(bool(weight.isfinite().all()) for weight in trainer.weights.values())
    assert stream.tally.counts() == dict(sorted(expected.items(), key=lambda i: (-i[1], i[0])))
    total = 1000 - 10 + 6 + 2 + 1 + sum(expected[c] for c in ("truncated shard", "broken row"))
    assert abs(stream.tally.seen - total) <= 4
    summary = stream.tally.summary()
    assert summary.startswith(f"skipped {sum(expected.values())} of ")
    assert all(f"{count} {cause}" in summary for cause, count in expected.items())


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_too_much_of_it_is_fatal(mixed, memory) -> None:
    specs, expected = mixed
    data = open_data(specs[:2], 16, memory=memory)
    with pytest.raises(
        ValueError, match=r"% of the data is bad.*--max-bad-fraction 0.01: 3 broken"
    ):
        stream = batches(data, max_bad_fraction=0.01)
        for index in range(stream.per_epoch):
            stream[index]
    stream = batches(data, max_bad_fraction=0.05)
    for index in range(stream.per_epoch):
        stream[index]
    assert 0.02 < stream.tally.fraction() < 0.03


def test_counts_of_workers_add_up_and_survive_a_resume(mixed) -> None:
    data = open_data(mixed[0][:2], 16, memory=0.0)
    whole = batches(data, batch_size=8)
    parts = [batches(data, batch_size=4, worker=(rank, 2)) for rank in (0, 1)]
    for index in range(whole.per_epoch):
        for stream in (whole, *parts):
            stream[index]
    assert parts[0].tally.bad.keys() != parts[1].tally.bad.keys()
    for part in parts:  # an estimate from its own half
        assert abs(part.tally.fraction() - whole.tally.fraction()) < 0.02
    states = [part.tally.state() for part in parts]
    parts[0].tally.merge(states)
    assert parts[0].tally.counts() == whole.tally.counts()
    assert parts[0].tally.fraction() == pytest.approx(whole.tally.fraction())
    resumed = Tally()
    resumed.merge([whole.tally.state()])
    assert (resumed.bad, resumed.seen) == (whole.tally.bad, whole.tally.seen)


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_places_of_bad_samples_are_filled_with_good_ones(tmp_path, memory) -> None:
    samples = numbered(0, 16)
    for key in ("000003", "000009"):
        samples[key]["png"] = b"junk" * 9
    data = open_data([str(write_tar(tmp_path / "s.tar", samples))], 16, memory=memory)
    stream = batches(data, batch_size=7, crop=1.0, flip=False)
    seen = {text for index in range(stream.per_epoch * 5) for text in stream[index].texts}
    assert seen == {f"number {n}" for n in range(16) if n not in (3, 9)}
    assert stream.tally.counts() == {"not an image": 2}
    assert len(stream[0].texts) == 7


def test_a_batch_without_a_good_sample_is_named(tmp_path) -> None:
    samples = {str(n): {**TXT, "jpg": b"junk"} for n in range(8)}
    path = str(write_tar(tmp_path / "s.tar", samples))
    with pytest.raises(ValueError, match="no usable sample in the data.*8"):
        open_data([path], 16)
    stream = batches(open_data([path], 16, memory=0.0))
    with pytest.raises(ValueError, match="none of the samples of batches 0 to 98 can be used"):
        stream[0]


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_classes_are_needed_where_captions_come_of_them(tmp_path, memory) -> None:
    samples = numbered(0, 20)
    del samples["000002"]["cls"]
    samples["000004"]["cls"] = b"cat"
    samples["000005"]["cls"] = b"202"
    path = str(write_tar(tmp_path / "s.tar", samples))
    data = open_data([path], 16, need_text=False, classes=202, memory=memory)
    stream = batches(data, vocabulary=bundled_vocabulary(), batch_size=1)
    for index in range(stream.per_epoch):
        stream[index]
    assert stream.tally.counts() == {"no class": 2, "unknown class": 1}


@pytest.mark.parametrize("kind, mode", GOOD)
def test_other_modes_become_rgb(kind, mode) -> None:
    image = pixels(encoded(mode, kind=kind), 16)
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert mode == "I;16" or 60 < image.mean() < 200


def test_what_is_transparent_becomes_white_and_16_bits_keep_their_range() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(stream, "PNG")
    assert (pixels(stream.getvalue(), 16) == 255).all()
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16), 0x8000, np.uint16)).save(stream, "PNG")
    assert (pixels(stream.getvalue(), 16) == 0x80).all()


def test_the_middle_square_is_kept_also_of_a_large_jpeg() -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 250
    for side in (64, 16):  # at 16 the decoder itself reduces the picture
        stream = io.BytesIO()
        Image.fromarray(wide).save(stream, "JPEG", quality=95)
        assert pixels(stream.getvalue(), side)[2:-2, 2:-2].mean() > 245


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(97, 61), (61, 98), (24, 31), (24, 24), (300, 24)])
def test_a_model_is_shown_an_image_as_by_its_own_transform(mode, interpolation, size) -> None:
    """To the pixel, at odd sizes, for a JPEG that a decoder could reduce and for what has to grow."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize(size)
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        coarse.save(stream, kind)
        side = (24, 24) if mode == "squash" else 24
        image = Resize(side, InterpolationMode(interpolation), antialias=True)(Image.open(stream))
        expected = np.asarray(CenterCrop(24)(image))
        assert np.array_equal(pixels(stream.getvalue(), 24, (interpolation, mode)), expected)


def test_every_cause_has_a_test() -> None:
    elsewhere = {"truncated shard", "unreadable shard", "missing file", "broken row"}
    elsewhere |= {"failed command", "no class", "unknown class"}
    assert set(CAUSES) == set(IN_SHARDS) | elsewhere
    with pytest.raises(BadSample, match="no image"):
        pixels(None, 16)


@pytest.mark.parametrize("cut", range(100, 12000, 1700))
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_cut_anywhere_loses_its_end_alone(tmp_path, cut, mode) -> None:
    rng = np.random.default_rng(0)
    samples = {f"{n}": {"jpg": encoded(seed=n), "bin": rng.bytes(900), **TXT} for n in range(8)}
    data = write_tar(tmp_path / "s.tar", samples, mode).read_bytes()
    (tmp_path / "s.tar").write_bytes(data[: min(cut, len(data) - 9)])
    write_tar(tmp_path / "whole.tar", {"w": samples["0"]})
    for memory in (4.0, 0.0):
        data = open_data([f"{tmp_path}/*.tar"], 16, memory=memory, shuffle=3)
        stream = batches(data, batch_size=1)
        for index in range(12):
            batch = stream[index]
            assert torch.isfinite(batch.images).all()
        causes = set(stream.tally.bad.items())
        assert len(causes) == 1 and causes <= {
            (str(tmp_path / "s.tar"), cause) for cause in ("truncated shard", "unreadable shard")
        }
