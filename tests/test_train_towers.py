"""Models that are not the bundled ones: their own tokens and pixels, locked towers, teachers of images and of texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_train import ARCHITECTURE, one_batch, options, prepared, shard  # noqa: F401
from test_train_passes import RESNET, VIT, architecture
from torch.nn import functional as F

from clipag_plug.model import CLIP
from clipag_plug.train import setup
from clipag_plug.train.data import open_data
from clipag_plug.train.running import run
from clipag_plug.train.state import save_model
from clipag_plug.train.teachers import TextTeacher, geometry, open_image_teacher
from clipag_plug.train.text import TextFeatures
from clipag_plug.train.textual import learn_geometry

WORDS = ["a red cat", "a dog", "the tall old tree", "a boat on the sea", "two birds", "a horse"]


def config(text: dict, vision: dict = VIT, **rest) -> str:
    given = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": given | text, **rest})


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
    config_ = json.loads(config(text, custom_text=text.get("pool_type") == "last"))
    model = setup.build(config_, None)
    found = TextFeatures(model, trained)(WORDS)
    expected = torch.cat([model.encode_text(model.tokenize([word])) for word in WORDS])
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(torch.pdist(F.normalize(found, dim=-1)).min()) > 1e-3, "captions differ"


def test_mean_and_std_are_the_models_in_training_result_and_export(shard, tmp_path) -> None:  # noqa: F811
    from clipag_plug.clip import load

    pixels = {"preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}}
    asked = options(
        shard, tmp_path, architecture=json.dumps({"model_cfg": json.loads(ARCHITECTURE), **pixels})
    )
    trainer, made, card = setup.prepare(asked)
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
    assert torch.allclose(trainer._encode(images), shown, atol=1e-6)


@pytest.mark.parametrize("vision", [json.loads(ARCHITECTURE)["vision_cfg"], VIT, RESNET], ids=str)
@pytest.mark.parametrize("groups", [0, 2])
def test_a_locked_image_tower_stays_while_the_text_tower_learns(
    shard,  # noqa: F811
    tmp_path,
    vision,
    groups,
) -> None:
    trainer = prepared(
        shard, tmp_path, architecture=architecture(vision), image="frozen", text="train", attack_steps=0,
        lock_image_unlocked_groups=groups, samples=16, resolution=vision.get("mini", vision)["image_size"],
    )  # fmt: skip
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    run(trainer, tmp_path)
    moved = {n for n, v in trainer.result().items() if not torch.equal(v, before[n])}
    image = {name for name in moved if name.startswith("visual.")}
    assert "token_embedding.weight" in moved and bool(image) == bool(groups)
    locked = {n for n in before if n.startswith("visual.") and n not in image}
    assert any("conv1" in name for name in locked), "the stem stays, its statistics too"
    with pytest.raises(ValueError, match="nothing trains"):
        prepared(shard, tmp_path, image="frozen", text="frozen")


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


@pytest.mark.parametrize("linear", [True, False])
def test_a_text_tower_learns_the_geometry_of_its_teacher(tmp_path, linear) -> None:
    np.savez(
        tmp_path / "v.npz",
        texts=np.array(WORDS),
        vectors=np.random.default_rng(0).normal(size=(6, 8)),
    )
    teacher = TextTeacher(str(tmp_path / "v.npz"), "cpu")
    torch.manual_seed(0)
    model = setup.build(json.loads(config({})), None)
    visual = {n: v.clone() for n, v in model.visual.state_dict().items()}

    def distance() -> float:
        vectors = F.normalize(TextFeatures(model, False)(WORDS), dim=-1)
        known = teacher(WORDS)
        return float((vectors @ vectors.T - known @ known.T).square().mean())

    before, seen = distance(), []
    learn_geometry(
        model,
        teacher,
        WORDS,
        60,
        linear=linear,
        lr=1e-2,
        report=lambda step, loss: seen.append(loss),
    )
    assert seen[-1] < 0.2 * seen[0] and (linear or distance() < 0.3 * before)
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
    assert teacher(torch.rand(2, 3, 20, 20)).shape == (2, 1000) and len(set(teacher.names)) > 990
    features = open_image_teacher(classifier(tmp_path), True, lambda name: None, "cpu")(images)
    assert torch.allclose(
        features,
        network.forward_head(network.forward_features((images - mean) / std), pre_logits=True),
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["kl", "head", "features"])
def test_a_step_under_teachers_in_parts_is_the_whole_one(shard, tmp_path, kind) -> None:  # noqa: F811
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
    merged = one_batch(split, 3)
    fixed = {"__getitem__": lambda self, i: merged, "matches": split.batches.matches}
    whole.batches = type("Fixed", (), fixed)()
    found = []
    for trainer in (whole, split):
        for module in trainer.model.modules():
            module.training = False
        trainer.model.train = lambda mode=True: None
        trainer.optimizer.step = lambda: None
        trainer.step()
        found.append({n: p.grad for n, p in trainer.weights.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    heads = {n for n in split.weights if n.startswith("heads.")}
    assert bool(heads) == (kind != "kl") and heads <= found[0].keys()
    for name, gradient in found[0].items():
        assert float((gradient - found[1][name]).norm() / gradient.norm().clamp_min(1e-6)) < 1e-4, (
            name
        )
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
