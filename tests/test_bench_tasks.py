"""The tasks on random models: attacks, retrieval, other data, the paper's protocols, and the search."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import run, served, trio
from torch import Tensor

from clipag_plug.bench import engine
from clipag_plug.bench.compare import compare
from clipag_plug.bench.data import read_dataset, read_prompts
from clipag_plug.bench.judges import Classifier, class_named
from clipag_plug.bench.metrics import recall
from clipag_plug.bench.records import Metric, Record
from clipag_plug.bench.suites import read_suite
from clipag_plug.bench.tasks import Resources, accuracy, gradients, pictures, spread, targeted
from clipag_plug.bench.tasks.accuracy import Robustness
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.images import write_image
from clipag_plug.model import CLIP

HEAD = 'models = ["plain", "robust"]\njudge = "judge"\n'


def one(tmp_path: Path, task: str, options: str, **changes: Any) -> list[Record]:
    """The records of a suite with a single entry, for both models."""
    path = tmp_path / "one.toml"
    path.write_text(f'{HEAD}[entries.it]\ntask = "{task}"\noptions = {{ {options} }}\n')
    return [done.record for done in run(path, tmp_path / "records", **changes)]


def column(record: Record, key: str) -> Tensor:
    return torch.tensor(record.metrics[key]["values"])


def test_robustness_counts_what_stands_and_says_how_it_was_attacked(
    served: dict[str, CLIP], tmp_path: Path
) -> None:
    settings = "l2 = [0.0, 2.0], linf = [0.01], steps = 3, targets = 2, count = 12, batch = 5"
    record = one(tmp_path, "robustness", settings, models=["plain"])[0]
    clean = column(record, "clean_top1")
    for ball in ("l2@0", "l2@2", "linf@0.01"):
        stood = [column(record, f"{name}_{ball}") for name in accuracy.OURS]
        assert all((each <= clean).all() for each in stood)
        assert torch.equal(column(record, f"all_{ball}"), torch.stack(stood).amin(0))
    assert torch.equal(column(record, "pgd_l2@0"), clean)  # a ball of nothing
    title = record.metrics["apgd-ce_linf@0.01"]["title"]
    assert "APGD-CE-3" in title and "Linf 2.55/255" in title
    assert record.metrics["all_l2@2"]["n"] == 12 and record.metrics["all_l2@2"]["at"] == 2
    assert record.options["templates"] and record.options["targets"] == 2


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("attack", accuracy.ATTACKS)
def test_attacks_stay_in_their_ball_and_find_errors(
    trio: dict[str, CLIP], attack: str, norm: str
) -> None:
    if attack not in accuracy.OURS:
        pytest.importorskip("pyautoattack")
    classifier = Classifier(trio["plain"], ["goldfish", "koala", "lion", "barn", "pizza"])
    images = bundled_photos().pixels(range(8), 32)
    with torch.no_grad():
        labels = classifier.logits(images).argmax(1)
    eps = 3.0 if norm == "l2" else 0.1
    options = Robustness(steps=8, targets=3, queries=200)
    moved = accuracy.attacked(
        classifier, images, labels, (attack, norm, eps), options, torch.Generator().manual_seed(0)
    )
    delta = (moved - images).flatten(1)
    size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)
    assert float(size.max()) <= eps * 1.0001 and 0 <= float(moved.min()) <= float(moved.max()) <= 1
    with torch.no_grad():
        assert (classifier.logits(moved).argmax(1) != labels).any()
    again = accuracy.attacked(
        classifier, images, labels, (attack, norm, eps), options, torch.Generator().manual_seed(0)
    )
    assert torch.equal(again, moved)


def test_recall_against_a_plain_search() -> None:
    scores = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    relevant = torch.rand(6, 20, generator=torch.Generator().manual_seed(1)) < 0.2
    relevant[:, 3] = True
    for k in (1, 5, 20):
        expected = [
            float(relevant[row][scores[row].topk(k).indices].any()) for row in range(len(scores))
        ]
        assert recall(scores, relevant, k).tolist() == expected
        alone = [float(recall(scores[i : i + 1], relevant[i : i + 1], k)) for i in range(6)]
        assert alone == expected
    assert recall(torch.ones(4, 10), torch.eye(4, 10).bool(), 5).sum() == 0
    assert recall(torch.eye(4), torch.eye(4).bool(), 1).tolist() == [1.0] * 4


def test_retrieval_agrees_with_cosines(served: dict[str, CLIP], tmp_path: Path) -> None:
    record = one(tmp_path, "retrieval", "count = 20, steps = 2, depths = [1, 5]", models=["plain"])[
        0
    ]
    data, model = read_dataset(), served["plain"]
    rows = spread(data.photos.labels, 20)
    said = [data.captions[int(row)] for row in rows]
    captions = sorted(set(said), key=said.index)
    with torch.no_grad():
        images = model.encode_image(model.normalize(data.photos.pixels(rows, 32)))
        texts = model.encode_text(model.tokenize(captions))
        cosine = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = [float(said[i] == captions[int(cosine[i].argmax())]) for i in range(20)]
    assert record.metrics["clean_caption_r1"]["values"] == expected
    back = [float(said[int(cosine[:, captions.index(text)].argmax())] == text) for text in said]
    assert record.metrics["clean_photo_r1"]["values"] == back
    assert (column(record, "clean_caption_r5") >= column(record, "clean_caption_r1")).all()
    assert column(record, "attacked_caption_r1").sum() <= column(record, "clean_caption_r1").sum()


def test_other_photographs_bring_their_own_classes(served: dict[str, CLIP], tmp_path: Path) -> None:
    for number in range(6):
        home = tmp_path / "data" / ("red_fox", "barn")[number % 2]
        home.mkdir(parents=True, exist_ok=True)
        write_image(
            home / f"{number}.png",
            torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(number)),
        )
    data = read_dataset(str(tmp_path / "data"))
    assert data.classes == ["barn", "red fox"] and not data.boxed and len(data.photos) == 6
    assert data.captions[-1] == "a photo of a red fox"
    names = tmp_path / "names.txt"
    names.write_text("a barn\na fox\n")
    assert read_dataset(str(tmp_path / "data"), str(names)).classes == ["a barn", "a fox"]
    names.write_text("a barn\n")
    with pytest.raises(ValueError, match="there are 1 class names"):
        read_dataset(str(tmp_path / "data"), str(names))
    path = tmp_path / "other.toml"
    path.write_text(
        f'{HEAD}[entries.zeroshot]\ntask = "zeroshot"\noptions = {{ steps = 1 }}\n'
        '[entries.gradients]\ntask = "gradients"\noptions = { shown = 2 }\n'
    )
    suite = read_suite(str(path), models=["plain"])
    resources = Resources(photos=str(tmp_path / "data"))
    zeroshot, gradients = (d.record for d in engine.run(suite, tmp_path / "records", resources))
    assert zeroshot.metrics["clean_top5"]["value"] == 1  # of two classes
    assert "on_object" not in gradients.metrics and "stability" in gradients.metrics
    ours = Resources()
    assert not next(iter(engine.run(suite, tmp_path / "records", ours))).skipped


def test_prompts_are_ours_a_file_or_cocos(tmp_path: Path) -> None:
    for name in ("captions", "drawings"):
        assert len(set(read_prompts(name))) == 100
    assert read_prompts("captions", 3) == read_prompts("captions")[:3]
    rows = [{"id": i, "image_id": i // 2, "caption": f" text\n{i} "} for i in range(40)]
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps({"annotations": rows[::-1]}))
    drawn = read_prompts(str(path), 8, seed=1)
    assert drawn == read_prompts(str(path), 8, seed=1) != read_prompts(str(path), 8, seed=2)
    assert all(int(text.split()[1]) % 2 == 0 for text in drawn)  # the first caption of an image
    with pytest.raises(ValueError, match="20 prompts; 21 were asked for"):
        read_prompts(str(path), 21)
    with pytest.raises(FileNotFoundError, match="captions, drawings"):
        read_prompts("nothing")
    path.write_text("[]")
    with pytest.raises(ValueError, match="no file of COCO captions"):
        read_prompts(str(path))


def test_generator_free_pictures_are_scored_by_judges_alone(
    served: dict[str, CLIP], tmp_path: Path
) -> None:
    pytest.importorskip("torch_fidelity")
    served["second"] = copy.deepcopy(served["judge"])
    served["second"].logit_scale.data += 1
    settings = 'count = 4, steps = 1, views = 1, batch = 4, init = "gray", second = "second"'
    record = one(tmp_path, "generator_free", settings, models=["plain"])[0]
    assert {m["by"] for m in record.metrics.values()} == {"judge", "second"}
    assert {"similarity", "r_precision", "second_similarity", "fid", "kid", "isc"} <= set(
        record.metrics
    )
    assert column(record, "similarity").tolist() == column(record, "second_similarity").tolist()
    assert "no --aesthetic was given" in record.notes["empty"][pictures.AESTHETIC]
    assert "aesthetic" not in record.metrics  # empty, not replaced
    assert record.items == read_prompts("captions", 4)
    reads, floor = record.notes["remarks"]
    assert "mean cosine to nonsense" in reads and "FID of 4 photographs" in floor
    with pytest.raises(ValueError, match="judge its own pictures"):
        one(tmp_path, "generator_free", settings.replace('"second"', '"plain"'), models=["plain"])


def test_pipelines_are_called_with_the_same_seeds_and_settings(
    served: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from clipag_plug import pipelines

    calls: list[tuple[Any, ...]] = []

    def port(name: str) -> Any:
        def made(prompt: str, *pictures: Tensor, model: Any, **options: Any) -> Any:
            calls.append(
                (name, model.name, prompt, len(pictures), json.dumps(options, sort_keys=True))
            )
            image = torch.full((3, 32, 32), 0.5) + 0.01 * len(prompt) % 0.5
            return [SimpleNamespace(image=image.clamp(0, 1))]

        return made

    for task, name, settings in (
        ("clipdraw", "clipdraw", "count = 3, augment = false, steps = 7"),
        ("vqgan_clip", "vqgan_clip", "count = 3, steps = 7"),
        ("clipstyler", "clipstyler", 'count = 2, photographs = 2, mode = "pixels", steps = 7'),
    ):
        monkeypatch.setattr(pipelines, name, port(name), raising=False)
        calls.clear()
        records = one(tmp_path, task, settings)
        by_model = [
            [call[2:] for call in calls if call[1] == model] for model in ("plain", "robust")
        ]
        assert by_model[0] == by_model[1] and len(by_model[0]) == len(records[0].items)
        assert len({call[-1] for call in by_model[0]}) == len(by_model[0])  # a seed of its own each
        assert all('"steps": 7' in call[-1] for call in by_model[0])
        assert all(metric["by"] == "judge" for metric in records[0].metrics.values())
        assert records[0].metrics.keys() == records[1].metrics.keys()


def test_the_search_task_reports_curves_needs_and_the_judges_view(
    served: dict[str, CLIP], tmp_path: Path
) -> None:
    pytest.importorskip("torch_fidelity")
    settings = "count = 5, ks = [1, 5, 0], budget = 8, batch = 8"
    record = one(tmp_path, "gan_search", settings, models=["plain"])[0]
    assert record.items == read_prompts("captions", 5)
    bar = record.notes["data_score"]
    data, model = read_dataset(), served["plain"]
    with torch.no_grad():
        images = model.encode_image(model.normalize(data.photos.pixels(range(505), 32)))
        texts = model.encode_text(model.tokenize(data.captions))
    assert bar == pytest.approx(float(torch.cosine_similarity(images, texts).mean()), abs=1e-4)
    for name in ("random_k1", "random_k5", "random_kall", "evolve_k5", "refine_k5"):
        curve = record.notes["curves"][name]
        assert len(curve) == 8 and curve == sorted(curve)
        best = record.metrics[f"best_{name}"]
        assert best["diagnostic"] and best["by"] == "plain"
        assert best["value"] == pytest.approx(curve[-1], abs=1e-5)
        first = next((n for n, value in enumerate(curve, 1) if value > bar), 9)
        assert record.notes["needed"][name] == first
        assert not record.metrics[f"fid_{name}"]["diagnostic"]
        assert record.metrics[f"r_precision_{name}"]["by"] == "judge"


def test_preference_is_the_share_of_higher_scores() -> None:
    def record(model: str, numbers: list[float]) -> Record:
        metric = Metric("aesthetic score", "score", "predictor", numbers).to_dict()
        return Record("s", "e", "t", model, 0, "f", {}, {}, list("abcd"), {"aesthetic": metric})

    rows = compare([record("a", [1, 2, 3, 4]), record("b", [2, 2, 9, 1])], "a", "b")
    assert [row.metric for row in rows] == ["e/aesthetic", "e/aesthetic_preferred"]
    assert (rows[1].ours.value, rows[1].theirs.value) == (0.625, 0.375)  # two wins, a tie, a loss


def test_levels_of_white_noise_are_those_of_the_towers_own_reduction() -> None:
    from clipag_plug.mini import MiniVisual

    plain = gradients.white_noise(torch.nn.Identity(), 64)
    assert plain["fine"] == pytest.approx(1 - math.pi / 64, abs=0.01)
    assert plain["slope"] == pytest.approx(0, abs=0.1)
    assert plain["roughness"] == pytest.approx(math.sqrt(2), rel=0.01)
    reducing = gradients.white_noise(MiniVisual(8, image_size=64), 224)
    assert reducing["fine"] == pytest.approx(0.495, abs=0.02)
    assert reducing["slope"] == pytest.approx(-1.76, abs=0.05)
    assert reducing["roughness"] == pytest.approx(0.417, abs=0.01)


def test_targeted_pictures_are_equally_far_and_say_how_far(
    served: dict[str, CLIP], tmp_path: Path
) -> None:
    settings = "radii = [0.5, 2.0], count = 6, steps = 2, batch = 4"
    for record in one(tmp_path, "targeted", settings):
        for radius in (0.5, 2.0):
            found = record.metrics[f"norm@{radius:g}"]
            assert found["values"] == pytest.approx([radius] * 6, rel=1e-3)
            assert found["diagnostic"] and found["better"] == "neither"


def test_styles_and_photographs_are_crossed(
    served: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from clipag_plug import pipelines

    image = SimpleNamespace(image=torch.full((3, 32, 32), 0.5))
    monkeypatch.setattr(pipelines, "clipstyler", lambda *_, **__: [image], raising=False)
    record = one(tmp_path, "clipstyler", "count = 2, photographs = 3", models=["plain"])[0]
    assert [len(set(record.drawn[name])) for name in ("photograph", "style")] == [3, 2]
    assert len(record.items) == 6 and record.items[0].startswith(record.drawn["photograph"][0])


def test_errors_that_a_judge_shares_are_counted() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    ours, theirs = torch.tensor([0, 0, 0, 0, 0]), torch.tensor([0, 1, 0, 2, 0])
    assert targeted.common_errors(ours, theirs, labels).startswith("2 of 3 ")


def test_an_imagenet_network_judges_what_is_among_its_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    names = [
        "lesser panda, red panda",
        "crane, Grus",
        "Desk",
        "crane",
        "European fire salamander",
        *"abc",
    ]
    judge = SimpleNamespace(name="net", names=[each.split(", ") for each in names])
    judge.logits = lambda images: images.mean((2, 3)) @ torch.eye(3, 8)
    monkeypatch.setattr(Resources, "imagenet", judge)
    context: Any = SimpleNamespace(resources=Resources())
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0], images[1, 1], images[1, 2] = 4.0, 4.0, 1.0
    found, empty = pictures.by_imagenet(context, images, ["a photo of a red panda", "a desk"])
    assert empty == {} and {metric.by for metric in found.values()} == {"net"}
    assert found["imagenet_top1"].values == [1, 0] and found["imagenet_top5"].values == [1, 1]
    expected = [-math.log(1 + 7 * math.exp(-4)), 1 - math.log(math.exp(4) + math.e + 6)]
    assert found["imagenet_logp"].values == pytest.approx(expected, rel=1e-5)
    assert class_named(("fire salamander", "Grus"), judge.names) == 4
    assert class_named(("crane", "grus"), judge.names) == 1  # the first that is of one class only
    for prompt in ("a crane", "a sunset"):  # two classes of one name; none
        found, empty = pictures.by_imagenet(context, images, [prompt, "a desk"])
        assert not found and "1 of 2 prompts" in next(iter(empty.values()))
