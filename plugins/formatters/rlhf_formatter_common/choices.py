"""Multiple choice: questions with options, and which of them are right."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from string import ascii_uppercase
from typing import Any, NamedTuple

from rlhf_core import Example
from rlhf_formatter_common.reading import assistant, is_blank, question_prompt, read_json, read_list, read_text

OPTION_LISTS = ("options", "option", "choices", "choice", "选项")
# A column for each option: A, …; opa, …; option_a, …; Option A, …; choice1, …; 选项A, …
WORDS = ("op", "opt", "option", "Option", "choice", "Choice", "选项")
OPTION_PREFIXES = ("", *(word + between for word in WORDS for between in ("", "_", " ")))
OPTION_COLUMNS = [
    tuple(prefix + sign for sign in signs)
    for prefix in OPTION_PREFIXES
    for signs in ("ABCDEFGH", "abcdefgh", "12345678")
    if prefix or not signs.isdecimal()
]
OPTION_KEYS = (("key", "label", "id", "letter"), ("value", "text", "content", "option"))  # of options as objects
# The most precise first: MedQA has the letter in `answer_idx` and the text in `answer`.
ANSWER_COLUMNS = (
    *(
        "answer_idx",
        "answer_index",
        "answerKey",
        "answerkey",
        "cop",
        "correct_option",
        "correct_answer",
        "correct answer",
    ),
    *("answer", "correct", "label", "gold", "target", "答案"),
)


def multiple_choice(row: Mapping[str, Any]) -> Example:
    """The options are lettered below the question; the reference is the right one's letter, or the letters of several.

    The answer is read in this order: a number is an index, unless the options are numbers too. Text is a label, then an
    option's text, then several labels (`ABD`, `A, B`), then an index. Indices count from `first_option`, or else from
    0. A list has several answers.
    """
    labels, values = _options(row)
    texts = _without_letters([read_text(value, "an option") for value in values])
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise ValueError(f"a question has from 2 to {len(ascii_uppercase)} options, not {len(texts)}")
    right = _answers(row, labels, values, texts)
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    return Example(
        prompt=question_prompt(row, "\n".join([read_text(row["question"], "question"), *lines])),
        completion=[assistant("\n".join(lines[index] for index in right))],
        answer="".join(ascii_uppercase[index] for index in right),
        columns={"options": texts},
    )


def first_option(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """The number that answers give the first option, decided by all rows whose answer is a number.

    0 if one is 0, 1 if one is the number of options, else what explanations such as `b is right` agree with.
    """
    found = [number for row in rows for number in _numbered(row)]
    if not found:
        return {}, ""
    column = next(name for name in ANSWER_COLUMNS if not is_blank(found[0][2].get(name)))
    said = f"{column} counts the options from {{}}, as {{}}. To count otherwise: FILE:first_option={{}}"
    if any(number == 0 for number, _, _ in found):
        return {"first_option": 0}, ""
    if any(number == count for number, count, _ in found):
        return {"first_option": 1}, said.format(1, "it has the number of options and no 0", 0)
    votes = [number - letter for number, _, row in found if (letter := _explained(row)) is not None]
    if votes.count(1) > 2 * votes.count(0):
        return {"first_option": 1}, said.format(1, "explanations name the right letter", 0)
    why = "explanations name the right letter" if votes.count(0) > 2 * votes.count(1) else "usual; the data can't tell"
    return {"first_option": 0}, said.format(0, why, 1)


def _numbered(row: Mapping[str, Any]) -> list[tuple[int, int, Mapping[str, Any]]]:
    """(the answer, the number of options, the row) of answers that can only be the numbers of options."""
    try:
        labels, values = _options(row)
        right = _right(row, labels, values, [str(value) for value in values])
    except ValueError:
        return []
    return [(one.number, len(values), row) for one in right if one.number is not None]


def _explained(row: Mapping[str, Any]) -> int | None:
    """The index of the option that an explanation names, as in `Ans. (b)` or `b is right`."""
    texts = [str(row[name]) for name in ("exp", "explanation", "rationale") if not is_blank(row.get(name))]
    found = re.search(r"(?i:ans(?:wer)?)\W{0,3}(?:is)?\W{0,3}([a-hA-H])\b|^\W*([a-hA-H])\W? is\b", " ".join(texts))
    return ascii_uppercase.index((found[1] or found[2]).upper()) if found else None


def lists_options(row: Mapping[str, Any]) -> bool:
    """Whether the row has options to choose from."""
    lists = any(str(row.get(name)) not in ("None", "", "[]", "{}") for name in OPTION_LISTS)
    return lists or any(not (is_blank(row.get(names[0])) or is_blank(row.get(names[1]))) for names in OPTION_COLUMNS)


def has_options(row: Mapping[str, Any]) -> bool:
    """Whether the row has options to choose from, and an answer."""
    return lists_options(row) and any(not is_blank(row.get(name)) for name in ANSWER_COLUMNS)


def _options(row: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """The options' labels as the data has them, and the options."""
    for name in OPTION_LISTS:
        value = row.get(name)
        if is_blank(value):
            continue
        if isinstance(value, str):
            value = read_json(value, name) if value.lstrip()[:1] in ("{", "[") else _in_text(value, name)
        if isinstance(value, Mapping) and {"label", "text"} <= value.keys():
            labels, texts = (read_list(value[key], f"{name}: {key}") for key in ("label", "text"))
            if len(labels) != len(texts):
                raise ValueError(f"{name} has {len(labels)} labels for {len(texts)} texts")
            return [str(label) for label in labels], texts
        if isinstance(value, Mapping):
            found = [label for label in sorted(value) if not is_blank(value[label])]
            return [str(label) for label in found], [value[label] for label in found]
        values = read_list(value, name)
        if values and all(isinstance(item, Mapping) for item in values):
            return [_item(item, 0, name) for item in values], [_item(item, 1, name) for item in values]
        return list(ascii_uppercase[: len(values)]), values
    for names in OPTION_COLUMNS:
        values = [row.get(name) for name in names]
        while values and is_blank(values[-1]):
            values.pop()
        if values:
            return list(ascii_uppercase[: len(values)]), values
    raise ValueError(f"the row has no options: none of {', '.join(OPTION_LISTS)}, A, B, …, opa, opb, …, option_a, …")


