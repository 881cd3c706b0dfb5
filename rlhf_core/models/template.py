"""A model's chat template, and the tokens that end its answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.errors import first_line
from rlhf_core.models.files import GENERATION_CONFIG, read_generation_config

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
    own = read_generation_config(info.path, info.called)
    declared = info.config.get_text_config().eos_token_id if own is None else own.eos_token_id
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
        try:
            config.validate(strict=True)
        except ValueError as error:  # it can't be saved again: what is left out belongs to sampling
            log.warning("of its %s only tokens are kept: %s", GENERATION_CONFIG, first_line(error))
            tokens = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
            model.generation_config = type(config)(eos_token_id=config.eos_token_id, **tokens)
