"""Formats with one question to a row: free answers, instructions, multiple choice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from string import ascii_uppercase
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.chat import (
    assistant,
    is_blank,
    read_json,
    read_list,
    read_text,
    reference,
    user,
    with_system,
)

OPTION_LISTS = ("options", "choices")
OPTION_COLUMNS = (tuple("ABCDE"), ("opa", "opb", "opc", "opd", "ope"))
# The most precise first: MedQA has the letter in `answer_idx` and the text in `answer`.
ANSWER_COLUMNS = ("answer_idx", "answerKey", "cop", "answer", "label")


def question_answer(row: Mapping[str, Any]) -> Example:
    """The answer is the completion and the reference; of `reasoning #### result` the reference is the result."""
    text = read_text(row["answer"], "answer")
    result = text.rpartition("####")[2].strip() if "####" in text else text
    return Example(
        prompt=question_prompt(row, read_text(row["question"], "question")),
        completion=[assistant(text)],
        answer=result,
        columns={"solution": text},
    )


def alpaca(row: Mapping[str, Any]) -> Example:
    """The instruction and its input are the prompt, the output is the completion."""
    text = read_text(row["output"], "output")
    return Example(prompt=instruction_prompt(row), completion=[assistant(text)], answer=reference(row, text))


def multiple_choice(row: Mapping[str, Any]) -> Example:
    """The options are lettered below the question; the reference is the right one's letter.

    The answer is read in this order: a number is an index from 0, unless the options are numbers too. Text is a
    label, then an option's text, then an index from 0.
    """
    labels, values = _options(row)
    texts = _without_letters([read_text(value, "an option") for value in values])
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise ValueError(f"a question has from 2 to {len(ascii_uppercase)} options, not {len(texts)}")
    right = _answer(row, labels, values, texts)
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    return Example(
        prompt=question_prompt(row, "\n".join([read_text(row["question"], "question"), *lines])),
        completion=[assistant(lines[right])],
        answer=ascii_uppercase[right],
        columns={"options": texts},
    )


def has_options(row: Mapping[str, Any]) -> bool:
    """Whether the row has options to choose from, and an answer."""
    lists = any(str(row.get(name)) not in ("None", "", "[]", "{}") for name in OPTION_LISTS)
    columns = any(not (is_blank(row.get(names[0])) or is_blank(row.get(names[1]))) for names in OPTION_COLUMNS)
    return (lists or columns) and any(not is_blank(row.get(name)) for name in ANSWER_COLUMNS)


def question_prompt(row: Mapping[str, Any], question: str) -> Messages:
    """Optional system message, optional history of (user, assistant) pairs, then the question."""
    turns = []
    for turn in [] if is_blank(row.get("history")) else read_list(row["history"], "history"):
        pair = [] if isinstance(turn, str) else read_list(turn, "history")
        if len(pair) != 2:
            raise ValueError(f"history must have [question, answer] pairs, not {turn!r}")
        turns += [user(read_text(pair[0], "history")), assistant(read_text(pair[1], "history"))]
    return with_system(row, [*turns, user(question)])


def instruction_prompt(row: Mapping[str, Any]) -> Messages:
    """The instruction, then its input on a new line, after system and history."""
    parts = [read_text(row["instruction"], "instruction")]
    if not is_blank(row.get("input")):
        parts.append(read_text(row["input"], "input"))
    return question_prompt(row, "\n".join(parts))


def _options(row: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """The options' labels as the data has them, and the options."""
    for name in OPTION_LISTS:
        value = row.get(name)
        if is_blank(value):
            continue
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = read_json(value, name)
        if isinstance(value, Mapping) and {"label", "text"} <= value.keys():
            return [str(label) for label in value["label"]], list(value["text"])
        if isinstance(value, Mapping):
            found = [label for label in sorted(value) if not is_blank(value[label])]
            return [str(label) for label in found], [value[label] for label in found]
        values = read_list(value, name)
        return list(ascii_uppercase[: len(values)]), values
    for names in OPTION_COLUMNS:
        values = [row.get(name) for name in names]
        while values and is_blank(values[-1]):
            values.pop()
        if values:
            return list(ascii_uppercase[: len(values)]), values
    raise ValueError(f"the row has no options: none of {', '.join(OPTION_LISTS)}, A, B, …, opa, opb, …")


def _without_letters(texts: list[str]) -> list[str]:
    """The options without the letters that they begin with, if each begins with its letter, as in `A. 感冒`."""
    bare = [
        re.sub(rf"^\s*\(?{letter}\)?\s*[.、:)．：）]\s*", "", text)
        for letter, text in zip(ascii_uppercase, texts, strict=False)
    ]
    return bare if all(a != b and a for a, b in zip(bare, texts, strict=False)) else texts


def _answer(row: Mapping[str, Any], labels: list[str], values: list[Any], texts: list[str]) -> int:
    """The right option's index, by the rules of `multiple_choice`."""
    column = next((name for name in ANSWER_COLUMNS if not is_blank(row.get(name))), None)
    if column is None:
        raise ValueError(f"the row has no answer: none of {', '.join(ANSWER_COLUMNS)}")
    answer = row[column]
    text = read_text(answer, column).strip()
    if isinstance(answer, float) and answer.is_integer():  # a column with gaps is read as decimals
        text = str(int(answer))
    if isinstance(answer, str) or any(isinstance(value, Real) for value in values):
        label = unicodedata.normalize("NFKC", text).strip(" .、。:()").upper()
        as_given = [str(value).strip() for value in values]
        for known, wanted in (([name.upper() for name in labels], label), (texts, text), (as_given, text)):
            if wanted in known:
                return known.index(wanted)
    if (isinstance(answer, Integral) or text.isdecimal()) and 0 <= int(text) < len(texts):
        return int(text)
    raise ValueError(
        f"{column} {text!r} is not one of {', '.join(labels)}, nor an option's text, nor an index below {len(texts)}"
    )
