"""What is known of a model before its weights load, and prompts that are too long for it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import lengths
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.errors import UserError
from rlhf_core.estimate.hardware import Device
from rlhf_core.method import TrainingOptions
from rlhf_core.models import adapters, precision
from rlhf_core.models import loading as models
from rlhf_core.models.reference import ReferenceModel
from rlhf_core.models.resolve import find
from rlhf_core.models.template import template_of


@pytest.fixture
def tokenizer():
    return models.inspect(find("builtin")).tokenizer


def test_the_builtin_model():
    info = models.inspect(find("builtin"))
    weights = load_file(builtin.MODEL / "model.safetensors")
    assert info.parameters == sum(tensor.numel() for tensor in weights.values())
    assert info.tokenizer.padding_side == "left"
    assert not adapters.uses_lora(TrainingOptions(), info)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, False), ({"lora": True}, True), ({"load_in_4bit": True}, True), ({"load_in_8bit": True}, True)],
)
def test_lora_when_asked_for_or_quantized(options, expected):
    assert adapters.uses_lora(TrainingOptions(**options), models.inspect(find("builtin"))) is expected


@pytest.mark.parametrize(
    ("gpu", "lora", "given", "kind"),
    [
        ("native", True, "auto", torch.bfloat16),
        ("emulated", True, "auto", torch.float16),
        ("emulated", False, "auto", torch.float32),
        ("emulated", True, "bfloat16", torch.bfloat16),
        ("emulated", True, "float32", torch.float32),
        ("none", True, "auto", torch.float32),
    ],
)
def test_weights_have_a_type_that_the_device_computes_in(monkeypatch, gpu, lora, given, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu != "none")
    answers = {True: gpu != "none", False: gpu == "native"}  # with emulation, which is torch's own default, or without
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: answers[including_emulation])
    options = precision.for_device(TrainingOptions(dtype=given, lora=lora), precision.frozen_dtype())
    assert precision.weight_dtype(options, lora) == kind
    device = Device("card", 1, bfloat16=gpu == "native", is_gpu=gpu != "none")
    assert device.frozen_dtype == precision.frozen_dtype()


@pytest.mark.parametrize(
    ("version", "told"), [(None, "newer: pip install"), ("0.49.2", "newer, and 0.49.2 is installed")]
)
def test_quantized_weights_need_a_bitsandbytes_that_decodes_in_4_bits(monkeypatch, version, told):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    with pytest.raises(UserError, match=f"need bitsandbytes 0.50 or .*{told}"):
        precision.bitsandbytes_config(TrainingOptions(load_in_4bit=True), torch.float32)


def test_lora_is_the_default_from_a_billion_parameters():
    big = models.ModelInfo("x", None, None, parameters=adapters.LORA_FROM, reference=None)
    assert adapters.uses_lora(TrainingOptions(), big)
    assert not adapters.uses_lora(TrainingOptions(lora=False), big)


@pytest.mark.parametrize(
    ("model", "message"),
    [("./nowhere", "there is no such folder"), ("a/b/c", "there is no such folder"), ("nowhere", "no such folder")],
)
def test_a_missing_model(model, message):
    with pytest.raises(UserError, match=message):
        find(model, "--model")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=f"--model {tmp_path} is neither a run's folder nor a model's"):
        find(str(tmp_path), "--model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"--model {tmp_path} can't be loaded"):
        models.inspect(find(str(tmp_path), "--model"))


def test_no_chat_template_and_one_given(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    template = (folder / "chat_template.jinja").rename(tmp_path / "template.jinja")
    with pytest.raises(
        UserError, match="has no chat template.*chat_template.jinja in its folder, or with --chat-template FILE"
    ):
        models.inspect(find(str(folder)))
    info = models.inspect(find(str(folder)), chat_template=str(template))
    assert info.tokenizer.chat_template == template.read_text()
    with pytest.raises(UserError, match="--chat-template nowhere: No such file"):
        models.inspect(find(str(folder)), chat_template="nowhere")


def test_a_base_model_ends_answers_where_the_chat_template_does(tiny_model, tmp_path):
    """Its tokenizer and generation settings know the end of a text alone; once saved, it knows both."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, other = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.add_special_tokens({"eos_token": tokenizer.pad_token, "additional_special_tokens": [tokenizer.eos_token]})
    tokenizer.save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, "eos_token_id": other}))
    info = models.inspect(find(str(folder)))
    assert template_of(info).ends == [other]
    model = models.load(info, TrainingOptions())
    assert model.generation_config.eos_token_id == [end, other]
    model.save_pretrained(folder)
    template = template_of(info)
    assert template.ends == [end, other]
    assert [template.finished([5, token]) for token in (end, other, 5)] == [True, True, False]
    assert models.load(info, TrainingOptions()).generation_config.eos_token_id == [end, other]


