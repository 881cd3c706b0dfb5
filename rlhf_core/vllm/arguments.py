"""The training arguments of a trainer of one's own that samples with vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments


@dataclass
class VLLMArguments(TrainingArguments):
    """Those of transformers, and of TRL's `GRPOConfig` what it says of vLLM: the same names, types and defaults, with
    the same meaning (https://huggingface.co/docs/trl/main/en/grpo_trainer#trl.GRPOConfig).
    """

    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_model_impl: str = "vllm"
    vllm_enable_sleep_mode: bool = False
    vllm_structured_outputs_regex: str | None = None
    vllm_server_base_url: str | None = None
    vllm_server_host: str = "0.0.0.0"
    vllm_server_port: int = 8000
    vllm_server_timeout: float = 240.0
    vllm_group_port: int = 51216
    vllm_gpu_memory_utilization: float = 0.3
    vllm_max_model_length: int | None = None
    vllm_tensor_parallel_size: int = 1
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: str = "sequence_mask"
    vllm_importance_sampling_clip_max: float | None = 3.0
    vllm_importance_sampling_clip_min: float | None = None
    vllm_importance_sampling_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vllm_importance_sampling_cap is not None:  # the old name
            self.vllm_importance_sampling_clip_max = self.vllm_importance_sampling_cap
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"vllm_importance_sampling_clip_min ({low:g}) has to be less than ..._clip_max ({high:g})")
        truncates = self.vllm_importance_sampling_mode in ("token_truncate", "sequence_truncate")
        if self.vllm_importance_sampling_correction and truncates and low is None and high is None:
            raise ValueError(f"vllm_importance_sampling_mode {self.vllm_importance_sampling_mode} needs a clip_max")
