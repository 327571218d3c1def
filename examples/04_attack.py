"""Zero-shot accuracy of both models on bundled photographs, clean and under one and the same attack."""

import torch
from torch.nn import functional as F

import clipag_plug as clip
from clipag_plug.attacks import pgd
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.vocabulary import bundled_vocabulary

photos, names = bundled_photos(), bundled_vocabulary().class_names
rows = torch.arange(0, len(photos), 5)
images, labels = photos.pixels(rows, side=224), photos.labels[rows]

for name in ("clip-mini", "clipag-mini"):
    model, _ = clip.load(name)
    model.requires_grad_(False)
    prompts = F.normalize(
        model.encode_text(clip.tokenize([f"a photo of a {n}" for n in names])), dim=-1
    )

    def scores(x, model=model, prompts=prompts):
        return 100 * F.normalize(model.encode_image(model.normalize(x)), dim=-1) @ prompts.T

    def loss(x, scores=scores):
        return F.cross_entropy(scores(x), labels, reduction="none")

    attacked = pgd(loss, images, eps=1.5, norm="l2", steps=10)
    clean = (scores(images).argmax(1) == labels).float().mean()
    robust = (scores(attacked).argmax(1) == labels).float().mean()
    print(
        f"{name}: clean {clean:.1%}, under PGD-10 with L2 1.5 {robust:.1%}, of {len(rows)} photographs"
    )
