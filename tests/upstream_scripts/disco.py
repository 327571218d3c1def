"""Names in a loop, what the model is asked for its side, open_clip's models beside OpenAI's."""

import open_clip
import torch
from CLIP import clip
from taming_like import LPIPS

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
models = [
    clip.load(name, jit=False)[0].eval().requires_grad_(False).to(device)
    for name in ("ViT-B/32", "ViT-B/16", "RN50")
]
extra, _, _ = open_clip.create_model_and_transforms("ViT-B-32", pretrained="laion2b_s34b_b79k")
models.append(extra.eval().requires_grad_(False).to(device))
for model in models:
    try:
        side = model.visual.input_resolution
    except AttributeError:
        side = 224
    text = model.encode_text(clip.tokenize("a fox").to(device)).float()
    assert (
        model.encode_image(torch.rand(2, 3, side, side, device=device)).float().shape[1]
        == text.shape[1]
    )
assert LPIPS
