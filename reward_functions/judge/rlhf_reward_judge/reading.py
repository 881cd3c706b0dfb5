"""What a judge replied: scores, a comparison or a ranking, also where it is wrapped in prose or differs in its form.

What can't be read raises `Unreadable`, which says what came back: an error of its row, never a score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from rlhf_reward_judge.rubric import Rubric, plain

SHOWN = 160  # characters of a reply in an error
LONGEST = 50_000  # characters of a reply that are read
LARGEST = 1e9  # of a score
SCORES = ("score", "rating", "points", "value", "分数", "得分", "评分")
NAMES = ("criterion", "name", "标准", "维度")
_CODE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:\s*(?:/\s*(\d+)|分|points?))?")
_BETTER = {"a": 1.0, "b": -1.0, "tie": 0.0, "answer a": 1.0, "answer b": -1.0, "equal": 0.0, "平": 0.0, "平局": 0.0}


class Unreadable(Exception):
    """A judge's reply that gives no judgement."""


def scores(reply: str, rubric: Rubric) -> dict[str, float]:
    """The score of each criterion."""
    return _only([_scores(value, rubric) for value in values(reply)], reply, "no scores")


def comparison(reply: str) -> float:
    """1.0 where the first answer is better, -1.0 where the second is, 0.0 for a tie."""
    return _only([_better(value) for value in values(reply)], reply, "no comparison")


def ranking(reply: str, size: int) -> list[list[int]]:
    """The numbers of answers, from 1 to `size`, from the best to the worst; equally good ones in one list."""
    return _only([_ranking(value, size) for value in values(reply)], reply, "no ranking")


def values(reply: str) -> list[dict[str, Any]]:
    """The JSON objects of a reply: all of it, else those in its code blocks, else those in its prose."""
    text = reply[:LONGEST].rpartition("</think>")[2].strip().removeprefix("\ufeff")
    for parts in ([text], _CODE.findall(text), _objects(text)):
        found = [value for part in parts if isinstance(value := _parsed(part), dict)]
        if found:
            return found
    raise Unreadable(f"the judge's reply has no JSON: {_excerpt(reply)}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):  # of which JSON's error is one
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that is there twice may stand for two judgements."""
    if len(dict(pairs)) < len(pairs):
        raise Unreadable("the judge's reply has a key twice: " + ", ".join(name for name, _ in pairs)[:SHOWN])
    return dict(pairs)


def _objects(text: str) -> Iterator[str]:
    """The outermost {…} of a text."""
    depth, start, quoted, position = 0, 0, False, 0
    while position < len(text):
        character = text[position]
        if quoted:
            position += character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = depth > 0
        elif character == "{":
            start, depth = (position, 1) if depth == 0 else (start, depth + 1)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                yield text[start : position + 1]
        position += 1


def _only(found: Sequence[Any], reply: str, missing: str) -> Any:
    """What the objects of a reply say, in one voice: a judge that quotes a result of the answer's gives two."""
    readable = [each for each in found if not isinstance(each, str)]
    if not readable:
        raise Unreadable(f"{missing} in the judge's reply: {found[0]}: {_excerpt(reply)}")
    if any(each != readable[0] for each in readable):
        raise Unreadable(f"the judge's reply has {len(readable)} different results: {_excerpt(reply)}")
    return readable[0]


def _scores(value: dict[str, Any], rubric: Rubric) -> dict[str, float] | str:
    """The scores in an object, or what is wrong with them."""
    given = _by_criterion(value, rubric)
    found: dict[str, float] = {}
    for criterion in rubric.criteria:
        if (key := plain(criterion.name)) not in given:
            return f"{criterion.name} is missing"
        score = _number(given[key], rubric.high)
        if score is None or not rubric.low <= score <= rubric.high:
            return f"{criterion.name} is {given[key]!r:.60}, not a number from {rubric.low} to {rubric.high}"
        found[criterion.name] = score
    return found


def _by_criterion(value: dict[str, Any], rubric: Rubric) -> dict[str, Any]:
    """What is given for each criterion: at the top, or within one key more; as an object or as a list of them."""
    wanted = {plain(criterion.name) for criterion in rubric.criteria}
    found: dict[str, Any] = {}
    for each in (value, *value.values()):
        for name, inner in _pairs(each):
            if plain(name) in wanted:
                found.setdefault(plain(name), inner)
        if found:
            break
    return found


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        for each in value:
            if isinstance(each, dict) and (name := next((each[key] for key in NAMES if key in each), None)) is not None:
                yield str(name), each


def _number(value: Any, high: int) -> float | None:
    """A score: a number, or text that is one, such as "4" or "4/5"; also as the score of an object."""
    if isinstance(value, dict):
        keys = {plain(str(key)): inner for key, inner in value.items()}
        value = next((keys[key] for key in SCORES if key in keys), None)
    if isinstance(value, str) and (number := _NUMBER.fullmatch(value.strip())):
        value = float(number[1]) if number[2] in (None, str(high)) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return None
    return float(value)


def _better(value: dict[str, Any]) -> float | str:
    keys = {plain(str(key)): inner for key, inner in value.items()}
    said = next((keys[key] for key in ("better", "winner", "preferred") if key in keys), None)
    verdict = _BETTER.get(str(said).strip().casefold())
    return f"better is {said!r:.60}, not A, B or tie" if verdict is None else verdict


def _ranking(value: dict[str, Any], size: int) -> list[list[int]] | str:
    keys = {plain(str(key)): inner for key, inner in value.items()}
    said = next((keys[key] for key in ("ranking", "ranks", "order") if key in keys), None)
    if not isinstance(said, list):
        return f"ranking is {said!r:.60}, not a list"
    places = [[_answer(each) for each in (place if isinstance(place, list) else [place])] for place in said]
    if sorted(chain(*places)) != list(range(1, size + 1)):
        return f"ranking is {said!r:.60}, not each of the answers 1 to {size} once"
    return [sorted(place) for place in places if place]


def _answer(value: Any) -> int:
    """The number of an answer, also of "3" or "Answer 3"; 0 for what is none."""
    if isinstance(value, str) and (number := re.fullmatch(r"\D{0,12}(\d{1,4})\D{0,3}", value)):
        return int(number[1])
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _excerpt(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
