"""What a model could answer to earn our rewards without an answer, or to keep a run waiting."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rlhf_reward_length import Length
from rlhf_reward_medical_format import medical_format
from rlhf_reward_medical_keyword import MedicalKeyword
from rlhf_reward_verifier import extract, maths, quantities, verifier, words

from rlhf_core.builtin import DATA

ROWS = [json.loads(line) for line in (DATA / "prompts.heldout.jsonl").read_text(encoding="utf-8").splitlines()]
SOURCES = "".join(
    Path(str(module.__file__)).read_text(encoding="utf-8") for module in (extract, maths, quantities, words)
)
SYMBOLS = {character for character in SOURCES + "■□\x00\ue000\ufdd0" if not character.isalnum()}
LETTERS = [*"ABCDE", "A or B", "A B C D E", "ABCDE"]
CONSTANTS = [
    *sorted(SYMBOLS), *LETTERS, *map(str, range(11)), "100", "0.5", "50%", "x", "\\sqrt{8}", "\\boxed{}", "####", "",
    "yes", "no", "maybe", "是", "否", "不确定", "N/A", "None", "nan", "我不知道", "I do not know", "答案：", "诊断：",
    "<answer>", "</answer>", "<think></think>",
]  # fmt: skip
# References of each kind, no two alike: a constant that earns more than one of a kind finds a hole, not an answer.
REFERENCES = {
    "numbers": ["18", "-3", "2.5", "1/7", "60%", "1,234"],
    "expressions": ["\\sqrt{8}", "x^2+1", "(0,1)", "\\frac{\\pi}{2}"],
    "choices": ["A", "B", "C", "D", "E", "(B) gout"],
    "verdicts": ["yes", "no", "maybe"],
    "terms": ["肺炎", "pneumonia", "哮喘", "gout", "5-FU", "heart attack|myocardial infarction"],
}
CHANCE = 0.06  # of a letter among the built-in prompts, a quarter of which are multiple choice


def test_no_constant_answer_earns_more_than_chance_over_the_built_in_prompts():
    answers = Counter(row["answer"] for row in ROWS)
    for text in CONSTANTS:
        scores = verifier([f"<answer>{text}</answer>"] * len(answers), list(answers))
        earned = sum(rows * (score or 0.0) for rows, score in zip(answers.values(), scores, strict=True))
        assert earned / len(ROWS) <= CHANCE, text


@pytest.mark.parametrize("kind", REFERENCES)
def test_no_constant_answer_earns_two_references_of_a_kind(kind):
    references = REFERENCES[kind]
    for text in CONSTANTS:
        right = sum(score or 0.0 for score in verifier([f"<answer>{text}</answer>"] * len(references), references))
        assert right <= (2 if text == "B" else 1), text


def test_what_the_other_rewards_pay_for_a_constant_is_known():
    """`length` and `medical_format` judge form alone, so a constant of that form earns all of it; terms must be named."""
    rows = ROWS[::8]
    answers, prompts = [row["answer"] for row in rows], [row["question"] for row in rows]
    keyword = MedicalKeyword()
    for text in CONSTANTS:
        earned = [score or 0.0 for score in keyword([text] * len(rows), answers, prompts=prompts)]
        assert statistics.fmean(earned) == 0.0, text
        assert medical_format([text]) == [0.0]
        assert Length()([text]) == [1.0]
        assert Length(min=200)([text]) == [0.0]
    echoed = [score or 0.0 for score in keyword(prompts, answers, prompts=prompts)]
    assert statistics.fmean(echoed) < 0.2  # the question itself


# Repeated, these take quadratic time or more where a pattern is careless: symbols, brackets, tags, LaTeX, cues, lists.
UNITS = [
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \n\t01Bx。，：（是不无肺²½　■\u00a0\ufdfa", "<think>", "</think>", "<answer>",
    "</answer>", "\\boxed{", "#### ", "\\frac{", "\\sqrt{", "\\left(", "$1", "\\text{", "\\,", "{,}", "<<", "^{", "2^", "9**",
    "(1)!", "((", "1,", "1,234,", "1/", "1 / ", "1 1/2 ", "1e5", "百分之 ", "1 kg ", "or ", "either ", "not ", "不是", "又称 ",
    "also known as ", "the answer is ", "答案是", "诊断：", "选", "wait ", "A or ", "yes,", "pneumonia (", "肺炎, ", "rule out ",
    "no cough or ", "无发热、", "诊断**", "#*-1.、", "\\{1,", "1~", "x^2+", "a. ",
]  # fmt: skip


# (characters, the units repeated, seconds that each reward may take)
@pytest.mark.parametrize(("size", "units", "seconds"), [(3950, UNITS, 1.0), (100_000, UNITS[::6], 5.0)])
def test_no_input_takes_long(size, units, seconds, monkeypatch):
    """By the process's own time."""
    # The verifier's timer may ring where Python can't raise, and rings again.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    keyword, length = MedicalKeyword(), Length()
    rewards = {
        "number": lambda text: verifier([f"<answer>1{text}b"], ["18"]),
        "term": lambda text: verifier([f"<answer>肺炎{text}b"], ["肺炎"]),
        "expression": lambda text: verifier([f"<answer>{text}"], ["x^2+1"]),
        "reference": lambda text: verifier(["18"], [text]),
        "keyword": lambda text: keyword([text], ["肺炎 cough"], keywords=[["肺炎", "疼"]]),
        "format": lambda text: medical_format([text], sections="诊断/a"),
        "length": lambda text: length([text]),
    }
    verifier(["\\boxed{x+1}"], ["x^2+1"])  # imports sympy
    for unit in units:
        for name, reward in rewards.items():
            started = time.process_time()
            reward(unit * (size // len(unit)))
            assert time.process_time() - started < seconds, (name, unit)
