"""The grid behind every figure and table: its runs, which of them are there, how the rest is made, wherever it is made.

Stands between `training`, which makes one run, and `results`, which every run is read from (`... training ->
experiments -> results -> figures`). An `Experiment` declares the runs of one figure or table; runs that several of them
need are made once. What is on disk is the only memory: stopped at any moment and started again, by the same or another
command, on one machine or several that share a folder, the grid goes on and ends with the same numbers.

    python -m genreward.experiments list --profile laptop               # done, missing, failed, seconds each, left
    python -m genreward.experiments list --profile laptop --only fig9   # and each run that is not done
    python -m genreward.experiments run --profile laptop --only fig9    # make what is missing
    python -m genreward.experiments run --only easy --tasks reach --methods dense sparse   # a part of it
    python -m genreward.experiments run --rounded-as intel              # on AMD: MKL's code for Intel's, if quicker
    python -m genreward.experiments vouch --profile laptop              # does changed code still give the same numbers?
    python -m genreward.experiments repeat --only easy --pick 3         # three runs at random, from nothing: the same?
    RAY_ADDRESS=... python -m genreward.experiments run --executor ray  # the same on a cluster that shares a folder
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import joblib
import torch

from . import errors, estimates, files, locks, profiles, results, rounding, training
from .agents.checkpoints import read_checkpoint
from .errors import InputError
from .execution import EXECUTORS, OnProgress, execute, one_thread, read_status, span
from .profiles import Profile
from .tasks import PAPER_TASKS
from .training import Run
from .trajectory import uniform_indices

STATES = ("done", "running", "partial", "missing", "damaged", "failed", "stale", "blocked")

# --- what is declared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """How much of the grid a profile can afford. Steps are environment steps, None: the profile's own.

    main_steps  of Fig. 5 and 7; pixel_steps: of DreamerV3 from pictures; steps: of every other item
    agent       which one learns the curves
    tasks       of Fig. 5; cut: these tasks in every item, in its own's place (a profile that proves that everything
                runs)
    printed     whether the weights of Fig. 9 are swept around those of the paper, or of the sound variant
    made        the experiments that `make results` makes when it is not told which; jobs: runs at once (None: one a
                core)
    """

    main_steps: int | None = None
    pixel_steps: int | None = None
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
    "laptop": Budget(main_steps=51_200, pixel_steps=10_240, steps=30_720),
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
    fresh     so many seeds after the budget's instead: for a question that arose from those
    times     so many times the length that it would have
    pixels    DreamerV3 from pictures, for the budget's `pixel_steps`, whatever the budget's agent is
    """

    name: str
    item: str
    question: str
    tasks: tuple[str, ...] = ()
    arms: tuple[Arm, ...] = ()
    main: bool = False
    seeds: int | None = None
    fresh: int = 0
    times: int = 1
    pixels: bool = False

    def runs(self, profile: str | Profile) -> list[Run]:
        """Its runs in a profile, in order. The name under which they are kept is the profile's, not the figure's: a run
        that two figures need is one run."""
        profile = profiles.get_profile(profile)
        if self.name == "base":
            return [Run(task, method, agent, seed, profile.name, profile.name) for agent in profile.run.agents
                    for seed in range(profile.run.seeds) for task in profile.run.tasks
                    for method in profile.run.methods]
        budget = budget_of(profile)
        steps = budget.main_steps if self.main else budget.pixel_steps if self.pixels else budget.steps
        agent = "dreamer" if self.pixels else budget.agent
        tasks = self.tasks if budget.cut is None else budget.cut
        seeds = (range(budget.seeds, budget.seeds + self.fresh) if self.fresh
                 else range(min(budget.seeds, self.seeds or budget.seeds)))
        every = (Run(task, arm.method, "zero_shot" if arm.method == "fb_zero_shot" else agent, seed,
                     profile.name, profile.name, None if arm.method == "fb_zero_shot" else steps,
                     _real(arm.changes, profile)) for seed in seeds for task in tasks for arm in self.arms)
        if self.times != 1:
            every = (replace(run, steps=self.times * _wanted(run, profile)) for run in every)
        return list({run.run_id: run for run in every}.values())


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

