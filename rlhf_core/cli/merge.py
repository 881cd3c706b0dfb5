"""`rlhf merge`: put a trained adapter into the weights of its base model."""

from __future__ import annotations

from typing import Any

import click

from rlhf_core.config import TRUST_REMOTE_CODE as TRUST


@click.command()
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--output", metavar="FOLDER", help="Folder to write.  [RUN/merged, RUN/merged-120, or FOLDER-merged]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Type of the saved weights; auto: the base model's. The sum itself is made in float32.  [auto]",
)
@click.option("--trust-remote-code", is_flag=True, help=TRUST)
def merge(**values: Any) -> None:
    """Put an adapter into its base model, and check that the logits stay the same.

    RUN_OR_MODEL is a run's folder, its checkpoint (RUN@120, RUN@best), or a folder with an adapter_config.json: of a
    language model or a reward model.

    rlhf merge runs/grpo-20260101-120000
    """
    from rlhf_core.models.merge import merge_adapter

    merge_adapter(**values)
