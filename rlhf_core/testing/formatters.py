"""The rules for every formatter: `rlhf_core.testing.check_formatter`, `rlhf plugins check NAME`.

Rows are read, converted and refused by the code that does so in a run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import choose_formatter
from rlhf_core.data.loading import load
from rlhf_core.data.projecting import Need, project
from rlhf_core.errors import UserError, first_line
from rlhf_core.formatter import Example, Formatter, NothingToLearn
from rlhf_core.grammar import DataSpec
from rlhf_core.testing import imports
from rlhf_core.testing.report import Report, Result

NEEDS: tuple[Need, ...] = ("preferences", "conversations", "prompts")
ROLES = ("system", "user", "assistant", "tool")


def examine(name: str) -> Report:
    """All rules for the installed formatter `name`."""
    report = Report("formatter", name)
    catalog = Catalog()
    rule = report.rule("is found, and declares its columns")
    try:
        formatter, entry = catalog.load("formatters", name)
        rows = examples(entry)
    except UserError as error:
        rule.fault(str(error))
        return report
    if not isinstance(formatter, Formatter):
        rule.fault(f"rlhf_formatters returned {type(formatter).__name__}: return Formatter(name, columns, convert)")
        return report
    if not formatter.columns or isinstance(formatter.columns, str):
        rule.fault("columns is empty or text: declare the set of columns that a row of this format has")
    imports.examine(report, entry.module)
    rule = report.rule("has example rows")
    if not rows:
        rule.fault(f"{_files(entry)[0]} is missing or empty: write rows of this format there, one JSON object a line")
        return report
    rule.note(f"{len(rows)} in {rows[0].location.rpartition(' line ')[0]}")
    needs = _converts(report.rule("converts them to valid examples"), formatter, rows)
    if report.failed:
        return report
    _found(report.rule("is found by their columns"), entry, rows, catalog)
    _refuses(report.rule("leaves other formatters' rows to them"), entry, catalog)
    _names_bad_rows(report.rule("names the row that it can't convert"), entry, formatter, rows, needs[0], catalog)
    return report


def examples(entry: Entry) -> list[Row]:
    """The example rows of an installed formatter. Raises `UserError` for a file that can't be read."""
    for file in _files(entry):
        if file.is_file() and file.stat().st_size:
            return list(_rows_of(entry.name, read_file(file)))
    return []


def _rows_of(name: str, rows: list[Row]) -> Iterator[Row]:
    """The rows of one formatter: in a file for several, those in `{"formatter": NAME, "row": {…}}`; else all rows."""
    for row in rows:
        if row.values.keys() != {"formatter", "row"}:
            yield row
        elif row.values["formatter"] == name:
            yield Row(row.location, row.values["row"])


def _files(entry: Entry) -> list[Path]:
    """The files that may have the examples, the recommended one first."""
    module = imports.file_of(entry.module)
    if module.name != "__init__.py":
        return [module.with_name(f"{module.stem}_examples.jsonl")]
    return [module.parent / "examples" / f"{entry.name}.jsonl", module.parent / "examples.jsonl"]


def _converts(rule: Result, formatter: Formatter, rows: list[Row]) -> list[Need]:
    """What the examples serve."""
    serves: dict[Need, None] = {}
    views = [formatter.view(row.values, formatter.renamed(row.values)) for row in rows]
    try:
        decided = formatter.decide(views)[0] if formatter.decide else {}
    except Exception as error:
        rule.fault(f"decide, given the example rows: {type(error).__name__}: {error}")
        return []
    for row, view in zip(rows, views, strict=True):
        before = json.dumps(row.values, sort_keys=True)
        try:
            example = formatter.convert({**view, **decided} if decided else view)
        except NothingToLearn:  # which a row may have, but not all
            continue
        except Exception as error:
            rule.fault(f"{row.location}: {type(error).__name__}: {error}")
            continue
        if json.dumps(row.values, sort_keys=True) != before:
            rule.fault(f"{row.location}: convert changed the row: work on a copy")
        if problem := _problem(example):
            rule.fault(f"{row.location}: {problem}")
        else:
            serves |= dict.fromkeys(need for need in NEEDS if _serves(row, example, need))
    if serves:
        rule.note(f"serves {', '.join(serves)}")
    elif not rule.faults:
        rule.fault("no method can use an example: its prompt must end with the user's message")
    return list(serves)


