"""The sheets, the command, and pictures of every kind on their way through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny

from clipag_plug.bench.tasks import Context, Measured, Resources, find
from clipag_plug.bench.tasks import heatmaps as bench_heatmaps
from clipag_plug.explanation import command
from clipag_plug.explanation.command import counterpart, run
from clipag_plug.explanation.figure import (
    PALETTE,
    attack_sheet,
    colours,
    fitted,
    overlay,
    text_sheet,
)
from clipag_plug.guide import Guide
from clipag_plug.images import from_pil, read_image, read_recipe
from clipag_plug.options.explain import Explain


@pytest.fixture
def guides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models in place of the registered ones."""
    made = {
        name: Guide(make_tiny(seed), name=name)
        for seed, name in enumerate(("clip-mini", "clipag-mini"))
    }
    monkeypatch.setattr(command, "guide_for", lambda name, device, **_: made[name])


def picture_file(folder: Path, kind: str) -> Path:
    """A picture of 60x40 (but for exif, stored 40x60 and turned), brighter to the right."""
    from PIL import Image

    ramp = [255 * x // 59 for _ in range(40) for x in range(60)]
    grey = Image.new("L", (60, 40))
    grey.putdata(ramp)
    path = folder / f"{kind}.png"
    if kind == "16-bit":
        deep = Image.new("I", (60, 40))
        deep.putdata([257 * value for value in ramp])
        deep.convert("I;16").save(path)
    elif kind == "exif":
        path = folder / "exif.jpg"
        turned = Image.Exif()
        turned[0x0112] = 6  # shown after a quarter turn clockwise
        grey.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=turned)
    elif kind == "rgba":
        clear = grey.convert("RGBA")
        clear.putalpha(128)
        clear.save(path)
    else:
        grey.convert({"grey": "L", "palette": "P", "bilevel": "1", "rgb": "RGB"}[kind]).save(path)
    return path


@pytest.mark.parametrize("kind", ["rgb", "grey", "16-bit", "exif", "rgba", "palette", "bilevel"])
def test_pictures_of_every_kind_are_shown_as_they_look(guides, tmp_path, capsys, kind) -> None:
    path = picture_file(tmp_path, kind)
    picture = read_image(path)
    assert picture.shape == (3, 40, 60)
    expected = torch.linspace(0, 1, 60)
    if kind == "rgba":
        expected = expected * 128 / 255 + 127 / 255  # half transparent, on white
    off = (picture.mean((0, 1)) - expected).abs()
    assert off.max() < 0.02 if kind != "bilevel" else off.mean() < 0.1
    out = tmp_path / "out.png"
    run(Explain(image=str(path), texts=["a dog"], output=str(out), cell=96))
    sheet = read_image(out)
    left, top = 8, 8 + 20
    shown = sheet[:, top : top + 64, left : left + 96]  # not cropped: 60x40 is 96x64
    assert torch.allclose(shown, fitted(picture, 96), atol=1 / 255)
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


def test_a_single_pixel_makes_a_sheet(guides, tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (1, 1), (200, 30, 30)).save(tmp_path / "one.png")
    out = tmp_path / "out.png"
    run(
        Explain(
            image=str(tmp_path / "one.png"), texts=["a dog"], output=str(out), attack=True, steps=2
        )
    )
    assert torch.allclose(read_image(out)[:, 150, 20], torch.tensor([200, 30, 30]) / 255)


@pytest.mark.parametrize(
    "content, problem",
    [(b"not a picture", "is not a picture"), (None, "does not exist")],
)
def test_files_that_are_no_pictures_are_refused(guides, tmp_path, content, problem) -> None:
    path = tmp_path / "in.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        run(Explain(image=str(path), texts=["a dog"], output=str(tmp_path / "out.png")))
    assert not (tmp_path / "out.png").exists()


