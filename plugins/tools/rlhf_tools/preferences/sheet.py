"""The data sheet of preference pairs: what they are made of, what was left out and why, and what they may teach that
nobody meant. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf_core.commands import agreement, histogram
from rlhf_tools.lengths import WARNING, decided_by_length
from rlhf_tools.looking import FEW, SMALL
from rlhf_tools.preferences.selecting import Pair, Prompt, Selected

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
AGREEMENT = 0.8  # of both orders, below which the judge's opinion is mostly the order
FAILED = 0.05  # of the answers that the judge failed on, above which what is left may be a choice of its own
FILLED = 0.5  # of the prompts, below which most give no pair


def sheet(prompts: Sequence[Prompt], selected: Selected, **about: Any) -> dict[str, Any]:
    """The numbers as plain data, with `about` before them. What to warn of is told by `warnings`."""
    pairs = selected.pairs
    answers = [answer for prompt in prompts for answer in prompt.answers]
    scores = [answer.score for answer in answers if answer.score is not None]
    return {
        **about,
        "prompts": len(prompts),
        "prompts_with_pairs": len({pair.prompt for pair in pairs}),
        "answers": len(answers),
        "pairs": len(pairs),
        "margin": selected.margin,
        "left_out": {
            "answers": dict(selected.answers),
            "prompts": dict(selected.prompts),
            "pairs": dict(selected.left_out),
        },
        "refusals": selected.refusals,
        "scores": distribution(scores),
        "margins": distribution([pair.margin for pair in pairs]),
        "length": lengths(pairs) if pairs else None,
        "models": models(answers, pairs),
        "orders": orders(prompts),
    }


def distribution(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    ordered = sorted(values)
    quantiles = {f"{share:g}": ordered[round(share * (len(ordered) - 1))] for share in QUANTILES}
    return {"count": len(values), "mean": fmean(values), "quantiles": quantiles, "histogram": histogram(values)}


def lengths(pairs: Sequence[Pair]) -> dict[str, Any]:
    """In characters. `longer`: the share of pairs in which the chosen answer is the longer one, of those whose lengths
    differ, with Wilson's interval over prompts: several pairs of one prompt are not independent.
    """
    kinds = Counter(pair.longer for pair in pairs)
    differ = [pair for pair in pairs if pair.longer]
    longer = agreement.share(kinds[1], len(differ), len({pair.prompt for pair in differ}))
    return {
        "chosen": fmean(len(pair.chosen.text) for pair in pairs),
        "rejected": fmean(len(pair.rejected.text) for pair in pairs),
        "chosen_longer": kinds[1],
        "chosen_shorter": kinds[-1],
        "equal": kinds[0],
        "longer": longer["share"],
        "longer_low": longer["low"],
        "longer_high": longer["high"],
    }


def models(answers: Sequence[Any], pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Of each model, where there are several: its answers and mean score, and how often it is chosen and rejected in
    pairs of two models; `wins`: the share of these in which it is chosen.
    """
    names = dict.fromkeys(answer.model for answer in answers if answer.model is not None)
    if len(names) < 2:
        return {}
    between = [pair for pair in pairs if pair.chosen.model != pair.rejected.model]
    chosen, rejected = (Counter(getattr(pair, side).model for pair in between) for side in ("chosen", "rejected"))
    scored: dict[str, list[float]] = {name: [] for name in names}
    for answer in answers:
        if answer.model is not None and answer.score is not None:
            scored[answer.model].append(answer.score)
    return {
        name: {
            "answers": sum(answer.model == name for answer in answers),
            "mean_score": fmean(scored[name]) if scored[name] else None,
            "chosen": chosen[name],
            "rejected": rejected[name],
            "wins": chosen[name] / total if (total := chosen[name] + rejected[name]) else None,
        }
        for name in names
    }


def orders(prompts: Sequence[Prompt]) -> dict[str, Any] | None:
    """Of answers that were compared two by two: whether both orders said the same."""
    verdicts = [verdict for prompt in prompts for verdict in prompt.verdicts.values()]
    if not verdicts:
        return None
    said = [verdict for verdict in verdicts if verdict.better is not None]
    return {
        "compared": len(verdicts),
        "failed": len(verdicts) - len(said),
        "ties": sum(verdict.better == 0 for verdict in said),
        "agree": sum(verdict.agree for verdict in said),
        "agreement": sum(verdict.agree for verdict in said) / len(said) if said else None,
    }


def warnings(found: Mapping[str, Any], pairs: Sequence[Pair]) -> list[tuple[str, dict[str, Any]]]:
    """(a sentence, what is filled in) of what to know before training."""
    told: list[tuple[str, dict[str, Any]]] = []
    count, prompts = found["pairs"], found["prompts"]
    if not count:
        return []
    if count < FEW:
        told.append(
            ("very few pairs ({count}): a model would learn them by heart. {few} are few, {small} a beginning",
             {"count": count, "few": FEW, "small": SMALL})
        )  # fmt: skip
    elif count < SMALL:
        told.append(("few pairs ({count}): enough for a first try", {"count": count}))
    decided = decided_by_length([len(pair.chosen.text) - len(pair.rejected.text) for pair in pairs])
    if decided and count >= FEW:
        told.append((WARNING, {"which": decided[0], "share": f"{decided[1]:.0%}"}))
    if found["prompts_with_pairs"] < FILLED * prompts:
        values = {"with": found["prompts_with_pairs"], "prompts": prompts}
        told.append(("only {with} of {prompts} prompts give a pair: see what was left out", values))
    failed = found["left_out"]["answers"].get("failed", 0)
    if failed > FAILED * found["answers"]:
        told.append(
            ("the judge failed on {failed} of {answers} answers", {"failed": failed, "answers": found["answers"]})
        )
    agreement = (found["orders"] or {}).get("agreement")
    if agreement is not None and agreement < AGREEMENT:
        told.append(
            ("both orders agree in {share} of the comparisons only: the judge often prefers a place, not an answer",
             {"share": f"{agreement:.0%}"})
        )  # fmt: skip
    return told
