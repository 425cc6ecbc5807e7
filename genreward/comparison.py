"""What the runs on record say: which are missing, whether a reward helped, who was paid by what, and what it cost.

Stands beside `results` near the end of the flow (`... training -> results -> figures -> book`): it reads tables and
provenance, plays a few reference episodes, and trains nothing. A sentence about an effect is made from the numbers
here, so that no notebook can promise what was not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import envs, figures, files, profiles, results, training
from .errors import Absent, InputError
from .results import Interval
from .training import METHODS, Run

AGENT_NAMES = {"sac": "SAC", "dreamer": "DreamerV3", "zero_shot": "F and B's own policy, evaluated"}
TRAINING_STAGES = {"vae": "video model: VAE", "pretrain": "video model: transformer", "finetune": "video model: LoRA"}


# --- which runs -------------------------------------------------------------------------------------------------------


def expected(profile: str | profiles.Profile, task: str) -> list[Run]:
    """Every run of the profile's grid on one task."""
    chosen = profiles.get_profile(profile)
    return [Run(task, method, agent, seed, chosen.name, chosen.name) for agent in chosen.run.agents
            for method in chosen.run.methods for seed in range(chosen.run.seeds)]


def missing(profile: str | profiles.Profile, task: str) -> pd.DataFrame:
    """The grid's runs that are not on record or not finished: run, steps (taken so far), command."""
    chosen = profiles.get_profile(profile)
    lines = []
    for run in expected(chosen, task):
        record = profiles.paths(chosen).runs / f"{run.run_id}.json"
        steps = files.read_json(record).get("steps", 0) if record.is_file() else 0
        if steps < training.total_steps(run, chosen):
            lines.append({"run": run.run_id, "steps": steps, "command":
                          f"python -m genreward.training --task {task} --method {run.method} --agent {run.agent} "
                          f"--seed {run.seed} --profile {chosen.name} --experiment {chosen.name}"})
    return pd.DataFrame(lines, columns=["run", "steps", "command"])


