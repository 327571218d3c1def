"""Models that are not the bundled ones: their own tokens and pixels, locked towers, teachers of images and of texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from train_helpers import (
    MINI,
    RESNET,
    VIT,
    architecture,
    as_one,
    differ,
    gradients,
    options,
    prepared,
)

from clipag_plug import losses
from clipag_plug.model import CLIP, build
from clipag_plug.train import setup
from clipag_plug.train.command import train
from clipag_plug.train.data import open_data
from clipag_plug.train.lessons import TextFeatures, learn_geometry
from clipag_plug.train.state import read_model, save_captions, save_model
from clipag_plug.train.teachers import Ensemble, TextTeacher, geometry, open_image_teacher
from clipag_plug.vocabulary import in_template

WORDS = ["a red cat", "a dog", "the tall old tree", "a boat on the sea", "two birds", "a horse"]


def shifted(self: CLIP, texts, truncate: bool = False) -> torch.Tensor:
    """A foreign tokenizer: letters are tokens, 2 ends a text and is no highest number, 1 fills up."""
    texts = [texts] if isinstance(texts, str) else texts
    rows = [[0, *(3 + ord(c) % 90 for c in t)][: self.context_length - 1] + [2] for t in texts]
    return torch.tensor([row + [1] * (self.context_length - len(row)) for row in rows])


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        {"context_length": 32},
        {"context_length": 24, "pool_type": "eos", "eos_id": 2},
        {"context_length": 16, "pool_type": "last", "no_causal_mask": True},
    ],
)
def test_texts_are_read_by_the_models_own_tokenizer(monkeypatch, text, trained) -> None:
    if "pool_type" in text:
        monkeypatch.setattr(CLIP, "tokenize", shifted)
    torch.manual_seed(0)
    given = architecture(VIT, {"width": 32, **text}, custom_text=text.get("pool_type") == "last")
    model = build(json.loads(given), None)
    found = TextFeatures(model, trained)(WORDS)
    expected = torch.cat([model.encode_text(model.tokenize([word])) for word in WORDS])
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(torch.pdist(F.normalize(found, dim=-1)).min()) > 1e-3, "captions differ"


def test_mean_and_std_are_the_models_in_training_result_and_export(shard, tmp_path) -> None:
    from clipag_plug.clip import load

    pixels = {"preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}}
    asked = options(
        shard,
        tmp_path,
        architecture=json.dumps({"model_cfg": json.loads(architecture()), **pixels}),
    )
    trainer, made, card, _ = setup.prepare(asked)
    assert (trainer.model.mean, trainer.model.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    save_model(tmp_path / "run", trainer.result(), made, card)
    again = prepared(shard, tmp_path, architecture="", init=str(tmp_path / "run"))
    loaded = load(str(tmp_path / "run" / "model.safetensors"), "cpu")[0]
    for model in (again.model, loaded):
        assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    images = torch.rand(2, 3, 16, 16)
    shown = trainer.model.eval().encode_image(
        (images - images.new_tensor(model.mean).view(3, 1, 1))
        / images.new_tensor(model.std).view(3, 1, 1)
    )
    assert torch.allclose(trainer.encode(images), shown, atol=1e-6)


@pytest.mark.parametrize("vision", [MINI, VIT, RESNET], ids=str)
@pytest.mark.parametrize("groups", [0, 2])
def test_a_locked_image_tower_stays_while_the_text_tower_learns(
    shard,
    tmp_path,
    vision,
    groups,
) -> None:
    trainer = prepared(
        shard, tmp_path, architecture=architecture(vision), image="frozen", text="train", attack_steps=0,
        lock_image_unlocked_groups=groups, samples=16, resolution=vision.get("mini", vision)["image_size"],
    )  # fmt: skip
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    train(trainer, tmp_path)
    moved = {n for n, v in trainer.result().items() if not torch.equal(v, before[n])}
    image = {name for name in moved if name.startswith("visual.")}
    assert "token_embedding.weight" in moved and bool(image) == bool(groups)
    locked = {n for n in before if n.startswith("visual.") and n not in image}
    assert any("conv1" in name for name in locked), "the stem stays, its statistics too"


def test_text_teachers_are_stored_vectors_or_an_encoder_of_transformers(tmp_path) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 12)).astype(np.float32)
    np.savez(tmp_path / "v.npz", texts=np.array(WORDS), vectors=vectors)
    save_file(
        {"vectors": torch.from_numpy(vectors)},
        tmp_path / "v.safetensors",
        {"texts": json.dumps(WORDS)},
    )
    for name in ("v.npz", "v.safetensors"):
        teacher = TextTeacher(str(tmp_path / name), "cpu")
        expected = F.normalize(torch.from_numpy(vectors), dim=-1)
        assert torch.allclose(teacher(WORDS[::-1]), expected.flip(0)) and teacher.texts == WORDS
        with pytest.raises(ValueError, match="no vector of 'unheard'"):
            teacher(["unheard"])
    teacher = TextTeacher(str(bert(tmp_path / "bert")), "cpu")
    together, alone = (
        teacher(WORDS),
        torch.cat([TextTeacher(str(tmp_path / "bert"), "cpu")([w]) for w in WORDS]),
    )
    assert torch.allclose(together, alone, atol=1e-5), "padding is not averaged"
    assert teacher.width == together.shape[1] == 16


def bert(folder: Path) -> Path:
    """A random encoder of transformers with a tokenizer of whole words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    words = sorted({word for text in WORDS for word in text.split()})
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    )
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    small = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    torch.manual_seed(0)
    BertModel(small).save_pretrained(folder)
    return folder


