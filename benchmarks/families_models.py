"""A small model of random weights of any causal family of transformers, and of multimodal ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

VOCABULARY = 2048  # the built-in tokenizer's
LARGEST = 8e6  # parameters of what still counts as small

# Under every name that configurations have for it; each takes what it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("encoder_layers", "num_key_value_heads", "mamba_expand", "altup_num_inputs"), 2),
    **dict.fromkeys(("encoder_attention_heads", "time_step_rank", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("rotary_dim", "laurel_rank"), 4),
    **{
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "pad_index": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    },
}
SPECIAL: dict[str, dict[str, Any]] = {  # what some families need beyond
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"] * 2, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "zamba2": {"num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "dots1": {"n_shared_experts": 1},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 64,
    "factor": 8.0,
}
CAPPED = {"final_logit_softcapping": 30.0}  # as checkpoints of Gemma 4 are
SCALED = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "mistral, a window of 300": ("mistral", {"sliding_window": 300}),
    "mistral, a window of 16": ("mistral", {"sliding_window": 16}),
    "qwen2, a window of 80": ("qwen2", {"use_sliding_window": True, "sliding_window": 80, "max_window_layers": 2}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "granite, plain logits": ("granite", {"logits_scaling": 1.0, **SCALED}),
    "granite, scaled logits": ("granite", {"logits_scaling": 8.0, **SCALED}),
    "cohere, plain logits": ("cohere", {"logit_scale": 1.0}),
    "falcon_h1, scaled logits": ("falcon_h1", {"lm_head_multiplier": 0.25}),
    "hyperclovax, scaled logits": ("hyperclovax", {"logits_scaling": 0.25}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox, sequential": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "gemma3n_text, keys of other layers": ("gemma3n_text", {"num_kv_shared_layers": 2}),
    "gemma4_text, capped logits": ("gemma4_text", CAPPED),
    "gemma4_text, keys of other layers": ("gemma4_text", {"num_kv_shared_layers": 2, **CAPPED}),
    "opt, narrow embeddings": ("opt", {"word_embed_proj_dim": 16}),
}


# Of parts that read images. Multimodal models are those of which a whole checkpoint is trained with text.
SMALL |= {"depth": 1, "out_hidden_size": 32, "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0]}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4": ("gemma4", CAPPED),
    **{kind: (kind, {}) for kind in ("gemma3", "mistral3", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")},
    **{kind: (kind, MROPE) for kind in ("qwen2_vl", "qwen2_5_vl", "glm4v")},
    **{kind: (kind, {}) for kind in ("qwen3_5_moe", "internvl", "llava", "lfm2_vl", "smolvlm")},
}


def build(kind: str, special: dict[str, Any]) -> Any:
    """A model of this family in float32, with weights so large that a mistake shows."""
    base = CONFIG_MAPPING[kind]()
    auto = AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM
    if kind in MULTIMODAL:
        parts = {name: getattr(base, name) for name in base.sub_configs if getattr(base, name) is not None}
        others = {name: {key: 32 for key in ("embed_dim",) if key in part.to_dict()} for name, part in parts.items()}
        special = others | {"text_config": special}
        config = type(base)(**{name: small(part.model_type, part, special[name]) for name, part in parts.items()})
    else:
        config = small(kind, base, special)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "A_log" in name or "dt_" in name or name.endswith(".D"):
                continue
            if "sink" in name:
                weight.copy_(noise + 1)
            elif weight.dim() >= 2:
                embedding = "embed" in name or "wte" in name
                weight.copy_(noise * (0.5 if embedding else 0.6 / weight.shape[-1] ** 0.5))
            else:
                weight.add_(noise * (0.1 if name.endswith("weight") else 0.05))
    return model.eval()


def small(kind: str, base: Any, special: dict[str, Any]) -> Any:
    """The configuration `base` in small."""
    names = base.to_dict().keys() | base.attribute_map.keys()
    settings = {name: value for name, value in SMALL.items() if name in names}
    if "kv_lora_rank" in settings:
        settings.pop("head_dim", None)
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    if kind == "falcon":
        settings.pop("head_dim", None)
    if "index_topk" in names:
        settings |= {"index_topk": 16, "index_n_heads": 2, "index_head_dim": 16}
    settings |= {name: 0.0 for name in names if "drop" in name and isinstance(getattr(base, name, None), float)}
    if "is_decoder" in names:
        settings["is_decoder"] = True
    kinds = list(dict.fromkeys(getattr(base, "layer_types", None) or []))
    count = SMALL["num_hidden_layers"]
    layers = {"layer_types": (kinds * count)[:count]} if kinds else {}
    settings |= SPECIAL.get(kind, {}) | special
    try:
        return type(base)(**settings, **layers)
    except Exception:  # of any kind: the layers follow from other settings
        return type(base)(**settings)
