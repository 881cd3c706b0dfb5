"""A model's chat template, and the tokens that end its answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_core.data.chat_template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_core.models.loading import ModelInfo

log = logging.getLogger("rlhf")


def template_of(info: ModelInfo, kwargs: Mapping[str, Any] | None = None, *, escape: bool = False) -> ChatTemplate:
    """The model's template with `kwargs` as its variables. Raises `UserError` for variables that it has not, and for a
    template that can't be used.
    """
    template = ChatTemplate(info.tokenizer, kwargs, end_tokens(info), escape=escape, called=info.template)
    template.check()
    return template


def end_tokens(info: ModelInfo) -> list[int]:
    """The tokens that end an answer by the model's generation settings."""
    from transformers import GenerationConfig

    try:
        declared = GenerationConfig.from_pretrained(info.path).eos_token_id
    except OSError:  # it has none of its own
        declared = info.config.get_text_config().eos_token_id
    return [declared] if isinstance(declared, int) else list(declared or ())


def end_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model stop where the chat template ends an answer, here and wherever it is loaded once it is saved.

    Base models know the end of a text alone.
    """
    name, config = ChatTemplate(tokenizer).end_token, model.generation_config
    end, declared = tokenizer.convert_tokens_to_ids(name), config.eos_token_id
    known = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if end not in [tokenizer.eos_token_id, *known]:
        log.warning("the chat template ends answers with %s, so the model stops there too", name)
        config.eos_token_id = [end, *known]
