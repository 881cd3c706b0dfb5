"""The trainers that `benchmarks.vs_trl` compares, ours and TRL's, on the same work."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

EOS_TOKENS = 64  # of the 8,192 tokens end an answer, so that answers differ in length


def model_of(task: str = "causal_lm") -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        eos_token_id=list(range(EOS_TOKENS)),
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = (Qwen3ForCausalLM if task == "causal_lm" else Qwen3ForSequenceClassification)(config)
    model.config._name_or_path = model.name_or_path = "random"
    return model


def adapter(work: dict[str, Any]) -> Any:
    from peft import LoraConfig

    if "lora" not in work:
        return None
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def grpo(method: str, side: str, work: dict[str, Any], args: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    import torch
    from datasets import Dataset
    from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from rlhf_core import builtin
    from rlhf_core.prefix import sampler, share

    settings = {key: work[key] for key in ("gradient_accumulation_steps", "num_iterations", "beta") if key in work}
    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)
    model = model_of()
    if side == "ours":
        share(model)
    trainer = (SharedPrefixGRPOTrainer if side == "ours" else GRPOTrainer)(
        model=model,
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=work.get("generations", 8),
            num_generations=work.get("generations", 8),
            max_completion_length=work["completion"],
            max_steps=args.steps * settings.get("num_iterations", 1) + settings.get("num_iterations", 1),
            learning_rate=1e-5,
            use_cpu=True,
            bf16=False,
            **(quiet() | {"gradient_accumulation_steps": 1} | settings),
        ),
        reward_funcs=[lambda completion_ids, **_: [float(sum(ids) % 97) for ids in completion_ids]],
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(400)]),
        processing_class=tokenizer,
        peft_config=adapter(work),
    )
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(100, 8000, (400, work["prompt"]), generator=generator).tolist()
    trainer._tokenize_prompts = lambda texts: ([prompts[int(text)] for text in texts], None, {})
    table = UniformTable(work["completion"])
    sampler.uniforms = table.uniforms
    torch.multinomial = table.multinomial
    generate, lengths, seconds = trainer._generate_single_turn, [], []

    def timed(ids: Any, *more: Any, **options: Any) -> Any:
        table.begin(len(ids))
        began = time.perf_counter()
        result = generate(ids, *more, **options)
        seconds.append(time.perf_counter() - began)
        lengths.append([len(completion) for completion in result[0]])
        return result

    trainer._generate_single_turn = timed
    return trainer, lambda: {"generation": seconds, "work": lengths[0]}


class UniformTable:
    """The same uniform numbers for each answer's tokens on both sides."""

    def __init__(self, tokens: int) -> None:
        import torch

        self.tokens, self.generator = tokens, torch.Generator().manual_seed(2)

    def begin(self, rows: int) -> None:
        import torch

        self.table = torch.rand(rows, self.tokens, dtype=torch.float64, generator=self.generator)
        self.position = 0

    def uniforms(self, rows: int, sampling: Any) -> Any:
        return self.table

    def multinomial(self, probabilities: Any, num_samples: int) -> Any:
        import torch

        bounds = probabilities.double().cumsum(-1)
        points = self.table[:, self.position, None] * bounds[:, -1:]
        self.position += 1
        return torch.searchsorted(bounds, points, right=True)


