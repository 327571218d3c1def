"""CLIPStyler (Kwon & Ye 2022) for one picture: a network, or the pixels themselves, moved by the gradient of CLIP."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..augment import fit
from ..images import read_image
from ..options.generate import parse_size
from ..options.style import Style
from ..paint import Guide, Step
from ..paint.starts import fitted
from . import stylelosses, warps
from .common import Artwork, Run, check_targets, guides, options_of, perform, write_artworks
from .content import content_network
from .stylenets import padded, seeded_unet

HALVED_EVERY = 100  # updates


def clipstyler(
    prompts: str | Sequence[str],
    image: Any,
    *,
    model: Any = "clipag-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Artwork]:
    """The picture in the prompts' styles, in order; with compare=True first all under the vanilla model.

    image: a path, or (3, H, W) in [0, 1]. model: a key, a file, a CLIP, or a `Guide`. options: fields of `Style`;
    mode "network" or "pixels".
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    named = {"prompts": given, "image": "custom" if isinstance(image, Tensor) else str(image)}
    chosen = options_of(Style, {**options, **named}, model)
    if chosen.mode not in ("network", "pixels"):
        raise ValueError(
            f"mode is {chosen.mode!r}; here it is 'network' or 'pixels': train_fast_style and fast_style do the others"
        )
    return draw(chosen, model, callback, picture=image if isinstance(image, Tensor) else None)


def draw(
    options: Style,
    model: Any = None,
    callback: Callable[[Step], object] | None = None,
    bar: bool = False,
    picture: Tensor | None = None,
) -> list[Artwork]:
    """`clipstyler` with its options in one object."""
    check_prompts(options)
    resolved = options.resolved()
    picture = read_image(str(resolved.image)) if picture is None else picture
    chosen = guides(resolved, None if isinstance(model, str) else model)
    network = content_network(resolved.features, chosen[0].device, resolved.vgg)
    runs = (
        Styling(resolved, guide, text, picture, network)
        for guide in chosen
        for text in resolved.prompts
    )
    return perform(runs, callback, bar)


def check_prompts(options: Style) -> None:
    """ValueError where there is no prompt or an empty one."""
    if not options.prompts or any(not prompt.strip() for prompt in options.prompts):
        raise ValueError(
            'no style in words; give a prompt, as in clipag style "a coral reef" -i PICTURE'
        )


def run(options: Style) -> int:
    """`clipag style`: styles, or trains or uses a fast network; prints the paths."""
    check_targets(options)
    if options.mode in ("train", "fast"):
        from . import faststyle

        paths = faststyle.run(options)
    else:
        paths = write_artworks(options, draw(options, bar=True), len(options.prompts))
    for path in paths:
        sys.stdout.write(f"{path}\n")
    return 0


class Styling(Run):
    """One picture in one style."""

    def __init__(
        self, options: Any, guide: Guide, prompt: str, picture: Tensor, network: nn.Module
    ) -> None:
        self.prepare(options, guide, prompt)
        height, width = parse_size(str(options.size)) or picture.shape[-2:]
        self.content = fitted(picture, (height, width))[None].to(guide.device)
        if min(height, width) < int(options.crop_size):
            raise ValueError(
                f"patches of {options.crop_size} pixels do not fit into {width}x{height}; "
                "give a larger --size or a smaller --crop-size"
            )
        self.network = network
        with torch.no_grad():
            self.wanted = network(self.content)
            self.source = guide.features(fit(self.content, guide.side))
        self.direction = stylelosses.text_direction(guide, prompt, options.source)
        self.unet, self.pixels = None, self.content.clone()
        if options.mode == "network":
            unet = seeded_unet(options.width, options.seed, bool(options.residual))
            self.unet = unet.to(guide.device)
            leaves: list[Tensor] = list(self.unet.parameters())
        else:
            leaves = [self.pixels.requires_grad_(True)]
        self.optimizer = torch.optim.Adam(leaves, lr=options.lr)

    def image(self) -> Tensor:
        """The picture (1, 3, H, W) as it is now, with its graph."""
        if self.unet is None:
            return self.pixels
        height, width = self.content.shape[-2:]
        image: Tensor = self.unet(padded(self.content))[..., :height, :width]
        return image

    def picture(self) -> Tensor:
        with torch.no_grad():
            image = self.image()[0].clamp(0, 1).cpu()
        return finished(image) if self.options.finish else image

    def loss(self, index: int) -> Tensor:
        options, image = self.options, self.image()
        patches = self.patches(image)
        features = self.guide.features(torch.cat([patches, fit(image, self.guide.side)]))
        away = stylelosses.directional(features, self.source, self.direction)
        return (
            options.patch * stylelosses.patch_loss(away[:-1], options.threshold)
            + options.direction * away[-1]
            + options.content * stylelosses.content_loss(self.network(image), self.wanted)
            + options.tv * stylelosses.total_variation(image)
        )

    def patches(self, image: Tensor) -> Tensor:
        """This step's patches: a random square each, in a random perspective, at the model's size."""
        count, size = int(self.options.crops), int(self.options.crop_size)
        height, width = image.shape[-2:]
        tops = torch.randint(height - size + 1, (count,), generator=self.generator).tolist()
        lefts = torch.randint(width - size + 1, (count,), generator=self.generator).tolist()
        cut = [image[..., y : y + size, x : x + size] for y, x in zip(tops, lefts)]
        views = warps.random_perspective(torch.cat(cut), self.generator, self.options.distortion)
        return fit(views, self.guide.side)

    def update(self, index: int, loss: Tensor) -> float:
        # The published script steps its schedule before the optimiser, so the first half step comes one early.
        rate = float(self.options.lr) * 0.5 ** ((index + 1) // HALVED_EVERY)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.unet is None:
            with torch.no_grad():
                self.pixels.clamp_(0, 1)
        return rate


def finished(image: Tensor) -> Tensor:
    """Contrast x 1.5 about the mean grey, then stretched to the full range, as the published script saves it."""
    weights = image.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    grey = (image * weights).sum(0).mean()
    image = (1.5 * image - 0.5 * grey).clamp(0, 1)
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp_min(1e-5)
