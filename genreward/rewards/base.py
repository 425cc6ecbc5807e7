"""What a reward model is, where all of them are listed, and how one is paid to an agent.

A reward model is a pure function of what has happened in an episode so far: `terms(history, t)` says what is paid for
step t. Offline, `score(trajectory)` calls it on every prefix of a recorded episode; online, `GoalRewardEnv` calls the
same method on the history that it gathers, so what a study measures is what an agent is paid. In the flow this stands
behind goals and the forward-backward representation and before the agents.
"""

from __future__ import annotations

import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pandas as pd

from ..errors import InputError, unknown
from ..trajectory import Trajectory, check_frames

ENV_REWARDS = ("dense", "sparse", "none")


@dataclass(frozen=True)
class RewardProperties:
    """The columns of the paper's Table 1, and what a reader must know beside them.

    demo_free     needs no demonstration of the evaluated task
    generated     compares with, or asks, a generative video model
    action_aware  depends on the action taken, not on pictures alone
    citation      where the reward was published
    deviations    where the code here differs from that publication, one sentence each
    """

    demo_free: bool
    generated: bool
    action_aware: bool
    citation: str
    deviations: tuple[str, ...] = ()


class Frames(dict[int, np.ndarray]):
    """step -> (H, W, 3) uint8, for the steps that were rendered; asking for another one is an InputError."""

    def __missing__(self, step: int) -> np.ndarray:
        raise InputError(f"frame {step} of the episode was not rendered; the reward model's needs_frame() must ask for "
                         f"it (rendered: {len(self)} frames)")


@dataclass
class History:
    """What has happened in an episode up to step t = len(actions), with frames only where they were asked for.

    frames         step -> (H, W, 3) uint8; step 0 is the picture after `reset`
    states         t+1 observations; actions: t actions; rewards, success: t values of the environment
    episode_steps  the planned length of the episode
    ended          whether step t was the last (terminated or truncated)
    cache          what a reward model wants to keep within the episode (features of frames); never needed to resume
    """

    episode_steps: int
    task: str = ""
    frames: dict[int, np.ndarray] = field(default_factory=Frames)
    states: list[Any] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    ended: bool = False
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.frames = Frames(self.frames)

    def __len__(self) -> int:
        return len(self.actions)

    def start(self, state: Any, frame: np.ndarray | None) -> None:
        """Enter what `reset` gave."""
        self.states.append(state)
        if frame is not None:
            self.frames[0] = frame

    def append(self, state: Any, action: np.ndarray, reward: float, success: bool, frame: np.ndarray | None,
               ended: bool) -> None:
        """Enter one step: the state that it led to and, where it was rendered, that state's frame."""
        self.actions.append(action)
        self.states.append(state)
        self.rewards.append(float(reward))
        self.success.append(bool(success))
        self.ended = ended
        if frame is not None:
            self.frames[len(self)] = frame

    def clip(self, steps: np.ndarray) -> np.ndarray:
        """The frames at those steps, (len(steps), H, W, 3) uint8; InputError for one that nobody rendered."""
        return np.stack([self.frames[int(step)] for step in steps])


