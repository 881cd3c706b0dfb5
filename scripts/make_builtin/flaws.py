"""Bad answers: each flaw is a function that corrupts one thing in a good answer."""

import random
import re
from collections.abc import Callable
from dataclasses import replace

from scripts.make_builtin import phrases
from scripts.make_builtin.answer_format import broken, formatted
from scripts.make_builtin.conditions import CONDITIONS, DEPARTMENTS
from scripts.make_builtin.items import Case, Item, diagnose


def wrong_condition(good: Item, rng: random.Random) -> str:
    case = case_of(good)
    other = rng.choice([c for c in CONDITIONS if c != case.condition])
    return formatted(*diagnose(replace(case, condition=other), rng))


def wrong_department(good: Item, rng: random.Random) -> str:
    others = [names[good.language] for names in DEPARTMENTS.values()]
    others.remove(good.answer)
    return formatted(good.thought, good.reply.replace(good.answer, rng.choice(others)))


def wrong_answer(good: Item, rng: random.Random) -> str:
    if good.kind == "choice":
        wrong = rng.choice([letter for letter in "ABCD" if letter != good.answer])
    else:
        wrong = str(int(good.answer) + rng.choice([-1, 1, 2, 10]))
    alone = rf"(?<![A-Za-z0-9]){good.answer}(?![A-Za-z0-9])"  # not the first letter of "Answer"
    return formatted(good.thought, re.sub(alone, wrong, good.reply))


def other_advice(sentences: tuple[tuple[str, ...], tuple[str, ...]]) -> Callable[[Item, random.Random], str]:
    def degrade(good: Item, rng: random.Random) -> str:
        advice = rng.choice(sentences[good.language]).format(condition=good.answer)
        return formatted(good.thought, good.reply.replace(case_of(good).condition.advice[good.language], advice))

    return degrade


def missing_format(good: Item, rng: random.Random) -> str:
    return broken(good.thought, good.reply, good.language, rng)


def off_topic(good: Item, rng: random.Random) -> str:
    return formatted(*rng.choice(phrases.OFF_TOPIC[good.language]))


def truncated(good: Item, rng: random.Random) -> str:
    full = formatted(good.thought, good.reply)
    return full[: int(len(full) * rng.uniform(0.3, 0.8))].rstrip()


def case_of(item: Item) -> Case:
    if item.case is None:
        raise ValueError(f"a question of kind {item.kind} is about no case")
    return item.case


# Each flaw: the kinds of question it suits (all where empty), and how it is made.
FLAWS: dict[str, tuple[tuple[str, ...], Callable[[Item, random.Random], str]]] = {
    "wrong_condition": (("diagnosis",), wrong_condition),
    "wrong_department": (("department",), wrong_department),
    "wrong_answer": (("choice", "number"), wrong_answer),
    "overconfident": (("diagnosis",), other_advice(phrases.OVERCONFIDENT)),
    "unsafe_advice": (("diagnosis",), other_advice(phrases.UNSAFE)),
    "missing_layout": ((), missing_format),
    "off_topic": ((), off_topic),
    "truncated": ((), truncated),
}
