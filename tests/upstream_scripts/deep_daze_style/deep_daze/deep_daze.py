"""The part of the package that paints."""

import torch

from .clip import load, tokenize


class Imagine:
    def __init__(self, text):
        perceptor, self.normalize = load("ViT-B/32", jit=False, device="cuda")
        for parameter in perceptor.parameters():
            parameter.requires_grad = False
        assert perceptor.visual.input_resolution == 224 and perceptor.context_length == 77
        self.perceptor, self.tokens = perceptor, tokenize(text).cuda()

    def __call__(self):
        image = torch.rand(2, 3, 224, 224, device="cuda", requires_grad=True)
        with torch.autocast("cpu", enabled=False):
            features = self.perceptor.encode_image(self.normalize(image))
        text = self.perceptor.encode_text(self.tokens)
        (-100 * torch.cosine_similarity(text, features).mean()).backward()
        assert image.grad.abs().sum() > 0
        print("imagined")