def test_stored_vectors_may_have_templates_and_things_to_draw_more_often(tmp_path) -> None:
    vectors = np.eye(6, 8, dtype=np.float32)
    offsets = np.zeros((2, 8), np.float32)
    offsets[1, 7] = 1
    np.savez(
        tmp_path / "v.npz",
        texts=np.array(WORDS),
        vectors=vectors,
        templates=np.array(["{a}", "two {s}"]),
        offsets=offsets,
        known=np.array([1, 2]),
    )
    teacher, rng = TextTeacher(str(tmp_path / "v.npz"), "cpu"), random.Random(0)
    one = {
        in_template("{a}", w): F.one_hot(torch.tensor(i), 8).float() for i, w in enumerate(WORDS)
    }
    two = {in_template("two {s}", w): (one[in_template("{a}", w)] + F.one_hot(torch.tensor(7), 8)) / 2**0.5
           for w in WORDS}  # fmt: skip
    known, seen = 0, set()
    for _ in range(200):
        texts, found = teacher.drawn(WORDS, 4, rng)
        assert len(texts) == 4
        assert torch.allclose(found, torch.stack([(one | two)[text] for text in texts]))
        known += sum(
            any(text == in_template(t, w) for t in ("{a}", "two {s}") for w in WORDS[:2])
            for text in texts
        )
        seen |= set(texts)
    assert seen == set(one | two)
    assert abs(known / 800 - (0.5 + 0.5 * 2 / 6)) < 0.05, (
        "half are known things, besides their share"
    )


def test_a_word_in_a_template_has_its_article_and_its_plural() -> None:
    said = "{} | {a} | {s}"
    assert in_template(said, "fox") == "fox | a fox | foxes"
    assert in_template(said, "otter") == "otter | an otter | otters"
    assert in_template(said, "butterfly") == "butterfly | a butterfly | butterflies"
    assert in_template(said, "donkey") == "donkey | a donkey | donkeys"


@pytest.mark.parametrize("kind", ["linear", "cosine", "similarity"])
def test_a_text_tower_learns_the_geometry_of_its_teacher(tmp_path, kind) -> None:
    np.savez(
        tmp_path / "v.npz",
        texts=np.array(WORDS),
        vectors=np.random.default_rng(0).normal(size=(6, 8)),
    )
    teacher = TextTeacher(str(tmp_path / "v.npz"), "cpu")
    torch.manual_seed(0)
    model = build(json.loads(architecture(VIT, {"width": 32})), None)
    visual = {n: v.clone() for n, v in model.visual.state_dict().items()}

    def distance() -> float:
        vectors = F.normalize(TextFeatures(model, False)(WORDS), dim=-1)
        known = teacher(WORDS)
        return float((vectors @ vectors.T - known @ known.T).square().mean())

    before, seen = distance(), []
    if kind == "cosine":
        with pytest.raises(ValueError, match="features' size, "):
            learn_geometry(model, teacher, WORDS, 1, kind=kind)
        size = int(model.visual.output_dim)
        vectors = np.random.default_rng(0).normal(size=(6, size))
        np.savez(tmp_path / "v.npz", texts=np.array(WORDS), vectors=vectors)
        teacher = TextTeacher(str(tmp_path / "v.npz"), "cpu")
    learn_geometry(
        model,
        teacher,
        WORDS,
        60,
        kind=kind,
        lr=1e-2,
        report=lambda step, loss: seen.append(loss),
    )
    assert seen[-1] < 0.2 * seen[0] and (kind != "similarity" or distance() < 0.3 * before)
    if kind == "cosine":
        found = F.normalize(TextFeatures(model, False)(WORDS), dim=-1)
        assert float((found * teacher(WORDS)).sum(1).min()) > 0.8
    assert all(torch.equal(visual[n], v) for n, v in model.visual.state_dict().items())


