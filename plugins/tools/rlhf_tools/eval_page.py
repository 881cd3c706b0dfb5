"""eval.html: one file that needs no network and no script. Every text from data or models is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rlhf_core.commands import document
from rlhf_tools import eval_table, page


def render(result: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    parts = [
        page.settings([result["model"]], result["settings"]),
        *(f'<p class="note">{escape(note)}</p>' for note in result["notes"]),
        "<h2>Results</h2>",
        _table(result),
        '<p class="soft">Means, with their 95% intervals: a bootstrap over prompts.</p>',
        "<h2>Answers</h2>",
        *(page.prompt(number, row) for number, row in enumerate(result["prompts"], start=1)),
    ]
    return document(f"{result['model']['name']} evaluated", parts, page.STYLE + ".of { white-space: pre }\n")


def _table(result: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in eval_table.titles(result))
    body = "".join(
        f'<tr><th class="of">{escape(label)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for label, cells in eval_table.rows(result)
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
