"""Sample answers, judge them, select pairs: `rlhf preferences make`, whose work survives whatever ends it.

What is sampled and judged is added to `pairs.making/`, batch by batch, first all answers of one model after the other,
then the scores. The same command goes on there, and gives the file that it would have given without a break.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rlhf_core import RunStopped, UserError
from rlhf_core.commands import Screen, claim, language, library_versions, stdout_to_stderr
from rlhf_tools.preferences import showing, writing
from rlhf_tools.preferences.journal import Journal, same_settings
from rlhf_tools.preferences.sampling import Sampler
from rlhf_tools.preferences.scoring import Judge
from rlhf_tools.preferences.selecting import Prompt, Rated, select
from rlhf_tools.preferences.words import say

Progress = Callable[[str, float], None]


@dataclass
class Work:
    """What is to be done. `prompts` have no answers yet; `each` is the number of answers that each will have."""

    prompts: list[Prompt]
    samplers: Sequence[Sampler]
    judge: Judge
    each: int
    keep_refusals: bool = False
    lang: str = "en"


def run(output: str, as_json: bool, lang: str | None, dry_run: bool, selection: dict[str, Any], **values: Any) -> None:
    """Plan, do what is left to do, select, write and show. Raises `UserError` before weights load."""
    from rlhf_tools.preferences import planning

    lang, screen = language(lang), Screen(quiet=as_json)
    files = writing.places(output)
    folder = files[0].with_name(f"{files[0].stem}.making")
    writing.refuse_existing(files[0], *([] if folder.exists() else [files[1]]))
    quiet = stdout_to_stderr() if as_json else nullcontext()  # of what rewards print
    with quiet, planning.planned(screen, lang, selection["keep_refusals"], **values) as plan:
        said = plan.said_before()
        plan.asking.rewards.start()
        work, spent, seconds = plan.work(), {}, 0.0
        if not dry_run:
            with claim(folder, "--output"):
                begun = same_settings(folder, plan.settings())
                screen.resolved([*plan.lines(), *said])
                if begun:
                    screen.say(say(lang, "Going on with what is in {folder}", folder=folder))
                with going_on(folder, lang), screen.working(say(lang, "Sampling answers …")) as progress:
                    spent, seconds = carry_out(work, folder, progress)
    if dry_run:
        planning.dry_run(screen, plan, said, as_json=as_json)
        return
    selected = select(
        work.prompts, margin=selection["margin"], every=selection["all_pairs"], balance=selection["balance_length"],
        keep_refusals=work.keep_refusals, seed=values["seed"],
    )  # fmt: skip
    showing.finish(
        screen, lang, files, work.prompts, selected, plan.judged_by, as_json=as_json, extra=plan.told(), kept=folder,
        **plan.about(), selection=selection, versions=library_versions(), seconds=seconds, spent=spent,
    )  # fmt: skip
    shutil.rmtree(folder)


@contextmanager
def going_on(folder: Path, lang: str) -> Iterator[None]:
    """Say how to go on where the work is interrupted, or has to stop."""
    told = say(lang, "What was done is in {folder}: the same command goes on from there", folder=folder)
    try:
        yield
    except (KeyboardInterrupt, OSError):  # a full disk
        click.echo(told, err=True)
        raise
    except RunStopped as error:
        raise RunStopped(f"{error}. {told}") from error


def carry_out(work: Work, folder: Path, progress: Progress) -> tuple[dict[str, float], float]:
    """Sample and judge what is not in `folder` yet; the prompts then have rated answers. Returns what endpoints and
    judges say that they spent, and the seconds that all of it took, both of all starts.
    """
    total, seconds = len(work.prompts), 0.0
    journals = [Journal(folder / f"answers-{number}.jsonl") for number in range(len(work.samplers))]
    for sampler, journal in zip(work.samplers, journals, strict=True):
        what = say(work.lang, "{name} answers", name=sampler.name)
        if journal.prompts < total:
            _sample(sampler, journal, lambda share, what=what: progress(what, share), total)
        seconds += sum(line["seconds"] for line in journal.lines)
        answers = (each for line in journal.lines for each in line["answers"])
        for prompt, given in zip(work.prompts, answers, strict=True):
            prompt.answers += [_rated(answer, sampler.name) for answer in given]
    journal = Journal(folder / "scores.jsonl")
    _judge(work, journal, lambda share: progress(say(work.lang, "Judging answers"), share))
    for prompt, kept in zip(work.prompts, (each for line in journal.lines for each in line["kept"]), strict=True):
        work.judge.put(prompt, kept)
    spent: dict[str, float] = {}
    for line in (line for each in (*journals, journal) for line in each.lines):
        for name, value in line["spent"].items():
            spent[name] = spent.get(name, 0.0) + value
    return spent, seconds + sum(line["seconds"] for line in journal.lines)


def _since(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def _rated(answer: Mapping[str, Any], model: str) -> Rated:
    return Rated(answer["text"], None, model, answer.get("error"), answer["finished"], {}, answer.get("ids"))


def _sample(sampler: Sampler, journal: Journal, progress: Callable[[float], None], total: int) -> None:
    """`spent` in a line is what was spent since the line before it, in the same process."""
    progress(journal.prompts / total)
    started, before = time.monotonic(), sampler.spent
    for answers in sampler.batches(journal.prompts):
        now, spent = time.monotonic(), sampler.spent
        journal.add(len(answers), answers=answers, seconds=now - started, spent=_since(spent, before))
        progress(journal.prompts / total)
        started, before = now, spent
    if journal.prompts != total:
        raise UserError(f"{sampler.name} answered {journal.prompts:,} of {total:,} prompts")


def _judge(work: Work, journal: Journal, progress: Callable[[float], None]) -> None:
    size, before = work.judge.size(work.each), {**work.judge.spent}
    while journal.prompts < len(work.prompts):
        progress(journal.prompts / len(work.prompts))
        started = time.monotonic()
        prompts = work.prompts[journal.prompts : journal.prompts + size]
        kept = work.judge.judge(prompts, work.keep_refusals)
        now = {**work.judge.spent}
        journal.add(len(prompts), kept=kept, seconds=time.monotonic() - started, spent=_since(now, before))
        before = now
