"""From sources to the rows that a method trains on.

Rows are read, a formatter is chosen for each by its columns, each row becomes an `Example`, which is projected onto
what the method needs: `prompts`, `preferences` or `conversations`. Every error names the row's location.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.data.chat_template import InvalidTemplate
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import Formats
from rlhf_core.data.left_out import NO_FORMAT, NO_TEMPLATE, LeftOut, Unusable
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.projecting import Need, is_text_prompt, project, prompt_of
from rlhf_core.data.sources import Use, read
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec
from rlhf_core.numbers import MAX_BAD_ROWS

# What a method uses of an example. The answer, which is for rewards, may also be what says which option is right.
USED = {
    "prompts": ("prompt", "answer"),
    "preferences": ("prompt", "chosen", "rejected", "answer"),
    "conversations": ("prompt", "completion", "chosen", "text", "answer"),
}
# Names of columns that usually change what should be learned: a run that does not use one says so.
TELLING = {
    *("image", "images", "video", "videos", "audio", "audios", "tools", "functions", "system", "system_prompt"),
    *("history", "input", "context", "option", "options", "choices", "choice", "label", "labels", "kto_tag", "weight"),
    *("article", "passage", "paragraph", "document", "feedback"),
    *("margin", "mask", "train", "rejected", "rejected_response", "rejected_messages", "reasoning_content"),
    *("reasoning", "thinking", "complex_cot", "cot", "solution"),
}
Prepare = Callable[[dict[str, Any]], dict[str, Any]]
HELD_OUT_SHARE = 0.1  # at most, of data without a held-out part


@dataclass(frozen=True)
class Part:
    """One source's projected rows: None for one that is left out, as `left_out` says. It has `total` rows that can be
    used, of which its weight may leave some out.

    `formats` is the number of rows of each formatter, `used` the columns of each part of an example, `unused` are the
    other columns.
    """

    spec: DataSpec
    formats: Mapping[str, int]
    all_rows: list[dict[str, Any] | None]
    total: int
    left_out: LeftOut
    used: Mapping[str, Sequence[str]]
    unused: Sequence[str]
    warnings: list[str]
    text_prompts: bool

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those that are used."""
        return [row for row in self.all_rows if row is not None]

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
    max_bad_rows: float = MAX_BAD_ROWS,
    preparation: Callable[[], Prepare] | None = None,
) -> Data:
    """Read the sources and convert them for a method that needs `need`.

    The held-out rows are those of `eval_specs`, or of the built-in set if that is the only source, else `held_out` rows
    chosen by `seed`, a tenth at most; which these are does not depend on the rows that are left out. Several sources
    are mixed by `seed`; their weights are shares of the mixture, which is as large as possible without a row twice.
    Rows that can't be used are left out and counted, and too many of a source are an error (`LeftOut`). `preparation()`
    gives what changes projected rows, and may refuse some; it is called once the rows of a source are converted.
    """
    how = need, catalog, max_bad_rows, preparation
    parts = [_part(spec, *how) for spec in specs]
    eval_parts = [_part(spec, *how, "evaluate") for spec in eval_specs]
    others = [row for part in eval_parts for row in part.rows]
    if not others and [spec.source for spec in specs] == [BUILTIN]:
        others = _part(specs[0], *how, "evaluate").rows
    mixed = _weigh(parts, random.Random(f"{seed} weights"))
    all_rows = [row for part in mixed for row in part.all_rows]
    if not others or len(parts) > 1:
        random.Random(seed).shuffle(all_rows)
    count = 0 if others else min(held_out, int(len(all_rows) * HELD_OUT_SHARE))
    others = others[:held_out] or [row for row in all_rows[:count] if row is not None]
    train = [row for row in all_rows[count:] if row is not None]
    both = [*mixed, *eval_parts]
    columns = [(part.spec.source, list(dict.fromkeys(key for row in part.rows for key in row))) for part in both]
    warnings = [text for part in both for text in part.warnings]
    rows, text = _same_columns([*train, *others]), all(part.text_prompts for part in mixed)
    return Data(rows[: len(train)], rows[len(train) :], mixed, columns, warnings, need, text)


