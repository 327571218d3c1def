"""How long loading takes and how much memory: first load, second load, and open_clip on the same file.

    python benchmarks/load_time.py -o benchmarks/results/load_time.md

Everything runs on one machine: a training file of ViT-B/32 with random weights (1.3 GB, the size
of the authors' CLIPAG file) is served over the loopback, so a real first load is longer by the time
of the download. Each measurement is a process of its own, after the imports that both need, one
thread; the order of the measurements changes from round to round.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = 151_277_313 * 4  # bytes of a ViT-B/32 in fp32

SETUP = """
import json, os, resource, sys, time
import torch, torchvision, open_clip, safetensors.torch
torch.set_num_threads(1)
from clipag_plug import clip, model
from clipag_plug.weights import opening, registry
record = registry.Checkpoint("served", "ViT-B-32", False, (os.environ["SERVED"],))
registry._table = lambda: {"served": record}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
"""
REPORT = """
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
loaded = peak() - before
with torch.no_grad():
    feature = net.encode_image(torch.linspace(-1, 1, 150528).view(1, 3, 224, 224))
total = peak() - before
print(json.dumps({"wall": wall, "cpu": cpu, "loaded": loaded, "used": total, "feature": float(feature.sum())}))
"""
OURS = SETUP + 'net, _ = clip.load("served", device="cpu")\n' + REPORT
OPEN_CLIP = (
    SETUP
    + 'net = open_clip.create_model("ViT-B-32", pretrained=os.environ["CONVERTED"]).eval()\n'
    + REPORT
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-r", "--rounds", type=int, default=3, help="measurements of each kind [3]")
    parser.add_argument(
        "-o", "--output", type=Path, help="Markdown file to write; default: print only"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-c", MAKE, str(folder / "served.pt")],
            check=True,
            env=environment(folder, ""),
        )
        with_server = functools.partial(Handler, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), with_server) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/served.pt"
            text = report(measure(folder, url, options.rounds))
            server.shutdown()
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


# Moments of the image tower only: what a run with a frozen text tower saves.
MAKE = """
import sys, torch, open_clip
torch.manual_seed(0)
net = open_clip.CLIP(512, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
                     {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12})
moments = {i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
           for i, p in enumerate(net.visual.parameters())}
state = {"module." + name: value for name, value in net.state_dict().items()}
torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {"state": moments}}, sys.argv[1])
"""


def measure(folder: Path, url: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    home = folder / "home"
    converted = home / "served.v2.safetensors"
    results: dict[str, list[dict[str, float]]] = {
        "first load": [],
        "second load": [],
        "open_clip": [],
    }
    for turn in range(rounds):
        shutil.rmtree(home, ignore_errors=True)
        results["first load"].append(run(OURS, environment(folder, url)))
        pair = [("second load", OURS), ("open_clip", OPEN_CLIP)]
        for kind, code in pair if turn % 2 else pair[::-1]:
            results[kind].append(
                run(code, {**environment(folder, url), "CONVERTED": str(converted)})
            )
    features = {round(one["feature"], 6) for many in results.values() for one in many}
    if len(features) != 1:
        raise RuntimeError(f"the loads do not give the same features: {features}")
    return results


def environment(folder: Path, url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("proxy")}
    kept |= {"OMP_NUM_THREADS": "1", "CLIPAG_HOME": str(folder / "home"), "SERVED": url}
    kept.pop("HF_HUB_OFFLINE", None)
    return {**kept, "PYTHONPATH": str(ROOT)}


def run(code: str, variables: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def report(results: dict[str, list[dict[str, float]]]) -> str:
    middle = {
        kind: {name: statistics.median(one[name] for one in many) for name in many[0]}
        for kind, many in results.items()
    }
    first, second, other = (middle[kind] for kind in results)
    rows = [
        f"| {kind} | {one['wall']:.2f} | {min(r['wall'] for r in results[kind]):.2f} | {one['cpu']:.2f} "
        f"| {one['loaded'] / WEIGHTS:.2f} | {one['used'] / WEIGHTS:.2f} |"
        for kind, one in middle.items()
    ]
    import torch

    def ratio(one: dict[str, float], name: str) -> str:
        return f"{one[name] / second[name]:.1f}"

    return "\n".join(
        [
            "# Loading ViT-B/32 (151.3 M numbers, 605 MB in fp32)",
            "",
            f"`python benchmarks/load_time.py`: {platform.machine()}, {os.cpu_count()} cores, one thread used, "
            f"load average {os.getloadavg()[0]:.1f}; python {platform.python_version()}, torch {torch.__version__}. "
            f"Medians of {len(results['first load'])} processes each, imports not counted. Memory: growth of the peak "
            "resident set over that of the imports, in multiples of the weights.",
            "",
            "| | wall s | least | CPU s | memory, loaded | memory, after one image |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"- The first load (loopback download, conversion, check) takes {ratio(first, 'wall')} times as "
            f"long as the second ({ratio(first, 'cpu')} times the CPU time).",
            f"- `open_clip.create_model` on the converted file takes {ratio(other, 'wall')} times as long as "
            f"the second load ({ratio(other, 'cpu')} times the CPU time).",
            f"- The second load peaks at {second['used'] / WEIGHTS:.2f} times the weights, one encoded image included.",
            "- All loads gave the same features.",
        ]
    )


if __name__ == "__main__":
    main()
