"""One process at a time for each run: lock files that tell a living holder from a dead one.

A leaf of the flow, used by `training` and `experiments`. A lock names its process (host, number, when it started), so
that one left behind by a kill or a loss of power is recognised at once on the same machine; on another machine of a
cluster, which cannot be asked, a living holder is known by touching its lock every few seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from . import profiles
from .errors import InputError

BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a holder on another machine counts as dead

_held: dict[str, int] = {}  # path -> thread, of the locks that this process holds


def of_run(run: Any) -> Path:
    """The lock of a run (anything with `run_id` and `profile`), held while it is being made."""
    return profiles.paths(run.profile).build / "locks" / f"{run.run_id}.lock"


class Busy(InputError):
    """Someone else, who is alive, holds the lock."""


def me() -> dict[str, Any]:
    """This process: host, pid and when it started (seconds since 1970), which tells it from a later one of its number.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def alive(holder: dict[str, Any], silent_for: float) -> bool:
    """Whether the process that `me` described still runs; `silent_for`: seconds since its last sign of life."""
    if not holder.get("host"):
        return False
    if holder["host"] != socket.gethostname():
        return silent_for < SILENCE
    try:
        process = psutil.Process(int(holder["pid"]))
        return abs(process.create_time() - float(holder["started"])) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def holder(path: str | os.PathLike) -> dict[str, Any] | None:
    """The living holder of a lock, or None: there is no lock, its holder is dead, or the file is damaged."""
    path = Path(path)
    try:
        kept = json.loads(path.read_text())
        silent = _now(path.parent) - path.stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return kept if isinstance(kept, dict) and alive(kept, silent) else None


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which sets the locks' times on every machine."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Alone in a folder of locks for the moment that it takes to judge a lock and to replace it; the kernel lets go of
    this one when the process ends, however it ends."""
    with open(folder / ".guard", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def hold(path: str | os.PathLike) -> Iterator[None]:
    """Hold the lock at `path` while the block runs; `Busy` names the living holder when there is another.

    A dead holder's lock is taken over. The thread that holds a lock may enter it again.
    """
    path = Path(path)
    name, thread = os.path.abspath(path), threading.get_ident()
    if _held.get(name) == thread:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _guard(path.parent):
        other = holder(path)
        if other is not None:
            raise Busy(f"{path.stem} is being made by process {other['pid']} on {other['host']}; let it end, or stop "
                       "it, and run the same command again")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(me()))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _held[name] = thread
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            try:
                os.utime(path)
            except OSError:
                return

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        del _held[name]
        path.unlink(missing_ok=True)
