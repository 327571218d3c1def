"""What open pages are told as it happens, over a WebSocket.

A browser opens six streams of server-sent events to one host and lets the seventh page wait for ever; of these it
opens hundreds, and none holds a thread here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .guard import Guard
from .jobs import Channel, Mailbox


async def live(socket: WebSocket, channel: Channel, guard: Guard) -> None:
    """One page from hello to goodbye. One too many is told so, and tries again by itself."""
    if guard.refusal(socket.headers, changes=False):
        await socket.close(1008)
        return
    await socket.accept()
    loop, awake = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to wake
            loop.call_soon_threadsafe(awake.set)

    box = channel.open(wake)
    if box is None:
        await socket.send_text(encoded({"kind": "full", "most": channel.most}))
        await socket.close(1013)
        return
    listening = asyncio.create_task(_until_gone(socket, box))
    try:
        while (messages := box.take()) is not None:
            for message in messages:
                await socket.send_text(encoded(message))
            if not messages:
                await awake.wait()
                awake.clear()
    except (WebSocketDisconnect, RuntimeError, OSError):
        pass  # the page went away in the middle of a message
    finally:
        channel.leave(box)
        listening.cancel()


async def _until_gone(socket: WebSocket, box: Mailbox) -> None:
    try:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass  # a page has nothing to say here
    finally:
        box.close()


def encoded(content: Any) -> str:
    """JSON in ASCII: half a surrogate pair is escaped, too. ValueError for NaN and infinity, which JSON has not."""
    return json.dumps(content, allow_nan=False)
