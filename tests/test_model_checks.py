"""A model of another kind, or whose files lack something, is one message before weights load."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BioGptConfig,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions
from rlhf_core.models import loading as models
from rlhf_core.models.context import context_length, max_tokens
from rlhf_core.models.reference import ReferenceModel
from rlhf_core.models.resolve import find
from rlhf_core.models.weights import Weight, check_quantized

SCORES, WRITES = "sequence_classification", "causal_lm"


@pytest.fixture
def changed(tiny_model, tmp_path):
    """`changed(config.json={...}, weights=function)`: the tiny model with other JSON values or other weights."""

    def change(weights=None, **files):
        folder = shutil.copytree(tiny_model, tmp_path / "changed")
        for name, values in files.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        if weights is not None:
            file = folder / "model.safetensors"
            save_file(weights(load_file(file)), file, {"format": "pt"})
        return folder

    return change


@pytest.fixture
def scoring(tiny_model, tmp_path):
    """The tiny model with a score head."""
    folder = shutil.copytree(tiny_model, tmp_path / "scoring")
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    return folder


def load_file(file):
    """Its weights, in memory: the file may be written again."""
    return load(file.read_bytes())


def adapted(base, folder, **settings):
    """A LoRA adapter of the model in `base`, saved in `folder`."""
    scores = settings.get("task_type") == "SEQ_CLS"
    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = auto.from_pretrained(base, **({"num_labels": 1} if scores else {}))
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return folder


def refused(message, folder, task=WRITES, **arguments):
    with pytest.raises(UserError, match=message) as caught:
        models.inspect(find(str(folder), "--model"), task, **arguments)
    assert str(folder) in str(caught.value)


def test_a_model_that_writes_is_no_reward_model(tiny_model, tmp_path):
    refused(r"is no reward model \(Qwen3ForCausalLM\): it has no score head", tiny_model, SCORES, needs_head=True)
    adapter = adapted(tiny_model, tmp_path / "adapter")
    refused(r"is no reward model \(an adapter of a model that writes\)", adapter, SCORES, needs_head=True)
    for start in (tiny_model, adapter):  # the method reward_model begins a head
        assert models.inspect(find(str(start)), SCORES).warnings == ()


def test_a_reward_model_does_not_write(scoring, tiny_model, tmp_path):
    refused("is no model that writes .Qwen3ForSequenceClassification.*--reward-model uses it", scoring)
    adapter = adapted(tiny_model, tmp_path / "adapter", task_type="SEQ_CLS", modules_to_save=["score"])
    refused("is no model that writes .an adapter of the task SEQ_CLS", adapter)
    for model in (scoring, adapter):
        assert models.inspect(find(str(model)), SCORES, needs_head=True).warnings == ()


def test_a_reward_model_without_its_head(scoring, tiny_model, tmp_path):
    without = {n: w for n, w in load_file(scoring / "model.safetensors").items() if n != "score.weight"}
    save_file(without, scoring / "model.safetensors", {"format": "pt"})
    for needs_head in (True, False):  # it says that it has one
        refused("its files have no score.weight", scoring, SCORES, needs_head=needs_head)
    adapter = adapted(tiny_model, tmp_path / "adapter", task_type="SEQ_CLS")
    file = adapter / "adapter_model.safetensors"
    save_file({n: w for n, w in load_file(file).items() if "score" not in n}, file, {"format": "pt"})
    refused(r"its file has no base_model.model.score.weight", adapter, SCORES, needs_head=True)


def test_a_classifier_of_several_labels_is_no_reward_model(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "labels")
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3).save_pretrained(folder)
    refused("has a head of 3 values, and a reward model has one score", folder, SCORES, needs_head=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ViTConfig(num_hidden_layers=1), "is of the type vit: transformers has no such model that writes"),
        (T5Config(num_layers=1), "is of the type t5: transformers has no such model that writes"),
        (BertConfig(num_hidden_layers=1), "is an encoder .bert, is_decoder: False"),
        (Qwen3Config(num_hidden_layers=1, is_causal=False), "is an encoder .qwen3, is_causal: False"),
        (Gemma3TextConfig(num_hidden_layers=1, use_bidirectional_attention=True), "use_bidirectional_attention: True"),
    ],
)
def test_models_that_do_not_write_from_left_to_right(config, message, changed):
    folder = changed()
    config.save_pretrained(folder)
    refused(message, folder)


def test_a_field_that_a_family_does_not_read_makes_no_encoder(changed):
    models.inspect(find(str(changed(config={"is_decoder": False}))))


def test_weights_that_are_missing_of_another_shape_or_not_used(changed, tiny_model):
    folder = changed(config={"tie_word_embeddings": False})
    refused("its files have no lm_head.weight, which transformers would fill with random numbers", folder)
    shutil.rmtree(folder)
    folder = changed(lambda weights: {n: w for n, w in weights.items() if "layers.1" not in n})
    refused(r"its files have no model.layers.1.input_layernorm.weight, .* and \d+ more", folder)
    shutil.rmtree(folder)
    folder = changed(lambda weights: {**weights, "model.norm.weight": torch.zeros(16)})
    refused(r"model.norm.weight is \[16\] in its file, and \[32\] by its config.json", folder)
    shutil.rmtree(folder)
    folder = changed(lambda weights: {**weights, "v_head.weight": torch.zeros(1, 32)})
    (warning,) = models.inspect(find(str(folder))).warnings
    assert warning.endswith("v_head.weight in its files is not used by Qwen3ForCausalLM")
    shutil.rmtree(folder)
    bias = "model.layers.0.self_attn.q_proj.bias"
    folder = changed(lambda weights: {**weights, bias: torch.ones(32)})
    refused(rf"{bias} in its files is not used by Qwen3ForCausalLM, which would compute something else", folder)


def test_files_of_weights_that_are_damaged_or_missing(changed):
    folder = changed()
    file = folder / "model.safetensors"
    weights, content = load_file(file), file.read_bytes()
    file.write_bytes(content[:-100])
    refused("model.safetensors .* is damaged or not complete", folder)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1000\n")
    refused("model.safetensors is a Git LFS pointer, not the file itself. Fetch it: git lfs pull", folder)
    file.unlink()
    refused("has no weights: model.safetensors or model.safetensors.index.json is missing", folder)
    shards = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    placed = {name: f"model-{i}.safetensors" for i, shard in enumerate(shards) for name in shard}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors", {"format": "pt"})
    refused('has no "metadata", an object', folder)
    index.write_text(json.dumps({"weight_map": placed, "metadata": {"total_size": 1}}))
    assert models.inspect(find(str(folder))).complete
    save_file({**shards[1], "model.norm.weight": torch.ones(32)}, folder / "model-1.safetensors", {"format": "pt"})
    save_file({**shards[0], "model.norm.weight": torch.zeros(32)}, folder / "model-0.safetensors", {"format": "pt"})
    refused(r"model.norm.weight is in model-\d.safetensors and in model-\d.safetensors", folder)
    (folder / "model-1.safetensors").unlink()
    refused(r"is not complete: .*model-1.safetensors is missing", folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    refused("model.safetensors.index.json is no index of weights", folder)


def test_pickled_weights_are_not_opened(changed, tmp_path):
    folder = changed()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert models.inspect(find(str(folder))).complete
    (folder / "model.safetensors").unlink()
    refused("has its weights in .*pytorch_model.bin alone, a pickle", folder)


def test_weights_that_are_not_finite_are_named_when_they_load(changed, tmp_path):
    def break_two(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
        weights["model.norm.weight"][0] = torch.nan
        return weights

    info = models.inspect(find(str(changed(break_two))))
    with pytest.raises(
        UserError, match=r"model.layers.1.mlp.up_proj.weight and 1 more weights have values that are NaN"
    ):
        models.load(info, TrainingOptions())


def test_files_that_are_not_weights(changed):
    folder = changed()
    (folder / "tokenizer.json").write_text("{}")
    refused("its tokenizer can't be loaded: ", folder)
    (folder / "config.json").write_text("{")
    refused("config.json is not JSON", folder)
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1000\n")
    refused("config.json is a Git LFS pointer", folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 10**400}, "config.json, hidden_size: 1000.* is not between 1 and 2,147,483,648"),
        ({"num_hidden_layers": 0}, "config.json, num_hidden_layers: 0 is not between 1 and"),
        ({"num_hidden_layers": 100_000}, "config.json, num_hidden_layers: 100000 is not between 0 and 1,000"),
        ({"dtype": 3}, "config.json, dtype: 3 is none of float32, bfloat16, float16, float64"),
        ({"dtype": None, "torch_dtype": "int8"}, "config.json, torch_dtype: 'int8' is none of float32"),
        ({"return_dict": False}, "config.json, return_dict: False changes what the model returns; remove it"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}},
            "factor: 0 is not between 1e-09",
        ),
        ({"hidden_act": "nonsense"}, "can't be built: 'nonsense' is missing, or not known"),
    ],
)
def test_values_of_a_configuration_that_can_not_be_meant(values, message, changed):
    refused(message, changed(config=values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_max_length": "x"},
            "model_max_length in its tokenizer_config.json is 'x', which is no number of tokens",
        ),
        ({"model_max_length": -5}, "model_max_length in its tokenizer_config.json is -5"),
        ({"pad_token": ""}, "its tokenizer has a special token without text"),
        ({"split_special_tokens": True}, "split_special_tokens in its tokenizer_config.json is true"),
    ],
)
def test_settings_of_a_tokenizer_that_can_not_be_meant(values, message, changed):
    refused(message, changed(tokenizer_config=values))


def test_a_tokenizer_that_loses_text(changed):
    folder = changed(tokenizer={"decoder": None})
    (warning,) = models.inspect(find(str(folder))).warnings
    assert "its tokenizer reads 'what is 2 + 2?' as" in warning
    shutil.rmtree(folder)
    nothing = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    refused("its tokenizer makes no token of 'what is 2", changed(tokenizer={"normalizer": nothing}))


def test_tokens_without_an_embedding(changed):
    folder = changed()
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 2048, "content": "<|new|>"})
    file.write_text(json.dumps(content))
    refused(r"has 2,049 tokens and the model embeddings of 2,048: <\|new\|> \(from id 2048\)", folder)


def test_a_tokenizer_without_an_end_token(changed):
    refused("its tokenizer has no end token", changed(tokenizer_config={"eos_token": None}))


def test_an_adapter_that_does_not_fit(tiny_model, changed, tmp_path, monkeypatch):
    adapter = adapted(tiny_model, tmp_path / "adapter")
    larger = changed(
        lambda weights: {n: w[:1600] if "embed" in n else w for n, w in weights.items()}, config={"vocab_size": 1600}
    )
    tokens = adapted(larger, tmp_path / "tokens", modules_to_save=["embed_tokens"])
    values = json.loads((tokens / "adapter_config.json").read_text())
    (tokens / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": str(tiny_model)}))
    refused(
        r"does not fit .*embed_tokens.weight is \[1600, 32\] in the adapter, and \[2048, 32\].* trained with added tokens",
        tokens,
    )
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "target_modules": ["q_proj", "v_proj"]}))
    refused("is not complete: its file has no base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight", adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "target_modules": ["nonsense"]}))
    refused("does not fit .*nonsense", adapter)
    for changes, message in (
        ({"layers_to_transform": [0]}, r"layers.1.self_attn.q_proj.lora_A.weight.* in its file would not be used"),
        ({"lora_alpha": 0}, "lora_alpha is 0: the adapter's scale is above 0"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern of q_proj is nan"),
        ({"lora_dropout": 1}, "lora_dropout is 1: it is at least 0 and below 1"),
        ({"peft_type": "NONSENSE"}, "adapter_config.json can't be used: 'NONSENSE' is missing, or not known"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**values, **changes}))
        refused(message, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "alora_invocation_tokens": [1, 2]}))
    with pytest.raises(UserError, match="is an activated LoRA .* can't train"):
        models.check_options(models.inspect(find(str(adapter))), TrainingOptions())
    monkeypatch.chdir(tiny_model.parent)
    file = f"{tiny_model.name}/config.json"  # has the form of a Hub id
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": file}))
    refused("is an adapter of .*/config.json, and there is no such folder", adapter)


def test_prompt_tuning_is_used_and_not_trained(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    settings = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(tmp_path / "prompt")
    info = models.inspect(find(str(tmp_path / "prompt")))
    with pytest.raises(UserError, match="of the type PROMPT_TUNING, which can't be trained further nor merged"):
        models.check_options(info, TrainingOptions())
    assert not models.load(info, TrainingOptions(lora=True)).prompt_encoder.training


def test_trainable_tokens_of_an_adapter(tiny_model, tmp_path):
    folder = adapted(tiny_model, tmp_path / "adapter", trainable_token_indices=[5, 9])
    assert models.inspect(find(str(folder))).warnings == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["nonsense"],
            "nonsense: the model has no such module. The model's layers: down_proj, embed_tokens, gate_proj, k_proj, o_proj,",
        ),
        (["q_proj", "v_prj"], "v_prj: the model has no such module. Did you mean 'v_proj'"),
        (["norm"], "norm: PEFT can't adapt that: Target module"),
        (["mlp"], "mlp: PEFT can't adapt that: Target module"),
        (["q_proj", ""], "--lora-target-modules : the model has no such module"),
    ],
)
def test_lora_targets(names, message, tiny_model):
    info = models.inspect(find(str(tiny_model)))
    with pytest.raises(UserError, match=message):
        models.check_options(info, TrainingOptions(lora=True, lora_target_modules=names))
    models.check_options(info, TrainingOptions(lora_target_modules=names))  # without LoRA they are not used
    with pytest.raises(UserError, match="--lora-r 1000000: the model's largest layer has a dimension of "):
        models.check_options(info, TrainingOptions(lora=True, lora_r=10**6))
    if not torch.accelerator.is_available():
        with pytest.raises(UserError, match="flex_attention needs a GPU"):
            models.check_options(info, TrainingOptions(attn_implementation="flex_attention"))
    models.check_options(info, TrainingOptions(lora=True, lora_target_modules=["q_proj", "embed_tokens"]))


def test_an_adapter_on_the_output_layer(tiny_model, tmp_path):
    info = models.inspect(find(str(tiny_model)))
    with pytest.raises(UserError, match=r"^--lora-target-modules q_proj,lm_head: an adapter on the output layer"):
        models.check_options(info, TrainingOptions(lora=True, lora_target_modules=["q_proj", "lm_head"]))
    adapter = adapted(tiny_model, tmp_path / "adapter", target_modules=["lm_head"])
    info = models.inspect(find(str(adapter)))
    with pytest.raises(UserError, match=f"^{adapter}: an adapter on the output layer"):
        models.check_options(info, TrainingOptions())
    models.check_options(info, TrainingOptions(lora=False))  # it is merged first


def test_lora_of_gpt2_whose_layers_are_convolutions(changed):
    folder = changed()
    (folder / "model.safetensors").unlink()
    config = GPT2Config(vocab_size=2048, n_embd=8, n_layer=1, n_head=2, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    models.check_options(models.inspect(find(str(folder))), TrainingOptions(lora=True))


def test_an_unknown_attention(tiny_model):
    with pytest.raises(UserError, match=r"^--attn-implementation nonsense can't be built: "):
        models.check_options(models.inspect(find(str(tiny_model))), TrainingOptions(attn_implementation="nonsense"))


@pytest.mark.parametrize(
    ("config", "context", "most"),
    [
        (GPT2Config(n_positions=32), 32, 32),
        (OPTConfig(max_position_embeddings=32, word_embed_proj_dim=8), 32, 32),
        (BioGptConfig(max_position_embeddings=32), 32, 32),
        (GPTJConfig(n_positions=32, rotary_dim=2), 32, 32),
        (RobertaConfig(max_position_embeddings=34, is_decoder=True), 32, 32),
        (LlamaConfig(max_position_embeddings=32, num_key_value_heads=2), 32, None),
        (BloomConfig(), None, None),
        (MambaConfig(), None, None),
    ],
)
def test_how_much_a_model_reads(config, context, most):
    """Beyond `max_tokens`, and only there, a model fails."""
    small = {"hidden_size": 8, "intermediate_size": 8, "ffn_dim": 8, "n_embd": 8, "num_attention_heads": 2, "n_head": 2}
    for name, value in {**small, "num_hidden_layers": 1, "n_layer": 1, "vocab_size": 50}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    assert (context_length(config), max_tokens(config)) == (context, most)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 32, dtype=torch.long) * 7)
        if most is None:
            model(input_ids=torch.ones(1, 33, dtype=torch.long) * 7)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.ones(1, 33, dtype=torch.long) * 7)


def test_quantized_files(changed):
    folder = changed(config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    refused(r"is quantized \(gptq\), which can't be loaded here: .*pip install", folder)
    shutil.rmtree(folder)
    folder = changed(config={"quantization_config": {"quant_method": "nonsense"}})
    refused(r"is quantized \(nonsense\), which can't be loaded here: Unknown quantization type", folder)
    shutil.rmtree(folder)
    blocks = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    refused(r"\(fp8\), and all weights in its files are plain", changed(config={"quantization_config": blocks}))


def test_scales_of_quantized_files():
    packed, scale, plain = Weight([4, 4], "F8_E4M3"), Weight([1, 1], "F32"), Weight([4], "BF16")
    right = (
        ("fp8", {"a.weight": packed, "a.weight_scale_inv": scale, "norm.weight": plain}),
        ("bitsandbytes_4bit", {"a.weight": Weight([8, 1], "U8"), "a.weight.absmax": scale}),
        ("bitsandbytes_8bit", {"a.weight": Weight([4, 4], "I8"), "a.SCB": scale}),
        ("compressed-tensors", {"a.weight": plain}),
    )
    for method, held in right:
        check_quantized(held, method, "m")
    with pytest.raises(UserError, match="its files have no scale of b.weight"):
        check_quantized({**right[0][1], "b.weight": packed, "c.weight_scale": scale}, "fp8", "m")


def test_an_adapter_is_used_from_everywhere(tiny_model, tmp_path, monkeypatch):
    """Its base model is named by an absolute path, and found where the whole tree of folders was moved."""
    project = tmp_path / "project"
    shutil.copytree(tiny_model, project / "models" / "plain")
    monkeypatch.chdir(project)
    info = models.inspect(find("models/plain", "--model"))
    model = models.load(info, TrainingOptions(shared_prefix=False))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained("runs/x/model")
    named = json.loads((project / "runs/x/model/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(project / "models" / "plain")
    monkeypatch.chdir(tmp_path)
    assert find("project/runs/x/model").moved == ""
    moved = project.rename(tmp_path / "elsewhere")
    reference = find("elsewhere/runs/x/model")
    assert reference.base == str(moved / "models" / "plain")
    assert reference.moved == f"the adapter's base model {named} is taken from {reference.base}"
    assert models.inspect(reference).warnings == (reference.moved,)
    (moved / "models").rename(tmp_path / "gone")
    with pytest.raises(
        UserError, match=f"is an adapter of {re.escape(named)}, and there is no such folder. Put the base"
    ):
        find("elsewhere/runs/x/model", "--model")


def test_a_relative_base_model_is_found_above_the_adapter(tiny_model, tmp_path, monkeypatch):
    adapter = adapted(tiny_model, tmp_path / "runs" / "adapter")
    shutil.copytree(tiny_model, tmp_path / "plain")
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": "plain"}))
    monkeypatch.chdir(tmp_path / "runs")
    assert find("adapter").base == str(tmp_path / "plain")


def test_a_run_that_has_only_checkpoints(tiny_model, tmp_path):
    run = tmp_path / "run"
    checkpoint = shutil.copytree(tiny_model, run / "checkpoints" / "checkpoint-2")
    (run / "config.yaml").write_text("method: sft\n")
    with pytest.raises(
        UserError, match="the run has no model yet. Resume it: .*, or give its last checkpoint: .*@last"
    ):
        find(str(run), "--model")
    assert (
        models.inspect(find(str(checkpoint))).parameters
        == AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint)).num_parameters()
    )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoraConfig(target_modules=["q_proj"], bias="all"), "only 1 adapter with bias.* Add --no-lora, which merges"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=9, tinit=1, tfinal=1), "only 1 trainable adapter.* --no"),
        (LoraConfig(target_modules=["q_proj"], use_dora=True), None),
    ],
    ids=["biases", "adalora", "dora"],
)
def test_an_adapter_of_which_no_frozen_copy_can_be_added_is_no_reference(tiny_model, tmp_path, adapter, message):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, adapter).save_pretrained(tmp_path / "adapter")
    info = models.inspect(find(str(tmp_path / "adapter"), "--model"))
    ReferenceModel.check(SimpleNamespace(info=info, options=TrainingOptions(lora=False)))
    run = SimpleNamespace(info=info, options=TrainingOptions())
    with pytest.raises(UserError, match=message) if message else nullcontext():
        ReferenceModel.check(run)


def test_a_reward_model_keeps_what_an_adapter_was_trained_on_whole(tiny_model, tmp_path):
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["model.norm", "lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), settings)
    torch.nn.init.constant_(model.get_base_model().model.norm.modules_to_save["default"].weight, 3.0)
    model.save_pretrained(tmp_path / "adapter")
    info = models.inspect(find(str(tmp_path / "adapter"), "--model"), SCORES)
    started = models.load(info, TrainingOptions()).get_base_model().model.norm.modules_to_save["default"].weight
    assert started.unique().tolist() == [3.0]
    assert started.requires_grad
