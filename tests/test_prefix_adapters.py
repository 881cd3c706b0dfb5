"""Adapters, quantized weights and unusual heads: shared prompts compute what padded rows compute, and the random numbers
of dropout are the same when two phases compute completions a second time.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from rlhf_core.prefix import Group, completion_logps, head, padded, share, shares, sharing, two_phase, unwrap
from rlhf_core.prefix.packed import hidden_size
from tests.prefix_models import assert_same

GROUPS = [
    Group([5], [[8, 9], [10]]),
    Group([11, 12, 13, 14, 15, 16, 17], [[18, 19, 20, 21, 22]]),
    Group([23, 24, 25, 26], [[27, 28, 29], [30], [31, 32, 33, 34, 35, 36]]),
]
GRAD_OUTPUT = torch.randn(6, 6, generator=torch.Generator().manual_seed(7))
ADAPTERS = {
    "all linear layers": {"target_modules": "all-linear"},
    "the head as well": {"target_modules": ["q_proj", "v_proj", "lm_head"]},
    "a trained head": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]},
    "trained embeddings": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.fixture(scope="module")
def base(tiny_model):
    """With weights so large that distributions of tokens are far from uniform."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + (weight.dim() == 1))
    return model.eval()


def adapted(model, **settings):
    """With an adapter of random weights, so that it changes the output."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(copy.deepcopy(model), LoraConfig(**settings)).eval()


@pytest.fixture(params=["packed", "two phases"])
def way(request, monkeypatch):
    monkeypatch.setattr(sharing, "fits", lambda model, groups: request.param == "packed")
    return request.param


def gradients(model, scored):
    model.zero_grad()
    (scored.logps * GRAD_OUTPUT).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_shared_is_padded(model, values, grads):
    theirs = padded.completion_logps(model, GROUPS, temperature=0.7)
    by_padding = gradients(model, theirs)
    assert share(model) is None
    ours = completion_logps(model, GROUPS, temperature=0.7)
    assert shares(model, GROUPS)
    torch.testing.assert_close(ours.logps, theirs.logps, atol=values, rtol=0)
    torch.testing.assert_close(ours.entropies, theirs.entropies, atol=values, rtol=0)
    assert_same(gradients(model, ours), by_padding, grads)


@pytest.mark.parametrize("which", ADAPTERS)
def test_adapters(way, base, which):
    assert_shared_is_padded(adapted(base, **ADAPTERS[which]), 1e-5, 1e-6)


@pytest.mark.parametrize("which", ADAPTERS)
def test_adapters_with_gradient_checkpointing(way, base, which):
    model = adapted(base, **ADAPTERS[which])
    by_padding = gradients(model, padded.completion_logps(model, GROUPS))
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    share(model)
    assert_same(gradients(model.train(), completion_logps(model, GROUPS)), by_padding, 1e-6)


def test_a_pass_leaves_nothing_in_memory(way, base):
    """With checkpointing, each layer's graph has what the layer was called with: had that the keys and values, which
    have their graph, none of it would be freed, since Python's garbage collector does not see graphs."""
    model = adapted(base, target_modules="all-linear")
    model.enable_input_require_grads()  # as trainers do: backward then has parts that no weight needs
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    share(model.train())
    alive = []
    for _ in range(3):
        gradients(model, completion_logps(model, GROUPS))
        gc.collect()
        alive.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
    assert alive[2] == alive[1]


def test_a_disabled_adapter_is_the_reference(way, base):
    model = adapted(base, target_modules="all-linear")
    share(model)
    with torch.no_grad():
        expected = padded.completion_logps(base, GROUPS).logps
        with model.disable_adapter():
            reference = completion_logps(model, GROUPS).logps
        assert (completion_logps(model, GROUPS).logps - expected).abs().max() > 0.1
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=0)


def test_a_fresh_adapter_is_the_reference(way, base):
    model = adapted(base, target_modules="all-linear", init_lora_weights=True)
    share(model)
    with torch.no_grad():
        ours, expected = completion_logps(model, GROUPS), padded.completion_logps(base, GROUPS)
    torch.testing.assert_close(ours.logps, expected.logps, atol=1e-5, rtol=0)


def with_dropout(base, checkpointing):
    model = adapted(base, target_modules="all-linear", lora_dropout=0.4)
    share(model)
    assert shares(model, GROUPS)  # finds out now, since that takes a pass of its own
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_phases_with_dropout_have_the_gradient_of_their_first_phase(base, checkpointing):
    """The same calls, in the same order, under plain autograd, which computes nothing twice."""
    model = with_dropout(base, checkpointing)
    torch.manual_seed(2)
    ours = two_phase.completion_logps(model, GROUPS, temperature=0.7)
    torch.rand(5)  # random numbers in between, as other layers of a loss take
    by_replay = gradients(model, ours)
    model = with_dropout(base, False)
    job = two_phase.Job(unwrap(model), GROUPS, 0.7)
    torch.manual_seed(2)
    rows = []
    for group in GROUPS:
        prompt = job.prompt(group.prompt)
        rows += [job.completion(tokens, prompt).logps for tokens in group.completions]
    plain = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    torch.testing.assert_close(ours.logps.double(), plain, atol=1e-6, rtol=0)
    model.zero_grad()
    (plain * GRAD_OUTPUT).sum().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_same(by_replay, expected, 1e-6)
    torch.manual_seed(3)
    others = two_phase.completion_logps(model, GROUPS, temperature=0.7).logps
    assert (ours.logps - others).abs().max() > 0.1  # dropout is at work


