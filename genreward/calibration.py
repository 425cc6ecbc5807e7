"""Is F^T B a probability? Predicted against measured visits of a goal's neighbourhood, and how far pi_z gets by itself.

Stands beside `study` near the end of the flow (`... forward_backward -> ... -> results -> figures -> book`): it takes
F, B and pi_z as the pipeline trained them, asks them about states of episodes that they have not seen, and writes what
it measured into results/<profile>/. Nothing here learns except the small models on state features, which show what the
same loss does when psi is not the difficulty.

The question that is asked. Let U be the ball around a goal state: hand and object both within `radius` of where the
goal has them. Starting with state s and action a, following pi_z, the discounted share of time spent in U is

    p(U | s, a, z) = (1 - gamma) sum_{t>=0} gamma^t Pr(s_{t+1} in U)  =  (1 - gamma) integral_U M^{pi_z}(s, a, ds')

which lies in [0, 1]. F^T B is the density of M with respect to rho, the replay's next states, hence with N of them

    p ~ (1 - gamma) 1/N sum_{s' in U} F(s, a, z)^T B(s').

Measured is the same share in the simulator, put back to s: one rollout of pi_z, with the noise on the action of the
policy that F was trained for. Both are compared bin by bin (a reliability diagram) and by the expected calibration
error.

    python -m genreward.calibration zero-shot --profile laptop --tasks reach drawer-close pick-place
    python -m genreward.calibration measure --profile laptop --tasks reach drawer-close pick-place

Each task and kind of features is a run of its own; a finished one is passed over, so the same command goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from . import envs, errors, files, profiles, results
from . import forward_backward as fbs
from .errors import Absent, InputError, unknown
from .profiles import Profile
from .tasks import get_task

FEATURES = ("state", "pixels")
GOALS = ("oracle", "generated", "generated_before", "visited")
"""Where a goal is from: the expert's last state from the same start, the goal frame that the video model imagined from
that start with and without its LoRA, or a state that exploration came through from that start."""

Frames = np.ndarray


@dataclass(frozen=True)
class Settings:
    """How much is measured. `least`: fewer replay states than that in a ball say nothing about it."""

    episodes: int = 10  # zero-shot: starts, one episode each
    starts: int = 6  # calibration: starts
    snapshots: int = 4  # states s (with the action taken there) of an exploratory episode of each start
    visited: int = 3  # goals from that episode
    horizon: int = 200  # steps of a measuring rollout; gamma^200 = 0.018 at gamma = 0.98
    radius: float = 0.08  # of the ball, in metres
    least: int = 20
    seed: int = 0


def settings(profile: str | Profile, features: str) -> Settings:
    """The measuring effort of a profile. A step that has to be rendered and encoded costs twenty times one that has
    not, hence fewer and shorter rollouts of pictures; what gamma^128 = 0.075 leaves out counts like the rest."""
    if profiles.get_profile(profile).name == "smoke":
        return Settings(episodes=2, starts=1, snapshots=2, visited=1, horizon=12, radius=0.5, least=1)
    return Settings(starts=4, snapshots=3, visited=2, horizon=128) if features == "pixels" else Settings()


# ---- probabilities, predicted and measured


def in_ball(states: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Whether hand and object are both within `radius` of the centre's: states (..., 7) as `state_features` gives them,
    centre (7,) -> (...) bool. The gripper's opening does not count."""
    away = np.asarray(states, np.float64) - np.asarray(centre, np.float64)
    return (np.linalg.norm(away[..., :3], axis=-1) < radius) & (np.linalg.norm(away[..., 4:7], axis=-1) < radius)


def discounted_visits(inside: np.ndarray, gamma: float) -> np.ndarray:
    """The discounted share of time inside: (..., T) bool, from the first state after the action -> (...) in [0, 1].

    sum_t gamma^t inside_t / sum_t gamma^t; over an infinite time the denominator is 1/(1-gamma).
    """
    weights = gamma ** np.arange(np.shape(inside)[-1])
    return np.asarray(inside, np.float64) @ weights / weights.sum()


