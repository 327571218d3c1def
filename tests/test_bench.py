"""The engine: records, skipping, interruptions, and the guard of the judge."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import SUITE, finished, run, served, suite_file, trio, values

from clipag_plug.bench import engine, generation, registry, zeroshot
from clipag_plug.bench.judge import Classifier, Judge
from clipag_plug.bench.records import Metric, read_record, read_records, weights_hash
from clipag_plug.bench.targeted import other_classes
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
            assert metric["low"] <= metric["value"] <= metric["high"]
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
    pgd = zeroshot.pgd

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if (
            len(calls) == 4
        ):  # the first model takes two batches; this is in the middle of the second one
            raise KeyboardInterrupt
        return pgd(*arguments, **keywords)

    monkeypatch.setattr(zeroshot, "pgd", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(suite_file, tmp_path, only=["zeroshot"])
    assert [record.model for record in read_records(tmp_path, "small")] == ["plain"]
    done = run(suite_file, tmp_path, only=["zeroshot"])
    assert [d.skipped for d in done] == [True, False]


def test_a_broken_record_is_measured_again(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path
) -> None:
    first = run(suite_file, tmp_path, only=["gradients"])
    path = tmp_path / first[0].record.path
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    assert read_record(path) is None
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
    assert not [record for record in read_records(tmp_path, "small") if record.model == "robust"]


@pytest.fixture
def own_task() -> Iterator[Callable[[registry.Run], None]]:
    """Registers a task for one test."""

    def add(function: registry.Run) -> None:
        registry.task("own", "own", generation.Generation, needs=("judge",))(function)

    yield add
    registry._TASKS.pop("own", None)


@pytest.mark.parametrize(
    ("by", "diagnostic", "refused"),
    [("guide", False, True), ("guide", True, False), ("judge", False, False)],
)
def test_a_task_that_scores_with_the_guide_is_refused(
    own_task: Callable[[registry.Run], None],
    suite_file: Path,
    served: dict[str, CLIP],
    tmp_path: Path,
    by: str,
    diagnostic: bool,
    refused: bool,
) -> None:
    def scored(context: registry.Context) -> registry.Measured:
        name = context.name if by == "guide" else context.need_judge().name
        return registry.Measured(
            ["one"], {"top1": Metric("t", "share", name, [1.0], diagnostic=diagnostic)}
        )

    own_task(scored)
    suite_file.write_text(
        'models = ["plain"]\njudge = "judge"\n[entries.own]\ntask = "own"\n', encoding="utf-8"
    )
    if refused:
        with pytest.raises(ValueError, match="the model that guided"):
            run(suite_file, tmp_path)
        assert not read_records(tmp_path, "small")
    else:
        assert run(suite_file, tmp_path)[0].record.metrics["top1"]["value"] == 1


def test_both_models_start_from_the_same_pictures(
    suite_file: Path, served: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[Any]] = {"plain": [], "robust": []}
    synthesize = generation.synthesize

    def spy(prompts: Any, *, model: Any, seed: int, callback: Any, **options: Any) -> Any:
        asked[model.name].append((prompts, seed, options))
        return synthesize(prompts, model=model, seed=seed, callback=callback, **options)

    monkeypatch.setattr(generation, "synthesize", spy)
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
    from clipag_plug.train.evaluate import ZeroShot

    sample = bundled_photos()
    rows = zeroshot.spread(len(sample), 6)
    held = Photos(sample.images[rows].permute(0, 2, 3, 1).numpy(), [""] * 6, sample.labels[rows])
    held.select = lambda index: sample.pixels(rows[index], 32)  # type: ignore[method-assign]
    expected = ZeroShot(held, bundled_vocabulary(), 32, 1.5, "l2", 6, steps=2)(trio["plain"])
    record = finished[2][0].record
    assert record.metrics["clean_top1"]["value"] == pytest.approx(expected.clean)
    assert record.metrics["robust_top1"]["value"] == pytest.approx(expected.robust)


def test_samples_and_targets_are_spread() -> None:
    assert zeroshot.spread(505, 505).tolist() == list(range(505))
    assert zeroshot.spread(10, 4).tolist() == [0, 2, 5, 7]
    labels = torch.arange(202).repeat(10)
    targets = other_classes(labels, 202, torch.Generator().manual_seed(0))
    assert not (targets == labels).any()
    assert len(targets.unique()) == 202
