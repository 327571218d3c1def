"""The engine: records, skipping, interruptions, and the guard of the judge."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch
from bench_helpers import SUITE, finished, run, served, suite_file, trio, values

from clipag_plug.bench import engine, tasks
from clipag_plug.bench.compare import result_of
from clipag_plug.bench.data import read_dataset, read_list, read_prompts
from clipag_plug.bench.judges import Classifier, Judge
from clipag_plug.bench.records import Metric, Record, read_record, read_records, weights_hash
from clipag_plug.bench.suites import read_suite
from clipag_plug.bench.tasks import accuracy, pictures
from clipag_plug.bench.tasks.targeted import at_distance, other_classes
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.model import CLIP
from clipag_plug.vocabulary import bundled_vocabulary


def test_a_record_says_everything(
    finished: tuple[Path, Path, list[engine.Done]], trio: dict[str, CLIP]
) -> None:
    _, folder, done = finished
    assert len(done) == 8 and not any(d.skipped for d in done)
    for each in done:
        record = read_record(folder / each.record.path)
        assert record == each.record
        assert record.inputs["model"] == {
            "name": each.job.model,
            "weights": weights_hash(trio[each.job.model]),
        }
        assert record.environment["torch"] == torch.__version__
        assert record.options == each.job.entry.options.to_dict()
        assert record.seconds >= 0 and record.started.endswith("+00:00")
        for metric in record.metrics.values():
            assert len(metric["values"]) == metric["n"] == len(record.items)
            assert metric["value"] == pytest.approx(sum(metric["values"]) / metric["n"], abs=1e-6)
        for sheet in record.pictures.values():
            assert (folder / record.path).with_name(sheet["file"]).is_file()
    judged = [d.record for d in done if d.record.task in ("generation", "targeted")]
    assert all(record.inputs["judge"]["name"] == "judge" for record in judged)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_second_run_skips_and_a_change_does_not(
    finished: tuple[Path, Path, list[engine.Done]], served: dict[str, CLIP], tmp_path: Path
) -> None:
    path, folder, done = finished
    again = run(path, folder)
    assert all(d.skipped for d in again)
    assert [d.record for d in again] == [d.record for d in done]
    changed = tmp_path / "small.toml"
    changed.write_text(
        SUITE.replace(
            "steps = 2, count = 6, batch = 4 }\n[entries.views]",
            "steps = 3, count = 6, batch = 4 }\n[entries.views]",
        ),
        encoding="utf-8",
    )
    by_entry = {(d.job.entry.name, d.job.model): d.skipped for d in run(changed, folder)}
    assert [key for key, skipped in by_entry.items() if not skipped] == [
        ("zeroshot", "plain"),
        ("zeroshot", "robust"),
    ]
    run(path, folder, only=["zeroshot"])  # back to what the other tests expect


def test_other_weights_under_the_same_name_are_measured_again(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path
) -> None:
    run(suite_file, tmp_path, only=["zeroshot"])
    served["robust"] = served["judge"]
    assert [d.skipped for d in run(suite_file, tmp_path, only=["zeroshot"])] == [True, False]


def test_the_same_numbers_every_time_and_entry_by_entry(
    finished: tuple[Path, Path, list[engine.Done]], served: dict[str, CLIP], tmp_path: Path
) -> None:
    path, _, done = finished
    torch.manual_seed(99)  # global state is nobody's seed
    apart = {}
    for name in ("targeted", "views"):
        apart.update(values(run(path, tmp_path, only=[name])))
    whole = values(done)
    assert apart == {key: whole[key] for key in apart} and len(apart) == 4


def test_an_interrupted_run_continues(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pgd = accuracy.pgd

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if (
            len(calls) == 4
        ):  # the first model takes two batches; this is in the middle of the second one
            raise KeyboardInterrupt
        return pgd(*arguments, **keywords)

    monkeypatch.setattr(accuracy, "pgd", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(suite_file, tmp_path, only=["zeroshot"])
    assert [record.model for record in read_records(tmp_path, "small")[0]] == ["plain"]
    done = run(suite_file, tmp_path, only=["zeroshot"])
    assert [d.skipped for d in done] == [True, False]


def test_a_broken_record_is_measured_again(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path
) -> None:
    first = run(suite_file, tmp_path, only=["gradients"])
    path = tmp_path / first[0].record.path
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ValueError, match="no whole record"):
        read_record(path)
    assert [d.skipped for d in run(suite_file, tmp_path, only=["gradients"])] == [False, True]


def test_no_model_judges_its_own_pictures(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path
) -> None:
    for entry in ("views", "targeted"):
        with pytest.raises(ValueError, match="judge its own pictures"):
            run(suite_file, tmp_path, judge="robust", only=[entry])
    served["twin"] = served["robust"]  # the same weights under another name
    with pytest.raises(ValueError, match="judge its own pictures"):
        run(suite_file, tmp_path, judge="twin", only=["views"])
    assert not [record for record in read_records(tmp_path, "small")[0] if record.model == "robust"]


@pytest.fixture
def own_task() -> Iterator[Callable[[tasks.Run], None]]:
    """Registers a task for one test."""

    def add(function: tasks.Run) -> None:
        tasks.task("own", "own", pictures.Generation, judged=True)(function)

    yield add
    tasks._TASKS.pop("own", None)


@pytest.mark.parametrize(
    ("by", "diagnostic", "refused"),
    [("guide", False, True), ("guide", True, False), ("judge", False, False)],
)
def test_a_task_that_scores_with_the_guide_is_refused(
    own_task: Callable[[tasks.Run], None],
    suite_file: Path,
    served: dict[str, CLIP],
    tmp_path: Path,
    by: str,
    diagnostic: bool,
    refused: bool,
) -> None:
    def scored(context: tasks.Context) -> tasks.Measured:
        name = context.name if by == "guide" else context.judge.name
        return tasks.Measured(
            ["one"], {"top1": Metric("t", "share", name, [1.0], diagnostic=diagnostic)}
        )

    own_task(scored)
    suite_file.write_text(
        'models = ["plain"]\njudge = "judge"\n[entries.own]\ntask = "own"\n', encoding="utf-8"
    )
    if refused:
        with pytest.raises(ValueError, match="the model that guided"):
            run(suite_file, tmp_path)
        assert not read_records(tmp_path, "small")[0]
    else:
        assert run(suite_file, tmp_path)[0].record.metrics["top1"]["value"] == 1


def test_both_models_start_from_the_same_pictures(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[Any]] = {"plain": [], "robust": []}
    synthesize = pictures.synthesize

    def spy(prompts: Any, *, model: Any, seed: int, callback: Any, **options: Any) -> Any:
        asked[model.name].append((prompts, seed, options))
        return synthesize(prompts, model=model, seed=seed, callback=callback, **options)

    monkeypatch.setattr(pictures, "synthesize", spy)
    run(suite_file, tmp_path, only=["views"])
    assert asked["plain"] == asked["robust"]
    assert len({seed for _, seed, _ in asked["plain"]}) == len(asked["plain"]) == 2


def test_the_classifier_is_the_models_own_forward(trio: dict[str, CLIP]) -> None:
    model = trio["plain"]
    images = bundled_photos().pixels(range(5), 32)
    classifier = Classifier(model, ["goldfish", "koala", "lion"])
    with torch.no_grad():
        texts = ["a photo of a {}", "a picture of a {}", "an image of a {}", "{}"]
        units = []
        for text in texts:
            tokens = model.tokenize([text.format(name) for name in ("goldfish", "koala", "lion")])
            units.append(torch.nn.functional.normalize(model.encode_text(tokens), dim=-1))
        prompts = torch.nn.functional.normalize(sum(units), dim=-1)
        features = model.encode_image(model.normalize(images))
        expected = model.logit_scale.exp() * torch.cosine_similarity(
            features[:, None], prompts[None], dim=-1
        )
    assert torch.allclose(classifier.logits(images), expected, atol=1e-4)
    alone = torch.cat([classifier.logits(image[None]) for image in images])
    assert torch.allclose(alone, classifier.logits(images), atol=1e-4)
    judge = Judge(model, "plain", ["goldfish", "koala", "lion"])
    assert torch.allclose(judge.logits(images), expected, atol=1e-4)
    assert not judge.logits(images.requires_grad_(True)).requires_grad


def test_zero_shot_agrees_with_the_trainers_own_evaluation(
    finished: tuple[Path, Path, list[engine.Done]], trio: dict[str, CLIP]
) -> None:
    from clipag_plug.train.data import Photos
    from clipag_plug.train.evaluate import Validation

    sample = bundled_photos()
    rows = tasks.spread(sample.labels, 6)
    held = Photos(sample.images[rows].permute(0, 2, 3, 1).numpy(), [""] * 6, sample.labels[rows])
    held.select = lambda index: sample.pixels(rows[index], 32)  # type: ignore[method-assign]
    names = bundled_vocabulary().class_names
    expected = Validation(held, names, 32, 1.5, "l2", 6, steps=2)(trio["plain"])
    record = finished[2][0].record
    assert record.metrics["clean_top1"]["value"] == pytest.approx(expected["clean"])
    assert record.metrics["robust_top1"]["value"] == pytest.approx(expected["robust"])


def test_samples_are_spread_over_classes_without_a_pattern() -> None:
    labels = bundled_photos().labels
    for count in (101, 202):
        rows = tasks.spread(labels, count)
        chosen = labels[rows]
        assert len(rows.unique()) == len(chosen.unique()) == count and (rows.diff() > 0).all()
    assert 0.3 < (labels[tasks.spread(labels, 101)] % 2).float().mean() < 0.7  # not all even
    assert tasks.spread(labels, 0).tolist() == tasks.spread(labels, 999).tolist() == [*range(505)]
    more = labels[tasks.spread(labels, 300)]
    assert torch.bincount(more).tolist().count(0) == 0 and torch.bincount(more).max() == 2
    assert tasks.evenly(10, 4).tolist() == [0, 2, 5, 7]


def test_targets_are_other_classes_at_equal_distances() -> None:
    labels = torch.arange(202).repeat(10)
    targets = other_classes(labels, 202, torch.Generator().manual_seed(0))
    assert not (targets == labels).any()
    assert len(targets.unique()) == 202
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator)
    moved = (images + 0.01 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    for radius in (0.1, 2.0, 6.0):
        far = at_distance(images, moved, radius)
        assert (far - images).flatten(1).norm(dim=1).tolist() == pytest.approx(
            [radius] * 4, rel=1e-3
        )
        assert 0 <= float(far.min()) <= float(far.max()) <= 1
        assert ((far - images) * (moved - images) >= 0).all()
    assert torch.isfinite(at_distance(images, moved, 1e3)).all()  # the border of [0, 1] is nearer
    assert torch.equal(at_distance(images, images, 3.0), images)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:300], "no whole record"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2"),
        (lambda text: text.replace("    0.0,", "    NaN,", 1), "no finite number"),
        (lambda text: text.replace("    0.0,", "    null,", 1), "no finite number"),
        (lambda text: text.replace("    0.0,\n", "", 1), "lacks values"),
        (lambda text: text.replace('"steps": 2', '"steps": 9'), "other options (steps)"),
    ],
    ids=["truncated", "later format", "NaN", "null", "short", "other options"],
)
def test_what_is_no_record_is_said_and_never_averaged(
    finished: tuple[Path, Path, list[engine.Done]],
    tmp_path: Path,
    damage: Callable[[str], str],
    said: str,
) -> None:
    path, folder, _ = finished
    shutil.copytree(folder, tmp_path / "records")
    suite = read_suite(str(path), only=["zeroshot", "gradients"])
    target = tmp_path / "records" / "small" / "zeroshot" / "robust.0.json"
    changed = damage(target.read_text("utf-8"))
    assert changed != target.read_text("utf-8")
    target.write_text(changed, "utf-8")
    result = result_of(suite, tmp_path / "records")
    assert any(said in remark for remark in result.remarks)
    assert {row.entry for row in result.rows["robust"]} == {"gradients"}


def test_later_fields_are_left_out_and_mixed_weights_refused(
    finished: tuple[Path, Path, list[engine.Done]], tmp_path: Path
) -> None:
    path, folder, _ = finished
    shutil.copytree(folder, tmp_path / "records")
    suite = read_suite(str(path))
    target = tmp_path / "records" / "small" / "zeroshot" / "robust.0.json"
    data = json.loads(target.read_text("utf-8"))
    target.write_text(json.dumps(data | {"colour": "blue"}), "utf-8")
    assert read_record(target).model == "robust"
    data["inputs"]["model"]["weights"] = "others"
    target.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ValueError, match="two different weights of robust"):
        result_of(suite, tmp_path / "records")


def test_two_models_never_share_a_file() -> None:
    def path(model: str) -> str:
        return Record("s", "e", "t", model, 0, "", {}, {}, [], {}).path

    assert path("m-a.pt").endswith("m-a.pt.0.json")
    assert len({path(model) for model in ("m/a.pt", "m-a.pt", "m a.pt", "m//a.pt")}) == 4


@pytest.mark.parametrize("option", ["prompts", "second", "inception", "autoencoder", "generator"])
def test_everything_that_is_read_belongs_to_the_fingerprint(
    served: dict[str, CLIP], tmp_path: Path, option: str
) -> None:
    task = {"autoencoder": "vqgan_clip", "generator": "gan_search"}.get(option, "generator_free")
    file = tmp_path / "file"
    entry = Namespace(task=tasks.find(task), name="e")
    entry.options = entry.task.options(**{option: str(file)})
    marks = []
    for content in ("one", "two"):
        file.write_text(content, "utf-8")
        served[str(file)] = served[content] = build_like(served["judge"], seed=len(marks))
        resources = tasks.Resources("judge")
        context = tasks.Context("plain", 0, entry.options, resources)
        inputs = engine._inputs(engine.Job(entry, "plain", 0), context)  # type: ignore[arg-type]
        marks.append(inputs[option])
    assert marks[0]["name"] == marks[1]["name"] and marks[0] != marks[1]


def build_like(model: CLIP, seed: int) -> CLIP:
    """A copy with weights of its own."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.logit_scale += 0.1 * (seed + 1)
    return twin


