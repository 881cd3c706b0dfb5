"""Check one plugin and write its report: `python -m rlhf_core.testing KIND NAME FILE`, which `rlhf plugins check` runs.

Commands and callbacks are only imported.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.testing.report import Report


def examine(kind: str, name: str) -> Report:
    if kind == "rewards":
        from rlhf_core.testing import rewards

        return rewards.examine(name, {})
    if kind == "methods":
        from rlhf_core.testing import methods

        return methods.examine(name)
    if kind == "formatters":
        from rlhf_core.testing import formatters

        return formatters.examine(name)
    return _imported(kind, name)


def _imported(kind: str, name: str) -> Report:
    report = Report(kind[:-1], name)
    rule = report.rule("can be imported")
    try:
        if kind == "callbacks":  # its hook wants a run
            importlib.import_module(Catalog().find(kind, name).module)
        else:
            Catalog().load(kind, name)
    except UserError as error:
        rule.fault(str(error))
    except Exception as error:
        rule.fault(f"{type(error).__name__}: {error}")
    return report


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(examine(*sys.argv[1:3]).as_dict()), encoding="utf-8")
