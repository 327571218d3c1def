"""A model of OpenAI's or open_clip's that is handed in keeps its weights and features; anything else is refused."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from model_helpers import ARCHITECTURES, inputs, open_clip_model
from torch import Tensor, nn

from clipag_plug.model import wrap


class OpenAIBlocks(nn.Module):
    """Pre-norm attention blocks in OpenAI's form: a Sequential, (L, N, D), the mask inside."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
            super().__init__()

            class QuickGELU(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    return x * torch.sigmoid(1.702 * x)

            self.attn = nn.MultiheadAttention(width, heads)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU())]
            self.mlp = nn.Sequential(OrderedDict([*parts, ("c_proj", nn.Linear(4 * width, width))]))
            self.mask = mask

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
            return x + self.mlp(self.ln_2(x))

    def __init__(self, width: int, heads: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(self.Block(width, heads, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class OpenAIVisual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = 64, 32
        self.conv1 = nn.Conv2d(3, 64, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(64))
        self.positional_embedding = nn.Parameter(torch.randn(17, 64))
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = OpenAIBlocks(64, 2, 2)
        self.proj = nn.Parameter(torch.randn(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.class_embedding.expand(len(x), 1, 64), patches], 1)
            + self.positional_embedding
        )
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIModel(nn.Module):
    """A model with the attributes of OpenAI's `clip`, tiny."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.full((77, 77), float("-inf")).triu(1)
        self.visual = OpenAIVisual()
        self.transformer = OpenAIBlocks(16, 2, 2, mask)
        self.token_embedding = nn.Embedding(49408, 16)
        self.positional_embedding = nn.Parameter(torch.randn(77, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.randn(16, 32))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(text) + self.positional_embedding))
        return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection


def test_an_openai_model_handed_in_is_wrapped_on_its_own_weights() -> None:
    torch.manual_seed(0)
    theirs = OpenAIModel()
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
