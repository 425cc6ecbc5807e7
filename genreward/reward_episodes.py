"""Episodes whose outcome the simulator knows: what the study of reward models scores.

For each start one episode of every outcome (expert, late failure, half-finished, random), and for some starts pairs
that tell looks from function: the expert's success under a distraction, and its motion without the effect, the object
missing or lying elsewhere. Stands between `demos`, which makes the episodes, and `reward_study`, which scores them.

    python -m genreward.reward_study record --profile laptop      # build/laptop/study; run again to go on after a stop
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from . import demos, envs, errors, files, profiles
from .distractions import KINDS as LOOKS
from .distractions import Distraction, distracted_frames
from .errors import Absent, InputError
from .profiles import Profile
from .tasks import PAPER_TASKS, Task, get_task
from .trajectory import Trajectory, uniform_indices

OUTCOMES = demos.KINDS  # expert, failure, half, random
# LOOKS (background, camera, colour): the expert's success, drawn in another way
FAKES = ("missing", "displaced")  # the expert's motion without its effect: the object is not drawn, or lies elsewhere
KINDS = (*OUTCOMES, *LOOKS, *FAKES)


@dataclass(frozen=True)
class StudyConfig:
    """The size of the study.

    starts    of the task's 50 starts, each giving one episode of every outcome (fewer where a task has not as many)
    pairs     of these starts, give the drawn-otherwise and the faked episodes too
    stride    environment steps between two steps of a scored trajectory
    difficulty  of the distractions that draw a success in another way (`distractions.SCALE`)
    interval  scored steps between two payments of the models that compare whole clips
    seed      of starts and noise; the demonstrations that models learn from have seeds 1 to 3 and starts of their own
    tries     at an episode of one kind from one start, before the start is left out
    fb_updates  of F and B in the frame-level variants, the same for all of them
    """

    tasks: tuple[str, ...] = PAPER_TASKS
    starts: int = 30
    pairs: int = 8
    stride: int = 4
    difficulty: str = "medium"
    interval: int = 4
    seed: int = 2512
    tries: int = 3
    fb_updates: int = 2000


_CONFIGS = {"smoke": StudyConfig(tasks=("pick-place", "shelf-place"), starts=2, pairs=1, stride=8)}


def get_config(profile: str | Profile) -> StudyConfig:
    """The study of a profile: small at smoke, the same for all others."""
    return _CONFIGS.get(profiles.get_profile(profile).name, StudyConfig())


# ---- how far an episode got, by the simulator

HELD = 0.05  # metres between the hand's position and that of an object in its grip
REACHED = {"bin-picking": 0.05}  # metres from the goal that count as success
REACHED_ELSEWHERE = 0.07
HAND_TASKS = ("reach", "reach-wall")  # the hand itself is to be brought to the goal
REACH_SHARE = 1 / 3  # of all progress is made when the object is in the grip and has not been moved


def progress(task: str | Task, states: np.ndarray, success: np.ndarray) -> np.ndarray:
    """(T+1,) float64 in [0, 1]: how far the task has got in every state of an episode, by the simulator.

    states (T+1, 39), success (T,) after each step. With reach, the share of the hand's way to the object, and carry,
    the share of the object's way to the goal that is behind it (both 0 at the start, cut to [0, 1]),
    `progress = s max(reach, carry) + (1 - s) carry`, s = 1/3; 1 wherever the state counts as success. It rises with
    each of the two and falls again when the object is lost. Disassemble asks for height only, so carry is height there.
    """
    task = get_task(task)
    states = np.asarray(states, np.float64)
    if states.ndim != 2 or states.shape[1] != 39 or len(states) != len(success) + 1:
        raise InputError(f"progress needs Meta-World states (T+1, 39) and success (T,), got {states.shape} and "
                         f"{np.shape(success)}")
    hand, thing, goal = states[:, :3], states[:, 4:7], states[:, -3:]
    reached = REACHED.get(task.name, REACHED_ELSEWHERE)
    if task.name in HAND_TASKS:
        reach = carry = _way(np.linalg.norm(hand - goal, axis=1), reached)
    else:
        reach = _way(np.linalg.norm(hand - thing, axis=1), HELD)
        carry = (_way(goal[:, 2] - thing[:, 2], 0.0) if task.name == "disassemble"
                 else _way(np.linalg.norm(thing - goal, axis=1), reached))
    far = REACH_SHARE * np.maximum(reach, carry) + (1 - REACH_SHARE) * carry
    far[1:][np.asarray(success, bool)] = 1.0
    return far


def _way(left: np.ndarray, enough: float) -> np.ndarray:
    """The share of a way that is behind, given what is left of it: 0 at the start, 1 where `enough` or less is left."""
    whole = left[0] - enough
    if whole <= 1e-6:
        return (left <= enough).astype(float)
    return np.clip(1 - (left - enough) / whole, 0, 1)


# ---- episodes that separate looks from function


def loose_object(env: envs.MetaWorldEnv) -> int:
    """The body of the object that the task is about: the one on a free joint. InputError for a task without one."""
    import mujoco

    model = env._model
    free = [int(model.jnt_bodyid[joint]) for joint in range(model.njnt)
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE]
    if not free:
        raise InputError(f"task {env.task.name!r} has no loose object that could be missing")
    return free[0]


def replay_displaced(env: envs.MetaWorldEnv, start: int, actions: np.ndarray, rng: np.random.Generator
                     ) -> tuple[Trajectory, list[dict[str, np.ndarray]]]:
    """Another episode's actions (T, 4) from the same start, with the object put 12 to 18 cm away beforehand: the same
    motion of the arm without its effect. Rewards, success and states are the simulator's own."""
    import mujoco

    env.reset(options={"goal": start})
    model, data = env._model, env.data
    at = int(model.jnt_qposadr[model.body_jntadr[loose_object(env)]])
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.18)
    data.qpos[at:at + 3] += (radius * np.cos(angle), radius * np.sin(angle), 0.08)  # above any rim, then it falls
    for _ in range(300):  # 0.75 s: it comes to rest; the arm is held by its mocap body
        mujoco.mj_step(model, data)
    observation = env._env._get_obs().astype(np.float32)
    states, rewards, success, snapshots = [observation], [], [], [env.get_state()]
    for action in actions:
        observation, _, _, _, info = env.step(action)
        states.append(observation)
        rewards.append(info["dense_reward"])
        success.append(info["success"] > 0)
        snapshots.append(env.get_state())
    return Trajectory(env.task.name, np.stack(states), np.asarray(actions, np.float32),
                      np.asarray(rewards, np.float32), np.asarray(success, bool)), snapshots


