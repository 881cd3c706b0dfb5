"""Ask models the same prompts, one model in memory at a time, and write the results.

Greedy answers and sampled ones, with the same seed before each batch for every model, so that the same model twice
gives the same answers. Weights load last, after all checks.

    rlhf compare A B
"""

from __future__ import annotations

import gc
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_core import Catalog, ChatTemplate, TrainingOptions, UserError, commands
from rlhf_core.commands import ModelInfo, RewardRuntime, Screen, claim, path_of, write_whole
from rlhf_core.prefix import Rollout, Sampling, eos_token_ids, rollout
from rlhf_tools import candidates as finding
from rlhf_tools import page, table
from rlhf_tools.candidates import Candidate, Questions
from rlhf_tools.results import MODES, Answer, Answers, summarize, total

ROWS = 16  # answers that are generated at once
FILES = ("comparison.json", "comparison.html")


@dataclass
class Comparison:
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

    @property
    def reward_names(self) -> list[str]:
        return [reward.name for reward in self.rewards.rewards]


def run(candidates: list[Candidate], catalog: Catalog, *, output: str | None, **values: Any) -> None:
    """Compare, show, and write comparison.json and comparison.html. Raises `UserError` before weights load."""
    screen = Screen()
    with claim(_choose_folder(output), "--output", rename=output is None) as folder:
        with screen.working("Reading data and model configurations …"):
            comparison = prepare(candidates, catalog, **values)
        screen.resolved(_resolved(comparison, folder))
        try:
            comparison.rewards.start()
            answers = {}
            for number, candidate in enumerate(candidates):
                with screen.working(f"{candidate.name} answers ({number + 1} of {len(candidates)}) …"):
                    answers[candidate.name] = _answers(comparison, number)
        finally:
            comparison.rewards.close()
        result = gather(comparison, answers)
        _write(folder, result)
    table.show(screen, result)
    screen.say(f"\n{folder / 'comparison.html'}  {folder / 'comparison.json'}", "bold")


def _choose_folder(output: str | None) -> Path:
    default = f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = path_of(default if output is None else output, "--output")
    if any(os.path.lexists(folder / name) for name in FILES):
        raise UserError(f"--output {folder} has a comparison already: choose another folder, or remove it")
    return folder


def prepare(
    candidates: list[Candidate],
    catalog: Catalog,
    *,
    data: Sequence[str],
    max_bad_rows: float,
    prompts: int,
    reward: Sequence[str],
    samples: int,
    temperature: float,
    max_completion_length: int | None,
    system_prompt: str | None,
    chat_template_kwargs: dict[str, Any] | None,
    seed: int,
) -> Comparison:
    """Resolve and check, cheap checks first."""
    rewards = finding.choose_rewards(reward, candidates, catalog)
    questions = finding.choose_questions(data, prompts, seed, candidates, catalog, max_bad_rows)
    runtime = RewardRuntime(rewards, lambda ids: "", text_prompts=questions.text_prompts)  # each model decodes its own
    runtime.check_columns(list(questions.columns), questions.source)
    system_prompt = finding.choose_system_prompt(system_prompt, candidates, rewards)
    for row in questions.rows if system_prompt else ():
        turns = "messages" if "messages" in row else "prompt"
        row[turns] = commands.with_system(row[turns], system_prompt)
    asked = [commands.prompt_of(row) for row in questions.rows]
    limit = finding.choose_max_completion_length(max_completion_length, candidates)
    shown = _with_tools(questions)
    inspected = [_inspect(candidate, shown, limit, chat_template_kwargs) for candidate in candidates]
    infos, templates = [info for info, _ in inspected], [template for _, template in inspected]
    return Comparison(
        candidates, infos, templates, questions, asked, runtime, system_prompt, limit, samples, temperature, seed
    )


def _inspect(
    candidate: Candidate, prompts: Sequence[Any], limit: int, kwargs: dict[str, Any] | None
) -> tuple[ModelInfo, ChatTemplate]:
    """Configuration, tokenizer and chat template, with `kwargs` or the run's own as its variables.

    Raises `UserError` if the prompts don't fit.
    """
    config = candidate.config
    info = commands.inspect_model(candidate.model, chat_template=config.chat_template if config else None)
    of_run = config.options.chat_template_kwargs if config else None
    variables = of_run if kwargs is None else kwargs
    escape = config is not None and config.options.control_tokens == "escape"
    template = commands.template_of(info, variables, escape=escape)
    most = commands.context_length(info.config)
    longest = max(len(template.prompt_ids(*one)) for one in prompts)
    if most is not None and longest + limit > most:
        raise UserError(
            f"{candidate.given} reads at most {most:,} tokens; the longest prompt has {longest:,}, and its answer may "
            f"have {limit:,}: --max-completion-length {max(1, most - longest)}, or other --data"
        )
    return info, template


def _with_tools(questions: Questions) -> list[tuple[Any, Any]]:
    return [(commands.prompt_of(row), commands.tools_of(row)) for row in questions.rows]


