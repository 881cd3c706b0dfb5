"""What `--reward ./file.py:name` and `--reward package.module:name` import.

A file may import the files beside it, as a script does, at its top or within a function; what is installed goes before
them. They are its folder's own: two rewards may each have a `helper.py`, and nothing else sees either.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
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
        beside = _FilesBeside(path.resolve().parent)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": beside.import_}  # also for imports in functions
        try:
            with beside.visible():
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"--reward {path}: importing it failed: {describe(error)}") from error
    return sys.modules[name]


class _FilesBeside:
    """The files of a folder, which can be imported while they are `visible`."""

    _lock = threading.RLock()
    _modules: dict[Path, dict[str, ModuleType]] = {}  # noqa: RUF012 (of all folders)

    def __init__(self, folder: Path) -> None:
        self.folder, self.imported = folder, self._modules.setdefault(folder, {})

    def import_(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """`__import__` of a reward's file."""
        with contextlib.nullcontext() if name in sys.modules and name not in self.imported else self.visible():
            return builtins.__import__(name, *arguments, **keywords)

    @contextlib.contextmanager
    def visible(self) -> Iterator[None]:
        with self._lock:
            if str(self.folder) in sys.path:  # anything may import them
                yield
                return
            others = {name: sys.modules[name] for name in self.imported if name in sys.modules}
            before = sys.modules.keys() - self.imported.keys()
            sys.modules.update(self.imported)
            sys.path.append(str(self.folder))
            try:
                yield
            finally:
                sys.path.remove(str(self.folder))
                new = sys.modules.keys() - before
                own = {name for name in new if "." not in name and self._has(sys.modules[name])}
                self.imported.update({name: sys.modules.pop(name) for name in new if name.partition(".")[0] in own})
                sys.modules.update(others)

    def _has(self, module: ModuleType) -> bool:
        """Whether a module without a parent is a file or a folder in this one."""
        spec = module.__spec__
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        return any(place is not None and Path(place).parent == self.folder for place in places)


def _import_module(module: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for a package in the current folder
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(f"--reward {module}: importing it failed: {describe(error)}") from error
