"""The answer of `rlhf recommend`, as text and as plain data."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_core.commands import Device, Screen, duration, gb, text
from rlhf_tools.choosing import Choice
from rlhf_tools.costs import Cost
from rlhf_tools.looking import CALLED, Findings
from rlhf_tools.recommend import GOALS

LABEL = 8  # columns before a line's text
WIDEST = 100


@dataclass
class Option:
    """A choice and what it costs, if that was estimated."""

    choice: Choice
    cost: Cost | None = None

    @property
    def fits(self) -> bool:
        """Unless it is known not to."""
        return self.cost is None or self.cost.fits

    def command(self, model: str, data: list[str]) -> list[str]:
        return self.choice.having(self.cost.changes if self.cost else {}).command(model, data)


@dataclass
class Answer:
    """`options`: what is recommended, then the alternatives. `crowded`: bytes of 16-bit weights, if they would fill the
    device, so that the options are in 4 bits. `impossible`: what a run would refuse, and why;
    `instead_of`: what suits the goal better and does not fit.
    """

    model: str
    data: list[str]
    goal: str
    found: Findings
    device: Device | None
    options: list[Option]
    crowded: int | None = None
    impossible: dict[str, str] = field(default_factory=dict)
    instead_of: str = ""

    @property
    def good(self) -> bool:
        """Whether something can be recommended that fits."""
        return not self.found.problem and self.options[0].fits


def show(answer: Answer, screen: Screen) -> None:
    """Labels at the left, prose wrapped beside them, commands on one line to copy."""
    found, width = answer.found, min(screen.console.width, WIDEST)

    def line(label: str, content: str, style: str = "") -> None:
        for i, part in enumerate(text(content, style).wrap(screen.console, width - LABEL)):
            part.rstrip()
            screen.console.print(text(("" if i else label).ljust(LABEL)) + part, soft_wrap=True)

    screen.say("")
    for source in found.sources:
        line("Data", source)
    if found.kind:
        line("", CALLED[found.kind])
    for warning in found.warnings:
        line("Warning", warning)
    if found.problem:
        screen.say(f"\nNot good enough: {found.problem}", "bold")
        if found.few:
            screen.say(f"More rows like these would suit {answer.options[0].choice.title}.")
        return
    line("Model", answer.model)
    if answer.device is not None:
        line("Device", f"{answer.device.name}, {gb(answer.device.memory)}")
    if answer.crowded:
        line("", f"the weights alone have {gb(answer.crowded)} in 16 bits, so they are loaded in 4 (QLoRA)")
    line("Goal", f"{answer.goal}: {GOALS[answer.goal]}")
    if answer.instead_of:
        line("", f"{answer.instead_of} suits it best, and does not fit")
    for i, option in enumerate(answer.options):
        screen.say(f"\n{'Or' if i else 'Recommended'}: {option.choice.title}", "" if i else "bold")
        line("Why", option.choice.why)
        for note in option.choice.notes:
            line("Note", note)
        for label, content in _costs(option, answer.device):
            line(label, content)
        command = text(shlex.join(option.command(answer.model, answer.data)), "bold")
        screen.console.print(command, soft_wrap=True)
    for title, why in answer.impossible.items():
        screen.say("")
        line("Not", f"{title}: {why}")
    if not answer.good:
        screen.say("\nNothing fits: take a smaller model, or a larger card.", "bold")
    else:
        screen.say("\nCheck a command first: add --dry-run. All options: rlhf run --method NAME --help")


def _costs(option: Option, device: Device | None) -> list[tuple[str, str]]:
    cost = option.cost
    if cost is None or device is None:
        return []
    fits = "fits" if cost.fits else "does not fit, whatever was tried"
    changed = " with the options at the end" if cost.changes else ""
    last = " (of the last stage, with the reward model beside what is trained)" if option.choice.pipeline else ""
    lines = [("Memory", f"{gb(cost.memory)} of {gb(device.memory)}: {fits}{changed}{last}")]
    if cost.steps and cost.seconds is not None:
        lines.append(("Time", f"about {duration(cost.seconds)} for {cost.steps:,} steps"))
    elif cost.steps:
        lines.append(("Time", f"{cost.steps:,} steps; the run says how long they take"))
    return lines


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer as plain data."""
    found = answer.found
    options = [
        {
            "method": option.choice.method,
            "title": option.choice.title,
            "why": option.choice.why,
            "notes": list(option.choice.notes),
            "cost": None if option.cost is None else asdict(option.cost),
            "command": option.command(answer.model, answer.data),
        }
        for option in answer.options
    ]
    good = not found.problem
    return {
        "good_enough": good,
        "problem": found.problem or None,
        "data": {
            "sources": found.sources,
            "kind": found.kind,
            "rows": found.rows,
            "different_rows": found.different,
            "judged_by": found.judges,
            "warnings": found.warnings,
        },
        "model": answer.model,
        "device": answer.device and {"name": answer.device.name, "memory_bytes": answer.device.memory},
        "goal": answer.goal,
        "recommended": options[0] if good else None,
        "alternatives": options[1:] if good else [],
        "impossible": answer.impossible,
    }
