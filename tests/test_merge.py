"""An adapter in the weights says what it said beside them, and nothing is written that does not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_core.cli import rlhf
from rlhf_core.errors import UserError
from rlhf_core.models import merge as merging

TASKS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}


def base_of(task: str, base) -> torch.nn.Module:
    arguments = {"num_labels": 1} if task == "SEQ_CLS" else {}
    model = TASKS[task].from_pretrained(base, dtype=torch.float32, **arguments)
    model.config.pad_token_id = 0
    return model.eval()


def write_adapter(base, folder, task: str = "CAUSAL_LM", modules="all-linear"):
    """An adapter whose weights are far from zero, with its tokenizer."""
    torch.manual_seed(0)
    scores = ["score"] if task == "SEQ_CLS" else None
    config = LoraConfig(r=4, lora_alpha=16, target_modules=modules, task_type=task, modules_to_save=scores)
    model = get_peft_model(base_of(task, base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny_model, tmp_path):
    return write_adapter(tiny_model, tmp_path / "adapter")


def merge(*arguments):
    return CliRunner().invoke(rlhf, ["merge", *map(str, arguments)])


def logits(model, text: str = "发热、咳嗽三天 fever") -> torch.Tensor:
    ids = torch.tensor([[5, 9, 200, 31, 7, *map(ord, "cough")]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("task", TASKS)
def test_the_merged_model_has_the_logits_of_base_and_adapter(task, tiny_model, tmp_path):
    folder = write_adapter(tiny_model, tmp_path / "adapter", task)
    result = merge(folder)
    assert result.exit_code == 0, result.output + repr(result.exception)
    full = TASKS[task].from_pretrained(tmp_path / "adapter-merged", dtype=torch.float32)
    beside = PeftModel.from_pretrained(base_of(task, tiny_model), folder)
    torch.testing.assert_close(logits(full), logits(beside), rtol=1e-4, atol=1e-4)
    if task == "CAUSAL_LM":
        assert (logits(full) - logits(base_of(task, tiny_model))).abs().max() > 0.01
        assert result.output.endswith(f"rlhf chat {tmp_path / 'adapter-merged'}\n")
    else:
        assert result.output.endswith(f"rlhf run --method ppo --reward-model {tmp_path / 'adapter-merged'}\n")


def test_an_adapter_on_tied_embeddings_leaves_the_output_layer_as_it_was(tiny_model, tmp_path):
    folder = write_adapter(tiny_model, tmp_path / "adapter", modules=["q_proj", "embed_tokens"])
    expected = logits(PeftModel.from_pretrained(base_of("CAUSAL_LM", tiny_model), folder))
    assert merge(folder).exit_code == 0
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter-merged", dtype=torch.float32)
    torch.testing.assert_close(logits(full), expected, rtol=1e-4, atol=1e-4)


def test_a_run_is_merged_into_its_own_folder_with_all_a_model_needs(adapter, tiny_model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("method: sft\n")
    shutil.copytree(adapter, run / "model")
    result = merge(run)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "merged", "model"]
    assert not (run / "merged" / "adapter_config.json").exists()
    template = (tiny_model / "chat_template.jinja").read_text()
    assert AutoTokenizer.from_pretrained(run / "merged").chat_template == template
    assert json.loads((run / "merged" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "float32" in result.output
    found = [merging.find(str(folder)) for folder in (run, run / "model", run / "merged")]
    assert [reference.run for reference in found] == [run, run, run]
    assert [reference.adapter is None for reference in found] == [False, False, True]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_saved_in_the_type_asked_for(dtype, adapter, tmp_path):
    result = merge(adapter, "--output", tmp_path / "deep" / "half", "--dtype", dtype)
    assert result.exit_code == 0, result.output + repr(result.exception)
    weights = load_file(tmp_path / "deep" / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    assert f"as saved in {dtype}" in result.output


def test_auto_is_the_type_the_base_was_published_in(tiny_model, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    assert merge(write_adapter(base, tmp_path / "adapter")).exit_code == 0
    weights = load_file(tmp_path / "adapter-merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_what_differs_is_not_written(adapter, tmp_path, monkeypatch):
    monkeypatch.setitem(merging.ALLOWED, "bfloat16", 1e-9)
    result = merge(adapter, "--dtype", "bfloat16")
    assert isinstance(result.exception, UserError)
    assert "the logits differ by" in str(result.exception)
    assert "--dtype float32" in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    ("after", "expected"),
    [([2.0, -4.0], 0.0), ([2.0, -3.0], 0.25), ([1.0, -4.0], 0.25)],
)
def test_the_difference_is_a_share_of_the_largest_logit(after, expected, monkeypatch):
    monkeypatch.setitem(merging.ALLOWED, "float32", 1.0)
    before = [torch.tensor([2.0, -4.0])]
    assert merging._compare(before, [torch.tensor(after)], "float32", merging.find("builtin")) == expected


def test_nan_counts_as_a_difference():
    before, after = [torch.tensor([1.0])], [torch.tensor([float("nan")])]
    with pytest.raises(UserError, match="differ by nan"):
        merging._compare(before, after, "float32", merging.find("builtin"))


def change(adapter, **values) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_refused_before_anything_loads(adapter, tiny_model, tmp_path):
    def says(*arguments) -> str:
        result = merge(*arguments)
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    assert "nothing to merge, it is a full model already" in says(tiny_model)
    assert "nothing to merge" in says("builtin")
    assert "there is no such folder" in says(tmp_path / "nowhere")
    assert "there is no such folder here" in says("someone/adapter")
    assert "is a file" in says(adapter / "adapter_config.json")
    assert "neither a run's folder nor a model's" in says(tmp_path)
    (tmp_path / "there").mkdir()
    assert f"--output {tmp_path / 'there'} exists already" in says(adapter, "--output", tmp_path / "there")
    assert "README.md is a file" in says(adapter, "--output", adapter / "README.md" / "x")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("method: sft\n")
    assert f"rlhf run --resume {tmp_path / 'begun'}" in says(tmp_path / "begun")
    change(adapter, peft_type="PROMPT_TUNING")
    assert "PROMPT_TUNING, which adds no weights" in says(adapter)
    change(adapter, base_model_name_or_path="/gone/model")
    assert "an adapter of /gone/model, and there is no such folder" in says(adapter)
    change(adapter, base_model_name_or_path=None)
    assert "does not name its base model" in says(adapter)
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not JSON" in says(adapter)


def test_an_adapter_of_another_model_or_without_weights(adapter, tmp_path):
    change(adapter, base_model_name_or_path="builtin")
    assert "there is no such folder" in str(merge(adapter).exception)
    from rlhf_core import builtin

    change(adapter, base_model_name_or_path=str(builtin.MODEL))
    error = merge(adapter).exception
    assert isinstance(error, UserError)
    assert f"does not fit {builtin.MODEL}" in str(error)
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    assert isinstance(merge(adapter).exception, UserError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
