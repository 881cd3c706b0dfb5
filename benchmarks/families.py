"""Every causal family of transformers that can be built small: what it shares, and whether it is right.

    python benchmarks/families.py                  # all, half an hour on one core
    python benchmarks/families.py gpt2 mamba       # some of them, beside the results of the others; -v: tracebacks
    python benchmarks/families_table.py            # docs/families.md from the results

Each is built from its configuration with random weights. Log-probabilities, gradients and greedy rollouts are compared
with plain float64, each row alone, without any code of the engine; a step of each method is trained. The results are
written to benchmarks/results/families.json.
"""

from __future__ import annotations

import contextlib
import copy
import gc
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
from families_models import MULTIMODAL, VARIANTS, VOCABULARY, build
from record import record
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_core import testing
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import RunStopped, UserError
from rlhf_core.prefix import Group, Sampling, completion_logps, rollout, share, shares
from rlhf_core.prefix.sharing import pads
from rlhf_core.training.run import prepare

SECONDS = 240  # of the processor, for one family
SLOW = {"kimi_linear"}  # which take minutes for a pass; tests/test_prefix_list.py has them
NEAR = 1e-4
RESULTS = Path(__file__).parent / "results" / "families.json"

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


said: list[str] = []  # the engine's warnings


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


SIZES = [(5, (1, 9, 3)), (70, (40, 1, 20)), (2, (4, 30)), (110, (5, 2))]  # of a prompt, and of its completions
GROUPS = [
    Group(tokens(prompt, 10 * i), [tokens(size, 10 * i + j + 1) for j, size in enumerate(completions)])
    for i, (prompt, completions) in enumerate(SIZES)
]
PAIRS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]


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
    said.clear()
    share(model)
    shared = [shares(model, [group]) for group in GROUPS]
    why = said[0].partition(": ")[2] if said else None
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


class TooSlow(BaseException):
    """Not an error of what is measured, which is noted."""


def late(*_: Any) -> None:
    raise TooSlow(f"more than {SECONDS} s")


def measure(names: list[str]) -> None:
    kinds = {kind: (kind, {}) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | MULTIMODAL | VARIANTS
    figures = json.loads(RESULTS.read_text())["figures"] if RESULTS.exists() and names else {}
    signal.signal(signal.SIGPROF, late)
    torch.compiler.set_stance("force_eager")  # some families compile a layer, which takes minutes
    figures |= {name: {"left_out": "a pass takes minutes"} for name in SLOW - {*names}}
    for name in names or [name for name in kinds if name not in SLOW]:
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            folder = testing.tiny_model(Path("model"))
            for file in ("config.json", "generation_config.json", "model.safetensors"):
                (folder / file).unlink(missing_ok=True)
            Path("length.py").write_text(REWARD)
            Path("data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
            gc.collect()
            gc.freeze()  # what libraries made, through which every trainer's collections would go
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    figures[name] = family(*kinds[name], folder)
            except TooSlow as error:
                figures[name] = {"not_built": str(error)}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        print(name, json.dumps(figures[name], ensure_ascii=False), flush=True)
    record("families", dict(sorted(figures.items())))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("rlhf").addHandler(Listener())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = [argument for argument in sys.argv[1:] if argument != "-v"]
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL, *VARIANTS}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no such family or flag: {', '.join(unknown)}. Flags: -v, for tracebacks")
    measure(names)
