"""What is said of rows that no formatter reads: the nearest format, and a line to copy that names the columns.

The names in it are a guess, by the names and contents of the columns.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_core.data.left_out import NO_FORMAT
from rlhf_core.formatter import Formatter
from rlhf_core.grammar import DataSpec

DEEPEST = 3  # levels of objects that a guess looks into
# Words of names that say what a column is, the most telling first.
WORDS = {
    "chosen": ("chosen", "preferred", "accepted", "winner", "better", "best", "good", "win", "positive", "pos"),
    "rejected": ("rejected", "dispreferred", "loser", "worse", "worst", "bad", "lose", "negative", "neg"),
    "system": ("system", "persona"),
    "instruction": ("instruction", "instructions", "task", "指令"),
    "prompt": (
        *("prompt", "question", "query", "problem", "ask", "request", "user", "human", "input", "in", "src"),
        *("q", "frage", "pregunta", "问", "问题", "提问", "题目", "输入"),
    ),
    "completion": (
        *("completion", "answer", "response", "reply", "output", "target", "assistant", "bot", "gpt", "solution"),
        *("result", "out", "tgt", "a", "antwort", "respuesta", "答", "回答", "答案", "回复", "输出"),
    ),
}


PAIR = ("chosen", "rejected")
NO_TEXT = {"id", "ids", "uid", "uuid", "url", "link", "path", "file", "lang", "language", "date", "time", "role"}
ORDER = ("system", "instruction", "input", "prompt", "output", "completion", "chosen", "rejected")


def misfit(
    spec: DataSpec,
    location: str,
    rows: Sequence[Mapping[str, Any]],
    formatters: Sequence[Formatter],
    problems: Sequence[str],
) -> str:
    """Why no formatter reads the first of `rows`, at `location`. `problems` are of those that its columns allow."""
    first = rows[0]
    lines = [f"{spec.source}: no formatter fits. {location} has the columns {names(first)}.", *problems]
    headless = any(_like_data(name) for name in first)
    if headless:
        lines.append("The first line of a CSV file names the columns; here it looks like data.")
    lines += _nearest(first, formatters)
    if guessed := {} if headless else guess(rows):
        line = f"perhaps: {shlex.quote(str(replace(spec, columns=guessed)))}"
    else:
        line = f"{spec.source}:prompt=COLUMN,completion=COLUMN"
    lines.append(
        f"Say which column is what{',' if guessed else ':'} {line} (or messages=, answer=, chosen=, rejected=,"
    )
    lines.append("system=, …). For another layout write a formatter: rlhf plugins new formatter NAME.")
    known = [f"\n  {formatter.name}: {names(sorted(formatter.columns))}" for formatter in formatters]
    return " ".join(lines) + " Known formats:" + "".join(known)


def forced_misfit(location: str, row: Mapping[str, Any], formatter: Formatter) -> str:
    """The same where the user has chosen the formatter."""
    missing = sorted(formatter.columns - row.keys() - formatter.renamed(row).keys())
    needs = f"{location}: formatter {formatter.name} needs {names(missing)}; the row has {names(row)}"
    return f"{needs}. Say which column is what: FILE:columns={json.dumps(dict.fromkeys(missing, 'COLUMN'))}"


def way_on(spec: DataSpec, need: str, rows: Sequence[Mapping[str, Any]], unread: Collection[str]) -> str:
    """What to do where no row of a source can be used: a line to copy, if columns that nobody read seem to be it."""
    guessed = guess(rows) if not spec.columns else {}
    parts = {"preferences": PAIR, "conversations": ("completion", "output", "messages")}.get(need, ("prompt",))
    missing = [guessed[part] for part in parts if part in guessed]
    if not missing or not any(name in unread or "." in name for name in missing):
        return NO_FORMAT
    line = shlex.quote(str(replace(spec, columns=guessed)))
    return NO_FORMAT.replace("(FILE:prompt=COLUMN,…)", f"(perhaps {line})")


def _nearest(row: Mapping[str, Any], formatters: Sequence[Formatter]) -> list[str]:
    """Which formatter has most of its columns in the row, and those that are missing."""
    near = []
    for formatter in formatters:
        renamed = formatter.renamed(row)
        if missing := sorted(formatter.columns - row.keys() - renamed.keys()):
            near.append((len(missing) / len(formatter.columns), len(renamed), formatter.name, missing))
    share, _, nearest, missing = min(near, default=(1, 0, "", []))
    return [f"The nearest format, {nearest}, also needs {names(missing)}."] if share < 1 else []


def guess(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{what it may be: a column}, by the names and contents of the columns of `rows`; empty if nothing fits."""
    texts, turns = _found(rows)
    pair = {part: name for part, name in _named([*texts, *turns], PAIR).items() if part in PAIR}
    if len(pair) < 2:
        pair = {}
    rest = [name for name in texts if name not in pair.values()]
    found = _named(rest, [part for part in WORDS if part not in PAIR])
    others = [name for name in rest if name not in found.values() and texts[name][1] and not NO_TEXT & _words(name)]
    asked = "prompt" in found or "instruction" in found
    if turns and not pair and not (asked and "completion" in found):
        return {key: name for key, name in {"system": found.get("system", ""), "messages": turns[0]}.items() if name}
    if pair and (talks := [name for name in turns if name not in pair.values()]) and not asked:
        return {"conversations": talks[0], **pair}
    if pair:
        found.pop("completion", None)
    if not asked and pair.get("chosen") in turns:  # which begin with the prompt
        return pair
    if "instruction" in found and "prompt" not in found:
        found["prompt"] = found.pop("instruction")
    # What no name tells: the answer is the longest of the other texts, the prompt the first of them.
    if not pair and "completion" not in found and others and ("prompt" in found or len(others) > 1):
        found["completion"] = max(others, key=lambda name: texts[name][0])
        others.remove(found["completion"])
    if "prompt" not in found and others:
        found["prompt"] = others[0]
    if "instruction" in found and "completion" in found:
        found["input"], found["output"] = found.pop("prompt"), found.pop("completion")
    elif "instruction" in found:
        found["input"] = found.pop("prompt")
    found |= pair
    return {part: found[part] for part in ORDER if part in found} if {"prompt", "input"} & found.keys() else {}


