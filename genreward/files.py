"""Files that are written whole or not at all, and digests that name their content.

A process may be killed at any moment. Everything the project keeps goes through `atomic_path` or `atomic_dir`: the
content is written under a temporary name in the same folder (so that the rename cannot cross file systems) and renamed
once it is complete. A reader therefore never meets half a file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import OF_A_FILE, InputError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on an exception it is removed.

    The temporary name keeps the suffix of `path`, since many writers choose their format by it.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; results are for everyone
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except RuntimeError as problem:
        # torch.save says in words of its own that its bytes did not arrive; nothing else makes its writer fail here
        if "inline_container" in str(problem) or "PytorchStreamWriter" in str(problem):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, else it is removed.

    A folder cannot be replaced in one step, so the old one is moved aside first: a kill between the two renames leaves
    the old folder under a name ending in `.old`, and no half-written one.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    old = path.with_name(path.name + ".old")
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it, where they are not there; InputError where a file stands in the way."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} cannot be a folder: a file is in its place or above it") from None


def require_writable(folder: str | os.PathLike) -> None:
    """Make the folder where it is not there; an InputError where no file can be written into it. Asked before hours of
    work, not after them."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        if problem.errno not in OF_A_FILE:
            raise
        raise InputError(f"nothing can be written into {folder}: {problem.strerror}") from None


def refuse_missing(what: str, missing: Iterable[str]) -> None:
    """InputError that says of `what` how many of its config's weights are missing, where any are: diffusers and
    transformers would fill them with random numbers and say so in a log at most (`output_loading_info` tells)."""
    if missing := sorted(missing):
        raise InputError(f"{what} lacks {len(missing)} weights of its config, {missing[0]} first; it is incomplete or "
                         "belongs to another config")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` (dataclasses included) as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `write_json` wrote of a mapping or dataclass; a missing or damaged file, or one that holds anything
    else, is an `InputError` that names it."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as problem:
        raise InputError(f"{path} is not readable JSON ({problem})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {'a list' if isinstance(content, list) else repr(content)}, where names with "
                         "their values are wanted ({...})")
    return content


def read_npz(path: str | os.PathLike, *names: str) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file (all of them where none is named), none of them pickled. A missing or damaged file,
    or one without a named array, is an `InputError` that names it."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as kept:
            there, content = kept.files, {name: kept[name] for name in kept.files if not names or name in names}
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError) as problem:  # TypeError: of a lone .npy
        raise InputError(f"{path} is damaged ({str(problem) or type(problem).__name__}); put it back, or remove it and "
                         "make it again") from None
    if missing := [name for name in names if name not in content]:
        raise InputError(f"{path} holds no {', '.join(missing)} (but {', '.join(there) or 'nothing'}): it was written "
                         "by another program")
    return {name: content[name] for name in names or there}


def read_table(path: str | os.PathLike, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """A CSV table of our own (`options` go to `pandas.read_csv`). A missing file, one that is no table, is cut short in
    its last line or has other `columns` is an `InputError` that names it."""
    table = parse_table(read_text(path), str(path), **options)
    if columns and list(table.columns) != list(columns):
        raise InputError(f"{path} has columns {', '.join(map(str, table.columns))}; valid: {', '.join(columns)}")
    return table


def read_text(path: str | os.PathLike) -> str:
    """A file's text; InputError that names it where it is missing or no text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except UnicodeDecodeError as problem:
        raise InputError(f"{path} is not a file of text ({problem})") from None


def parse_table(text: str, where: str, **options: Any) -> pd.DataFrame:
    """The CSV table that a file's text holds (`where` names it in errors); see `read_table`."""
    try:
        table = pd.read_csv(io.StringIO(text), **options)
    except ValueError as problem:  # pandas' own are among them
        raise InputError(f"{where} is not a readable table: {str(problem).strip()}") from None
    if not text.endswith("\n"):  # else a number that lost its last digits would pass for another number
        raise InputError(f"{where}: row {len(table)} is cut short: the file does not end with a whole line")
    return table


def digest(*things: Any) -> str:
    """16 hex digits of SHA-256 over the things: a `Path` counts by its content (a folder by all its files' names and
    contents, hidden ones left out), anything else by its JSON form."""
    total = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Path):
            if not thing.exists():
                raise InputError(f"no such file or folder: {thing}")
            files = [thing] if thing.is_file() else sorted(p for p in thing.rglob("*") if p.is_file())
            for file in files:
                name = file.relative_to(thing).as_posix() if thing.is_dir() else ""
                if any(part.startswith(".") for part in name.split("/")):
                    continue
                total.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        else:
            total.update(json.dumps(_plain(thing), sort_keys=True).encode())
    return total.hexdigest()[:16]


def _plain(thing: Any) -> Any:
    """The thing in JSON's types: dataclasses and mappings as objects, paths as text, NumPy scalars as numbers."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return _plain(asdict(thing))
    if isinstance(thing, dict):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [_plain(value) for value in (sorted(thing) if isinstance(thing, (set, frozenset)) else thing)]
    if hasattr(thing, "tolist"):
        return thing.tolist()
    return thing.as_posix() if isinstance(thing, Path) else thing
