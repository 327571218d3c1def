"""Who may talk to the page: requests by another name, or sent by another page, are refused."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Checks headers. A name that is rebound to this machine (DNS rebinding) arrives as that name in Host, and a
    form on another site arrives with that site in Origin."""

    def __init__(self, host: str, allow: Sequence[str] = ()) -> None:
        self.names = {name.casefold() for name in (*LOCAL, host, *allow)}
        self.open = not _loopback(host)
        if self.open:
            self.names.add(socket.gethostname().casefold())

    def refusal(self, headers: Any, *, changes: bool) -> str:
        """Why a request is refused, or nothing. headers: with a `get` that minds no case; changes: whether
        it asks for more than a look."""
        name = hostname(headers.get("Host") or "")
        if not (name in self.names or (self.open and _address(name))):
            return (
                f"this page does not answer to the name {name!r}; open it by its address, "
                "or start it with: clipag demo --allow NAME"
            )
        origin = headers.get("Origin")
        if origin and origin.partition("://")[2] != headers.get("Host"):
            return "another site sent this request"
        elsewhere = headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if elsewhere and headers.get("Sec-Fetch-Mode") != "navigate":  # a link may lead here
            return "another site sent this request"
        kind = (headers.get("Content-Type") or "").partition(";")[0].strip()
        # What a form can send without asking first (the types of the CORS protocol) is not accepted.
        if changes and kind not in ("application/json", "application/octet-stream"):
            return "send application/json, or application/octet-stream for a picture"
        return ""


def hostname(host: str) -> str:
    """The name in a Host header, without the port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].casefold()
    return host.partition(":")[0].casefold()


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback(host: str) -> bool:
    return host == "localhost" or (_address(host) and ipaddress.ip_address(host).is_loopback)
