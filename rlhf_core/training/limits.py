"""How long answers may be: what a model that thinks needs, and the data's own answers; what the model can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.data import lengths
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.projecting import prompt_of
from rlhf_core.errors import UserError
from rlhf_core.method import Method
from rlhf_core.models.context import context_length
from rlhf_core.models.loading import ModelInfo
from rlhf_core.rewards.smoke_test import reference_answer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Rows = Sequence[dict[str, Any]]
THOUGHTS = 2048  # tokens of an answer with its thoughts
LOOKED_AT = 256  # rows whose reference answers are counted
FEW = 0.05  # the share of references that may be longer
STEP = 64  # tokens, to a multiple of which a limit is rounded
LONGEST_ANSWER = 2**20  # tokens; memory for the random numbers of a batch is taken before sampling


def check_context(
    info: ModelInfo, method: Method, options: Any, template: ChatTemplate, train: Rows, held_out: Rows
) -> list[str]:
    """Raise `UserError` for rows that are longer, with their answers, than the model can read at all; returns warnings
    for those that are longer than it was made for.
    """
    sampled = method.data == "prompts" or (method.generates and bool(held_out))
    if sampled and options.max_completion_length > LONGEST_ANSWER:
        raise UserError(
            f"--max-completion-length {options.max_completion_length}: at most {LONGEST_ANSWER} tokens are sampled"
        )
    limit = info.max_tokens or context_length(info.config)
    if limit is None:
        return []
    allowed = options.max_length if method.data == "conversations" else options.max_prompt_length
    allowed += 0 if method.data == "conversations" else options.max_completion_length
    rows = () if allowed <= limit else train  # none has more than it may have
    answered = [{"prompt": prompt} for row in held_out if (prompt := prompt_of(row))] if method.generates else []
    prompts = lengths.most_tokens(answered, "prompts", options, template, limit)
    trained = lengths.most_tokens(rows, method.data, options, template, limit)
    if max(prompts, trained) <= limit:
        return []
    flags = "--max-completion-length, or a smaller --max-prompt-length with --overlong-prompts drop"
    if trained > limit and method.data == "conversations":
        flags = f"--max-length: at most {limit}"
    can = "can read" if info.max_tokens else "was made to read"
    longest = max(prompts, trained)
    what = "the longest row of the data" if trained == longest else "the longest held-out prompt"
    text = f"the model {can} {limit:,} tokens, and {what} has {longest:,}, with its answer. Use a smaller {flags}"
    if info.max_tokens:
        raise UserError(text)
    return [text]


def with_room_for_thoughts(options: Any, method: Method, config: PreTrainedConfig, thinks: Callable[[], bool]) -> Any:
    """The options, with answers of `THOUGHTS` tokens, or as many as the model can read, where the method samples them,
    the model `thinks`, and neither the user nor a preset says how long they may be.
    """
    if method.data != "prompts" or "max_completion_length" in options.model_fields_set or not thinks():
        return options
    limit = context_length(config)
    room = THOUGHTS if limit is None else min(THOUGHTS, limit - options.max_prompt_length)
    return options.model_copy(update={"max_completion_length": max(options.max_completion_length, room)})


def short_for_references(method: Method, options: Any, template: ChatTemplate, rows: Rows) -> list[str]:
    """What to say where the data's own answers are longer than sampled ones may be, by some of the rows."""
    if method.data != "prompts":
        return []
    limit, count = options.max_completion_length, min(len(rows), LOOKED_AT)
    some = (reference_answer(rows[i * len(rows) // count]) for i in range(count))
    references = [text for text in some if text is not None]
    tokens = [_tokens(text, template, limit) for text in references]
    over = [size for size in tokens if size > limit]
    if len(over) <= FEW * len(references):
        return []
    enough = -(-max(over) // STEP) * STEP
    return [
        f"{100 * len(over) / len(references):.0f} % of the data's own answers are longer than --max-completion-length "
        f"{limit}, the longest has {max(over):,} tokens (of {len(references)} looked at): such answers are cut before "
        f"they end. {enough} would do"
    ]


def _tokens(text: str, template: ChatTemplate, limit: int) -> int:
    """Of an answer with its end token; of one that has fewer bytes than the limit its bytes."""
    data = text.encode("utf-8", "replace")  # half a character has no token
    return len(data) + 1 if len(data) < limit else len(template.ids(data.decode())) + 1
