"""From messages to token ids: the loss is on the assistant's tokens only, with one end token for each answer.

A prompt is what the model is given when it generates, and what is learned after it is what the model should generate:
the answer as the chat template shows it, with its thought, whether the prompt opened one or not, and with the one token
that ends it. The end token's text inside an answer stays text.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from rlhf_core.data.chat_template import MARK, THOUGHT, THOUGHT_KEYS, ChatTemplate, as_text
from rlhf_core.data.projecting import is_plain
from rlhf_core.data.stored import View
from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json

if TYPE_CHECKING:
    import datasets

    from rlhf_core.formatter import Messages

IGNORED = -100  # the label of a token without a loss
Encoded = tuple[list[int], list[int]]  # token ids, labels
# A thought at the start of an answer's text.
WRITTEN_THOUGHT = re.compile(rf"\s*{THOUGHT.pattern}(?P<thought>.*?)(?P=left)/(?P=name)(?P=right)\s*", re.I | re.S)
ROWS = 1000  # in one piece of a table


def encode_pairs(
    rows: Iterable[Mapping[str, Any]], template: ChatTemplate, max_completion_length: int
) -> datasets.Dataset | EncodedPairs:
    """Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; `chosen_mask` and `rejected_mask`, 1 for what is learned.

    Answers are cut after `max_completion_length` tokens. Rows that are on disk are encoded when they are asked for.
    """
    if isinstance(rows, View):
        return EncodedPairs(rows, template, max_completion_length)
    return _table(encode_pair(row, template, max_completion_length) for row in rows)


class EncodedPairs(Sequence[dict[str, list[int]]]):
    """`encode_pairs` of rows that are too many to be encoded before training."""

    def __init__(self, rows: View, template: ChatTemplate, limit: int) -> None:
        self._rows, self._template, self._limit = rows, template, limit

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EncodedPairs(self._rows[index], self._template, self._limit)
        return encode_pair(self._rows[index], self._template, self._limit)


def encode_pair(row: Mapping[str, Any], template: ChatTemplate, limit: int | None = None) -> dict[str, list[int]]:
    """One row of `encode_pairs`. The prompt is what both answers begin with."""
    both = [encode_answer(template, row["prompt"], row[side], tools_of(row)) for side in ("chosen", "rejected")]
    shared = min(len(prompt) for prompt, _, _ in both)
    encoded = {"prompt_ids": both[0][0][:shared]}
    for side, (prompt, ids, mask) in zip(("chosen", "rejected"), both, strict=True):
        rest = prompt[shared:]
        encoded[f"{side}_ids"] = [*rest, *ids][:limit]
        encoded[f"{side}_mask"] = [*[0] * len(rest), *mask][:limit]
    return encoded


def encode_conversations(
    rows: Iterable[Mapping[str, Any]], template: ChatTemplate, max_length: int
) -> datasets.Dataset:
    """Columns `input_ids` and `labels`, cut after `max_length` tokens.

    A conversation becomes one row, or one for each answer if the chat template shows earlier answers otherwise than
    when they were generated (such as without their thoughts). Rows without a label are left out.
    """
    if isinstance(rows, View):
        from rlhf_core.data.encoded import conversations

        return conversations(rows, template, max_length)
    cut = (part for row in rows for part in encode_within(template, row["messages"], tools_of(row), max_length))
    return _table({"input_ids": ids, "labels": labels} for ids, labels in cut if learns(labels))


def learns(labels: Sequence[int]) -> bool:
    """Whether any of `labels` has a loss."""
    return any(label != IGNORED for label in labels)


def encode_answer(
    template: ChatTemplate, prompt: Messages, answer: Messages, tools: Sequence[Any] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """(token ids of the prompt, those of the answer with its end token, a mask of the answer: 1 for what is learned).

    The answer may have several turns; those of the user, and those with `weight` 0, are not learned. The prompt is
    shorter by what it opens of an answer where a later turn's prompt shows the first answer without that.
    """
    learned = [i for i in learned_turns([*prompt, *answer]) if i >= len(prompt)]
    ids, labels, _ = _encode([*prompt, *answer], learned, len(prompt) + len(answer) - 1, template, tools)
    start = _shared(template.prompt_ids(prompt, tools), ids)
    return ids[:start], ids[start:], [int(label != IGNORED) for label in labels[start:]]


def encode_within(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any] | None, limit: int
) -> Iterator[Encoded]:
    """As `encode_conversation`, each cut after `limit` tokens; plain text is in pieces of so many."""
    for ids, labels in encode_conversation(template, messages, tools):
        for start in range(0, len(ids), limit) if is_plain(messages) else (0,):
            yield ids[start : start + limit], labels[start : start + limit]


def encode_conversation(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any] | None = None
) -> list[Encoded]:
    """(input ids, labels) of a conversation: one pair, or one for each of the assistant's turns; none without any."""
    if is_plain(messages):
        begins, text = template.text_ids(messages[0]["content"])
        return [([*begins, *text], [IGNORED] * len(begins) + text)]
    learned = learned_turns(messages)
    if not learned:
        return []
    ids, labels, complete = _encode(messages, learned, learned[-1], template, tools)
    if complete:
        return [(ids, labels)]
    return [_encode(messages, [i], i, template, tools)[:2] for i in learned]


