"""Bytes that a worker sends in a training step: counted on two gloo workers, simulated on rings, computed for more.

    OMP_NUM_THREADS=1 python benchmarks/train_scaling.py

1. Two workers train steps of a small tower and count what they hand to every collective; it must be what `payload`
   says, to the byte.
2. Rings of 2 to 64 workers are simulated message by message: what a worker sends of a payload must be what
   `sent_by_gather` and `sent_by_reduce` say, and everybody must end up with everything.
3. The same formulas for ViT-B/32 and the published batch of 40,960 pairs on 8, 64 and 512 workers. Seconds there are
   arithmetic, at the stated rates, with nothing overlapped; nothing of it was run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TOWER = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
DIM, WEIGHTS, BATCH = (
    512,
    87_849_216,
    40_960,
)  # ViT-B/32: features, numbers in the image tower; the published batch
CAPTION = 70  # bytes of a pickled caption, about
FLOP = (
    13 * 8.8e9
)  # of an image: 5 attack steps (2 F each) and the update (3 F); see docs/training.md
SECOND_PASS = 8.8e9  # one forward more with several workers' micro-batches accumulated
LOSS_FLOP = (
    8 * DIM
)  # of a pair: two halves, forward, again on the way back, and backward to both sides


def payload(images: int, dim: int, weights: int, captions: int, sides: int = 1) -> dict[str, int]:
    """Bytes that one worker hands to the collectives of a step. images: its own; captions: bytes of their pickle."""
    return {
        "gather: features of images": 4 * dim * images * sides,
        "gather: features of texts": 4 * dim * images,
        "gather: labels": 8 * images,
        "gather: captions": captions,
        "reduce: gradients of weights": 4 * weights,
        "reduce: loss, flags": 4 + 4 * 2,
    }


def shared(images: int, dim: int, workers: int, sides: int = 1) -> dict[str, int]:
    """The one payload that grows with the number of workers: gradients of all features, summed."""
    return {"reduce: gradients of features": 4 * dim * images * workers * sides}


def sent_by_gather(size: int, workers: int) -> int:
    """Bytes a worker sends so that everybody gets its `size` bytes, on a ring."""
    return size * (workers - 1)


def sent_by_reduce(size: int, workers: int) -> float:
    """Bytes a worker sends so that everybody gets the sum of `size` bytes of each, on a ring."""
    return 2 * size * (workers - 1) / workers


def simulated_gather(workers: int) -> int:
    """Messages that each worker of a ring sends until all have every part; one message is one worker's part."""
    held = [{rank} for rank in range(workers)]
    passing, sent = list(range(workers)), 0
    while not all(len(parts) == workers for parts in held):
        passing = [passing[rank - 1] for rank in range(workers)]
        for rank, part in enumerate(passing):
            held[rank].add(part)
        sent += 1
    return sent


def simulated_reduce(workers: int) -> int:
    """Messages of 1/workers of the payload that each worker sends until all hold the sum: reduce, then gather."""
    sums = [
        [{rank} for _ in range(workers)] for rank in range(workers)
    ]  # who is in the sum of each chunk
    sent = 0
    for turn in range(2 * (workers - 1)):
        chunks = [(rank - turn) % workers for rank in range(workers)]
        messages = [set(sums[rank][chunks[rank]]) for rank in range(workers)]
        for rank in range(workers):
            sums[rank][chunks[rank - 1]] |= messages[rank - 1]
        sent += 1
    if not all(len(chunk) == workers for parts in sums for chunk in parts):
        raise RuntimeError("a worker does not hold the whole sum")
    return sent