def test_captions_and_classes_belong_to_the_fingerprint(served: dict[str, CLIP]) -> None:
    entry = Namespace(
        task=tasks.find("retrieval"), options=tasks.find("retrieval").options(), name="e"
    )
    found = []
    for captions in (["a"], ["b"]):
        resources = tasks.Resources()
        resources.data = dataclasses.replace(resources.data, captions=captions)
        context = tasks.Context("plain", 0, entry.options, resources)
        found.append(engine._inputs(engine.Job(entry, "plain", 0), context)["classes"])  # type: ignore[arg-type]
    assert found[0] != found[1]


def test_a_judge_is_never_its_own_second(served: dict[str, CLIP]) -> None:
    served["twin"] = served["judge"]
    context = tasks.Context("plain", 0, None, tasks.Resources("judge"))
    for name in ("judge", "twin", "plain"):
        with pytest.raises(ValueError, match="choose another model"):
            context.second_judge(name)
    assert context.second_judge("robust").name == "robust"


def test_development_and_test_share_nothing() -> None:
    parts = {split: read_dataset(split=split) for split in ("all", "development", "test")}
    keys = {split: set(data.photos.keys) for split, data in parts.items()}
    assert not keys["development"] & keys["test"]
    assert keys["development"] | keys["test"] == keys["all"]
    assert len(parts["development"].photos.labels.unique()) == 202 == len(keys["development"])
    assert len({data.photos.sha256 for data in parts.values()}) == 3
    assert not set(parts["development"].every(2)) & set(parts["test"].every(2))
    assert parts["all"].every(2) == parts["development"].every(2)
    for name in ("captions", "drawings", "styles"):
        one, two = (read_prompts(name, split=split) for split in ("development", "test"))
        assert not set(one) & set(two) and len(one) == len(two)
    assert "Test." in str(read_list("test")["purpose"])


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="kills a forked child")
def test_kills_leave_nothing_half_written_or_twice(
    served: dict[str, CLIP], suite_file: Path, tmp_path: Path
) -> None:
    """Each child runs the suite in the same folder until SIGKILL; what is whole by then is never made again."""
    suite, folder = (
        read_suite(str(suite_file), only=["zeroshot", "gradients"]),
        tmp_path / "records",
    )
    threads, rng = torch.get_num_threads(), random.Random(0)
    torch.set_num_threads(1)  # a forked child has no pool of threads
    kept: dict[str, float] = {}
    try:
        for _ in range(15):
            child = os.fork()
            if child == 0:
                try:
                    run(suite_file, folder, only=["zeroshot", "gradients"])
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0, 2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found, problems = read_records(folder, suite.name)
            assert not problems
            times = {record.path: (folder / record.path).stat().st_mtime for record in found}
            assert {key: times[key] for key in kept} == kept  # neither lost nor written again
            kept = times
        done = run(suite_file, folder, only=["zeroshot", "gradients"])
    finally:
        torch.set_num_threads(threads)
    assert sum(d.skipped for d in done) == len(kept)
    for record in read_records(folder, suite.name)[0]:
        for sheet in record.pictures.values():
            assert (folder / record.path).with_name(sheet["file"]).is_file()
