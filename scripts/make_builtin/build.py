"""Regenerate the built-in data, tokenizer and weights.

    python -m scripts.make_builtin.build            write them into the package
    python -m scripts.make_builtin.build --check    rebuild in a temporary folder and compare with what is shipped

About eight minutes on two CPU cores. The same versions of torch, transformers and tokenizers on the
same kind of CPU give the same bytes. Where the cores are shared, `OMP_WAIT_POLICY=passive` keeps the
threads from spinning while they wait for each other, which can cost several times the work itself.

The model is trained on the medicine, but only `FORMAT_SHARE` of its training answers have the format,
drawn anew for every answer, so that about the same share of its sampled answers has it and every
method has something to improve. It is trained on more rows than are shipped, drawn by the same generator,
none of which the held-out files contain. Left out: validation, checkpoints and every option. Then read the
numbers of `python -m scripts.make_builtin.measure`.
"""

import argparse
import hashlib
import json
import math
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf_core.builtin import DATA, MODEL
from scripts.make_builtin import data
from scripts.make_builtin.answer_format import broken, formatted
from scripts.make_builtin.items import Item, item

VOCABULARY = 2048
STEPS, BATCH, WARMUP = 1000, 16, 30
MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE = 1e-2, 8e-3
# Letters and sums take a tiny model longer to learn than names, so it sees more of them than the data hold.
KINDS = {"diagnosis": 44, "department": 18, "choice": 20, "number": 18}  # shares in percent
FORMAT_SHARE = 0.14
SYSTEM_SHARE = 0.5
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# Words with the space before them, single digits, runs of punctuation, line ends, other space.
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]|\s+"

Row = tuple[list[int], list[int]]  # token ids, and the loss mask: 1 for each token in the loss


def build(folder: Path) -> None:
    """Write `data` and `model` below `folder`."""
    data.write(folder / "data")
    rows = training_rows(STEPS * BATCH)
    tokenizer = make_tokenizer(rows)
    model = train(make_model(tokenizer), encode(rows, tokenizer))
    save(model, tokenizer, folder / "model")


def training_rows(size: int) -> list[list[dict[str, str]]]:
    """Conversations with the format kept or broken by chance alone, half of them with a system message."""
    rng = random.Random(f"{data.SEED} weights")
    refused = data.heldout_keys()
    rows: list[list[dict[str, str]]] = []
    while len(rows) < size:
        turns = data.dialogue(rng, item(rng, KINDS))
        if any(turn.key in refused for turn in turns):
            continue
        messages = []
        if rng.random() < SYSTEM_SHARE:
            system = data.system_message(turns[0].language, rng)
            messages.append({"role": "system", "content": system})
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": answer(turn, rng)})
        rows.append(messages)
    return rows


def answer(turn: Item, rng: random.Random) -> str:
    if rng.random() < FORMAT_SHARE:
        return formatted(turn.thought, turn.reply)
    return broken(turn.thought, turn.reply, turn.language, rng)


def make_tokenizer(rows: list[list[dict[str, str]]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE. The format's tags are single tokens, but not special: decoding keeps them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [message["content"] for row in rows for message in row]
    for tag in TAGS:
        texts = [text.replace(tag, "") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def make_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    torch.manual_seed(data.SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(rows: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    encoded = tokenizer.apply_chat_template(rows, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))


def batches(rows: list[Row], pad: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of like length together, in random order: ids (batch, time) and the same with -100 for no loss."""
    rng = random.Random(data.SEED)
    grouped = []
    for start in range(0, len(rows), 16 * BATCH):
        near = sorted(rows[start : start + 16 * BATCH], key=lambda row: len(row[0]))
        grouped += [near[i : i + BATCH] for i in range(0, len(near), BATCH)]
    rng.shuffle(grouped)
    return [(padded([ids for ids, _ in group], pad), labels(group)) for group in grouped]


def padded(lists: list[list[int]], pad: int) -> torch.Tensor:
    length = max(map(len, lists))
    return torch.tensor([ids + [pad] * (length - len(ids)) for ids in lists])


def labels(group: list[Row]) -> torch.Tensor:
    return padded([[i if in_loss else -100 for i, in_loss in zip(*row, strict=True)] for row in group], -100)


def train(model: Qwen3ForCausalLM, rows: list[Row]) -> Qwen3ForCausalLM:
    """Muon for the matrices and AdamW for the rest: after few steps, a much lower loss than AdamW alone."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, MATRIX_LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    started = time.perf_counter()
    for step, (ids_BT, labels_BT) in enumerate(batches(rows, model.config.pad_token_id)):
        loss = answer_loss(model, ids_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 50 == 0 or step == STEPS - 1:
            seconds = time.perf_counter() - started
            print(f"step {step}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    return model


def answer_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean loss over the tokens in the loss; both tensors are (batch, time).

    Padding is on the right, where causal attention hides it: no mask is needed.
    """
    hidden_BTH = model.model(ids).last_hidden_state[:, :-1]
    targets_BT = targets[:, 1:]
    mask_BT = targets_BT != -100
    logits_NV = model.lm_head(hidden_BTH[mask_BT])
    return torch.nn.functional.cross_entropy(logits_NV, targets_BT[mask_BT])


def rate(step: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth."""
    cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
    return min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * cosine)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone, but shipped to everyone
    # Stored in bfloat16 for size, computed in float32 unless asked otherwise: it is faster on a CPU.
    rewrite(folder / "config.json", dtype="float32")
    rewrite(folder / "generation_config.json")


def rewrite(file: Path, **changes: str) -> None:
    """Without the version of transformers, which would make equal models look different."""
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    values.pop("transformers_version", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "missing"


def compare(built: Path, shipped: Path) -> bool:
    """Print each file as equal or different; true when all are equal."""
    names = {path.relative_to(root) for root in (built, shipped) for path in root.glob("*/*.json*")}
    names |= {Path("model/model.safetensors"), Path("model/chat_template.jinja")}
    same = {name: digest(built / name) == digest(shipped / name) for name in sorted(names)}
    for name, equal in same.items():
        print(f"{'equal' if equal else 'different':10}{name}")
    return all(same.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Regenerate the built-in data and model.")
    parser.add_argument("--check", action="store_true", help="compare with the shipped files instead")
    check = parser.parse_args().check
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary)
        build(built)
        if check:
            sys.exit(0 if compare(built, MODEL.parent) else 1)
        for target in (DATA, MODEL):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(built / target.name, target)


if __name__ == "__main__":
    main()