def _named(columns: Sequence[str], parts: Iterable[str]) -> dict[str, str]:
    """{part: the column whose name tells it best}."""
    found: dict[str, str] = {}
    for part in parts:
        places = {name: _place(name, WORDS[part]) for name in columns if name not in found.values()}
        if told := {name: place for name, place in places.items() if place is not None}:
            found[part] = min(told, key=lambda name: told[name])
    return found


def _found(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[float, bool]], list[str]]:
    """({column of text: (characters on average, whether rows differ)}, the columns of turns), in the data's order."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in _leaves(row, 1):
            values.setdefault(name, []).append(value)
    texts, turns = {}, []
    for name, found in values.items():
        if all(isinstance(value, str) for value in found) and not all(map(_is_no_text, found)):
            differ = len(set(found)) > 1 or len(rows) == 1
            texts[name] = (sum(map(len, found)) / len(found), differ)
        elif all(_has_turns(value) for value in found):
            turns.append(name)
    return texts, turns


def _leaves(values: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _leaves({f"{name}.{key}": inner for key, inner in value.items()}, depth + 1)
        elif value is not None and value != "":
            yield name, value


def _has_turns(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, Mapping) and any(k <= t.keys() for k in keys) for t in value)
    )


def _is_no_text(value: str) -> bool:
    """Whether a text is a number, or JSON."""
    return value.replace(".", "").isdecimal() or value.lstrip()[:1] in ("[", "{")


def _place(name: str, words: Sequence[str]) -> int | None:
    """The place in `words` of the first one that a column's name has."""
    own = _words(name)
    return next((i for i, word in enumerate(words) if word in own), None)


def _words(name: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[\u4e00-\u9fff]+", name)}


def _like_data(name: str) -> bool:
    """Whether the name of a column is a number or a sentence."""
    return name.replace(".", "").isdecimal() or len(name) > 40 or name.endswith(("?", ".", "？", "。"))


def names(columns: Iterable[str]) -> str:
    """Columns, for a message."""
    return ", ".join(columns) or "none"
