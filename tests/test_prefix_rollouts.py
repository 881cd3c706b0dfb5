"""Rollouts with shared prompts: greedy ones are `generate`'s, sampled ones have the exact distribution, and neither
depends on what is sampled beside them.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from rlhf_core.prefix import (
    Group,
    Rollout,
    Sampling,
    completion_logps,
    decoding,
    rollout,
    rollouts,
    sampler,
    self_check,
    share,
    shares,
)
from tests.prefix_models import SIZES, random_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]
WORDS = 11  # small enough that two tokens in a row can be counted


def generator(words, spread=0.3, config=Qwen3Config, **settings):
    """A model whose `generate` stops at no token."""
    model = random_model(config(**SIZES | {"vocab_size": words} | settings), spread=spread)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def plain():
    return generator(67)


@pytest.fixture(scope="module")
def model(plain):
    sharing = copy.deepcopy(plain)
    assert share(sharing) is None
    return sharing


@pytest.fixture(scope="module")
def few_words():
    model = generator(WORDS, spread=0.2)
    assert share(model) is None
    return model


@pytest.fixture
def prefills(monkeypatch):
    """The prompts of each prefill."""
    calls = []
    parts = decoding.batches
    monkeypatch.setattr(
        decoding,
        "batches",
        lambda *given: (calls.append([list(g.prompt) for g in part]) or part for part in parts(*given)),
    )
    return calls


ENDS = {"one": [3], "several": [3, 20, 21, 22, 23, 24, 25, 40, 41, 42], "never": [66]}


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("rows", [2, 3, 256])
def test_greedy_rollouts_equal_those_of_generate(plain, model, monkeypatch, ends, penalty, rows):
    """Token for token, however many rows run beside each other."""
    monkeypatch.setattr(decoding, "MAX_ROWS", rows)
    monkeypatch.setattr(decoding, "LOOK", rows if rows < 9 else 16)
    found = rollout(model, PROMPTS, 2, Sampling(17, ENDS[ends], repetition_penalty=penalty, greedy=True))
    assert [one.prompt for one in found] == [prompt for prompt in PROMPTS for _ in range(2)]
    for one in found:
        expected = plain.generate(
            torch.tensor([one.prompt]),
            max_new_tokens=17,
            do_sample=False,
            eos_token_id=ENDS[ends],
            repetition_penalty=penalty,
        )
        assert one.completion == expected[0, len(one.prompt) :].tolist()
        assert one.finished == (one.completion[-1] in ENDS[ends])
    assert len({len(one.completion) for one in found}) > 1 or ends != "several"


OTHERS = {
    "Qwen2, with biases": (Qwen2Config, {}),
    "Llama, with tied embeddings": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "Mistral, with a window": (MistralConfig, {"sliding_window": 32}),
    "Mistral, with a window shorter than rows": (MistralConfig, {"sliding_window": 5}),
    "OLMo 2, which normalizes afterwards": (Olmo2Config, {}),
    "Phi-3, with one matrix for all heads": (Phi3Config, {"pad_token_id": 0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("family", OTHERS)
def test_greedy_rollouts_equal_those_of_generate_in_other_families(family, lora):
    config, settings = OTHERS[family]
    model = generator(67, config=config, **settings)
    if lora:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    greedy = Sampling(9, ENDS["several"], greedy=True)
    expected = rollout(model, PROMPTS, 1, greedy, "transformers")
    assert share(model) is None
    found = rollout(model, PROMPTS, 1, greedy)
    assert tokens(found) == tokens(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=0)
    assert shares(model, [Group([1], [[1]])])


# top_k and top_p leave words out that the temperature alone would sample.
SAMPLINGS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.3},
    "all": {"temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.25},
}
SAMPLES = 4000


def probs_by_definition(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The probability of each word, in the order of `generate`: the best k, then the fewest that have p of what is left,
    then those not too far behind the best.
    """
    probs = dict(enumerate((logits.double() / temperature).softmax(-1).tolist()))
    best = sorted(probs, key=probs.get, reverse=True)[: top_k or None]
    total, chosen = 0.0, []
    for word in best:
        if total < top_p:
            chosen.append(word)
            total += probs[word] / sum(probs[each] for each in best)
    chosen = [word for word in chosen if probs[word] >= min_p * probs[chosen[0]]]
    return {word: probs[word] / sum(probs[each] for each in chosen) for word in chosen}


def pairs_by_definition(model, prompt, **settings):
    """The probability of each pair of first two words, of which 0 ends a completion."""

    def after(*words):
        with torch.no_grad():
            return probs_by_definition(model(torch.tensor([[*prompt, *words]])).logits[0, -1], **settings)

    pairs = {}
    for first, chance in after().items():
        if first == 0:
            pairs[(0,)] = chance
        else:
            pairs |= {(first, second): chance * each for second, each in after(first).items()}
    return pairs


