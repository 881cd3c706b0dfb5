"""The auxiliary loss by which a mixture of experts keeps all of its experts in use: what its trainer does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError
from rlhf_core.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NAME = "router_aux_loss_coef"


def router_loss_coefficient(config: PreTrainedConfig, given: float | None) -> float | None:
    """The weight of the router's loss in TRL's trainers: as `given`, or the model's own; 0 where TRL can't compute it,
    None where there is none.

    Raises `UserError` if one is given, and there is no such loss.
    """
    settings = _settings(config)
    if "output_router_logits" not in settings:
        if given:
            raise UserError(f"--set {NAME}: the model has no router")
        return None
    if given and not _computed_by_trl(config):
        raise UserError(f"--set {NAME}: TRL does not compute this loss for models of type {config.model_type}")
    wanted = settings.get(NAME) if given is None else given
    return float(wanted or 0) if _computed_by_trl(config) else 0.0


def left_out(config: PreTrainedConfig, method: Method) -> list[str]:
    """A warning where `method` leaves the loss out."""
    own = _settings(config).get(NAME)
    if not own or (NAME in method.settings and _computed_by_trl(config)):
        return []
    return [f"the auxiliary loss of the model's router ({NAME} {own:g}) is left out by {method.name}"]


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    return config.get_text_config().to_dict()


def _computed_by_trl(config: PreTrainedConfig) -> bool:
    """TRL reads the number of experts by one name. Some models of a family have none (`is_moe`)."""
    settings, names = _settings(config), config.get_text_config().attribute_map
    counted = names.get("num_experts", "num_experts") in settings and settings.get("is_moe", True)
    return "output_router_logits" in settings and bool(counted)
