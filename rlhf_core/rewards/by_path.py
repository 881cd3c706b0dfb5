"""What `--reward ./file.py:name` and `--reward package.module:name` import."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError, describe, did_you_mean

_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[A-Za-z_][\w.]*))?")
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_][\w.]*)")


def find(target: str) -> tuple[Any, str] | None:
    """(the object, its name) if `target` is a path. Raises `UserError` if it can't be imported."""
    if match := _FILE.fullmatch(target):
        found = _import_file(Path(match["path"]).expanduser(), match["attribute"])
    elif match := _MODULE.fullmatch(target):
        found = _import_module(match["module"])
    else:
        return None
    for part in match["attribute"].split("."):
        if part not in dir(found):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"--reward {target}: it has no {part!r}.{did_you_mean(part, public)}")
        found = getattr(found, part)
    return found, part


def _import_file(path: Path, attribute: str | None) -> Any:
    if not path.is_file():
        raise UserError(f"--reward: there is no file {path}")
    if attribute is None:
        try:
            body = ast.parse(path.read_text(encoding="utf-8")).body
        except SyntaxError as error:
            raise UserError(f"--reward {path}: line {error.lineno}: {error.msg}") from error
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        raise UserError(f"--reward {path}: say which function, {path}:NAME. It has {', '.join(functions) or 'none'}.")
    name = f"rlhf_reward_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"--reward {path}: importing it failed: {describe(error)}") from error
    return sys.modules[name]


def _import_module(module: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for a package in the current folder
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(f"--reward {module}: importing it failed: {describe(error)}") from error
