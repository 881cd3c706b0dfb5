"""What an endpoint answers, read: a reply, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core.errors import excerpt

MOST = 1_000_000_000  # tokens of a call, which no endpoint reads


class EndpointError(Exception):
    """A call that failed. `fatal`: every other one will, too: the key, the address or the model is wrong."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


@dataclass(frozen=True)
class Reply:
    """`finished`: it was not cut at the limit. `refusal`: what the model or a filter said instead of an answer.
    `cached`: it cost nothing this time.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool = True
    refusal: str | None = None
    cached: bool = False


def read_reply(answered: Any, request: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion. Raises `EndpointError` for what is none."""
    try:
        choice = answered["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        reason = choice.get("finish_reason")
        refusal = message.get("refusal") or ("stopped by its filter" if reason == "content_filter" else None)
        if not isinstance(text, str):  # a list of parts
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        used = answered.get("usage")
        read, written = (_count(used, name) for name in ("prompt_tokens", "completion_tokens"))
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise EndpointError(f"no chat completion: {excerpt(answered, 200)}") from error
    read = tokens_of(request["messages"]) if read is None else read
    written = tokens(text) if written is None else written
    return Reply(text, read, written, reason != "length", refusal)


def _count(used: Any, name: str) -> int | None:
    """A number of tokens that an endpoint reports, if it can be one."""
    value = used.get(name) if isinstance(used, dict) else None
    return value if type(value) is int and 0 <= value <= MOST else None


def failure(status: int, message: str, model: str, base_url: str, key_name: str | None) -> EndpointError:
    """What a refusal with this status means."""
    said = f"{status}: {excerpt(message, 300)}"
    if status in (401, 403):
        without = "calls without a key: name its variable, api_key_env="
        key = f"the key in {key_name}" if key_name else without
        return EndpointError(f"it does not accept {key} ({said})", fatal=True)
    if 300 <= status < 400:
        return EndpointError(f"it sends requests on to another address, which is not followed ({said})", fatal=True)
    if status == 404:
        return EndpointError(f"there is no model {model!r}, or no such address as {base_url} ({said})", fatal=True)
    return EndpointError(f"it answered {said}", fatal="quota" in message.lower() or status == 402)


def tokens_of(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(tokens(turn["content"]) for turn in messages)


def tokens(text: str) -> int:
    """About as many as a tokenizer would make of it: one for four characters of ASCII, one for each other."""
    plain = sum(character.isascii() for character in text)
    return -(-plain // 4) + len(text) - plain
