"""`rlhf preferences`: the group."""

from __future__ import annotations

import click
import pytest
from rlhf_tools.preferences import SUBCOMMANDS, preferences


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_has_its_module_and_a_help(name):
    command = preferences.get_command(click.Context(preferences), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
