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
import importlib
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from . import (
    code_identity,
    encoders,
    envs,
    errors,
    estimates,
    files,
    forward_backward,
    locks,
    profiles,
    results,
    rounding,
)
from .agents.checkpoints import read_checkpoint
from .errors import InputError
from .forward_backward import ForwardBackward
from .profiles import Profile
from .rewards import GoalRewardEnv, get_reward, make_reward
from .rewards.base import RewardModel
from .tasks import PAPER_TASKS, get_task

FORMAT = "genreward.training.v1"
AGENTS = ("sac", "dreamer", "zero_shot")  # the last learns nothing: F and B's own policy, toward the goal frame
# What of this module decides a run's numbers. The rest names, loads and keeps; what it hands over is in the identity.
DECISIVE = ("OnlineFB", "build_env", "evaluate", "_agent", "_learn_dreamer", "_policy")


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
    weights: tuple[str, ...] = ()


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
    "fb_zero_shot": Method("sparse", "sparse", ("goal", "fb", "encoder"), "explored",
                           "no reward and no learning: F and B's own policy pi_z toward the goal frame"),
    **{name + ("_dense" if env_reward == "dense" else ""):
       Method(env_reward, name, needs, None, f"{env_reward} + {what}", weights)
       for env_reward in ("sparse", "dense") for name, needs, weights, what in (
           ("roboclip", ("demonstration",), ("roboclip",),
            "RoboCLIP: the whole episode's video against one demonstration's, paid at its end"),
           ("diffusion_reward", (), ("diffusion_reward", "tokens"),
            "Diffusion Reward: how sure a video model of tokens is of what comes next after these frames, every step"),
           ("tadpole", ("goal",), ("tadpole",),
            "TADPoLe: how much the prompt helps a diffusion model of frames to denoise the frame, every step"))},
}


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's numbers, but for the files that it reads (the goal, the weights) and the code.

    changes: what differs from the profile and the method, as (name, value): a number of the profile by its dotted name
    ("reward.alpha", "fb.action_aware"); ("goal", source) for another goal than the profile's own; ("distraction",
    "all-easy-dynamic") for pictures with those distractions (kind, difficulty, static or dynamic).
    """

    task: str
    method: str
    agent: str = "sac"
    seed: int = 0
    profile: str = "laptop"
    experiment: str = "laptop"
    steps: int | None = None  # environment steps; None: the profile's
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def variant(self) -> str:
        """The changes as a part of names: "" or "+alpha-0.1+no_action_aware"."""
        return "".join(f"+{change_name(name, value)}" for name, value in self.changes)

    @property
    def run_id(self) -> str:
        """The name of the run's files."""
        return f"{self.experiment}-{self.task}-{self.agent}-{self.method}{self.variant}-s{self.seed}"

    @property
    def label(self) -> str:
        """The name of the curve: DreamerV3's has the agent's name before the method's, a variant's its changes after.
        """
        return f"{'dreamer_' if self.agent == 'dreamer' else ''}{self.method}{self.variant}"

    @property
    def goal_source(self) -> str | None:
        """Where the goal comes from, when it is not the profile's own."""
        return dict(self.changes).get("goal")


def change_name(name: str, value: Any) -> str:
    """One change as a part of names: "alpha-0.1", "no_action_aware"."""
    short = name.rpartition(".")[2]
    if isinstance(value, bool):
        return short if value else f"no_{short}"
    return f"{short}-{value}"


def check_run(run: Run) -> Profile:
    """The run's profile, or an InputError that names what is wrong with the run."""
    get_task(run.task)
    profile = _changed(profiles.get_profile(run.profile), run.changes)
    if run.method not in METHODS:
        raise errors.unknown("method", run.method, METHODS)
    if run.agent not in AGENTS:
        raise errors.unknown("agent", run.agent, AGENTS)
    if (run.agent == "zero_shot") != (run.method == "fb_zero_shot"):
        raise InputError(f"method {run.method!r} does not go with agent {run.agent!r}; valid: fb_zero_shot with "
                         "zero_shot, every other method with sac or dreamer")
    errors.at_least("seed", run.seed, 0)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.experiment):
        raise InputError(f"the experiment {run.experiment!r} does not begin a file name; valid: letters, digits, '.', "
                         "'_', '-'")
    read = changeable(run, profile)
    for name, _ in run.changes:
        if name not in read:
            raise InputError(f"the change {name} makes no difference to {run.method!r} with {run.agent!r}, which "
                             f"{'reads' if run.steps is None else f'(for {run.steps} steps) reads'}: {_listed(read)}")
    _check_numbers(run, profile)
    profile = _fitted(run, profile)
    episode, chunk = profile.episode_steps, profile.run.evaluate_every
    steps = total_steps(run, profile)
    if chunk % episode or steps % chunk or (steps < chunk and run.agent != "zero_shot"):
        raise InputError(f"steps ({steps}) must be a multiple of evaluate_every ({chunk}), and "
                         f"that one of the episode's length ({episode})")
    return profile


