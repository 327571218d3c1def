"""Tables, folders, Hugging Face data sets and img2dataset's layouts: the same samples, whatever they are written as."""

from __future__ import annotations

import csv
import datetime
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_data_helpers import encoded, flat, numbered, write_tar

from clipag_plug.train.data import Batches, Columns, Photos, open_data
from clipag_plug.train.sources import expand_braces, parse

SAMPLES = numbered(0, 12)


def files(folder: Path, suffixes: tuple[str, ...] = ("png",), below: str = "") -> Path:
    """The samples as files of the folder."""
    (folder / below).mkdir(parents=True, exist_ok=True)
    for key, members in SAMPLES.items():
        for suffix in suffixes:
            (folder / below / f"{key}.{suffix}").write_bytes(members[suffix])
    return folder


def table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([header, *rows])
    return path


def rows(prefix: str = "") -> list[list[str]]:
    return [[f"{prefix}{key}.png", f"number {int(key)}", str(int(key))] for key in SAMPLES]


def captions(path: Path | str, **settings) -> list[str]:
    """Every caption of a data set, after checking pixels and classes; in memory and lazily they must agree."""
    data = open_data([str(path)], 16, **settings)
    assert isinstance(data.photos, Photos)
    levels = data.photos.images.mean(axis=(1, 2, 3))
    for level, text, label in zip(levels, data.photos.texts, data.photos.labels, strict=True):
        assert text == f"number {level:.0f}" and int(label) in (-1, level)
    feed = open_data([str(path)], 16, memory=0.0, shuffle=4, **settings).feeds[0]
    lazy = [feed.load(reference).text for reference in feed.take(0, len(data.photos), 0)]
    assert sorted(lazy) == sorted(data.photos.texts)
    return data.photos.texts


