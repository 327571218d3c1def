"""A headless Chromium, driven through a pipe by the DevTools protocol: nothing to install but the browser."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The browser's path: $CHROMIUM, or one of the usual names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


# The middle of an element that fits, once it is in view, at the same place in two frames and covered by nothing.
_AIM = """(async () => {
    const frame = () => new Promise((ready) => requestAnimationFrame(ready));
    const e = [...document.querySelectorAll(%s)].find((e) => e.offsetParent);
    if (!e) return null;
    e.scrollIntoView({block: "center", behavior: "instant"});
    const middle = () => {
        const r = e.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2];
    };
    const before = middle();
    await frame(), await frame();
    const now = middle();
    if (now.some((value, axis) => value !== before[axis])) return null;
    if (!e.contains(document.elementFromPoint(...now))) return null;
    const aimed = window.aimed = { hit: false };
    addEventListener("click", (event) => { aimed.hit ||= e.contains(event.target); }, { once: true, capture: true });
    return now;
})()"""


class Browser:
    """One page. Everything waits for what it needs, with a limit in seconds."""

    def __init__(self, downloads: Path) -> None:
        self.downloads = downloads
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        # The browser reads commands from its descriptor 3 and answers on 4, each ended by a zero byte.
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        program = f'exec 3<&{commands} 4>&{answers}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", program, str(find()), *FLAGS, f"--user-data-dir={self._profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._rest, self._session = 0, b"", ""
        self.messages: list[str] = []  # what went wrong on the page
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, limit: float = 30, **parameters: Any) -> dict[str, Any]:
        """Sends one command and returns its result; what happens meanwhile on the page is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + limit
        while True:
            answer = self._read(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._from, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.messages.append(event["params"]["entry"]["text"])

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def reload(self) -> None:
        self.call("Page.reload")

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        # The answer comes before the page has its new width; what is measured until then is out of date.
        self.wait(f"innerWidth === {width}")

    def run(self, code: str) -> Any:
        """The value of an expression on the page, promises awaited."""
        found = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, json.dumps(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, code: str, limit: float = 90) -> Any:
        """Waits until an expression is true and returns its value."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            value = self.run(f"(() => {{ try {{ return {code} }} catch {{ return null }} }})()")
            if value:
                return value
            time.sleep(0.03)
        raise AssertionError(f"waited {limit} s for {code}; page says: {self.messages}")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first visible element that fits.

        The page lives: an element may move between the look at its place and the click. It is clicked once it lies
        still and on top, and again where the click did not reach it.
        """
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if place := self.run(_AIM % json.dumps(selector)):
                for kind in ("mousePressed", "mouseReleased"):
                    self.call(
                        "Input.dispatchMouseEvent",
                        type=kind,
                        x=place[0],
                        y=place[1],
                        button="left",
                        clickCount=1,
                    )
                for _ in range(40):  # a busy page may handle it late; two clicks are not one
                    if self.run("window.aimed.hit"):
                        return
                    time.sleep(0.05)
            time.sleep(0.03)
        raise AssertionError(f"no click on {selector} in 90 s; page says: {self.messages}")

    def type(self, selector: str, text: str) -> None:
        """Replaces what is in a field, by the keyboard; again where the page was not ready for it."""
        field = f"document.querySelector({selector!r})"
        end = time.monotonic() + 90
        while time.monotonic() < end:
            self.run(f"{field}.focus(), {field}.select()")
            self.call("Input.insertText", text=text)
            if self.run(f"{field}.value") == text:
                return
            time.sleep(0.03)
        raise AssertionError(f"{selector} did not take {text!r} in 90 s")

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
