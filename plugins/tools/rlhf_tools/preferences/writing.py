"""pairs.jsonl and pairs.sheet.json: rows as `rlhf run --method dpo --data` reads them, and the data sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_core import UserError
from rlhf_core.commands import new_file, pair_row, path_of, write_whole
from rlhf_tools.preferences.selecting import Pair, Prompt

# Columns of a source that are not copied: what the row itself has, what its prompt was made of, and names by which
# another format would be read, or a column be expected to change what is learned.
NOT_COPIED = {
    *("question", "response_chosen", "response_rejected", "system", "system_prompt", "history", "judge"),
    *("prompt", "completion", "messages", "conversations", "chosen", "rejected", "response", "rejected_response"),
    *("instruction", "input", "output", "query", "context", "text", "role", "message_id", "parent_id", "data"),
    *("preferred_output", "non_preferred_output", "score", "score_chosen", "score_rejected", "score_margin"),
    *("model", "model_chosen", "model_rejected", "orders_agree", "margin", "weight", "label", "labels", "kto_tag"),
    *("option", "options", "choice", "choices", "cot", "complex_cot", "reasoning", "reasoning_content", "thinking"),
    *("solution", "feedback", "mask", "train", "article", "passage", "paragraph", "document", "functions"),
}


def places(given: str, suffix: str = ".jsonl") -> tuple[Path, Path]:
    """(the file of pairs, its data sheet) of --output. Raises `UserError` for another kind of file."""
    output = path_of(given, "--output")
    if output.suffix != suffix:
        raise UserError(f"--output {given}: write a name that ends in {suffix}")
    return output, output.with_name(f"{output.stem}.sheet.json")


def refuse_existing(*files: Path) -> None:
    for file in files:
        if file.exists():
            raise UserError(f"--output {file} exists already: give another name, or remove it")


def copied(columns: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the columns of a source that are copied where they are plain, the others)."""
    names = list(dict.fromkeys(columns))
    return [n for n in names if n.lower() not in NOT_COPIED], [n for n in names if n.lower() in NOT_COPIED]


def row_of(pair: Pair, prompt: Prompt, judge: str | None) -> dict[str, Any]:
    """A line of pairs.jsonl."""
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    row = {
        **pair_row(prompt.messages, *([{"role": "assistant", "content": answer.text}] for _, answer in sides)),
        **{f"score_{side}": answer.score for side, answer in sides},
        "score_margin": pair.margin,
        **{f"model_{side}": answer.model for side, answer in sides if answer.model is not None},
        **({"judge": judge} if judge else {}),
        **({} if pair.agree is None else {"orders_agree": pair.agree}),
    }
    for side, answer in sides:
        row |= {f"{name}_{side}": value for name, value in answer.columns.items()}
    plain = {name: value for name in copied(prompt.columns)[0] if _is_plain(value := prompt.columns[name])}
    tools = {"tools": prompt.columns["tools"]} if prompt.columns.get("tools") else {}
    return {**row, **{name: value for name, value in plain.items() if name not in row}, **tools}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def lines_of(pairs: Iterable[Pair], prompts: Sequence[Prompt], judge: str | None) -> Iterator[str]:
    for pair in pairs:
        yield json.dumps(row_of(pair, prompts[pair.prompt], judge), ensure_ascii=False) + "\n"


def write(output: Path, sheet_file: Path, lines: Iterable[str], sheet: Mapping[str, Any]) -> None:
    """The sheet, then the pairs, so that whoever has the pairs has their sheet."""
    with new_file(output, "--output") as part:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.writelines(lines)
        write_whole(sheet_file, json.dumps(sheet, ensure_ascii=False, indent=1, default=str) + "\n")