def ball_probability(measure: np.ndarray, share: float, gamma: float) -> np.ndarray:
    """(1-gamma) rho(U) mean of M over the replay states in U: measure (N, K), the density of M at the K replay states
    that lie in U, share = rho(U) in [0, 1] -> (N,). In [0, 1] for the true M; an approximation may leave that range."""
    measure = np.asarray(measure, np.float64)
    if measure.ndim != 2 or measure.shape[1] == 0:
        raise InputError(f"the density must be given at one replay state of the ball or more, got {measure.shape}")
    return (1.0 - gamma) * share * measure.mean(1)


def reliability(predicted: np.ndarray, measured: np.ndarray, bins: int = 6) -> pd.DataFrame:
    """The reliability diagram: bins of equally many pairs in the order of the prediction (clipped to [0, 1]).

    predicted, measured (n,), n >= bins. One row a bin: n, mean prediction, mean measured with its 95% interval `low`,
    `high` (bootstrap over pairs).
    """
    predicted, measured = np.clip(np.asarray(predicted, float), 0, 1), np.asarray(measured, float)
    if predicted.shape != measured.shape or predicted.ndim != 1 or not 1 <= bins <= len(predicted):
        raise InputError(f"a reliability diagram needs as many predictions as measurements and at least one a bin; got "
                         f"{predicted.shape}, {measured.shape} and {bins} bins")
    rows = []
    for members in np.array_split(np.argsort(predicted, kind="stable"), bins):
        told = results.bootstrap_ci(measured[members])
        rows.append({"n": told.n, "predicted": predicted[members].mean(), "measured": told.value, "low": told.low,
                     "high": told.high})
    return pd.DataFrame(rows)


def calibration_error(predicted: np.ndarray, measured: np.ndarray, bins: int = 6) -> float:
    """Expected calibration error, 0 to 1: the mean over bins, weighted by n, of |mean prediction - mean measured|."""
    table = reliability(predicted, measured, bins)
    return float(np.average((table["predicted"] - table["measured"]).abs(), weights=table["n"]))


def skill(predicted: np.ndarray, measured: np.ndarray) -> float:
    """1 - E(predicted - measured)^2 / Var(measured): 1 is perfect, 0 no better than always predicting the mean of what
    was measured, below 0 worse. A prediction may be well calibrated without any. NaN where nothing varies."""
    predicted, measured = np.clip(np.asarray(predicted, float), 0, 1), np.asarray(measured, float)
    spread = measured.var()
    return float(1.0 - np.mean((predicted - measured) ** 2) / spread) if spread > 1e-12 else float("nan")


# ---- goals and models


@dataclass(frozen=True)
class Goals:
    """The goals of n starts of a task (indices into its 50): states (n, 7), first and last frame (n, H, W, 3) of the
    expert's episode from each, and what was imagined from its first frame, by kind."""

    starts: np.ndarray
    states: np.ndarray
    first: Frames
    last: Frames
    returns: np.ndarray
    imagined: dict[str, Frames]

    def frames(self, kind: str) -> Frames:
        return self.last if kind == "oracle" else self.imagined[kind]


def expert_goals(env: envs.MetaWorldEnv, count: int, seed: int, pictures: bool = True) -> Goals:
    """The last states of successful expert episodes from `count` starts, in an order of `seed`; what the goal of an
    episode's own start is. Pictures are left empty (n, 0) without `pictures`. InputError when the expert succeeds from
    fewer starts."""
    found: dict[str, list] = {name: [] for name in ("starts", "states", "first", "last", "returns")}
    for start in np.random.default_rng([seed, 50]).permutation(envs.GOALS).tolist():
        if len(found["starts"]) == count:
            break
        env.reset(options={"goal": start})
        first = env.render() if pictures else np.zeros(0, np.uint8)
        episode = envs.rollout(env, envs.expert_policy(env.task), frames=False, options={"goal": start})
        if not episode.succeeded:
            continue
        for name, value in (("starts", start), ("states", fbs.state_features(episode.states[-1])), ("first", first),
                            ("last", env.render() if pictures else first), ("returns", episode.rewards.sum())):
            found[name].append(value)
    if len(found["starts"]) < count:
        raise InputError(f"the expert of {env.task.name!r} succeeds from {len(found['starts'])} of its starts, fewer "
                         f"than the {count} asked for")
    return Goals(**{name: np.stack(values) for name, values in found.items()}, imagined={})


