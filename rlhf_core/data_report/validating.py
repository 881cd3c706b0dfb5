"""Whether data can be trained on as it is: checks that pass or fail, with every row that can't be used."""

from __future__ import annotations

from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data.left_out import BadData, Kind, Unusable
from rlhf_core.data_report.measuring import held_out_reader, overlap, prompt_digest
from rlhf_core.data_report.reading import Reader
from rlhf_core.data_report.tokens import Tokens, method_for
from rlhf_core.grammar import DataSpec

KINDS: dict[Kind, str] = {
    "malformed": "every row can be read",
    "nothing to learn": "every row has something to learn",
    "too long": "every row is within the limits",
}
# What the chat template makes of a row (`Preparation.found`), of which a run warns.
TEMPLATE = {
    "no end": "every row ends with a token at which the model stops",
    "twice": "every row begins with one token that begins texts, if any",
}


def validate(
    given: str,
    catalog: Catalog,
    *,
    method: str | None = None,
    model: str | None = None,
    chat_template: str | None = None,
    eval_data: str | None = None,
) -> dict[str, Any]:
    """The checks of one source and its bad rows, as plain data. Raises `UserError` for a source that is not there.

    The chat template and the limits are tried where a `model` is named.
    """
    spec = DataSpec.read(given)
    need = method_for(method, "prompts", catalog).data if method else None
    try:
        reader = Reader(spec, need, catalog)
    except BadData as error:
        checks = [_check("a formatter fits", 1, str(error))]
        return {"source": given, "passed": False, "checks": checks, "bad_rows": [], "warnings": []}
    tokens = None
    if model:
        tokens = Tokens(method_for(method, reader.need, catalog), model, reader.rows_read, chat_template)
    prompts: dict[bytes, str] = {}
    usable = 0
    for location, row, left_in in reader.rows(tokens.checks if tokens else None):
        if tokens is None and reader.need == "preferences" and row["chosen"] == row["rejected"]:
            reader.left_out.add(location, Unusable("the two answers are the same", "nothing to learn"))
            left_in = False
        usable += left_in
        prompts.setdefault(prompt_digest(row), location)
    checks = [_check("a formatter fits", 0, reader.formats.main.name)]
    for kind, name in KINDS.items():
        if kind != "too long" or tokens:
            bad = reader.left_out.rows(kind)
            are = "have" if kind == "nothing to learn" else "are"
            checks.append(_check(name, bad, f"{bad:,} of {reader.total:,} rows {are} {kind}"))
    checks.append(_check("some row can be used", int(not usable), f"{usable:,} of {reader.total:,} rows"))
    if tokens:
        found = tokens.checks.prepare.found
        checks += [
            _check(name, found[what, ""], f"{found[what, '']:,} of {reader.total:,} rows do not")
            for what, name in TEMPLATE.items()
        ]
    if shared := overlap(held_out_reader(spec, reader.need, catalog, eval_data), prompts):
        text = f"{shared['overlap']:,} of {shared['rows']:,} held-out rows have a prompt that is trained on"
        checks.append(_check("held-out rows are not trained on", shared["overlap"], text))
    return {
        "source": given,
        "need": reader.need,
        "rows": reader.total,
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "bad_rows": reader.left_out.every,
        "warnings": tokens.checks.warnings() if tokens else [],
    }


def _check(name: str, failures: int, text: str) -> dict[str, Any]:
    return {"check": name, "passed": not failures, "text": text}
