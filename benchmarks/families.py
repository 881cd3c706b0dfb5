"""Every causal family of transformers that can be built small: what it shares, and whether it is right.

    python benchmarks/families.py                  # all, an hour on one core
    python benchmarks/families.py gpt2 mamba       # some of them
    python benchmarks/families.py --table          # docs/families.md from the last results

Each is built from its configuration with random weights. Log-probabilities, gradients and greedy rollouts are compared
with plain float64, each row alone, without any code of the engine; a step of each method is trained. The results are
written to benchmarks/results/families.json.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
import transformers
from record import record
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_core import testing
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import RunStopped, UserError
from rlhf_core.prefix import Group, Sampling, completion_logps, rollout, share, shares
from rlhf_core.prefix.sharing import pads
from rlhf_core.training.run import prepare

VOCABULARY = 2048  # the built-in tokenizer's
LARGEST = 8e6  # parameters of what still counts as small
SECONDS = 240  # for one family
NEAR = 1e-4
RESULTS = Path(__file__).parent / "results" / "families.json"
TABLE = Path(__file__).parents[1] / "docs" / "families.md"

# Under every name that configurations have for it; each takes what it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("encoder_layers", "num_key_value_heads", "mamba_expand", "altup_num_inputs"), 2),
    **dict.fromkeys(("encoder_attention_heads", "time_step_rank", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("rotary_dim", "laurel_rank"), 4),
    **{
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "pad_index": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    },
}
SPECIAL: dict[str, dict[str, Any]] = {  # what some families need beyond
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"] * 2, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "zamba2": {"num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "dots1": {"n_shared_experts": 1},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 64,
    "factor": 8.0,
}
SCALED = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "mistral, a window of 300": ("mistral", {"sliding_window": 300}),
    "mistral, a window of 16": ("mistral", {"sliding_window": 16}),
    "qwen2, a window of 80": ("qwen2", {"use_sliding_window": True, "sliding_window": 80, "max_window_layers": 2}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "granite, plain logits": ("granite", {"logits_scaling": 1.0, **SCALED}),
    "granite, scaled logits": ("granite", {"logits_scaling": 8.0, **SCALED}),
    "cohere, plain logits": ("cohere", {"logit_scale": 1.0}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox, sequential": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "gemma3n_text, keys of other layers": ("gemma3n_text", {"num_kv_shared_layers": 2}),
    "gemma4_text, keys of other layers": ("gemma4_text", {"num_kv_shared_layers": 2}),
    "opt, narrow embeddings": ("opt", {"word_embed_proj_dim": 16}),
}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {},
    "orpo": {},
    "reward_model": {},
    "grpo": {"reward": ["length.py:length"], "num_generations": 2, "beta": 0.1},
    "ppo": {"reward": ["length.py:length"]},
}
ROWS = [{"prompt": f"Question {i} " * (i + 1), "chosen": "good " * (i + 2), "rejected": "bad " * 3} for i in range(8)]
REWARD = "def length(completions, **_):\n    return [len(str(one)) % 7 for one in completions]\n"


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


SIZES = [(5, (1, 9, 3)), (70, (40, 1, 20)), (2, (4, 30)), (110, (5, 2))]  # of a prompt, and of its completions
GROUPS = [
    Group(tokens(prompt, 10 * i), [tokens(size, 10 * i + j + 1) for j, size in enumerate(completions)])
    for i, (prompt, completions) in enumerate(SIZES)
]
PAIRS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]


def build(kind: str, special: dict[str, Any]) -> Any:
    """A model of this family in float32, with weights so large that a mistake shows."""
    base = CONFIG_MAPPING[kind]()
    names = base.to_dict().keys() | base.attribute_map.keys()
    settings = {name: value for name, value in SMALL.items() if name in names}
    if "kv_lora_rank" in settings:
        settings.pop("head_dim", None)
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    if kind == "falcon":
        settings.pop("head_dim", None)
    if "index_topk" in names:
        settings |= {"index_topk": 16, "index_n_heads": 2, "index_head_dim": 16}
    settings |= {name: 0.0 for name in names if "drop" in name and isinstance(getattr(base, name, None), float)}
    if "is_decoder" in names:
        settings["is_decoder"] = True
    kinds = list(dict.fromkeys(getattr(base, "layer_types", None) or []))
    layers = {"layer_types": (kinds * 4)[:4]} if kinds else {}
    settings |= SPECIAL.get(kind, {}) | special
    try:
        config = type(base)(**settings, **layers)
    except Exception:  # of any kind: the layers follow from other settings
        config = type(base)(**settings)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "A_log" in name or "dt_" in name or name.endswith(".D"):
                continue
            if "sink" in name:
                weight.copy_(noise + 1)
            elif weight.dim() >= 2:
                embedding = "embed" in name or "wte" in name
                weight.copy_(noise * (0.5 if embedding else 0.6 / weight.shape[-1] ** 0.5))
            else:
                weight.add_(noise * (0.1 if name.endswith("weight") else 0.05))
    return model.eval()


def logps(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """By definition: one row, no padding."""
    found = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    return found.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None])[:, 0]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model: Any, exact: Any) -> dict[str, Any]:
    """How far the engine is from `exact`, which is a copy in float64 that knows nothing of it."""
    factors = [0.5 + torch.rand(len(row), generator=torch.Generator().manual_seed(1)).double() for _, row in PAIRS]
    expected = [logps(exact, *pair) for pair in PAIRS]
    sum((one * factor).sum() for one, factor in zip(expected, factors, strict=True)).backward()
    theirs = gradients(exact)
    why = share(model)
    shared = [shares(model, [group]) for group in GROUPS]
    alone = not all(shared) and not all(
        pads(model, len(group.prompt) + max(map(len, group.completions))) for group in GROUPS
    )
    found = completion_logps(model, GROUPS).logps
    rows = list(zip(found, expected, factors, strict=True))
    apart = max((one[: len(other)] - other).abs().max().item() for one, other, _ in rows)
    sum((one[: len(factor)] * factor.float()).sum() for one, _, factor in rows).backward()
    ours = gradients(model)
    largest = max(gradient.norm().item() for gradient in theirs.values())
    by = max((ours.get(name, torch.zeros_like(g)) - g).norm().item() for name, g in theirs.items()) / largest
    way = "shared" if all(shared) else "shared up to a length" if any(shared) else "alone" if alone else "padded"
    return {"way": way, "why": why, "logps_apart": apart, "gradients_apart": by}


@torch.no_grad()
def greedy(model: Any, exact: Any) -> dict[str, Any]:
    """Greedy rollouts: tokens that are not the likeliest by `exact`, and how far log-probabilities are apart."""
    prompts = [GROUPS[0].prompt, GROUPS[1].prompt, GROUPS[2].prompt]
    wrong, apart = 0, 0.0
    for one in rollout(model, prompts, 1, Sampling(12, [2], greedy=True)):
        ids = torch.tensor([[*one.prompt, *one.completion]])
        rows = exact(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)[len(one.prompt) - 1 : -1]
        for row, token, logp in zip(rows, one.completion, one.logps, strict=True):
            wrong += bool(row.max() - row[token] > NEAR)
            apart = max(apart, abs(row[token].item() - logp))
    return {"tokens_wrong": wrong, "sampled_logps_apart": apart}


def train(folder: Path, method_name: str, options: dict[str, Any]) -> str:
    """`ok`, or what a step of this method ends in."""
    config, method = resolve(
        {
            "method": method_name,
            "model": str(folder),
            "data": "data.jsonl",
            "output_dir": f"out-{method_name}",
            "max_steps": 1,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_eval_prompts": 0,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            **({} if method_name in ("sft", "reward_model", "dpo", "orpo") else {"max_completion_length": 6}),
            **options,
        },
        Catalog(),
    )
    try:
        trainer = method.trainer(prepare(config, method, Catalog()))
        trainer.train()
    except (UserError, RunStopped) as error:
        return f"refused: {first_words(error)}"
    except Exception as error:
        if "-v" in sys.argv:
            traceback.print_exc(file=sys.__stderr__)
        return f"{type(error).__name__}: {first_words(error)}"
    loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    return "ok" if torch.isfinite(torch.tensor(loss)) else f"loss {loss}"


def first_words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def family(kind: str, special: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        model = build(kind, special)
        with contextlib.suppress(Exception):
            model.set_experts_implementation("eager")  # the grouped kernel knows no float64
        exact = copy.deepcopy(model).double()
        exact.set_attn_implementation("eager")
        with torch.no_grad():
            logps(exact, *PAIRS[0])
    except Exception as error:
        return {"not_built": f"{type(error).__name__}: {first_words(error)}"}
    model.save_pretrained(folder)
    result: dict[str, Any] = {}
    try:
        result |= compare(model, exact)
        result |= greedy(model, exact)
    except Exception as error:
        if "-v" in sys.argv:
            traceback.print_exc(file=sys.__stderr__)
        result["error"] = f"{type(error).__name__}: {first_words(error)}"
    result["methods"] = {name: train(folder, name, options) for name, options in METHODS.items()}
    return result


def late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def measure(names: list[str]) -> None:
    kinds = {kind: (kind, {}) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | VARIANTS
    figures = json.loads(RESULTS.read_text())["figures"] if RESULTS.exists() and names else {}
    signal.signal(signal.SIGALRM, late)
    for name in names or kinds:
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            folder = testing.tiny_model(Path("model"))
            for file in ("config.json", "generation_config.json", "model.safetensors"):
                (folder / file).unlink(missing_ok=True)
            Path("length.py").write_text(REWARD)
            Path("data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    figures[name] = family(*kinds[name], folder)
            except TimeoutError as error:
                figures[name] = {"not_built": str(error)}
            finally:
                signal.alarm(0)
        print(name, json.dumps(figures[name], ensure_ascii=False), flush=True)
    record("families", dict(sorted(figures.items())))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    measure([argument for argument in sys.argv[1:] if not argument.startswith("-")])