def test_floats_and_cut_off_files_are_refused(guides, tmp_path) -> None:
    from PIL import Image

    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="cannot be used: its values are floats"):
        read_image(tmp_path / "float.tiff")
    whole = picture_file(tmp_path, "rgb").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be used"):
        read_image(tmp_path / "cut.png")


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"texts": []}, "no text"),
        ({"texts": ["a dog", "  "]}, "a text is empty"),
        ({"negation": " "}, "--negation is empty"),
        ({"method": "cam"}, "--method is 'cam'; it must be one of 'gradcam'"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        Explain(**{"image": "in.png", "texts": ["a dog"], **changes})


def test_attack_shows_both_models_clean_and_attacked(guides, tmp_path, capsys) -> None:
    path, out = picture_file(tmp_path, "rgb"), tmp_path / "out.png"
    options = Explain(
        image=str(path), texts=["a dog", "a cat"], output=str(out), attack=True, steps=3, cell=64
    )
    run(options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == ["clip-mini"] * 2 + ["clipag-mini"] * 2
    assert all("Spearman" in line and "IoU" in line for line in lines[:-1])
    asked = {k: v for k, v in options.to_dict().items() if k not in ("json", "quiet", "overwrite")}
    assert read_recipe(out) == asked | {"precision": "fp32"}  # what auto is in tests
    before = read_image(out)
    run(options.replace(eps=0.0))
    assert all(
        "Spearman 1.00, SSIM 1.00, IoU 1.00" in line
        for line in capsys.readouterr().out.splitlines()[:-1]
    )
    assert before.shape == read_image(out).shape and not torch.equal(before, read_image(out))


def test_the_other_model_is_the_one_it_was_fine_tuned_from() -> None:
    assert counterpart("clipag-mini") == "clip-mini"
    assert counterpart("clipag") == "laion/ViT-B/32"
    with pytest.raises(ValueError, match="--against"):
        counterpart("my-model.pt")


def test_the_scale_grows_in_lightness_and_ends_in_its_colours() -> None:
    scale = colours(torch.linspace(0, 1, 256)[None])
    lightness = (scale[:, 0] * torch.tensor([0.299, 0.587, 0.114])[:, None]).sum(0)
    assert (lightness.diff() > 0).all()
    assert torch.allclose(
        scale[:, 0, [0, -1]].T * 255, torch.tensor([PALETTE[0], PALETTE[-1]]).float()
    )


def test_overlay_is_in_place_and_brightest_where_the_map_is_highest() -> None:
    heat = torch.zeros(16, 16)
    heat[3, 12] = 1
    lightness = overlay(torch.full((3, 16, 16), 0.5), heat).mean(0)
    assert lightness.argmax() == 3 * 16 + 12


@pytest.mark.parametrize("size", [(40, 60), (600, 20), (1, 1), (3, 3000)])
def test_fitted_keeps_the_aspect(size) -> None:
    height, width = size
    shown = fitted(torch.rand(3, height, width), 128)
    assert max(shown.shape[1:]) == 128
    assert shown.shape[1] == max(1, round(128 * height / max(size)))


@pytest.mark.parametrize("size", [(40, 60), (128, 2), (1, 1)])
@pytest.mark.parametrize("texts", [1, 6])
def test_sheets_of_any_shape_hold_every_map(size, texts) -> None:
    """Each cell is found on the sheet by the pixels of its map, whatever stands around it."""
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(texts, *size, generator=torch.Generator().manual_seed(1))
    names = ["a text as long as one can be, longer than any picture is wide"] * texts
    sheet = text_sheet(picture, maps, names, cell=64, title="clip, gradcam")
    assert sheet.min() >= 0 and sheet.max() <= 1
    shown = fitted(picture, 64)
    height, width = shown.shape[1:]
    cells = [
        shown,
        *(
            overlay(shown, heat)
            for heat in torch.nn.functional.interpolate(
                maps[:, None],
                (height, width),
                mode="bilinear",
                antialias=height < size[0] or width < size[1],
            )[:, 0]
        ),
    ]
    for cell in cells:
        corners = (
            (sheet[:, : 1 - height or None, : 1 - width or None] - cell[:, :1, :1]).abs() < 0.01
        ).all(0)
        places = corners.nonzero().tolist()
        assert any(
            torch.allclose(sheet[:, y : y + height, x : x + width], cell, atol=0.01)
            for y, x in places
        )


def test_attack_sheet_has_a_row_per_text_and_a_column_per_map() -> None:
    maps = torch.rand(2, 2, 3, 16, 16)
    one = attack_sheet(
        torch.rand(3, 20, 20), ["a", "b"], maps[:, :, :1], ["x"], [["", "", "", "", ""]], cell=64
    )
    three = attack_sheet(
        torch.rand(3, 20, 20), ["a", "b"], maps, list("xyz"), [[""] * 5] * 3, cell=64
    )
    assert one.shape[2] == three.shape[2] >= 5 * 64
    assert three.shape[1] - one.shape[1] >= 2 * 64


def test_bench_task_measures_both_places_and_agreement() -> None:
    resources = Resources()
    resources.model = lambda name: (make_tiny(), "weights")  # type: ignore[method-assign]

    def measure(**changes: Any) -> Measured:
        options = bench_heatmaps.Heatmaps(count=6, shown=3, **changes)
        return find("heatmaps").run(Context("tiny", 0, options, resources))

    found = measure(steps=2, batch=4)
    assert len(found.items) == 6 and set(found.sheets) == {"photographs", "clean", "attacked"}
    places = ("pointing", "energy", "iou")
    states = [f"{state}_{key}" for state in ("clean", "attacked") for key in places]
    assert set(found.metrics) == {*states, "spearman", "ssim", "overlap"}
    unharmed = {key: metric.values for key, metric in measure(steps=0, batch=6).metrics.items()}
    assert unharmed["spearman"] == pytest.approx([1] * 6)
    assert unharmed["clean_energy"] == pytest.approx(unharmed["attacked_energy"])
    assert unharmed["clean_energy"] == pytest.approx(found.metrics["clean_energy"].values, abs=1e-4)


def test_bench_negations() -> None:
    texts, negations = bench_heatmaps.sentences(
        bench_heatmaps.Heatmaps(), ["koala", "lion", "barn"]
    )
    assert negations[0] == f"not {texts[0]}" and len(set(texts)) == len(texts)
    _, others = bench_heatmaps.sentences(
        bench_heatmaps.Heatmaps(negation="{other}"), ["koala", "lion", "barn"]
    )
    assert sorted(others) == sorted(texts) and all(a != b for a, b in zip(texts, others))


def test_an_upright_picture_from_pil_is_taken_as_it_is(tiny_clip: Any) -> None:
    from PIL import Image

    import clipag_plug

    image = Image.linear_gradient("L").resize((30, 20))
    by_pil = clipag_plug.explain(tiny_clip, image, "a dog")
    assert torch.equal(
        by_pil, clipag_plug.explain(tiny_clip, from_pil(image.convert("RGB")), "a dog")
    )
