"""rlhf: train language models from human feedback, with methods, rewards and data formats as plugins.

The public API. Names are imported when first used, so that `import rlhf_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import RunConfig, resolve
    from rlhf_core.data.encoding import IGNORED, encode_answer, encode_conversations, encode_pairs
    from rlhf_core.errors import PluginError, UserError
    from rlhf_core.formatter import Example, Formatter, Messages
    from rlhf_core.hookspecs import hookimpl, hookspec
    from rlhf_core.method import Method, TrainingOptions
    from rlhf_core.models.loading import load_scorer
    from rlhf_core.models.reference import ReferenceModel
    from rlhf_core.reward import Reward
    from rlhf_core.rewards.runtime import RewardBatch, RewardRuntime
    from rlhf_core.training.pair_trainer import PairLogps, PairScores, PairTrainer
    from rlhf_core.training.run import Run, train

__version__ = "0.1.0"

_HOME = {
    "Catalog": "catalog",
    "Example": "formatter",
    "Formatter": "formatter",
    "IGNORED": "data.encoding",
    "Messages": "formatter",
    "Method": "method",
    "PairLogps": "training.pair_trainer",
    "PairScores": "training.pair_trainer",
    "PairTrainer": "training.pair_trainer",
    "PluginError": "errors",
    "ReferenceModel": "models.reference",
    "Reward": "reward",
    "RewardBatch": "rewards.runtime",
    "RewardRuntime": "rewards.runtime",
    "Run": "training.run",
    "RunConfig": "config",
    "TrainingOptions": "method",
    "UserError": "errors",
    "encode_answer": "data.encoding",
    "encode_conversations": "data.encoding",
    "encode_pairs": "data.encoding",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "load_scorer": "models.loading",
    "resolve": "config",
    "train": "training.run",
}

__all__ = [
    "IGNORED",
    "Catalog",
    "Example",
    "Formatter",
    "Messages",
    "Method",
    "PairLogps",
    "PairScores",
    "PairTrainer",
    "PluginError",
    "ReferenceModel",
    "Reward",
    "RewardBatch",
    "RewardRuntime",
    "Run",
    "RunConfig",
    "TrainingOptions",
    "UserError",
    "__version__",
    "encode_answer",
    "encode_conversations",
    "encode_pairs",
    "hookimpl",
    "hookspec",
    "load_scorer",
    "resolve",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_core.{_HOME[name]}"), name)