def imagine(profile: Profile, task: str, goals: Goals, seed: int = 0,
            kinds: Sequence[str] = ("generated", "generated_before")) -> Goals:
    """The goal frames that the video model imagines from each start, with its LoRA and without: psi itself uses the
    VAE, which the LoRA does not touch, so that finetuning can only make a difference through these frames."""
    from .goals import generate_goal
    from .pipeline import load_scorer, load_video_model

    words, scorer, imagined = get_task(task), load_scorer(profile), {}
    for kind in kinds:
        model = load_video_model(profile, lora=kind == "generated")
        imagined[kind] = np.stack([
            generate_goal(model, scorer, first, words.prompt, words.paraphrases, seed=seed,
                          steps=profile.video.inference_steps, guidance=profile.video.guidance).frame
            for first in tqdm(goals.first, desc=f"{task}: {kind}")])
    return replace(goals, imagined=imagined)


@dataclass(frozen=True)
class Model:
    """F, B and pi_z with what they were trained on: the replay's features and states, and the log of training."""

    fb: fbs.ForwardBackward
    encoder: Any
    replay: dict[str, np.ndarray]
    log: pd.DataFrame

    def see(self, env: envs.MetaWorldEnv, observation: np.ndarray) -> np.ndarray:
        """psi of the state that the simulator is in, (D,)."""
        return fbs.feature_function(self.encoder)(env, observation)

    def goal_features(self, goals: Goals, kind: str = "oracle") -> np.ndarray:
        """(n, D) psi of the goals of a kind."""
        return goals.states if self.encoder is None else self.encoder.encode(goals.frames(kind))


def load_model(profile: Profile, task: str, features: str, targets: str = "buffer",
               goal: np.ndarray | None = None) -> Model:
    """The trained model of a task: the pipeline's for "pixels"; for "state" one of the same sizes, trained here once on
    the same exploration and kept under build/. `goal` (7,) is what targets="goal" is trained for."""
    from .pipeline import exploration, load_encoder

    if features not in FEATURES:
        raise unknown("features", features, FEATURES)
    where = profiles.paths(profile)
    if features == "pixels":
        path = where.fb / f"{task}.pt"
        if targets != "buffer":
            raise InputError("the pipeline trains F and B on pictures with fb_targets='buffer' only")
        if not path.is_file():
            raise InputError(f"the forward-backward model of {task!r} is missing; make it with: python -m "
                             f"genreward.pipeline --profile {profile.name} --only fb")
        encoder = load_encoder(profile)
        return Model(fbs.ForwardBackward.load(path), encoder, exploration(profile, task, encoder),
                     files.read_table(where.fb / f"{task}-training.csv"))
    replay = exploration(profile, task)
    config = replace(profile.fb, fb_targets=targets, scaling="each")  # metres beside a gripper's opening
    made = files.digest(asdict(config), replay["features"][-1], None if goal is None else goal)
    path = where.checkpoints / f"fb-state-{task}-{targets}-{made}.pt"
    if not path.is_file():
        fb = fbs.ForwardBackward(replay["features"].shape[1], replay["actions"].shape[1], config, seed=0)
        log = fbs.train_fb(fb, replay, goal=goal)
        with files.atomic_path(path.with_suffix(".csv")) as temporary:
            log.to_csv(temporary, index=False)
        fb.save(path, resume=False)
    return Model(fbs.ForwardBackward.load(path), None, replay, files.read_table(path.with_suffix(".csv")))


# ---- measuring


@dataclass(frozen=True)
class Probe:
    """A state that exploration came through, with what was done there: what F is asked about."""

    start: int
    step: int
    snapshot: dict[str, np.ndarray]
    features: np.ndarray
    state: np.ndarray
    action: np.ndarray


def explore(env: envs.MetaWorldEnv, start: int, config: Settings, rng: np.random.Generator,
            see: Callable[[envs.MetaWorldEnv, np.ndarray], np.ndarray]) -> tuple[list[Probe], list[Probe]]:
    """(probes, goals) of one exploratory episode from a start: `snapshots` states s with the action taken there, and
    `visited` other states of it, which can be reached and which nobody had in mind."""
    policy, length = fbs.near_object_policy(rng), min(128, env.episode_steps)
    chosen = rng.choice(length, config.snapshots + config.visited, replace=False)
    observation, _ = env.reset(options={"goal": start})
    seen: dict[int, Probe] = {}
    for step in range(length):
        action = policy(observation)
        if step in chosen:
            seen[step] = Probe(start, step, env.get_state(), see(env, observation), fbs.state_features(observation),
                               action)
        observation = env.step(action)[0]
    ordered = [seen[step] for step in chosen]
    return ordered[:config.snapshots], ordered[config.snapshots:]


