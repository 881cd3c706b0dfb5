"""Open a conversation: find the model, bind the rewards of its run or those that were given, load both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.chat.conversation import Chat, Settings
from rlhf_core.chat.streaming import Write
from rlhf_core.config import read_file, read_rewards
from rlhf_core.errors import UserError, first_line
from rlhf_core.method import TrainingOptions
from rlhf_core.models.resolve import ModelReference, find, quiet_libraries
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
    reference, catalog = find(model), Catalog()
    if reference.is_reward_model:
        raise UserError(
            f"{model} is a reward model: it scores answers and writes none. Chat with a language model, and have its "
            f"answers scored: rlhf chat MODEL --reward reward_model:path={reference.path}"
        )
    file = reference.run / "config.yaml" if reference.run else None
    ran = read_file(file) if file and file.is_file() else {}
    rewards = bind_all(read_rewards(reward), catalog) if reward else _rewards_of_run(ran, catalog, write)
    with quiet_libraries():
        from rlhf_core.training.plan import system_prompt_for
        from rlhf_core.ui.screen import Screen

        with ExitStack() as opened:
            with Screen().working("Loading the model …") if terminal else nullcontext():
                loaded, tokenizer = _load(reference, chat_template, settings)
                decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
                runtimes = {r.name: RewardRuntime([r], decode) for r in rewards}
                for runtime in runtimes.values():
                    opened.callback(runtime.close)
                    runtime.start()
            prompt, _ = system_prompt_for(ran.get("system_prompt") if system is None else system, rewards)
            yield Chat(loaded, tokenizer, write, settings, prompt, runtimes)


def _rewards_of_run(ran: Mapping[str, Any], catalog: Catalog, write: Write) -> list[BoundReward]:
    """The rewards that a run's config.yaml names. One that is no longer installed is reported and left out."""
    rewards = []
    for spec in read_rewards(ran.get("reward") or [], ran.get("reward_model")):
        try:
            rewards += bind_all([spec], catalog)
        except UserError as error:
            write(f"The run's reward {spec} is left out: {error}\n", "note")
    return rewards


def _load(reference: ModelReference, chat_template: str | None, settings: Settings) -> tuple[Any, Any]:
    """(model, tokenizer), an adapter beside its base, on the fastest device."""
    import torch
    import transformers
    from safetensors import SafetensorError

    from rlhf_core.models import loading as models

    info = models.inspect(reference, chat_template=chat_template)
    try:
        # With `lora` an adapter is not merged, and the weights are in bfloat16 if the device has it.
        model = models.load(info, TrainingOptions(lora=True))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{reference.called} can't be loaded: {first_line(error)}") from error
    if settings.seed is None:
        torch.seed()
    else:
        transformers.set_seed(settings.seed)
    return model.eval().requires_grad_(False).to(models.device()), info.tokenizer
