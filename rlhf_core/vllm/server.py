"""What is asked of a `vllm serve` before the weights load."""

from __future__ import annotations

import http.client
import json
import shlex
import time
import urllib.error
import urllib.request
from pathlib import PurePath
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.vllm.checks import CORRECTION

SECONDS = 5.0  # in which a server has to answer
MOST = 16_000_000  # bytes of an answer
TRANSFER, LOGPROBS = {"backend": "nccl"}, "processed_logprobs"


def check_server(url: str, names: list[str], tokens: int, settings: dict[str, Any]) -> None:
    """Raise `UserError` for a server that is not there, takes no weights, tells log-probabilities before temperature
    and top-p, has another model than one of these `names`, or takes fewer tokens.
    """
    start = shlex.join(["vllm", "serve", names[0], "--weight-transfer-config", json.dumps(TRANSFER)])
    start = f"Start one with: VLLM_SERVER_DEV_MODE=1 {start} --logprobs-mode {LOGPROBS} --max-model-len {tokens}"
    _asked(url, "/health", start)
    workers = _json(url, "/get_world_size", start).get("world_size")
    config: Any = _json(url, "/server_info?config_format=json", start).get("vllm_config")
    served = _json(url, "/v1/models", start).get("data")
    model = config.get("model_config") if isinstance(config, dict) else None
    if not (isinstance(workers, int) and isinstance(model, dict) and isinstance(served, list) and served):
        raise UserError(f"--vllm-server {url}: it does not answer as vLLM does. {start}")
    transfer = config.get("weight_transfer_config")
    if not isinstance(transfer, dict) or transfer.get("backend") != TRANSFER["backend"]:
        raise UserError(f"--vllm-server {url}: it can't be sent weights over NCCL. {start}")
    corrects = settings.get(f"{CORRECTION}_correction", True)
    if corrects and (mode := model.get("logprobs_mode")) != LOGPROBS:
        raise UserError(f"--vllm-server {url}: --logprobs-mode is {mode}: not of the tokens as sampled. {start}")
    held = model.get("model")
    if isinstance(held, str) and PurePath(held).name not in {PurePath(name).name for name in names}:
        raise UserError(f"--vllm-server {url} has the model {held!r}, and the run trains {names[0]!r}. {start}")
    longest = model.get("max_model_len")
    if isinstance(longest, int) and longest < tokens:
        raise UserError(
            f"--vllm-server {url} takes {longest:,} tokens, and prompt and answer may have {tokens:,} "
            f"(--max-prompt-length + --max-completion-length). {start}"
        )


def _json(url: str, path: str, start: str) -> dict[str, Any]:
    try:
        value = json.loads(_asked(url, path, start))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"--vllm-server {url}: {path.partition('?')[0]} is no JSON object, as vLLM's is. {start}")
    return value


def _asked(url: str, path: str, start: str) -> bytes:
    try:
        with urllib.request.urlopen(url + path, timeout=SECONDS) as answer:
            return _read(answer)
    except urllib.error.HTTPError as error:
        # 404: what TRL needs is there in development mode alone.
        text = f"it answers {error.code} to {path.partition('?')[0]}"
        raise UserError(f"--vllm-server {url}: {text}. {start}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"--vllm-server {url} can't be reached: {getattr(error, 'reason', error)}. {start}") from error


def _read(answer: http.client.HTTPResponse) -> bytes:
    """All of it, unless it is more or takes longer than an answer may."""
    end, parts, size = time.monotonic() + SECONDS, [], 0
    while size < MOST and (part := answer.read1(MOST - size)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError("timed out")
    return b"".join(parts)
