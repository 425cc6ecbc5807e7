"""Could it have been foreseen? What the frame-level reward toward each goal says of episodes that nobody was paid for.

Near the end of the flow, after `variants`, whose goals it takes (`... fb -> variants -> forecast -> evidence -> figures
-> book`). F, B and psi are the task's own; what differs is the goal frame. Three kinds of behaviour, the same number of
episodes each, from the same starts: the scripted expert, exploration near the object (of which F and B's own replay was
made, in other episodes) and random actions. At every few steps the simulator says how far the task has got, and Eq. 9
says r_FB of the step just taken toward each goal. Raw scores are kept; two numbers were fixed before any was computed:

- progress: Spearman's rank correlation of r_FB with true progress, over all steps of all episodes;
- done: AUROC of r_FB at steps after which the task is done against all others (0.5 is a coin).

Both ask for order only, so the normalisation of the repaired reward changes neither. Whether they foretell what agents
learn that are paid toward these goals, or where pi_z gets, is asked in `evidence` and notebook 10. A third was added
once these were known: expert_pay, what the repaired reward would pay the expert a step, to be held against what it
pays the agents that it has trained. An agent that is paid more for less has found what the goal frame likes better
than the task.

    python -m genreward.forecast --profile laptop --tasks reach drawer-close
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from . import envs, errors, experiments, files, profiles, results, variants
from . import forward_backward as fbs
from .errors import Absent, InputError
from .goals import Goal
from .profiles import Profile
from .reward_episodes import progress
from .tasks import METAWORLD_TASKS, get_task

KINDS = ("expert", "near the object", "random")
OWN = "own"
"""The name of the profile's own goal, beside the sources of `variants`."""


@dataclass(frozen=True)
class Settings:
    """How much is recorded: episodes of each kind, and every how many steps one is scored."""

    episodes: int = 6
    every: int = 4
    seed: int = 55_000  # of starts, far from those of agents and their evaluations


def settings(profile: str | Profile) -> Settings:
    """The effort of a profile."""
    return Settings(episodes=1, every=64) if profiles.get_profile(profile).name == "smoke" else Settings()


def tasks(profile: str | Profile) -> tuple[str, ...]:
    """The tasks on which the grid asks for pi_z toward several goals (`zero_shot`) and which have a scripted expert."""
    runs = experiments.grid(profile, ["zero_shot"])
    return tuple(dict.fromkeys(run.task for run in runs if get_task(run.task).suite == "metaworld"))


def goals(profile: str | Profile, task: str) -> dict[str, Goal]:
    """Name -> goal: the profile's own and those of every source that the grid declares for the task and that is there.
    """
    profile = profiles.get_profile(profile)
    found = {OWN: Goal.load(profiles.paths(profile).goals / task)}
    for name, source in variants.wanted(profile)[0]:
        folder = variants.folder(profile, source, task)
        if name == task and (folder / "goal.json").is_file():
            found[source] = Goal.load(folder)
    return found


def missing(profile: str | Profile) -> bool:
    """Whether a task of the profile has no record."""
    return not all(_path(profiles.get_profile(profile), task).is_file() for task in tasks(profile))


def record(profile: str | Profile, names: Sequence[str] | None = None) -> list[Path]:
    """Score what is not on record (of `tasks`, or these), or was scored with other weights, goals or settings:
    results/<profile>/forecast. A missing F and B is an InputError before anything runs."""
    from .pipeline import load_encoder

    profile = profiles.get_profile(profile)
    names = tuple(names or tasks(profile))
    for task in names:
        if task not in METAWORLD_TASKS:
            raise errors.unknown("task with a scripted expert", task, METAWORLD_TASKS)
        if not (profiles.paths(profile).fb / f"{task}.pt").is_file():
            raise InputError(f"the forward-backward model of {task!r} is missing; make it with: python -m "
                             f"genreward.pipeline --profile {profile.name} --only fb --tasks {task}")
    written, encoder = [], None
    for task in names:
        path, effort = _path(profile, task), settings(profile)
        toward = goals(profile, task)
        inputs = _inputs(profile, task, toward, effort)
        if not path.is_file() or files.read_json(path.with_suffix(".json")).get("inputs") != inputs:
            began = time.time()
            encoder = encoder or load_encoder(profile)
            kept = _scored(profile, task, toward, encoder, effort)
            with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **kept)
            files.write_json(path.with_suffix(".json"), {**results.provenance(round(time.time() - began, 1)),
                                                         "settings": asdict(effort), "inputs": inputs})
        written.append(path)
    return written


