"""What `--set generation_kwargs=…` and `--set cache_implementation=…` may hold, found before the weights load."""

from __future__ import annotations

from typing import Any

from rlhf_core import UserError

TOKENS = "the tokenizer and the chat template decide it"
ANSWERS = "a rollout has one sampled answer for each prompt that it is given"
DECIDED = {
    **{name: f"write --{name.replace('_', '-')}" for name in ("temperature", "top_p", "top_k", "min_p")},
    "repetition_penalty": "write --repetition-penalty",
    **dict.fromkeys(("max_new_tokens", "max_length"), "write --max-completion-length"),
    "num_return_sequences": "write --num-generations",
    "cache_implementation": "write --set cache_implementation",
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), TOKENS),
    **dict.fromkeys(("do_sample", "return_dict_in_generate"), ANSWERS),
}


def check_generation(arguments: Any, config: Any) -> None:
    """Raise `UserError` for values that are options of the run, that transformers does not know, or that fail in a
    model of one small layer with the vocabulary of `config`. vLLM has names of its own.
    """
    given = arguments.generation_kwargs or {}
    for name in given:
        if name in DECIDED:
            raise UserError(f"--set generation_kwargs: {name}: {DECIDED[name]}")
    if (given or arguments.cache_implementation) and not arguments.use_vllm:
        _try(arguments, given, config.get_text_config(decoder=True).vocab_size)


def _try(arguments: Any, given: dict[str, Any], vocabulary: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from rlhf_core.commands import library_errors

    with library_errors(f"--set cache_implementation={arguments.cache_implementation}"):
        known = GenerationConfig(cache_implementation=arguments.cache_implementation).to_dict()
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"--set generation_kwargs: transformers' GenerationConfig has no {', '.join(unknown)}")
    small = LlamaConfig(
        vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    prompts = torch.zeros(2, 1, dtype=torch.long)
    with torch.random.fork_rng(devices=[]), library_errors(f"--set generation_kwargs={given}"):
        values = GenerationConfig(max_new_tokens=2, do_sample=True, pad_token_id=0, disable_compile=True, **given)
        answers = LlamaForCausalLM(small).generate(prompts, values)
    if not isinstance(answers, torch.Tensor) or len(answers) != len(prompts):
        raise UserError(f"--set generation_kwargs={given}: {ANSWERS}")
