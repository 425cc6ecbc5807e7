"""Measured numbers: one tidy table a run, its provenance beside it, and the statistics that the figures draw.

Training writes here and figures read from here (`... experiments -> results -> figures -> book`); the two never meet
anywhere else. Every row is `experiment, method, task, seed, step, metric, value`. What the paper reports lies in
`results/reported/` and has other columns, so `load` cannot mix it with what was measured.

    python -m genreward.results check results/laptop/runs                       # every file, every row
    python -m genreward.results export results/laptop/runs --metric return      # {task, method, seed, xs, ys} as JSON
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from . import rounding
from .errors import InputError, cli
from .files import atomic_path, parse_table, read_json, read_text, write_json

COLUMNS = ("experiment", "method", "task", "seed", "step", "metric", "value")
KEYS = COLUMNS[:-1]
PACKAGES = ("torch", "diffusers", "transformers", "peft", "open-clip-torch", "torchrl", "tensordict",
            "stable-baselines3", "gymnasium", "metaworld", "mujoco", "numpy")
CONFIDENCE = 0.95
RESAMPLES = 2000


class Interval(NamedTuple):
    """A point estimate, its 95% interval (NaN where one run cannot give one) and the number of runs behind it."""

    value: float
    low: float
    high: float
    n: int


# --- writing and reading ---------------------------------------------------------------------------------------------

def check_rows(rows: pd.DataFrame | Iterable[Mapping[str, Any]], where: str = "rows") -> pd.DataFrame:
    """The rows as a table with exactly the schema's columns and types, or an `InputError` naming the first bad row.

    A row is bad when a name is empty, seed or step is no whole number >= 0, the value is not finite, or an earlier row
    has the same keys. Row numbers count from 1, the header not included.
    """
    table = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    wrong = sorted(set(COLUMNS) ^ set(table.columns))
    if wrong and len(table.columns):
        raise InputError(f"{where}: not a table of runs (columns {', '.join(map(str, table.columns))}); "
                         f"valid: {', '.join(COLUMNS)}")
    if len(table) == 0:
        raise InputError(f"{where}: no rows")
    table = table.loc[:, list(COLUMNS)].reset_index(drop=True)

    def refuse(bad: pd.Series, why: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad.to_numpy())[0])
            raise InputError(f"{where}: row {row + 1} {why}: {', '.join(map(str, table.iloc[row].tolist()))}")

    for column in ("experiment", "method", "task", "metric"):
        named = table[column].map(lambda name: isinstance(name, str) and bool(name.strip()))
        refuse(~named.astype(bool), f"has no {column}")
    for column in ("seed", "step", "value"):
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        refuse(~np.isfinite(numbers), f"has no finite {column}")
        if column != "value":
            refuse((numbers < 0) | (numbers != numbers.round()), f"has a {column} that is no whole number >= 0")
            numbers = numbers.astype(np.int64)
        table[column] = numbers
    refuse(table.duplicated(list(KEYS)), "repeats an earlier row")
    return table


def write_run(folder: str | os.PathLike, run_id: str, rows: pd.DataFrame | Iterable[Mapping[str, Any]],
              provenance: Mapping[str, Any]) -> Path:
    """Write one run: `<folder>/<run_id>.csv` and, beside it, `<run_id>.json` with the provenance; returns the CSV.

    Each file is written whole or not at all, the provenance first, so that a table without one is a damaged folder.
    The provenance is given a check sum of every row (`rows`), by which `load` tells a table that was changed, cut or
    swapped after it was written, and in which row.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", run_id):
        raise InputError(f"run id {run_id!r} does not make a file name; valid: letters, digits, '.', '_', '+', '-'")
    table = check_rows(rows, f"run {run_id}")
    path = Path(folder) / f"{run_id}.csv"
    text = table.to_csv(index=False, lineterminator="\n")
    write_json(path.with_suffix(".json"), {**provenance, "rows": _row_sums(text)})
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def _row_sums(text: str) -> str:
    """A check sum (CRC-32, 8 hex digits) of every line of a table but its header, with spaces between."""
    return " ".join(f"{zlib.crc32(line.encode()):08x}" for line in text.splitlines()[1:])