def _fitted(run: Run, profile: Profile) -> Profile:
    """The profile with the length of the task's episodes: its own on Meta-World, elsewhere the suite's, and then
    `evaluate_every` the nearest whole number of them (5,120 steps become 5,000 on walker-walk, 5,200 at the door)."""
    task = get_task(run.task)
    if task.suite == "metaworld":
        return profile
    from . import suites

    length = (suites.DOOR_STEPS if task.suite == "adroit"
              else suites.CONTROL_STEPS // suites.ACTION_REPEAT[task.env_id.split("-")[0]])
    chunk = max(1, round(profile.run.evaluate_every / length)) * length
    return replace(profile, episode_steps=length, run=replace(profile.run, evaluate_every=chunk))


def _changed(profile: Profile, changes: tuple[tuple[str, Any], ...]) -> Profile:
    """The profile with a run's changes; an unknown name or a value of another type is an InputError."""
    for name, value in changes:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", change_name(name, value)):
            raise InputError(f"the change {name} = {value!r} does not make a file name; valid values: numbers, truth "
                             "values, words of letters, digits, '.', '_', '-'")
        if name == "goal":
            continue
        if name == "distraction":
            _distraction(changes)
            continue
        section, _, field = name.partition(".")
        inner = getattr(profile, section, None)
        if not is_dataclass(inner):
            raise errors.unknown("change", name, ["goal", "distraction", *(f"{part.name}.…" for part in fields(profile)
                                                           if is_dataclass(getattr(profile, part.name)))])
        kinds = {part.name: part.type for part in fields(inner)}
        if field not in kinds:
            raise errors.unknown("change", name, [f"{section}.{part}" for part in kinds])
        known = getattr(inner, field)
        if any(isinstance(known, kind) != isinstance(value, kind) for kind in (bool, str, tuple)):
            raise InputError(f"the change {name} = {value!r} is of another kind than the profile's {known!r}")
        if kinds[field] == "int" and not isinstance(value, int):
            raise InputError(f"the change {name} = {value!r} must be a whole number, as the profile's {known!r} is")
        profile = replace(profile, **{section: replace(inner, **{field: value})})
    return profile


def _check_numbers(run: Run, profile: Profile) -> None:
    """InputError for a number that the run changes to what nothing can be made with; what it does not change is looked
    at by whoever is made with it."""
    changed = {name.partition(".")[0] for name, _ in run.changes}
    for agent in {"sac", "dreamer"} & changed:
        importlib.import_module(f".agents.{agent}", __package__).check_config(getattr(profile, agent))
    if "fb" in changed:
        forward_backward.check_config(profile.fb)
        if profile.fb.encoder not in encoders.NAMES:
            raise errors.unknown("encoder", profile.fb.encoder, encoders.NAMES)
    for name, least in (("run.evaluate_every", 1), ("run.evaluation_episodes", 1), ("run.fb_train_until", 0),
                        ("run.prefill", 0), ("reward.interval", 1), ("reward.sparse_interval", 1)):
        section, _, field = name.partition(".")
        errors.at_least(name, getattr(getattr(profile, section), field), least)
    for field in ("alpha", "beta", "sound_alpha", "sound_beta"):  # of either sign
        if not math.isfinite(getattr(profile.reward, field)):
            raise InputError(f"reward.{field} must be finite, got {getattr(profile.reward, field)}")


def changeable(run: Run, profile: Profile) -> set[str]:
    """The names of all changes (see `Run`) that could make a difference to a run of this method, agent and length."""
    method = METHODS[run.method]
    found = {"distraction", "run.evaluation_episodes"}
    found |= {f"reward.{number}" for number in _REWARD_NUMBERS.get(method.reward, {}).values()}
    if run.agent != "zero_shot":
        found |= {"run.evaluate_every"} | {f"{run.agent}.{part.name}" for part in fields(getattr(profile, run.agent))}
        found |= {f"run.{run.agent}_steps"} if run.steps is None else set()
        found |= {"reward.sparse_interval"} if method.env_reward == "sparse" else set()
    if "goal" in method.needs:
        found.add("goal")
    if method.fb:  # the method says which targets
        found |= {f"fb.{part.name}" for part in fields(profile.fb)} - {"fb.fb_targets"}
    if method.fb == "online":  # with the next action as printed, and for as long as the agent's replay grows
        found -= {"fb.next_action", "fb.updates", "fb.exploration_steps"}
        found |= {"run.fb_train_until", "run.prefill"}
    return found


def _listed(names: Iterable[str]) -> str:
    """Names of changes in words, those of an agent or of F and B by their section: "fb.…, goal, reward.alpha"."""
    return ", ".join(sorted({f"{name.partition('.')[0]}.…" if name.startswith(("sac.", "dreamer.", "fb.")) else name
                             for name in names}))


def _distraction(changes: tuple[tuple[str, Any], ...]) -> Any:
    """The `distractions.Distraction` among a run's changes, or None; InputError for one that there is not."""
    name = dict(changes).get("distraction")
    if name is None:
        return None
    from .distractions import Distraction

    kind, difficulty, movement = [*str(name).split("-"), "", ""][:3]
    if movement not in ("static", "dynamic"):
        raise InputError(f"unknown distraction {name!r}; valid: kind-difficulty-static or kind-difficulty-dynamic, "
                         "e.g. all-easy-dynamic")
    return Distraction(kind, difficulty, movement == "dynamic")


def total_steps(run: Run, profile: Profile) -> int:
    """Environment steps of a run; where a task's episodes are not the profile's, the nearest whole number of chunks."""
    if run.agent == "zero_shot":
        return 0
    steps = run.steps
    if steps is None:
        steps = profile.run.sac_steps if run.agent == "sac" else profile.run.dreamer_steps
    if get_task(run.task).suite != "metaworld":
        chunk = _fitted(run, profile).run.evaluate_every
        steps = max(1, round(steps / chunk)) * chunk
    return steps


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


class AgentView(gymnasium.Wrapper):
    """For an agent that sees pictures of another size than its reward model: `render()` draws the present state in a
    second environment of the agent's size, so that it sees in training exactly what it sees when it is evaluated."""

    def __init__(self, env: gymnasium.Env, twin: gymnasium.Env) -> None:
        super().__init__(env)
        self.twin: Any = twin
        twin.reset()

    def render(self) -> np.ndarray:
        """(size, size, 3) uint8 RGB of the state, at the twin's size."""
        inner: Any = self.env.unwrapped
        self.twin.set_state(inner.get_state())
        return self.twin.render()

    def close(self) -> None:
        self.twin.close()
        super().close()


# --- assembling -------------------------------------------------------------------------------------------------------


def load_parts(run: Run, profile: Profile) -> dict[str, Any]:
    """The trained models and the goal that the run's method needs, from the profile's folders.

    A missing one is an InputError that names the command which makes it.
    """
    from .encoders import get_encoder
    from .goals import FrameScorer, Goal
    from .video_model import VideoModel

    method, needed = METHODS[run.method], required(run, profile)
    parts: dict[str, Any] = {}
    if "goal" in needed:
        parts["goal"] = Goal.load(needed["goal"])
    if "video_model" in needed:
        parts["video_model"] = VideoModel.load(needed["video_model"], device=profile.device,
                                               dtype=working_dtype(profile))
    if "encoder" in needed:
        clip = profile.clip.pretrained or (needed.get("scorer"),)
        parts["encoder"] = get_encoder(profile.fb.encoder, video_model=parts["video_model"],
                                       scorer=FrameScorer.load(*clip) if profile.fb.encoder == "openclip" else None,
                                       components=profile.fb.components, device=profile.device
                                       ).load_pca(needed["encoder"])
    if method.fb == "explored":
        parts["fb"] = ForwardBackward.load(needed["fb"], device=profile.device)
        parts["fb"].freeze()
    elif method.fb == "online":
        config = replace(profile.fb, fb_targets="goal", next_action="policy")
        parts["fb"] = ForwardBackward(parts["encoder"].dim, _action_dim(run.task), config, run.seed, profile.device)
    return parts


def working_dtype(profile: Profile) -> torch.dtype:
    """What the video model computes in: bfloat16 for the hub's on a GPU, as its weights are, else float32."""
    large = profile.video.pretrained is not None and profile.device.startswith("cuda")
    return torch.bfloat16 if large else torch.float32


@lru_cache
def _action_dim(task: str) -> int:
    """Numbers in an action of the task."""
    env = envs.make_env(task)
    try:
        return int(np.prod(env.action_space.shape))
    finally:
        env.close()


def required(run: Run, profile: Profile) -> dict[str, Path]:
    """The files and folders that the run's method reads, by part; a missing one is an InputError that names it and the
    command which makes it."""
    needed, absent = _required(run, profile)
    for problem in absent.values():
        raise InputError(problem)
    return needed


def _required(run: Run, profile: Profile) -> tuple[dict[str, Path], dict[str, str]]:
    """What is there of the files and folders that the run's method reads, and for the others what to say."""
    method, where = METHODS[run.method], profiles.paths(profile)
    # F and B (and psi) depend on their own settings, the normaliser on the goal too
    own = "".join(f"+{change_name(name, value)}" for name, value in run.changes if name.startswith("fb."))
    seen = any(name in ("fb.encoder", "fb.components") for name, _ in run.changes)
    source = f"+goal-{run.goal_source}" if run.goal_source else ""
    needed: dict[str, Path] = {}
    absent: dict[str, str] = {}

    def need(part: str, path: Path, what: str, stage: str, command: str = "") -> None:
        needed[part] = path
        if not path.exists():
            del needed[part]
            if "+" in path.name or "goal_sources" in path.parts:
                absent[part] = (f"{what} is missing; it belongs at {path.relative_to(where.root).as_posix()}; what the "
                                f"grid declares is made with: python -m genreward.pipeline --profile {profile.name} "
                                "--only variants")
                return
            command = command or f"python -m genreward.pipeline --profile {profile.name} --only {stage}"
            absent[part] = f"{what} is missing ({path.name}); make it with: {command}"

    if "goal" in method.needs:
        folder = where.results / "goal_sources" / run.goal_source if run.goal_source else where.goals
        need("goal", folder / run.task, f"the goal of {run.task!r}"
             + (f" from the source {run.goal_source!r}" if run.goal_source else ""), "goals")
    if "video_model" in method.needs or "encoder" in method.needs:
        need("video_model", where.video_model, "the video model", "video_model")
    if "encoder" in method.needs:
        # one psi for all tasks, unless its settings are the run's own
        need("encoder", where.fb / f"{run.task}{own}-encoder.npz" if seen else where.psi, "the encoder psi", "fb")
        if profile.fb.encoder == "openclip" and profile.clip.pretrained is None:
            need("scorer", where.scorer, "the frame scorer", "scorer")
    if method.fb == "explored":
        need("fb", where.fb / f"{run.task}{own}.pt", f"the forward-backward model of {run.task!r}", "fb")
        if method.reward != "sparse":
            need("normaliser", where.fb / f"{run.task}{own}{source}-normaliser.json", f"the normaliser of {run.task!r}",
                 "fb")
    for name in method.weights:
        need(name, where.weights / "rewards" / name, f"the trained weights of {name}", "rewards",
             f"python -m genreward.rewards.{name} train --profile {profile.name}")
    if "demonstration" in method.needs:  # of the tasks that the video model is evaluated on, kept apart from the others
        apart = run.task in PAPER_TASKS
        need("demonstration", (where.in_domain_demos if apart else where.demos) / "metadata.jsonl",
             f"a demonstration of {run.task!r}", "demos",
             f"python -m genreward.demos --profile {profile.name}{' --in-domain' if apart else ''}")
    return needed, absent


# reward model -> what it is made with -> the number of `profiles.RewardConfig` that this is
_REWARD_NUMBERS = {
    "genreward": {"alpha": "alpha", "beta": "beta", "interval": "interval"},
    "genreward_video": {"alpha": "alpha", "interval": "interval"},
    "genreward_frame": {"beta": "beta", "interval": "interval"},
    "genreward_sound": {"alpha": "sound_alpha", "beta": "sound_beta", "interval": "interval"},
}


def reward_settings(run: Run, profile: Profile) -> dict[str, Any]:
    """The weights and intervals that the run's reward model is made with."""
    return {given: getattr(profile.reward, number)
            for given, number in _REWARD_NUMBERS.get(METHODS[run.method].reward, {}).items()}


def build_reward(run: Run, profile: Profile, parts: dict[str, Any]) -> RewardModel:
    """The reward model of the run's method, with the profile's weights."""
    method = METHODS[run.method]
    if method.weights:
        return _published(run, profile, parts)
    given = {name: parts.get(name) for name in method.needs}
    settings = reward_settings(run, profile)
    if method.reward == "sparse":  # it stands in for the environment's part, and pays as often
        settings["sparse_interval"] = profile.reward.sparse_interval
    model = make_reward(method.reward, given, **settings)
    if method.fb == "explored" and method.reward != "sparse":
        model.load_state_dict(files.read_json(required(run, profile)["normaliser"]))
    return model


def _published(run: Run, profile: Profile, parts: dict[str, Any]) -> RewardModel:
    """A reward model with trained weights of its own, at its publication's interval."""
    name, needed = METHODS[run.method].reward, required(run, profile)
    module = importlib.import_module(f".rewards.{name}", __package__)
    if name == "roboclip":
        shown = module.demonstration(needed["demonstration"].parent, run.task, profile.image_size)
        return make_reward(name, {"video_text": module.load(needed[name], profile.device), "demonstration": shown})
    given = {"goal": parts["goal"]} if "goal" in parts else {}
    if name == "diffusion_reward":  # standardised by statistics of the task
        given["task"] = run.task
    return module.load(needed[name], **given)


def build_env(run: Run, profile: Profile, parts: dict[str, Any], reward: RewardModel) -> GoalRewardEnv | OnlineFB:
    """The training environment: the task, the pay, and F and B learning around it where the method asks for that."""
    method = METHODS[run.method]
    task = envs.make_env(run.task, seed=run.seed, episode_steps=profile.episode_steps, size=profile.image_size,
                         distraction=_distraction(run.changes))
    env = GoalRewardEnv(task, reward, env_reward=method.env_reward, sparse_interval=profile.reward.sparse_interval)
    if method.fb == "online":
        return OnlineFB(env, parts["fb"], profile.run.fb_train_until, profile.run.prefill, run.seed)
    return env


def _view_size(run: Run, profile: Profile, reward: RewardModel) -> int:
    """Side length of the pictures that the environment draws: what the reward model looks at, else the agent's."""
    return reward.frame_size or profile.image_size


def _two_views(run: Run, profile: Profile, size: int) -> bool:
    """Whether the agent sees pictures, and of another size than those that the environment draws."""
    return sees_pictures(run, profile) and size != profile.image_size


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
             episode_steps: int = 256, pixels: bool = False, size: int = 64, distraction: Any = None
             ) -> dict[str, float]:
    """Mean dense return and share of episodes with success at any point, over `episodes` with seeds of their own.

    act  (observation or frame, whether an episode begins) -> action
    """
    env = envs.make_env(task, seed=seed, split="eval", episode_steps=episode_steps, size=size, distraction=distraction)
    returns, success = [], []
    try:
        for _ in range(episodes):
            observation, _ = env.reset()
            first, over, total = True, False, 0.0
            while not over:
                observation, reward, *ended, info = env.step(act(env.render() if pixels else observation, first))
                first, over, total = False, any(ended), total + reward
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


