"""Trees of messages, as OpenAssistant publishes them: one tree to a row, or one message.

Of a tree one conversation is read: from the first question on, each time the answer with the best rank, and the first
question after it that was answered. The pair is its last answer that was ranked against others, and the worst of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core import Example, Messages, NothingToLearn
from rlhf_formatter_common.reading import assistant, read_text, user, with_system

Node = Mapping[str, Any]
KEPT = ("message_id", "text", "role", "rank", "deleted", "review_result")  # of a message


def oasst_tree(row: Mapping[str, Any]) -> Example:
    """A tree: its first message in `prompt`, with `replies`."""
    return _example(row, row["prompt"])


def oasst_messages(row: Mapping[str, Any]) -> Example:
    """One message, which names its parent. The row of a tree's first message becomes its conversation."""
    if row.get("parent_id") is not None:
        raise NothingToLearn("a message within a tree, of which one conversation is read")
    read_text(row["message_id"], "message_id")
    replies = row["replies_of"]

    def tree(message: Node) -> Node:
        return {**message, "replies": [tree(each) for each in replies.get(message["message_id"], ())]}

    return _example(row, tree({name: row.get(name) for name in KEPT}))


def gathered(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """The replies to each message."""
    replies: dict[str, list[Node]] = {}
    for row in rows:
        if row.get("parent_id") is not None:
            replies.setdefault(row["parent_id"], []).append({name: row.get(name) for name in KEPT})
    return {"replies_of": replies}, ""


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether `prompt` is the first message of a tree."""
    return isinstance(row["prompt"], Mapping) and "replies" in row["prompt"]


def is_message(row: Mapping[str, Any]) -> bool:
    """Whether the row is one message of a tree."""
    return row["role"] in ("prompter", "assistant")


def _example(row: Mapping[str, Any], root: Node) -> Example:
    if root.get("role") not in (None, "prompter"):
        raise ValueError(f"a tree begins with a message of the prompter, not of {root.get('role')!r}")
    read_text(root.get("text"), "text")
    path = _best(root)
    if len(path) < 2:
        raise NothingToLearn("nobody answers the first message of the tree")
    rivals = [_ranked(node) for node in path[:-1]]  # the ranked answers to each message
    last = max((i for i, found in enumerate(rivals) if len(found) > 1), default=None)
    turns = with_system(row, _turns(path))
    before = len(turns) - len(path)
    if last is None:
        return Example(prompt=turns[:-1], completion=turns[-1:], answer=turns[-1]["content"])
    start = before + last + 1
    return Example(
        prompt=turns[:start],
        completion=turns[start:],
        chosen=turns[start : start + 1],
        rejected=[assistant(read_text(rivals[last][-1].get("text"), "text"))],
        answer=turns[start]["content"],
    )


def _best(root: Node) -> list[Node]:
    """The messages of the best conversation, which ends with an answer."""
    path = [root]
    while answers := _answers(path[-1]):
        path.append(answers[0])
        path += next(([each] for each in _kept(answers[0]) if _answers(each)), [])
        if path[-1] is answers[0]:
            break
    return path


def _answers(node: Node) -> list[Node]:
    """The assistant's replies, the best first; those without a rank come last, in their order."""
    found = [each for each in _kept(node) if each.get("role") == "assistant"]
    return sorted(found, key=lambda each: (each.get("rank") is None, each.get("rank") or 0))


def _ranked(node: Node) -> list[Node]:
    """The replies that have a rank, if their ranks differ."""
    found = [each for each in _answers(node) if each.get("rank") is not None]
    return found if len({each["rank"] for each in found}) > 1 else []


def _kept(node: Node) -> list[Node]:
    """The replies that nobody has deleted, and that passed the review."""
    return [
        each for each in node.get("replies") or () if not each.get("deleted") and each.get("review_result") is not False
    ]


def _turns(path: Sequence[Node]) -> Messages:
    return [(assistant if i % 2 else user)(read_text(node.get("text"), "text")) for i, node in enumerate(path)]