def test_messages_name_the_chat_template(tiny_model, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ raise_exception('No.') }}")
    for given, called in ((str(file), re.escape(str(file))), (None, f"of --model {re.escape(str(tiny_model))}")):
        template = template_of(models.inspect(find(str(tiny_model), "--model"), chat_template=given))
        if given is None:
            template.tokenizer.chat_template = file.read_text()
        with pytest.raises(UserError, match=f"^the chat template {called} refuses these messages"):
            template.prompt([{"role": "user", "content": "Q?"}])


def test_a_missing_pad_token_is_the_end_token(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "nopad")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    tokenizer = models.inspect(find(str(folder))).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


@pytest.mark.parametrize("modules", ["all-linear", ["embed_tokens", "q_proj"]])
def test_the_reference_of_a_run_from_an_adapter_stays_what_the_adapter_was(tiny_model, modules):
    """Also where the adapter changes embeddings, whose weights PEFT keeps elsewhere."""
    config = LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).eval()
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    before = model(input_ids=ids).logits.detach()
    reference = ReferenceModel(model, fresh_adapter=False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.data += 0.1
    with reference() as frozen:
        torch.testing.assert_close(frozen(input_ids=ids).logits, before)
    assert [id(w) for w in model.parameters() if w.requires_grad] == [id(w) for w in trained]
    assert (model(input_ids=ids).logits - before).abs().max() > 0.01


def rows(*texts: str) -> list[dict]:
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


@pytest.fixture
def template(tokenizer):
    return ChatTemplate(tokenizer)


def rendered(row: dict, tokenizer) -> int:
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_lengths_are_exact_where_they_could_matter(template):
    some = rows("short", "发热、咳嗽" * 20)
    found = [lengths.prompt_length(row["prompt"], template, limit=60) for row in some]
    assert found[0] <= 60
    assert found[1] == rendered(some[1], template.tokenizer)


def truncating(template, limit: int) -> lengths.Limits:
    options = TrainingOptions(max_prompt_length=limit, overlong_prompts="truncate")
    return lengths.Limits("prompts", options, template)


@pytest.mark.parametrize("text", ["fever " * 80, "发热、咳嗽、" * 60])
def test_truncation_keeps_the_start_of_the_question(template, text):
    limits = truncating(template, 40)
    [row] = map(limits, rows(text))
    assert re.fullmatch(
        r"1 of 9 rows: the prompt has more than --max-prompt-length 40 tokens, the longest \d+: cut",
        *limits.warnings(9),
    )
    assert 30 < rendered(row, template.tokenizer) <= 40
    assert text.startswith(row["prompt"][0]["content"])


def test_truncation_drops_old_turns_first_and_keeps_the_system_message(template):
    turns = [{"role": r, "content": "fever and cough " * 3} for r in ("user", "assistant") * 3]
    prompt = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "What now?"}]
    short = truncating(template, 100)({"prompt": prompt})["prompt"]
    assert short[0] == prompt[0]
    assert short[-1] == prompt[-1]
    assert 2 < len(short) < len(prompt)


def test_a_limit_that_leaves_no_room(template):
    with pytest.raises(UserError, match="leaves no room"):
        truncating(template, 5)(*rows("fever " * 80))
