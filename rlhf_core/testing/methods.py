"""The rules for every method: `rlhf_core.testing.check_method`, `rlhf plugins check NAME`.

Real runs of a few steps on a two-layer model, started as users start them (`rlhf_core.training.run.train`), on rows of
the built-in data, without network.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from pydantic import ValidationError

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.testing import imports, tiny
from rlhf_core.testing.report import Report, Result
from rlhf_core.testing.sandbox import no_network, silence

if TYPE_CHECKING:
    import torch

    from rlhf_core.training.run import Run

ROWS = 24
SHORT: dict[str, Any] = {
    "data": "data.jsonl",
    "model": "model",
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_total_limit": 10,
    "num_eval_prompts": 0,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass
class Trial:
    """One run. `before`: the model's weights when its trainer had been built, each with its `requires_grad`."""

    code: int
    folder: Path
    run: Run
    before: dict[str, tuple[torch.Tensor, bool]]
    output: str


@dataclass
class Lab:
    """Starts runs of one method in `folder`. `calls`: attempts to reach the network."""

    name: str
    folder: Path
    calls: set[str] = field(default_factory=set)

    def resolve(self, **values: Any) -> tuple[Any, Method]:
        method = Catalog().load("methods", self.name)[0]
        length = 16 if method.data == "prompts" else 256
        reward = {} if method.rewards == "none" else {"reward": ["rlhf_core.testing.sample_reward:variety"]}
        paths = {key: str(self.folder / SHORT[key]) for key in ("data", "model")}
        given = {**SHORT, **paths, **reward, "method": self.name, "max_completion_length": length, **values}
        return resolve(given, Catalog())

    def train(self, output: str, *, resume: bool = False, **values: Any) -> Trial:
        """Run to the end. Raises `UserError` as `rlhf run` would."""
        from rlhf_core.training.run import train

        config, method = self.resolve(output_dir=str(self.folder / output), **values)
        built: list[tuple[Run, dict[str, tuple[torch.Tensor, bool]]]] = []
        build = method.trainer

        def trainer(run: Run) -> Any:
            made = build(run)
            weights = {name: (p.detach().clone(), p.requires_grad) for name, p in run.model.named_parameters()}
            built.append((run, weights))
            return made

        with mock.patch.object(method, "trainer", trainer), no_network(self.calls), silence() as printed:
            code = train(config, method, Catalog(), resume=resume)
        return Trial(code, Path(config.output_dir), *built[0], printed.getvalue())


def examine(name: str) -> Report:
    """All rules for the installed method `name`."""
    report = Report("method", name)
    rule = report.rule("is found, and declares what it needs")
    try:
        method, entry = Catalog().load("methods", name)
    except UserError as error:
        rule.fault(str(error))
        return report
    _declares(rule, method)
    imports.examine(report, entry.module)
    if rule.faults:
        return report
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(name, Path(folder))
        with silence():
            tiny.write(lab.folder / "model")
        lines = builtin.data_file(method.data, "train").read_text(encoding="utf-8").splitlines(keepends=True)
        (lab.folder / "data.jsonl").write_text("".join(lines[:ROWS]), encoding="utf-8")
        _options(report.rule("checks its options"), lab, method)
        if report.failed:
            return report
        _trains(report, lab, method)
    return report


def _declares(rule: Result, method: type[Method]) -> None:
    if not (isinstance(method, type) and issubclass(method, Method)):
        rule.fault(f"rlhf_methods returned {method!r}: return a subclass of Method")
        return
    allowed = {
        "data": ("prompts", "preferences", "conversations"),
        "rewards": ("required", "optional", "none"),
        "task": ("causal_lm", "sequence_classification"),
    }
    for name, values in allowed.items():
        if (value := getattr(method, name, None)) not in values:
            rule.fault(f"{name} is {value!r}: declare one of {', '.join(values)}")
    if not (isinstance(method.Options, type) and issubclass(method.Options, TrainingOptions)):
        rule.fault("Options is no subclass of TrainingOptions, whose options the core reads")


def _options(rule: Result, lab: Lab, method: type[Method]) -> None:
    for values, what in (({}, "the defaults"), (method.preset(), "builtin_preset")):
        try:
            method.Options.model_validate(values)
        except ValidationError as error:
            rule.fault(f"{what} are refused by Options itself: {error}")
    for name, option in method.Options.model_fields.items():
        if not option.description:
            rule.fault(f"option {name} has no description, which --help would show: Field(…, description=…)")
    for bad in ({"learning_rate": "fast"}, {"learning_rate": -1.0}, {"max_steps": 0}, {"no_such_option": 1}):
        try:
            lab.resolve(**bad)
        except UserError:
            continue
        except Exception as error:
            rule.fault(f"{bad} raises {type(error).__name__}, not a message: raise ValueError in a validator")
        else:
            rule.fault(f"{bad} is accepted: keep the field as TrainingOptions declares it, and extra='forbid'")


