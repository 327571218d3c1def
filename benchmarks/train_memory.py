"""Peak memory of a training step whose batch is 4,096 images by accumulation, against one of a single micro-batch.

    OMP_NUM_THREADS=1 python benchmarks/train_memory.py

128 optimiser steps of 1 and 2 of 64 micro-batches of 64 images at 224 pixels, each in a process of its own and over as
many images, since an allocator's peak creeps up over some dozens of micro-batches, however they are grouped; the peak
is the operating system's, of the whole process. The tower is a small ViT: what could
grow with the number of micro-batches (images, features of 512 numbers, the loss over all pairs) is the same for every
tower, so the ratio is larger than that of a large tower. `--keep memory` shows what the kept images would take.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 1}


def child(options: argparse.Namespace, count: int, keep: str) -> dict[str, Any]:
    """Trains on twice the largest count of micro-batches and tells this process's peak."""
    import torch

    from clipag_plug.options.train import Train
    from clipag_plug.train import setup

    vision = {"image_size": 224, "patch_size": 32, "width": options.width, "layers": options.layers}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        recipe = Train(
            data=["synthetic:256"],
            architecture=json.dumps({"embed_dim": 512, "vision_cfg": vision, "text_cfg": TEXT}),
            samples=2 * max(options.counts) * options.batch,
            batch_size=options.batch,
            accumulation=count,
            attack_steps=1,
            keep=keep,
            output=folder,
            device="cpu",
            quiet=True,
        )
        trainer = setup.prepare(recipe)[0]
        started, cpu = time.monotonic(), time.process_time()
        losses = [trainer.step()[0] for _ in range(trainer.steps)]
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "micro-batches": count,
        "keep": keep,
        "images a step": count * options.batch,
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1),
        "seconds": round(time.monotonic() - started, 1),
        "CPU seconds": round(time.process_time() - cpu, 1),
        "steps": len(losses),
        "last losses": losses[-2:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="images of a micro-batch")
    parser.add_argument("--counts", type=int, nargs=2, default=[1, 64])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--keep", default="auto")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options, options.child, options.keep)))
        return 0
    rows = []
    for count in options.counts:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    print(f"ratio {rows[1]['peak MB'] / rows[0]['peak MB']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
