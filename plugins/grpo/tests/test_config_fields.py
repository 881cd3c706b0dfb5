"""Each field of TRL's `GRPOConfig` does what it does in TRL, or is refused. A new one fails here until it is decided."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from click.testing import CliRunner
from rlhf_method_grpo import GRPO, _aggregation
from rlhf_method_grpo.generation import check_generation
from rlhf_method_grpo.settings import SETTINGS
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
from transformers import AutoTokenizer, LlamaConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from rlhf_core import Catalog, UserError
from rlhf_core.cli import rlhf
from rlhf_core.config import resolve
from rlhf_core.doctor import Check, packages

pytestmark = pytest.mark.slow

# The settings that others need in order to have an effect.
REUSED = {"num_iterations": 2, "learning_rate": 1.0}  # the second pass over answers has moved far from the first
REFERENCE = {"beta": 0.1, "learning_rate": 1.0}
SEQUENCE = {**REUSED, "importance_sampling_level": "sequence"}
VLLM = {"loss_type": "dapo"}
ADAPTIVE = {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef": 0.1}


def lengths(completions, **_):
    return [float(len(completion[0]["content"])) for completion in completions]


def vowels(completions, **_):
    return [completion[0]["content"].count("e") / 3 for completion in completions]


TWO_REWARDS = {"rewards": (lengths, vowels)}

# what is set -> what it is compared with, which differs in TRL too
EQUAL = [
    *(({"loss_type": loss}, REUSED) for loss in ("grpo", "dr_grpo", "sapo", "vespo")),
    ({"loss_type": "bnpo"}, {**REUSED, "gradient_accumulation_steps": 2}),
    ({"loss_type": "cispo", "epsilon_high": 1.05}, REUSED),
    ({"loss_type": "luspo"}, SEQUENCE),
    ({"loss_type": "dapo", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, {"loss_type": "grpo"}),
    ({"importance_sampling_level": "sequence"}, {**REUSED, "loss_type": "grpo"}),
    ({"epsilon": 0.01}, REUSED),
    ({"epsilon_high": 0.5}, {**REUSED, "epsilon": 0.01}),
    ({"delta": 1.001}, REUSED),
    ({"sapo_temperature_neg": 2.0, "sapo_temperature_pos": 3.0}, {**REUSED, "loss_type": "sapo"}),
    (
        {"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0, "vespo_lambda_neg": 1.0},
        {**REUSED, "loss_type": "vespo"},
    ),
    ({"top_entropy_quantile": 0.2}, {"gradient_accumulation_steps": 2, "temperature": 0.05}),  # entropies far apart
    ({"scale_rewards": "batch"}, {}),
    ({"scale_rewards": "none"}, {}),
    ({"multi_objective_aggregation": "normalize_then_sum"}, TWO_REWARDS),
    ({"reward_weights": [1.0, 0.1]}, TWO_REWARDS),
    ({"num_generations": 2}, {}),
    ({"max_completion_length": 24}, {"loss_type": "dr_grpo"}),
    ({"mask_truncated_completions": True}, REUSED),
    ({"num_iterations": 3}, {}),
    ({"steps_per_generation": 2}, {}),
    ({"generation_batch_size": 16}, {}),
    ({"beta": 0.1}, {"learning_rate": 1.0}),
    ({"use_bias_correction_kl": False}, REFERENCE),
    ({"sync_ref_model": True, "ref_model_sync_steps": 1}, REFERENCE),
    ({"ref_model_mixup_alpha": 0.1}, {**REFERENCE, "sync_ref_model": True, "ref_model_sync_steps": 1}),
    ({"off_policy_mask_threshold": 1e-4}, REUSED),
    ({"entropy_coef": 0.1}, {"gradient_accumulation_steps": 2}),
    ({"use_adaptive_entropy": True, "entropy_target": 9.0}, {"entropy_coef": 0.1}),
    ({"entropy_coef_min": 0.3, "entropy_coef_max": 0.3, "entropy_coef_delta": 0.2}, ADAPTIVE),
    ({"temperature": 0.7}, {"gradient_checkpointing": True}),
    ({"shuffle_dataset": False}, {}),
    ({"disable_dropout": True}, {"dropout": 0.2}),
    *(
        ({"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.5}, VLLM)
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    ),
    ({"vllm_importance_sampling_correction": False}, VLLM),
    ({"vllm_importance_sampling_clip_min": 0.9}, VLLM),
]

# Fields with a test of their own, and those that reach nothing of ours.
OTHERS = {
    "pad_to_multiple_of": "test_padding",
    "cast_lm_head_to_fp32": "test_a_head_in_float32",
    "router_aux_loss_coef": "test_a_mixture_of_experts",
    "chat_template_kwargs": "test_prompts_are_trls",
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), "test_sampling_is_trls"),
    **dict.fromkeys(("generation_kwargs", "cache_implementation"), "test_trl_samples_what_only_trl_can"),
    "ds3_gather_for_generation": "sharded parameters are sampled by TRL",
    "vllm_importance_sampling_cap": "TRL's old name of vllm_importance_sampling_clip_max",
}
OTHERS |= {
    field.name: "with --rollouts vllm all answers are sampled by TRL"
    for field in dataclasses.fields(GRPOConfig)
    if field.name.startswith("vllm_") and "importance" not in field.name and not SETTINGS[field.name].reason
}

BASE = {field.name for field in dataclasses.fields(TrainingArguments)}
REFUSED = {name: setting.reason for name, setting in SETTINGS.items() if setting.reason and name not in BASE}


def test_every_field_is_decided():
    fields = {f.name for f in dataclasses.fields(GRPOConfig)} - BASE
    compared = {name for setting, _ in EQUAL for name in setting}
    assert fields <= compared | set(OTHERS) | set(REFUSED)
    assert not compared & set(REFUSED) - {"reward_weights"}
    assert not set(OTHERS) & set(REFUSED)
    names = {f.name for f in dataclasses.fields(GRPOConfig)}
    assert set(OTHERS) | set(REFUSED) <= names
    assert all(text in globals() for text in OTHERS.values() if text.startswith("test_"))


def test_every_loss_is_compared():
    documented = GRPOConfig.__doc__.partition("loss_type (`str`")[2].partition("mask_truncated_completions")[0]
    losses = {line.split('"')[1] for line in documented.splitlines() if line.strip().startswith('- `"')}
    assert losses == {setting["loss_type"] for setting, _ in EQUAL if "loss_type" in setting}


@pytest.fixture(scope="module")
def without():
    """What TRL logs without the setting, by the other arguments."""
    return {}


@pytest.mark.parametrize(("setting", "others"), EQUAL, ids=[f"{setting}" for setting, _ in EQUAL])
def test_training_with_a_setting_equals_trl(train_both, same, without, setting, others):
    arguments = {**others, **setting}
    lora, vllm = "dropout" in others, others is VLLM
    if lora:  # without it the sides would drop other things
        others = {**others, "disable_dropout": False}
    (start, *theirs), (_, *ours) = train_both(lora, arguments, vllm=vllm)
    same(start, theirs, ours, kl="beta" in arguments)
    if repr(others) not in without:
        without[repr(others)] = train_both(lora, others, [GRPOTrainer], vllm=vllm)[0][1]
    measured = [[(step["loss"], step["grad_norm"]) for step in side] for side in (theirs[0], without[repr(others)])]
    assert measured[0] != [pytest.approx(pair, rel=1e-3) for pair in measured[1]]  # the setting has an effect


def test_padding(train_both, same):
    arguments = {"pad_to_multiple_of": 8, **REUSED}
    (start, *theirs), (_, *ours) = train_both(False, arguments)
    same(start, theirs, ours, kl=False)


def test_a_head_in_float32(train_both, same, caplog):
    """In bfloat16, whose precision is 2^-8; TRL computes it."""
    arguments = {"cast_lm_head_to_fp32": True, "dtype": torch.bfloat16}
    (start, *theirs), (_, *ours) = train_both(False, arguments)
    same(start, theirs, ours, kl=False, rel=2**-7)
    said = [record.message for record in caplog.records if "log-probabilities are computed by TRL" in record.message]
    assert len(said) == 1
    assert said[0].endswith("cast_lm_head_to_fp32 is set")


def test_answers_are_sampled_with_a_head_in_float32_under_autocast(trainer):
    made = trainer(SharedPrefixGRPOTrainer, False, cast_lm_head_to_fp32=True, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = made.model(torch.tensor([[5, 6, 7]])).logits
    assert not logits.equal(logits.bfloat16().float())  # which would lose nothing of what bfloat16 has computed


def test_a_mixture_of_experts(train_both, same, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "moe")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape, **experts)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    arguments = {"router_aux_loss_coef": 0.5, "tiny_model": tmp_path / "moe"}
    (start, *theirs), (_, *ours) = train_both(False, arguments)
    same(start, theirs, ours, kl=False)
    [(_, steps, _)] = train_both(False, {**arguments, "router_aux_loss_coef": 0.0}, [GRPOTrainer])
    assert steps[0]["loss"] != pytest.approx(theirs[0][0]["loss"], rel=1e-3)


def test_prompts_are_trls(trainer):
    made = trainer(SharedPrefixGRPOTrainer, False, chat_template_kwargs={"mood": "calm"})
    made.processing_class.chat_template = "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ids = made._tokenize_prompts([[{"role": "user", "content": "abc"}]])[0]
    assert made.processing_class.decode(ids[0]) == "calmabc"


PROMPTS = [[300, 301, 302], [300, 301, 302], [777], [400, 400, 500, 600]]


@pytest.mark.parametrize(
    "setting",
    [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"top_k": 1, "repetition_penalty": 1.5}],
    ids=["top_k", "min_p", "top_p", "repetition_penalty"],
)
def test_sampling_is_trls(trainer, setting):
    """Each setting leaves one token, so that no random number matters."""
    theirs, ours, most_probable = (
        trainer(kind, False, **settings)._generate_single_turn(PROMPTS, None, {}, 1)[0]
        for kind, settings in (
            (GRPOTrainer, setting), (SharedPrefixGRPOTrainer, setting), (GRPOTrainer, {"top_k": 1}),
        )
    )  # fmt: skip
    assert ours == theirs
    assert (ours == most_probable) == ("repetition_penalty" not in setting)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"generation_kwargs": {"suppress_tokens": list(range(1000))}}, "generation_kwargs are set"),
        ({"cache_implementation": "static"}, "cache_implementation is set"),
        ({}, "the model calls tools"),
    ],
)
def test_trl_samples_what_only_trl_can(trainer, setting, reason, caplog):
    answers = []
    for kind in (GRPOTrainer, SharedPrefixGRPOTrainer):
        made = trainer(kind, False, **setting)
        made.tools = [] if setting else [len]
        torch.manual_seed(7)
        answers.append([made._generate_single_turn(PROMPTS, None, {}, 1)[0] for _ in range(2)])
    assert answers[0] == answers[1]
    said = [record.message for record in caplog.records if "answers are sampled by TRL" in record.message]
    assert len(said) == 1
    assert said[0].endswith(reason)
    assert made.sampled_logps is None


def resolved(settings, **options):
    return resolve({"method": "grpo", "reward": ["medical_format"], "set": settings, **options}, Catalog())[0]


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_effect_are_refused_with_the_reason(name):
    with pytest.raises(UserError, match=f"--set {name}: {REFUSED[name][:20]}"):
        resolved({name: 1})


# values of generation_kwargs -> what the message says
GENERATION = {
    "an option": ({"temperature": -1}, "temperature: write --temperature"),
    "tokens": ({"pad_token_id": -5}, "pad_token_id: the tokenizer and the chat template decide it"),
    "several answers": ({"num_return_sequences": 3}, "num_return_sequences: write --num-generations"),
    "greedy": ({"do_sample": False}, "do_sample: a rollout has one sampled answer"),
    "unknown": ({"stop": "x"}, "transformers' GenerationConfig has no stop"),
    "another type": ({"bad_words_ids": 5}, "`bad_words_ids` has to be a non-empty list"),
    "no token is left": ({"suppress_tokens": list(range(100))}, "probability tensor contains"),
    "beyond the vocabulary": ({"forced_eos_token_id": 100}, "out of bounds"),
    "needs a tokenizer": ({"stop_strings": "x"}, "tokenizer"),
}


@pytest.mark.parametrize("case", GENERATION)
def test_what_generation_would_refuse_is_found_before_weights_load(case):
    given, message = GENERATION[case]
    arguments = GRPOConfig("x", generation_kwargs=given, report_to=[], use_cpu=True, bf16=False)
    with pytest.raises(UserError, match=f"--set generation_kwargs.*{message}"):
        check_generation(arguments, LlamaConfig(vocab_size=100))


def test_an_unknown_cache_is_found_before_the_weights_load():
    arguments = GRPOConfig("x", cache_implementation="nonsense", report_to=[], use_cpu=True, bf16=False)
    with pytest.raises(UserError, match="--set cache_implementation=nonsense: Invalid"):
        check_generation(arguments, LlamaConfig(vocab_size=100))


def test_what_generation_takes_is_taken():
    state = torch.get_rng_state()
    arguments = GRPOConfig("x", generation_kwargs={"typical_p": 0.9}, report_to=[], use_cpu=True, bf16=False)
    check_generation(arguments, LlamaConfig(vocab_size=100))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_refused_setting_is_found_by_a_dry_run():
    command = ["run", "--method", "grpo", "--reward", "medical_format", "--set", "use_vllm=true", "--dry-run"]
    done = CliRunner().invoke(rlhf, command)
    assert isinstance(done.exception, UserError)  # which ends the command with 2
    assert str(done.exception) == "--set use_vllm: write --rollouts vllm"


# setting -> (what it needs, in the user's words, and as settings or options)
NEEDS = {
    "vllm_gpu_memory_utilization": ("--rollouts vllm", {"rollouts": "vllm"}),
    "vllm_importance_sampling_clip_min": ("--rollouts vllm", {"rollouts": "vllm"}),
    "vllm_group_port": ("--vllm-server URL", {"vllm_server": "http://localhost:8000"}),
    "ds3_gather_for_generation": ("--distributed zero3", {"distributed": "zero3"}),
    "ref_model_sync_steps": ("--set sync_ref_model=true", {"set": {"sync_ref_model": True}}),
    "entropy_target": ("--set use_adaptive_entropy=true", {"set": {"use_adaptive_entropy": True}}),
    "sapo_temperature_neg": ("--loss-type sapo", {"loss_type": "sapo"}),
    "vespo_k_pos": ("--loss-type vespo", {"set": {"loss_type": "vespo"}}),
}


@pytest.mark.parametrize("name", NEEDS)
def test_settings_that_need_another_say_so(name, monkeypatch):
    monkeypatch.setattr(packages, "vllm", lambda: Check("vLLM", "ok", ""))
    needed, given = NEEDS[name]
    others = {key: value for key, value in given.items() if key != "set"}
    without = {"rollouts": "vllm"} if needed == "--vllm-server URL" else {}
    with pytest.raises(UserError, match=f"--set {name} has no effect without {needed}"):
        resolved({name: 1}, **without)
    resolved({name: 1, **given.get("set", {})}, **others)


@pytest.mark.parametrize(("given", "name"), [(True, "group"), (False, "none"), ("batch", "batch")])
def test_scale_rewards_takes_trls_booleans(given, name):
    assert resolved({"scale_rewards": given}).options.scale_rewards == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_generations": 7}, r"gradient_accumulation_steps = 32 answers, .* groups of num_generations = 7"),
        ({"steps_per_generation": 3, "num_generations": 64}, r"steps_per_generation = 96 answers"),
        ({"num_processes": 3, "num_generations": 64}, r"gradient_accumulation_steps × 3 processes = 96 answers"),
        ({"loss_type": "cispo", "delta": 2.0}, "cispo does not clip by delta"),
        ({"loss_type": "sapo", "epsilon_high": 0.3}, "sapo does not clip by epsilon_high"),
    ],
)
def test_options_that_do_not_fit_together(values, message):
    with pytest.raises(UserError, match=message):
        resolved({}, **values)


def test_scale_rewards_and_the_aggregation_mean_something_together():
    summed = "normalize_then_sum"
    with pytest.raises(UserError, match="--scale-rewards none has no effect with --multi-objective-aggregation"):
        resolved({}, scale_rewards="none", multi_objective_aggregation=summed)
    config = resolved({}, multi_objective_aggregation=summed)  # the preset's `none` is no contradiction
    assert GRPO().resolve_options(config.options, lora=True).scale_rewards == "group"


@pytest.mark.parametrize(
    ("values", "used"),
    [
        ({}, "normalize_then_sum"),
        ({"scale_rewards": "none"}, "sum_then_normalize"),
        ({"scale_rewards": "batch"}, "sum_then_normalize"),
        ({"multi_objective_aggregation": "sum_then_normalize"}, "sum_then_normalize"),
    ],
)
def test_how_several_rewards_become_one_is_shown(values, used, caplog):
    options = GRPO.Options(**values)
    assert _aggregation(options) == used
    assert f"(--multi-objective-aggregation {used})" in caplog.text


def test_groups_may_be_spread_over_processes():
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    resolved({}, num_processes=8, num_generations=8, **small)
    with pytest.raises(UserError, match="can't be split"):
        resolved({}, num_processes=4, num_generations=8, **small)