def _problem(example: Any) -> str | None:
    """What is wrong with an example."""
    if not isinstance(example, Example):
        return f"convert returned {type(example).__name__}: return Example(prompt=…, …)"
    if example.text is not None:
        others = (example.prompt, example.completion, example.chosen, example.rejected, example.text.strip() == "")
        return "text is all that its example has, and is not empty" if any(others) else None
    parts = {name: getattr(example, name) for name in ("prompt", "completion", "chosen", "rejected")}
    for name, messages in parts.items():
        if messages is None and name != "prompt":
            continue
        if not isinstance(messages, list) or not messages:
            return f"{name} is {messages!r:.80}: return a list of {{role, content}}"
        for message in messages:
            if not _is_message(message):
                return f"{name} has {message!r:.80}: return {{role, content}} with text that is not empty"
        if name != "prompt" and messages[-1]["role"] != "assistant":
            return f"{name} ends with {messages[-1]['role']}'s message: it is the assistant's reply"
    if (example.chosen is None) != (example.rejected is None):
        return "only one of chosen and rejected is set: set both"
    if example.answer is not None and not isinstance(example.answer, str):
        return f"answer is {type(example.answer).__name__}: return text"
    return None


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        return False
    content = message["content"]
    return message["role"] in ROLES and isinstance(content, str) and bool(content.strip())


def _serves(row: Row, example: Example, need: Need) -> bool:
    try:
        project(row, example, need)
    except UserError:
        return False
    return True


def _found(rule: Result, entry: Entry, rows: list[Row], catalog: Catalog) -> None:
    for row in rows:
        try:
            chosen = choose_formatter(row, row.location, catalog).name
        except UserError as error:
            rule.fault(f"{row.location}: {first_line(error)}: declare only columns that each row has")
            continue
        taker = next((e for e in catalog.entries("formatters") if e.name == chosen), entry)
        if chosen == entry.name:
            continue
        if taker.distribution == entry.distribution:
            rule.fault(f"{row.location}: it is read as {chosen}: declare more columns, or use matches=")
        else:
            rule.note(
                f"{row.location}: it is read as {chosen} of {taker.distribution}: users write --formatter {entry.name}"
            )


def _refuses(rule: Result, entry: Entry, catalog: Catalog) -> None:
    seen = 0
    for other in catalog.entries("formatters"):
        if other.problem is not None or (other.name, other.distribution) == (entry.name, entry.distribution):
            continue
        try:
            for row in examples(other):
                seen += 1
                if choose_formatter(row, row.location, catalog).name == entry.name:
                    rule.fault(f"{row.location}, a row of {other.name}, is read as {entry.name}: declare more columns")
        except UserError as error:
            rule.note(f"the examples of {other.name} could not be tried: {first_line(error)}")
    rule.note(f"{seen} rows of other formatters")


def _names_bad_rows(
    rule: Result, entry: Entry, formatter: Formatter, rows: list[Row], need: Need, catalog: Catalog
) -> None:
    """Good rows, then the first with one column corrupted, read from a file as a user's data is.

    The core refuses rows without a column, or with None in it.
    """
    good = [row.values for row in rows]
    name = f"{entry.distribution}/{entry.name}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.jsonl"
        for column in sorted(formatter.columns):
            written = [*good, {**good[0], column: True}]
            file.write_text("".join(f"{json.dumps(values)}\n" for values in written), encoding="utf-8")
            what = f"a row whose {column} is a truth value instead of text"
            try:
                load([DataSpec(str(file), formatter=name)], need, catalog)
            except UserError as error:
                if f"line {len(written)}" not in str(error):
                    rule.fault(f"{what}: the message does not name the row: {error}")
            except Exception as error:
                rule.fault(f"{what} raises {type(error).__name__}: {error}: raise ValueError, saying what is wrong")
            else:
                rule.fault(f"{what} is accepted: raise ValueError, saying what is wrong")