def _path(profile: Profile, task: str) -> Path:
    return profiles.paths(profile).results / "forecast" / f"{task}.npz"


def _inputs(profile: Profile, task: str, toward: dict[str, Goal], effort: Settings) -> dict[str, Any]:
    where = profiles.paths(profile)
    parts = {"fb": where.fb / f"{task}.pt", "psi": where.psi, "video_model": where.video_model}
    return {"settings": files.digest(asdict(effort)), **{part: files.digest(path) for part, path in parts.items()},
            "goals": {name: files.digest({"frame": goal.frame.tolist()}) for name, goal in toward.items()}}


def _scored(profile: Profile, task: str, toward: dict[str, Goal], encoder: Any, effort: Settings) -> dict[str, Any]:
    """Arrays over the N scored steps: kind (index into `kinds`), episode, step, progress, done; goals (names) and
    scores (N, goals) float32."""
    fb = fbs.ForwardBackward.load(profiles.paths(profile).fb / f"{task}.pt", device=profile.device)
    aims = [encoder.encode(goal.frame[None])[0] for goal in toward.values()]
    rows: dict[str, list[Any]] = {name: [] for name in ("kind", "episode", "step", "progress", "done", "scores")}
    for number, kind in enumerate(KINDS):
        env = envs.make_env(task, seed=effort.seed, split="eval", size=profile.video.image_size,
                            episode_steps=profile.episode_steps)
        rng = np.random.default_rng([effort.seed, number])
        policies = {"expert": envs.expert_policy(task), "near the object": fbs.near_object_policy(rng),
                    "random": envs.random_policy(rng)}
        try:
            for episode in tqdm(range(effort.episodes), desc=f"{task}, {kind}", mininterval=5):
                frames, actions, steps, far, done = _episode(env, policies[kind], task, effort.every)
                features = encoder.encode(frames)
                rows["scores"].append(np.stack([fb.reward(features, actions, aim) for aim in aims], axis=1))
                for name, values in (("step", steps), ("progress", far), ("done", done)):
                    rows[name].append(values)
                rows["kind"].append(np.full(len(steps), number))
                rows["episode"].append(np.full(len(steps), episode))
        finally:
            env.close()
    kept = {name: np.concatenate(values) for name, values in rows.items()}
    return {**kept, "scores": kept["scores"].astype(np.float32), "goals": np.array(list(toward)),
            "kinds": np.array(KINDS)}


def _episode(env: envs.MetaWorldEnv, policy: envs.Policy, task: str, every: int) -> tuple[np.ndarray, ...]:
    """One episode's scored steps t = every, 2 every, ...: frames o_{t-1}, actions a_{t-1}, t; progress, done at t."""
    observation, _ = env.reset()
    states, success, frames, actions, over = [observation], [], [], [], False
    while not over:
        action = policy(observation)
        if (len(success) + 1) % every == 0:
            frames.append(env.render())
            actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        states.append(observation)
        success.append(info.get("success", 0.0) > 0)
        over = terminated or truncated
    steps = np.arange(every, len(success) + 1, every)
    far = progress(task, np.stack(states), np.array(success))
    return np.stack(frames), np.stack(actions), steps, far[steps], np.array(success)[steps - 1]


