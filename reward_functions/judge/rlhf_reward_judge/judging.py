"""The rewards: what is asked for a batch of answers, and what becomes of each row.

A row whose call fails, or whose reply can't be read, is an error with its reason; the others keep their scores.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_reward_judge.fence import without_thought

if TYPE_CHECKING:
    import asyncio

    from rlhf_core.endpoint import Reply

SECONDS = 1740.0  # that the calls of one batch may take; those that are not back by then are errors of their rows
LEAST_TOKENS = 64

log = logging.getLogger("rlhf")

Found = TypeVar("Found")
Outcome = float | None | Exception


class Judge:
    """A judge scores each answer by a rubric, from 0.0 (the lowest on every criterion) to 1.0.

    `rubric`: helpful, medical_en, medical_zh, or a YAML file of yours. `model`, `base_url`: who judges, and where.
    `api_key_env`: the name of the environment variable with the key. `max_tokens`: of a reply; a model that thinks
    needs more. `max_cost` (dollars) and `max_calls` end a run with a checkpoint; `prices`: dollars for a million tokens
    read and written, IN/OUT, or a YAML file. `thought`: judge what stands before `</think>`, too.
    """

    def __init__(
        self,
        *,
        model: str,
        rubric: str = "helpful",
        base_url: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retries: int = 5,
        timeout: float = 120.0,
        max_tokens: int = 2048,
        max_cost: float | None = None,
        max_calls: int | None = None,
        prices: str | None = None,
        cache: bool = True,
        thought: bool = False,
    ) -> None:
        from rlhf_core import UserError
        from rlhf_core.endpoint import Endpoint
        from rlhf_reward_judge import rubric as rubrics

        if max_tokens < LEAST_TOKENS:
            raise UserError(f"max_tokens={max_tokens}: a judgement needs {LEAST_TOKENS} tokens and more")
        self.rubric, self.max_tokens, self.thought = rubrics.load(rubric), max_tokens, thought
        self.endpoint = Endpoint(
            model,
            base_url,
            api_key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            retries=retries,
            timeout=timeout,
            max_cost=max_cost,
            max_calls=max_calls,
            prices=prices,
            cache=cache,
        )
        self._said = False  # that the data has no reference
        self._said_of_pairs = False

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: list[str],
        *,
        answer: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> Sequence[Outcome]:
        references = self.references(answer, len(completions))
        rows = zip(prompts, completions, references, strict=True)
        scores = await in_time([self.score(*row) for row in rows])
        self.log_spent("judge", log_metric)
        return scores

    async def score(self, prompt: Sequence[Mapping[str, Any]], answer: str, reference: str | None = None) -> float:
        """The score of one answer. Raises `Unreadable`, and what `Endpoint.ask` raises."""
        from rlhf_reward_judge import prompt as prompts
        from rlhf_reward_judge import reading

        messages = prompts.to_score(self.rubric, prompts.question_of(prompt), self.judged(answer), reference)
        reply = await self.ask(messages, prompts.schema_of_scores(self.rubric))
        return self.rubric.total(read(reply, lambda text: reading.scores(text, self.rubric)))

    async def compare(
        self,
        prompts: Sequence[Sequence[Mapping[str, Any]]],
        first: Sequence[str],
        second: Sequence[str],
        *,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> list[Any]:
        """For each prompt 1.0 where the first answer is better, -1.0 where the second is, 0.0 for a tie."""
        if self.rubric.reference and not self._said_of_pairs:
            self._said_of_pairs = True
            log.warning("rubric %s asks for a reference: two answers are compared without one", self.rubric.name)
        verdicts = await in_time([self._better(*pair) for pair in zip(prompts, first, second, strict=True)])
        self.log_spent("judge", log_metric)
        return verdicts

    async def _better(self, prompt: Sequence[Mapping[str, Any]], first: str, second: str) -> float:
        from rlhf_reward_judge import prompt as prompts
        from rlhf_reward_judge import reading

        one, other = self.judged(first), self.judged(second)
        if one == other:
            return 0.0
        messages = prompts.to_compare(self.rubric, prompts.question_of(prompt), one, other)
        return read(await self.ask(messages, prompts.schema_of_comparison()), reading.comparison)

    async def ask(self, messages: list[dict[str, str]], schema: Mapping[str, Any]) -> Reply:
        return await self.endpoint.ask(messages, max_tokens=self.max_tokens, schema=schema)

    def describe(self) -> dict[str, str]:
        """What a run's manifest notes: a rubric is known by its hash, also a shipped one."""
        return {"rubric": self.rubric.name, "sha256": self.rubric.digest}

    def judged(self, answer: str) -> str:
        """What of an answer is judged: what the person who asked sees of it."""
        return answer.strip() if self.thought else without_thought(answer)

    def references(self, answers: Sequence[Any] | None, size: int) -> list[str | None]:
        """The reference of each row, where the rubric wants one."""
        if not self.rubric.reference:
            return [None] * size
        given = [None] * size if answers is None else answers
        found = [reference(answer) for answer in given]
        if None in found and not self._said:
            self._said = True
            log.warning(
                "rubric %s asks for a reference, and rows have no column answer: they are judged without",
                self.rubric.name,
            )
        return found

    def log_spent(self, name: str, log_metric: Callable[[str, float], None] | None) -> None:
        """What was spent so far, as metrics. Those of several processes are averaged, so each logs that of all, as if
        the others had spent as much.
        """
        if log_metric is None:
            return
        spent, processes = self.endpoint.spent, int(os.environ.get("WORLD_SIZE", 1))
        counts = {"calls": spent.calls, "cached": spent.cached, "cost": spent.cost}
        counts |= {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
        for each, count in counts.items():
            if count is not None:
                log_metric(f"{name}/{each}", count * processes)


class JudgeRank(Judge):
    """A judge ranks the answers to a prompt in one call, by a rubric: 1.0 for the best, 0.0 for the worst.

    The scores of a group are evenly spaced, equally good answers share the mean of theirs, and an answer that is alone
    has none. The order in which the judge reads them follows from their content. Parameters as those of `judge`.
    """

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: list[str],
        *,
        answer: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> Sequence[Outcome]:
        references = self.references(answer, len(completions))
        groups = [[row for row, _ in each] for _, each in groupby(enumerate(prompts), key=lambda pair: pair[1])]
        found = await in_time(
            [self.rank(prompts[rows[0]], [completions[row] for row in rows], references[rows[0]]) for rows in groups]
        )
        self.log_spent("judge_rank", log_metric)
        scores: list[Outcome] = []
        for rows, group in zip(groups, found, strict=True):
            scores += [group] * len(rows) if isinstance(group, Exception) else group
        return scores

    async def rank(
        self, prompt: Sequence[Mapping[str, Any]], answers: Sequence[str], reference: str | None = None
    ) -> list[float | None]:
        """The scores of a group. The same text gets the same score. Raises as `score` does."""
        from rlhf_reward_judge import prompt as prompts
        from rlhf_reward_judge import reading

        if len(answers) == 1:
            return [None]
        question, texts = prompts.question_of(prompt), [self.judged(answer) for answer in answers]
        distinct = sorted(set(texts), key=lambda text: _shuffled(question, text))
        places = [distinct]
        if len(distinct) > 1:
            reply = await self.ask(
                prompts.to_rank(self.rubric, question, distinct, reference), prompts.schema_of_ranking()
            )
            ranking = read(reply, lambda text: reading.ranking(text, len(distinct)))
            places = [[distinct[number - 1] for number in place] for place in ranking]
        return spaced(texts, places)


def _shuffled(question: str, answer: str) -> bytes:
    """Where an answer stands among those that a judge reads: by content, which says nothing about who is better."""
    return hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "replace")).digest()