def learned_turns(messages: Messages) -> list[int]:
    """The positions of the assistant's turns, but for those with weight 0 and a first one, which answers nothing."""
    return [i for i, turn in enumerate(messages) if i and turn["role"] == "assistant" and turn.get("weight") != 0]


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The functions that the model may call, from the row's `tools`: a list of schemas, or one as JSON text."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.lstrip().startswith("["):
        with suppress(UserError):  # a text that is none
            tools = parse_json(tools, "tools")
    if not isinstance(tools, list) or not all(
        isinstance(t, Mapping) and t.keys() & {"function", "name"} for t in tools
    ):
        return None
    return tools or None


def _encode(
    messages: Messages, learned: Sequence[int], last: int, template: ChatTemplate, tools: Sequence[Any] | None
) -> tuple[list[int], list[int], bool]:
    """(ids, labels, whether all of `learned` have labels) of the conversation up to the answer at `last`.

    An earlier answer has labels if the last one's prompt shows it as it was generated, token for token.
    """
    prompt = template.prompt_ids(messages[:last], tools)
    answer = answer_ids(template, messages[:last], messages[last], tools)
    labels = [IGNORED] * len(prompt) + (answer if last in learned else [IGNORED] * len(answer))
    complete = True
    for i in learned:
        if i < last:
            before = template.prompt_ids(messages[:i], tools)
            generated = [*before, *answer_ids(template, messages[:i], messages[i], tools)]
            if prompt[: len(generated)] == generated:
                labels[len(before) : len(generated)] = generated[len(before) :]
            else:
                complete = False
    return prompt + answer, labels, complete


def answer_ids(
    template: ChatTemplate, messages: Messages, answer: dict[str, Any], tools: Sequence[Any] | None = None
) -> list[int]:
    """What the model should generate after the prompt for `messages`: the answer and one end token."""
    before, text, last = answer_text(template, messages, answer, tools)
    ids = template.ids(text)
    if ids and template.tokenizer.convert_ids_to_tokens(ids[0])[:1] in ("▁", "Ġ"):
        # Some tokenizers put a space before a text; here it is no beginning.
        start, whole = template.ids(before), template.ids(before + text)
        ids = whole[len(start) :] if whole[: len(start)] == start else ids
    return [*ids, template.tokenizer.convert_tokens_to_ids(last)]


def answer_text(
    template: ChatTemplate, messages: Messages, answer: dict[str, Any], tools: Sequence[Any] | None = None
) -> tuple[str, str, str]:
    """(the prompt for `messages`, the answer to generate, the token that ends it)."""
    end = re.compile("|".join(map(re.escape, dict.fromkeys(_ends(template)))))
    content = answer.get("content") or ""
    without_end = re.sub(rf"(?:\s*(?:{end.pattern}))+\s*\Z", "", content)
    answer = as_text({**answer, "content": without_end}, end)
    turns = [*messages, answer]
    before, shown = template.prompt(messages, tools), template.conversation(turns, tools)
    begun = template.begun(messages, tools)
    text, last = _split_end(template, shown[_beginning(template, messages, tools, shown, before.removesuffix(begun)) :])
    thought = thought_of(answer)
    if thought is not None and not shows_thought(template, turns, len(messages), thought, tools):
        text = _with_thought(text, answer, thought, begun)
    return before, _after(begun, text), last


def _ends(template: ChatTemplate) -> list[str]:
    """The tokens that end an answer."""
    declared = template.tokenizer.convert_ids_to_tokens(list(template.ends))
    return [token for token in (template.end_token, template.tokenizer.eos_token, *declared) if token]


