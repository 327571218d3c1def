"""The two losses by which differentiable renderers are guided: towards words, and towards a picture.

Both take pictures (N, 3, H, W) in [0, 1] of any renderer and any image tower of the package. They own no weights, leave
no hooks, and draw their views from a seed and the number of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..augment import fit, random_perspective, random_resized_crops, resample, uniform

Texts = str | Sequence[str | tuple[str, float]] | Mapping[str, float]
Numbers = (
    int | torch.Generator | None
)  # of a step: its number, where to draw from, or None for the next one
DISTANCES = ("l2", "l1", "cosine")


class _Guided(nn.Module):
    """A loss with a model that is not its own, and views of a seed."""

    fill: Tensor
    text_features: Tensor
    weights: Tensor

    def __init__(
        self,
        model: Any,
        views: int,
        fill: Any,
        seed: int,
        distortion: float,
        crop: tuple[float, float],
    ) -> None:
        super().__init__()
        if not hasattr(model, "encode_image") and not hasattr(model, "texts"):
            raise ValueError(f"{model!r:.80} is no model; give a CLIP of clip.load, or a Guide")
        self._model = (
            model,
        )  # not a part: its weights are neither this loss's state nor to be trained with it
        if not isinstance(views, int) or views < 0:
            raise ValueError(f"views is {views!r}; give 0 for the whole picture alone, or more")
        if not (0 < crop[0] <= crop[1] <= 1 and 0 <= distortion <= 1):
            raise ValueError(
                f"crop is {crop} and distortion {distortion}; they must be shares from 0 to 1"
            )
        self.views, self.seed, self.steps, self.distortion = views, seed, 0, distortion
        colour = [fill] if isinstance(fill, float | int) else fill
        if len(colour) not in (1, 3) or not all(0 <= value <= 1 for value in map(float, colour)):
            raise ValueError(f"fill is {fill!r}; give one grey or three colours in [0, 1]")
        colour = torch.tensor([float(value) for value in colour], dtype=torch.float32)
        self.register_buffer("fill", colour.view(-1, 1, 1), persistent=False)

    @property
    def model(self) -> Any:
        """The model that judges; its weights are left as they are."""
        return self._model[0]

    def _generator(self, step: Numbers) -> torch.Generator:
        if isinstance(step, torch.Generator):
            return step
        if step is None:
            step, self.steps = self.steps, self.steps + 1
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def _warped(self, views: Tensor, generator: torch.Generator) -> Tensor:
        """Random perspectives, `fill` around them: what is warped, black around, is the distance from that colour."""
        fill = self.fill.to(views)
        return random_perspective(views - fill, generator, self.distortion) + fill


class SemanticLoss(_Guided):
    """Distance of random views of pictures from texts (CLIPDraw; Frans et al. 2021): mean over views of
    sum_p w_p (1 - cos(view, p)) + sum_n w_n cos(view, n).

    Args:
        model: a `CLIP` of this package, or a `Guide`, which has a precision, and views of the tower's own size.
        prompts, negatives: a text, texts, or texts with weights; a negative weighs 0.3 unless it says otherwise.
        views: views of each picture; 0 takes the whole picture once.
        distortion: of the perspective, 0 to 1. crop: least and greatest share of the area.
        fill: colour around a warped picture, one number or three, in [0, 1].
        normalize: whether views get the model's normalisation (the notebook of CLIPDraw leaves it out).
        seed: of the views.

    Raises:
        ValueError: no prompts, a fill that is no colour, or pictures that are none.
        RuntimeError: a text that is too long for the model.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: Any,
        prompts: Texts,
        *,
        negatives: Texts = (),
        views: int = 4,
        distortion: float = 0.5,
        crop: tuple[float, float] = (0.7, 0.9),
        fill: float | Sequence[float] = 1.0,
        normalize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model, views, fill, seed, distortion, crop)
        self.crop, self.normalize = crop, normalize
        positive, negative = _weighted(prompts, 1.0), _weighted(negatives, 0.3)
        if not positive:
            raise ValueError("no prompts; give a text, a list of texts, or texts with weights")
        self._guide = hasattr(model, "texts")
        texts = [text for text, _ in positive + negative]
        with torch.no_grad():
            if self._guide:
                features = model.texts(texts)
            else:
                tokens = model.tokenize(texts).to(model.logit_scale.device)
                features = F.normalize(model.encode_text(tokens).float(), dim=-1)
        weights = [weight for _, weight in positive] + [-weight for _, weight in negative]
        self.register_buffer("text_features", features, persistent=False)
        self.register_buffer("weights", torch.tensor(weights).to(features), persistent=False)
        self.constant = sum(weight for _, weight in positive)

    def draw(self, images: Tensor, step: Numbers = None) -> Tensor:
        """The views (N * views, 3, R, R) of a step."""
        side = self.model.side if self._guide else self.model.visual.input_resolution
        generator, images = self._generator(step), _checked("images", images)
        if not self.views:
            return fit(images, side)
        views = images[:, None].expand(-1, self.views, -1, -1, -1).flatten(0, 1)
        views = self._warped(views, generator)
        return random_resized_crops(views, generator, side, *self.crop)

    def scores(self, images: Tensor, step: Numbers = None) -> Tensor:
        """sum_p w_p cos(view, p) - sum_n w_n cos(view, n) of each view, (N * views,)."""
        views = self.draw(images, step)
        if self._guide:
            features = self.model.features(views, normalize=self.normalize)
        else:
            views = self.model.normalize(views) if self.normalize else views
            features = F.normalize(self.model.encode_image(views).float(), dim=-1)
        return features @ self.text_features.to(features).T @ self.weights.to(features)

    def forward(self, images: Tensor, step: Numbers = None) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> a number."""
        return self.constant - self.scores(images, step).mean()


class VisualLoss(_Guided):
    """Distance of pictures from a target in layers and features of an image tower (CLIPasso; Vinker et al. 2022).

    Args:
        model: a `CLIP` of this package.
        target: (1, 3, H, W) in [0, 1], or one for each picture.
        layers: names of `model.layers`, or names with weights; None: two in the middle of the tower.
        distance: "l2" (mean square), "l1", or "cosine" over the channels at each place.
        semantic: weight of 1 - cosine of the final features.
        views: views beside the whole pictures, the same for picture and target.
        distortion, crop: of the perspective, and least share of the area. fill: colour around a warped picture.
        blur: standard deviation, in pixels, of a Gaussian that both are blurred with first.
        seed: of the views.

    Raises:
        ValueError: an unknown distance or layer, or a target that is no picture.
    """

    target: Tensor

    @torch.inference_mode(False)
    def __init__(
        self,
        model: Any,
        target: Tensor,
        *,
        layers: Mapping[str, float] | Sequence[str] | None = None,
        distance: str = "l2",
        semantic: float = 0.1,
        views: int = 4,
        distortion: float = 0.5,
        crop: float = 0.8,
        fill: float | Sequence[float] = 0.0,
        blur: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, views, fill, seed, distortion, (crop, 1.0))
        if distance not in DISTANCES:
            raise ValueError(f"distance is {distance!r}; it must be one of {', '.join(DISTANCES)}")
        target = _checked("target", target)
        if float(target.min()) < -0.01 or float(target.max()) > 1.01:
            low, high = float(target.min()), float(target.max())
            raise ValueError(
                f"target has values from {low:.3g} to {high:.3g}; they must be in [0, 1]"
            )
        blocks = model.layers[:-1]
        middle = (blocks[max(0, len(blocks) * part // 4 - 1)] for part in (2, 3))
        layers = tuple(middle) if layers is None else layers
        self.layers = dict(layers if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0))
        self.distance, self.semantic, self.blur, self.crop = distance, semantic, blur, crop
        if not 0 <= round(3 * blur if blur < 1e6 else -1) < model.visual.input_resolution:
            raise ValueError(f"blur is {blur}; it must be pixels, from 0 to a third of the side")
        target = target.clone() if target.is_inference() else target.detach()
        self.register_buffer("target", target, persistent=False)

    def draw(self, images: Tensor, step: Numbers = None) -> tuple[Tensor, Tensor]:
        """The whole pictures and their views (N + N * views, 3, R, R) of a step, and the target's alike."""
        images, side = _checked("images", images), self.model.visual.input_resolution
        count = len(images)
        if len(self.target) not in (1, count):
            raise ValueError(
                f"{len(self.target)} targets for {count} pictures; give one, or as many"
            )
        target = self.target.to(images).expand(count, -1, -1, -1)
        both = [fit(x, side) for x in (images, target)]
        if self.blur:
            from torchvision.transforms.functional import gaussian_blur

            size = 2 * round(3 * self.blur) + 1
            both = [gaussian_blur(x, [size, size], [self.blur, self.blur]) for x in both]
        if not self.views:
            return both[0], both[1]
        generator = self._generator(step)
        state, made = generator.get_state(), []
        for whole in both:  # the same numbers for both
            generator.set_state(state)
            views = self._warped(whole.repeat_interleave(self.views, 0), generator)
            area, down, right = uniform(generator, 3, len(views), 1, like=views)
            square = (side * (self.crop + area * (1 - self.crop)).sqrt()).round()
            top, left = ((number * (side - square + 1)).floor() for number in (down, right))
            made.append(torch.cat([whole, resample(views, (top, square), (left, square), side)]))
        return made[0], made[1]

    def forward(self, images: Tensor, step: Numbers = None) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> a number."""
        views, goal = self.draw(images, step)
        found = self._features(views)
        with torch.no_grad():
            wanted = self._features(goal)
        similar = torch.cosine_similarity(found["output"], wanted["output"], dim=1)
        loss = self.semantic * (1 - similar).mean()
        for name, weight in self.layers.items():
            loss = loss + weight * self._between(found[name], wanted[name])
        return loss

    def _features(self, views: Tensor) -> dict[str, Tensor]:
        views, places = self.model.normalize(views), self.distance == "cosine"
        found = self.model.features(views, [*self.layers, "output"], spatial=places)
        return {name: value.float() for name, value in found.items()}

    def _between(self, one: Tensor, other: Tensor) -> Tensor:
        if self.distance == "cosine":
            return (1 - torch.cosine_similarity(one, other, dim=1)).mean()
        return F.mse_loss(one, other) if self.distance == "l2" else F.l1_loss(one, other)


def _weighted(texts: Texts, weight: float) -> list[tuple[str, float]]:
    listed = [texts] if isinstance(texts, str) else texts
    pairs = listed.items() if isinstance(listed, Mapping) else listed
    try:
        found = [
            (each, weight) if isinstance(each, str) else (each[0], float(each[1])) for each in pairs
        ]
    except (TypeError, ValueError, IndexError):
        found = [("", math.nan)]
    if not all(isinstance(text, str) and math.isfinite(value) for text, value in found):
        raise ValueError(f"prompts are {texts!r:.80}; give a text, texts, or texts with weights")
    return found


def _checked(name: str, images: Tensor) -> Tensor:
    """Pictures in a type that places of pixels can be told in. ValueError for what is none."""
    good = isinstance(images, Tensor) and images.is_floating_point()
    if not good or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        kind = type(images).__name__
        if isinstance(images, Tensor):
            kind = f"shape {tuple(images.shape)} and {images.dtype}"
        raise ValueError(f"{name} has {kind}; it must be floats (N, 3, H, W) in [0, 1]")
    if min(images.shape[2:]) < 2:
        raise ValueError(f"{name} has {images.shape[2]}x{images.shape[3]} pixels; give 2x2 or more")
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
