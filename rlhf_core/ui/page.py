"""The frame of every HTML page: one file that needs no network, in the reader's light or dark mode.

The caller escapes text from data and models. A policy in the page lets nothing run or load but its own style and
scripts, whatever a text says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from rlhf_core.errors import UserError
from rlhf_core.inputs import open_file, path_of
from rlhf_core.outputs import write_whole
from rlhf_core.ui.text import shown

HERE = Path(__file__).parent
START = "<!doctype html>\n<!-- a page of rlhf -->"


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


def document(
    title: str,
    parts: Iterable[str],
    style: str = "",
    *,
    lang: str = "en",
    scripts: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    connects: bool = False,
) -> str:
    """The HTML of a page with `title`, which is escaped, and `parts`, which are not. Control characters are shown.

    `scripts` are ours, and nothing else runs; `data` is text for them, by id: JSON or base64, without `<`. `connects`:
    they may ask the server that the page is from.
    """
    style = shown((HERE / "page.css").read_text(encoding="utf-8") + style)
    if wrong := [name for name, text in (data or {}).items() if "<" in text]:
        raise ValueError(f"data of a page must not hold <: {wrong}")
    allowed = " ".join(map(_source, scripts)) or "'none'"
    policy = f"default-src 'none'; style-src {_source(style)}; script-src {allowed}; "
    policy += "connect-src 'self'; " if connects else ""
    policy += "base-uri 'none'; form-action 'none'"
    return (
        _environment()
        .get_template("frame.html")
        .render(
            lang=lang,
            title=shown(title),
            policy=Markup(policy),
            style=Markup(style),
            body=Markup(shown("\n".join(parts))),
            scripts=[Markup(script) for script in scripts],
            data={name: Markup(text) for name, text in (data or {}).items()},
        )
    )


def template(folder: Path, name: str) -> Template:
    """A template of ours. What it is given is escaped, and shows its control characters once it is in a page."""
    return _environment(folder).get_template(name)


@functools.cache
def _environment(folder: Path = HERE) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(text: str) -> str:
    """What a policy calls a style or a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
