"""The page of `rlhf preferences label --serve`: a small server for labellers here, or elsewhere with a token.

A page of another site can't label: every request needs the token, which only our page has, in a header that such a
page may not send, and a Host that is no name of theirs (DNS rebinding). On loopback whoever opens the page gets the
token; elsewhere its address must hold it. Answers go to the page as text in JSON, and are never read as HTML.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rlhf_core import UserError
from rlhf_core.commands import Screen, document, of_people, shown, template, to_json
from rlhf_tools.preferences.labelling import ANSWERS, Task, Work, conversation, thoughts_apart
from rlhf_tools.preferences.words import say

HERE = Path(__file__).parent
TOKEN = "X-RLHF-Token"
LARGEST = 1 << 16  # bytes of a request: a name, a row's id and a verdict
SLOWEST = 30  # seconds that a connection may be silent
LABELLERS = 200  # names, at most
LOCAL = ("localhost", "127.0.0.1", "::1")


class Refused(Exception):
    """A request that is not answered: a status, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # connections that wait: those of a few browsers at once

    def __init__(self, work: Work, host: str, port: int, lang: str) -> None:
        self.work, self.host, self.lang = work, host, lang
        self.token = secrets.token_urlsafe(24)
        self.local = is_loopback(host)
        self.names: set[str] = set()
        self.page = page(self.token, lang)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        address = f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"
        return address if self.local else f"{address}?token={self.token}"

    def allows(self, host: str) -> bool:
        """Whether a request may name us so: no name that others can point at us."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a bracket that is not closed
            return False
        if self.local:
            return name in LOCAL or name == self.host
        own = {*LOCAL, self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return name in own or is_address(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what went wrong here; a connection that is cut or silent is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SLOWEST
    server_version, sys_version = "rlhf", ""

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._act)

    def _answer(self, act: Callable[[], tuple[str, str]]) -> None:
        try:
            if not self.server.allows(self.headers.get("Host", "")):
                raise Refused(HTTPStatus.FORBIDDEN, "this server has another name")
            kind, content = act()
            self._send(HTTPStatus.OK, kind, content)
        except Refused as refused:
            self.close_connection = True  # what was sent with it is not read
            self._send(refused.status, "application/json", json.dumps({"error": str(refused)}))

    def _page(self) -> tuple[str, str]:
        parts = urlsplit(self.path)
        if parts.path != "/":
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        given = parse_qs(parts.query).get("token", [""])[0]
        if not self.server.local and not self._is_token(given):
            raise Refused(HTTPStatus.FORBIDDEN, "the address needs its token, as the terminal shows it")
        return "text/html", self.server.page

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _act(self) -> tuple[str, str]:
        if not self._is_token(self.headers.get(TOKEN, "")):
            raise Refused(HTTPStatus.FORBIDDEN, "the page is of another start of the server: load it again")
        if self.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only JSON is read")
        acts = {"/next": self._next, "/label": self._label, "/back": self._back}
        if self.path not in acts:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        given = self._body()
        name = given.get("labeller")
        if not isinstance(name, str) or not (name := name.strip()) or not name.isprintable() or len(name) > 64:
            raise Refused(HTTPStatus.BAD_REQUEST, "a name has up to 64 characters that can be printed")
        if name not in self.server.names and len(self.server.names) >= LABELLERS:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, f"{LABELLERS} names are here already")
        self.server.names.add(name)
        return "application/json", to_json(acts[self.path](name, given))

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request says its length, which is small")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no JSON") from error
        if not isinstance(found, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no JSON object")
        return found

    def _next(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        return self._told(name, self.server.work.next(name))

    def _back(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        task = self.server.work.back(name)
        return self._told(name, task) if task is not None else {"first": True}

    def _label(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        work, row, better, first = self.server.work, given.get("id"), given.get("better"), given.get("shown_first")
        if not all(isinstance(value, str) for value in (row, better, first)):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no label")
        if row not in work.rows or better not in ANSWERS or first not in ("a", "b"):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no label of a row that is here")
        try:
            work.answer(name, row, better, first)
        except OSError as error:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, f"the label can't be written: {error.strerror}") from error
        return self._next(name, given)

    def _told(self, name: str, task: Task | None) -> dict[str, Any]:
        found: dict[str, Any] = {"task": None if task is None else as_json(task), **self.server.work.progress(name)}
        if task is None:
            found["people"] = of_people(self.server.work.here())
        return found

    def _send(self, status: HTTPStatus, kind: str, content: str) -> None:
        body = content.encode("utf-8", "backslashreplace")
        self.send_response(status)
        for header, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",  # the address may hold the token
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """The terminal shows progress instead; addresses hold the token."""


def as_json(task: Task) -> dict[str, Any]:
    """A row for the page: nothing of which answer was chosen, and texts with their control characters shown."""
    return {
        "id": task.row.id,
        "shown_first": task.first,
        "turns": [[role, shown(content)] for role, content in conversation(task.row.prompt)],
        "answers": [[[thought, shown(content)] for thought, content in thoughts_apart(side)] for side in task.sides],
        "said": task.said,
    }


def page(token: str, lang: str) -> str:
    """The page, which holds the token."""
    script, style = ((HERE / f"label.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    body = template(HERE, "label.html").render()
    data = {"settings": json.dumps({"token": token, "header": TOKEN, "lang": lang})}
    return document("rlhf preferences label", [body], style, lang=lang, scripts=[script], data=data, connects=True)


def serve(work: Work, host: str, port: int, screen: Screen, lang: str) -> None:
    """Until Ctrl-C. Raises `UserError` for an address that can't be used."""
    try:
        server = Server(work, host, port, lang)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--serve: {host}, port {port}, can't be used: {why}. Another port: --port 0 takes a free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    try:
        screen.say(say(lang, "Open {url}", url=server.url), "bold")
        if not server.local:
            screen.say(
                say(lang, "Whoever has this address can label and read the answers; it is not encrypted."), "yellow"
            )
        thread.start()
        with screen.working(say(lang, "Waiting for labellers; Ctrl-C ends it …")) as told:
            told_until_stopped(server, told, lang)
    except KeyboardInterrupt:
        pass
    finally:
        if thread.is_alive():
            server.shutdown()
        server.server_close()


def told_until_stopped(server: Server, told: Callable[[str], None], lang: str) -> None:
    wait = threading.Event()
    while True:
        wait.wait(1.0)
        names = sorted(server.names)
        counts = []
        for name in names[:8]:
            found = server.work.progress(name)
            counts.append(f"{name} {found['done']:,}/{found['total']:,}")
        if counts:
            told(say(lang, "{counts}; Ctrl-C ends it", counts="  ".join(counts) + (" …" if len(names) > 8 else "")))