EVERY = [f"number {n}" for n in range(12)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("header", [["filepath", "title", "label"], ["Image", "Caption", "cls"]])
def test_tables(tmp_path, suffix, header) -> None:
    files(tmp_path, below="photos")
    assert captions(table(tmp_path / f"t{suffix}", header, rows("photos/"))) == EVERY
    assert captions(table(tmp_path / f"u{suffix}", header, rows(f"{tmp_path}/photos/"))) == EVERY


def test_a_table_with_names_of_its_own(tmp_path) -> None:
    files(tmp_path)
    path = table(tmp_path / "t.csv", ["bild", "text", "wort", "image"], [])
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerows([n[0], "no", n[1], "no"] for n in rows())
    assert captions(path, columns=Columns("bild", "wort")) == EVERY
    with pytest.raises(ValueError, match="no column 'picture' .--image-column.; it has bild, text"):
        open_data([str(path)], 16, columns=Columns("picture"))


def test_captions_of_a_table_may_hold_anything(tmp_path) -> None:
    files(tmp_path)
    odd = ['a "quoted", comma', "two\nlines", "größe 大きい 🙂", "x" * 200_000]
    path = table(tmp_path / "t.csv", ["image", "caption"], [["000000.png", text] for text in odd])
    assert open_data([str(path)], 16).photos.texts == odd
    path.write_bytes(path.read_bytes() + "000001.png,caf\xe9\n".encode("latin-1"))
    assert open_data([str(path)], 16).photos.skipped == {"caption not UTF-8": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "columns a, b: none is known to hold images; give --image-column"),
        ("url,caption\n", "columns url, caption"),
        ("image,caption\nhttp://x.org/a.jpg,one\n", "img2dataset"),
        ("", "is empty"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data([str(tmp_path / "t.csv")], 16)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,caption\n".encode("utf-16"), "not text in UTF-8"),
        ("t.csv", b"im\xe4ge,caption\n", "not text in UTF-8"),
        ("t.csv", b"image,caption\ns3://bucket/a.png,words\n", "lists addresses"),
        ("t.jsonl", b'{"image": "a.png", "caption": "words"}\n', "is no tar file; give a .tar"),
        ("t.txt", b"image,caption\na.png,words\n", "is no tar file; give a .tar"),
    ],
)
def test_a_file_that_is_no_data_is_named(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        open_data([str(tmp_path / name)], 16)


def test_odd_spellings_in_a_table_are_read(tmp_path) -> None:
    """Blanks around names of columns, an upper-case suffix, file addresses, and classes that came to be floats."""
    (tmp_path / "a.png").write_bytes(flat(7))
    rows = [
        f"file://{tmp_path}/a.png\tone\t3.0",
        "a.png\ttwo\t2",
        "a.png\tthree\t1.5",
        "a.png\tfour\t",
    ]
    (tmp_path / "t.TSV").write_text("\n".join([" image \t caption\tlabel ", *rows]))
    photos = open_data([str(tmp_path / "t.TSV")], 16).photos
    assert photos.texts == ["one", "two", "three", "four"]
    assert photos.labels.tolist() == [3, 2, -1, -1]


def test_a_folder_with_captions_beside_the_images(tmp_path) -> None:
    files(tmp_path, ("png", "txt", "cls"), "deep/er")
    (tmp_path / "readme.md").write_text("not a sample")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert captions(tmp_path) == EVERY
    (tmp_path / "alone.txt").write_text("no image")
    (tmp_path / "deep" / "x.png").write_bytes(flat(5))
    skipped = open_data([str(tmp_path)], 16).photos.skipped
    assert skipped == {"no image": 1, "no caption": 1}


def test_a_folder_for_each_class(tmp_path) -> None:
    for name in ("tabby_cat", "apple"):
        files(tmp_path, ("png",), f"{name}/more")
    photos = open_data([str(tmp_path)], 16).photos
    assert photos.texts == ["a photo of an apple"] * 12 + ["a photo of a tabby cat"] * 12
    assert photos.labels.tolist() == [0] * 12 + [1] * 12


def with_json() -> dict[str, dict[str, bytes]]:
    """What img2dataset writes for a sample: the caption in KEY.txt and, with much else, in KEY.json."""
    return {
        key: {**members, "json": json.dumps({"caption": members["txt"].decode()}).encode()}
        for key, members in SAMPLES.items()
    }


@pytest.mark.parametrize("kept", [("png", "txt", "json"), ("png", "json")])
@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_layouts_of_img2dataset(tmp_path, layout, kept) -> None:
    samples = {k: {s: m[s] for s in kept} for k, m in with_json().items()}
    if layout == "webdataset":
        half = len(samples) // 2
        write_tar(tmp_path / "00000.tar", dict(list(samples.items())[:half]))
        write_tar(tmp_path / "00001.tar", dict(list(samples.items())[half:]))
        (tmp_path / "00000.parquet").write_bytes(b"metadata, not read")
    else:
        (tmp_path / "00000").mkdir()
        for key, members in samples.items():
            for suffix, data in members.items():
                (tmp_path / "00000" / f"{key}.{suffix}").write_bytes(data)
    (tmp_path / "00000_stats.json").write_text("{}")
    assert captions(tmp_path) == EVERY


def test_parquet_with_the_images_inside(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    keys = [*SAMPLES, "lost"]
    columns = {
        "key": keys,
        "status": ["success"] * 12 + ["failed_to_download"],
        "caption": [*EVERY, "never came"],
        "jpg": [*(members["png"] for members in SAMPLES.values()), None],
    }
    write_table(pa.table(columns), tmp_path / "00000.parquet", row_group_size=5)
    assert captions(tmp_path / "00000.parquet") == EVERY
    assert captions(tmp_path) == EVERY  # the folder of such files


def test_parquet_of_paths(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    files(tmp_path)
    columns = dict(zip(("path", "text", "label"), zip(*rows(), strict=True), strict=True))
    columns["label"] = [int(label) for label in columns["label"]]
    write_table(pa.table({k: list(v) for k, v in columns.items()}), tmp_path / "t.parquet")
    assert captions(tmp_path / "t.parquet") == EVERY
    (tmp_path / "u.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match="not a Parquet file"):
        open_data([str(tmp_path / "u.parquet")], 16)


@pytest.mark.parametrize("split", ["", ":train"])
def test_a_hugging_face_data_set_on_disk(tmp_path, split) -> None:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": members["png"], "path": None} for members in SAMPLES.values()]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Sequence(datasets.Value("string")),
            "label": datasets.Value("int64"),
        }
    )
    values = {"image": images, "caption": [[t, "other"] for t in EVERY], "label": range(12)}
    found = datasets.Dataset.from_dict({k: list(v) for k, v in values.items()}, features=features)
    saved = datasets.DatasetDict({"train": found}) if split else found
    saved.save_to_disk(str(tmp_path / "set"))
    assert captions(f"hf:{tmp_path / 'set'}{split}") == EVERY
    with pytest.raises(ValueError, match="no split 'test'; it (has train|is one data set)"):
        open_data([f"hf:{tmp_path / 'set'}:test"], 16)


def test_a_hugging_face_data_set_that_is_not_there() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="data set hf:nobody/nothing cannot be opened"):
        open_data(["hf:nobody/nothing"], 16)


@pytest.mark.parametrize("spec, package", [("hf:some/set", "datasets"), ("t.parquet", "pyarrow")])
def test_missing_packages_are_named(tmp_path, monkeypatch, spec, package) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet", "pyarrow.types"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=f"pip install {package}"):
        open_data([spec], 16)


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
        ("plain", ["plain"]),
        ("{}-{one}", ["{}-{one}"]),
    ],
)
def test_braces(pattern, expected) -> None:
    assert expand_braces(pattern) == expected
    assert expand_braces("awk '{print $1, $2}' {1..2}", lists=False) == [
        "awk '{print $1, $2}' 1",
        "awk '{print $1, $2}' 2",
    ]


def test_braces_of_files_and_commands(tmp_path) -> None:
    items = list(SAMPLES.items())
    for n in range(3):
        write_tar(tmp_path / f"s-{n:02d}.tar", dict(items[4 * n : 4 * n + 4]))
    assert captions(f"{tmp_path}/s-{{00..02}}.tar") == EVERY
    assert captions(f"pipe:cat '{tmp_path}'/s-{{00..02}}.tar") == EVERY
    with pytest.raises(FileNotFoundError, match="s-03.tar"):
        open_data([f"{tmp_path}/s-{{00..03}}.tar"], 16)


