"""vLLM: what is checked of it and of its server before the weights load, how weights reach it, and what corrects a loss
for its answers. The server is a stand-in on loopback (tests/vllm_server.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import inspect
import math
import time
import typing
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from rlhf_core import RunStopped, UserError
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.doctor import packages
from rlhf_core.estimate import hardware
from rlhf_core.prefix import Rollout, Sampling
from rlhf_core.vllm import (
    VLLM,
    Frozen,
    VLLMArguments,
    check_server,
    importance_weights,
    mismatch,
    server,
    vllm_arguments,
)

T = torch.tensor

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
def test_a_server_that_will_not_do_is_refused_with_the_command_that_starts_one(vllm_server, change, said):
    check_server(vllm_server.url, ["org/tiny"], 100, {})
    change(vllm_server)
    with pytest.raises(UserError, match=said) as refused:
        check_server(vllm_server.url, ["org/tiny"], 100, {})
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve org/tiny --weight-transfer-config" in str(refused.value)


def test_log_probabilities_do_not_matter_without_the_correction(vllm_server):
    vllm_server.model["logprobs_mode"] = "raw_logprobs"
    check_server(vllm_server.url, ["org/tiny"], 100, {"vllm_importance_sampling_correction": False})


def test_a_server_that_is_not_there_is_said_so():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 can't be reached: .*vllm serve tiny"):
        check_server("http://127.0.0.1:9", ["tiny"], 100, {})


def test_a_server_that_never_ends_its_answer_is_not_waited_for(vllm_server, monkeypatch):
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.01)

    monkeypatch.setattr(server, "SECONDS", 0.1)
    monkeypatch.setattr(vllm_server, "RequestHandlerClass", Endless)
    with pytest.raises(UserError, match=f"{vllm_server.url} can't be reached: timed out. Start one with"):
        check_server(vllm_server.url, ["tiny"], 100, {})


METHODS = ["grpo", "ppo"]


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def installed(monkeypatch):
    """vLLM, in a version that will do."""
    monkeypatch.setattr(packages, "vllm", lambda: packages.Check("vLLM", "ok", ""))


def options(method, **values):
    return resolve({"method": method, "reward": ["length"], **values}, Catalog())[0].options


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://h:99999", "ftp://h", "http://h?x=1"])
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(UserError, match="is no base URL: write it as http://HOST:8000"):
        options("ppo", vllm_server=url)


def test_a_server_is_vllm(method, installed):
    given = options(method, vllm_server="http://host:8000/")
    assert (given.rollouts, given.vllm_server) == ("vllm", "http://host:8000")
    with pytest.raises(UserError, match="leave out rollouts shared"):
        options(method, vllm_server="http://host:8000", rollouts="shared")


def test_vllm_has_to_be_there_and_has_no_quantized_weights(method, monkeypatch):
    monkeypatch.setattr(packages, "version_of", lambda package: None)
    with pytest.raises(UserError, match=r"needs vLLM: pip install 'rlhf-core\[vllm\]'"):
        options(method, rollouts="vllm")
    with pytest.raises(UserError, match="can't sample from 4-bit and 8-bit weights: .* Use --rollouts shared"):
        options(method, rollouts="vllm", load_in_4bit=True)


def test_weights_that_are_quantized_in_their_files_are_refused(method, tiny_model):
    run = planned(method, tiny_model)
    run.info = dataclasses.replace(run.info, quantized="gptq")
    with pytest.raises(UserError, match="can't sample from weights quantized by gptq"):
        vllm_arguments(run)


@pytest.mark.parametrize("distributed", ["fsdp", "zero3"])
def test_an_adapter_is_not_merged_into_shards(distributed, tiny_model, installed):
    """Also one that was decided later, by the size of the model."""
    run = planned("grpo", tiny_model)
    run.config = run.config.model_copy(update={"distributed": distributed})
    assert vllm_arguments(run)["use_vllm"]
    run.info = dataclasses.replace(run.info, parameters=10**9)
    with pytest.raises(UserError, match=f"--distributed {distributed} shards them: use ddp, or zero2"):
        vllm_arguments(run)
    with pytest.raises(UserError, match=f"--distributed {distributed} shards them: use ddp, or zero2"):
        options("grpo", rollouts="vllm", lora=True, distributed=distributed)


# What TRL is told


def planned(method, tiny_model, **values):
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find

    config = resolve({"method": method, "reward": ["length"], "rollouts": "auto"}, Catalog())[0]
    changed = config.options.model_copy(update={"rollouts": "vllm", "lora": None, "max_prompt_length": 40, **values})
    config = config.model_copy(update={"options": changed})
    return SimpleNamespace(config=config, options=changed, info=inspect(find(str(tiny_model))))


def test_beside_training_vllm_sleeps_and_reads_no_more_than_prompt_and_answer(method, tiny_model, monkeypatch):
    run = planned(method, tiny_model, max_completion_length=24)
    given = vllm_arguments(run)
    told = {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": True, "vllm_max_model_length": 64}
    assert given == told  # without a GPU TRL's own share
    card = SimpleNamespace(is_gpu=True, memory=80_000_000_000)
    monkeypatch.setattr(hardware, "device_of", lambda *names: card)
    assert vllm_arguments(run) == {**told, "vllm_gpu_memory_utilization": 0.03}  # 2 GB and a very small model
    longer = vllm_arguments(planned(method, tiny_model, max_completion_length=10**6))
    assert longer["vllm_max_model_length"] == run.info.config.max_position_embeddings


def test_a_server_is_told_by_its_address(method, vllm_server, tiny_model, monkeypatch):
    vllm_server.model["model"] = f"/elsewhere/{tiny_model.name}"
    run = planned(method, tiny_model, vllm_server=vllm_server.url)
    with pytest.raises(UserError, match="--vllm-server: weights go to it over NCCL, which needs a GPU here"):
        vllm_arguments(run)
    monkeypatch.setattr(hardware, "device_of", lambda *names: SimpleNamespace(is_gpu=True))
    given = vllm_arguments(run)
    assert given == {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": vllm_server.url}


@pytest.mark.parametrize(
    "given", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"temperature": 0.5}]
)
def test_where_tokens_are_left_out_each_is_weighed_by_itself(given, tiny_model, said):
    """A fifth of the probability left out is a ratio of 0.8 for each token, and of 1e-48 for an answer of 500."""
    run, mode = planned("ppo", tiny_model, **given), "vllm_importance_sampling_mode"
    left_out = "temperature" not in given
    assert vllm_arguments(run).get(mode) == ("token_truncate" if left_out else None)
    assert len(said()) == left_out
    for written in ({mode: "sequence_mask"}, {"vllm_importance_sampling_correction": False}):
        run.config = run.config.model_copy(update={"set": written})
        assert mode not in vllm_arguments(run)
    assert len(said()) == left_out


def test_settings_are_those_of_trl():
    """A field of a later TRL fails here until it is one of ours."""
    from trl import GRPOConfig

    own = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours, theirs = (
        {f.name: f.default for f in dataclasses.fields(cls) if f.name not in own and "vllm" in f.name}
        for cls in (VLLMArguments, GRPOConfig)
    )
    assert ours == theirs
    hints, theirs_hints = (typing.get_type_hints(cls) for cls in (VLLMArguments, GRPOConfig))
    assert {name: hints[name] for name in ours} == {name: theirs_hints[name] for name in ours}


@pytest.mark.parametrize(
    "values",
    [
        {"clip_min": 2.0, "clip_max": 1.5},
        {"clip_min": 3.0},
        {"mode": "token_truncate", "clip_max": None},
        {"mode": "sequence_truncate", "clip_max": None},
    ],
)
def test_bounds_that_trl_refuses_are_refused(values):
    from trl import GRPOConfig

    given = {f"vllm_importance_sampling_{name}": value for name, value in values.items()}
    for cls in (VLLMArguments, GRPOConfig):
        with pytest.raises(ValueError, match="vllm_importance_sampling_"):
            cls("x", report_to=[], use_cpu=True, bf16=False, **given)
    assert arguments(cap=7.0).vllm_importance_sampling_clip_max == 7


def arguments(**values):
    given = {f"vllm_importance_sampling_{name}": value for name, value in values.items()}
    return VLLMArguments("x", report_to=[], use_cpu=True, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "none"}, "mode=none: it is one of sequence_mask, sequence_truncate, token_mask, token_truncate"),
        ({"correction": False, "clip_max": 2.0}, "clip_max has no effect without --set .*correction=true"),
        ({"correction": False, "mode": "token_mask"}, "mode has no effect without --set .*correction=true"),
    ],
)
def test_a_setting_of_the_correction_acts_or_is_refused(method, given, said, installed):
    written = {f"vllm_importance_sampling_{name}": value for name, value in given.items()}
    with pytest.raises(UserError, match=said):
        options(method, rollouts="vllm", set=written)


# The correction of a loss

NAN = float("nan")
# Three completions of 3, 2 and 1 tokens; log-ratios of their tokens, and of them.
LOGPS = T([[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0], [-0.25, 0.0, 0.0]], dtype=torch.float64)
SAMPLED = T([[-1.5, -1.0, -0.5], [-4.5, -2.0, 9.0], [NAN, 0.0, 5.0]], dtype=torch.float64)
MASK = T([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
E = math.exp


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", 0.5, 2.0, [[E(0.5), 0.5, 1], [2, 2], [1]]),
        ("token_truncate", None, 1.2, [[1.2, E(-1), 1], [1.2, 1.2], [1]]),
        ("token_mask", 0.5, 3.0, [[E(0.5), 0, 1], [0, E(1)], [1]]),
        ("token_mask", None, None, [[E(0.5), E(-1), 1], [E(1.5), E(1)], [1]]),
        ("sequence_truncate", None, 3.0, [[E(-0.5)], [3], [1]]),
        ("sequence_mask", None, 3.0, [[E(-0.5)], [0], [1]]),
        ("sequence_mask", 0.7, 20.0, [[0], [E(2.5)], [1]]),
    ],
)
def test_weights_by_hand(mode, low, high, expected):
    """A token of which vLLM told nothing counts as equal; what is behind a completion counts for nothing."""
    weights = importance_weights(LOGPS, SAMPLED, MASK, arguments(mode=mode, clip_min=low, clip_max=high))
    assert weights.dtype == torch.float64
    for row, values in zip(weights, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], T(values, dtype=torch.float64))


def test_how_far_apart_by_hand():
    accelerator = SimpleNamespace(gather=lambda value: torch.stack([value, value + 1]))  # of two processes
    given = (LOGPS, SAMPLED, MASK)
    weights = importance_weights(*given, arguments(mode="token_truncate", clip_max=2.0))
    found = mismatch(*given, weights, accelerator)
    ratios = [E(0.5), E(-1), 1, 2, 2, 1]
    assert {name.removeprefix("sampling/"): value.item() for name, value in found.items()} == pytest.approx(
        {
            "sampling_logp_difference/mean": 4 / 5 + 0.5,  # 0.5, 1, 0, 1.5, 1; the mean of both processes
            "sampling_logp_difference/max": 1.5 + 1,
            "importance_sampling_ratio/min": E(-1),
            "importance_sampling_ratio/mean": sum(ratios) / 6 + 0.5,
            "importance_sampling_ratio/max": 3,
        }
    )
    of_completions = importance_weights(*given, arguments(mode="sequence_mask"))
    assert mismatch(*given, of_completions, accelerator)["sampling/importance_sampling_ratio/min"] == 0


def test_weights_and_metrics_are_those_of_trl(tiny_model, tmp_path):
    """Of its GRPO trainer, which samples nothing here: answers are given, with log-probabilities near the model's."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    given = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
    rows = [{"prompt": [{"role": "user", "content": "a"}]}] * 4
    modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    bounded = [arguments(mode=mode, clip_min=0.8, clip_max=1.3) for mode in modes]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=GRPOConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, **given),
        reward_funcs=[lambda completions, **_: [1.0, 0.0, 2.0, 0.0]],
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    answers = [[300, 301, 302], [303], [304, 305, 306, 307, 308, 309], [310, 311]]
    uniform = -math.log(trainer.model.config.vocab_size)
    logps = [[uniform + 0.3 * ((i + j) % 5 - 2) for j in range(len(one))] for i, one in enumerate(answers)]
    logps[1] = [None]
    trainer._generate_single_turn = lambda *arguments, **rest: (answers, logps)
    trainer.use_vllm = True
    trainer.model.train()
    for ours in bounded:
        for name in ("mode", "clip_min", "clip_max"):
            setattr(trainer, f"vllm_importance_sampling_{name}", getattr(ours, f"vllm_importance_sampling_{name}"))
        trainer._metrics["train"].clear()
        theirs = trainer._generate_and_score_completions(rows)
        of_tokens = [theirs[name] for name in ("old_per_token_logps", "sampling_per_token_logps", "completion_mask")]
        weights = importance_weights(*of_tokens, ours)
        assert not (weights == 1).all()
        assert torch.equal(weights, theirs["importance_sampling_ratio"])
        for name, value in mismatch(*of_tokens, weights, trainer.accelerator).items():
            assert trainer._metrics["train"][name] == [value.item()]


