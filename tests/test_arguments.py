"""What a library would refuse once training has begun is one message before the weights load, in a dry run too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError, raised_by_library
from rlhf_core.models import loading
from rlhf_core.training.run import train

ROWS = [{"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 3 + 1), "rejected": "Run."} for i in range(24)]
VALUES = {"method": "dpo", "max_completion_length": 64}


@pytest.fixture
def dry_run(resolved, monkeypatch):
    """dry_run(option=…): a dry run, which loads no weights."""

    def go(**values):
        config, method = resolved(**values)
        with monkeypatch.context() as patch:
            patch.setattr(loading, "load", lambda *_: pytest.fail("a dry run loaded the weights"))
            return train(config, method, Catalog(), dry_run=True)

    return go


REFUSED = {
    "schedule that follows it": ({"lr_scheduler_type": "greedy"}, "greedy follows the loss .* needs --eval-steps"),
    "optimizer not installed": ({"optim": "lomo"}, "--optim lomo: .* `lomo_optim`"),
    "optimizer of modules": ({"optim": "galore_adamw"}, "--optim galore_adamw: .* `galore_torch`"),
    "optimizer's value": ({"set": {"adam_beta1": 2.0}}, "--set adam_beta1=2.0: it is a number from 0 to 0.9999999"),
    "optimizer's arguments": ({"set": {"optim_args": "garbage"}}, "--set optim_args=garbage: not enough values"),
    "arguments without effect": ({"set": {"optim_args": "a=1"}}, "--set optim_args has no effect with --optim"),
    "value without effect": ({"optim": "sgd", "set": {"adam_beta2": 0.9}}, "adam_beta2 has no effect with --optim sgd"),
    "schedule without its value": ({"lr_scheduler_type": "cosine_with_min_lr"}, r"cosine_with_min_lr \(its values: "),
    "loader": (
        {"set": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "x"}},
        "--set dataloader_multiprocessing_context=x: ",
    ),
    "optimizer's arguments not finite": ({"optim": "sgd", "set": {"optim_args": "momentum=inf"}}, "momentum is inf"),
    "schedule that goes up": (
        {"lr_scheduler_type": "cosine_with_min_lr", "set": {"lr_scheduler_kwargs": {"min_lr": 1e30}}},
        "the learning rate is multiplied by .*e.3",
    ),
    "schedule's values as text": ({"set": {"lr_scheduler_kwargs": "text"}}, "expected names and values"),
    "schedule's values": ({"set": {"lr_scheduler_kwargs": {"x": 1}}}, "unexpected keyword argument 'x'"),
    "schedule without values": (
        {"lr_scheduler_type": "constant", "set": {"lr_scheduler_kwargs": {"x": 1}}},
        "lr_scheduler_kwargs has no effect with --lr-scheduler-type constant",
    ),
    "division by zero": ({"set": {"adam_epsilon": 0}}, "--set adam_epsilon=0: it is a number from 1e-30"),
    "arguments that clash": ({"set": {"bf16": True, "tf32": True}}, "tf32 has no effect without a GPU"),
    "value of a choice": ({"set": {"logging_strategy": "no way"}}, "no way is not a valid IntervalStrategy"),
    "field of no class": (
        {"set": {"adam_bta1": 0.9}},
        "TrainingArguments has no such field. Did you mean 'adam_beta1'",
    ),
    "an option of the run": ({"set": {"model": "x"}}, "--set model: write --model"),
    "adapter options in full": ({"lora_r": 4}, "--lora-r 4 has no effect: the model is trained without an adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_finds_what_a_run_would(dry_run, case):
    values, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        dry_run(**values)


def test_what_fits_passes(dry_run):
    held_out = {"num_eval_prompts": 2, "eval_steps": 2}
    assert dry_run(**held_out, lr_scheduler_type="reduce_lr_on_plateau") == 0
    values = {"lr_scheduler_kwargs": {"min_lr": 1e-6}, "adam_beta1": 0.8, "dataloader_num_workers": 1}
    assert dry_run(lr_scheduler_type="cosine_with_min_lr", set=values) == 0


def test_options_of_sampling_without_held_out_prompts_are_told(dry_run, capsys):
    assert dry_run(temperature=0.5) == 0
    assert "--temperature: no effect, because no held-out prompts are answered" in capsys.readouterr().out
    assert dry_run(temperature=0.5, num_eval_prompts=2) == 0
    assert "no effect" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_adapter_keeps_its_rank_and_what_is_given_otherwise_is_refused(dry_run, go, capsys):
    code, folder = go(lora=True, lora_r=4, lora_alpha=8, lora_target_modules=["q_proj"], max_steps=1, output_dir="one")
    assert code == 0
    adapter = str(folder / "model")
    for values, message in (
        ({"lora_r": 32}, "--lora-r 32: --model .* is an adapter with r 4, which is trained further"),
        ({"lora_alpha": 64}, "adapter with lora_alpha 8"),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, "adapter with target_modules"),
    ):
        with pytest.raises(UserError, match=message):
            dry_run(model=adapter, **values)
    assert dry_run(model=adapter, lora_r=4) == 0
    assert "LoRA r=4" in capsys.readouterr().out
    assert dry_run(model=adapter) == 0
    assert "LoRA r=4" in capsys.readouterr().out


def test_what_a_library_refuses_while_the_trainer_is_built_is_one_message(resolved, monkeypatch):
    from transformers import AutoTokenizer

    config, method = resolved(max_steps=1, output_dir="library")
    monkeypatch.setattr(method, "trainer", lambda run: AutoTokenizer.from_pretrained("data.jsonl"))
    with pytest.raises(UserError, match="the trainer can't be built: ") as caught:
        train(config, method, Catalog())
    assert raised_by_library(caught.value.__cause__)
    assert not Path("library").exists()  # the command, corrected, is accepted


@pytest.mark.parametrize("name", ["ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"])
def test_variables_that_libraries_would_follow_are_refused(dry_run, monkeypatch, name):
    monkeypatch.setenv(name, "no")  # as by accelerate's launcher
    dry_run()
    monkeypatch.setenv(name, "bf16")
    with pytest.raises(UserError, match=f"the environment has {name}=bf16"):
        dry_run()


def test_our_own_fault_stays_one(resolved, monkeypatch):
    config, method = resolved(max_steps=1, output_dir="own")
    monkeypatch.setattr(method, "trainer", lambda run: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        train(config, method, Catalog())
    assert not Path("own").exists()


@pytest.mark.slow
def test_the_configuration_of_a_finished_run_repeats_it(go):
    """`rlhf run --config RUN/config.yaml`, in a folder of its own."""
    from click.testing import CliRunner

    from rlhf_core.cli import rlhf

    assert go(max_steps=2, output_dir="first")[0] == 0
    done = CliRunner().invoke(rlhf, ["run", "--config", "first/config.yaml", "--output-dir", "second"])
    assert done.exit_code == 0
    lines = [
        [json.loads(line)["loss"] for line in Path(name, "metrics.jsonl").read_text().splitlines() if "logps" in line]
        for name in ("first", "second")
    ]
    assert lines[0] == lines[1]
    assert lines[0]
    done = CliRunner().invoke(rlhf, ["run", "--config", "first/config.yaml", "--dry-run"])
    assert done.exit_code == 0
    assert "Output  runs/dpo-" in done.output


@pytest.mark.slow
def test_the_next_command_is_complete(go, capsys):
    rows = [{**row, "id": str(i)} for i, row in enumerate(ROWS[:4])]
    Path("held out.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _ = go(max_steps=1, output_dir="run", eval_data="held out.jsonl", num_eval_prompts=1)
    assert code == 0
    wanted = "rlhf run --method dpo --model run/model --data data.jsonl --eval-data 'held out.jsonl'"
    assert wanted in capsys.readouterr().out
