"""One agent, trained: from a run's description to rows of results, resumable at any moment.

A run is cut into chunks of `evaluate_every` environment steps, each a whole number of episodes. After a chunk the
agent is evaluated in an environment of its own seed, and one file is written, whole or not at all: agent, replay,
environment, reward model and all rows so far. The results table is rewritten from that file. Killed at any moment and
started again with the same command, a run goes on at its last chunk; no row is lost or doubled, since rows live in the
checkpoint.

    python -m genreward.training --task pick-place --method genreward_sound --agent sac --seed 0 --profile laptop
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from . import envs, errors, files, profiles, results
from .agents.checkpoints import read_checkpoint
from .errors import InputError
from .forward_backward import ForwardBackward
from .goals import Goal
from .profiles import Profile
from .rewards import GoalRewardEnv, make_reward
from .rewards.base import RewardModel
from .tasks import get_task

FORMAT = "genreward.training.v1"
AGENTS = ("sac", "dreamer")


@dataclass(frozen=True)
class Method:
    """What an agent is paid. `env_reward`: r_env of Eq. 10; `reward`: a registered reward model; `needs`: the
    parts it is made from; `fb`: whether F and B come trained from task-free exploration ("explored") or learn from the
    agent's own replay until they are frozen, as the paper has it ("online")."""

    env_reward: str
    reward: str
    needs: tuple[str, ...] = ()
    fb: str | None = None
    what: str = ""


METHODS: dict[str, Method] = {
    "dense": Method("dense", "dense", what="the environment's dense reward alone"),
    "sparse": Method("sparse", "sparse", what="the environment's reward every 128 steps alone"),
    "genreward": Method("sparse", "genreward", ("goal", "video_model", "fb", "encoder"), "online",
                        "sparse + GenReward as printed (raw cosine, alpha 0.01, beta 1e-5, B at the goal frame)"),
    "genreward_sound": Method("sparse", "genreward_sound", ("goal", "video_model", "fb", "encoder"), "explored",
                              "sparse + GenReward sound (centred latents, B at buffer states, normalised, every step)"),
    "genreward_dense": Method("dense", "genreward", ("goal", "video_model", "fb", "encoder"), "online",
                              "dense + GenReward as printed"),
    "genreward_sound_dense": Method("dense", "genreward_sound", ("goal", "video_model", "fb", "encoder"), "explored",
                                    "dense + GenReward sound"),
    "video": Method("sparse", "genreward_video", ("goal", "video_model"), None,
                    "sparse + the video-level term as printed"),
    "frame": Method("sparse", "genreward_frame", ("goal", "fb", "encoder"), "online",
                    "sparse + the frame-level term as printed"),
}


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's numbers, but for the files that it reads (the goal, the weights)."""

    task: str
    method: str
    agent: str = "sac"
    seed: int = 0
    profile: str = "laptop"
    experiment: str = "laptop"
    steps: int | None = None  # environment steps; None: the profile's

    @property
    def run_id(self) -> str:
        """The name of the run's files."""
        return f"{self.experiment}-{self.task}-{self.agent}-{self.method}-s{self.seed}"

    @property
    def label(self) -> str:
        """The name of the curve: SAC's is the method's alone, another agent stands before it."""
        return self.method if self.agent == "sac" else f"{self.agent}_{self.method}"


def check_run(run: Run) -> Profile:
    """The run's profile, or an InputError that names what is wrong with the run."""
    get_task(run.task)
    profile = profiles.get_profile(run.profile)
    if run.method not in METHODS:
        raise errors.unknown("method", run.method, METHODS)
    if run.agent not in AGENTS:
        raise errors.unknown("agent", run.agent, AGENTS)
    if run.seed < 0:
        raise InputError(f"seed must be at least 0, got {run.seed}")
    episode, chunk = profile.episode_steps, profile.run.evaluate_every
    if chunk % episode or total_steps(run, profile) % chunk:
        raise InputError(f"steps ({total_steps(run, profile)}) must be a multiple of evaluate_every ({chunk}), and "
                         f"that one of the episode's length ({episode})")
    return profile


