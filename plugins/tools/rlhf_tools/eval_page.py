"""eval.html: one file that needs no network and no script, made of eval.html here. What it is given is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_core.commands import document, template
from rlhf_tools import eval_table, page


def render(result: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    body = template(page.HERE, "eval.html").render(
        settings=page.settings([result["model"]], result["settings"]),
        notes=result["notes"],
        titles=eval_table.titles(result),
        rows=list(eval_table.rows(result)),
        prompts=[page.prompt(row) for row in result["prompts"]],
    )
    return document(f"{result['model']['name']} evaluated", [body], page.STYLE + ".of { white-space: pre-wrap }\n")
