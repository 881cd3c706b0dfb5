"""GRPO with vLLM: TRL's trainer and client against a server on loopback that speaks vLLM's protocol."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer

from rlhf_core import RunStopped
from tests.vllm_server import EOS

SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "min_p": 0.05, "repetition_penalty": 1.1}


@pytest.fixture
def train(trainer, vllm_server, sent):
    def make(**arguments):
        given = {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": vllm_server.url,
            "max_steps": 2,
            **arguments,
        }
        made = trainer(SharedPrefixGRPOTrainer, True, dtype=torch.bfloat16, **given)
        made.rollouts = "vllm"
        made.eos_token_ids = [EOS]
        return made

    return make


def test_a_server_is_asked_for_what_the_user_set_and_its_probabilities_are_corrected(train, vllm_server, sent):
    made = train(**SAMPLED, vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=1e30)
    ends = made.vllm_generation.generation_kwargs["stop_token_ids"]
    assert made.processing_class.eos_token_id in ends
    before = {name: weight.clone() for name, weight in made.model.named_parameters() if not weight.requires_grad}
    made.train()
    asked = [body for path, body in vllm_server.asked if path == "/v1/completions"]
    assert [len(body["prompt"]) for body in asked] == [2, 2]
    for body in asked:
        assert {name: body[name] for name in SAMPLED} == SAMPLED
        assert (body["model"], body["n"], body["max_tokens"], body["logprobs"]) == ("served", 4, 12, 0)
        assert body["stop_token_ids"] == ends
    groups = [body["init_info"] for path, body in vllm_server.asked if path == "/init_weight_transfer_engine"]
    assert [group["world_size"] for group in groups] == [3]  # its two workers, and this process
    paths = [path for path, _ in vllm_server.asked]
    assert paths.index("/update_weights") < paths.index("/v1/completions") < len(paths)
    assert paths.count("/update_weights") == 2
    # What is sent is the model with the adapter in it, and the model stays as it was.
    name, merged = next((name, weight) for name, weight in sent.items() if "q_proj" in name)
    kept = before[f"base_model.model.{name.replace('.weight', '.base_layer.weight')}"]
    assert not torch.equal(merged, kept)
    after = dict(made.model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    # The tiny model gives about log(1 / vocabulary) to each token, the server said LOGP.
    step = next(entry for entry in made.state.log_history if "loss" in entry)
    assert step["sampling/sampling_logp_difference/mean"] > 3
    assert 0 < step["sampling/importance_sampling_ratio/mean"] < math.exp(-3)
    assert step["grad_norm"] < 1e-2  # answers that the model would hardly give weigh next to nothing


def test_a_server_that_fails_ends_the_run_with_one_message(train, vllm_server, sent):
    made = train(max_steps=1)
    said = f"the vLLM server {vllm_server.url} failed while .* goes on from its last checkpoint"

    def sample():
        made.vllm_generation.sync_weights()
        made.vllm_generation.generate([[5, 6]] * 4, None, 4)

    sample()
    for answers, status in (
        ({"/v1/completions": "no JSON"}, {}),
        ({"/v1/completions": {"choices": []}}, {}),
        ({"/v1/completions": None}, {"/v1/completions": 500}),
        ({}, {"/update_weights": 500, "/v1/completions": 200}),
    ):
        vllm_server.answers.update(answers)
        vllm_server.status.update(status)
        with pytest.raises(RunStopped, match=said):
            sample()
    vllm_server.shutdown()
    vllm_server.server_close()
    with pytest.raises(RunStopped, match=said):
        made.train()
