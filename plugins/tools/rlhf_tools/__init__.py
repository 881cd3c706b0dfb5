"""Commands of rlhf beside training."""

from rlhf_core import hookimpl


@hookimpl
def rlhf_commands():
    from rlhf_tools.compare import compare

    return [compare]
