"""Kernels that have imported already: what a notebook's first ten seconds go to, paid once for the whole book.

A kernel that starts from nothing imports PyTorch, diffusers, transformers, pandas and matplotlib before its first cell
does anything, and the book's twelve notebooks do so twelve times. Here one process imports them (`WARM`, the preloads
of a multiprocessing fork server), and each notebook's kernel is forked from it: the same interpreter with the same
modules, in which nothing has been computed. Everything else about it is as Jupyter has it, and so are its results.

What looks about as it is imported is not in `WARM`, nor imported by what is: MuJoCo, which may open a display, and the
notebook's back end of matplotlib, which shows figures at a cell's end only if it finds itself in a kernel. A CUDA
device once asked for cannot be asked for again in a fork: where one is in sight, no kernel is forked (`supported`).
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "genreward-forked"
INLINE = "module://matplotlib_inline.backend_inline"
WARM = ("ipykernel.kernelapp", "seaborn", "transformers", "peft", "open_clip",
        "diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video", "genreward.video_model", "genreward.pipeline",
        "genreward.study", "genreward.reward_study", "genreward.evidence", "genreward.trace", "genreward.claims")


def supported() -> bool:
    """Whether kernels may be forked here: where no accelerator is in sight."""
    return not any([*Path("/dev").glob("nvidia*"), Path("/dev/kfd").exists()])


class Waiting:
    """A child of this process that waits to become a kernel, with all that is imported here.

    To be made before this process starts a thread. Where it is not used, it ends with this process. `foreign` are
    connections that the child must not hold open: whoever listens at their other end would never hear of our death.
    The rest is what Jupyter asks of a `subprocess.Popen`.
    """

    stdin = stdout = stderr = None

    def __init__(self, foreign: Sequence[multiprocessing.connection.Connection] = ()) -> None:
        receiver, self._sender = multiprocessing.connection.Pipe(duplex=False)
        self._ended: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for connection in (self._sender, *foreign):
                connection.close()
            _wait(receiver)
        receiver.close()

    def become(self, command: Sequence[str], environment: Mapping[str, str], folder: str | None) -> None:
        """Be what `command`, `python -m ipykernel_launcher ...`, would be if it were started in `folder`."""
        self._sender.send((list(command), dict(environment), folder))

    def poll(self) -> int | None:
        """None while it runs, else its exit status (of a signal: minus its number)."""
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended = os.waitstatus_to_exitcode(status) if pid else None
        return self._ended

    def wait(self) -> int:
        if self._ended is None:
            self._ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._ended

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _wait(receiver: multiprocessing.connection.Connection) -> None:
    """What the child does; it never returns into what its parent was doing."""
    status = 1
    try:
        command, environment, folder = receiver.recv()
        os.setsid()  # a kernel is told to stop as a group, which must not be its parent's
        os.environ.clear()
        os.environ.update(environment)
        if folder:
            os.chdir(folder)
        sys.argv = command[command.index("-m") + 1:]
        # A fork server's child starts processes as its server does; tqdm's lock would then outlive the kernel.
        multiprocessing.set_start_method(None, force=True)
        if "matplotlib" in sys.modules:  # which chose its back end as it was imported, and not in a kernel
            sys.modules["matplotlib"].rcParams["backend"] = os.environ.get("MPLBACKEND", INLINE)
        from ipykernel import kernelapp

        kernelapp.launch_new_instance()
        status = 0
    except EOFError:  # the parent ended without a word
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


class Forked(LocalProvisioner):
    """Starts the kernel in the process that waits for it."""

    waiting: Waiting | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        self.process, Forked.waiting = Forked.waiting, None
        if self.process is None:
            raise RuntimeError("no process waits to become a kernel: kernels.use(kernels.Waiting()) makes one")
        parent = {"JPY_PARENT_PID": str(os.getpid())}  # by which a kernel sees that its parent has ended, and ends too
        self.process.become(cmd, {**kwargs["env"], **parent}, kwargs.get("cwd"))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def use(waiting: Waiting) -> None:
    """Have the next kernel that this process starts be the one that waits."""
    Forked.waiting = waiting
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = importlib.metadata.EntryPoint(NAME, f"{__name__}:Forked", factory.GROUP_NAME)
    factory.default_provisioner_name = NAME
