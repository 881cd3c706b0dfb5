"""`rlhf estimate`: the memory of a step, counted on tensors without values, and what is made of it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch import nn

from rlhf_core.estimate import vllm
from rlhf_core.estimate.meter import Meter, Phase
from rlhf_core.estimate.quantized import Quantized, quantize
from rlhf_core.estimate.weightless import Weightless, without_values
from rlhf_core.prefix import sharing, two_phase

MEGA = 2**20


def linear(inputs: int, outputs: int) -> nn.Linear:
    return without_values(nn.Linear(inputs, outputs, bias=False, device="meta"))  # type: ignore[return-value]


def test_bytes_that_live_at_once_are_those_worked_out_by_hand():
    """1024 × 1024 weights (4 MiB) on 256 rows: the input and the output take 1 MiB each; backward adds the
    gradient of the weights, while that of a sum is one number seen as many."""
    with Meter() as meter:
        layer = linear(1024, 1024)
        meter.assign(layer.weight, "weights")
        given = Weightless(torch.empty(256, 1024, device="meta"))
        meter.assign(given, "input")
        with meter.during("loss"):
            output = layer(given)
        with meter.during("gradient"):
            output.sum().backward()
    assert meter.phases["loss"].peak == 6 * MEGA
    assert meter.phases["loss"].parts == {"weights": 4 * MEGA, "input": MEGA, "activations": MEGA}
    assert layer.weight.grad.shape == (1024, 1024)
    assert meter.phases["gradient"].peak == pytest.approx(10 * MEGA, rel=0.01)
    assert meter.phases["loss"].flops == 2 * 256 * 1024 * 1024


def test_what_is_freed_a_view_and_a_change_in_place_take_nothing():
    with Meter() as meter, meter.during("loss"):
        kept = Weightless(torch.empty(MEGA // 4, device="meta"))
        meter.assign(kept, "kept")
        for _ in range(3):
            part = kept.view(512, 512).t()[:256].mul_(2)
            (part + 1).sum()
            del part
    assert meter.phases["loss"].peak == pytest.approx(1.5 * MEGA, rel=0.01)
    assert meter.total < 1.01 * MEGA


def test_what_is_done_again_is_counted_and_not_run():
    """A quarter of a MiB lives within and is freed, and half of one is the result; the second time beside the first."""
    runs = []

    def compute():
        runs.append(1)
        given = Weightless(torch.empty(256, 256, device="meta"))
        return [torch.cat([given + 1, given]), None]

    with Meter(seconds=lambda *_: 1.0) as meter:
        results = []
        for name in ("first", "second"):
            with meter.during(name, repeat=3):
                results.append(meter.once("key", compute))
    first, second = meter.phases["first"], meter.phases["second"]
    assert len(runs) == 1
    assert results[1][0].shape == (512, 256)
    assert results[1][1] is None
    assert first.peak == pytest.approx(0.75 * MEGA, rel=0.01)
    assert second.peak == pytest.approx(first.peak + 0.5 * MEGA, rel=0.01)
    assert second.parts.total() == second.peak
    assert second.spent() == first.spent() == [6, 0, 6]
    assert meter.total == pytest.approx(MEGA, rel=0.01)


def test_numbers_of_tensors_without_values_are_made_up_and_masks_are_real():
    with Meter() as meter:
        meter.token = 7
        values = Weightless(torch.empty(2, 3, device="meta"))
        mask = torch.tensor([[True, False, True], [False, False, True]])
        assert values[mask].shape == (3,)
        assert values[values > 0].shape == (6,)  # the most that it may be
        assert values.sum().item() == 1.0
        assert values.argmax(-1).tolist() == [7, 7]
        assert not values.isnan().any()
        assert values.isfinite().all()
        assert (mask.sum(1) + 1).tolist() == [3, 2]


@pytest.mark.parametrize(("bits", "size"), [(4, 0.5 + 1 / 64 + 4 / (64 * 256)), (8, 1 + 4 / 512)])
def test_quantized_layers_have_the_storage_of_bitsandbytes(bits, size):
    layer = Quantized(nn.Linear(512, 1024, bias=False, device="meta"), bits)
    stored = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    assert stored / (512 * 1024) == pytest.approx(size, rel=0.001)


METHODS = {"sft": 0, "dpo": 1, "orpo": 0, "reward_model": 0, "grpo": 1, "ppo": 1}  # copies of the model as a reference


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_step_runs_without_values(method):
    """On the built-in model, in full, on a card."""
    found = estimated(method)
    parts, step = found.phases["gradient"].parts, found.phases["optimizer step"].parts
    assert parts["weights"] == pytest.approx(8.1e6, rel=0.02)
    assert step["gradients"] == pytest.approx(parts["weights"], rel=0.03)
    assert parts["optimizer states"] == pytest.approx(2 * parts["weights"], rel=0.03)
    assert parts.get("reference", 0) == pytest.approx(METHODS[method] * parts["weights"], rel=0.01)
    assert found.step_seconds > 0
    assert ("KV cache" in found.phases.get("answers", found.phases["loss"]).parts) == (method in ("grpo", "ppo"))


def test_groups_that_are_measured_once_take_what_they_take_one_by_one(monkeypatch):
    """Pairs in two phases, of which one of several is run."""
    monkeypatch.setattr(sharing, "fits", lambda *_: False)
    runs: list[int] = []
    add = two_phase.Job.add_gradients
    monkeypatch.setattr(two_phase.Job, "add_gradients", lambda *args: (runs.append(1), add(*args))[1])
    counted = estimated("dpo", lora=True, gradient_checkpointing=True)
    assert len(runs) == 1
    monkeypatch.setattr(Meter, "once", lambda meter, key, compute: compute())
    each = estimated("dpo", lora=True, gradient_checkpointing=True)
    assert len(runs) > 2
    assert counted.phases.keys() == each.phases.keys()
    for name, phase in each.phases.items():
        assert phase.peak <= counted.phases[name].peak <= 1.05 * phase.peak, name  # autocast's copies, once more
        assert counted.phases[name].flops == pytest.approx(phase.flops, rel=0.001), name


def estimated(name: str, **more):
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import resolve
    from rlhf_core.estimate.estimating import estimate
    from rlhf_core.estimate.hardware import find_card
    from rlhf_core.estimate.synthetic import Lengths
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find

    catalog = Catalog()
    values = {"method": name, "lora": False, "per_device_train_batch_size": 8, "max_completion_length": 32}
    rewards = {"reward": "length"} if name in ("grpo", "ppo") else {}
    config, method = resolve({**values, **rewards, **more}, catalog)
    info = inspect(find("builtin"), method.task)
    options = method.resolve_options(config.options, lora=False)
    config = config.model_copy(update={"options": options})
    return estimate(config, method, info, catalog, Lengths(64, 32), find_card("rtx3090"))


def run_command(*words: str):
    from click.testing import CliRunner

    from rlhf_core.cli import rlhf

    return CliRunner().invoke(rlhf, ["estimate", *words])


def test_the_command_says_whether_it_fits():
    done = run_command("--method", "dpo", "--gpu", "rtx3090", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["device"] == "RTX 3090"
    assert found["peak_bytes"] < found["needed_bytes"] < found["memory_bytes"]
    assert found["command"] == ["rlhf", "run", "--method", "dpo"]
    assert found["steps"] == 60


SFT = ["--method", "sft", "--per-device-train-batch-size", "4", "--max-length", "512", "--num-eval-prompts", "0"]
SFT += ["--prompt-tokens", "300", "--completion-tokens", "212", "--no-gradient-checkpointing"]


def test_what_does_not_fit_is_not_probed_and_tried_with_remedies_in_their_order(tiny_model):
    done = run_command(*SFT, "--memory", "805MB", "--model", str(tiny_model), "--probe")
    assert done.exit_code == 1, done.output
    assert "Does it fit into 805MB? No" in done.output
    assert "No step is run (--probe), since it does not fit." in done.output
    tried = [line.partition(":")[0].split("--")[-1] for line in done.output.splitlines() if line.startswith("With ")]
    lengths = ["max-length 256", "max-length 128", "max-length 64"]
    assert tried == ["gradient-accumulation-steps 16", "gradient-checkpointing", "lora", "load-in-4bit", *lengths]
    assert "Nothing makes it fit: take a smaller model, or a larger card." in done.output


def test_the_command_of_what_fits_with_a_remedy(tiny_model):
    done = run_command(*SFT, "--memory", "900MB", "--model", str(tiny_model))
    assert done.exit_code == 1, done.output
    assert "Then: rlhf run --method sft" in done.output
    assert done.output.strip().endswith("--per-device-train-batch-size 2 --gradient-accumulation-steps 8")


def test_a_probe_runs_three_steps_of_the_run(tiny_model, monkeypatch):
    """After one that is not counted; here two steps share their answers, so twice as many of each."""
    import transformers

    steps = []
    train = transformers.Trainer.train

    def counted(trainer, *args, **kwargs):
        found = train(trainer, *args, **kwargs)
        steps.append(trainer.state.global_step)
        return found

    monkeypatch.setattr(transformers.Trainer, "train", counted)
    given = ["--method", "grpo", "--reward", "length", "--model", str(tiny_model), "--set", "num_iterations=2"]
    given += ["--per-device-train-batch-size", "4", "--num-generations", "4", "--max-completion-length", "4"]
    done = run_command(*given, "--gradient-accumulation-steps", "1", "--probe", "--json", "--max-steps", "100")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert steps == [1, 8]  # of the step without values, and of the probe
    assert len(found["probe"]["seconds"]) == 3
    assert found["probe"]["step_seconds"] == pytest.approx(sum(found["probe"]["seconds"]) / 3)
    assert found["probe"]["resident_bytes"] > 0
    assert "--probe" not in found["command"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--probe", "--gpu", "rtx3090"], "--probe runs steps on the device that is here: leave out --gpu"),
        (["--probe", "--num-processes", "2"], "--probe runs steps in one process"),
        (["--gpu", "rtx3091"], "no such card"),
        (["--memory", "12 apples"], "write a size"),
        (["--model", "qwen3-9b"], "is not among the models"),
        (["--max-steps", "-3"], "max_steps"),
        (["--gpu", "h100", "--model", "smollm2-135m", "--prompt-tokens", "900000"], "the model was made to read"),
    ],
)
def test_wrong_input_is_one_message(flags, words):
    done = run_command("--method", "dpo", *flags)
    assert words in str(done.exception)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A folder with a reward model of the built-in one's shape."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlhf_core import builtin

    folder = tmp_path_factory.mktemp("scorer")
    AutoModelForSequenceClassification.from_pretrained(builtin.MODEL, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(builtin.MODEL).save_pretrained(folder)
    return folder


def test_a_reward_model_is_counted_in_every_phase(reward_model):
    done = run_command("--method", "ppo", "--gpu", "rtx3090", "--json", "--reward-model", str(reward_model))
    assert done.exit_code == 0, done.output
    phases = json.loads(done.stdout)["phases"]
    weights = phases["gradient"]["components"]["reward model"]
    assert weights == pytest.approx(4.1e6, rel=0.02)  # in bfloat16
    assert phases["rewards"]["components"]["reward model"] == weights
    assert phases["rewards"]["seconds"] > 0


@pytest.mark.parametrize("rollouts", ["transformers", "continuous"])
def test_answers_by_generate_end(rollouts):
    done = run_command("--method", "grpo", "--gpu", "rtx3090", "--json", "--rollouts", rollouts)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["phases"]["answers"]["components"]["KV cache"] > 0


FAMILIES = ["qwen3-0.6b", "qwen3.5-0.8b", "qwen3-30b-a3b", "qwen3.5-35b-a3b", "gemma-3-4b", "llama3.2-1b", "mistral-7b"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", [*FAMILIES, "scorer"])
def test_the_layers_that_are_quantized_are_those_that_transformers_replaces(name, bits):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    pytest.importorskip("bitsandbytes")
    auto = AutoModelForSequenceClassification if name == "scorer" else AutoModelForCausalLM
    config = few_layers("qwen3-0.6b" if name == "scorer" else name)
    with torch.device("meta"):
        ours, theirs = auto.from_config(config), auto.from_config(config)
    quantize(ours, bits)
    kept = HfQuantizer.get_modules_to_not_convert(theirs, None, theirs._keep_in_fp32_modules)
    replace_with_bnb_linear(theirs, kept, BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8))
    replaced = {name for name, module in theirs.named_modules() if type(module).__module__.startswith("bitsandbytes")}
    assert {name for name, module in ours.named_modules() if isinstance(module, Quantized)} == replaced


def few_layers(name: str):
    """A usual model's configuration, with four layers."""
    from rlhf_core.estimate.shapes import config_of, find_shape

    shape = find_shape(name)[1]["config"]
    for part in (shape.get("text_config", shape), shape.get("vision_config", {})):
        part.update({key: 4 for key in ("num_hidden_layers", "depth") if key in part})
    return config_of({"config": shape})


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3-30b-a3b", "gemma-3-1b", "smollm3-3b"])
@pytest.mark.parametrize("flags", [["--no-lora"], ["--load-in-4bit"]])
def test_a_folder_with_a_configuration_alone_is_enough(name, flags, tmp_path):
    """Of families whose layers are recurrent, experts, windows, or without positions."""
    few_layers(name).save_pretrained(tmp_path)
    lengths = ("--max-length", "96", "--num-eval-prompts", "2", "--max-completion-length", "16")
    done = run_command("--method", "sft", "--gpu", "b200", "--json", "--model", str(tmp_path), *lengths, *flags)
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["prompt_tokens"] == 48