def measure_visits(env: envs.MetaWorldEnv, probe: Probe, act: Callable[[np.ndarray], np.ndarray], centre: np.ndarray,
                   config: Settings, gamma: float) -> float:
    """The discounted share of time in the ball when the simulator is put back to the probe's state, its action is done
    and then `act` (observation -> action) is followed, for `horizon` steps."""
    env.reset(options={"goal": probe.start})
    env.set_state(probe.snapshot)
    inside, action = [], probe.action
    for step in range(config.horizon):
        observation = env.step(action)[0]
        inside.append(in_ball(fbs.state_features(observation), centre, config.radius))
        if step + 1 < config.horizon:
            action = act(observation)
    return float(discounted_visits(np.array(inside), gamma))


def measure_task(profile: Profile, task: str, features: str, config: Settings) -> list[dict[str, Any]]:
    """Predicted and measured visits of one task: rows of the results schema.

    method  `<features>-<fb_targets>-<kind of goal>` for metrics predicted, measured (one seed a pair) and dropped (how
            many pairs had fewer than `least` replay states in the ball), and `<features>-<fb_targets>` for the log of
            training (rank, effective_rank, max_measure, mean_measure, measure_scale by update)
    """
    env = envs.make_env(task, seed=config.seed, split="eval", size=profile.video.image_size,
                        episode_steps=max(config.horizon, 128) + 1)
    rows: list[dict[str, Any]] = []

    def add(method: str, metric: str, value: float, seed: int = 0, step: int = 0) -> None:
        rows.append({"experiment": "calibration", "method": method, "task": task, "seed": seed, "step": step,
                     "metric": metric, "value": float(value)})

    try:
        goals = expert_goals(env, config.starts, config.seed, pictures=features == "pixels")
        if features == "pixels":
            goals = imagine(profile, task, goals, config.seed)
        for targets in ("buffer", "goal") if features == "state" else ("buffer",):
            model = load_model(profile, task, features, targets, goals.states[0] if targets == "goal" else None)
            _measure_model(env, model, goals, f"{features}-{targets}", config, add)
    finally:
        env.close()
    return rows


def _measure_model(env: envs.MetaWorldEnv, model: Model, goals: Goals, method: str, config: Settings,
                   add: Callable[..., None]) -> None:
    fb, gamma = model.fb, model.fb.config.gamma
    for row in model.log.to_dict("records"):
        for metric in ("rank", "effective_rank", "max_measure", "mean_measure", "measure_scale"):
            add(method, metric, row[metric], step=int(row["update"]))
    printed = fb.config.fb_targets == "goal"
    rng = np.random.default_rng([config.seed, 7])
    kinds = ("oracle",) if printed else ("oracle", *goals.imagined, "visited")
    told = {kind: model.goal_features(goals, kind) for kind in kinds if kind != "visited"}
    count, dropped = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    for place, start in enumerate(tqdm(goals.starts.tolist(), desc=f"{env.task.name}: {method}")):
        probes, visited = explore(env, start, config, rng, model.see)
        aims = [("visited", goal.features, goal.state) for goal in visited]
        # as printed F and B know one goal, that of the first start, and are asked for no other
        mine = 0 if printed else place
        aims += [(kind, at[mine], goals.states[mine]) for kind, at in told.items()]
        for kind, aim, centre in aims:
            if kind not in kinds:
                continue
            inside = in_ball(model.replay["next_states"], centre, config.radius)
            if inside.sum() < config.least:
                dropped[kind] += len(probes)
                continue
            z, places = fb.goal_z(aim), model.replay["next_features"][inside]
            noise = np.random.default_rng([config.seed, start, 9])

            def act(observation: np.ndarray, z: np.ndarray = z, noise: np.random.Generator = noise) -> np.ndarray:
                action = fb.policy(model.see(env, observation), z)[0]
                return np.clip(action + fb.config.policy_noise * noise.normal(size=action.shape), -1, 1)

            for probe in probes:
                density = fb.successor_measure(probe.features, probe.action, z, places)
                add(f"{method}-{kind}", "predicted", ball_probability(density, inside.mean(), gamma)[0], count[kind])
                add(f"{method}-{kind}", "measured", measure_visits(env, probe, act, centre, config, gamma), count[kind])
                count[kind] += 1
    for kind in kinds:
        add(f"{method}-{kind}", "dropped", dropped[kind])


