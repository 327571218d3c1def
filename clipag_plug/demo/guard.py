"""Who may ask: requests under this machine's names, from pages of this server."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any

LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests by another name, or sent by another page.

    A name that is rebound to this machine (DNS rebinding) arrives as that name in Host, and a form on another site
    arrives with that site in Origin.
    """

    def __init__(self, host: str, allow: Sequence[str] = ()) -> None:
        self.names = {name.casefold() for name in (*LOCAL, host, *allow)}
        self.open = not (
            host == "localhost" or (_address(host) and ipaddress.ip_address(host).is_loopback)
        )
        if self.open:
            self.names.add(socket.gethostname().casefold())

    def refusal(self, headers: Any, *, changes: bool) -> str:
        """Why a request is refused, or nothing. changes: whether it asks for more than a look."""
        host = headers.get("host") or ""
        name = hostname(host)
        if not (name in self.names or (self.open and _address(name))):
            return (
                f"this page does not answer to the name {host!r}; open it by its address, "
                "or start it with: clipag demo --allow NAME"
            )
        origin = headers.get("origin")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if (origin and origin.partition("://")[2] != host) or (
            elsewhere and headers.get("sec-fetch-mode") != "navigate"  # a link may lead here
        ):
            return "another site sent this request"
        kind = (headers.get("content-type") or "").partition(";")[0].strip()
        # What a form can send without asking first (the types of the CORS protocol) is not accepted.
        if changes and kind not in ("application/json", "application/octet-stream"):
            return "send application/json, or application/octet-stream for a picture"
        return ""


def hostname(host: str) -> str:
    """The name in a Host header without its port and the brackets of IPv6; nothing where it is malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]/@\s]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).casefold() if match else ""


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def listen(options: Any) -> socket.socket:
    """A socket at the host and port that listens already, so that no page is refused while the rest starts."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        command = type(options).__name__.lower()
        raise OSError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror}); "
            f"choose another: clipag {command} --port {(options.port + 1) % 65536}"
        ) from error


def address(listening: socket.socket, scheme: str = "http") -> str:
    """The address to open. A wildcard is no address: this machine's own stands for it."""
    host, port = listening.getsockname()[:2]
    name = LOCAL[1] if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}/"