def test_several_processes_share_the_rows():
    one, two = (estimated("orpo", num_processes=number, max_steps=-1) for number in (1, 2))
    assert 0 < two.steps_per_row == pytest.approx(one.steps_per_row / 2)


PHASES = {name: Phase(30, Counter({"weights": 20, "KV cache": 10})) for name in ("answers", "training")}


def with_vllm(settings=(), *, method="grpo", **options):
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import resolve

    config, _ = resolve({"method": method, "reward": "length"}, Catalog())
    assert vllm.without(config) == (config, False)
    changed = config.options.model_copy(update={"rollouts": "vllm", "lora": True, **options})
    return config.model_copy(update={"options": changed, "set": {"top_entropy_quantile": 0.5, **dict(settings)}})


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, [{"weights": 20, "vLLM": 7}, {"weights": 20}]),
        ({"vllm_enable_sleep_mode": False}, [{"weights": 20, "vLLM": 7}, {"weights": 20, "vLLM": 7}]),
    ],
)
def test_vllm_takes_its_share_of_the_card_while_it_does_not_sleep(settings, parts):
    """And keeps the cache of the answers."""
    config = with_vllm({"vllm_gpu_memory_utilization": 0.7, **settings})
    alone, beside = vllm.without(config)
    assert (alone.options.rollouts, alone.set, beside) == ("shared", {"top_entropy_quantile": 0.5}, True)
    phases = vllm.beside(PHASES, config, None, 10)
    assert [dict(phase.parts) for phase in phases.values()] == parts
    assert [phase.peak for phase in phases.values()] == [sum(each.values()) for each in parts]