def zero_shot_task(profile: Profile, task: str, features: str, config: Settings) -> list[dict[str, Any]]:
    """Return, success and reach of pi_z toward the goal of the episode's own start and toward that of another, beside
    the random policy and the expert: rows of the results schema, one seed a start (the same starts for all)."""
    env = envs.make_env(task, seed=config.seed, split="eval", size=profile.video.image_size,
                        episode_steps=profile.episode_steps if config.horizon >= 100 else config.horizon)
    # The expert shows the goal with the time that it takes, however short the episodes of a smoke profile are.
    teacher = envs.make_env(task, seed=config.seed, split="eval", size=profile.video.image_size)
    rows: list[dict[str, Any]] = []
    try:
        goals = expert_goals(teacher, config.episodes, config.seed, pictures=features == "pixels")
        if features == "pixels":
            goals = imagine(profile, task, goals, config.seed, ("generated",))
        model = load_model(profile, task, features)
        rng = np.random.default_rng([config.seed, 3])
        policies: dict[str, Callable[[int], envs.Policy]] = {"random": lambda i: envs.random_policy(rng),
                                                             "expert": lambda i: envs.expert_policy(task)}
        for kind in ("oracle", *goals.imagined):
            z = [model.fb.goal_z(row) for row in model.goal_features(goals, kind)]

            def toward(i: int, z: Sequence[np.ndarray] = tuple(z)) -> envs.Policy:
                return lambda observation: fbs.act_toward(model.fb, model.see(env, observation), z[i])

            policies[f"{kind}, own start"] = toward
            if kind == "oracle" and len(z) > 1:
                policies["oracle, other start"] = lambda i, toward=toward: toward((i + 1) % config.episodes)
        for name, policy in policies.items():
            for i, start in enumerate(tqdm(goals.starts.tolist(), desc=f"{task}: {features}, {name}")):
                episode = envs.rollout(env, policy(i), frames=False, options={"goal": start})
                away = fbs.state_features(episode.states)[1:] - goals.states[i]
                measured = {"return": episode.rewards.sum(), "success": episode.succeeded,
                            "hand_distance": np.linalg.norm(away[:, :3], axis=1).min(),
                            "object_distance": np.linalg.norm(away[:, 4:7], axis=1).min()}
                rows += [{"experiment": "zero_shot", "method": f"{features}, {name}", "task": task, "seed": i,
                          "step": len(episode), "metric": metric, "value": float(value)}
                         for metric, value in measured.items()]
    finally:
        env.close()
        teacher.close()
    return rows


# ---- what is on record

FOLDERS = {"measure": "calibration", "zero-shot": "fb"}
MEASURES = {"measure": measure_task, "zero-shot": zero_shot_task}


def run_name(what: str, task: str, features: str) -> str:
    """The name of the table that holds one measurement of one task."""
    return f"{what.replace('-', '_')}_{task}_{features}"


def record(profile: str | Profile, what: str, tasks: Sequence[str], features: Sequence[str] = FEATURES,
           config: Settings | None = None) -> list[Path]:
    """Measure what is not on record, or was measured with other weights or settings; the tables, in order.

    what: "measure" or "zero-shot".
    """
    profile = profiles.get_profile(profile)
    if what not in MEASURES:
        raise unknown("measurement", what, MEASURES)
    names = [get_task(task).name for task in tasks]
    for one in features:
        if one not in FEATURES:
            raise unknown("features", one, FEATURES)
    if not names or not features:
        raise InputError("name at least one task and one kind of features")
    if "pixels" in features:  # before any long work
        lacking = [name for name in names if not (profiles.paths(profile).fb / f"{name}.pt").is_file()]
        if lacking:
            raise InputError(f"the forward-backward models of {', '.join(lacking)} are missing; make them with: python "
                             f"-m genreward.pipeline --profile {profile.name} --only fb")
    folder, written = profiles.paths(profile).results / FOLDERS[what], []
    for task in names:
        for one in features:
            name, effort = run_name(what, task, one), config or settings(profile, one)
            path, inputs = folder / f"{name}.csv", _inputs(profile, task, one, effort)
            if not path.is_file() or files.read_json(path.with_suffix(".json")).get("inputs") != inputs:
                began = time.time()
                rows = MEASURES[what](profile, task, one, effort)
                for row in rows:
                    row["value"] = float(f"{row['value']:.6g}")
                results.write_run(folder, name, rows, results.provenance(
                    round(time.time() - began, 1), settings=asdict(effort), fb=asdict(profile.fb), features=one,
                    inputs=inputs))
            written.append(path)
    return written


