"""A two-layer model of random weights. `rlhf_core.testing.tiny_model` writes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_core import builtin


def write(folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    for file in builtin.MODEL.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = AutoConfig.from_pretrained(
        builtin.MODEL,
        num_hidden_layers=2,
        layer_types=["full_attention"] * 2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
