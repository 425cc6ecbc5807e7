"""The grid behind every figure and table: its runs, which of them are there, how the rest is made, wherever it is made.

Stands between `training`, which makes one run, and `results`, which every run is read from (`... training ->
experiments -> results -> figures`). An `Experiment` declares the runs of one figure or table; runs that several of them
need are made once. What is on disk is the only memory: stopped at any moment and started again, by the same or another
command, on one machine or several that share a folder, the grid goes on and ends with the same numbers.

    python -m genreward.experiments list --profile laptop               # done, missing, failed, seconds each, left
    python -m genreward.experiments list --profile laptop --only fig9   # and each run that is not done
    python -m genreward.experiments run --profile laptop --only fig9    # make what is missing
    RAY_ADDRESS=... python -m genreward.experiments run --executor ray  # the same on a cluster that shares a folder
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import joblib

from . import errors, files, locks, profiles, training
from .agents.checkpoints import DamagedCheckpoint
from .errors import InputError
from .profiles import Profile
from .tasks import PAPER_TASKS
from .training import Run

EXECUTORS = ("joblib", "ray")
STATES = ("done", "running", "partial", "missing", "damaged", "failed", "stale", "blocked")
DEATHS = 3  # times that a run's process may die before the run counts as failed
PAUSE = 2.0  # seconds between two looks at a run that another process is making
STATUS_EVERY = 2.0  # seconds between two writings of a run's status

# --- what is declared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """How much of the grid a profile can afford. Steps are environment steps, None: the profile's own.

    main_steps  of Fig. 5 and 7; steps: of every other item; agent: which one learns the curves
    tasks       of Fig. 5; cut: only these tasks in every item (a profile that proves that everything runs)
    printed     whether the weights of Fig. 9 are swept around those of the paper, or of the sound variant
    made        the experiments that `make results` makes when it is not told which; jobs: runs at once (None: one a
                core)
    """

    main_steps: int | None = None
    steps: int | None = None
    seeds: int = 3
    agent: str = "sac"
    tasks: tuple[str, ...] = PAPER_TASKS
    cut: tuple[str, ...] | None = None
    printed: bool = False
    made: tuple[str, ...] | None = None
    jobs: int | None = None


BUDGETS: dict[str, Budget] = {
    "smoke": Budget(seeds=1, tasks=("pick-place",), cut=("pick-place",), made=("base",), jobs=1),
    "laptop": Budget(main_steps=51_200, steps=30_720),
    "gpu": Budget(agent="dreamer", seeds=5, printed=True),
    "paper": Budget(agent="dreamer", seeds=5, printed=True),
}


@dataclass(frozen=True)
class Arm:
    """One curve of a figure: a method, and what differs from the profile (see `training.Run.changes`)."""

    method: str
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Experiment:
    """The runs of one figure or table: every arm on every task with every seed.

    item      what the paper calls it; question: what it answers
    main      of the budget's `main_steps`; seeds: at most so many (None: the budget's)
    """

    name: str
    item: str
    question: str
    tasks: tuple[str, ...] = ()
    arms: tuple[Arm, ...] = ()
    main: bool = False
    seeds: int | None = None

    def runs(self, profile: str | Profile) -> list[Run]:
        """Its runs in a profile, in order. The name under which they are kept is the profile's, not the figure's: a run
        that two figures need is one run."""
        profile = profiles.get_profile(profile)
        if self.name == "base":
            return [Run(task, method, agent, seed, profile.name, profile.name) for agent in profile.run.agents
                    for seed in range(profile.run.seeds) for task in profile.run.tasks
                    for method in profile.run.methods]
        budget = budget_of(profile)
        steps = budget.main_steps if self.main else budget.steps
        tasks = [task for task in self.tasks if budget.cut is None or task in budget.cut]
        return [Run(task, arm.method, "zero_shot" if arm.method == "fb_zero_shot" else budget.agent, seed, profile.name,
                    profile.name, None if arm.method == "fb_zero_shot" else steps, _real(arm.changes, profile))
                for seed in range(min(budget.seeds, self.seeds or budget.seeds)) for task in tasks for arm in self.arms]


def _real(changes: tuple[tuple[str, Any], ...], profile: Profile) -> tuple[tuple[str, Any], ...]:
    """The changes that are any: a weight that the profile has anyway is the unchanged run, and made once."""
    kept = []
    for name, value in changes:
        section, _, part = name.partition(".")
        if not part or getattr(getattr(profile, section), part) != value:
            kept.append((name, value))
    return tuple(kept)


def budget_of(profile: str | Profile) -> Budget:
    """The budget of a profile; one of another name than the package's has the default one with its own seeds."""
    profile = profiles.get_profile(profile)
    return BUDGETS.get(profile.name) or Budget(seeds=profile.run.seeds, made=("base",), jobs=1)


