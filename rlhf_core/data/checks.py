"""What is done to each row before a run, quickly for many: the template is tried on it, and the limits are applied.

Rendering and tokenizing a row takes about a millisecond. What a template does with a row depends on its structure: the
roles and keys of its turns, and which of the texts that the template looks for are in them. So the first rows of a
structure are checked in full, and of the others every thousandth, as long as all of them give the same: they may differ
in their tokens by what is in their texts alone. A row that is near a limit is measured in full, too. What is trained on
is rendered and tokenized in full in any case.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_core.data import encoding
from rlhf_core.data.chat_template import MARKUP, THOUGHT
from rlhf_core.data.left_out import TooLong
from rlhf_core.data.lengths import Limits
from rlhf_core.data.preparing import Preparation
from rlhf_core.data.projecting import is_plain
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from rlhf_core.data.chat_template import ChatTemplate
    from rlhf_core.formatter import Messages

Row = dict[str, Any]
State = tuple[int, list[list[Any]], list[list[Any]]]  # rows, what was found (how often, first where), what was cut
IN_FULL = 20  # rows of a structure, before others of it are taken to be like them
EVERY = 1000  # rows of it, one more
STRUCTURES = 10_000  # that are kept; one row more has each turn of it one of its own
WORDS, LONGEST_WORD = 200_000, 20  # whose tokens are remembered
TOLERANCE = 16  # tokens by which rows of one structure may differ, beside those of their texts


@dataclass
class Alike:
    """What the rows of one structure have in common, of those that were checked in full.

    `found`: what `Preparation` counts for each of them. `around`: for each part that has a limit, the least and the
    most tokens that a row has beyond those of its texts.
    """

    rows: int = 0
    in_full: int = 0
    found: Counter[tuple[str, str]] | None = None
    around: dict[str, tuple[int, int]] = field(default_factory=dict)
    differ: bool = False

    def may_skip(self) -> bool:
        """Whether the next row is taken to be like the others."""
        self.rows += 1
        return self.in_full >= IN_FULL and not self.differ and self.rows % EVERY != 0

    def add(self, found: Counter[tuple[str, str]], around: Mapping[str, int]) -> None:
        self.in_full += 1
        self.differ |= self.found is not None and self.found != found
        self.found = found
        for part, tokens in around.items():
            low, high = self.around.get(part, (tokens, tokens))
            self.around[part] = min(low, tokens), max(high, tokens)
            self.differ |= abs(tokens - low) > TOLERANCE or abs(tokens - high) > TOLERANCE


class Checks:
    """Called with each projected row: the row with the system prompt, as the limits leave it.

    Raises `UserError` for a row to leave out. `warnings` says afterwards what was found.
    """

    def __init__(self, prepare: Preparation, limits: Limits) -> None:
        self.prepare, self.limits, self.template = prepare, limits, prepare.template
        self.rows = 0
        self.first: dict[tuple[str, str], str] = {}  # the location of the first row of each kind that was found
        self._known: dict[Hashable, Alike] = {}
        self._structure = _Structure(prepare)
        self._count = Counting(self.template)

    def __call__(self, row: Row, location: str = "") -> Row:
        self.rows += 1
        key = self._structure(row)
        if key is None or (len(self._known) >= STRUCTURES and key not in self._known):
            return self._in_full(row, location, None)
        alike = self._known.setdefault(key, Alike())
        if alike.may_skip():
            whole = self.prepare.with_system_prompt(row)
            if self._fits(whole, alike):
                self.prepare.found.update(alike.found)
                return whole
        return self._in_full(row, location, alike)

    def take(self) -> State:
        """What was counted since it was last taken."""
        found = [[*key, count, self.first.get(key, "")] for key, count in self.prepare.found.items()]
        taken = self.rows, found, [[text, *cut] for text, cut in self.limits.cut.items()]
        self.rows = 0
        self.prepare.found.clear()
        self.first.clear()
        self.limits.cut.clear()
        return taken

    def add(self, state: State) -> None:
        """Count what another process, or an earlier run, counted for other rows."""
        rows, found, cut = state
        self.rows += rows
        for what, name, count, location in found:
            self.prepare.found[what, name] += count
            if location:
                self.first.setdefault((what, name), location)
        for text, count, longest in cut:
            before, most = self.limits.cut.get(text, (0, 0))
            self.limits.cut[text] = before + count, max(most, longest)

    def identity(self) -> dict[str, Any]:
        """All that decides what is made of a row."""
        prepare, limits = self.prepare, self.limits
        names = ("max_prompt_length", "max_completion_length", "max_length", "overlong_prompts", "overlong_completions")
        return {
            "template": self.template.identity(),
            "system_prompt": prepare.system_prompt,
            "control_tokens": prepare.control_tokens,
            "limits": {name: value for name, value in limits.options.model_dump().items() if name in names},
        }

    def warnings(self) -> list[str]:
        return [*self.prepare.warnings(self.rows, self.first), *self.limits.warnings(self.rows)]

    def _in_full(self, row: Row, location: str, alike: Alike | None) -> Row:
        before = self.prepare.found.copy()
        try:
            prepared = self.prepare(row)
            found = self.prepare.found - before
            limited = self.limits(prepared)
        except TooLong:
            self.prepare.found = before
            raise
        except UserError:
            self.prepare.found = before
            if alike is not None and alike.in_full:
                alike.differ = True
            raise
        for kind in found:
            self.first.setdefault(kind, location)
        if alike is not None and limited == prepared:
            exact, texts = lengths_of(prepared, self.limits.need, self.template), self._parts(prepared)
            around = {part: exact[part] - sum(map(self._count.exact, texts[part])) for part in exact}
            alike.add(found, around)
        return limited

    def _fits(self, row: Row, alike: Alike) -> bool:
        """Whether the limits certainly leave the row as it is."""
        if "chosen" in alike.around and row["chosen"] == row["rejected"]:
            return False
        parts = self._parts(row)
        for part, (low, high) in alike.around.items():
            room = self.limits.most(part) - high - (high - low) - 2
            size = sum(len(text) if text.isascii() else len(text.encode()) for text in parts[part])
            if size > room and sum(map(self._count, parts[part])) > room:
                return False
        return True

    def _parts(self, row: Row) -> dict[str, list[str]]:
        """The texts of each part that has a limit."""
        return {column: list(texts_of(row[column])) for column in self.prepare.columns}


class _Structure:
    """What a template's treatment of a row depends on, of the row; None for one with texts that act as tokens."""

    def __init__(self, prepare: Preparation) -> None:
        self.prepare, self.template = prepare, prepare.template
        self.constants = constants_of(prepare.template)
        self.equal = {text for text in self.constants if text.strip() == text}
        self.begins = {token[0] for token in self.template.special_tokens}

    def __call__(self, row: Row) -> Hashable | None:
        if is_plain(row[self.prepare.columns[0]]):  # which has no template, nor a limit
            return None
        tools = encoding.tools_of(row)
        key: list[Hashable] = [None if tools is None else json.dumps(tools, sort_keys=True, default=repr)]
        for column in self.prepare.columns:
            key.append(column)
            for turn in row[column]:
                for name, value in turn.items():
                    part = value if name == "role" else self._of(value)
                    if part is None:
                        return None
                    key += (name, part)
        return tuple(key)

    def _of(self, value: Any) -> Hashable | None:
        """What a template could tell of a value; None for what may be anything."""
        if not isinstance(value, str):
            return repr(value) if isinstance(value, int | float) or value is None else None
        if any(char in value for char in self.begins) and self.template.special.search(value):
            return None
        thoughts: tuple[Hashable, ...] = ()
        if "<" in value or "[" in value:
            if MARKUP.search(value):
                return None
            thoughts = tuple(found.group() for found in THOUGHT.finditer(value))
        has = tuple((t, value.startswith(t), value.endswith(t)) for t in self.constants if t in value)
        stripped = value.strip()
        around = (value == stripped) or (value[: len(value) - len(value.lstrip())], value[len(value.rstrip()) :])
        return (bool(stripped), value if value in self.equal else "", around, thoughts, has)


