"""The conformance kit: the rules for every plugin, checked from pytest or from the shell, without GPU or network.

    from rlhf_core.testing import check_formatter, check_method, check_reward

    def test_my_reward():
        check_reward("my_reward")

    rlhf plugins check my_reward

Each function returns a `Report`, or raises `AssertionError` that lists every broken rule with what to do. The rules are
those of this version of the core. `tiny_model` makes a model that trains a step in milliseconds, for a plugin's own
tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_core import __version__
from rlhf_core.testing.report import Report

__all__ = ["VERSION", "Report", "check_formatter", "check_method", "check_reward", "tiny_model"]

VERSION = __version__


def check_reward(target: str, **parameters: Any) -> Report:
    """Check a reward, given as `--reward` takes it: an installed name, `package.module:attribute` or `./file.py:name`.

    Its examples are the golden cases in `MODULE_golden.jsonl` beside its module, or `golden.jsonl` inside its package.
    """
    from rlhf_core.testing import rewards

    return rewards.examine(target, parameters).verified()


def check_method(name: str) -> Report:
    """Check an installed method by real runs of a few steps on a tiny model; needs the training stack."""
    from rlhf_core.testing import methods

    return methods.examine(name).verified()


def check_formatter(name: str) -> Report:
    """Check an installed formatter.

    Its examples are in `MODULE_examples.jsonl` beside its module, or `examples/NAME.jsonl` inside its package.
    """
    from rlhf_core.testing import formatters

    return formatters.examine(name).verified()


def tiny_model(folder: Path) -> Path:
    """Write a two-layer Qwen3 of random weights, with the built-in model's tokenizer, to `folder` and return it.

    It has everything a real model folder has and trains a step in milliseconds.
    """
    from rlhf_core.testing.tiny import write

    return write(folder)
