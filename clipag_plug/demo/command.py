"""`clipag demo`: opens the port, says where the page is, and serves until Ctrl-C."""

from __future__ import annotations

import logging
import sys

from ..options.demo import Demo
from .guard import LOCAL
from .jobs import Task
from .server import App, Server

log = logging.getLogger(__name__)


def run(options: Demo) -> int:
    """Prints the address on stdout once the page can be opened. OSError where the port is taken."""
    app = App(options)
    try:
        server = Server(app)
    except OSError as error:
        app.queue.close()
        raise OSError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror}); "
            "choose another: clipag demo --port 8601"
        ) from error
    if app.guard.open:
        log.warning("everybody who reaches %s can use this page", options.host)
    sys.stdout.write(f"{address(server)}\n")
    sys.stdout.flush()
    # Only now: loading keeps the interpreter busy for seconds, in which the address would not be printed.
    app.queue.submit(Task("warm-up", "Loading the models", app.studio.warm_up, yields=True))
    log.info("open it in a browser; runs are kept in %s; Ctrl-C ends it", options.output)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        log.info("ending; what is being painted is saved")
    finally:
        app.queue.close()
        app.channel.close()
        server.server_close()
    return 0


def address(server: Server) -> str:
    """The address to open. A wildcard is no address: this machine's own stands for it."""
    host, port = server.server_address[:2]
    host = str(host)
    name = LOCAL[1] if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"