def constants_of(template: ChatTemplate) -> list[str]:
    """The texts in a template's expressions, which it may look for in messages: all but spaces."""
    from jinja2 import Environment

    found = {value[1:-1] for _, kind, value in Environment().lex(template.source) if kind == "string"}
    return sorted(text for text in found if text.strip() and not template.special.search(text))


def texts_of(turns: Messages) -> Iterator[str]:
    """The texts of turns, without their roles."""
    for turn in turns:
        for name, value in turn.items():
            if name != "role" and isinstance(value, str):
                yield value


def lengths_of(row: Row, need: str, template: ChatTemplate) -> dict[str, int]:
    """The tokens of each part of a row that has a limit."""
    if need == "conversations":
        parts = encoding.encode_conversation(template, row["messages"], encoding.tools_of(row))
        return {"messages": max((len(ids) for ids, _ in parts), default=0)}
    found = {"prompt": len(template.prompt_ids(row["prompt"], encoding.tools_of(row)))}
    if need == "preferences":
        pair = encoding.encode_pair(row, template)
        found |= {side: len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")}
    return found


class Counting:
    """Counts the tokens of texts: by words, which are remembered, unless their sum is another than that of the text."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._words: dict[str, int] = {}
        self._by_words = True

    def __call__(self, text: str) -> int:
        return self._sum(text) if self._by_words else self._whole(text)

    def exact(self, text: str) -> int:
        """The tokens of the whole text, which shows whether the words give the same, or at most a little more."""
        tokens = self._whole(text)
        self._by_words = self._by_words and tokens <= self._sum(text) <= tokens * 1.05 + 2
        return tokens

    def _sum(self, text: str) -> int:
        first, *others = text.split(" ")
        total = self._word(first)
        for word in others:
            total += self._word(" " + word)
        return total

    def _word(self, word: str) -> int:
        tokens = self._words.get(word)
        if tokens is None:
            tokens = self._whole(word)
            if len(word) <= LONGEST_WORD and len(self._words) < WORDS:
                self._words[word] = tokens
        return tokens

    def _whole(self, text: str) -> int:
        if not text:
            return 0
        tokenizer = self.template.tokenizer
        if not tokenizer.is_fast:
            return len(self.template.ids(text))
        return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