def _resolved(comparison: Comparison, folder: Path) -> list[tuple[str, str]]:
    """The lines shown before the weights load."""
    rows = [
        ("Model", f"{one.name}: {one.given}, {info.parameters:,} parameters{', adapter' if info.adapter else ''}")
        for one, info in zip(comparison.candidates, comparison.infos, strict=True)
    ]
    rows.append(("Data", f"{comparison.questions.source}, {len(comparison.prompts)} prompts"))
    rows += [("Reward", str(reward.spec)) for reward in comparison.rewards.rewards]
    if comparison.system_prompt:
        rows.append(("System", f"“{comparison.system_prompt}”"))
    rows += [("Note", warning) for info in comparison.infos for warning in info.warnings]
    rows += [("Note", warning) for warning in comparison.questions.warnings]
    if any(prompt[0]["role"] == "system" for prompt in comparison.prompts):
        without = [one for one in comparison.templates if not one.has_system]
        rows += [("Note", f"{called} {commands.NO_SYSTEM}") for called in dict.fromkeys(one.called for one in without)]
    if not comparison.rewards.rewards:
        rows.append(("Note", "no reward: lengths and answers only. Rewards decide the win rate: --reward NAME"))
    return [*rows, ("Output", str(folder))]


def _answers(comparison: Comparison, number: int) -> dict[str, Answers]:
    """Both modes of one model, whose weights are then freed."""
    info = comparison.infos[number]
    dtype = "bfloat16" if commands.gpu_has_bfloat16() else "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name that transformers will drop
        model: Any = commands.load_model(info, TrainingOptions(dtype=dtype, lora=info.adapter is not None))
    model = model.to(commands.device()).eval()
    try:
        return {mode: _mode(comparison, number, model, mode) for mode in MODES}
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _mode(comparison: Comparison, number: int, model: Any, mode: str) -> Answers:
    info, template = comparison.infos[number], comparison.templates[number]
    each = comparison.samples if mode == "sampled" else 1
    sampling = Sampling(
        comparison.max_completion_length,
        eos_token_ids(model, info.tokenizer),
        comparison.temperature,
        greedy=mode == "greedy",
    )
    rollouts = list(_rollouts(comparison, template, model, sampling, each))
    answers = _score(comparison, template, rollouts, each)
    return [answers[start : start + each] for start in range(0, len(answers), each)]


def _rollouts(
    comparison: Comparison, template: ChatTemplate, model: Any, sampling: Sampling, each: int
) -> Iterator[Rollout]:
    ids = [template.prompt_ids(*one) for one in _with_tools(comparison.questions)]
    size = max(1, ROWS // each)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for start in range(0, len(ids), size):
            torch.manual_seed(comparison.seed + start)
            yield from rollout(model, ids[start : start + size], each, sampling)


def _score(comparison: Comparison, template: ChatTemplate, rollouts: Sequence[Rollout], each: int) -> list[Answer]:
    runtime = comparison.rewards
    runtime.decode, runtime.opening, runtime.finished = template.decode, template.opening, template.finished
    rows = [row for row in comparison.questions.rows for _ in range(each)]
    batch = runtime.batch(rows, [one.completion for one in rollouts])
    scored = runtime.evaluate(batch)
    answers = [Answer(text, len(one.completion), one.finished) for text, one in zip(batch.texts, rollouts, strict=True)]
    weights = {reward.name: reward.weight for reward in runtime.rewards}
    for i, answer in enumerate(answers):
        answer.scores = {name: column.scores[i] for name, column in scored.items()}
        answer.errors = {name: error for name, column in scored.items() if (error := column.errors[i]) is not None}
        answer.total = total(answer.scores, answer.errors, weights)
    return answers


def gather(comparison: Comparison, answers: dict[str, dict[str, Answers]]) -> dict[str, Any]:
    """The content of comparison.json, from which table and page are made."""
    columns = comparison.questions.columns
    names = comparison.reward_names
    return {
        "models": [
            {"name": one.name, "given": one.given, "model": info.path, "adapter": info.adapter}
            | {"parameters": info.parameters}
            for one, info in zip(comparison.candidates, comparison.infos, strict=True)
        ],
        "settings": {
            "data": comparison.questions.source,
            "prompts": len(comparison.prompts),
            "samples": comparison.samples,
            "temperature": comparison.temperature,
            "max_completion_length": comparison.max_completion_length,
            "system_prompt": comparison.system_prompt,
            "rewards": [{"name": r.name, "spec": str(r.spec), "weight": r.weight} for r in comparison.rewards.rewards],
            "seed": comparison.seed,
        },
        "notes": list(comparison.questions.warnings),
        "results": {
            mode: summarize({name: both[mode] for name, both in answers.items()}, names, comparison.seed)
            for mode in MODES
        },
        "prompts": [
            {
                "prompt": prompt,
                "columns": {name: values[i] for name, values in columns.items()},
                "answers": {
                    name: {mode: [asdict(answer) for answer in both[mode][i]] for mode in MODES}
                    for name, both in answers.items()
                },
            }
            for i, prompt in enumerate(comparison.prompts)
        ],
    }


def _write(folder: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, ensure_ascii=False, indent=1, default=str)
    for name, content in zip(FILES, (text, page.render(result)), strict=True):
        write_whole(folder / name, content)
