"""What distractions do to reward models: the same physical episodes, drawn plainly and under every distraction.

Stands beside `reward_study` near the end of the flow (`... rewards -> ... -> results -> reward_study ->
distractor_study -> figures -> book`), whose models, metrics and intervals it uses. Backgrounds, cameras and colours,
each easy, medium and hard, held or moving, on two tasks of Meta-World and two of the DeepMind Control Suite. An episode
is simulated once and drawn again from its states, so a condition differs from the plain pictures in looks only and a
fall of a metric is a paired difference.

    python -m genreward.distractor_study --profile laptop                             # every model that can be made
    python -m genreward.distractor_study --profile laptop --models pixel_cosine liv   # some; both go on after a stop

**Episodes.** From each start three: a *good* one, one that *fails late*, a *random* one; each seen at `steps` moments
spread evenly over it, so that length tells nothing. Meta-World: the scripted expert, `demos`' failures and random
actions; true progress is `reward_episodes.progress`. The control suite has no experts. The good ones here come from two
controllers written for this study, with noise: a pole swung up by its energy and held by a linear-quadratic regulator,
and a two-joint arm's inverse kinematics. Without noise they return 843 (standard deviation 3) and 984 (8) of 1,000 in
20 episodes of starts that nothing was chosen by; random actions 161 and 44. The late failures are the same until a
moment drawn from the middle fifth, then random. Progress in [0, 1] is instantaneous, since a sum would rise with the
clock whatever happens: the suite's reward of the step for the cart-pole; for the reacher, whose reward is 0 or 1, the
share of the fingertip's way to the target that is behind it, and 1 where the suite pays.

**Models.** Those that need a text or one goal video only, since nothing here is trained: VIPER, Diffusion Reward and
the frame-level term of GenReward would need demonstrations or exploration of the control suite and are left out. On
Meta-World goals are the generated ones; on the control suite the goal video is a good episode from a start of its own,
marked as a demonstration. All weights come from Meta-World: on the control suite the text models are far from what
they know, and whatever they score there is zero-shot.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import expm, solve_discrete_are
from tqdm import tqdm

from . import demos, envs, errors, files, profiles, results
from .distractions import KINDS, SCALE, Distraction, distracted_frames
from .errors import Absent, InputError
from .goals import Goal
from .profiles import Profile
from .reward_episodes import progress, results_folder, study_folder
from .reward_metrics import ahead, as_records, episode_scores, from_records, quality_of
from .reward_study import MODELS as ENTRIES
from .reward_study import Parts, paid_steps
from .rewards import RewardModel
from .tasks import get_task
from .trajectory import Trajectory, uniform_indices

CLEAN = "clean"
OUTCOMES = ("expert", "failure", "random")  # good, fails late, random: named as in `reward_metrics`
METRICS = {"auroc_failure": "success against late failure (AUROC)",
           "spearman": "progress within an episode (rank correlation)"}
MODELS = {"pixel_cosine": ("metaworld", "dm_control"), "pixel_cosine_first": ("metaworld", "dm_control"),
          "vlm_rm": ("metaworld", "dm_control"), "liv": ("metaworld", "dm_control"),
          "roboclip_text": ("metaworld", "dm_control"), "tadpole": ("metaworld", "dm_control"),
          "genreward_video": ("metaworld", "dm_control"), "genreward_video_first": ("metaworld", "dm_control"),
          "genreward_video_oracle": ("metaworld",)}  # elsewhere every goal video is a demonstration already


@dataclass(frozen=True)
class DistractorConfig:
    """The size of the study.

    tasks          of Meta-World; `starts` of each, three episodes a start
    control_tasks  of the control suite, with a controller in `CONTROLLERS`; `control_starts` of each
    steps          moments of an episode that are scored, spread evenly from its first state to its last
    interval       scored steps between two payments of the models that are dear (films, TADPoLe)
    difficulties   and `dynamic`: of each of the three kinds of distraction
    seed           of starts, noise and distractions: no other study's
    """

    tasks: tuple[str, ...] = ("pick-place", "shelf-place")
    control_tasks: tuple[str, ...] = ("cartpole-swingup", "reacher-easy")
    starts: int = 10
    control_starts: int = 6
    steps: int = 8
    interval: int = 2
    difficulties: tuple[str, ...] = tuple(SCALE)
    dynamic: tuple[bool, ...] = (False, True)
    seed: int = 2513


_CONFIGS = {"smoke": DistractorConfig(("pick-place",), ("reacher-easy",), 2, 2, 4, 2, ("hard",), (True,))}


def get_config(profile: str | Profile) -> DistractorConfig:
    """The study of a profile: small at smoke, the same for all others."""
    return _CONFIGS.get(profiles.get_profile(profile).name, DistractorConfig())


def conditions(config: DistractorConfig) -> dict[str, Distraction | None]:
    """Name -> what distracts; "clean", first, is None."""
    every = itertools.product(KINDS, config.difficulties, config.dynamic)
    made = (Distraction((kind,), difficulty, dynamic, config.seed) for kind, difficulty, dynamic in every)
    return {CLEAN: None} | {one.name: one for one in made}


# ---- controllers for the control suite

CART, POLE, CENTRE, INERTIA, GRAVITY, FORCE = 1.0, 0.1, 0.5, 0.0094246, 9.81, 10.0  # SI units, as the suite has them
PIVOT = INERTIA + POLE * CENTRE**2  # the pole's moment of inertia about its joint
HOLD = 0.04  # seconds that an action lasts
LINK = 0.12  # metres, either link of the reacher


@functools.cache
def _regulator() -> np.ndarray:
    """(4,) gain of the discrete linear-quadratic regulator at the upright, for (x, angle, their velocities)."""
    inverse = np.linalg.inv([[CART + POLE, POLE * CENTRE], [POLE * CENTRE, PIVOT]])
    a, b = np.zeros((4, 4)), np.zeros((4, 1))
    a[:2, 2:], a[2:, 1], b[2:, 0] = np.eye(2), inverse @ [0, POLE * CENTRE * GRAVITY], inverse @ [FORCE, 0]
    both = expm(np.block([[a, b], [np.zeros((1, 5))]]) * HOLD)
    a, b = both[:4, :4], both[:4, 4:]
    cost = solve_discrete_are(a, b, np.diag([1, 10, 0.1, 0.1]), np.eye(1))
    return np.linalg.solve(np.eye(1) + b.T @ cost @ b, b.T @ cost @ a)[0]


def swing_up(observation: np.ndarray) -> np.ndarray:
    """(5,) cart's place, cosine and sine of the pole's angle (0: upright), both velocities -> (1,) action in [-1, 1].

    Far from the upright the cart is accelerated by 20 E w cos(angle) - 3 x - 2 v: E < 0 is what the pole's energy lacks
    of standing upright, and falls in size under the first term; the others keep the cart on its rail. Near the upright
    (cosine above 0.85) the regulator takes over.
    """
    x, cosine, sine, v, w = map(float, observation)
    if cosine > 0.85 and abs(w) < 3.5:
        return np.clip([-_regulator() @ [x, np.arctan2(sine, cosine), v, w]], -1, 1).astype(np.float32)
    lacking = 0.5 * PIVOT * w**2 + POLE * CENTRE * GRAVITY * (cosine - 1)
    swing = w * cosine if abs(w) > 0.05 else float(cosine < 0)  # a pole that hangs still needs a first push
    wanted = np.clip(20 * lacking * swing - 3 * x - 2 * v, -8, 8)
    turn = POLE * CENTRE * (GRAVITY * sine - cosine * wanted) / PIVOT  # of the pole, under that acceleration
    force = (CART + POLE) * wanted + POLE * CENTRE * (cosine * turn - sine * w**2)
    return np.clip([force / FORCE], -1, 1).astype(np.float32)


def reach(observation: np.ndarray) -> np.ndarray:
    """(6,) shoulder and wrist angle, vector to the target, velocities -> (2,) action in [-1, 1].

    The joint angles at which the fingertip is on the target, of the two solutions the nearer one, and from there a
    proportional-derivative law."""
    shoulder, wrist = map(float, observation[:2])
    target = _fingertip(observation) + observation[2:4]
    far = min(float(np.linalg.norm(target)), 2 * LINK)
    bend = np.arccos(np.clip(far**2 / (2 * LINK**2) - 1, -1, 1))
    left = []
    for sign in (1, -1):
        at = np.arctan2(target[1], target[0]) - sign * bend / 2
        left.append(np.array([(at - shoulder + np.pi) % (2 * np.pi) - np.pi, sign * bend - wrist]))
    nearer = min(left, key=lambda one: np.abs(one).max())
    return np.clip(nearer - 0.05 * observation[4:6], -1, 1).astype(np.float32)


def _fingertip(states: np.ndarray) -> np.ndarray:
    """(..., 6) observations of the reacher -> (..., 2) where its fingertip is."""
    first, second = states[..., 0], states[..., 0] + states[..., 1]
    return LINK * np.stack([np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)], axis=-1)


CONTROLLERS = {"cartpole-swingup": swing_up, "reacher-easy": reach}
LASTS = {"cartpole-swingup": 125, "reacher-easy": 24}  # the agent's steps (of 250) that are looked at: 5.0 and 1.9 s


def control_progress(task: str, states: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """(T+1,) float64 in [0, 1], see the module: states (T+1, S) and rewards (T,) of an agent's step, each the sum of
    four of the suite's, every one of which is at most 1."""
    if task not in CONTROLLERS:
        raise errors.unknown("task with a controller", task, CONTROLLERS)
    paid = np.asarray(rewards, float) / 4
    if len(states) != len(paid) + 1:
        raise InputError(f"progress needs one state more than rewards, got {len(states)} and {len(paid)}")
    if task == "cartpole-swingup":
        return np.clip(np.append(0.0, paid), 0, 1)
    left = np.linalg.norm(np.asarray(states, float)[:, 2:4], axis=1)
    share = np.clip(1 - left / max(left[0], 1e-6), 0, 1)
    share[1:][paid >= 1] = 1.0
    return share