def _trains(report: Report, lab: Lab, method: type[Method]) -> None:
    """At least four steps in full fine-tuning, resumed from the middle, and three with LoRA."""
    rule = report.rule("trains on a tiny model")
    try:
        every = _steps_between_checkpoints(lab)
        values: dict[str, Any] = {"lora": False, "max_steps": 2 * every, "save_steps": every}
        full = lab.train("run", **values)
        adapted = lab.train("lora", lora=True, max_steps=max(3, every), save_steps=1000)
    except UserError as error:
        rule.fault(f"rlhf run --method {lab.name} says: {error}")
        return
    except Exception as error:
        rule.fault(f"building the trainer raised {type(error).__name__}: {error}")
        return
    for trial in (full, adapted):
        if trial.code != 0:
            rule.fault(f"the run in {trial.folder.name}/ ended with exit code {trial.code}:\n{trial.output[-1500:]}")
    if rule.faults:
        return
    rule.note(f"{2 * every} steps in full, {max(3, every)} with LoRA")
    _finite(report.rule("its loss is finite"), [full, adapted])
    _changed(report.rule("changes the weights that it trains, and nothing else"), full, adapted, lab)
    _reloads(report.rule("saves a model that computes the same logits"), [full, adapted], lab, method)
    _resumes(report.rule("resumes to the weights of the run that was never stopped"), full, lab, values)
    offline = report.rule("runs without network")
    for call in sorted(lab.calls):
        offline.fault(f"it tried to reach {call}, which a run on local files must not do")


def _steps_between_checkpoints(lab: Lab) -> int:
    """The steps from one batch of answers to the next, but at least two."""
    config, method = lab.resolve(output_dir=str(lab.folder / "first"), lora=False, max_steps=4)
    with no_network(lab.calls), silence():
        from rlhf_core.training.run import prepare

        return max(2, method.steps_per_rollout(method.trainer(prepare(config, method, Catalog()))))


def _finite(rule: Result, trials: list[Trial]) -> None:
    for trial in trials:
        rows = [json.loads(line) for line in (trial.folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        if not losses:
            rule.fault(f"{trial.folder.name}: no step logged a loss: log it, so that users can follow the run")
        if bad := [loss for loss in losses if not math.isfinite(loss)]:
            rule.fault(f"{trial.folder.name}: the loss was {bad[0]}")


def _changed(rule: Result, full: Trial, adapted: Trial, lab: Lab) -> None:
    import torch
    from safetensors.torch import load_file

    for trial in (full, adapted):
        now = dict(trial.run.model.named_parameters())
        same = {name for name, (weight, _) in trial.before.items() if torch.equal(weight, now[name])}
        trained = {name for name, (_, trains) in trial.before.items() if trains}
        where = "with LoRA" if trial is adapted else "in full fine-tuning"
        if not trained:
            rule.fault(f"{where}: no weight of run.model is trained: build the trainer on run.model")
        if still := sorted(trained & same):
            rule.fault(f"{where}: the steps did not change {_some(still)}: do they get a gradient?")
        if moved := sorted(trial.before.keys() - trained - same):
            rule.fault(f"{where}: weights that are not trained have changed: {_some(moved)}")
    base = load_file(lab.folder / "model" / "model.safetensors")
    for name, weight in adapted.run.model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in base and not torch.equal(weight.detach().cpu(), base[plain].to(weight.dtype)):
            rule.fault(f"with LoRA: the base model's {plain} has changed: add run.peft_config to the model")


def _reloads(rule: Result, trials: list[Trial], lab: Lab, method: type[Method]) -> None:
    import torch

    from rlhf_core.models import loading as models
    from rlhf_core.models.resolve import find

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    for trial in trials:
        config, _ = lab.resolve(model=str(trial.folder / "model"), lora=trial is not trials[0])
        try:
            loaded = models.load(models.inspect(find(config.model), method.task), config.options).eval()
        except (UserError, OSError, ValueError) as error:
            rule.fault(f"{trial.folder.name}: the saved model can't be loaded: {error}")
            continue
        trained = trial.run.model.eval()
        with torch.no_grad():  # not by a call, around which accelerate has put autocast
            both = (loaded, trained.cpu())
            given, wanted = (type(model).forward(model, input_ids=ids).logits.float() for model in both)
        rounded = torch.finfo(loaded.dtype).eps * wanted.abs().max().item()  # frozen weights on a GPU are in bfloat16
        if not torch.allclose(given, wanted, rtol=CLOSE["rtol"], atol=max(CLOSE["atol"], rounded)):
            largest = (given - wanted).abs().max()
            rule.fault(
                f"{trial.folder.name}: the saved model's logits differ by up to {largest:.2g}: save what was trained"
            )


def _resumes(rule: Result, full: Trial, lab: Lab, values: dict[str, Any]) -> None:
    """The same folder again, as if the run had been killed after its first checkpoint."""
    import torch

    from rlhf_core.training.checkpoint import list_checkpoints

    wanted = _saved(full.folder / "model")
    checkpoints = list_checkpoints(full.folder / "checkpoints")
    if len(checkpoints) < 2:
        names = ", ".join(path.name for path in checkpoints) or "none"
        rule.fault(
            f"the run saved the checkpoints {names}, but two were requested: the trainer must save at save_steps"
        )
        return
    for path in checkpoints[1:]:
        shutil.rmtree(path)
    shutil.rmtree(full.folder / "model")
    try:
        again = lab.train(full.folder.name, resume=True, **values)
    except UserError as error:
        rule.fault(f"--resume says: {error}")
        return
    if again.code != 0:
        rule.fault(f"the resumed run ended with exit code {again.code}:\n{again.output[-1500:]}")
        return
    found = _saved(full.folder / "model")
    differ = [name for name in wanted if name not in found or not torch.allclose(found[name], wanted[name], **CLOSE)]
    if differ or found.keys() != wanted.keys():
        rule.fault(
            f"after a resume from {checkpoints[0].name} these differ: {_some(differ or sorted(found))}: the order of "
            "the data, random numbers and the trainer's state must come from the checkpoint"
        )
    elif all(torch.equal(found[name], wanted[name]) for name in wanted):
        rule.note("bitwise")


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {f"{file.name}:{name}": w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
