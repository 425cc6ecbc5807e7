"""Which of MKL's codes does the sums: the one for Intel's processors, or the one for those of other makers.

PyTorch's matrix products are Intel MKL's. MKL asks the processor who made it, and takes other code for another maker,
with sums in another order: a run that was made on an Intel machine comes out otherwise on an AMD one, though code,
libraries and vector instructions are the same. `as_if` answers that question in the processor's place, for this
process. Agents that learn from states then come out bit for bit on an AMD machine with AVX-512 as they did on a host
whose processor their records do not name (README tells how many were tried); what encodes pictures, in bfloat16, does
not. And the code for Intel's can be the quicker one elsewhere, where it uses wider vectors than the other
(`benchmarks/sums.py`). `experiments repeat` asks for it by itself, `experiments run` where it is told to. Below
`results` in the flow, which says in a provenance if sums were rounded so.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path

from .errors import InputError, unknown

MAKERS = ("intel", "other")
WHOSE = {"intel": "Intel's", "other": "another maker's", None: "its machine's own"}
"""Whose processor a record's `rounded_as` means, for people."""
_QUESTIONS = ("mkl_serv_intel_cpu_true", "mkl_serv_intel_cpu")  # of MKL to itself; exported by libtorch_cpu
_ANSWER = {"intel": b"\xb8\x01\x00\x00\x00\xc3", "other": b"\x31\xc0\xc3"}  # x86-64: return 1; return 0
_answered: list[str] = []


def _library() -> ctypes.CDLL | None:
    """PyTorch's library where it holds an MKL that can be answered; None elsewhere (another processor's, no MKL)."""
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not path.is_file():
        return None
    library = ctypes.CDLL(str(path))
    return library if all(hasattr(library, name) for name in _QUESTIONS) else None


def own() -> str | None:
    """Whose code MKL takes in this process, one of `MAKERS`: the processor's own, or what `as_if` said. None where
    PyTorch has no MKL, or none that can be asked."""
    library = _library()
    return None if library is None else MAKERS[0] if library.mkl_serv_intel_cpu_true() else MAKERS[1]


def taken() -> str | None:
    """What `as_if` was last told in this process; None where sums are rounded as the processor has it."""
    return _answered[-1] if _answered else None


def of(processor: str | None) -> str | None:
    """The maker by a provenance's `processor` (`results.processor`), one of `MAKERS`; None where it names none."""
    if not processor:
        return None
    return MAKERS[0] if "intel" in processor.lower() else MAKERS[1]


def check(maker: str) -> ctypes.CDLL:
    """The library that `as_if` would answer; InputError for an unknown maker, and where PyTorch has no MKL that can be
    answered."""
    if maker not in MAKERS:
        raise unknown("maker of processors", maker, MAKERS)
    library = _library()
    if library is None:
        raise InputError("this PyTorch has no MKL that can be told whose processor it is on; valid: Linux on x86-64, "
                         "with PyTorch's own wheels")
    return library


def as_if(maker: str) -> None:
    """Let MKL take the code of another maker's processor, in this process and from now on. To be called before the
    first sum of the process: what MKL has once chosen it keeps.

    maker: one of `MAKERS`. InputError as of `check`. The same vector instructions must be there as on the other
    machine, or its numbers do not come out.
    """
    library = check(maker)
    if taken() == maker:
        return
    libc, size, answer = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, _ANSWER[maker]
    for name in _QUESTIONS:
        place = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        first = place - place % size
        pages = ctypes.c_void_p(first), ctypes.c_size_t(place + len(answer) - first)
        if libc.mprotect(*pages, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
            raise InputError("this system does not let a process change its own code, so MKL cannot be told whose "
                             "processor it is on")
        ctypes.memmove(place, answer, len(answer))
        libc.mprotect(*pages, mmap.PROT_READ | mmap.PROT_EXEC)
    _answered.append(maker)
