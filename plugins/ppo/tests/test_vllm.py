"""PPO with vLLM: TRL's client against a server on loopback that samples with the weights it was sent."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import gather_object
from rlhf_method_ppo import PPO
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_core.doctor import packages
from rlhf_core.estimate import hardware
from rlhf_core.prefix import Rollout, share
from tests.vllm_server import served_by

ROWS = [{"question": f"What helps against symptom {i}?", "answer": str(i)} for i in range(12)]
VALUES = {
    "method": "ppo", "reward": ["length:max=10,tolerance=40"], "optim": "sgd", "learning_rate": 0.1, "max_steps": 4,
    "lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2, "save_steps": 100, "max_completion_length": 8, "temperature": 0.8, "kl_coef": 0.3, "target_kl": 1.0,
}  # fmt: skip
SAMPLING = "sampling/"


@pytest.fixture
def ending(tiny_model, tmp_path):
    """The two-layer model, whose answers end at many a token."""
    folder = shutil.copytree(tiny_model, tmp_path / "ending")
    ends = json.dumps({"eos_token_id": list(range(300, 600))})
    (folder / "generation_config.json").write_text(ends)
    return folder


@pytest.fixture
def served(vllm_server, sent, ending, monkeypatch):
    """A server of the model that the run trains, as from a machine with a GPU and vLLM."""
    model = AutoModelForCausalLM.from_pretrained(ending, dtype=torch.float32).eval()
    assert share(model) is None
    vllm_server.model["model"] = str(ending)
    vllm_server.sample = served_by(model, sent)
    monkeypatch.setattr(packages, "vllm", lambda: packages.Check("vLLM", "ok", ""))
    monkeypatch.setattr(hardware, "device_of", lambda *names: SimpleNamespace(is_gpu=True, memory=80_000_000_000))
    return vllm_server


def logged(folder) -> list[dict]:
    """What a step logs, without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("latency", "time/", "memory", "seconds")
    return [
        {key: value for key, value in line.items() if key != "time" and not any(part in key for part in clock)}
        for line in lines
        if "loss" in line
    ]