def load(profile: str | Profile, task: str) -> pd.DataFrame:
    """A line a goal and scored step: goal, kind, episode, step, progress, done, score (r_FB) and pay (as the repaired
    reward normalises it toward that goal; NaN without its normaliser). InputError, with the command that makes them,
    where there are none."""
    profile = profiles.get_profile(profile)
    path = _path(profile, task)
    if not path.is_file():
        raise Absent(f"no scores toward the goals of {task!r}; make them with: python -m genreward.forecast "
                     f"--profile {profile.name} --tasks {task}")
    kept = files.read_npz(path, "goals", "scores", "kinds", "kind", "episode", "step", "progress", "done")
    steps = pd.DataFrame({"kind": kept["kinds"][kept["kind"]], "episode": kept["episode"], "step": kept["step"],
                          "progress": kept["progress"], "done": kept["done"].astype(bool)})
    tables = []
    for column, name in enumerate(map(str, kept["goals"])):
        score, source = kept["scores"][:, column], "" if name == OWN else f"+goal-{name}"
        known = profiles.paths(profile).fb / f"{task}{source}-normaliser.json"
        pay = fbs.RewardNormaliser(**files.read_json(known))(score) if known.is_file() else math.nan
        tables.append(steps.assign(goal=name, score=score, pay=pay))
    return pd.concat(tables, ignore_index=True)


def told(scored: pd.DataFrame, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """What the scores toward each goal say (`load`, the same steps for every goal), a line a goal: goal, progress and
    done (see the module), each with the ends of a 95% interval from drawing whole episodes again, kind by kind
    (`..._low`, `..._high`), expert_pay (mean pay a step of the expert's episodes), n (episodes). NaN where nothing
    varies or the task is done at no step or at all."""
    by_goal = {goal: of.reset_index(drop=True) for goal, of in scored.groupby("goal", sort=False)}
    steps = next(iter(by_goal.values()))
    scores = np.stack([of["score"] for of in by_goal.values()], axis=1)
    far, done = steps["progress"].to_numpy(), steps["done"].to_numpy()
    kinds: dict[str, list[np.ndarray]] = {}  # the rows of each episode
    for (kind, _), rows in steps.groupby(["kind", "episode"], sort=False).indices.items():
        kinds.setdefault(kind, []).append(rows)
    rng = np.random.default_rng(seed)
    drawn = [[rows for of in kinds.values() for rows in of]]
    drawn += [[of[index] for of in kinds.values() for index in rng.integers(len(of), size=len(of))]
              for _ in range(resamples)]
    every = np.stack([_both(scores[rows], far[rows], done[rows]) for rows in map(np.concatenate, drawn)])
    table = pd.DataFrame({"goal": list(by_goal), "expert_pay": [
        of.loc[of["kind"] == KINDS[0], "pay"].mean() for of in by_goal.values()]})
    for column, name in enumerate(("progress", "done")):
        values = every[:, column]
        table[name] = values[0]
        ends = [np.quantile(known, [0.025, 0.975]) if len(known := one[np.isfinite(one)]) else (np.nan, np.nan)
                for one in values[1:].T]
        table[f"{name}_low"], table[f"{name}_high"] = np.transpose(ends)
    return table.assign(n=len(drawn[0]))


def _both(scores: np.ndarray, far: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Scores (N, goals), progress and done (N,) -> (2, goals): Spearman's correlation of each column with progress, and
    its AUROC of done against not, from the same ranks (ties count half)."""
    ranks, order = stats.rankdata(scores, axis=0), stats.rankdata(far)
    centred, order = ranks - ranks.mean(axis=0), order - order.mean()
    length = np.sqrt((centred**2).sum(axis=0) * (order @ order))
    positive = int(done.sum())
    pairs = positive * (len(done) - positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = ranks[done].sum(axis=0) - positive * (positive + 1) / 2
        return np.stack([np.where(length > 0, order @ centred / length, np.nan),
                         above / pairs if pairs else np.full(scores.shape[1], np.nan)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--tasks", nargs="+", help="default: those of the experiment zero_shot")
    arguments = parser.parse_args()
    profile = profiles.get_profile(arguments.profile)
    for path in record(profile, arguments.tasks):
        print(path)
        print(told(load(profile, path.stem)).round(3).to_string(index=False))


if __name__ == "__main__":
    errors.cli(main)
