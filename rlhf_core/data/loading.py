"""From sources to the rows that a method trains on.

Rows are read, a formatter is chosen for each by its columns, each row becomes an `Example`, which is projected onto
what the method needs: `prompts`, `preferences` or `conversations`. Every error names the row's location.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.data.chat_template import InvalidTemplate
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import Formats
from rlhf_core.data.sources import Use, read
from rlhf_core.errors import UserError
from rlhf_core.formatter import Example, Messages
from rlhf_core.grammar import DataSpec

Need = Literal["prompts", "preferences", "conversations"]
Rows = list[tuple[Row, dict[str, Any]]]
# What a row becomes for each need. Its other columns stay, for rewards, but for those that are its prompt and answer.
PROJECTED: Mapping[Need, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
    "conversations": ("messages",),
}
CANONICAL = ("prompt", "completion", "messages")
# What a method uses of an example. The answer, which is for rewards, may also be what says which option is right.
USED = {
    "prompts": ("prompt", "answer"),
    "preferences": ("prompt", "chosen", "rejected", "answer"),
    "conversations": ("prompt", "completion", "chosen", "answer"),
}
# Names of columns that usually change what should be learned: a run that does not use one says so.
TELLING = {
    *("image", "images", "video", "videos", "audio", "audios", "tools", "functions", "system", "system_prompt"),
    *("history", "input", "context", "option", "options", "choices", "choice", "label", "labels", "kto_tag", "weight"),
    *("article", "passage", "paragraph", "document", "feedback"),
    *("margin", "mask", "train", "rejected", "rejected_response", "rejected_messages", "reasoning_content"),
    *("reasoning", "thinking", "complex_cot", "cot", "solution"),
}
HELD_OUT_SHARE = 0.1  # at most, of data without a held-out part


@dataclass(frozen=True)
class Part:
    """One source's projected rows. It has `total`, of which its weight may leave some out.

    `formats` is the number of rows of each formatter, `used` the columns of each part of an example, `unused` are the
    other columns.
    """

    spec: DataSpec
    formats: Mapping[str, int]
    rows: list[dict[str, Any]]
    total: int
    used: Mapping[str, Sequence[str]]
    unused: Sequence[str]
    warnings: list[str]
    text_prompts: bool

    def __str__(self) -> str:
        of = "" if len(self.rows) == self.total else f" of {self.total:,}"
        names = ", ".join(f"{name} ({count:,} rows)" for name, count in self.formats.items())
        formats = f"format {next(iter(self.formats))}" if len(self.formats) == 1 else f"formats {names}"
        return f"{self.spec.source}, {formats}, {len(self.rows):,}{of} rows"

    def columns(self) -> str:
        """What is used of a row, and what is not."""
        used = [f"{part or 'also'} from {', '.join(names)}" for part, names in self.used.items() if names]
        unused = [name or "(no name)" for name in self.unused]
        return "; ".join(used) + (f"; not used: {', '.join(unused)}" if unused else "")

    def warn(self, asked: Collection[str]) -> list[str]:
        """A warning about columns that usually matter and are not used, but for those that rewards have `asked` for."""
        given = {column: key for key, column in self.spec.columns.items()}
        names = [name for name in self.unused if name in given or name.lower() in TELLING]
        names = [name for name in names if given.get(name, name) not in asked]
        which = f"the column{'s' * (len(names) > 1)} {', '.join(names)}"
        return [f"{self.spec.source}: {which} may change what should be learned, and nothing uses it"] if names else []


@dataclass(frozen=True)
class Data:
    """Projected rows: `train`, which come from `parts`, and `held_out`, to evaluate on.

    Rows have the columns of all sources, with None where their source has no such column; `columns` are (each source,
    also of those to evaluate on; the columns that some row of it has). `warnings` name the rows and files that were
    left out. `text_prompts`: all training prompts are plain text in a column `prompt`, TRL's standard format, as
    against messages.
    """

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    parts: list[Part]
    columns: list[tuple[str, list[str]]]
    warnings: list[str]
    need: Need
    text_prompts: bool = False


def load(
    specs: Sequence[DataSpec],
    need: Need,
    catalog: Catalog,
    *,
    eval_specs: Sequence[DataSpec] = (),
    held_out: int = 0,
    seed: int = 0,
    skip_bad_rows: bool = False,
    preparation: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]] | None = None,
) -> Data:
    """Read the sources and convert them for a method that needs `need`.

    The held-out rows are those of `eval_specs`, or of the built-in set if that is the only source, else `held_out` rows
    chosen by `seed`, a tenth at most. Several sources are mixed by `seed`; their weights are shares of the mixture,
    which is as large as possible without a row twice. A row that can't be converted is an error, or with
    `skip_bad_rows` left out and counted in the warnings. `preparation()` gives what changes projected rows, and may
    refuse some; it is called once the rows of a source are converted.
    """
    how = need, catalog, skip_bad_rows, preparation
    parts = [_part(spec, *how) for spec in specs]
    eval_parts = [_part(spec, *how, "evaluate") for spec in eval_specs]
    others = [row for part in eval_parts for row in part.rows]
    if not others and [spec.source for spec in specs] == [BUILTIN]:
        others = _part(specs[0], *how, "evaluate").rows
    mixed = _weigh(parts, random.Random(f"{seed} weights"))
    rows = [row for part in mixed for row in part.rows]
    if not others or len(parts) > 1:
        random.Random(seed).shuffle(rows)
    if others:
        train, others = rows, others[:held_out]
    else:
        count = min(held_out, int(len(rows) * HELD_OUT_SHARE))
        train, others = rows[count:], rows[:count]
    both = [*mixed, *eval_parts]
    columns = [(part.spec.source, list(dict.fromkeys(key for row in part.rows for key in row))) for part in both]
    warnings = [text for part in both for text in part.warnings]
    rows, text = _same_columns([*train, *others]), all(part.text_prompts for part in mixed)
    return Data(rows[: len(train)], rows[len(train) :], mixed, columns, warnings, need, text)


def _part(
    spec: DataSpec, need: Need, catalog: Catalog, skip_bad_rows: bool, preparation: Any, use: Use = "train"
) -> Part:
    """The rows of one source to train on, or to evaluate on."""
    if spec.source == BUILTIN:
        rows = read_file(builtin.data_file(need, "train" if use == "train" else "heldout"))
        warnings: list[str] = []
    else:
        rows, warnings = read(spec, use)
    if not rows:
        raise UserError(f"{spec.source}: there is no row in it")
    formats = Formats(rows, spec, catalog)
    bad: list[str] = []
    converted, unanswered, worse, text_prompts = [], 0, 0, True
    prompt_column = spec.columns.get("prompt", "prompt")
    for row in rows:
        try:
            example = formats.convert(row)
            answered = example.completion or example.chosen
            if need == "conversations" and example.rejected and not answered:
                worse += 1
                continue
            one = project(row, example, need)
            text_prompts &= is_text_prompt(row.values.get(prompt_column), prompt_of(one))
            converted.append((row, one))
            unanswered += need == "conversations" and not answered
        except UserError as error:
            bad.append(str(error))
    prepare = preparation() if preparation and converted and (skip_bad_rows or not bad) else None
    projected = _prepared(converted, prepare, bad) if prepare else [one for _, one in converted]
    if worse == len(rows):
        raise UserError(f"{spec.source}: all answers are marked as bad (label), so there is none to learn")
    warnings += formats.told + bad_rows(
        spec.source, bad, len(rows), skip_bad_rows, bool(projected), read=bool(converted)
    )
    if worse:
        marked = "whose answer a column (label, kto_tag, …) marks as bad"
        warnings.append(f"{spec.source}: left out {worse:,} of {len(rows):,} rows, {marked}")
    if unanswered:
        warnings.append(f"{spec.source}: left off the last message of {unanswered:,} rows, which nobody answers")
    used, unused = _use(formats, need)
    return Part(spec, dict(formats.counts), projected, len(projected), used, unused, warnings, text_prompts)


def bad_rows(source: str, bad: Sequence[str], total: int, skip: bool, others: bool, *, read: bool = False) -> list[str]:
    """A warning about the rows that are left out, whose errors are `bad`. `read`: a formatter could convert some.

    Raises `UserError` unless they are to `skip`, and if there are no `others`, which can be used.
    """
    if not bad:
        return []
    count = f"{len(bad):,} of {total:,} rows"
    if not (skip and others):
        another = "Name the columns (FILE:prompt=COLUMN,…), or write a formatter: rlhf plugins new formatter NAME"
        if read:
            another = "Use data that the chat template can show, or another template: --chat-template FILE"
        hint = " Leave such rows out: --skip-bad-rows" if others else f" {another}"
        raise UserError(f"{bad[0]}. {count} can't be used.{hint}")
    return [f"{source}: left out {count}; the first: {bad[0]}"]


def _use(formats: Formats, need: Need) -> tuple[dict[str, list[str]], list[str]]:
    """({part of an example: the columns that it is from, "" for those in no part}, the columns that are not used)."""
    used: dict[str, list[str]] = {}
    unused = formats.unread()
    for name, parts in formats.parts().items():
        wanted = [part for part in parts if part in USED[need]]
        wanted = [part for part in wanted if part != "answer"] or wanted
        only_rejected = "rejected" in parts and not {"rejected", "completion", "chosen"} & set(wanted)
        if parts and (not wanted or only_rejected):
            unused.append(name)
        for part in wanted if parts else [""]:
            used.setdefault(part, []).extend([] if name in unused else [name])
    return used, unused


def _prepared(rows: Rows, prepare: Callable[[dict[str, Any]], dict[str, Any]], bad: list[str]) -> list[dict[str, Any]]:
    """What `prepare` makes of `rows`; why it refused some is added to `bad`."""
    prepared = []
    for row, projected in rows:
        try:
            prepared.append(prepare(projected))
        except InvalidTemplate as error:  # which would fail, or take as long, for the others
            raise UserError(f"{row.location}: {error}") from error
        except UserError as error:
            bad.append(f"{row.location}: {error}")
    return prepared


def _weigh(parts: list[Part], rng: random.Random) -> list[Part]:
    """Draw rows from each part so that their numbers have the ratio of the weights."""
    weights = [part.spec.weight for part in parts if part.spec.weight]
    if len(weights) < 2:
        return parts
    size = min(part.total / weight for part, weight in zip(parts, weights, strict=True))
    counts = [max(1, round(size * weight)) for weight in weights]
    return [
        replace(part, rows=rng.sample(part.rows, count)) if count < part.total else part
        for part, count in zip(parts, counts, strict=True)
    ]


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(key for row in rows for key in row)
    return [{name: row.get(name) for name in names} for row in rows]


def project(row: Row, example: Example, need: Need) -> dict[str, Any]:
    """The row for a method that needs `need`: TRL's columns, the reference answer, the row's other columns."""
    others = row_columns(row, example)
    if need == "conversations":
        completion = example.completion or example.chosen
        return {"messages": [*example.prompt, *completion] if completion else _answered(row, example.prompt), **others}
    pair = {"chosen": example.chosen, "rejected": example.rejected} if need == "preferences" else {}
    if None in pair.values():
        hint = "it finds none. Name their columns: FILE:chosen=COLUMN,rejected=COLUMN"
        raise UserError(f"{row.location}: this method needs pairs of a chosen and a rejected answer; {hint}")
    if not example.prompt or example.prompt[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{row.location}: the prompt does not end with a user's message")
    return {"prompt": example.prompt, **pair} | others | pair


def _answered(row: Row, messages: Messages) -> Messages:
    """The turns up to the assistant's last one. Raises `UserError` if there is none."""
    last = max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=None)
    if last is None:
        hint = "Name its column: FILE:completion=COLUMN"
        raise UserError(f"{row.location}: this method needs an answer to learn, and finds only a prompt. {hint}")
    return messages[: last + 1]


def row_columns(row: Row, example: Example) -> dict[str, Any]:
    """The columns for rewards: the row's, those that the formatter added, the reference answer."""
    answer = {} if example.answer is None else {"answer": example.answer}
    return {k: v for k, v in {**row.values, **example.columns, **answer}.items() if k not in CANONICAL}


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The messages to answer: the prompt, or a conversation up to its last question."""
    if "prompt" in row:
        return row["prompt"]
    messages = row["messages"]
    last = max(i for i, turn in enumerate(messages) if turn["role"] == "user")
    return messages[: last + 1]


def is_text_prompt(given: Any, prompt: Messages) -> bool:
    """Whether a row's prompt is `given` as the text of one question."""
    return [turn["content"] for turn in prompt if turn["role"] != "system"] == [given]
