"""CLIPDraw: strokes towards a sentence under the vanilla and the robust model; a sheet, an SVG and an animation."""

from pathlib import Path

from clipag_plug.images import contact_sheet, write_animation, write_image
from clipag_plug.pipelines import clipdraw

PROMPTS = ["a goldfish"]
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)

drawings = clipdraw(PROMPTS, preset="demo", compare=True, steps=30, strokes=48, frames=12)
for drawing in drawings:
    print(drawing.model, "loss", round(drawing.losses[0], 3), "->", round(drawing.losses[-1], 3))
sheet = contact_sheet(
    [[drawing.image for drawing in drawings]], headings=[drawing.model for drawing in drawings]
)
print(write_image(folder / "06_clipdraw.png", sheet))
print(drawings[-1].save(folder / "06_clipdraw.svg"))
print(write_animation(folder / "06_clipdraw.webp", drawings[-1].frames))
