"""Models and the same questions: checked, then asked, one model in memory at a time, and the answers scored.

Greedy answers and sampled ones, with the same seed before each batch for every model, so that the same model twice
gives the same answers. Weights load last, after all checks. `rlhf compare` and `rlhf eval` are made of it.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf_core import Catalog, ChatTemplate, Planned, TrainingOptions, UserError, commands
from rlhf_core.commands import ModelInfo, RewardRuntime, path_of
from rlhf_core.prefix import Rollout, Sampling, eos_token_ids, rollout
from rlhf_tools import candidates as finding
from rlhf_tools.candidates import Candidate, Questions
from rlhf_tools.results import MODES, Answer, Answers, total

ROWS = 16  # answers that are generated at once


@dataclass
class Asking:
    """Everything but the weights, checked. `infos` are the candidates' tokenizers and configurations, `templates`
    their chat templates."""

    candidates: list[Candidate]
    infos: list[ModelInfo]
    templates: list[ChatTemplate]
    questions: Questions
    prompts: list[Any]
    rewards: RewardRuntime
    system_prompt: str | None
    max_completion_length: int
    samples: int
    temperature: float
    seed: int
    load_in_4bit: bool = False

    @property
    def reward_names(self) -> list[str]:
        return [reward.name for reward in self.rewards.rewards]


def choose_folder(output: str | None, kind: str, files: Sequence[str]) -> Path:
    """The folder to write `files` to; unset: KIND-TIME. Raises `UserError` for one that has them."""
    default = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = path_of(default if output is None else output, "--output")
    if any(os.path.lexists(folder / name) for name in files):
        raise UserError(f"--output {folder} has {files[0]} already: choose another folder, or remove it")
    return folder


def prepare(
    candidates: list[Candidate],
    catalog: Catalog,
    *,
    data: Sequence[str],
    max_bad_rows: float,
    prompts: int | None,
    reward: Sequence[str],
    samples: int,
    temperature: float,
    max_completion_length: int | None,
    system_prompt: str | None,
    chat_template_kwargs: dict[str, Any] | None,
    seed: int,
    load_in_4bit: bool = False,
    training: bool = False,
) -> Asking:
    """Resolve and check, cheap checks first. `training`: the answers are to learn from. Then the built-in data is its
    part for that, and prompts that are too long for a model are left out, which are an error else.
    """
    if load_in_4bit and not candidates:
        raise UserError("--load-in-4bit has no effect: no model is loaded here")
    rewards = finding.choose_rewards(reward, candidates, catalog)
    questions = finding.choose_questions(data, prompts, seed, candidates, catalog, max_bad_rows, training)
    runtime = RewardRuntime(rewards, lambda ids: "", text_prompts=questions.text_prompts)  # each model decodes its own
    runtime.check_columns(list(questions.columns), questions.source)
    system_prompt = finding.choose_system_prompt(system_prompt, candidates, rewards)
    for row in questions.rows if system_prompt else ():
        turns = "messages" if "messages" in row else "prompt"
        row[turns] = commands.with_system(row[turns], system_prompt)
    limit = finding.choose_max_completion_length(max_completion_length, candidates)
    infos, templates = [], []
    for candidate in candidates:
        info, template = _inspect(candidate, chat_template_kwargs)
        if info.quantized and load_in_4bit:
            raise UserError(f"{candidate.given} is quantized already ({info.quantized}): leave out --load-in-4bit")
        questions = _fitting(candidate, info, template, questions, limit, leave_out=training)
        infos.append(info)
        templates.append(template)
    asked = [commands.prompt_of(row) for row in questions.rows]
    return Asking(
        candidates, infos, templates, questions, asked, runtime, system_prompt, limit, samples, temperature, seed,
        load_in_4bit,
    )  # fmt: skip


def _inspect(candidate: Candidate, kwargs: dict[str, Any] | None) -> tuple[ModelInfo, ChatTemplate]:
    """Configuration, tokenizer and chat template, with `kwargs` or the run's own as its variables."""
    config = candidate.config
    info = commands.inspect_model(candidate.model, chat_template=config.chat_template if config else None)
    of_run = config.options.chat_template_kwargs if config else None
    variables = of_run if kwargs is None else kwargs
    escape = config is not None and config.options.control_tokens == "escape"
    return info, commands.template_of(info, variables, escape=escape)


def _fitting(
    candidate: Candidate, info: ModelInfo, template: ChatTemplate, questions: Questions, limit: int, *, leave_out: bool
) -> Questions:
    """The questions that a model can read, and answer in `limit` tokens. Raises `UserError` for others, or if all are
    left out.
    """
    most = commands.context_length(info.config)
    lengths = [len(template.prompt_ids(*one)) for one in with_tools(questions)]
    longest = max(lengths)
    if most is None or longest + limit <= most:
        return questions
    kept = [row for row, length in zip(questions.rows, lengths, strict=True) if length + limit <= most]
    if not leave_out or not kept:
        raise UserError(
            f"{candidate.given} reads at most {most:,} tokens; the longest prompt has {longest:,}, and its answer may "
            f"have {limit:,}: --max-completion-length {max(1, most - longest)}, or other --data"
        )
    told = (
        f"left out {len(lengths) - len(kept):,} of {len(lengths):,} prompts: {candidate.given} reads at most {most:,} "
        f"tokens, and an answer may have {limit:,}"
    )
    return replace(questions, rows=kept, warnings=[*questions.warnings, told])


