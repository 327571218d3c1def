"""`clipag demo`: opens the port, says where the page is, and serves until Ctrl-C."""

from __future__ import annotations

import http
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from ..files import check_place
from ..options.tools import Demo
from .app import App
from .guard import address, listen
from .jobs import Task

log = logging.getLogger(__name__)


def run(options: Demo) -> int:
    """Prints the address on stdout once the page can be opened. OSError where the port is taken."""
    import uvicorn

    check_place(Path(options.output) / "run")
    listening = listen(options)
    app = App(options)
    if app.guard.open:
        log.warning("everybody who reaches %s can use this page", options.host)
    sys.stdout.write(f"{address(listening)}\n")
    sys.stdout.flush()
    log.info("open it in a browser; runs are kept in %s; Ctrl-C ends it", options.output)
    for number in filter(None, (signal.SIGTERM, getattr(signal, "SIGHUP", None))):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.default_int_handler)
    # Behind the address: loading keeps the interpreter busy for seconds.
    app.queue.submit(Task("warm-up", "Loading the models", app.studio.warm_up, yields=True))
    try:
        uvicorn.Server(settings(app)).run([listening])
    except KeyboardInterrupt:
        log.info("ending; what is being painted is saved; Ctrl-C once more does not wait for that")
    finally:
        app.close()
        listening.close()
    return 0


def settings(app: App) -> Any:
    """How uvicorn serves: quietly, and without waiting for open pages at the end."""
    import uvicorn

    return uvicorn.Config(
        app.asgi,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=32 * 1024,
        http=_protocol(),
        ws_max_size=1024,  # a page says nothing on it
        ws_ping_interval=10,
        ws_ping_timeout=20,
    )


def _protocol() -> Any:
    """uvicorn's HTTP, which answers in JSON where it cannot read a request, too."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def send_400_response(self, msg: str) -> None:
            status = getattr(sys.exc_info()[1], "error_status_hint", 400)
            long = "the address and the headers of a request may have 32 kB together"
            said = json.dumps({"error": long if status == 431 else "this is no HTTP request"})
            head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(said)}\r\nConnection: close\r\n\r\n"
            self.transport.write((head + said).encode())
            self.transport.close()

    return Protocol
