"""CLIPStyler (Kwon & Ye 2022) for one picture: a network, or the pixels themselves, moved by the gradient of CLIP."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..augment import fit, random_perspective
from ..guide import Guide
from ..images import read_image
from ..options.generate import parse_size
from ..options.style import Style
from ..paint.objective import parse_prompt
from ..paint.results import Step, Synthesis
from ..paint.starts import fitted
from .run import Run, command, descend, guides, options_of, perform
from .stylenets import UNet, content_network, padded

HALVED_EVERY = 100  # updates
LIMIT = 2048  # pixels of the longer side of a result
LONGEST = 4  # times the shorter side, of what is styled


def clipstyler(
    prompts: str | Sequence[str],
    image: Any,
    *,
    model: Any = "clipag-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Synthesis]:
    """A picture in the prompts' styles (CLIPStyler, Kwon & Ye 2022).

    Args:
        prompts: one style or several; 'fire | fog:-0.3' has weights.
        image: a path, or (3, H, W) in [0, 1].
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        callback: called with each `Step`.
        options: fields of `Style`; with compare=True the pictures under the vanilla model come first.
    Raises: ValueError for options that make no sense, FileNotFoundError for a picture that is not there.
    """
    given = image if isinstance(image, Tensor) else None
    options["image"] = str(image) if given is None else "custom"
    chosen = options_of(Style, prompts, model, options)
    return perform(chosen, maker(chosen, given), guides(chosen, model), callback)


def run(options: Style) -> int:
    """`clipag style`."""
    return command(options, maker(options))


def maker(options: Style, image: Tensor | None = None) -> Callable[[Any, Guide, str], Styling]:
    """`Styling` of the picture that the options name, unless one is given."""
    picture = read_image(str(options.image)) if image is None else image
    network = functools.cache(lambda device: content_network(options.features, device, options.vgg))
    return lambda job, guide, prompt: Styling(job, guide, prompt, picture, network(guide.device))


class Styling(Run):
    """One picture (3, H, W) in one style. network: what measures content."""

    def __init__(
        self, options: Any, guide: Guide, prompt: str, picture: Tensor, network: nn.Module
    ) -> None:
        super().__init__(options, guide, prompt)
        self.steps, self.network = int(options.steps), network
        size, self.whole = sizes(options, picture)
        self.content = fitted(picture, size)[None].to(guide.device)
        if min(size) < options.crop_size:
            raise ValueError(
                f"patches of {options.crop_size} pixels do not fit into {size[1]}x{size[0]}; "
                "give a larger --size or a smaller --crop-size"
            )
        # By the very operations that the loss will take, so that an unchanged picture has distance 0.
        self.wanted = [each.detach() for each in network(self.content.clone().requires_grad_())]
        with torch.no_grad():
            self.source = guide.features(fit(self.content, guide.side))
        self.direction = text_direction(guide, prompt, options.source)
        self.unet, self.pixels = None, self.content.clone().requires_grad_(True)
        leaves: list[Tensor] = [self.pixels]
        if options.mode == "network":
            self.unet = UNet.seeded(options.width, options.seed, options.residual).to(guide.device)
            leaves = [*self.unet.parameters()]
        self.optimizer = torch.optim.Adam(leaves, lr=options.lr)

    def image(self) -> Tensor:
        """The picture (1, 3, H, W) as it is now, with its graph."""
        if self.unet is None:
            return self.pixels
        height, width = self.content.shape[-2:]
        return self.unet(padded(self.content))[..., :height, :width]

    @torch.no_grad()
    def picture(self) -> Tensor:
        return self._finished(self.image()[0].cpu())

    @torch.no_grad()
    def result(self) -> Synthesis:
        """At the picture's own size: the change is enlarged and added to it, so that its details stay."""
        work = super().result()
        if self.whole is None:
            return work
        change = self.image() - self.content
        change = F.interpolate(change, self.whole.shape[-2:], mode="bicubic")[0].cpu()
        return dataclasses.replace(work, image=self._finished(self.whole + change))

    def _finished(self, image: Tensor) -> Tensor:
        image = image.clamp(0, 1)
        return finished(image) if self.options.finish else image

    def loss(self, index: int) -> Tensor:
        """Patches, the whole picture's direction, content and total variation (equations 1 to 5)."""
        options, image = self.options, self.image()
        patches = self.patches(image)
        features = self.guide.features(torch.cat([patches, fit(image, self.guide.side)]))
        # 1 - cosine of each picture's step from the source with the text's.
        away = 1 - F.cosine_similarity(features - self.source, self.direction, dim=1)
        content = [F.mse_loss(a, b) for a, b in zip(self.network(image), self.wanted, strict=True)]
        return (
            options.patch * patch_loss(away[:-1], options.threshold)
            + options.direction * away[-1]
            + options.content * torch.stack(content).sum()
            + options.tv * total_variation(image)
        )

    def patches(self, image: Tensor) -> Tensor:
        """This step's patches: a random square each, in a random perspective, at the model's size."""
        count, size = int(self.options.crops), int(self.options.crop_size)
        height, width = image.shape[-2:]
        tops = torch.randint(height - size + 1, (count,), generator=self.generator).tolist()
        lefts = torch.randint(width - size + 1, (count,), generator=self.generator).tolist()
        cut = [image[..., y : y + size, x : x + size] for y, x in zip(tops, lefts)]
        views = random_perspective(torch.cat(cut), self.generator, self.options.distortion)
        return fit(views, self.guide.side)

    def update(self, index: int, loss: Tensor) -> float:
        # The published script steps its schedule before the optimiser, so the first half step comes one early.
        rate = float(self.options.lr) * 0.5 ** ((index + 1) // HALVED_EVERY)
        self.optimizer.param_groups[0]["lr"] = rate
        descend(loss, [self.optimizer])
        if self.unet is None:
            with torch.no_grad():
                self.pixels.clamp_(0, 1)
        return rate


def sizes(options: Any, picture: Tensor) -> tuple[tuple[int, int], Tensor | None]:
    """(H, W) to style a picture at, and the picture at the size of the result where that is larger.
    --size is both. Without it the shorter side is --side, the longer one at most LONGEST times that, and the result has
    the picture's own size, its longer side at most LIMIT."""
    given = parse_size(options.size or "")
    if given:
        return given, None
    height, width = picture.shape[-2:]
    short, long = min(height, width), max(height, width)
    scale, most = min(options.side / short, LONGEST * options.side / long), min(1, LIMIT / long)
    size, own = ((round(height * by), round(width * by)) for by in (scale, most))
    return size, fitted(picture, own) if max(own) > max(size) else None


@functools.cache
def templates() -> tuple[str, ...]:
    """The 79 sentences that a text is put into (OpenAI's for ImageNet, MIT licence; see templates.json)."""
    text = resources.files(__package__).joinpath("templates.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["templates"])


def text_direction(guide: Guide, prompt: str, source: str = "a Photo") -> Tensor:
    """The unit vector (1, D) from the source's to the prompt's mean over the templates; weighted parts are summed.
    source: "" for the origin. It suits a model that knows no word for a photograph in general and whose features lie
    around the origin, as the bundled ones' do; there "a Photo" is as far from the middle as any class.
    Raises: ValueError where both are the same to the model, as a text of words that a small one does not know."""

    @torch.no_grad()
    def mean(text: str) -> Tensor:
        guide.texts([text])  # says what is wrong with an empty or an overlong one
        tokens = guide._tokenize([form.format(text) for form in templates()]).to(guide.device)
        return F.normalize(guide.model.encode_text(tokens).float().mean(0, True), dim=-1)

    start = mean(source) if source else torch.zeros(())
    parts = (weight * (mean(text) - start) for text, weight in parse_prompt(prompt))
    step = sum(parts, torch.zeros(()))
    if float(step.norm()) < 1e-4:
        raise ValueError(
            f"{guide.name} does not tell {prompt!r} from {source!r}; use words it knows (model.vocabulary)"
        )
    return F.normalize(step, dim=-1)


def patch_loss(values: Tensor, threshold: float) -> Tensor:
    """Mean of directional losses (N,), those below the threshold counted as 0."""
    return torch.where(values < threshold, 0.0, values).mean()


def total_variation(images: Tensor) -> Tensor:
    """The sum of the L2 norms of the differences along the axes and both diagonals."""
    right = images[..., :-1] - images[..., 1:]
    below = images[..., :-1, :] - images[..., 1:, :]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    return right.norm() + below.norm() + rising.norm() + falling.norm()


def finished(image: Tensor) -> Tensor:
    """Contrast x 1.5 about the mean grey, then stretched to the full range, as the published script saves it."""
    weights = image.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    grey = (image * weights).sum(0).mean()
    image = (1.5 * image - 0.5 * grey).clamp(0, 1)
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp_min(1e-5)