class Stale(InputError):
    """A record or checkpoint of the run's name that was made otherwise: other numbers, files or code."""


def identity(run: Run, profile: Profile) -> dict[str, Any]:
    """What a checkpoint must agree with: the run, the numbers it depends on, the files that it reads and the code.

    The code is that of the environment, the agent, the reward model and everything that they import from the package,
    a digest a module (`code_identity`). Versions of libraries are not in it, but in the record's provenance. Inputs
    that are not there are left out.
    """
    method = METHODS[run.method]
    numbers: dict[str, Any] = {
        "episode_steps": profile.episode_steps, "evaluate_every": profile.run.evaluate_every,
        "evaluation_episodes": profile.run.evaluation_episodes, "sparse_interval": profile.reward.sparse_interval,
        "method": {**asdict(method), "what": ""}, "task": get_task(run.task)}
    if run.agent != "zero_shot":
        numbers[run.agent] = getattr(profile, run.agent)
    if method.needs:
        numbers["reward"] = reward_settings(run, profile)
    if method.fb:
        numbers["fb"] = profile.fb
    if method.fb == "online":
        numbers["fb_train_until"] = [profile.run.fb_train_until, profile.run.prefill]
    described = asdict(run)
    described.pop("steps")  # a run may be taken further
    described["changes"] = dict(run.changes)
    roots = ["envs", "rewards.base",
             f"rewards.{method.reward}" if method.weights else get_reward(method.reward).__module__]
    decisive = DECISIVE
    if run.agent == "zero_shot":
        decisive = ("evaluate", "_zero_shot")
    else:
        roots.append(f"agents.{run.agent}")
        if sees_pictures(run, profile):
            decisive += ("AgentView",)
    if "goal" in method.needs:
        roots.append("goals")
    if method.fb:
        roots += ["encoders", "forward_backward"]
    return {"run": described, "numbers": {key: files.digest(value) for key, value in numbers.items()},
            "inputs": {part: _input_digest(path) for part, path in _required(run, profile)[0].items()},
            "code": {**code_identity.digests(roots), "training": code_identity.digest_of("training", decisive)}}