def test_the_distance_of_geometries_is_the_one_written_down() -> None:
    generator = torch.Generator().manual_seed(0)
    features, vectors = (
        torch.randn(4, 5, generator=generator),
        torch.randn(4, 3, generator=generator),
    )
    vectors = F.normalize(vectors, dim=-1)
    unit = F.normalize(features, dim=-1)
    expected = [
        sum((unit[i] @ unit[j] - vectors[i] @ vectors[j]) ** 2 for j in range(4)) / 4
        for i in range(4)
    ]
    assert torch.allclose(geometry(features, vectors, None), torch.stack(expected), atol=1e-6)
    head = torch.nn.Linear(5, 3, bias=False)
    expected = 1 - F.cosine_similarity(features @ head.weight.T, vectors)
    assert torch.allclose(geometry(features, vectors, head), expected, atol=1e-6)


def classifier(folder: Path) -> str:
    """A random network of timm with nine classes, as a file."""
    import timm

    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", num_classes=1000).state_dict(), folder / "net.safetensors"
    )
    return f"timm:test_resnet@{folder / 'net.safetensors'}"


def test_image_teachers_see_their_own_size_mean_and_std(tmp_path) -> None:
    import timm

    teacher = open_image_teacher(classifier(tmp_path), False, lambda name: None, "cpu")
    network = timm.create_model(
        "test_resnet", checkpoint_path=str(tmp_path / "net.safetensors")
    ).eval()
    pixels = timm.data.resolve_model_data_config(network)
    images = torch.rand(2, 3, pixels["input_size"][1], pixels["input_size"][1])
    mean, std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(teacher(images), network((images - mean) / std), atol=1e-5)
    small = open_image_teacher(classifier(tmp_path), False, lambda name: None, "cpu", 32)
    reduced = F.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(small(images), network((reduced - mean) / std), atol=1e-5)
    assert teacher(torch.rand(2, 3, 20, 20)).shape == (2, 1000) and len(set(teacher.names)) > 990
    features = open_image_teacher(classifier(tmp_path), True, lambda name: None, "cpu")(images)
    assert torch.allclose(
        features,
        network.forward_head(network.forward_features((images - mean) / std), pre_logits=True),
        atol=1e-5,
    )


def test_stored_features_and_a_bank_of_texts_stand_for_the_text_tower(shard, tmp_path) -> None:
    """The loss is the cross-entropy over the batch's captions and the file's, by the vectors that are stored."""
    given = {"attack_steps": 0, "captions": "text", "objective": "image_to_text"}
    texts = prepared(shard, tmp_path, **given).batches[0].texts
    bank = ["another thing", texts[0], "a third"]
    known = list(dict.fromkeys([*bank, *texts]))
    size = int(prepared(shard, tmp_path, **given).model.visual.output_dim)
    vectors = np.random.default_rng(0).normal(size=(len(known), size)).astype(np.float32)
    np.savez(tmp_path / "v.npz", texts=np.array(known), vectors=vectors)
    (tmp_path / "bank.txt").write_text("\n".join([*bank, "", bank[0]]) + "\n")
    given |= {"text_features": str(tmp_path / "v.npz"), "bank_texts": str(tmp_path / "bank.txt")}
    trainer = prepared(shard, tmp_path, **given)
    batch, unit = trainer.batches[0], F.normalize(torch.from_numpy(vectors), dim=-1)
    features = F.normalize(trainer._features(batch.images, batch.texts, 0)[0], dim=-1)
    against = [*batch.texts, *bank]
    scores = trainer.model.logit_scale.exp() * features @ unit[[known.index(t) for t in against]].T
    right = torch.tensor([[a == b for b in against] for a in batch.texts]).float()
    expected = -(right / right.sum(1, keepdim=True) * scores.log_softmax(1)).sum(1).mean()
    assert trainer.step().loss == pytest.approx(float(expected), rel=1e-5)
    for name in ("text_features", "bank_texts"):
        with pytest.raises(ValueError, match="--" + name.replace("_", "-") + " needs"):
            prepared(shard, tmp_path, **{"captions": "text", "text": "train", name: given[name]})


