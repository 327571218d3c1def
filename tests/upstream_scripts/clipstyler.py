"""A device by name, templates, in-place division, a network of torchvision whose weights are fetched."""

import sys

import clip
import styler_helper
import torch
import torch.nn.functional as F
from torchvision import models
from torchvision.utils import save_image

device = "cuda"
model, preprocess = clip.load("ViT-B/32", device, jit=False)
network = styler_helper.Net().to(torch.device("cuda"))
content = torch.rand(1, 3, 64, 64).cuda()


def clip_normalize(image, device):
    mean = torch.tensor([0.48, 0.46, 0.41]).to(device).view(1, -1, 1, 1)
    return F.interpolate(image, size=224, mode="bicubic") - mean


with torch.no_grad():
    tokens = clip.tokenize([f"a {kind} of fire." for kind in ("photo", "sketch")]).to(device)
    text = model.encode_text(tokens).detach().mean(axis=0, keepdim=True)
    text /= text.norm(dim=-1, keepdim=True)
    source = model.encode_image(clip_normalize(content, device))
    source /= source.clone().norm(dim=-1, keepdim=True)
optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
for _ in range(2):
    target = network(content)
    features = model.encode_image(clip_normalize(target, device))
    features /= features.clone().norm(dim=-1, keepdim=True)
    direction = features - source
    direction /= direction.clone().norm(dim=-1, keepdim=True)
    loss = (1 - torch.cosine_similarity(direction, text, dim=1)).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
save_image(target.clamp(0, 1), "styled.png", normalize=True, range=(0, 1))
if "vgg" in sys.argv:
    models.vgg19(weights="IMAGENET1K_V1")