def pictures(env: envs.MetaWorldEnv, snapshots: Sequence[dict[str, np.ndarray]], kind: str, config: StudyConfig,
             start: int) -> np.ndarray:
    """(N, H, W, 3) uint8: how an episode of this kind is drawn. Those of `LOOKS` under that distraction, drawn anew for
    each start and held; "missing" without the object; all others as they are."""
    if kind not in KINDS:
        raise errors.unknown("kind of episode", kind, KINDS)
    if kind in LOOKS:
        return distracted_frames(env, snapshots, Distraction((kind,), config.difficulty, seed=config.seed), start)
    with _hidden(env) if kind == "missing" else contextlib.nullcontext():
        return demos.render_states(env, snapshots)


@contextlib.contextmanager
def _hidden(env: envs.MetaWorldEnv) -> Iterator[None]:
    """Within this block the object is not drawn: its parts are in a group that MuJoCo leaves out by default."""
    import mujoco

    model, last = env._model, mujoco.mjNGROUP - 1
    geoms, sites = (model.body_rootid[bodies] == loose_object(env) for bodies in (model.geom_bodyid, model.site_bodyid))
    kept = model.geom_group.copy(), model.site_group.copy()
    try:
        model.geom_group[geoms], model.site_group[sites] = last, last
        yield
    finally:
        model.geom_group[:], model.site_group[:] = kept


# ---- recording


def study_folder(profile: str | Profile) -> Path:
    """Where the rendered episodes lie: build/<profile>/study."""
    return profiles.paths(profile).build / "study"