# Weights to vLLM, answers from it


def test_the_names_of_trl_that_the_engine_touches_are_there(colocated):
    """All of them are in rlhf_core/vllm/engine.py: when one moves, that file is what has to follow."""
    cls, told = (
        colocated.cls,
        colocated([], []).generation.told,
    )  # which the class takes: the fake binds it to its signature
    untold = {"model", "accelerator", "processing_class", "server_host", "server_port", "logprobs", "generation_kwargs"}
    assert set(inspect.signature(cls).parameters) - set(told) == untold
    assert list(inspect.signature(cls.generate).parameters)[:4] == ["self", "prompts", "images", "num_generations"]
    assert list(inspect.signature(cls.sync_weights).parameters) == ["self"]
    source = inspect.getsource(cls.generate)
    assert "self.sync_weights()" in source  # after vLLM has slept: ours, which is set on the instance
    assert source.count("self.generation_kwargs") == 2  # of a server, and of vLLM beside training
    assert "return prompt_ids, completion_ids, logprobs, logprob_token_ids" in source


class TenTokens(nn.Sequential):
    def get_input_embeddings(self):
        return nn.Embedding(10, 1)


@pytest.fixture
def colocated(monkeypatch):
    """colocated(answers) -> a `VLLM` on the run's own GPU, whose TRL is a fake: what it was told is in `told`."""
    from trl.generation import vllm_generation

    cls = vllm_generation.VLLMGeneration

    class Generation:
        def __init__(self, *arguments, **told):
            inspect.signature(cls).bind(*arguments, **told)
            self.told, self.generation_kwargs, self.synced = told, {}, 0
            self.max_completion_length = told["max_completion_length"]

        def sync_weights(self):
            self.synced += 1

        def generate(self, prompts, images, num_generations):
            assert (images, num_generations) == (None, 1)
            return prompts, *self.answers, None

    monkeypatch.setattr(vllm_generation, "VLLMGeneration", Generation)

    def make(answers, logps):
        sampling = Sampling(4, [7, 8], temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.2)
        made = VLLM(TenTokens(), None, None, arguments(), sampling, rows=6, trust_remote_code=True)
        made.generation.answers = answers, logps
        return made

    make.cls = cls
    return make


