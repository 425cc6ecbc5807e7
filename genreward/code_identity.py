"""Which code a number depends on: a digest of each module of the package that takes part in making it.

A leaf of the flow, used by `training`. Comments, docstrings and layout do not count, so that a better sentence does not
make hours of runs worthless; every other change does. The sources are read when this module is imported, which is when
the package is loaded: what is digested is what runs, even if a file is edited meanwhile. Libraries are not in it: their
versions are pinned by requirements.lock and written into each run's provenance.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from .errors import unknown

ROOT = Path(__file__).resolve().parent
PACKAGE = "genreward"
# Left out: what carries numbers or files from one place to another and decides none (what a run takes from profiles and
# tasks is in its identity value by value), and what makes the weights that a run only reads (they are in its identity
# by their content).
LEFT_OUT = frozenset({"", "errors", "files", "profiles", "tasks", "results", "locks", "execution",
                      "code_identity", "bootstrap", "video_training", "pipeline", "study"})


def _read_sources() -> dict[str, str]:
    """Module name below the package ("rewards.base", a package's own file as "rewards") -> source text."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


_SOURCES = _read_sources()
_PACKAGES = frozenset(".".join(path.relative_to(ROOT).parts[:-1]) for path in ROOT.rglob("__init__.py"))


def _short(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


@functools.cache
def _tree(module: str) -> ast.Module:
    """The module without its docstrings."""
    if module not in _SOURCES:
        raise unknown("module", module, _SOURCES)
    tree = ast.parse(_SOURCES[module])
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value,
                                                                                                    str):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _digest(nodes: Iterable[ast.AST]) -> str:
    return hashlib.sha256("\n".join(ast.dump(node) for node in nodes).encode()).hexdigest()[:16]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The package's modules that a module imports, at its head or later, but for `LEFT_OUT`. A name taken from a
    folder's `__init__` counts as the module that it comes from."""
    package = module if module in _PACKAGES else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {_short(alias.name) for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if package else []
                base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            elif node.module and node.module.split(".")[0] == PACKAGE:
                base = _short(node.module)
            else:
                continue
            found |= {_where(base, alias.name) for alias in node.names}
    return frozenset(found & _SOURCES.keys()) - LEFT_OUT - {module}


def _where(base: str, name: str) -> str:
    """The module behind `from base import name`."""
    inner = f"{base}.{name}".lstrip(".")
    if inner in _SOURCES:
        return inner
    if base in _PACKAGES and base:
        for node in ast.walk(_tree(base)):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and any(
                    (alias.asname or alias.name) == name for alias in node.names):
                return f"{base}.{node.module}"
    return base


def closure(roots: Iterable[str]) -> tuple[str, ...]:
    """The modules and everything in the package that they import, by name; folders' `__init__` files are left out."""
    found: set[str] = set()
    waiting = [_short(root) for root in roots]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(imports(module))
    return tuple(sorted(found - _PACKAGES))


def digests(roots: Iterable[str]) -> dict[str, str]:
    """Module -> 16 hex digits of its code, for the modules and everything in the package that they import."""
    return {module: _digest(_tree(module).body) for module in closure(roots)}


def digest_of(module: str, names: Iterable[str]) -> str:
    """16 hex digits of some functions and classes of a module; an unknown name is an InputError."""
    module = _short(module)
    known = {node.name: node for node in _tree(module).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for name in names:
        if name not in known:
            raise unknown(f"function or class of {module}", name, known)
    return _digest(known[name] for name in names)
