"""`--set` and options: each field of every method's training arguments is decided, and what has no effect is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from rlhf_core import Catalog, Method, UserError, resolve
from rlhf_core.config import read_file
from rlhf_core.doctor import packages
from rlhf_core.settings import GPU, TRAINING, Setting, check, decide, refused, same_as, used_with

METHODS = ["sft", "dpo", "orpo", "reward_model", "ppo", "grpo"]
# Fields of transformers that not every supported version has.
LATER = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # 5.23


def method_named(name) -> Method:
    return Catalog().load("methods", name)[0]()


def fields_of(method) -> set[str]:
    module, _, name = method.config.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return {field.name for field in dataclasses.fields(cls) if field.init}


def resolved(name="dpo", under=(), **values):
    reward = {"reward": "length"} if name in ("ppo", "grpo") else {}
    config, _ = resolve({"method": name, **reward, **values}, Catalog(), under=under)
    return config


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_the_training_arguments_is_decided(name):
    """A field of a later transformers or TRL fails here until someone decides what `--set` does for it."""
    method = method_named(name)
    undecided = {field for field in fields_of(method) if decide(method, field) is None}
    assert not undecided
    stale = {*TRAINING, *method.settings} - fields_of(method) - LATER
    assert not stale - set(TRAINING)  # what the method's own table names exists


@pytest.mark.parametrize("name", METHODS)
def test_every_number_that_acts_has_bounds(name):
    """What is outside of them, NaN, text and truth values are refused before anything heavy is imported."""
    method = method_named(name)
    module, _, cls = method.config.partition(":")
    hints = typing.get_type_hints(getattr(importlib.import_module(module), cls))
    acting = {field: s for field in fields_of(method) if not ((s := decide(method, field)).reason or s.option)}
    numbers = {field for field in acting if {int, float} & {hints[field], *typing.get_args(hints[field])}}
    assert {field for field in acting if acting[field].within} == numbers
    for field, (low, high) in ((field, acting[field].within) for field in numbers):
        bare = SimpleNamespace(settings={field: Setting(within=(low, high))}, Options=method.Options)
        for value in (low - 1, high * 2 + 1, float("nan"), float("inf"), "1", True, [1]):
            with pytest.raises(UserError, match=f"--set {field}=.*: it is a .*number from"):
                check(bare, SimpleNamespace(set={field: value}))
        for value in (low, high, None):
            check(bare, SimpleNamespace(set={field: value}))
        if isinstance(low, int):
            with pytest.raises(UserError, match="it is a whole number"):
                check(bare, SimpleNamespace(set={field: low + 0.5}))


def test_the_core_decides_for_all_fields_of_transformers():
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(TRAINING) - LATER <= fields
    assert fields <= set(TRAINING) | set(method_named("dpo").Options.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_refused_says_why(name):
    method = method_named(name)
    for field in sorted(fields_of(method)):
        setting = decide(method, field)
        if setting.reason:
            with pytest.raises(UserError) as caught:
                resolved(name, set={field: 1})
            assert str(caught.value) == f"--set {field}: {setting.reason}"
        elif setting.values and not setting.within and not setting.conditions:
            with pytest.raises(UserError, match=f"--set {field}=1: it is one of {setting.values[0]}, "):
                resolved(name, set={field: 1})
        elif setting.option:
            assert setting.option in method.Options.model_fields
        elif setting.conditions:
            with pytest.raises(UserError, match=f"--set {field} has no effect without "):
                resolved(name, set={field: "group_by_length"})


@pytest.mark.parametrize(
    ("name", "written", "option", "value"),
    [
        ("dpo", {"per_device_train_batch_size": 8}, "per_device_train_batch_size", 8),
        ("dpo", {"save_total_limit": "7"}, "save_total_limit", 7),
        ("dpo", {"activation_checkpointing": False}, "gradient_checkpointing", False),
        ("grpo", {"max_completion_length": 24}, "max_completion_length", 24),
        ("grpo", {"temperature": 0.3}, "temperature", 0.3),
        ("grpo", {"min_p": 0.1}, "min_p", 0.1),
        ("sft", {"max_seq_length": 64}, "max_length", 64),
        ("ppo", {"response_length": 64}, "max_completion_length", 64),
    ],
)
def test_a_setting_that_is_an_option_is_that_option(name, written, option, value):
    config = resolved(name, set=written)
    assert getattr(config.options, option) == value
    assert config.set == {}
    assert option not in config.preset


# settings, the optimizer, what they need besides
NEEDED = [
    ({"project": "a"}, "adamw_torch", "--report-to trackio"),
    ({"optim_target_modules": "all"}, "adamw_torch", "an --optim of GaLore or APOLLO"),
    ({"optim_target_modules": "all"}, "galore_adamw", None),
    ({"optim_target_modules": "all"}, "apollo_adamw", None),
]


@pytest.mark.parametrize(("written", "optim", "needed"), NEEDED)
def test_what_a_setting_needs_to_have_an_effect(written, optim, needed):
    config = SimpleNamespace(set=written, options=SimpleNamespace(optim=optim), trackers=["tensorboard"])
    if needed is None:
        check(method_named("dpo"), config)
    else:
        with pytest.raises(UserError, match=f"has no effect without {needed}"):
            check(method_named("dpo"), config)


@pytest.mark.parametrize("there", [True, False])
def test_settings_for_a_gpu(monkeypatch, there):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    assert GPU[1](None) is there


def test_answers_of_a_batch_and_their_groups(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for written, said in (
        ({}, "× 2 processes = "),
        ({"set": {"generation_batch_size": 7}}, "has generation_batch_size = 7"),
    ):
        with pytest.raises(UserError, match=said):
            resolved("grpo", num_generations=5, per_device_train_batch_size=1, gradient_accumulation_steps=1, **written)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (None, "--rollouts vllm needs vLLM: pip install"),
        ("0.50.0", "--rollouts vllm: vLLM 0.50.0, and .*0.31.0.* is supported: .* Install another: pip install 'vllm"),
        ("0.31.0", None),
    ],
)
def test_vllm_is_there_in_a_version_that_trl_works_with_or_asked_for(monkeypatch, installed, said):
    monkeypatch.setattr(packages, "version_of", lambda package: installed if package == "vllm" else None)
    if said is None:
        assert resolved("ppo", rollouts="vllm").options.rollouts == "vllm"
    else:
        with pytest.raises(UserError, match=said):
            resolved("ppo", rollouts="vllm")


def test_such_a_setting_is_validated_as_the_option():
    with pytest.raises(UserError, match="--per-device-train-batch-size 0: "):
        resolved(set={"per_device_train_batch_size": 0})


def test_one_option_given_twice_with_two_values_is_an_error():
    with pytest.raises(UserError, match="--beta 0.2 and --set beta 0.1 are the same option: give one"):
        resolved(beta=0.2, set={"beta": 0.1})
    with pytest.raises(UserError, match="--num-eval-prompts 3 and --eval-prompts 4 are the same option"):
        resolved(num_eval_prompts=3, eval_prompts=4)
    assert resolved(beta="2e-1", set={"beta": 0.2}).options.beta == 0.2

    assert resolved(loss_type="ipo", optim="sgd", set={"loss_type": "ipo", "optim": "sgd"}).options.optim == "sgd"
    with pytest.raises(UserError, match="--lora True and --set lora False are the same option"):
        resolved(lora=True, set={"lora": False})


def test_flags_win_over_a_file_however_both_are_written():
    file = {"set": {"beta": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.7}, "learning_rate": 1e-4}
    config = resolved(under=[file], beta=0.2, set={"learning_rate": 2e-4, "adam_beta2": 0.8})
    assert (config.options.beta, config.options.learning_rate) == (0.2, 2e-4)
    assert config.set == {"adam_beta1": 0.5, "adam_beta2": 0.8}


@pytest.mark.parametrize("method", [["dpo"], {"a": 1}, 5, True, None, ""])
def test_a_method_that_is_no_name(method):
    with pytest.raises(UserError, match="which method"):
        resolve({"method": method}, Catalog())


class Foreign(Method):
    name, data, config = "foreign", "preferences", "package:Class"
    settings = {  # noqa: RUF012 - a class constant
        "used": used_with(("--lora", lambda config: bool(config.options.lora))),
        "size": same_as("max_steps"),
        "remove_unused_columns": refused("never"),
    }


def test_a_method_decides_for_its_own_fields_and_may_decide_otherwise_than_the_core():
    assert decide(Foreign, "used").conditions
    assert decide(Foreign, "size").option == "max_steps"
    assert decide(Foreign, "remove_unused_columns").reason == "never"
    assert decide(Foreign, "push_to_hub").reason
    assert decide(Foreign, "beta2") is None  # passed on, with a warning
    config = resolved()
    config.set["beta2"] = 1
    check(Foreign(), config)


NO_EFFECT = [
    ("reward_model", {"temperature": 0.5}, "--temperature .* it samples no answers"),
    ("sft", {"max_prompt_length": 100}, "--max-prompt-length .* see --max-length"),
    ("grpo", {"overlong_completions": "truncate"}, "--overlong-completions .* no answers to learn from"),
    ("dpo", {"num_train_epochs": 2, "max_steps": 5}, "--num-train-epochs has no effect: --max-steps 5 is given"),
    ("dpo", {"warmup_steps": 5, "lr_scheduler_type": "constant"}, "--warmup-steps .* constant has no warm-up"),
    ("dpo", {"lora": False, "lora_r": 4}, "--lora-r has no effect: no adapter is trained"),
    ("dpo", {"machine_rank": 1}, "--machine-rank 1"),
    ("dpo", {"seed": -1}, "--seed -1"),
    ("dpo", {"max_steps": 10**30}, "--max-steps: an integer has at most 64 bits"),
    (
        "dpo",
        {"num_processes": 2, "set": {"ddp_backend": "nonsense"}},
        "--set ddp_backend=nonsense: it is one of nccl, gloo",
    ),
    ("dpo", {"master_addr": "a:1"}, "--master-addr a:1 has no effect without --num-machines"),
    ("dpo", {"eval_data": "x.jsonl", "num_eval_prompts": 0}, "--eval-data has no effect with --num-eval-prompts 0"),
    ("grpo", {"loss_type": "cispo", "epsilon": 0.1}, "cispo does not clip by epsilon"),
    ("grpo", {"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo weighs answers itself"),
    ("ppo", {"kl_horizon": 10}, "--kl-horizon has no effect without --target-kl"),
    ("ppo", {"total_episodes": 10}, "--total-episodes .* --max-steps 72 is given by the preset"),
    ("ppo", {"num_mini_batches": 10**9}, "a batch of answers has .*, more than 1,000,000"),
    ("ppo", {"mask_truncated_completions": True, "missing_eos_penalty": 2}, "--missing-eos-penalty has no effect"),
    ("dpo", {"learning_rate": 1e300}, "learning_rate 1e.300: float32 computes with 0, and with 1e-30 to 1e.06"),
    ("dpo", {"set": [1]}, "set: expected names and values"),
]


@pytest.mark.parametrize(("name", "values", "message"), NO_EFFECT, ids=[str(values) for _, values, _ in NO_EFFECT])
def test_options_without_effect_are_refused(name, values, message):
    with pytest.raises(UserError, match=message):
        resolved(name, **values)


def test_a_preset_never_leaves_what_is_given_without_effect():
    config = resolved("grpo", num_train_epochs=2)
    assert (config.options.max_steps, config.options.num_train_epochs) == (-1, 2)
    assert resolved("grpo", lora=False).options.lora_target_modules == "all-linear"
    assert "max_prompt_length" not in resolved("sft").preset


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_of_a_run_repeats_it(name, tmp_path):
    """`--config RUN/config.yaml` resolves to the same options."""
    config = resolved(name, output_dir="out")
    (tmp_path / "config.yaml").write_text(json.dumps(config.to_dict()))
    again = resolve(read_file(tmp_path / "config.yaml"), Catalog())[0]
    assert again.options.model_dump() == config.options.model_dump()
    assert json.loads(again.model_dump_json()) == json.loads(config.model_dump_json())
