"""The same words and seeds under the vanilla and the robust model: one sheet, vanilla above."""

from pathlib import Path

import clipag_plug
from clipag_plug.images import contact_sheet, write_image

PROMPTS = ["a goldfish", "a lemon", "a school bus", "a jellyfish", "a king penguin", "a brown bear"]
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)

rows = []
for model in ("clip-mini", "clipag-mini"):
    pictures = clipag_plug.synthesize(PROMPTS, model=model, seed=0, steps=60)
    rows.append([picture.image for picture in pictures])
    print(model, "mean loss", round(sum(p.loss for p in pictures) / len(pictures), 3))

sheet = contact_sheet(rows, captions=["vanilla", "robust"], headings=PROMPTS)
print(write_image(folder / "02_text_to_image.png", sheet))
