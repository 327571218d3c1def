"""Trains and packs the autoencoder of `clipag vqgan`.

    python benchmarks/make/autoencoder.py --data 'tiny-imagenet/train-*.tar.gz' --validation tiny-imagenet/val-00.tar.gz

L1 on pixels and on their differences, the codebook's loss, Adam. The first updates run without the codebook; then its
vectors start at codes of photographs, and those that nothing uses are moved to such codes again for a while. Settings
are read from vqgan-mini.toml beside this file; update number i depends on them and on i alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clipag_plug.files import write_text
from clipag_plug.pipelines.autoencoder import Shape, VQModel
from clipag_plug.train.data import read_shards
from clipag_plug.weights.read import write

RECIPE = Path(__file__).with_name("vqgan-mini.toml")
SHAPE = ("ch", "num_res_blocks", "z_channels", "embed_dim", "n_embed", "resolution")


def shape_of(recipe: Any) -> Shape:
    """The autoencoder that a recipe describes."""
    values: dict[str, Any] = {name: getattr(recipe, name) for name in SHAPE}
    return Shape(ch_mult=tuple(recipe.ch_mult), attn_resolutions=(), **values)


def train(recipe: Any, images: Tensor) -> tuple[VQModel, float]:
    """The model trained on photographs uint8 (N, 3, side, side), and its processor seconds."""
    torch.manual_seed(recipe.seed)
    model = VQModel(shape_of(recipe)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.9, 0.99))
    used = torch.zeros(recipe.n_embed, dtype=torch.long)
    start = time.process_time()
    for step in range(recipe.steps):
        rate = recipe.lr * (0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 50, 1)
        loss, codes, indices = losses(model, draw(images, recipe, step), recipe, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used += torch.bincount(indices.flatten(), minlength=recipe.n_embed)
        refresh(model, optimizer, codes, used, recipe, step)
        if (step + 1) % 20 == 0:
            count, seconds = int((used > 0).sum()), time.process_time() - start
            sys.stderr.write(
                f"{step + 1}/{recipe.steps} loss {float(loss):.4f} codes {count} {seconds:.0f} s\n"
            )
    return model.eval(), time.process_time() - start


def draw(images: Tensor, recipe: Any, step: int) -> Tensor:
    """The batch of an update, in [-1, 1]: random crops, half of them mirrored; at the end whole photographs."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    count, side = recipe.batch_size, recipe.crop
    if step >= recipe.steps * (1 - recipe.whole):
        count, side = count // 4, recipe.resolution
    rows = torch.randint(len(images), (count,), generator=generator).tolist()
    corners = torch.randint(recipe.resolution - side + 1, (count, 2), generator=generator).tolist()
    flips = torch.rand(count, generator=generator).lt(0.5).tolist()
    crops = []
    for row, (y, x), flip in zip(rows, corners, flips):
        crop = images[row, :, y : y + side, x : x + side]
        crops.append(crop.flip(-1) if flip else crop)
    batch = torch.stack(crops).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def losses(model: VQModel, batch: Tensor, recipe: Any, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the continuous codes and the indices of their nearest vectors."""
    codes = model.encode(batch)
    if step < recipe.warm * recipe.steps:
        indices = codes.new_zeros(0, dtype=torch.long)
        # Keeps the codes at the scale that the guided search over them expects.
        extra = 0.01 * codes.square().mean()
        decoded = model.decode(codes)
    else:
        indices = model.quantize.indices(codes)
        nearest = F.embedding(indices, model.quantize.embedding.weight).movedim(-1, 1)
        # Commitment, weighted as VQ-VAE does (van den Oord et al. 2017), plus the codebook's own term.
        extra = 0.25 * F.mse_loss(codes, nearest.detach()) + F.mse_loss(nearest, codes.detach())
        decoded = model.decode(codes + (nearest - codes).detach())
    loss = F.l1_loss(decoded, batch) + extra
    for axis in (2, 3):
        loss = loss + recipe.edges * F.l1_loss(decoded.diff(dim=axis), batch.diff(dim=axis))
    return loss, codes.detach(), indices


@torch.no_grad()
def refresh(
    model: VQModel, optimizer: Any, codes: Tensor, used: Tensor, recipe: Any, step: int
) -> None:
    """Starts the codebook at codes of this batch when the warm-up ends; later moves its unused vectors there."""
    since = step + 1 - math.ceil(recipe.warm * recipe.steps)
    if since < 0 or since % recipe.revive or step > 0.7 * recipe.steps:
        return
    dead = torch.arange(recipe.n_embed) if since == 0 else (used == 0).nonzero()[:, 0]
    used.zero_()
    pool = codes.movedim(1, -1).reshape(-1, codes.shape[1])
    generator = torch.Generator().manual_seed(recipe.seed + 7919 * step)
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
        indices = model.quantize.indices(model.encode(part.float() / 127.5 - 1))
        used |= set(indices.unique().tolist())
        codes = F.embedding(indices, model.quantize.embedding.weight).movedim(-1, 1)
        decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
        error = ((decoded - part.float()) / 255).square().mean((1, 2, 3))
        values += (-10 * error.log10()).tolist()
    return sum(values) / len(values), len(used)


def main() -> None:
    """Trains, rounds to fp16, measures what is shipped, writes the weights and their card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="shards of photographs")
    parser.add_argument("--validation", nargs="+", required=True, help="held-out photographs")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/vqgan-mini"))
    given = parser.parse_args()
    values = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    recipe = SimpleNamespace(**values)
    images, held = (
        torch.from_numpy(read_shards(files, recipe.resolution).images).permute(0, 3, 1, 2)
        for files in (given.data, given.validation)
    )
    model, seconds = train(recipe, images)
    rounded = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in rounded.items()})
    held = held[: recipe.images]
    value, codes = psnr(model, held)
    card = {
        "name": "vqgan-mini",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": values,
        "processor_seconds": round(seconds),
        "data": "Tiny ImageNet, training part: for research use.",
        "reconstruction": {"images": len(held), "psnr": round(value, 2), "codes_used": codes},
    }
    given.output.mkdir(parents=True, exist_ok=True)
    write(given.output / "vqgan-mini.safetensors", rounded)
    text = json.dumps({"params": shape_of(recipe).params(), "card": card}, indent=1) + "\n"
    print(write_text(given.output / "vqgan-mini.json", text))


if __name__ == "__main__":
    main()
