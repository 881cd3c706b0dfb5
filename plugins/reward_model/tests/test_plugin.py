"""The reward model: its loss, its score head, and scores that do not depend on the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rlhf_method_reward_model import RewardModel, RewardModelScore
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.models import loading as models
from rlhf_core.prefix import Group
from rlhf_core.rewards.binding import bind
from rlhf_core.training.pair_trainer import pair_scores
from rlhf_core.training.run import train

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PROMPTS = [[{"role": "user", "content": f"Symptom {i}?"}] for i in range(5)]
TEXTS = ["Rest.", "Rest and drink. " * 9, "", "Run <|im_end|> far", "Wait."]


ROWS = [
    {"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 3 + 1), "rejected": f"Run {i} miles."}
    for i in range(24)
]
VALUES = {"method": "reward_model", "max_completion_length": 64}


def score(model, ids: list[int]) -> torch.Tensor:
    """The head on the hidden state of the last token, computed without the model's pooling."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_TH = inner.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return inner.score(hidden_TH[-1])[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("center", [None, 0.3])
def test_loss_and_gradients_equal_those_of_the_formula(made_run, lora, center):
    trainer = RewardModel().trainer(made_run(lora=lora, center_rewards_coefficient=center))
    model = trainer.model.double()
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    pairs = [[score(model, row["prompt_ids"] + row[name]) for name in ("chosen_ids", "rejected_ids")] for row in rows]
    losses = [-logsigmoid(one - other) + (center or 0) * (one + other) ** 2 for one, other in pairs]
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.detach(), expected.detach(), **CLOSE)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    assert any("score" in name and gradient.abs().max() > 0.01 for name, gradient in gradients.items())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], **CLOSE)


def test_each_answer_ends_with_one_end_token(made_run):
    trainer = RewardModel().trainer(made_run())
    end = trainer.processing_class.eos_token_id
    for row in trainer.train_dataset:
        for name in ("chosen_ids", "rejected_ids"):
            assert row[name][-1] == end
            assert row[name].count(end) == 1


@pytest.mark.slow
def test_held_out_pairs_have_the_metrics_of_training(go):
    code, folder = go(num_eval_prompts=2, max_steps=2)
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if "loss" in line)
    held_out = go.trainers[-1].evaluate()
    for name in ("accuracy", "margin", "min_reward", "mean_reward", "max_reward"):
        assert {name, f"eval_{name}"} <= {*line, *held_out}
    assert held_out["eval_min_reward"] <= held_out["eval_mean_reward"] <= held_out["eval_max_reward"]


def test_a_prompt_that_ends_with_padding_is_scored_where_transformers_scores_it(go):
    """The end token pads, and an empty answer has no token at which to read the score."""
    code, _ = go(max_steps=1)
    assert code == 0
    model = go.trainers[-1].model.eval()
    padding = model.config.pad_token_id
    rows = [([5, 6, padding, padding], [padding]), ([7, padding], [8, 9, padding]), ([7, 8], [9])]
    scores = pair_scores(model, [Group(prompt, [answer, [4]]) for prompt, answer in rows]).chosen
    with torch.no_grad():
        wanted = [model(input_ids=torch.tensor([prompt + answer])).logits[0, 0] for prompt, answer in rows]
    torch.testing.assert_close(scores.detach(), torch.stack(wanted), **CLOSE)


def test_lora_trains_the_score_head(made_run):
    trainer = RewardModel().trainer(made_run(lora=True))
    assert trainer.model.peft_config["default"].task_type == "SEQ_CLS"
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora" not in name] == ["base_model.model.score.modules_to_save.default.weight"]


def adapter_of_another_method(go) -> str:
    code, folder = go(method="sft", max_length=64, lora=True, output_dir="sft", max_steps=2, learning_rate=1e-2)
    assert code == 0
    return str(folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "from an adapter", "from a merged adapter"])
