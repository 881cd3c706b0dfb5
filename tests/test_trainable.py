"""Adapters and heads learn in float32 whatever the model's weights are, and a rate too small for its weights is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions
from rlhf_core.models import loading
from rlhf_core.models.reference import ReferenceModel
from rlhf_core.models.resolve import find
from rlhf_core.models.trainable import save_tied_once, share_too_large, use_float32
from rlhf_core.training.run import prepare

ROWS = [
    {"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 5 + 1), "rejected": f"Run {i} miles."}
    for i in range(8)
]
VALUES = {"max_completion_length": 32, "max_steps": 1, "max_grad_norm": 0, "shared_prefix": False}
ONLINE = {"reward": ["spread.py:spread"]}
METHODS = {
    "sft": {"warmup_steps": 0},
    "dpo": {},
    "orpo": {},
    "reward_model": {},
    "grpo": {**ONLINE, "num_generations": 4, "beta": 0.1},
    "ppo": ONLINE,
}


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    """An adapter that is not zero, with entries that bfloat16 does not have."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("base", [{"load_in_4bit": True}, {"dtype": "bfloat16"}], ids=["4bit", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_goes_on_from_its_values_and_all_entries_move(go, adapter, method, base):
    """Adam's first step is the learning rate for each entry: in bfloat16, one of 1e-5 would change hardly any."""
    if "load_in_4bit" in base:
        pytest.importorskip("bitsandbytes")
    Path("spread.py").write_text("def spread(completions, **_): return [len(str(one)) % 7 / 7 for one in completions]")
    code, folder = go(method=method, model=str(adapter), learning_rate=1e-5, **base, **METHODS[method])
    assert code == 0
    assert {w.dtype for w in go.trainers[-1].model.parameters() if w.requires_grad} == {torch.float32}
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(folder / "model" / "adapter_model.safetensors")
    steps = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert steps.max() < 1.1e-5
    assert (steps > 0.5e-5).float().mean() > 0.95


@pytest.fixture(scope="module")
def adapter_with_head(tiny_model, tmp_path_factory) -> Path:
    """An adapter with an output layer that was trained whole."""
    folder = tmp_path_factory.mktemp("adapter_with_head")
    torch.manual_seed(0)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("dpo", {"dtype": "bfloat16"}),
        ("ppo", {"dtype": "bfloat16", "value_model": "separate"}),
        ("grpo", {"load_in_4bit": True}),
        ("grpo", {"load_in_8bit": True}),
    ],
    ids=["dpo", "ppo", "grpo-4bit", "grpo-8bit"],
)
def test_what_is_trained_and_the_frozen_copy_of_it_are_float32_with_the_values_of_the_files(
    resolved, adapter_with_head, method, base
):
    """TRL rounds a quantized model's adapter, PEFT an output layer in bfloat16: a reference must not be rounded."""
    if "dtype" not in base:
        pytest.importorskip("bitsandbytes")
    Path("spread.py").write_text("def spread(completions, **_): return [len(str(one)) % 7 / 7 for one in completions]")
    config, made = resolved(method=method, model=str(adapter_with_head), **base, **METHODS[method])
    run = prepare(config, made, Catalog())
    trainer = made.trainer(run)
    use_float32(trainer, run)
    model = trainer.model
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    saved = load_file(adapter_with_head / "adapter_model.safetensors")
    kept = {"default": 0, "ref": 0}
    for name, weight in model.named_parameters():
        adapter = next((part for part in name.split(".") if part in kept), None)
        if adapter is not None:
            kept[adapter] += 1
            plain = name[name.index("base_model") :].replace(f".{adapter}", "").replace(".modules_to_save", "")
            assert weight.dtype == torch.float32, name
            assert torch.equal(weight.cpu(), saved[plain]), name
    assert set(kept.values()) == {len(saved) * (2 if method == "ppo" else 1)}


@pytest.mark.parametrize("lora", [True, False])
def test_a_new_score_head_learns_in_float32_on_bfloat16_weights(go, lora):
    code, _ = go(method="reward_model", dtype="bfloat16", lora=lora)
    assert code == 0
    types = {"score": set(), "layers": set()}
    for name, weight in go.trainers[-1].model.named_parameters():
        if "original_module" not in name and "lora" not in name:
            types["score" if "score" in name else "layers"].add(weight.dtype)
    assert types == {"score": {torch.float32}, "layers": {torch.bfloat16}}


@pytest.mark.parametrize(
    ("weight", "kind", "share"),
    # bfloat16 has 8 bits: between 1/64 and 1/32 numbers are 2**-13 apart, so a step below 2**-14 = 6.1e-5 is lost. From
    # zero, where LoRA's B begins, every step counts.
    [
        *((0.02, torch.bfloat16, 1.0), (-0.02, torch.bfloat16, 1.0), (0.001, torch.bfloat16, 0.0)),
        *((0.0, torch.bfloat16, 0.0), (0.02, torch.float32, 0.0), (0.02, torch.float16, 0.0)),
    ],
)
def test_steps_that_are_rounded_away(weight, kind, share):
    model = torch.nn.Linear(8, 8, dtype=kind)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, weight)
    assert share_too_large(model, 5e-5) == share


@pytest.mark.parametrize("untied", [False, True])
def test_a_tied_weight_of_which_processes_gathered_two_copies_is_saved_once(tiny_model, tmp_path, untied):
    """One that was untied since, as by a merged adapter, is saved."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=True)
    if untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    gathered = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_tied_once(model)
    model.save_pretrained(tmp_path, state_dict=gathered)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == untied
    assert "model.embed_tokens.weight" in load_file(tmp_path / "model.safetensors")


def test_the_reference_of_a_model_that_deepspeed_holds_in_parts_is_loaded_again(tiny_model):
    """A copy of a part, whose values are elsewhere, has none."""
    model, again = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    assert ReferenceModel(model, fresh_adapter=False, load=lambda: again).copy is not again
    for number, weight in enumerate(model.parameters()):
        weight.ds_id = number
    reference = ReferenceModel(model, fresh_adapter=False, load=lambda: again)
    assert reference.copy is again
    assert not any(weight.requires_grad for weight in again.parameters())


@pytest.mark.parametrize("distributed", ["fsdp", "zero3"])
def test_an_adapter_is_not_merged_into_weights_that_are_split(adapter, distributed):
    info = loading.inspect(find(str(adapter)))
    loading.check_options(info, TrainingOptions(lora=False))
    loading.check_options(info, TrainingOptions(), distributed)
    with pytest.raises(UserError, match=f"--distributed {distributed}.*rlhf merge"):
        loading.check_options(info, TrainingOptions(lora=False), distributed)
