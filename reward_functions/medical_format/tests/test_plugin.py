"""Every way of keeping and breaking the format, with its score."""

from __future__ import annotations

import time

import pytest
from rlhf_reward_medical_format import PART, SYSTEM_PROMPT, medical_format

from rlhf_core.catalog import Catalog

ANSWER = "诊断：肺炎\n依据：发热、咳嗽\n建议：尽快就医"
FULL = f"<think>\n发热。\n</think>\n<answer>\n{ANSWER}\n</answer>"

CASES = {
    "complete": (FULL, 1.0),
    "on one line": ("<think>a</think><answer>b</answer>", 1.0),
    "space around": (f"\n  {FULL}\n\n", 1.0),
    "English": ("<think>\nFever.\n</think>\n\n<answer>\nPneumonia.\n</answer>", 1.0),
    "other tags inside": ("<think>a <b>x</b> < 3</think><answer>1 < 2</answer>", 1.0),
    "empty text": ("", 0.0),
    "only space": (" \n", 0.0),
    "no tags": ("诊断：肺炎", 0.0),
    "only a think part": ("<think>a</think>b", PART),
    "only an answer part": ("a<answer>b</answer>", PART),
    "think not closed": ("<think>a<answer>b</answer>", PART),
    "answer not closed": ("<think>a</think><answer>b", PART),
    "empty think": ("<think> \n</think><answer>b</answer>", PART),
    "empty answer": ("<think>a</think><answer></answer>", PART),
    "both empty": ("<think></think><answer></answer>", 0.0),
    "text before": ("Sure! <think>a</think><answer>b</answer>", 2 * PART),
    "text between": ("<think>a</think> so <answer>b</answer>", 2 * PART),
    "text after": ("<think>a</think><answer>b</answer> Bye", 2 * PART),
    "wrong order": ("<answer>b</answer><think>a</think>", 2 * PART),
    "think doubled": ("<think>a</think><think>a</think><answer>b</answer>", PART),
    "answer doubled": ("<think>a</think><answer>b</answer><answer>b</answer>", PART),
    "think opened twice": ("<think>a<think>a</think><answer>b</answer>", PART),
    "answer closed twice": ("<think>a</think><answer>b</answer></answer>", PART),
    "everything doubled": (FULL + FULL, 0.0),
    "answer inside think": ("<think>a<answer>b</answer></think>", 2 * PART),
    "interleaved": ("<think>a<answer>b</think>c</answer>", 2 * PART),
    "closed before opened": ("</think>a<think><answer>b</answer>", PART),
    "only tags, many": ("<think>" * 1000, 0.0),
    "wrong case": ("<Think>a</Think><Answer>b</Answer>", 0.0),
    "full-width brackets": ("＜think＞a＜/think＞＜answer＞b＜/answer＞", 0.0),
    "huge": ("<think>" + "a" * 1_000_000 + "</think><answer>b</answer>", 1.0),
    "huge and broken": ("<think>" + "<answer>" * 200_000, 0.0),
    "right to left": ("<think>שלום</think><answer>مرحبا</answer>", 1.0),
    "control characters": ("<think>\x00\x1b[31m</think><answer>b\x07</answer>", 1.0),
    "lone surrogate": ("<think>\ud800</think><answer>b</answer>", 1.0),
    "emoji": ("<think>🤔</think><answer>🩺</answer>", 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_format(case):
    text, expected = CASES[case]
    assert medical_format([text]) == [pytest.approx(expected)]


SECTIONS = {
    "all there": (ANSWER, 1.0),
    "in another order": ("建议：a\n诊断：b\n依据：c", 1.0),
    "two of three": ("诊断：肺炎\n建议：就医", 0.5 + 0.5 * 2 / 3),
    "one empty": ("诊断：\n依据：发热\n建议：就医", 0.5 + 0.5 * 2 / 3),
    "none": ("肺炎", 0.5),
    "bold and numbered": ("1. **诊断**：肺炎\n## 依据: 发热\n- **建议：** 就医", 1.0),
    "mentioned, not as a heading": ("我的诊断：肺炎，依据：发热，建议：就医", 0.5),
    "the same thrice": ("诊断：a\n诊断：b\n诊断：c", 0.5 + 0.5 / 3),
}


@pytest.mark.parametrize("case", SECTIONS)
def test_sections(case):
    answer, expected = SECTIONS[case]
    text = f"<think>a</think><answer>{answer}</answer>"
    assert medical_format([text], sections="诊断/依据/建议") == [pytest.approx(expected)]
    assert medical_format([text], sections=["诊断", "依据", "建议"]) == [pytest.approx(expected)]


def test_sections_in_english_ignore_case():
    text = "<think>a</think><answer>diagnosis: x\nADVICE: y</answer>"
    assert medical_format([text], sections=["Diagnosis", "Advice"]) == [1.0]


def test_sections_outside_the_answer_do_not_count():
    text = f"<think>{ANSWER}</think><answer>x</answer>"
    assert medical_format([text], sections="诊断/依据/建议") == [0.5]


def test_a_broken_format_never_scores_as_high_as_a_complete_one():
    broken = [score for text, score in CASES.values() if score < 1.0]
    assert max(broken) < 0.5 * min(score for _, score in SECTIONS.values())


def test_ten_thousand_completions_take_under_two_seconds():
    texts = [FULL + "x" * (500 - len(FULL))] * 10_000
    started = time.process_time()
    medical_format(texts, sections="诊断/依据/建议")
    assert time.process_time() - started < 2


def test_found_by_its_name():
    reward, entry = Catalog().load("rewards", "medical_format")
    assert (reward.range, reward.system_prompt, entry.distribution) == (
        (0.0, 1.0), SYSTEM_PROMPT, "rlhf-reward-medical-format",
    )  # fmt: skip


def test_other_keywords_are_ignored():
    assert medical_format(completions=[FULL], prompts=["p"], answer=["a"], trainer_state=None) == [1.0]