def apart(counts, probs):
    """Pearson's statistic in standard deviations above its mean, pairs expected less than 5 times taken together."""
    rare = [pair for pair, chance in probs.items() if chance * SAMPLES < 5]
    cells = [(counts[pair], chance * SAMPLES) for pair, chance in probs.items() if pair not in rare]
    cells += [(sum(counts[pair] for pair in rare), sum(probs[pair] for pair in rare) * SAMPLES)] if rare else []
    freedom = len(cells) - 1
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize("which", SAMPLINGS)
def test_first_and_second_words_have_their_exact_probabilities(few_words, monkeypatch, which):
    """A correct sampler exceeds 5 standard deviations once in a hundred thousand seeds; a wrong one by far."""
    monkeypatch.setattr(decoding, "MAX_ROWS", 1500)
    settings = SAMPLINGS[which]
    found = rollout(few_words, [[1, 2, 3], [4]], SAMPLES, Sampling(2, [0], seed=11, **settings))
    for prompt, part in (([1, 2, 3], found[:SAMPLES]), ([4], found[SAMPLES:])):
        counts = Counter(tuple(one.completion) for one in part)
        exact = pairs_by_definition(few_words, prompt, **settings)
        assert len(exact) > 5
        assert not set(counts) - set(exact)
        assert abs(apart(counts, exact)) < 5
        for other in SAMPLINGS:
            if other != which:
                wrong = pairs_by_definition(few_words, prompt, **SAMPLINGS[other])
                assert set(counts) - set(wrong) or apart(counts, wrong) > 20, other


def test_nothing_is_left_out_by_default(few_words):
    """Words of a probability below 0.001 are sampled too."""
    found = rollout(few_words, [[1, 2, 3]], SAMPLES, Sampling(1, [0], temperature=3.0, seed=1))
    assert {one.completion[0] for one in found} == set(range(WORDS))
    assert not list(sampler._filters(Sampling(1, [0])))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20}])
@pytest.mark.parametrize("engine", ["shared", "transformers"])
def test_recorded_log_probabilities_are_those_of_the_sampled_tokens(model, engine, settings):
    found = rollout(model, PROMPTS, 4, Sampling(14, [3, 20, 21], seed=5, **settings), engine)
    groups = [Group(one.prompt, [one.completion]) for one in found]
    with torch.no_grad():
        scored = completion_logps(model, groups, temperature=settings.get("temperature", 1.0))
    for one, logps in zip(found, scored.logps, strict=True):
        torch.testing.assert_close(torch.tensor(one.logps), logps[: len(one.logps)], atol=1e-5, rtol=0)


SEEDED = Sampling(12, [3, 20, 21, 22, 23, 24, 25], seed=42)


def test_a_row_depends_only_on_its_seed_its_prompt_and_its_number(model, monkeypatch):
    found = rollout(model, PROMPTS, 3, SEEDED)
    assert rollout(model, PROMPTS, 3, SEEDED) == found
    assert rollout(model, PROMPTS, 3, Sampling(12, SEEDED.eos_token_ids, seed=43)) != found
    others = [PROMPTS[0], [30, 31], PROMPTS[2], [32] * 20]  # other prompts beside those that stay
    changed = rollout(model, others, 3, SEEDED)
    for first in (0, 6):
        assert tokens(changed[first : first + 3]) == tokens(found[first : first + 3])
    assert len({tuple(one.completion) for one in found}) == len(found)
    for rows in (1, 2, 3, 5):
        monkeypatch.setattr(decoding, "MAX_ROWS", rows)
        assert tokens(rollout(model, PROMPTS, 3, SEEDED)) == tokens(found)


def test_without_a_seed_torchs_generator_decides(model):
    sampling = Sampling(12, SEEDED.eos_token_ids)
    torch.manual_seed(1)
    found = rollout(model, PROMPTS, 2, sampling)
    torch.manual_seed(1)
    assert rollout(model, PROMPTS, 2, sampling) == found
    assert rollout(model, PROMPTS, 2, sampling) != found


def tokens(found: list[Rollout]):
    return [one.completion for one in found]


