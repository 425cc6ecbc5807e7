"""What trained agents do, and what they are paid for it: each term of their pay beside the true progress.

After the grid, before the figures (`... training -> experiments -> behaviour -> results -> figures`). A finished run's
policy plays evaluation episodes in an environment that pays it as in training. Kept are numbers and, of each curve's
first seed, a film strip: checkpoints are large and stay in build/, what is found out from them is committed.

    python -m genreward.behaviour --profile laptop             # of every finished run whose checkpoint is here
    python -m genreward.behaviour --profile laptop --only easy
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from . import envs, errors, experiments, files, profiles, results, training
from .profiles import Profile
from .reward_episodes import progress
from .tasks import get_task
from .training import Run
from .trajectory import uniform_indices

FILM_FRAMES = 8
SEED = 77_000  # of the episodes, far from those of the runs' own evaluations


def folder(profile: str | Profile) -> Path:
    """Where the numbers and film strips are kept, one pair of files (and a film strip) a run."""
    return profiles.paths(profile).results / "behaviour"


def record(run: Run, episodes: int | None = None) -> Path:
    """Play a finished run's policy (None: as many episodes as an evaluation has) and write what it did and was paid;
    returns the table.

    Rows (step: how far the run has come, maybe further than is asked for): return, success, progress_end, progress_best
    (means over the episodes); for each term paid_<term> (sum of an episode, mean), share_<term> (of the absolute sum of
    all terms), payments_<term> (how many were not 0) and correlation_<term>: Spearman's between those payments and the
    true progress of the state that they were paid for, over all episodes; left out where there are fewer than 3 or
    either does not vary, and on tasks without a measure of progress. InputError when the checkpoint is not here.
    """
    profile = training.check_run(run)
    episodes = profile.run.evaluation_episodes if episodes is None else episodes
    act, env = training.restore(run, split="eval", seed=SEED)
    played, film = [], []
    try:
        pixels = training.sees_pictures(run, profile)
        for number in range(episodes):
            observation, _ = env.reset()
            states, terms, success, total, over = [observation], [], [], 0.0, False
            pictures = [env.render()] if number == 0 or pixels else []
            while not over:
                seen = pictures[-1] if pixels else observation
                observation, _, ended, cut, info = env.step(act(seen, len(terms) == 0))
                over = ended or cut
                states.append(observation)
                terms.append(info["reward_terms"])
                success.append(info["success"] > 0)
                total += info["dense_reward"]
                if number == 0 or pixels:
                    pictures.append(env.render())
            film = film or [pictures[index] for index in uniform_indices(len(pictures), FILM_FRAMES)]
            played.append((np.stack(states), pd.DataFrame(terms), np.array(success), total))
    finally:
        env.close()
    measured = _measures(run.task, played)
    steps = int(files.read_json(profiles.paths(profile).runs / f"{run.run_id}.json").get("steps", 0))
    rows = [{"experiment": "behaviour", "method": run.label, "task": run.task, "seed": run.seed, "step": steps,
             "metric": metric, "value": value} for metric, value in measured.items()]
    target = folder(profile)
    if run.seed == 0:
        with files.atomic_path(target / f"{run.run_id}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, frames=np.stack(film))
    return results.write_run(target, run.run_id, rows,
                             {**results.provenance(), "episodes": episodes, "run": digest(run)})


def _measures(task: str, played: Sequence[tuple[np.ndarray, pd.DataFrame, np.ndarray, float]]) -> dict[str, float]:
    """What `record` writes, from episodes of (states (T+1, S), terms (T, names), success (T,), dense return)."""
    measured = {"return": float(np.mean([total for *_, total in played])),
                "success": float(np.mean([success.any() for _, _, success, _ in played]))}
    terms = pd.concat([paid for _, paid, _, _ in played], ignore_index=True).fillna(0.0)
    far = None
    if get_task(task).suite == "metaworld":
        ways = [progress(task, states, success)[1:] for states, _, success, _ in played]
        measured["progress_end"] = float(np.mean([way[-1] for way in ways]))
        measured["progress_best"] = float(np.mean([way.max() for way in ways]))
        far = np.concatenate(ways)
    everything = float(np.abs(terms.to_numpy()).sum())
    for name in terms:
        values = terms[name].to_numpy(float)
        due = values != 0
        measured[f"paid_{name}"] = float(values.sum() / len(played))
        measured[f"share_{name}"] = float(np.abs(values).sum() / everything) if everything else 0.0
        measured[f"payments_{name}"] = float(due.sum())
        if far is not None and due.sum() >= 3 and np.ptp(values[due]) > 0 and np.ptp(far[due]) > 0:
            measured[f"correlation_{name}"] = float(stats.spearmanr(values[due], far[due]).statistic)
    return measured


def digest(run: Run) -> str:
    """What a run's record is made of: a table of another digest is made anew."""
    return files.digest(files.read_json(profiles.paths(run.profile).runs / f"{run.run_id}.json").get("rows", ""))


