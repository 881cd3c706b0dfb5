"""The package of a new plugin, written from the templates in `rlhf_core/templates/`: what `rlhf plugins new` does.

The package works as written: its tests pass, and a run can use it.
"""

from __future__ import annotations

import builtins
import keyword
import re
import string
from pathlib import Path

from rlhf_core import __version__
from rlhf_core.catalog import Catalog, normalize
from rlhf_core.errors import UserError
from rlhf_core.outputs import new_folder

TEMPLATES = Path(__file__).parent.parent / "templates"
# kind -> (one line about what is written, the function to edit, what the package needs, how to use it)
KINDS = {
    "reward": (
        "The final answer is the reference answer, given once and kept short",
        "score()",
        "rlhf-core",
        "rlhf run --method grpo --reward $name",
    ),
    "method": (
        "Supervised fine-tuning that can weight each token by the model's own confidence",
        "trainer()",
        "rlhf-core[train]",
        "rlhf run --method $name",
    ),
    "formatter": (
        "Rows with the columns query and response",
        "convert()",
        "rlhf-core",
        "rlhf run --method sft --data FILE:formatter=$name",
    ),
}
CASES = {"reward": "golden", "formatter": "examples"}  # the end of the name of the file of cases beside the module
NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
LONGEST = 40
TAKEN = {*keyword.kwlist, *dir(builtins), "hookimpl"}  # what the function in the module can't be called


def check_name(kind: str, name: str) -> str:
    """The name as users will type it, with underscores. Raises `UserError` for one that can't be, or is taken."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UserError(
            f"{name!r} can't be the name of a plugin: write small letters and digits, beginning with a letter, with "
            f"single - or _ between words, at most {LONGEST} characters, as in near_answer."
        )
    short = name.removeprefix(f"rlhf-{kind}-").replace("-", "_")
    if short in TAKEN:
        raise UserError(f"{name!r} can't be the name of a plugin: it means something in Python. Try {short}_{kind}.")
    for entry in Catalog().entries(f"{kind}s"):
        if normalize(entry.name) == normalize(short) or normalize(entry.distribution) == distribution(kind, short):
            raise UserError(
                f"{entry.distribution} {entry.version} is installed already, with the {kind} {entry.name!r}. Choose "
                f"another name, or remove that one first: rlhf plugins uninstall {entry.distribution}"
            )
    return short


def write(kind: str, name: str, folder: Path) -> list[str]:
    """Write the package to `folder`, which must not exist; the paths of its files in it. Raises `UserError`."""
    module = module_name(kind, name)
    cases = f"{module}_{CASES[kind]}.jsonl" if kind in CASES else None
    description, _, core, _ = KINDS[kind]
    values = {
        "kind": kind,
        "name": name,
        "module": module,
        "distribution": distribution(kind, name),
        "class_name": "".join(word.capitalize() for word in name.split("_")) + "Method",
        "description": description,
        "core": core,
        "core_version": ".".join(__version__.split(".")[:2]),
        "files": ", ".join(f'"{file}"' for file in (f"{module}.py", cases) if file),
    }
    files = {
        "pyproject.toml": "shared/pyproject.toml",
        f"{module}.py": f"{kind}/module.py",
        **({cases: f"{kind}/cases.jsonl"} if cases else {}),
        "README.md": f"{kind}/README.md",
        "tests/test_plugin.py": f"{kind}/test_plugin.py",
        ".github/workflows/test.yml": "shared/test.yml",
        ".gitignore": "shared/gitignore",
    }
    with new_folder(folder, "--output-dir") as part:
        for file, template in files.items():
            text = (TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            (part / file).write_text(string.Template(text).substitute(values), encoding="utf-8")
    return list(files)


def distribution(kind: str, name: str) -> str:
    return f"rlhf-{kind}-{name.replace('_', '-')}"


def module_name(kind: str, name: str) -> str:
    return f"rlhf_{kind}_{name}"
