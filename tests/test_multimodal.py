"""Whole multimodal models are trained with text: they share their prompts, nothing but their text model learns, and what
is saved loads again as what it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from rlhf_core.errors import UserError
from rlhf_core.models.loading import inspect, new_adapter
from rlhf_core.models.precision import left_unquantized
from rlhf_core.models.resolve import find
from rlhf_core.prefix import Sampling, completion_logps, rollout, rollouts, share, shares
from rlhf_core.training.run_folder import finish_model
from tests.test_prefix_families import by_definition, exact
from tests.test_prefix_recurrent import GROUPS, assert_same, expected_of

FAMILIES = ("gemma3", "gemma4", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe")
ROWS = [{"prompt": f"Question {i}", "chosen": "good " * (i + 2), "rejected": "bad"} for i in range(4)]
VALUES = {"method": "dpo"}
PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize("name", FAMILIES)
def test_text_shares_its_prompts(name, families_models):
    model = families_models.build(*families_models.MULTIMODAL[name])
    expected = expected_of(exact(model))
    assert share(model) is None
    assert shares(model, GROUPS)
    vision = {part._attn_implementation for part in (model.config.vision_config,) if part is not None}
    assert vision <= {"sdpa", None}
    assert_same(model.train(), *expected)


def test_answers_are_sampled_with_shared_prompts_where_heads_differ_by_layer(families_models, monkeypatch):
    """As Gemma 4's do, whose layers that see all tokens have larger ones."""
    monkeypatch.delattr(rollouts, "_generate")  # nothing else samples
    model = families_models.build(*families_models.MULTIMODAL["gemma4"])
    plain = exact(model)
    share(model)
    for one in rollout(model, [group.prompt for group in GROUPS], 2, Sampling(6, [2], seed=0)):
        logps = by_definition(plain, one.prompt, one.completion)
        torch.testing.assert_close(torch.tensor(one.logps).double(), logps, atol=1e-4, rtol=1e-5)


def saved(name, families_models, tiny_model, monkeypatch):
    """The folder of a whole model."""
    for setting in ("vocab_size", "vocab_size_per_layer_input"):
        monkeypatch.setitem(families_models.SMALL, setting, families_models.VOCABULARY)
    folder = Path(shutil.copytree(tiny_model, "whole"))
    (folder / "model.safetensors").unlink()
    families_models.build(*families_models.MULTIMODAL[name]).save_pretrained(folder)
    (folder / PROCESSOR).write_text('{"size": 32}')
    return str(folder)


def test_full_training_leaves_what_reads_images_as_it_is_and_saves_a_whole_model(
    made_run, families_models, tiny_model, monkeypatch
):
    before = saved("qwen3_5", families_models, tiny_model, monkeypatch)
    run = made_run(model=before, lora=False)
    (said,) = run.info.warnings
    assert "its text model is trained, model.visual stays as it is" in said
    frozen = {name for name, weight in run.model.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in run.model.named_parameters() if name.startswith("model.visual.")}
    run.model.save_pretrained(run.folder / "model")
    finish_model(run)
    assert (run.folder / "model" / PROCESSOR).read_text() == '{"size": 32}'
    again = AutoModelForImageTextToText.from_pretrained(run.folder / "model")
    assert type(again) is type(run.model)
    assert all(map(torch.equal, again.parameters(), run.model.parameters()))


def test_an_adapter_stands_in_the_text_model_alone(made_run, families_models, tiny_model, monkeypatch):
    before = saved("qwen3_vl", families_models, tiny_model, monkeypatch)
    run = made_run(model=before, lora=True, lora_r=4, lora_target_modules=["q_proj", "qkv", "down_proj"])
    options = [run.options, run.options.model_copy(update={"lora_target_modules": "all-linear"})]
    for adapted in (get_peft_model(run.model, new_adapter(run.info, each)) for each in options):
        names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
        assert names
        assert all("language_model" in name for name in names)
        adapted.unload()
    finish_model(run)
    assert not (run.folder / "model" / PROCESSOR).exists()


def test_a_score_head_for_which_there_is_no_class_is_refused(families_models, tiny_model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = saved("mistral3", families_models, tiny_model, monkeypatch)
    with pytest.raises(UserError, match="of the type mistral3: transformers has no such model with a score head"):
        inspect(find(folder, "path"), "sequence_classification")


def test_experts_that_stay_unquantized_are_said_and_the_rest_trains_in_4_bits(
    made_run, families_models, tiny_model, monkeypatch
):
    before = saved("qwen3_5_moe", families_models, tiny_model, monkeypatch)
    run = made_run(model=before, load_in_4bit=True)
    (said,) = left_unquantized(run.info.empty, run.options, run.info.called)
    experts = sum(weight.numel() for name, weight in run.info.empty.named_parameters() if ".experts." in name)
    assert f"leaves {experts / run.info.empty.num_parameters():.0%} of the weights" in said
    layer = run.model.model.language_model.layers[0]
    assert layer.linear_attn.in_proj_qkv.weight.dtype == torch.uint8
    assert layer.mlp.experts.down_proj.is_floating_point()
    adapted = get_peft_model(run.model, new_adapter(run.info, run.options))
    assert shares(adapted, GROUPS)
    completion_logps(adapted.train(), GROUPS).logps.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in adapted.parameters() if weight.requires_grad)