def record_references(profile: str | Profile, task: str, episodes: int = 20) -> Path:
    """Play random actions and, on Meta-World, the scripted expert: results/<profile>/references/<task>.csv, with a row
    of return and success for each policy and episode (its number is the seed)."""
    profile = profiles.get_profile(profile)
    fitted = training.check_run(Run(task, "dense", "sac", 0, profile.name, profile.name))
    env = envs.make_env(task, seed=SEED, split="eval", episode_steps=fitted.episode_steps)
    policies = {"random": envs.random_policy(np.random.default_rng(SEED), actions=env.action_space.shape[0])}
    if get_task(task).suite == "metaworld":
        policies["expert"] = envs.expert_policy(task)
    rows = []
    try:
        for name, policy in policies.items():
            env.seed_goals(SEED)
            for number in range(episodes):
                episode = envs.rollout(env, policy, frames=False)
                rows += [{"experiment": "references", "method": name, "task": task, "seed": number, "step": 0,
                          "metric": metric, "value": value} for metric, value in
                         (("return", float(episode.rewards.sum())), ("success", float(episode.succeeded)))]
    finally:
        env.close()
    return results.write_run(profiles.paths(profile).results / "references", task, rows, results.provenance())


def missing(profile: str | Profile, only: Sequence[str] | None = None) -> list[Run]:
    """The finished runs that nothing is known of, or of an earlier length of theirs, whose checkpoints are here."""
    profile = profiles.get_profile(profile)
    where, left = profiles.paths(profile), []
    for run in experiments.grid(profile, only):
        kept = where.runs / f"{run.run_id}.json"
        if not kept.is_file() or int(files.read_json(kept).get("steps", 0)) < training.total_steps(run, profile):
            continue
        if run.agent != "zero_shot" and not (where.checkpoints / f"{run.run_id}.pt").is_file():
            continue
        note = folder(profile) / f"{run.run_id}.json"
        if not note.is_file() or files.read_json(note).get("run") != digest(run):
            left.append(run)
    return left


def make(profile: str | Profile, only: Sequence[str] | None = None, episodes: int | None = None) -> None:
    """Record what is not on record yet: the references of each task that has runs, and every finished run whose
    checkpoint is here. A grid that was not begun has nothing to say yet."""
    profile = profiles.get_profile(profile)
    left = missing(profile, only)
    played = {run.task for run in experiments.grid(profile, only)
              if (profiles.paths(profile).runs / f"{run.run_id}.csv").is_file()}
    for task in sorted(played):
        if not (profiles.paths(profile).results / "references" / f"{task}.csv").is_file():
            record_references(profile, task)
    for run in tqdm(left, desc="behaviour", unit="run", disable=not left):
        record(run, episodes)


def films(profile: str | Profile) -> dict[str, np.ndarray]:
    """run id -> (8, H, W, 3) uint8: the kept film strips."""
    return {path.stem: files.read_npz(path, "frames")["frames"] for path in sorted(folder(profile).glob("[!.]*.npz"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(experiments.experiments("laptop")))
    parser.add_argument("--episodes", type=int, help="default: as many as an evaluation has")
    arguments = parser.parse_args()
    if arguments.episodes is not None:
        errors.at_least("episodes", arguments.episodes, 1)
    make(arguments.profile, arguments.only, arguments.episodes)


if __name__ == "__main__":
    errors.cli(main)