def counting(rank: int, port: int, folder: str, accumulation: int, clean_weight: float) -> None:
    """One worker: trains steps and writes what it handed to the collectives, by kind."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch
    from torch import distributed as dist

    from clipag_plug.options.train import Train
    from clipag_plug.train import setup
    from clipag_plug.train.distributed import connect, disconnect

    counted: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def watched(kind: str, call: Any, place: int, size: Any) -> Any:
        def run(*args: Any, **keywords: Any) -> Any:
            counted[kind] += size(args[place])
            calls[kind] += 1
            return call(*args, **keywords)

        return run

    torch.set_num_threads(1)
    workers = connect("cpu")
    architecture = {"embed_dim": 48, "vision_cfg": TOWER, "text_cfg": TEXT}
    recipe = Train(
        data=["synthetic:64"],
        architecture=json.dumps(architecture),
        samples=400,
        batch_size=8,
        accumulation=accumulation,
        attack_steps=1,
        clean_weight=clean_weight,
        output=folder,
        quiet=True,
    )
    trainer = setup.prepare(recipe, workers)[0]
    parts = [trainer.batches[number] for number in range(accumulation)]
    captions = len(pickle.dumps([word for part in parts for word in part.words]))
    dist.all_gather = watched("gather", dist.all_gather, 1, lambda t: t.nbytes)
    dist.all_reduce = watched("reduce", dist.all_reduce, 0, lambda t: t.nbytes)
    dist.all_gather_object = watched(
        "captions", dist.all_gather_object, 1, lambda o: len(pickle.dumps(o))
    )
    trainer.step()
    workers.any(False, False)  # what the loop around a step asks
    images, sides = 8 * accumulation, 1 + bool(clean_weight)
    weights = sum(weight.numel() for weight in trainer.weights.values())
    wanted = payload(images, 48, weights, captions, sides) | shared(images, 48, 2, sides)
    by_kind = Counter({"captions": wanted.pop("gather: captions")})
    for name, size in wanted.items():
        by_kind[name.split(":")[0]] += size
    disconnect()
    found = {"counted": dict(counted), "computed": dict(by_kind), "calls": dict(calls)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def counted_on_two(accumulation: int, clean_weight: float) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (port, folder, accumulation, clean_weight)
        processes = [spawn.Process(target=counting, args=(rank, *arguments)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        if result["counted"] != result["computed"]:
            raise RuntimeError(f"counted and computed bytes differ: {result}")
    return {"accumulation": accumulation, "clean_weight": clean_weight, **results[0]}


def row(workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """A step of the published batch on so many workers."""
    images = BATCH // workers
    own = payload(images, DIM, WEIGHTS, CAPTION * images)
    sent = {}
    for name, size in (own | shared(images, DIM, workers)).items():
        way = sent_by_gather if name.startswith("gather") else sent_by_reduce
        sent[name] = way(size, workers)
    compute = (images * (FLOP + SECOND_PASS) + LOSS_FLOP * images * BATCH) / (options.tflops * 1e12)
    total = sum(sent.values())
    network = total / (options.gbits / 8 * 1e9)
    return {
        "workers": workers,
        "images of a worker": images,
        "MB sent": {name: round(size / 1e6, 3) for name, size in sent.items()},
        "MB sent in all": round(total / 1e6, 1),
        "s of compute": round(compute, 3),
        "s of network": round(network, 3),
        "share of time computing": round(compute / (compute + network), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tflops", type=float, default=100, help="sustained by a worker")
    parser.add_argument("--gbits", type=float, default=100, help="of a worker's network, Gbit/s")
    options = parser.parse_args()
    counts = [counted_on_two(*case) for case in ((1, 0.0), (3, 0.0), (2, 0.5))]
    rings = {}
    for workers in (2, 3, 8, 64):
        gather, reduce = simulated_gather(workers), simulated_reduce(workers)
        if gather != sent_by_gather(1, workers) or reduce / workers != sent_by_reduce(1, workers):
            raise RuntimeError(f"the simulation of {workers} workers does not follow the formulas")
        rings[workers] = {"gather": gather, "reduce": round(reduce / workers, 4)}
    table = [row(workers, options) for workers in (8, 64, 512)]
    print(json.dumps({"counted": counts, "rings": rings, "computed": table}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
