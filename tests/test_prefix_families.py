"""Families of models that compute something else than attention over all tokens: none shares its prompts, and each gets
the log-probabilities, gradients and answers of its rows alone. benchmarks/families.py tries all families.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DogeConfig,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    OPTConfig,
    Phi3Config,
    Qwen3Config,
    RecurrentGemmaConfig,
    RobertaConfig,
    RwkvConfig,
    StableLmConfig,
)

from rlhf_core.errors import RunStopped
from rlhf_core.prefix import (
    Group,
    Sampling,
    attention,
    completion_hidden,
    completion_logps,
    hidden_size,
    rollout,
    share,
    shares,
    sharing,
)
from tests.prefix_models import SIZES, random_model

WORDS = 97
SMALL = SIZES | {"vocab_size": WORDS, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPS = [
    Group(list(range(3, 12)), [[20], [21, 22, 23, 24], list(range(25, 45))]),
    Group([50, 51], [list(range(52, 60)), [61]]),
]
ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
    "factor": 8.0,
    "rope_theta": 10000.0,
}


def opt():
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    return OPTConfig(vocab_size=WORDS, num_attention_heads=4, dropout=0.0, attention_dropout=0.0, **sizes)


def roberta():
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return RobertaConfig(vocab_size=WORDS, is_decoder=True, max_position_embeddings=80, **sizes, **drops)


HYBRID = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
LIGHTNING = {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "num_experts_per_tok": 1}
CONFIGS = {
    "attention sinks": GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, attention_dropout=0.0),
    "two attentions a layer": DiffLlamaConfig(**SMALL),
    "a mask of its own": DogeConfig(**SMALL),
    "positions of its own": opt(),
    "positions from padding tokens": roberta(),
    "state space": MambaConfig(**{k: v for k, v in SMALL.items() if "heads" not in k}, state_size=4, time_step_rank=2),
    "state space and attention": JambaConfig(**SMALL, **HYBRID, num_experts=2, mamba_d_state=4, mamba_dt_rank=2),
    "linear attention of another kind": MiniMaxConfig(**SMALL, **LIGHTNING),
    "recurrent": RwkvConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "recurrent and attention": RecurrentGemmaConfig(**SMALL | {"num_hidden_layers": 3}, lru_width=32),
    "rope of the longest row": Phi3Config(**SMALL, original_max_position_embeddings=16, rope_parameters=LONGROPE),
}


MOE = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "v_head_dim": 8}
WITHOUT_SDPA = {"granite_swa": {}, "mimo_v2_flash": MOE}
CONFIGS |= {
    name: CONFIG_MAPPING[name](**SMALL, **more) for name, more in WITHOUT_SDPA.items() if name in CONFIG_MAPPING
}


def family(config, dtype=torch.float32):
    """With weights large enough that a mistake shows, in scale so that recurrences stay finite."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and "A_log" not in name:
                weight.copy_(torch.randn(weight.shape) * (0.5 if "embed" in name else 0.6 / weight.shape[-1] ** 0.5))
            elif "sink" in name:
                weight.copy_(torch.randn(weight.shape) + 1)
    return model.to(dtype)