def test_finished_rows_are_replaced_by_waiting_ones(model, monkeypatch):
    """At a look: so a row is computed for at most a look's tokens more than it has, and others come in before all end."""
    monkeypatch.setattr(decoding, "MAX_ROWS", 8)
    monkeypatch.setattr(decoding, "LOOK", 2)
    real, steps = decoding.Batch.run, []
    monkeypatch.setattr(
        decoding.Batch, "run", lambda self, count: steps.append(count * len(self.rows)) or real(self, count)
    )
    found = rollout(model, PROMPTS, 5, SEEDED)
    needed = sum(len(one.completion) - 1 for one in found)
    assert needed <= sum(steps) < needed + 2 * len(found)
    assert max(steps) == 2 * 8
    assert len({len(one.completion) for one in found}) > 3
    assert len(steps) * 2 < sum(sorted(len(one.completion) for one in found)[-len(found) // 8 :])


def test_each_prompt_is_prefilled_once(model, prefills):
    rollout(model, [*PROMPTS, PROMPTS[0], PROMPTS[1]], 4, SEEDED)
    assert prefills == [PROMPTS]


def test_long_prompts_are_prefilled_a_few_at_a_time(model, prefills, monkeypatch):
    expected = rollout(model, PROMPTS, 2, SEEDED)
    prefills.clear()
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 4)
    assert tokens(rollout(model, PROMPTS, 2, SEEDED)) == tokens(expected)
    assert prefills == [PROMPTS[:2], PROMPTS[2:3], PROMPTS[3:]]


def test_one_token_at_most(model):
    found = rollout(model, PROMPTS, 2, Sampling(1, [3], seed=0))
    assert {len(one.completion) for one in found} == {1}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("engine", ["shared", "transformers"])
def test_the_mode_of_a_model_is_restored(model, training, engine):
    model.train(training)
    rollout(model, PROMPTS, 1, SEEDED, engine)
    assert model.training == training
    model.eval()


def test_auto_takes_the_fastest_engine_and_says_which(plain, model, caplog, monkeypatch):
    caplog.set_level("INFO", "rlhf")
    greedy = Sampling(4, [3], greedy=True)
    monkeypatch.setattr(rollouts, "_said", weakref.WeakKeyDictionary())
    for _ in range(2):
        rollout(model, PROMPTS, 1, greedy)
    assert caplog.messages == ["answers are sampled by our engine, which computes each prompt once (shared)"]
    caplog.clear()
    rollout(plain, PROMPTS, 1, greedy)
    assert "answers are sampled by transformers' generate (transformers)" in caplog.messages
    gpu = copy.deepcopy(plain).float()
    monkeypatch.setattr(type(gpu), "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(rollouts, "checked", lambda model, check, *_: None)
    assert rollouts.chosen(gpu, "auto", 9) == "continuous"
    monkeypatch.setattr(rollouts, "checked", lambda model, check, *_: check.__name__.startswith("continuing") or None)
    assert rollouts.chosen(gpu, "auto", 9) == rollouts.chosen(gpu, "continuous", 9) == "transformers"


def test_continuous_batching_is_not_taken_for_what_it_leaves_out(plain, monkeypatch):
    """transformers says so of each processor; `auto` and `check` rely on it."""
    assert not RepetitionPenaltyLogitsProcessor.supports_continuous_batching
    asked = []
    monkeypatch.setattr(rollouts, "chosen", lambda model, engine, longest: asked.append(engine) or "transformers")
    for penalty in (1.0, 1.2):
        rollout(plain, PROMPTS, 1, Sampling(2, [3], repetition_penalty=penalty))
    assert asked == ["auto", "shared"]
    with pytest.raises(ValueError, match="leaves out the penalty"):
        rollout(plain, PROMPTS, 1, Sampling(2, [3], repetition_penalty=1.2), "continuous")


def test_log_probabilities_are_those_before_a_penalty_for_repetition(model):
    """As of the other engines, and as a loss computes them."""
    sampling = Sampling(6, [3], 0.8, repetition_penalty=1.5, seed=0)
    for one in rollout(model, PROMPTS, 2, sampling):
        expected = completion_logps(model, [Group(one.prompt, [one.completion])], temperature=0.8).logps[0]
        torch.testing.assert_close(torch.tensor(one.logps), expected.float(), atol=1e-5, rtol=0)


def test_a_check_of_generate_does_not_end_at_the_models_own_end_tokens(plain):
    plain = copy.deepcopy(plain)
    plain.generation_config.eos_token_id = list(range(67))
    assert self_check.generation_disagrees(plain, None, rollouts._forced) is None


def test_continuous_batching_is_compared_with_generate(plain):
    double = copy.deepcopy(plain).float()
    before = torch.get_rng_state()
    assert self_check.continuing_disagrees(double, None, rollouts._greedy) is None
    assert torch.get_rng_state().equal(before)
    wrong = self_check.continuing_disagrees(double, None, lambda model, rows, way: [[len(way)]] * len(rows))
    assert wrong == "its likeliest tokens are others than those of generate"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "continuous"])
def test_other_engines_return_valid_rollouts(model, engine):
    """Greedy ones are the same; sampled ones end correctly and have their log-probabilities."""
    double, prompts = model, PROMPTS[:2]
    if engine == "continuous":
        double = copy.deepcopy(model).float()  # its cache has no float64
    greedy = Sampling(6, [3, 20, 21], greedy=True)
    assert tokens(rollout(double, prompts, 1, greedy, engine)) == tokens(rollout(model, prompts, 1, greedy))
    found = rollout(double, prompts, 2, Sampling(8, SEEDED.eos_token_ids, 0.8), engine)
    assert [one.prompt for one in found] == [prompt for prompt in prompts for _ in range(2)]
    for one in found:
        assert 1 <= len(one.completion) <= 8
        assert not set(one.completion[:-1]) & set(SEEDED.eos_token_ids)
        assert one.finished == (one.completion[-1] in SEEDED.eos_token_ids)
        logps = completion_logps(model, [Group(one.prompt, [one.completion])], temperature=0.8).logps[0]
        torch.testing.assert_close(torch.tensor(one.logps), logps, atol=1e-3, rtol=0)
    assert shares(double, [Group([1], [[1]])])  # still set up as before
