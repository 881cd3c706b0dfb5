"""Each field of TRL's `SFTConfig` acts as in TRL, or is refused. A new field fails here until that is decided."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from rlhf_method_sft import SETTINGS, SFT
from rlhf_method_sft.trainer import ConcatenatingSFTTrainer, concatenate_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainingArguments
from trl import SFTConfig, SFTTrainer

from rlhf_core import IGNORED, UserError, encode_conversations

pytestmark = pytest.mark.slow

WORDS = ["rest", "and", "drink", "water", "measure", "the", "fever", "again", "call", "a", "doctor", "when", "it"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": " ".join(WORDS[i % 4 : i % 4 + 1 + i % 9])},
            {"role": "assistant", "content": " ".join(WORDS[i % 5 : i % 5 + 1 + i % 11])},
        ]
    }
    for i in range(40)
]
VALUES = {"method": "sft", "max_length": 128, "optim": "sgd", "learning_rate": 2.0, "num_eval_prompts": 6}
EVALUATED = {"per_device_eval_batch_size": 4}  # two batches, of four rows and of two

# settings -> whether batches are concatenated; how TRL makes them is compared with in any case
EQUAL = [
    ({}, True),
    ({"loss_type": "dft"}, True),
    ({"loss_type": "chunked_nll"}, True),
    ({"shuffle_dataset": True}, True),
    ({"label_smoothing_factor": 0.1}, True),
    ({"packing": True}, True),
    ({"packing": True, "packing_strategy": "bfd_split"}, True),
    ({"packing": True, "packing_strategy": "wrapped"}, False),
    ({"packing": True, "eval_packing": False}, True),
    ({"padding_free": True}, False),
    ({"pad_to_multiple_of": 32}, False),
    ({"neftune_noise_alpha": 5.0}, False),
]
BASE = {field.name for field in dataclasses.fields(TrainingArguments)}
REFUSED = {name: setting.reason for name, setting in SETTINGS.items() if setting.reason}
OTHERS = {
    "max_length": "an option of ours",
    "router_aux_loss_coef": "test_a_mixture_of_experts",
    "activation_offloading": "a context of TRL's around the step, for GPUs",
}


def test_every_field_is_decided():
    fields = {field.name for field in dataclasses.fields(SFTConfig)} - BASE
    compared = {name for settings, _ in EQUAL for name in settings} - BASE
    assert fields == compared | set(OTHERS) | set(REFUSED)
    assert len(fields) == len(compared) + len(OTHERS) + len(REFUSED)


def both(made_run, **values):
    """(TRL's trainer, ours) with the same rows, model and arguments."""
    run = made_run(**values)
    limit = None if values["set"].get("padding_free") else 128
    rows, held_out = (encode_conversations(rows, run.template, 128) for rows in (run.train_dataset, run.eval_dataset))
    theirs = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(run.info.path, dtype=torch.float32),
        args=run.arguments(SFTConfig, max_length=limit),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=run.tokenizer,
        peft_config=run.peft_config,
    )
    return theirs, SFT().trainer(made_run(**values))


MEASURED = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "aux_loss")
MEASURED += ("eval_loss", "eval_entropy", "eval_mean_token_accuracy")


def assert_same(theirs, ours):
    """What both measure in training and after it. Tolerance: a hundred times float32's precision."""
    measured = []
    for trainer in (theirs, ours):
        torch.manual_seed(0)
        trainer.train()
        trainer.evaluate()
        lines = [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]
        measured.append([{name: line[name] for name in MEASURED if name in line} for line in lines])
    assert len(measured[0]) == 5
    assert measured[1] == [pytest.approx(line, rel=1e-5, abs=1e-6) for line in measured[0]]


CASES = [(settings, concatenates, False) for settings, concatenates in EQUAL] + [({}, True, True)]


@pytest.mark.filterwarnings("ignore:.*chunked_nll")  # TRL's old name of nll
@pytest.mark.parametrize(
    ("settings", "concatenates", "lora"), CASES, ids=[f"{settings}{' lora' * lora}" for settings, _, lora in CASES]
)
def test_training_with_a_setting_equals_trl(made_run, settings, concatenates, lora):
    theirs, ours = both(made_run, set={**EVALUATED, **settings}, lora=lora, gradient_accumulation_steps=2)
    assert ours.concatenates == concatenates
    assert_same(theirs, ours)
    if not settings:  # otherwise nothing was learned, and accuracies of 0 would be compared
        assert ours.state.log_history[-1]["eval_mean_token_accuracy"] > 0


def test_a_mixture_of_experts(made_run, tiny_model, tmp_path):
    """TRL adds the loss of the router, which it computes of padded rows."""
    folder = tmp_path / "moe"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape, **experts)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    theirs, ours = both(made_run, model=str(folder), set={**EVALUATED, "router_aux_loss_coef": 0.5})
    assert not ours.concatenates
    assert_same(theirs, ours)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_effect_are_refused_with_the_reason(resolved, name):
    with pytest.raises(UserError, match=f"--set {name}: {REFUSED[name][:20]}"):
        resolved(set={name: 1})


@pytest.mark.parametrize("name", ["packing_strategy", "eval_packing"])
def test_settings_of_packing_need_packing(resolved, name):
    with pytest.raises(UserError, match="no effect without --set packing=true"):
        resolved(set={name: 1})
    resolved(set={name: 1, "packing": True})


def test_a_missing_router_is_an_error_before_the_weights_load(made_run):
    run = made_run(set={"router_aux_loss_coef": 0.1})
    with pytest.raises(UserError, match="the model has no router"):
        SFT().trainer(run)
    assert "model" not in vars(run)


def test_the_first_token_of_each_row_has_no_label():
    batch = concatenate_rows([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    packed = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]}
    assert all(torch.equal(value, batch[name]) for name, value in concatenate_rows([packed]).items() if name[-1] == "s")


def test_the_methods_of_trl_that_we_override_exist():
    assert ConcatenatingSFTTrainer.__mro__[1] is SFTTrainer
    assert list(inspect.signature(SFTTrainer.get_train_dataloader).parameters) == ["self"]
    assert "self.data_collator" in inspect.getsource(SFTTrainer._get_dataloader)
