"""CLIPStyler: a bundled photograph in the style of a sentence, by a network and by its pixels."""

from pathlib import Path

from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.images import contact_sheet, write_image
from clipag_plug.paint.starts import fitted
from clipag_plug.pipelines import clipstyler

STYLE = "a coral reef"
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
photo = fitted(bundled_photos().pixels([0])[0], (64, 64))
quick = {"preset": "demo", "size": "64", "crop_size": 32, "crops": 8, "steps": 10}

pictures = [photo]
for mode in ("network", "pixels"):
    pictures.append(clipstyler(STYLE, photo, mode=mode, **quick)[0].image)
sheet = contact_sheet([pictures], headings=["photograph", "network", "pixels"])
print(write_image(folder / "08_clipstyler.png", sheet))
