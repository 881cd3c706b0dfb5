"""What `rlhf preferences audit` shows: lines of (label, text), and the rows to look at first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.cells import cell_len

from rlhf_core.commands import Screen, agreeing, question, shown
from rlhf_tools.preferences.auditing import Said
from rlhf_tools.preferences.words import say

Lines = Iterator[tuple[str, str]]
QUESTION = 70  # characters of a question that are shown


def entry(row: Said, reasons: Mapping[str, str], weight: float) -> dict[str, Any]:
    """A row to look at, for JSON."""
    why = [{"reason": reason, **({"more": more} if more else {})} for reason, more in reasons.items()]
    return {"location": row.location, "weight": weight, "reasons": why, "question": question(row.prompt)[:500]}


def show(screen: Screen, result: Mapping[str, Any], lang: str) -> None:
    title = say(
        lang,
        "{file}: {rows:,} pairs of {prompts:,} prompts",
        file=result["source"],
        rows=result["rows"],
        prompts=result["prompts"],
    )
    screen.say(title, "bold")
    section(screen, "", list(of_pairs(result, lang)))
    if result["people"]:
        name = say(lang, "People: {file}", file=result["labels_file"])
        section(screen, name, list(of_people(result["people"], lang)))
        for one in result["people"]["each"]:
            section(screen, f"  {one['labeller']}", list(of_labeller(one, lang)))
    else:
        screen.say(
            say(lang, "No labels of people. To get some: rlhf preferences label {file}", file=result["source"]), "dim"
        )
    if result.get("judge"):
        section(screen, say(lang, "Judge: {name}", name=result["judge"]["name"]), list(of_judge(result["judge"], lang)))
    look_at(screen, result, lang)
    for warning in result["warnings"]:
        screen.say(f"{say(lang, 'Warning')}: {warning}", "yellow")


def section(screen: Screen, title: str, lines: list[tuple[str, str]]) -> None:
    if title:
        screen.say(f"{'' if title.startswith(' ') else chr(10)}{one_line(title)}", "bold")
    width = max((cell_len(name) for name, _ in lines), default=0)
    for name, content in lines:
        screen.say(f"  {name}{' ' * (width - cell_len(name))}  {one_line(content)}")


def one_line(content: str) -> str:
    return shown(content).replace("\n", "↵")


def of_pairs(result: Mapping[str, Any], lang: str) -> Lines:
    for name, key in (("say the opposite", "opposite"), ("cycles", "cycles")):
        found = result[key]
        text = say(lang, "{groups:,}, with {rows:,} rows", groups=found["groups"], rows=found["rows"])
        yield say(lang, name), text + (f": {', '.join(found['first'][0])}" if found["groups"] else "")
    for name, key in (
        ("copies", "duplicates"),
        ("same answers", "same_answers"),
        ("nearly the same answers", "nearly_answers"),
    ):
        found = result[key]
        yield say(lang, name), f"{found['rows']:,}" + (f": {', '.join(found['first'])}" if found["rows"] else "")
    text = say(
        lang, "{count:,} answers, in an order without a contradiction", count=result["chosen_here_rejected_there"]
    )
    yield say(lang, "chosen here, rejected there"), text
    yield say(lang, "the longer answer is chosen"), agreeing.percent(result["chosen_longer"])


def of_people(found: Mapping[str, Any], lang: str) -> Lines:
    yield (
        say(lang, "labelled"),
        say(lang, "{count:,} pairs, by {names}", count=found["labelled"], names=", ".join(found["labellers"][:8])),
    )
    if found["labels_of_other_pairs"]:
        yield (
            say(lang, "not counted"),
            say(lang, "{count:,} labels of pairs that are not in this file", count=found["labels_of_other_pairs"]),
        )
    if len(found["labellers"]) > 1:
        yield from agreeing.several(found, lang)
    if found["file"]:
        yield say(lang, "agree with the file"), agreeing.agreeing(found["file"]["with_ties"], lang)
    if found["file"] and found["file"]["ties"][0]:
        yield say(lang, "without ties"), agreeing.agreeing(found["file"]["without_ties"], lang)
    for half, name in zip(found["by_margin"], ("of small margins", "of large margins"), strict=False):
        text = say(
            lang,
            "{share} of {count} pairs ({low:g} to {high:g})",
            share=agreeing.percent(half),
            count=half["count"],
            low=half["from"],
            high=half["to"],
        )
        yield say(lang, name), text
    longer, file = agreeing.percent(found["longer_wins"]), agreeing.percent(found["file_longer_wins"])
    if found["file"]:
        longer = say(lang, "people {people}, the file {file}, of the same pairs", people=longer, file=file)
    yield say(lang, "longer wins"), longer
    yield (
        say(lang, "shown first wins"),
        say(lang, "{share}, without a bias half", share=agreeing.percent(found["first_shown_wins"])),
    )


def of_labeller(one: Mapping[str, Any], lang: str) -> Lines:
    parts = [say(lang, "{count:,} labels", count=one["labels"])]
    parts += [say(lang, "ties {count:,}", count=one["ties"]), say(lang, "skipped {count:,}", count=one["skipped"])]
    if one["median_seconds"] is not None:
        parts.append(say(lang, "half of them within {seconds:.1f} s", seconds=one["median_seconds"]))
    if one["too_fast"]:
        parts.append(say(lang, "{count:,} faster than they can be read", count=one["too_fast"]))
    yield "", ", ".join(parts)
    if one["agrees_with_others"]["count"]:
        text = say(
            lang,
            "agrees with others in {share} of {count} cases, kappa {kappa}",
            share=agreeing.percent(one["agrees_with_others"]),
            count=f"{one['agrees_with_others']['count']:,}",
            kappa=agreeing.kappa(one["kappa_with_others"]),
        )
        yield "", text


def of_judge(found: Mapping[str, Any], lang: str) -> Lines:
    if found["stopped"]:
        yield say(lang, "stopped"), found["stopped"]
    if found["people"]:
        yield say(lang, "agrees with people"), agreeing.agreeing(found["people"]["with_ties"], lang)
        yield say(lang, "without ties"), agreeing.agreeing(found["people"]["without_ties"], lang)
    if found["file"]:
        yield say(lang, "agrees with the file"), agreeing.agreeing(found["file"]["with_ties"], lang)
    yield say(lang, "longer wins"), agreeing.percent(found["longer_wins"])
    if "orders_differ" in found:
        yield from agreeing.orders(found, lang)
    if found["without_verdict"]:
        yield say(lang, "no verdict"), say(lang, "on {count:,} pairs", count=found["without_verdict"])


def look_at(screen: Screen, result: Mapping[str, Any], lang: str) -> None:
    """The rows to look at first, each with why."""
    if not result["look_at"]:
        screen.say("\n" + say(lang, "No row looks doubtful."), "bold")
        return
    title = say(
        lang,
        "Look at these first, {shown:,} of {count:,} doubtful rows",
        shown=len(result["look_at"]),
        count=result["doubtful"],
    )
    screen.say("\n" + title, "bold")
    for one in result["look_at"]:
        why = "; ".join(say(lang, r["reason"]) + (f" ({r['more']})" if "more" in r else "") for r in one["reasons"])
        asked = " ".join(one["question"].split())
        asked = asked if len(asked) <= QUESTION else asked[: QUESTION - 1] + "…"
        screen.say(f"  {one['location']}  {one_line(why)}")
        screen.say(f"      {one_line(asked)}", "dim")