def _input_digest(path: Path) -> str:
    """`files.digest` of a file or folder, worked out once as long as no file in it changes its size or time."""
    inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return _digest_of_state(path, tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inside))


@lru_cache(maxsize=4096)
def _digest_of_state(path: Path, state: tuple) -> str:
    return files.digest(path)


def examine(run: Run, folder: Path | None = None, accept_code: bool = False, accept_inputs: bool = False
            ) -> tuple[str, str]:
    """How a run stands, and why, from its record and checkpoint: nothing is trained and nothing is changed.

    "done" (the reason names inputs that are not there to compare with); "partial" (begun, to be continued); "missing"
    (not begun); "damaged" (the record is cut short or was edited: training puts it right, from the checkpoint where
    there is one); "stale" (made with other numbers or, unless they are accepted, other files or code; the reason names
    what differs); "blocked" (something that it reads is not there yet).
    """
    profile = check_run(run)
    where = profiles.paths(profile)
    table = (folder or where.runs) / f"{run.run_id}.csv"
    me, absent = identity(run, profile), _required(run, profile)[1]
    if not table.is_file():
        if absent:
            return "blocked", next(iter(absent.values()))
        begun = (where.checkpoints / f"{run.run_id}.pt").is_file()
        return ("partial", "a checkpoint without a record") if begun else ("missing", "")
    try:
        results.read_run(table)
        kept = files.read_json(table.with_suffix(".json"))
        _same(kept.get("identity"), me, table, accept_code, {*absent, *(me["inputs"] if accept_inputs else ())})
    except Stale as difference:
        return "stale", str(difference)
    except InputError as problem:
        return "damaged", str(problem)
    steps, wanted = int(kept.get("steps", 0)), total_steps(run, profile)
    if steps >= wanted:  # a clone has the records, but not all that they were made from
        return "done", f"not compared with what is not here: {', '.join(absent)}" if absent else ""
    return ("blocked", next(iter(absent.values()))) if absent else ("partial", f"{steps} of {wanted} steps")