def strided(episode: Trajectory, snapshots: Sequence[dict[str, np.ndarray]], stride: int
            ) -> tuple[Trajectory, list[dict[str, np.ndarray]]]:
    """Every `stride`-th state of an episode, from the first on, as a trajectory of steps // stride steps.

    What stands at scored step t is read at environment step stride * t: reward and success of the environment step
    that led there, true progress (in `info`), the picture. `actions[t]` is the action taken in `states[t]`, as
    `Trajectory` promises and F(s, a) asks for; the stride - 1 actions after it are not seen.
    """
    if stride < 1 or len(episode) < 2 * stride:
        raise InputError(f"an episode of {len(episode)} steps does not give two steps at stride {stride}")
    kept = np.arange(0, len(episode) + 1, stride)
    far = progress(episode.task, episode.states, episode.success)
    short = Trajectory(episode.task, episode.states[kept].astype(np.float32), episode.actions[kept[:-1]],
                       episode.rewards[kept[1:] - 1], episode.success[kept[1:] - 1], None,
                       dict(episode.info) | {"progress": far[kept].astype(np.float32)})
    return short, [snapshots[step] for step in kept]


def record_start(env: envs.MetaWorldEnv, start: int, failure: str, config: StudyConfig, fakes: bool
                 ) -> list[Trajectory] | None:
    """All episodes of one start with their pictures, or None where an outcome cannot be had there.

    `failure` is tried first, the other modes after it. `fakes`: draw the expert's success in the ways of `LOOKS` and
    replay its motion as in `FAKES` too. All noise depends on the seed, the start and the kind only.
    """
    modes = [failure, *(mode for mode in demos.FAILURES if mode != failure)]
    made: dict[str, tuple[Trajectory, list]] = {}
    needed = demos.steps_to_success(env, start)
    for kind in OUTCOMES:
        wanted = [(mode, attempt) for mode in (modes if kind == "failure" else [None])
                  for attempt in range(config.tries)]
        for number, (mode, _) in enumerate(wanted):
            rng = np.random.default_rng([config.seed, start, KINDS.index(kind), number])
            found = demos.episode(env, kind, rng, start, mode, needed)
            if found is not None and len(found[0]) >= 2 * config.stride:
                made[kind] = found
                break
        else:
            return None
    if fakes:
        expert = made["expert"]
        made |= {look: (_labelled(expert[0], look), expert[1]) for look in LOOKS}
        rng = np.random.default_rng([config.seed, start, KINDS.index("displaced")])
        for _ in range(config.tries):
            replayed, snapshots = replay_displaced(env, start, expert[0].actions, rng)
            if not replayed.succeeded:
                made |= {fake: (_labelled(replayed, fake), snapshots) for fake in FAKES}
                break
    recorded = []
    for kind, (episode, snapshots) in made.items():
        short, snapshots = strided(episode, snapshots, config.stride)
        frames = pictures(env, snapshots, kind, config, start)
        recorded.append(Trajectory(short.task, short.states, short.actions, short.rewards, short.success, frames,
                                   short.info | {"start": start, "failure": short.info["failure"] or ""}))
    return recorded


def _labelled(episode: Trajectory, kind: str) -> Trajectory:
    return Trajectory(episode.task, episode.states, episode.actions, episode.rewards, episode.success, None,
                      {"kind": kind, "failure": None})


def record_task(task: str, config: StudyConfig, size: int, progress_bar: bool = True) -> list[Trajectory]:
    """The study's episodes of one task: for each of up to `config.starts` starts one of every outcome, with pictures
    (size x size). Starts come in an order drawn from the seed; the failure modes take turns, and where one does
    not come about another steps in. InputError when no start will do."""
    env = envs.make_env(task, seed=config.seed, size=size)
    recorded: list[Trajectory] = []
    done = 0
    bar = tqdm(total=config.starts, desc=f"episodes of {task}, by start", disable=not progress_bar)
    try:
        for start in np.random.default_rng([config.seed, 1]).permutation(envs.GOALS).tolist():
            if done == config.starts:
                break
            of_start = record_start(env, start, demos.FAILURES[done % len(demos.FAILURES)], config, done < config.pairs)
            if of_start is not None:
                recorded += of_start
                done += 1
                bar.update()
    finally:
        bar.close()
        env.close()
    if not recorded:
        raise InputError(f"no start of {task!r} gives episodes of all of {', '.join(OUTCOMES)}")
    return recorded


