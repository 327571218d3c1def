"""`preprocess` and `tokenize`: OpenAI's steps, shapes, types and errors (points 8 and 9 of the contract)."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contract_helpers import model, picture, tiny_224
from PIL import Image
from torch import Tensor

import clipag_plug as clip
from clipag_plug.model import CLIP


def test_point_8_preprocess_has_openais_five_steps() -> None:
    _, preprocess = clip.load("clipag", "cpu")
    resize, crop, _, _, normalize = preprocess.transforms
    assert len(preprocess.transforms) == 5
    assert resize.size == 224 and crop.size == (224, 224)
    assert str(resize.interpolation.value) == "bicubic"
    assert normalize.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_point_8_preprocess_takes_any_picture(mode: str, picture: Path) -> None:
    _, preprocess = clip.load("clipag", "cpu")
    image = Image.open(picture).convert(mode)
    output = preprocess(image)
    assert output.shape == (3, 224, 224) and output.dtype == torch.float32
    pixels = np.asarray(
        image.resize((280, 224), Image.Resampling.BICUBIC).crop((28, 0, 252, 224)).convert("RGB")
    )
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(getattr(preprocess.transforms[-1], key)) for key in ("mean", "std"))
    assert torch.allclose(output, (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)


def test_point_8_preprocess_takes_tensors_and_keeps_their_gradient(photos: Tensor) -> None:
    _, preprocess = clip.load("clipag", "cpu")
    x = torch.rand(2, 3, 250, 300, requires_grad=True)
    output = preprocess(x)
    assert output.shape == (2, 3, 224, 224)
    assert torch.autograd.grad(output.sum(), x)[0].abs().sum() > 0
    assert torch.allclose(preprocess(photos), preprocess.transforms[-1](photos))
    assert preprocess(torch.rand(1, 224, 224)).shape == (3, 224, 224)
    byte = (photos[0] * 255).round().to(torch.uint8)
    assert torch.allclose(preprocess(byte), preprocess(byte.float() / 255), atol=1e-6)


def test_point_8_the_list_of_steps_is_an_ordinary_list(photos: Tensor) -> None:
    import pickle

    from torchvision import transforms

    _, preprocess = clip.load("clipag", "cpu")
    head_and_tail = transforms.Compose(preprocess.transforms[:2] + preprocess.transforms[4:])
    assert torch.allclose(head_and_tail(photos), preprocess(photos))
    assert torch.allclose(pickle.loads(pickle.dumps(preprocess))(photos), preprocess(photos))
    preprocess.transforms[0] = transforms.Resize(64)
    preprocess.transforms.insert(0, transforms.RandomHorizontalFlip(0.0))
    assert len(preprocess.transforms) == 6
    assert len(clip.load("clipag", "cpu")[1].transforms) == 5


def test_point_9_tokenize_gives_int32_rows_and_raises_on_long_texts(model: CLIP) -> None:
    assert clip.tokenize("a cat").dtype == torch.int32
    assert clip.tokenize(["a", "b"]).shape == (2, model.context_length)
    with pytest.raises(RuntimeError, match="too long for context length 77"):
        clip.tokenize("cat " * 100)
    assert clip.tokenize("cat " * 100, truncate=True)[0, -1] == 49407
    assert torch.equal(
        model.encode_text(clip.tokenize("a")), model.encode_text(clip.tokenize("a").long())
    )
