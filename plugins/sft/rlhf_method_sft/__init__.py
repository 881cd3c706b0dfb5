"""Supervised fine-tuning: cross-entropy on the assistant's turns, and on nothing else; of plain text, on all of it.

    rlhf run --method sft
    rlhf run --method sft --model MODEL --data conversations.jsonl
    rlhf run --method sft --data texts.txt             # each line is a text, learned without a chat template
    rlhf run --method sft --set loss_type=dft          # Dynamic Fine-Tuning, https://arxiv.org/abs/2508.05629

The trainer is TRL's. It gets token ids and labels, so that the loss mask does not depend on whether TRL knows the
model's chat template. Left out: images.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

from rlhf_core import Method, TrainingOptions, encode_conversations, hookimpl, router_loss_coefficient
from rlhf_core.settings import SIZE, USED, given, refused, used_as, used_with

Positive = Annotated[int, Field(gt=0)]

LOADED = "the model is loaded before TRL sees it: see --dtype, --attn-implementation and --load-in-4bit"
TOKENIZED = "rows are token ids before TRL sees them: see --formatter"
LOSS = "the loss is on the assistant's turns, and on nothing else"
TOKENS = "end and padding tokens are the tokenizer's"

PACKING = given("packing")

# What `--set` does for the fields that TRL's SFTConfig adds: those that act do so as in TRL.
SETTINGS = {
    **dict.fromkeys(("shuffle_dataset", "packing", "padding_free"), USED),
    "router_aux_loss_coef": used_with(within=SIZE),
    "pad_to_multiple_of": used_as("auto", within=(1, 65_536)),
    **dict.fromkeys(("loss_type", "activation_offloading"), USED),
    **dict.fromkeys(("packing_strategy", "eval_packing"), used_with(PACKING)),
    "model_init_kwargs": refused(LOADED),
    "trust_remote_code": refused("write --trust-remote-code"),
    "chat_template_path": refused("write --chat-template FILE"),
    **dict.fromkeys(("dataset_text_field", "dataset_kwargs", "dataset_num_proc"), refused(TOKENIZED)),
    **dict.fromkeys(("eos_token", "pad_token"), refused(TOKENS)),
    "truncation_mode": refused("write --overlong-completions truncate, which cuts the end, or drop"),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), refused(LOSS)),
}


@hookimpl
def rlhf_methods():
    return [SFT]


class Options(TrainingOptions, defaults={"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}):
    max_length: Positive = Field(
        2048,
        description="tokens a conversation may have",
        validation_alias=AliasChoices("max_length", "max_seq_length"),
    )


class SFT(Method):
    name, data, rewards, config = "sft", "conversations", "optional", "trl:SFTConfig"
    Options, settings = Options, SETTINGS
    measures = ("mean_token_accuracy",)
    full_rate = 2e-5  # TRL, whose rate with LoRA is 2e-4
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 1e-3,
        "max_steps": 60,
        "per_device_train_batch_size": 32,
        "max_length": 512,
    }

    def trainer(self, run):
        import pyarrow.compute
        from trl import SFTConfig

        from rlhf_core.prefix import Group, shares
        from rlhf_method_sft.trainer import ConcatenatingSFTTrainer, keep_the_models_head

        limit, settings = run.options.max_length, run.config.set
        # With `padding_free` TRL truncates again; the rows are truncated already.
        padding_free = settings.get("padding_free") and not settings.get("packing")
        arguments = run.arguments(SFTConfig, max_length=None if padding_free else limit)
        arguments.router_aux_loss_coef = router_loss_coefficient(run.info.config, arguments.router_aux_loss_coef)
        model = run.model  # a dry run ends here, and encodes no rows
        rows = encode_conversations(run.train_rows, run.template, limit)
        trainer = ConcatenatingSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=encode_conversations(run.held_out, run.template, limit) if run.held_out else None,
            processing_class=run.tokenizer,
            peft_config=run.peft_config,
        )
        lengths = pyarrow.compute.list_value_length(rows.data["input_ids"])
        longest = rows[pyarrow.compute.index(lengths, pyarrow.compute.max(lengths)).as_py()]["input_ids"]
        with trainer.accelerator.autocast():
            shared = not arguments.router_aux_loss_coef and shares(trainer.model, [Group(longest, [])])
            if not shared:
                keep_the_models_head(trainer.model)
        trainer.concatenates = shared and not trainer.reasons_for_trls_batches()
        return trainer
