"""From a point of a figure to the rows that it is made of, and from a row to the run that wrote it.

After `evidence`, beside `claims` (`... would_pay -> evidence -> trace -> book`). A figure or table of numbers on
record is saved with the rows that it is made of, `figures/<profile>/<name>.rows.csv`: behind learning curves and final
returns an evaluation each, else whatever the record holds, with its value, the file and line where it stands and the
commit whose code made it. (Yardsticks, random actions and the expert, stand in `results/<profile>/references/`.)
Figures of pictures, of what a notebook works out as it runs and of raw scores have none.

    python -m genreward.trace --profile laptop                        # which figures have rows; do the records agree?
    python -m genreward.trace easy_task_again --profile laptop        # its points: mean, interval, n
    python -m genreward.trace easy_task_again --curve "Sparse reward" --step 30720   # the rows of one, and their runs
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import comparison, evidence, figures, files, profiles, results, study
from . import would_pay as asked
from .errors import InputError, cli, unknown
from .profiles import Profile

COLUMNS = ("task", "curve", "seed", "step", "metric", "value", "file", "line", "commit")
POINT = ("task", "curve", "step", "metric")
TOLD = {"task": "task", "seed": "seed", "start": "seed", "step": "step", "metric": "metric"}
"""A record's columns by which a row is known -> ours."""
SECONDS = "seconds"


# --- behind a figure --------------------------------------------------------------------------------------------------

def rows(profile: str | Profile, names: str | Sequence[str], metric: str = "return", last: bool = False
         ) -> pd.DataFrame:
    """The rows behind a figure of an experiment or of several (`evidence.rows`), of one metric ("share_": of all that
    begin so), as `COLUMNS`: file, below the project's root, line of that file (its head is the first), commit of the
    code that made the run. last: only each run's last evaluation, which is what a mean of final returns is made of.
    """
    table, where = evidence.rows(profile, names), profiles.paths(profile)
    of = table["metric"].str.startswith(metric) if metric.endswith("_") else table["metric"] == metric
    table = table[of] if len(table) else table
    if last and len(table):
        table = table[table["step"] == table.groupby("run")["step"].transform("max")]
    return _placed(table, where.runs, where)


def records(profile: str | Profile, folder: str, metrics: str | None = None) -> pd.DataFrame:
    """Every row of the records in a folder below `results/<profile>` (`results.load`) as `COLUMNS`, each under the name
    that the record has for it: a curve is its method, with the condition where the record's experiment names one
    ("distractors/clean"). metrics: only those that this regular expression matches whole."""
    table, where = _lines(profile, folder, metrics), profiles.paths(profile)
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    condition = table["experiment"].str.partition("/")[2]
    return _placed(table.assign(curve=table["method"] + (", " + condition).where(condition != "", "")),
                   where.results / folder, where)


def played(profile: str | Profile, names: Sequence[str]) -> pd.DataFrame:
    """The rows behind `evidence.paid` of each of several experiments, one after the other: what finished agents did and
    were paid in their own episodes (`behaviour`), shares and correlations with progress, each line once a curve."""
    table, where = _lines(profile, "behaviour", "(share|correlation)_.*|progress_end"), profiles.paths(profile)
    found = pd.concat([evidence.of_finished(table, evidence.members(profile, name)) for name in names])
    return _placed(found.drop_duplicates(["run", "line", "curve"]), where.results / "behaviour", where)


def offered(profile: str | Profile, names: Sequence[str] = asked.COMPARED) -> pd.DataFrame:
    """The rows behind `evidence.would_pay`: what a reward pays each player an episode, and its own agents. A curve is
    the reward's, with who plays."""
    metrics, where = "paid_(?!env).*|progress_end", profiles.paths(profile)
    own = evidence.of_finished(_lines(profile, "behaviour", metrics), evidence.asked_members(profile, names))
    rewards = dict(zip(own["reward"], own["curve"], strict=True))
    others = _lines(profile, "would_pay", metrics)
    others = others[others["run"].isin(rewards)]
    others = others.assign(curve=[f"{rewards[row.run]}: {figures.label(row.method)}" for row in others.itertuples()])
    own = own.assign(curve=[f"{curve}: {evidence.OWN}" for curve in own["curve"]])
    return pd.concat([_placed(others, where.results / "would_pay", where),
                      _placed(own, where.results / "behaviour", where)], ignore_index=True)


