"""What rewards say and check before a run: their `before_run`, given what they will be asked. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_core.errors import UserError
from rlhf_core.reward import Planned
from rlhf_core.rewards.binding import BoundReward

PROMPTS = 64  # that a reward is shown


def said_before(rewards: Sequence[BoundReward], planned: Planned) -> list[tuple[str, str]]:
    """(label, text) of what rewards say, who see some of the prompts. Raises `UserError` for one that can't work."""
    planned = replace(planned, prompts=planned.prompts[:PROMPTS])
    lines = []
    for reward in rewards:
        if reward.reward.before_run is not None:
            try:
                lines.append(("Reward", f"{reward.name}: {reward.reward.before_run(reward.function, planned)}"))
            except UserError as error:
                raise UserError(f"reward {reward.name!r}: {error}") from error
    return lines
