"""What a reward would pay those who never learned from it: random actions, the scripted expert, F and B's own policy.

Beside `behaviour`, after the grid (`... training -> experiments -> would_pay -> results -> evidence`). An agent that
does not learn the task may have a reward that pays for something else, or one that pays for the task and was not found.
The expert tells them apart: it does the task, from the same starts as the finished agents, for the same pay.

    python -m genreward.would_pay --profile laptop               # every reward that an agent on record learned from
    python -m genreward.would_pay --profile laptop --only easy --tasks reach
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import behaviour, envs, errors, experiments, profiles, results, training
from .errors import InputError
from .profiles import Profile
from .reward_episodes import progress
from .rewards import GoalRewardEnv
from .tasks import get_task
from .training import METHODS, Run

PLAYERS = ("random", "expert", "fb_zero_shot")
COMPARED = ("fig5", "easy", "again", "fig7", "fig10", "fig10_easy")
"""The experiments whose rewards are asked. Not those that change weights: their terms are the same, only louder."""


def folder(profile: str | Profile) -> Path:
    """Where the records are, one a task and reward: `<task>-<label>.csv`."""
    return profiles.paths(profile).results / "would_pay"


def name(run: Run) -> str:
    """The record's name: whatever the seed, one task and reward have one."""
    return f"{run.task}-{run.method}{run.variant}"


def askable(run: Run) -> bool:
    """Whether there is a generated reward that is settled before the agent begins. It is not where F and B learn from
    the agent's own replay: what they pay is another thing in every run."""
    method = METHODS[run.method]
    return run.agent == "sac" and method.reward not in ("dense", "sparse") and method.fb != "online"


def record(run: Run, episodes: int | None = None, progress_bar: bool = False) -> Path:
    """Let each player play for the run's reward (None: as many episodes as an evaluation has), from the starts that
    `behaviour.record` gives to finished agents; returns the table.

    Rows (experiment: the reward, method: the player, seed: the number of the episode): return and success, by the
    simulator; progress_end, the share of the way that is behind at the end (Meta-World); paid_<term>, the sum of an
    episode, weights applied. InputError for a reward that learns with its agent, for one without a generated term, and
    when a part is missing.
    """
    profile = training.check_run(run)
    if not askable(run):
        raise InputError(f"{run.label!r} has no generated reward that is settled before an agent learns; those that "
                         f"have: {', '.join(sorted(key for key in METHODS if askable(Run(run.task, key))))}")
    episodes = profile.run.evaluation_episodes if episodes is None else episodes
    parts = training.load_parts(run, profile)
    env = training.paying_env(run, profile, training.build_reward(run, profile, parts), "eval", behaviour.SEED)
    players, first = _players(run, parts, env), env.unwrapped.rng_state()
    rows = []
    bar = tqdm(total=episodes * len(players), desc=name(run), unit="episode", disable=not progress_bar)
    try:
        for player, policy in players.items():
            env.unwrapped.set_rng_state(first)
            for number in range(episodes):
                measured = _episode(run.task, env, policy)
                rows += [{"experiment": f"{run.method}{run.variant}", "method": player, "task": run.task,
                          "seed": number, "step": 0, "metric": metric, "value": value}
                         for metric, value in measured.items()]
                bar.update()
    finally:
        bar.close()
        env.close()
    return results.write_run(folder(profile), name(run), rows, {
        **results.provenance(), "reward": run.label, "inputs": training.identity(run, profile)["inputs"]})


def _players(run: Run, parts: dict, env: GoalRewardEnv) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """name -> policy; those that the task and the reward have."""
    actions = env.action_space.shape[0]
    players = {"random": envs.random_policy(np.random.default_rng(behaviour.SEED), actions=actions)}
    if get_task(run.task).suite == "metaworld":
        players["expert"] = envs.expert_policy(run.task)
    if "fb" in parts:
        fb, encoder = parts["fb"], parts["encoder"]
        z = fb.goal_z(encoder.encode(parts["goal"].frame[None]))
        players["fb_zero_shot"] = lambda observation: fb.policy(encoder.encode(env.render()[None]), z)[0]
    return players


def _episode(task: str, env: GoalRewardEnv, policy: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    observation, _ = env.reset()
    states, success, total, over = [observation], [], 0.0, False
    while not over:
        observation, _, terminated, truncated, info = env.step(policy(observation))
        states.append(observation)
        success.append(info["success"] > 0)
        total += info["dense_reward"]
        over = terminated or truncated
    measured = {"return": float(total), "success": float(any(success))}
    if get_task(task).suite == "metaworld":
        measured["progress_end"] = float(progress(task, np.stack(states), np.array(success))[-1])
    return measured | {f"paid_{term}": float(paid) for term, paid in info["episode_terms"].items()}


def missing(profile: str | Profile, only: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> list[Run]:
    """One run of every reward that nothing is known of yet, though an agent that learned from it is on record."""
    profile = profiles.get_profile(profile)
    where, left = profiles.paths(profile), {}
    declared = experiments.experiments(profile)
    asked = COMPARED if profile.name != "smoke" else ("easy",)  # one is enough to see that it runs
    for run in experiments.grid(profile, only or [each for each in asked if each in declared]):
        if (askable(run) and (tasks is None or run.task in tasks) and (where.runs / f"{run.run_id}.csv").is_file()
                and not (folder(profile) / f"{name(run)}.csv").is_file()):
            left.setdefault(name(run), run)
    return list(left.values())


def make(profile: str | Profile, only: Sequence[str] | None = None, tasks: Sequence[str] | None = None,
         episodes: int | None = None) -> None:
    """Record what is not on record yet. A reward of which a part is missing here is named, and the others go on."""
    profile, able = profiles.get_profile(profile), []
    for run in missing(profile, only, tasks):
        try:
            training.required(run, training.check_run(run))
            able.append(run)
        except InputError as problem:
            print(f"not asked: {name(run)}: {problem}", file=sys.stderr)
    for run in tqdm(able, desc="would pay", unit="reward", disable=not able):
        record(run, episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"default: {', '.join(COMPARED)}")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default: every task of theirs")
    parser.add_argument("--episodes", type=int, help="default: as many as an evaluation has")
    arguments = parser.parse_args()
    if arguments.episodes is not None:
        errors.at_least("episodes", arguments.episodes, 1)
    for task in arguments.tasks or ():
        get_task(task)
    make(arguments.profile, arguments.only, arguments.tasks, arguments.episodes)


if __name__ == "__main__":
    errors.cli(main)
