"""What can be seen in the text of an answer: whether it goes round in a loop, goes on with another turn, what it has
many of.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter

PIECE = 10  # characters of the pieces that are looked for earlier in the text
LOOP = 0.6  # share of the second half's pieces that stood earlier: 0.18 at most in the built-in model's answers
LONGEST = 1200  # characters that are looked at, the last ones
# Where the next turn begins in widespread templates, as text: ChatML, Llama 2 and 3, Gemma, Zephyr, Vicuna, Alpaca.
TURN = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:start|end)_header_id\|>|<\|eot_id\|>|\[/?INST\]|<(?:start|end)_of_turn>"
    r"|<\|(?:user|assistant|system|endoftext|end)\|>|</s>|^#{2,3} ?(?:Human|User|Instruction|Assistant|Response)\b"
    r"|^(?:Human|User|USER|用户|问)[:：]",
    re.MULTILINE,
)
_TAGS = re.compile(r"<[^<>\s]{1,40}>")
_ENDS = re.compile(r"</[A-Za-z_]{1,20}>")
_SENTENCE = re.compile(r"[\n.!?。！？]+")
_WORDS = re.compile(r"[A-Za-z]{2,}|[\u3400-\u9fff]")
CHARACTERS = {"!": "!！", "?": "?？", "digits": "0123456789", "*": "*", "line breaks": "\n", "#": "#"}


@functools.lru_cache(maxsize=2)  # each answer is looked at twice
def loops(text: str) -> bool:
    """Whether most of the second half stood earlier in the text, piece by piece."""
    text = text[-LONGEST:]
    if len(text) < 4 * PIECE:
        return False
    pieces = [text[i : i + PIECE] for i in range(len(text) - PIECE + 1)]
    first = dict(zip(reversed(pieces), range(len(pieces) - 1, -1, -1), strict=True))  # where each stands first
    half = len(text) // 2
    repeated = sum(first[pieces[i]] < i for i in range(half, len(pieces)))
    return repeated > LOOP * (len(pieces) - half)


def goes_on(text: str) -> bool:
    """Whether it has come to its end and goes on: in a loop, with a second end, or with a sentence once more."""
    text = text[-LONGEST:]
    ends = _ENDS.findall(text)
    sentences = [one for one in map(str.strip, _SENTENCE.split(text)) if len(one) >= PIECE]
    return loops(text) or len({*ends}) < len(ends) or len({*sentences}) < len(sentences)


def next_turn(text: str) -> str | None:
    """What begins another turn, if the answer writes one."""
    found = TURN.search(text)
    return found[0].strip() if found else None


@functools.lru_cache(maxsize=1024)  # the newest answers are looked at again and again
def features(text: str) -> Counter[str]:
    """How often it has each kind of character, and each word (in Chinese: two characters), tags left out."""
    text = _TAGS.sub(" ", text[-LONGEST:])
    found = Counter({name: sum(text.count(one) for one in kinds) for name, kinds in CHARACTERS.items()})
    words = _WORDS.findall(text)
    found.update(word.lower() for word in words if len(word) > 1)
    found.update(one + other for one, other in itertools.pairwise(words) if len(one) == 1 and len(other) == 1)
    return +found
