"""The connections of an endpoint: to its own address alone, with bounds on what is read, and each request counted.

`openai` retries by itself what was cut, refused or late. A request that was sent and not refused may have been answered
and billed, whether or not the answer arrived: `Sent` counts it as the most that it may cost.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlhf_core.credentials import masked
from rlhf_core.endpoint.replies import EndpointError
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    import openai

LARGEST = 16 << 20  # bytes of an answer
_PIECE = re.compile(r"[A-Za-z0-9_+/=-]{8,}")


@dataclass
class Sent:
    """A call under way. `held`: what the budget holds back for it, None while it holds nothing. `open`: a request was
    sent, and neither refused nor answered in full.
    """

    held: float | None
    again: Callable[[Sent], Awaitable[None]]  # settles a request that is open, and holds back what another one may take
    open: bool = False


SENT: ContextVar[Sent] = ContextVar("SENT")


def connect(key: str | None, base_url: str, *, retries: int, timeout: float, is_openai: bool) -> openai.AsyncOpenAI:
    """A client of `openai` that follows no redirect: what is sent goes to the address that was named alone.

    `is_openai`: the environment's organization and project are meant for it.
    """
    import openai

    http = openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        timeout=timeout,
        event_hooks={"request": [_before], "response": [lambda response: _after(response, timeout)]},
    )
    return openai.AsyncOpenAI(
        api_key=key or "none",
        base_url=base_url,
        max_retries=retries,
        timeout=timeout,
        organization=None if is_openai else "",
        project=None if is_openai else "",
        default_headers={"Accept-Encoding": "identity"},
        http_client=http,
    )


async def _before(request: Any) -> None:
    sent = SENT.get()
    if sent.open:
        await sent.again(sent)

    async def trace(event: str, _: Any) -> None:
        sent.open = sent.open or event.endswith("send_request_body.complete")

    request.extensions["trace"] = trace


async def _after(response: Any, timeout: float) -> None:
    """Called before the body is read."""
    if response.status_code >= 300:
        SENT.get().open = False
    if response.headers.get("content-encoding", "identity").lower() != "identity":  # could become any size
        raise EndpointError("its answer is compressed, which was not asked for")
    response.stream = _bounded(response.stream, time.monotonic() + timeout)


def _bounded(stream: Any, end: float) -> Any:
    """`stream`, which ends with an error where an answer is too large or comes too slowly."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in stream:
                size += len(part)
                if size > LARGEST:
                    raise EndpointError(f"its answer has more than {LARGEST >> 20} MiB")
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the answer comes too slowly")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


def address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"base_url={masked(url)}: write an address such as http://localhost:8000/v1")
    return url.rstrip("/")


def read_key(name: str | None, host: str) -> str | None:
    if name is None:
        return None
    if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
        raise UserError("api_key_env takes the name of an environment variable, such as JUDGE_API_KEY, and not a key")
    told = name if name.isupper() else "that api_key_env names"  # else it may be a key
    found = os.environ.get(name, "").strip()
    if not found:
        raise UserError(
            f"{host} needs a key, and the variable {told} is not set: export {name if name.isupper() else 'NAME'}=…, "
            "or name another one, api_key_env=VARIABLE; for a server without keys give its address, "
            "base_url=http://localhost:8000/v1"
        )
    if re.fullmatch("[!-~]+", found) is None:
        raise UserError(
            f"the variable {told} holds spaces, line breaks or letters that no key has: "
            "is it one key, and nothing else?"
        )
    return found


def without_key(text: str, key: str | None) -> str:
    """`text` without the key, which an endpoint may repeat, whole or in part."""
    if not key:
        return text
    return _PIECE.sub(lambda piece: "***" if piece[0] in key else piece[0], text.replace(key, "***"))
