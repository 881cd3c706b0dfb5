"""GRPO: what the plugin adds to TRL, and the private methods of TRL that it depends on."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from rlhf_method_grpo import GRPO, _check_architecture
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from rlhf_core import UserError, testing
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.models.loading import inspect as inspect_model
from rlhf_core.models.resolve import find
from rlhf_core.training.run import Run, prepare


@pytest.fixture
def run(tmp_path):
    """run(option=…) -> a Run on the two-layer model, ready for GRPO().trainer(run)."""

    def make(**values) -> Run:
        model = testing.tiny_model(tmp_path / "model")
        base = {
            "method": "grpo",
            "reward": ["medical_format"],
            "model": str(model),
            "output_dir": str(tmp_path / "out"),
        }
        config, method = resolve({**base, "num_eval_prompts": 0, **values}, Catalog())
        run = prepare(config, method, Catalog())
        run.train_dataset = run.train_dataset.select(range(32))
        return run

    return make


def test_the_defaults_are_those_of_the_guide():
    options = GRPO.Options()
    assert (options.num_generations, options.max_prompt_length, options.max_completion_length) == (4, 2048, 512)
    assert (options.lora_r, options.lora_alpha) == (16, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "learning_rate", "beta"),
    [
        ({}, 1e-6, 0.0),
        ({"lora": True}, 1e-5, 0.001),
        ({"load_in_4bit": True}, 1e-5, 0.001),
        ({"learning_rate": 1e-4, "beta": 0.3}, 1e-4, 0.3),
    ],
)
def test_learning_rate_and_beta_follow_how_the_model_is_trained(run, values, learning_rate, beta):
    if values.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    arguments = GRPO().trainer(run(**values)).args
    assert (arguments.learning_rate, arguments.beta) == (learning_rate, beta)


@pytest.mark.slow
def test_an_adapter_that_is_trained_further_is_held_to_what_it_was(run, tmp_path):
    """With the beta of LoRA, and as its reference the adapter as it was found, not the model without it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(run().info.path), LoraConfig(task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "adapter")
    trainer = GRPO().trainer(run(model=str(tmp_path / "adapter")))
    assert trainer.beta == 0.001
    weights = dict(trainer.model.named_parameters())
    pairs = [(name, name.replace(".default.", ".ref.")) for name in weights if ".default." in name]
    assert len(pairs) == 8
    assert all(torch.equal(weights[trained], weights[reference]) for trained, reference in pairs)
    assert any(weights[trained].any() for trained, _ in pairs if "lora_B" in trained)


@pytest.mark.parametrize(
    ("values", "prompts", "product"),
    [
        ({}, 4, "per_device_train_batch_size × gradient_accumulation_steps = 16 answers"),
        ({"num_processes": 8, "steps_per_generation": 1}, 8, "× steps_per_generation × 8 processes = 32 answers"),
        ({"set": {"generation_batch_size": 20}}, 5, "generation_batch_size = 20 answers"),
    ],
)
def test_fewer_prompts_than_a_batch_of_answers_needs_are_refused(values, prompts, product):
    """TRL would train no step on them, and the run would end well."""
    options = {name: value for name, value in values.items() if name == "steps_per_generation"}
    given = {**values, "method": "grpo", "reward": "length", "model": "any", "output_dir": "out", **options}
    config, method = resolve(given, Catalog())
    method.check_rows(config, prompts)
    with pytest.raises(UserError, match=f"{product}, 4 .num_generations.* needs {prompts} prompts, and the data has 1"):
        method.check_rows(config, 1)


def test_groups_may_be_divided_among_processes(monkeypatch):
    given = {"method": "grpo", "reward": "length", "model": "any", "num_generations": 8}
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    resolve({**given, **one, "num_processes": 8}, Catalog())
    with pytest.raises(UserError, match="= 1 answers, which can't be split into groups of num_generations = 8"):
        resolve({**given, **one}, Catalog())
    with pytest.raises(UserError, match="generation_batch_size = 12 answers, which can't be split"):
        resolve({**given, "set": {"generation_batch_size": 12}}, Catalog())
    monkeypatch.setenv("WORLD_SIZE", "8")  # of another launcher
    resolve({**given, **one}, Catalog())


FIRST_FAILS = "def first_fails(completions, **_): return [float('nan'), *[1.0] * (len(completions) - 1)]\n"


