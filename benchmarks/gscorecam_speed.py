"""Time of gScoreCAM with batched masks against a loop over single masks, on the same machine.

    python benchmarks/gscorecam_speed.py --model clipag-mini
    python benchmarks/gscorecam_speed.py --arch ViT-B-32 --channels 64

The loop does what the definition says: per text and channel, one mask and one forward pass. Both
sides take turns, and the shortest time of each counts, so that other work on the machine matters
little. Speed does not depend on the weights: `--arch` draws random ones for an open_clip config.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from clipag_plug.explanation.cam import Layer, find_layer, gscorecam, maps_and_gradients, masks
from clipag_plug.explanation.maps import text_features
from clipag_plug.guide import Guide, frozen, guide_for

TEXTS = ("a dog", "a cat", "a rocking chair")


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    guide = (
        random_guide(arguments.arch)
        if arguments.arch
        else guide_for(arguments.model, device=arguments.device)
    )
    images = torch.rand(
        1, 3, guide.side, guide.side, generator=torch.Generator().manual_seed(0)
    ).to(guide.device)
    name = arguments.arch or arguments.model
    print(
        f"{name}, {guide.side} px, {torch.get_num_threads()} thread(s) of {guide.device}, batches of {arguments.batch}"
    )
    with frozen([guide.model]):
        layer = find_layer(guide)
        for count in (1, len(TEXTS)):
            compare(guide, layer, images, text_features(guide, TEXTS[:count])[None], arguments)


def compare(
    guide: Guide, layer: Layer, images: Tensor, texts: Tensor, arguments: argparse.Namespace
) -> None:
    """Prints the seconds of both ways, and how far their maps are apart."""
    channels = arguments.channels
    ways: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: loop(guide, layer, images, texts, channels),
        "batched": lambda: gscorecam(
            guide, images, texts, layer=layer, channels=channels, batch_size=arguments.batch
        ),
    }
    maps = {name: way() for name, way in ways.items()}  # warms both up
    apart = float((maps["loop"] - maps["batched"]).abs().max() / maps["loop"].abs().max())
    best = {name: float("inf") for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            best[name] = min(best[name], seconds(way, guide.device))
    print(
        f"{texts.shape[1]} text(s): one mask at a time {best['loop']:.3f} s, batched {best['batched']:.3f} s, "
        f"{best['loop'] / best['batched']:.1f}x; the maps differ by {apart:.0e} of their peak"
    )


def loop(guide: Guide, layer: Layer, images: Tensor, texts: Tensor, channels: int) -> Tensor:
    """gScoreCAM of one image (1, 3, S, S), one text and one mask at a time."""
    rows = []
    for number in range(texts.shape[1]):
        activations, gradients = maps_and_gradients(
            guide, images, texts[:, number : number + 1], layer
        )
        places = layer.as_map(gradients[0])
        if layer.prefix and not places.any():
            importance = layer.class_token(gradients[0])[0]
        else:
            importance = places.mean((2, 3))[0]
        chosen = importance.topk(min(channels, len(importance))).indices
        seen = (images - guide.mean) / guide.std
        scores = torch.zeros_like(importance)
        with torch.no_grad():
            for channel in chosen:
                mask = masks(activations[0, channel][None], guide.side)
                cosine = guide.features(mask * seen, normalize=False)[0] @ texts[0, number]
                scores[channel] = guide.model.logit_scale.exp() * cosine
        rows.append(torch.einsum("c,chw->hw", scores.softmax(0), activations[0]).relu())
    return torch.stack(rows)[None]


def random_guide(arch: str) -> Guide:
    import open_clip

    torch.manual_seed(0)
    return Guide(open_clip.create_model(arch).eval(), name=arch)


def seconds(way: Callable[[], Tensor], device: torch.device) -> float:
    """Time of one call: on a single CPU thread that of the processor, which other work cannot lengthen."""
    clock = (
        time.process_time
        if device.type == "cpu" and torch.get_num_threads() == 1
        else time.perf_counter
    )
    start = clock()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="clipag-mini", help="key or file of a model")
    parser.add_argument("--arch", help="an open_clip config with random weights instead")
    parser.add_argument("--channels", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
