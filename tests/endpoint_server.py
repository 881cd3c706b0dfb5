"""A real HTTP server on loopback that speaks as much of OpenAI's API as judges and sampling need, and misbehaves on request.

    with EndpointServer() as server:                      # server.url, server.requests, server.most_at_once
        server.next = [too_many(0.05), broken(500), cut()]  # one for each request from now on, then as usual

What it says is `answer`, a function of the request that returns text or a `Reply`. The usual one is a judge as gullible
as can be (`tests/gullible.py`), which answers questions where it is not asked to judge.
By hand: `python -m tests.endpoint_server 8765`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.gullible import Judge


@dataclass(frozen=True)
class Request:
    """A chat completion that was asked for. `number` counts them from 1, in the order in which they came."""

    number: int
    model: str
    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None
    body: dict[str, Any]
    headers: dict[str, str]
    time: float

    @property
    def text(self) -> str:
        """All turns, as one text."""
        return "\n".join(str(turn.get("content")) for turn in self.messages)


@dataclass(frozen=True)
class Reply:
    """What the server does with a request. `text=None`: it says what it would say otherwise.

    `wait`: seconds before it answers. `cut`: the connection ends before the answer, or inside it. `body`: bytes that are
    sent instead of the JSON. `usage`: the tokens that it reports. `pause`: seconds between two pieces of the answer.
    `refusal`: as OpenAI has it, beside an empty text.
    """

    text: str | None = None
    status: int = 200
    error: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    wait: float = 0.0
    cut: Literal["before", "inside"] | None = None
    body: bytes | None = None
    usage: dict[str, Any] | None = None
    pause: float = 0.0
    refusal: str | None = None
    finish_reason: str = "stop"


def too_many(seconds: float) -> Reply:
    """429, to be tried again after `seconds`."""
    return Reply(status=429, error="Rate limit reached", headers=(("Retry-After", f"{seconds:g}"),))


def broken(status: int = 500) -> Reply:
    return Reply(status=status, error="The server had an error while processing your request")


def slow(seconds: float) -> Reply:
    return Reply(wait=seconds)


def cut(where: Literal["before", "inside"] = "before") -> Reply:
    return Reply(cut=where)


def garbled(body: bytes = b'{"choices": [{"mess') -> Reply:
    """200, with a body that is no JSON."""
    return Reply(body=body)


def refusal(text: str = "I'm sorry, but I can't help with that.") -> Reply:
    return Reply(text="", refusal=text)


class EndpointServer:
    """Serves in threads of its own from `with` on. `models` are those that it has; `key`: the one that it wants.

    `schemas=False`: it refuses `response_format` of type json_schema, as small servers do.
    """

    def __init__(
        self,
        answer: Callable[[Request], str | Reply] | None = None,
        *,
        models: Sequence[str] = ("loopback",),
        key: str | None = None,
        schemas: bool = True,
        port: int = 0,
    ) -> None:
        self.answer: Callable[[Request], str | Reply] = answer or Judge()
        self.models, self.key, self.schemas = tuple(models), key, schemas
        self.requests: list[Request] = []  # chat completions, whatever became of them
        self.next: list[Reply | None] = []  # what becomes of the next ones; None: as usual
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"server_of": self}))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> EndpointServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[Request, Reply]:
        """Note a request, and decide what becomes of it."""
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        with self._lock:
            number = len(self.requests) + 1
            request = Request(number, body["model"], body["messages"], schema, body, headers, time.monotonic())
            self.requests.append(request)
            planned = self.next.pop(0) if self.next else None
        if (wrong := self._refused(request)) is not None:
            return request, wrong
        reply = planned or Reply()
        if reply.text is None and reply.status == 200 and reply.body is None:
            said = self.answer(request)
            usual = said if isinstance(said, Reply) else Reply(said)
            reply = replace(usual, wait=reply.wait or usual.wait, cut=reply.cut or usual.cut)
        return request, reply

    def _refused(self, request: Request) -> Reply | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and given != self.key:  # OpenAI's message has the key in it
            return Reply(status=401, error=f"Incorrect API key provided: {given}.")
        if request.model not in self.models:
            return Reply(
                status=404, error=f"The model `{request.model}` does not exist or you do not have access to it."
            )
        if not self.schemas and request.body.get("response_format", {}).get("type") == "json_schema":
            return Reply(status=400, error="response_format.type: json_schema is not supported by this server")
        return None

    def busy(self, more: int) -> None:
        with self._lock:
            self._at_once += more
            self.most_at_once = max(self.most_at_once, self._at_once)


class _Handler(BaseHTTPRequestHandler):
    server_of: EndpointServer
    protocol_version = "HTTP/1.1"  # connections are kept

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            data = [
                {"id": name, "object": "model", "created": 0, "owned_by": "loopback"} for name in self.server_of.models
            ]
            self._send(200, {"object": "list", "data": data})
        elif self.path.startswith("/v1/models/") and self.path.rsplit("/", 1)[1] in self.server_of.models:
            self._send(
                200, {"id": self.path.rsplit("/", 1)[1], "object": "model", "created": 0, "owned_by": "loopback"}
            )
        else:
            self._send(404, _error("Not found", 404))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._send(404, _error(f"Unknown request URL: POST {self.path}", 404))
            return
        self.server_of.busy(+1)
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request, reply = self.server_of.take(body, headers)
            time.sleep(reply.wait)
        finally:
            self.server_of.busy(-1)
        self._reply(request, reply)

    def _reply(self, request: Request, reply: Reply) -> None:
        if reply.cut == "before":
            self.close_connection = True
            self.connection.close()
        elif reply.status != 200:
            self._send(reply.status, _error(reply.error, reply.status), reply.headers)
        else:
            body = reply.body or _completion(request, reply)
            self._send(200, body, reply.headers, half=reply.cut == "inside", pause=reply.pause)

    def _send(
        self,
        status: int,
        value: Any,
        headers: Sequence[tuple[str, str]] = (),
        *,
        half: bool = False,
        pause: float = 0.0,
    ) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, text)
        self.end_headers()
        for start in range(0, len(body), 16 if pause else len(body) or 1):
            time.sleep(pause)
            self.wfile.write(body[start : start + 16] if pause else body[: len(body) // 2] if half else body)
        self.close_connection = self.close_connection or half

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # a client that has hung up
            pass

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _error(message: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": status}}


def _completion(request: Request, reply: Reply) -> dict[str, Any]:
    text = reply.text or ""
    message = {"role": "assistant", "content": text, "refusal": reply.refusal}
    asked, said = (max(1, len(each.encode()) // 4) for each in (request.text, text))
    return {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion",
        "created": 0,
        "model": request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}],
        "usage": reply.usage or {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


if __name__ == "__main__":
    with EndpointServer(port=int(sys.argv[1])) as serving:
        print(f"{serving.url}, with the model {', '.join(serving.models)}", flush=True)
        threading.Event().wait()