def train_agent(run: Run, progress: bool = True, folder: Path | None = None, parts: dict[str, Any] | None = None,
                on_progress: Callable[[int, int, dict[str, float] | None], None] | None = None,
                accept_code: bool = False) -> Path:
    """Train (or go on training) the run's agent; returns the table of its rows, `<folder>/<run_id>.csv`.

    Rows, one an evaluation: return (mean dense return of an episode), success (share of episodes), share_<term> (of all
    that was paid since the start, in absolute value), seconds. A finished run returns at once; one whose record was
    damaged gets it back from its checkpoint, or begins anew where there is none. A record or checkpoint of other
    numbers, weights, goal or code is an InputError that names the difference; with `accept_code`, other code is
    accepted and the record says which codes took part. Another process at work on the same run is a `locks.Busy`.

    on_progress: called with (steps taken, steps in all, None) after each step and with what was measured after each
    evaluation.
    """
    profile = check_run(run)
    where = profiles.paths(profile)
    folder = folder or where.runs
    with locks.hold(locks.of_run(run)):
        for place in (folder, where.checkpoints):  # what a kill in the middle of writing left behind
            for left_over in place.glob(f".{run.run_id}.*"):
                left_over.unlink(missing_ok=True)
        state, why = examine(run, folder, accept_code)
        if state == "stale":
            raise Stale(why)
        if state == "done":
            return folder / f"{run.run_id}.csv"
        estimates.require_device(profile)
        for place in (folder, where.checkpoints):
            files.require_writable(place)
        return _train(run, profile, folder, parts, progress, on_progress, accept_code)