def record(profile: str | Profile, tasks: Sequence[str] | None = None) -> None:
    """Record what is missing of the profile's study in build/<profile>/study, a file a task; stopped at any time, the
    same call goes on with the task that it was at. Then write `trajectories.npz`, when all tasks are there."""
    profile = profiles.get_profile(profile)
    config = get_config(profile)
    for task in tasks or config.tasks:
        if task not in config.tasks:
            raise errors.unknown("task of the study", task, config.tasks)
    for task in tasks or config.tasks:
        path = study_folder(profile) / f"{task}.npz"
        order = order_of(task, config, profile)
        if path.is_file():
            if str(files.read_npz(path, "order")["order"]) == order:
                continue
        episodes = record_task(task, config, profile.video.image_size)
        with files.atomic_path(path) as temporary:
            np.savez_compressed(
                temporary, order=order, length=[len(one) for one in episodes],
                **{name: np.concatenate([getattr(one, name) for one in episodes])
                   for name in ("frames", "states", "actions", "rewards", "success")},
                progress=np.concatenate([one.info["progress"] for one in episodes]),
                **{name: np.array([one.info[name] for one in episodes]) for name in ("kind", "failure", "start")})
    if all((study_folder(profile) / f"{task}.npz").is_file() for task in config.tasks):
        write_trajectories(profile)
        write_example(profile)


def order_of(task: str, config: StudyConfig, profile: Profile) -> str:
    """Names what a file of recorded episodes was made from; other tasks of the study do not change it."""
    return files.digest(task, {name: value for name, value in vars(config).items()
                               if name not in ("tasks", "interval", "fb_updates")},
                        profile.video.image_size, 2)


# ---- reading what was recorded


def load_episodes(profile: str | Profile, task: str) -> list[Trajectory]:
    """The recorded episodes of one task, with frames; `info` holds kind, failure, start, progress (T+1,) and the
    episode's number. InputError that names the command where they are missing or of another study."""
    profile = profiles.get_profile(profile)
    config = get_config(profile)
    if task not in config.tasks:
        raise errors.unknown("task of the study", task, config.tasks)
    path = study_folder(profile) / f"{task}.npz"
    command = f"python -m genreward.reward_study record --profile {profile.name}"
    if not path.is_file():
        raise Absent(f"the study's episodes of {task!r} are missing; make them with: {command}")
    if str(files.read_npz(path, "order")["order"]) != order_of(task, config, profile):
        raise InputError(f"{path.name} holds the episodes of another study; make them again with: {command}")
    kept = files.read_npz(path)
    ends = np.cumsum(kept["length"])
    episodes = []
    for number, (end, steps) in enumerate(zip(ends.tolist(), kept["length"].tolist(), strict=True)):
        inner = slice(end - steps, end)
        outer = slice(end - steps + number, end + number + 1)  # one state more than actions in every episode
        info = {"kind": str(kept["kind"][number]), "failure": str(kept["failure"][number]), "episode": number,
                "start": int(kept["start"][number]), "progress": kept["progress"][outer]}
        episodes.append(Trajectory(task, kept["states"][outer], kept["actions"][inner], kept["rewards"][inner],
                                   kept["success"][inner], kept["frames"][outer], info))
    return episodes


def results_folder(profile: str | Profile) -> Path:
    """Where what the study found lies: results/<profile>/study."""
    return profiles.paths(profile).study


