"""A data sheet in the terminal, in English or in Chinese, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_core import UserError
from rlhf_core.commands import Screen, duration, to_json
from rlhf_tools.preferences import selecting, writing
from rlhf_tools.preferences.selecting import Prompt, Selected
from rlhf_tools.preferences.sheet import sheet, warnings
from rlhf_tools.preferences.words import say

BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 2  # refusals
WIDTH = 60  # characters of one
KEPT = ". What was sampled and judged is in {folder}: another --margin, or --all-pairs, goes on from there"


def finish(
    screen: Screen,
    lang: str,
    files: tuple[Path, Path],
    prompts: Sequence[Prompt],
    selected: Selected,
    judged_by: str | None,
    *,
    as_json: bool,
    extra: Sequence[tuple[str, dict[str, Any]]] = (),
    kept: Path | None = None,
    **about: Any,
) -> None:
    """Write the pairs and their sheet, and show it. `extra` are more warnings; `kept` has what was sampled. Raises
    `UserError` where no pair is left: then nothing is written.
    """
    found = sheet(prompts, selected, **about)
    told = [*extra, *warnings(found, selected.pairs)]
    found["warnings"] = [say("en", sentence, **_values(values, "en")) for sentence, values in told]
    if selected.pairs:
        writing.write(*files, writing.lines_of(selected.pairs, prompts, judged_by), found)
    if as_json:
        click.echo(to_json(found))
    else:
        screen.resolved(list(rows(found, lang)))
        for sentence, values in told:
            screen.say(f"{say(lang, 'Warning')}: {say(lang, sentence, **_values(values, lang))}", "yellow")
        if selected.pairs:
            screen.say(f"\n{files[0]}  {files[1]}", "bold")
    if not selected.pairs:
        told = say(lang, KEPT, folder=kept) if kept else ""
        raise UserError(say(lang, "no pair is left, and nothing is written") + told)


def _values(values: Mapping[str, Any], lang: str) -> dict[str, Any]:
    """What is filled in: numbers with commas, words in the language."""
    return {
        name: f"{value:,}" if isinstance(value, int) else say(lang, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def rows(found: Mapping[str, Any], lang: str) -> Iterator[tuple[str, str]]:
    """(label, what it says) of a sheet."""

    def line(label: str, sentence: str, **values: Any) -> tuple[str, str]:
        return say(lang, label), say(lang, sentence, **values)

    counts = {name: f"{found[name]:,}" for name in ("pairs", "prompts", "answers")}
    yield line("Pairs", "{pairs}, of {prompts} prompts with {answers} answers", **counts)
    for label, kind, names in (
        ("Answers", "answers", selecting.ANSWERS),
        ("Prompts", "prompts", selecting.PROMPTS),
        ("Ties", "pairs", selecting.PAIRS),
    ):
        if said := reasons(found["left_out"][kind], names, lang):
            yield line(label, "left out: {reasons}", reasons=said)
    for text in found["refusals"][:SHOWN]:
        yield line("Refusal", "“{text}”", text=" ".join(text.split())[:WIDTH])
    yield line("Margin", "a pair's scores differ by {margin} at least", margin=f"{found['margin']:.3g}")
    if found["margins"]:
        quantiles = found["margins"]["quantiles"]
        low, median, high = (f"{quantiles[share]:.3g}" for share in ("0", "0.5", "1"))
        bars = sparkline(found["margins"]["histogram"]["counts"])
        yield line("", "from {low} to {high}, median {median}  {bars}", low=low, high=high, median=median, bars=bars)
    if found["length"]:
        yield _length(found["length"], lang)
    for name, one in found["models"].items():
        wins = "–" if one["wins"] is None else f"{one['wins']:.0%}"
        yield line("Model", "{name}: chosen in {wins} of its pairs with others", name=name, wins=wins)
    if both := found["orders"]:
        share = "–" if both["agreement"] is None else f"{both['agreement']:.0%}"
        yield line("Orders", "both agree in {share} of {count} comparisons", share=share, count=f"{both['compared']:,}")
    if found.get("judge"):
        yield say(lang, "Judge"), ", ".join(one["spec"] for one in found["judge"])
    if spent := found.get("spent"):
        yield say(lang, "Spent"), say(lang, ", ").join(f"{name} {value:,.6g}" for name, value in spent.items())
    if found.get("seconds") is not None:
        yield say(lang, "Time"), duration(found["seconds"])


def _length(found: Mapping[str, Any], lang: str) -> tuple[str, str]:
    means = {side: f"{found[side]:.0f}" for side in ("chosen", "rejected")}
    if found["longer"] is None:
        return say(lang, "Length"), say(lang, "chosen {chosen} characters, rejected {rejected}", **means)
    shares = {name: f"{found[name]:.0%}" for name in ("longer", "longer_low", "longer_high")}
    sentence = (
        "chosen {chosen} characters, rejected {rejected}; the chosen one is longer in {longer} "
        "[{longer_low} to {longer_high}]"
    )
    return say(lang, "Length"), say(lang, sentence, **means, **shares)


def reasons(counts: Mapping[str, int], names: Mapping[str, str], lang: str) -> str:
    """How many for which reason, the most first."""
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    return say(lang, ", ").join(f"{count:,} {say(lang, names[reason])}" for reason, count in ordered)


def sparkline(counts: Iterable[int]) -> str:
    """A character each."""
    counts = list(counts)
    most = max([*counts, 1])
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts)