def _item(option: Mapping[str, Any], which: int, column: str) -> str:
    """The label (0) or the text (1) of an option that is an object."""
    name = next((name for name in OPTION_KEYS[which] if name in option), None)
    if name is None:
        raise ValueError(f"{column} must have options {{key, value}} or {{label, text}}, not {option!r:.60}")
    return read_text(option[name], f"{column}: {name}")


def _in_text(text: str, column: str) -> list[str]:
    """The options in a text: each after its letter (`A. … B. …`), or each on a line."""
    marks = list(re.finditer(r"(?:^|(?<=\s))[(（]?([A-H])[.、:)．：）]\s*", text))
    if len(marks) > 1 and [mark[1] for mark in marks] == list(ascii_uppercase[: len(marks)]):
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        return [text[mark.end() : end].strip(" \n;；,，") for mark, end in zip(marks, ends, strict=True)]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise ValueError(f"{column} is text without options A. …, B. …, each on a line: {text[:60]!r}")
    return lines


def _without_letters(texts: list[str]) -> list[str]:
    """The options without the letters that they begin with, if each begins with its letter, as in `A. 感冒`."""
    bare = [
        re.sub(rf"^\s*\(?{letter}(?:\)?\s*[.、:)．：）]|\s)\s*", "", text)
        for letter, text in zip(ascii_uppercase, texts, strict=False)
    ]
    distinct = len(set(bare)) == len(set(texts))  # `A type`, `B type` are options as they are
    return bare if distinct and all(a != b and a for a, b in zip(bare, texts, strict=False)) else texts


def _bare(text: str) -> str:
    return re.sub(r"[\W_]", "", text)


SEVERAL = re.compile(r"[A-Z](?:[\s,、;/&+|]*[A-Z])+")  # letters of several options


class _Right(NamedTuple):
    """The right option: its `index`, or the `number` that the data gives it."""

    index: int | None
    number: int | None = None


def _answers(row: Mapping[str, Any], labels: list[str], values: list[Any], texts: list[str]) -> list[int]:
    """The right options' indices, by the rules of `multiple_choice`."""
    first = int(row.get("first_option", 0))
    found = set()
    for right in _right(row, labels, values, texts):
        index = right.index if right.number is None else right.number - first
        if index is None or not 0 <= index < len(texts):
            column = next(name for name in ANSWER_COLUMNS if not is_blank(row.get(name)))
            raise ValueError(
                f"{column} {str(row[column]).strip()!r} is not one of {', '.join(labels)}, nor an option's text, "
                f"nor a number from {first} to {len(texts) + first - 1}"
            )
        found.add(index)
    return sorted(found)


def _right(row: Mapping[str, Any], labels: list[str], values: list[Any], texts: list[str]) -> list[_Right]:
    column = next((name for name in ANSWER_COLUMNS if not is_blank(row.get(name))), None)
    if column is None:
        raise ValueError("the row has no answer: none of answer, answer_idx, answerKey, cop, correct_option, label")
    answer = row[column]
    if isinstance(answer, str) and answer.lstrip().startswith("["):  # from CSV
        answer = read_json(answer, column)
    if isinstance(answer, list) and not answer:
        raise ValueError(f"{column} is empty")
    known = [label.upper() for label in labels]
    if isinstance(answer, list):
        return [_one(each, column, labels, values, texts) for each in answer]
    right = _one(answer, column, labels, values, texts)
    if right == _Right(None) and (several := SEVERAL.fullmatch(_label(answer))):
        letters = re.findall(r"[A-Z]", several[0])
        ascending = all(a < b for a, b in itertools.pairwise(letters))  # BAD is a word
        if ascending and set(letters) <= set(known):
            return [_Right(known.index(letter)) for letter in letters]
    return [right]


def _one(answer: Any, column: str, labels: list[str], values: list[Any], texts: list[str]) -> _Right:
    text = read_text(answer, column).strip()
    if isinstance(answer, float) and answer.is_integer():  # a column with gaps is read as decimals
        text = str(int(answer))
    if isinstance(answer, str) or any(isinstance(value, Real) for value in values):
        as_given = [str(value).strip() for value in values]
        lettered = [_bare(name + value) for name, value in zip(labels, texts, strict=False)]  # `A. fever`
        known = [label.upper() for label in labels]
        for names, wanted in ((known, _label(text)), (texts, text), (as_given, text), (lettered, _bare(text))):
            if wanted in names:
                return _Right(names.index(wanted))
    if isinstance(answer, Integral) or text.isdecimal():
        return _Right(None, int(text))
    return _Right(None)


def _label(text: Any) -> str:
    return unicodedata.normalize("NFKC", str(text)).strip(" .、。:()").upper()
