"""A bounded summary of what a run logged: the first and the newest lines of metrics, answers and pairs.

It is fed line by line, so that a run of any length takes the same memory, while it trains as well as afterwards.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.diagnoses import texts
from rlhf_core.outputs import object_in

FIRST, NEWEST = 20, 60  # lines of metrics
EARLY, LATE = 256, 512  # answers, pairs
LONGEST = 4000  # characters of a text that are kept
EVALUATIONS = 50
VAST, LARGEST = 1e100, 1 << 53  # a number; a step, a number of tokens
Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of samples.jsonl. `row` tells prompts apart, `prompt` is the last turn of one. `total` is the weighted
    sum of its scores, None where no reward gave one.
    """

    step: int
    row: int
    prompt: str
    text: str
    scores: Mapping[str, float]
    total: float | None
    finished: bool | None
    tokens: int | None
    failed: bool
    loops: bool
    goes_on: bool
    next_turn: str | None

    def as_sample(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "prompt": self.prompt,
            "completion": self.text,
            "rewards": dict(self.scores),
            "finished": self.finished,
        }


@dataclass(frozen=True, slots=True)
class Pair:
    step: int
    row: int
    prompt: str
    chosen: str
    rejected: str
    tokens: tuple[int, int]
    margin: float | None

    def as_sample(self) -> dict[str, Any]:
        texts_of = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return {"step": self.step, **texts_of, "margin": self.margin}


