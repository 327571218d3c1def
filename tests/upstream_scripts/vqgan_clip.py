"""The clone of openai/CLIP as a folder, command-line flags, a module found beside the script."""

import argparse
import sys

sys.path.append("taming-transformers")

import torch
from CLIP import clip
from pytorch_lightning.utilities.distributed import rank_zero_only
from torch._six import string_classes
from torch.nn import functional as F
from torchvision import transforms

parser = argparse.ArgumentParser()
parser.add_argument("-p", "--prompts")
parser.add_argument("-m", "--model", default="ViT-B/32")
parser.add_argument("-cd", "--cuda_device", default="cuda:0")
args = parser.parse_args()
assert args.prompts == "a fox:1 | a dog" and isinstance("text", string_classes)
assert rank_zero_only(lambda: 3)() == 3

device = torch.device(args.cuda_device)
perceptor = clip.load(args.model, jit=False)[0].eval().requires_grad_(False).to(device)
size = perceptor.visual.input_resolution
assert isinstance(size, int) and isinstance(perceptor.visual.output_dim, int)
embeds = [
    perceptor.encode_text(clip.tokenize(p).to(device)).float() for p in args.prompts.split("|")
]
z = torch.rand(1, 3, 64, 64, device=device).requires_grad_(True)
checkpoint = torch.load("checkpoint.ckpt", map_location="cpu")
assert list(checkpoint["state_dict"]) == ["w"]
normalize = transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
optimiser = torch.optim.Adam([z], lr=0.1)
for _ in range(2):
    cutouts = (F.adaptive_avg_pool2d(z, size) + F.adaptive_max_pool2d(z, size)) / 2
    features = F.normalize(
        perceptor.encode_image(normalize(cutouts.repeat(4, 1, 1, 1))).float(), dim=1
    )
    loss = sum(
        (features - F.normalize(e, dim=1)).norm(dim=1).div(2).arcsin().pow(2).mul(2).mean()
        for e in embeds
    )
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    with torch.inference_mode():
        z.copy_(z.clamp(0, 1))
print("done", z.device.type)
