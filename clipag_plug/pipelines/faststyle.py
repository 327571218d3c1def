"""Fast style transfer of CLIPStyler (Kwon & Ye 2022, section 3.3): one network for all pictures, trained once.

Deviation: the published network is AdaIN's decoder on top of VGG19, both downloads, and starts as the encoder's
inverse. This one is the style network of the single picture, which starts near the identity and needs no download.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..augment import fit
from ..bundled.photos import bundled_photos
from ..guide import frozen, guide_for
from ..images import read_image, write_image
from ..options.generate import parse_size
from ..options.style import Style
from ..paint import Guide, Step
from ..paint.starts import fitted
from ..version import __version__
from ..weights import tensorfile
from . import stylelosses, warps
from .common import options_of
from .content import content_network
from .stylenets import UNet, padded, seeded_unet
from .styling import check_prompts, finished

DECAY = 5e-5  # of the step size: lr / (1 + DECAY * i)
RECIPE = "clipag_plug.recipe"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def train_fast_style(
    prompt: str,
    network: str | Path,
    *,
    model: Any = "clipag-mini",
    photos: Any = None,
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> Path:
    """Trains a network for one style and writes it to `network` (.safetensors).

    photos: a folder, or (N, 3, H, W) in [0, 1]; None takes the photographs in the package. options: fields of
    `Style`. ValueError where a photograph is smaller than the crops.
    """
    folder = str(photos) if isinstance(photos, str | Path) else None
    chosen = options_of(
        Style,
        {
            **options,
            "prompts": [prompt],
            "network": str(network),
            "mode": "train",
            "photos": folder,
        },
        model,
    )
    given = photos if isinstance(photos, Tensor) else None
    return train(chosen, None if isinstance(model, str) else model, given, callback)


def fast_style(network: str | Path, image: Any, size: str = "", finish: bool = True) -> Tensor:
    """A picture (3, H, W) in the style that a network was trained for.

    image: a path, or (3, H, W) in [0, 1]; size: side or WIDTHxHEIGHT, the picture's own where it is empty.
    """
    unet, _ = read_network(network)
    picture = image if isinstance(image, Tensor) else read_image(image)
    picture = fitted(picture, parse_size(size) or tuple(picture.shape[-2:]))  # type: ignore[arg-type]
    with torch.no_grad():
        styled = unet(padded(picture[None]))[0, :, : picture.shape[-2], : picture.shape[-1]]
    return finished(styled) if finish else styled


def run(options: Style) -> list[Path]:
    """`clipag style --mode train` and `--mode fast`; the written files."""
    resolved = options.resolved()
    network, written = str(resolved.network), []
    if options.compare:
        raise ValueError(f"--compare does not go with --mode {options.mode}; leave it out")
    if options.mode == "train":
        written.append(train(options, bar=True))
    if options.image:
        size = str(resolved.size)
        styled = fast_style(network, options.image, size, bool(resolved.finish))
        recipe = {"clipag_plug": __version__, "network": read_network(network)[1], "size": size}
        written.append(write_image(options.output, styled, recipe))
    return written


def train(
    options: Any,
    model: Any = None,
    photos: Tensor | None = None,
    callback: Callable[[Step], object] | None = None,
    bar: bool = False,
) -> Path:
    """`train_fast_style` with its options in one object."""
    check_prompts(options)
    if len(options.prompts) > 1:
        raise ValueError(f"{len(options.prompts)} styles; a network learns one: give one prompt")
    path = Path(str(options.network))
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"--network {str(path)!r} must be a .safetensors file in a folder that exists"
        )
    options = options.resolved()
    guide = guide_for(options.model if model is None else model, device=options.device)
    photos = photographs(options) if photos is None else photos
    network = content_network(options.features, guide.device, options.vgg)
    unet = seeded_unet(options.width, options.seed, residual=True).to(guide.device)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(unet.parameters(), lr=options.lr)
    direction = stylelosses.text_direction(guide, options.prompts[0], options.source)
    shown = _bar(int(options.steps), bar)
    with frozen([guide.model]), shown:
        for index in range(int(options.steps)):
            optimizer.param_groups[0]["lr"] = options.lr / (1 + DECAY * index)
            batch = draw(photos, options, generator).to(guide.device)
            loss = objective(unet(batch), batch, guide, network, direction, options, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            shown.update()
            if callback is not None:
                callback(Step(index, loss.detach().view(1), optimizer.param_groups[0]["lr"]))
    recipe = {
        name: value
        for name, value in options.to_dict().items()
        if name not in ("output", "network", "photos", "image")
    }
    recipe["model"] = guide.name
    tensors = {name: value.cpu() for name, value in unet.state_dict().items()}
    return tensorfile.write(path, tensors, {RECIPE: json.dumps(recipe)})


def objective(
    styled: Tensor,
    photos: Tensor,
    guide: Guide,
    network: nn.Module,
    direction: Tensor,
    options: Any,
    generator: torch.Generator,
) -> Tensor:
    """Content, direction of perspective views and of the whole pictures, total variation."""
    count = int(options.crops)
    views = warps.random_perspective(styled.repeat(count, 1, 1, 1), generator, options.distortion)
    both = torch.cat([views, styled])
    features = guide.features(fit(both, guide.side))
    with torch.no_grad():
        source, wanted = guide.features(fit(photos, guide.side)), network(photos)
    away = stylelosses.directional(features, source.repeat(count + 1, 1), direction)
    edge = count * len(photos)
    return (
        options.patch * stylelosses.patch_loss(away[:edge], options.threshold)
        + options.direction * away[edge:].mean()
        + options.content * stylelosses.content_loss(network(styled), wanted)
        + options.tv * stylelosses.total_variation(styled)
    )


def draw(photos: Tensor, options: Any, generator: torch.Generator) -> Tensor:
    """A batch of random crops (batch, 3, crop_size, crop_size) of the photographs."""
    size = int(options.crop_size)
    height, width = photos.shape[-2:]
    rows = torch.randint(len(photos), (int(options.batch),), generator=generator).tolist()
    tops = torch.randint(height - size + 1, (len(rows),), generator=generator).tolist()
    lefts = torch.randint(width - size + 1, (len(rows),), generator=generator).tolist()
    cut = [photos[row, :, y : y + size, x : x + size] for row, y, x in zip(rows, tops, lefts)]
    batch = torch.stack(cut)
    return F.pad(batch, (0, -size % 8, 0, -size % 8), mode="replicate") if size % 8 else batch


def photographs(options: Any) -> Tensor:
    """Photographs (N, 3, side, side) in [0, 1], not smaller than the crops: a folder's, cut centrally, or ours."""
    size = max(int(options.crop_size), min(parse_size(str(options.size)) or (0, 0)))
    if not options.photos:
        sample = bundled_photos()
        return sample.pixels(range(len(sample)), max(int(options.crop_size), 64))
    folder = Path(options.photos)
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(
            f"no photographs ({', '.join(PICTURES)}) in {options.photos!r}; give a folder of some"
        )
    return torch.stack([fitted(read_image(file), (size, size)) for file in files])


def read_network(path: str | Path) -> tuple[UNet, dict[str, Any]]:
    """A network that `train_fast_style` wrote, in evaluation mode, and its recipe."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"network {str(path)!r} does not exist; --mode train makes one")
    tensors, metadata = tensorfile.read(path)
    if RECIPE not in metadata:
        raise ValueError(f"{str(path)!r} is no style network; clipag style --mode train makes one")
    recipe = json.loads(metadata[RECIPE])
    unet = UNet(int(recipe["width"]), residual=True)
    unet.load_state_dict(tensors)
    return unet.eval().requires_grad_(False), recipe


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    hidden = not (shown and sys.stderr.isatty())
    return tqdm(total=total, file=sys.stderr, disable=hidden, unit="step")
