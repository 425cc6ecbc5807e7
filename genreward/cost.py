"""What a step of training costs, and which part of it: Table E taken apart.

Beside `timing` (which measures pieces against each other), before the figures. Each method trains for a while as the
grid trains it, with clocks around its parts: the *environment*'s physics, *rendering*, the *reward* model (psi and the
video model included), learning *F and B*, and the *agent*, which is all the rest. Every method has a process of its
own, so that the largest memory is its own too. Seconds are the processor's: on a shared machine the wall clock measures
the neighbours.

    python -m genreward.cost --profile laptop            # every method that is not on record; minutes each
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from . import errors, profiles, results, training
from .errors import InputError
from .profiles import Profile
from .training import Run

PARTS = ("environment", "rendering", "reward", "F and B", "agent")
TASK = "pick-place"
WARM, STEPS = 6, 10  # episodes before the clocks count (the agent has begun to learn by then), and while they do
METHODS = ("dense", "sparse", "roboclip", "diffusion_reward", "tadpole", "genreward, F and B learning",
           "genreward, F and B frozen", "genreward_sound")


class Stopwatch:
    """Processor seconds by part. Parts may lie within one another: each second belongs to the innermost only."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock, self.seconds, self.inside = clock, dict.fromkeys(PARTS, 0.0), ["agent"]
        self.since = clock()

    def _change(self) -> None:
        now = self.clock()
        self.seconds[self.inside[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Seconds spent within belong to `name`, but for those of parts within it."""
        self._change()
        self.inside.append(name)
        try:
            yield
        finally:
            self._change()
            self.inside.pop()

    def around(self, owner: Any, method: str, name: str) -> None:
        """From now on count the calls of a method of this one object to a part."""
        call = getattr(owner, method)

        def timed(*given: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*given, **named)

        setattr(owner, method, timed)

    def start(self) -> None:
        """Count from now on."""
        self.seconds, self.since = dict.fromkeys(PARTS, 0.0), self.clock()

    def stop(self) -> dict[str, float]:
        """Seconds by part since `start`."""
        self._change()
        return dict(self.seconds)


def measure(method: str, profile: str | Profile, task: str = TASK, warm: int = WARM, episodes: int = STEPS
            ) -> dict[str, float]:
    """Train SAC with a method for `warm` + `episodes` episodes; processor seconds of each part for 1,000 steps of the
    latter, and the process's largest resident memory in MiB (libraries included)."""
    name, _, phase = method.partition(", F and B ")
    if name not in training.METHODS or phase not in ("", "learning", "frozen"):
        raise errors.unknown("method", method, METHODS)
    _check_lengths(warm, episodes)
    run = Run(task, name, "sac", 0, profiles.get_profile(profile).name, "cost")
    fitted = training.check_run(run)
    length = fitted.episode_steps
    if phase:  # learning throughout, or over before the clocks count
        until = (warm + episodes) * length if phase == "learning" else max(1, warm) * length
        fitted = replace(fitted, run=replace(fitted.run, fb_train_until=until, prefill=min(fitted.run.prefill, length)))
    parts = training.load_parts(run, fitted)
    reward = training.build_reward(run, fitted, parts)
    env = training.build_env(run, fitted, parts, reward)
    agent = training._agent(run, fitted, env)
    watch, inner = Stopwatch(), env.unwrapped
    for call, part in (("step", "environment"), ("reset", "environment"), ("render", "rendering")):
        watch.around(inner, call, part)
    for call in ("terms", "features", "reset"):
        if hasattr(reward, call):
            watch.around(reward, call, "reward")
    if "fb" in parts:
        watch.around(parts["fb"], "update", "F and B")
    try:
        if warm:
            agent.learn(warm * length)
        watch.start()
        agent.learn(episodes * length)
        seconds = watch.stop()
    finally:
        env.close()
    per = 1000 / (episodes * length)
    unit = 1024 if sys.platform != "darwin" else 1024**2  # Linux counts KiB
    return {**{part: seconds[part] * per for part in PARTS},
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def folder(profile: str | Profile) -> Path:
    """Where the measurements are kept, a table a method."""
    return profiles.paths(profile).results / "cost"


def file_name(method: str) -> str:
    """The method as a part of a file's name."""
    return method.replace(", F and B ", "-").replace(" ", "_")


def _check_lengths(warm: int, episodes: int) -> None:
    if warm < 0 or episodes < 1:
        raise InputError(f"episodes must be at least 1 and those before not negative, got {episodes} and {warm}")


def record(method: str, profile: str | Profile, task: str = TASK, warm: int = WARM, episodes: int = STEPS) -> Path:
    """Measure one method in this process and write its table: a row a part (metric seconds_<part>) and memory."""
    found = measure(method, profile, task, warm, episodes)
    rows = [{"experiment": "cost", "method": method, "task": task, "seed": 0, "step": episodes,
             "metric": name if name == "memory" else f"seconds_{name}", "value": value}
            for name, value in found.items()]
    return results.write_run(folder(profile), file_name(method), rows,
                             results.provenance(warm=warm, episodes=episodes))


def table(profile: str | Profile) -> pd.DataFrame:
    """What is on record: method, one column a part (processor seconds for 1,000 steps), total, times_sparse, memory
    (MiB); in the order of `METHODS`. InputError with the command where nothing is."""
    kept = results.load(folder(profile))
    if kept.empty:
        raise InputError("no cost on record; measure it with: python -m genreward.cost --profile "
                         f"{profiles.get_profile(profile).name}")
    return table_of({method: dict(zip(of["metric"].str.removeprefix("seconds_"), of["value"], strict=True))
                     for method, of in kept.groupby("method")})


def table_of(measured: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The table from what `measure` gave of each method."""
    wide = pd.DataFrame.from_dict(measured, orient="index").rename_axis("method")
    wide = wide.reindex([name for name in METHODS if name in wide.index])[[*PARTS, "memory"]]
    total = wide[list(PARTS)].sum(axis=1)
    base = total.get("sparse", float("nan"))
    return wide.assign(total=total, times_sparse=total / base).reset_index()[
        ["method", *PARTS, "total", "times_sparse", "memory"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="; ".join(METHODS))
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--warm", type=int, default=WARM, help="episodes before the clocks count")
    parser.add_argument("--episodes", type=int, default=STEPS)
    parser.add_argument("--here", action="store_true", help="in this process (with one method)")
    options = parser.parse_args(arguments)
    for method in options.methods or METHODS:
        if method not in METHODS:
            raise errors.unknown("method", method, METHODS)
    profiles.get_profile(options.profile)
    _check_lengths(options.warm, options.episodes)
    for method in options.methods or METHODS:
        if options.here:
            record(method, options.profile, options.task, options.warm, options.episodes)
        elif options.methods or not (folder(options.profile) / f"{file_name(method)}.csv").is_file():
            print(f"cost: {method}", flush=True)
            done = subprocess.run([sys.executable, "-m", "genreward.cost", "--here", "--profile", options.profile,
                                   "--methods", method, "--task", options.task, "--warm", str(options.warm),
                                   "--episodes", str(options.episodes)])
            if done.returncode:
                raise InputError(f"the cost of {method!r} could not be measured (see above); the others are kept")


if __name__ == "__main__":
    errors.cli(main)