def _arms(*methods: str, dense: bool) -> tuple[Arm, ...]:
    """The methods beside the environment's dense or sparse reward."""
    return tuple(Arm(method if not dense or method in ("dense", "fb_zero_shot") else f"{method}_dense")
                 for method in methods)


COMPARED = ("roboclip", "diffusion_reward", "tadpole", "genreward", "genreward_sound", "fb_zero_shot")
"""The methods that the paper compares, its own as printed and with the repairs that the measurements here call for, and
F and B's own policy, which needs no reward at all."""

EASY = ("reach", "push", "drawer-close", "door-open", "button-press")
SOURCES = ("in_domain", "camera", "recoloured", "expert_video")
"""Where the goal video of Fig. 10 comes from, beside the held-out model: a model that has seen the task, another
camera, a recoloured scene, and a real video of the expert as the upper bound."""


def experiments(profile: str | Profile) -> dict[str, Experiment]:
    """Every figure and table that is made of runs, by name. What differs by profile is the budget's sweep and tasks."""
    profile = profiles.get_profile(profile)
    budget = budget_of(profile)
    ours = "genreward_dense" if budget.printed else "genreward_sound_dense"
    sparse_ours = "genreward" if budget.printed else "genreward_sound"
    alpha, beta = ("reward.alpha", "reward.beta") if budget.printed else ("reward.sound_alpha", "reward.sound_beta")
    alphas = (0.001, 0.01, 0.1, 1.0) if budget.printed else (0.1, 1.0, 3.0, 10.0)
    betas = (1e-6, 1e-5, 1e-4, 1e-3) if budget.printed else (0.1, 1.0, 3.0, 10.0)
    full = (Arm("dense"), Arm(ours))
    sweep = (Arm(ours, ((alpha, 0.0),)), Arm(ours, ((beta, 0.0),)), *(Arm(ours, ((alpha, a),)) for a in alphas),
             *(Arm(ours, ((beta, b),)) for b in betas))
    other_psi = "openclip" if profile.fb.encoder != "dinov3" else "siglip2"
    distracted = tuple(Arm(method, (("distraction", "all-easy-dynamic"),)) for method in ("dense", ours))
    declared = (
        Experiment("base", "", "the profile's own runs: every agent, task and method of `profiles.RunConfig`"),
        Experiment("fig5", "Fig. 5", "return against steps beside the dense reward", budget.tasks,
                   (Arm("dense"), *_arms(*COMPARED, dense=True)), main=True),
        Experiment("easy", "Fig. 5, easy tasks", "the same where learning shows within a small budget, sparse reward",
                   EASY, (Arm("dense"), Arm("sparse"), *_arms(*COMPARED, dense=False))),
        Experiment("fig6", "Fig. 6", "what each method's policy does on bin-picking (film strips of Fig. 5's runs)",
                   ("bin-picking",), (Arm("dense"), *_arms(*COMPARED, dense=True)), main=True, seeds=1),
        Experiment("fig7", "Fig. 7", "return against steps under sparse reward", ("bin-picking",),
                   (Arm("sparse"), *_arms(*COMPARED, dense=False)), main=True),
        Experiment("fig9", "Fig. 9", "which part of the reward matters, and how much of it", ("pick-place",),
                   (*full, *sweep)),
        Experiment("fig10", "Fig. 10", "how good must the goal video be", ("pick-place",),
                   (*full, *(Arm(ours, (("goal", source),)) for source in SOURCES))),
        Experiment("tableA", "Table A", "other environments", ("walker-walk", "door"),
                   (*full, *distracted)),
        Experiment("tableB", "Table B", "goal videos with hallucinations: objects that teleport", ("pick-place",),
                   (*full, Arm(ours, (("goal", "teleport"),)))),
        Experiment("tableC", "Table C", "the goal frame by CLIP or at random; another encoder psi", ("pick-place",),
                   (*full, Arm(ours, (("goal", "random_frame"),)), Arm(ours, (("fb.encoder", other_psi),)))),
        Experiment("tableD", "Table D", "F without the action", ("walker-walk",),
                   (Arm(sparse_ours), Arm(sparse_ours, (("fb.action_aware", False),)))),
        Experiment("tableE", "Table E", "training time of every method (of Fig. 5's runs)", ("pick-place",),
                   (Arm("dense"), *_arms(*COMPARED, dense=True)), main=True, seeds=1),
    )
    return {experiment.name: experiment for experiment in declared}


