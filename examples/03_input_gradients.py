"""What each model's gradient paints into a photograph: one step of steepest ascent towards a text, magnified."""

from pathlib import Path

from torch.nn import functional as F

import clipag_plug as clip
from clipag_plug.attacks import value_and_gradient
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.images import contact_sheet, write_image

photos = bundled_photos()
images = photos.pixels([0, 60, 120, 180, 240, 300], side=224)
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)

rows = [list(images)]
for name in ("clip-mini", "clipag-mini"):
    model, _ = clip.load(name)
    model.requires_grad_(False)
    text = model.encode_text(clip.tokenize("a photo of a goldfish"))

    def likeness(x, model=model, text=text):
        return F.cosine_similarity(model.encode_image(model.normalize(x)), text)

    values, gradient = value_and_gradient(likeness, images)
    scale = gradient.abs().flatten(1).quantile(0.995, dim=1).view(-1, 1, 1, 1)
    rows.append(list((gradient / scale / 2 + 0.5).clamp(0, 1)))
    print(name, "cosine with 'a goldfish':", [round(v, 2) for v in values.tolist()])

sheet = contact_sheet(rows, captions=["photographs", "vanilla gradients", "robust gradients"])
print(write_image(folder / "03_input_gradients.png", sheet))