def test_stored_features_can_train_along_and_are_written_for_a_text_tower(shard, tmp_path) -> None:
    """A step moves the bank; the batch's captions follow it, and the run leaves it as a file."""
    texts = prepared(shard, tmp_path, attack_steps=0, captions="text").batches[0].texts
    known = list(dict.fromkeys(["a thing that is never seen", *texts]))
    size = int(prepared(shard, tmp_path, attack_steps=0).model.visual.output_dim)
    vectors = np.random.default_rng(0).normal(size=(len(known), size)).astype(np.float32)
    np.savez(tmp_path / "v.npz", texts=np.array(known), vectors=vectors)
    (tmp_path / "bank.txt").write_text("\n".join(known))
    given = {
        "captions": "text", "objective": "image_to_text", "attack_steps": 0, "lr": 1e-2,
        "text_features": str(tmp_path / "v.npz"), "bank_texts": str(tmp_path / "bank.txt"), "train_text_features": True,
    }  # fmt: skip
    trainer = prepared(shard, tmp_path, **given)
    before = F.normalize(torch.from_numpy(vectors), dim=-1)
    assert torch.allclose(trainer.learned_captions()[1], before, atol=1e-6)
    trainer.step()
    after = trainer.learned_captions()[1]
    batch = trainer.batches[0]
    features = trainer._features(batch.images, batch.texts, 0)
    rows = [known.index(text) for text in batch.texts]
    assert torch.allclose(F.normalize(features[1], dim=-1), after[rows], atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-4)
    whole = prepared(shard, tmp_path, batch_size=24, **given)
    split = prepared(shard, tmp_path, batch_size=8, accumulation=3, **given)
    as_one(whole, split, 3)
    found = gradients(whole), gradients(split)
    assert "heads.bank.weight" in found[0] and differ(*found) < 1e-4
    flat = prepared(shard, tmp_path, text_rank=2, **given)
    for _ in range(2):
        flat.step()
    assert torch.linalg.matrix_rank(flat.learned_captions()[1], atol=1e-4) == 2
    path = save_captions(tmp_path, *trainer.learned_captions())
    teacher = TextTeacher(str(path), "cpu")
    assert teacher.texts == known and torch.allclose(teacher(known), after, atol=1e-6)


def test_classes_of_an_image_teacher_learn_where_their_texts_train_along(shard, tmp_path) -> None:
    """A class that no image has moves by what the teacher says, if its text is in the bank."""
    names = ["thing", "orange", *(f"kind {number}" for number in range(998))]
    texts = [
        "a photo of a thing",
        "a photo of an orange",
        *(f"a photo of a {n}" for n in names[2:]),
    ]
    size = int(prepared(shard, tmp_path, attack_steps=0).model.visual.output_dim)
    vectors = np.random.default_rng(0).normal(size=(1001, size)).astype(np.float32)
    np.savez(tmp_path / "v.npz", texts=np.array([*texts, "a thing"]), vectors=vectors)
    (tmp_path / "bank.txt").write_text("\n".join(texts[:2]))
    (tmp_path / "names.txt").write_text("\n".join(names))
    given = {
        "captions": "text", "objective": "cosine", "attack_steps": 0, "lr": 1e-2, "image": "frozen",
        "train_scale": True,
        "image_teacher": classifier(tmp_path), "image_teacher_loss": "kl", "image_teacher_weight": 2.0,
        "image_teacher_classes": str(tmp_path / "names.txt"),
        "text_features": str(tmp_path / "v.npz"), "bank_texts": str(tmp_path / "bank.txt"), "train_text_features": True,
    }  # fmt: skip
    trainer = prepared(shard, tmp_path, **given)
    before = trainer.learned_captions()[1].clone()
    for _ in range(2):
        trainer.step()
    after = trainer.learned_captions()[1]
    assert ((after - before).norm(dim=1) > 1e-4).all()
    batch = trainer.batches[0]
    targets = trainer.targets(before, batch.words, trainer.rows(batch), trainer._logit())
    stored = F.normalize(torch.from_numpy(vectors[2:1000]), dim=-1)
    assert torch.allclose(targets.classes, torch.cat([after, stored]), atol=1e-6)
    (tmp_path / "bank.txt").write_text("a thing")  # no class of the teacher's among them
    assert prepared(shard, tmp_path, **given).step().index == 1


