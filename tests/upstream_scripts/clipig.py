"""Everything by keyword, the names of the models in a help text, the last step alone."""

import argparse

import clip
import torch
from torchvision import transforms

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="ViT-B/32", help=f"one of {clip.available_models()}")
args = parser.parse_args()
assert args.model in clip.available_models()
model, preprocess = clip.load(name=args.model, device="cuda")
device = model.logit_scale.device
pixels = preprocess.transforms[-1](torch.rand(1, 3, 224, 224)).to(device)
preprocess.transforms = [preprocess.transforms[-1]]
assert torch.allclose(
    preprocess(torch.zeros(3, 224, 224)), preprocess.transforms[0](torch.zeros(3, 224, 224))
)
assert (
    model.encode_image(pixels).shape == model.encode_text(clip.tokenize(["a fox"]).to(device)).shape
)
assert (
    transforms.RandomAffine(degrees=0, scale=(1, 1), fillcolor=None)(pixels).shape == pixels.shape
)
