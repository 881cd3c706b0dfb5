"""Lengths in tokens, by the chat template and tokenizer of a model, and what a method's limits would cut."""

from __future__ import annotations

import math
import sys
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN, builtin_name, preset_for
from rlhf_core.data.checks import Checks, lengths_of
from rlhf_core.data.encoding import tools_of
from rlhf_core.data.lengths import ANSWERS, CONVERSATIONS, PROMPTS, Limits
from rlhf_core.data.parts import Row
from rlhf_core.data.preparing import Preparation
from rlhf_core.data.projecting import Need, prompt_of
from rlhf_core.data_report.texts import histogram, percentiles
from rlhf_core.errors import UserError

MEASURED = 2000  # rows, evenly spread, whose tokens are counted
METHODS: dict[Need, str] = {"preferences": "dpo", "conversations": "sft", "prompts": "grpo"}


class Tokens:
    """Counts the tokens of every so many rows of `total`, with the limits that `method` has for `model`."""

    def __init__(self, method: Any, model: str, total: int, chat_template: str | None = None) -> None:
        from rlhf_core.models import loading
        from rlhf_core.models.resolve import find
        from rlhf_core.models.template import template_of

        preset = preset_for(method, {}) if builtin_name(model) == BUILTIN else {}
        self.method, self.model = method.name, model
        self.options = method.Options.model_validate(preset)
        info = loading.inspect(find(model, "--model"), method.task, chat_template=chat_template)
        self.need: Need = method.data
        self.template = template_of(info, self.options.chat_template_kwargs)
        self.template.tokenizer.model_max_length = sys.maxsize  # or transformers warns of long rows, which are counted
        prepare = Preparation(self.template, self.need, None, self.options.control_tokens)
        self.checks = Checks(prepare, Limits(self.need, self.options, self.template))
        self.step = max(1, math.ceil(total / MEASURED))
        self.rows = 0
        self.lengths: dict[str, list[int]] = {}

    def add(self, row: Row) -> None:
        """Measure a row. One that the template refuses has no length; it is counted where it is left out."""
        self.rows += 1
        if self.rows % self.step:
            return
        try:
            found = self._lengths(row)
        except UserError:
            return
        for part, tokens in found.items():
            self.lengths.setdefault(part, []).append(tokens)

    def _lengths(self, row: Row) -> dict[str, int]:
        found = lengths_of(row, self.need, self.template)
        if self.need == "conversations":
            whole, prompt = found["messages"], prompt_of(row)
            if not prompt:  # of plain text
                return {"conversation": whole}
            before = len(self.template.prompt_ids(prompt, tools_of(row)))
            return {"prompt": before, "answer": max(0, whole - before), "conversation": whole}
        if self.need == "preferences":
            return {**found, "conversation": found["prompt"] + max(found["chosen"], found["rejected"])}
        answer = row.get("answer")
        return {**found, **({"answer": len(self.template.ids(answer))} if isinstance(answer, str) else {})}

    def limits(self) -> dict[str, tuple[str, str, int]]:
        """{part: (the option that limits it, the rule for longer ones, the limit)}."""
        options = self.options
        if self.need == "conversations":
            return {"conversation": (CONVERSATIONS[0], options.overlong_completions, options.max_length)}
        found = {"prompt": (PROMPTS[0], options.overlong_prompts, options.max_prompt_length)}
        if self.need == "preferences":
            rule = ANSWERS[0], options.overlong_completions, options.max_completion_length
            found |= {"chosen": rule, "rejected": rule}
        return found

    def to_dict(self) -> dict[str, Any]:
        limits = self.limits()
        parts: dict[str, dict[str, Any]] = {}
        for part, values in self.lengths.items():
            parts[part] = {"tokens": percentiles(values), "histogram": histogram(values)}
            if part in limits:
                option, rule, limit = limits[part]
                over = sum(value > limit for value in values)
                parts[part] |= {"limit": limit, "option": option, "rule": rule, "over": over}
        measured = max(map(len, self.lengths.values()), default=0)
        return {"model": self.model, "method": self.method, "rows": measured, "parts": parts}


def method_for(name: str | None, need: Need, catalog: Catalog) -> Any:
    """The method that is named, else the usual one for `need`."""
    return catalog.load("methods", name or METHODS[need])[0]()