@pytest.mark.parametrize("kind", ["kl", "head", "features"])
def test_a_step_under_teachers_in_parts_is_the_whole_one(shard, tmp_path, kind) -> None:
    """Gradients of the tower, of the linear maps, and of the texts."""
    np.savez(tmp_path / "v.npz", texts=np.array(["a thing"]), vectors=np.ones((1, 8)))
    given = {
        "image_teacher": classifier(tmp_path), "image_teacher_loss": kind, "image_teacher_weight": 2.0,
        "attack_steps": 0, "flip": False, "crop": 1.0, "captions": "text",
    }  # fmt: skip
    if kind != "kl":
        given |= {
            "text": "train",
            "text_teacher": str(tmp_path / "v.npz"),
            "text_teacher_weight": 0.7,
        }
    whole = prepared(shard, tmp_path, batch_size=24, **given)
    split = prepared(shard, tmp_path, batch_size=8, accumulation=3, **given)
    for trainer in (whole, split):
        torch.manual_seed(1)
        for weight in trainer.heads.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    as_one(whole, split, 3)
    heads = {n for n in split.weights if n.startswith("heads.")}
    found = gradients(whole), gradients(split)
    assert bool(heads) == (kind != "kl") and heads <= found[0].keys()
    assert differ(*found) < 1e-4
    assert not [name for name in split.result() if "heads" in name]


def test_sources_have_captions_of_their_own(tmp_path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.csv").write_text(f"image,caption,title\n{name}.png,plain,owl\n")
    photos = open_data(
        [
            str(tmp_path / "a.csv"),
            f"{tmp_path / 'b.csv'}::caption=title::template=an emoji of a {{}}",
        ],
        16,
    ).photos
    assert photos.texts == ["plain", "an emoji of an owl"]
    with pytest.raises(ValueError, match="::caption"):
        open_data([f"{tmp_path / 'a.csv'}::colour=red"], 16)


def made(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(shard, tmp_path_factory) -> list[Path]:
    """A model, two with its text tower and other image towers, and a stranger: run folders."""
    place = tmp_path_factory.mktemp("teachers")
    config = json.loads(architecture())
    models = [build(config, None, name=str(seed)) for seed in range(4)]
    for seed, model in enumerate(models):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * made(1, weight.numel(), seed).view_as(weight))
        if 0 < seed < 3:
            first = models[0].state_dict()
            text = {n: w for n, w in first.items() if not n.startswith("visual.")}
            model.load_state_dict(text, strict=False)
        save_model(place / str(seed), model.state_dict(), config, {"name": str(seed)})
    return [place / str(seed) for seed in range(4)]


def model_of(folder: Path):
    config, _, weights = read_model(folder)
    return build(config, weights, name=folder.name).eval()


def test_teachers_say_the_mean_of_their_unit_features(folders) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = map(model_of, folders[1:3])
    found = Ensemble([first, second], model_of(folders[0]))(images)
    each = [F.normalize(m.encode_image(m.normalize(images)), dim=-1) for m in (first, second)]
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-6)
    assert not found.requires_grad and not any(p.requires_grad for p in first.parameters())


def test_another_text_tower_cannot_teach(folders) -> None:
    with pytest.raises(ValueError, match="--teachers '3' reads texts otherwise"):
        Ensemble([model_of(folders[3])], model_of(folders[0]))


def taught(shard, tmp_path, folders, **changes):
    given = {
        "architecture": "",
        "init": str(folders[0]),
        "teachers": [str(folder) for folder in folders[1:3]],
        "bank": True,
        "flip": False,
        "crop": 1.0,
    }
    return prepared(shard, tmp_path, **{**given, **changes})


def test_a_step_in_parts_learns_from_teachers_as_a_whole_one(shard, tmp_path, folders) -> None:
    whole = taught(shard, tmp_path, folders, batch_size=24, attack_steps=0)
    split = taught(shard, tmp_path, folders, batch_size=8, accumulation=3, attack_steps=0)
    alone = taught(shard, tmp_path, folders, batch_size=24, attack_steps=0, teachers=[])
    for trainer in (whole, alone):
        as_one(trainer, split, 3)
    expected = gradients(whole)
    assert differ(expected, gradients(split)) < 1e-4 and differ(expected, gradients(alone)) > 1e-2


def test_a_pupil_comes_to_say_what_its_teachers_say(shard, tmp_path, folders) -> None:
    for steps in (0, 1):
        trainer = taught(
            shard, tmp_path, folders, distil=20.0, attack_steps=steps, samples=320, lr=3e-2
        )
        images = torch.cat([trainer.batches[i].images for i in range(3)])
        trainer.model.eval()
        wanted = trainer.references["taught"](images)

        def apart(trainer=trainer, images=images, wanted=wanted) -> float:
            trainer.model.eval()
            with torch.no_grad():
                own = trainer.model.encode_image(trainer.model.normalize(images))
            text = trainer.text(trainer.batches.bank(0)[0])
            return float(losses.trades(own, wanted, text, trainer.model.logit_scale.exp()).mean())

        before = apart()
        train(trainer, tmp_path)
        assert apart() < 0.7 * before
