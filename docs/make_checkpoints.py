"""Writes docs/checkpoints.md from the registry: `python docs/make_checkpoints.py`."""

from __future__ import annotations

from pathlib import Path

from clipag_plug.files import write_text
from clipag_plug.weights.registry import Checkpoint, checkpoints, training

PAGE = Path(__file__).with_name("checkpoints.md")
HEAD = """# Checkpoints

Written by `python docs/make_checkpoints.py` from `clipag_plug/weights/registry.json`; edit that.

Load one by its name, `clipag_plug.load(NAME)`, or give it to any command as `--model NAME`. `clipag models` also says
which are on this machine, `clipag doctor NAME` checks one. Accuracies are those that their authors report, in percent.

`load(NAME, precision="fp16")` gives features within 0.2 % of those in fp32, `"bf16"` within 2 %: the length of the
difference over that of the feature (tests/test_weights_precision.py). Measured on random weights and images at the
published width and resolution, transformers two blocks deep, ConvNeXt whole, RN50 one block a stage, layer scales at
0.3, in percent:

| architecture | fp16, image | fp16, text | bf16, image | bf16, text |
|---|---|---|---|---|
| RN50 | 0.04 | 0.11 | 0.30 | 0.97 |
| ViT-B-16 | 0.07 | 0.11 | 0.53 | 0.87 |
| ViT-B-32 | 0.06 | 0.14 | 0.56 | 0.92 |
| ViT-H-14 | 0.07 | 0.11 | 0.55 | 0.83 |
| convnext_base_w | 0.11 | 0.12 | 0.87 | 0.98 |

bf16 keeps 8 binary digits of a number, so every product of matrices is rounded by up to 0.2 %; fp16 keeps 11.

A file of your own is given by its path, and what it does not say after a `#`: `weights.pt#gelu,arch=CONFIG.json`, or
`weights.pt#quickgelu,text=openai/ViT-B/32`. It is read into memory, so changing or deleting it afterwards changes no
model. A config is needed where no architecture of open_clip has the same tensors, since heads leave no trace in them.

What reading costs, for a ViT-B/32 (605 MB) in a process that has imported open_clip, in seconds of one busy core (the
less of two) and memory over the size of the weights: `.safetensors` 0.96 and 1.00, `.pt` 1.49 and 1.19,
`open_clip.create_model` of the former 2.07 and 2.00. The first import of open_clip comes on top. A model by name is
mapped from the cache, and its weights are read when they are first used: 0.07 s and 0.01.
"""


def page() -> str:
    """The Markdown of the page: a table for the bundled models, one for each training method, then the sources."""
    records = checkpoints()
    groups: dict[str, list[Checkpoint]] = {"In the package": [r for r in records if r.bundled]}
    for record in records:
        if not record.bundled:
            title = "Not adversarial" if record.method == "vanilla" else record.method
            groups.setdefault(title, []).append(record)
    parts = [HEAD]
    for title, found in groups.items():
        parts.append(f"## {title}\n\n{_table(found)}\n")
    parts.append(f"## Sources\n\n{_sources(records)}\n")
    return "\n".join(parts)


def _table(records: list[Checkpoint]) -> str:
    lines = [
        "| name | architecture | training | fine-tuned from | licence | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        names = ", ".join(f"`{name}`" for name in (record.key, *record.aliases))
        cells = (names, record.arch or "?", training(record), record.base or "")
        cells += (record.licence or "not stated", _accuracy(record))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(record: Checkpoint) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in record.results.items())


def _sources(records: list[Checkpoint]) -> str:
    lines = []
    for record in records:
        facts = [record.note, record.paper, f"trained on {record.data}" if record.data else None]
        facts.append(record.results_note)
        if record.sources:
            facts.append(f"from `{record.sources[0]}`")
        lines.append(
            f"- `{record.key}`: {'; '.join(filter(None, facts)) or 'nothing more is known'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(write_text(PAGE, page()))
