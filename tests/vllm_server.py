"""A stand-in for `vllm serve`: a server on loopback that speaks vLLM's protocol, over HTTP, and TRL's client without NCCL.

vLLM itself needs a GPU, and NCCL another: weights are handed over in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch

from rlhf_core.prefix import Sampling, rollout

EOS, LOGP = 2, -1.5


class Server(ThreadingHTTPServer):
    """`answers` and `status` of a path can be changed; `asked` is what was sent, in order. `sample` answers a request
    for completions.
    """

    daemon_threads = True

    def __init__(self, model: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, dict]] = []
        self.status: dict[str, int] = {}
        self.model = {"model": model, "logprobs_mode": "processed_logprobs", "max_model_len": 4096}
        self.config = {"weight_transfer_config": {"backend": "nccl"}, "model_config": self.model}
        self.sample: Callable[[dict], list[tuple[list[int], list[float]]]] = counted
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
            answer = completions(self.server.asked[-1][1], self.server.sample)
        known = path in self.server.answers
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(self.server.status.get(path, 200 if known else 404))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET  # noqa: N815 - its name there

    def log_message(self, *arguments):
        pass


def completions(body, sample):
    choices = []
    for i, (ids, logps) in enumerate(sample(body)):
        tokens = [f"token_id:{one}" for one in ids]
        scored = {"tokens": tokens, "token_logprobs": logps, "top_logprobs": [{}] * len(ids)}
        choices.append({"prompt_token_ids": body["prompt"][i // body["n"]], "token_ids": ids, "logprobs": scored})
    return {"choices": choices}


def counted(body):
    """n answers to each prompt, of 2 to max_tokens tokens, the last of which ends them."""
    sizes = [min(1 + i % 4, body["max_tokens"] - 1) for i in range(len(body["prompt"]) * body["n"])]
    ids = [[*range(300 + i, 300 + i + size), EOS] for i, size in enumerate(sizes)]
    return [(one, [LOGP] * len(one)) for one in ids]


def served_by(model: Any, sent: dict[str, torch.Tensor]) -> Callable[[dict], list[tuple[list[int], list[float]]]]:
    """Answers of `model` with the weights that were sent, drawn from torch's generator as a run's own engine does."""

    def sample(body):
        unknown = model.load_state_dict(sent, strict=False).unexpected_keys
        assert not unknown
        names = ("max_tokens", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        found = rollout(model, body["prompt"], body["n"], Sampling(*(body[name] for name in names)), "shared")
        return [(one.completion, one.logps) for one in found]

    return sample


def without_nccl(monkeypatch) -> dict[str, torch.Tensor]:
    """TRL's client as with vLLM 0.25 on a GPU, without NCCL: the weights that are sent, by name."""
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
