"""`rlhf report`: the page of a run, or of several beside each other."""

from __future__ import annotations

import click

LANG_HELP = "Language of the page, en or zh.  [$RLHF_LANG, else en]"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN2 …]")
@click.option("--output", metavar="FILE", help="Where to write the page.  [report.html, in the folder of a single run]")
@click.option("--lang", metavar="LANG", help=LANG_HELP)
def report(runs: tuple[str, ...], output: str | None, lang: str | None) -> None:
    """Write a page about a run: what came of it, its curves, and its answers with their rewards.

    RUN is a run's folder, also of one that is still training. Several runs are shown with their curves over each other,
    the settings that differ, and before and after side by side. The page is one file that needs no network.

    rlhf report runs/grpo-20260101-120000
    """
    from rlhf_core.report.writing import write_report
    from rlhf_core.ui.screen import Screen

    file = write_report(runs, output, lang)
    Screen().say(f"Page     {file}", "bold")