def chosen(profile: str | Profile, only: Sequence[str] | None = None) -> list[Experiment]:
    """The experiments of those names (all of them: None), in the declaration's order; an unknown one is an InputError.
    """
    declared = experiments(profile)
    for name in only or ():
        if name not in declared:
            raise errors.unknown("experiment", name, declared)
    return [experiment for name, experiment in declared.items() if only is None or name in only]


def grid(profile: str | Profile, only: Sequence[str] | None = None) -> list[Run]:
    """Every run of the chosen experiments once; where they ask for different lengths, the longest."""
    runs: dict[str, Run] = {}
    for experiment in chosen(profile, only):
        for run in experiment.runs(profile):
            known = runs.setdefault(run.run_id, run)
            if _wanted(run, profile) > _wanted(known, profile):
                runs[run.run_id] = run
    return list(runs.values())


def _wanted(run: Run, profile: str | Profile) -> int:
    return training.total_steps(run, profiles.get_profile(profile))


# --- how it stands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How one run stands: one of `STATES`, why, and what is known of its cost."""

    run: Run
    state: str
    why: str = ""
    seconds: float | None = None  # of training, so far
    steps: int = 0  # environment steps taken
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Environment steps still to take."""
        return max(0, _wanted(self.run, self.run.profile) - self.steps)


def standing(run: Run, accept_code: bool = False) -> Standing:
    """How a run stands, from what is on disk."""
    try:
        state, why = training.examine(run, accept_code=accept_code)
    except InputError as problem:  # a task or method that is not there (yet)
        return Standing(run, "blocked", str(problem))
    status = read_status(run)
    seconds, steps = None, 0
    record = profiles.paths(run.profile).runs / f"{run.run_id}.json"
    if state in ("done", "partial", "stale") and record.is_file():
        kept = files.read_json(record)
        seconds, steps = kept.get("seconds"), int(kept.get("steps", 0))
    if state != "done":
        if locks.holder(training.lock_path(run)) is not None:
            state, why = "running", ""
        elif state in ("missing", "partial", "damaged") and status.get("state") == "failed":
            why = str(status.get("error", "")).strip().rpartition("\n")[2]
            state = "failed"
    return Standing(run, state, why, seconds, steps, status)


def seconds_per_step(standings: Iterable[Standing]) -> Callable[[Run], float | None]:
    """Run -> expected training seconds a step: the mean of finished runs of its agent and method, else of its agent."""
    by_method: dict[tuple[str, str], list[float]] = {}
    by_agent: dict[str, list[float]] = {}
    for one in standings:
        if one.state == "done" and one.seconds and one.steps:
            by_method.setdefault((one.run.agent, one.run.method), []).append(one.seconds / one.steps)
            by_agent.setdefault(one.run.agent, []).append(one.seconds / one.steps)

    def expected(run: Run) -> float | None:
        known = by_method.get((run.agent, run.method)) or by_agent.get(run.agent)
        return sum(known) / len(known) if known else None

    return expected


def overview(profile: str | Profile, only: Sequence[str] | None = None, jobs: int | None = None,
             accept_code: bool = False) -> tuple[list[dict[str, Any]], list[Standing]]:
    """One line an experiment and one over all (shared runs counted once), and how every run stands.

    Lines: experiment, item, runs, one count for each of `STATES`, each (mean seconds of a finished run) and left
    (seconds that the rest will take with `jobs` at once; None where nothing like it has finished yet). Blocked and
    stale runs are not in the time left: no command makes them as they are.
    """
    profile = profiles.get_profile(profile)
    jobs = jobs or default_jobs(profile)
    runs = grid(profile, only)
    standings = {run.run_id: standing(run, accept_code) for run in runs}
    expected = seconds_per_step(standings.values())

    def line(name: str, item: str, members: list[Standing]) -> dict[str, Any]:
        counts = Counter(one.state for one in members)
        finished = [one.seconds for one in members if one.state == "done" and one.seconds]
        rest = [one for one in members if one.state in ("running", "partial", "missing", "damaged", "failed")]
        times = [one.left * rate if (rate := expected(one.run)) is not None else None for one in rest]
        left = None if any(one is None for one in times) else max(sum(times) / jobs, max(times, default=0.0))
        return {"experiment": name, "item": item, "runs": len(members), **{state: counts[state] for state in STATES},
                "each": sum(finished) / len(finished) if finished else None, "left": left}

    lines = []
    for experiment in chosen(profile, only):
        own = dict.fromkeys(run.run_id for run in experiment.runs(profile))
        lines.append(line(experiment.name, experiment.item, [standings[run_id] for run_id in own]))
    lines.append(line("all", "each run once", list(standings.values())))
    return lines, list(standings.values())


def show(lines: list[dict[str, Any]], standings: list[Standing], detail: bool, out: TextIO | None = None) -> None:
    """Print an overview; `detail`: also one line for each run that is not done."""
    out = out or sys.stdout
    columns = ["experiment", "item", "runs", *STATES, "each", "left"]
    cells = [[_span(line[name]) if name in ("each", "left") else str(line[name]) for name in columns] for line in lines]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [columns, *cells]:
        print("  ".join(cell.ljust(width) if number < 2 else cell.rjust(width) for number, (cell, width)
                        in enumerate(zip(row, widths, strict=True))).rstrip(), file=out)
    waiting = [one for one in standings if one.state != "done"]
    reasons = Counter(one.why for one in waiting if one.state == "blocked")
    for reason, count in reasons.most_common():
        print(f"blocked ({count}): {reason}", file=out)
    for one in waiting:
        if one.state in ("stale", "damaged") or (detail and one.state != "blocked"):
            print(f"{one.state}: {one.run.run_id}{': ' + one.why if one.why else ''}", file=out)


def _span(seconds: float | None) -> str:
    """A span of time for people; "?" where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
        said += f"  {status['speed']:.0f} steps/s  {_span(status.get('left'))} left"
    return said


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