def read_run(path: str | os.PathLike) -> pd.DataFrame:
    """One run's table, checked: the schema, that its last line is whole, and every row against the check sums in the
    provenance beside it.

    InputError that names the file and, where it is one, the row. A run that lost its power between its two files is
    refused as well: the command that made it writes both again.
    """
    path = Path(path)
    text = read_text(path)
    table = _checked(text, str(path)).copy()
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise InputError(f"{path} has no provenance beside it: {beside.name} is missing")
    kept = read_json(beside)
    if "rows" not in kept:
        raise InputError(f"{beside} is not the provenance of a run: it holds no check sums of rows")
    made, found = str(kept["rows"]).split(), _row_sums(text).split()
    for number, (one, other) in enumerate(zip(made, found, strict=False), 1):
        if one != other:
            raise InputError(f"{path}: row {number} is not the one that was measured (its check sum differs): "
                             f"{', '.join(map(str, table.iloc[number - 1].tolist()))}")
    if len(made) != len(found):
        raise InputError(f"{path} has {len(found)} rows, {beside.name} says {len(made)}; the command that made the run "
                         "puts it right")
    return table


@functools.lru_cache(maxsize=4096)
def _checked(text: str, where: str) -> pd.DataFrame:
    """The checked table of a file with that text. Figure after figure reads the same hundreds of records, and to check
    one takes far longer than to read it: what was found right is not checked again while not a letter of it differs.
    Whoever is handed the table copies it."""
    return check_rows(parse_table(text, where, keep_default_na=False), where)


def load(folder: str | os.PathLike) -> pd.DataFrame:
    """All runs of a folder as one table: the schema's columns and `run`, the file's name without `.csv`.

    A file with other columns, a damaged or changed row, a row that two runs claim, or a table without its provenance
    raises an `InputError` that names the file and the row (see `read_run`). A folder without runs gives an empty table
    with the same columns.
    """
    folder = Path(folder)
    tables = []
    for path in sorted(folder.glob("[!.]*.csv")):  # a hidden one is what a kill in the middle of writing left behind
        tables.append(read_run(path).assign(run=path.stem))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "run"])
    table = pd.concat(tables, ignore_index=True)
    twice = table.duplicated(list(KEYS), keep=False)
    if twice.any():
        runs = table.loc[twice].groupby(list(KEYS))["run"].unique().iloc[0]
        raise InputError(f"{folder}: runs {' and '.join(runs)} hold the same rows; remove one of them")
    return table


def bereft(folder: str | os.PathLike) -> list[str]:
    """The runs of a folder whose provenance is there without its table: it was removed, or a kill came between the two
    files of a run's first chunk (the command that made it writes both again)."""
    return sorted(path.stem for path in Path(folder).glob("[!.]*.json")
                  if not path.with_suffix(".csv").is_file() and "rows" in read_json(path))


def load_provenance(folder: str | os.PathLike) -> dict[str, dict]:
    """The provenance of every run of a folder, by run id."""
    return {path.stem: read_json(path.with_suffix(".json")) for path in sorted(Path(folder).glob("[!.]*.csv"))}


def reported() -> pd.DataFrame:
    """The numbers that the paper prints (`results/reported/paper.csv`), `approximate` as a truth value."""
    table = pd.read_csv(Path(__file__).resolve().parent.parent / "results" / "reported" / "paper.csv")
    return table.assign(approximate=table["approximate"] == "yes")


def export_records(table: pd.DataFrame, metric: str) -> list[dict]:
    """The curves of one metric as the records that DreamerV3's repository uses: task, method, seed, xs, ys."""
    chosen = table[table["metric"] == metric]
    if chosen.empty:
        raise InputError(f"no rows of metric {metric!r}; valid: {', '.join(sorted(table['metric'].unique()))}")
    curves = chosen.sort_values("step").groupby(["experiment", "task", "method", "seed"])
    return [{"task": task, "method": method, "seed": int(seed),
             "xs": rows["step"].tolist(), "ys": rows["value"].tolist()} for (_, task, method, seed), rows in curves]


