"""Carries out `rlhf recommend`: looks at the data, chooses, estimates, and shows the answer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click

from rlhf_core import Catalog, commands, resolve
from rlhf_core.commands import Device, Screen, duration, gb, text, to_json
from rlhf_tools.choosing import Choice, Goal, choose
from rlhf_tools.costs import Cost, Costs, best_first
from rlhf_tools.looking import CALLED, Findings, look

LABEL = 13  # columns
WIDEST = 100


def run(
    *,
    data: Sequence[str],
    model: str | None,
    gpu: str | None,
    memory: str | None,
    goal: Goal | None,
    reward: str | None,
    reward_model: str | None,
    estimated: bool,
    as_json: bool,
) -> int:
    """The exit code. Raises `UserError` for what was given wrong."""
    catalog, screen = Catalog(), Screen(quiet=as_json)
    model, goal = model or "builtin", goal or "quality"
    device = commands.device_of(gpu, memory) if estimated else None
    with screen.working("Reading the data …"):
        found = look(commands.read_data_specs(data, None, None), catalog)
    _check_rewards(found, reward, reward_model, catalog)
    choices = choose(found, goal, reward, reward_model) if found.kind else []
    costs: list[Cost] = []
    shown = Recommendation(screen, model, data, goal, found, device)
    shown.head()
    if device is not None and not found.problem:
        choices, costs = _estimate(Costs(model, data, device, catalog), choices, shown)
    shown.answer(choices, costs)
    if as_json:
        click.echo(to_json(shown.as_dict(choices, costs)))
    return 1 if found.problem or (costs and not costs[0].fits) else 0


def _check_rewards(found: Findings, reward: str | None, reward_model: str | None, catalog: Catalog) -> None:
    """Raise `UserError` for a reward that is not there, or that needs a column that the data lacks."""
    if not found.prompts or not (reward or reward_model):
        return
    config, _ = resolve({"method": "grpo", "reward": [reward] if reward else [], "reward_model": reward_model}, catalog)
    rewards = commands.bind_rewards(config.reward_specs, catalog)
    for source, columns in found.columns:
        commands.check_columns(rewards, columns, source)