def test_shares_are_read_off_the_end_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "really@0.5").mkdir()
    found = [(i.spec, i.share) for i in parse(["a.tar@0.7", "pipe:ssh me@10.0.0.1 cat x@.3"])]
    assert found == [("a.tar", 0.7), ("pipe:ssh me@10.0.0.1 cat x", 0.3)]
    for bare in ("really@0.5", "hf:name@main", "a@b.tar"):
        assert [(i.spec, i.share) for i in parse([bare])] == [(bare, None)]


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def put(folder: Path, members: dict[str, bytes | str]) -> Path:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def parquet(folder: Path, captions: list[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    put(folder, {"0.png": flat(0)})
    write_table(
        pa.table({"path": ["0.png"] * len(captions), "caption": captions}), folder / "t.parquet"
    )
    return folder / "t.parquet"


def table_with(parted: str) -> Callable[[Path], Path]:
    text = f"filepath{parted}title\n0.png{parted}a, b; c | d\n".replace(
        "a, b; c | d", '"a, b; c | d"'
    )
    return lambda folder: put(folder, {"0.png": flat(0), "t.csv": text}) / "t.csv"


PICTURE, ALT = flat(9), b'{"alt": ["one"]}'
BMP = encoded(kind="BMP")
# What people have -> how it is written, the captions that are read, what is skipped by cause.
SHAPES: dict[str, tuple[Callable[[Path], Path | str], list[str], dict[str, int]]] = {
    "1.jpg beside 1.png": (
        lambda d: put(d, {"1.jpg": encoded(), "1.png": PICTURE, "1.txt": "one"}),
        ["one", "one"], {},
    ),
    "1.jpg beside 1.png in a shard": (
        lambda d: tar_of(d / "a.tar", {"1.jpg": encoded(), "1.png": PICTURE, "1.txt": b"one"}),
        ["one", "one"], {},
    ),
    ".bmp and .tiff": (
        lambda d: put(d, {"1.bmp": BMP, "1.txt": "one", "2.TIFF": encoded(kind="TIFF"), "2.txt": "two"}),
        ["one", "two"], {},
    ),
    ".bmp in a shard": (lambda d: tar_of(d / "a.tar", {"1.bmp": BMP, "1.txt": b"one"}), ["one"], {}),
    **{f"a .csv parted by {p!r}": (table_with(p), ["a, b; c | d"], {}) for p in "\t;|,"},
    "macOS members": (
        lambda d: tar_of(
            d / "a.tar",
            {"._1.jpg": b"x", "1.jpg": encoded(), "._1.txt": b"x", "1.txt": b"one", "__MACOSX/._1.jpg": b"x"},
        ),
        ["one"], {},
    ),
    "lists of boxes and notes in class folders": (
        lambda d: put(
            d,
            {"cat/a.png": PICTURE, "cat/cat_boxes.txt": "1", "dog/b.png": PICTURE, "README.txt": "x"},
        ),
        ["a photo of a cat", "a photo of a dog"], {},
    ),
    "a note among captioned images": (
        lambda d: put(d, {"a.png": PICTURE, "a.txt": "one", "README.txt": "x"}),
        ["one"], {"no image": 1},
    ),
    "numbers": (lambda d: parquet(d, [7, 8]), ["7", "8"], {}),
    "fractions": (lambda d: parquet(d, [0.5, float("nan")]), ["0.5"], {"no caption": 1}),
    "truth": (lambda d: parquet(d, [True, None]), ["True"], {"no caption": 1}),
    "dates": (lambda d: parquet(d, [datetime.date(2024, 2, 29)]), ["2024-02-29"], {}),
    "bytes": (lambda d: parquet(d, [b"caf\xc3\xa9", b"caf\xe9"]), ["café"], {"caption not UTF-8": 1}),
    "mappings": (
        lambda d: parquet(d, [{"text": "one", "id": 1}, {"text": None, "id": 2}]),
        ["one"], {"no caption": 1},
    ),
    "several captions": (lambda d: parquet(d, [["one", "two"], []]), ["one"], {"no caption": 1}),
    "json with another key": (
        lambda d: put(d, {"a.png": PICTURE, "a.json": '{"text": "one"}', "b.png": PICTURE, "b.json": "{}"}),
        ["one"], {"no caption": 1},
    ),
    "json with a key of one's own": (
        lambda d: f"{tar_of(d / 'a.tar', {'1.png': PICTURE, '1.json': ALT})}::caption=alt",
        ["one"], {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_every_shape_is_read_or_skipped_with_a_count(tmp_path, shape, memory) -> None:
    write, texts, skipped = SHAPES[shape]
    data = open_data([str(write(tmp_path))], 16, memory=memory)
    common = {"crop": 1.0, "flip": False, "seed": 0, "vocabulary": None, "group_share": 0.0}
    stream = Batches(data, 1, 16, **common)
    seen = [stream[index].texts[0] for index in range(stream.per_epoch)]
    assert set(seen) == set(texts) and stream.tally.counts() == skipped
    if memory:
        assert sorted(seen) == sorted(texts)
