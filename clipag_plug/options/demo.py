"""Options of `clipag demo`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option


@dataclass
class Demo(Options):
    """A page in the browser: paint, restyle, draw and explain, two models side by side."""

    output: str = option(
        "runs", "folder of the gallery; it is made where it is missing", short="-o"
    )
    models: list[str] = option(
        [],
        "further models to offer, by key or file, besides the bundled and the downloaded ones",
        short="-m",
    )
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 lets the whole network use this machine"
    )
    port: int = option(8600, "port to listen on; 0 takes a free one", low=0, high=65535)
    allow: list[str] = option(
        [], "further names in the address bar to answer to, as those of a proxy", metavar="NAME"
    )
    upload_limit: float = option(20.0, "largest upload in MiB", low=0.01, high=1024)
    pixel_limit: float = option(40.0, "largest upload in megapixels", low=0.01, high=1000)
    queue: int = option(20, "jobs that may wait", low=1)
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    quiet: bool = option(False, "no remarks on stderr", short="-q")