def spaced(texts: Sequence[str], places: Sequence[Sequence[str]]) -> list[float | None]:
    """Evenly spaced scores, 1 for the best and 0 for the last; those in one place share the mean of theirs."""
    scores: dict[str, float] = {}
    above = 0
    for place in places:
        size = sum(text in place for text in texts)
        scores |= dict.fromkeys(place, 1.0 - (above + (size - 1) / 2) / (len(texts) - 1))
        above += size
    return [scores[text] for text in texts]


async def in_time(calls: Sequence[Awaitable[Found]]) -> list[Found | Exception]:
    """What each call returns or raises; an error for those that are not done after `SECONDS`."""
    import asyncio  # the slowest import of this package, which is imported to be listed

    tasks = [asyncio.ensure_future(call) for call in calls]
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=SECONDS)
    for task in late:
        task.cancel()
    return [
        TimeoutError(f"no reply within {SECONDS:g} s of its batch") if task in late else _outcome(task)
        for task in tasks
    ]


def _outcome(task: asyncio.Future[Any]) -> Any:
    error = task.exception()
    return error if isinstance(error, Exception) else task.result()


def read(reply: Reply, reader: Callable[[str], Found]) -> Found:
    """What `reader` makes of a reply. Raises `Unreadable`, with the reason why there is nothing to read."""
    from rlhf_reward_judge.reading import Unreadable

    if reply.refusal:
        raise Unreadable(f"the judge refused: {reply.refusal[:200]!r}")
    try:
        return reader(reply.text)
    except Unreadable as error:
        if reply.finished:
            raise
        cut = f"its reply was cut after {reply.completion_tokens:,} tokens: raise max_tokens"
        raise Unreadable(f"{error} ({cut})") from error


def reference(value: Any) -> str | None:
    """A reference as text; of several all of them. None for none, as an empty cell is."""
    if isinstance(value, list | tuple):
        return " / ".join(text for each in value if (text := reference(each)) is not None) or None
    if value is None or value != value:
        return None
    return str(value).strip() or None
