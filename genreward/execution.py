"""Many runs, made side by side on one machine or on a cluster, that survive whatever happens to any of them.

Between `training`, which makes one run, and `experiments`, which says which runs there are. It knows of a run no more
than its name and profile, is told how to look at one and how to make one, and loads nothing heavy by itself. What is on
disk is the only memory: which runs are done is never remembered, it is looked at.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import joblib

from . import errors, locks, profiles
from .errors import Damaged, InputError

EXECUTORS = ("joblib", "ray")
DEATHS = 3  # times that a run's process may die before the run counts as failed
PAUSE = 2.0  # seconds between two looks at a run that another process is making
STATUS_EVERY = 2.0  # seconds between two writings of a run's status


class Run(Protocol):
    """What is known of a run here."""

    run_id: str
    profile: str


OnProgress = Callable[[int, int, "dict[str, float] | None"], None]
Examine = Callable[[Any], "tuple[str, str]"]
"""run -> (state, why), as `training.examine` says it; only "done" and "damaged" mean something here."""
Train = Callable[[Any, OnProgress], Any]
"""(run, on_progress) -> makes the run; raises `errors.Damaged` when what it would go on from cannot be read."""


# --- what a run says of itself ----------------------------------------------------------------------------------------


def status_path(run: Run) -> Path:
    """Where a run says how far it is."""
    return profiles.paths(run.profile).build / "status" / f"{run.run_id}.json"


def read_status(run: Run) -> dict[str, Any]:
    """What the run last said of itself; {} when there is nothing (readable): a status is only ever a courtesy."""
    try:
        kept = json.loads(status_path(run).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return kept if isinstance(kept, dict) else {}


class Status:
    """The status file of a run at work, written whole every `STATUS_EVERY` seconds; and its TensorBoard log on request.

    A disk without room for it does not stop the run.
    """

    def __init__(self, run: Run, attempt: str, tensorboard: bool = False) -> None:
        self.run, self.path, self.began, self.written = run, status_path(run), time.time(), 0.0
        self.first: int | None = None
        self.content: dict[str, Any] = {"run": run.run_id, "attempt": attempt, "state": "running", **locks.me()}
        self.tensorboard, self.writer = tensorboard, None

    def write(self, state: str, **more: Any) -> None:
        """Say `state` ("running", "done", "failed") and more, now."""
        self.content |= {"state": state, "updated": time.time(), **more}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.content))
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
        self.written = time.time()

    def __call__(self, step: int, steps: int, measured: dict[str, float] | None) -> None:
        """`on_progress` of `training.train_agent`."""
        if measured is not None and self.tensorboard:
            self._log(step, measured)
        if self.first is None:
            self.first, self.began = step - 1, time.time()
        if measured is None and time.time() - self.written < STATUS_EVERY:
            return
        speed = (step - self.first) / max(time.time() - self.began, 1e-6)
        more = {"return": measured["return"], "success": measured.get("success")} if measured else {}
        self.write("running", step=step, steps=steps, speed=speed, left=(steps - step) / speed if speed else None,
                   **more)

    def _log(self, step: int, measured: dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:  # what a killed run logged beyond its last checkpoint is logged again
            folder = profiles.paths(self.run.profile).build / "tensorboard" / self.run.run_id
            self.writer = SummaryWriter(str(folder), purge_step=step)
        for metric, value in measured.items():
            self.writer.add_scalar(metric, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the TensorBoard log, if there is one."""
        if self.writer is not None:
            self.writer.close()


def progress_line(status: dict[str, Any]) -> str:
    """One line on a running run: steps, return at its last evaluation, speed, time left."""
    step, steps = status.get("step", 0), status.get("steps", 0)
    said = f"{status.get('run', '?')}  {step:,}/{steps:,} steps" if steps else f"{status.get('run', '?')}  starting"
    if status.get("return") is not None:
        said += f"  return {status['return']:.1f}"
    if status.get("speed"):
        said += f"  {status['speed']:.0f} steps/s  {span(status.get('left'))} left"
    return said


def span(seconds: float | None) -> str:
    """A span of time for people; "?" where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Monitor(threading.Thread):
    """Prints one line a running run every `every` seconds, in place on a terminal; ends with `stop()`."""

    def __init__(self, runs: Sequence[Run], every: float, out: TextIO | None = None) -> None:
        super().__init__(daemon=True)
        self.runs, self.every, self.out, self.over, self.drawn = runs, every, out or sys.stdout, threading.Event(), 0

    def lines(self) -> list[str]:
        """One line for each run whose process is alive."""
        found = (read_status(run) for run in self.runs if status_path(run).is_file())
        return [progress_line(status) for status in found if status.get("state") == "running"
                and locks.alive(status, time.time() - float(status.get("updated", 0)))]

    def draw(self) -> None:
        """Print the lines, over the last ones where the terminal can."""
        lines = self.lines()
        if self.out.isatty() and self.drawn:
            print(f"\x1b[{self.drawn}F\x1b[J", end="", file=self.out)
        for line in lines:
            print(f"  {line}", file=self.out)
        self.out.flush()
        self.drawn = len(lines)

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.draw()

    def stop(self) -> None:
        """End the printing."""
        self.over.set()
        self.join()


# --- making what is missing -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Outcome:
    """What came of one run: "done" (now or before), "failed", or "busy" (another process is making it)."""

    run_id: str
    state: str
    message: str = ""
    seconds: float = 0.0


def one_thread() -> None:
    """One thread for torch in this process, where OMP_NUM_THREADS says nothing else: numbers would depend on the
    machine's cores, and the small models are slower with more."""
    if "OMP_NUM_THREADS" not in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _one(run: Run, attempt: str, examine: Examine, train: Train, tensorboard: bool, root: str | None) -> Outcome:
    """Make one run in this process, alone (its lock) and without ever raising: what went wrong is in the outcome."""
    if root is not None:
        os.environ["GENREWARD_ROOT"] = root
    one_thread()
    began = time.time()
    status = Status(run, attempt, tensorboard)
    try:
        with locks.hold(locks.of_run(run)):
            state, why = examine(run)
            if state == "done":
                return Outcome(run.run_id, "done")
            status.write("running", note=why if state == "damaged" else "")
            try:
                train(run, status)
            except Damaged as problem:  # nothing can be read from its checkpoint: from the start
                status.write("running", note=str(problem))
                (profiles.paths(run.profile).checkpoints / f"{run.run_id}.pt").unlink(missing_ok=True)
                train(run, status)
            status.write("done", seconds=time.time() - began)
            return Outcome(run.run_id, "done", seconds=time.time() - began)
    except locks.Busy as problem:
        return Outcome(run.run_id, "busy", str(problem))
    except InputError as problem:
        message = str(problem)
    except (Exception, SystemExit):
        message = traceback.format_exc()
    finally:
        status.close()
    status.write("failed", error=message, seconds=time.time() - began)
    return Outcome(run.run_id, "failed", message, time.time() - began)


