"""`rlhf data`: what is in a data set, whether it can be trained on, and the same in another format."""

from __future__ import annotations

import click

from rlhf_core.errors import UserError
from rlhf_core.numbers import EXAMPLES, max_bad_rows


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Look at data, check it, count it or convert it, before any training."""


METHOD = click.option("--method", metavar="NAME", help="For this method; unset: what the data can serve.")
TEMPLATE = click.option(
    "--chat-template", metavar="FILE", help="Another chat template than the model's, as for rlhf run."
)
EVAL = click.option("--eval-data", metavar="SPEC", help="Held-out rows, to find those that are trained on.")
JSON = click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")


FORMATS = ("messages", "preference", "prompt_completion", "alpaca", "prompt")


@data.command()
@click.argument("source", required=False, default="builtin")
@METHOD
@click.option("--model", default="builtin", metavar="MODEL", help="Whose chat template is tried.")
@TEMPLATE
@EVAL
@click.option(
    "--examples", type=EXAMPLES, default=1, metavar="N", help="Show N rows as the model is given them, by tokens.  [1]"
)
@click.option("--page", metavar="FILE", help="The result as one HTML page to open in a browser, too.")
@JSON
def inspect(
    source: str,
    method: str | None,
    model: str,
    chat_template: str | None,
    eval_data: str | None,
    examples: int,
    page: str | None,
    as_json: bool,
) -> None:
    """Show how a run reads a data set: format, columns, rows that are left out, warnings, and what is learned of it.

    SOURCE is what rlhf run --data takes. Without it: the built-in data. Examples are the first rows that can be used;
    of several, the last is the longest. What is learned of them is coloured, or between « and ». No weights are loaded.
    The numbers, such as lengths and near-duplicates, are shown by rlhf data stats.

    rlhf data inspect my_data.jsonl --method dpo --model Qwen/Qwen3-8B
    """
    from rlhf_core.catalog import Catalog
    from rlhf_core.data_report import inspecting, report, view_show
    from rlhf_core.ui.page import page_file, write_page
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import to_json

    screen, file = Screen(quiet=as_json), None if page is None else page_file(page, "--page")
    with screen.working(f"Reading {source} …"):
        result = inspecting.inspect(
            source,
            Catalog(),
            method=method,
            model=model,
            chat_template=chat_template,
            eval_data=eval_data,
            examples=examples,
        )
    if as_json:
        click.echo(to_json(result))
    else:
        report.show(screen, result)
    if file is not None:
        write_page(file, "--page", view_show.render(result, report.lines(result)))
        screen.say(f"Page: {file}", "bold")


@data.command()
@click.argument("source", required=False, default="builtin")
@METHOD
@click.option("--model", default="builtin", metavar="MODEL", help="Whose tokens are counted.")
@TEMPLATE
@EVAL
@JSON
def stats(
    source: str, method: str | None, model: str, chat_template: str | None, eval_data: str | None, as_json: bool
) -> None:
    """Show a data set in numbers: lengths, languages, duplicates and near-duplicates, pairs, answers.

    SOURCE is what rlhf run --data takes. Without it: the built-in data. Lengths are in tokens, with what the method's
    limits would cut; languages are told by the script of most letters (Han, Latin, other). Rows are nearly the same if
    80 % of their runs of five characters are. No weights are loaded.

    rlhf data stats train.jsonl --eval-data test.jsonl --model Qwen/Qwen3-8B
    """
    from rlhf_core.catalog import Catalog
    from rlhf_core.data_report import charts
    from rlhf_core.data_report import stats as counting
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import to_json

    screen = Screen(quiet=as_json)
    with screen.working(f"Reading {source} …") as progress:
        result = counting.stats(
            source,
            Catalog(),
            method=method,
            model=model,
            chat_template=chat_template,
            eval_data=eval_data,
            progress=progress,
        )
    if as_json:
        click.echo(to_json(result))
    else:
        charts.show(screen, result)


@data.command()
@click.argument("source", metavar="SOURCE")
@click.option("--to", required=True, type=click.Choice(FORMATS), help="The format to write.")
@click.option("--output", required=True, metavar="FILE", help="A new file: its name ends in .jsonl or .parquet.")
@max_bad_rows
@click.option("--keep-columns", is_flag=True, help="Write the columns that nothing reads, too, for rewards.")
@JSON
def convert(source: str, to: str, output: str, max_bad_rows: float, keep_columns: bool, as_json: bool) -> None:
    """Write a data set in another format, so that a run reads the same rows from it.

    SOURCE is what rlhf run --data takes. messages, preference and prompt hold turns, with calls of tools and thoughts;
    prompt_completion and alpaca hold texts. A row that the format can't hold is left out and named.

    rlhf data convert my_pairs.csv:question=q,chosen=good,rejected=bad --to preference --output pairs.jsonl
    """
    from rlhf_core.catalog import Catalog
    from rlhf_core.data_report import converting, report
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import to_json

    screen = Screen(quiet=as_json)
    with screen.working(f"Converting {source} …") as progress:
        result = converting.convert(
            source, to, output, Catalog(), max_bad_rows=max_bad_rows, keep_columns=keep_columns, progress=progress
        )
    if as_json:
        click.echo(to_json(result))
    else:
        report.show_conversion(screen, result)


@data.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE …")
@METHOD
@click.option("--model", metavar="MODEL", help="Try its chat template and the method's limits, too.")
@TEMPLATE
@EVAL
@JSON
def validate(
    sources: tuple[str, ...],
    method: str | None,
    model: str | None,
    chat_template: str | None,
    eval_data: str | None,
    as_json: bool,
) -> None:
    """Check data, for scripts and CI: every row that can't be used, with its file and line.

    Exit code 1 if a check fails: a row that can't be read or has nothing to learn, with --model one that its chat
    template refuses, that is too long, or whose answer ends where the model does not stop, a held-out prompt that is
    trained on.

    rlhf data validate train.jsonl --eval-data test.jsonl --method sft
    """
    from rlhf_core.catalog import Catalog
    from rlhf_core.data_report import report, validating
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import to_json

    if chat_template is not None and model is None:
        raise UserError("--chat-template has no effect without --model, whose tokens it is tried with")
    catalog, screen, results = Catalog(), Screen(quiet=as_json), []
    for source in sources:
        result = validating.validate(
            source, catalog, method=method, model=model, chat_template=chat_template, eval_data=eval_data
        )
        results.append(result)
        report.show_checks(screen, result)
    passed = all(result["passed"] for result in results)
    if as_json:
        click.echo(to_json({"passed": passed, "sources": results}))
    if not passed:
        raise SystemExit(1)
