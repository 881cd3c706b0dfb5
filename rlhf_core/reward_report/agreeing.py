"""What `rlhf score --against` shows: lines of (label, text), for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.words import say

Lines = Iterator[tuple[str, str]]
FEW = 30  # pairs, below which an interval is wide enough to say so


def percent(share: Mapping[str, Any]) -> str:
    """A share with its interval of 95%."""
    if share["share"] is None:
        return "–"
    return f"{share['share']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def kappa(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:.2f}"


def agreeing(found: Mapping[str, Any], lang: str) -> str:
    """Agreement as one line."""
    if not found["pairs"]:
        return say(lang, "no pair has both verdicts")
    return say(
        lang,
        "{accuracy} of {pairs} pairs, kappa {kappa}",
        accuracy=percent({"share": found["accuracy"], "low": found["low"], "high": found["high"]}),
        pairs=f"{found['pairs']:,}",
        kappa=kappa(found["kappa"]),
    )


def title(found: Mapping[str, Any], lang: str) -> str:
    if "scores" in found:
        return say(
            lang,
            "Against people: {source}, {count} answers with a score",
            source=found["source"],
            count=f"{found['scores']:,}",
        )
    return say(lang, "Against people: {source}, {count} pairs", source=found["source"], count=f"{found['pairs']:,}")


def people(found: Mapping[str, Any], lang: str) -> Lines:
    """What people's verdicts say of themselves."""
    about = found["people"]
    if about:
        names = about["labellers"]
        yield say(lang, "labellers"), f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        yield from several(about, lang)
        yield (
            say(lang, "shown first wins"),
            say(lang, "{share}, without a bias half", share=percent(about["first_shown_wins"])),
        )
        if about["no_majority"]:
            yield (
                say(lang, "left out"),
                say(lang, "{count} pairs on which the labellers differ", count=about["no_majority"]),
            )
    if found.get("longer_wins"):
        yield say(lang, "longer wins"), percent(found["longer_wins"])


def several(about: Mapping[str, Any], lang: str) -> Lines:
    """Agreement between labellers."""
    if about["labelled_by_several"]:
        yield (
            say(lang, "labellers agree"),
            say(
                lang,
                "{share} of {count} pairs that several labelled, Krippendorff's alpha {alpha} ({without} without ties)",
                share=percent(about["all_agree"]),
                count=f"{about['labelled_by_several']:,}",
                alpha=kappa(about["krippendorff_alpha"]),
                without=kappa(about["alpha_without_ties"]),
            ),
        )
    elif len(about["labellers"]) > 1:
        yield say(lang, "labellers agree"), say(lang, "–, no pair was labelled by several")


def reward(found: Mapping[str, Any], lang: str) -> Lines:
    """One reward beside people."""
    if "spearman" in found:
        value = found["spearman"]
        text = "–" if value is None else f"{value:+.2f}"
        yield (
            say(lang, "rank correlation"),
            say(lang, "{value} (Spearman, of {count} answers)", value=text, count=f"{found['scored']:,}"),
        )
        if found["within_prompts"]:
            yield say(lang, "within a prompt"), agreeing(found["within_prompts"]["without_ties"], lang)
        return
    yield from judge(found, lang)
    pairwise = found["pairwise"]
    if pairwise and "stopped" in pairwise:
        yield say(lang, "in both orders"), say(lang, "stopped: {why}", why=pairwise["stopped"])
    elif pairwise:
        yield "", say(lang, "asked which of two answers is better, in both orders:")
        yield from judge(pairwise, lang)
        yield from orders(pairwise, lang)


def judge(found: Mapping[str, Any], lang: str) -> Lines:
    yield say(lang, "agrees with people"), agreeing(found["with_ties"], lang)
    human, own = found["ties"]
    if human or own:
        yield say(lang, "without ties"), agreeing(found["without_ties"], lang)
        yield say(lang, "ties"), say(lang, "people {human:,}, the reward {own:,}", human=human, own=own)
    yield say(lang, "longer wins"), percent(found["longer_wins"])
    if found["without_verdict"]:
        yield say(lang, "no verdict"), say(lang, "on {count:,} pairs", count=found["without_verdict"])


def orders(found: Mapping[str, Any], lang: str) -> Lines:
    """Whether a judge prefers what it reads first."""
    yield (
        say(lang, "orders differ"),
        say(
            lang, "{share}, opposite in {count:,} pairs", share=percent(found["orders_differ"]), count=found["opposite"]
        ),
    )
    yield (
        say(lang, "read first wins"),
        say(lang, "{share}, without a bias half", share=percent(found["first_shown_wins"])),
    )
    if found["failed"]:
        yield (
            say(lang, "failed"),
            say(lang, "{count:,} pairs: {error}", count=found["failed"], error=found["first_error"]),
        )


def notes(found: Mapping[str, Any], lang: str) -> list[str]:
    """What to know of the figures."""
    told = list(found["warnings"])
    if found.get("pairs", FEW) < FEW:
        told.append(say(lang, "{count} pairs are few: the intervals are wide", count=found["pairs"]))
    if found.get("prompts", 0) < found.get("pairs", 0):
        told.append(
            say(lang, "intervals take the pairs of a prompt as one case ({count:,} prompts)", count=found["prompts"])
        )
    for name, one in found["rewards"].items():
        if "with_ties" in one and one["with_ties"]["pairs"] and one["ties"][1] > 0.5 * one["with_ties"]["pairs"]:
            told.append(say(lang, "{name} scores both answers alike in more than half of the pairs", name=name))
    return told


def sections(found: Mapping[str, Any], lang: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, lines) of people and of each reward."""
    if own := list(people(found, lang)):
        yield say(lang, "people"), own
    for name, one in found["rewards"].items():
        yield name, list(reward(one, lang))