def test_answers_end_at_every_end_token_and_have_the_log_probabilities_of_vllm(colocated):
    made = colocated([[5, 7], [5, 8, 9], [5, 6, 5, 6]], [[[-1.0], [-2.0]], [[-3.0], [None], [-9.0]], [[-1.0]] * 4])
    told = made.generation.told
    assert (told["mode"], told["server_base_url"], told["max_num_seqs"]) == ("colocate", None, 6)
    assert (told["max_completion_length"], told["trust_remote_code"]) == (4, True)
    assert [told[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")] == [
        *(0.5, 0.9, 3, 0.1, 1.2),
    ]
    assert made.generation.generation_kwargs == {"stop_token_ids": [7, 8]}
    first, second, third = made.rollout([[1], [2, 3], [4]])
    assert first == Rollout([1], [5, 7], [-1.0, -2.0], True)
    assert (second.prompt, second.completion, second.finished) == ([2, 3], [5, 8], True)
    assert second.logps[0] == -3
    assert math.isnan(second.logps[1])
    assert third == Rollout([4], [5, 6, 5, 6], [-1.0] * 4, False)
    assert made.generation.synced == 1


class LLM:
    """vLLM's, as far as TRL calls it: `told` is how it was made, `done` what it was asked to do, in order."""

    def __init__(self, **told):
        self.told, self.done = told, []
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))

    def sleep(self, level):
        self.done.append(f"sleep {level}")

    def wake_up(self, tags):
        self.done.append(f"wake {tags[0]}")

    def load_weights(self, weights):
        self.done += [name for name, _ in weights]

    def reset_prefix_cache(self):
        self.done.append("reset")

    def generate(self, prompts, sampling_params, use_tqdm):
        self.done.append("sample")
        self.sampling = vars(sampling_params)
        logprobs = [{5: SimpleNamespace(rank=9, logprob=-1.5)}, {7: SimpleNamespace(rank=1, logprob=NAN)}]
        answer = SimpleNamespace(token_ids=[5, 7], logprobs=logprobs)
        return [SimpleNamespace(prompt_token_ids=one["prompt_token_ids"], outputs=[answer]) for one in prompts]