def _workers(executor: str, jobs: int, gpu: bool) -> tuple[dict[str, Any], int]:
    """joblib's settings for an executor, and how many runs go at once.

    "ray" registers Ray as joblib's backend and uses what is alive in the cluster at RAY_ADDRESS (or in one started on
    this machine): as many runs as there are CPUs, or one a GPU where runs need one. A run asks Ray for no CPU of its
    own: a pool that waited for those of a node which has just died would wait for ever.
    """
    if executor == "joblib":
        return ({"backend": "loky"} if jobs > 1 else {"backend": "sequential"}), jobs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise InputError("EXECUTOR=ray needs the package ray; run make setup, or use EXECUTOR=joblib") from None
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    register_ray()
    alive = ray.cluster_resources()
    needs = {"num_gpus": 1} if gpu else {"num_cpus": 0}
    return ({"backend": "ray", "ray_remote_args": {**needs, "scheduling_strategy": "SPREAD"}},
            max(1, int(alive.get("GPU" if gpu else "CPU", 1))))


def execute(runs: Sequence[Run], examine: Examine, train: Train, *, jobs: int = 1, executor: str = "joblib",
            gpu: bool = False, tensorboard: bool = False, every: float | None = 30.0) -> list[Outcome]:
    """Make every run that is not done; returns what came of each, in order.

    A run that fails, or whose process dies, does not stop the others. A run that another process is making is waited
    for, and taken over should that one die. Which runs are done is read from disk and from nowhere else, so that what a
    broken-off pool, a dead node or another invocation has finished counts, and nothing is made twice.

    examine, train  see `Examine` and `Train`; they are sent to other processes
    jobs            runs at once on one machine; a cluster has as many as it has room for (with `gpu`: GPUs)
    every           seconds between two reports of progress; None: no reports
    """
    if executor not in EXECUTORS:
        raise errors.unknown("executor", executor, EXECUTORS)
    if not runs:
        return []
    errors.at_least("jobs", jobs, 1)
    attempt, outcomes, deaths = uuid.uuid4().hex, {}, Counter()
    waiting = {run.run_id: run for run in runs}
    idle = 0  # passes in a row in which nothing came of any run
    monitor = Monitor(list(waiting.values()), every) if every is not None else None
    if monitor:
        monitor.start()
    try:
        while waiting:
            free = [run for run in waiting.values() if locks.holder(locks.of_run(run)) is None]
            if not free:
                time.sleep(PAUSE)
                continue
            settings, count = _workers(executor, jobs, gpu)
            calls = [joblib.delayed(_one)(run, attempt, examine, train, tensorboard, os.environ.get("GENREWARD_ROOT"))
                     for run in free]
            try:
                with joblib.parallel_config(**settings):
                    got = joblib.Parallel(n_jobs=min(count, len(free)), batch_size=1)(calls)
            except Exception as problem:  # a worker or a node died: what its runs left on disk says how they stand
                known = deaths.total()
                got = _left_behind(free, attempt, deaths)
                idle = 0 if got or deaths.total() > known else idle + 1
                if idle > 1:
                    raise
                print(f"a worker was lost ({type(problem).__name__}); going on with the rest", flush=True)
            for outcome in got:
                if outcome.state != "busy":
                    outcomes[outcome.run_id] = outcome
                    waiting.pop(outcome.run_id, None)
    finally:
        if monitor:
            monitor.stop()
    return [outcomes[run_id] for run_id in dict.fromkeys(run.run_id for run in runs)]


def _left_behind(runs: Sequence[Run], attempt: str, deaths: Counter) -> list[Outcome]:
    """What came of the runs of a pool that broke; those whose process died are counted, and given up after `DEATHS`."""
    found = []
    for run in runs:
        status = read_status(run)
        if status.get("attempt") != attempt:
            continue
        if status["state"] == "done":
            found.append(Outcome(run.run_id, "done", seconds=float(status.get("seconds", 0))))
        elif status["state"] == "failed":
            found.append(Outcome(run.run_id, "failed", str(status.get("error", "")), float(status.get("seconds", 0))))
        elif not locks.alive(status, time.time() - float(status.get("updated", 0))):
            deaths[run.run_id] += 1
            if deaths[run.run_id] >= DEATHS:
                message = f"its process died {DEATHS} times (killed, or out of memory)"
                Status(run, attempt).write("failed", error=message)
                found.append(Outcome(run.run_id, "failed", message))
    return found
