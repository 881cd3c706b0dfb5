"""The first screen of the page: what was trained on what, before and after, and the verdict in two sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.report.groups import without_middle
from rlhf_core.report.reading import RunRecord, texts
from rlhf_core.runs import FAILED, STOPPED
from rlhf_core.statistics import bootstrap_mean, without_self
from rlhf_core.ui.screen import number
from rlhf_core.ui.text import COST, dollars, gb
from rlhf_core.words import say

SEED = 42  # of the intervals
RECENT = 10  # logged steps whose mean stands for now, and for the beginning
REASON, NAME, FACT = 300, 200, 1000  # characters of why a run stopped, of a name, of what was trained
LOWER_IS_BETTER = ("loss", "nll_loss")
NO_DIRECTION = ("length", "finished")
MAIN = ("rewards/accuracies", "accuracy", "mean_token_accuracy", "loss")  # of a run without rewards, the first it has
CHANCE = 0.5  # the accuracy of pairs by guessing
Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Change:
    """A figure on held-out rows before and after; `low` and `high` are the 95% interval of the difference, by a
    bootstrap over prompts, or from the number of pairs that a share is of; of what is after, if there is no `before`.
    A reward (`is_reward`) may be called as a metric is.
    """

    name: str
    before: float | None
    after: float | None
    low: float | None = None
    high: float | None = None
    is_reward: bool = False

    @property
    def difference(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `even` (the interval contains 0), or nothing where that can't be told."""
        if self.low is None or self.high is None or (self.name in NO_DIRECTION and not self.is_reward):
            return ""
        zero = CHANCE if self.before is None else 0.0
        up, down = self.low > zero, self.high < zero
        if self.name in LOWER_IS_BETTER and not self.is_reward:
            up, down = down, up
        return "better" if up else "worse" if down else "even"

    def label(self, lang: str) -> str:
        return _own_name(self.name, lang) if self.is_reward else label(self.name, lang)


def changes(run: RunRecord) -> list[Change]:
    """The figures before and after, rewards first. Without an evaluation after, there is nothing in that column."""
    before, after = run.before, run.after
    if before is None:
        return []
    rows = [_reward(name, before, after) for name in before["rewards"]]
    if len(rows) > 1 and (total := _total(run, before, after)):
        rows.insert(0, total)
    pairs = run.manifest.get("data", {}).get("held_out")
    for name, value in without_self(before["metrics"]).items():
        then = after["metrics"].get(name) if after else None
        rows.append(_share(name, value, then, pairs) if name in MAIN[:2] else Change(name, value, then))
    if before["answers"]:
        rows += [Change(name, before[name], after[name] if after else None) for name in ("length", "finished")]
    return rows