VIEWS = ("camera", "recoloured", "expert_video", "random_frame")
"""Those that a task has which the video model was trained on, and the goal frame drawn at random."""


FRAMES = 9
"""So many frames of a goal video, spread evenly, are tried as the goal one by one: all of the laptop's."""


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
    sweep, sparse_sweep = ((Arm(method, ((alpha, 0.0),)), Arm(method, ((beta, 0.0),)),
                            *(Arm(method, ((alpha, a),)) for a in alphas), *(Arm(method, ((beta, b),)) for b in betas))
                           for method in (ours, sparse_ours))
    other_psi = "openclip" if profile.fb.encoder != "dinov3" else "siglip2"
    distracted = tuple(Arm(method, (("distraction", "all-easy-dynamic"),)) for method in ("dense", ours))
    declared = (
        Experiment("base", "", "the profile's own runs: every agent, task and method of `profiles.RunConfig`"),
        Experiment("fig5", "Fig. 5", "return against steps beside the dense reward", budget.tasks,
                   (Arm("dense"), *_arms(*COMPARED, dense=True)), main=True),
        Experiment("easy", "Fig. 5, easy tasks", "the same where learning shows within a small budget, sparse reward",
                   EASY, (Arm("dense"), Arm("sparse"), *_arms(*COMPARED, dense=False))),
        Experiment("again", "Fig. 5, easy task again", "what the budget's seeds hint at, on seeds that nobody has seen",
                   ("drawer-close",), (Arm("sparse"), Arm(sparse_ours), Arm(sparse_ours, ((alpha, 0.0),)),
                                       Arm(sparse_ours, (("goal", "random_frame"),)),
                                       Arm(sparse_ours, (("goal", "frame_0"),))), fresh=7),
        Experiment("longer", "Fig. 5, easy task longer", "does the sparse reward alone get there with twice the steps, "
                   "on the same fresh seeds", ("drawer-close",), (Arm("sparse"),), fresh=7, times=2),
        Experiment("pixels", "Fig. 5, from pictures", "DreamerV3 from pictures, as the paper has it", ("drawer-close",),
                   tuple(Arm(method, (("dreamer.observation", "pixels"),)) for method in (
                       "dense", "sparse", sparse_ours)), pixels=True),
        Experiment("fig6", "Fig. 6", "what each method's policy does on bin-picking (film strips of Fig. 5's runs)",
                   ("bin-picking",), (Arm("dense"), *_arms(*COMPARED, dense=True)), main=True, seeds=1),
        Experiment("fig7", "Fig. 7", "return against steps under sparse reward", ("bin-picking",),
                   (Arm("sparse"), *_arms(*COMPARED, dense=False)), main=True),
        Experiment("fig9", "Fig. 9", "which part of the reward matters, and how much of it", ("pick-place",),
                   (*full, *sweep)),
        Experiment("fig10", "Fig. 10", "how good must the goal video be", ("pick-place",),
                   (*full, *(Arm(ours, (("goal", source),)) for source in SOURCES))),
        Experiment("fig9_easy", "Fig. 9, easy task", "the same where the reward moves the agent, beside the sparse "
                   "reward", ("drawer-close",), (Arm("sparse"), Arm(sparse_ours), *sparse_sweep)),
        Experiment("fig10_easy", "Fig. 10, easy task", "the same where the reward moves the agent, beside the sparse "
                   "reward", ("drawer-close",), (Arm("sparse"), Arm(sparse_ours), *(
                       Arm(sparse_ours, (("goal", source),)) for source in VIEWS))),
        Experiment("zero_shot", "Fig. 10, Table C", "the same without any learning: pi_z toward each goal frame",
                   ("reach", "drawer-close"),
                   (Arm("fb_zero_shot"), *(Arm("fb_zero_shot", (("goal", source),)) for source in VIEWS),
                    Arm("fb_zero_shot", (("fb.encoder", other_psi),)))),
        Experiment("every_frame", "Table C, every frame", "is the frame that CLIP chooses the best goal? pi_z toward "
                   "each of the goal video's frames", ("reach", "drawer-close"),
                   tuple(Arm("fb_zero_shot", (("goal", f"frame_{index}"),))
                         for index in uniform_indices(profile.video.num_frames, FRAMES))),
        Experiment("tableA", "Table A", "other environments", ("walker-walk", "door"),
                   (*full, *distracted)),
        Experiment("tableB", "Table B", "goal videos with hallucinations: objects that teleport", ("pick-place",),
                   (*full, Arm(ours, (("goal", "expert_video"),)), Arm(ours, (("goal", "teleport"),)))),
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


@dataclass(frozen=True)
class Part:
    """A part of the grid: only these tasks, methods and seeds (None: all of them)."""

    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    seeds: Sequence[int] | None = None

    def __contains__(self, run: Run) -> bool:
        return ((self.tasks is None or run.task in self.tasks) and (self.seeds is None or run.seed in self.seeds)
                and (self.methods is None or run.method in self.methods))


EVERYTHING = Part()


def grid(profile: str | Profile, only: Sequence[str] | None = None, part: Part = EVERYTHING) -> list[Run]:
    """Every run of the chosen experiments once; where they ask for different lengths, the longest. A task, method or
    seed of `part` that none of them has is an InputError."""
    runs: dict[str, Run] = {}
    for experiment in chosen(profile, only):
        for run in experiment.runs(profile):
            known = runs.setdefault(run.run_id, run)
            if _wanted(run, profile) > _wanted(known, profile):
                runs[run.run_id] = run
    for what in ("task", "method", "seed"):
        declared = list(dict.fromkeys(getattr(run, what) for run in runs.values()))
        for name in getattr(part, f"{what}s") or ():
            if name not in declared:
                raise errors.unknown(f"{what} of these experiments:", name, declared)
    return [run for run in runs.values() if run in part]


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
        if locks.holder(locks.of_run(run)) is not None:
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
    if jobs is None:
        jobs = default_jobs(profile)
    errors.at_least("jobs", jobs, 1)
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
    """Print an overview, and why runs are blocked, stale or damaged, a line a reason; `detail`: one for each run that
    is not done and not blocked."""
    out = out or sys.stdout
    columns = ["experiment", "item", "runs", *STATES, "each", "left"]
    cells = [[span(line[name]) if name in ("each", "left") else str(line[name]) for name in columns] for line in lines]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [columns, *cells]:
        print("  ".join(cell.ljust(width) if number < 2 else cell.rjust(width) for number, (cell, width)
                        in enumerate(zip(row, widths, strict=True))).rstrip(), file=out)
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in standings:
        if one.state == "blocked" or (one.state in ("stale", "damaged") and not detail):
            reasons.setdefault((one.state, one.why.replace(f"{one.run.run_id}.csv ", "")), []).append(one.run.run_id)
    for (state, why), runs in sorted(reasons.items(), key=lambda reason: -len(reason[1])):
        which = "" if state == "blocked" else f" {runs[0]}{f' and {len(runs) - 1} more' if runs[1:] else ''}:"
        print(f"{state} ({len(runs)}):{which} {why}", file=out)
    for one in standings:
        if detail and one.state not in ("done", "blocked"):
            print(f"{one.state}: {one.run.run_id}{': ' + one.why if one.why else ''}", file=out)


# --- making what is missing -------------------------------------------------------------------------------------------


def _train(run: Run, on_progress: OnProgress, accept_code: bool = False, redo: bool = False,
           rounded_as: str | None = None) -> None:
    """`training.train_agent` as `execution` calls it, rounded as by a maker's processor where one is named; with
    `redo`, a stale record is moved away first."""
    if rounded_as is not None:
        rounding.as_if(rounded_as)
    if redo and training.examine(run, accept_code=accept_code)[0] == "stale":
        set_aside(run)
    training.train_agent(run, progress=False, on_progress=on_progress, accept_code=accept_code)


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


def asked(profile: str | Profile, only: Sequence[str] | None = None, part: Part = EVERYTHING,
          jobs: int | None = None, rounded_as: str | None = None) -> list[Run]:
    """The runs that `make` would see to, of the profile's budget where no experiments are chosen; what cannot be meant
    is an InputError."""
    profile = profiles.get_profile(profile)
    if rounded_as is not None:
        rounding.check(rounded_as)
    if jobs is not None:
        errors.at_least("jobs", jobs, 1)
    runs = grid(profile, only if only is not None else budget_of(profile).made, part)
    for run in runs:
        training.check_run(run)
    return runs


def make(profile: str | Profile, only: Sequence[str] | None = None, *, part: Part = EVERYTHING,
         jobs: int | None = None, accept_code: bool = False, redo: bool = False, rounded_as: str | None = None,
         **settings: Any) -> None:
    """Make what is missing of the chosen experiments (by default those of the profile's budget), then report.

    accept_code: count as done, and go on with, what only differs in the code that made it; redo: move records of
    another identity away (build/<profile>/replaced) and make them anew; jobs: runs at once (None: `default_jobs`);
    rounded_as: whose processor's code MKL takes (`rounding.MAKERS`; None: this one's), said in the records; settings:
    see `execution.execute`.

    InputError before any run is made where MKL cannot be told so, or the profile's device is missing; and at the end
    when a run failed (its traceback is printed before), was begun with other rounding, waits for something (named with
    the command that makes it) or is on record with another identity: all others are made by then, and the next call
    tries these again.
    """
    profile = profiles.get_profile(profile)
    runs = asked(profile, only, part, jobs, rounded_as)
    before = {run.run_id: standing(run, accept_code) for run in runs}
    ready = [run for run in runs if before[run.run_id].state not in ("done", "blocked")
             and (before[run.run_id].state != "stale" or redo)]
    print(f"{len(runs)} runs: {sum(one.state == 'done' for one in before.values())} done, {len(ready)} to make",
          flush=True)
    if ready and settings.get("executor", "joblib") == "joblib":  # a cluster's workers have devices of their own
        estimates.require_device(profile)
    outcomes = execute(ready, functools.partial(training.examine, accept_code=accept_code),
                       functools.partial(_train, accept_code=accept_code, redo=redo, rounded_as=rounded_as),
                       jobs=default_jobs(profile) if jobs is None else jobs,
                       gpu=profile.device.startswith("cuda"), **settings)
    failed = [(outcome.run_id, outcome.message) for outcome in outcomes if outcome.state == "failed"]
    for run_id, message in failed:
        if "\n" in message.strip():
            print(f"\n{run_id} failed:\n{message.rstrip()}", file=sys.stderr)
    wrong = [f"{len(failed)} of {len(runs)} runs failed"] if failed else []
    wrong += [f"{run_id}: {message.strip().rpartition(chr(10))[2]}" for run_id, message in failed]
    kept_back = [one for run_id, one in before.items() if run_id not in {run.run_id for run in ready}]
    wrong += [f"{one.run.run_id} is kept: {one.why}" for one in kept_back if one.state == "stale"]
    waits = Counter(one.why for one in kept_back if one.state == "blocked")
    wrong += [f"{count} of {len(runs)} runs wait: {why}" for why, count in waits.most_common()]
    if wrong:
        raise InputError("; ".join(wrong))


# --- after the code has changed ---------------------------------------------------------------------------------------


def vouch(profile: str | Profile, only: Sequence[str] | None = None, part: Part = EVERYTHING,
          old: str | os.PathLike | None = None, steps: int | None = None) -> list[dict[str, Any]]:
    """Find out whether records that only other code stands against would be the same today, and say so in them.

    Such records are taken together by agent, method and the code that made them. Of each group one run (the lowest
    seed whose files are here) is made again from nothing up to its first evaluation, beside the record and without
    touching it. Where every number but the seconds is equal, bit for bit, all records and checkpoints of the group are
    given today's code; the old one stays among `earlier_code`, and `vouched` names the run and how it was compared.
    Where one is not, nothing is changed.

    Another machine or library may round otherwise: then a difference from the record says nothing about the code, and
    the old code must be at hand. `old` is a checkout of the project with the code that made the records (`git worktree
    add old <commit>`): the run is made with either code on this machine, up to `steps` (default: the first evaluation),
    and not only what is measured must be equal, but the agent and everything else in the checkpoint. Files that this
    machine made otherwise (weights, a demonstration) do not matter then: both codes read the same, and a record keeps
    the digests of its own.

    One line a group: runs, made (the run made again), same, why (what differs, else "").
    """
    profile = profiles.get_profile(profile)
    if old is not None and not (Path(old) / "genreward" / "training.py").is_file():
        raise InputError(f"{old} is no checkout of the project; git worktree add {old} <commit> makes one")
    if steps is not None and (old is None or steps < 1 or steps % profile.episode_steps):
        raise InputError(f"steps goes with old, and must be a multiple of an episode's {profile.episode_steps}; "
                         f"got {steps}")
    examined = functools.partial(training.examine, accept_inputs=old is not None)
    groups: dict[tuple, tuple[dict[str, str], list[Run]]] = {}
    for run in grid(profile, only, part):
        path = profiles.paths(profile).runs / f"{run.run_id}.json"
        if (standing(run).state != "stale" or examined(run)[0] != "stale"
                or examined(run, accept_code=True)[0] not in ("done", "partial")):
            continue
        code = files.read_json(path)["identity"].get("code", {})
        groups.setdefault((run.agent, run.method, files.digest(code)), (code, []))[1].append(run)
    lines = []
    for code, runs in groups.values():
        one = min(runs, key=lambda run: (bool(examined(run, accept_code=True)[1]), run.seed, run.variant,
                                         run.task))
        if old is None:
            print(f"{one.run_id}: made again up to its first evaluation", flush=True)
            how, (_, why) = "record", _compared(one, whole=False)
        else:
            print(f"{one.run_id}: made with either code", flush=True)
            try:
                until, why = _compared_codes(one, code, Path(old), steps)
            except InputError as problem:  # other groups may be of the code that is at hand
                until, why = 0, str(problem)
            how = f"both codes on one machine, {until} steps"
        for run in runs if not why else ():
            training.adopt(run, one.run_id, how)
        lines.append({"runs": len(runs), "made": one.run_id, "same": not why, "why": why})
        said = f"differs: {why}" if why else f"the same; records that have today's code now: {len(runs)}"
        print(f"  {said}", flush=True)
    return lines


_GIVEN = """
import json, sys
from pathlib import Path
from genreward import files, training
given, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
run = training.Run(**{**given, "changes": tuple((name, value) for name, value in given["changes"])})
"""
_WITH_OTHER_CODE = _GIVEN + """
code = json.loads(sys.argv[3])
here = training.identity(run, training.check_run(run))["code"]
files.write_json(folder / "code.json", here)
here == code and training.train_agent(run, progress=False, folder=folder)
"""
_ROUNDED = """
import sys
from genreward import rounding
rounding.as_if(sys.argv[3])  # before anything else can have summed
""" + _GIVEN + """
training.train_agent(run, progress=False, folder=folder)
"""


def _apart(script: str, package: Path, run: Run, folder: Path, given: str) -> str:
    """Run one of the scripts above with the code in `package`, in a process of its own with one thread and this
    project's files. Returns "" or, where it failed, its last words."""
    done = subprocess.run([sys.executable, "-c", script, json.dumps(asdict(run)), folder, given], cwd=package,
                          capture_output=True, text=True, check=False,
                          env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(package.resolve()),
                               "GENREWARD_ROOT": str(profiles.paths(run.profile).root.resolve())})
    return (done.stderr.strip().splitlines() or ["no word"])[-1] if done.returncode else ""