def token_ids(asking: Asking, number: int) -> list[list[int]]:
    """The questions as the model of this number gets them."""
    return [asking.templates[number].prompt_ids(*one) for one in with_tools(asking.questions)]


def with_tools(questions: Questions) -> list[tuple[Any, Any]]:
    return [(commands.prompt_of(row), commands.tools_of(row)) for row in questions.rows]


def resolved(asking: Asking, folder: Path, without_rewards: str) -> list[tuple[str, str]]:
    """The lines shown before the weights load."""
    rows = [
        ("Model", f"{one.name}: {one.given}, {info.parameters:,} parameters{', adapter' if info.adapter else ''}")
        for one, info in zip(asking.candidates, asking.infos, strict=True)
    ]
    rows.append(("Data", f"{asking.questions.source}, {len(asking.prompts)} prompts"))
    rows += [("Reward", str(reward.spec)) for reward in asking.rewards.rewards]
    answers, each = len(asking.candidates) * len(asking.prompts) * (1 + asking.samples), asking.samples
    planned = Planned(asking.prompts, answers, asking.max_completion_length, each)
    rows += commands.said_before(asking.rewards.rewards, planned)
    if asking.system_prompt:
        rows.append(("System", f"“{asking.system_prompt}”"))
    rows += [("Note", warning) for info in asking.infos for warning in info.warnings]
    rows += [("Note", warning) for warning in asking.questions.warnings]
    if any(prompt[0]["role"] == "system" for prompt in asking.prompts):
        without = [one for one in asking.templates if not one.has_system]
        rows += [("Note", f"{called} {commands.NO_SYSTEM}") for called in dict.fromkeys(one.called for one in without)]
    if not asking.rewards.rewards and without_rewards:
        rows.append(("Note", without_rewards))
    return [*rows, ("Output", str(folder))]


def answers(asking: Asking, number: int) -> dict[str, Answers]:
    """Both modes of one model, whose weights are then freed."""
    with loaded(asking, number) as model:
        return {mode: _mode(asking, number, model, mode) for mode in MODES}


@contextmanager
def loaded(asking: Asking, number: int) -> Iterator[Any]:
    """One model, whose weights are freed at the end."""
    info = asking.infos[number]
    dtype: Any = str(commands.frozen_dtype()).removeprefix("torch.")
    lora = info.adapter is not None or asking.load_in_4bit  # else an adapter would be merged; none is added
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name that transformers will drop
        options = TrainingOptions(dtype=dtype, lora=lora, load_in_4bit=asking.load_in_4bit)
        model: Any = commands.load_model(info, options)
    if not (asking.load_in_4bit or info.quantized):  # those are there already
        model = model.to(commands.device())
    model.eval()
    try:
        yield model
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _mode(asking: Asking, number: int, model: Any, mode: str) -> Answers:
    each = asking.samples if mode == "sampled" else 1
    rollouts = [one for batch in sampled(asking, number, model, each, greedy=mode == "greedy") for one in batch]
    answers = _score(asking, asking.templates[number], rollouts, each)
    return [answers[start : start + each] for start in range(0, len(answers), each)]


def sampled(
    asking: Asking, number: int, model: Any, each: int, *, greedy: bool = False, start: int = 0, rows: int = ROWS
) -> Iterator[list[Rollout]]:
    """`each` answers to every prompt from the number `start` on, which begins a batch, batch by batch, of
    `rows` answers. A batch is the same whatever came before it.
    """
    ends = eos_token_ids(model, asking.infos[number].tokenizer)
    sampling = Sampling(asking.max_completion_length, ends, asking.temperature, greedy=greedy)
    ids = token_ids(asking, number)
    size = max(1, rows // each)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for first in range(start, len(ids), size):
            torch.manual_seed(asking.seed + first)
            yield rollout(model, ids[first : first + size], each, sampling)


def _score(asking: Asking, template: ChatTemplate, rollouts: Sequence[Rollout], each: int) -> list[Answer]:
    runtime = asking.rewards
    runtime.decode, runtime.opening, runtime.finished = template.decode, template.opening, template.finished
    rows = [row for row in asking.questions.rows for _ in range(each)]
    batch = runtime.batch(rows, [one.completion for one in rollouts])
    scored = runtime.evaluate(batch)
    answers = [Answer(text, len(one.completion), one.finished) for text, one in zip(batch.texts, rollouts, strict=True)]
    weights = {reward.name: reward.weight for reward in runtime.rewards}
    for i, answer in enumerate(answers):
        answer.scores = {name: column.scores[i] for name, column in scored.items()}
        answer.errors = {name: error for name, column in scored.items() if (error := column.errors[i]) is not None}
        answer.total = total(answer.scores, answer.errors, weights)
    return answers
