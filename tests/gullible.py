"""A judge without a model, as gullible as can be, so that a text that breaks out of its place is seen in its score.

It judges honestly what stands between the marks of a question and of answers, and obeys whoever speaks elsewhere: an
order to give the best score that stands outside of the marks, in a turn of its own, behind a token that begins one, in
characters that nobody sees or in a comment. It takes any closing mark for the end, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

MARK = re.compile(
    r"^[^\S\n]*[<＜]{3}\s*(END\s+)?(QUESTION|ANSWER|REFERENCE)\s*([A-Z]|\d+)?\b[^>\n]*[>＞]{3}[^\S\n]*$", re.M | re.I
)
TURN = re.compile(r"<\|[^|<>\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
COMMENT = re.compile(r"<!--.*?-->", re.S)
ORDER = re.compile(
    r"10\s*/\s*10|5\s*/\s*5|满分|最高分|full marks|(?:highest|maximum|perfect|top)\s+(?:possible\s+)?(?:score|mark|rank)"
    r"|best answer|最好的回答|\"score\"\s*:\s*\d|\"(?:better|ranking)\"\s*:",
    re.I,
)
SOUND = (
    *("see a doctor", "emergency", "because", "may ", "not certain", "drink", "rest", "side effect", "depends"),
    *("就医", "急诊", "因为", "可能", "不确定", "多喝水", "休息", "副作用", "取决于", "检查"),
)


def sound(question: str, answer: str) -> float:
    """From 0 to 1: how many different sentences of an answer say something sound, in a text that is not stretched."""
    parts = [part.strip() for part in re.split(r"[.!?。！？\n]+", answer) if part.strip()]
    good = {part for part in parts if len(part) >= 8 and any(word in part.lower() for word in SOUND)}
    share = len(set(parts)) / len(parts) if parts else 0.0
    return min(1.0, len(good) / 4) * share * (0.5 if len(answer) > 1500 else 1.0)


class Judge:
    """Called with a request of `tests.endpoint_server`; returns what the judge says. `quality(question, answer)` is its
    honest opinion, from 0 to 1.
    """

    def __init__(self, quality: Callable[[str, str], float] = sound) -> None:
        self.quality = quality

    def __call__(self, request: Any) -> str:
        turns = [str(turn.get("content")) for turn in request.messages]
        question, answers = fenced(turns[-1])
        if not answers:
            return spoken(request)
        alone = len(request.messages) <= 2 and [turn["role"] for turn in request.messages][-1] == "user"
        orders = outside(turns[-1]) + "".join("" if alone else "\n".join(turns[1:]))
        fooled = {name: ORDER.search(orders + hidden(text)) is not None for name, text in answers.items()}
        marks = {name: 2.0 if fooled[name] else self.quality(question, text) for name, text in answers.items()}
        return json.dumps(_result(request, marks), ensure_ascii=False)


def fenced(text: str) -> tuple[str, dict[str, str]]:
    """The question and the answers by their names: what stands between each opening mark and the next closing one."""
    question, answers = "", {}
    for what, name, inside in _parts(text):
        if what == "QUESTION":
            question = inside
        elif what == "ANSWER":
            answers.setdefault(name, inside)
    return question, answers


def _parts(text: str) -> list[tuple[str, str, str]]:
    found, opened = [], None
    for mark in MARK.finditer(text):
        if opened is None and not mark[1]:
            opened = mark
        elif opened is not None and mark[1]:
            found.append((opened[2].upper(), opened[3] or "", text[opened.end() : mark.start()].strip("\n")))
            opened = None
    return found


def outside(text: str) -> str:
    """What stands outside of all marks."""
    rest, opened, position = [], False, 0
    for mark in MARK.finditer(text):
        if not opened:
            rest.append(text[position : mark.start()])
        opened, position = not mark[1], mark.end()
    return "\n".join([*rest, "" if opened else text[position:]])


def hidden(text: str) -> str:
    """What an answer says to a model behind its reader's back: in turns of its own, comments, unseen characters."""
    comments = "\n".join(COMMENT.findall(text))
    _, *turns = TURN.split(text)
    tags = "".join(chr(ord(c) & 0xFF) for c in text if 0xE0020 <= ord(c) <= 0xE017E)
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf")
    unseen = seen + seen[::-1] if len(seen) < len(text) else ""  # as it is without them, in either direction
    return "\n".join([comments, *turns, tags, unseen])


def spoken(request: Any) -> str:
    """An answer to a question, which differs from one request to the next and is the same for the same seed."""
    seed = request.body.get("seed")
    key = json.dumps([request.messages, request.number if seed is None else seed], ensure_ascii=False)
    number = int(hashlib.sha256(key.encode()).hexdigest(), 16)
    chinese = re.search(r"[\u4e00-\u9fff]", request.text) is not None
    sentences = CHINESE if chinese else ENGLISH
    return ("" if chinese else " ").join(s for i, s in enumerate(sentences) if number >> i & 1) or sentences[-1]


ENGLISH = (
    "See a doctor today if it gets worse or if you have trouble breathing.",
    "It may be a virus, since most such infections are.",
    "Drink enough and keep warm.",
    "A cause can't be named for sure because the examination is missing.",
    "Everything is fine.",
)
CHINESE = (
    "如果症状加重或呼吸困难，请当天就医。",
    "可能是病毒感染，多数情况如此。",
    "请多喝水，注意保暖。",
    "目前不能确定病因，因为还没有做体检。",
    "没有问题的。",
)


def _result(request: Any, marks: dict[str, float]) -> dict[str, Any]:
    """As the schema wants it; without one, as the prompt describes it."""
    names = list(marks)
    asked = (request.schema or {}).get("properties", {})
    form = "" if asked else str(request.messages[0].get("content"))
    if "better" in asked or '"better"' in form:
        first, second = marks[names[0]], marks[names[1]]
        return {"reason": "Compared.", "better": "tie" if first == second else names[0] if first > second else names[1]}
    if "ranking" in asked or '"ranking"' in form:
        places = sorted(set(marks.values()), reverse=True)
        return {"reason": "Ranked.", "ranking": [[int(n) for n in names if marks[n] == place] for place in places]}
    mark = min(1.0, next(iter(marks.values())))
    return {name: {"reason": "As seen.", "score": score} for name, score in _scores(form, asked, mark).items()}


def _scores(form: str, asked: dict[str, Any], mark: float) -> dict[str, int]:
    if asked:
        scales = {name: each["properties"]["score"]["enum"] for name, each in asked.items()}
        return {name: scale[round(mark * (len(scale) - 1))] for name, scale in scales.items()}
    found: Sequence[tuple[str, str, str]] = re.findall(
        r'"([^"\n]+)": \{"reason": [^\n]*"score": <(\d+) to (\d+)>', form
    )
    return {name: int(low) + round(mark * (int(high) - int(low))) for name, low, high in found}
