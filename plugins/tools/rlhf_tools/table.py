"""The result in the terminal, or as plain lines in a pipe. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rlhf_core.commands import text
from rlhf_tools.statistics import percent

if TYPE_CHECKING:
    from rlhf_core.commands import Screen

LABEL, FIRST, COLUMN = 22, 10, 24  # characters, for labels, the first model and each other one

AGREE = 0.8  # share of pairs on which both orders agree, below which that is said

Cell = tuple[str, str]  # the value, and below it the difference to the first model


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    """One table a mode, of as many models side by side as fit, and the notes."""
    names = [model["name"] for model in result["models"]]
    fit = max(1, (screen.console.width - LABEL - FIRST) // COLUMN)
    for mode, summary in result["results"].items():
        for start in range(1, len(names), fit):
            screen.console.print()
            screen.say(title(mode, result), "bold")
            screen.console.print(_table([names[0], *names[start : start + fit]], summary))
        for note in notes(summary):
            screen.console.print()
            screen.console.print(text(note), soft_wrap=not screen.console.is_terminal)


def title(mode: str, result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    each = settings["samples"] if mode == "sampled" else 1
    how = f"sampled at temperature {settings['temperature']:g}" if mode == "sampled" else "greedy"
    return f"{settings['prompts']} prompts, {'one answer' if each == 1 else f'{each} answers'} each, {how}"


def _table(names: Sequence[str], summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", max_width=LABEL, overflow="fold")
    for name in names:
        table.add_column(text(name), justify="right", overflow="fold")
    for label, cells in rows(names, summary):
        table.add_row(text(label), *(text("\n".join(filter(None, cell))) for cell in cells))
    return table


def rows(names: Sequence[str], summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Cell]]]:
    """(label, a cell for each of `names`), the first of them being the baseline."""
    models, others = summary["models"], summary["against_baseline"]
    rewards = list(models[names[0]]["rewards"])
    for reward in rewards:
        yield (
            reward,
            [
                (number(models[name]["rewards"][reward]), difference(others[name]["rewards"][reward]) if i else "")
                for i, name in enumerate(names)
            ],
        )
    if len(rewards) > 1:
        yield (
            "weighted sum",
            [
                (number(models[name]["total"]), difference(others[name]["total"]) if i else "")
                for i, name in enumerate(names)
            ],
        )
    if any(models[name]["failed"] for name in names):
        yield "rewards that failed", [(str(sum(models[name]["failed"].values())), "") for name in names]
    yield "length in tokens", [(number(models[name]["tokens"]), "") for name in names]
    yield "length in characters", [(number(models[name]["characters"]), "") for name in names]
    yield "ended by themselves", [(percent(models[name]["finished"]), "") for name in names]
    if rewards:
        rates = [others[name]["win_rate"] if i else None for i, name in enumerate(names)]
        yield f"wins against {names[0]}", [(wins(rate) if i else "", "") for i, rate in enumerate(rates)]
        yield "won / tied / lost", [(counts(rate) if i else "", "") for i, rate in enumerate(rates)]
    judged = [others[name].get("judged") if i else None for i, name in enumerate(names)]
    if any(judged):
        yield "wins by the judge", [(wins(one["win_rate"]) if one else "", "") for one in judged]
        yield "won / tied / lost", [(counts(one["win_rate"]) if one else "", "") for one in judged]
        yield "both orders agree", [(share(agreeing(one)) if one else "", "") for one in judged]
        if any(one and one["failed"] for one in judged):
            yield "comparisons that failed", [(str(one["failed"]) if one else "", "") for one in judged]


def wins(win_rate: Mapping[str, Any] | None) -> str:
    if win_rate is None:
        return "–"
    return f"{percent(win_rate['rate'])} [{100 * win_rate['low']:.0f}, {100 * win_rate['high']:.0f}]"


def counts(win_rate: Mapping[str, Any] | None) -> str:
    return "–" if win_rate is None else " / ".join(str(win_rate[key]) for key in ("wins", "ties", "losses"))


def difference(estimate: Mapping[str, Any] | None) -> str:
    """`+0.31 [0.12, 0.50]`, with as many decimals as the widest of the three needs."""
    if estimate is None:
        return ""
    values = [estimate[key] for key in ("mean", "low", "high") if estimate[key] is not None]
    largest = max(map(abs, values))
    decimals = next((d for d, above in enumerate((100, 10, 0.1, 0.001)) if largest >= above), 2 if largest == 0 else 5)
    rounded = [round(value, decimals) + 0.0 for value in values]  # no -0.00
    mean, *interval = (f"{value:.{decimals}f}" for value in rounded)
    return ("+" if rounded[0] > 0 else "") + mean + (f" [{', '.join(interval)}]" if interval else "")


def agreeing(judged: Mapping[str, Any]) -> float | None:
    """The share of pairs on which both orders say the same."""
    differ: float | None = judged["orders_differ"]["share"]
    return None if differ is None else 1 - differ


def share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What to know of lengths, of a judge that goes by the order, and of comparisons that failed."""
    said = []
    for name, other in summary["against_baseline"].items():
        judged = other.get("judged") or {}
        said += [other["note"]] if other["note"] else []
        said += [f"By the judge, {judged['note']}"] if judged.get("note") else []
        said += [f"{name}: a comparison failed: {judged['error']}"] if judged.get("error") else []
        agree = agreeing(judged) if judged else None
        first = judged["first_shown_wins"]["share"] if judged else None
        if agree is not None and first is not None and agree < AGREE:
            said.append(
                f"{name}: the judge says the same in both orders in only {percent(agree)} of the pairs; what it reads "
                f"first wins {percent(first)}. Where the orders disagree it is a tie."
            )
    return said


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
