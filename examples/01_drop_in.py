"""CLIP's own example code with one import changed, on a photograph that ships with the package."""

import torch

import clipag_plug as clip  # was: import clip
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.images import to_pil

device = "cuda" if torch.cuda.is_available() else "cpu"
model, preprocess = clip.load("clipag-mini", device=device)

photograph = to_pil(bundled_photos().pixels([0])[0])
image = preprocess(photograph).unsqueeze(0).to(device)
text = clip.tokenize(["an Egyptian cat", "a school bus", "a lemon"]).to(device)

with torch.no_grad():
    logits_per_image, logits_per_text = model(image, text)
    probabilities = logits_per_image.softmax(dim=-1).cpu().numpy()

print("label probabilities:", probabilities.round(3))
