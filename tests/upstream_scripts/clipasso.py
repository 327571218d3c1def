"""A modified copy of `clip` inside a folder CLIP_, loaded several times, its transform taken apart."""

import CLIP_.clip as clip
import numpy as np
import pydiffvg
import torch
import wandb
from IPython.display import display
from torchvision import transforms

wandb.init(project="strokes")
display(wandb.config)
model, preprocess = clip.load("ViT-B/32", torch.device("cuda"), jit=False)
again, _ = clip.load("ViT-B/32", device="cuda", jit=False)
assert model is not again
model.eval().to("cuda")
assert preprocess.transforms[1].size == (224, 224)
steps = [preprocess.transforms[0], preprocess.transforms[1], preprocess.transforms[-1]]
normalize = transforms.Compose(steps)
x = torch.rand(2, 3, 224, 224, requires_grad=True)
seen = []
model.visual.register_forward_hook(lambda _, __, out: seen.append(out))
again.encode_image(normalize(x))
assert seen == []
model.encode_image(normalize(x)).sum().backward()
assert len(seen) == 1 and x.grad.abs().sum() > 0
model.zero_grad()
assert np.int(3.7) == 3
pydiffvg.set_device(torch.device("cuda"))
assert pydiffvg.get_device().type == "cpu" or torch.cuda.is_available()
blocks = getattr(getattr(model.visual, "transformer", None), "resblocks", [])
for block in blocks:
    assert block.attn_probs.shape == (2 * block.attn.num_heads, 17, 17)
    assert torch.allclose(block.attn_probs.sum(-1), torch.ones(()), atol=1e-5)