def seconds(profile: str | Profile) -> pd.DataFrame:
    """The rows behind Table E (`comparison.training_time`): the seconds of every run that counts there, which stand in
    its provenance, a line of JSON each."""
    where = profiles.paths(profile)
    lines = []
    for row in comparison.timed_runs(profile).itertuples():
        path = where.runs / f"{row.run}.json"
        text = path.read_text(encoding="utf-8")
        kept = json.loads(text)
        line = next(number for number, one in enumerate(text.splitlines(), 1) if _seconds_of(one) == row.seconds)
        lines.append({"task": row.task, "curve": f"{row.method}, {comparison.AGENT_NAMES[row.agent]}",
                      "seed": kept["identity"]["run"]["seed"], "step": row.steps, "metric": SECONDS,
                      "value": row.seconds, "file": path.relative_to(where.root).as_posix(), "line": line,
                      "commit": _commit(kept)})
    return pd.DataFrame(lines, columns=list(COLUMNS))


def generation(profile: str | Profile, metrics: Sequence[str]) -> pd.DataFrame | None:
    """The rows of `study.load_generation` that are of generated videos and these metrics; a seed is a start, of steps
    there are none (0). None where nothing is on record."""
    table, where = study.load_generation(profile), profiles.paths(profile)
    if table is None:
        return None
    table = table.assign(curve=table["subject"] + " against " + table["reference"], seed=table["start"], step=0,
                         run="generation", line=table.index + 2)
    return _placed(table[(table["subject"] == "generated") & table["metric"].isin(metrics)], where.results, where)


def _lines(profile: str | Profile, folder: str, metrics: str | None) -> pd.DataFrame:
    """`results.load` of a folder below `results/<profile>`, with the line of each row, of the metrics that match."""
    table = results.load(profiles.paths(profile).results / folder)
    table = table.assign(line=table.groupby("run").cumcount() + 2)  # the first line is the head
    return table if metrics is None or table.empty else table[table["metric"].str.fullmatch(metrics)]


def _placed(table: pd.DataFrame, folder: Path, where: profiles.Paths) -> pd.DataFrame:
    """Rows with run and line as `COLUMNS`: with the file, below the project's root, and the commit of its code."""
    below = folder.relative_to(where.root).as_posix()
    commits = {run: _commit(_made(folder / f"{run}.csv")) for run in table["run"].unique()}
    table = table.assign(file=[f"{below}/{run}.csv" for run in table["run"]], commit=table["run"].map(commits))
    return table.loc[:, list(COLUMNS)].reset_index(drop=True)


# --- back from a figure -----------------------------------------------------------------------------------------------

def traced(profile: str | Profile) -> dict[str, Path]:
    """The figures that were saved with their rows: name -> file."""
    folder = profiles.paths(profile).figures
    return {path.name.removesuffix(figures.ROWS): path for path in sorted(folder.glob(f"[!.]*{figures.ROWS}"))}


def behind(figure: str, profile: str | Profile) -> pd.DataFrame:
    """The rows that a figure was saved with. An unknown name, or a file with other columns, is an InputError."""
    known = traced(profile)
    if figure not in known:
        raise unknown("figure with rows", figure, known)
    return files.read_table(known[figure], COLUMNS, dtype={"commit": str}, keep_default_na=False)


def points(table: pd.DataFrame) -> pd.DataFrame:
    """The points that rows make: task, curve, step, metric, value, low, high (mean over seeds and Student's 95%
    interval, whether the figure draws it or not), n."""
    return pd.DataFrame([{**dict(zip(POINT, point, strict=True)), **results.mean_interval(of["value"])._asdict()}
                         for point, of in table.groupby(list(POINT), sort=False)],
                        columns=[*POINT, "value", "low", "high", "n"])


def changed(table: pd.DataFrame, profile: str | Profile) -> list[str]:
    """Each of a figure's rows that its record does not hold any more (task, seed, step, metric, value; the run's
    commit), in words; empty where all of them stand. Which curve a row belongs to is what the figure says of it."""
    problems, root = [], profiles.paths(profile).root
    for file, of in table.groupby("file", sort=False):
        path = root / file
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        head = next(csv.reader(lines[:1]), [])
        for row in of.itertuples():
            there = lines[row.line - 1] if row.line <= len(lines) else ""
            if not _holds(there, row, head if path.suffix == ".csv" else None):
                problems.append(f"{file}:{row.line} holds {there.strip(' ,') or 'nothing'}, where the figure has "
                                f"{row.value!r} ({row.task}, {row.seed}, {row.step}, {row.metric})")
        commit, known = _commit(_made(path)), sorted(set(of["commit"]))
        if lines and known != [commit]:
            problems.append(f"{file} is of a run that commit {commit or '?'} made, where the figure has "
                            f"{', '.join(known) or '?'}")
    return problems


