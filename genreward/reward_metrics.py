"""The numbers by which a reward model is judged, from tables of episodes and raw scores; nothing is run or read here.

`reward_study` scores the episodes and hands the tables over (`... reward_episodes, results -> reward_metrics ->
reward_study -> figures -> book`). Every metric comes with a 95% interval from drawing whole starts again, since the
episodes of one start share object and goal; `over_tasks` gives the wider one, in which the tasks are the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import results
from .errors import InputError
from .reward_episodes import FAKES, LOOKS, OUTCOMES

# ---- one episode, two lists of episodes


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half: (P,), (N,) -> [0, 1]; 0.5 is a coin."""
    return float(np.mean(_above(positive, negative)))


def _above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = np.asarray(first, float)[:, None], np.asarray(second, float)[None]
    if first.size == 0 or second.size == 0:
        raise InputError("an area under the ROC curve needs at least one episode of each class")
    return (first > second) + 0.5 * (first == second)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two (n,) arrays, ties at their mean rank; NaN where one of them is constant."""
    return _correlation(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks less their mean."""
    ranks = stats.rankdata(values)
    return ranks - ranks.mean()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    length = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / length, -1, 1)) if length > 0 else float("nan")


def partial_spearman(score: np.ndarray, truth: np.ndarray, time_: np.ndarray) -> float:
    """Rank correlation of score and truth once the rank of time is taken out of both, in [-1, 1].

    0 where the score is constant or says the time only: nothing of the truth is in it. NaN where the truth itself is
    constant or rises (or falls) with time at every step: then nothing is left to explain.
    """
    return _partial(_ranks(score), _ranks(truth), _ranks(time_))


def _partial(score: np.ndarray, truth: np.ndarray, time_: np.ndarray) -> float:
    """`partial_spearman` of what `_ranks` gives."""
    with_truth, with_time, truth_time = (_correlation(*two) for two in ((score, truth), (score, time_), (truth, time_)))
    if np.isnan(truth_time) or 1 - truth_time**2 < 1e-9:
        return float("nan")
    if np.isnan(with_time) or 1 - with_time**2 < 1e-9:
        return 0.0
    return float(np.clip((with_truth - with_time * truth_time)
                         / np.sqrt((1 - with_time**2) * (1 - truth_time**2)), -1, 1))


def pairwise_accuracy(scores: np.ndarray, truth: np.ndarray, margin: float = 0.05) -> float:
    """Over all pairs of n episodes whose truth differs by more than `margin`: how often the further one has the higher
    score, ties counting half. NaN without such a pair."""
    agree, pairs = _ordered(scores, truth, margin)
    return float(agree.sum() / pairs.sum()) if pairs.any() else float("nan")


