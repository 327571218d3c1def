"""`clipag serve`: loss and gradient of pictures for programs that are not Python, over a WebSocket (docs/serve.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import sys
from typing import Any
from urllib.parse import urlsplit

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import clip
from ..losses.rendering import SemanticLoss
from ..options.tools import Serve
from ..weights import registry
from .guard import LOCAL, address, listen

log = logging.getLogger(__name__)
MOST_PROMPTS, LONGEST, MOST_VIEWS = 64, 1000, 64
# What a client's message can be the reason of; anything else is an error of ours and ends the connection.
WRONG = (ValueError, TypeError, KeyError, RuntimeError, OSError, OverflowError, RecursionError)


class LossServer:
    """The connections of one server. `app` is the ASGI application; computing is done by one thread at a time."""

    def __init__(self, options: Serve) -> None:
        self.options, self.clients, self.turn = options, 0, asyncio.Lock()
        self.models: dict[str, Any] = {}
        self.app = Starlette(routes=[WebSocketRoute("/", self.connect)])

    async def connect(self, socket: WebSocket) -> None:
        """One client from hello to goodbye."""
        origin = socket.headers.get("origin")
        if origin and origin not in self.options.allow and urlsplit(origin).hostname not in LOCAL:
            log.warning("refused a page of %s; `--allow %s` lets it in", origin, origin)
            await socket.close(1008)
            return
        if self.clients >= self.options.clients:
            await socket.close(1013)
            return
        self.clients += 1
        try:
            await socket.accept()
            await self.talk(socket)
        except WebSocketDisconnect:
            pass
        finally:
            self.clients -= 1

    async def talk(self, socket: WebSocket) -> None:
        """Answers messages; one that makes no sense is answered with an error."""
        loss: SemanticLoss | None = None
        header: dict[str, Any] | None = None  # of the picture that comes next
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text, picture = message.get("text"), message.get("bytes")
            try:
                if picture is not None:
                    given, header = header, None
                    if given is None or loss is None:
                        raise ValueError("a picture needs a config and a grad message before it")
                    self.check(given)
                    async with self.turn:
                        value, gradient = await run_in_threadpool(_gradient, loss, given, picture)
                    answer = {"type": "result", "id": given.get("id"), "loss": value}
                    await socket.send_text(json.dumps(answer))
                    await socket.send_bytes(gradient)
                    continue
                data = json.loads(text or "")
                kind = data.get("type") if isinstance(data, dict) else None
                if kind == "config":
                    async with self.turn:
                        loss = await run_in_threadpool(self.objective, data)
                    device = str(loss.model.logit_scale.device)
                    ready = {"type": "ready", "device": device, "model": loss.model.name}
                    await socket.send_text(json.dumps(ready))
                elif kind == "grad":
                    header = data  # looked at when its picture comes: one pair of answers to both
                else:
                    raise ValueError('a message is JSON with "type": "config" or "grad"')
            except WRONG as error:
                why: dict[str, Any] = {
                    "type": "error",
                    "message": f"{error}" or type(error).__name__,
                }
                if picture is not None:
                    why["id"] = (given or {}).get("id")
                await socket.send_text(json.dumps(why))
                if picture is not None:  # whoever sent a picture waits for two answers
                    await socket.send_bytes(b"")

    def objective(self, data: dict[str, Any]) -> SemanticLoss:
        """The loss of a config message. ValueError for what it may not ask for."""
        names = [str(data.get(name) or "") for name in ("pretrained", "model")]
        found = [record.key for record in map(registry.get, names) if record]
        key = found[0] if found else self.options.model
        if key not in self.models:
            self.models[key] = clip.load_model(key, self.options.device or None)
            self.models[key].requires_grad_(False)
        prompts, negatives = data.get("prompt"), data.get("negatives", [])
        texts = [*(_texts(prompts) or {}), *(_texts(negatives) or {})]
        views, fill = data.get("augs", data.get("views", 4)), data.get("fill", 1.0)
        if len(texts) > MOST_PROMPTS or any(len(text) > LONGEST for text in texts):
            raise ValueError(f"at most {MOST_PROMPTS} texts of at most {LONGEST} characters")
        if not isinstance(views, int) or not 0 <= views <= MOST_VIEWS:
            raise ValueError(f"augs is {views!r}; it must be a whole number from 0 to {MOST_VIEWS}")
        colours = fill if isinstance(fill, list) else [fill]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in colours):
            raise ValueError(f"fill is {fill!r}; give one number or three in [0, 1]")
        return SemanticLoss(
            self.models[key],
            _texts(prompts),
            negatives=_texts(negatives),
            views=views,
            fill=fill,
            seed=int(data.get("seed") or 0) % 2**31,
        ).to(self.models[key].logit_scale.device)

    def check(self, data: dict[str, Any]) -> None:
        """ValueError for a grad message whose picture cannot come."""
        sides: list[Any] = [data.get("w"), data.get("h")]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"w and h are {sides}; they must be whole numbers of pixels")
        if sides[0] * sides[1] > self.options.pixel_limit * 1e6:
            raise ValueError(f"{sides[0]}x{sides[1]} is over {self.options.pixel_limit} megapixels")
        if not isinstance(data.get("step", 0), int):
            raise ValueError(f"step is {data['step']!r}; it must be a whole number")


def _texts(given: Any) -> dict[str, float]:
    """Texts with weights; those of a plain list weigh alike, and one together."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return {text: 1 / len(given) for text in given}
    if isinstance(given, dict):
        return {str(text): float(weight) for text, weight in given.items()}
    raise ValueError("prompt is a text, a list of texts, or texts with weights")


def _gradient(loss: SemanticLoss, header: dict[str, Any], picture: bytes) -> tuple[float, bytes]:
    """Loss, and its gradient by float32 RGBA (h, w, 4); values outside [0, 1] are clamped inside the graph."""
    width, height = header["w"], header["h"]
    if len(picture) != width * height * 16:
        raise ValueError(
            f"{len(picture)} bytes came; {width}x{height} RGBA takes {width * height * 16}"
        )
    rgba = torch.frombuffer(bytearray(picture), dtype=torch.float32).view(height, width, 4)
    if not bool(torch.isfinite(rgba).all()):
        raise ValueError("the picture has values that are not finite")
    rgba = rgba.to(loss.text_features.device).requires_grad_()
    display = rgba[..., :3].clamp(0, 1).permute(2, 0, 1)[None]
    value = loss(display, int(header.get("step", 0)) % 2**31)
    (gradient,) = torch.autograd.grad(value, rgba)
    if not (torch.isfinite(value) and bool(torch.isfinite(gradient).all())):
        raise ValueError("the loss became non-finite")
    return value.item(), gradient.cpu().numpy().tobytes()


def run(options: Serve) -> int:
    """Serves until Ctrl-C; the address is printed once clients can connect. OSError where the port is taken."""
    import uvicorn

    listening = listen(options)
    if options.host not in LOCAL:
        log.warning("everybody who reaches %s can use this server", options.host)
    sys.stdout.write(f"{address(listening, 'ws').rstrip('/')}\n")
    sys.stdout.flush()
    size = int(options.pixel_limit * 1e6) * 16 + 65536
    server = uvicorn.Config(LossServer(options).app, ws_max_size=size, log_level="warning")
    with contextlib.suppress(KeyboardInterrupt), listening:
        uvicorn.Server(server).run([listening])
    return 0
