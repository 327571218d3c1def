"""VQGAN+CLIP: a weighted prompt on the bundled autoencoder, vanilla beside robust, and the picture's course."""

from pathlib import Path

from clipag_plug.images import contact_sheet, write_animation, write_image
from clipag_plug.pipelines import vqgan_clip

folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)

pictures = vqgan_clip("a lemon | a banana:-0.3", preset="demo", compare=True, steps=20, frames=10)
for picture in pictures:
    print(picture.model, "loss", round(picture.losses[0], 3), "->", round(picture.losses[-1], 3))
sheet = contact_sheet(
    [[picture.image for picture in pictures]], headings=[picture.model for picture in pictures]
)
print(write_image(folder / "07_vqgan_clip.png", sheet))
print(write_animation(folder / "07_vqgan_clip.webp", pictures[-1].frames))
