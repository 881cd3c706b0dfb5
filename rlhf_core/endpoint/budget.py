"""What calls cost, and how much may be spent. A call is refused before it would go beyond."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_core.errors import RunStopped, UserError
from rlhf_core.inputs import parse_yaml, path_of, read_text
from rlhf_core.ui.text import dollars

SHIPPED = Path(__file__).parent / "prices.yaml"
MILLION = 1_000_000
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_PAIR = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens, of prompts and of replies."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        return (prompt_tokens * self.prompt + reply_tokens * self.reply) / MILLION

    def __str__(self) -> str:
        return f"${self.prompt:g} for a million tokens read, ${self.reply:g} for a million written"


@dataclass(frozen=True)
class Spent:
    """`calls` that were made, and those answered from the cache, which cost nothing; `cost` in dollars, None if the
    price is not known.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


def price_of(model: str, prices: str | None) -> Price | None:
    """The price by `prices`, `IN/OUT` or a YAML file, else as shipped; None if it is not known. Raises `UserError`."""
    if prices is not None and (pair := _PAIR.fullmatch(prices.strip())):
        return Price(float(pair[1]), float(pair[2]))
    file = SHIPPED if prices is None else path_of(prices, "prices")
    table = parse_yaml(read_text(file, "prices"), str(file))
    if not isinstance(table, dict):
        raise UserError(f"prices={prices}: write IN/OUT, dollars for a million tokens, or a file of MODEL: [IN, OUT]")
    found = table.get(model, table.get(_DATED.sub("", model)))
    if found is None:
        return None
    if not (isinstance(found, list) and len(found) == 2 and all(_is_price(value) for value in found)):
        raise UserError(
            f"{file}: the price of {model} is {found!r:.80}; write {model}: [IN, OUT], dollars for a million tokens"
        )
    return Price(float(found[0]), float(found[1]))


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


class Budget:
    """Counts calls and dollars of this process; of several processes each has an equal `share` of both limits.

    `reserve` before a call holds back the most that it may cost, `settle` replaces that by what it did.
    """

    def __init__(self, price: Price | None, max_cost: float | None, max_calls: int | None, share: float = 1.0) -> None:
        self.price, self.max_cost, self.max_calls, self.share = price, max_cost, max_calls, share
        self.spent = Spent(cost=None if price is None else 0.0)
        self._held = 0.0
        self._calls_held = 0
        self._lock = threading.Lock()

    def reserve(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """What is held back for a call, in dollars; None while there is room only if calls under way take less than
        they may. Raises `RunStopped` if the budget has no room for it.
        """
        most = 0.0 if self.price is None else self.price.of(prompt_tokens, reply_tokens)
        with self._lock:
            spent = self.spent.cost or 0.0
            if self.max_calls is not None and self.spent.calls + self._calls_held + 1 > self.max_calls * self.share:
                raise RunStopped(f"max_calls={self.max_calls} calls are made{self._of_share()}. {MORE}")
            if self.max_cost is not None and spent + most > self.max_cost * self.share:
                raise RunStopped(
                    f"of max_cost={self.max_cost:g} dollars {dollars(spent)} are spent{self._of_share()}, and the next "
                    f"call may take {dollars(most)}. {MORE}"
                )
            if self.max_cost is not None and spent + self._held + most > self.max_cost * self.share:
                return None
            self._held += most
            self._calls_held += 1
        return most

    def settle(self, held: float, prompt_tokens: int, reply_tokens: int) -> None:
        """A call that was made, with the tokens that it took; of one that failed, those that are known."""
        with self._lock:
            self._held -= held
            self._calls_held -= 1
            spent = self.spent
            self.spent = replace(
                spent,
                calls=spent.calls + 1,
                prompt_tokens=spent.prompt_tokens + prompt_tokens,
                completion_tokens=spent.completion_tokens + reply_tokens,
                cost=None if self.price is None else (spent.cost or 0.0) + self.price.of(prompt_tokens, reply_tokens),
            )

    def found_in_cache(self) -> None:
        with self._lock:
            self.spent = replace(self.spent, cached=self.spent.cached + 1)

    def _of_share(self) -> str:
        return f", by this one of {round(1 / self.share)} processes" if self.share < 1 else ""


MORE = "Each start has this budget anew, and nothing that was answered is asked again"