def test_a_saved_model_computes_the_trained_scores_in_any_batch(go, kind):
    values = {"full": {"lora": False}, "lora": {"lora": True}}.get(kind, {})
    if "adapter" in kind:
        values = {"model": adapter_of_another_method(go), "lora": False if "merged" in kind else None}
    code, folder = go(**values, max_steps=3)
    assert code == 0
    trainer = go.trainers[-1]
    model = trainer.model.eval()
    if "adapter" in kind:  # what it started from is still in it
        base = load_file(Path("sft/model/adapter_model.safetensors"))
        assert kind == "from a merged adapter" or set(base) < set(load_file(folder / "model/adapter_model.safetensors"))
    rewards = RewardModelScore(path=str(folder / "model"), batch_size=3)
    together = rewards(PROMPTS, TEXTS)
    alone = [rewards([prompt], [text])[0] for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), **CLOSE)
    with torch.no_grad():
        trained = [score(model, ids).item() for ids in rewards.encode(PROMPTS, TEXTS)]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(trained), **CLOSE)
    assert max(together) - min(together) > 1e-3


def test_an_answer_that_was_cut_gets_no_end_token(go, made_run):
    """And is rendered with the variables of the model's own run."""
    template = Path("switch.jinja")
    template.write_text("{{ mood }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    values = {"chat_template": str(template), "chat_template_kwargs": {"mood": "calm "}, "max_steps": 1}
    code, folder = go(**values)
    rewards = RewardModelScore(path=str(folder / "model"))
    ended, cut = rewards.encode([PROMPTS[0]] * 2, ["Rest."] * 2, [True, False])
    assert (code, cut) == (0, ended[:-1])
    assert rewards.tokenizer.decode(ended).startswith("calm ")
    assert rewards.tokenizer.decode(cut).endswith("Rest.")
    assert ended[-1] == rewards.tokenizer.eos_token_id
    assert rewards([PROMPTS[0]], ["Rest."]) == rewards([PROMPTS[0]], ["Rest."], finished=[True])


def test_it_learns_to_score_chosen_answers_higher(go):
    code, folder = go(max_steps=20, learning_rate=1e-2)
    assert code == 0
    good, bad = RewardModelScore(path=str(folder))(PROMPTS[:2], ["Rest and drink. ", "Run 1 miles."])
    assert good > bad


def test_without_a_pad_token_scores_do_not_depend_on_the_batch(go, tiny_model, tmp_path):
    """The end token pads then, and the score is read at the last token before it."""
    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    file = bare / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    code, folder = go(model=str(bare), max_steps=2)
    assert code == 0
    rewards = RewardModelScore(path=str(folder / "model"))
    alone = [rewards([prompt], [text])[0] for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    torch.testing.assert_close(torch.tensor(rewards(PROMPTS, TEXTS)), torch.tensor(alone), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_model_trained_with_quantized_weights_scores(go, bits):
    pytest.importorskip("bitsandbytes")
    code, folder = go(**{bits: True}, max_steps=1)
    assert code == 0
    assert len(RewardModelScore(path=str(folder / "model"))(PROMPTS, TEXTS)) == len(TEXTS)


@pytest.mark.slow
def test_a_trained_reward_model_rewards_another_run(go):
    code, folder = go(max_steps=2)
    assert code == 0
    values = {"num_generations": 4, "max_completion_length": 8, "max_steps": 1, "output_dir": "grpo"}
    code, after = go(method="grpo", reward_model=str(folder / "model"), **values)
    assert code == 0
    logged = [json.loads(line) for line in (after / "metrics.jsonl").read_text().splitlines()]
    assert any("rewards/reward_model/mean" in line for line in logged)
    assert (after / "reward_errors.jsonl").read_text() == ""


def test_a_path_without_a_model_is_refused_before_weights_load(resolved, tiny_model, monkeypatch):
    config, method = resolved(method="grpo", reward_model="nowhere")

    def refused(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load", refused)
    with pytest.raises(UserError, match="path nowhere: there is no such folder"):
        train(config, method, Catalog())
    assert not Path("out").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^reward .reward_model.: path .* is neither a run.s folder nor a model.s"):
        bind(RewardSpec("reward_model", {"path": str(tmp_path)}), Catalog())