# --- provenance ------------------------------------------------------------------------------------------------------

@functools.cache
def commit() -> tuple[str, bool | None]:
    """The checked-out commit (12 hex digits) and whether tracked files differ from it; outside git "unknown", None."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return (head, bool(_git("status", "--porcelain", "-uno"))) if head else ("unknown", None)


@functools.cache
def commit_of(folder: str | os.PathLike) -> str:
    """The commit (12 hex digits) that last changed a folder: what a figure drawn from it is stamped with, so that the
    same results give the same picture at any later commit. A folder that git does not hold gives the checked-out one.
    """
    return _git("log", "-1", "--abbrev=12", "--format=%h", "--", os.fspath(folder)) or commit()[0]


def _git(*command: str) -> str:
    """What git says in the project's own folder; nothing where there is no git, no repository or no such path."""
    root = Path(__file__).resolve().parent.parent
    try:
        return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def provenance(seconds: float | None = None, device: str | None = None, **more: Any) -> dict[str, Any]:
    """Where a number comes from: commit, versions, device, processor, operating system, seconds, and whatever else is
    given (digests, configuration); where MKL was told of another maker's processor, `rounded_as` (see `rounding`).
    Neither a host's name nor a path of the machine is in it."""
    head, dirty = commit()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"commit": head, "dirty": dirty, "versions": versions, "device": device or device_name(),
            "platform": f"{platform.system()} {platform.machine()}", "processor": processor(), "seconds": seconds,
            **({"rounded_as": rounding.taken()} if rounding.taken() else {}), **more}


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """The processor and the vector instructions that torch uses on it: both decide how sums are rounded, and so
    whether a run that is made again comes out bit for bit. Such as "AMD EPYC 7713, family 25, model 1, AVX2"."""
    import torch

    said: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            said.setdefault(name.strip(), value.strip())
    words = [said.get("model name") or platform.processor() or platform.machine()]
    words += [f"{name.removeprefix('cpu ')} {said[name]}" for name in ("cpu family", "model") if said.get(name)]
    return ", ".join([*words, torch.backends.cpu.get_cpu_capability()])