def test_a_replay_does_not_advance_the_random_generator(base):
    model = with_dropout(base, False)
    scored = two_phase.completion_logps(model, GROUPS)
    before = torch.get_rng_state()
    scored.logps.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


# Weights in 8 bits round each token's inputs to 8 bits too, where a difference in the last place may grow to a step.
@pytest.mark.parametrize(("bits", "values", "grads"), [(4, 1e-4, 1e-3), (8, 0.02, 0.1)])
def test_quantized_weights(way, tiny_model, bits, values, grads):
    quantized = pytest.importorskip("bitsandbytes").nn.Linear4bit
    names = {4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}, 8: {"load_in_8bit": True}}
    config = BitsAndBytesConfig(**names[bits])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, quantization_config=config)
    for module in model.modules():
        if isinstance(module, quantized):  # else bitsandbytes packs them anew on some processors, for wider layers
            module.support_avx512bf16_for_cpu = False
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    assert_shared_is_padded(get_peft_model(model, settings).eval(), values, grads)


@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_of_the_head_equal_one_chunk(monkeypatch, frozen):
    """A few rows of logits at a time, in blocks and not, and all at once; with a head that requires gradients and one
    that does not.
    """
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 300, dtype=torch.float64).requires_grad_(not frozen)
    states, tokens = torch.randn(50, 32, dtype=torch.float64), torch.randint(300, (50,))
    grad_output = torch.randn(50, dtype=torch.float64)
    calls = []
    real = head.linear
    monkeypatch.setattr(head, "linear", lambda *args: calls.append(len(args[0])) or real(*args))

    def found(rows, block_bytes=1):
        monkeypatch.setattr(head, "chunk_rows", lambda *args: rows)
        monkeypatch.setattr(head, "BLOCK_BYTES", block_bytes)
        calls.clear()
        layer.zero_grad()
        leaf = states.clone().requires_grad_()
        logps, entropies = head.token_logps(layer, leaf, tokens, 0.7)
        (logps * grad_output).sum().backward()
        return [logps.detach(), entropies, leaf.grad] + [weight.grad for weight in layer.parameters() if not frozen]

    one = found(1024, 1 << 23)
    assert max(calls) == 50
    many = found(20)
    assert max(calls) == 20
    assert len(calls) == (3 if frozen else 6)  # with a frozen head no logits are computed again
    leaf = states.clone().requires_grad_()
    layer.zero_grad()
    distribution = (layer(leaf) / 0.7).log_softmax(-1)
    plain = distribution.gather(-1, tokens[:, None])[:, 0]
    (plain * grad_output).sum().backward()
    entropies = -(distribution.exp() * distribution).sum(-1).detach()
    expected = [plain.detach(), entropies, leaf.grad] + [weight.grad for weight in layer.parameters() if not frozen]
    for a, b, c in zip(one, many, expected, strict=True):
        torch.testing.assert_close(a, c, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(b, c, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("rows", [32, 1024])
def test_a_head_that_is_not_a_plain_linear_layer_is_recomputed_in_its_backward(base, monkeypatch, rows):
    monkeypatch.setattr(head, "chunk_rows", lambda *args: rows)
    model = adapted(base, target_modules=["lm_head"])
    calls = []
    layer = unwrap(model).get_output_embeddings()
    assert type(layer) is not torch.nn.Linear
    states = torch.randn(40, 32, dtype=torch.float64)
    tokens = torch.arange(40)
    plain = layer(states).log_softmax(-1)[range(40), tokens]
    by_weight = torch.autograd.grad(plain.sum(), [w for w in layer.parameters() if w.requires_grad])
    layer.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    logps, _ = head.token_logps(layer, states, tokens)
    forwards = len(calls)
    ours = torch.autograd.grad(logps.sum(), [w for w in layer.parameters() if w.requires_grad])
    assert (forwards, len(calls)) == ((3, 6) if rows == 32 else (1, 2))
    torch.testing.assert_close(logps, plain)
    for one, other in zip(ours, by_weight, strict=True):
        torch.testing.assert_close(one, other)


def test_the_states_of_a_head_that_an_adapter_is_around(tiny_model):
    """Trained tokens of a model whose head is its embeddings; PPO makes its value head of this size."""
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    size = hidden_size(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 9]))
    assert hidden_size(adapted) == size == config.hidden_size