def _compared_codes(run: Run, code: dict[str, str], old: Path, steps: int | None) -> tuple[int, str]:
    """The steps up to which a run was made with today's code and with that in `old`, and what differs: "" where no
    number and nothing in the checkpoint does. InputError where `old` is not the `code` that made the run's record."""
    profile = training.check_run(run)
    until = 0 if run.agent == "zero_shot" else steps or profile.run.evaluate_every
    again = replace(run, experiment="vouch", steps=until or None)
    if until and until != profile.run.evaluate_every:
        again = replace(again, changes=(*run.changes, ("run.evaluate_every", until)))
    one_thread()
    made = []
    for make_it in (functools.partial(_make_with, old, code, run.run_id), _make_here):
        with _beside(again, profile) as (folder, checkpoint):
            make_it(again, folder)
            table = results.read_run(folder / f"{again.run_id}.csv")
            state = read_checkpoint(checkpoint) if until else {}
        numbers = {f"{row.metric} at step {row.step}": row.value for row in table.itertuples()
                   if row.metric != "seconds"}
        made.append({"": numbers, "checkpoint": {part: state[part] for part in state if part not in _NOT_COMPARED}})
    return until, _first_difference(*made)


@contextlib.contextmanager
def _beside(run: Run, profile: Profile) -> Iterator[tuple[Path, Path]]:
    """A folder for the record of a run that is made for a comparison, and where its checkpoint will be; neither
    outlives the block."""
    checkpoint = profiles.paths(profile).checkpoints / f"{run.run_id}.pt"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.unlink(missing_ok=True)
        try:
            yield Path(folder), checkpoint
        finally:
            checkpoint.unlink(missing_ok=True)


