"""The two logits of the model itself, a picture in [-1, 1] brought to 224, an old argument of save_image."""

import os

import clip
import torch
import torchvision
from PIL import Image

model, _ = clip.load("ViT-B/32", device="cuda")
text = torch.cat([clip.tokenize("a person with purple hair")]).cuda()
latent = torch.rand(1, 3, 64, 64, device="cuda").requires_grad_()
upsample, pool = torch.nn.Upsample(scale_factor=7), torch.nn.AvgPool2d(kernel_size=2)
loss = (1 - model(pool(upsample(latent * 2 - 1)), text)[0] / 100).mean()
loss.backward()
assert latent.grad is not None
torchvision.utils.save_image(latent.detach(), "result.jpg", normalize=True, range=(-1, 1))
Image.open("result.jpg").resize((32, 32), Image.ANTIALIAS)
os.makedirs("results", exist_ok=True)
assert model.encode_text(text).detach().cpu().numpy().dtype == "float32"