Train = Callable[[Run, Callable[[int, int, dict[str, float] | None], None], bool], Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one run: "done" (now or before), "failed", or "busy" (another process is making it)."""

    run_id: str
    state: str
    message: str = ""
    seconds: float = 0.0


def _train_agent(run: Run, on_progress: Callable[[int, int, dict[str, float] | None], None], accept_code: bool) -> None:
    training.train_agent(run, progress=False, on_progress=on_progress, accept_code=accept_code)


def _one(run: Run, attempt: str, train: Train, accept_code: bool, redo: bool, tensorboard: bool,
         root: str | None) -> Outcome:
    """Make one run in this process, alone (its lock) and without ever raising: what went wrong is in the outcome."""
    if root is not None:
        os.environ["GENREWARD_ROOT"] = root
    if "OMP_NUM_THREADS" not in os.environ:  # else numbers would depend on how many cores a machine has
        import torch

        torch.set_num_threads(1)
    began = time.time()
    status = Status(run, attempt, tensorboard)
    try:
        with locks.hold(training.lock_path(run)):
            state, why = training.examine(run, accept_code=accept_code)
            if state == "done":
                return Outcome(run.run_id, "done")
            status.write("running", note=why if state == "damaged" else "")
            if state == "stale" and redo:
                set_aside(run)
            try:
                train(run, status, accept_code)
            except DamagedCheckpoint as problem:  # nothing can be read from it: from the start
                status.write("running", note=str(problem))
                (profiles.paths(run.profile).checkpoints / f"{run.run_id}.pt").unlink(missing_ok=True)
                train(run, status, accept_code)
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


def set_aside(run: Run) -> Path:
    """Move a run's record and checkpoint to build/<profile>/replaced/; returns the folder."""
    where = profiles.paths(run.profile)
    target = where.build / "replaced" / f"{run.run_id}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    target.mkdir(parents=True)
    for path in (where.checkpoints / f"{run.run_id}.pt", where.runs / f"{run.run_id}.csv",
                 where.runs / f"{run.run_id}.json"):
        if path.is_file():
            shutil.move(path, target / path.name)
    return target


def default_jobs(profile: str | Profile) -> int:
    """Runs at once: the budget's, else one a core, or one where they share a GPU."""
    profile = profiles.get_profile(profile)
    if (jobs := budget_of(profile).jobs) is not None:
        return jobs
    return 1 if profile.device.startswith("cuda") else joblib.cpu_count()


def _workers(executor: str, jobs: int, gpu: bool) -> tuple[dict[str, Any], int]:
    """joblib's settings for an executor, and how many runs go at once.

    "ray" registers Ray as joblib's backend and uses what is alive in the cluster at RAY_ADDRESS (or in one started on
    this machine): one run a CPU, or a GPU where runs need one.
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
    return ({"backend": "ray", "ray_remote_args": {"num_gpus" if gpu else "num_cpus": 1,
                                                   "scheduling_strategy": "SPREAD"}},
            max(1, int(alive.get("GPU" if gpu else "CPU", 1))))


def execute(runs: Sequence[Run], *, jobs: int | None = None, executor: str = "joblib", train: Train = _train_agent,
            accept_code: bool = False, redo: bool = False, tensorboard: bool = False, every: float | None = 30.0
            ) -> list[Outcome]:
    """Make every run that is not done; returns what came of each, in order.

    A run that fails, or whose process dies, does not stop the others. A run that another process is making is waited
    for, and taken over should that one die. Which runs are done is read from disk and from nowhere else, so that what a
    broken-off pool, a dead node or another invocation has finished counts, and nothing is made twice.

    jobs         runs at once on one machine (default: see `default_jobs`); a cluster has as many as it has room for
    train        (run, on_progress, accept_code) -> makes the run
    accept_code  go on with, and count as done, what only differs in its code
    redo         move records of another identity away (build/<profile>/replaced) and make them anew
    every        seconds between two reports of progress; None: no reports
    """
    if executor not in EXECUTORS:
        raise errors.unknown("executor", executor, EXECUTORS)
    if not runs:
        return []
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    gpu = profiles.get_profile(runs[0].profile).device.startswith("cuda")
    attempt, outcomes, deaths = uuid.uuid4().hex, {}, Counter()
    waiting = {run.run_id: run for run in runs}
    idle = 0  # passes in a row in which nothing came of any run
    monitor = Monitor(list(waiting.values()), every) if every is not None else None
    if monitor:
        monitor.start()
    try:
        while waiting:
            free = [run for run in waiting.values() if locks.holder(training.lock_path(run)) is None]
            if not free:
                time.sleep(PAUSE)
                continue
            settings, count = _workers(executor, jobs or default_jobs(runs[0].profile), gpu)
            calls = [joblib.delayed(_one)(run, attempt, train, accept_code, redo, tensorboard,
                                          os.environ.get("GENREWARD_ROOT")) for run in free]
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


def make(profile: str | Profile, only: Sequence[str] | None = None, **settings: Any) -> None:
    """Make what is missing of the chosen experiments (by default those of the profile's budget), then report.

    settings: see `execute`. A run that waits for something else is named with the command that makes it. InputError at
    the end when a run failed, waits, or is on record with another identity: all others are made by then. Tracebacks of
    failed runs are printed before it.
    """
    profile = profiles.get_profile(profile)
    runs = grid(profile, only if only is not None else budget_of(profile).made)
    before = {run.run_id: standing(run, settings.get("accept_code", False)) for run in runs}
    ready = [run for run in runs if before[run.run_id].state not in ("done", "blocked")
             and (before[run.run_id].state != "stale" or settings.get("redo", False))]
    print(f"{len(runs)} runs: {sum(one.state == 'done' for one in before.values())} done, {len(ready)} to make",
          flush=True)
    outcomes = execute(ready, **settings)
    failed = [(outcome.run_id, outcome.message) for outcome in outcomes if outcome.state == "failed"]
    for run_id, message in failed:
        if "\n" in message.strip():
            print(f"\n{run_id} failed:\n{message.rstrip()}", file=sys.stderr)
    wrong = [f"{run_id}: {message.strip().rpartition(chr(10))[2]}" for run_id, message in failed]
    kept_back = [one for one in before.values() if one.run.run_id not in {run.run_id for run in ready}]
    wrong += [f"{one.run.run_id}: {one.why}" for one in kept_back if one.state == "stale"]
    waits = Counter(one.why for one in kept_back if one.state == "blocked")
    wrong += [f"{count} wait: {why}" for why, count in waits.most_common()]
    if wrong:
        count = len(failed) + sum(one.state in ("stale", "blocked") for one in kept_back)
        raise InputError(f"{count} of {len(runs)} runs failed; {'; '.join(wrong)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "run"))
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(experiments("laptop")))
    parser.add_argument("--jobs", type=int, help="runs at once on this machine (default: one a core)")
    parser.add_argument("--executor", default="joblib", choices=EXECUTORS, help="ray: the cluster at RAY_ADDRESS")
    parser.add_argument("--accept-code", action="store_true",
                        help="count as done, and go on with, what only differs in the code that made it")
    parser.add_argument("--redo", action="store_true", help="make records of another identity anew (kept in build/)")
    parser.add_argument("--tensorboard", action="store_true", help="log to build/<profile>/tensorboard")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two reports of progress")
    arguments = parser.parse_args()
    if arguments.command == "list":
        show(*overview(arguments.profile, arguments.only, arguments.jobs, arguments.accept_code),
             detail=arguments.only is not None)
        return
    make(arguments.profile, arguments.only, jobs=arguments.jobs, executor=arguments.executor,
         accept_code=arguments.accept_code, redo=arguments.redo, tensorboard=arguments.tensorboard,
         every=arguments.every)


if __name__ == "__main__":
    errors.cli(main)
