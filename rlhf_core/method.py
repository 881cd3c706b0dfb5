"""Methods: what a training method declares, and the options that all methods share.

class Options(TrainingOptions, defaults={"learning_rate": 1e-6}):
    beta: float = Field(0.04, description="weight of the KL penalty")

class GRPO(Method):
    name, data, rewards, config, Options = "grpo", "prompts", "required", "trl:GRPOConfig", Options

    def trainer(self, run):
        return trl.GRPOTrainer(run.model, args=run.arguments(trl.GRPOConfig, beta=run.options.beta), …)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlhf_core.credentials import refuse
from rlhf_core.errors import UserError
from rlhf_core.settings import Setting

if TYPE_CHECKING:
    import transformers

    from rlhf_core.config import RunConfig
    from rlhf_core.training.run import Run

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# Below, float32 can't tell the probabilities of the likeliest tokens apart.
Temperature = Annotated[float, Field(ge=1e-3, le=1000)]
PositiveInt = Annotated[int, Field(gt=0)]
# What any number among the options may be in size, whatever its own bounds: float32 can compute with it.
SMALLEST, LARGEST, LARGEST_INT = 1e-30, 1e6, 10**9
HIGHEST_RATE = 100


def _names(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) and value != "all-linear" else value


def read_kwargs(value: Any) -> dict[str, Any]:
    """A mapping as it is, or from the JSON that a flag holds. Raises `UserError`."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, Mapping):
        example = """'{"enable_thinking": false}'"""
        raise UserError(f"--chat-template-kwargs {value}: write a JSON object, such as {example}")
    refuse(read, "--chat-template-kwargs")
    return dict(read)


