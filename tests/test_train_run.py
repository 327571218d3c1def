"""Folders of runs: one run each, what is kept and reported, what a resumed run may change, held-out numbers."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_helpers import VIT, architecture, jpeg, options, prepared, write_shard

from clipag_plug.cli import main
from clipag_plug.options.train import Train
from clipag_plug.train import command, setup, state
from clipag_plug.train.classes import class_vocabulary
from clipag_plug.train.data import Photos
from clipag_plug.train.evaluate import Validation, class_prompts
from clipag_plug.train.lessons import TextFeatures
from clipag_plug.train.sources import parse


def launched(tmp_path, asked: Train, *more: str) -> int:
    recipe = tmp_path / "r.json"
    recipe.write_text(asked.to_json())
    return main(["train", "--recipe", str(recipe), *more])


def test_a_used_folder_and_a_folder_in_use_are_refused(shard, tmp_path, capsys) -> None:
    asked = options(shard, tmp_path / "run", samples=16)
    with state.claim(tmp_path / "run", ""):
        assert launched(tmp_path, asked) == 2
        assert "another run" in capsys.readouterr().err
    assert launched(tmp_path, asked) == 0
    before = (tmp_path / "run" / "log.csv").read_bytes()
    assert launched(tmp_path, asked) == 2
    assert "--resume latest" in capsys.readouterr().err
    assert (tmp_path / "run" / "log.csv").read_bytes() == before


def test_resume_takes_latest_a_folder_or_a_file(shard, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    asked = options(shard, folder, samples=16, quiet=False)
    assert launched(tmp_path, asked, "--resume", "latest") == 0, "the first start of a job"
    assert "no checkpoint in" in capsys.readouterr().err
    card, weights = ((folder / f"model.{kind}").read_bytes() for kind in ("json", "safetensors"))
    for ways in (["latest"], [], [str(folder)], [str(state.find(folder))]):
        assert launched(tmp_path, asked, "--resume", *ways) == 0
        assert (folder / "model.safetensors").read_bytes() == weights
        assert (folder / "model.json").read_bytes() == card, "a finished run keeps its numbers"
    for wrong, message in (
        (tmp_path / "nowhere", "nothing to resume"),
        (folder / "log.csv", "--init"),
    ):
        assert launched(tmp_path, asked, "--resume", str(wrong)) == 2
        assert message in capsys.readouterr().err


def test_a_run_does_not_write_over_another_that_it_does_not_continue(shard, tmp_path) -> None:
    for name in ("a", "b"):
        assert command.run(options(shard, tmp_path / name, samples=16)) == 0
    before = (tmp_path / "b" / "log.csv").read_text()
    asked = options(shard, tmp_path / "b", samples=32, resume=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="holds an earlier run"):
        command.run(asked)
    assert (tmp_path / "b" / "log.csv").read_text() == before
    assert command.run(asked.replace(resume=str(tmp_path / "b" / ".." / "b"))) == 0
    with pytest.raises(ValueError, match="--output .* cannot be a folder"):
        command.run(options(shard, tmp_path / "b" / "log.csv"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wandb": "p"}, "--wandb needs the package wandb"),
        ({"tensorboard": True}, "--tensorboard needs the package tensorboard"),
        ({"remote": "nosuch://x"}, "--remote 'nosuch://x'"),
        ({"remote": "/proc/x"}, "--remote '/proc/x'"),
    ],
)
def test_what_a_run_tells_is_there_before_it_begins(
    shard, tmp_path, monkeypatch, given, message
) -> None:
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises((ImportError, OSError), match=message):
        command.run(options(shard, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists(), "the folder is as it was"


def test_sigterm_saves_and_the_run_goes_on_as_if_it_had_not_come(shard, tmp_path) -> None:
    given = {"samples": 48, "ema": 0.9, "accumulation": 2, "save_every": "1ep"}
    whole = prepared(shard, tmp_path / "whole", **given)
    command.train(whole, tmp_path / "whole")
    half = prepared(shard, tmp_path / "run", **given)
    with pytest.raises(KeyboardInterrupt, match="after step 2; --resume latest"):
        command.train(
            half,
            tmp_path / "run",
            report=lambda step: step.index == 1 and os.kill(os.getpid(), signal.SIGTERM),
        )
    half = prepared(shard, tmp_path / "run", **given)
    half.restore(state.load(tmp_path / "run"))
    command.train(half, tmp_path / "run")
    assert all(torch.equal(value, half.result()[name]) for name, value in whole.result().items())


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.3}, {"beta2": 0.9}, {"lr": 0.5}, {"clip_norm": 1.0}, {"ema": 0.5}, {"samples": 64},
        {"precision": "bf16"}, {"save_every": "9s"}, {"schedule": "constant"},
    ],
    ids=str,
)  # fmt: skip
def test_changes_that_a_resumed_run_takes(shard, tmp_path, change) -> None:
    first = prepared(shard, tmp_path)
    first.step()
    saved = first.state()
    asked = options(shard, tmp_path, resume="latest", **change)
    _, (told,) = state.continued(saved["options"], asked)
    assert told.startswith(next(iter(change)))
    again = setup.prepare(asked, None, saved).trainer
    again.restore(saved)
    groups = again.optimizer.param_groups
    assert groups[0]["weight_decay"] == asked.weight_decay and groups[0]["betas"][1] == asked.beta2
    if "ema" in change:
        live = dict(again.model.state_dict())
        assert all(torch.equal(value, live[name]) for name, value in again.average.held.items())
    again.step()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7}, {"data": ["synthetic:99"]}, {"objective": "image_to_text"}, {"norm": "linf", "eps": 0.1},
        {"eps": 9.0}, {"text": "train"}, {"optimizer": "muon"}, {"crop": 0.9},
    ],
    ids=str,
)  # fmt: skip
def test_changes_that_it_refuses_by_name(shard, tmp_path, change) -> None:
    before = options(shard, tmp_path).to_dict()
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"--({name}|eps) is"):
        state.continued(before, options(shard, tmp_path, **change))


def test_checkpoints_come_by_images_epochs_and_seconds_and_the_last_are_kept(
    shard, tmp_path
) -> None:
    for every, kept in (("16", [2, 4, 6]), ("1ep", [3, 6]), ("0s", [4, 5, 6]), ("99s", [6])):
        folder = tmp_path / every
        trainer = prepared(shard, folder, save_every=every, keep_last=3, attack_steps=0)
        command.train(trainer, folder)
        found = sorted(int(path.stem.split("-")[1]) for path in folder.glob("checkpoint-*.pt"))
        assert found == kept, every


def test_a_full_disk_is_one_sentence_and_results_are_copied(tmp_path, monkeypatch) -> None:
    def full(value, name) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    state.save(tmp_path / "run", {"index": 3}, 1, f"file://{tmp_path}/far")
    assert (tmp_path / "far" / "checkpoint-00000003.pt").is_file()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"could not be written.*free some space"):
        state.save(tmp_path / "run", {"index": 4}, 1)
    assert state.find(tmp_path / "run").name == "checkpoint-00000003.pt"


def test_the_log_forgets_what_the_checkpoint_does_not_know(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, samples=32, save_every="9999s")
    command.train(trainer, tmp_path)
    with (tmp_path / "log.csv").open("a") as stream:
        stream.write("5,40,1.2")  # killed in the middle of a row
    early, again = (prepared(shard, tmp_path, samples=32) for _ in range(2))
    early.step()
    again.restore(early.state())
    command.train(again, tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["index"] for row in rows] == ["1", "2", "3", "4"]
    wanted = ("loss", "lr", "gradient_norm", "logit_scale", "images_per_second", "waited")
    assert all(float(row[name]) >= 0 for row in rows for name in wanted)
    assert float(rows[0]["inner_attacked"]) > float(rows[0]["inner_clean"])


def test_logs_go_to_wandb_and_tensorboard(shard, tmp_path, monkeypatch) -> None:
    seen: list[tuple[str, dict]] = []
    run = SimpleNamespace(log=lambda numbers, step: seen.append(("wandb", numbers)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: run))

    class Board:
        def __init__(self, *_: object, **__: object) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append(("board", {name: value}))

        def flush(self) -> None: ...

    fake = SimpleNamespace(SummaryWriter=Board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    trainer = prepared(shard, tmp_path, samples=8, tensorboard=True, wandb="mine")
    command.train(trainer, tmp_path)
    for kind in ("wandb", "board"):
        names = {name for each, numbers in seen if each == kind for name in numbers}
        assert {"loss", "gradient_norm", "inner_attacked", "attack_success", "waited"} <= names


def held_out(tmp_path, captions: bool, labels: bool) -> str:
    rng, samples = np.random.default_rng(5), []
    for n in range(12):
        sample = {"jpg": jpeg(rng)}
        sample |= {"txt": f"number {n}".encode()} if captions else {}
        samples.append(sample | ({"cls": str(n % 3).encode()} if labels else {}))
    return str(write_shard(tmp_path / f"held-{captions}-{labels}.tar", samples))


@pytest.mark.parametrize("captions", ["text", "vocabulary"])
def test_validation_is_made_whatever_the_captions(shard, tmp_path, captions) -> None:
    given = {
        "validation": [held_out(tmp_path, True, True)],
        "class_names": "bundled",
        "samples": 16,
        "ema": 0.9,
    }
    asked = options(shard, tmp_path / "run", captions=captions, **given, evaluate_every="0s")
    assert command.run(asked) == 0
    card = json.loads((tmp_path / "run" / "model.json").read_text())["card"]
    best = json.loads((tmp_path / "run" / "best" / "model.json").read_text())["card"]
    names = {
        "clean",
        "robust",
        "loss",
        "loss_attacked",
        "image_to_text_1",
        "text_to_image_5_attacked",
    }
    assert names <= card["held_out"].keys() and best["images_seen"] == 8
    ready = setup.prepare(asked.replace(init=str(tmp_path / "run"), architecture=""))
    assert ready.evaluate(ready.trainer.model) == card["held_out"], "reported is what is saved"
    row = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))[-1]
    assert float(row["clean"]) == card["held_out"]["clean"] and row["held_out_loss"]


def test_held_out_numbers_are_those_of_a_plain_computation(shard, tmp_path) -> None:
    model = prepared(shard, tmp_path, captions="text").model.eval()  # no silent tokens
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10, 16, 16, 3), dtype=np.uint8)
    texts, labels = [f"a {n} thing" for n in range(10)], torch.arange(10) % 4
    names = ["cat", "dog", "tree", "boat"]
    found = Validation(Photos(images, texts, labels), names, 16, 0.5, "l2", 10)(model)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (
            model.encode_image(model.normalize(pixels)), TextFeatures(model, trained=False)(texts))]  # fmt: skip
        scores, prompts = unit[0] @ unit[1].T, class_prompts(model, names)
    own = torch.arange(10)
    assert found["clean"] == pytest.approx(
        float(((unit[0] @ prompts.T).argmax(1) == labels).float().mean())
    )
    assert found["image_to_text_1"] == pytest.approx(
        float((scores.argmax(1) == own).float().mean())
    )
    five = scores.T.topk(5).indices == own[:, None]
    assert found["text_to_image_5"] == pytest.approx(float(five.any(1).float().mean()))
    logits = model.logit_scale.exp() * scores
    both = [torch.nn.functional.cross_entropy(x, own) for x in (logits, logits.T)]
    assert found["loss"] == pytest.approx(float(sum(both)) / 2, rel=1e-4)
    assert found["loss_attacked"] > found["loss"] and found["robust"] <= found["clean"]
    some = Validation(Photos(images, texts, labels), names, 16, 0.5, "l2", 5)
    assert sorted(some.rows.tolist()) != list(range(5)) and len(some.rows) == 5, (
        "drawn, not the first"
    )


def test_validation_with_missing_classes_or_files_is_refused(shard, tmp_path) -> None:
    given = {"validation": [held_out(tmp_path, True, True)]}
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"4 of 12 samples of --validation"):
        prepared(shard, tmp_path, captions="text", class_names=str(tmp_path / "names.txt"), **given)
    with pytest.raises(ValueError, match="neither captions nor classes"):
        prepared(shard, tmp_path, captions="text", validation=[held_out(tmp_path, False, False)])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar"):
        prepared(shard, tmp_path, validation=[str(tmp_path / "nowhere.tar")], captions="text")
    junk = [
        {"jpg": b"junk", "txt": b"a thing"},
        {"jpg": jpeg(np.random.default_rng(0)), "txt": b"b"},
    ]
    given = {"validation": [str(write_shard(tmp_path / "junk.tar", junk))]}
    with pytest.raises(ValueError, match=r"1 of 2 .* --validation are bad, .*--max-bad-fraction"):
        prepared(shard, tmp_path, captions="text", **given)


def classes_folder(tmp_path, names: list[str]) -> str:
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "classes" / name).mkdir(parents=True)
        for n in range(4):
            (tmp_path / "classes" / name / f"{n}.jpg").write_bytes(jpeg(rng))
    return str(tmp_path / "classes")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a_cat", "b_dog", "zeppelin"], ["a cat", "b dog", "zeppelin"]),
        (["n01440764", "n02085620", "n00004475"], ["organism", "tench", "Chihuahua"]),
        (["n00000", "n00001"], ["n00000", "n00001"]),
    ],
)
def test_class_names_come_from_the_data(tmp_path, folders, names) -> None:
    data = classes_folder(tmp_path, folders)
    trainer = prepared(
        data, tmp_path / "run", objective="tecoa", attack_objective="tecoa", batch_size=4,
        validation=[data], prompts=["This is a photo of a {}"],
    )  # fmt: skip
    assert trainer.batches.vocabulary.class_names == names
    expected = class_prompts(trainer.model, names, ["This is a photo of a {}"])
    assert torch.equal(trainer.prompts, expected)
    step = trainer.step()
    assert np.isfinite(step.loss)


def test_class_names_come_from_a_file_or_imagenet(shard, tmp_path) -> None:
    (tmp_path / "names.txt").write_text("cat, kitten\ndog\nbird\nboat\ntree\n")
    found = class_vocabulary(Train(class_names=str(tmp_path / "names.txt")), [])
    assert found.names[0] == ("cat", "kitten") and len(found.names) == 5
    assert len(class_vocabulary(Train(class_names="imagenet"), []).names) == 1000
    assert class_vocabulary(Train(), []) is None
    with pytest.raises(ValueError, match="--class-names"):
        prepared(shard, tmp_path, captions="text", objective="tecoa")


FIVE = ["cat", "dog", "tree", "boat", "hen"]


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\ntree\nboat\nhen\n\n \n",
        "cat\r\ndog\r\ntree\r\nboat\r\nhen",
        "\ufeffcat\ndog\ntree\nboat\nhen",
        "0\tcat\n1\tdog\n2\ttree\n3\tboat\n4\then\n",
        "1: cat\n2: dog\n3: tree\n4: boat\n5: hen\n",
        "n02084071 cat,,\nn02084072 dog\nn02084073 tree\nn02084074 boat\nn02084075 hen\n",
        '["cat", "dog", "tree", "boat", "hen"]',
        '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": "tree",\n "3": "boat", "4": "hen"}',
    ],
)
def test_a_file_of_names_may_have_any_usual_form(tmp_path, text) -> None:
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    found = class_vocabulary(Train(class_names=str(tmp_path / "names.txt")), [])
    assert [each[0] for each in found.names] == FIVE and all(len(each) == 1 for each in found.names)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("cat\n\ndog\n", [], "line 2 of --class-names"),
        ("cat\n,\ndog\n", [], "line 2 of --class-names"),
        ("cat\ndog\n", ["a", "b", "c"], "--class-names has 2 names and the data 3 classes"),
        ("cat\ndog\n", ["n01440764"], "--class-names has 2 names and the data 1 classes"),
        ("gr\xf6\xdfe\n", [], "--class-names .* UTF-8"),
        ("[1, 2]", [], "--class-names .* no list of names"),
        (None, [], "--class-names .* cannot be read"),
        ("imagenet", ["n01440764", "n02085620"], "--class-names has 1000 names"),
        ("bundled", ["n01440764", "n02085620"], "--class-names has 202 names"),
        ("", ["n00000000", "n01440764"], "as n00000000, are no WordNet numbers"),
    ],
)
def test_names_that_cannot_be_the_classes_are_refused(tmp_path, text, names, message) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes((text or "").encode("latin-1"))
    given = text if text in ("imagenet", "bundled", "") else str(path if text else tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        class_vocabulary(Train(class_names=given), names)


@pytest.mark.parametrize("prompt", ["a photo", "a {} {}", "a {c}", "a {", "", "{0}", "a {{}}"])
def test_a_sentence_without_a_place_for_the_word_is_refused(tmp_path, prompt) -> None:
    with pytest.raises(ValueError, match="--prompts"):
        Train(prompts=["a {}", prompt])
    if "|" not in prompt and prompt:
        with pytest.raises(ValueError, match="::template"):
            parse([f"x.csv::template={prompt}"])


def test_one_class_is_none_to_tell_apart(tmp_path) -> None:
    inside = Path(classes_folder(tmp_path, ["train/cat", "train/dog"]))
    given = {"objective": "tecoa", "attack_objective": "tecoa", "batch_size": 4}
    with pytest.raises(ValueError, match="two classes"):
        prepared(str(inside), tmp_path / "run", **given)
    assert len(prepared(str(inside / "train"), tmp_path / "run", **given).prompts) == 2


def test_validation_is_read_as_the_data_is(tmp_path) -> None:
    """Columns of a table have their names there too, and what is wrong names its option."""
    (tmp_path / "a.png").write_bytes(jpeg(np.random.default_rng(0)))
    (tmp_path / "t.csv").write_text(
        "pixels,words,n\n" + "".join(f"a.png,one {n},0\n" for n in range(8))
    )
    table = str(tmp_path / "t.csv")
    given = {"captions": "text", "image_column": "pixels", "caption_column": "words"}
    evaluate = setup.prepare(options(table, tmp_path, validation=[table], **given)).evaluate
    assert evaluate.photos.texts and evaluate.captioned
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (str(tmp_path / "empty"), "--validation: no usable sample"),
        (f"{table}@0.5", "--validation: .* share"),
        (str(tmp_path / "no.tar"), "--validation: no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepared(table, tmp_path, validation=[wrong], **given)


def test_nothing_slow_happens_before_the_data_is_found(shard, tmp_path, monkeypatch) -> None:
    for name in ("initial_model", "teach"):
        monkeypatch.setattr(setup, name, lambda *_: pytest.fail("slow work before the data"))
    with pytest.raises(FileNotFoundError):
        prepared(tmp_path / "no.tar", tmp_path, text_steps=9)


@pytest.mark.parametrize("vision", [VIT, {**VIT, "patch_size": 8}], ids=str)
def test_a_finished_run_is_a_model_of_open_clip(shard, tmp_path, vision) -> None:
    import open_clip

    pixels = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.6, 0.7],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    config = {"model_cfg": json.loads(architecture(vision)), "preprocess_cfg": pixels}
    asked = options(
        shard, tmp_path / "run", architecture=json.dumps(config), resolution=0, samples=16
    )
    assert command.run(asked) == 0
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run'}")
    ready = setup.prepare(asked.replace(init=str(tmp_path / "run"), architecture=""))
    images = torch.rand(3, 3, 32, 32)
    ours = ready.trainer.model.eval()
    normalize = transform.transforms[-1]
    assert tuple(normalize.mean) == ours.mean == (0.5, 0.4, 0.3)
    with torch.no_grad():
        found = model.eval().encode_image(normalize(images))
        assert torch.allclose(found, ours.encode_image(ours.normalize(images)), atol=1e-5)
    assert ready.card["resize_mode"] == "squash"
