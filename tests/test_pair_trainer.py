"""The pair trainer: what it does to the model that it is given, and what it refuses. Its results: test_equals_trl.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rlhf_method_dpo import DPO
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlhf_core import UserError
from rlhf_core.prefix import Group
from rlhf_core.training.pair_trainer import Pair, _trainable, pair_logps

ROWS = [{"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 3 + 1), "rejected": "Run."} for i in range(8)]
VALUES = {"method": "dpo", "max_completion_length": 32}


def test_dropout_of_the_adapter_is_on(made_run):
    trainer = DPO().trainer(made_run(lora=True, lora_dropout=0.25))
    assert {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_dropout_of_the_model_is_off(made_run):
    """Two passes in training mode give the same losses; the model is one whose prompts can't be shared."""
    run = made_run()
    config = GPT2Config(vocab_size=len(run.tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, attn_pdrop=0.0)
    run.model = GPT2LMHeadModel(config)
    trainer = DPO().trainer(run)
    pairs = [
        Pair(Group([5, 6, 7], [[8, 9], [10]]), ([1, 1], [1])),
        Pair(Group([5], [[6], [7, 8, 9]]), ([1], [1, 1, 1])),
    ]
    trainer.model.train()
    one, other = (trainer.losses(trainer.model, pairs)[1] for _ in range(2))
    assert torch.equal(one, other)


def test_each_pair_of_a_step_has_the_same_weight_though_no_batch_is_full(made_run):
    """Three passes of 3, 3 and 2 pairs: the logged loss is the mean over the eight, and so are the metrics."""
    values = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "max_steps": 1, "optim": "sgd"}
    trainer = DPO().trainer(made_run(**values, loss_type="hinge"))
    for parameter in trainer.model.parameters():  # away from the reference, where all pairs have one loss
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    pairs = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        losses, measured = trainer.losses(trainer.model, pairs)
    assert losses.std() > 1e-3
    trainer.train()
    line = trainer.state.log_history[0]
    for name, value in zip(trainer.metric_names, measured.mean(0).tolist(), strict=True):
        assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_only_what_is_learned_counts(tiny_model):
    """A user's turn inside a reply is read and not learned: in float64, one row at a time, with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompt, answers, masks = [5, 6, 7], ([8, 9, 10, 11, 12], [13, 14]), ([1, 1, 0, 0, 1], [0, 1])
    logps, entropy = pair_logps(model, [Pair(Group(prompt, list(answers)), masks)], None)
    exact = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    wanted, entropies = [], 0.0
    for answer, mask in zip(answers, masks, strict=True):
        scores = exact(torch.tensor([prompt + answer])).logits[0, 2:-1].log_softmax(-1)
        wanted.append(sum(scores[i, token] for i, token in enumerate(answer) if mask[i]).item())
        entropies += sum(-(scores[i].exp() * scores[i]).sum() for i in range(len(answer)) if mask[i]).item()
    assert [logps.chosen.item(), logps.rejected.item()] == pytest.approx(wanted, rel=1e-5)
    assert (logps.chosen_tokens.item(), logps.rejected_tokens.item()) == (3, 1)
    assert entropy.item() == pytest.approx(entropies / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ld_alpha": 0.5}, "TrainingArguments has no such field"),
        ({"precompute_ref_log_probs": True}, "TrainingArguments has no such field"),
    ],
)
def test_settings_of_trls_trainer_are_refused(made_run, setting, message):
    with pytest.raises(UserError, match=message):
        made_run(set=setting)


def test_a_models_own_dropout_is_off_and_its_adapters_acts():
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)
    adapter = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.2, target_modules=["c_attn"], fan_in_fan_out=True)
    continued = get_peft_model(GPT2LMHeadModel(config), adapter)
    for model, new in ((GPT2LMHeadModel(config), None), (GPT2LMHeadModel(config), adapter), (continued, None)):
        trained = _trainable(SimpleNamespace(model=model, peft_config=new))
        dropout = {name: m.p for name, m in trained.named_modules() if isinstance(m, torch.nn.Dropout)}
        assert len(dropout) > 3
        assert {p for name, p in dropout.items() if "lora_dropout" not in name} == {0.0}
        assert all(p == 0.2 for name, p in dropout.items() if "lora_dropout" in name)


def test_a_run_says_that_the_loss_of_a_router_is_left_out(made_run, tiny_model, tmp_path):
    """By every method but those whose trainer has a setting for it."""
    folder = tmp_path / "moe"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=len(tokenizer), intermediate_size=16, num_local_experts=2, **shape)
    MixtralForCausalLM(config).save_pretrained(folder)
    said = "the auxiliary loss of the model's router (router_aux_loss_coef 0.001) is left out by orpo"
    assert said in made_run(method="orpo", model=str(folder)).plan.data.warnings
    for values in ({"method": "sft", "model": str(folder), "max_completion_length": 512}, {"method": "orpo"}):
        assert not [text for text in made_run(**values).plan.data.warnings if "router" in text]
