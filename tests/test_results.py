"""The committed results: made from their records, and measured with the weights that ship."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from clipag_plug import clip
from clipag_plug.bench.records import read_records, weights_hash

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "records"
SUITES = sorted(folder.name for folder in RECORDS.iterdir() if folder.is_dir())


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names of benchmarks/make/tables.py."""
    return runpy.run_path(str(ROOT / "benchmarks" / "make" / "tables.py"))


def test_every_table_is_what_its_records_say(script: dict[str, Any]) -> None:
    found = script["tables"]()
    assert ROOT / "README.md" in found
    assert set(SUITES) <= {path.stem for path in found}
    stale = [path.name for path, text in found.items() if path.read_text("utf-8") != text]
    assert not stale, f"python benchmarks/make/tables.py writes {', '.join(stale)} anew"


def test_a_changed_number_is_noticed(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text("utf-8")
    cell = next(line for line in text.splitlines() if "top-1 under PGD" in line)
    page.write_text(text.replace(cell, cell.replace(" % |", "9 % |", 1)), "utf-8")
    main = script["main"]
    monkeypatch.setitem(main.__globals__, "TEXTS", (page,))
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert main() == 1


@pytest.mark.parametrize("suite", SUITES)
def test_results_are_of_the_weights_that_ship(suite: str) -> None:
    hashes: dict[str, str] = {}
    for record in read_records(RECORDS, suite)[0]:
        for part in ("model", "judge"):
            used = record.inputs.get(part)
            if not used:
                continue
            name = used["name"]
            if name not in hashes:
                hashes[name] = weights_hash(clip.load(name, device="cpu")[0])
            assert used["weights"] == hashes[name], f"{record.path} is of another {name}"