def _make_here(run: Run, folder: Path) -> None:
    training.train_agent(run, progress=False, folder=folder)


def _make_with(old: Path, code: dict[str, str], named: str, run: Run, folder: Path) -> None:
    """Make the run with the code in `old`, in a process of its own; InputError where that is not the `code` of the
    record `named`, or fails."""
    failed, place = _apart(_WITH_OTHER_CODE, old, run, folder, json.dumps(code)), folder / "code.json"
    theirs = files.read_json(place) if place.is_file() else code
    if other := sorted(name for name in code.keys() | theirs.keys() if code.get(name) != theirs.get(name)):
        raise InputError(f"{old} is not the code that made {named}: {', '.join(other)} differ")
    if failed:
        raise InputError(f"{named} cannot be made with the code in {old}: {failed}")


def _make_rounded(maker: str, run: Run, folder: Path) -> None:
    """Make the run rounded as by another maker's processor, in a process of its own; InputError where that fails."""
    if failed := _apart(_ROUNDED, Path(__file__).resolve().parent.parent, run, folder, maker):
        raise InputError(f"{run.run_id} cannot be made rounded as by {rounding.WHOSE[maker]} processor: {failed}")


_NOT_COMPARED = ("identity", "rows", "seconds", "earlier_code", "rounded_as")  # who made it, and what a clock measured


