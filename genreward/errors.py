"""One kind of error for everything a user can get wrong, so that a wrong name, file or shape costs one line.

Every public entry point checks what it was given before it starts work and raises `InputError`; command lines wrap
their `main` with `cli`, which prints that line and exits with status 2 instead of a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable

# what a path that someone named may suffer from; anything else that the system refuses is a fault of ours
OF_A_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
                       errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY})


class InputError(ValueError):
    """What was given cannot be used. The message names the thing and says what would be valid."""


class Absent(InputError):
    """What this is read from has not been made yet. The message names the command that makes it."""


class Damaged(InputError):
    """A file of our own that is cut short or not one at all: what it held can only be made anew."""


def unknown(kind: str, name: object, valid: Iterable[object]) -> InputError:
    """The error for a name that is in none of the lists: `unknown task 'x'; valid: a, b, c`."""
    return InputError(f"unknown {kind} {name!r}; valid: {', '.join(sorted(map(str, valid))) or 'none is there yet'}")


def at_least(name: str, value: float, least: float) -> None:
    """An InputError where a number is less than its least (or none at all, NaN)."""
    if not value >= least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def cli(main: Callable[[], int | None]) -> None:
    """Run a command line: status 0 when it returns, 2 with one `error:` line for bad input, a full disk or a file that
    cannot be read or written. Whoever reads its output may stop listening (`... | head`)."""
    try:
        status = main() or 0
        sys.stdout.flush()
        raise SystemExit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        raise SystemExit(0) from None
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: the disk is full ({problem.filename or 'while writing'}); free some space and run the same "
                  "command again: what was finished is kept", file=sys.stderr)
        elif problem.errno in OF_A_FILE and problem.filename is not None:  # of a renaming the second is what was named
            print(f"error: {problem.filename2 or problem.filename}: {problem.strerror}", file=sys.stderr)
        else:
            raise
    raise SystemExit(2)
