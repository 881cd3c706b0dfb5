"""Whole multimodal models are trained with text: they share their prompts, nothing but their text model learns, and what
is saved loads again as what it was.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from rlhf_core.errors import UserError
from rlhf_core.models.loading import inspect, new_adapter
from rlhf_core.models.resolve import find
from rlhf_core.prefix import share, shares
from rlhf_core.training.run_folder import finish_model
from tests.test_prefix_families import exact
from tests.test_prefix_recurrent import GROUPS, assert_same, expected_of

FAMILIES = ("gemma3", "gemma4", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe")
ROWS = [{"prompt": f"Question {i}", "chosen": "good " * (i + 2), "rejected": "bad"} for i in range(4)]
VALUES = {"method": "dpo"}
PROCESSOR = "preprocessor_config.json"


@pytest.fixture
def models(monkeypatch):
    """benchmarks/families_models.py, which makes them small."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("families_models")


@pytest.mark.parametrize("name", FAMILIES)
def test_text_shares_its_prompts(name, models, monkeypatch):
    for setting, value in {"vocab_size": 97, "vocab_size_per_layer_input": 97, "num_hidden_layers": 2}.items():
        monkeypatch.setitem(models.SMALL, setting, value)
    model = models.build(*models.MULTIMODAL[name])
    expected = expected_of(exact(model))
    assert share(model) is None
    assert shares(model, GROUPS)
    vision = {part._attn_implementation for part in (model.config.vision_config,) if part is not None}
    assert vision <= {"sdpa", None}
    assert_same(model.train(), *expected)


def saved(name, models, tiny_model, monkeypatch):
    """The folder of a whole model."""
    monkeypatch.setitem(models.SMALL, "num_hidden_layers", 2)
    folder = Path(shutil.copytree(tiny_model, "whole"))
    (folder / "model.safetensors").unlink()
    models.build(*models.MULTIMODAL[name]).save_pretrained(folder)
    (folder / PROCESSOR).write_text('{"size": 32}')
    return str(folder)


def test_full_training_leaves_what_reads_images_as_it_is_and_saves_a_whole_model(
    made_run, models, tiny_model, monkeypatch
):
    before = saved("qwen3_5", models, tiny_model, monkeypatch)
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


def test_an_adapter_stands_in_the_text_model_alone(made_run, models, tiny_model, monkeypatch):
    before = saved("qwen3_vl", models, tiny_model, monkeypatch)
    run = made_run(model=before, lora=True, lora_r=4, lora_target_modules=["q_proj", "qkv", "down_proj"])
    options = [run.options, run.options.model_copy(update={"lora_target_modules": "all-linear"})]
    for adapted in (get_peft_model(run.model, new_adapter(run.info, each)) for each in options):
        names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
        assert names
        assert all("language_model" in name for name in names)
        adapted.unload()
    finish_model(run)
    assert not (run.folder / "model" / PROCESSOR).exists()


def test_a_score_head_for_which_there_is_no_class_is_refused(models, tiny_model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = saved("mistral3", models, tiny_model, monkeypatch)
    with pytest.raises(UserError, match="of the type mistral3: transformers has no such model with a score head"):
        inspect(find(folder, "path"), "sequence_classification")