def _train(run: Run, profile: Profile, folder: Path, parts: dict[str, Any] | None, progress: bool,
           on_progress: Callable[[int, int, dict[str, float] | None], None] | None, accept_code: bool) -> Path:
    checkpoint = profiles.paths(profile).checkpoints / f"{run.run_id}.pt"
    steps, chunk = total_steps(run, profile), profile.run.evaluate_every
    table = folder / f"{run.run_id}.csv"
    parts = load_parts(run, profile) if parts is None else parts
    me = identity(run, profile)
    if run.agent == "zero_shot":
        began = time.perf_counter()
        measured = _zero_shot(run, profile, parts)
        seconds = time.perf_counter() - began
        return _write(folder, run, _rows(run, 0, {**measured, "seconds": seconds}), me, seconds, 0)
    reward = build_reward(run, profile, parts)
    size = _view_size(run, profile, reward)
    env = build_env(run, replace(profile, image_size=size), parts, reward)
    online = env if isinstance(env, OnlineFB) else None
    ledger = (online.paid if online else env).ledger
    agent = _agent(run, profile, env)
    learning: Any = env
    if _two_views(run, profile, size):
        learning = AgentView(env, envs.make_env(run.task, seed=run.seed, episode_steps=profile.episode_steps,
                                                size=profile.image_size, distraction=_distraction(run.changes)))
    rows: list[dict[str, Any]] = []
    earlier: list[dict[str, str]] = []  # codes, other than this one, under which a part of the run was made
    taken, seconds = 0, 0.0
    base: Any = env.unwrapped
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint)
        _same(state.get("identity"), me, checkpoint, accept_code)
        _same_rounding(run, state.get("rounded_as"))
        earlier = list(state.get("earlier_code", []))
        if (code := state["identity"].get("code", {})) != me["code"]:
            earlier.append(code)
        agent.load_state_dict(state["agent"])
        ledger.load_state_dict(state["ledger"])
        reward.load_state_dict(state["reward"])
        base.set_rng_state(state["env"])
        if online:
            online.load_state_dict(state["online_fb"])
        rows, taken, seconds = state["rows"], state["taken"], state["seconds"]
    bar = tqdm(total=steps, initial=taken, desc=run.run_id, unit="step", disable=not progress)
    pixels = sees_pictures(run, profile)
    count = taken

    def on_step() -> None:
        nonlocal count
        count += 1
        bar.update()
        if on_progress:
            on_progress(count, steps, None)

    try:
        while taken < steps:
            began = time.perf_counter()
            if run.agent == "sac":
                agent.learn(chunk, on_step)
            else:
                _learn_dreamer(agent, learning, pixels, chunk, taken, on_step)
            taken += chunk
            seconds += time.perf_counter() - began
            measured = evaluate(_policy(run, agent), run.task, run.seed * 1000 + taken // chunk,
                                profile.run.evaluation_episodes, profile.episode_steps, pixels, profile.image_size,
                                _distraction(run.changes))
            measured |= {f"share_{name}": share for name, share in ledger.shares().items()}
            measured["seconds"] = seconds
            rows += _rows(run, taken, measured)
            bar.set_postfix(ret=f"{measured['return']:.0f}", success=f"{measured['success']:.2f}")
            state = {"format": FORMAT, "identity": me, "agent": agent.state_dict(), "rows": rows, "taken": taken,
                     "seconds": seconds, "ledger": ledger.state_dict(), "reward": reward.state_dict(),
                     "env": base.rng_state(), "earlier_code": earlier, "rounded_as": rounding.taken()}
            if online:
                state["online_fb"] = online.state_dict()
            with files.atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
            _write(folder, run, rows, me, seconds, taken, earlier)
            if on_progress:
                on_progress(taken, steps, measured)
        if examine(run, folder, accept_code)[0] != "done":  # killed between its checkpoint and its record, or damaged
            _write(folder, run, rows, me, seconds, taken, earlier)
    finally:
        bar.close()
        learning.close()
    return table