class TrainingOptions(BaseModel):
    """Options of every method, under transformers' names. A method's own `Options` extends them.

    `class Options(TrainingOptions, defaults={...})` gives some of them another default.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True, allow_inf_nan=False)

    learning_rate: Positive = Field(1e-5, description="peak learning rate")
    lr_scheduler_type: str = Field("linear", description="schedule of the learning rate, by transformers' name")
    warmup_steps: NotNegative = Field(0.0, description="steps of warm-up; below 1, a share of all steps")
    num_train_epochs: Positive = Field(1.0, description="passes over the data")
    max_steps: int = Field(-1, description="total optimizer steps; -1: as many as the epochs need")
    per_device_train_batch_size: PositiveInt = Field(
        4, description="rows in one forward pass on one device (GRPO, PPO: completions)"
    )
    gradient_accumulation_steps: PositiveInt = Field(4, description="forward passes for one optimizer step")
    optim: str = Field("adamw_torch", description="optimizer, by transformers' name")
    weight_decay: NotNegative = Field(0.0, description="decoupled weight decay")
    max_grad_norm: NotNegative = Field(1.0, description="gradients are clipped to this norm; 0: no clipping")
    gradient_checkpointing: bool = Field(True, description="recompute activations in the backward pass: less memory")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of the weights; auto: bfloat16 if they are frozen on a GPU (float16 on one that does not "
        "compute in bfloat16), else float32",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="seed of sampling, shuffling, initialization")

    attn_implementation: str | None = Field(
        None, description="attention, by transformers' name, such as flash_attention_2; unset: one that shares prompts"
    )
    shared_prefix: bool = Field(True, description="compute each prompt once for all its completions, where possible")

    lora: bool | None = Field(
        None, description="train a LoRA adapter; unset: for a billion parameters or more, and with 4-bit or 8-bit"
    )
    lora_r: PositiveInt = Field(16, description="rank of the adapter")
    lora_alpha: Annotated[int, Field(gt=0, le=1_000_000)] = Field(
        32, description="LoRA alpha: updates are scaled by alpha / r"
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapter")
    lora_target_modules: Annotated[str | list[str], BeforeValidator(_names)] = Field(
        "all-linear", description="modules that get an adapter: all-linear, or names separated by commas"
    )
    load_in_4bit: bool = Field(False, description="4-bit NF4 weights (QLoRA)", validation_alias=AliasChoices("qlora"))
    load_in_8bit: bool = Field(False, description="8-bit weights")

    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(read_kwargs)] = Field(
        {}, description="""variables of the chat template, as JSON: '{"enable_thinking": false}'"""
    )
    control_tokens: Literal["warn", "escape", "refuse"] = Field(
        "warn",
        description="special tokens of the tokenizer in the data's text, such as <|im_end|>: warn, and they act as "
        "tokens, as in transformers; escape, and they are text; refuse the row",
    )
    max_prompt_length: PositiveInt = Field(
        2048, description="tokens a prompt may have", validation_alias=AliasChoices("max_source_length")
    )
    overlong_prompts: Literal["error", "truncate", "drop"] = Field(
        "drop", description="prompts longer than that: truncate drops old turns, then the end of the question"
    )
    overlong_completions: Literal["error", "truncate", "drop"] = Field(
        "drop", description="training answers that are too long: truncate cuts off their end"
    )
    max_completion_length: PositiveInt = Field(
        512, description="tokens a completion may have", validation_alias=AliasChoices("max_target_length")
    )
    temperature: Temperature = Field(1.0, description="temperature at which answers are sampled")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample from the likeliest tokens that make up this share of the probability"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="sample from this many of the likeliest tokens; 0: all")
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="leave out tokens with less than this share of the likeliest token's probability"
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0, description="divides the logits of tokens already in the text; 1: off"
    )

    logging_steps: PositiveInt = Field(10, description="log metrics every so many steps")
    save_steps: PositiveInt = Field(100, description="steps between two checkpoints")
    save_total_limit: PositiveInt = Field(2, description="checkpoints to keep")
    num_eval_prompts: Annotated[int, Field(ge=0)] = Field(
        16,
        description="held-out prompts answered before and after training, at most a tenth of the data; 0: none",
        validation_alias=AliasChoices("eval_prompts"),
    )
    eval_steps: PositiveInt | None = Field(
        None, description="evaluate on the held-out rows every so many steps; unset: before and after training only"
    )
    keep_best: str | None = Field(
        None,
        description="keep the checkpoint with the best value of this metric of the held-out rows: reward, a reward's "
        "name, loss, accuracy, margin, finished, …",
    )
    early_stop: Annotated[int, Field(ge=0)] = Field(
        0, description="stop after so many evaluations without a better value of --keep-best; 0: never"
    )
    final_model: Literal["last", "best"] = Field(
        "last", description="checkpoint that becomes the run's model: of the last step, or the one of --keep-best"
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()  # pydantic passes the keywords to the next method, once the fields exist

    @classmethod
    def __pydantic_init_subclass__(cls, *, defaults: Mapping[str, Any] | None = None) -> None:  # type: ignore[override]
        for name, value in (defaults or {}).items():
            if name not in cls.model_fields:
                raise TypeError(f"defaults of {cls.__qualname__}: there is no option {name!r}")
            cls.model_fields[name].default = value
        cls.model_rebuild(force=True)

    @property
    def quantized(self) -> bool:
        return self.load_in_4bit or self.load_in_8bit

    @property
    def shares_prompts(self) -> bool:
        """Whether prompts are shared, which needs our own attention: not with `attn_implementation`."""
        return self.shared_prefix and self.attn_implementation is None

    @model_validator(mode="after")
    def _check(self) -> TrainingOptions:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
                raise ValueError(
                    f"{name} {value:g}: float32 computes with 0, and with {SMALLEST:g} to {LARGEST:g} in size"
                )
            if isinstance(value, int) and abs(value) > LARGEST_INT and name != "seed":
                raise ValueError(f"{name} {value}: the largest number here is {LARGEST_INT}")
        if self.learning_rate is not None and self.learning_rate > HIGHEST_RATE:
            raise ValueError(f"learning_rate {self.learning_rate:g}: the highest is {HIGHEST_RATE}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError("max_steps is a positive number, or -1 for as many as the epochs need")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")
        if self.lora is False and self.quantized:
            raise ValueError("quantized weights can't be trained: leave out --no-lora")
        return self


# Options that only methods whose model writes can use, in training or evaluation.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# By what a method's rows are: options that nothing reads, and why.
UNUSED = {
    "prompts": {"overlong_completions": "the data has no answers to learn from"},
    "preferences": {},
    "conversations": dict.fromkeys(
        ("max_prompt_length", "overlong_prompts"), "a conversation is limited as a whole: see --max-length"
    ),
}

# What suits the built-in model whatever the method, before the method's own `builtin_preset`.
BUILTIN_PRESET = {
    "gradient_accumulation_steps": 1,
    "max_prompt_length": 256,
    "max_completion_length": 96,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_steps": 20,
    "num_eval_prompts": 96,
}


class Method:
    """A training method. Subclasses set the class variables and return a `transformers.Trainer`.

    `data`: what each row must have; `"preferences"` are a chosen and a rejected answer.
    `rewards`: whether a run takes `--reward`.
    `generates`: whether the trained model answers prompts, so that answers before and after can be shown.
    `task`: what is trained, a model that writes or one that scores.
    `config`: `"package:Class"` of the training arguments that `--set` may set.
    `settings`: what `--set` does for the fields that this class adds to transformers', and for those of transformers
    that the trainer uses differently (`rlhf_core.settings`). One that nobody decided on is passed on, with a warning.
    `measures`: which of `rlhf_core.training.evaluation.METRICS` its trainer measures on held-out rows beside the loss.
    `full_rate`: the usual learning rate of full fine-tuning; a run with an adapter that has no more is warned.
    `builtin_preset`: values of `Options` for the built-in model, on top of `BUILTIN_PRESET`, which all methods share.
    """

    name: ClassVar[str]
    data: ClassVar[Literal["prompts", "preferences", "conversations"]]
    rewards: ClassVar[Literal["required", "optional", "none"]] = "none"
    generates: ClassVar[bool] = True
    task: ClassVar[Literal["causal_lm", "sequence_classification"]] = "causal_lm"
    config: ClassVar[str] = "transformers:TrainingArguments"
    settings: ClassVar[Mapping[str, Setting]] = {}
    Options: ClassVar[type[TrainingOptions]] = TrainingOptions
    measures: ClassVar[tuple[str, ...]] = ()
    full_rate: ClassVar[float | None] = None
    builtin_preset: ClassVar[dict[str, Any]] = {}

    @classmethod
    def preset(cls) -> dict[str, Any]:
        """All values of `Options` for the built-in model. `embedded_preset` is the earlier name of `builtin_preset`."""
        shared = {name: value for name, value in BUILTIN_PRESET.items() if name not in cls.unused_options()}
        return {**shared, **getattr(cls, "embedded_preset", {}), **cls.builtin_preset}

    @classmethod
    def unused_options(cls) -> dict[str, str]:
        """The shared options that have no effect for a method of this kind, and why."""
        sampling = {} if cls.generates else dict.fromkeys(SAMPLING, "it samples no answers")
        return {**UNUSED.get(getattr(cls, "data", ""), {}), **sampling}

    def resolve_options(self, options: Any, *, lora: bool) -> TrainingOptions:
        """Fill in options that were left unset and depend on others, before they are shown and saved.

        `lora`: whether an adapter is trained. Called with its own result, this must change nothing, so that the saved
        configuration repeats the run.
        """
        resolved: TrainingOptions = options
        return resolved

    def check(self, config: RunConfig) -> None:
        """Raise `UserError` for options and `--set` values that have no effect or don't fit together.

        Called before data and model are read: it imports nothing heavy.
        """

    def check_rows(self, config: RunConfig, rows: int) -> None:
        """Raise `UserError` if a run can't train on this number of rows. Called before weights load."""

    def scored_answers(self, options: Any, prompts: int, processes: int, *, group: int = 1, reuse: int = 1) -> int:
        """How many answers are scored in training, `group` of each prompt, each used in `reuse` optimizer steps."""
        step = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
        epochs, steps = prompts * group * options.num_train_epochs, options.max_steps * step / reuse
        return math.ceil(steps if steps > 0 else epochs) if self.data == "prompts" else 0

    def trainer(self, run: Run) -> transformers.Trainer:
        """Build the trainer from the run's model, data, rewards and `run.arguments(cls, **fields)`."""
        raise TypeError(f"method {type(self).__name__} defines no trainer()")

    def steps_per_rollout(self, trainer: Any) -> int:
        """Optimizer steps from one new batch of answers to the next.

        Checkpoints are taken at multiples of it, because a run can resume exactly only between two batches.
        """
        return 1

    def policy(self, trainer: Any) -> Any:
        """The model that answers prompts, for a trainer that wraps it in a module of its own."""
        return trainer.accelerator.unwrap_model(trainer.model)
