"""Measured numbers: one tidy table a run, its provenance beside it, and the statistics that the figures draw.

Training writes here and figures read from here (`... experiments -> results -> figures -> book`); the two never meet
anywhere else. Every row is `experiment, method, task, seed, step, metric, value`. What the paper reports lies in
`results/reported/` and has other columns, so `load` cannot mix it with what was measured.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .errors import InputError
from .files import atomic_path, read_json, write_json

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
    if len(table) == 0:
        raise InputError(f"{where}: no rows")
    wrong = sorted(set(COLUMNS) ^ set(table.columns))
    if wrong:
        raise InputError(f"{where}: not a table of runs (columns {', '.join(map(str, table.columns))}); "
                         f"valid: {', '.join(COLUMNS)}")
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
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", run_id):
        raise InputError(f"run id {run_id!r} does not make a file name; valid: letters, digits, '.', '_', '+', '-'")
    table = check_rows(rows, f"run {run_id}")
    path = Path(folder) / f"{run_id}.csv"
    write_json(path.with_suffix(".json"), dict(provenance))
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return path


def load(folder: str | os.PathLike) -> pd.DataFrame:
    """All runs of a folder as one table: the schema's columns and `run`, the file's name without `.csv`.

    A file with other columns, a damaged row, a row that two runs claim, or a table without its provenance raises an
    `InputError` that names the file and the row. A folder without runs gives an empty table with the same columns.
    """
    folder = Path(folder)
    tables = []
    for path in sorted(folder.glob("*.csv")):
        try:
            text = path.read_text(encoding="utf-8")
            raw = pd.read_csv(io.StringIO(text), keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as problem:
            raise InputError(f"{path} is not a readable table: {str(problem).strip()}") from None
        if not text.endswith("\n"):  # else a number that lost its last digits would pass for another number
            raise InputError(f"{path}: row {len(raw)} is cut short: the file does not end with a whole line")
        table = check_rows(raw, str(path))
        if not path.with_suffix(".json").exists():
            raise InputError(f"{path} has no provenance beside it: {path.with_suffix('.json').name} is missing")
        tables.append(table.assign(run=path.stem))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "run"])
    table = pd.concat(tables, ignore_index=True)
    twice = table.duplicated(list(KEYS), keep=False)
    if twice.any():
        runs = table.loc[twice].groupby(list(KEYS))["run"].unique().iloc[0]
        raise InputError(f"{folder}: runs {' and '.join(runs)} hold the same rows; remove one of them")
    return table


def load_provenance(folder: str | os.PathLike) -> dict[str, dict]:
    """The provenance of every run of a folder, by run id."""
    return {path.stem: read_json(path.with_suffix(".json")) for path in sorted(Path(folder).glob("*.csv"))}


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
    """Where a number comes from: commit, versions, device, operating system, seconds, and whatever else is given
    (digests, configuration). Neither a host's name nor a path of the machine is in it."""
    head, dirty = commit()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"commit": head, "dirty": dirty, "versions": versions, "device": device or device_name(),
            "platform": f"{platform.system()} {platform.machine()}", "seconds": seconds, **more}


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


def iqm(values: Any) -> float:
    """Interquartile mean over all entries: the mean of what is left when a quarter is cut from either end.

    A quarter of n that is no whole number is cut down to one, as in `scipy.stats.trim_mean` and in rliable.
    """
    return float(stats.trim_mean(_numbers(values), 0.25, axis=None))


def bootstrap_ci(values: Any, statistic: Any = np.mean, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """`statistic` of n runs with its 95% percentile bootstrap interval, resampled by a generator of its own.

    values: (n,) numbers, one a seed. One run gives no interval: low and high are NaN and n says why. Runs that all
    agree give an interval of no width.
    """
    numbers = _numbers(values).ravel()
    value = float(statistic(numbers))
    if len(numbers) == 1:
        return Interval(value, math.nan, math.nan, 1)
    drawn = stats.bootstrap((numbers,), _along_axis(statistic), confidence_level=CONFIDENCE, n_resamples=resamples,
                            method="percentile", rng=np.random.default_rng(seed))
    return Interval(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high), len(numbers))


def _along_axis(statistic: Any) -> Any:
    """The statistic in the form that SciPy calls: over one axis of an array of resamples."""
    return lambda sample, axis=-1: np.apply_along_axis(statistic, axis, sample)


def stratified_ci(scores: Mapping[str, Sequence[float]], statistic: Any = iqm, seed: int = 0,
                  resamples: int = RESAMPLES) -> Interval:
    """A statistic over all tasks' scores, with its 95% interval from resampling the seeds of each task on its own.

    scores: task -> one (normalised) score a seed; tasks may have different numbers of seeds. n counts all scores. With
    one seed in every task there is nothing to resample and the interval is NaN.
    """
    if not scores:
        raise InputError("scores: no tasks")
    strata = [_numbers(values, f"scores of {task}").ravel() for task, values in scores.items()]
    count = sum(map(len, strata))
    value = float(statistic(np.concatenate(strata)))
    if max(map(len, strata)) == 1:
        return Interval(value, math.nan, math.nan, count)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.choice(values, size=(resamples, len(values))) for values in strata], axis=1)
    edges = np.quantile([statistic(row) for row in drawn], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(edges[0]), float(edges[1]), count)


def normalised(values: Any, random: float, expert: float) -> np.ndarray:
    """Scores on the scale where the random policy has 0 and the scripted expert 1 (may lie outside of both)."""
    if not math.isfinite(random) or not math.isfinite(expert) or expert == random:
        raise InputError(f"cannot normalise between random {random} and expert {expert}: need two different numbers")
    return (np.asarray(values, dtype=float) - random) / (expert - random)


def summarise(table: pd.DataFrame, metric: str, by: Sequence[str] = ("task", "method"), last: int = 1) -> pd.DataFrame:
    """One line a group: value, low, high, n. Each seed counts once, by the mean of its `last` latest evaluations."""
    chosen = table[table["metric"] == metric].sort_values("step")
    if chosen.empty:
        raise InputError(f"no rows of metric {metric!r}; valid: {', '.join(sorted(table['metric'].unique()))}")
    lines = []
    for group, rows in chosen.groupby(list(by)):
        finals = rows.groupby([c for c in ("experiment", "method", "task", "seed") if c not in by])["value"].apply(
            lambda values: values.tail(last).mean())
        lines.append({**dict(zip(by, group, strict=True)), **bootstrap_ci(finals)._asdict()})
    return pd.DataFrame(lines)