def _split_end(template: ChatTemplate, shown: str) -> tuple[str, str]:
    """(the answer without what the template writes after it, the token that ends it)."""
    run = re.search(rf"(?:(?:{template.special.pattern})\s*)+\Z", shown)
    if run is None:
        return shown.rstrip(), template.end_token
    found = list(template.special.finditer(shown, run.start()))
    first = next((token for token in found if token.group() in _ends(template)), found[0])
    return shown[: first.start()], first.group()


def _beginning(template: ChatTemplate, messages: Messages, tools: Sequence[Any] | None, shown: str, head: str) -> int:
    """Where the answer begins in `shown`, a conversation whose prompt is `head`.

    Raises `UserError` if it can't be told.
    """
    if shown.startswith(head):
        return len(head)
    # Some templates show a prompt otherwise once it is answered. The answer MARK shares no character with what is
    # before answers, so it shows where they begin at the latest.
    marked = template.conversation([*messages, {"role": "assistant", "content": MARK}], tools)
    asked = template.conversation(messages, tools)
    start, stop = _shared(head, shown), _shared(shown, marked)
    same = bisect.bisect(range(1, len(head) + 1), False, key=lambda n: head[-n:] not in shown[start:stop])
    if same >= max(len(head) - _shared(head, asked), 1):  # all that a prompt ends with for an answer
        return shown.rindex(head[-same:], start, stop) + same
    if (shared := _shared(head, marked)) < max(_shared(head, asked), _shared(asked, marked)):
        raise UserError(f"{template.called} shows these messages otherwise once they are answered")
    return shared


def thought_of(answer: Mapping[str, Any]) -> str | None:
    """The answer's thought, "" for an empty one, None without any."""
    written = WRITTEN_THOUGHT.match(answer.get("content") or "")
    return next((answer[key] for key in THOUGHT_KEYS if answer.get(key)), written["thought"] if written else None)


def shows_thought(template: ChatTemplate, turns: Messages, i: int, thought: str, tools: Sequence[Any] | None) -> bool:
    """Whether the template shows the thought of the answer at `i`."""
    answer = turns[i]
    written = WRITTEN_THOUGHT.match(content := answer.get("content") or "")
    marked = {**answer, **{key: MARK for key in THOUGHT_KEYS if answer.get(key) == thought}}
    if written and written["thought"] == thought:
        start, end = written.span("thought")
        marked["content"] = content[:start] + MARK + content[end:]
    return MARK in template.conversation([*turns[:i], marked, *turns[i + 1 :]], tools)


def _with_thought(text: str, answer: Mapping[str, Any], thought: str, begun: str) -> str:
    """`text` with `thought`, which the template leaves out: written as `begun` is, or on its own lines."""
    written = WRITTEN_THOUGHT.match(answer["content"])
    tag = THOUGHT.search(begun or "<think>")
    assert tag is not None
    opens, closes = f"{tag['left']}{tag['name']}{tag['right']}", f"{tag['left']}/{tag['name']}{tag['right']}"
    rest = text.removeprefix(begun).removeprefix(closes)
    if written and written["thought"] == thought:
        return written.group() + rest.lstrip()
    space = rest[: len(rest) - len(rest.lstrip())]
    line = "" if begun and not begun.endswith("\n") else "\n"
    return f"{space}{opens}{line}{thought.strip()}{line}{closes}{line * 2}{rest.lstrip()}"


def _after(begun: str, text: str) -> str:
    """What is left to write of `text` after `begun`. A thought that was opened is closed, if `text` has none."""
    if text.startswith(begun):
        return text.removeprefix(begun)
    *_, tag = THOUGHT.finditer(begun)
    if tag["closes"]:
        return text
    own = THOUGHT.match(text.lstrip())
    if own and own["name"] == tag["name"]:
        if own["closes"]:
            return text
        rest = text.lstrip()[own.end() :]
        return rest.removeprefix("\n") if begun.endswith("\n") else rest
    line = "\n" if begun.endswith("\n") else ""
    return f"{line}{tag['left']}/{tag['name']}{tag['right']}{line * 2}{text}"


def _shared(one: Any, other: Any) -> int:
    """The length of their common prefix."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (not of paths)


def _table(rows: Iterable[dict[str, list[int]]]) -> datasets.Dataset:
    import datasets

    rows = iter(rows)
    pieces = [datasets.Dataset.from_list(piece) for piece in iter(lambda: list(islice(rows, ROWS)), [])]
    return datasets.concatenate_datasets(pieces) if pieces else datasets.Dataset.from_list([])