class RewardModel(ABC):
    """Base of all reward models. A subclass gives `properties` and `terms`, and `needs_frame` where it looks at
    pictures.

    name          set by `register`
    interval      steps between payments, 1 = every step; a longer one than an episode is refused (`pays_within`)
    frame_size    side length of the square frames that it can read, or None when any will do
    replaces_env  whether it pays a term "env" in the place of the environment's own reward
    """

    name: ClassVar[str] = ""
    replaces_env: ClassVar[bool] = False
    properties: RewardProperties
    interval: int = 1
    frame_size: int | None = None

    @abstractmethod
    def terms(self, history: History, t: int) -> dict[str, float]:
        """What is paid for step `t` (1-based, the step just taken), by term and with its weight applied.

        It may look at the history up to `t` only. A term named "env" would stand in for the environment's own reward;
        only a class that says so (`replaces_env`) may pay one.
        """

    def pay(self, history: History, t: int) -> dict[str, float]:
        """What `terms` pays for step `t`, as plain finite numbers; InputError that names the reward, the step and the
        term where it is anything else."""
        where = f"reward {self.name or type(self).__name__!r} at step {t}:"
        terms = self.terms(history, t)
        if not isinstance(terms, Mapping):
            raise InputError(f"{where} terms() must return a dict of numbers by the term's name, such as "
                             f"{{'video': 0.5}}; got {terms!r}")
        paid = {}
        for name, value in terms.items():
            try:
                paid[name] = float(value)
            except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of more than one number
                raise InputError(f"{where} the term {name!r} must be one number, got {value!r}") from None
            if not math.isfinite(paid[name]):
                raise InputError(f"{where} the term {name!r} must be finite, got {paid[name]}")
            if name == "env" and not self.replaces_env:
                raise InputError(f"{where} a term called 'env' would replace the environment's own reward; give it "
                                 "another name, or set replaces_env = True in the class if it shall")
        return paid

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """Whether the picture after step `t` (0: after `reset`) must be rendered in an episode of that length."""
        return False

    def pays_within(self, episode_steps: int) -> bool:
        """Whether each of its terms is due at least once in an episode of that length; to be overridden by a model
        that does not pay by its `interval`."""
        return self.interval <= episode_steps

    def reset(self, history: History) -> None:  # noqa: B027
        """Called when an episode has begun; `history` holds the first observation."""

    def prepare(self, history: History, trajectory: Trajectory) -> None:  # noqa: B027
        """Called before a recorded episode is scored: a place to fill `history.cache` in one batch."""

    def state_dict(self) -> dict[str, Any]:
        """What the model has measured since it was made (normalisers), for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""

    @classmethod
    def build(cls, parts: dict[str, Any], **settings: Any) -> RewardModel:
        """Make the model from shared `parts` (video_model, goal, fb, encoder, ...): those that its constructor names
        are handed over, `settings` overrule them, an unknown setting is an InputError."""
        known = [name for name in inspect.signature(cls).parameters if name != "self"]
        for name in settings:
            if name not in known:
                raise unknown(f"setting of reward {cls.name!r}:", name, known)
        given = {name: parts[name] for name in known if parts.get(name) is not None} | settings
        missing = [name for name, parameter in inspect.signature(cls).parameters.items()
                   if parameter.default is inspect.Parameter.empty and name not in given]
        if missing:
            raise InputError(f"reward {cls.name!r} cannot be made without {', '.join(missing)}")
        return cls(**given)

    def score_terms(self, trajectory: Trajectory) -> dict[str, np.ndarray]:
        """Every term along a recorded episode: name -> (T,) float32. InputError for a trajectory that it cannot read.

        The episode is replayed step by step through `terms`, exactly as `GoalRewardEnv` does online.
        """
        check_trajectory(self, trajectory)
        steps = len(trajectory)
        history = History(steps, trajectory.task)

        def frame(t: int) -> np.ndarray | None:
            return trajectory.frames[t] if trajectory.frames is not None and self.needs_frame(t, steps) else None

        history.start(trajectory.states[0], frame(0))
        self.prepare(history, trajectory)
        self.reset(history)
        paid: dict[str, np.ndarray] = {}
        for t in range(1, steps + 1):
            history.append(trajectory.states[t], trajectory.actions[t - 1], trajectory.rewards[t - 1],
                           trajectory.success[t - 1], frame(t), t == steps)
            for name, value in self.pay(history, t).items():
                paid.setdefault(name, np.zeros(steps, np.float32))[t - 1] = value
        return paid

    def score(self, trajectory: Trajectory) -> np.ndarray:
        """(T,) float32: what the model pays at each step, the sum of its terms (Eq. 10 without the environment)."""
        terms = self.score_terms(trajectory)
        return np.sum(list(terms.values()), axis=0, dtype=np.float32) if terms else np.zeros(len(trajectory),
                                                                                             np.float32)


def check_trajectory(model: RewardModel, trajectory: Trajectory) -> None:
    """InputError unless the trajectory has at least two steps, finite numbers and the frames that `model` asks for."""
    steps = len(trajectory)
    if steps < 2:
        raise InputError(f"a trajectory to score must have at least 2 steps, got {steps}")
    for name in ("states", "actions", "rewards"):
        if not np.all(np.isfinite(getattr(trajectory, name))):
            raise InputError(f"the trajectory's {name} hold NaN or infinite numbers")
    if trajectory.frames is not None:
        check_frames(trajectory.frames, model.frame_size, "the trajectory's frames", least=2)
    elif any(model.needs_frame(t, steps) for t in range(steps + 1)):
        raise InputError(f"reward {model.name!r} looks at frames and the trajectory has none; record it with frames")


# ---------------------------------------------------------------------------------------------------- the registry

_REGISTRY: dict[str, type[RewardModel]] = {}


def register(name: str) -> Callable[[type[RewardModel]], type[RewardModel]]:
    """Class decorator: list a reward model under `name`. Works from outside the package as well."""

    def enter(model: type[RewardModel]) -> type[RewardModel]:
        if not (isinstance(model, type) and issubclass(model, RewardModel)):
            raise InputError(f"reward {name!r} must be a subclass of RewardModel, got {model!r}")
        if not isinstance(getattr(model, "properties", None), RewardProperties):
            raise InputError(f"reward {name!r} needs `properties`, a RewardProperties")
        known = _REGISTRY.get(name)
        module = model.__module__
        if module == "__main__":  # `python -m genreward.rewards.x` runs a module that the package has imported already
            module = getattr(sys.modules[module].__spec__, "name", module)
        if known is not None and (known.__module__, known.__qualname__) != (module, model.__qualname__):
            raise InputError(f"the reward name {name!r} is taken by {known.__module__}.{known.__qualname__}")
        model.name = name
        _REGISTRY[name] = model
        return model

    return enter


def get_reward(name: str) -> type[RewardModel]:
    """The class registered under `name`; an unknown one is an InputError that lists the valid names."""
    if name not in _REGISTRY:
        raise unknown("reward", name, _REGISTRY)
    return _REGISTRY[name]


def make_reward(name: str, parts: dict[str, Any] | None = None, **settings: Any) -> RewardModel:
    """Make the reward `name` from shared parts and settings; see `RewardModel.build`."""
    return get_reward(name).build(parts or {}, **settings)


def available() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def table1() -> pd.DataFrame:
    """The paper's Table 1 for every registered reward: one row a name, made from its `properties`."""
    rows = {name: {"demo-free": model.properties.demo_free, "generated": model.properties.generated,
                   "action-aware": model.properties.action_aware, "citation": model.properties.citation,
                   "deviations": " ".join(model.properties.deviations)} for name, model in sorted(_REGISTRY.items())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("reward")


# ---------------------------------------------------------------------------------------------------- being paid

class RewardLedger:
    """How much of what an agent was paid came from each term.

    `totals` are plain sums, `paid` sums of absolute values; a term's share is its part of all that was paid in absolute
    value, so that a penalty counts as much as a bonus.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.totals: dict[str, float] = {}
        self.paid: dict[str, float] = {}

    def add(self, terms: dict[str, float]) -> None:
        """Enter what one step paid, by term."""
        self.steps += 1
        for name, value in terms.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.paid[name] = self.paid.get(name, 0.0) + abs(value)

    def shares(self) -> dict[str, float]:
        """Term -> share in [0, 1]; they add up to 1, or are all 0 when nothing was paid."""
        everything = sum(self.paid.values())
        return {name: value / everything if everything else 0.0 for name, value in self.paid.items()}

    def state_dict(self) -> dict[str, Any]:
        """The ledger as plain numbers, for checkpoints."""
        return {"steps": self.steps, "totals": dict(self.totals), "paid": dict(self.paid)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps, self.totals, self.paid = state["steps"], dict(state["totals"]), dict(state["paid"])


class GoalRewardEnv(gymnasium.Wrapper):
    """Pays an agent r = (the reward model's terms) + r_env (Eq. 10) in any gymnasium environment.

    Frames come from the environment's `render()`, at the steps for which the reward model asks and at no others.
    `info["reward_terms"]` holds what each term paid for the step, weights applied; the last step of an episode adds
    `info["episode_terms"]`, their sums over it. `ledger` runs on over all episodes; `history` is the present episode.

    env_reward       what r_env is: "dense" (`info["dense_reward"]`, else the environment's reward), "sparse" (the same
                     at every `sparse_interval`-th step of the episode, 0 between), "none" (0), or None (whatever the
                     environment pays)
    episode_steps    length of an episode; by default what the environment says (`episode_steps` or its spec)
    """

    def __init__(self, env: gymnasium.Env, reward_model: RewardModel, env_reward: str | None = None,
                 sparse_interval: int = 128, episode_steps: int | None = None) -> None:
        super().__init__(env)
        if env_reward is not None and env_reward not in ENV_REWARDS:
            raise unknown("env_reward", env_reward, ENV_REWARDS)
        if sparse_interval < 1:
            raise InputError(f"sparse_interval must be at least 1, got {sparse_interval}")
        if episode_steps is None:
            episode_steps = (env.get_wrapper_attr("episode_steps") if env.has_wrapper_attr("episode_steps")
                             else getattr(env.spec, "max_episode_steps", None))
        if not episode_steps or episode_steps < 1:
            raise InputError(f"{env} does not say how long an episode is; give episode_steps, at least 1")
        if not reward_model.pays_within(episode_steps):
            raise InputError(f"a term of reward {reward_model.name or type(reward_model).__name__!r} is due every "
                             f"{reward_model.interval} steps only, and never in an episode of {episode_steps}")
        if env_reward == "sparse" and sparse_interval > episode_steps:
            raise InputError(f"env_reward='sparse' is due every {sparse_interval} steps only (sparse_interval), and "
                             f"never in an episode of {episode_steps}")
        self.reward_model = reward_model
        self.env_reward = env_reward
        self.sparse_interval = sparse_interval
        self.steps = int(episode_steps)
        self.ledger = RewardLedger()
        self.history = History(self.steps)
        self.episode_terms: dict[str, float] = {}

    @property
    def spec(self) -> None:
        """None: a wrapper that holds trained models cannot be remade from a name."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode (and render its first frame where the reward model asks for it)."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.history = History(self.steps, self._task(info))
        self.history.start(deepcopy(observation), self._frame(0))
        self.episode_terms = {}
        self.reward_model.reset(self.history)
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step, paid by Eq. 10. A NaN or infinite action is an InputError, before it is taken."""
        if not np.all(np.isfinite(action)):
            raise InputError(f"the action holds NaN or infinite numbers: {np.asarray(action).tolist()}")
        observation, reward, terminated, truncated, info = self.env.step(action)
        dense = float(info.get("dense_reward", reward))
        t = len(self.history) + 1
        ended = bool(terminated or truncated)
        self.history.append(deepcopy(observation), np.array(action), dense, bool(info.get("success", False)),
                            self._frame(t), ended)
        r_env = self._env_term(float(reward), dense, t)
        if not math.isfinite(r_env):
            raise InputError(f"the environment's own reward must be finite, got {r_env} at step {t}")
        terms = {"env": r_env} | self.reward_model.pay(self.history, t)
        self.ledger.add(terms)
        for name, value in terms.items():
            self.episode_terms[name] = self.episode_terms.get(name, 0.0) + value
        info = dict(info) | {"reward_terms": terms}
        if ended:
            info["episode_terms"] = dict(self.episode_terms)
        return observation, float(sum(terms.values())), terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """The episode so far, the ledger and the model's normalisers: what a resumed run needs beside the inner
        environment's own state."""
        history = {name: value for name, value in vars(self.history).items() if name != "cache"}
        history["frames"] = dict(self.history.frames)  # a plain one: what a checkpoint is allowed to hold
        return deepcopy({"history": history, "episode_terms": self.episode_terms, "ledger": self.ledger.state_dict(),
                         "reward_model": self.reward_model.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the inner environment's state is its owner's to restore."""
        state = deepcopy(state)
        self.history = History(**state["history"])
        self.episode_terms = state["episode_terms"]
        self.ledger.load_state_dict(state["ledger"])
        self.reward_model.load_state_dict(state["reward_model"])

    def _task(self, info: dict[str, Any]) -> str:
        """The task's name: what `reset` says in `info["task"]`, else the environment's `task` or its name; else ""."""
        task = info.get("task") or getattr(self.env.unwrapped, "task", "")
        return task if isinstance(task, str) else str(getattr(task, "name", ""))

    def _frame(self, t: int) -> np.ndarray | None:
        if not self.reward_model.needs_frame(t, self.steps):
            return None
        try:
            frame = self.env.render()
        except Exception as problem:  # what comes of a missing render_mode is each environment's own affair
            if self.env.render_mode is not None:
                raise
            raise InputError(f"{self.env}.render() failed ({type(problem).__name__}: {problem}); make the environment "
                             "with render_mode='rgb_array'") from problem
        if frame is None:
            raise InputError(f"{self.env}.render() gave nothing; make the environment with render_mode='rgb_array'")
        return check_frames(np.asarray(frame)[None], self.reward_model.frame_size, "the rendered frame")[0]

    def _env_term(self, reward: float, dense: float, t: int) -> float:
        if self.env_reward == "none":
            return 0.0
        if self.env_reward == "sparse":
            return dense if t % self.sparse_interval == 0 else 0.0
        return dense if self.env_reward == "dense" else reward
