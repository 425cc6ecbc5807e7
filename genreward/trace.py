"""From a point of a figure to the rows that it is made of, and from a row to the run that wrote it.

After `evidence`, beside `claims` (`... would_pay -> evidence -> trace -> book`). A figure of learning curves or of
final returns is saved with the evaluations behind its curves and means, `figures/<profile>/<name>.rows.csv`: one a seed
and step, with its value, the file and line where it stands and the commit whose code made the run. (Its yardsticks,
random actions and the expert, stand in `results/<profile>/references/`.) Other figures have none.

    python -m genreward.trace --profile laptop                        # which figures have rows; do the records agree?
    python -m genreward.trace easy_task_again --profile laptop        # its points: mean, interval, n
    python -m genreward.trace easy_task_again --curve "Sparse reward" --step 30720   # the rows of one, and their runs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from . import evidence, figures, files, profiles, results
from .errors import InputError, cli, unknown
from .profiles import Profile

COLUMNS = ("task", "curve", "seed", "step", "metric", "value", "file", "line", "commit")
POINT = ("task", "curve", "step", "metric")


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
    folder = where.runs.relative_to(where.root).as_posix()
    commits = {run: _commit(_made(where.runs / f"{run}.csv")) for run in table["run"].unique()}
    table = table.assign(file=[f"{folder}/{run}.csv" for run in table["run"]], commit=table["run"].map(commits))
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
    table = pd.read_csv(known[figure], dtype={"commit": str}, keep_default_na=False)
    if list(table.columns) != list(COLUMNS):
        raise InputError(f"{known[figure]}: not the rows of a figure (columns {', '.join(table.columns)}); valid: "
                         f"{', '.join(COLUMNS)}")
    return table


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
        for row in of.itertuples():
            there = lines[row.line - 1].split(",") if row.line <= len(lines) else []
            told = [row.task, str(row.seed), str(row.step), row.metric]
            if there[2:6] != told or not _same(there[6:], row.value):
                problems.append(f"{file}:{row.line} holds {','.join(there) or 'nothing'}, where the figure has "
                                f"{row.value!r} ({', '.join(told)})")
        commit, known = _commit(_made(path)), sorted(set(of["commit"]))
        if lines and known != [commit]:
            problems.append(f"{file} is of a run that commit {commit or '?'} made, where the figure has "
                            f"{', '.join(known) or '?'}")
    return problems


def _same(text: Sequence[str], value: float) -> bool:
    """Whether the end of a record's line, split at its commas, is this value and nothing else."""
    try:
        return len(text) == 1 and float(text[0]) == value
    except ValueError:
        return False


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
    return (f"{Path(file).stem}: commit {_commit(kept)}, {kept.get('steps', 0):,} steps in "
            f"{kept.get('seconds', 0):,.0f} s on {kept.get('device', '?')}{f' ({where})' if where else ''}")


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