@pytest.mark.slow
def test_one_reward_is_summed_first_and_several_are_normalized_first(run, tmp_path):
    """Where rewards are summed first, a row in which one failed has no score of the others."""
    (tmp_path / "rewards.py").write_text(FIRST_FAILS)
    both = ["medical_format", f"{tmp_path / 'rewards.py'}:first_fails:weight=2"]

    def scores(trainer):
        turns = [[{"role": "assistant", "content": "x"}] for _ in range(2)]
        rows = {name: list(trainer.train_dataset[name][:2]) for name in trainer.train_dataset.column_names[1:]}
        return [
            score(prompts=turns, completions=turns, completion_ids=[[1], [1]], **rows) for score in trainer.reward_funcs
        ]

    assert GRPO().trainer(run()).args.multi_objective_aggregation == "sum_then_normalize"
    trainer = GRPO().trainer(run(reward=both))
    arguments = trainer.args
    assert (arguments.multi_objective_aggregation, arguments.reward_weights) == ("normalize_then_sum", [1.0, 2.0])
    assert scores(trainer) == [[0.0, 0.0], [None, 1.0]]
    chosen = GRPO().trainer(run(reward=both, set={"multi_objective_aggregation": "sum_then_normalize"}))
    assert scores(chosen) == [[None, 0.0], [None, 1.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "lora"),
    [
        (LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False), None),
        (LoKrConfig(r=4, target_modules=["q_proj"], init_weights=False), None),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]), False),
    ],
    ids=["embeddings", "lokr", "untied, merged"],
)
def test_the_reference_computes_what_the_adapter_that_the_run_starts_from_does(run, tmp_path, adapter, lora):
    base = AutoModelForCausalLM.from_pretrained(testing.tiny_model(tmp_path / "base"))
    started = get_peft_model(base, adapter)
    for weight in started.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    started.save_pretrained(tmp_path / "adapter")
    trainer = GRPO().trainer(run(model=str(tmp_path / "adapter"), lora=lora, beta=0.1))
    reference = trainer.ref_model
    if reference is None:
        reference = trainer.model
        reference.set_adapter("ref")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, got = started.eval()(ids).logits, reference.eval()(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [[], ["Own"], ["LlamaForCausalLM"]])
def test_the_reference_is_loaded_by_an_architecture_that_is_the_models(tmp_path, names):
    info = inspect_model(find(str(testing.tiny_model(tmp_path / "model"))))
    _check_architecture(info)
    info.config.architectures = names
    with pytest.raises(UserError, match=r'architectures .* it has to be \["Qwen3ForCausalLM"\]. Without .* --beta 0'):
        _check_architecture(info)


@pytest.mark.slow
def test_set_reaches_the_training_arguments(run):
    assert GRPO().trainer(run(set={"epsilon_high": 0.28, "scale_rewards": "none"})).args.epsilon_high == 0.28


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations", "steps"),
    [(1, 1, 1, 1), (4, 4, 1, 1), (4, 4, 2, 2), (1, 4, 1, 4), (4, 8, 1, 2), (4, 6, 1, 3), (1, 2, 3, 6)],
)
def test_steps_between_two_batches_of_answers(tmp_path, accumulation, per_generation, iterations, steps):
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        bf16=False,
    )
    assert GRPO().steps_per_rollout(SimpleNamespace(args=arguments)) == steps


@pytest.mark.slow
def test_prompts_come_in_the_order_of_the_run_that_was_not_stopped(run):
    def orders(epochs_done: int, number: int) -> list[list[int]]:
        trainer = GRPO().trainer(run())
        trainer.epochs_done = epochs_done
        sampler = trainer._get_train_sampler()
        return [list(sampler) for _ in range(number)]

    assert orders(2, 1) == orders(0, 3)[2:]


PRIVATE = (
    *("_get_train_sampler", "_tokenize_prompts", "_generate_and_score_completions", "_generate_single_turn"),
    "_prepare_inputs",
)