def _zero_shot(run: Run, profile: Profile, parts: dict[str, Any]) -> dict[str, float]:
    """Return and success of F and B's own policy toward the goal frame, in evaluation environments of the run's seed.
    """
    fb, encoder = parts["fb"], parts["encoder"]
    z = fb.goal_z(encoder.encode(parts["goal"].frame[None]))
    return evaluate(lambda frame, first: fb.policy(encoder.encode(frame[None]), z)[0], run.task, run.seed * 1000,
                    profile.run.evaluation_episodes, profile.episode_steps, True, parts["video_model"].image_size,
                    _distraction(run.changes))


def sees_pictures(run: Run, profile: Profile) -> bool:
    """Whether the run's policy acts on pictures instead of observations."""
    return run.agent == "zero_shot" or (run.agent == "dreamer" and profile.dreamer.observation == "pixels")


def paying_env(run: Run, profile: Profile, reward: RewardModel, split: str, seed: int | None = None,
               size: int | None = None) -> GoalRewardEnv:
    """An environment of the split and seed (None: the run's own) that pays what the run is paid."""
    task = envs.make_env(run.task, seed=run.seed if seed is None else seed, split=split,
                         size=size or profile.image_size, episode_steps=profile.episode_steps,
                         distraction=_distraction(run.changes))
    return GoalRewardEnv(task, reward, env_reward=METHODS[run.method].env_reward,
                         sparse_interval=profile.reward.sparse_interval)


def restore(run: Run, split: str = "eval", seed: int | None = None) -> tuple[Callable, gymnasium.Env]:
    """A finished run's policy, (observation or frame, whether an episode begins) -> action, and an environment of the
    split and seed (None: the run's own) that pays what the run was paid; its `render()` is what the policy sees.

    InputError when the run's checkpoint is not here (checkpoints are not committed) or what it reads is missing.
    """
    profile = check_run(run)
    path = profiles.paths(profile).checkpoints / f"{run.run_id}.pt"
    parts = load_parts(run, profile)
    state: dict[str, Any] = {} if run.agent == "zero_shot" else read_checkpoint(path)
    if "online_fb" in state:
        parts["fb"].load_state_dict(state["online_fb"]["fb"])
    reward = build_reward(run, profile, parts)
    reward.load_state_dict(state.get("reward", reward.state_dict()))
    size = parts["video_model"].image_size if run.agent == "zero_shot" else _view_size(run, profile, reward)
    env: Any = paying_env(run, profile, reward, split, seed, size)
    if run.agent == "zero_shot":
        fb, encoder = parts["fb"], parts["encoder"]
        z = fb.goal_z(encoder.encode(parts["goal"].frame[None]))
        return lambda frame, first: fb.policy(encoder.encode(frame[None]), z)[0], env
    agent = _agent(run, profile, env)
    agent.load_state_dict(state["agent"])
    if _two_views(run, profile, size):
        env = AgentView(env, envs.make_env(run.task, split=split, episode_steps=profile.episode_steps,
                                           size=profile.image_size, distraction=_distraction(run.changes)))
    return _policy(run, agent), env


