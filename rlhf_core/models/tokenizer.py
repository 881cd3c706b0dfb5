"""Whether a tokenizer fits its model, and turns text into tokens and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_core.errors import UserError, excerpt, listed
from rlhf_core.inputs import library_errors
from rlhf_core.models.files import TOKENIZER_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE = "what is 2 + 2?"  # in small letters, which tokenizers leave as they are


def check_tokenizer(empty: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, called: str) -> list[str]:
    """Raise `UserError` for tokens that the model has no embedding of, for a tokenizer without an end token, and for
    one that can't turn text into tokens; returns warnings.
    """
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise UserError(
            f"{called}: model_max_length in its {TOKENIZER_CONFIG} is {excerpt(repr(longest), 40)}, which is no number "
            "of tokens from 1 on"
        )
    if "" in tokenizer.all_special_tokens:
        raise UserError(f"{called}: its tokenizer has a special token without text, which would be found everywhere")
    if tokenizer.split_special_tokens:
        raise UserError(
            f"{called}: split_special_tokens in its {TOKENIZER_CONFIG} is true, so the chat template's tokens would be "
            "read letter by letter: take it out"
        )
    with library_errors(f"{called}: its tokenizer can't be used"):
        ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids)
    if not ids:
        raise UserError(f"{called}: its tokenizer makes no token of {SAMPLE!r}. Copy or download its files again")
    rows = [layer.weight.shape[0] for layer in (empty.get_input_embeddings(), empty.get_output_embeddings()) if layer]
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if rows and i >= min(rows))
    if beyond:
        raise UserError(
            f"{called}: its tokenizer has {len(tokenizer):,} tokens and the model embeddings of {min(rows):,}: "
            f"{listed(token for _, token in beyond)} (from id {beyond[0][0]}) would be out of range. Use the model's "
            "own tokenizer, or resize the model (resize_token_embeddings of transformers) and save both"
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"{called}: its tokenizer has no end token, so no answer would ever end. Set eos_token in its "
            "tokenizer_config.json to what ends a turn"
        )
    if "".join(SAMPLE.split()) in "".join(text.split()):
        return []
    return [f"{called}: its tokenizer reads {SAMPLE!r} as {excerpt(repr(text), 80)}, so rewards would see such text"]
