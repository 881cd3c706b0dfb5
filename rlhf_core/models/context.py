"""How many tokens a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Models without rotary positions that `max_position_embeddings` does not limit: without positions, or they grow.
UNLIMITED = ("inkling2_text", "inkling_text", "jamba", "kimi_linear", "nemotron_h", "xglm", "zamba")
ROBERTA = ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model is made to read, its answer included; None if its configuration has no such setting."""
    text = config.get_text_config(decoder=True)
    # Probed: some models have no such setting; configurations map most other names of it to the first.
    named = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len", "max_target_positions")]
    length = next((length for length in named if length is not None and length > 0), None)
    if length is None:
        return None
    return length - text.pad_token_id - 1 if text.model_type in ROBERTA else length  # they count from the padding's id


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Tokens that a model can read at all, its answer included, where its table of positions ends; None if nothing ends
    (rotary positions, ALiBi, state spaces).
    """
    text = config.get_text_config(decoder=True)
    # Probed: rotary models have this setting, other models don't.
    rotary = getattr(text, "rope_parameters", None) is not None
    return None if rotary or text.model_type in UNLIMITED else context_length(config)
