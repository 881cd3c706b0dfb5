"""vLLM: TRL's client against a server on loopback that speaks vLLM's protocol, over HTTP. vLLM itself needs a GPU, and
NCCL another: weights are handed over in this process.
"""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rlhf_method_grpo import GRPO
from rlhf_method_grpo.sync import Frozen
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
from rlhf_method_grpo.vllm import check_server, vllm_arguments
from torch import nn

from rlhf_core import RunStopped, UserError
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve

EOS, LOGP = 2, -1.5


class Server(ThreadingHTTPServer):
    """`answers` and `status` of a path can be changed; `asked` is what was sent, in order."""

    daemon_threads = True

    def __init__(self, model: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, dict]] = []
        self.status: dict[str, int] = {}
        self.model = {"model": model, "logprobs_mode": "processed_logprobs", "max_model_len": 4096}
        self.config = {"weight_transfer_config": {"backend": "nccl"}, "model_config": self.model}
        self.answers = {
            "/health": "",
            "/get_world_size": {"world_size": 2},
            "/server_info": {"vllm_config": self.config},
            "/v1/models": {"data": [{"id": "served"}]},
            "/reset_prefix_cache": {"success": True},
            "/v1/completions": None,
            "/init_weight_transfer_engine": {},
            **{f"/{name}": {} for name in ("start_weight_update", "update_weights", "finish_weight_update")},
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((path, json.loads(body or "{}")))
        answer = self.server.answers.get(path)
        if path == "/v1/completions" and answer is None:
            answer = completions(self.server.asked[-1][1])
        known = path in self.server.answers
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(self.server.status.get(path, 200 if known else 404))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET  # noqa: N815 - its name there

    def log_message(self, *arguments):
        pass


def completions(body):
    """n answers to each prompt, of 2 to max_tokens tokens, the last of which ends them."""
    choices = []
    for i in range(len(body["prompt"]) * body["n"]):
        ids = [*range(300 + i, 300 + i + min(1 + i % 4, body["max_tokens"] - 1)), EOS]
        tokens = [f"token_id:{one}" for one in ids]
        scored = {"tokens": tokens, "token_logprobs": [LOGP] * len(ids), "top_logprobs": [{}] * len(ids)}
        choices.append({"prompt_token_ids": body["prompt"][i // body["n"]], "token_ids": ids, "logprobs": scored})
    return {"choices": choices}


@pytest.fixture
def server(tmp_path):
    made = Server("/models/tiny")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


# What the run checks before the weights load


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda server: server.status.update({"/health": 503}), "it answers 503 to /health"),
        (lambda server: server.answers.pop("/server_info"), "it answers 404 to /server_info"),
        (lambda server: server.answers.update({"/server_info": "<html>"}), "/server_info is no JSON object"),
        (lambda server: server.answers.update({"/get_world_size": [1]}), "/get_world_size is no JSON object"),
        (lambda server: server.answers.update({"/v1/models": {"data": []}}), "does not answer as vLLM"),
        (lambda server: server.config.update(weight_transfer_config=None), "can't be sent weights"),
        (lambda server: server.model.update(logprobs_mode="raw_logprobs"), "--logprobs-mode is raw_logprobs"),
        (lambda server: server.model.update(model="org/Other"), "has the model 'org/Other'"),
        (lambda server: server.model.update(max_model_len=99), "takes 99 tokens, .* may have 100"),
    ],
)
def test_a_server_that_will_not_do_is_refused_with_the_command_that_starts_one(server, change, said):
    check_server(server.url, ["org/tiny"], 100, {})
    change(server)
    with pytest.raises(UserError, match=said) as refused:
        check_server(server.url, ["org/tiny"], 100, {})
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve org/tiny --weight-transfer-config" in str(refused.value)


def test_log_probabilities_do_not_matter_without_the_correction(server):
    server.model["logprobs_mode"] = "raw_logprobs"
    check_server(server.url, ["org/tiny"], 100, {"vllm_importance_sampling_correction": False})


def test_a_server_that_is_not_there_is_said_so():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 can't be reached: .*vllm serve tiny"):
        check_server("http://127.0.0.1:9", ["tiny"], 100, {})


def options(**values):
    return resolve({"method": "grpo", "reward": ["length"], **values}, Catalog())[0].options


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://h:99999", "ftp://h", "http://h?x=1"])
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(UserError, match="is no base URL: write it as http://HOST:8000"):
        options(vllm_server=url)


def test_a_server_is_vllm():
    assert GRPO.Options(vllm_server="http://host:8000/").rollouts == "vllm"
    assert GRPO.Options(vllm_server="http://host:8000/").vllm_server == "http://host:8000"
    with pytest.raises(UserError, match="leave out rollouts shared"):
        options(vllm_server="http://host:8000", rollouts="shared")


@pytest.mark.parametrize("distributed", ["fsdp", "zero3"])
def test_an_adapter_is_not_merged_into_shards(distributed, tiny_model):
    """Also one that was decided later, by the size of the model."""
    run = planned(tiny_model)
    run.config = run.config.model_copy(update={"distributed": distributed})
    with pytest.raises(UserError, match=f"--distributed {distributed} shards them: use ddp, or zero2"):
        vllm_arguments(run, lora=True)
    assert vllm_arguments(run, lora=False)["use_vllm"]
    with pytest.raises(UserError, match=f"--distributed {distributed} shards them: use ddp, or zero2"):
        options(rollouts="vllm", lora=True, distributed=distributed)


# What TRL is told


def planned(tiny_model, **values):
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find

    config = resolve({"method": "grpo", "reward": ["length"], "rollouts": "auto"}, Catalog())[0]
    changed = config.options.model_copy(update={"rollouts": "vllm", "max_prompt_length": 40, **values})
    config = config.model_copy(update={"options": changed})
    return SimpleNamespace(config=config, options=changed, info=inspect(find(str(tiny_model))))


def test_beside_training_vllm_sleeps_and_reads_no_more_than_prompt_and_answer(tiny_model, monkeypatch):
    run = planned(tiny_model, max_completion_length=24)
    given = vllm_arguments(run, lora=True)
    told = {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": True, "vllm_max_model_length": 64}
    assert given == told  # without a GPU TRL's own share
    card = SimpleNamespace(is_gpu=True, memory=80_000_000_000)
    monkeypatch.setattr("rlhf_core.commands.device_of", lambda *names: card)
    assert vllm_arguments(run, lora=True) == {
        **told,
        "vllm_gpu_memory_utilization": 0.03,
    }  # 2 GB and a very small model
    longer = vllm_arguments(planned(tiny_model, max_completion_length=10**6), lora=True)
    assert longer["vllm_max_model_length"] == run.info.config.max_position_embeddings


def test_a_server_is_told_by_its_address(server, tiny_model, monkeypatch):
    server.model["model"] = f"/elsewhere/{tiny_model.name}"
    run = planned(tiny_model, vllm_server=server.url)
    with pytest.raises(UserError, match="--vllm-server: weights go to it over NCCL, which needs a GPU here"):
        vllm_arguments(run, lora=False)
    monkeypatch.setattr("rlhf_core.commands.device_of", lambda *names: SimpleNamespace(is_gpu=True))
    given = vllm_arguments(run, lora=False)
    assert given == {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url}


# Training


@pytest.fixture
def client(monkeypatch):
    """TRL's client as with vLLM 0.25 on a GPU, without NCCL: the weights that are sent, by name."""
    pytest.importorskip("requests")
    import requests
    from trl.generation import vllm_client, vllm_generation

    sent: dict[str, torch.Tensor] = {}

    class Engine:
        @staticmethod
        def trainer_init(info):
            return SimpleNamespace(group=SimpleNamespace(store=None, socket=None))

        @staticmethod
        def trainer_send_weights(iterator, trainer_args):
            sent.update((name, weight.clone()) for name, weight in iterator)

    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *version: True)
    values = {"get_ip": lambda: "127.0.0.1", "NCCLWeightTransferEngine": Engine, "requests": requests}
    values |= {"NCCLTrainerSendWeightsArgs": SimpleNamespace, "is_requests_available": lambda: True}
    values |= {"_HAS_STATEFUL_TRAINER_ENGINE": False, "_HAS_RESET_PREFIX_CACHE_SUCCESS": False}
    values |= {"HTTPAdapter": requests.adapters.HTTPAdapter, "Retry": lambda **rest: 0}
    for name, value in values.items():
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    made = vllm_client.VLLMClient.init_communicator
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: made(self, "cuda:0"))
    return sent


SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "min_p": 0.05, "repetition_penalty": 1.1}


@pytest.fixture
def train(trainer, server, client):
    def make(**arguments):
        given = {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": server.url,
            "max_steps": 2,
            **arguments,
        }
        made = trainer(SharedPrefixGRPOTrainer, True, dtype=torch.bfloat16, **given)
        made.rollouts = "vllm"
        made.eos_token_ids = [EOS]
        return made

    return make


def test_a_server_is_asked_for_what_the_user_set_and_its_probabilities_are_corrected(train, server, client):
    made = train(**SAMPLED, vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=1e30)
    before = {name: weight.clone() for name, weight in made.model.named_parameters() if not weight.requires_grad}
    made.train()
    asked = [body for path, body in server.asked if path == "/v1/completions"]
    assert [len(body["prompt"]) for body in asked] == [2, 2]
    for body in asked:
        assert {name: body[name] for name in SAMPLED} == SAMPLED
        assert (body["model"], body["n"], body["max_tokens"], body["logprobs"]) == ("served", 4, 12, 0)
    groups = [body["init_info"] for path, body in server.asked if path == "/init_weight_transfer_engine"]
    assert [group["world_size"] for group in groups] == [3]  # its two workers, and this process
    paths = [path for path, _ in server.asked]
    assert paths.index("/update_weights") < paths.index("/v1/completions") < len(paths)
    assert paths.count("/update_weights") == 2
    # What is sent is the model with the adapter in it, and the model stays as it was.
    name, merged = next((name, weight) for name, weight in client.items() if "q_proj" in name)
    kept = before[f"base_model.model.{name.replace('.weight', '.base_layer.weight')}"]
    assert not torch.equal(merged, kept)
    after = dict(made.model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    # The tiny model gives about log(1 / vocabulary) to each token, the server said LOGP.
    step = next(entry for entry in made.state.log_history if "loss" in entry)
    assert step["sampling/sampling_logp_difference/mean"] > 3
    assert 0 < step["sampling/importance_sampling_ratio/mean"] < math.exp(-3)
    assert step["grad_norm"] < 1e-2  # answers that the model would hardly give weigh next to nothing


def test_a_server_that_fails_ends_the_run_with_one_message(train, server, client):
    made = train(max_steps=1)
    said = f"the vLLM server {server.url} failed while .* goes on from its last checkpoint"

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
        server.answers.update(answers)
        server.status.update(status)
        with pytest.raises(RunStopped, match=said):
            sample()
    server.shutdown()
    server.server_close()
    with pytest.raises(RunStopped, match=said):
        made.train()


def test_bfloat16_weights_do_not_drift_when_an_adapter_is_merged_and_taken_out():
    """Without a copy, of 64 × 64 weights a quarter or so changed after 40 times."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 64)).bfloat16(), LoraConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    before = layer.base_layer.weight.clone()

    def sync():
        nn.init.normal_(layer.lora_B["default"].weight, std=1e-2)
        model.merge_adapter()
        model.unmerge_adapter()

    kept = Frozen(model).unchanged(sync)
    for _ in range(40):
        kept()
    assert torch.equal(layer.base_layer.weight, before)
    for _ in range(40):
        sync()
    assert (layer.base_layer.weight != before).float().mean() > 0.1  # once it is none, nothing needs to be kept
