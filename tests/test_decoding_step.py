"""A step of sampling on a GPU, as far as that can be seen without one: how many operations it is, that it neither reads
the device nor takes new memory, and that a captured one, whose operations are repeated with their tensors, samples the same.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import takewhile
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from rlhf_core.prefix import Group, Sampling, decoding, decoding_kernels, rollout, share, shares
from rlhf_core.prefix.llama_step import LlamaStep, is_like_llama
from tests import flash
from tests.graphs import is_tensor, recorded
from tests.prefix_models import SIZES, random_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]
ENDS = [3, 20, 21, 22, 23, 24, 25]
VIEWS = {
    *("view", "_unsafe_view", "unsqueeze", "squeeze", "transpose", "permute", "expand", "slice", "select", "detach"),
    *("alias", "t", "as_strided", "split", "split_with_sizes", "unbind", "unflatten", "empty", "lift_fresh"),
}
READS = {"_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal"}


def adapted(layers=2, config=Qwen3Config, lora=True, **settings):
    """A model in bfloat16 with an adapter in float32, as in a run on a GPU."""
    model = random_model(config(**SIZES | {"vocab_size": 67, "num_hidden_layers": layers} | settings), spread=0.3)
    model = model.to(torch.bfloat16)
    if lora:
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora, autocast_adapter_dtype=True).eval()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()  # as trainers do
    assert share(model) is None
    return model


@pytest.fixture
def as_on_cuda():
    with flash.emulated() as calls, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        yield calls


def batch_of(model, rows=8, sampling=None):
    sampling = sampling or Sampling(40, (), seed=0)
    sampler = decoding.Sampler(sampling)
    given = sampler.rows([prompt for prompt in PROMPTS for _ in range(rows // len(PROMPTS))])
    batch = decoding.Batch(model, decoding.step_of(model, 60), sampler, decoding.room_for(model, given, sampling))
    batch.enter(deque(given))
    return batch


class Operations(TorchDispatchMode):
    """The operations that a GPU launches, by name; a fused norm, which a CPU computes by several, is one."""

    class Norms(TorchFunctionMode):
        def __init__(self, counted):
            self.counted = counted

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function not in (torch.rms_norm, torch.nn.functional.rms_norm):
                return function(*args, **(kwargs or {}))
            self.counted.names["rms_norm"] += 1
            self.counted.counts = False
            try:
                return function(*args, **(kwargs or {}))
            finally:
                self.counted.counts = True

    def __init__(self):
        super().__init__()
        self.names, self.counts, self.bytes = Counter(), True, 0
        self.norms = self.Norms(self)

    def __enter__(self):
        self.norms.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.norms.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        assert name not in READS
        result = function(*args, **(kwargs or {}))
        if self.counts and name not in VIEWS:
            self.names[name] += 1
            given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if is_tensor(tensor)}
            new = [one.untyped_storage() for one in tree_leaves(result) if is_tensor(one)]
            self.bytes += sum(storage.nbytes() for storage in new if storage.data_ptr() not in given)
        return result


def counted(model, step=3):
    batch = batch_of(model)
    batch.run(step)
    with Operations() as operations:
        batch.sample(batch.room.tokens, equal=False)
    return operations


def per_layer(**settings):
    two, four = (sum(counted(adapted(layers, **settings)).names.values()) for layers in (2, 4))
    return (four - two) / 2


def test_a_layer_with_an_adapter_is_at_most_forty_operations(as_on_cuda):
    assert per_layer() <= 40
    assert per_layer(lora=False) <= 30
    assert per_layer(config=LlamaConfig) <= 38


def test_a_step_takes_as_much_memory_as_every_other(as_on_cuda):
    """It makes nothing larger, and leaves nothing behind."""
    model = adapted()
    batch = batch_of(model)
    batch.run(1)
    held = [tensor for pair in batch.cache.completions.values() for tensor in pair] + [batch.tokens, batch.chosen]
    places = [tensor.data_ptr() for tensor in held]
    taken = []
    for _ in range(12):
        with Operations() as operations:
            batch.sample(batch.room.tokens, equal=False)
        taken.append((operations.bytes, sum(operations.names.values())))
    assert len(set(taken)) == 1
    assert [tensor.data_ptr() for tensor in held] == places


def test_the_device_is_read_once_for_many_tokens(as_on_cuda):
    class Reads(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.count += function in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.numpy)
            return function(*args, **(kwargs or {}))

    model, tokens = adapted(), 3 * decoding.LOOK + 1
    rollout(model, PROMPTS, 2, Sampling(2, (), seed=0))  # after which all checks are done
    with Reads() as reads:
        found = rollout(model, PROMPTS, 2, Sampling(tokens, (), seed=0))
    assert {len(one.completion) for one in found} == {tokens}
    assert reads.count == 3


@pytest.fixture
def captures(monkeypatch):
    """Batches that capture their steps, on a CPU."""
    graphs, real = [], decoding.Batch.__init__

    def begin(self, *given):
        real(self, *given)
        self.captures = True

    def record(self):
        graphs.append(recorded(self))

    monkeypatch.setattr(decoding.Batch, "__init__", begin)
    monkeypatch.setattr(decoding.Batch, "_capture", record)
    monkeypatch.setattr(decoding, "REFILL", 1)
    return graphs


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "arithmetic"])
def test_captured_steps_sample_the_same(as_on_cuda, captures, monkeypatch, kernel):
    """Also where rows end and others come in, and with a penalty, whose tokens are on the device."""
    model = adapted()
    if not kernel:
        monkeypatch.setattr(decoding_kernels, "DECODES", set())
    monkeypatch.setattr(decoding, "MAX_ROWS", 4)
    monkeypatch.setattr(decoding, "LOOK", 8)
    sampling = Sampling(24, ENDS, seed=3, repetition_penalty=1.1)
    found = rollout(model, PROMPTS, 2, sampling)
    replays = sum(graph.replays for graph in captures)
    assert replays > 10
    assert len({len(one.completion) for one in found}) > 3
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        if not kernel:
            patch.setattr(decoding_kernels, "DECODES", set())
        assert [one.completion for one in rollout(model, PROMPTS, 2, sampling)] == [one.completion for one in found]


def test_flash_attention_and_plain_arithmetic_sample_alike():
    """To the rounding of bfloat16, by the log-probabilities of tokens that both sampled."""
    model = adapted()
    with flash.emulated() as calls, torch.autocast("cpu", torch.bfloat16):
        found = rollout(model, PROMPTS, 2, Sampling(20, ENDS, seed=1))
        assert calls["forward"] > 2 * 2 * 10
    with torch.autocast("cpu", torch.bfloat16):
        plain = rollout(model, PROMPTS, 2, Sampling(20, ENDS, seed=1))
    apart = []
    for one, other in zip(found, plain, strict=True):  # up to where another token was chosen
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one.completion, other.completion, strict=False))
        apart += [abs(a - b) for _, a, b in zip(same, one.logps, other.logps, strict=False)]
    assert len(apart) > 20
    assert max(apart) < 0.2


FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_written_out_step_is_taken_and_gives_the_models_logits(family):
    config = FAMILIES[family](**SIZES | {"vocab_size": 67})
    model = get_peft_model(
        random_model(config, spread=0.3), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    assert share(model) is None
    with torch.no_grad():
        assert is_like_llama(model)
        assert isinstance(decoding.step_of(model, 60), LlamaStep)
        rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
        found = decoding._forced(model, rows, 3)
        for row, logps in zip(rows, found, strict=True):
            expected = model(torch.tensor([row])).logits[0].log_softmax(-1)[len(row) - 4 : -1]
            torch.testing.assert_close(logps, expected.float(), atol=1e-5, rtol=0)
    assert shares(model, [Group([1], [[1]])])


def test_a_model_that_computes_something_else_is_sampled_by_its_modules(caplog):
    model = random_model(Qwen3Config(**SIZES | {"vocab_size": 67}), spread=0.3)
    share(model)
    norm = model.model.layers[0].input_layernorm
    norm.forward = lambda states: type(norm).forward(norm, states) * 1.5
    assert not is_like_llama(model)
    del norm.forward
    real = type(norm).forward
    norm.__class__ = type("Shifted", (type(norm),), {"forward": lambda self, states: real(self, states) + 0.1})
    assert is_like_llama(model)
    with torch.no_grad():
        assert not isinstance(decoding.step_of(model, 60), LlamaStep)
    assert decoding.BY_MODULES in caplog.text


def test_fewer_rows_are_sampled_at_once_where_memory_does_not_last(monkeypatch, caplog):
    model = adapted(lora=False)
    sampling = Sampling(8, ENDS, seed=0)
    expected = rollout(model, PROMPTS, 4, sampling)
    real = decoding.DecodingCache._allocate

    def allocate(self, layer, pair):
        if self.room.rows > 4:
            raise torch.OutOfMemoryError("there is none left")
        return real(self, layer, pair)

    monkeypatch.setattr(decoding.DecodingCache, "_allocate", allocate)
    assert [one.completion for one in rollout(model, PROMPTS, 4, sampling)] == [one.completion for one in expected]
    assert "it goes on with 4 answers at once" in caplog.text


def test_rows_are_admitted_by_free_memory(monkeypatch):
    model = adapted(lora=False)
    rows = decoding.Sampler(Sampling(1000, ())).rows([[1] * 50] * 300)
    sizes = []
    for free in (1e12, 1e7, 1e6, 1):
        monkeypatch.setattr(decoding, "free_bytes", lambda device, free=free: free)
        sizes.append(decoding.room_for(model, rows, Sampling(1000, ())).rows)
    assert sizes[0] == decoding.MAX_ROWS
    assert sizes[-1] == 1
    assert sorted(sizes, reverse=True) == sizes
    assert 1 < sizes[1] < 256
    monkeypatch.setattr(type(model), "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(decoding, "free_bytes", lambda device: 1e12)
    assert [decoding.room_for(model, rows[:count], Sampling(9, ())).rows for count in (1, 20, 70, 300)] == [
        1,
        32,
        96,
        256,
    ]
    per_row = decoding.cache_bytes(model, 1016)
    assert sizes[1] * per_row < 1e7


@pytest.mark.parametrize("tokens", [5, 12])
def test_rows_wait_for_places_of_prompts(monkeypatch, tokens):
    """Also where others are under way meanwhile, and a prompt comes again later, between others."""
    monkeypatch.setattr(decoding, "LOOK", 2)
    model = adapted(lora=False)
    sampling = Sampling(tokens, ENDS, seed=0)
    sampler = decoding.Sampler(sampling)
    rows = sampler.rows([[1, 2], [3], [1, 2], [1, 2], [4, 5, 6]])
    room = decoding.Room(3, tokens + decoding.LOOK, 1, 3)
    with torch.no_grad():
        done = decoding._sampled(model, decoding.step_of(model, 60), sampler, rows, room)
    whole = rollout(model, [row.prompt for row in rows], 1, sampling)
    assert [row.tokens for row in sorted(done, key=lambda row: row.number)] == [one.completion for one in whole]


def test_fewer_rows_than_a_graph_has_elsewhere_are_captured(as_on_cuda, captures):
    """As after memory ran out, which halves their number."""
    model = adapted()
    sampler = decoding.Sampler(Sampling(6, (), seed=0))
    rows = sampler.rows([[5, 6, 7], [8], [9]])
    room = decoding.Room(3, 6 + decoding.LOOK, 3, 3)
    done = decoding._sampled(model, decoding.step_of(model, 60), sampler, rows, room)
    assert {len(row.tokens) for row in done} == {6}
    assert captures


def test_a_step_that_can_not_be_captured_is_launched_on_the_stream_it_was_on(monkeypatch, caplog):
    """As torch does it: where a capture ends with an error, its stream is left as the current one."""

    class Capturing:
        def __init__(self, graph, pool, capture_error_mode):
            assert capture_error_mode == "thread_local"

        def __enter__(self):
            current[0] = "of the capture"

        def __exit__(self, *_):
            raise RuntimeError("operation not permitted when stream is capturing")

    current = ["of the run"]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    batch = SimpleNamespace(captures=True, pool=None, room=SimpleNamespace(tokens=4), sample=lambda *_, **__: None)
    decoding.Batch._capture(batch)
    assert (batch.captures, current) == (False, ["of the run"])
    assert "can't be captured" in caplog.text
