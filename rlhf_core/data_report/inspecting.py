"""What is in one source: its format, what is used of it and what is left out, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data_report.measuring import Seen, concluded, held_out_reader, overlap
from rlhf_core.data_report.reading import Reader
from rlhf_core.data_report.tokens import Tokens, method_for
from rlhf_core.data_report.view import Examples
from rlhf_core.grammar import DataSpec


def inspect(
    given: str,
    catalog: Catalog,
    *,
    method: str | None = None,
    model: str = "builtin",
    chat_template: str | None = None,
    eval_data: str | None = None,
    examples: int = 1,
) -> dict[str, Any]:
    """Everything that `rlhf data inspect` shows, as plain data. Raises `UserError`."""
    spec = DataSpec.read(given)
    need = method_for(method, "prompts", catalog).data if method else None
    reader = Reader(spec, need, catalog)
    tokens = Tokens(method_for(method, reader.need, catalog), model, reader.rows_read, chat_template)
    seen, usable = Seen(reader.need), 0
    shown = Examples(examples, reader.need, tokens.options, tokens.template)
    for location, row, left_in in reader.rows(tokens.checks):
        usable += left_in
        seen.add(location, row)
        if left_in:
            shown.add(location, row)
    used, unused = reader.columns()
    held_out = overlap(held_out_reader(spec, reader.need, catalog, eval_data), seen.prompts)
    return {
        "source": str(given),
        "need": reader.need,
        **reader.choice(catalog),
        "used": used,
        "unused": unused,
        "total": reader.total,
        "usable": usable,
        "left_out": reader.left_out.to_dict(),
        "examples": shown.to_list(),
        "warnings": [
            *reader.warnings,
            *reader.formats.told,
            *reader.conversion.told(),
            *tokens.checks.warnings(),
            *([] if usable else ["no row can be used, for the reasons above"]),
            *concluded({**seen.to_dict(), "held_out": held_out}),
        ],
    }