def _first_difference(a: Any, b: Any, name: str = "") -> str:
    """Where two nested states differ first, "" where they do not: numbers bit for bit, NaN equal to NaN."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        inner = ((f"{name}.{key}".strip("."), a[key], b[key]) for key in a)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        inner = ((f"{name}[{number}]", *pair) for number, pair in enumerate(zip(a, b, strict=True)))
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        return "" if same else f"{name}: another tensor"
    else:
        return "" if a == b or (a != a and b != b) else f"{name}: {a} with the old code, {b} now"
    return next((found for where, one, other in inner if (found := _first_difference(one, other, where))), "")


def repeat(profile: str | Profile, only: Sequence[str] | None = None, part: Part = EVERYTHING, pick: int | None = None,
           seed: int = 0) -> list[dict[str, Any]]:
    """Make finished runs again from nothing, whole, and compare every number but the seconds with the record, which is
    not touched. With the libraries and vector instructions that made them they come out bit for bit, where need be
    rounded as by another maker's processor (`rounding`); elsewhere sums may be rounded otherwise.

    pick: so many of them, drawn at random by `seed` (None: all). Runs that read something that is not here (a clone
    has no weights that were left out of it) are left out. InputError where no run is left, or fewer than `pick`.

    One line a run: run, numbers (how many were compared), same, why (what differs first, else ""), rounded_as (whose
    processor's rounding it took, "" for that of this one).
    """
    if pick is not None and pick < 1:
        raise InputError(f"pick must be at least 1, got {pick}")
    runs = [run for run in grid(profile, only, part) if training.examine(run) == ("done", "")]
    if len(runs) < (pick or 1):
        raise InputError(f"{len(runs)} of these runs are on record with everything that they read; at least "
                         f"{pick or 1} wanted: see python -m genreward.experiments list")
    lines = []
    for run in runs if pick is None else random.Random(seed).sample(runs, pick):
        print(f"{run.run_id}: made again from nothing", flush=True)
        numbers, why, maker = _repeated(run)
        lines.append({"run": run.run_id, "numbers": numbers, "same": not why, "why": why, "rounded_as": maker})
        print(f"  {f'differs: {why}' if why else f'the same, all {numbers} numbers'}"
              + (f" (rounded as by {rounding.WHOSE[maker]} processor)" if maker else ""), flush=True)
    return lines


def _repeated(run: Run) -> tuple[int, str, str]:
    """`_compared` for the whole run, rounded as its record says that it was; where the record names no processor, as
    this one rounds or else the other maker's, whichever gives the numbers of the first evaluation. And whose rounding
    that was, "" for this processor's own."""
    kept = files.read_json(profiles.paths(run.profile).runs / f"{run.run_id}.json")
    here, there = rounding.own(), kept.get("rounded_as") or rounding.of(kept.get("processor"))
    if here is None or there == here:
        return *_compared(run), ""
    if there is not None:
        return *_compared(run, maker=there), there
    begun = None
    for maker in (None, *(maker for maker in rounding.MAKERS if maker != here)):
        numbers, why = _compared(run, whole=False, maker=maker)
        begun = begun or (numbers, why, "")  # what is told where neither gives them: this processor's
        if not why:
            whole = (numbers, why) if run.agent == "zero_shot" else _compared(run, maker=maker)  # one evaluation is all
            return *whole, maker or ""
    return begun


def _compared(run: Run, whole: bool = True, maker: str | None = None) -> tuple[int, str]:
    """How many of a run's numbers were compared when it was made again (the whole of it, or up to its first
    evaluation), and what is not as on record: "" where all is, else the numbers of the first step with a difference.
    maker: whose processor's rounding to take (`rounding.MAKERS`), in a process of its own; None: this one's."""
    profile = training.check_run(run)
    path = profiles.paths(profile).runs / f"{run.run_id}.csv"
    kept = results.read_run(path)
    until = int(kept["step"].max() if whole else kept["step"].min())
    again = replace(run, experiment="vouch", steps=None if run.agent == "zero_shot" else until)
    one_thread()
    with _beside(again, profile) as (folder, _):
        if maker is None:
            _make_here(again, folder)
        else:
            _make_rounded(maker, again, folder)
        made = results.read_run(folder / f"{again.run_id}.csv")
    old, new = ({(row.step, row.metric): row.value for row in table.itertuples()
                 if row.step <= until and row.metric != "seconds"} for table in (kept, made))
    other = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    why = "; ".join(f"{metric} at step {step}: {old.get((step, metric))} on record, {new.get((step, metric))} now"
                    for step, metric in other if step == other[0][0])
    there, here = files.read_json(path.with_suffix(".json")).get("processor"), results.processor()
    if why and there != here:
        why += f" (made on {there or 'a processor that the record does not name'}; here: {here})"
    return len(old), why


# options that do not go with every command
_GO_WITH = {"tasks": ("run", "vouch", "repeat"), "methods": ("run", "vouch", "repeat"),
            "seeds": ("run", "vouch", "repeat"), "pick": ("repeat",), "draw": ("repeat",), "old": ("vouch",),
            "steps": ("vouch",), "jobs": ("run", "list"), "accept_code": ("run", "list"),
            **dict.fromkeys(("executor", "redo", "rounded_as", "tensorboard", "every", "check"), ("run",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "run", "vouch", "repeat"))
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(experiments("laptop")))
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these tasks of the experiments (not of list)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds")
    parser.add_argument("--pick", type=int, metavar="N", help="repeat: so many, drawn at random (default: all)")
    parser.add_argument("--draw", type=int, default=0, metavar="SEED", help="repeat: another draw of --pick")
    parser.add_argument("--old", metavar="FOLDER", help="vouch: a checkout with the code that made the records; the "
                        "runs are made with either code here (for records of another machine)")
    parser.add_argument("--steps", type=int, metavar="N",
                        help="vouch --old: so many (default: up to the first evaluation)")
    parser.add_argument("--jobs", type=int, help="runs at once on this machine (default: one a core)")
    parser.add_argument("--executor", default="joblib", choices=EXECUTORS, help="ray: the cluster at RAY_ADDRESS")
    parser.add_argument("--accept-code", action="store_true",
                        help="count as done, and go on with, what only differs in the code that made it")
    parser.add_argument("--redo", action="store_true", help="make records of another identity anew (kept in build/)")
    parser.add_argument("--rounded-as", choices=rounding.MAKERS, metavar="MAKER", help="run: let MKL take its code "
                        f"for this maker's processors, one of: {', '.join(rounding.MAKERS)} (default: this one's)")
    parser.add_argument("--tensorboard", action="store_true", help="log to build/<profile>/tensorboard")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two reports of progress")
    parser.add_argument("--check", action="store_true", help="run: make nothing, only refuse what cannot be meant")
    arguments = parser.parse_args()
    for name, commands in _GO_WITH.items():
        if arguments.command not in commands and getattr(arguments, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} does not go with {arguments.command}; valid with: "
                             f"{', '.join(commands)}")
    if not arguments.every > 0:
        raise InputError(f"every must be more than 0 seconds, got {arguments.every}")
    if arguments.command == "list":
        show(*overview(arguments.profile, arguments.only, arguments.jobs, arguments.accept_code),
             detail=arguments.only is not None)
        return
    part = Part(arguments.tasks, arguments.methods, arguments.seeds)
    if arguments.command == "vouch":
        found = vouch(arguments.profile, arguments.only, part, arguments.old, arguments.steps)
        if different := [line["made"] for line in found if not line["same"]]:
            raise InputError(f"not the same any more: {', '.join(different)}; their records are as they were")
        return
    if arguments.command == "repeat":
        found = repeat(arguments.profile, arguments.only, part, arguments.pick, arguments.draw)
        if different := [line["run"] for line in found if not line["same"]]:
            raise InputError(f"not as on record: {', '.join(different)}")
        return
    if arguments.check:
        asked(arguments.profile, arguments.only, part, arguments.jobs, arguments.rounded_as)
        return
    make(arguments.profile, arguments.only, part=part,
         jobs=arguments.jobs, executor=arguments.executor, accept_code=arguments.accept_code, redo=arguments.redo,
         rounded_as=arguments.rounded_as, tensorboard=arguments.tensorboard, every=arguments.every)


if __name__ == "__main__":
    errors.cli(main)
