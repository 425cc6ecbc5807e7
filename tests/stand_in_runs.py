"""Runs that cost nothing, for the tests of the grid: they learn nothing, but begin, checkpoint, record and resume as
the real ones do, and write down when they begin and end. Light to import, since workers of a pool import it."""

import json
import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from genreward import files, profiles, results
from genreward.errors import Damaged, InputError


@dataclass(frozen=True)
class StandIn:
    """`trouble`: "" or what goes wrong, once: "die" (the process is killed), "raise", "refuse", "full" (the disk)."""

    run_id: str
    chunks: int = 4
    pause: float = 0.0
    trouble: str = ""
    profile: str = "smoke"

    @property
    def where(self):
        return profiles.paths(self.profile)

    @property
    def checkpoint(self):
        return self.where.checkpoints / f"{self.run_id}.pt"

    @property
    def table(self):
        return self.where.runs / f"{self.run_id}.csv"

    def note(self, what):
        """One line more in the diary that all runs share."""
        self.where.build.mkdir(parents=True, exist_ok=True)
        with open(self.where.build / "diary", "a") as diary:
            diary.write(f"{what} {self.run_id} {os.getpid()}\n")


def examine(run):
    """As `training.examine`, by the number of rows and the diary: a worker may be killed, or go with its pool, between
    the last row and the diary's last line; such a run is taken up again, so that each has one end in the diary."""
    state, why = of_table(run)
    if state == "done" and ("ended", run.run_id) not in {line[:2] for line in diary(run)}:
        return "partial", "its end is not in the diary"
    return state, why


def of_table(run):
    """The run's state by its table alone."""
    if not run.table.is_file():
        return "missing", ""
    try:
        rows = results.read_run(run.table)
    except InputError as problem:
        return "damaged", str(problem)
    return ("done", "") if len(rows) == run.chunks else ("partial", f"{len(rows)} of {run.chunks}")


def train(run, on_progress):
    """Random numbers, chunk by chunk, each drawn from where the last checkpoint left the generator."""
    run.note("begun")
    rng, rows = np.random.default_rng(sum(run.run_id.encode())), []
    if run.checkpoint.is_file():
        try:
            state = json.loads(run.checkpoint.read_text())
        except json.JSONDecodeError:
            raise Damaged(f"{run.checkpoint.name} is not a whole checkpoint") from None
        rng.bit_generator.state, rows = state["rng"], state["rows"]
    while len(rows) < run.chunks:
        first = not (run.where.build / f"troubled-{run.run_id}").exists()
        if run.trouble and first and len(rows) == run.chunks // 2:
            (run.where.build / f"troubled-{run.run_id}").touch()
            if run.trouble == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"raise": ZeroDivisionError("by nought"), "refuse": InputError("its goal is missing"),
                   "full": OSError(28, "No space left on device")}[run.trouble]
        time.sleep(run.pause)
        step = len(rows) + 1
        rows.append({"experiment": "stand-in", "method": "dense", "task": run.run_id, "seed": 0, "step": step,
                     "metric": "return", "value": float(rng.normal())})
        files.write_json(run.checkpoint, {"rng": rng.bit_generator.state, "rows": rows})
        results.write_run(run.where.runs, run.run_id, rows, {"seconds": step})
        on_progress(step, run.chunks, {"return": rows[-1]["value"]})
    if of_table(run)[0] != "done":
        results.write_run(run.where.runs, run.run_id, rows, {"seconds": len(rows)})
    run.note("ended")


def diary(run):
    """(what, run_id, pid) of every line."""
    path = run.where.build / "diary"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.is_file() else []