def test_what_is_private_in_trl_is_where_we_expect_it():
    for name in PRIVATE:
        theirs, ours = (inspect.signature(vars(kind)[name]) for kind in (GRPOTrainer, SharedPrefixGRPOTrainer))
        assert list(theirs.parameters) == list(ours.parameters)
    name = "_get_per_token_logps_and_entropies"
    theirs, ours = (list(inspect.signature(vars(k)[name]).parameters) for k in (GRPOTrainer, SharedPrefixGRPOTrainer))
    assert theirs[: len(ours) - 1] == ours[:-1]  # what follows is of images, which go into ours as one
    assert SharedPrefixGRPOTrainer.__mro__[1] is GRPOTrainer
    sampler = RepeatSampler(range(5), mini_repeat_count=1, shuffle=True, seed=0)
    twin = torch.Generator().manual_seed(0)
    assert list(sampler) == torch.randperm(sampler.num_samples, generator=twin).tolist()
    assert sampler.generator.get_state().equal(twin.get_state())


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_merging_an_adapter_into_quantized_weights_and_out_again_changes_them(kind):
    """Which TRL does for vLLM before each batch of answers. Once it does not, vLLM may sample from them."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(64, 64)
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight, has_fp16_weights=False, requires_grad=False)
    if kind == "4bit":
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(weight, quant_type="nf4", requires_grad=False)
    plain = torch.nn.Sequential(layer)
    setattr(plain, f"is_loaded_in_{kind}", True)
    model = get_peft_model(plain.to("cpu"), LoraConfig(target_modules=["0"], init_lora_weights=False))
    rows = torch.eye(64)
    with model.disable_adapter(), torch.no_grad():
        before = model(rows)
        for _ in range(3):
            model.merge_adapter()
            model.unmerge_adapter()
        assert (model(rows) - before).norm() > 0.01 * before.norm()


@pytest.mark.slow
@pytest.mark.parametrize("rollouts", ["shared", "transformers", "continuous"])
def test_every_engine_answers_each_prompt(run, rollouts):
    trainer = GRPO().trainer(run(rollouts=rollouts, max_completion_length=4, num_generations=2))
    completions, logps = trainer._generate_single_turn([[5, 6, 7], [5, 6, 7], [8], [8]], None, {}, 2)
    assert logps is None
    assert [1 <= len(ids) <= 4 for ids in completions] == [True] * 4


@pytest.mark.parametrize(
    ("given", "lora", "expected"),
    [
        ({}, False, {"learning_rate": 1e-6, "beta": 0.0, "importance_sampling_level": "token", "epsilon_high": None}),
        ({}, True, {"beta": 0.001}),
        ({"load_in_4bit": True}, True, {"learning_rate": 1e-5}),
        ({"beta": 0.0, "learning_rate": 1e-4}, True, {"beta": 0.0, "learning_rate": 1e-4}),
        ({"loss_type": "luspo"}, False, {"importance_sampling_level": "sequence"}),
        ({"loss_type": "luspo", "importance_sampling_level": "token"}, False, {"importance_sampling_level": "token"}),
        ({"loss_type": "cispo"}, False, {"epsilon_high": 5.0}),
        ({"loss_type": "cispo", "epsilon_high": 2.0}, False, {"epsilon_high": 2.0}),
    ],
)
def test_what_was_left_open_is_filled_in(given, lora, expected):
    options = GRPO.Options(**given)
    resolved = GRPO().resolve_options(options, lora=lora)
    assert {name: getattr(resolved, name) for name in expected} == expected
    assert GRPO().resolve_options(resolved, lora=lora) == resolved
    assert GRPO.Options(**resolved.model_dump()) == resolved  # what config.yaml holds is accepted again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"epsilon": 0.1, "epsilon_high": 0.28, "delta": 4.0}, "--epsilon, --delta, --epsilon-high"),
        ({"epsilon_high": 5.0, "loss_type": "cispo"}, ""),
        ({"epsilon": 0.1, "num_iterations": 2}, ""),
        ({"delta": 0.9}, ""),
        ({}, ""),
    ],
)
def test_clipping_that_a_single_step_never_reaches_is_said(run, said, values, flags):
    GRPO()._arguments(run(**values))
    assert [text.partition(":")[0] for text in said()] == [flags] * bool(flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"set": {"sync_ref_model": True}, "beta": 0.1, "lora": True}, "needs a separate reference model"),
        ({"set": {"sync_ref_model": True}}, "needs a separate reference model"),
        ({"set": {"router_aux_loss_coef": 0.1}}, "the model has no router"),
        ({"set": {"use_bias_correction_kl": True}, "beta": 0.0}, "no effect without a --beta above 0"),
        ({"set": {"generation_batch_size": 16}, "steps_per_generation": 4}, "don't fit together"),
    ],
)
def test_what_the_model_decides_is_found_before_its_weights_load(run, values, message):
    made = run(**values)
    with pytest.raises(UserError, match=message):
        GRPO().trainer(made)
    assert "model" not in vars(made)


def test_every_option_reaches_trl(run):
    """Each has another value than TRL's default."""
    values = {
        "steps_per_generation": 2, "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1,
        "epsilon_high": 0.28, "delta": 1.5, "top_entropy_quantile": 0.2, "scale_rewards": "batch", "top_k": 5,
        "min_p": 0.1, "repetition_penalty": 1.1, "num_iterations": 3, "mask_truncated_completions": True,
        "temperature": 0.9, "top_p": 0.8, "max_completion_length": 7, "num_generations": 2,
    }  # fmt: skip
    arguments = GRPO().trainer(run(**values)).args
    assert {name: getattr(arguments, name) for name in values} == values