def total_steps(run: Run, profile: Profile) -> int:
    """Environment steps of a run."""
    if run.steps is not None:
        return run.steps
    return profile.run.sac_steps if run.agent == "sac" else profile.run.dreamer_steps


# --- F and B learning from the agent's own replay ---------------------------------------------------------------------


class OnlineFB(gymnasium.Wrapper):
    """Step 2 of the paper's algorithm: until `until` environment steps F and B learn from the agent's transitions, one
    batch a step, then they are frozen.

    Stands around `GoalRewardEnv`, whose reward model pays the frame-level term only once F and B are frozen and hands
    out psi of each frame, computed once, when the frame is collected.
    """

    def __init__(self, env: GoalRewardEnv, fb: ForwardBackward, until: int, prefill: int, seed: int) -> None:
        super().__init__(env)
        self.paid: GoalRewardEnv = env
        self.fb, self.until, self.prefill, self.taken = fb, until, max(prefill, fb.config.batch), 0
        self.features = np.zeros((until, fb.feature_dim), np.float32)
        self.next_features = np.zeros((until, fb.feature_dim), np.float32)
        self.actions = np.zeros((until, fb.action_dim), np.float32)
        self.rng = np.random.default_rng([seed, 8])

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the inner environment and, while they are learning, one update of F and B."""
        outcome = self.env.step(action)
        if not self.fb.frozen:
            history, model = self.paid.history, self.paid.reward_model
            row, self.taken = self.taken, self.taken + 1
            self.features[row] = model.features(history, len(history) - 1)
            self.next_features[row] = model.features(history, len(history))
            self.actions[row] = np.clip(action, -1, 1)
            if self.taken == self.prefill:
                self.fb.fit_scaler(self.features[: self.taken])
            if self.taken >= self.prefill:
                rows = self.rng.integers(0, self.taken, self.fb.config.batch)
                batch = {"s": self.features[rows], "a": self.actions[rows], "next_s": self.next_features[rows]}
                self.fb.update(batch, model.frame.goal_features)
            if self.taken >= self.until:
                self.fb.freeze()
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """Networks, replay and counters (at an episode's end)."""
        kept = {name: torch.from_numpy(getattr(self, name)[: self.taken].copy())
                for name in ("features", "next_features", "actions")}
        return {"fb": self.fb.state_dict(), "taken": self.taken, "rng": self.rng.bit_generator.state, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.fb.load_state_dict(state["fb"])
        self.taken = state["taken"]
        self.rng.bit_generator.state = state["rng"]
        for name in ("features", "next_features", "actions"):
            getattr(self, name)[: self.taken] = state[name].numpy()


# --- assembling -------------------------------------------------------------------------------------------------------


def load_parts(run: Run, profile: Profile) -> dict[str, Any]:
    """The trained models and the goal that the run's method needs, from the profile's folders.

    A missing one is an InputError that names the command which makes it.
    """
    from .encoders import get_encoder
    from .video_model import VideoModel

    method, where = METHODS[run.method], profiles.paths(profile)
    parts: dict[str, Any] = {}
    if "goal" in method.needs:
        folder = where.goals / run.task
        _must_exist(folder, f"the goal of {run.task!r}", profile.name, "goals")
        parts["goal"] = Goal.load(folder)
    if "video_model" in method.needs or "encoder" in method.needs:
        _must_exist(where.video_model, "the video model", profile.name, "video_model")
        parts["video_model"] = VideoModel.load(where.video_model, device=profile.device)
    if "encoder" in method.needs:
        path = where.fb / f"{run.task}-encoder.npz"
        _must_exist(path, "the encoder psi", profile.name, "fb")
        parts["encoder"] = get_encoder(profile.fb.encoder, video_model=parts["video_model"],
                                       components=profile.fb.components).load_pca(path)
    if method.fb == "explored":
        path = where.fb / f"{run.task}.pt"
        _must_exist(path, f"the forward-backward model of {run.task!r}", profile.name, "fb")
        parts["fb"] = ForwardBackward.load(path, device=profile.device)
        parts["fb"].freeze()
    elif method.fb == "online":
        config = replace(profile.fb, fb_targets="goal", next_action="policy")
        parts["fb"] = ForwardBackward(parts["encoder"].dim, 4, config, run.seed, profile.device)
    return parts


def _must_exist(path: Path, what: str, profile: str, stage: str) -> None:
    if not path.exists():
        raise InputError(f"{what} is missing ({path.name}); make it with: "
                         f"python -m genreward.pipeline --profile {profile} --only {stage}")


def build_reward(run: Run, profile: Profile, parts: dict[str, Any]) -> RewardModel:
    """The reward model of the run's method, with the profile's weights."""
    method, numbers = METHODS[run.method], profile.reward
    weights = {"genreward": {"alpha": numbers.alpha, "beta": numbers.beta, "interval": numbers.interval},
               "genreward_video": {"alpha": numbers.alpha, "interval": numbers.interval},
               "genreward_frame": {"beta": numbers.beta, "interval": numbers.interval},
               "genreward_sound": {"alpha": numbers.sound_alpha, "beta": numbers.sound_beta,
                                   "interval": numbers.interval}}.get(method.reward, {})
    model = make_reward(method.reward, {name: parts.get(name) for name in method.needs}, **weights)
    if method.fb == "explored":
        path = profiles.paths(profile).fb / f"{run.task}-normaliser.json"
        _must_exist(path, f"the normaliser of {run.task!r}", profile.name, "fb")
        model.load_state_dict(files.read_json(path))
    return model


def build_env(run: Run, profile: Profile, parts: dict[str, Any], reward: RewardModel) -> GoalRewardEnv | OnlineFB:
    """The training environment: the task, the pay, and F and B learning around it where the method asks for that."""
    method = METHODS[run.method]
    task = envs.make_env(run.task, seed=run.seed, episode_steps=profile.episode_steps, size=profile.image_size)
    env = GoalRewardEnv(task, reward, env_reward=method.env_reward, sparse_interval=profile.reward.sparse_interval)
    if method.fb == "online":
        return OnlineFB(env, parts["fb"], profile.run.fb_train_until, profile.run.prefill, run.seed)
    return env


def _agent(run: Run, profile: Profile, env: gymnasium.Env) -> Any:
    if run.agent == "sac":
        from .agents.sac import SACAgent

        return SACAgent(env, profile.sac, run.seed, profile.device)
    from .agents.dreamer import DreamerAgent

    pixels = profile.dreamer.observation == "pixels"
    size = profile.image_size
    space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) if pixels else env.observation_space
    return DreamerAgent(space, env.action_space.shape[0], profile.dreamer, run.seed, profile.device)


def _learn_dreamer(agent: Any, env: gymnasium.Env, pixels: bool, steps: int, taken: int,
                   on_step: Callable[[], None]) -> None:
    """`steps` environment steps of DreamerV3, beginning with a fresh episode."""
    first, last, terminal, reward = True, False, False, 0.0
    observation, _ = env.reset()
    carry, action = agent.initial(), np.zeros(env.action_space.shape, np.float32)
    done = 0
    while True:
        seen = env.render() if pixels else observation
        agent.observe(seen, action, reward, first, terminal, last)
        if last:
            if done >= steps:
                return
            observation, _ = env.reset()
            carry, action = agent.initial(), np.zeros(env.action_space.shape, np.float32)
            first, last, terminal, reward = True, False, False, 0.0
            continue
        carry, action = agent.act(carry, seen, first, explore=True)
        observation, reward, terminal, truncated, _ = env.step(action)
        first, last, done = False, bool(terminal or truncated), done + 1
        for _ in range(agent.updates_due(taken + done)):
            agent.update()
        on_step()


def evaluate(act: Callable[[np.ndarray, bool], np.ndarray], task: str, seed: int, episodes: int,
             episode_steps: int = 256, pixels: bool = False, size: int = 64) -> dict[str, float]:
    """Mean dense return and share of episodes with success at any point, over `episodes` with seeds of their own.

    act  (observation or frame, whether an episode begins) -> action
    """
    env = envs.make_env(task, seed=seed, split="eval", episode_steps=episode_steps, size=size)
    returns, success = [], []
    try:
        for _ in range(episodes):
            observation, _ = env.reset()
            first, over, total = True, False, 0.0
            while not over:
                observation, reward, terminated, over, info = env.step(act(env.render() if pixels else observation,
                                                                           first))
                first, total = False, total + reward
            returns.append(total)
            success.append(info["success_any"] > 0)
    finally:
        env.close()
    return {"return": float(np.mean(returns)), "success": float(np.mean(success))}


def _policy(run: Run, agent: Any) -> Callable[[np.ndarray, bool], np.ndarray]:
    if run.agent == "sac":
        return lambda observation, first: agent.act(observation)
    carried: dict[str, Any] = {}

    def act(observation: np.ndarray, first: bool) -> np.ndarray:
        carried["carry"], action = agent.act(agent.initial() if first else carried["carry"], observation, first,
                                             explore=False)
        return action

    return act


# --- the run ----------------------------------------------------------------------------------------------------------


def identity(run: Run, profile: Profile) -> dict[str, Any]:
    """What a checkpoint must agree with: the run, the numbers it depends on and the files that it reads."""
    method, where = METHODS[run.method], profiles.paths(profile)
    inputs: dict[str, str] = {}
    if "goal" in method.needs:
        inputs["goal"] = files.digest(where.goals / run.task)
    if "video_model" in method.needs or "encoder" in method.needs:
        inputs["video_model"] = files.digest(where.video_model)
    if method.fb:
        inputs["encoder"] = files.digest(where.fb / f"{run.task}-encoder.npz")
    if method.fb == "explored":
        inputs["fb"] = files.digest(where.fb / f"{run.task}.pt")
        inputs["normaliser"] = files.digest(where.fb / f"{run.task}-normaliser.json")
    numbers: dict[str, Any] = {
        "episode_steps": profile.episode_steps, "evaluate_every": profile.run.evaluate_every,
        "evaluation_episodes": profile.run.evaluation_episodes, "sparse_interval": profile.reward.sparse_interval,
        run.agent: getattr(profile, run.agent)}
    if method.needs:
        numbers["reward"] = profile.reward
    if method.fb:
        numbers["fb"] = profile.fb
    if method.fb == "online":
        numbers["fb_train_until"] = [profile.run.fb_train_until, profile.run.prefill]
    described = asdict(run)
    described.pop("steps")  # a run may be taken further
    return {"run": described, "numbers": {key: files.digest(value) for key, value in numbers.items()},
            "inputs": inputs}


def train_agent(run: Run, progress: bool = True, folder: Path | None = None, parts: dict[str, Any] | None = None
                ) -> Path:
    """Train (or go on training) the run's agent; returns the table of its rows, `<folder>/<run_id>.csv`.

    Rows, one an evaluation: return (mean dense return of an episode), success (share of episodes), share_<term> (of all
    that was paid since the start, in absolute value), seconds. A finished run returns at once. A checkpoint of other
    numbers, weights or goal is an InputError that names the difference.
    """
    profile = check_run(run)
    where = profiles.paths(profile)
    folder = folder or where.runs
    checkpoint = where.checkpoints / f"{run.run_id}.pt"
    steps, chunk = total_steps(run, profile), profile.run.evaluate_every
    table = folder / f"{run.run_id}.csv"
    if table.is_file() and _finished(table, run, profile, steps):
        return table
    parts = load_parts(run, profile) if parts is None else parts
    me = identity(run, profile)
    reward = build_reward(run, profile, parts)
    env = build_env(run, profile, parts, reward)
    online = env if isinstance(env, OnlineFB) else None
    ledger = (online.paid if online else env).ledger
    agent = _agent(run, profile, env)
    rows: list[dict[str, Any]] = []
    taken, seconds = 0, 0.0
    base: Any = env.unwrapped
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint)
        _same(state.get("identity"), me, checkpoint)
        agent.load_state_dict(state["agent"])
        ledger.load_state_dict(state["ledger"])
        reward.load_state_dict(state["reward"])
        base.set_rng_state(state["env"])
        if online:
            online.load_state_dict(state["online_fb"])
        rows, taken, seconds = state["rows"], state["taken"], state["seconds"]
    bar = tqdm(total=steps, initial=taken, desc=run.run_id, unit="step", disable=not progress)
    pixels = run.agent == "dreamer" and profile.dreamer.observation == "pixels"
    try:
        while taken < steps:
            began = time.perf_counter()
            if run.agent == "sac":
                agent.learn(chunk, bar.update)
            else:
                _learn_dreamer(agent, env, pixels, chunk, taken, bar.update)
            taken += chunk
            seconds += time.perf_counter() - began
            measured = evaluate(_policy(run, agent), run.task, run.seed * 1000 + taken // chunk,
                                profile.run.evaluation_episodes, profile.episode_steps, pixels, profile.image_size)
            measured |= {f"share_{name}": share for name, share in ledger.shares().items()}
            measured["seconds"] = seconds
            rows += [{"experiment": run.experiment, "method": run.label, "task": run.task, "seed": run.seed,
                      "step": taken, "metric": metric, "value": float(value)} for metric, value in measured.items()]
            bar.set_postfix(ret=f"{measured['return']:.0f}", success=f"{measured['success']:.2f}")
            state = {"format": FORMAT, "identity": me, "agent": agent.state_dict(), "rows": rows, "taken": taken,
                     "seconds": seconds, "ledger": ledger.state_dict(), "reward": reward.state_dict(),
                     "env": base.rng_state()}
            if online:
                state["online_fb"] = online.state_dict()
            with files.atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
            _write(folder, run, rows, me, seconds, taken)
        if not table.is_file():
            _write(folder, run, rows, me, seconds, taken)
    finally:
        bar.close()
        env.close()
    return table


