"""One source of a run: its rows, converted for a method, and what of them is used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.data.chat_template import InvalidTemplate
from rlhf_core.data.files import Row as Given
from rlhf_core.data.formats import Formats
from rlhf_core.data.left_out import LeftOut, Unusable
from rlhf_core.data.projecting import Need, is_text_prompt, project, prompt_of
from rlhf_core.errors import UserError
from rlhf_core.formatter import Example
from rlhf_core.grammar import DataSpec

Row = dict[str, Any]
Prepare = Callable[[Row, str], Row]  # of a row and its location
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


@dataclass(frozen=True)
class Part:
    """One source's projected rows that can be used, and their `numbers`, of the `read` rows that it has.

    `chosen`: the positions in `rows` of those that its weight leaves; None: all. `formats` is the number of rows of
    each formatter, `used` the columns of each part of an example, `unused` the other columns, `names` those of `rows`.
    """

    spec: DataSpec
    formats: Mapping[str, int]
    rows: Sequence[Row]
    numbers: Sequence[int]
    read: int
    left_out: LeftOut
    used: Mapping[str, Sequence[str]]
    unused: Sequence[str]
    names: Sequence[str]
    warnings: list[str]
    text_prompts: bool
    chosen: Sequence[int] | None = None

    @property
    def total(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        count = self.total if self.chosen is None else len(self.chosen)
        of = "" if count == self.total else f" of {self.total:,}"
        names = ", ".join(f"{name} ({count:,} rows)" for name, count in self.formats.items())
        formats = f"format {next(iter(self.formats))}" if len(self.formats) == 1 else f"formats {names}"
        return f"{self.spec.source}, {formats}, {count:,}{of} rows"

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


@dataclass
class Conversion:
    """Converts rows of one source, and remembers what is to be said of them."""

    formats: Formats
    need: Need
    left_out: LeftOut
    unanswered: int = 0
    text_prompts: bool = True
    names: dict[str, None] = field(default_factory=dict)  # columns of the rows that can be used
    last: Example | None = None  # the last row that a formatter could read

    def convert(self, rows: Iterable[Given]) -> list[Row | None]:
        """Each row projected for the method; None for one that is left out."""
        return [self._converted(row) for row in rows]

    def _converted(self, row: Given) -> Row | None:
        try:
            example = self.formats.convert(row)
            self.last = example
            answered = example.completion or example.chosen
            if self.need == "conversations" and example.rejected and not answered:
                raise Unusable("its answer is marked as bad (label, kto_tag, …)", "nothing to learn")
            one = project(row, example, self.need)
            given = row.values.get(self.formats.spec.columns.get("prompt", "prompt"))
            self.text_prompts = self.text_prompts and is_text_prompt(given, prompt_of(one))
            self.unanswered += self.need == "conversations" and not answered and example.text is None
            return one
        except UserError as error:
            self.left_out.add(row.location, error)
            return None

    def prepare(self, rows: Sequence[Given], converted: Sequence[Row | None], prepare: Prepare) -> list[Row | None]:
        """What `prepare` makes of the rows that are not left out yet."""
        prepared: list[Row | None] = []
        for row, one in zip(rows, converted, strict=True):
            try:
                prepared.append(one and prepare(one, row.location))
            except InvalidTemplate as error:  # which would fail, or take as long, for the others
                raise UserError(f"{row.location}: {error}") from error
            except UserError as error:
                prepared.append(None)
                self.left_out.add(row.location, error)
        return prepared

    def told(self) -> list[str]:
        """What is to be said of the rows that can be used."""
        count = f"{self.unanswered:,} rows, which nobody answers"
        return [f"{self.formats.spec.source}: left off the last message of {count}"] if self.unanswered else []

    def usable(self, rows: Sequence[Row | None]) -> tuple[list[int], list[Row]]:
        """(the positions of the rows that are not left out, these rows)."""
        found = [(number, row) for number, row in enumerate(rows) if row is not None]
        for _, row in found:
            if not row.keys() <= self.names.keys():
                self.names |= dict.fromkeys(row)
        return [number for number, _ in found], [row for _, row in found]

    def part(self, rows: Sequence[Row], numbers: Sequence[int], read: int, total: int, warnings: Iterable[str]) -> Part:
        """The source, with the rows that can be used. `read`: rows that a formatter was given, of `total`."""
        spec = self.formats.spec
        told = [*warnings, *self.formats.told, *self.left_out.warnings(total), *self.told()]
        used, unused = columns_used(self.formats, self.need)
        counts = dict(self.formats.counts)
        return Part(
            spec, counts, rows, numbers, read, self.left_out, used, unused, list(self.names), told, self.text_prompts
        )


def columns_used(formats: Formats, need: Need) -> tuple[dict[str, list[str]], list[str]]:
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