def test_beside_training_vllm_gets_the_weights_before_each_batch_and_sleeps_after_it(monkeypatch):
    """TRL's own code, on a stand-in for vLLM's `LLM`."""
    from accelerate import Accelerator
    from trl.generation import vllm_generation

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them: they are put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    given = {"vllm_enable_sleep_mode": True, "vllm_gpu_memory_utilization": 0.25, "vllm_max_model_length": 64}
    arguments = VLLMArguments("x", report_to=[], use_cpu=True, **given)
    model = TenTokens(nn.Linear(2, 2))
    model.name_or_path = "org/tiny"
    made = VLLM(model, Accelerator(cpu=True), None, arguments, Sampling(4, [7, 8], top_p=0.9), rows=6)
    llm = made.generation.llm
    assert {name: llm.told[name] for name in ("model", "gpu_memory_utilization", "max_model_len", "max_num_seqs")} == {
        **{"model": "org/tiny", "gpu_memory_utilization": 0.25, "max_model_len": 64, "max_num_seqs": 6},
    }
    for _ in range(2):
        first, second = made.rollout([[1], [2, 3]])
        assert (first.prompt, second.prompt, first.completion, first.logps[0]) == ([1], [2, 3], [5, 7], -1.5)
    batch = ["wake weights", "0.weight", "0.bias", "reset", "wake kv_cache", "sample", "sleep 2"]
    assert llm.done == ["sleep 2", *batch, *batch]
    assert (llm.sampling["n"], llm.sampling["top_p"], llm.sampling["max_tokens"]) == (1, 0.9, 4)
    assert llm.sampling["stop_token_ids"] == [7, 8]


@pytest.mark.parametrize(
    ("answers", "logps"),
    [
        ([], []),
        ([[5]], []),
        ([[]], [[]]),
        ([[5, 5, 5, 5, 5]], [[[-1.0]] * 5]),
        ([[10]], [[[-1.0]]]),
        ([[5, -1]], [[[-1.0]] * 2]),
        ([[5, 5]], [[[-1.0]]]),
        ([[5]], [[[]]]),
        ([[5]], None),
    ],
)
def test_what_is_no_answer_ends_the_run(colocated, answers, logps):
    with pytest.raises(
        RunStopped, match="vLLM failed while it (answered|was .* sampled): .* goes on from its last checkpoint"
    ):
        colocated(answers, logps).rollout([[1]])


def test_vllm_that_does_not_start_is_one_message(colocated, monkeypatch):
    from trl.generation import vllm_generation

    def fails(*arguments, **told):
        raise ValueError("Free memory on device is less than desired\nmore")

    monkeypatch.setattr(vllm_generation, "VLLMGeneration", fails)
    with pytest.raises(RunStopped, match="vLLM failed while it was started: ValueError: Free .* desired. See"):
        colocated([], [])


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
