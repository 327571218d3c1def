"""A second model that nobody asked for, the list of steps cut and joined, a picture of PIL."""

import clip
import torch
from PIL import Image
from torchvision import transforms


class Loss(torch.nn.Module):
    def __init__(self, device):
        super().__init__()
        self.model, steps = clip.load("ViT-B/32", device=device)
        self.model_cnn, _ = clip.load("RN50", device=device)
        self.model.requires_grad_(False)
        self.preprocess = transforms.Compose(
            [transforms.Normalize([-1.0] * 3, [2.0] * 3)]
            + steps.transforms[:2]
            + steps.transforms[4:]
        )
        self.picture = steps(Image.new("RGB", (300, 200))).unsqueeze(0).to(device)

    def forward(self, image, words):
        tokens = clip.tokenize(words).to("cuda")
        return self.model(self.preprocess(image), tokens)[0] / 100


loss = Loss("cuda")
assert loss(torch.rand(2, 3, 256, 256).cuda() * 2 - 1, ["a dog", "a cat"]).shape == (2, 2)
assert loss.model.encode_image(loss.picture).shape[0] == 1