def on_data(method: str, side: str, work: dict[str, Any], args: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """The methods that train on a file, built by our plugins on our side and from TRL's classes on the other."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from rlhf_core import builtin
    from rlhf_core.data import encoding
    from rlhf_core.prefix import share

    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)
    lines = (args.data / work["data"]).read_text(encoding="utf-8").splitlines()
    rows = encoded(method, side, list(map(json.loads, lines)), tokenizer, encoding)
    count = (args.steps + 1) * work["batch"]
    data = Dataset.from_list(rows[:count])
    model = model_of("sequence_classification" if method == "reward_model" else "causal_lm")
    if side == "ours":
        share(model)
    common = quiet() | {
        "output_dir": folder,
        "per_device_train_batch_size": work["batch"],
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "gradient_accumulation_steps": 1,
    }
    trainer = BUILDERS[method](side, model, data, tokenizer, common)
    return trainer, lambda: {"work": count}


def encoded(method: str, side: str, rows: list[dict[str, Any]], tokenizer: Any, encoding: Any) -> list[dict[str, Any]]:
    """Token ids of the file's rows, cut to 1,024 tokens of prompt and 512 of answer, or 1,024 of conversation."""
    from rlhf_core.catalog import Catalog
    from rlhf_core.data.chat_template import ChatTemplate

    result, template = [], ChatTemplate(tokenizer)
    convert = Catalog().load("formatters", "sharegpt" if method == "sft" else "preference")[0].convert
    for row in rows:
        example = convert(row)
        if method == "sft":
            for ids, labels in encoding.encode_conversation(
                template, [*(example.prompt or []), *(example.completion or [])]
            ):
                result.append({"input_ids": ids[:1024], "labels": labels[:1024]})
            continue
        prompt, chosen, _ = encoding.encode_answer(template, example.prompt, example.chosen)
        _, rejected, _ = encoding.encode_answer(template, example.prompt, example.rejected)
        pair = {"prompt_ids": prompt[-1024:], "chosen_ids": chosen[:512], "rejected_ids": rejected[:512]}
        if method == "reward_model" and side != "ours":
            before = pair.pop("prompt_ids")
            pair = {key: before + ids for key, ids in pair.items()}
        result.append(pair)
    return [{k: [i % 8192 for i in v] if k != "labels" else v for k, v in row.items()} for row in result]


def our_pair_trainer(loss: Any, model: Any, data: Any, common: dict[str, Any], **more: Any) -> Any:
    from transformers import TrainingArguments

    from rlhf_core import PairTrainer

    args = TrainingArguments(remove_unused_columns=False, gradient_checkpointing=True, **common)
    return PairTrainer(loss=loss, model=model, args=args, train_dataset=data, **more)


def build_dpo(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    import copy

    from trl import DPOConfig, DPOTrainer

    if side == "ours":
        from rlhf_method_dpo import dpo_loss

        from rlhf_core import ReferenceModel

        reference = ReferenceModel(model, fresh_adapter=False)
        return our_pair_trainer(lambda pairs: dpo_loss(pairs, 0.1), model, data, common, reference=reference)
    plain = type("Plain", (DPOTrainer,), {"_prepare_dataset": lambda self, data, *rest, **more: data})
    args = DPOConfig(max_length=None, **common)
    reference = copy.deepcopy(model)
    return plain(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer)


def build_reward_model(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    if side == "ours":
        from rlhf_method_reward_model import reward_loss

        return our_pair_trainer(lambda pairs: reward_loss(pairs, None), model, data, common, scores=True)
    args = RewardConfig(max_length=None, **common)
    return RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def build_orpo(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    if side == "ours":
        from rlhf_method_orpo import orpo_loss

        return our_pair_trainer(lambda pairs: orpo_loss(pairs, 0.1), model, data, common)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    text = data.map(lambda row: {k.removesuffix("_ids"): tokenizer.decode(v) for k, v in row.items()})
    text = text.remove_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    args = ORPOConfig(max_length=1536, gradient_checkpointing=True, **common)
    return ORPOTrainer(model=model, args=args, train_dataset=text, processing_class=tokenizer)


def build_sft(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    from rlhf_method_sft.trainer import concatenate_rows
    from trl import SFTConfig, SFTTrainer

    packing = {"packing": True, "max_length": 1024} if side == "packing" else {"max_length": 1024}
    if side == "packing":
        common = common | {"per_device_train_batch_size": 4}
    args = SFTConfig(**packing, **common)
    collator = concatenate_rows if side == "ours" else None
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, data_collator=collator)


BUILDERS = {"dpo": build_dpo, "orpo": build_orpo, "reward_model": build_reward_model, "sft": build_sft}


def quiet() -> dict[str, Any]:
    return {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
