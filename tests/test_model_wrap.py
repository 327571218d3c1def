"""A model of OpenAI's or open_clip's that is handed in keeps its weights and features; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from model_helpers import ARCHITECTURES, inputs, open_clip_model
from openai_clip import original
from torch import nn

from clipag_plug.model import wrap


def test_an_openai_model_handed_in_is_wrapped_on_its_own_weights() -> None:
    theirs = original()
    theirs.ln_final.weight.requires_grad_(False)
    ours = wrap(theirs)
    image, tokens = inputs(ours)
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-4)
    assert torch.allclose(ours.encode_text(tokens), theirs.encode_text(tokens), atol=1e-4)
    assert ours.visual.proj.data_ptr() == theirs.visual.proj.data_ptr()
    assert not ours.ln_final.weight.requires_grad and ours.visual.proj.requires_grad


@pytest.mark.parametrize("name", ["vit", "custom text", "residual network"])
def test_an_open_clip_model_handed_in_is_wrapped_as_it_is(name: str) -> None:
    theirs = open_clip_model(ARCHITECTURES[name])
    ours = wrap(theirs, name="mine")
    image, tokens = inputs(ours)
    assert torch.equal(ours.encode_image(image), theirs.encode_image(image))
    assert torch.equal(ours.encode_text(tokens), theirs.encode_text(tokens))
    assert ours.visual is theirs.visual and ours.name == "mine" and not ours.training
    assert wrap(ours) is ours


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is no CLIP"):
        wrap(nn.Linear(2, 2))