def _write(folder: Path, run: Run, rows: list[dict[str, Any]], me: dict[str, Any], seconds: float, taken: int) -> None:
    results.write_run(folder, run.run_id, rows, {**results.provenance(seconds=seconds), "identity": me, "steps": taken})


def _finished(table: Path, run: Run, profile: Profile, steps: int) -> bool:
    """Whether the table on record is this very run, complete. A record of another identity is an InputError."""
    kept = files.read_json(table.with_suffix(".json"))
    if kept.get("steps", 0) < steps:
        return False
    _same(kept.get("identity"), identity(run, profile), table)
    return True


def _same(theirs: Any, mine: dict[str, Any], path: Path) -> None:
    """InputError that names each difference between a record's identity and this run's."""
    def flat(thing: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(thing, dict):
            return {name: thing}
        return {key: value for part, inner in thing.items() for key, value in flat(inner, f"{name}.{part}").items()}

    other, own = flat(theirs or {}), flat(mine)
    different = [key.lstrip(".") for key in sorted(other.keys() | own.keys()) if other.get(key) != own.get(key)]
    if different:
        raise InputError(f"{path.name} was made with other {', '.join(different)}; move it away to train anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, help=", ".join(METHODS))
    parser.add_argument("--agent", default="sac", help=", ".join(AGENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--experiment", default="laptop", help="the name under which the rows are kept")
    parser.add_argument("--steps", type=int, default=None, help="environment steps (default: the profile's)")
    arguments = parser.parse_args()
    print(train_agent(Run(arguments.task.removesuffix("-v3"), arguments.method, arguments.agent, arguments.seed,
                          arguments.profile, arguments.experiment, arguments.steps)))


if __name__ == "__main__":
    errors.cli(main)
