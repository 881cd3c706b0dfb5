"""Where the page is written: by `rlhf report`, and by a run while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_core.errors import UserError
from rlhf_core.report.metrics import POINTS
from rlhf_core.report.page import FILE, LARGEST, render
from rlhf_core.report.reading import read_run
from rlhf_core.report.samples import BYTES
from rlhf_core.ui.page import page_file, write_page
from rlhf_core.words import language

SMALLEST, FEWEST = 1000, 400  # bytes of answers; points of a curve


def write_report(runs: Sequence[str | Path], output: str | None = None, lang: str | None = None) -> Path:
    """Write the page of `runs` and return its file. Raises `UserError`."""
    tongue = language(lang)
    places = [Path(run).resolve() for run in runs]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError(f"{runs[i]} is given twice")
    default = str(Path(runs[0]) / FILE) if len(runs) == 1 else FILE
    size = BYTES // len(runs)
    points = max(FEWEST, POINTS // len(runs) // 2 * 2)
    records = [read_run(run, size, points) for run in runs]
    file = page_file(output or default, "--output" if output else "the page")
    page = render(records, tongue)
    while (written := len(page.encode())) > LARGEST and size > SMALLEST:
        size = int(size * 0.8 * LARGEST / written)
        page = render([read_run(run, size, points) for run in runs], tongue)
    write_page(file, "--output" if output else "the page", page)
    return file
