"""What axe-core (npm) says of the page: no serious finding, wide and narrow, light and dark, in every state."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import chromium
import pytest
from test_demo_browser import END, READY, STEP, fill, opened, page, picture, place, url
from test_demo_gallery import IDLE, painted

ROOT = Path(__file__).resolve().parent.parent


def axe() -> Path | None:
    """axe.min.js: $AXE, or of an axe-core that npm installed here or globally."""
    places = [Path(os.environ["AXE"])] if "AXE" in os.environ else [ROOT / "node_modules"]
    if npm := shutil.which("npm"):
        found = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=60)
        places.append(Path(found.stdout.strip()))
    files = [
        place if place.suffix == ".js" else place / "axe-core" / "axe.min.js" for place in places
    ]
    return next((file for file in files if file.is_file()), None)


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        chromium.find() is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"
    ),
    pytest.mark.skipif(axe() is None, reason="no axe-core: npm install axe-core, or set AXE"),
]
FINDINGS = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => each.id + ": " + each.nodes.map((node) => node.target + " " + node.failureSummary).join(" | ")))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(
    page: chromium.Browser, place: Path, width: int, scheme: str
) -> None:
    page.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    page.size(width, 844)
    path = axe()
    assert path is not None
    page.run(path.read_text(encoding="utf-8") + "; 0")
    findings: list[str] = []

    def check(page: chromium.Browser, state: str) -> None:
        findings.extend(f"{state}: {found}" for found in page.run(FINDINGS))

    for tab in ("style", "draw", "explain", "paint"):
        page.click(f"[data-go={tab}]")
        check(page, tab)
    fill(page, "a lemon on a zyxqian", 1)
    page.wait("document.getElementById('unheard').textContent.includes('zyxqian')")
    check(page, "words")
    painted(page)
    check(page, "shown")
    page.click("#compare")
    check(page, "compared")
    page.click("#view-close")
    page.click("#delete")
    page.wait("!document.querySelector('#notice button').hidden")
    check(page, "deleted")
    page.click("#notice button")
    fill(page, " ", 1)
    page.click("#go")
    page.wait("!document.getElementById('problem').hidden")
    page.messages.clear()  # the browser notes that the request was refused
    check(page, "refused")
    fill(page, "a long one", 2000)
    page.click("#go")
    page.wait(f"{STEP} >= 1", 180)
    fill(page, "another", 1)
    page.click("#go")
    page.wait("document.querySelectorAll('#queue li').length === 2")
    check(page, "busy")
    page.run("[...document.querySelectorAll('#queue button')].at(-1).click()")
    page.wait("document.querySelectorAll('#queue li').length < 2")
    page.run("document.querySelector('#queue li button').click()")
    page.wait(f"{STEP} >= 1", 180)
    page.click("#stop")
    page.wait(IDLE, 180)
    page.click("[data-go=explain]")
    page.choose_file("#file", picture(place / "photo.png", 120))
    page.wait("document.getElementById('dropped').naturalWidth === 120")
    page.type("#texts", "a dog")
    page.click("#go")
    page.wait("document.querySelectorAll('#maps .row').length === 1", 180)
    check(page, "maps")
    assert findings == [] and page.messages == [], "\n".join(findings)


def test_the_title_and_the_bar_tell_the_progress_and_keys_do_everything(
    page: chromium.Browser,
) -> None:
    def press(key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text
            )

    page.type("#prompt", "a long one")
    page.type("#steps", "2000")
    page.run("document.getElementById('prompt').focus()")
    press("Enter", 13, "\r")
    page.wait("document.title.includes('% · a long one')", 180)
    bar = "Number(document.getElementById('bar').getAttribute('aria-valuenow'))"
    page.wait(f"{bar} >= 1", 300)
    page.run("document.getElementById('stop').focus()")
    press("Enter", 13, "\r")
    page.wait(IDLE, 180)
    assert page.run("document.title") == "clipag"
    page.run("document.getElementById('prompt').focus()")
    reached = set()
    for _ in range(60):
        press("Tab", 9)
        reached.add(
            page.run(
                "(e => e.id || e.dataset.act || e.className || e.textContent)(document.activeElement)"
            )
        )
    assert {
        "go",
        "four",
        "again",
        "compare",
        "like",
        "zip",
        "delete",
        "enlarge",
    } <= reached
