"""vLLM around TRL's `VLLMGeneration`: weights to it, answers back, and what happens where it fails.

All that is not TRL's public API stands here (`trl.generation.vllm_generation`): `tests/test_vllm.py` fails when it
moves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from rlhf_core.errors import RunStopped, SamplerFailed, UserError
from rlhf_core.phases import phase
from rlhf_core.prefix.groups import Rollout, Sampling
from rlhf_core.prefix.packed import unwrap


class VLLM:
    """Samples for a trainer that computes its own loss, with the weights that `model` has each time.

    `arguments`: the trainer's `VLLMArguments`; `sampling`: how every batch is sampled (`seed` and `greedy` are not
    used); `rows`: prompts that this process asks for at once. Raises `RunStopped` where vLLM can't be started.
    """

    def __init__(
        self, model: Any, accelerator: Any, tokenizer: Any, arguments: Any, sampling: Sampling, *, rows: int,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        from trl.generation.vllm_generation import VLLMGeneration

        server = arguments.vllm_server_base_url if arguments.vllm_mode == "server" else None
        self.sampling = sampling
        start = _stopping(VLLMGeneration, _called(server), "was started")
        self.generation = start(
            model,
            accelerator,
            tokenizer,
            mode=arguments.vllm_mode,
            structured_outputs_regex=arguments.vllm_structured_outputs_regex,
            server_base_url=server,
            server_timeout=arguments.vllm_server_timeout,
            group_port=arguments.vllm_group_port,
            tensor_parallel_size=arguments.vllm_tensor_parallel_size,
            gpu_memory_utilization=arguments.vllm_gpu_memory_utilization,
            max_model_length=arguments.vllm_max_model_length,
            max_num_seqs=rows * arguments.vllm_tensor_parallel_size,
            enable_sleep_mode=arguments.vllm_enable_sleep_mode,
            model_impl=arguments.vllm_model_impl,
            trust_remote_code=trust_remote_code,
            repetition_penalty=sampling.repetition_penalty,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_completion_length=sampling.max_new_tokens,
        )
        guard(self.generation, model, sampling.eos_token_ids, server)
        self._read = _stopping(self._read_answers, _called(server), "answered")

    @phase("sampling")
    def rollout(self, prompts: Sequence[Sequence[int]]) -> list[Rollout]:
        """One completion of each prompt (token ids). All processes ask at once, each for as many.

        As `rlhf_core.prefix.rollout`, but that log-probabilities are those that vLLM sampled at, after all that
        `sampling` says, and NaN where it told none.
        """
        self.generation.sync_weights()
        _, completions, logps, _ = self.generation.generate([list(prompt) for prompt in prompts], None, 1)
        rollouts: list[Rollout] = self._read(prompts, completions, logps)
        return rollouts

    def _read_answers(self, prompts: Any, completions: Any, logps: Any) -> list[Rollout]:
        ends = self.sampling.eos_token_ids
        rollouts = []
        for prompt, answer, of_tokens in zip(prompts, completions, logps, strict=True):
            if len(of_tokens) != len(answer):
                raise ValueError(f"{len(answer)} tokens with {len(of_tokens)} log-probabilities")
            size = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
            sampled = [float("nan") if first is None else first for first, *_ in of_tokens[:size]]
            rollouts.append(Rollout(list(prompt), list(answer[:size]), sampled, answer[size - 1] in ends))
        return rollouts


def guard(generation: Any, model: torch.nn.Module, eos_token_ids: Sequence[int], server: str | None) -> None:
    """Make `generation` (TRL's `VLLMGeneration`) end answers at all of these tokens and leave frozen weights as they
    are, and end the run where vLLM fails or gives what is no answer.

    vLLM itself ends them where the model's files say, which may lack the token that the chat template puts there. Its
    methods stay those of TRL; it calls `sync_weights` itself after vLLM has slept.
    """
    keep = Frozen(model)
    generation.generation_kwargs = {"stop_token_ids": list(eos_token_ids), **generation.generation_kwargs}
    stop = functools.partial(_stopping, where=_called(server), when="was sent weights or sampled")
    generation.sync_weights = stop(keep.unchanged(generation.sync_weights))
    generation.generate = stop(_of_answers(generation.generate, generation.max_completion_length, model))


def _of_answers(generate: Any, longest: int, model: Any) -> Any:
    """`generate`, but that what the model can't have answered is a `ValueError`."""

    @functools.wraps(generate)
    def answered(prompts: Any, *rest: Any, **named: Any) -> Any:
        found = generate(prompts, *rest, **named)
        if len(found[1]) != len(prompts):
            raise ValueError(f"{len(found[1])} answers to {len(prompts)} prompts")
        vocabulary = unwrap(model).get_input_embeddings().num_embeddings
        for answer in found[1]:
            if not 0 < len(answer) <= longest:
                raise ValueError(f"an answer of {len(answer)} tokens, of {longest} at most")
            if unknown := [token for token in answer if not 0 <= token < vocabulary]:
                raise ValueError(f"token {unknown[0]}, of a model with {vocabulary:,} tokens")
        return found

    return answered


class Frozen:
    """The weights that an adapter is merged into and taken out of again for vLLM, which rounds each of them twice: in
    bfloat16 they would drift away step by step. They are copied once, to the host's memory, and put back after it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.copies: list[torch.Tensor] | None = None

    def weights(self) -> Iterator[torch.Tensor]:
        """Each once, in the same order every time."""
        layers = (module.get_base_layer() for module in self.model.modules() if isinstance(module, BaseTunerLayer))
        found = {id(weight): weight for layer in layers for weight in layer.parameters() if not weight.requires_grad}
        yield from found.values()

    def unchanged(self, sync: Any) -> Any:
        @functools.wraps(sync)
        def synced() -> None:
            if self.copies is None:
                self.copies = [weight.detach().to("cpu", copy=True) for weight in self.weights()]
            try:
                sync()
            finally:
                with torch.no_grad():
                    for weight, copy in zip(self.weights(), self.copies, strict=True):
                        weight.copy_(copy)

        return synced


def _called(server: str | None) -> str:
    return f"the vLLM server {server}" if server else "vLLM"


def _stopping(call: Any, where: str, when: str) -> Any:
    """`call`, whose failures end the run with one message, and can be resumed from: `SamplerFailed`."""

    @functools.wraps(call)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except (UserError, RunStopped, torch.OutOfMemoryError):
            raise
        except Exception as error:  # TRL raises `Exception`, and vLLM and a server whatever they do
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise SamplerFailed(
                f"{where} failed while it {when}: {type(error).__name__}: {first}. See its own "
                "log; the run goes on from its last checkpoint when it is there again"
            ) from error

    return guarded
