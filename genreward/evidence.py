"""What the grid has to say to each figure and table of the paper: which runs there are, their numbers, their pictures.

Beside `comparison`, near the end of the flow (`... experiments -> results -> evidence -> figures -> book`). Everything
is read from records; a run that is not there, or not finished, counts as not there and is named with the command that
makes it. A panel without a run says so instead of being left out: an empty place in a figure is a fact too.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from . import behaviour, comparison, experiments, figures, files, forecast, profiles, results, training, variants
from . import would_pay as asked
from .goals import Goal
from .profiles import Profile
from .results import Interval, mean_interval
from .tasks import get_task
from .training import Run

SOURCE_NAMES = {"in_domain": "imagined, task known", "camera": "imagined, other camera",
                "recoloured": "imagined, other colours", "expert_video": "a real video", "teleport":
                "a real video, object teleports", "random_frame": "goal frame at random"}
ENCODER_NAMES = {"openclip": "OpenCLIP", "dinov3": "DINOv3", "siglip2": "SigLIP 2", "vae": "VAE"}
ZERO_SHOT = figures.label("fb_zero_shot")
SHARED = "again"
"""The experiment whose seeds serve many comparisons: each of them must stand with all of them counted (`shared`)."""
PAPER_METHODS = {"Dense Reward": "dense", "Raw Reward": "dense", "GenReward": "genreward_dense",
                 "RoboCLIP": "roboclip_dense", "Diffusion Reward": "diffusion_reward_dense", "TADPoLe": "tadpole_dense"}
"""The paper's names of what is paid beside the dense reward -> ours."""


DISTRACTED = "+distraction-"  # how the variant of a distracted run begins
PICTURE = ("distraction", "dreamer.observation")
"""Changes of what is seen, by agent and reward alike: a method so changed is compared with a control so changed."""


# --- the runs of an experiment ----------------------------------------------------------------------------------------


def curve_name(run: Run) -> str:
    """What the run's curve is called in print: the method, or what its variant changes."""
    words = []
    for name, value in run.changes:
        part = name.rpartition(".")[2].removeprefix("sound_")
        if name == "goal":
            words.append(SOURCE_NAMES.get(str(value), str(value).replace("frame_", "goal frame ")))
        elif part in ("alpha", "beta"):
            gone = {"alpha": "without the video-level reward", "beta": "without the FB reward"}[part]
            words.append(f"{part} = {value:g}" if value else gone)
        elif name == "fb.encoder":
            words.append(f"picture encoder {ENCODER_NAMES.get(str(value), value)}")
        elif name == "fb.action_aware":
            words.append("F with the action" if value else "F without the action")
        elif name == "dreamer.observation":
            words.append("from pictures" if value == "pixels" else "from states")
        elif name == "distraction":
            words.append(f"distracted ({value})")
        else:
            words.append(f"{part} = {value}")
    alone = words and not any(name in PICTURE for name, _ in run.changes)
    return ", ".join(words if alone else [figures.label(_plain(run.method)), *words])


def members(profile: str | Profile, name: str | Sequence[str]) -> pd.DataFrame:
    """Every run that an experiment declares: run, task, method, variant, picture (the variant's part that changes what
    is seen), curve (its printed name), agent, seed, wanted (environment steps), steps (on record), done. Of several
    experiments together: a run that two of them have stands there once, with the longest length that it has reached.
    Where several agents learn, a curve's name ends in its agent's.
    """
    profile = profiles.get_profile(profile)
    where, lines = profiles.paths(profile).runs, {}
    chosen = experiments.chosen(profile, [name] if isinstance(name, str) else name)
    for run in (run for experiment in chosen for run in experiment.runs(profile)):
        kept = where / f"{run.run_id}.json"
        there = kept.is_file() and (where / f"{run.run_id}.csv").is_file()
        steps = int(files.read_json(kept).get("steps", 0)) if there else -1
        wanted = training.total_steps(run, profile)
        line = {"run": run.run_id, "task": run.task, "method": run.method, "variant": run.variant,
                "picture": "".join(f"+{training.change_name(name, value)}" for name, value in run.changes
                                   if name in PICTURE),
                "curve": curve_name(run), "agent": run.agent, "seed": run.seed, "wanted": wanted,
                "steps": max(steps, 0), "done": there and steps >= wanted}
        known = lines.setdefault(run.run_id, line)
        if (line["done"], wanted) > (known["done"], known["wanted"]):
            known.update(line)
    found = pd.DataFrame(lines.values(), columns=["run", "task", "method", "variant", "picture", "curve", "agent",
                                                  "seed", "wanted", "steps", "done"])
    learns = found["agent"] != "zero_shot"
    if found.loc[learns, "agent"].nunique() > 1:
        found.loc[learns, "curve"] += ", " + found.loc[learns, "agent"].map(comparison.AGENT_NAMES)
    return found


def standing(profile: str | Profile, names: Sequence[str]) -> pd.DataFrame:
    """One line an experiment: experiment, item, runs, done, command (what makes the rest; "-" where nothing is left).
    """
    profile = profiles.get_profile(profile)
    lines = []
    for name in names:
        declared, item = members(profile, name), experiments.chosen(profile, [name])[0].item
        done = int(declared["done"].sum()) if len(declared) else 0
        left = len(declared) - done
        lines.append({"experiment": name, "item": item, "runs": len(declared), "done": done, "command":
                      f"make results PROFILE={profile.name} ONLY={name}" if left else "-"})
    return pd.DataFrame(lines)


def rows(profile: str | Profile, name: str | Sequence[str]) -> pd.DataFrame:
    """The rows of the finished runs of an experiment or of several (`results.load`), up to the length that is asked
    for, with `curve`, `variant`, `agent` and `line` (of the run's file); `method` is the run's own name of it."""
    declared, where = members(profile, name), profiles.paths(profile).runs
    finished = declared.loc[declared["done"], ["run", "method", "variant", "picture", "curve", "agent", "wanted"]]
    tables = [results.read_run(where / f"{run}.csv").assign(run=run, line=lambda table: table.index + 2)
              for run in finished["run"]]  # the first line is the head
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*results.COLUMNS, "run", "line"])
    table = table.drop(columns="method").merge(finished, on="run")
    return table[table["step"] <= table["wanted"]].drop(columns="wanted").reset_index(drop=True)


# --- numbers ----------------------------------------------------------------------------------------------------------