def given(which):
    """(the model of a configuration, the same in float64)."""
    model = family(CONFIGS[which])
    plain = exact(model)
    if which == "a mask of its own":
        ids = torch.tensor([[5, 6, 7, 8]])
        apart = (model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max()
        if apart > 0.1:  # transformers 5.17's
            pytest.skip("Doge's own attention in this transformers sees what follows, unless it is eager")
    return model, plain


def exact(model):
    """The same in float64, with transformers' own plain attention."""
    copied = copy.deepcopy(model).double()
    copied.set_attn_implementation("eager")
    with contextlib.suppress(ValueError):
        copied.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return copied


def by_definition(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1][range(len(completion)), completion]


@pytest.mark.parametrize("which", CONFIGS)
def test_log_probabilities_and_gradients_are_those_of_rows_alone(which):
    model, plain = given(which)
    share(model)
    assert not shares(model, GROUPS)
    scored = completion_logps(model, GROUPS, hidden=True)
    expected = [by_definition(plain, *row) for row in ROWS]
    for ours, theirs in zip(scored.logps, expected, strict=True):
        torch.testing.assert_close(ours[: len(theirs)].double(), theirs, atol=1e-4, rtol=1e-5)
    states = completion_hidden(model, GROUPS).states
    torch.testing.assert_close(scored.hidden, states)
    scored.logps.sum().backward()
    torch.cat(expected).sum().backward()
    largest = max(weight.grad.norm() for weight in plain.parameters() if weight.grad is not None)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() < 1e-4 * largest


@pytest.mark.parametrize("which", CONFIGS)
def test_greedy_answers_are_those_of_rows_alone(which):
    """Prompts of different lengths beside each other."""
    model, plain = given(which)
    share(model)
    for one in rollout(model, [group.prompt for group in GROUPS], 1, Sampling(12, [2], greedy=True)):
        logps = by_definition(plain, one.prompt, one.completion)
        torch.testing.assert_close(torch.tensor(one.logps).double(), logps, atol=1e-4, rtol=1e-5)
        ids = torch.tensor([[*one.prompt, *one.completion]])
        best = plain(input_ids=ids, use_cache=False).logits[0, len(one.prompt) - 1 : -1].argmax(-1)
        assert one.completion == best.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("which", [*CONFIGS, "another order of heads"])
def test_no_such_model_shares_in_any_precision(which, seed, dtype):
    if which == "rope of the longest row":
        pytest.skip("it shares rows that are short")
    torch.manual_seed(seed)
    config = StableLmConfig(**SMALL, qk_layernorm=True) if which == "another order of heads" else CONFIGS[which]
    model = family(config, dtype)
    share(model)
    if which == "another order of heads":
        plain = copy.deepcopy(model)
        ours = completion_logps(model, GROUPS).logps
        apart = max((ours[i][: len(row[1])] - by_definition(plain, *row)).abs().max() for i, row in enumerate(ROWS))
        assert apart < 0.2
    else:
        assert not shares(model, GROUPS)


def test_rope_that_depends_on_the_longest_row_is_shared_up_to_its_length():
    model = family(CONFIGS["rope of the longest row"])
    assert share(model) is None
    assert shares(model, [Group([3, 4, 5], [[6, 7], [8]])])
    assert not shares(model, [Group([3, 4, 5], [[6, 7], [8] * 14])])


@pytest.mark.parametrize("name", ["linear", "yarn"])
def test_rope_that_depends_on_positions_alone_is_shared(name):
    rope = {"rope_type": name, "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    model = family(LlamaConfig(**SMALL, rope_parameters=rope))
    assert share(model) is None
    assert shares(model, GROUPS)


def test_attention_dropout_by_any_name_is_refused():
    config = GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5)
    assert share(family(config)) == "the model drops attention at random"
    config = roberta()
    config.attention_probs_dropout_prob = 0.5
    assert share(family(config)) == "the model drops attention at random"


SETTINGS = {
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(3, 60)),
    "bad_words_ids": [[70]],
    "forced_eos_token_id": 3,
    "num_beams": 3,
    "typical_p": 0.2,
    "repetition_penalty": 5.0,
    "top_k": 1,
    "min_new_tokens": 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["shared", "transformers", "continuous"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_models_generation_settings_do_not_change_rollouts(engine, greedy):
    """But for its end tokens, which the caller gives."""
    model = random_model(Qwen3Config(**SMALL), torch.float32)
    sampling = Sampling(8, [2], greedy=greedy, seed=0)
    expected = rollout(model, [[5, 6, 7], [8, 9, 10]], 2, sampling, engine)
    for name, value in SETTINGS.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    found = rollout(model, [[5, 6, 7], [8, 9, 10]], 2, sampling, engine)
    assert [one.completion for one in found] == [one.completion for one in expected]
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("engine", ["shared", "transformers", "continuous"])
@pytest.mark.parametrize("greedy", [True, False])
def test_log_probabilities_that_are_not_numbers_stop_the_run(engine, greedy):
    model = random_model(Qwen3Config(**SMALL), torch.float32)
    share(model)
    assert shares(model, GROUPS)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunStopped, match="not numbers"):
        rollout(model.train(), [[5, 6, 7]], 2, Sampling(4, [2], greedy=greedy), engine)
    assert model.training


def test_reentrant_checkpointing_is_not_replayed_in_two_phases(monkeypatch):
    """It works in a plain backward pass alone; in two phases gradients of an adapter would be lost."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(sharing, "fits", lambda *args: False)
    model = get_peft_model(random_model(Qwen3Config(**SMALL)), LoraConfig(target_modules="all-linear"))
    share(model)
    grads = []
    for reentrant in (True, False):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model.zero_grad()
        completion_logps(model, GROUPS).logps.sum().backward()
        grads.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_states_have_the_size_that_the_head_reads():
    config = opt()
    config.word_embed_proj_dim = 16
    model = family(config)
    share(model)
    assert hidden_size(model) == 16
    assert completion_logps(model, GROUPS, hidden=True).hidden.shape == (len(ROWS), 21, 16)


def test_layers_that_are_given_a_part_of_the_tokens_are_noticed():
    """As in Gemma 4, whose last layers share keys and compute only the tokens that logits are asked for."""
    query, key = torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 5, 8)
    metadata = attention.PackedAttention([attention.GroupSpans((0, 5), ())])
    with pytest.raises(attention.NotShared, match="a part of the tokens"):
        attention.attention(None, query, key, key, attention.NO_MASK, shared_prefix=metadata)


def test_the_table_in_the_docs_is_that_of_the_results(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    families_table = importlib.import_module("families_table")
    result = json.loads((root / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    assert (root / "docs" / "families.md").read_text(encoding="utf-8") == families_table.page(result)
    wrong = [name for name, one in result["figures"].items() if one.get("logps_apart", 0) > families_table.NEAR]
    assert not wrong
