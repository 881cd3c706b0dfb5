"""The reward that the kit uses for a method that needs one; answers of a random model get different scores."""

from __future__ import annotations


def variety(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    """How many different characters an answer has, of a hundred."""
    return [len(set(messages[-1]["content"])) / 100 for messages in completions]
