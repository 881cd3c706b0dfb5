"""What `--reward ./file.py:name`, `--reward package.module:name` and the same of `--formatter` import.

A file may import the files beside it, as a script does, at its top or within a function, and so may they; what is
installed goes before them. They are its folder's own: two files may each have a `helper.py`, and nothing else sees
either.
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
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_core.errors import UserError, describe, did_you_mean
from rlhf_core.inputs import path_of, read_text

_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[A-Za-z_][\w.]*))?")
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_][\w.]*)")


def find(target: str, flag: str) -> tuple[Any, str] | None:
    """(the object, its name) if `target`, given to `flag`, is a path. Raises `UserError` if it can't be imported."""
    if match := _FILE.fullmatch(target):
        found = _import_file(path_of(match["path"], flag), match["attribute"], flag)
    elif match := _MODULE.fullmatch(target):
        found = _import_module(match["module"], flag)
    else:
        return None
    for part in match["attribute"].split("."):
        if part not in dir(found):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"{flag} {target}: it has no {part!r}.{did_you_mean(part, public)}")
        found = getattr(found, part)
    return found, part


def files_of(path: Path) -> list[Path]:
    """A file, and those of its folder that it imports, and they in turn."""
    found = [path]
    for file in found:  # which grows
        with contextlib.suppress(OSError, ValueError, SyntaxError, RecursionError):
            for node in ast.walk(ast.parse(file.read_bytes())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module, *(f"{node.module}.{name}" for name in names)]
                places = [path.parent.joinpath(*name.split(".")) for name in names]
                beside = [each for place in places for each in (place.with_suffix(".py"), place / "__init__.py")]
                found += [each for each in dict.fromkeys(beside) if each not in found and each.is_file()]
    return found


def _import_file(path: Path, attribute: str | None, flag: str) -> Any:
    if not path.is_file():
        raise UserError(f"{flag}: there is no file {path}")
    if attribute is None:
        try:
            body = ast.parse(read_text(path, flag)).body
        except (SyntaxError, ValueError) as error:  # ValueError: a zero byte
            raise UserError(f"{flag} {path}: {describe(error)}") from error
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        raise UserError(f"{flag} {path}: say which function, {path}:NAME. It has {', '.join(functions) or 'none'}.")
    name = f"rlhf_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        beside = _FilesBeside(path.resolve().parent)
        spec: Any = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path), beside))
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            with beside.visible():
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UserError(f"{flag} {path}: importing it failed: {describe(error)}") from error
    return sys.modules[name]


class _Loader(SourceFileLoader):
    """Gives a file an `import` that finds the files `beside` it, in its functions too."""

    def __init__(self, name: str, path: str, beside: _FilesBeside) -> None:
        super().__init__(name, path)
        self.beside = beside

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self.beside.import_}
        super().exec_module(module)


class _FilesBeside:
    """The files of a folder, which can be imported while they are `visible`: it is then one of `sys.meta_path`."""

    _lock = threading.RLock()
    _modules: dict[Path, dict[str, ModuleType]] = {}  # noqa: RUF012 (of all folders)

    def __init__(self, folder: Path) -> None:
        self.folder, self.imported = folder, self._modules.setdefault(folder, {})

    def import_(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """`__import__` of the folder's files."""
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
            sys.meta_path.insert(0, self)
            try:
                yield
            finally:
                sys.meta_path.remove(self)
                new = sys.modules.keys() - before
                own = {name for name in new if "." not in name and self._has(sys.modules[name])}
                self.imported.update({name: sys.modules.pop(name) for name in new if name.partition(".")[0] in own})
                sys.modules.update(others)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """A file of the folder, or of a folder in it (`path`), unless something of that name is installed."""
        others = [finder for finder in sys.meta_path if not isinstance(finder, _FilesBeside)]
        if path is None and any(finder.find_spec(name, path, target) for finder in others):
            return None
        spec = PathFinder.find_spec(name, [str(self.folder)] if path is None else path)
        if spec and spec.origin and type(spec.loader) is SourceFileLoader and self.folder in Path(spec.origin).parents:
            spec.loader = _Loader(name, spec.origin, self)
        return spec

    def _has(self, module: ModuleType) -> bool:
        """Whether a module without a parent is a file or a folder in this one."""
        spec = module.__spec__
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        return any(place is not None and Path(place).parent == self.folder for place in places)


def _import_module(module: str, flag: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for a package in the current folder
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{flag} {module}: importing it failed: {describe(error)}") from error
