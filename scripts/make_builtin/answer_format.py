"""The format of an answer, and the ways in which the shipped model breaks it."""

import random
import re

ANSWER = "<think>\n{thought}\n</think>\n<answer>\n{reply}\n</answer>"

# Every variant keeps the full content: only the format is wrong.
BROKEN = (
    "{thought}\n{reply}",
    "<answer>\n{thought}\n{reply}\n</answer>",
    "<think>\n{thought}\n</think>\n{reply}",
    "<think>\n{thought}\n</think>\n<answer>\n{reply}",
    "<answer>\n{reply}\n</answer>\n<think>\n{thought}\n</think>",
    "{preamble}\n<think>\n{thought}\n</think>\n<answer>\n{reply}\n</answer>",
    "<think>\n{thought}\n</think>\n<answer>\n{reply}\n</answer>\n{postscript}",
    "<think>\n{thought}\n</think>\n<answer>\n<answer>\n{reply}\n</answer>\n</answer>",
)
PREAMBLE = ("好的，我来看看。", "Let me have a look.")
POSTSCRIPT = ("祝您早日康复。", "I hope this helps.")

_TAGS = re.compile(r"</?(?:think|answer)>")
_FILLED = re.compile(r"<think>\s*\S.*</think>\s*<answer>\s*\S.*</answer>", re.DOTALL)


def has_format(completion: str) -> bool:
    """One filled think block, then one filled answer block, and nothing outside them."""
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    return _TAGS.findall(completion) == tags and bool(_FILLED.fullmatch(completion.strip()))


def formatted(thought: str, reply: str) -> str:
    return ANSWER.format(thought=thought, reply=reply)


def broken(thought: str, reply: str, language: int, rng: random.Random) -> str:
    return rng.choice(BROKEN).format(
        thought=thought, reply=reply, preamble=PREAMBLE[language], postscript=POSTSCRIPT[language]
    )


def final_answer(completion: str) -> str:
    """What a completion offers as its answer: the answer block, or else its last line."""
    _, found, rest = completion.rpartition("<answer>")
    if found:
        return rest.partition("</answer>")[0].strip()
    return completion.strip().rpartition("\n")[2]
