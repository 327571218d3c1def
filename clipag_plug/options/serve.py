"""Options of `clipag serve`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option


@dataclass
class Serve(Options):
    """A loss server for programs in any language: pictures in, loss and gradient out, over a WebSocket."""

    model: str = option("clipag", "model for clients that name none of the registry", short="-m")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets the whole network use it")
    port: int = option(8765, "port to listen on", low=0, high=65535)
    allow: list[str] = option(
        [], "web pages besides those of this machine that may connect", metavar="ORIGIN"
    )
    clients: int = option(32, "connections at a time", low=1)
    pixel_limit: float = option(4.0, "largest picture in megapixels", low=0.01, high=64)
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    quiet: bool = option(False, "no remarks on stderr", short="-q")