def _ordered(scores: np.ndarray, truth: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, n): 1, 0.5 or 0 where episode i got further than j, by whether its score is higher; and where that is so."""
    truth = np.asarray(truth, float)
    further = (truth[:, None] > truth[None] + margin).astype(float)
    return further * _above(scores, scores), further


def episode_scores(episodes: pd.DataFrame, steps: pd.DataFrame, scores: pd.DataFrame,
                   tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """One row an episode of the tables that `load_trajectories` and `load_scores` give, with

    final      the last score that was paid (0 where none was), total: the sum of all
    spearman   within the episode, of score and true progress; 0 for a constant score, NaN for constant progress
    partial    the same given time (see `partial_spearman`)

    Episodes of other tasks than `tasks` (default: those of which there are scores) are left out. InputError for scores
    of steps that no episode has.
    """
    joined = scores.merge(steps, on=["task", "episode", "step"], how="left", validate="one_to_one")
    if joined["progress"].isna().any():
        raise InputError("there are scores of steps that the episodes do not have; score them again")
    rows = {}
    for key, part in joined.sort_values("step").groupby(["task", "episode"], sort=False):
        score, truth, when = (part[name].to_numpy(float) for name in ("score", "progress", "step"))
        moving = len(part) > 2 and np.ptp(truth) > 0
        ranks = [_ranks(values) for values in (score, truth, when)] if moving else []  # most of the time goes here
        plain = _correlation(*ranks[:2]) if moving else np.nan
        rows[key] = {"final": score[-1], "total": score.sum(),
                     "spearman": 0.0 if moving and np.isnan(plain) else plain,
                     "partial": _partial(*ranks) if moving else np.nan}
    table = episodes[episodes["task"].isin(scores["task"].unique() if tasks is None else tasks)].reset_index(drop=True)
    found = pd.DataFrame([rows.get(key, {"final": 0.0, "total": 0.0, "spearman": np.nan, "partial": np.nan})
                          for key in zip(table["task"], table["episode"], strict=True)])
    return pd.concat([table, found], axis=1)


METRICS = {
    "auroc_failure": "AUROC of the final score: expert above late failure (headline)",
    "auroc_half": "AUROC of the final score: expert above half-finished",
    "auroc_random": "AUROC of the final score: expert above random",
    "auroc_sum_failure": "AUROC of the summed score: expert above late failure",
    "spearman": "rank correlation with progress within an episode",
    "partial": "the same given time",
    "pairwise": "share of episode pairs ordered as their final progress",
    "function": "share of pairs in which an oddly drawn success beats the expert's motion without effect",
}


def _measures(table: pd.DataFrame) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Metric -> function from weights (R, number of starts) to (R,) values, for the episodes of one task.

    Episodes of one start share object and goal: they are drawn together, as often as their start is.
    """
    starts = {start: number for number, start in enumerate(sorted(table["start"].unique()))}
    outcomes = table[table["kind"].isin(OUTCOMES)]

    def weights(rows: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
        return drawn[:, rows["start"].map(starts).to_numpy(int)].astype(float)

    def share(first: pd.DataFrame, second: pd.DataFrame, top: np.ndarray, pairs: np.ndarray
              ) -> Callable[[np.ndarray], np.ndarray]:
        def value(drawn: np.ndarray) -> np.ndarray:
            a, b = weights(first, drawn), weights(second, drawn)
            return ((a @ top) * b).sum(1) / ((a @ pairs) * b).sum(1)
        return value

    def average(rows: pd.DataFrame, column: str) -> Callable[[np.ndarray], np.ndarray]:
        rows = rows[rows[column].notna()]

        def value(drawn: np.ndarray) -> np.ndarray:
            w = weights(rows, drawn)
            return (w @ rows[column].to_numpy(float)) / w.sum(1)
        return value

    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    expert = outcomes[outcomes["kind"] == "expert"]
    for name, rival, column in (("auroc_failure", "failure", "final"), ("auroc_half", "half", "final"),
                                ("auroc_random", "random", "final"), ("auroc_sum_failure", "failure", "total")):
        other = outcomes[outcomes["kind"] == rival]
        if len(expert) and len(other):
            top = _above(expert[column].to_numpy(), other[column].to_numpy())
            found[name] = share(expert, other, top, np.ones_like(top))
    for column in ("spearman", "partial"):
        found[column] = average(outcomes, column)
    found["pairwise"] = share(outcomes, outcomes, *_ordered(outcomes["final"], outcomes["progress"], 0.05))
    pairs = looks_or_function(table)
    if len(pairs):
        found["function"] = average(pairs[pairs["look"].isin(LOOKS)], "prefers")
        for (look, fake), of in pairs.groupby(["look", "fake"], sort=False):
            found[f"function:{look}:{fake}"] = average(of, "prefers")
    return found


def looks_or_function(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each start, way of drawing and fake: `prefers` is 1 where the final score of the oddly drawn success
    is above that of the expert's motion without effect, 0.5 at a tie. `look` "expert" is the success drawn as always,
    for reference; it is not counted in the metric "function" (see `quality`)."""
    by_kind = {kind: rows.set_index(["task", "start"])["final"] for kind, rows in table.groupby("kind")}
    rows = []
    for look in ("expert", *LOOKS):
        for fake in FAKES:
            if look not in by_kind or fake not in by_kind:
                continue
            pairs = pd.concat([by_kind[look], by_kind[fake]], axis=1, keys=["look", "fake"], join="inner")
            prefers = (pairs["look"] > pairs["fake"]) + 0.5 * (pairs["look"] == pairs["fake"])
            rows += [{"task": task, "start": start, "look": look, "fake": fake, "prefers": float(value)}
                     for (task, start), value in prefers.items()]
    return pd.DataFrame(rows, columns=["task", "start", "look", "fake", "prefers"])


QUALITY_COLUMNS = ("model", "task", "metric", "value", "low", "high", "n")


def quality_of(name: str, table: pd.DataFrame, seed: int = 0, resamples: int = results.RESAMPLES) -> pd.DataFrame:
    """All metrics of one model: rows of `QUALITY_COLUMNS`, one for each task and one for "all", the mean over tasks.

    table: what `episode_scores` gives. 95% percentile intervals from drawing a task's starts again with replacement
    (`resamples` times, generator seeded), tasks on their own; n is the number of starts (for "function": of those with
    pairs), and one start a task gives no interval. A metric that is defined for no episode has the value NaN.
    """
    return _rows(name, _drawn(table, seed, resamples))


def ahead(name: str, table: pd.DataFrame, rival: pd.DataFrame, metrics: Sequence[str] | None = None, seed: int = 0,
          resamples: int = results.RESAMPLES) -> pd.DataFrame:
    """How far one model is ahead of another on the same episodes: `quality_of`'s rows (of some `metrics`, or of all)
    with the difference of the two as value. Both are asked about the starts that were drawn, the same for either, so
    that the interval is that of the difference. Models of other starts are refused with an InputError."""
    starts = [rows.groupby("task")["start"].unique().map(set).to_dict() for rows in (table, rival)]
    if starts[0] != starts[1]:
        raise InputError(f"{name} and its rival were not scored on the same starts of the same tasks")
    own, other = (_drawn(rows, seed, resamples, metrics) for rows in (table, rival))
    return _rows(name, {key: (values - other[key][0], n) for key, (values, n) in own.items() if key in other})


def _drawn(table: pd.DataFrame, seed: int, resamples: int, metrics: Sequence[str] | None = None
           ) -> dict[tuple[str, str], tuple[np.ndarray, int]]:
    """(task, metric) -> (1 + resamples,) values, the estimate first, and n. What is drawn depends on seed, task and
    number of starts only, so two models that were scored on the same episodes meet the same draws."""
    found = {}
    for task, part in table.groupby("task", sort=False):
        starts = part["start"].nunique()
        rng = np.random.default_rng([seed, starts, *str(task).encode()])
        drawn = np.vstack([np.ones(starts), rng.multinomial(starts, np.full(starts, 1 / starts), resamples)])
        for metric, measure in _measures(part).items():
            if metrics is not None and metric not in metrics:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                values = measure(drawn)
            n = part.loc[part["kind"].isin(FAKES), "start"].nunique() if metric.startswith("function") else starts
            found[str(task), metric] = values, n
    return found


def _rows(name: str, drawn: Mapping[tuple[str, str], tuple[np.ndarray, int]]) -> pd.DataFrame:
    """What was drawn, task by task and over all of them."""
    rows = [_row(name, task, metric, values, n, n > 1) for (task, metric), (values, n) in drawn.items()]
    for metric in dict.fromkeys(metric for _, metric in drawn):
        of = [drawn[key] for key in drawn if key[1] == metric]
        counts = [n for _, n in of]
        rows.append(_row(name, "all", metric, np.mean([values for values, _ in of], axis=0), sum(counts),
                         max(counts) > 1))
    return pd.DataFrame(rows, columns=list(QUALITY_COLUMNS))


def _row(name: str, task: str, metric: str, values: np.ndarray, n: int, varied: bool) -> dict[str, Any]:
    """The first of `values` is the estimate, the others are its resamples, worth an interval where starts varied."""
    resampled = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(resampled, [0.025, 0.975]) if varied and len(resampled) else (np.nan, np.nan)
    return {"model": name, "task": task, "metric": metric, "value": float(values[0]), "low": float(low),
            "high": float(high), "n": int(n)}


def as_records(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `QUALITY_COLUMNS` and a column `experiment` in the results' schema: metrics `<metric>`, `<metric>_low`
    and `<metric>_high`, as far as they are finite; `method` is the model and `step` its n."""
    return [{"experiment": row.experiment, "method": row.model, "task": row.task, "seed": 0, "step": row.n,
             "metric": f"{row.metric}{suffix}", "value": value}
            for row in found.itertuples() for suffix, value in (("", row.value), ("_low", row.low), ("_high", row.high))
            if np.isfinite(value)]


def from_records(table: pd.DataFrame, columns: Sequence[str] = QUALITY_COLUMNS) -> pd.DataFrame:
    """What `as_records` made as rows of `columns`: `QUALITY_COLUMNS` and others that the table has."""
    bound = table["metric"].str.extract(r"_(low|high)$", expand=False)
    table = table.assign(part=bound.fillna("value").astype(str), metric=table["metric"].str.replace(
        r"_(low|high)$", "", regex=True)).rename(columns={"method": "model", "step": "n"})
    index = [name for name in columns if name not in ("value", "low", "high")]
    wide = table.pivot(index=index, columns="part", values="value").reset_index()
    return wide.reindex(columns=list(columns)).rename_axis(columns=None)


OVER_TASKS = "over tasks"


def over_tasks(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of `quality_of` (not of `ahead`: differences have another range) that are the mean over tasks, with
    Student's 95% interval over the tasks instead: task "over tasks", n their number; one task gives no interval.

    The interval of "all" holds for these tasks, each with its one goal video and its one F and B: starts are drawn
    again, tasks are not. For another task, video or training the tasks are the sample, and there are few of them.
    """
    rows = []
    for (model, metric), of in found[found["task"] != "all"].groupby(["model", "metric"], sort=False):
        values = of["value"].to_numpy(float)
        if np.isnan(values).any():
            continue
        mean, low, high, n = results.mean_interval(values)
        least = -1.0 if metric in ("spearman", "partial") else 0.0  # Student's knows nothing of a metric's range
        rows.append({"model": model, "task": OVER_TASKS, "metric": metric, "value": mean,
                     "low": float(np.maximum(low, least)), "high": float(np.minimum(high, 1.0)), "n": n})
    return pd.DataFrame(rows, columns=list(QUALITY_COLUMNS))


# ---- in words


def printed(row: pd.Series) -> str:
    """"value [low, high]" of a row of `quality_of`, "-" where there is no value."""
    if np.isnan(row["value"]):
        return "-"
    if np.isnan(row["low"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


VERDICTS = {
    "success": ("auroc_failure", 0.5, "tells a success from a late failure", "ranks late failures above successes",
                "is not shown to tell a success from a late failure"),
    "progress": ("partial", 0.0, "follows progress beyond the clock", "runs against progress, given time",
                 "is not shown to follow progress beyond the clock"),
    "function": ("function", 0.5, "prefers function over looks", "prefers looks over function",
                 "is not shown to prefer function over looks"),
}
HEADLINE = tuple(metric for metric, *_ in VERDICTS.values())


def verdicts(found: pd.DataFrame, task: str = "all") -> pd.DataFrame:
    """model, question, verdict (1: the 95% interval lies above the coin's value, -1: below, 0: it holds it), unseen,
    text. A model without an interval gets 0, and so does one that wins the pairs of an odd success and a fake but is
    not shown to see the fake where nothing is odd (unseen; `sees_fakes`): it may win by the oddity."""
    rows = []
    at = found[found["task"] == task].set_index(["model", "metric"])
    for name in dict.fromkeys(found["model"]):
        for question, (metric, coin, above, below, neither) in VERDICTS.items():
            if (name, metric) not in at.index:
                continue
            row = at.loc[(name, metric)]
            sign = int(row["low"] > coin) - int(row["high"] < coin)
            text = {1: above, -1: below, 0: neither}[sign]
            if unseen := question == "function" and sign == 1 and not sees_fakes(found, name, task):
                sign, text = 0, "wins its pairs, but is not shown to see the fake where nothing is odd"
            rows.append({"model": name, "question": question, "verdict": sign, "unseen": unseen,
                         "text": f"{name} {text} ({printed(row)}, n={row['n']})"})
    return pd.DataFrame(rows, columns=["model", "question", "verdict", "unseen", "text"])


def sees_fakes(found: pd.DataFrame, model: str, task: str = "all") -> bool:
    """Whether a model is shown to prefer the expert to each of the fakes (`FAKES`) in pairs in which nothing is odd."""
    plain = found[(found["model"] == model) & (found["task"] == task)
                  & found["metric"].isin([f"function:expert:{fake}" for fake in FAKES])]
    return bool((plain["low"] > VERDICTS["function"][1]).all())


def conclusions(found: pd.DataFrame, better: Mapping[str, Collection[str]] | None = None,
                controls: Collection[str] = (), apart: Mapping[tuple[str, str], pd.DataFrame] | None = None
                ) -> list[str]:
    """What the study says, in sentences made from its numbers: who passes which question, of them who does better than
    what has learned nothing (`better`: question -> models), and models that differ in one thing (`COMPARISONS`) beside
    each other, with their distance where `apart` has it (rows of `ahead`). `controls` are not counted."""
    given = verdicts(found[~found["model"].isin(list(controls))])
    lines = []
    for question, (_, _, above, below, _) in VERDICTS.items():
        of = given[given["question"] == question]
        if of.empty:
            continue
        for sign, text in ((1, above), (-1, below)):
            names = of.loc[of["verdict"] == sign, "model"].tolist()
            line = f"{len(names)} of {len(of)} models: {text}" + (f" ({', '.join(names)})" if names else "")
            if sign == 1 and names and better is not None:
                led = [name for name in names if name in better.get(question, ())]
                line += f"; of these better than the best control: {', '.join(led) or 'none'}"
            lines.append(f"{line}.")
        if unseen := of.loc[of["unseen"], "model"].tolist():
            lines.append(f"{', '.join(unseen)}: wins its pairs, but is not shown to see the fake where nothing is odd.")
    at = found[found["task"] == "all"].set_index(["model", "metric"])
    for first, second, what in COMPARISONS:
        shown, lead = [], None
        if apart is not None and (first, second) in apart:
            lead = apart[first, second]
            lead = lead[lead["task"] == "all"].set_index("metric")
        for metric in HEADLINE:
            if (first, metric) in at.index and (second, metric) in at.index:
                a, b = at.loc[(first, metric)], at.loc[(second, metric)]
                by = f" ({'+' if lead.loc[metric, 'value'] > 0 else ''}{printed(lead.loc[metric])})" if (
                    lead is not None and metric in lead.index) else ""
                shown.append(f"{metric} {printed(a)} against {printed(b)}{by}")
        if shown:
            lines.append(f"{what}: {first} against {second}: " + "; ".join(shown) + ".")
    return lines


COMPARISONS = (
    ("genreward_video", "pixel_cosine", "Latents or bare pixels"),
    ("genreward_video_first", "genreward_video", "First latent removed, or as printed"),
    ("genreward_video_mean", "genreward_video", "Mean latent removed, or as printed"),
    ("genreward_video_oracle", "genreward_video_first", "Goal video from a real demonstration, or generated"),
    ("genreward_frame_buffer", "genreward_frame_goal", "B on buffer states, or at the goal frame only as printed"),
    ("genreward_frame_buffer", "genreward_frame_buffer_no_action", "With the action, or without"),
    ("genreward_sound", "genreward", "The sound variant, or as printed"),
)


# ---- the goal frame: what may be done to a score curve before its best frame is taken


def smooth(curve: np.ndarray, width: int = 3) -> np.ndarray:
    """Running mean of a score curve (K,) over `width` frames (odd), its ends repeated: a single lucky frame counts
    less."""
    if width < 1 or width % 2 == 0:
        raise InputError(f"the width of the running mean must be odd and positive, got {width}")
    padded = np.pad(np.asarray(curve, float), width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), "valid")


def late_prior(curve: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """The curve (K,) in units of its own spread, plus `strength` times the fraction of the clip that has passed: with
    1, a frame at the end may score one standard deviation worse than one at the beginning and still be chosen."""
    curve = np.asarray(curve, float)
    spread = curve.std()
    scaled = (curve - curve.mean()) / spread if spread > 1e-12 else np.zeros_like(curve)
    return scaled + strength * np.linspace(0, 1, len(curve))


REMEDIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clip": lambda curve: curve, "clip, smoothed": smooth, "clip, late prior": late_prior,
    "clip, both": lambda curve: late_prior(smooth(curve))}
