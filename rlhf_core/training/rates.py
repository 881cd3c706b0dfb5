"""Whether a learning rate suits what is trained."""

from __future__ import annotations

from typing import Any

from rlhf_core.config import RunConfig
from rlhf_core.method import Method

# Schulman et al., 2025 (https://thinkingmachines.ai/blog/lora/): the best rate of an adapter is about ten times that of
# full fine-tuning, whatever the rank, the model and the task, reinforcement learning too.
TIMES = 10


def low_for_adapter(config: RunConfig, method: Method, options: Any) -> list[str]:
    """What to say of a rate at which all weights learn, and an adapter hardly does. A preset's is measured."""
    rate, usual = options.learning_rate, method.full_rate
    if not options.lora or usual is None or rate > usual or "learning_rate" in config.preset:
        return []
    return [
        f"--learning-rate {rate:g} is likely too low: an adapter needs about {TIMES} times the rate of full "
        f"fine-tuning, which is {usual:g} in {method.name}. Try --learning-rate {TIMES * usual:g}"
    ]
