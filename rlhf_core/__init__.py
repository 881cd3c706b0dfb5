"""rlhf: train language models from human feedback, with methods, rewards and data formats as plugins.

The public API. Names are imported when first used, so that `import rlhf_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: F401 (these are the names of `_MODULES`, for type checkers)
if TYPE_CHECKING:
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import RunConfig, resolve
    from rlhf_core.data.chat_template import ChatTemplate
    from rlhf_core.data.encoding import IGNORED, encode_answer, encode_conversations, encode_pairs
    from rlhf_core.errors import PluginError, RunStopped, UserError
    from rlhf_core.formatter import Example, Formatter, Messages, NothingToLearn
    from rlhf_core.hookspecs import hookimpl, hookspec
    from rlhf_core.inputs import parse_json
    from rlhf_core.method import Method, TrainingOptions
    from rlhf_core.models.loading import check_scorer, load_scorer
    from rlhf_core.models.reference import ReferenceModel
    from rlhf_core.models.router import router_loss_coefficient
    from rlhf_core.models.trainable import switch_off_dropout
    from rlhf_core.phases import phase
    from rlhf_core.reward import Planned, Reward
    from rlhf_core.rewards.batch import RewardBatch
    from rlhf_core.rewards.runtime import RewardRuntime
    from rlhf_core.training.pair_trainer import PairLogps, PairScores, PairTrainer
    from rlhf_core.training.run import Run, train

__version__ = "0.1.0"

_MODULES = {
    "catalog": ("Catalog",),
    "config": ("RunConfig", "resolve"),
    "data.chat_template": ("ChatTemplate",),
    "data.encoding": ("IGNORED", "encode_answer", "encode_conversations", "encode_pairs"),
    "errors": ("PluginError", "RunStopped", "UserError"),
    "formatter": ("Example", "Formatter", "Messages", "NothingToLearn"),
    "hookspecs": ("hookimpl", "hookspec"),
    "inputs": ("parse_json",),
    "method": ("Method", "TrainingOptions"),
    "models.loading": ("check_scorer", "load_scorer"),
    "models.reference": ("ReferenceModel",),
    "models.router": ("router_loss_coefficient",),
    "models.trainable": ("switch_off_dropout",),
    "phases": ("phase",),
    "reward": ("Planned", "Reward"),
    "rewards.batch": ("RewardBatch",),
    "rewards.runtime": ("RewardRuntime",),
    "training.pair_trainer": ("PairLogps", "PairScores", "PairTrainer"),
    "training.run": ("Run", "train"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # they can't evaluate it
    __all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_core.{_HOME[name]}"), name)
