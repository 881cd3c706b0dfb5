"""Formats with one question to a row and an answer in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.reading import (
    assistant,
    is_blank,
    question_prompt,
    read_list,
    read_text,
    reference,
    with_thought,
)


def question_answer(row: Mapping[str, Any]) -> Example:
    """The answer is the completion and the reference; of `reasoning #### result` the reference is the result."""
    text = read_text(row["answer"], "answer")
    result = text.rpartition("####")[2].strip()
    return Example(
        prompt=question_prompt(row, read_text(row["question"], "question")),
        completion=with_thought(row, [assistant(text)]),
        answer=result,
        columns={} if "solution" in row else {"solution": text},
    )


def alpaca(row: Mapping[str, Any]) -> Example:
    """The instruction and its input are the prompt, the output is the completion."""
    text = read_text(row["output"], "output")
    return Example(
        prompt=instruction_prompt(row), completion=with_thought(row, [assistant(text)]), answer=reference(row, text)
    )


def question_lists(row: Mapping[str, Any]) -> Example:
    """A question in one or more wordings, of which the first is read, and one answer, as huatuo_encyclopedia_qa has."""
    questions, answers = read_list(row["questions"], "questions"), read_list(row["answers"], "answers")
    if len(questions) != 1 or len(answers) != 1:
        raise ValueError(f"one question and one answer to a row, not {len(questions)} and {len(answers)}")
    wordings = [questions[0]] if isinstance(questions[0], str) else read_list(questions[0], "questions")
    if not wordings:
        raise ValueError("questions is empty")
    text = read_text(answers[0], "answers")
    prompt = question_prompt(row, read_text(wordings[0], "questions"))
    return Example(prompt=prompt, completion=[assistant(text)], answer=reference(row, text))


def other_wordings(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """What is not read of `questions`."""
    given = [row["questions"][0] for row in rows if isinstance(row["questions"], list) and row["questions"]]
    several = sum(isinstance(each, list) and len(each) > 1 for each in given)
    said = f"{several:,} of {len(rows):,} rows have their question in several wordings, of which the first is read"
    return {}, said if several else ""


def pubmedqa(row: Mapping[str, Any]) -> Example:
    """A question about a text, which goes before it. The reference is the short answer (yes, no, maybe), if any."""
    context = row["context"]
    parts = context["contexts"] if isinstance(context, Mapping) and "contexts" in context else context
    parts = [parts] if isinstance(parts, str) else read_list(parts, "context")
    texts = [read_text(part, "context") for part in parts]
    question, answer = read_text(row["question"], "question"), read_text(row["long_answer"], "long_answer")
    short = row.get("final_decision")
    return Example(
        prompt=question_prompt(row, "\n\n".join([*texts, question])),
        completion=[assistant(answer)],
        answer=answer if is_blank(short) else read_text(short, "final_decision"),
    )


def instruction_prompt(row: Mapping[str, Any]) -> Messages:
    """The instruction, then its input on a new line, after system and history."""
    parts = [read_text(row["instruction"], "instruction")]
    if not is_blank(row.get("input")):
        parts.append(read_text(row["input"], "input"))
    return question_prompt(row, "\n".join(parts))
