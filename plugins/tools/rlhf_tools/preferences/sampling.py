"""Who answers the prompts of `rlhf preferences make`: a model here, or one behind an endpoint. A batch of prompts is
answered as it would be if it were the only one, so that what was done before may be left out.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_core import RunStopped, UserError, commands

if TYPE_CHECKING:
    from rlhf_core.endpoint import Endpoint
    from rlhf_tools.answering import Asking

ENDPOINT = "endpoint:"
AT_ONCE = 16  # prompts that an endpoint is asked before they are on the disk
# Of what a model here generates at once, before it is on the disk: answers, and tokens that they may have. The cache of
# 32,768 tokens takes 4.8 GB in an 8B model such as Qwen3's, 147 KB each.
ROWS, TOKENS = 128, 32_768
BYTES = 4  # of a token, about, in English; in Chinese it has three, so that what is told is a little high


class Sampler(Protocol):
    """`batches(start)`: for the prompts from the number `start` on, batch by batch, the answers to each, as
    `{"text", "tokens", "finished", "error"}`. `spent`: what was spent so far, in this process.
    """

    @property
    def name(self) -> str: ...

    @property
    def spent(self) -> dict[str, float]: ...

    def batches(self, start: int) -> Iterator[list[list[dict[str, Any]]]]: ...


@dataclass
class LocalModel:
    """The model of this number; its weights are in memory while its batches are asked for. `with_ids`: a judge asks
    for the tokens of answers.
    """

    asking: Asking
    number: int
    each: int
    with_ids: bool = False

    @property
    def name(self) -> str:
        return self.asking.candidates[self.number].name

    @property
    def spent(self) -> dict[str, float]:
        return {}

    def batches(self, start: int) -> Iterator[list[list[dict[str, Any]]]]:
        from rlhf_tools import answering

        template, rows = self.asking.templates[self.number], answering.with_tools(self.asking.questions)
        with answering.loaded(self.asking, self.number) as model:
            for rollouts in answering.sampled(
                self.asking, self.number, model, self.each, start=start, rows=rows_at_once(self.asking)
            ):
                answers = [
                    {
                        "text": template.opening(*rows[start + i // self.each]) + template.decode(one.completion),
                        "tokens": len(one.completion),
                        "finished": one.finished,
                        **({"ids": list(one.completion)} if self.with_ids else {}),
                    }
                    for i, one in enumerate(rollouts)
                ]
                found = [answers[first : first + self.each] for first in range(0, len(answers), self.each)]
                start += len(found)
                yield found


def rows_at_once(asking: Asking) -> int:
    return max(1, min(ROWS, TOKENS // asking.max_completion_length))


@dataclass
class EndpointModel:
    """A model behind an endpoint; each of its answers is asked for with a seed of its own."""

    name: str
    endpoint: Endpoint
    prompts: Sequence[Sequence[Mapping[str, Any]]]
    each: int
    max_tokens: int
    temperature: float
    seed: int

    @property
    def spent(self) -> dict[str, float]:
        known = {name: value for name, value in asdict(self.endpoint.spent).items() if value is not None}
        return {f"{self.name}/{name}": value for name, value in known.items()}

    def batches(self, start: int) -> Iterator[list[list[dict[str, Any]]]]:
        for first in range(start, len(self.prompts), AT_ONCE):
            found = asyncio.run(self._ask(self.prompts[first : first + AT_ONCE]))
            errors = [answer.get("error") for answers in found for answer in answers]
            if all(errors):
                raise RunStopped(f"{self.name}: none of {len(errors)} answers came: {errors[0]}")
            yield found

    async def _ask(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        numbers = range(self.each)
        answers = await asyncio.gather(*(self._answer(prompt, n) for prompt in prompts for n in numbers))
        return [list(answers[i : i + self.each]) for i in range(0, len(answers), self.each)]

    async def _answer(self, prompt: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
        from rlhf_core.endpoint import EndpointError

        seed = (self.seed + number) % 2**31
        try:
            reply = await self.endpoint.ask(prompt, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        except (EndpointError, TimeoutError) as error:
            return {"text": "", "tokens": 0, "finished": False, "error": str(error)}
        if reply.refusal:
            return {"text": "", "tokens": 0, "finished": True, "error": f"refused: {reply.refusal}"}
        return {"text": reply.text, "tokens": reply.completion_tokens, "finished": reply.finished}

    def estimate(self) -> str:
        """What all of it will take, for people."""
        read = sum(len(str(turn.get("content")).encode()) for prompt in self.prompts for turn in prompt) / BYTES
        calls = len(self.prompts) * self.each
        return self.endpoint.estimate(calls, read / max(1, len(self.prompts)), self.max_tokens)


def split_endpoints(models: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(models here, those behind an endpoint as (name, specification))."""
    here, behind = [], []
    for given in models:
        name, equals, rest = given.partition("=")
        if given.startswith(ENDPOINT):
            behind.append(("", given))
        elif equals and rest.startswith(ENDPOINT):
            behind.append((name.strip(), rest))
        else:
            here.append(given)
    return here, behind


def open_endpoint(given: str) -> Endpoint:
    """The endpoint of `endpoint:model=gpt-4o,base_url=http://…`. Raises `UserError`."""
    from rlhf_core.endpoint import Endpoint

    _, values = commands.read_entry(given, "--model", "endpoint")
    known = list(inspect.signature(Endpoint).parameters)
    if unknown := next((name for name in values if name not in known), None):
        raise UserError(f"--model {given}: an endpoint has no {unknown}. It takes {', '.join(known)}")
    if not values.get("model"):
        raise UserError(f"--model {given}: which model? Write endpoint:model=NAME")
    return Endpoint(**{**values, "model": str(values["model"])})
