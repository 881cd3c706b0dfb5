"""The options of a method that samples what it trains on: which engine samples, and how much it samples at once."""

from __future__ import annotations

import urllib.parse
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from rlhf_core.method import TrainingOptions

HALF = 2  # bytes of a number


def address(url: str) -> str:
    """`url` without what no base URL has. Raises `ValueError`."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        is_one = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        is_one = False
    if not is_one or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"vllm_server {url!r} is no base URL: write it as http://HOST:8000")
    return url.strip().rstrip("/")


class RolloutOptions(TrainingOptions):
    """`--rollouts` and `--vllm-server`, beside the options of every method."""

    rollouts: Literal["auto", "shared", "transformers", "continuous", "vllm"] = Field(
        "auto",
        description="engine that samples: auto (the fastest for this model and device), shared (each prompt once), "
        "transformers (generate), continuous (transformers' continuous batching), or vllm",
        validation_alias=AliasChoices("rollouts", "rollout_backend"),
    )
    vllm_server: Annotated[str, AfterValidator(address)] | None = Field(
        None, description="base URL of a `vllm serve` with GPUs of its own, such as http://HOST:8000: it samples"
    )

    @property
    def rollout_size(self) -> int:
        """Answers that one process samples at once."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def bytes_held(self) -> int:
        """Bytes for each of the model's weights that training holds while answers are sampled: they are frozen in half
        precision, or in float32 with a gradient and two optimizer states.
        """
        return HALF if self.lora else 16

    @model_validator(mode="after")
    def _a_server_is_vllm(self) -> RolloutOptions:
        if self.vllm_server is not None and self.rollouts not in ("auto", "vllm"):
            raise ValueError(f"vllm_server samples with vLLM: leave out rollouts {self.rollouts}")
        self.rollouts = "vllm" if self.vllm_server is not None else self.rollouts
        return self