def _part(
    spec: DataSpec, need: Need, catalog: Catalog, max_bad_rows: float, preparation: Any, use: Use = "train"
) -> Part:
    """The rows of one source to train on, or to evaluate on."""
    spec, described = resolved(spec)
    left_out = LeftOut(spec.source, max_bad_rows)
    if spec.source == BUILTIN:
        rows = read_file(builtin.data_file(need, "train" if use == "train" else "heldout"))
        warnings: list[str] = []
    else:
        rows, warnings = read(spec, use, left_out.add)
        warnings = described + warnings
    total = len(rows) + left_out.rows()
    left_out.check(total)
    if not rows:
        raise UserError(f"{spec.source}: there is no row in it")
    formats = Formats(rows, spec, catalog)
    projected: list[dict[str, Any] | None] = []
    unanswered, text_prompts = 0, True
    prompt_column = spec.columns.get("prompt", "prompt")
    for row in rows:
        try:
            example = formats.convert(row)
            answered = example.completion or example.chosen
            if need == "conversations" and example.rejected and not answered:
                raise Unusable("its answer is marked as bad (label, kto_tag, …)", "nothing to learn")
            one = project(row, example, need)
            text_prompts &= is_text_prompt(row.values.get(prompt_column), prompt_of(one))
            projected.append(one)
            unanswered += need == "conversations" and not answered and example.text is None
        except UserError as error:
            projected.append(None)
            left_out.add(row.location, error)
    left_out.check(total, NO_FORMAT)
    if preparation:
        projected = _prepared(rows, projected, preparation(), left_out)
        left_out.check(total, NO_TEMPLATE)
    warnings += formats.told + left_out.warnings(total)
    if unanswered:
        warnings.append(f"{spec.source}: left off the last message of {unanswered:,} rows, which nobody answers")
    used, unused = _use(formats, need)
    count = sum(row is not None for row in projected)
    return Part(spec, dict(formats.counts), projected, count, left_out, used, unused, warnings, text_prompts)


def _use(formats: Formats, need: Need) -> tuple[dict[str, list[str]], list[str]]:
    """({part of an example: the columns that it is from, "" for those in no part}, the columns that are not used)."""
    used: dict[str, list[str]] = {}
    unused = formats.unread()
    for name, parts in formats.parts().items():
        wanted = [part for part in parts if part in USED[need]]
        wanted = [part for part in wanted if part != "answer"] or wanted
        answers = {"completion", "chosen"} & set(parts)
        only_rejected = "rejected" in parts and "rejected" not in wanted and not answers
        if parts and (not wanted or only_rejected):
            unused.append(name)
        for part in wanted if parts else [""]:
            used.setdefault(part, []).extend([] if name in unused else [name])
    return used, unused


def _prepared(
    rows: Sequence[Row], projected: Sequence[dict[str, Any] | None], prepare: Prepare, left_out: LeftOut
) -> list[dict[str, Any] | None]:
    """What `prepare` makes of `projected`, the rows that are not left out yet."""
    prepared: list[dict[str, Any] | None] = []
    for row, one in zip(rows, projected, strict=True):
        try:
            prepared.append(one and prepare(one))
        except InvalidTemplate as error:  # which would fail, or take as long, for the others
            raise UserError(f"{row.location}: {error}") from error
        except UserError as error:
            prepared.append(None)
            left_out.add(row.location, error)
    return prepared


def _weigh(parts: list[Part], rng: random.Random) -> list[Part]:
    """Draw rows from each part so that their numbers have the ratio of the weights."""
    weights = [part.spec.weight for part in parts if part.spec.weight]
    if len(weights) < 2:
        return parts
    size = min(part.total / weight for part, weight in zip(parts, weights, strict=True))
    counts = [max(1, round(size * weight)) for weight in weights]
    return [
        replace(part, all_rows=rng.sample(part.rows, count)) if count < part.total else part
        for part, count in zip(parts, counts, strict=True)
    ]


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(key for row in rows for key in row)
    return [{name: row.get(name) for name in names} for row in rows]