def device_name() -> str:
    """The GPU's name, or `cpu` with the number of cores that this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu ({cores} cores)"


# --- statistics ------------------------------------------------------------------------------------------------------

def _numbers(values: Any, name: str = "values") -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise InputError(f"{name}: need at least one number, all of them finite")
    return numbers


def iqm(values: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of what is left when a quarter is cut from either end, over all entries or `axis`.

    A quarter of n that is no whole number is cut down to one, as in `scipy.stats.trim_mean` and in rliable.
    """
    cut = stats.trim_mean(_numbers(values), 0.25, axis=axis)
    return float(cut) if axis is None else cut


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of a handful of seeds with Student's 95% interval; one seed gives none (NaN)."""
    numbers = np.asarray(values, float)
    n = len(numbers)
    mean = float(numbers.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * numbers.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_ci(values: Any, statistic: Any = np.mean, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """`statistic` of n runs with its 95% percentile bootstrap interval, resampled by a generator of its own.

    values: (n,) numbers, one a seed. One run gives no interval: low and high are NaN and n says why. Runs that all
    agree give an interval of no width. Few runs give one that is too narrow: see `stratified_ci`.
    """
    return stratified_ci({"all": values}, statistic, seed, resamples)


def stratified_ci(scores: Mapping[str, Sequence[float]], statistic: Any = iqm, seed: int = 0,
                  resamples: int = RESAMPLES) -> Interval:
    """A statistic over all tasks' scores, with its 95% interval from resampling the seeds of each task on its own.

    scores: task -> one (normalised) score a seed; tasks may have different numbers of seeds. n counts all scores. With
    one seed in every task there is nothing to resample and the interval is NaN. The percentile bootstrap of Agarwal et
    al. (2021, "Deep RL at the edge of the statistical precipice") is too narrow for few runs: of normal scores on one
    task its 95% interval holds the true mean in 74% of cases with 3 runs, 83% with 5, 89% with 10 (1,000 simulations
    each). Quote n beside it, and use `comparison.difference` where two methods of few seeds are set against each other.
    """
    strata = _strata(scores)
    reduce = _along_axis(statistic)
    value, low, high = _bootstrap(strata, lambda *samples: reduce(np.concatenate(samples, axis=-1)), seed, resamples)
    return Interval(float(value), float(low), float(high), sum(map(len, strata)))


def _strata(scores: Mapping[str, Any], name: str = "scores") -> list[np.ndarray]:
    """One flat array of finite numbers a task, or an InputError that names the task."""
    if not scores:
        raise InputError(f"{name}: no tasks")
    return [_numbers(values, f"{name} of {task}").ravel() for task, values in scores.items()]


def _along_axis(statistic: Any) -> Any:
    """The statistic over the last axis of an array of resamples."""
    if statistic in (np.mean, np.median, iqm):
        return lambda sample: statistic(sample, axis=-1)
    return lambda sample: np.apply_along_axis(statistic, -1, sample)


def _bootstrap(samples: Sequence[np.ndarray], statistic: Any, seed: int, resamples: int
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`statistic(*samples)`, reducing the last axis of every sample, with its 95% percentile bootstrap interval.

    samples: arrays (..., n_i), each resampled on its own along the last axis: what stands in one column (a whole
    learning curve) stays together. A sample of one column cannot be resampled and is held as it is; when that is true
    of all of them, the interval is NaN.
    """
    value = np.asarray(statistic(*samples))
    movable = [number for number, sample in enumerate(samples) if sample.shape[-1] > 1]
    if not movable:
        return value, np.full(value.shape, math.nan), np.full(value.shape, math.nan)

    def with_the_others(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        lead = drawn[0].shape[:-1]  # of one resample, or of a batch of them
        every = [np.broadcast_to(sample[..., None, :] if len(lead) > sample.ndim - 1 else sample,
                                 (*lead, sample.shape[-1])) for sample in samples]
        for number, sample in zip(movable, drawn, strict=True):
            every[number] = sample
        return statistic(*every)

    drawn = stats.bootstrap([samples[number] for number in movable], with_the_others, confidence_level=CONFIDENCE,
                            n_resamples=resamples, method="percentile", paired=False, vectorized=True, axis=-1,
                            batch=max(1, 2_000_000 // sum(sample.size for sample in samples)),
                            rng=np.random.default_rng(seed))
    return value, np.asarray(drawn.confidence_interval.low), np.asarray(drawn.confidence_interval.high)


def performance_profile(scores: Mapping[str, Sequence[float]], thresholds: Sequence[float] | None = None, seed: int = 0,
                        resamples: int = RESAMPLES) -> pd.DataFrame:
    """The share of runs whose score is above each threshold, over all tasks, with pointwise 95% bands.

    scores: task -> one normalised score a seed; thresholds: ascending, by default 0, 0.05, ..., 1. Columns: threshold,
    value, low, high, n. The bands come from resampling the seeds of each task on its own; the score distribution of
    Dolan and More (2002) in the form of Agarwal et al. (2021).
    """
    tau = np.linspace(0, 1, 21) if thresholds is None else _numbers(thresholds, "thresholds").ravel()
    if (np.diff(tau) <= 0).any():
        raise InputError(f"thresholds must ascend, got {tau.tolist()}")
    strata = _strata(scores)
    above = [(values > tau[:, None]).astype(float) for values in strata]
    value, low, high = _bootstrap(above, lambda *samples: np.concatenate(samples, axis=-1).mean(-1), seed, resamples)
    return pd.DataFrame({"threshold": tau, "value": value, "low": low, "high": high, "n": sum(map(len, strata))})


def probability_of_improvement(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]],
                               seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a run X of `first` and a run Y of `second` on the same task, averaged over tasks.

    On one task it is the Mann-Whitney statistic U / (n m). first, second: task -> one score a seed, of the same tasks.
    The interval comes from resampling the seeds of each task and method on their own; n is the smaller method's number
    of runs. Complete separation (0 or 1) gives an interval of no width, however few the runs.
    """
    if set(first) != set(second):
        raise InputError("both methods must have runs of the same tasks; only one has "
                         f"{', '.join(sorted(set(first) ^ set(second)))}")
    ours, theirs = _strata(first), _strata({task: second[task] for task in first})

    def improvement(*samples: np.ndarray) -> np.ndarray:
        pairs = zip(samples[:len(ours)], samples[len(ours):], strict=True)
        return np.mean([np.mean((np.sign(x[..., :, None] - y[..., None, :]) + 1) / 2, axis=(-2, -1))
                        for x, y in pairs], axis=0)

    value, low, high = _bootstrap([*ours, *theirs], improvement, seed, resamples)
    return Interval(float(value), float(low), float(high), min(sum(map(len, ours)), sum(map(len, theirs))))


def area_under_curve(steps: Sequence[float], values: Any) -> Any:
    """The mean height of learning curves between their first and last evaluation, by the trapezoid rule.

    steps: (k,) ascending; values: (..., k), in the metric's unit, which the result has too. A curve of one evaluation
    has that one as its mean.
    """
    xs, ys = _numbers(steps, "steps").ravel(), _numbers(values)
    if ys.shape[-1] != len(xs) or (np.diff(xs) <= 0).any():
        raise InputError(f"a curve needs as many values as ascending steps, got {ys.shape[-1]} values at "
                         f"{xs.tolist()}")
    area = ys[..., 0] if len(xs) == 1 else np.trapezoid(ys, xs, axis=-1) / (xs[-1] - xs[0])
    return float(area) if np.ndim(area) == 0 else area


def scores(table: pd.DataFrame, metric: str, how: str = "final", last: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """method -> task -> one number a seed: what the statistics above take.

    how: "final" (the mean of the `last` latest evaluations), "best" or "area" (`area_under_curve`). A seed that two
    experiments share must have been told apart before: two curves of one seed are an InputError, and so are seeds of a
    method and task that do not end at the same step.
    """
    if how not in ("final", "best", "area"):
        raise InputError(f"unknown score {how!r}; valid: area, best, final")
    found: dict[str, dict[str, np.ndarray]] = {}
    for (method, task), by_seed in _curves(table, metric).items():
        ends = {seed: float(xs[-1]) for seed, (xs, _) in by_seed.items()}
        if len(set(ends.values())) > 1:
            raise InputError(f"the seeds of {method} on {task} end at different steps, which cannot be compared: "
                             + ", ".join(f"{seed} at {end:g}" for seed, end in ends.items())
                             + "; finish them, or keep the rows up to a step that all reach")
        numbers = [ys[-last:].mean() if how == "final" else ys.max() if how == "best" else area_under_curve(xs, ys)
                   for xs, ys in by_seed.values()]
        found.setdefault(method, {})[task] = np.array(numbers)
    return found


def sample_efficiency(table: pd.DataFrame, metric: str, statistic: Any = iqm, seed: int = 0,
                      resamples: int = RESAMPLES) -> pd.DataFrame:
    """A statistic over all tasks and seeds at every step, with pointwise 95% bands: columns method, step, value, low,
    high, n.

    Whole curves are resampled, the seeds of each task on their own. Only steps at which every run of the method was
    evaluated are in the answer, so that no point is drawn from fewer runs than its neighbours.
    """
    reduce = _along_axis(statistic)
    curves: dict[str, dict[str, list[dict[float, float]]]] = {}
    for (method, task), by_seed in _curves(table, metric).items():
        curves.setdefault(method, {})[task] = [dict(zip(xs.tolist(), ys.tolist(), strict=True))
                                               for xs, ys in by_seed.values()]
    lines = []
    for method, tasks in curves.items():
        runs = [run for task in tasks.values() for run in task]
        common = sorted(set.intersection(*(set(run) for run in runs)))
        if not common:
            raise InputError(f"the runs of {method!r} have no step in common")
        samples = [np.array([[run[step] for run in task] for step in common]) for task in tasks.values()]
        value, low, high = _bootstrap(samples, lambda *drawn: reduce(np.concatenate(drawn, axis=-1)), seed, resamples)
        lines.append(pd.DataFrame({"method": method, "step": np.array(common, int), "value": value, "low": low,
                                   "high": high, "n": len(runs)}))
    return pd.concat(lines, ignore_index=True)


def _curves(table: pd.DataFrame, metric: str) -> dict[tuple[str, str], dict[int, tuple[np.ndarray, np.ndarray]]]:
    """(method, task) -> seed -> (steps, values), in order; InputError when a seed has two values at one step."""
    chosen = table[table["metric"] == metric].sort_values("step", kind="stable")
    if chosen.empty:
        raise InputError(f"no rows of metric {metric!r}; valid: {', '.join(sorted(table['metric'].unique()))}")
    twice = chosen.duplicated(["method", "task", "seed", "step"])
    if twice.any():
        row = chosen[twice].iloc[0]
        raise InputError(f"seed {row['seed']} of {row['method']} on {row['task']} has two values of {metric!r} at step "
                         f"{row['step']}; choose the rows of one experiment")
    found: dict[tuple[str, str], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for (method, task, seed), rows in chosen.groupby(["method", "task", "seed"]):
        found.setdefault((method, task), {})[int(seed)] = (rows["step"].to_numpy(), rows["value"].to_numpy(float))
    return found


def normalised(values: Any, random: float, expert: float) -> np.ndarray:
    """Scores on the scale where the random policy has 0 and the scripted expert 1 (may lie outside of both)."""
    if not math.isfinite(random) or not math.isfinite(expert) or expert == random:
        raise InputError(f"cannot normalise between random {random} and expert {expert}: need two different numbers")
    return (np.asarray(values, dtype=float) - random) / (expert - random)


def normalise(table: pd.DataFrame, references: pd.DataFrame, metric: str = "return") -> pd.DataFrame:
    """The rows of one metric on the scale random = 0, scripted expert = 1 of the same task; metric "normalised_...".

    references: rows of the schema with methods "random" and "expert"; where there are several (seeds, steps), their
    mean counts. A task without both is an InputError that names it.
    """
    chosen = table[table["metric"] == metric]
    if chosen.empty:
        raise InputError(f"no rows of metric {metric!r}; valid: {', '.join(sorted(table['metric'].unique()))}")
    known = references[references["metric"] == metric].groupby(["task", "method"])["value"].mean()
    parts = []
    for task, rows in chosen.groupby("task", sort=False):
        missing = [policy for policy in ("random", "expert") if (task, policy) not in known.index]
        if missing:
            raise InputError(f"no {metric} of the {' and the '.join(missing)} policy on {task!r} to normalise by")
        parts.append(rows.assign(value=normalised(rows["value"], known[task, "random"], known[task, "expert"])))
    return pd.concat(parts).sort_index().assign(metric=f"normalised_{metric}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "export"))
    parser.add_argument("folder", type=Path, help="where the runs are, e.g. results/laptop/runs")
    parser.add_argument("--metric", default="return", help="which curves to export")
    parser.add_argument("--output", type=Path, help="the file to write (default: to the terminal)")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise InputError(f"no such folder: {arguments.folder}")
    table = load(arguments.folder)
    if arguments.command == "check":
        if without := bereft(arguments.folder):
            raise InputError(f"{arguments.folder}: the table is missing of {', '.join(without)}; put it back, or the "
                             "command that made the run does")
        if table.empty:
            raise InputError(f"{arguments.folder} holds no runs (no .csv with its .json beside it)")
        print(f"{table['run'].nunique()} runs, {len(table)} rows: all whole")
        return
    if table.empty:
        raise InputError(f"{arguments.folder} has no runs to export")
    records = export_records(table, arguments.metric)
    if arguments.output is None:
        print(json.dumps(records))
    else:
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(records) + "\n")


if __name__ == "__main__":
    cli(main)