@dataclass
class Summary:
    """What the checks see. `options` are the run's, or empty where they are not known; `rows` those of its data."""

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)  # of the rewards, by name
    rows: int | None = None
    max_steps: int | None = None
    step: int = 0
    lines: int = 0
    ended: bool = False
    first: list[dict[str, Any]] = field(default_factory=list)
    newest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST))
    early: list[Answer] = field(default_factory=list)
    late: deque[Answer] = field(default_factory=lambda: deque(maxlen=LATE))
    early_pairs: list[Pair] = field(default_factory=list)
    late_pairs: deque[Pair] = field(default_factory=lambda: deque(maxlen=LATE))
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # the first one, and the newest

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < LARGEST or "train_runtime" in line:
            return
        if not any(key in line for key in ("loss", "reward", "objective/kl")):  # an evaluation
            return
        if self.newest and step <= self.newest[-1]["step"]:  # the last line is there twice
            return
        self.step, self.lines = step, self.lines + 1
        kept: dict[str, Any] = {k: _number(v) for k, v in line.items() if v is None or _is_number(v)}
        kept["step"], kept["from"] = step, self.newest[-1]["step"] if self.newest else 0
        if len(self.first) < FIRST:
            self.first.append(kept)
        self.newest.append(kept)
        self.method = self.method or method_of(kept)

    def add_sample(self, line: Mapping[str, Any]) -> None:
        if "completion" in line:
            answer = self._answer(line)
            if len(self.early) < EARLY:
                self.early.append(answer)
            self.late.append(answer)
        elif "chosen" in line:
            pair = _pair(line)
            if pair is None:
                return
            if len(self.early_pairs) < EARLY:
                self.early_pairs.append(pair)
            self.late_pairs.append(pair)

    def add_evaluation(self, line: Mapping[str, Any]) -> None:
        if isinstance(line.get("scores"), list):
            del self.evaluations[EVALUATIONS:]
            kept = {key: line.get(key) for key in ("step", "scores", "prompts", "answers")}
            self.evaluations = [*self.evaluations[:1], kept]

    def _answer(self, line: Mapping[str, Any]) -> Answer:
        given = line.get("rewards")
        scores = {k: v for k, v in given.items() if _is_finite(_number(v))} if isinstance(given, Mapping) else {}
        weighed = {name: self.weights.get(name, 1.0) for name in scores}
        counted = [weight * scores[name] for name, weight in weighed.items() if weight]
        text = str(line["completion"])
        finished, tokens = line.get("finished"), line.get("tokens")
        return Answer(
            step=_whole(line.get("step")),
            row=hash(json.dumps(line.get("prompt"))),
            prompt=last_turn(line.get("prompt")),
            text=text[:LONGEST],
            scores=scores,
            total=sum(counted) if counted else None,
            finished=finished if isinstance(finished, bool) else None,
            tokens=_whole(tokens) or None,
            failed=bool(line.get("errors")),
            loops=texts.loops(text),
            goes_on=texts.goes_on(text),
            next_turn=texts.next_turn(text),
        )

    # What checks ask for

    def window(self, key: str, steps: int, least: int = 1, *, early: bool = False) -> Points:
        """(step, value) of the newest lines (or the first ones) that cover `steps` steps and have `key`.

        [] where that is not enough: fewer steps, fewer than `least` lines, or a value that is missing or no number.
        At the end of a run that is shorter than that, all of its lines, two at least.
        """
        lines: Sequence[dict[str, Any]] = [line for line in (self.first if early else self.newest) if key in line]
        if not early:
            lines = lines[::-1]
        found: list[dict[str, Any]] = []
        covered = 0
        for line in lines:
            if covered >= steps and len(found) >= least:
                break
            found.append(line)
            covered += line["step"] - line["from"]
        values = [(line["step"], line[key]) for line in found if _is_finite(line[key])]
        enough = (covered >= steps and len(found) >= least) or (self.ended and len(found) >= max(2, least))
        if not enough or len(values) < len(found):
            return []
        return values if early else values[::-1]

    def values(self, key: str) -> list[float]:
        """Those of the newest lines, without what is no number."""
        return [line[key] for line in self.newest if _is_finite(line.get(key))]

    def since(self, points: Points) -> int:
        """The step after which the first line of a window begins: it stands for all steps since the line before."""
        return next((line["from"] for line in self.newest if points and line["step"] == points[0][0]), 0)

    def warms_up(self, steps: int) -> bool:
        """Whether the learning rate rises over the newest `steps` steps."""
        rates = self.window("learning_rate", steps, 2)
        return bool(rates) and rates[-1][1] > rates[0][1]

    def groups(self, least: int = 2) -> list[list[Answer]]:
        """The newest answers by step and prompt; of a method that answers each prompt once, by step."""
        found: dict[tuple[int, int], list[Answer]] = {}
        for answer in self.late:
            key = (answer.step, 0 if self.method == "ppo" else answer.row)
            found.setdefault(key, []).append(answer)
        return [group for group in found.values() if len(group) >= least]

    def option(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _number(value: Any) -> Any:
    """A number too large to compute with its square is infinite."""
    vast = _is_number(value) and abs(value) > VAST
    return (math.inf if value > 0 else -math.inf) if vast else value


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and abs(value) < LARGEST else 0


def last_turn(prompt: Any) -> str:
    """What was asked: the last turn's text."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    return str(prompt)[:LONGEST]


def _pair(line: Mapping[str, Any]) -> Pair | None:
    metrics, tokens = line.get("metrics"), line.get("tokens")
    if not isinstance(metrics, Mapping) or not (isinstance(tokens, list) and len(tokens) == 2):
        return None
    margin = next((metrics[key] for key in ("rewards/margins", "log_odds_chosen", "margin") if key in metrics), None)
    prompt, chosen, rejected = (str(line.get(key))[:LONGEST] for key in ("prompt", "chosen", "rejected"))
    lengths = (_whole(tokens[0]), _whole(tokens[1]))
    row = hash(json.dumps([line.get(key) for key in ("prompt", "chosen", "rejected")]))
    margin = margin if _is_finite(_number(margin)) else None
    return Pair(_whole(line.get("step")), row, prompt, chosen, rejected, lengths, margin)


# What only this method's lines have, most particular first.
KEYS = {
    "ppo": ("objective/kl", "val/explained_variance", "policy/clipfrac_avg"),
    "orpo": ("log_odds_chosen", "log_odds_ratio"),
    "dpo": ("rewards/margins",),
    "grpo": ("frac_reward_zero_std", "clip_ratio/region_mean", "reward_std"),
    "reward_model": ("min_reward", "mean_reward", "margin"),
    "sft": ("mean_token_accuracy",),
}


def method_of(line: Mapping[str, Any]) -> str | None:
    """The method, by the keys of a line of its metrics."""
    return next((name for name, keys in KEYS.items() if any(key in line for key in keys)), None)


def of_config(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Summary:
    """An empty summary of a run, by its config.yaml and manifest.json."""
    from rlhf_core.config import read_rewards

    specs = read_rewards(config.get("reward") or [], config.get("reward_model"))
    data, steps = manifest.get("data"), config.get("max_steps")
    return Summary(
        method=config.get("method"),
        options=config,
        weights={spec.label: spec.weight for spec in specs},
        rows=(_whole(data.get("rows")) or None) if isinstance(data, Mapping) else None,
        max_steps=steps if isinstance(steps, int) and steps > 0 else None,
    )


def trainer_state(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of metrics of a trainer_state.json."""
    history = content.get("log_history")
    yield from (line for line in (history if isinstance(history, list) else []) if isinstance(line, dict))


HEAD, TAIL = 1 << 23, 1 << 25  # bytes of a log that are read, where a run is resumed that has more


class Lines:
    """The new lines of a file of JSON lines, each time it is asked, whole ones only. Of a file that is long when it is
    first read the beginning and the end.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.position = file, 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.file.exists():
            return
        with self.file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(self.position)
            while (line := stream.readline()).endswith(b"\n"):
                self.position += len(line)
                if HEAD <= self.position < size - TAIL:
                    stream.seek(size - TAIL)
                    self.position = size - TAIL + len(stream.readline())
                if (value := object_in(line)) is not None:
                    yield value
