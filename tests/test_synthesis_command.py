"""`clipag generate`: files, replay to the byte, masks, sheets, interruption and refusals."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clipag_plug.guide import guide_for
from clipag_plug.images import read_image, read_recipe, write_image
from clipag_plug.options.generate import LOOKS, PRESETS, Generate, parse_size
from clipag_plug.paint import Synthesizer, synthesize
from clipag_plug.paint.command import draw, run
from clipag_plug.pipelines.run import Stop

QUICK: dict[str, Any] = {"steps": 4, "views": 2, "init": "noise"}


@pytest.fixture(autouse=True)
def model_by_key(monkeypatch: pytest.MonkeyPatch, tiny_clip: Any) -> None:
    """Every key loads the tiny model, so that the command runs offline and at once."""
    import clipag_plug.clip

    tiny_clip.name = "clipag-mini"
    monkeypatch.setattr(clipag_plug.clip, "load_model", lambda name, device=None: tiny_clip)


def quick(options: dict[str, Any]) -> dict[str, Any]:
    """The options over QUICK; a start picture leaves no room for another start."""
    return {**QUICK, **({"init": None} if "image" in options else {}), **options}


def generate(path: Path, *prompts: str, **options: Any) -> int:
    return run(
        Generate(prompts=list(prompts or ["a goldfish"]), output=str(path), **quick(options))
    )


def test_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    assert generate(tmp_path / "a.png", "a fox | snow:-0.2", "a cat", seed=5, patches=1) == 0
    first, second = tmp_path / "a-1.png", tmp_path / "a-2.png"
    assert run(Generate(replay=str(second), output=str(tmp_path / "again.png"))) == 0
    assert (tmp_path / "again.png").read_bytes() == second.read_bytes() != first.read_bytes()
    recipe = read_recipe(second)
    assert recipe["prompt"] == "a cat" and recipe["seed"] == 5 and recipe["options"]["steps"] == 4
    assert str(tmp_path) not in json.dumps(recipe)


def test_replay_with_a_change(tmp_path: Path) -> None:
    generate(tmp_path / "a.png")
    run(Generate(replay=str(tmp_path / "a.png"), seed=9, output=str(tmp_path / "b.png")))
    assert read_recipe(tmp_path / "b.png")["seed"] == 9
    generate(tmp_path / "c.png", seed=9)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_replay_notices_a_changed_start_picture(tmp_path: Path) -> None:
    start = write_image(tmp_path / "start.png", torch.rand(3, 64, 64))
    generate(tmp_path / "a.png", image=str(start))
    write_image(start, torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match="has changed"):
        run(Generate(replay=str(tmp_path / "a.png"), output=str(tmp_path / "b.png")))


def test_a_folder_gets_everything(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fox"
    assert generate(folder, "a fox") == 0
    assert sorted(os.listdir(folder)) == ["image.png", "progress.webp", "recipe.json", "steps.csv"]
    assert json.loads((folder / "recipe.json").read_text()) == read_recipe(folder / "image.png")
    rows = list(csv.DictReader((folder / "steps.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3] and rows[0]["prompt"] == "a fox"
    with Image.open(folder / "progress.webp") as film:
        assert film.n_frames >= 4  # the encoder joins frames that hardly differ


def test_mask_leaves_the_rest_bit_for_bit(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 50, 70), generator=torch.Generator().manual_seed(0)) / 255
    mask = torch.zeros(3, 50, 70)
    mask[:, 10:30, 20:60] = 1
    mask[:, 10:30, 18:20] = 0.5
    write_image(tmp_path / "photo.png", picture)
    write_image(tmp_path / "mask.png", mask)
    generate(
        tmp_path / "out.png",
        image=str(tmp_path / "photo.png"),
        mask=str(tmp_path / "mask.png"),
        keep="last",
    )
    found = read_image(tmp_path / "out.png")
    assert found.shape == picture.shape
    assert torch.equal(found[:, mask[0] == 0], picture[:, mask[0] == 0])
    assert (found[:, mask[0] == 1] != picture[:, mask[0] == 1]).any()
    write_image(tmp_path / "mask.png", torch.zeros(3, 50, 70))
    with pytest.raises(ValueError, match="black everywhere"):
        generate(
            tmp_path / "b.png", image=str(tmp_path / "photo.png"), mask=str(tmp_path / "mask.png")
        )


def test_strength_mixes_noise_into_a_start_picture(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", torch.full((3, 64, 64), 0.2))
    starts = [
        Synthesizer(
            Generate(prompts=["a"], image=str(tmp_path / "photo.png"), strength=strength)
        ).canvas.start
        for strength in (0.0, 0.5, 1.0)
    ]
    assert torch.allclose(starts[0], torch.full_like(starts[0], 0.2), atol=1e-6)
    assert torch.allclose(starts[1], (starts[0] + starts[2]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "frames", "size"),
    [
        ("contact", 0, None),
        ("stochasticity", 0, (304, 179)),
        ("trajectory", 3, (304, 503)),
    ],
)
def test_sheets(tmp_path: Path, kind: str, frames: int, size: tuple[int, int] | None) -> None:
    generate(tmp_path / "sheet.png", "a fox", "a cat", variations=3, sheet=kind)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert size is None or sheet.size == size
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_prefixes_are_swept(tmp_path: Path) -> None:
    generate(tmp_path / "a.png", "a fox", "a cat", prefixes=["oil painting of", "a graffiti of"])
    prompts = [read_recipe(path)["prompt"] for path in sorted(tmp_path.iterdir())]
    assert prompts == [
        f"{style} {what}"
        for what in ("a fox", "a cat")
        for style in ("oil painting of", "a graffiti of")
    ]


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_a_look_is_words_before_the_prompt_and_a_start(tmp_path: Path, look: str) -> None:
    words, start = LOOKS[look]
    changes: dict[str, Any] = {"views": 2, "steps": 2}
    run(Generate(prompts=["fox"], look=look, seed=3, output=str(tmp_path / "a.png"), **changes))
    changes |= {"prefixes": [words], "init": start}
    run(Generate(prompts=["fox"], seed=3, output=str(tmp_path / "b.png"), **changes))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_recipe(tmp_path / "a.png")["prompt"] == f"{words} fox"
    kept = Generate(prompts=["fox"], look=look, init="gmm").resolved()
    assert kept.init == "gmm", "what is said outright counts"
    with pytest.raises(ValueError, match="leave one out"):
        Generate(prompts=["fox"], look=look, prefixes=["a graffiti of"])


def test_ctrl_c_saves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Synthesizer._step

    def interrupted(self: Synthesizer, index: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Synthesizer, "_step", interrupted)
    assert generate(tmp_path / "a.png") == 130
    assert read_recipe(tmp_path / "a.png")["stopped_after"] == 2
    monkeypatch.undo()
    monkeypatch.setattr("clipag_plug.clip.load_model", lambda name, device=None: tiny())
    run(Generate(replay=str(tmp_path / "a.png"), output=str(tmp_path / "b.png")))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def tiny() -> Any:
    from conftest import make_tiny

    model = make_tiny()
    model.name = "clipag-mini"
    return model


def test_draw_stops_where_asked() -> None:
    guide = guide_for("clipag-mini")
    (made,) = draw(Generate(prompts=["a fox"], **QUICK), [guide], Stop(), stop_at=2)
    assert made.steps == 2 == made.recipe["stopped_after"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "no/such/folder/a.png"}, "does not exist"),
        ({"output": "a.jpg"}, "must end in .png"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": [" "]}, "prompt is empty"),
        ({"prompts": ["word " * 100]}, "shorten it"),
        ({"policy": "frmae 1"}, "did you mean 'frame'"),
        ({"image": "none.png"}, "does not exist"),
        ({"replay": "none.png"}, "does not exist"),
        ({"init": "gmm", "prior": "none.safetensors"}, "does not exist"),
        ({"log": "no/such/folder/a.csv"}, "does not exist"),
    ],
)
def test_bad_requests_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(Generate(**{"prompts": ["a fox"], **quick(options)}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "m.png"},
        {"init": "image"},
        {"image": "a.png", "init": "gmm"},
        {"size": "big"},
        {"size": "4"},
        {"steps": 0},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        Generate(prompts=["a"], **options)


def test_presets_decide_what_is_not_given() -> None:
    for name, values in PRESETS.items():
        resolved = Generate(prompts=["a"], preset=name, steps=7, init="gray").resolved()
        assert (
            resolved.steps == 7 and resolved.lr == values["lr"] and resolved.resolved() == resolved
        )
        assert all(getattr(resolved, field) is not None for field in values)
    assert parse_size("384x256") == (256, 384) and parse_size("") is None


def test_a_rule_that_is_not_the_presets_brings_its_own_step_size() -> None:
    own = Generate(optimizer="spectral").resolved()
    assert own.lr == 0.02 and own.resolved() == own
    assert Generate(optimizer=PRESETS["fast"]["optimizer"]).resolved().lr == PRESETS["fast"]["lr"]
    assert Generate(optimizer="spectral", lr=0.5).resolved().lr == 0.5
    assert Generate(preset="das", optimizer="adam").resolved().lr == PRESETS["das"]["lr"]


def test_saving_by_hand(tmp_path: Path) -> None:
    result = synthesize("a fox", **QUICK)
    result.enlarged(448).save(str(tmp_path / "a.png"))
    generate(tmp_path / "b.png", "a fox")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_size_nobody_asked_for_is_448_and_said_so(tmp_path: Path) -> None:
    generate(tmp_path / "a.png", "a fox")
    assert read_image(tmp_path / "a.png").shape == (3, 448, 448)
    assert read_recipe(tmp_path / "a.png")["shown"] == "448x448, resampled from 64x64"
    generate(tmp_path / "b.png", "a fox", size="96x64", steps=1)
    assert read_image(tmp_path / "b.png").shape == (3, 64, 96)
    assert "shown" not in read_recipe(tmp_path / "b.png")
    small = Generate(prompts=["a fox"], steps=1, size="64x40")
    found = Synthesizer(small)
    for _ in found:
        pass
    wide = found.results()[0].enlarged(448)
    assert wide.image.shape == (3, 448, 717) and wide.recipe["size"] == "64x40"
    assert wide.enlarged(448) is wide
