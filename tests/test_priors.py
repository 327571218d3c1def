"""Start pictures: the mixture is the Gaussian it claims to be, survives storage, and is fitted by a command."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.make.prior import FLOOR, fit, main, read_pictures, save
from clipag_plug.images import read_image
from clipag_plug.priors import Mixture, noise


def distribution(mixture: Mixture, index: int) -> torch.distributions.LowRankMultivariateNormal:
    """The Gaussian of one class, over flat pixels, as the class describes it."""
    factor = (mixture.factors[index] @ mixture.basis).T
    rest = mixture.rest[index].expand_as(mixture.means[index])
    return torch.distributions.LowRankMultivariateNormal(mixture.means[index], factor, rest)


def groups(classes: int = 3, count: int = 40, side: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(3 * side * side, 3 * side * side, generator=generator) * 0.02
    found = {}
    for number in range(classes):
        flat = torch.randn(count, 3 * side * side, generator=generator) @ mixing
        found[str(number)] = (0.3 + 0.2 * number + flat).view(count, 3, side, side)
    return found


def test_full_rank_is_the_full_gaussian() -> None:
    data = groups()
    mixture = fit(data, rank=39, basis=48)
    flat = data["1"].flatten(1)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred / len(flat) + FLOOR * torch.eye(48)
    wanted = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    found = distribution(mixture, 1)
    assert torch.allclose(found.covariance_matrix, covariance, atol=1e-6)
    assert torch.allclose(found.log_prob(flat), wanted.log_prob(flat), rtol=1e-3)


def test_low_rank_keeps_the_total_variance() -> None:
    data = groups()
    totals = [float(group.flatten(1).var(0, correction=0).sum()) for group in data.values()]
    for rank, basis in ((2, 48), (10, 20), (100, 10)):
        mixture = fit(data, rank=rank, basis=basis)
        for number, total in enumerate(totals):
            trace = float(distribution(mixture, number).variance.sum()) - 48 * FLOOR
            assert trace == pytest.approx(total, rel=1e-3)


def test_samples_follow_the_distribution() -> None:
    mixture = fit(groups(), rank=12, basis=24)
    draws = mixture.sample(torch.full((4000,), 1), torch.Generator().manual_seed(0))
    assert draws.shape == (4000, 3, 4, 4)
    flat, wanted = draws.flatten(1), distribution(mixture, 1)
    assert torch.allclose(flat.mean(0), wanted.mean, atol=0.02)
    assert torch.allclose(flat.T.cov(), wanted.covariance_matrix, atol=0.003)
    assert torch.equal(
        draws, mixture.sample(torch.full((4000,), 1), torch.Generator().manual_seed(0))
    )


def test_storage(tmp_path: Path) -> None:
    mixture = fit(groups(), rank=6, basis=24)
    path = save(mixture, tmp_path / "prior.safetensors")
    found = Mixture.load(path)
    assert found.classes == mixture.classes
    for number in range(3):
        covariance = distribution(mixture, number).covariance_matrix
        assert torch.allclose(distribution(found, number).covariance_matrix, covariance, atol=1e-4)
    with pytest.raises(FileNotFoundError, match="prior.py"):
        Mixture.load(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a fitted prior"):
        Mixture.load(tmp_path / "other.safetensors")


def test_a_class_needs_two_pictures() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit({"lonely": torch.rand(1, 3, 4, 4)})


def test_bundled_prior() -> None:
    mixture = Mixture.load()
    assert mixture.side == 16 and len(mixture.classes) == 202
    draws = mixture.sample(torch.arange(202), torch.Generator().manual_seed(0))
    assert ((draws >= 0) & (draws <= 1)).all()
    # Photographs differ from one class to another, and neighbouring pixels resemble each other.
    assert mixture.means.std(0).mean() > 0.02
    assert (draws.diff(dim=-1).std() / draws.std()) < 0.8


def jpeg(value: int, size: tuple[int, int] = (64, 48)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(data, format="PNG")
    return data.getvalue()


def test_reads_shards_and_folders_alike(tmp_path: Path) -> None:
    shard, folder = tmp_path / "data-00.tar.gz", tmp_path / "folder"
    with tarfile.open(shard, "w:gz") as archive:
        for index, value in enumerate((10, 20, 30, 40)):
            for suffix, data in (
                ("jpg", jpeg(value)),
                ("cls", str(index % 2).encode()),
                ("txt", b"word"),
            ):
                member = tarfile.TarInfo(f"s{index}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            (folder / str(index % 2)).mkdir(parents=True, exist_ok=True)
            (folder / str(index % 2) / f"{index}.png").write_bytes(jpeg(value))
    for source in (shard, folder):
        found = read_pictures(source, side=4)
        assert list(found) == ["0", "1"]
        assert torch.allclose(found["1"][:, 0, 0, 0] * 255, torch.tensor([20.0, 40.0]))
    assert [len(group) for group in read_pictures(shard, folder, side=4).values()] == [4, 4]
    assert [len(group) for group in read_pictures(shard, side=4, limit=1).values()] == [1, 1]
    out = tmp_path / "prior.safetensors"
    assert main([str(folder), "-o", str(out), "--side", "4", "--rank", "2", "--basis", "8"]) == 0
    assert Mixture.load(out).side == 4


def test_fit_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "p.safetensors")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "-o", str(tmp_path / "p.safetensors")]) == 2
    assert "no labelled picture" in capsys.readouterr().err
    assert not (tmp_path / "p.safetensors").exists()


def test_noise_is_low_frequency_and_seeded() -> None:
    field = noise((64, 96), torch.Generator().manual_seed(0))
    assert field.shape == (3, 64, 96) and abs(float(field.mean()) - 0.5) < 0.05
    assert field.diff(dim=-1).std() < 0.5 * field.std()
    assert torch.equal(field, noise((64, 96), torch.Generator().manual_seed(0)))
    assert not torch.equal(field, noise((64, 96), torch.Generator().manual_seed(1)))


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    Image.new("RGB", (40, 20), (200, 10, 30)).save(tmp_path / "red" / "a.png")
    small = read_pictures(tmp_path, side=4)["red"][0]
    assert torch.equal(small, read_image(tmp_path / "red" / "a.png")[:, :4, :4])
