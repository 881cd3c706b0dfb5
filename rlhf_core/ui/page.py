"""The frame of every HTML page: one file without scripts that needs no network, in the reader's light or dark mode.

The caller escapes text from data and models. A policy in the page lets nothing run or load but its own style, whatever
a text says.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable
from html import escape
from pathlib import Path

from rlhf_core.errors import UserError
from rlhf_core.inputs import open_file, path_of
from rlhf_core.outputs import write_whole
from rlhf_core.ui.text import shown

STYLE = """
:root { color-scheme: light dark; --text: #1d1f23; --soft: #5d6470; --line: #d9dde3; --card: #f5f6f8; --back: #fff;
  --good: #1a7f4b; --bad: #b3362c; --even: #6b7280 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa3af; --line: #353a42; --card: #1d2127;
  --back: #131519; --good: #4cc38a; --bad: #f0776c; --even: #9aa3af } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
  sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p, dl { max-width: 60rem } .soft { color: var(--soft); font-size: .875rem }
dl { display: grid; grid-template-columns: fit-content(38%) 1fr; gap: .15rem 1rem; font-size: .875rem }
dt { color: var(--soft); overflow-wrap: anywhere } dd { margin: 0; overflow-wrap: anywhere }
.note { border-left: 3px solid var(--line); padding-left: .8rem }
details { border-top: 1px solid var(--line); padding: .6rem 0 } summary { cursor: pointer; overflow-wrap: anywhere }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem }
"""


START = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="rlhf">'


def page_file(name: str, flag: str) -> Path:
    """Where to write the page that the user named with `flag`. A page of ours may be there, and nothing else.

    Raises `UserError`.
    """
    file = path_of(name, flag)
    if not file.parent.is_dir():
        raise UserError(f"{flag} {file}: its folder does not exist")
    if os.path.lexists(file):
        with open_file(file, flag) as stream:
            if not stream.read(len(START)).startswith(START.encode()):
                raise UserError(f"{flag} {file} exists and is no page of this command: give another name")
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(f"{flag} {file}: its folder can't be written to: {error.strerror}") from error
    return file


def write_page(file: Path, flag: str, page: str) -> None:
    """Write a page to the `file` that the user named with `flag`. Raises `UserError`."""
    try:
        write_whole(file, page)
    except OSError as error:
        raise UserError(f"{flag} {file}: {error.strerror}") from error


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """The HTML of a page with `title`, which is escaped, and `parts`, which are not. Control characters are shown."""
    style = shown(STYLE + style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    page = "\n".join(
        [
            START,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )
    return shown(page)
