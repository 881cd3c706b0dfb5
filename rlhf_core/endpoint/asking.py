"""Asks an endpoint for replies: within its limits and the budget, from the cache where it was asked before.

`openai` does the requests, with its retries: those that were cut, refused for their rate (after what Retry-After says)
or answered by a fault of the server. What an endpoint does not support (a schema, a temperature) is left out from then
on, once it has said so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from rlhf_core.credentials import masked
from rlhf_core.endpoint.budget import Budget, Spent, price_of
from rlhf_core.endpoint.cache import Cache
from rlhf_core.endpoint.client import SENT, Sent, address, connect, read_key, without_key
from rlhf_core.endpoint.limits import Rate, check_bounds
from rlhf_core.endpoint.replies import EndpointError, Reply, failure, read_reply, tokens_of
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
LOOK = 0.02  # seconds between two looks at whether a budget has room again
VERSION = 1  # of what a request is made of: another one finds nothing of this one's in the cache
# Parts of a request that some endpoints refuse, and by which word of their message that is seen.
OPTIONAL = {"response_format": ("response_format", "json_schema", "schema", "guided"), "temperature": ("temperature",)}
OPTIONAL |= {"seed": ("seed",)}

log = logging.getLogger("rlhf")


class Endpoint:
    """`base_url`: unset, OPENAI_BASE_URL or OpenAI's. `api_key_env`: the variable that holds the key; unset,
    OPENAI_API_KEY for an endpoint that was not named by `base_url`, and no key for one that was.

    `requests_per_minute`, `tokens_per_minute`, `max_cost` (dollars) and `max_calls` are of a run: each of its processes
    has an equal share. `prices`: `IN/OUT` in dollars for a million tokens, or a YAML file of `MODEL: [IN, OUT]`.
    `timeout`: seconds that one request may take. Raises `UserError` for what can't work.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str | None = None,
        *,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retries: int = 5,
        timeout: float = 120.0,
        max_cost: float | None = None,
        max_calls: int | None = None,
        prices: str | None = None,
        cache: bool = True,
    ) -> None:
        check_bounds({"concurrency": concurrency, "retries": retries, "timeout": timeout, "max_calls": max_calls})
        check_bounds({"max_cost": max_cost, "requests_per_minute": requests_per_minute})
        check_bounds({"tokens_per_minute": tokens_per_minute})
        self.model, self.concurrency, self.retries, self.timeout = model, concurrency, retries, timeout
        self.base_url = address(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        self.key_name = api_key_env or (None if base_url else "OPENAI_API_KEY")
        self._key = read_key(self.key_name, self.host)
        _import()
        price = price_of(model, prices)
        if max_cost is not None and price is None:
            raise UserError(
                f"max_cost={max_cost:g}: the price of {model!r} is not known. Give it: prices=IN/OUT, in dollars for a "
                "million tokens read and written (0/0 where it is free), or limit the calls: max_calls=N"
            )
        share = 1 / int(os.environ.get("WORLD_SIZE", 1))
        self.budget = Budget(price, max_cost, max_calls, share)
        self.cache = Cache() if cache else None
        self._requests, self._tokens = (Rate(_part(n, share)) for n in (requests_per_minute, tokens_per_minute))
        self._left_out: set[str] = set()  # of OPTIONAL, what the endpoint does not support
        self._limit_name = "max_tokens"
        self._place: tuple[int, asyncio.AbstractEventLoop] | None = None  # of which process
        self._client: openai.AsyncOpenAI | None = None
        self._at_once: asyncio.Semaphore
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc.rpartition("@")[2]

    @property
    def spent(self) -> Spent:
        return self.budget.spent

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The reply to `messages`. `schema`: a JSON schema that it should follow, where the endpoint can make it so.

        Another `seed` asks again; the same request is answered from the cache. Raises `EndpointError`, and `RunStopped`
        if the budget is spent.
        """
        request = {"messages": [dict(turn) for turn in messages], "max_tokens": max_tokens, "temperature": temperature}
        request |= {"seed": seed} if seed is not None else {}
        if schema is not None:
            form = {"name": "reply", "strict": True, "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        # On a loop of the endpoint's own, since its connections belong to one, and callers' loops come and go.
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answer(request), self._loop()))

    async def check(self) -> None:
        """Raise `UserError` if no call can be answered: by one of a few tokens, which is made each time."""
        request = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 16}
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._within_limits(request), self._loop()))
        except TimeoutError as error:
            raise UserError(str(error)) from error
        except EndpointError as error:
            if error.fatal:
                raise UserError(str(error)) from error

    def estimate(self, calls: int, prompt_tokens: float, reply_tokens: float) -> str:
        """What that many calls of this mean size will take, for people."""
        read, written = calls * prompt_tokens, calls * reply_tokens
        sizes = f"{calls:,} calls, about {_short(read)} tokens read and {_short(written)} written"
        price = self.budget.price
        if price is None:
            return f"{sizes}; the price of {self.model} is not known (prices=IN/OUT)"
        return f"{sizes}: about ${price.of(read, written):.2f} ({price})"

    # In the endpoint's own thread

    async def _answer(self, request: dict[str, Any]) -> Reply:
        key = self._cache_key(request)
        lock = self._asking.setdefault(key, asyncio.Lock())
        async with lock:  # the same request is made once
            if self.cache is not None and (found := self.cache.find(key)) is not None:
                self.budget.found_in_cache()
                return replace(Reply(**json.loads(found)), cached=True)
            async with self._at_once:
                reply = await self._within_limits(request)
            if self.cache is not None:
                self.cache.keep(key, json.dumps(asdict(reply)))
            return reply

    def _cache_key(self, request: Mapping[str, Any]) -> str:
        text = json.dumps([VERSION, self.base_url, self.model, request], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    async def _within_limits(self, request: dict[str, Any]) -> Reply:
        prompt, most = tokens_of(request["messages"]), request["max_tokens"]

        async def again(sent: Sent) -> None:
            held, sent.held, sent.open = sent.held, None, False
            self.budget.settle(held or 0.0, prompt, most)
            sent.held = await self._reserve(prompt, most)

        sent = Sent(await self._reserve(prompt, most), again)
        SENT.set(sent)
        try:
            wait = max(self._requests.take(1), self._tokens.take(prompt + most))
            if wait:
                await asyncio.sleep(wait)
            reply = await self._supported(request)
            sent.open = False
            self.budget.settle(sent.held or 0.0, reply.prompt_tokens, reply.completion_tokens)
            sent.held = None
            return reply
        finally:
            if sent.held is not None:
                self.budget.settle(sent.held, *((prompt, most) if sent.open else (0, 0)))

    async def _reserve(self, prompt: int, most: int) -> float:
        while (held := self.budget.reserve(prompt, most)) is None:  # calls under way may take less than they could
            await asyncio.sleep(LOOK)
        return held

    async def _supported(self, request: dict[str, Any]) -> Reply:
        """The reply to the parts of the request that the endpoint supports."""
        while True:
            body = {name: value for name, value in request.items() if name not in self._left_out}
            body[self._limit_name] = body.pop("max_tokens")
            status, answered = await self._post({"model": self.model, **body})
            try:
                if status is None:
                    reply = read_reply(answered, request)
                    refusal = None if reply.refusal is None else without_key(reply.refusal, self._key)
                    return replace(reply, text=without_key(reply.text, self._key), refusal=refusal)
                if status not in (400, 422) or not self._leave_out(str(answered), body):
                    raise failure(status, str(answered), self.model, self.base_url, self.key_name)
            except EndpointError as error:
                raise EndpointError(self._clean(f"{self.host}: {error}"), fatal=error.fatal) from None

    def _leave_out(self, message: str, body: Mapping[str, Any]) -> bool:
        """Whether the refusal names something that can be left out, and was not yet."""
        said = message.lower()
        if "max_completion_tokens" in said and "max_tokens" in body:
            self._limit_name = "max_completion_tokens"
            return True
        for name, words in OPTIONAL.items():
            if name in body and any(word in said for word in words):
                if name not in self._left_out and name == "temperature":
                    log.warning("%s takes no temperature: the same question may get another reply", self.host)
                self._left_out.add(name)
                return True
        return False

    async def _post(self, body: dict[str, Any]) -> tuple[int | None, Any]:
        """(None, what was answered) or (the status of a refusal, its message)."""
        import openai

        assert self._client is not None
        try:
            return None, await self._client.post("/chat/completions", cast_to=object, body=body)
        except openai.APITimeoutError as error:
            raise TimeoutError(f"{self.host}: no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            raise EndpointError(self._clean(f"{self.host} can't be reached: {why}"), fatal=True) from None
        except openai.APIStatusError as error:
            to = error.response.headers.get("location", "")
            return error.status_code, f"{error.message} {error.param or to}".strip()
        except EndpointError as error:
            raise EndpointError(f"{self.host}: {error}") from None
        except (openai.APIError, ValueError) as error:  # no JSON, or not what it says that it is
            raise EndpointError(self._clean(f"{self.host}: its answer can't be read: {error}")) from None

    def _clean(self, text: str) -> str:
        """`text` without the key, which an endpoint may repeat."""
        return masked(without_key(text, self._key))

    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._place is None or self._place[0] != os.getpid():
            loop = asyncio.new_event_loop()
            self._place = (os.getpid(), loop)
            self._at_once = asyncio.Semaphore(self.concurrency)
            self._client = connect(
                self._key,
                self.base_url,
                retries=self.retries,
                timeout=self.timeout,
                is_openai=self.key_name == "OPENAI_API_KEY",
            )
            threading.Thread(target=loop.run_forever, name=f"endpoint-{self.host}", daemon=True).start()
            weakref.finalize(self, _end, loop, self._client, os.getpid())
        return self._place[1]


def _end(loop: asyncio.AbstractEventLoop, client: openai.AsyncOpenAI, process: int) -> None:
    """Close the connections of an endpoint that nobody has any more, and end its thread."""

    async def close() -> None:
        await client.close()
        loop.call_soon(loop.stop)

    if process == os.getpid() and loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)


def _part(limit: float | None, share: float) -> float | None:
    return None if limit is None else limit * share


def _short(number: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _import() -> None:
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError("an endpoint needs openai: pip install 'rlhf-core[endpoint]'") from error
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line of run.log for each call
