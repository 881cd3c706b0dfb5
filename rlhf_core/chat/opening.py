"""Open a conversation: find the model, bind the rewards of its run or those that were given, load both.

rlhf chat RUN_OR_MODEL
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.chat.conversation import Chat, Settings, Write
from rlhf_core.config import RunConfig, read_file
from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions
from rlhf_core.models.resolve import Target, find, quiet_libraries
from rlhf_core.rewards.binding import BoundReward, bind_all
from rlhf_core.rewards.runtime import RewardRuntime


@contextmanager
def open_chat(
    model: str,
    system: str | None,
    reward: Sequence[str],
    chat_template: str | None,
    settings: Settings,
    write: Write,
    *,
    terminal: bool,
) -> Iterator[Chat]:
    """Load what was named. Raises `UserError`; what needs no weights is checked before they load."""
    target, catalog = find(model), Catalog()
    if target.is_reward_model:
        raise UserError(
            f"{model} is a reward model, which gives scores and no answers. Chat with a language model and let it "
            f"score: rlhf chat MODEL --reward reward_model:path={target.model}"
        )
    config = _config(target, system, reward, chat_template)
    rewards = _bind(config, catalog, write, given=bool(reward))
    with quiet_libraries():
        from rlhf_core.ui.screen import Screen

        runtimes: dict[str, RewardRuntime] = {}
        try:
            with Screen().working("Loading the model …") if terminal else nullcontext():
                loaded, tokenizer = _load(config, target, model, settings)
                decode = _decoder(tokenizer)
                runtimes.update({r.name: RewardRuntime([r], decode) for r in rewards})
                for runtime in runtimes.values():
                    runtime.start()
            from rlhf_core.training.plan import system_prompt_for

            yield Chat(loaded, tokenizer, write, settings, system_prompt_for(config, rewards)[0], runtimes)
        finally:
            for runtime in runtimes.values():
                runtime.close()


def _config(target: Target, system: str | None, reward: Sequence[str], chat_template: str | None) -> RunConfig:
    """What was given, and the rest as the run was made with."""
    ran = read_file(target.run / "config.yaml") if target.run and (target.run / "config.yaml").is_file() else {}
    values: dict[str, Any] = {"method": "chat", "model": target.model, "chat_template": chat_template}
    values["system_prompt"] = ran.get("system_prompt") if system is None else system
    values |= (
        {"reward": list(reward)} if reward else {key: ran[key] for key in ("reward", "reward_model") if key in ran}
    )
    return RunConfig.model_validate(values)


def _bind(config: RunConfig, catalog: Catalog, write: Write, *, given: bool) -> list[BoundReward]:
    """The rewards. One of the run's that is no longer there is told and left out; one that was asked for has to be."""
    if given:
        return bind_all(config.reward_specs, catalog)
    rewards = []
    for spec in config.reward_specs:
        try:
            rewards += bind_all([spec], catalog)
        except UserError as error:
            write(f"The run's reward {spec} is left out: {error}\n", "note")
    return rewards


def _load(config: RunConfig, target: Target, given: str, settings: Settings) -> tuple[Any, Any]:
    """(model, tokenizer), an adapter beside its base, on the fastest device."""
    import torch
    import transformers
    from safetensors import SafetensorError

    from rlhf_core.models import loading as models

    try:
        info = models.inspect(config)
        # With `lora` an adapter stays beside the weights, and those are in bfloat16 where the device has it.
        model = models.load(info, TrainingOptions(lora=True))
    except UserError as error:
        base = f"{target.adapter['base_model_name_or_path']}, the base model of {given}," if target.adapter else given
        raise UserError(str(error).replace(f"--model {config.model}", base)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{given} can't be loaded: {str(error).strip().splitlines()[0]}") from error
    if settings.seed is None:
        torch.seed()
    else:
        transformers.set_seed(settings.seed)
    return model.eval().requires_grad_(False).to(models.device()), info.tokenizer


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
