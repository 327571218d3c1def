"""Views: differentiable, reproducible, independent of how they are batched, and what their names say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipag_plug.augment import PARTS, Views, axis_weights, fit, resample, training_crops

EVERY = ", ".join(name for name, part in PARTS.items() if not part.boxes)


def pictures(count: int = 2, height: int = 20, width: int = 20) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "policy", ["frame 0.5 1.2 0.1", "crop 12", *(name for name in PARTS), EVERY]
)
def test_shape_seed_and_gradient(policy: str) -> None:
    views, images = Views(policy), pictures().requires_grad_(True)
    found = views(images, 3, 16, torch.Generator().manual_seed(0))
    assert found.shape == (6, 3, 16, 16)
    assert torch.equal(found, views(images, 3, 16, torch.Generator().manual_seed(0)))
    (gradient,) = torch.autograd.grad(found.square().sum(), images)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "policy", ["frame 0.6 1.1 0.1, flip, " + EVERY, "noise 0.1 shared, crop 12, " + EVERY]
)
def test_any_batching_gives_the_same_views(policy: str) -> None:
    views, images = Views(policy), pictures(3)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    rows = views.draw(3, 4, seeds)
    everything = views.apply(images, rows, 16).view(3, 4, 3, 16, 16)
    for picture in range(3):
        for view in range(4):
            alone = views.apply(
                images[picture : picture + 1], rows[picture : picture + 1, view : view + 1], 16
            )
            assert torch.allclose(alone[0], everything[picture, view], atol=1e-6)
    assert torch.equal(views.draw(1, 4, [torch.Generator().manual_seed(6)])[0], rows[1])


def test_views_of_one_picture_differ_and_shared_parts_do_not() -> None:
    images = torch.full((1, 3, 12, 12), 0.5)
    own = Views("noise 0.1")(images, 2, 12, torch.Generator().manual_seed(0))
    shared = Views("noise 0.1 shared")(images, 2, 12, torch.Generator().manual_seed(0))
    assert not torch.equal(own[0], own[1]) and torch.equal(shared[0], shared[1])
    assert abs(float((own - 0.5).std()) - 0.1) < 0.01


def test_resampling_equals_interpolation() -> None:
    images = pictures(1, 24, 24)
    box = (torch.tensor([[4.0]]), torch.tensor([[12.0]]))
    enlarged = resample(images, box, box, 24)
    wanted = F.interpolate(images[:, :, 4:16, 4:16], size=24, mode="bilinear", align_corners=False)
    assert torch.allclose(enlarged, wanted, atol=1e-5)
    assert torch.allclose(fit(images, 24), images, atol=1e-6)
    reduced = F.interpolate(images, size=10, mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(fit(images, 10), reduced, atol=1e-5)


def test_weights_read_only_the_box_and_sum_to_one() -> None:
    start, length = torch.tensor([-3.0, 2.0, 15.0]), torch.tensor([10.0, 6.0, 9.0])
    weights = axis_weights(start, length, 20, 8)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 8))
    assert (weights >= 0).all()
    assert weights[1][:, :2].abs().sum() == 0 and weights[1][:, 8:].abs().sum() == 0


def test_resampling_does_not_alias() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert (fit(stripes, 16) - 0.5).abs().max() < 0.05


def test_frame_stays_inside_unless_shifted() -> None:
    images = torch.zeros(1, 3, 32, 48)
    images[..., 0], images[..., -1] = 1.0, 1.0
    rows = Views("frame 0.5 0.5").draw(1, 200, torch.Generator().manual_seed(0))
    views = Views("frame 0.5 0.5").apply(images, rows, 16)
    # A square of half the height touches one of the two bright borders only at the ends of its range.
    assert 0 < (views.amax((1, 2, 3)) > 0.5).float().mean() < 0.2


def test_flip_translate_cutout_and_resize_do_what_they_say() -> None:
    images = pictures(1, 16, 16)
    assert torch.equal(Views("flip 1")(images, 1, 16), images.flip(-1))
    assert torch.equal(Views("flip 0")(images, 1, 16), images)
    moved = Views("translate 0.25").apply(images, torch.tensor([[[0.999, 0.0]]]), 16)
    assert torch.equal(moved[..., :12, 4:], images[..., 4:, :12])
    assert moved[..., 12:, :].abs().sum() == 0 and moved[..., :4].abs().sum() == 0
    cut = Views("cutout 0.5").apply(images + 1, torch.tensor([[[0.5, 0.5]]]), 16)
    assert int((cut == 0).sum()) == 3 * 8 * 8
    small = Views("resize 0.5 0.5")(images + 1, 1, 16)
    assert int((small == 0).sum()) == 3 * (256 - 64)


def test_colour_parts_leave_what_they_must() -> None:
    images = pictures(1)
    rows = torch.rand(1, 4, 1, generator=torch.Generator().manual_seed(0))
    grey = Views("saturation 1").apply(images, rows, 20).mean(1)
    assert torch.allclose(grey, images.mean(1).expand_as(grey), atol=1e-6)
    mean = Views("contrast 0.5").apply(images, rows, 20).mean((1, 2, 3))
    assert torch.allclose(mean, images.mean().expand(4), atol=1e-6)
    change = Views("brightness 0.5").apply(images, rows, 20) - images
    assert torch.allclose(change.amax((1, 2, 3)), rows[0, :, 0] - 0.5, atol=1e-6)


def test_whole_numbers_stay_in_range() -> None:
    nearly_one = torch.full((1, 1, 2), 1 - 2**-24)
    assert torch.isfinite(Views("crop 8").apply(pictures(1, 105, 105), nearly_one, 8)).all()
    assert torch.equal(
        Views("crop 8").apply(pictures(1, 105, 105), nearly_one, 8),
        pictures(1, 105, 105)[..., 97:, 97:],
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("flipp", "did you mean 'flip'"),
        ("noise much", "noise much"),
        ("noise 1 2", "more than 1"),
        ("xyz", "known parts"),
    ],
)
def test_bad_policy(policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(policy)


def test_no_parts_is_the_picture_itself() -> None:
    assert Views("none").parts == []
    assert torch.equal(Views("")(pictures(1), 2, 20), pictures(1).repeat(2, 1, 1, 1))


def test_training_crops_are_the_boxes_that_their_numbers_say() -> None:
    images = pictures(2, 16, 16)
    whole = training_crops(
        images, 16, 1.0, True, torch.tensor([[0.3, 0.3], [0.9, 0.1], [0.5, 0.5], [0.4, 0.6]])
    )
    assert torch.allclose(whole[0], images[0].flip(-1), atol=1e-6)
    assert torch.allclose(whole[1], images[1], atol=1e-6)
    # A quarter of the area, at the right end of x and the left end of y.
    numbers = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.9, 0.9]])
    corner = training_crops(images, 16, 0.25, True, numbers)
    wanted = F.interpolate(images[:, :, :8, 8:], size=16, mode="bilinear")
    assert torch.allclose(corner[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-5)
    assert torch.equal(corner, training_crops(images, 16, 0.25, False, numbers))
    reduced = training_crops(images, 8, 1.0, False, numbers)
    assert torch.allclose(reduced, F.avg_pool2d(images, 2), atol=1e-5)
