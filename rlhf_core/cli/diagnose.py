"""`rlhf diagnose`: what is wrong with a run, found in what it logged. No model, no torch."""

from __future__ import annotations

import sys
from typing import Any

import click

from rlhf_core.errors import UserError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--list", "as_list", is_flag=True, help="Every diagnosis: what it means, when it is found, what to do.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@click.option("--lang", metavar="en|zh", help="Language.  [that of RLHF_LANG, else en]")
def diagnose(run: str | None, as_list: bool, as_json: bool, lang: str | None) -> None:
    """Tell what is wrong with a run, and what to do.

    RUN is a run's folder, also of one that is training now; or logs of TRL's trainers: a trainer_state.json, or a
    folder of checkpoints. Exit code 1 if something is wrong, 0 if not.

    rlhf diagnose runs/grpo-20260101-120000
    """
    from rlhf_core.diagnoses import folder, showing
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import to_json
    from rlhf_core.words import language

    lang = language(lang)
    if as_list:
        if run is not None:
            raise UserError(f"--list is of all diagnoses: leave out {run}")
        if as_json:
            click.echo(to_json(showing.listed(lang)))
        else:
            showing.show_list(Screen(), lang)
        return
    if run is None:
        raise UserError("which run? Write rlhf diagnose RUN (a run's folder, or a trainer_state.json), or --list")
    summary, found = folder.diagnose(run)
    wrong = [line for line in found if line["level"] != "info"]
    if as_json:
        result: dict[str, Any] = {"run": run, "method": summary.method, "step": summary.step, "wrong": bool(wrong)}
        click.echo(to_json({**result, "diagnoses": found}))
    else:
        showing.show(Screen(), summary, found, lang)
    sys.exit(1 if wrong else 0)