def _reward(name: str, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> Change:
    then, now = before["rewards"].get(name), after["rewards"].get(name) if after else None
    differences = []
    for one, other in zip(before["scores"], after["scores"] if after else [], strict=False):
        pair = [scores.get(name) for scores in (one, other)]
        if all(isinstance(score, int | float) for score in pair):
            differences.append(pair[1] - pair[0])
    estimate = bootstrap_mean(differences, SEED)
    low, high = (estimate.low, estimate.high) if estimate else (None, None)
    return Change(name, then, now, low, high, is_reward=True)


def _total(run: RunRecord, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> Change | None:
    """The weighted sum of several rewards, over the answers that all have scored, each of both evaluations."""
    entries = rewards(run)
    names = list(before["rewards"])
    if len(entries) != len(names):
        return None
    with suppress(UserError):
        weights = [RewardSpec.read(entry).weight for entry in entries]
        sums = [_sums(evaluation, names, weights) for evaluation in (before, after) if evaluation]
        means = [fmean(known) if (known := [one for one in each if one is not None]) else None for each in sums]
        pairs = zip(*sums, strict=False) if len(sums) == 2 else ()
        estimate = bootstrap_mean([b - a for a, b in pairs if a is not None and b is not None], SEED)
        interval = (estimate.low, estimate.high) if estimate else (None, None)
        return Change("reward", means[0], means[1] if after else None, *interval)
    return None


def _sums(evaluation: Mapping[str, Any], names: Sequence[str], weights: Sequence[float]) -> list[float | None]:
    found: list[float | None] = []
    for scores in evaluation["scores"]:
        each = [scores.get(name) for name in names]
        known = all(isinstance(score, int | float) for score in each)
        found.append(sum(w * s for w, s in zip(weights, each, strict=True)) if known else None)
    return found


def _share(name: str, before: float | None, after: float | None, rows: Any) -> Change:
    """A share of `rows` rows, with the interval of Agresti and Caffo (2000) for the difference of two proportions; of
    Agresti and Coull (1998) for the one after, where there is no other.
    """
    if after is None or not isinstance(rows, int) or not rows:
        return Change(name, before, after)
    if before is None:
        share = (after * rows + Z**2 / 2) / (rows + Z**2)
        half = Z * math.sqrt(share * (1 - share) / (rows + Z**2))
        return Change(name, None, after, max(0.0, share - half), min(1.0, share + half))
    one, other = ((share * rows + 1) / (rows + 2) for share in (before, after))
    half = Z * math.sqrt((one * (1 - one) + other * (1 - other)) / (rows + 2))
    return Change(name, before, after, other - one - half, other - one + half)


def main_change(rows: Sequence[Change], rewards: bool) -> Change | None:
    """The figure that the verdict is about."""
    if rewards:
        return next(iter(rows), None)
    return next((row for name in MAIN for row in rows if row.name == name), next(iter(rows), None))


def verdict(run: RunRecord, rows: Sequence[Change], lang: str) -> list[str]:
    """What came of the run, by its `changes`, and what looks wrong: two sentences, or one of a run without metrics."""
    return [sentence for sentence in (_outcome(run, rows, lang), _health(run, lang)) if sentence]


def _outcome(run: RunRecord, rows: Sequence[Change], lang: str) -> str:
    if run.after_step:
        return _progress(run, lang)
    change = main_change(rows, bool(run.before and run.before["rewards"]))
    if change is not None and change.before is None and change.after is not None and change.low is not None:
        sentence = "On held-out rows {name} is {after} (95% interval {low} to {high})."
        figures = {"after": number(change.after), "low": number(change.low), "high": number(change.high)}
        return say(lang, sentence, name=change.label(lang), **figures)
    if change is not None and change.difference is not None:
        values: dict[str, Any] = {"name": change.label(lang)}
        values |= {"before": number(change.before), "after": number(change.after)}
        if change.low is None or change.high is None:
            return say(lang, "On held-out rows {name} went from {before} to {after}.", **values)
        values |= {"low": signed(change.low), "high": signed(change.high), "difference": signed(change.difference)}
        how = "rose" if change.difference > 0 else "fell"
        sentence = (
            f"On held-out rows {{name}} {how} from {{before}} to {{after}} "
            "({difference}; 95% interval {low} to {high})."
        )
        if change.low <= 0 <= change.high:
            sentence = (
                "On held-out rows {name} did not clearly change: {before} before, {after} after "
                "({difference}; 95% interval {low} to {high})."
            )
        return say(lang, sentence, **values)
    return _progress(run, lang)


def _progress(run: RunRecord, lang: str) -> str:
    """Where a run is that was not evaluated at its end, by the metrics of training."""
    name = "reward" if "reward" in run.curves.columns else "loss"
    known = [value for value in run.curves.columns.get(name, []) if value is not None]
    values = {"where": _where(run, lang), "name": label(name, lang)}
    if not known:
        return say(lang, "{where}: nothing is logged yet.", **values)
    recent = max(1, min(RECENT, len(known) // 2))
    values |= {"first": number(fmean(known[:recent])), "last": number(fmean(known[-recent:]))}
    if len(known) == 1:
        return say(lang, "{where}: {name} is {last} in training.", **values)
    return say(lang, "{where}: {name} went from {first} to {last} in training.", **values)


def _where(run: RunRecord, lang: str) -> str:
    """The step that a run is at, or where and why it ended before its last one."""
    total, state = total_steps(run), run.state
    step = say(lang, "step {step} of {total}", step=run.step, total=total) if total else ""
    step = step or say(lang, "step {step}", step=run.step)
    reason = run.manifest.get("ended", {}).get("reason")
    if state == STOPPED:
        step = say(lang, "Stopped at {step}", step=step)
    elif state == FAILED:
        step = say(lang, "Failed at {step}", step=step)
    if state in (STOPPED, FAILED) and isinstance(reason, str):
        step = say(lang, "{step} ({reason})", step=step, reason=without_middle(reason, REASON))
    return step[:1].upper() + step[1:]


def _health(run: RunRecord, lang: str) -> str:
    """Whether something looks wrong; empty for a run of which there is nothing to look at."""
    names = list(dict.fromkeys(str(one["name"]) for one in run.diagnoses if one.get("level") != "info"))
    if names:
        return say(lang, "Something looks wrong: {names} (see below).", names=", ".join(names))
    return say(lang, "Nothing in its metrics and samples looks wrong.") if run.curves.steps else ""


def total_steps(run: RunRecord) -> int | None:
    """As it was noted when the training began, else as it was asked for."""
    given = (run.manifest.get("max_steps"), run.config.get("max_steps"))
    return next((steps for steps in given if isinstance(steps, int) and steps > 0), None)


def rewards(run: RunRecord) -> list[str]:
    return [*texts(run.config.get("reward")), *texts(run.config.get("reward_model"))]


def label(name: str, lang: str) -> str:
    """A metric's name for people."""
    return say(lang, LABELS[name]) if name in LABELS else _own_name(name, lang)


def _own_name(name: str, lang: str) -> str:
    name = without_middle(name, NAME)
    return f" {name} " if lang == "zh" else name


LABELS = {
    "reward": "the reward",
    "loss": "the loss",
    "accuracy": "the accuracy",
    "rewards/accuracies": "the accuracy of pairs",
    "rewards/margins": "the margin",
    "margin": "the margin",
    "mean_token_accuracy": "the accuracy of tokens",
    "log_odds_chosen": "the log odds of the chosen answer",
    "length": "length in tokens",
    "finished": "ended before the limit",
}


def signed(value: float | None) -> str:
    return "–" if value is None else f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def facts(run: RunRecord, lang: str) -> Iterator[tuple[str, str]]:
    """(what, value) of what was trained on what."""
    config, data = run.config, run.manifest.get("data", {})

    def row(name: str, value: Any) -> tuple[str, str]:
        return say(lang, name), without_middle(str(value), FACT)

    yield row("method", config.get("method") or "?")
    yield row("model", config.get("model") or "?")
    rows = f" ({data['rows']:,} + {data.get('held_out', 0):,} {say(lang, 'held out')})" if "rows" in data else ""
    yield row("data", ", ".join(texts(data.get("source")) or texts(config.get("data")) or ["?"]) + rows)
    if named := rewards(run):
        yield row("rewards", ", ".join(named))
    total = total_steps(run)
    yield row("steps", f"{run.step:,}" + (f" / {total:,}" if total else ""))
    if config.get("name"):
        yield row("name", config["name"])
    if tags := texts(config.get("tag")):
        yield row("tags", ", ".join(tags))
    memory = run.manifest.get("memory", {})
    if measured := memory.get("allocated_bytes", memory.get("resident_bytes")):
        estimated = memory.get("estimated_bytes")
        beside = f" ({say(lang, 'estimated')}: {gb(estimated)}, {measured / estimated - 1:+.0%})" if estimated else ""
        yield row("memory at most", gb(measured) + beside)
    columns = run.curves.columns.items()
    spent = [known[-1] for name, values in columns if name.endswith(COST) and (known := _known(values))]
    if spent:
        yield row("spent", dollars(sum(spent)))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
