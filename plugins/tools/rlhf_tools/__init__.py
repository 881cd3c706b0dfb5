"""Commands of rlhf beside training."""

from rlhf_core import hookimpl


@hookimpl
def rlhf_commands():
    from rlhf_tools.compare import compare
    from rlhf_tools.evaluate import evaluate
    from rlhf_tools.preferences import preferences
    from rlhf_tools.recommend import recommend

    return [compare, evaluate, preferences, recommend]