def moved(one, other) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_the_same_run(alone, by_vllm, start, file) -> None:
    """Within rounding, of a run that sampled itself and one that vLLM sampled; `start`: the weights before."""
    answers = [[json.loads(line)["completion"] for line in (f / "samples.jsonl").open()] for f in (alone, by_vllm)]
    assert answers[0] == answers[1]
    clipped = [step.get("completions/clipped_ratio", 0.0) for step in logged(alone)]
    assert 0 < sum(clipped[::2]) < len(clipped[::2])  # some end by themselves
    for step, other in zip(logged(by_vllm), logged(alone), strict=True):
        ours = {name: value for name, value in step.items() if not name.startswith(SAMPLING)}
        assert ours == pytest.approx(other, rel=1e-3, abs=1e-4)
        if step["step"] % 2:  # of each batch of answers
            assert step[f"{SAMPLING}importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
            assert 0 <= step[f"{SAMPLING}sampling_logp_difference/max"] < 1e-4
    weights = [load_file(folder / "model" / file) for folder in (alone, by_vllm)]
    changed = moved(start, weights[0])
    assert changed > 1e-3
    assert moved(*weights) < 1e-3 * changed
    heads = [load_file(folder / "model" / "value_head.safetensors") for folder in (alone, by_vllm)]
    assert moved(*heads) < 1e-3 * moved(heads[0], {name: torch.zeros_like(heads[0][name]) for name in heads[0]})


def test_a_server_that_dies_ends_the_run_with_one_message_and_it_resumes_as_the_run_that_samples_itself(
    go, served, ending, capsys
):
    code, alone = go(output_dir="alone", rollouts="shared", model=str(ending))
    assert code == 0
    answers = served.sample

    def dies(body):
        if not any(path == "/v1/completions" for path, _ in served.asked[:-1]):
            return answers(body)
        served.status["/v1/completions"] = 500
        return []

    served.sample = dies
    capsys.readouterr()
    code, by_vllm = go(output_dir="vllm", vllm_server=served.url, model=str(ending))
    said = capsys.readouterr()
    assert code == 1
    words = " ".join(said.out.split())
    assert words.count(f"the vLLM server {served.url} failed while it was sent weights or sampled") == 1
    assert "Resume: rlhf run --resume vllm" in words
    assert "Traceback" not in said.out + said.err
    served.status.clear()
    served.sample = answers
    assert [one.name for one in (by_vllm / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    moved_to = served.url.replace("127.0.0.1", "localhost")
    code, by_vllm = go(resume=True, output_dir="vllm", vllm_server=moved_to, model=str(ending))
    assert code == 0
    assert_the_same_run(alone, by_vllm, load_file(ending / "model.safetensors"), "model.safetensors")


def test_with_an_adapter_vllm_gets_merged_weights_and_the_frozen_ones_stay(go, served, ending, sent):
    values = {"model": str(ending), "lora": True, "lora_r": 4, "lora_alpha": 8}
    code, alone = go(output_dir="alone", rollouts="shared", **values)
    assert code == 0
    code, by_vllm = go(output_dir="vllm", vllm_server=served.url, **values)
    assert code == 0
    file = "adapter_model.safetensors"
    fresh = {name: torch.zeros_like(w) for name, w in load_file(alone / "model" / file).items() if "lora_B" in name}
    assert_the_same_run(alone, by_vllm, fresh, file)
    start = load_file(ending / "model.safetensors")
    policy = go.trainers[1].model.policy
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in policy.named_parameters()
        if "lora_" not in name
    }
    assert all(torch.equal(frozen[name], weight) for name, weight in start.items())
    assert any(not torch.equal(sent[name], weight) for name, weight in start.items())


@pytest.fixture
def trainer(made_run):
    """A trainer whose vLLM is a list: of four prompts the answers, with log-probabilities that differ from its own."""
    run = made_run(max_completion_length=3)
    made = PPO().trainer(run)
    answers = [[5, 6, 7], [8], [9, 10], [11, 12, 13]]
    apart = [[0.5, -0.25, 0.0], [float("nan")], [1.0, 1.0], [-2.0, 0.0, 0.0]]
    prompts = [run.template.prompt_ids(row["prompt"], None) for row in run.train_rows[:4]]
    made.vllm = SimpleNamespace(rollout=lambda asked: made.rollouts)
    logps = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = made.model.policy(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / 0.8
        logps.append(logits.double().log_softmax(-1)[range(len(answer)), answer].tolist())
    sampled = [[x - y for x, y in zip(*pair, strict=True)] for pair in zip(logps, apart, strict=True)]
    made.rollouts = [Rollout(*one, False) for one in zip(prompts, answers, sampled, strict=True)]
    made.rows = run.train_rows[:4]
    return made


E = math.exp


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[E(0.5), E(-0.25), 1], [1], [2, 2], [E(-2), 1, 1]]),
        ("token_mask", [[E(0.5), E(-0.25), 1], [1], [0, 0], [E(-2), 1, 1]]),
        ("sequence_truncate", [[E(0.25)] * 3, [1], [2, 2], [E(-2)] * 3]),
        ("sequence_mask", [[E(0.25)] * 3, [1], [0, 0], [E(-2)] * 3]),
    ],
)
def test_the_policy_loss_is_weighed_by_what_the_model_gives_beside_what_vllm_gave(trainer, mode, expected):
    """And the old log-probabilities stay those of the model, so that its first ratio is 1."""
    trainer.args.vllm_importance_sampling_mode, trainer.args.vllm_importance_sampling_clip_max = mode, 2.0
    experience = trainer._rollout(trainer.rows)
    for weights, values in zip(experience.weights, expected, strict=True):
        torch.testing.assert_close(weights[: len(values)], torch.tensor([*map(float, values)]), atol=1e-5, rtol=1e-5)
    old, _, _ = trainer.model(experience.groups, 0.8)
    torch.testing.assert_close(old, experience.logps, atol=1e-5, rtol=0)
    part = experience.rows([3, 2])
    assert torch.equal(part.weights, experience.weights[[3, 2]])
    names = {name for name in trainer.metrics if name.startswith(SAMPLING)}
    assert len(names) == 5
    assert trainer.metrics[f"{SAMPLING}sampling_logp_difference/mean"] == pytest.approx([4.75 / 8], abs=1e-5)


def test_without_the_correction_nothing_is_weighed(trainer):
    trainer.args.vllm_importance_sampling_correction = False
    assert trainer._rollout(trainer.rows).weights is None
    assert not any(name.startswith(SAMPLING) for name in trainer.metrics)


@pytest.mark.slow
def test_processes_ask_at_once_and_each_gets_the_answers_to_its_prompts(in_two_processes, made_run, served, ending):
    def answer(prompt):
        return [1000 + sum(prompt) % 97, 300]

    served.sample = lambda body: [(answer(prompt), [-5.0 - i, -5.0]) for i, prompt in enumerate(body["prompt"])]

    def work():
        made = PPO().trainer(made_run(vllm_server=served.url, model=str(ending)))
        assert made.args.world_size == 2
        first = 4 * made.args.process_index
        rows = [made.train_dataset[i] for i in range(first, first + 4)]
        groups = made._rollout(rows).groups
        assert [group.prompt for group in groups] == [made.template.prompt_ids(row["prompt"], None) for row in rows]
        assert [group.completions for group in groups] == [[answer(group.prompt)] for group in groups]
        found = {name: values for name, values in made.metrics.items() if name.startswith(SAMPLING)}
        both = gather_object([found])
        assert both[0] == both[1]
        # Of tokens that the model gives about -7.6 each: -5 to -8 by the server in one process, -9 to -12 in the other.
        assert found[f"{SAMPLING}sampling_logp_difference/max"] == pytest.approx([4.4], abs=0.5)

    in_two_processes(work)
    asked = [len(body["prompt"]) for path, body in served.asked if path == "/v1/completions"]
    assert asked == [8]
