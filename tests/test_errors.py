"""How errors are worded, and what is told from them."""

import os

import click
import pytest
import torch

from rlhf_core.errors import LONGEST, describe, did_you_mean, excerpt, first_line, listed, raised_by_library
from rlhf_core.numbers import SHARE


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "described", "first"),
    [
        (ValueError("no\nmore"), "ValueError: no\nmore", "no"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n "), "ValueError:  \n ", "ValueError"),
        (ValueError("\n it is:\n  this"), "ValueError: \n it is:\n  this", "it is: this"),
        (ValueError("it is:"), "ValueError: it is:", "it is:"),
        (ValueError("\ud800"), "ValueError: \\ud800", "\\ud800"),
        (ValueError("x" * LONGEST), "ValueError: " + "x" * LONGEST, "x" * 300),
        (ValueError("x" * LONGEST + "y"), "ValueError: " + "x" * LONGEST + "…", "x" * 300),
        (Silent(), "Silent", "Silent"),
    ],
)
def test_an_error_in_full_and_in_one_line(error, described, first):
    assert (describe(error), first_line(error)) == (described, first)


def test_values_and_names_in_messages():
    assert (excerpt(["x"]), excerpt("x" * 200)) == ("['x']", "x" * 200)
    assert excerpt("x" * 1201, 3) == "xxx… (1,201 characters)"
    assert (listed("cab"), listed("dcab"), listed(["b", "a"], 1)) == ("a, b, c", "a, b, c and 1 more", "a and 1 more")
    assert did_you_mean("leanrth", ["strength", "length"]) == " Did you mean 'length'?"
    assert did_you_mean("zzz", ["length"]) == ""


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def test_whose_an_error_is():
    assert not raised_by_library(ValueError("never raised"))
    assert not raised_by_library(raised(lambda: int("x")))
    assert not raised_by_library(raised(lambda: os.stat("/nowhere/x")))
    assert raised_by_library(raised(lambda: torch.optim.SGD([torch.zeros(1)], lr=-1)))
    assert not raised_by_library(raised(lambda: torch.optim.SGD(None)))  # no refusal of a value: TypeError


def test_numbers_of_options():
    assert SHARE.convert("0.5", None, None) == 0.5
    for text in ("nan", "0", "1.1"):
        with pytest.raises(click.BadParameter):
            SHARE.convert(text, None, None)
