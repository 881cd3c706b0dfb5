"""`rlhf estimate`: the memory of a step, counted on tensors without values, and what is made of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.quantized import Quantized, quantize
from rlhf_core.estimate.weightless import Weightless, without_values

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


METHODS = {"sft": {}, "dpo": {}, "orpo": {}, "reward_model": {}, "grpo": {}, "ppo": {}}


@pytest.fixture(scope="module")
def estimates():
    """Of each method on the built-in model, in full, on a card."""
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import resolve
    from rlhf_core.estimate.estimating import estimate
    from rlhf_core.estimate.hardware import find_card
    from rlhf_core.estimate.synthetic import Lengths
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find

    found = {}
    catalog = Catalog()
    for name in METHODS:
        values = {"method": name, "lora": False, "per_device_train_batch_size": 8, "max_completion_length": 32}
        rewards = {"reward": "length"} if name in ("grpo", "ppo") else {}
        config, method = resolve({**values, **rewards}, catalog)
        info = inspect(find("builtin"), method.task)
        options = method.resolve_options(config.options, lora=False)
        config = config.model_copy(update={"options": options})
        found[name] = estimate(config, method, info, catalog, Lengths(64, 32), find_card("rtx3090"))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_step_runs_without_values(estimates, method):
    found = estimates[method]
    weights = found.phases["gradient"].parts["weights"]
    assert weights == pytest.approx(8.1e6, rel=0.02)
    step = found.phases["optimizer step"].parts
    assert step["gradients"] == pytest.approx(weights, rel=0.03)
    assert found.phases["gradient"].parts["optimizer states"] == pytest.approx(2 * weights, rel=0.03)
    assert found.step_seconds > 0
    assert ("KV cache" in found.phases.get("answers", found.phases["loss"]).parts) == (method in ("grpo", "ppo"))


@pytest.mark.parametrize(("method", "copies"), [("dpo", 1), ("grpo", 1), ("ppo", 1), ("orpo", 0), ("sft", 0)])
def test_a_reference_is_a_copy_where_all_is_trained(estimates, method, copies):
    parts = estimates[method].phases["gradient"].parts
    assert parts.get("reference", 0) == pytest.approx(copies * parts["weights"], rel=0.01)


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


def test_what_does_not_fit_is_tried_with_remedies_in_their_order():
    done = run_command("--method", "sft", "--gpu", "rtx3090", "--memory", "900MB", "--no-gradient-checkpointing")
    assert done.exit_code == 1, done.output
    assert "Does it fit into 900MB? No" in done.output
    assert "With --per-device-train-batch-size" in done.output
    assert "Then: rlhf run --method sft --no-gradient-checkpointing --per-device-train-batch-size" in done.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu", "rtx3091"], "no such card"),
        (["--memory", "12 apples"], "write a size"),
        (["--model", "qwen3-9b"], "is not among the models"),
        (["--max-steps", "-3"], "max_steps"),
        (["--gpu", "h100", "--prompt-tokens", "900000"], "the model was made to read"),
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


def test_several_processes_share_the_rows_and_a_short_name_is_written_in_full():
    given = ["--method", "dpo", "--model", "smollm2-135m", "--data", "builtin", "--num-train-epochs", "1", "--json"]
    given += ["--gpu", "rtx3090", "--prompt-tokens", "32", "--completion-tokens", "16", "--lora"]
    one, two = (json.loads(run_command(*given, *more).stdout) for more in ([], ["--num-processes", "2"]))
    assert two["steps_per_row"] == pytest.approx(one["steps_per_row"] / 2)
    assert one["command"][:6] == ["rlhf", "run", "--method", "dpo", "--model", "HuggingFaceTB/SmolLM2-135M"]
