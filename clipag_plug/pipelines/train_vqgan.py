"""`python -m clipag_plug.pipelines.train_vqgan --recipe FILE`: trains and packs the autoencoder that is bundled.

L1 on pixels and on their differences, the codebook's loss, Adam. The first updates run without the codebook; then its
vectors start at codes of photographs, and those that nothing uses are moved to such codes again for a while.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..options.base import add_arguments, from_arguments
from ..options.vqgan import TrainVQGAN
from ..train.state import load_state, replace_file, save_state
from ..weights.tensorfile import write
from .autoencoder import Shape, VQModel, count_parameters

LOSS_EVERY = 20


def main(arguments: list[str] | None = None) -> int:
    """Trains, measures, writes `vqgan-mini.safetensors` and `.json` into the run's folder; prints the card."""
    parser = argparse.ArgumentParser(
        prog="python -m clipag_plug.pipelines.train_vqgan", description=__doc__
    )
    parser.add_argument("--recipe", help=".toml or .json file; flags beside it win")
    add_arguments(parser, TrainVQGAN)
    parsed = parser.parse_args(arguments)
    try:
        options: TrainVQGAN = from_arguments(TrainVQGAN, parsed, parsed.recipe)
        model, seconds = train(options, photographs(options.data, options.resolution))
        card = pack(model, options, seconds)
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return 2
    sys.stdout.write(json.dumps(card, indent=1) + "\n")
    return 0


def photographs(patterns: list[str], side: int) -> Tensor:
    """Photographs uint8 (N, 3, side, side). Raises ValueError where none are given or the side is another."""
    if not patterns:
        raise ValueError("no photographs were given; add --data FILES")
    import numpy as np

    from ..train.data import read_shards

    arrays = [
        np.load(pattern) if pattern.endswith(".npy") else read_shards([pattern], side).images
        for pattern in patterns
    ]
    parts = [torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays]
    images = torch.cat(parts) if len(parts) > 1 else parts[0]
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (3, side, side):
        raise ValueError(
            f"the photographs are {images.dtype} {tuple(images.shape)}; give uint8 of side {side}"
        )
    return images


def shape_of(options: TrainVQGAN) -> Shape:
    """The autoencoder that the options describe."""
    names = ("ch", "num_res_blocks", "z_channels", "embed_dim", "n_embed", "resolution")
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    return Shape(ch_mult=tuple(options.ch_mult), attn_resolutions=(), **values)


