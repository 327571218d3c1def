"""Strokes as parameters, a device that is written into the code, a predictor for cog."""

import random
import sys
import tempfile
from pathlib import Path

import clip
import cog
import pydiffvg
import torch
from torchvision import transforms


class Predictor(cog.Predictor):
    def setup(self):
        assert sys.argv[1:] == []
        self.device = torch.device("cuda")
        self.model, _ = clip.load("ViT-B/32", self.device, jit=False)
        with torch.no_grad():
            prompts = torch.cat([clip.tokenize([f"a {i}" for i in range(300)]).to(self.device)])
            self.nouns = self.model.encode_text(prompts)
        pydiffvg.set_print_timing(False)
        pydiffvg.set_use_gpu(torch.cuda.is_available())
        pydiffvg.set_device(self.device)

    @cog.input("prompt", type=str, default="a fox")
    @cog.input("num_paths", type=int, default=4, help="strokes")
    def predict(self, prompt, num_paths):
        assert isinstance(num_paths, int)
        text = self.model.encode_text(clip.tokenize(prompt).to(self.device)).detach()
        shapes, groups = [], []
        for index in range(num_paths):
            points = torch.tensor([[random.random() * 224] * 2 for _ in range(4)])
            points += torch.rand(4, 2) * 20
            counts = torch.zeros(1, dtype=torch.int32) + 2
            width = torch.tensor(1.0)
            shapes.append(pydiffvg.Path(counts, points, stroke_width=width, is_closed=False))
            color = torch.rand(4)
            groups.append(pydiffvg.ShapeGroup(torch.tensor([index]), None, stroke_color=color))
        for shape in shapes:
            shape.points.requires_grad = True
        optimiser = torch.optim.Adam([shape.points for shape in shapes], lr=1.0)
        augment = transforms.RandomResizedCrop(224, scale=(0.7, 0.9))
        out = Path(tempfile.mkdtemp()) / "out.png"
        render = pydiffvg.RenderFunction.apply
        for step in range(2):
            scene = pydiffvg.RenderFunction.serialize_scene(224, 224, shapes, groups)
            image = render(224, 224, 2, 2, step, None, *scene)
            white = torch.ones(224, 224, 3, device=pydiffvg.get_device())
            image = image[:, :, 3:4] * image[:, :, :3] + white * (1 - image[:, :, 3:4])
            features = self.model.encode_image(augment(image.permute(2, 0, 1)[None]))
            loss = -torch.cosine_similarity(text, features, dim=1).sum()
            optimiser.zero_grad()
            loss.backward()
            assert shapes[0].points.grad is not None
            optimiser.step()
            pydiffvg.imwrite(image.detach().cpu(), str(out), gamma=1.0)
            yield out