def _holds(text: str, row: Any, head: Sequence[str] | None) -> bool:
    """Whether a line of a record says what a figure's row does: of a table the value under "value" and everything by
    which the row is known (`TOLD`); of a provenance (no head) its seconds."""
    if head is None:
        return row.metric == SECONDS and _seconds_of(text) == row.value
    cells = next(csv.reader([text]), [])
    if len(cells) != len(head) or "value" not in head:
        return False
    there = dict(zip(head, cells, strict=True))
    try:
        return float(there["value"]) == row.value and all(
            there[name] == str(getattr(row, ours)) for name, ours in TOLD.items() if name in there)
    except ValueError:
        return False


def _seconds_of(text: str) -> float | None:
    """The seconds that a line of a provenance gives; None where it is another line."""
    name, _, rest = text.strip().rstrip(",").partition(":")
    try:
        return float(json.loads(rest)) if name == f'"{SECONDS}"' else None
    except (ValueError, TypeError):
        return None


def _made(path: Path) -> dict:
    """The provenance beside a file of rows; empty where there is none."""
    beside = path.with_suffix(".json")
    return files.read_json(beside) if beside.is_file() else {}


def _commit(made: dict) -> str:
    return str(made.get("commit", ""))[:12]


def check(profile: str | Profile) -> dict[str, list[str]]:
    """What `changed` says of each figure that has rows."""
    return {name: changed(behind(name, profile), profile) for name in traced(profile)}


# --- the command line -------------------------------------------------------------------------------------------------

def _chosen(table: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """The rows of the task, curve, step and metric that are asked for. Of a name its beginning is enough where only one
    begins so (curves are called by more than the legend says where nothing else is in the figure); one that the figure
    has not, or several have, is an InputError."""
    for name in POINT:
        wanted, known = getattr(options, name), table[name].unique().tolist()
        if wanted is None:
            continue
        begins = [one for one in known if isinstance(one, str) and one.startswith(str(wanted))]
        meant = [wanted] if wanted in known else begins
        if len(meant) != 1:
            raise InputError(f"{name} {wanted!r} is {'several' if meant else 'none'} of this figure's; valid: "
                             f"{', '.join(map(repr, meant or known))}")
        table = table[table[name] == meant[0]]
    return table


def _of_run(file: str, profile: str | Profile) -> str:
    """What is on record of the run that wrote a file of rows."""
    kept = _made(profiles.paths(profile).root / file)
    if not kept:
        return f"{Path(file).stem}: no provenance on record"
    where = kept.get("processor") or kept.get("platform", "")
    took = f", {kept['steps']:,} steps" if isinstance(kept.get("steps"), int) else ""
    return (f"{Path(file).stem}: commit {_commit(kept)}{took} in {kept.get('seconds') or 0:,.0f} s on "
            f"{kept.get('device', '?')}{f' ({where})' if where else ''}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text. Exit status 1 where a record does not hold what a figure shows."""
    parser = argparse.ArgumentParser(prog="python -m genreward.trace", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", help="without it: all of them")
    parser.add_argument("--profile", default="laptop", help=f"one of {', '.join(profiles.PROFILES)}")
    for name, kind in (("task", str), ("curve", str), ("step", int), ("metric", str)):
        parser.add_argument(f"--{name}", type=kind)
    options = parser.parse_args(arguments)
    asked = traced(options.profile) if options.figure is None else [options.figure]
    tables = {name: behind(name, options.profile) for name in asked}
    found = {name: changed(table, options.profile) for name, table in tables.items()}
    if options.figure is None:
        for name, table in tables.items():
            print(f"{name}: {len(points(table))} points of {len(table)} rows of {table['file'].nunique()} runs; "
                  + ("every row stands in its record" if not found[name] else f"{len(found[name])} rows do not"))
        if not tables:
            print(f"no figure with rows yet; make figures PROFILE={profiles.get_profile(options.profile).name}")
    else:
        chosen = _chosen(tables[options.figure], options)
        for point in points(chosen).itertuples():
            print(f"{point.task}, {point.curve}, step {point.step:,}, {point.metric}: {evidence.ranged(point)} "
                  f"(n={point.n})")
        if any(getattr(options, name) is not None for name in ("curve", "step")):
            for row in chosen.itertuples():
                print(f"  {row.value:>12,.6g}  {row.file}:{row.line}")
            print(*(f"  {_of_run(file, options.profile)}" for file in chosen["file"].unique()), sep="\n")
    wrong = [problem for problems in found.values() for problem in problems]
    if wrong:
        print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    cli(main)
