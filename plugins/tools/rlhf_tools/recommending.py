"""Carries out `rlhf recommend`: looks at the data, chooses, estimates, and shows the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from rlhf_core import Catalog, commands, resolve
from rlhf_core.commands import Device, Screen, to_json
from rlhf_tools.advice import Answer, Option, as_dict, show
from rlhf_tools.choosing import IN_4_BITS, choose
from rlhf_tools.costs import Costs
from rlhf_tools.looking import Findings, look


def run(
    *,
    data: Sequence[str],
    model: str | None,
    gpu: str | None,
    memory: str | None,
    goal: str | None,
    reward: str | None,
    reward_model: str | None,
    estimated: bool,
    as_json: bool,
) -> int:
    """The exit code. Raises `UserError` for what was given wrong."""
    catalog, screen = Catalog(), Screen(quiet=as_json)
    device = commands.device_of(gpu, memory) if estimated else None
    with screen.working("Reading the data …"):
        found = look(commands.read_data_specs(data, None, None), catalog)
    _check_rewards(found, reward, reward_model, catalog)
    chosen = choose(found, goal or "quality", reward, reward_model) if found.kind else []
    answer = Answer(model or "builtin", list(data), goal or "quality", found, device, [Option(one) for one in chosen])
    if device is not None and not found.problem:
        _estimate(answer, device, catalog, screen)
    if as_json:
        click.echo(to_json(as_dict(answer)))
    else:
        show(answer, screen)
    return 0 if answer.good else 1


def _check_rewards(found: Findings, reward: str | None, reward_model: str | None, catalog: Catalog) -> None:
    """Raise `UserError` for a reward that is not there, or that needs a column that the data lacks."""
    if not (reward or reward_model):
        return
    given = {"reward": [reward]} if reward else {"reward_model": reward_model}
    config, _ = resolve({"method": "grpo", **given}, catalog)
    rewards = commands.bind_rewards(config.reward_specs, catalog)
    for source, columns in found.columns:
        commands.check_columns(rewards, columns, source)


def _estimate(answer: Answer, device: Device, catalog: Catalog, screen: Screen) -> None:
    """Add what each option costs; in 4 bits, where the weights alone would fill the card. Those that a run would refuse
    are left out.
    """
    costs = Costs(answer.model, answer.data, device, catalog)
    with screen.working("Reading the model's configuration …"):
        refused = {option.choice.title: costs.look(option.choice) for option in answer.options}
    answer.impossible = {title: why for title, why in refused.items() if why}
    possible = [option for option in answer.options if option.choice.title not in answer.impossible]
    if not possible:
        answer.found.problem = next(iter(answer.impossible.values()))
        return
    answer.options, answer.model, answer.crowded = possible, costs.model, costs.crowded
    changes: dict[str, Any] = IN_4_BITS if answer.crowded else {}
    for number, option in enumerate(possible, start=1):
        option.choice = option.choice.having(changes)
        with screen.working(f"Estimating {option.choice.title} ({number} of {len(possible)}) …"):
            option.cost = costs.of(option.choice)
        # What one needs the others need, too: that saves trying. Numbers are a method's own.
        changes = {**changes, **{name: value for name, value in option.cost.changes.items() if isinstance(value, bool)}}
    answer.options = sorted(possible, key=lambda option: not option.fits)
    if answer.options[0] is not possible[0]:
        answer.instead_of = possible[0].choice.title