def _rows(run: Run, step: int, measured: dict[str, float]) -> list[dict[str, Any]]:
    return [{"experiment": run.experiment, "method": run.label, "task": run.task, "seed": run.seed, "step": step,
             "metric": metric, "value": float(value)} for metric, value in measured.items()]


def _write(folder: Path, run: Run, rows: list[dict[str, Any]], me: dict[str, Any], seconds: float, taken: int,
           earlier: list[dict[str, str]] | None = None) -> Path:
    more = {"earlier_code": earlier} if earlier else {}
    return results.write_run(folder, run.run_id, rows,
                             {**results.provenance(seconds=seconds), "identity": me, "steps": taken, **more})


def adopt(run: Run, by: str, how: str) -> None:
    """Give a run's record and checkpoint today's code, which was found to give the same numbers when `by` was made
    again (`experiments.vouch`). The code before stays among `earlier_code`; `vouched` says when and how they were
    compared: with the record, or made with both codes on one machine."""
    profile = check_run(run)
    where, me = profiles.paths(profile), identity(run, profile)
    with locks.hold(locks.of_run(run)):
        path = where.runs / f"{run.run_id}.json"
        kept = files.read_json(path)
        earlier = [*kept.get("earlier_code", []), kept["identity"].get("code", {})]
        vouched = [*kept.get("vouched", []), {"by": by, "commit": results.commit()[0], "how": how}]
        checkpoint = where.checkpoints / f"{run.run_id}.pt"
        if checkpoint.is_file():
            state = read_checkpoint(checkpoint)
            state["earlier_code"] = [*state.get("earlier_code", []), state["identity"].get("code", {})]
            state["identity"]["code"] = me["code"]
            with files.atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
        files.write_json(path, {**kept, "identity": {**kept["identity"], "code": me["code"]}, "earlier_code": earlier,
                                "vouched": vouched})


def _same_rounding(run: Run, theirs: str | None) -> None:
    """InputError where the run was begun with MKL told of another maker's processor than this process's is, or of none:
    gone on with here it would end with neither's numbers."""
    if theirs != rounding.taken():
        told = f" --rounded-as {theirs}" if theirs else ""
        raise InputError(f"{run.run_id} was begun rounded as by {rounding.WHOSE[theirs]} processor; go on with: python "
                         f"-m genreward.experiments run{told}, or move its checkpoint away to train anew")


def _same(theirs: Any, mine: dict[str, Any], path: Path, accept_code: bool = False, absent: Iterable[str] = ()) -> None:
    """A `Stale` that names each difference between a record's identity and this run's; none of code if accepted, and
    none of inputs that are `absent` (or do not matter)."""
    def flat(thing: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(thing, dict):
            return {name: thing}
        return {key: value for part, inner in thing.items() for key, value in flat(inner, f"{name}.{part}").items()}

    theirs = theirs if isinstance(theirs, dict) else {}
    other, own = flat(theirs), flat(mine)
    different = [key.lstrip(".") for key in sorted(other.keys() | own.keys()) if other.get(key) != own.get(key)]
    different = [name for name in different if name not in {f"inputs.{part}" for part in absent}]
    unknown = bool(mine.get("code")) and not theirs.get("code")
    if accept_code or unknown:
        different = [name for name in different if not name.startswith("code.")]
    if unknown:  # a record of before the code was in the identity; methods and tasks were code then
        different = [name for name in different if name not in ("numbers.method", "numbers.task")]
        if not accept_code:
            different.append("code (which one was not recorded)")
    if different:
        raise Stale(f"{path.name} was made with other {', '.join(different)}; move it away to train anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, help=", ".join(METHODS))
    parser.add_argument("--agent", default="sac", help=", ".join(AGENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--experiment", help="the name under which the rows are kept (default: the profile's)")
    parser.add_argument("--steps", type=int, default=None, help="environment steps (default: the profile's)")
    parser.add_argument("--change", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a number of the profile that the method reads, by its dotted name, e.g. sac.gamma 0.95 "
                        "(of genreward: reward.alpha 0.1; of genreward_sound: reward.sound_alpha 0.1); or goal and a "
                        "source, or distraction and its name")
    parser.add_argument("--accept-code", action="store_true", help="go on with what other code has begun")
    arguments = parser.parse_args()
    changes = tuple((name, value if name == "goal" else _parsed(value)) for name, value in arguments.change)
    print(train_agent(Run(arguments.task.removesuffix("-v3"), arguments.method, arguments.agent, arguments.seed,
                          arguments.profile, arguments.experiment or arguments.profile, arguments.steps, changes),
                      accept_code=arguments.accept_code))


def _parsed(word: str) -> Any:
    """A command line's word as a truth value or a number, where it is one."""
    if word in ("True", "False"):
        return word == "True"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


if __name__ == "__main__":
    errors.cli(main)