def _inputs(profile: Profile, task: str, features: str, effort: Settings) -> dict[str, str]:
    """Digests of what a measurement depends on: its effort, the settings of F and B, the weights behind pictures."""
    where = profiles.paths(profile)
    found = {"settings": files.digest(asdict(effort), asdict(profile.fb))}
    if features == "pixels":
        parts = {"fb": where.fb / f"{task}.pt", "psi": where.psi, "video_model": where.video_model, "lora": where.lora,
                 "scorer": where.scorer}
        found |= {part: files.digest(path) for part, path in parts.items() if path.exists()}
    return found


def load(profile: str | Profile, what: str) -> pd.DataFrame:
    """Every row on record of a measurement; InputError, with the command that makes them, when there is none."""
    profile = profiles.get_profile(profile)
    if what not in MEASURES:
        raise unknown("measurement", what, MEASURES)
    table = results.load(profiles.paths(profile).results / FOLDERS[what])
    if table.empty:
        raise Absent(f"nothing is on record of {what}; make it with: python -m genreward.calibration {what} "
                     f"--profile {profile.name}")
    return table


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """What `record("measure")` wrote, as one row a pair: task, features, fb_targets, goal, seed (the probe's number: of
    one task and features the same state and action, whatever the goal of the start), predicted, measured."""
    chosen = table[(table["experiment"] == "calibration") & table["metric"].isin(("predicted", "measured"))]
    if chosen.empty:
        raise Absent("no predicted and measured visits; make them with: python -m genreward.calibration measure")
    wide = chosen.pivot(index=["task", "method", "seed"], columns="metric", values="value").reset_index()
    names = wide.pop("method").str.split("-", expand=True).set_axis(["features", "fb_targets", "goal"], axis=1)
    return pd.concat([wide[["task"]], names, wide[["seed", "predicted", "measured"]]], axis=1)


def summary(table: pd.DataFrame, by: Sequence[str] = ("task", "features", "fb_targets", "goal"),
            bins: int = 6) -> pd.DataFrame:
    """One line a group of `pairs`: n, mean prediction (as it is) and mean measured, the share of predictions outside of
    [0, 1], expected calibration error, skill, and Spearman's rank correlation (NaN where nothing varies)."""
    lines = []
    for group, rows in pairs(table).groupby(list(by), sort=False):
        predicted, measured = rows["predicted"].to_numpy(), rows["measured"].to_numpy()
        varies = min(rows["predicted"].nunique(), rows["measured"].nunique()) > 1
        lines.append({**dict(zip(by, group, strict=True)), "n": len(rows), "predicted": predicted.mean(),
                      "measured": measured.mean(), "outside": np.mean((predicted < 0) | (predicted > 1)),
                      "ece": calibration_error(predicted, measured, min(bins, len(rows))),
                      "skill": skill(predicted, measured),
                      "rank_correlation": spearmanr(predicted, measured).statistic if varies else np.nan})
    return pd.DataFrame(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, once, what notebook 05 shows; results/<profile>/calibration and results/<profile>/fb."""
    parser = argparse.ArgumentParser(prog="python -m genreward.calibration", description=main.__doc__)
    parser.add_argument("what", choices=sorted(MEASURES))
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--tasks", nargs="+", default=None, help="default: the profile's measured tasks")
    parser.add_argument("--features", nargs="+", default=list(FEATURES), help=", ".join(FEATURES))
    options = parser.parse_args(arguments)
    tasks = options.tasks or profiles.measured_tasks(profiles.get_profile(options.profile))
    for path in record(options.profile, options.what, tasks, options.features):
        print(path.name, flush=True)


if __name__ == "__main__":
    errors.cli(main)
