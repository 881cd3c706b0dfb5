"""Rows as the model is given them, token by token: what is learned, and what is read.

The tokens are those of training: of `encode_within`, `encode_pair` and `prompt_ids`, with the limits of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_core.data import encoding
from rlhf_core.data.chat_template import MARKUP, ChatTemplate
from rlhf_core.data.lengths import ANSWERS, CONVERSATIONS, Limits
from rlhf_core.data.parts import Row
from rlhf_core.data.projecting import PROJECTED, Need, is_plain
from rlhf_core.data_report.texts import content
from rlhf_core.formatter import TEXT

SHOWN = 4  # parts of one row: a conversation may be many
TOGETHER = 8  # tokens that may be one character


@dataclass
class Piece:
    """Tokens that are shown together, since a character may have several.

    `special`: a token of its own, whatever its text; `ends`: a learned token at which the model stops; `split`: a piece
    of text that reads like one special token, and is none.
    """

    ids: list[int]
    text: str
    learned: bool
    special: bool = False
    ends: bool = False
    split: bool = False


class Examples:
    """The first `count` rows that can be used; of several, the last is the longest of the source instead."""

    def __init__(self, count: int, need: Need, options: Any, template: ChatTemplate) -> None:
        self.count, self.need, self.options, self.template = count, need, options, template
        self.first: list[tuple[str, Row]] = []
        self.longest: tuple[int, str, Row] | None = None

    def add(self, location: str, row: Row) -> None:
        if len(self.first) < self.count:
            self.first.append((location, row))
        if self.count > 1:
            size = sum(len(content(row[name])) for name in PROJECTED[self.need])
            if self.longest is None or size > self.longest[0]:
                self.longest = size, location, row

    def to_list(self) -> list[dict[str, Any]]:
        rows = list(self.first)
        longest = self.longest and self.longest[1:]
        if longest and longest not in rows:
            rows[self.count - 1 :] = [longest]
        return [
            {"location": location, "longest": (location, row) == longest, **self._shown(row)} for location, row in rows
        ]

    def _shown(self, row: Row) -> dict[str, Any]:
        row = Limits(self.need, self.options, self.template)(row)
        parts = list(self._parts(row))
        notes = [f"{len(parts) - SHOWN:,} more parts of this row are not shown"] if len(parts) > SHOWN else []
        shown = []
        for name, ids, learned, limit in parts[:SHOWN]:
            pieces = list(pieces_of(self.template, ids, learned))
            shown.append({"part": name, "count": len(ids), "learned": sum(learned), "tokens": list(map(plain, pieces))})
            if not is_ended(pieces) and not name.startswith(TEXT):  # which is learned in pieces
                cut = f" ({name}, cut after {limit})" if limit else f" ({name})"
                notes.append(f"no learned token ends the turn: the model will not learn to stop{cut}")
        begins = ""
        if self.need == "prompts":
            begins = self.template.beginning(row["prompt"], encoding.tools_of(row))
        return {"parts": shown, "answer_begins_after": begins, "notes": notes}

    def _parts(self, row: Row) -> Iterator[tuple[str, list[int], list[bool], str]]:
        """(name, token ids, whether each is learned, the limit that cut it, if any) of each part of a row."""
        tools, options = encoding.tools_of(row), self.options
        if self.need == "prompts":
            ids = self.template.prompt_ids(row["prompt"], tools)
            yield "prompt", ids, [False] * len(ids), ""
        elif self.need == "preferences":
            limit = options.max_completion_length
            pair = encoding.encode_pair(row, self.template, limit)
            yield "prompt", pair["prompt_ids"], [False] * len(pair["prompt_ids"]), ""
            for side in ("chosen", "rejected"):
                ids = pair[f"{side}_ids"]
                cut = f"{ANSWERS[0]} {limit}" if len(ids) == limit else ""
                yield side, ids, list(map(bool, pair[f"{side}_mask"])), cut
        else:
            name, limit = TEXT if is_plain(row["messages"]) else "conversation", options.max_length
            encoded = encoding.encode_within(self.template, row["messages"], tools, limit)
            learned = [part for part in encoded if encoding.learns(part[1])]
            for number, (ids, labels) in enumerate(learned, start=1):
                which = f"{name} {number} of {len(learned)}" if len(learned) > 1 else name
                cut = f"{CONVERSATIONS[0]} {limit}" if len(ids) == limit else ""
                yield which, ids, [label != encoding.IGNORED for label in labels], cut


def plain(piece: Piece) -> dict[str, Any]:
    """A piece as JSON has it: without what is not so of it, but for `learned`."""
    return {name: value for name, value in asdict(piece).items() if value or name in ("text", "learned")}


def pieces_of(template: ChatTemplate, ids: Sequence[int], learned: Sequence[bool]) -> Iterator[Piece]:
    """The text of each token, or of as many as make a character."""
    own = {*template.tokenizer.added_tokens_decoder, *template.tokenizer.all_special_ids}
    pieces = []
    for start, end, text in texts_of(template.tokenizer.decode, ids, [*map(own.__contains__, ids)], learned):
        piece = Piece(list(ids[start:end]), text, learned[start])
        piece.special = end - start == 1 and ids[start] in own
        piece.ends = piece.learned and template.finished(piece.ids)
        pieces.append(piece)
    _mark_split(template, pieces)
    yield from pieces


def texts_of(
    decode: Callable[..., str], ids: Sequence[int], own: Sequence[bool], learned: Sequence[bool]
) -> Iterator[tuple[int, int, str]]:
    """(start, end, text) of the tokens that make whole characters. Of a text between others the beginning may differ
    from that alone, such as by a space, so each is decoded behind the one before.
    """
    before = start = 0
    for end in range(1, len(ids) + 1):
        head = decode(list(ids[before:start]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = decode(list(ids[before:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        apart = end == len(ids) or own[end] or learned[end] != learned[start] or end - start >= TOGETHER
        if not whole.endswith("\ufffd") or apart:
            yield start, end, whole[len(head) :]
            before, start = start, end


def _mark_split(template: ChatTemplate, pieces: Sequence[Piece]) -> None:
    """Mark the pieces of texts that read like special tokens."""
    text = "".join(piece.text for piece in pieces)
    spans = [found.span() for regex in (template.special, MARKUP) for found in regex.finditer(text)]
    place = 0
    for piece in pieces:
        end = place + len(piece.text)
        piece.split = not piece.special and any(start < end and place < stop for start, stop in spans)
        place = end


def is_ended(pieces: Sequence[Piece]) -> bool:
    """Whether the last token of each learned turn ends it; so, if nothing is learned."""
    last = [piece for piece, after in zip(pieces, [*pieces[1:], None], strict=True) if not (after and after.learned)]
    return all(piece.ends for piece in last if piece.learned)
