"""Reward the reference's medical terms that a completion affirms, in Chinese and English.

    rlhf run --method grpo --reward medical_keyword
    rlhf run --method grpo --reward medical_keyword:lexicon=terms.txt

Only terms are judged, not whether the statements about them are true; combine it with a reward that judges that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_core import Reward, hookimpl
from rlhf_reward_medical_keyword.terms import Lexicon, normalize

# The weight of a term that is in the prompt, so that echoing the prompt scores little.
FROM_PROMPT = 0.25
# Terms beyond the reference's and the prompt's that an answer may use: these, and one for every four wanted.
FREE = 5
# An enumeration: at least this many concepts, or any repeated, and this share of letters spent on terms.
MANY = 4
DENSE = 0.6
# How often prose may name one term, if the reference does not name it more often. An enumeration may name it once.
SAID = 3

_OTHER = re.compile(r"[\W_]+")
_SEPARATORS = re.compile(r"[,;、|]")


@hookimpl
def rlhf_rewards():
    return [Reward(MedicalKeyword, range=(0.0, 1.0), optional=("keywords",), name="medical_keyword")]


class Reading(NamedTuple):
    """The terms of a text: how often each concept is affirmed, the broader concepts that this covers, and the share of
    letters that belong to terms.
    """

    said: Counter[str]
    covered: frozenset[str]
    density: float


class MedicalKeyword:
    """The share of the wanted concepts that a completion affirms, less for listing, repeating and adding terms.

    `lexicon` is a file that replaces the package's: one concept a line, its synonyms separated by `|`.
    """

    def __init__(self, lexicon: str | None = None) -> None:
        shipped = resources.files(__name__) / "lexicon.txt"
        self.lexicon = Lexicon.read(Path(lexicon).expanduser() if lexicon else Path(str(shipped)))

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[Any],
        *,
        keywords: Sequence[Any] | None = None,
        prompts: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """A score from 0 to 1 a row; None where neither `keywords` nor the reference `answer` has a term."""
        references: dict[tuple[str, tuple[str, ...]], Reading] = {}
        in_prompts: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {}
        scores: list[float | None] = []
        for row, completion in enumerate(completions):
            listed = _keywords(keywords[row]) if keywords else ()
            reference = _text(answer[row])
            if (reference, listed) not in references:  # the completions of a group share theirs
                references[reference, listed] = self._read(_judged(reference), listed)
            expected = references[reference, listed]
            wanted = {self.lexicon.concepts.get(term, term) for term in listed} or set(expected.said)
            if not wanted:
                scores.append(None)
                continue
            others = tuple(term for term in listed if term not in self.lexicon.concepts)
            prompt = _text(prompts[row]) if prompts else ""
            if (prompt, others) not in in_prompts:
                mentions = self.lexicon.mentions(normalize(prompt), others)
                in_prompts[prompt, others] = frozenset(c for m in mentions for c in (m.concept, *m.broader))
            found = self._read(_judged(_text(completion)), others)
            scores.append(_score(wanted, expected, found, in_prompts[prompt, others]))
        return scores

    def _read(self, text: str, others: tuple[str, ...] = ()) -> Reading:
        text = normalize(text)
        mentions = self.lexicon.mentions(text, others)
        said: Counter[str] = Counter([mention.concept for mention in mentions if not mention.denied])
        balance: defaultdict[str, int] = defaultdict(int)
        for _, _, concept, broader, denied in mentions:
            balance[concept] += -1 if denied else 1
            for kind in broader:
                balance[kind] += -1 if denied else 1
        # A concept denied as often as affirmed does not count: "肺炎。不是肺炎。" commits to nothing.
        covered = frozenset(concept for concept, times in balance.items() if times > 0)
        said = Counter({concept: times for concept, times in said.items() if concept in covered})
        letters = len(_OTHER.sub("", text))
        spent = sum(m.end - m.start - text.count(" ", m.start, m.end) for m in mentions)
        return Reading(said, covered, min(1.0, spent / letters) if letters else 0.0)


def _score(wanted: set[str], expected: Reading, found: Reading, in_prompt: frozenset[str]) -> float:
    """The weighted share of `wanted` that is covered, times one factor for each way of stuffing."""
    weights = {concept: FROM_PROMPT if concept in in_prompt else 1.0 for concept in wanted}
    coverage = sum(weights[concept] for concept in wanted & found.covered) / sum(weights.values())
    if not coverage:
        return 0.0
    limit = max(DENSE, expected.density) if len(expected.said) >= MANY else DENSE
    crowded = found.density > limit
    allowed = 1 if crowded else SAID
    repeats = sum(max(0, times - max(allowed, expected.said[concept])) for concept, times in found.said.items())
    added = sum(
        concept not in wanted and concept not in expected.said and concept not in in_prompt for concept in found.said
    )
    free = FREE + len(wanted) // 4
    factor = len(found.said) / (len(found.said) + repeats)
    if added > free:
        factor *= (free + len(wanted)) / (added + len(wanted))
    if crowded and (len(found.said) >= MANY or repeats):
        factor *= 1 - 0.7 * (found.density - limit) / (1 - limit)
    return coverage * factor


def _judged(text: str) -> str:
    """The inside of the last `<answer>`, else the text without its `<think>`."""
    _, opened, answer = text.rpartition("<answer>")
    if opened:
        return answer.partition("</answer>")[0]
    before, _, rest = text.partition("<think>")
    return before + rest.rpartition("</think>")[2] if "</think>" in rest else before or rest


def _keywords(value: Any) -> tuple[str, ...]:
    """The terms of a row's `keywords`, normalized: a list, or one string with separators."""
    if isinstance(value, str):
        value = _SEPARATORS.split(normalize(value))
    if not isinstance(value, list | tuple):
        return ()
    terms = (normalize(term) for term in value if isinstance(term, str))
    return tuple(dict.fromkeys(term for term in terms if term))


def _text(value: Any) -> str:
    """A string as it is; of chat messages the content of all but the system's; of anything else an empty string."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        messages = [m for m in value if isinstance(m, dict) and m.get("role") != "system"]
        return "\n".join(m["content"] for m in messages if isinstance(m.get("content"), str))
    return ""
