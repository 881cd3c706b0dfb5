"""The estimate of a run from its configuration on: what is planned, a step without weights, and what makes it fit.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.errors import UserError
from rlhf_core.estimate.hardware import Device
from rlhf_core.method import Method

if TYPE_CHECKING:
    from rlhf_core.estimate.estimating import Estimate
    from rlhf_core.estimate.fitting import Tried
    from rlhf_core.estimate.planning import Planned
    from rlhf_core.estimate.probe import Probe
    from rlhf_core.estimate.synthetic import Lengths

REWARD = "rlhf_core.estimate.synthetic:score"  # for a run that needs one and has none: what it scores does not matter


@dataclass
class Answer:
    """`first`: the estimate of the run as it was given; `tried`: the remedies, until one fits; `longest`: the rows that
    were measured; `steps` of the run, if they are known; `probe`: real steps of it, if they were asked for.
    """

    planned: Planned
    longest: Lengths
    first: Estimate
    steps: int | None
    tried: list[Tried] = field(default_factory=list)
    probe: Probe | None = None

    @property
    def last(self) -> Estimate:
        """With all remedies that were tried."""
        return self.tried[-1].estimate if self.tried else self.first

    @property
    def fits(self) -> bool:
        return self.last.fits

    @property
    def flags(self) -> list[str]:
        """What the command needs, beside what was given, so that the run fits."""
        return self.tried[-1].flags() if self.tried and self.fits else []

    @property
    def seconds(self) -> float | None:
        """Of all steps, if they and the device's figures are known."""
        from rlhf_core.estimate.showing import mean_step

        return mean_step(self.last, self.share) * self.steps if self.steps and self.last.seconds else None

    @property
    def share(self) -> float:
        """The tokens of a mean row, of those of the longest."""
        return self.planned.mean.total / self.planned.longest.total


class Question:
    """A run to estimate on a device. `planned` is known once it is made: the model's shape and the rows' lengths.

    `folder` is for what is written meanwhile. `prompt_tokens` and `completion_tokens` are instead of the data's.
    Raises `UserError` as the run would.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        catalog: Catalog,
        device: Device,
        folder: Path,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        from rlhf_core import environment

        environment.prepare()
        from rlhf_core.estimate.planning import plan
        from rlhf_core.models.context import context_length

        self.method, self.catalog, self.device, self.given = method, catalog, device, config.options
        self.planned = plan(config, method, catalog, folder)
        longest = self.planned.longest
        self.longest = replace(
            longest, prompt=prompt_tokens or longest.prompt, completion=completion_tokens or longest.completion
        )
        limit = context_length(self.planned.info.config)
        if (prompt_tokens or completion_tokens) and limit is not None and self.longest.total > limit:
            raise UserError(
                f"--prompt-tokens and --completion-tokens: the model was made to read {limit:,} tokens, and a row has "
                f"{self.longest.total:,}"
            )

    def answer(self) -> Answer:
        """Measure a step."""
        from rlhf_core.estimate.estimating import steps_of

        first = self._measured({})
        return Answer(
            self.planned, self.longest, first, steps_of(first, self.planned.config.options, self.planned.rows)
        )

    def remedies(self, answer: Answer) -> Iterator[Tried]:
        """What may make it fit, each remedy as it is tried and added to `answer`."""
        from rlhf_core.estimate.fitting import try_remedies

        options, info = self.planned.config.options, self.planned.info
        for tried in [] if answer.fits else try_remedies(options, info, self._measured, first=answer.first):
            answer.tried.append(tried)
            yield tried

    def _measured(self, changes: dict[str, Any]) -> Estimate:
        from rlhf_core.estimate.estimating import estimate

        planned = self.planned
        options = planned.config.options.model_copy(update=changes)
        if not planned.config.options.lora and (changes.get("load_in_4bit") or changes.get("lora")):
            # As the run will: what the method chose is otherwise with an adapter.
            options = self.method.resolve_options(self.given.model_copy(update={**changes, "lora": True}), lora=True)
        config = planned.config.model_copy(update={"options": options})
        rows = _allowed(self.longest, options)
        return estimate(config, self.method, planned.info, self.catalog, rows, self.device, planned.scorers)


def _allowed(rows: Lengths, options: Any) -> Lengths:
    """The lengths of the longest rows that the options leave in."""
    if "max_length" not in type(options).model_fields:
        return replace(rows, completion=min(rows.completion, options.max_completion_length))
    if rows.total <= options.max_length:
        return rows
    prompt = rows.prompt * options.max_length // rows.total
    return replace(rows, prompt=prompt, completion=options.max_length - prompt)