def write_trajectories(profile: str | Profile) -> Path:
    """Keep what the metrics need of all recorded episodes in results/<profile>/study/trajectories.npz: per episode its
    task, number, kind, failure, start and steps; per step (1 to `steps`) true progress and success."""
    profile = profiles.get_profile(profile)
    config, rows = get_config(profile), []
    episodes = [one for task in config.tasks for one in load_episodes(profile, task)]
    for one in episodes:
        rows.append((config.tasks.index(one.task), one.info["episode"], KINDS.index(one.info["kind"]),
                     ("", *demos.FAILURES).index(one.info["failure"]), one.info["start"], len(one)))
    columns = dict(zip(("task", "episode", "kind", "failure", "start", "steps"), np.array(rows, np.uint16).T,
                       strict=True))
    path = results_folder(profile) / "trajectories.npz"
    with files.atomic_path(path) as temporary:
        np.savez_compressed(temporary, identity=identity(profile), tasks=np.array(config.tasks), **columns,
                            progress=np.concatenate([one.info["progress"][1:] for one in episodes]).astype(np.float32),
                            success=np.concatenate([one.success for one in episodes]), stride=config.stride)
    return path


EXAMPLE_FRAMES = 7


def write_example(profile: str | Profile) -> Path:
    """Keep a few pictures of the first start's episodes, one of every kind, of each task: results/<profile>/study/
    example.npz, "<task>/<kind>" -> (7, H, W, 3) uint8, spread evenly over the episode."""
    profile = profiles.get_profile(profile)
    shown: dict[str, np.ndarray] = {}
    for task in get_config(profile).tasks:
        for one in load_episodes(profile, task):
            frames = one.frames[uniform_indices(len(one.frames), EXAMPLE_FRAMES)]
            shown.setdefault(f"{task}/{one.info['kind']}", frames)
    path = results_folder(profile) / "example.npz"
    with files.atomic_path(path) as temporary:
        np.savez_compressed(temporary, **shown)
    return path


def load_example(profile: str | Profile, task: str) -> dict[str, np.ndarray]:
    """Kind -> pictures (7, H, W, 3) uint8 of a task, as `write_example` kept them."""
    path = results_folder(profile) / "example.npz"
    if not path.is_file():
        raise Absent(f"{path.name} of the study is missing; make it with: python -m genreward.reward_study record "
                     f"--profile {profiles.get_profile(profile).name}")
    kept = files.read_npz(path)
    found = {name.partition("/")[2]: pictures for name, pictures in kept.items() if name.startswith(f"{task}/")}
    if not found:
        raise errors.unknown("task of the study", task, {name.partition("/")[0] for name in kept})
    return {kind: found[kind] for kind in KINDS if kind in found}


def identity(profile: Profile) -> str:
    """Names the set of episodes that is scored."""
    config = get_config(profile)
    return files.digest([order_of(task, config, profile) for task in config.tasks])


def load_trajectories(profile: str | Profile) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables: an episode a row (task, episode, kind, failure, start, steps, succeeded, progress: the last), and a
    step a row (task, episode, step from 1, progress, success). InputError where there are none."""
    path = results_folder(profile) / "trajectories.npz"
    if not path.is_file():
        raise Absent(f"{path.name} of the study is missing; make it with: python -m genreward.reward_study record "
                     f"--profile {profiles.get_profile(profile).name}")
    kept = files.read_npz(path, "tasks", "task", "episode", "kind", "failure", "start", "steps", "success", "progress")
    ends = np.cumsum(kept["steps"].astype(int))
    last = [slice(end - steps, end) for end, steps in zip(ends.tolist(), kept["steps"].tolist(), strict=True)]
    episodes = pd.DataFrame({
        "task": kept["tasks"][kept["task"]], "episode": kept["episode"].astype(int),
        "kind": np.array(KINDS)[kept["kind"]], "failure": np.array(["", *demos.FAILURES])[kept["failure"]],
        "start": kept["start"].astype(int), "steps": kept["steps"].astype(int),
        "succeeded": [bool(kept["success"][part].any()) for part in last],
        "progress": [float(kept["progress"][part][-1]) for part in last]})
    repeated = episodes.loc[np.repeat(np.arange(len(episodes)), episodes["steps"]), ["task", "episode"]]
    steps = repeated.assign(step=np.concatenate([np.arange(1, n + 1) for n in episodes["steps"]]),
                            progress=kept["progress"].astype(float), success=kept["success"])
    return episodes, steps.reset_index(drop=True)