def summary(profile: str | Profile, name: str, references: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line for each task and curve that an experiment declares, measured or not.

    Columns: task, curve, method, variant, steps (asked for), wanted and n (seeds declared and finished), value, low,
    high (final dense return, mean and Student's 95% interval), success, and with `references` (`reference_table`)
    normalised: random = 0, scripted expert = 1. What was not measured is NaN.
    """
    declared, table = members(profile, name), rows(profile, name)
    last = table.sort_values("step").groupby(["run", "metric"])["value"].last()
    lines = []
    for (task, method, variant, curve), group in declared.groupby(["task", "method", "variant", "curve"], sort=False):
        finished = group.loc[group["done"], "run"]
        returns = [last[run, "return"] for run in finished]
        found = mean_interval(returns)
        line = {"task": task, "curve": curve, "method": method, "variant": variant, "steps": int(group["wanted"].max()),
                "wanted": len(group), "n": found.n, "value": found.value, "low": found.low, "high": found.high,
                "success": float(np.mean([last[run, "success"] for run in finished])) if len(finished) else math.nan}
        if references is not None and (task, "expert") in references.index:
            low, high = references.loc[(task, "random"), "return"], references.loc[(task, "expert"), "return"]
            line["normalised"] = float(results.normalised(found.value, low, high)) if found.n else math.nan
        lines.append(line)
    return pd.DataFrame(lines)


def sweep(profile: str | Profile, name: str) -> pd.DataFrame:
    """The weights that an experiment sweeps (Fig. 9), a line a run: task, method, weight ("alpha" or "beta"), at (its
    value), own (whether that is what the method has anyway: such a run stands under each weight), seed, return (the
    final dense one; NaN where the run is not finished)."""
    profile = profiles.get_profile(profile)
    runs = experiments.grid(profile, [name])
    swept = dict.fromkeys((run.method, run.changes[0][0]) for run in runs if len(run.changes) == 1
                          and run.changes[0][0].endswith(("alpha", "beta")))
    ends, lines = _ends(profile, name, "return")["value"], []
    for method, setting in swept:
        section, _, part = setting.partition(".")
        for run in runs:
            changes = dict(run.changes)
            if run.method == method and set(changes) <= {setting}:
                lines.append({"task": run.task, "method": method, "weight": part.removeprefix("sound_"),
                              "at": float(changes.get(setting, getattr(getattr(profile, section), part))),
                              "own": not changes, "seed": run.seed, "return": ends.get(run.run_id, math.nan)})
    return pd.DataFrame(lines, columns=["task", "method", "weight", "at", "own", "seed", "return"])


def trend(found: pd.DataFrame, draws: int = 9_999, seed: int = 0) -> pd.DataFrame:
    """Whether the return goes with the weight over all runs of a sweep (`sweep`), a line a task and weight: task,
    weight, tau (Kendall's, ties allowed for), p (two-sided, from `draws` random orders of the returns, each as likely
    if the weight did not matter), runs, values (of the weight). No line for fewer than three values or ten runs.
    """
    lines = []
    for (task, weight), of in found.dropna(subset=["return"]).groupby(["task", "weight"], sort=False):
        at, returns = of["at"].to_numpy(), of["return"].to_numpy()
        if len(set(at)) < 3 or len(at) < 10:
            continue
        rng = np.random.default_rng(seed)
        orders = np.stack([np.arange(len(at)), *(rng.permutation(len(at)) for _ in range(draws))])
        higher, above = (np.sign(np.subtract.outer(one, one)) for one in (at, returns))
        # pairs of runs that agree less those that do not: tau but for a factor that no order changes
        agree = np.abs((higher * above[orders[:, :, None], orders[:, None, :]]).sum(axis=(1, 2)))
        lines.append({"task": task, "weight": weight, "tau": float(stats.kendalltau(at, returns).statistic),
                      "p": float((agree >= agree[0]).mean()),
                      "runs": len(at), "values": len(set(at))})
    return pd.DataFrame(lines, columns=["task", "weight", "tau", "p", "runs", "values"])


def frame_by_frame(profile: str | Profile, name: str = "every_frame") -> pd.DataFrame:
    """`summary` of an experiment whose sources are the goal video's frames one by one, and beside it what CLIP says of
    them: frame (its number), score (Eq. 6 before the argmax), chosen (whether it is the goal frame I*)."""
    found = summary(profile, name)
    found["frame"] = found["variant"].str.extract(r"frame_(\d+)$", expand=False).astype(int)
    kept = {task: Goal.load(profiles.paths(profile).goals / task) for task in dict.fromkeys(found["task"])}
    found["score"] = [float(kept[row.task].scores[row.frame]) for row in found.itertuples()]
    found["chosen"] = [row.frame == kept[row.task].index for row in found.itertuples()]
    return found


def frame_choice(found: pd.DataFrame) -> pd.DataFrame:
    """How well CLIP chooses, a line a task of `frame_by_frame`: frames (measured ones), tau and p (Kendall's rank
    correlation of score and return over them, exact), chosen and its rank by return (1: the best), its value, and best
    and best_value, the frame with the highest return. Tasks without two measured frames, the chosen one among them, are
    left out."""
    lines = []
    for task, of in found[found["n"] > 0].groupby("task", sort=False):
        if len(of) < 2 or not of["chosen"].any():
            continue
        agreed = stats.kendalltau(of["score"], of["value"])
        chosen, best = of[of["chosen"]].iloc[0], of.loc[of["value"].idxmax()]
        lines.append({"task": task, "frames": len(of), "tau": float(agreed.statistic), "p": float(agreed.pvalue),
                      "chosen": int(chosen["frame"]), "rank": int((of["value"] > chosen["value"]).sum()) + 1,
                      "value": float(chosen["value"]), "best": int(best["frame"]),
                      "best_value": float(best["value"])})
    return pd.DataFrame(lines, columns=["task", "frames", "tau", "p", "chosen", "rank", "value", "best", "best_value"])


TOWARD_GOALS = ("easy", "again", "fig10_easy", "zero_shot", "every_frame")
"""The experiments in which agents are paid, or pi_z is sent, toward another goal and nothing else differs."""


def foreseen(profile: str | Profile, task: str) -> pd.DataFrame:
    """What was told of each goal of a task before anybody acted on it, and what became of it, a line a goal.

    Columns: goal (in print), source, repeated (whether its goal frame stands higher up under another name), progress
    and done with their `_low` and `_high`, expert_pay (`forecast.told`); of the agents that are paid toward it beside
    the sparse reward: value, low, high (final dense return, mean and Student's 95% interval), success, n (seeds) and
    agents_pay (the frame-level term a step of their own episodes); of pi_z toward it: pi_z (dense return), pi_z_n.
    """
    profile = profiles.get_profile(profile)
    before = forecast.told(forecast.load(profile, task))
    declared, table = members(profile, TOWARD_GOALS), rows(profile, TOWARD_GOALS)
    last = table.sort_values("step").groupby(["run", "metric"])["value"].last()
    own = members(profile, "fig10_easy")
    method = own.loc[~own["method"].isin(("dense", "sparse")) & (own["variant"] == ""), "method"].iloc[0]
    kept = results.load(behaviour.folder(profile))
    kept = kept[kept["metric"] == "paid_frame"].set_index("run")["value"] / profile.episode_steps
    lines = []
    for row in before.itertuples():
        of = declared[(declared["task"] == task) & declared["done"]
                      & (declared["variant"] == ("" if row.goal == forecast.OWN else f"+goal-{row.goal}"))]
        paid, sent = (list(of.loc[of["method"] == name, "run"]) for name in (method, "fb_zero_shot"))
        found, alone = (mean_interval([last[run, "return"] for run in runs]) for runs in (paid, sent))
        name = "as always" if row.goal == forecast.OWN else SOURCE_NAMES.get(row.goal, row.goal.replace("_", " "))
        lines.append({**row._asdict(), "goal": name, "source": row.goal, "value": found.value, "low": found.low,
                      "high": found.high, "n": found.n, "pi_z": alone.value, "pi_z_n": alone.n,
                      "success": float(np.mean([last[run, "success"] for run in paid])) if paid else math.nan,
                      "agents_pay": float(kept.reindex(paid).mean()) if paid else math.nan})
    found = pd.DataFrame(lines).drop(columns="Index")
    return found.assign(repeated=found.duplicated(["progress", "done", "progress_low"]))


def foretold(found: pd.DataFrame) -> pd.DataFrame:
    """Whether what was told before orders the goals as what became of them does (`foreseen`): told, outcome, tau
    (Kendall's) and its p, goals (how many; each frame once). Only where three goals or more have both."""
    lines = []
    for outcome, name in (("value", "return of agents paid toward it"), ("pi_z", "return of pi_z")):
        for before in ("progress", "done"):
            of = found[~found["repeated"]].dropna(subset=[before, outcome])
            if len(of) >= 3:
                tau = stats.kendalltau(of[before], of[outcome])
                lines.append({"told": before, "outcome": name, "tau": float(tau.statistic), "p": float(tau.pvalue),
                              "goals": len(of)})
    return pd.DataFrame(lines, columns=["told", "outcome", "tau", "p", "goals"])


def reference_table(profile: str | Profile, tasks: Sequence[str], episodes: int = 10, seed: int = 0) -> pd.DataFrame:
    """Random actions and, on Meta-World, the scripted expert: index (task, policy), columns return, success, n.

    From the record (`behaviour.record_references`); a Meta-World task without one is played now, `episodes` of each.
    """
    kept = results.load(profiles.paths(profile).results / "references")
    parts = {}
    for task in tasks:
        of = kept[kept["task"] == task]
        if len(of):
            wide = of.pivot_table(index="method", columns="metric", values="value").rename_axis("policy")
            parts[task] = wide.assign(n=of["seed"].nunique())
        elif get_task(task).suite == "metaworld":
            parts[task] = comparison.references(profile, task, episodes, seed).assign(n=episodes)
    if not parts:
        return pd.DataFrame(columns=["return", "success", "n"], index=pd.MultiIndex.from_arrays([[], []]))
    return pd.concat(parts, names=["task", "policy"])[["return", "success", "n"]]


def beyond_random(profile: str | Profile, name: str) -> pd.DataFrame:
    """How far every curve of an experiment ends above random actions: task, curve, value (difference of the mean final
    return), low, high (Welch's 95% interval of runs against episodes), n, random (their mean return). Only where runs
    are finished and random actions on record (`behaviour.record_references`)."""
    kept = results.load(profiles.paths(profile).results / "references")
    kept = kept[(kept["method"] == "random") & (kept["metric"] == "return")]
    lines = []
    for (task, curve), of in _ends(profile, name, "return").groupby(["task", "curve"], sort=False):
        episodes = kept.loc[kept["task"] == task, "value"]
        if len(episodes):
            lines.append({"task": task, "curve": curve, **comparison.difference(of["value"], episodes)._asdict(),
                          "random": float(episodes.mean())})
    return pd.DataFrame(lines, columns=["task", "curve", *Interval._fields, "random"])


def over_tasks(profile: str | Profile, name: str, references: pd.DataFrame) -> pd.DataFrame:
    """The returns of the curves that have finished runs on *every* task of an experiment, as the statistics over tasks
    take them (`results.sample_efficiency`, `results.scores`): rows with `method` (the curve's printed name), metric
    "normalised_return" (random actions 0, scripted expert 1 of the same task, from `reference_table`), task, seed,
    step, value, and of which run and line they are. F and B's own policy does not learn and is not among them.
    """
    table = rows(profile, name)
    table = table[(table["metric"] == "return") & (table["agent"] != "zero_shot")]
    everywhere = table.groupby("curve")["task"].nunique() == members(profile, name)["task"].nunique()
    table = table[table["curve"].isin(everywhere.index[everywhere])].assign(method=table["curve"])
    if table.empty:
        return table.assign(metric="normalised_return")
    known = references["return"].rename("value").rename_axis(["task", "method"]).reset_index()
    return results.normalise(table, known.assign(metric="return"))


def beyond_sentences(profile: str | Profile, name: str) -> list[str]:
    """`beyond_random` in words, a line a curve; none where it has none."""
    several = members(profile, name)["task"].nunique() > 1
    return [f"{f'{row.task}, ' * several}{row.curve}: {gained(row)} against random actions' {number(row.random)} "
            f"(n={row.n})" for row in beyond_random(profile, name).itertuples()]


def with_references(found: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """A summary with two more lines a task, random actions and the scripted expert, before the task's own."""
    parts = []
    for task, group in found.groupby("task", sort=False):
        lines = [{"task": task, "curve": figures.label(policy), "method": policy, "variant": "", "n":
                  int(references.loc[(task, policy), "n"]), "value": references.loc[(task, policy), "return"],
                  "low": math.nan, "high": math.nan, "success": references.loc[(task, policy), "success"]}
                 for policy in ("random", "expert") if (task, policy) in references.index]
        parts += [pd.DataFrame(lines), group]
    return pd.concat(parts, ignore_index=True)


def reported(item: str) -> pd.DataFrame:
    """What the paper prints of an item: environment, task, method (ours), paper (its name), metric, value, spread,
    approximate (read off a curve)."""
    table = results.reported()
    table = table[table["item"] == item]
    return table.assign(paper=table["method"], method=table["method"].map(PAPER_METHODS))[
        ["environment", "task", "method", "paper", "metric", "value", "spread", "approximate"]].reset_index(drop=True)


def beside_reported(found: pd.DataFrame, item: str) -> pd.DataFrame:
    """A summary with the columns reported, reported_spread and note: the paper's value of the same task and method
    where it has one, and what to mind about it (another metric than the return; a number that was read off a curve).

    A number of the Distracting Control Suite stands beside the distracted runs. Where an item has no run with the
    reward as printed, the paper's GenReward stands beside the repaired one. Its runs are of DreamerV3 from pixels, a
    million steps: of another budget, not to be compared in size.
    """
    printed = {}
    for row in reported(item).dropna(subset=["method"]).itertuples():
        method = row.method
        if method == "genreward_dense" and method not in set(found["method"]):
            method = "genreward_sound_dense"
        notes = ["read off a curve"] * bool(row.approximate) + [row.metric] * (row.metric != "episode return")
        printed[row.task, method, row.environment.startswith("Distracting")] = row.value, row.spread, ", ".join(notes)
    beside = []
    for row in found.itertuples():
        distracted = row.variant.startswith(DISTRACTED) and row.variant.count("+") == 1  # and changed in nothing else
        key = (row.task, row.method, distracted) if distracted or not row.variant else None
        beside.append(printed.get(key, (math.nan, math.nan, "")))
    columns = ("reported", "reported_spread", "note")
    return found.assign(**{name: [line[place] for line in beside] for place, name in enumerate(columns)})


def contrasts(profile: str | Profile, name: str, control: str | None = None, metric: str = "return",
              longer: str | None = None, step: int | None = None, exact: bool = False) -> pd.DataFrame:
    """Every curve of an experiment against its control: task, curve, control, value (difference of the mean final
    metric), low, high (Welch's 95% interval), n (of the smaller group), p (of Welch's test, two-sided, of this one
    comparison alone), paired_low, paired_high (Student's 95% interval of the differences seed for seed, where the seeds
    are the same). Only where both have finished runs.

    Welch's interval is the one by which this project judges: it holds whether or not seeds have anything in common.
    Runs of one seed do have something in common (networks at the beginning, starts), so the paired interval may be the
    narrower one; it is shown and decides nothing.

    control: the curve that all are set against (its printed name); None: the same environment reward alone, of the
    same agent, seen in the same way (F and B's own policy is held against the agent that learns). longer: the
    experiment whose runs are the controls, after `step` environment steps (None: after its last), which the control's
    name then says. exact: with p_exact, of the exact permutation test (`comparison.permutation_p`).
    """
    ends = _ends(profile, name, metric)
    others = ends if longer is None else _ends(profile, longer, metric, step)
    lines = []
    keys = ["task", "curve", "method", "picture", "agent"]
    for (task, curve, method, picture, agent), of in ends.groupby(keys, sort=False):
        alone = others[(others["task"] == task) & (others["curve"] == control if control is not None else (
            others["method"] == training.METHODS[method].env_reward) & (others["variant"] == picture)
            & ((others["agent"] == agent) | (agent == "zero_shot")))]
        if len(alone) and curve != (against := alone["curve"].iloc[0]):
            taken = f", {alone['step'].max():,} steps" if longer is not None else ""
            lines.append({"task": task, "curve": curve, "method": method, "control": against + taken,
                          **comparison.difference(of["value"], alone["value"])._asdict(),
                          "p": comparison.welch_p(of["value"], alone["value"]),
                          **({"p_exact": comparison.permutation_p(of["value"], alone["value"])} if exact else {}),
                          **_paired_interval(of, alone)})
    return pd.DataFrame(lines, columns=["task", "curve", "method", "control", *Interval._fields, "p",
                                        *["p_exact"] * exact, "paired_low", "paired_high"])


def _paired_interval(treated: pd.DataFrame, control: pd.DataFrame) -> dict[str, float]:
    """paired_low and paired_high of `contrasts`; NaN where the seeds are not the same."""
    first, second = (of.set_index("seed", verify_integrity=True)["value"] for of in (treated, control))
    found = mean_interval(first - second if set(first.index) == set(second.index) else [])
    return {"paired_low": found.low, "paired_high": found.high}


def helped(profile: str | Profile, names: Sequence[str] = ("fig5", "easy", "again", "pixels", "fig7", "tableA")
           ) -> pd.DataFrame:
    """Did the reward help: `contrasts` of several experiments in one table, with experiment, verdict (`verdict`), above
    random (whether the curve is shown to end above random actions) and p_holm: p corrected for all lines of the table
    that are on record and in which agents that learned are compared.

    Those of `SHARED` are not among them (`shared` counts them by themselves), nor the policy of F and B, whose seeds
    are of evaluation only, nor lines in which neither side varies: p_holm is NaN there.
    """
    lines = [contrasts(profile, name).assign(experiment=name) for name in names]
    beyond = [beyond_random(profile, name).assign(experiment=name) for name in names]
    found, above = (pd.concat(parts, ignore_index=True) for parts in (lines, beyond))
    learned = found["p"].notna() & (found["experiment"] != SHARED) & (found["curve"] != ZERO_SHOT)
    learned &= found["low"] < found["high"]
    found.loc[learned, "p_holm"] = comparison.holm(found.loc[learned, "p"])
    above["above random"] = above["low"] > 0
    found["verdict"] = [verdict(row) for _, row in found.iterrows()]
    return found.merge(above[["experiment", "task", "curve", "above random"]], how="left")


def contrasts_later(profile: str | Profile, name: str, longer: str) -> pd.DataFrame:
    """`contrasts` with a longer control at each of its evaluations after the runs' own length, with the columns step
    and verdict (`verdict`): where the control ends is not where it need stand best."""
    own = members(profile, name)["wanted"].max()
    steps = sorted({int(step) for step in rows(profile, longer)["step"] if step > own})
    found = pd.concat([contrasts(profile, name, longer=longer, step=step).assign(step=step) for step in steps]
                      or [contrasts(profile, name, longer=longer).assign(step=0)], ignore_index=True)
    return found.assign(verdict=[verdict(row) for _, row in found.iterrows()])


def together(profile: str | Profile, name: str, longer: str) -> int:
    """The first evaluation of a longer control by which it has taken as many steps as a run and the exploration of its
    F and B took together; 0 where it never has."""
    needed = members(profile, name)["wanted"].max() + profiles.get_profile(profile).fb.exploration_steps
    return min((int(step) for step in rows(profile, longer)["step"] if step >= needed), default=0)


def shared(profile: str | Profile, name: str = SHARED, longer: str = "longer") -> pd.DataFrame:
    """The comparisons that are quoted of the seeds of an experiment, as lines of `contrasts`: each curve against the
    environment's reward alone, at equal steps, with the exploration's added (`together`) and against the longer
    control's end; the unchanged method against each of its variants. p_holm is p corrected for all of them
    (`comparison.holm`), the number of which is the number of lines; only where both sides have two runs or more.
    exact_holm is the same of p_exact: where the two differ, it hangs on the test."""
    declared = members(profile, name)
    full = declared.loc[~declared["method"].isin(("dense", "sparse")) & (declared["variant"] == ""), "curve"].iloc[0]
    among = contrasts(profile, name, full, exact=True)
    among = among[~among["method"].isin(("dense", "sparse"))]
    # the difference of the full reward to its variant, not the variant's to it
    among = among.assign(curve=among["control"], control=among["curve"], value=-among["value"], low=-among["high"],
                         high=-among["low"])
    step = together(profile, name, longer)
    ends = [{}, *([{"longer": longer, "step": step}] if step else []), {"longer": longer}]
    parts = [*(contrasts(profile, name, exact=True, **end) for end in ends), among]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    found = found.drop(columns=["paired_low", "paired_high"])
    found = found[found["p"].notna()].drop_duplicates(["task", "curve", "control"]).reset_index(drop=True)
    return found.assign(p_holm=comparison.holm(found["p"]), exact_holm=comparison.holm(found["p_exact"]))


def counted(profile: str | Profile, name: str, controls: Sequence[str | None]) -> pd.DataFrame:
    """The curves of an experiment against each of those controls (`contrasts`), every pair of curves of a task once,
    with p_holm: p corrected for all these comparisons (`comparison.holm`); only where both sides have two runs or more.
    """
    found = pd.concat([contrasts(profile, name, control) for control in controls], ignore_index=True)
    found = found[found["p"].notna()]
    pairs = [(row.task, *sorted((row.curve, row.control))) for row in found.itertuples()]
    found = found[~pd.Series(pairs, index=found.index, dtype=object).duplicated()].reset_index(drop=True)
    return found.assign(p_holm=comparison.holm(found["p"]))


def _ends(profile: str | Profile, name: str, metric: str, step: int | None = None) -> pd.DataFrame:
    """The last row (or that of `step`) of a metric of each finished run of an experiment, by run, as declared."""
    table = rows(profile, name)
    table = table[(table["metric"] == metric) & (table["step"] == step if step is not None else True)]
    return table.sort_values("step").groupby("run").last().loc[table["run"].unique()]


def number(value: float) -> str:
    """Three digits, or whole where there are more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ranged(row: Any) -> str:
    """The `value` of a row and, where there is one, its interval [`low`, `high`]."""
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    return f"{number(row.value)}{interval}"


def gained(row: Any) -> str:
    """`ranged` of a line of `contrasts`, a gain with its sign."""
    return f"{'+' if row.value > 0 else ''}{ranged(row)}"


def seed_for_seed(profile: str | Profile, name: str, share: float = 0.6) -> pd.DataFrame:
    """How far agents stay from the control's that has their own seed, and from its other seeds: a reward that is too
    quiet to be heard leaves the agent what it would have been without.

    One line for each task and curve with two seeds or more on both sides: task, curve, method, control, same and other
    (mean absolute difference of the returns at the same evaluation, between runs of the same seed and of two seeds), n
    (seeds that both have), steps (up to which: that `share` of the run's length; later on anything diverges).
    """
    table = rows(profile, name)
    table = table[(table["metric"] == "return") & (table["agent"] != "zero_shot") & (table["variant"] == "")]
    steps = int(share * table["step"].max()) if len(table) else 0
    table, lines = table[table["step"] <= steps], []
    for (task, curve, method), of in table.groupby(["task", "curve", "method"], sort=False):
        control = training.METHODS[method].env_reward
        against = table[(table["task"] == task) & (table["method"] == control)]
        if method == control or against.empty:
            continue
        own, alone = (part.pivot(index="step", columns="seed", values="value") for part in (of, against))
        apart = {(a, b): float((own[a] - alone[b]).abs().mean()) for a in own for b in alone}
        same, other = ([distance for (a, b), distance in apart.items() if (a == b) == wanted]
                       for wanted in (True, False))
        if len(same) > 1:
            lines.append({"task": task, "curve": curve, "method": method, "control": against["curve"].iloc[0],
                          "same": float(np.mean(same)), "other": float(np.mean(other)), "n": len(same),
                          "steps": steps})
    return pd.DataFrame(lines, columns=["task", "curve", "method", "control", "same", "other", "n", "steps"])


def sentences(profile: str | Profile, name: str, control: str | None = None, longer: str | None = None,
              step: int | None = None) -> list[str]:
    """`contrasts` in words, a line each; where there are none, the command that makes the runs."""
    found = contrasts(profile, name, control, longer=longer, step=step)
    several = members(profile, name)["task"].nunique() > 1
    said = [f"{f'{row.task}, ' * several}{row.curve}: {gained(row)} against '{row.control}' "
            f"(n={row.n}{', no interval' * math.isnan(row.low)})" for row in found.itertuples()]
    profile, missing = profiles.get_profile(profile), f'"{name} {longer}"' if longer else name
    return said or [f"nothing can be said yet: make results PROFILE={profile.name} ONLY={missing}"]


def alone(found: pd.DataFrame) -> dict[str, float]:
    """Of a summary of one task, what the environment's own reward reaches by itself, named, for `interval_figure`;
    empty where it was not measured."""
    lines = found[found["method"].isin(("dense", "sparse")) & (found["variant"] == "") & (found["n"] > 0)]
    return {f"{row.method} reward alone": float(row.value) for row in lines.itertuples()}


def verdict(contrast: pd.Series) -> str:
    """One word on a line of `contrasts`: "better", "worse" (the whole interval on one side of 0), else "open"."""
    if contrast["low"] > 0:
        return "better"
    return "worse" if contrast["high"] < 0 else "open"


def goal_films(profile: str | Profile, name: str | Sequence[str]) -> dict[str, np.ndarray]:
    """One recorded episode of the first seed of each curve of an experiment (or several) that asks for another goal or
    for none, behind the goal frame that it was paid toward (white: nothing but the environment's reward): curve ->
    (1 + 8, H, W, 3) uint8. Curves without a film on record are left out."""
    films, declared, strips = behaviour.films(profile), members(profile, name), {}
    for row in declared[(declared["seed"] == 0) & declared["run"].isin(films)].itertuples():
        source = row.variant.removeprefix("+goal-")
        goal = Goal.load(variants.folder(profile, source, row.task) if source
                         else profiles.paths(profile).goals / row.task)
        unpaid = row.method in ("sparse", "dense")
        strips[row.curve] = np.concatenate([(np.full_like(goal.frame, 255) if unpaid else goal.frame)[None],
                                            films[row.run]])
    return strips


def of_finished(table: pd.DataFrame, declared: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `behaviour` those of the finished runs among an experiment's members, at their own length, with
    the columns that members have more; F and B's own policy, which is the same whatever the seed, counts once."""
    finished = declared[declared["done"]]
    same = (finished["agent"] == "zero_shot") & finished.duplicated(["task", "curve"])
    more = ["run", "wanted", *finished.columns.difference([*table.columns, "wanted", "steps", "done"], sort=False)]
    return table.merge(finished.loc[~same, more], left_on=["run", "step"], right_on=["run", "wanted"])


def paid(profile: str | Profile, name: str) -> pd.DataFrame:
    """What finished agents were paid in their own episodes, as `behaviour` recorded it: task, curve, term, share (of
    all that was paid, in absolute value; mean over the seeds that were paid anything), correlation (Spearman's, of the
    term's payments with the true progress of the paid states; mean over seeds), low, high (Student's 95% interval, cut
    to [-1, 1]), n (seeds), n_correlation (those in which payments and progress vary, without which there is no
    correlation), progress (mean of the episodes' last). Policies of the experiment's own length only; F and B's own
    policy, which is the same whatever the seed, counts once. Empty where nothing is on record."""
    table = of_finished(results.load(behaviour.folder(profile)), members(profile, name))
    lines = []
    for (task, curve), of in table.groupby(["task", "curve"], sort=False):
        at = of.set_index(["metric", "seed"])["value"]
        ends = at.get("progress_end")
        shares = sorted(metric for metric in set(of["metric"]) if metric.startswith("share_"))
        anything = sum(at[metric] for metric in shares) > 0  # by seed; of nothing there are no shares
        for metric in shares:
            term = metric.removeprefix("share_")
            followed = at.get(f"correlation_{term}")
            found = mean_interval([] if followed is None else followed)
            lines.append({"task": task, "curve": curve, "term": term, "share": float(at[metric][anything].mean()),
                          "correlation": found.value, "low": max(found.low, -1.0) if found.n > 1 else math.nan,
                          "high": min(found.high, 1.0) if found.n > 1 else math.nan,
                          "n": int(of["seed"].nunique()), "n_correlation": found.n,
                          "progress": math.nan if ends is None else float(ends.mean())})
    return pd.DataFrame(lines, columns=["task", "curve", "term", "share", "correlation", "low", "high", "n",
                                        "n_correlation", "progress"])


OWN = "its own agents"
PAY_COLUMNS = ("task", "curve", "player", "value", "low", "high", "n", "environment", "return", "success",
               "progress", "above", "below")


def asked_members(profile: str | Profile, names: Sequence[str] = asked.COMPARED) -> pd.DataFrame:
    """The `members` of whose reward `would_pay` has asked what it would pay others, with reward (the record's name). Of
    a curve with agents beside both the sparse and the dense reward of a task the name says which are the latter."""
    declared = members(profile, names)
    declared["reward"] = declared["task"] + "-" + declared["method"] + declared["variant"]
    known = declared[declared["reward"].isin(set(results.load(asked.folder(profile))["run"]))].copy()
    both = known.groupby(["task", "curve"])["reward"].transform("nunique") > 1
    known.loc[both & known["method"].str.endswith("_dense"), "curve"] += ", beside the dense reward"
    return known


def own_pay(profile: str | Profile, names: Sequence[str] = asked.COMPARED) -> pd.DataFrame:
    """What each finished agent is paid for an episode of its own, as `behaviour` recorded it, where `would_pay` has
    asked what its reward would pay others: task, curve, seed, reward (the record's name), return, success, progress
    (at the end), environment (what the environment paid), paid (the sum of the generated terms)."""
    table = of_finished(results.load(behaviour.folder(profile)), asked_members(profile, names))
    whose = ["task", "curve", "seed", "reward"]
    return _paid_in_all(table, whose).reset_index() if len(table) else pd.DataFrame(
        columns=[*whose, "return", "success", "progress", "environment", "paid"])


def would_pay(profile: str | Profile, names: Sequence[str] = asked.COMPARED) -> pd.DataFrame:
    """What an episode of each player is paid by a reward, beside what the agents that learned from it are paid.

    One line a task, curve and player (random actions, the scripted expert, F and B's own policy, the reward's own
    agents): value, the sum of the generated terms of an episode, weights applied (mean over episodes; of the agents
    over seeds, of each of which `own_pay` has a mean), low, high (Student's 95% interval), n (episodes, or seeds),
    environment (what the environment pays beside them), return, success and progress (at the end) by the simulator. On
    the agents' line, above and below: the players that are shown to be paid more, and less, than they are (Welch's
    interval of the difference leaves 0; each by itself). Rewards of which no finished agent is on record have no line.
    """
    kept, lines, beside = results.load(asked.folder(profile)), [], ["environment", "return", "success", "progress"]
    for (task, curve, reward), of in own_pay(profile, names).groupby(["task", "curve", "reward"], sort=False):
        found = {player: _paid_in_all(rows, ["seed"]) for player, rows in
                 kept[kept["run"] == reward].groupby("method", sort=False)}
        apart = {figures.label(player): comparison.difference(each["paid"], of["paid"])
                 for player, each in found.items()}
        shown = {"above": ", ".join(player for player, by in apart.items() if by.low > 0),
                 "below": ", ".join(player for player, by in apart.items() if by.high < 0)}
        lines += [{"task": task, "curve": curve, "player": figures.label(player),
                   **mean_interval(each["paid"])._asdict(), **each[beside].mean(),
                   "above": "", "below": ""} for player, each in found.items()]
        lines.append({"task": task, "curve": curve, "player": OWN, **mean_interval(of["paid"])._asdict(),
                      **of[beside].mean(), **shown})
    return pd.DataFrame(lines, columns=list(PAY_COLUMNS))


def preferences(found: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """Each reward of `would_pay` in words, with every agent of `own_pay` (paid, success)."""
    said = []
    for (task, curve), of in found.groupby(["task", "curve"], sort=False):
        at = of.set_index("player")
        each = own[(own["task"] == task) & (own["curve"] == curve)]
        agents = ", ".join(f"{number(one.paid)} ({one.success:.0%})" for one in each.itertuples())
        others = ", ".join(f"{player} {ranged(at.loc[player])}" for player in at.index.drop(OWN))
        last = at.loc[OWN]
        shown = "; ".join(f"{word} than they: {last[side]}" for side, word in (
            ("above", "shown to be paid more"), ("below", "less")) if last[side]) or "no difference is shown"
        said.append(f"{task}, {curve}: pays an episode of {others}; of its own agents {agents}; {shown}")
    return said


def _paid_in_all(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Index: each episode or run; columns environment, return, success, progress, paid (the generated terms' sum)."""
    wide = rows.pivot_table(index=by, columns="metric", values="value")
    terms = [name for name in wide if name.startswith("paid_") and name != "paid_env"]
    names = {"paid_env": "environment", "return": "return", "success": "success", "progress_end": "progress"}
    return wide.reindex(columns=list(names)).rename(columns=names).assign(paid=wide[terms].sum(axis=1))


# --- pictures ---------------------------------------------------------------------------------------------------------


LINES, MARKERS = ("-", ":", "--", (0, (7, 1.5, 1, 1.5, 1, 1.5))), "os^D"
"""What tells the curves of one method apart: their colour is the method's."""


def _looks(declared: pd.DataFrame) -> pd.DataFrame:
    """How each curve of `members` is drawn: index curve, columns method, agent, tone, line, marker. A method has its
    own colour; its variants differ in shade, line and marker."""
    curves = declared[["curve", "method", "agent"]].drop_duplicates("curve").set_index("curve")
    which = curves.groupby("method").cumcount()  # of the curves of one method
    curves["tone"] = [figures.shade(figures.colour(_plain(method)), number)
                      for method, number in zip(curves["method"], which, strict=True)]
    curves["line"] = ["-." if agent == "zero_shot" else LINES[number % len(LINES)]
                      for agent, number in zip(curves["agent"], which, strict=True)]
    curves["marker"] = [MARKERS[number % len(MARKERS)] for number in which]
    return curves


def learning_figure(profile: str | Profile, name: str | Sequence[str], references: pd.DataFrame,
                    metric: str = "return", columns: int = 3, width: float = 7.2) -> Figure:
    """Learning curves of an experiment or of several together, a panel a task: each seed (thin) and their mean, a
    colour a method (its variants differ in shade, line and marker; after four they repeat); F and B's own policy, which
    does not learn, as a line across; expert dashed, random dotted. Student's 95% interval is a band, or, where more
    than three curves are declared, a whisker on the panel's right, of all at the last step that all of them have: that
    many bands hide each other. A curve that goes on has one more, at its end. A panel without a finished run says so.
    The legend gives n, as a range where it differs between panels. Panels are as high as their curves: the interval of
    few seeds may leave them (of two it is 3.6 times as wide as of three). Where no curve gets to a fifth of the
    expert's return, the expert has a strip of its own (`figures.set_apart`). Declared curves that a panel lacks are
    named in it.
    """
    profile = profiles.get_profile(profile)
    declared, table = members(profile, name), rows(profile, name)
    tasks = list(dict.fromkeys(declared["task"]))
    across = min(columns, len(tasks))
    down = math.ceil(len(tasks) / across)
    fig, axes = pyplot.subplots(down, across, squeeze=False, layout="constrained",
                                figsize=(width if across > 1 else 4.6, 1.9 * down + 0.9))
    curves = _looks(declared)
    learners = list(curves.index[curves["agent"] != "zero_shot"])
    banded = len(learners) <= 3
    seeds: dict[str, set[int]] = {}
    for axis, task in zip(axes.flat, tasks, strict=False):
        here = table[(table["task"] == task) & (table["metric"] == metric)]
        steps = max(declared.loc[declared["task"] == task, "wanted"].max(), 1)
        ends = here[here["curve"].isin(learners)].groupby("curve")["step"].max()
        for curve, tone, line, marker in curves[["tone", "line", "marker"]].itertuples():
            of = here[here["curve"] == curve]
            if of.empty:
                continue
            seeds.setdefault(curve, set()).add(of["seed"].nunique())
            look = {"color": tone, "linestyle": line}
            if curve not in learners:
                axis.axhline(of["value"].mean(), linewidth=1.2, **look)
                continue
            means = pd.DataFrame({step: mean_interval(at["value"])._asdict() for step, at in of.groupby("step")}).T
            if of["seed"].nunique() > 1:
                for _, one in of.sort_values("step").groupby("seed"):
                    axis.plot(one["step"], one["value"], linewidth=0.5, alpha=0.5, gid="seed", **look)
            axis.plot(means.index, means["value"], marker=marker, markersize=2, linewidth=1.4, **look)
            if banded and means["low"].notna().any():
                axis.fill_between(means.index, means["low"], means["high"], color=tone, alpha=0.12, linewidth=0)
            elif not banded:
                places = {ends[curve]: ends[curve]} if ends[curve] > ends.min() else {}
                places[ends.min()] = steps * (1.05 + 0.035 * learners.index(curve))  # where no steps are
                for step, place in places.items():
                    at = means.loc[:step].iloc[-1]
                    if not math.isnan(at["low"]):
                        axis.errorbar(place, at["value"], [[at["value"] - at["low"]], [at["high"] - at["value"]]],
                                      fmt=marker, color=tone, markersize=3, linewidth=1.2)
        for policy, line in (("expert", "--"), ("random", ":")):
            if (task, policy) in references.index:
                axis.axhline(references.loc[(task, policy), metric], color=figures.colour(policy), linestyle=line,
                             linewidth=1)
        expected = declared.loc[declared["task"] == task, "curve"].drop_duplicates()
        lacking = [curve for curve in expected if curve not in set(here["curve"])]
        if here.empty:
            axis.text(0.5, 0.5, "no run on record", transform=axis.transAxes, ha="center", va="center", fontsize=8)
        elif lacking:
            axis.annotate(textwrap.fill(f"no run yet: {', '.join(lacking)}", 44), (0.5, 0), (0, -2), axis.xaxis.label,
                          "offset points", ha="center", va="top", fontsize=6, color="#666666")
        expert = references.loc[(task, "expert"), metric] if (task, "expert") in references.index else math.inf
        heights = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines] or [np.zeros(1)])
        room = 0.06 * max(float(np.ptp(heights)), 1e-9)
        axis.set(title=task, xlabel="environment steps", ylim=(heights.min() - room, heights.max() + room))
        if len(here) and math.isfinite(expert):
            figures.set_apart(axis, expert)
        if axis.containers:  # whiskers
            axis.axvspan(steps * 1.022, steps * (1.06 + 0.035 * len(learners)), color="0.95", linewidth=0, zorder=0)
            if ends.max() > ends.min():
                axis.annotate(f"at {ends.min() / 1000:.3g}k", (1, 0), (0, -4), "axes fraction", "offset points",
                              ha="right", va="top", fontsize=6, color="#666666")
        axis.set_xlim(0, steps * (1.04 if banded else 1.06 + 0.035 * len(learners)))
        axis.set_xticks([at for at in MaxNLocator(4).tick_values(0, steps) if at <= steps])
        axis.xaxis.set_major_formatter(lambda value, position: f"{value / 1000:g}k" if value else "0")
    for axis in list(axes.flat)[len(tasks):]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel({"return": "dense return", "success": "success"}.get(metric, metric))
    handles = []
    for curve, counts in seeds.items():
        method, _, tone, line, marker = curves.loc[curve]
        told = curve if (curves["method"] == method).sum() > 1 else figures.label(_plain(method))
        handles.append(pyplot.Line2D([], [], color=tone, marker=marker, markersize=2, linestyle=line,
                                     label=f"{told} (n={figures._span(counts)})"))
    handles += [pyplot.Line2D([], [], color=figures.colour(policy), linestyle=line, label=figures.label(policy))
                for policy, line in (("expert", "--"), ("random", ":"))]
    fig.legend(handles=handles, loc="outside lower center", ncols=2 if across == 1 else 3)
    return fig


def over_tasks_figure(profile: str | Profile, name: str, found: pd.DataFrame, width: float = 7.2) -> Figure:
    """The curves of an experiment over all its tasks together (found: `over_tasks`): on the left the interquartile mean
    of the normalised return at every step that all runs have (`results.sample_efficiency`), on the right the share of
    runs that end above each normalised return (`results.performance_profile`). Bands: bootstrap within tasks. Random
    actions lie at 0, the scripted expert at 1. A figure without a curve says so.
    """
    declared = members(profile, name)
    curves = _looks(declared)
    fig, (left, right) = pyplot.subplots(1, 2, layout="constrained", figsize=(width, 2.9))
    over = f"over {declared['task'].nunique()} tasks"
    left.set(xlabel="environment steps", ylabel="normalised return", title=f"interquartile mean {over}")
    right.set(xlabel="normalised return τ", ylabel="share of runs above τ", title=f"final returns {over}")
    if found.empty:
        for axis in (left, right):
            axis.text(0.5, 0.5, "no curve on every task", transform=axis.transAxes, ha="center", va="center",
                      fontsize=8)
        return fig
    metric = found["metric"].iloc[0]
    means, ends = results.sample_efficiency(found, metric), results.scores(found, metric)
    every = np.concatenate([values for tasks in ends.values() for values in tasks.values()])
    thresholds = np.arange(math.floor(100 * min(every.min(), 0)) - 3, math.ceil(100 * max(every.max(), 1)) + 4) / 100
    handles = []
    for curve, tone, line in curves.loc[curves.index.isin(ends), ["tone", "line"]].itertuples():
        above = results.performance_profile(ends[curve], thresholds)
        for axis, along, of in ((left, "step", means[means["method"] == curve]), (right, "threshold", above)):
            axis.plot(of[along], of["value"], color=tone, linestyle=line, linewidth=1.4)
            axis.fill_between(of[along], of["low"], of["high"], color=tone, alpha=0.12, linewidth=0)
        handles.append(pyplot.Line2D([], [], color=tone, linestyle=line, label=f"{curve} (n={above['n'].iloc[0]})"))
    for policy, at, line in (("expert", 1, "--"), ("random", 0, ":")):
        for draw in (left.axhline, right.axvline):
            draw(at, color=figures.colour(policy), linestyle=line, linewidth=1)
        handles.append(pyplot.Line2D([], [], color=figures.colour(policy), linestyle=line, label=figures.label(policy)))
    left.set_xlim(0, None)
    left.xaxis.set_major_formatter(lambda value, position: f"{value / 1000:g}k" if value else "0")
    right.set(xlim=thresholds[[0, -1]], ylim=(-0.03, 1.03))
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def would_pay_figure(found: pd.DataFrame, own: pd.DataFrame, columns: int = 4, width: float = 7.2) -> Figure:
    """A panel a reward of `would_pay`: what its generated terms pay an episode (95% interval) against the progress at
    its end, a point a player, and small ones for each agent of `own_pay`. A reward that asks for the task rises from
    left to right."""
    panels = list(found.groupby(["task", "curve"], sort=False))
    down = max(1, math.ceil(len(panels) / columns))
    fig, axes = pyplot.subplots(down, columns, squeeze=False, layout="constrained", figsize=(width, 1.75 * down + 0.5))
    looks = dict(zip((*(figures.label(player) for player in asked.PLAYERS), OWN),
                     (("0.45", "o"), ("black", "^"), ("#d55e00", "D"), ("#0072b2", "s")), strict=True))
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    shown = {}
    for axis, ((task, curve), of) in zip(axes.flat, panels, strict=False):
        each = own[(own["task"] == task) & (own["curve"] == curve)]
        axis.plot(each["progress"], each["paid"], ".", color=looks[OWN][0], alpha=0.5, markersize=4)
        for player, line in of.set_index("player").iterrows():
            tone, marker = looks[player]
            if not math.isnan(line["low"]):
                axis.plot([line["progress"]] * 2, [line["low"], line["high"]], color=tone, linewidth=1)
            shown[player], = axis.plot(line["progress"], line["value"], marker, color=tone, markersize=4, label=player)
        paid = pd.concat([of["value"], each["paid"], of.loc[of["player"] != OWN, "low"],
                          of.loc[of["player"] != OWN, "high"], pd.Series([0.0])]).dropna()
        space = 0.08 * float(np.ptp(paid)) or 1.0
        axis.set(xlim=(-0.05, 1.05), ylim=(paid.min() - space, paid.max() + space))  # few agents' interval may leave it
        axis.set_title("\n".join([task, *textwrap.wrap(curve, 26)]), fontsize=7)
        axis.axhline(0, color="0.85", linewidth=0.7, zorder=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("generated pay of\nan episode", fontsize=7)
    fig.supxlabel("true progress at the end of the episode", fontsize=8)
    if shown:
        names = [name for name in looks if name in shown]
        fig.legend([shown[name] for name in names], names, loc="outside upper center", ncols=4, fontsize=7)
    return fig


def interval_figure(found: pd.DataFrame, xlabel: str, lines: Mapping[str, float] | None = None,
                    height: float = 0.24, of: str = "seeds") -> Figure:
    """Means with their intervals, one line a row of a summary (columns curve, value, low, high, n, and task where
    there are several); a row that was not measured says so. `lines`: name -> value, drawn across."""
    several = "task" in found and found["task"].nunique() > 1
    names = [f"{row.task}: {row.curve}" if several else row.curve for row in found.itertuples()]
    fig, axis = pyplot.subplots(figsize=(6.2, height * len(found) + 0.9), layout="constrained")
    for place, row in enumerate(found.itertuples()):
        tone = figures.METHOD_COLOURS.get(_plain(getattr(row, "method", "")), "#333333")
        if not row.n:
            axis.text(0.01, place, "no run on record", transform=axis.get_yaxis_transform(), va="center", fontsize=7,
                      color="#888888", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3)
            continue
        if not math.isnan(row.low):
            axis.plot([row.low, row.high], [place, place], color=tone, linewidth=1.4)
        axis.plot(row.value, place, "o", color=tone, markersize=4)
    for number, (name, value) in enumerate((lines or {}).items()):
        axis.axvline(value, color="0.6", linestyle=("--", ":", "-.")[number % 3], linewidth=0.9, label=name)
    axis.set_yticks(range(len(found)), [f"{name} (n={row.n})" for name, row in zip(names, found.itertuples(),
                                                                                   strict=True)])
    axis.set(xlabel=xlabel, ylim=(len(found) - 0.5, -0.5))
    if not found["n"].any():
        axis.set_xticks([])
    if lines:
        axis.legend(loc="best", fontsize=7)
    return fig


def sweep_figure(found: pd.DataFrame, lines: Mapping[str, float] | None = None, width: float = 6.6) -> Figure:
    """Of a `sweep` of one task, a panel a weight: every run a dot, the mean of each value with Student's 95% interval
    where there are two runs or more, the weight that the method has anyway filled. `lines`: as in `interval_figure`.
    Values stand side by side, not to scale, since 0 is one of them."""
    weights = list(dict.fromkeys(found["weight"]))
    fig, axes = pyplot.subplots(1, len(weights), squeeze=False, sharey=True, layout="constrained",
                                figsize=(width, 2.7))
    tone = figures.colour(_plain(found["method"].iloc[0]))
    for axis, weight in zip(axes[0], weights, strict=True):
        of = found[found["weight"] == weight]
        values = sorted(of["at"].unique())
        for place, at in enumerate(values):
            here = of[of["at"] == at]
            one = mean_interval(here["return"].dropna())
            if not one.n:
                axis.text(place, 0.5, "no run on record", transform=axis.get_xaxis_transform(), rotation=90,
                          ha="center", va="center", fontsize=7, color="#888888",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3)
                continue
            axis.plot([place + 0.18] * one.n, here["return"].dropna(), ".", color="0.55", markersize=4, gid="seed")
            if not math.isnan(one.low):
                axis.plot([place, place], [one.low, one.high], color=tone, linewidth=1.4)
            axis.plot(place, one.value, "o", color=tone, markersize=5,
                      markerfacecolor=tone if here["own"].all() else "white")
        for number, (label, value) in enumerate((lines or {}).items()):
            axis.axhline(value, color="0.6", linestyle=("--", ":", "-.")[number % 3], linewidth=0.9, label=label)
        axis.set_xticks(range(len(values)), [f"{at:g}\nn={of.loc[of['at'] == at, 'return'].notna().sum()}"
                                             for at in values])
        axis.set(xlabel=f"$\\{weight}$", xlim=(-0.5, len(values) - 0.5))
    if not found["return"].notna().any():
        axes[0, 0].set_yticks([])
    axes[0, 0].set_ylabel("final dense return")
    if lines:
        axes[0, -1].legend(loc="best", fontsize=7)
    return fig


def foreseen_figure(found: pd.DataFrame, width: float = 7.2) -> Figure:
    """Of `foreseen`: left what was told of each goal (progress) against the final dense return of the agents that were
    paid toward it, with their interval; right against the return of pi_z, which is not paid, every frame once.
    """
    fig, (paid, sent) = pyplot.subplots(1, 2, figsize=(width, 3.6), sharex=True, sharey=True, layout="constrained")
    tone = figures.colour("genreward_sound")
    for marker, row in zip(itertools.cycle("osD^vP*X"), found[found["n"] > 0].itertuples(), strict=False):
        if not math.isnan(row.low):
            paid.plot([row.progress] * 2, [row.low, row.high], color=tone, linewidth=1.2, alpha=0.5)
        paid.plot(row.progress, row.value, marker, color=tone, markersize=6, linestyle="none", markeredgewidth=0,
                  label=f"{row.goal} (n={row.n})")
    alone = found[~found["repeated"] & (found["pi_z_n"] > 0)]
    sent.plot(alone["progress"], alone["pi_z"], "s", color=figures.colour("fb_zero_shot"), markersize=4)
    for number, row in enumerate(alone.sort_values("progress").itertuples()):
        one = row.goal.removeprefix("frame ").removeprefix("imagined, ").removeprefix("goal frame ")
        side = (1, -1)[number % 2]  # neighbours write on different sides
        sent.annotate(one, (row.progress, row.pi_z), xytext=(0, 5 * side), textcoords="offset points",
                      rotation=55 * side, rotation_mode="anchor", va="center_baseline", ha="left", fontsize=6.5)
    for axis, title in ((paid, "agents paid toward it"), (sent, "$\\pi_z$ sent toward it")):
        axis.axvline(0, color="0.8", linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("rank correlation of r_FB with progress", fontsize=8)
        axis.margins(x=0.22, y=0.42)  # for the names
        if not axis.lines[1:]:
            axis.text(0.5, 0.5, "no run on record", transform=axis.transAxes, ha="center", va="center", fontsize=8)
    paid.set_ylabel("dense return")
    if paid.get_legend_handles_labels()[0]:
        fig.legend(loc="outside lower center", ncols=3, fontsize=7, title="paid toward", title_fontsize=7)
    return fig


def frames_figure(profile: str | Profile, references: pd.DataFrame, name: str = "every_frame",
                  width: float = 7.2) -> Figure:
    """Each frame of the goal video as the goal (`frame_by_frame`), a column a task: the frames, the chosen one framed;
    CLIP's score of each; the final return with its interval, random actions and the expert across."""
    found = frame_by_frame(profile, name)
    tasks = list(dict.fromkeys(found["task"]))
    fig, axes = pyplot.subplots(3, len(tasks), squeeze=False, layout="constrained", sharex="col",
                                figsize=(width, 3.6), height_ratios=(0.5, 1, 1.9))
    for (strip, scores, returns), task in zip(axes.T, tasks, strict=True):
        of = found[found["task"] == task].reset_index(drop=True)
        video = Goal.load(profiles.paths(profile).goals / task).video
        for place, row in enumerate(of.itertuples()):
            strip.imshow(video[row.frame], extent=(place - 0.46, place + 0.46, 0, 1), aspect="auto",
                         interpolation="nearest")
            if row.chosen:
                strip.add_patch(pyplot.Rectangle((place - 0.46, 0), 0.92, 1, fill=False, linewidth=2.5, clip_on=False,
                                                 edgecolor=figures.colour("genreward")))
            scores.bar(place, row.score, 0.7, color=figures.colour("genreward") if row.chosen else "0.75")
            if row.n:
                if not math.isnan(row.low):
                    returns.plot([place, place], [row.low, row.high], color=figures.colour(row.method), linewidth=1.4)
                returns.plot(place, row.value, "o", color=figures.colour(row.method), markersize=4)
        for number, policy in enumerate(("random", "expert")):
            if (task, policy) in references.index:
                returns.axhline(references.loc[(task, policy), "return"], color="0.6", linewidth=0.9,
                                linestyle=(":", "--")[number], label=figures.label(policy))
        if not of["n"].any():
            returns.text(0.5, 0.5, "no run on record", transform=returns.transAxes, ha="center", fontsize=8,
                         color="#888888")
        strip.set(xlim=(-0.6, len(of) - 0.4), ylim=(0, 1), yticks=[], title=task)
        strip.spines[:].set_visible(False)
        strip.tick_params(bottom=False)
        scores.set_ylim(min(0.0, float(of["score"].min())) * 1.1, None)
        returns.set(xticks=range(len(of)), xticklabels=of["frame"], xlabel="frame of the goal video taken as the goal")
    axes[1, 0].set_ylabel("CLIP score")
    axes[2, 0].set_ylabel("dense return of $\\pi_z$")
    if axes[2, -1].get_legend_handles_labels()[1]:
        axes[2, -1].legend(loc="best", fontsize=7)
    return fig


def _plain(method: str) -> str:
    return method.removesuffix("_dense") if method not in figures.METHOD_COLOURS else method