# ---- episodes


@dataclass(frozen=True)
class Staged:
    """An episode before it is drawn: `trajectory` without frames (info: kind, start, progress), the states to draw
    from, and how many environment steps lie between two of them."""

    trajectory: Trajectory
    snapshots: list[dict[str, np.ndarray]]
    stride: int


def thinned(episode: Trajectory, snapshots: Sequence[dict[str, np.ndarray]], far: np.ndarray, steps: int, kind: str,
            start: int) -> Staged:
    """`steps` + 1 states spread evenly over an episode of T steps, both ends included, as a trajectory of `steps`.

    far (T+1,) is true progress. Reward and success of a kept state are those of the step that led to it.
    """
    if len(episode) < steps:
        raise InputError(f"an episode of {len(episode)} steps cannot be seen at {steps}")
    kept = uniform_indices(len(episode) + 1, steps + 1)
    short = Trajectory(episode.task, episode.states[kept].astype(np.float32), episode.actions[kept[:-1]],
                       episode.rewards[kept[1:] - 1], episode.success[kept[1:] - 1], None,
                       {"kind": kind, "start": start, "progress": np.asarray(far)[kept]})
    return Staged(short, [snapshots[step] for step in kept], max(1, round(len(episode) / steps)))


def control_episode(env: Any, kind: str, rng: np.random.Generator, start: int
                    ) -> tuple[Trajectory, list[dict[str, np.ndarray]]] | None:
    """One episode of the control suite and its states, or None where it turned out to be of another kind: a good one
    must end where the suite pays 0.8 or more a step, the others where it pays less than 0.5."""
    task = env.unwrapped.task.name
    if kind not in OUTCOMES:
        raise errors.unknown("kind of episode", kind, OUTCOMES)
    if task not in CONTROLLERS:
        raise errors.unknown("task with a controller", task, CONTROLLERS)
    lasts, size = LASTS[task], env.action_space.shape[0]
    wander = envs.random_policy(rng, actions=size)
    turn = {"expert": lasts, "failure": int(lasts * rng.uniform(0.4, 0.6)), "random": 0}[kind]
    observation, _ = env.reset(options={"goal": start})
    states, actions, rewards, success, snapshots = [observation], [], [], [], [env.get_state()]
    for step in range(lasts):
        if step < turn:
            noise = demos.EXPERT_NOISE * rng.normal(size=size)
            action = np.clip(CONTROLLERS[task](observation) + noise, -1, 1).astype(np.float32)
        else:
            action = wander(observation)
        observation, _, _, _, info = env.step(action)
        states.append(observation)
        actions.append(action)
        rewards.append(info["dense_reward"])
        success.append(info["success"] > 0)
        snapshots.append(env.get_state())
    good = rewards[-1] / 4 >= 0.8
    if good != (kind == "expert") or (not good and rewards[-1] / 4 >= 0.5):
        return None
    return Trajectory(task, np.stack(states), np.stack(actions), np.asarray(rewards, np.float32),
                      np.asarray(success, bool)), snapshots