def test_a_server_of_vllm_takes_nothing_here():
    alone, beside = vllm.without(with_vllm(vllm_server="http://localhost:8000"))
    assert (alone.options.vllm_server, beside) == (None, False)


def test_vllms_share_holds_weights_and_the_cache_of_all_answers_or_of_what_has_room():
    from types import SimpleNamespace

    from transformers import LlamaConfig

    shape = LlamaConfig(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096)
    info = SimpleNamespace(config=shape, parameters=8_000_000_000)
    size = {"max_prompt_length": 512, "max_completion_length": 512, "per_device_train_batch_size": 8}
    config = with_vllm(steps_per_generation=4, **size)
    # 16 GB of weights, 2 GB of work, and 32 answers of 1,024 tokens with 131,072 bytes each: 22.3 GB
    assert vllm.share(config, info, 80_000_000_000) == 0.28
    assert vllm.share(with_vllm(steps_per_generation=400, **size), info, 80_000_000_000) == 0.7  # 0.9 less 16 GB
    assert vllm.share(config, info, 20_000_000_000) == 0.9  # too small a card: vLLM is asked for what it may have
    halved = with_vllm({"vllm_tensor_parallel_size": 2}, steps_per_generation=4, **size)
    assert vllm.share(halved, info, 80_000_000_000) == 0.18
    ppo = {"method": "ppo", "gradient_accumulation_steps": 2, "num_mini_batches": 2}
    assert vllm.share(with_vllm(**ppo, **size), info, 80_000_000_000) == 0.28  # as many answers


