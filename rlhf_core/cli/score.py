"""`rlhf score`: rewards tried on existing completions. No model, no torch."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from rlhf_core.errors import RunStopped, UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.numbers import COUNT, max_bad_rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", required=False, metavar="[FILE]")
@click.option(
    "--reward", multiple=True, metavar="SPEC", help="Reward, as for rlhf run; repeatable; unset: those of the run."
)
@click.option(
    "--against",
    metavar="FILE",
    help="What people said: labels of `rlhf preferences label`, pairs of any format (chosen is better), or answers "
    "with a score (FILE:score=COLUMN). How far the rewards agree with them is shown, too.",
)
@click.option("--limit", type=COUNT, metavar="N", help="Only the first N rows.")
@max_bad_rows
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@click.option("--html", metavar="FILE", help="The result as one page to open in a browser, too.")
def score(
    source: str | None,
    reward: tuple[str, ...],
    against: str | None,
    limit: int | None,
    max_bad_rows: float,
    as_json: bool,
    html: str | None,
) -> None:
    """Try rewards on completions, before any training.

    Each row of FILE has a prompt, a completion (or completions, a list) and the columns that the rewards need; several
    completions of one prompt are a group. FILE may also be a run's folder, to score its samples, or any data that
    `rlhf run --data` takes, to score its answers. Without FILE: the answers of --against, or the built-in data.

    rlhf score my_data.jsonl --reward verifier --reward length:max=300
    """
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import BUILTIN, builtin_name
    from rlhf_core.reward_report import answers, measuring, report
    from rlhf_core.reward_report.against import compared, planned
    from rlhf_core.reward_report.human import read_human
    from rlhf_core.rewards.binding import bind_all
    from rlhf_core.ui.page import page_file, write_page
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.streams import stdout_to_stderr
    from rlhf_core.ui.text import to_json

    page = None if html is None else page_file(html, "--html")
    catalog, screen = Catalog(), Screen(quiet=as_json)
    with stdout_to_stderr() if as_json else nullcontext():
        rewards = bind_all(_specs(source, reward), catalog)
        human = None if against is None else read_human(against, catalog, max_bad_rows)
        if source is None and human is not None:
            human = human.first(limit)
            found = human.answers
        elif source is None or builtin_name(source) == BUILTIN:
            found = answers.read_builtin(catalog, limit, lambda have: not any(r.missing_columns(have) for r in rewards))
        else:
            found = answers.read_answers(source, catalog, limit, max_bad_rows)
        for label, line in planned(rewards, found, human):
            screen.say(f"{label:8}{line}")
        with screen.working(f"Scoring {len(found.rows):,} completions …"):
            rows, columns = measuring.scored(rewards, found)
            result = measuring.measured(rewards, found, rows, columns)
        if human is not None:
            with screen.working(f"Scoring {len(human.answers.rows):,} completions that people judged …") as progress:
                if human.answers is not found:
                    rows, columns = measuring.scored(rewards, human.answers)
                result["against"] = compared(rewards, human, rows, columns, progress)
    if as_json:
        click.echo(to_json(result))
    else:
        report.show(screen, result)
    if page is not None:
        write_page(page, "--html", report.render(result))
        screen.say(f"\nPage     {page}", "bold")
    stops = [column.stop_run for column in columns.values()]
    beside_people = result.get("against", {}).get("rewards", {})
    stops += [(one.get("pairwise") or {}).get("stopped") for one in beside_people.values()]
    if stop := next(filter(None, stops), None):
        raise RunStopped(stop)


def _specs(source: str | None, given: tuple[str, ...]) -> list[RewardSpec]:
    """The given rewards, else those of the run that is scored."""
    from rlhf_core.config import read_file, read_rewards

    specs = read_rewards(given)
    if not specs and source is not None:
        folder = Path(source).parent if Path(source).name == "samples.jsonl" else Path(source)
        if (folder / "config.yaml").is_file():
            ran = read_file(folder / "config.yaml")
            specs = read_rewards(ran.get("reward") or [], ran.get("reward_model"))
    if not specs:
        raise UserError("which reward? Write --reward NAME (rlhf rewards lists them)")
    return specs
