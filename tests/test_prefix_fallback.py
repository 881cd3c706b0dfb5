"""What sharing does not support is noticed, logged once with its reason, and computed padded with the same results; what a
kernel gets wrong is computed by plain arithmetic; and nothing of it all is saved with a model.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_core.prefix import (
    Group,
    attention,
    completion_logps,
    kernels,
    packed,
    share,
    shares,
    sharing,
    two_phase,
)
from rlhf_core.prefix.kernels import DENSE, KERNELS, Kernel, Sequences
from tests.prefix_models import GROUPS, SIZES, random_model

ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]


@pytest.fixture
def model():
    return random_model(Qwen3Config(**SIZES))


@pytest.fixture
def unseen(monkeypatch):
    """Forget which kernels have been checked."""
    monkeypatch.setattr(kernels, "_checked", {})


def by_definition(model, prompt, completion):
    output = model(torch.tensor([[*prompt, *completion]]), use_cache=False)
    return output.logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)[range(len(completion)), completion]


def assert_exact(model, plain):
    """Values and gradients of `model` are those of `plain` by the definition."""
    near = {torch.float64: 1e-5, torch.float32: 1e-4}[model.dtype]
    scored = completion_logps(model, GROUPS)
    expected = [by_definition(plain, *row) for row in ROWS]
    for ours, theirs in zip(scored.logps, expected, strict=True):
        torch.testing.assert_close(ours[: len(theirs)].double(), theirs, atol=near, rtol=near)
    for one, loss in ((model, scored.logps.sum()), (plain, torch.cat(expected).sum())):
        one.zero_grad()
        loss.backward()
    pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True) if b.requires_grad]
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= near * theirs.norm()


UNSUPPORTED = {
    "attention that is capped": (
        Gemma2Config(**SIZES, final_logit_softcapping=None, attn_logit_softcapping=2.0, attention_dropout=0.0),
        "attn_logit_softcapping",
    ),
    "dropout in attention": (LlamaConfig(**SIZES, attention_dropout=0.1), "drops attention at random"),
    "dropout by another name": (GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4), "drops attention at random"),
}


@pytest.mark.parametrize("which", UNSUPPORTED)
def test_a_model_that_is_not_supported_is_computed_padded(said, which):
    config, reason = UNSUPPORTED[which]
    model = random_model(config, torch.float32)
    plain = copy.deepcopy(model)
    assert reason in share(model)
    completion_logps(model, GROUPS)
    assert not shares(model, GROUPS)
    assert_exact(model, plain)
    (message,) = said()
    assert message.startswith("each completion is computed with a prompt of its own: ")
    assert reason in message


def test_a_model_whose_configuration_has_no_key_value_heads_is_shared(said):
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    model = random_model(GPTNeoXConfig(**sizes, num_attention_heads=4))
    plain = copy.deepcopy(model)
    assert share(model) is None
    assert shares(model, GROUPS)
    assert_exact(model, plain)
    assert said() == []


def test_a_model_that_does_not_call_its_base_model_is_computed_padded(said):
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    model = random_model(OPTConfig(vocab_size=67, num_attention_heads=4, **sizes))
    assert share(model) is None
    scored = completion_logps(model, GROUPS)
    for ours, row in zip(scored.logps, ROWS, strict=True):
        torch.testing.assert_close(ours[: len(row[1])].double(), by_definition(model, *row), atol=1e-5, rtol=1e-5)
    assert not shares(model, GROUPS)
    (message,) = said()
    assert message.startswith("prompts are not shared in this model")


def test_an_encoder_with_a_decoder_is_refused(said):
    config = T5Config(vocab_size=67, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    assert share(T5ForConditionalGeneration(config)) == "the model is an encoder with a decoder"
    assert len(said()) == 1


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_tuning_is_computed_padded(said, model, kind):
    learned = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "prompt tuning" in share(learned)
    assert not shares(learned, GROUPS)
    assert len(said()) == 1


def without_our_keyword(module, query, key, value, attention_mask, shared_prefix=None, **rest):
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


def fails(*args, **rest):
    raise TypeError("got an unexpected keyword argument 'shared_prefix'")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(without_our_keyword, "not every layer attends exactly once"), (fails, "TypeError: got an unexpected keyword")],
)
def test_a_model_that_ignores_or_refuses_our_keyword_is_noticed_at_the_first_groups(
    said, model, monkeypatch, broken, reason
):
    plain = copy.deepcopy(model)
    assert share(model) is None
    registered = AttentionInterface._global_mapping
    monkeypatch.setitem(
        registered,
        attention.NAME,
        lambda *a, shared_prefix=None, **k: (broken if shared_prefix else sdpa_attention_forward)(*a, **k),
    )
    assert_exact(model, plain)
    completion_logps(model, GROUPS)
    assert not shares(model, GROUPS)
    (message,) = said()
    assert message.startswith("prompts are not shared in this model")
    assert reason in message


def test_a_model_loaded_with_another_attention_keeps_it(said):
    """Sinks: gpt-oss has no sdpa."""
    sizes = SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = AutoModelForCausalLM.from_config(GptOssConfig(**sizes, attention_dropout=0.0), dtype=torch.float32).eval()
    assert share(model) == "the model's attention is eager, and prompts are shared beside sdpa alone"
    assert attention.implementation(model) == "eager"
    assert len(said()) == 1


def test_a_model_that_was_not_passed_to_share_is_not_shared(model):
    assert not shares(model, GROUPS)


def wrong(*given):
    output, lse = DENSE.forward(*given)
    return output, lse + 0.01


def refused(*args):
    raise RuntimeError("no kernel for these heads")


def wrong_gradients(*given):
    by_query, by_key, by_value = DENSE.backward(*given)
    return by_query, by_key * 1.01, by_value


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Kernel(wrong, DENSE.backward), "its kernel is"),
        (Kernel(refused, DENSE.backward), "no kernel for these heads"),
        (Kernel(DENSE.forward, refused), "no kernel for these heads"),
        (Kernel(DENSE.forward, wrong_gradients), "its kernel is"),
    ],
)
def test_a_wrong_kernel_is_replaced_by_plain_arithmetic(said, model, monkeypatch, unseen, kernel, reason):
    monkeypatch.setitem(KERNELS, "cpu", kernel)
    plain = copy.deepcopy(model)
    share(model)
    assert_exact(model, plain)
    completion_logps(model, GROUPS)
    assert shares(model, GROUPS)
    (message,) = said()
    assert message.startswith("attention on cpu is computed by plain arithmetic, slowly: ")
    assert reason in message


def test_a_device_without_a_kernel_uses_plain_arithmetic(said, model, monkeypatch, unseen):
    monkeypatch.delitem(KERNELS, "cpu")
    plain = copy.deepcopy(model)
    share(model)
    assert_exact(model, plain)
    assert said() == []


# The log-sum-exp that merges two parts is float32 in torch's kernel for float32, float64 for float64.
@pytest.mark.parametrize("kernel", [DENSE, KERNELS["cpu"]], ids=["plain arithmetic", "cpu"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("scale", [8**-0.5, 0.3])
@pytest.mark.parametrize("block", [2, 256])
def test_kernels_against_autograd_of_plain_attention(monkeypatch, kernel, heads, scale, block):
    """Sequences of unequal length, causal and not, under windows; one of a single token."""
    monkeypatch.setattr(kernels, "BLOCK", block)
    torch.manual_seed(0)
    cases = [
        Sequences([6, 1, 4], [6, 1, 4], causal=True),
        Sequences([4, 1], [6, 8], causal=False),
        Sequences([6, 1, 4], [6, 1, 4], causal=True, window=3),
        Sequences([5, 1, 2], [7, 4, 3], causal=True, window=4),
        Sequences([5, 1], [7, 4], causal=True, window=1),
    ]
    for sequences in cases:
        tokens = sum(sequences.queries), sum(sequences.keys)
        query, grad_output = (torch.randn(tokens[0], heads[0], 8, dtype=torch.float64) for _ in range(2))
        key, value = (torch.randn(tokens[1], heads[1], 8, dtype=torch.float64) for _ in range(2))
        output, lse = kernel.forward(query, key, value, sequences, scale)
        grads = kernel.backward(grad_output, query, key, value, output, lse, sequences, scale)
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        loss = 0
        for (a, b), (c, d) in sequences.spans():
            q, k, v = (one.transpose(0, 1) for one in (leaves[0][a:b], leaves[1][c:d], leaves[2][c:d]))
            sees = torch.ones(b - a, d - c, dtype=torch.bool)
            if sequences.causal:
                sees = sees.tril(d - c - (b - a))
            if sequences.window:
                sees = sees.triu(d - c - (b - a) - sequences.window + 1)
            each, values = (one.repeat_interleave(heads[0] // heads[1], dim=0) for one in (k, v))
            scores = (q @ each.mT * scale).masked_fill(~sees, -torch.inf)
            plain = (scores.softmax(-1) @ values).transpose(0, 1)
            torch.testing.assert_close(output[a:b], plain, atol=1e-12, rtol=1e-10)
            torch.testing.assert_close(lse[:, a:b], scores.logsumexp(-1), atol=1e-12, rtol=1e-10)
            loss = loss + (plain * grad_output[a:b]).sum()
        for one, other in zip(grads, torch.autograd.grad(loss, leaves), strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


LAID = [Group([1, 2, 3, 4], [[5, 6, 7], [8, 9]]), Group([9, 9, 9], []), Group([1, 2], [[3], [4, 5, 6, 7]])]


@pytest.mark.parametrize("window", [None, 1, 2, 4, 5, 6, 7])
@pytest.mark.parametrize("in_row", [True, False])
def test_merged_parts_equal_one_attention_with_a_mask(window, in_row):
    """Values and gradients of prompts with completions against attention under the mask that says who sees whom. The
    longest prompt with a completion has 7 tokens.
    """
    torch.manual_seed(0)
    row = packed.pack(LAID)
    tokens = row.input_ids.shape[1]
    leaves = [torch.randn(1, heads, tokens, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    see = torch.eye(tokens).bool()
    for prompt, completions in row.spans:
        for span in (prompt, *completions):
            seen = [*range(*prompt), *(range(*span) if span != prompt else ())]
            for at, token in enumerate(seen):
                if token in range(*span):
                    see[token, seen[max(0, at + 1 - (window or tokens)) : at + 1]] = True
    plain = scaled_dot_product_attention(*leaves, attn_mask=see, enable_gqa=True)
    grad_output = torch.randn_like(plain)
    if in_row:
        ours = attention.PackedAttention(row.spans).attend(0, *leaves, 8**-0.5, window)
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-10)
        found = torch.autograd.grad(ours, leaves, grad_output)
    else:  # each prompt with each of its completions in a call of its own
        loss = 0
        for (a, b), completions in row.spans:
            alone = attention.PackedAttention([attention.GroupSpans((0, b - a), ())])
            ours = alone.attend(0, *(leaf[:, :, a:b] for leaf in leaves), 8**-0.5, window)
            loss = loss + (ours * grad_output[:, :, a:b]).sum()
            for c, d in completions:
                continued = attention.ContinuedAttention(
                    {0: tuple(leaf[:, :, a:b] for leaf in leaves[1:])}, {}, b - a, d - c
                )
                ours = continued.attend(0, *(leaf[:, :, c:d] for leaf in leaves), 8**-0.5, window)
                torch.testing.assert_close(ours, plain[:, :, c:d], atol=1e-12, rtol=1e-10)
                loss = loss + (ours * grad_output[:, :, c:d]).sum()
        found = torch.autograd.grad(loss, leaves)
    for one, other in zip(found, torch.autograd.grad(plain, leaves, grad_output), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_spans_that_do_not_stand_as_packed_are_refused():
    with pytest.raises(ValueError, match="prompts stand before completions"):
        attention.PackedAttention([attention.GroupSpans((0, 3), ((3, 5),)), attention.GroupSpans((5, 6), ())])


def test_a_saved_model_has_no_trace_of_sharing(tmp_path, model):
    plain = copy.deepcopy(model)
    share(model)
    completion_logps(model, GROUPS)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert attention.NAME not in json.dumps(settings)
    assert not [name for name in settings if "attn" in name]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert not attention.installed(loaded)
    torch.testing.assert_close(loaded(torch.tensor([[5, 6]])).logits, plain(torch.tensor([[5, 6]])).logits)


def test_a_call_without_groups_is_that_of_transformers(model):
    """Also padded, and with gradient checkpointing off or on: evaluation, other losses, `generate`."""
    plain = copy.deepcopy(model)
    share(model)
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    ours, theirs = (one(ids, attention_mask=mask).logits for one in (model, plain))
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0, 2:], theirs[0, 2:])


@pytest.mark.parametrize("free", [10**12, 10**3])
def test_two_phases_are_used_if_memory_is_short_and_a_gradient_is_needed(model, monkeypatch, free):
    calls = []
    share(model)
    model.requires_grad_(False).get_output_embeddings().requires_grad_(True)  # few gradients, as of an adapter
    assert shares(model, GROUPS)
    monkeypatch.setattr(sharing, "free_bytes", lambda device: free)
    monkeypatch.setattr(two_phase, "completion_logps", lambda *args, **rest: calls.append(args))
    with torch.no_grad():
        completion_logps(model, GROUPS)
    assert not calls
    completion_logps(model, GROUPS)
    assert bool(calls) == (free < 10**6)