def test_the_room_that_training_leaves_to_vllm():
    """Frozen weights of 2 bytes; or 16 with gradients and optimizer states, 4 of the reference, and a value model."""
    held = {
        ("grpo", True, ""): 2,
        ("grpo", False, ""): 16,
        ("grpo", False, "beta"): 20,
        ("ppo", True, ""): 2,
        ("ppo", True, "separate"): 4,
        ("ppo", False, ""): 20,
        ("ppo", False, "separate"): 36,
    }
    more = {"": {}, "beta": {"beta": 0.1}, "separate": {"value_model": "separate"}}
    for (method, lora, other), size in held.items():
        given = {"beta": 0.0} if method == "grpo" else {}
        options = with_vllm(method=method).options.model_copy(update={**given, "lora": lora, **more[other]})
        assert options.bytes_held == size, (method, lora, other)


def test_weights_in_4_bits_are_no_remedy_where_vllm_samples():
    from types import SimpleNamespace

    from rlhf_core.estimate.fitting import _four_bits

    options, info = with_vllm(method="ppo").options, SimpleNamespace(quantized=None)
    assert not [*_four_bits(options, info)]
    assert [*_four_bits(options.model_copy(update={"rollouts": "auto"}), info)] == [{"load_in_4bit": True}]


def test_the_command_of_the_run_has_its_flags_alone_and_the_models_full_name():
    from rlhf_core.cli.estimate import _command

    typed = ["--method", "dpo", "--gpu", "h100", "--model", "qwen3-8b", "--json", "--probe", "--prompt-tokens=9"]
    command = ["rlhf", "run", "--method", "dpo", "--model", "Qwen/Qwen3-8B", "--lora"]
    assert _command(typed, "qwen3-8b", "Qwen/Qwen3-8B", ["--lora"]) == command