def stage(env: Any, config: DistractorConfig, tries: int = 3) -> list[Staged]:
    """The study's episodes of one task, simulated and not drawn: one of each of `OUTCOMES` for every start. A start
    where one of them cannot be had in `tries` is passed over. All noise depends on seed, start and kind."""
    task = env.unwrapped.task
    wild = task.suite == "metaworld"
    wanted = config.starts if wild else config.control_starts
    found: list[Staged] = []
    order = np.random.default_rng([config.seed, 1]).permutation(envs.GOALS - 1).tolist()  # the last is the goal's
    for start in tqdm(order, desc=f"episodes of {task.name}", leave=False):
        if len(found) == wanted * len(OUTCOMES):
            break
        of_start = []
        for number, kind in enumerate(OUTCOMES):
            for attempt in range(tries):
                rng = np.random.default_rng([config.seed, start, number, attempt])
                mode = demos.FAILURES[(len(found) // len(OUTCOMES) + attempt) % len(demos.FAILURES)]
                made = (demos.episode(env, kind, rng, start, mode if kind == "failure" else None) if wild
                        else control_episode(env, kind, rng, start))
                if made is not None and len(made[0]) >= config.steps and not (kind == "random" and made[0].succeeded
                                                                             and wild):
                    one, snapshots = made
                    far = (progress(task, one.states, one.success) if wild
                           else control_progress(task.name, one.states, one.rewards))
                    of_start.append(thinned(one, snapshots, far, config.steps, kind, start))
                    break
        if len(of_start) == len(OUTCOMES):
            found += of_start
    if len(found) < wanted * len(OUTCOMES):
        raise InputError(f"task {task.name!r} has only {len(found) // len(OUTCOMES)} starts with an episode of every "
                         f"outcome, the study wants {wanted}")
    return found


def drawn(env: Any, staged: Sequence[Staged], distraction: Distraction | None) -> list[Trajectory]:
    """The episodes with pictures of one condition; every episode has draws of its own, the same in all conditions of
    one kind (harder is further off in the same direction)."""
    shown = []
    for number, one in enumerate(staged):
        env.reset(options={"goal": one.trajectory.info["start"]})
        frames = distracted_frames(env, one.snapshots, distraction, number, one.stride)
        shown.append(replace(one.trajectory, frames=frames))
    return shown


class DistractorParts(Parts):
    """`reward_study.Parts` for this study's payments, with a good episode as the goal on the control suite."""

    def __init__(self, profile: str | Profile, config: DistractorConfig) -> None:
        super().__init__(profile)
        self.study, self.config = config, replace(self.config, stride=1, interval=config.interval)
        self.shown: dict[str, Goal] = {}

    def goal(self, task: str) -> Goal:
        """Generated, or on the control suite the demonstration."""
        return super().goal(task) if get_task(task).suite == "metaworld" else self.demonstration(task)

    def demonstration(self, task: str) -> Goal:
        """A goal cut from a good episode at a start that the study does not use."""
        words = get_task(task)
        if words.suite == "metaworld":
            return super().demonstration(task)
        if task not in self.shown:
            env = envs.make_env(task, seed=self.study.seed, size=self.profile.video.image_size)
            start, made = envs.GOALS - 1, None
            for attempt in range(10):
                made = made or control_episode(env, "expert", np.random.default_rng([self.study.seed, attempt]), start)
            if made is None:
                raise InputError(f"the controller of {task!r} does not reach the goal from start {start}")
            kept = uniform_indices(len(made[1]), self.profile.video.num_frames)
            env.reset(options={"goal": start})
            video = distracted_frames(env, [made[1][step] for step in kept], None)
            env.close()
            self.shown[task] = Goal(words.prompt, words.paraphrases, video, np.zeros(len(video)), len(video) - 1,
                                    "last", "demonstration", {"task": task, "start": start})
        return self.shown[task]


# ---- scoring


def needs(where: profiles.Paths, name: str, task: str) -> list[tuple[Path, str]]:
    """(file or folder, command that makes it) pairs that a model needs on a task; on the control suite no generated
    goal and no demonstrations of Meta-World are among them."""
    if name not in MODELS:
        raise errors.unknown("model of the distractor study", name, MODELS)
    pairs = ENTRIES[name].needs(where, task)
    if get_task(task).suite == "metaworld":
        return pairs
    return [(path, command) for path, command in pairs
            if not path.is_relative_to(where.goals) and not path.is_relative_to(where.in_domain_demos)]


def tasks_of(config: DistractorConfig, name: str) -> list[str]:
    """The tasks on which a model is asked."""
    return [task for task in (*config.tasks, *config.control_tasks) if get_task(task).suite in MODELS[name]]


def _part(profile: Profile, name: str, task: str, condition: str) -> Path:
    return study_folder(profile) / "distractors" / name / f"{task}--{condition}.npz"


def _identity(profile: Profile, config: DistractorConfig, name: str, task: str) -> str:
    """Names all that a model's scores of a task depend on."""
    depends = [files.digest(path) for path, _ in needs(profiles.paths(profile), name, task)]
    settings = {key: value for key, value in asdict(config).items() if not key.endswith("tasks")}
    return files.digest(settings, name, task, profile.video.image_size, profile.video.num_frames, depends, 1)


def _scored(part: Path, identity: str) -> bool:
    if not part.is_file():
        return False
    return str(files.read_npz(part, "identity")["identity"]) == identity


def score_all(profile: str | Profile, models: Sequence[str] | None = None, parts: Parts | None = None
              ) -> dict[str, str]:
    """Score all episodes under all conditions with every model (or with `models`) and keep what follows from it.

    build/<profile>/study/distractors holds a file for each model, task and condition that is done, so the same call
    goes on after a stop and passes over what was scored with the same weights; a condition is drawn once for all
    models of a call. Then results/<profile>/study/distractors/<model>.csv (see `metrics_of`) and, beside it, the raw
    scores that it follows from, <model>.npz. Returns model -> what is missing and the command that makes it; a named
    model that cannot be made is an InputError.
    """
    profile = profiles.get_profile(profile)
    config, where = get_config(profile), profiles.paths(profile)
    names, absent = list(models or MODELS), {}
    for name in names:
        if name not in MODELS:
            raise errors.unknown("model of the distractor study", name, MODELS)
    for name in names:
        for path, command in [pair for task in tasks_of(config, name) for pair in needs(where, name, task)]:
            if not path.exists() and name not in absent:
                absent[name] = f"{path.relative_to(where.root).as_posix()} is missing; make it with: {command}"
    if models and absent:
        name, lack = next(iter(absent.items()))
        raise InputError(f"model {name!r}: {lack}")
    names = [name for name in names if name not in absent]
    parts = parts or DistractorParts(profile, config)
    for task in (*config.tasks, *config.control_tasks):
        identities = {name: _identity(profile, config, name, task) for name in names if task in tasks_of(config, name)}
        pending = {condition: [name for name, identity in identities.items()
                               if not _scored(_part(profile, name, task, condition), identity)]
                   for condition in conditions(config)}
        if any(pending.values()):
            _score_task(profile, task, pending, identities, parts)
    for name in names:
        _assemble(profile, name)
    return absent


def _score_task(profile: Profile, task: str, pending: dict[str, list[str]], identities: dict[str, str],
                parts: Parts) -> None:
    config = get_config(profile)
    env = envs.make_env(task, seed=config.seed, size=profile.video.image_size)
    staged = stage(env, config)
    asked = dict.fromkeys(name for names in pending.values() for name in names)
    models = {name: _make(parts, name, task) for name in asked}
    todo = [(condition, distraction) for condition, distraction in conditions(config).items() if pending[condition]]
    for condition, distraction in tqdm(todo, desc=f"conditions of {task}"):
        began = time.process_time()
        shown = drawn(env, staged, distraction)
        drawing = time.process_time() - began
        found: dict[str, list[np.ndarray]] = {name: [] for name in pending[condition]}
        seconds = dict.fromkeys(pending[condition], 0.0)
        for one in shown:
            for name in pending[condition]:
                began = time.process_time()
                scores = models[name].score(one)
                seconds[name] += time.process_time() - began
                if not np.isfinite(scores).all():
                    raise InputError(f"model {name!r} scores an episode of {task!r} with NaN or infinite numbers")
                found[name].append(scores)
            for memo in parts.memos:
                memo.forget()
        for name, scores in found.items():
            paid = paid_steps(models[name], config.steps)
            with files.atomic_path(_part(profile, name, task, condition)) as temporary:
                np.savez_compressed(
                    temporary, identity=identities[name], seconds=seconds[name], drawing=drawing, step=paid,
                    kind=[one.info["kind"] for one in shown], start=[one.info["start"] for one in shown],
                    score=np.stack(scores)[:, paid - 1].astype(np.float32),
                    progress=np.stack([one.info["progress"][1:] for one in shown])[:, paid - 1].astype(np.float32))
    env.close()


def _make(parts: Parts, name: str, task: str) -> RewardModel:
    model = ENTRIES[name].make(parts, task)
    if name == "tadpole":  # as dear as a film, and paid at every step by itself
        model.interval = parts.config.interval
    return model


def _assemble(profile: Profile, name: str) -> None:
    """Put a model's finished conditions into its file of results."""
    config = get_config(profile)
    tables, seconds, drawing, made_from = [], 0.0, 0.0, {}
    for task, condition in itertools.product(tasks_of(config, name), conditions(config)):
        kept = files.read_npz(_part(profile, name, task, condition))
        count, paid = kept["score"].shape
        tables.append(pd.DataFrame({
            "task": task, "condition": condition, "kind": np.repeat(kept["kind"], paid),
            "start": np.repeat(kept["start"], paid), "step": np.tile(kept["step"], count),
            "score": kept["score"].ravel(), "progress": kept["progress"].ravel()}))
        seconds, drawing = seconds + float(kept["seconds"]), drawing + float(kept["drawing"])
        made_from[task] = str(kept["identity"])
    raw = pd.concat(tables, ignore_index=True)
    folder = results_folder(profile) / "distractors"
    known = folder / f"{name}.json"
    if known.is_file() and (folder / f"{name}.npz").is_file() and files.read_json(known)["made_from"] == made_from:
        return
    columns = {key: np.unique(raw[key], return_inverse=True) for key in ("task", "condition", "kind")}
    with files.atomic_path(folder / f"{name}.npz") as temporary:
        np.savez_compressed(
            temporary, **{f"{key}s": names.astype(str) for key, (names, _) in columns.items()},
            **{key: index.astype(np.uint8) for key, (_, index) in columns.items()},
            **{key: raw[key].to_numpy(np.uint8) for key in ("start", "step")},
            **{key: raw[key].to_numpy(np.float32) for key in ("score", "progress")})
    found = metrics_of(name, raw)
    rows = as_records(found.assign(experiment="distractors/" + found["condition"]))
    results.write_run(folder, name, rows, results.provenance(
        round(seconds, 1), made_from=made_from, config=asdict(config), rendering_seconds=round(drawing, 1),
        resamples=results.RESAMPLES, controllers=sorted(CONTROLLERS)))


# ---- metrics

COLUMNS = ("model", "condition", "task", "metric", "value", "low", "high", "n")
MEASURED = ("auroc_failure", "auroc_random", "spearman")


def metrics_of(name: str, raw: pd.DataFrame) -> pd.DataFrame:
    """Metrics of one model under every condition: rows of `COLUMNS`, n is the number of starts.

    raw: task, condition, kind, start, step, score, progress, a row a payment. Metrics are "auroc_failure",
    "auroc_random" and "spearman" of `reward_metrics`, and the fall of each from the plain pictures,
    "fall_auroc_failure" and so on (positive: worse under the condition). "task" is also the suite, for the mean over
    its tasks. 95% intervals from drawing starts again, `reward_metrics.quality_of`'s; a fall's from the same draws of
    the same starts under both conditions (`reward_metrics.ahead`), so that what episodes have in common cancels.
    """
    rows = []
    for suite, of_suite in raw.groupby(raw["task"].map(lambda task: get_task(task).suite), sort=False):
        tables = {}
        for condition, part in of_suite.groupby("condition", sort=False):
            keys = part[["task", "kind", "start"]].drop_duplicates().reset_index(drop=True)
            numbered = part.merge(keys.assign(episode=keys.index), on=["task", "kind", "start"])
            last = numbered.sort_values("step").groupby("episode")["progress"].last()
            episodes = keys.assign(episode=keys.index, progress=last.reindex(keys.index))
            tables[condition] = episode_scores(episodes, numbered[["task", "episode", "step", "progress"]],
                                               numbered[["task", "episode", "step", "score"]])
            found = quality_of(name, tables[condition])
            rows.append(found[found["metric"].isin(MEASURED)].assign(condition=condition))
        plain = tables.pop(CLEAN, None)
        for condition, table in tables.items() if plain is not None else ():
            lost = ahead(name, plain, table, MEASURED)
            rows.append(lost.assign(condition=condition, metric="fall_" + lost["metric"]))
        rows = [part.assign(task=part["task"].replace("all", suite)) for part in rows]
    return pd.concat(rows, ignore_index=True).reindex(columns=list(COLUMNS))


def load_raw(profile: str | Profile, name: str) -> pd.DataFrame:
    """A model's raw scores, as `metrics_of` takes them; InputError where there are none."""
    path = results_folder(profile) / "distractors" / f"{name}.npz"
    if not path.is_file():
        raise Absent(f"no scores of model {name!r} under distractions; make them with: {command(profile)} "
                     f"--models {name}")
    kept = files.read_npz(path)
    return pd.DataFrame({key: kept[f"{key}s"][kept[key]] for key in ("task", "condition", "kind")}
                        | {key: kept[key].astype(int) for key in ("start", "step")}
                        | {key: kept[key].astype(float) for key in ("score", "progress")})


def command(profile: str | Profile) -> str:
    """What makes the study."""
    return f"python -m genreward.distractor_study --profile {profiles.get_profile(profile).name}"


def recorded(profile: str | Profile) -> pd.DataFrame:
    """What is on record of all models, as rows of `COLUMNS` with `kind`, `difficulty` and `dynamic` (of "clean": "",
    CLEAN, False); an empty table where nothing is."""
    table = results.load(results_folder(profile) / "distractors")
    wide = from_records(table.assign(condition=table["experiment"].str.replace("distractors/", "", regex=False)),
                        COLUMNS)
    named = wide["condition"].str.split("-", expand=True).reindex(columns=range(3))
    plain = wide["condition"] == CLEAN
    return wide.assign(kind=named[0].mask(plain, ""), difficulty=named[1].mask(plain, CLEAN),
                       dynamic=(named[2] == "dynamic") & ~plain)


def findings(table: pd.DataFrame, suite: str) -> list[str]:
    """Sentences about one suite, made from the numbers of `recorded`: for each model what it tells on plain pictures
    and what the hardest distractions leave of it, counting a fall only where its whole interval lies above 0. A model
    whose whole interval lies below the coin is said to do the opposite: it has an order, and the wrong one."""
    said = []
    of_suite = table[table["task"] == suite]
    hard = of_suite[of_suite["difficulty"] == max(SCALE, key=SCALE.get)]
    for name in dict.fromkeys(of_suite["model"]):
        for metric, (coin, tells, inverts) in {
                "auroc_failure": (0.5, "tells success from late failure", "ranks late failures above successes"),
                "spearman": (0.0, "follows progress", "runs against progress")}.items():
            mine = of_suite[(of_suite["model"] == name) & (of_suite["metric"] == metric)]
            plain = mine[mine["condition"] == CLEAN]
            if plain.empty:
                continue
            row = plain.iloc[0]
            start = f"{name}, plain: {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] (n={int(row['n'])})"
            if row["high"] < coin:
                said.append(f"{start}: {inverts}.")
                continue
            if not row["low"] > coin:
                said.append(f"{start}: not shown that it {tells}, so there is nothing to lose.")
                continue
            lost = hard[(hard["model"] == name) & (hard["metric"] == f"fall_{metric}") & (hard["low"] > 0)]
            worst = lost.sort_values("value", ascending=False)
            text = "".join(f", most under {one.condition} (by {one.value:.2f} [{one.low:.2f}, {one.high:.2f}])"
                           for one in worst.head(1).itertuples())
            held = hard[(hard["model"] == name) & (hard["metric"] == metric)]
            still = int((held["low"] > coin).sum())
            said.append(f"{start}: {tells}; falls under {len(worst)} of {len(held)} hard distractions{text}; above the "
                        f"coin under {still} of {len(held)}.")
    return said


# ---- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.distractor_study --profile laptop --models ...`"""
    parser = argparse.ArgumentParser(prog="python -m genreward.distractor_study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--models", nargs="+", help=f"only these of {', '.join(MODELS)}")
    options = parser.parse_args(arguments)
    lacking = score_all(options.profile, options.models)
    for name, lack in lacking.items():
        print(f"not scored: {name}: {lack}", flush=True)
    table = recorded(options.profile)
    if table.empty and lacking:
        raise InputError("no model could be scored; what each lacks stands above, with the command that makes it")
    for suite in ("metaworld", "dm_control"):
        for line in findings(table, suite):
            print(f"{suite}: {line}")
    return 0


if __name__ == "__main__":
    errors.cli(main)
