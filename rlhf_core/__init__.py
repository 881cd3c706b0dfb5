"""rlhf: train language models from human feedback, with methods, rewards and data formats as plugins.

The public API. Names are imported when first used, so that `import rlhf_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import RunConfig
    from rlhf_core.data.encoding import IGNORED, encode_conversations
    from rlhf_core.errors import PluginError, UserError
    from rlhf_core.formatter import Example, Formatter
    from rlhf_core.hookspecs import hookimpl, hookspec
    from rlhf_core.method import Method, TrainingOptions
    from rlhf_core.reward import Reward
    from rlhf_core.training.run import Run, train

__version__ = "0.1.0"

_HOME = {
    "Catalog": "catalog",
    "Example": "formatter",
    "Formatter": "formatter",
    "IGNORED": "data.encoding",
    "Method": "method",
    "PluginError": "errors",
    "Reward": "reward",
    "Run": "training.run",
    "RunConfig": "config",
    "TrainingOptions": "method",
    "UserError": "errors",
    "encode_conversations": "data.encoding",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "train": "training.run",
}

__all__ = [
    "IGNORED",
    "Catalog",
    "Example",
    "Formatter",
    "Method",
    "PluginError",
    "Reward",
    "Run",
    "RunConfig",
    "TrainingOptions",
    "UserError",
    "__version__",
    "encode_conversations",
    "hookimpl",
    "hookspec",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_core.{_HOME[name]}"), name)