def train(options: TrainVQGAN, images: Tensor) -> tuple[VQModel, float]:
    """The trained model and its processor seconds; update number i depends on the seed and i alone."""
    torch.manual_seed(options.seed)
    model = VQModel(shape_of(options)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, betas=(0.9, 0.99))
    folder, first, spent = Path(options.output), 0, 0.0
    used = torch.zeros(options.n_embed, dtype=torch.long)
    if options.resume:
        state = load_state(folder)
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent, used = state["step"], state["seconds"], state["used"]
    start = time.process_time() - spent
    total = 0.0
    for step in range(first, options.steps):
        rate = options.lr * (0.5 + 0.5 * math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 50, 1)
        batch = draw(images, options, step)
        loss, codes, indices = losses(model, batch, options, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used += torch.bincount(indices.flatten(), minlength=options.n_embed)
        refresh(model, optimizer, codes, used, options, step)
        total += float(loss.detach())
        if (step + 1) % LOSS_EVERY == 0:
            sys.stderr.write(
                f"{step + 1}/{options.steps} loss {total / LOSS_EVERY:.4f} "
                f"codes {int((used > 0).sum())} {time.process_time() - start:.0f} s\n"
            )
            total = 0.0
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            rest = {"optimizer": optimizer.state_dict(), "step": step + 1, "used": used}
            save_state(folder, model.state_dict(), {**rest, "seconds": time.process_time() - start})
    return model.eval(), time.process_time() - start


def draw(images: Tensor, options: TrainVQGAN, step: int) -> Tensor:
    """The batch of an update, in [-1, 1]: random crops, half of them mirrored; at the end whole photographs."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    whole = step >= options.steps * (1 - options.whole)
    count, side = (
        (options.batch_size // 4, options.resolution)
        if whole
        else (options.batch_size, options.crop)
    )
    rows = torch.randint(len(images), (count,), generator=generator).tolist()
    corners = torch.randint(options.resolution - side + 1, (count, 2), generator=generator).tolist()
    flips = torch.rand(count, generator=generator).lt(0.5).tolist()
    crops = []
    for row, (y, x), flip in zip(rows, corners, flips):
        crop = images[row, :, y : y + side, x : x + side]
        crops.append(crop.flip(-1) if flip else crop)
    batch = torch.stack(crops).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def losses(
    model: VQModel, batch: Tensor, options: TrainVQGAN, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the continuous codes and the indices of their nearest vectors."""
    codes = model.encode(batch)
    if step < options.warm * options.steps:
        indices = codes.new_zeros(0, dtype=torch.long)
        # Keeps the codes at the scale that the guided search over them expects.
        extra = 0.01 * codes.square().mean()
        decoded = model.decode(codes)
    else:
        indices = model.quantize.indices(codes)
        nearest = F.embedding(indices, model.quantize.embedding.weight).movedim(-1, 1)
        extra = model.quantize.loss(codes, nearest)
        decoded = model.decode(codes + (nearest - codes).detach())
    loss = F.l1_loss(decoded, batch) + extra
    for axis in (2, 3):
        loss = loss + options.edges * F.l1_loss(decoded.diff(dim=axis), batch.diff(dim=axis))
    return loss, codes.detach(), indices


@torch.no_grad()
def refresh(
    model: VQModel,
    optimizer: torch.optim.Optimizer,
    codes: Tensor,
    used: Tensor,
    options: TrainVQGAN,
    step: int,
) -> None:
    """Starts the codebook at codes of this batch when the warm-up ends; later moves its unused vectors there."""
    begin = math.ceil(options.warm * options.steps)
    since = step + 1 - begin
    if since < 0 or since % options.revive or step > 0.7 * options.steps:
        return
    dead = torch.arange(options.n_embed) if since == 0 else (used == 0).nonzero()[:, 0]
    used.zero_()
    pool = codes.movedim(1, -1).reshape(-1, codes.shape[1])
    generator = torch.Generator().manual_seed(options.seed + 7919 * step)
    chosen = pool[torch.randint(len(pool), (len(dead),), generator=generator)]
    noise = torch.randn(chosen.shape, generator=generator)
    table = model.quantize.embedding.weight
    table[dead] = chosen + 0.02 * pool.std(0) * noise
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[table]:
            optimizer.state[table][name][dead] = 0


@torch.no_grad()
def psnr(model: VQModel, images: Tensor) -> tuple[float, int]:
    """Mean PSNR in dB of 8-bit photographs' reconstructions, and how many codes they use."""
    values, used = [], set()
    for part in images.split(50):
        batch = part.float() / 127.5 - 1
        indices = model.quantize.indices(model.encode(batch))
        used |= set(indices.unique().tolist())
        codes = F.embedding(indices, model.quantize.embedding.weight).movedim(-1, 1)
        decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
        error = ((decoded - part.float()) / 255).square().mean((1, 2, 3))
        values += (-10 * error.log10()).tolist()
    return sum(values) / len(values), len(used)


def pack(model: VQModel, options: TrainVQGAN, seconds: float) -> dict[str, Any]:
    """Writes the weights rounded to fp16, measured as they are shipped, and a card beside them."""
    rounded = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in rounded.items()})
    recipe = options.to_dict()
    for name in ("data", "validation", "output", "resume", "save_every"):
        recipe.pop(name)
    card: dict[str, Any] = {
        "name": "vqgan-mini",
        "parameters": count_parameters(model),
        "recipe": recipe,
        "processor_seconds": round(seconds),
        "data": "Tiny ImageNet, training part: for research use.",
    }
    if options.validation:
        held = photographs(options.validation, options.resolution)[: options.images]
        value, used = psnr(model, held)
        card["reconstruction"] = {
            "images": len(held),
            "psnr": round(value, 2),
            "codes_used": used,
        }
    folder = Path(options.output)
    params = shape_of(options).params()
    write(folder / "vqgan-mini.safetensors", rounded)
    text = json.dumps({"params": params, "card": card}, indent=1) + "\n"
    replace_file(folder / "vqgan-mini.json", lambda path: path.write_text(text, encoding="utf-8"))
    return card


if __name__ == "__main__":
    sys.exit(main())
