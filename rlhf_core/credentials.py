"""Passwords, tokens and keys: refused in a configuration, which is written down, and masked in messages and logs.

A secret belongs in the environment, where rewards and libraries read it (`os.environ["JUDGE_API_KEY"]`, `HF_TOKEN`).
Imports next to nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.errors import UserError

MASK = "***"
# Endings of names, in small letters without what is between words. A token of a tokenizer is none: `eos_token`.
_WORDS = (
    *("apikey", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "authorization"),
    *("privatekey", "accesskey", "secretkey", "accountkey", "subscriptionkey", "accesskeyid", "authheader"),
)
_TOKENS_OF = (
    *("hub", "hf", "huggingface", "hugging", "access", "auth", "api", "bearer", "refresh", "session", "secret"),
    *("github", "gh", "gitlab", "git", "openai", "anthropic", "azure", "google", "wandb", "slack", "bot", "user"),
    *("personal", "security", "service", "account", "client", "server", "judge", "login", "private", "jwt"),
)
_ENDS = (*_WORDS, *(f"{name}token" for name in _TOKENS_OF))
_WHOLE = {"token", "tokens", "auth", "authentication", "pwd", "pw", "pass", "bearer", "cookie", "jwt"}
_IN_URLS = ("key", "sig", "signature")

_FORMATS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-(?=[\w-]{0,99}\d)[\w-]{16,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bxox[a-z]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.{0,5000}?-----END [A-Z ]*PRIVATE KEY-----)?",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)(?=[^\s\"']{0,99}[\d=])[\w.~+/=-]{8,}")
_HEADER = re.compile(r"(?im)\b((?:proxy-)?authorization|x-api-key|(?:set-)?cookie)(: *)(?=\S)[^\n\"']+")
_IN_URL = re.compile(r"(?i)(\bhttps?://|\b[a-z][a-z0-9+.-]{0,20}://(?=[^\s/?#@:]{0,99}:))[^\s/?#@\"'<>]{0,999}@(?=\S)")
_QUERY = re.compile(r"([?&;]([\w.-]+)=)([^\s&;#\"'<>]+)")
_NAME = re.compile(r"""(?<![\w.-])(["']?)([\w.-]{1,99})\1 {0,9}([=:]) {0,9}""")
_VALUE = re.compile(r"""(["'])[^\n"']{0,99}\w[^\n]{0,999}?\1|[^\s,;"'&)\]}]*\w[^\s,;"'&)\]}]*""")


def is_secret(name: str) -> bool:
    """Whether a value of this name, however it is spelt, is likely a secret: `api_key`, `hubToken`, `X-API-Key`."""
    plain = re.sub(r"[\W_]+", "", name).lower().rstrip("0123456789")
    return plain in _WHOLE or plain.endswith(_ENDS)


def masked(text: str) -> str:
    """`text` with secrets replaced: in URLs, after names of secrets, in known formats, and values of the environment.

    For messages, logs and what is noted of a run; not for data, where these are text like any other.
    """
    text, parts, position = _mask_values(text), [], 0
    for found in _NAME.finditer(text):
        quote, name, sign = found.groups()
        value = _VALUE.match(text, found.end()) if found.start() >= position and is_secret(name) else None
        # After a colon only where both are quoted, as in JSON: else it is prose.
        if value and MASK not in value[0] and (sign == "=" or (quote and value[1])):
            parts += [text[position : found.end()], (value[1] or "") + MASK + (value[1] or "")]
            position = value.end()
    return "".join([*parts, text[position:]])


def _mask_values(text: str) -> str:
    for value in _of_environment():
        text = text.replace(value, MASK)
    text = _IN_URL.sub(rf"\1{MASK}@", text)
    text = _QUERY.sub(lambda m: m[1] + MASK if is_secret(m[2]) or m[2].lower().endswith(_IN_URLS) else m[0], text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    return _BEARER.sub(rf"\1\2{MASK}", _FORMATS.sub(MASK, text))


def _of_environment() -> list[str]:
    """What variables with the name of a secret hold, the longest first; short ones might be words, others are paths."""
    names = [name for name in os.environ if is_secret(name) or name.lower().endswith(("token", "_key"))]
    held = {os.environ[name] for name in names if not os.path.isabs(os.environ[name])}
    return sorted((v for v in held if len(v) >= 12 or (len(v) >= 8 and re.search(r"\d", v))), key=len, reverse=True)


def refuse(value: Any, where: str) -> None:
    """Raise `UserError` if a setting given at `where` has the name of a secret, or holds one. Nothing of it is told."""
    for name, each in _named(value):
        advice = f"{where}: what a run is made of is written down, so it takes no secrets"
        if name and is_secret(name) and isinstance(each, str) and each:
            raise UserError(
                f"{advice}, and {name} looks like one. Set an environment variable and read it where it is used: "
                f'os.environ["{_variable(name)}"] in a reward; HF_TOKEN is read for the Hub'
            )
        if isinstance(each, str) and _mask_values(each) != each:
            raise UserError(
                f"{advice}, and {name or 'this'} holds one: {_mask_values(each)}. Set an environment variable and read "
                "it where it is used; a password for a URL goes into ~/.netrc"
            )


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner, name)
    else:
        yield name, value


def _variable(name: str) -> str:
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).upper()
