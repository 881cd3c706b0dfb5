"""From a YAML file and flags to one validated object."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from rlhf_core.catalog import Catalog
from rlhf_core.config import preset_for, read_file, read_rewards, resolve
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.method import Method, TrainingOptions

BASE = {"method": "grpo", "reward": ["medical_format"]}


def resolved(**values):
    return resolve({**BASE, **values}, Catalog())[0]


def test_the_builtin_model_brings_its_preset_and_flags_win():
    config = resolved(max_steps=7)
    assert (config.options.max_steps, config.options.num_generations) == (7, 8)
    assert config.preset["num_generations"] == 8
    assert "max_steps" not in config.preset


def test_embedded_is_the_earlier_name_of_the_builtin_model_and_data():
    config = resolved(
        model="embedded", data=["embedded", "embedded:weight=1"], eval_prompts=3, main_address="a:1", num_machines=2
    )
    assert (config.model, config.data[0], config.options.num_eval_prompts) == ("builtin", "builtin", 3)
    assert config.preset["num_generations"] == 8
    assert config.master_addr == "a:1"
    assert resolved(model="embedded", data="embedded").data_specs == resolved().data_specs


@pytest.mark.parametrize("address", ["host", "10.0.0.1:29500", "a:1", "a:65535"])
def test_addresses(address):
    assert resolved(master_addr=address, num_machines=2).master_addr == address


@pytest.mark.parametrize("address", ["", ":1", "a b", "a b:1", "http://a:1", "a:", "a:0", "a:65536", "a:x", "a:1:2"])
def test_no_addresses(address):
    with pytest.raises((UserError, ValidationError), match="write HOST:PORT"):
        resolved(master_addr=address, num_machines=2)


def test_without_an_adapter_its_settings_in_a_preset_have_no_effect():
    class Adapted(Method):
        builtin_preset = {"lora": True, "lora_r": 4, "max_steps": 3}  # noqa: RUF012 - a class constant

    class Full(Method):
        builtin_preset = {"lora": False, "lora_r": 4, "max_steps": 3}  # noqa: RUF012 - a class constant

    assert "lora_r" in preset_for(Adapted, {})
    for preset in (preset_for(Adapted, {"lora": False}), preset_for(Full, {})):
        assert ("lora_r" in preset, preset["max_steps"]) == (False, 3)
    assert "max_steps" not in preset_for(Full, {"num_train_epochs": 1})


def test_a_preset_by_its_earlier_name_counts():
    class Earlier(Method):
        embedded_preset = {"max_steps": 3}  # noqa: RUF012 - a class constant

    assert Earlier.preset() == Method.preset() | {"max_steps": 3}


def test_another_model_gets_the_guides_values():
    options = resolved(model="Qwen/Qwen3-8B").options
    assert (options.num_generations, options.max_prompt_length, options.max_completion_length) == (4, 2048, 512)
    assert (options.lora_r, options.lora_alpha) == (16, 32)


def test_the_guides_own_flags_are_understood():
    config = resolved(
        model_name_or_path="Qwen/Qwen3-8B",
        dataset_name="a/b",
        subset_name="grpo",
        max_source_length=100,
        max_target_length=50,
        qlora=True,
    )
    assert (config.model, config.data, config.data_config) == ("Qwen/Qwen3-8B", ["a/b"], "grpo")
    assert (config.options.max_prompt_length, config.options.max_completion_length) == (100, 50)
    assert config.options.load_in_4bit


def test_the_written_file_repeats_the_run(tmp_path):
    config = resolved(
        reward=["medical_format:weight=2", {"length": {"target": 3}}], max_steps=7, set={"epsilon_high": 0.3}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    again, _ = resolve(read_file(tmp_path / "config.yaml"), Catalog())
    assert again.to_dict() == config.to_dict()
    assert again.options == config.options


def test_a_method_can_give_shared_options_another_default():
    class Options(TrainingOptions, defaults={"max_prompt_length": 7}):
        pass

    assert Options().max_prompt_length == 7
    assert Options(max_source_length=9).max_prompt_length == 9
    assert TrainingOptions().max_prompt_length == 2048
    with pytest.raises(ValidationError, match="greater than 0"):
        Options(max_prompt_length=0)
    with pytest.raises(TypeError, match="there is no option 'max_promt_length'"):

        class Misspelt(TrainingOptions, defaults={"max_promt_length": 7}):
            pass


def test_options_for_sampling_are_refused_where_nothing_is_sampled():
    assert resolve({"method": "reward_model", "temperature": 1.0}, Catalog())[0].options.temperature == 1
    with pytest.raises(UserError, match="--top-k has no effect with method reward_model: it samples no answers"):
        resolve({"method": "reward_model", "top_k": 5}, Catalog())


def test_what_only_the_trainer_can_know_is_left_to_it():
    assert resolved(set={"nonsense": 1}).set == {"nonsense": 1}


def test_the_specifications_of_data_and_rewards():
    config = resolved(data=["a.jsonl:weight=2", "b.csv:weight=1"], reward=["length"], reward_model="scorer")
    assert config.data_specs == [DataSpec("a.jsonl", weight=2), DataSpec("b.csv", weight=1)]
    assert config.reward_specs == [RewardSpec("length"), RewardSpec("reward_model", {"path": "scorer"})]
    trusting = resolved(reward=[], reward_model="scorer", trust_remote_code=True).reward_specs
    assert trusting == [RewardSpec("reward_model", {"path": "scorer", "trust_remote_code": True})]


def test_keys_may_be_written_with_dashes(tmp_path):
    (tmp_path / "c.yaml").write_text("method: grpo\nreward: [medical_format]\nmax-steps: 3\nlearning-rate: 1e-5\n")
    options = resolve(read_file(tmp_path / "c.yaml"), Catalog())[0].options
    assert (options.max_steps, options.learning_rate) == (3, 1e-5)


# values -> what the error says
MISTAKES = {
    "no method": ({"method": None}, "which method\\?.*Installed: .*grpo"),
    "unknown method": ({"method": "gpro"}, "there is no method 'gpro'. Did you mean 'grpo'"),
    "unknown key": ({"lerning_rate": 1}, "has no option 'lerning_rate'. Did you mean 'learning_rate'"),
    "no reward": ({"reward": []}, "method grpo needs a reward"),
    "no weight": ({"reward": ["medical_format:weight=0", "length:weight=0"]}, "every --reward has weight 0"),
    "not a number": ({"learning_rate": "fast"}, "--learning-rate fast: input should be a valid number"),
    "out of range": ({"num_generations": 1}, "--num-generations 1: input should be greater than or equal to 2"),
    "not a choice": ({"dtype": "int3"}, "--dtype int3: input should be 'auto', 'float32'"),
    "incomplete groups": (
        {"num_generations": 7},
        "= 32 answers, which can't be split into groups of num_generations = 7",
    ),
    "both quantizations": ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
    "quantized in full": ({"load_in_4bit": True, "lora": False}, "quantized weights can't be trained"),
    "no data": ({"data": []}, "--data \\[\\]: list should have at least 1 item"),
    "a list for a name": ({"formatter": ["x"]}, "--formatter \\['x'\\]: input should be a valid string"),
    "too many processes": ({"num_processes": 10**6}, "--num-processes 1000000: input should be less than"),
    "no address of a machine": ({"num_machines": 2}, "a run on several machines needs --master-addr"),
    "one machine": ({"master_addr": "a:1"}, "has no effect without --num-machines 2 or more"),
    "a machine too many": (
        {"num_machines": 2, "machine_rank": 2, "master_addr": "a:1"},
        "--machine-rank 2: machines count from 0",
    ),
    "a reward for nothing": ({"method": "reward_model"}, "method reward_model uses no reward: leave out --reward"),
    "held-out data for nothing": (
        {"eval_data": ["builtin:prompts"], "num_eval_prompts": 0},
        "--eval-data has no effect with",
    ),
    "a penalty that is left out": (
        {"rollouts": "continuous", "repetition_penalty": 1.2},
        "--repetition-penalty has no effect with --rollouts continuous",
    ),
    "no address": ({"master_addr": "host:many"}, "--master-addr host:many: write HOST:PORT"),
    "a long value": ({"optim": ["x" * 5000]}, "x… .5,004 characters.: input should be"),
    "zero steps": ({"max_steps": 0}, "max_steps is a positive number, or -1"),
    "infinite": ({"learning_rate": float("inf")}, "--learning-rate: inf is not a finite number"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    values, message = MISTAKES[case]
    with pytest.raises(UserError, match=message):
        resolved(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b", "expected keys and values"),
        ("{}", "expected keys and values"),
        ("max-steps: 1\nmax_steps: 2", "'max_steps' is there twice"),
        ("system_prompt: 2020-01-01", "system_prompt: expected text, .* not date"),
        ("beta: .nan", "beta: nan is not a finite number"),
        (None, "No such file"),
    ],
)
def test_bad_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "c.yaml")


def test_yaml_holds_plain_values_only():
    values = resolved().to_dict()
    assert values["method"] == "grpo"
    assert not [v for v in values.values() if isinstance(v, Path)]


@pytest.mark.parametrize("value", [3, True, [3], [None], [["length"]]])
def test_rewards_of_another_kind(value):
    with pytest.raises(UserError, match="is neither a reward nor a list of rewards"):
        read_rewards(value)