def by_agent(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `agent`, and `method` without the agent's name before it (`dreamer_sparse` -> `sparse`).
    """
    agent = np.select([table["method"].str.startswith("dreamer_"), table["method"].str.startswith("fb_zero_shot")],
                      ["dreamer", "zero_shot"], "sac")
    return table.assign(agent=agent, method=table["method"].str.removeprefix("dreamer_"))


def panels(table: pd.DataFrame) -> pd.DataFrame:
    """The rows for `figures.learning_curves` with a panel for each task and agent: `task` becomes "pick-place, SAC"."""
    split = by_agent(table)
    return split.assign(task=split["task"] + ", " + split["agent"].map(AGENT_NAMES)).drop(columns="agent")


# --- did it help ------------------------------------------------------------------------------------------------------


def difference(treated: Sequence[float], control: Sequence[float]) -> Interval:
    """Mean of `treated` minus mean of `control`, with Welch's 95% interval; n is the smaller group's size.

    A handful of seeds is too few for a bootstrap, whose intervals are then too narrow; Student's t is not. A group of
    one seed gives no interval (NaN); groups without any spread give one of no width.
    """
    first, second = np.asarray(treated, float), np.asarray(control, float)
    if not len(first) or not len(second):
        raise InputError("a difference needs at least one run on either side")
    value, n = float(first.mean() - second.mean()), min(len(first), len(second))
    if n < 2:
        return Interval(value, float("nan"), float("nan"), n)
    if np.ptp(first) == 0 == np.ptp(second):
        return Interval(value, value, value, n)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(results.CONFIDENCE)
    return Interval(value, float(interval.low), float(interval.high), n)


def welch_p(treated: Sequence[float], control: Sequence[float]) -> float:
    """Two-sided p of Welch's test of no `difference`; NaN where a group has one seed, 0 or 1 where neither varies."""
    first, second = np.asarray(treated, float), np.asarray(control, float)
    if min(len(first), len(second)) < 2:
        return float("nan")
    if np.ptp(first) == 0 == np.ptp(second):
        return float(first.mean() == second.mean())
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def permutation_p(treated: Sequence[float], control: Sequence[float]) -> float:
    """Two-sided p of the exact permutation test of the difference of the means: of all ways to part the pooled runs in
    two groups of these sizes, twice the share whose means lie at least as far apart on the same side. NaN where a group
    has one seed. The least that three against three can give is 0.1, seven against seven 2 / 3432.

    It asks for no normal errors. But its null is that both groups are drawn from the same distribution: where their
    spreads differ, it may reject for that; `welch_p` allows for it. Every split is made: InputError above a million.
    """
    first, second = np.asarray(treated, float), np.asarray(control, float)
    if min(len(first), len(second)) < 2:
        return float("nan")
    if (splits := math.comb(len(first) + len(second), len(first))) > 1_000_000:
        raise InputError(f"{len(first)} against {len(second)} runs can be parted in {splits:,} ways: too many for an "
                         "exact test (at most 1,000,000)")
    return float(stats.permutation_test((first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis),
                                        vectorized=True, n_resamples=np.inf).pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's correction (1979) of the p of several comparisons made on the same runs, in the order given: the smallest
    times their number, the next times one fewer, and so on, none below the one before it, none above 1. Whatever hangs
    together, the chance that any true null falls below a level is at most that level."""
    p = np.asarray(p, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("every p must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


def finals(table: pd.DataFrame, metric: str, last: int = 1) -> pd.Series:
    """Each seed's mean of its `last` latest evaluations, indexed by agent, task, method, seed.

    Where runs of one agent and task were taken to different lengths, all are read at the longest length that all reach.
    """
    rows = by_agent(table[table["metric"] == metric]).sort_values("step")
    if rows.empty:
        valid = ", ".join(sorted(table["metric"].unique())) or "none"
        raise InputError(f"no rows of metric {metric!r}; valid: {valid}")
    ends = rows.groupby(["agent", "task", "method", "seed"])["step"].max().groupby(["agent", "task"]).min()
    common = rows.set_index(["agent", "task"]).index.map(ends)
    rows = rows[rows["step"].to_numpy() <= common.to_numpy()]
    return rows.groupby(["agent", "task", "method", "seed"])["value"].apply(lambda values: values.tail(last).mean())


def effects(table: pd.DataFrame, metric: str = "return", last: int = 1) -> pd.DataFrame:
    """One line for each agent, task and generated reward whose control is on record too: what the reward changed.

    Its control is the same agent paid by the environment alone, as densely as beside the generated reward. Variants of
    a method (`genreward_sound+alpha-0.1`) are left to `evidence.contrasts`, which knows what else differs. Columns:
    agent, task, method, control, with_reward, without, value (the difference), low, high, n.
    """
    ends = finals(table, metric, last)
    lines = []
    for agent, task, method in ends.index.droplevel("seed").unique():
        paid = METHODS.get(method)
        control = paid.env_reward if paid is not None and (paid.needs or paid.weights) else None
        if control is None or (agent, task, control) not in ends.index.droplevel("seed"):
            continue
        treated, alone = ends.loc[(agent, task, method)], ends.loc[(agent, task, control)]
        lines.append({"agent": agent, "task": task, "method": method, "control": control,
                      "with_reward": treated.mean(), "without": alone.mean(),
                      **difference(treated, alone)._asdict()})
    return pd.DataFrame(lines, columns=["agent", "task", "method", "control", "with_reward", "without",
                                        *Interval._fields])


def verdict(effect: Any, metric: str = "return") -> str:
    """One plain sentence on a line of `effects`: what was measured, and what may be said of it."""
    number = "{:.3g}".format
    said = (f"{AGENT_NAMES[effect.agent]} on {effect.task}: with {figures.label(effect.method)} the final {metric} is "
            f"{number(effect.with_reward)}, with the {effect.control} reward alone {number(effect.without)} "
            f"(at least {effect.n} seed{'s' * (effect.n > 1)} each): a difference of {number(effect.value)}")
    if effect.n < 2:
        return f"{said}; one seed gives no interval, so nothing can be concluded."
    said += f", 95% interval {number(effect.low)} to {number(effect.high)}"
    if effect.low > 0:
        return f"{said}. The reward helped."
    if effect.high < 0:
        return f"{said}. The reward hurt."
    return f"{said}, which contains 0: whether the reward helped cannot be told from these runs."


def final_shares(table: pd.DataFrame) -> pd.DataFrame:
    """What each term contributed to all that an agent was paid: agent, task, method, term, share (mean over seeds), n.

    A share is a term's part of the sum of absolute payments since the start; a run's shares add up to 1.
    """
    rows = by_agent(table[table["metric"].str.startswith("share_")]).sort_values("step")
    last = rows.groupby(["agent", "task", "method", "seed", "metric"])["value"].last().reset_index()
    last["term"] = last["metric"].str.removeprefix("share_")
    return (last.groupby(["agent", "task", "method", "term"])["value"].agg(share="mean", n="size").reset_index())


# --- references and trained agents ------------------------------------------------------------------------------------


def references(profile: str | profiles.Profile, task: str, episodes: int, seed: int = 0) -> pd.DataFrame:
    """Random actions and the scripted expert in evaluation environments: index policy, columns return, success."""
    chosen = profiles.get_profile(profile)
    expert, explore = envs.expert_policy(task), envs.random_policy(np.random.default_rng(seed))
    policies: dict[str, Callable] = {"random": lambda observation, first: explore(observation),
                                     "expert": lambda observation, first: expert(observation)}
    lines = {name: training.evaluate(act, task, seed, episodes, chosen.episode_steps) for name, act in policies.items()}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("policy")


# --- what it cost -----------------------------------------------------------------------------------------------------


def paid_by(method: str) -> str:
    """What agents of a method are paid, in print, and what its variant (after a plus) changes."""
    name, plus, variant = method.partition("+")
    beside = ", beside the dense reward" * name.endswith("_dense")
    return figures.label(name.removesuffix("_dense")) + beside + f" {plus}{variant}" * bool(variant)


def costs(profile: str | profiles.Profile) -> pd.DataFrame:
    """Seconds on record, one line a stage: stage, runs (how many records), seconds (their sum), device, share.

    Read from the provenance of the training of the video model, the frame scorer and the other reward models, and of
    every agent's; what left no record is not in the table, and runs that only evaluate are none of training's.
    """
    where, lines = profiles.paths(profile), []
    trained = {name: where.results / "video" / f"provenance_{stage}.json" for stage, name in TRAINING_STAGES.items()}
    trained["frame scorer"] = where.scorer / "provenance.json"
    trained |= {f"reward model: {path.parent.name}": path
                for path in sorted((where.weights / "rewards").glob("*/provenance.json"))}
    for name, path in trained.items():
        kept = files.read_json(path) if path.is_file() else {}
        if kept.get("seconds"):
            lines.append((name, 1, float(kept["seconds"]), kept.get("device", profiles.get_profile(profile).device)))
    kept = results.load_provenance(where.runs)
    for (agent, method), group in pd.DataFrame(
            [(run["identity"]["run"]["agent"], run["identity"]["run"]["method"], run["seconds"], run["device"])
             for run in kept.values() if run.get("identity", {}).get("run", {}).get("agent") in ("sac", "dreamer")],
            columns=["agent", "method", "seconds", "device"]).groupby(["agent", "method"]):
        lines.append((f"{AGENT_NAMES[agent]}: {paid_by(method)}", len(group), float(group["seconds"].sum()),
                      ", ".join(sorted(set(group["device"])))))
    table = pd.DataFrame(lines, columns=["stage", "runs", "seconds", "device"])
    return table.assign(share=table["seconds"] / table["seconds"].sum() if len(table) else [])


def timed_runs(profile: str | profiles.Profile) -> pd.DataFrame:
    """The runs that `training_time` counts: run, agent, task, method (its variant added), steps, seconds."""
    lines = []
    for name, kept in results.load_provenance(profiles.paths(profile).runs).items():
        run = kept.get("identity", {}).get("run")
        if run and kept.get("steps") and kept.get("seconds"):
            variant = Run(run["task"], run["method"], changes=tuple(run.get("changes", {}).items())).variant
            lines.append({"run": name, "agent": run["agent"], "task": run["task"], "method": run["method"] + variant,
                          "steps": kept["steps"], "seconds": kept["seconds"]})
    table = pd.DataFrame(lines, columns=["run", "agent", "task", "method", "steps", "seconds"])
    longest = table["steps"] == table.groupby(["agent", "task", "method"])["steps"].transform("max")
    return table[longest].reset_index(drop=True)


def training_time(profile: str | profiles.Profile) -> pd.DataFrame:
    """The paper's Table E from our runs: agent, task, method (its variant added), n, steps, seconds_per_step (mean over
    seeds), lowest, highest. Only runs of the longest length of their kind count: a shorter one is unfinished, or
    finished for another figure. Hosts of unlike speed made them: what a method costs more than another is not told by
    these (`cost.table` measures that), so no ratio is formed."""
    kinds = ["agent", "task", "method"]
    table = timed_runs(profile)
    table = table.assign(seconds_per_step=table["seconds"] / table["steps"])
    taken = table.groupby(kinds)["seconds_per_step"]
    times = taken.agg(n="size", seconds_per_step="mean", lowest="min", highest="max").join(
        table.groupby(kinds)["steps"].first())
    return times.reset_index()[[*kinds, "n", "steps", "seconds_per_step", "lowest", "highest"]]


def seconds_each(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of one call, after one call that does not count."""
    function()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def render_rates(task: str = "pick-place", frames: int = 30, size: int = 64, block: int = 5) -> pd.DataFrame:
    """Frames a second of Meta-World's own `env.render()` and of ours at size x size, and how they compare.

    Both draw a moving arm, in turns of `block` frames, so that a busy machine slows both; the first frame of a turn
    does not count (changing from one OpenGL context to the other costs more than a small picture). Medians over at
    least `frames` frames each. Columns: renderer, milliseconds, processor_milliseconds (every thread),
    frames_per_second;
    `attrs["ratio"]` and `attrs["processor_ratio"]`: the default's median over ours; `attrs["low"]`, `attrs["high"]` and
    the same with `processor_` before them: quartiles of the ratio of two frames drawn after the same action.
    """
    if frames < 1 or block < 1:
        raise InputError(f"frames and block must be at least 1, got {frames} and {block}")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    ours = envs.make_env(task, size=size, episode_steps=10**6)
    default = ALL_V3_ENVIRONMENTS[ours.task.env_id](render_mode="rgb_array", camera_name=envs.CAMERA, width=size,
                                                    height=size)
    default._partially_observable = False
    default._freeze_rand_vec, default._set_task_called, default.max_path_length = True, True, 10**9
    default._last_rand_vec = envs._goals(ours.task.env_id)[0]
    default.reset()
    ours.reset(options={"goal": 0})
    renderers = {"env.render() of Meta-World": default, "genreward": ours}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in renderers}
    rng = np.random.default_rng(0)
    try:
        while len(taken["genreward"]) < frames:
            actions = rng.uniform(-1, 1, (block + 1, 4)).astype(np.float32)
            for name, env in renderers.items():
                if env is default and default.mujoco_renderer.viewer is not None:
                    # gymnasium leaves whichever OpenGL context is current, and would go on drawing with ours
                    default.mujoco_renderer.viewer.make_context_current()
                for number, action in enumerate(actions):
                    env.step(action)
                    began, worked = time.perf_counter(), time.process_time()
                    picture = env.render()
                    seconds = time.perf_counter() - began, time.process_time() - worked
                    if picture.shape != (size, size, 3):
                        raise InputError(f"{name} gave a picture of shape {picture.shape}, not {size}x{size}")
                    if number:
                        taken[name].append(seconds)
    finally:
        ours.close()
        default.close()
    table = pd.DataFrame([{"renderer": name, "milliseconds": 1e3 * clock, "processor_milliseconds": 1e3 * processor,
                           "frames_per_second": 1 / clock}
                          for name, (clock, processor) in ((name, np.median(seconds, axis=0))
                                                           for name, seconds in taken.items())])
    table.attrs["ratio"] = float(table["milliseconds"][0] / table["milliseconds"][1])
    table.attrs["processor_ratio"] = float(table["processor_milliseconds"][0] / table["processor_milliseconds"][1])
    default_seconds, our_seconds = (np.array(seconds) for seconds in taken.values())
    for name, quartiles in zip(("low", "high"), np.quantile(default_seconds / our_seconds, (0.25, 0.75), axis=0),
                               strict=True):
        table.attrs[name], table.attrs[f"processor_{name}"] = map(float, quartiles)
    return table


def records(profile: str | profiles.Profile, task: str | None = None) -> pd.DataFrame:
    """All rows of the profile's runs; with a task, those of the profile's own runs on it (`expected`) up to their own
    length: the grid's figures take some of them further and make others beside them. InputError with the command when
    there are none."""
    chosen = profiles.get_profile(profile)
    table = results.load(profiles.paths(chosen).runs)
    if task is not None:
        own = {run.run_id: training.total_steps(run, chosen) for run in expected(chosen, task)}
        table = table[table["step"] <= table["run"].map(own)].reset_index(drop=True)
    if table.empty:
        of = f" on {task}" if task is not None else ""
        raise Absent(f"no runs on record for profile {chosen.name!r}{of}; make them with: make results "
                     f"PROFILE={chosen.name}")
    return table
