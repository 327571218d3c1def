"""Batches as a pure function of (seed, index): over sources, shares, workers, memory or disk, and after a restart."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_data_helpers import numbered, write_tar

from clipag_plug.augment import training_crops
from clipag_plug.train.data import Batch, Batches, Data, Photos, open_data, read_shards
from clipag_plug.train.feeds import BLOCK
from clipag_plug.vocabulary import bundled_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two plain shards, one compressed one: samples 0 to 39, 40 to 59 and 60 to 99."""
    folder = tmp_path_factory.mktemp("data")
    write_tar(folder / "a-00.tar", numbered(0, 40))
    write_tar(folder / "a-01.tar", numbered(40, 20))
    write_tar(folder / "b.tar.gz", numbered(60, 40), "w:gz")
    return folder


def opened(*specs: Path | str, size: int = 16, **settings) -> Data:
    return open_data([str(spec) for spec in specs], size, **settings)


def batches(data: Data | Photos, size: int = 8, **settings) -> Batches:
    common = {"crop": 1.0, "flip": False, "seed": 3, "vocabulary": None, "group_share": 0.2}
    return Batches(data, size, 16, **{**common, **settings})


def numbers(batch: Batch) -> list[int]:
    """The samples of a batch by caption; the pixels must agree."""
    found = [int(text.split()[1]) for text in batch.texts]
    levels = (batch.images.mean(dim=(1, 2, 3)) * 255).round().int().tolist()
    assert found == levels == [int(label) for label in batch.labels]
    return found


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
        and (first.texts, first.words) == (second.texts, second.words)
    )


LAZY = {"memory": 0.0}
KINDS = {
    "memory": (["a-00.tar", "a-01.tar"], {}),
    "disk": (["a-00.tar", "a-01.tar"], LAZY),
    "stream": (["b.tar.gz"], {**LAZY, "shuffle": 7}),
    "shares": (["a-*.tar@0.75", "b.tar.gz@0.25"], {}),
    "shares of streams": (["a-*.tar@0.75", "b.tar.gz@0.25"], {**LAZY, "shuffle": 7}),
}


@pytest.fixture(params=KINDS)
def kind(request, folder) -> Data:
    names, settings = KINDS[request.param]
    return opened(*(folder / name for name in names), **settings)


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_batch_depends_on_seed_and_number_alone(kind, decoders) -> None:
    straight = batches(kind, decoders=decoders, crop=0.5, flip=True)
    run = [straight[index] for index in range(14)]
    # A later start, a look back, a leap: what a resumed run does, and worse.
    for start in (9, 0, 13, 2):
        assert same(batches(kind, crop=0.5, flip=True)[start], run[start])
        assert same(straight[start], run[start])
    assert not any(same(a, b) for a, b in itertools.combinations(run, 2))
    assert not same(batches(kind, seed=4)[0], batches(kind)[0])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("captions", ["text", "vocabulary"])
