"""Checks the final answer: 1.0 or 0.0, and None if the reference can't be checked.

    rlhf run --method grpo --reward verifier
    rlhf run --method grpo --reward verifier:tolerance=0.01

The kind of a reference is inferred from the reference itself: a number, a choice A to E, yes/no/maybe, an expression, a
short term, or free text, which is not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field

from rlhf_core import Reward, hookimpl
from rlhf_reward_verifier.extract import final_answer, normalize
from rlhf_reward_verifier.maths import is_expression, judge_bound, judge_expression, judge_number, limited, read_bound
from rlhf_reward_verifier.quantities import TOLERANCE, read_number
from rlhf_reward_verifier.words import (
    VERDICTS,
    is_term,
    judge_choice,
    judge_choices,
    judge_term,
    judge_verdict,
    read_choice,
    read_choices,
    read_options,
)  # fmt: skip

# Without it a model often ends with advice or a summary, so that its last sentence has no answer.
SYSTEM_PROMPT = "Give the final answer inside <answer></answer>, one answer only."

Judge = Callable[[str], bool | None]


@hookimpl
def rlhf_rewards():
    return [
        Reward(
            verifier,
            range=(0.0, 1.0),
            isolation="process",
            timeout=60.0,
            memory_gb=2.0,
            system_prompt=SYSTEM_PROMPT,
            optional=("aliases", "options"),
        )
    ]


def verifier(
    completions: list[str],
    answer: list,
    *,
    aliases: list | None = None,
    options: list | None = None,
    tolerance: Annotated[float, Field(ge=0, lt=1)] = TOLERANCE,
    **_,
) -> list[float | None]:
    """1.0 where the completion's last answer is `answer`, else 0.0; None where `answer` is free text or missing.

    `answer` may be a list, any of which is right, or name alternatives as `肺炎/肺部感染` or `A|B`. `aliases` (a list,
    or the same notation) are further right answers, `options` the texts of a choice question. `tolerance` is relative;
    at its default whole numbers must be the same. A term inside a longer name (肺炎 in 病毒性肺炎, pneumonia in viral
    pneumonia) is a different term and does not count; nor does a name that is denied, in brackets, or one of several.
    """
    rows = len(completions)
    columns = zip(completions, answer, aliases or [None] * rows, options or [None] * rows, strict=True)
    return [_score(*row, tolerance) for row in columns]


def _score(completion: str, answer: object, aliases: object, options: object, tolerance: float) -> float | None:
    judges = _judges([*_values(answer), *_values(aliases)] if _values(answer) else [], read_options(options), tolerance)
    if not judges:
        return None
    verdicts: list[bool | None] = []
    with limited():
        given = final_answer(completion)
        for judge in judges:
            verdicts.append(judge(given))
    if len(verdicts) < len(judges):  # an answer that takes too long is wrong
        verdicts.append(False)
    return None if all(verdict is None for verdict in verdicts) else float(any(verdicts))


def _judges(references: list[str], options: dict[str, str], tolerance: float) -> list[Judge]:
    """A judge for each reference, by its kind; all terms share one, so that two names of one thing are no hedge."""
    judges: list[Judge] = []
    terms: list[str] = []
    for reference in references:
        bare = reference.rstrip("。. ")
        if letters := read_choices(bare):
            judges.append(partial(judge_choices, letters=letters))
            terms += [bare] if is_term(bare) else []  # a blood type, an abbreviation
        elif letter := read_choice(bare):
            judges.append(partial(judge_choice, letter=letter, options=options | _option(bare)))
        elif verdict := VERDICTS.get(bare.lower()):
            judges.append(partial(judge_verdict, verdict=verdict))
        elif (number := read_number(bare)) is not None:
            judges.append(partial(judge_number, reference=number, tolerance=tolerance))
        elif (bound := read_bound(bare)) is not None:
            judges.append(partial(judge_bound, bound=bound, tolerance=tolerance))
        elif is_expression(bare):
            judges.append(partial(judge_expression, reference=bare))
        elif parts := [part.strip() for part in re.split(r"[/|]", bare) if part.strip()]:
            if len(parts) > 1 and "|" in bare:
                judges += _judges(parts, options, tolerance)
            elif all(map(is_term, parts)):
                terms += [bare, *parts]
    for letter, text in options.items():
        if text in terms:
            judges.append(partial(judge_choice, letter=letter, options=options))
    if terms:
        judges.append(partial(judge_term, terms=terms))
    return judges


def _option(reference: str) -> dict[str, str]:
    """The text beside the letter of a reference such as `B. pneumonia`."""
    match = re.fullmatch(r"[(\[]?([A-E])[)\]]?\s*[.、:)]\s*(.+)", reference)
    return {match[1]: match[2]} if match else {}


def _values(value: object) -> list[str]:
    """The references in a cell: a value, or a list of them."""
    if value is None or isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
        return []
    if isinstance(value, list | tuple | set):
        return [text for one in value for text in _values(one)]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    text = normalize(_reference_text(str(value)))
    return [text] if text else []


def _reference_text(text: str) -> str:
    """The reference alone, of a full solution that ends in `#### 18` or `\\boxed{18}`."""
    return final_answer(text) if "####" in text or "\\boxed{" in text or "<answer>" in text else text