def test_workers_together_have_the_batch_of_one_process(kind, world, captions) -> None:
    vocabulary = bundled_vocabulary() if captions == "vocabulary" else None
    settings = {"vocabulary": vocabulary, "crop": 0.5, "flip": True}
    whole = batches(kind, 8, **settings)
    parts = [batches(kind, 8 // world, worker=(rank, world), **settings) for rank in range(world)]
    for index in (0, 1, 6, 7, 12):
        expected, slices = whole[index], [part[index] for part in parts]
        joined = Batch(
            torch.cat([part.images for part in slices]),
            sum((part.texts for part in slices), []),
            sum((part.words for part in slices), []),
            torch.cat([part.labels for part in slices]),
        )
        assert same(joined, expected)


@pytest.mark.parametrize("settings", [{}, LAZY])
def test_an_epoch_has_each_sample_once(folder, settings) -> None:
    stream = batches(opened(folder / "a-*.tar", **settings), 10)
    assert stream.per_epoch == 6
    epochs = [[n for index in range(6) for n in numbers(stream[e * 6 + index])] for e in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_disk_and_memory_give_the_same_batches(folder) -> None:
    memory, disk = (batches(opened(folder / "a-*.tar", **more), crop=0.5) for more in ({}, LAZY))
    assert all(same(memory[index], disk[index]) for index in range(20))


def test_a_stream_has_each_sample_once_a_pass_and_mixes_them(folder) -> None:
    data = opened(folder / "b.tar.gz", memory=0.0, shuffle=20)
    stream = batches(data, 8)
    passes = [[n for index in range(5) for n in numbers(stream[p * 5 + index])] for p in range(3)]
    assert all(sorted(part) == list(range(60, 100)) for part in passes)
    assert passes[0] != passes[1] and passes[0] != sorted(passes[0])


def test_a_stream_of_a_command_equals_its_file(folder) -> None:
    path = folder / "b.tar.gz"
    settings = {"memory": 0.0, "shuffle": 5}
    of_file, of_command = opened(path, **settings), opened(f"pipe:cat '{path}'", **settings)
    unpacked = opened(f"pipe:gzip -dc '{path}'", **settings)
    for index in range(7):
        expected = batches(of_file)[index]
        assert same(batches(of_command)[index], expected)
        assert same(batches(unpacked)[index], expected)
    assert len(opened(f"pipe:cat '{path}'").photos) == 40


@pytest.mark.parametrize("settings", [{}, {**LAZY, "shuffle": 9}])
def test_shares_hold_exactly_over_a_block(folder, settings) -> None:
    data = opened(
        f"{folder}/a-00.tar@3", f"{folder}/a-01.tar@1", f"{folder}/b.tar.gz@1", **settings
    )
    stream = batches(data, 50)
    seen = Counter(n for index in range(BLOCK // 50) for n in numbers(stream[index]))
    by_source = [sum(seen[n] for n in part) for part in (range(40), range(40, 60), range(60, 100))]
    assert by_source == [BLOCK * 3 // 5, BLOCK // 5, BLOCK // 5]
    # Inside its share each source goes through its samples evenly.
    assert {seen[n] for n in range(40, 60)} == {BLOCK // 5 // 20}
    assert {seen[n] for n in range(40)} == {BLOCK * 3 // 5 // 40}


def test_items_without_shares_are_one_set(folder) -> None:
    together = opened(folder / "a-00.tar", folder / "a-01.tar", folder / "b.tar.gz")
    assert len(together.photos) == 100 and batches(together, 10).per_epoch == 10
    # A stream among them makes all of it a stream, where it does not fit.
    lazy = batches(opened(folder / "a-*.tar", folder / "b.tar.gz", memory=0.0), 10)
    assert sorted(n for index in range(10) for n in numbers(lazy[index])) == list(range(100))


def test_a_set_larger_than_memory_is_not_held(folder) -> None:
    one = 3 * 16 * 16 / 1e9
    assert opened(folder / "a-*.tar", memory=60.5 * one).photos is not None
    for path in ("a-*.tar", "b.tar.gz"):
        data = opened(folder / path, memory=39.5 * one)
        assert data.photos is None and not data.feeds[0].whole


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_some_samples_are_drawn_at_random_and_bad_ones_are_not_among_them(tmp_path, kind) -> None:
    samples = numbered(0, 40)
    samples["000003"]["png"] = samples["000017"]["png"] = b"junk"
    path = str(write_tar(tmp_path / f"s.{kind}", samples, "w:gz" if kind == "tar.gz" else "w"))
    read = partial(read_shards, [path], 16)
    whole, few, again, other = read(), read(count=12), read(count=12), read(count=12, seed=1)
    assert len(whole) == 38 and len(few) == 12 and len(set(few.texts)) == 12
    assert set(few.texts) < set(whole.texts) and few.texts == again.texts != other.texts
    assert few.texts != whole.texts[:12], "not the first"
    assert sorted(read(count=99).texts) == sorted(whole.texts)


def test_read_shards_takes_what_has_neither_caption_nor_class(tmp_path) -> None:
    samples = {key: {"png": members["png"]} for key, members in numbered(0, 5).items()}
    photos = read_shards([str(write_tar(tmp_path / "s.tar", samples))], 16)
    assert len(photos) == 5 and photos.labels.tolist() == [-1] * 5 and set(photos.texts) == {""}


def test_synthetic_images_repeat_for_a_seed_and_can_be_told_apart() -> None:
    first, again, other = (opened("synthetic:404", seed=seed).photos for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images) and first.texts == again.texts
    assert not np.array_equal(first.images, other.images)
    images = first.select(range(404)).flatten(1)
    own = (images[:202] - images[202:]).norm(dim=1)  # samples i and i + 202 are of one class
    foreign = (images[:202] - images[202:].roll(1, 0)).norm(dim=1)
    assert bool((own < foreign).all()) and first.texts[7] == first.texts[209]
    lazy = batches(opened("synthetic:404", seed=1, memory=0.0))
    assert same(lazy[5], batches(opened("synthetic:404", seed=1))[5])


def test_crops_are_the_mean_of_a_fine_crop() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def crop(size: int, flip: bool = True, smallest: float = 0.5) -> torch.Tensor:
        draws = torch.rand(4, 6, generator=torch.Generator().manual_seed(7))
        return training_crops(images, size, smallest, flip, draws)

    assert torch.allclose(crop(16), F.avg_pool2d(crop(64), 4), atol=1e-6)
    assert torch.allclose(crop(24), F.avg_pool2d(crop(72), 3), atol=1e-6)
    for size in (16, 64, 100):
        out = crop(size)
        assert out.shape == (6, 3, size, size) and 0 <= float(out.min()) <= float(out.max()) <= 1
    assert torch.allclose(crop(64, flip=False, smallest=1.0), images, atol=1e-5)
    assert torch.allclose(crop(16, flip=False, smallest=1.0), F.avg_pool2d(images, 4), atol=1e-5)


@pytest.mark.parametrize("length, size", [(237, 224), (64, 24), (5, 16)])
def test_crops_of_bytes_and_floats_equal_torchs_sampling_of_the_same_boxes(length, size) -> None:
    """Within 1e-4, the rounding of a place among 237 in fp32."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (4, length, length, 3), generator=generator, dtype=torch.uint8)
    stored, u = stored.permute(0, 3, 1, 2), torch.rand(4, 4, generator=generator)
    side, finer = (0.5 + 0.5 * u[0]).sqrt(), -(-length // size)
    theta = torch.zeros(4, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(u[3] < 0.5, -1, 1) * side, side
    theta[:, :, 2] = ((2 * u[1:3] - 1) * (1 - side)).T
    grid = F.affine_grid(theta, [4, 3, size * finer, size * finer], align_corners=False)
    floats = stored.float() / 255
    wanted = F.grid_sample(floats, grid, padding_mode="border", align_corners=False)
    for images in (stored, floats):
        found = training_crops(images, size, 0.5, True, u)
        assert torch.allclose(found, F.avg_pool2d(wanted, finer), atol=1e-4)


def test_crops_are_free_of_aliasing() -> None:
    # Stripes of one pixel cannot be shown at a quarter of the size: they must turn grey, not into other stripes.
    stripes = (torch.arange(64) % 2).float().expand(8, 3, 64, 64).contiguous()
    out = training_crops(stripes, 16, 0.5, False, torch.rand(4, 8))
    assert float((out - 0.5).abs().max()) < 0.15


def test_half_of_the_crops_are_mirrored() -> None:
    images = torch.linspace(0, 1, 16).expand(2000, 1, 16, 16).expand(-1, 3, -1, -1).contiguous()
    out = training_crops(images, 16, 1.0, True, torch.rand(4, 2000))
    falling = out[:, 0, 0, 0] > out[:, 0, 0, -1]
    assert abs(float(falling.float().mean()) - 0.5) < 0.04
    assert torch.allclose(out[falling], images[:1].flip(-1), atol=1e-5)
    assert torch.allclose(out[~falling], images[:1], atol=1e-5)


@pytest.mark.parametrize(
    "specs, message",
    [
        ([], "no training data"),
        (["nowhere/*.tar"], "no file or folder matches 'nowhere/"),
        (["synthetic:10@0.5", "synthetic:20"], "'synthetic:20' has no share"),
        (["synthetic:10@0", "synthetic:20@1"], "above 0"),
        (["synthetic:many"], "synthetic:COUNT"),
        (["synthetic:0"], "no samples"),
        (["pipe:false"], "failed command"),
    ],
)
def test_what_cannot_be_data_is_named(specs, message) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_data(specs, 16)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"worker": (2, 2)}, "rank"),
        ({"size": 64, "worker": (0, 2)}, "fewer than the 128 of a batch"),
    ],
)
def test_batches_that_cannot_be_filled_are_named(folder, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        batches(opened(folder / "a-*.tar"), **{"size": 8, **settings})


def test_a_share_too_small_for_a_place_is_named() -> None:
    with pytest.raises(ValueError, match="below 1 in 10,000"):
        batches(opened("synthetic:10@1", "synthetic:10@100000"))
