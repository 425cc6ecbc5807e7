"""Environments beside Meta-World, on the same interface: six of the DeepMind Control Suite, and Adroit's door.

`envs.make_env` makes them by the task's name. As in `envs.MetaWorldEnv`: a flat float32 observation, actions in
[-1, 1], success and the dense reward in `info`, episodes that end by truncation, a picture only when `render()` is
called, seeds of their own for training and evaluation, a state to render from, and distractions.

**DeepMind Control Suite** (Tunyasuvunakool et al. 2020), through dm_control. An episode is 1,000 of the suite's control
steps; each action is held for 2 of them (walker, finger) or 4 (cheetah, reacher, cartpole, ball in cup), so an agent
takes 500 or 250 steps. Rewards are summed over the repeat: the undiscounted return of an episode is out of 1,000, as
published. *Success*: the suite defines none, but all of its rewards lie in [0, 1] with 1 at the goal, so a state counts
as success where the reward of the last control step is at least 0.9. Where the suite's reward is 0 or 1 (reacher-easy,
finger-spin, ball_in_cup-catch) that is its own; for the others it is this project's.

**Adroit door** (Rajeswaran et al. 2018), through gymnasium-robotics: 28 joints of an arm and hand, 200 steps; success
is the package's, the door's hinge at 1.35 rad or more. In the pinned release the dense reward *pays for distance*
between palm and handle (its sign was lost in a rewrite; fixed upstream in a later version of the environment, see
Gymnasium-Robotics pull request 220); here the published sign is put back. A test holds the two together.

There is no scripted expert in either suite: what needs demonstrations (clips of success, in-domain finetuning) needs
them from the user, or from a trained agent.
"""

from __future__ import annotations

import contextlib
import io
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from .envs import GOALS, REWARDS, Renderer, episode_key
from .errors import InputError, unknown
from .tasks import Task, get_task

if TYPE_CHECKING:
    from .distractions import Distraction

CONTROL_STEPS = 1000  # of dm_control, an episode
ACTION_REPEAT = {"walker": 2, "finger": 2, "cheetah": 4, "reacher": 4, "cartpole": 4, "ball_in_cup": 4}
SUCCESS_REWARD = 0.9  # of a control step of dm_control, in [0, 1]
DOOR_STEPS = 200
DOOR_CAMERA_POSITION = (0.0, -0.95, 0.95)  # moved back from the package's own, which cuts the door off
START_SEED = 2512  # fixes the fifty starts


class SuiteEnv(gymnasium.Env):
    """What the environments here have in common; a suite gives `_begin`, `_advance`, the model and its data.

    observation  flat float32
    action       float32 in [-1, 1]; values beyond are clipped, a NaN or a wrong shape is refused
    reward       "dense": the suite's own; "sparse": that reward every `sparse_interval` steps, else 0
    info         success (0 or 1, this step), success_any (so far), dense_reward
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    camera: str
    sky: bool = False
    backdrop: tuple[str, ...] = ()  # bodies that give way to a distracting background
    steps_default: int

    def __init__(self, task: str | Task, seed: int = 0, reward: str = "dense", episode_steps: int | None = None,
                 size: int = 64, sparse_interval: int = 128, goals: str = "any",
                 distraction: Distraction | None = None) -> None:
        self.task = get_task(task)
        if reward not in REWARDS:
            raise unknown("environment reward", reward, REWARDS)
        if goals not in ("fifty", "any"):
            raise unknown("choice of goals", goals, ("fifty", "any"))
        episode_steps = self.steps_default if episode_steps is None else episode_steps
        if episode_steps < 1 or sparse_interval < 1 or size < 8:
            raise InputError(f"episode_steps and sparse_interval must be at least 1 and size at least 8, got "
                             f"{episode_steps}, {sparse_interval}, {size}")
        self.reward, self.episode_steps, self.size = reward, episode_steps, size
        self.sparse_interval, self.goals = sparse_interval, goals
        self.render_mode = "rgb_array"
        self._renderer: Renderer | None = None
        self._steps: int | None = None
        self.seed_goals(seed)
        self._episode = episode_key(self._rng)
        self.set_distraction(distraction)

    # what a suite gives

    @property
    @abstractmethod
    def _model(self) -> Any:
        """MuJoCo's compiled model."""

    @property
    @abstractmethod
    def data(self) -> Any:
        """MuJoCo's data of the current state."""

    @abstractmethod
    def _begin(self, seed: int) -> np.ndarray:
        """Start the episode that `seed` draws; its first observation."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Take an action: observation, dense reward, success, and what else the suite tells."""

    # the interface

    def set_distraction(self, distraction: Distraction | None) -> None:
        """From now on draw pictures under `distraction`; None: as they are."""
        self.distraction = distraction
        self.distractor = None if distraction is None else distraction.begin(
            self._model, self.size, self.camera, self._focus(), self.backdrop)
        if self.distractor is not None:
            self.distractor.seek(self._episode, self._steps or 0)

    def _focus(self) -> np.ndarray | None:
        return None

    def seed_goals(self, seed: int) -> None:
        """Restart the generator that draws starts."""
        self._rng = np.random.default_rng([seed, 2512])
        self.action_space.seed(int(self._rng.integers(2**31)))

    def rng_state(self) -> dict[str, Any]:
        """The starts' generator's state: all that an environment needs to go on after an episode's end."""
        return self._rng.bit_generator.state

    def set_rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; `options={"goal": i}` takes start i of fifty."""
        super().reset(seed=seed)
        if seed is not None:
            self.seed_goals(seed)
        chosen = (options or {}).get("goal")
        if chosen is not None and not 0 <= int(chosen) < GOALS:
            raise InputError(f"task {self.task.name!r} has no goal {chosen}; valid: 0 to {GOALS - 1}")
        self._episode = episode_key(self._rng)
        drawn = int(self._rng.integers(2**31))
        start = int(chosen) if chosen is not None else drawn % GOALS if self.goals == "fifty" else GOALS + drawn
        observation = self._begin(int(np.random.default_rng([START_SEED, start]).integers(2**31)))
        self._steps, self._any = 0, 0.0
        if self.distractor is not None:
            self.distractor.seek(self._episode, 0)
        return observation, {"success": 0.0, "success_any": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of the agent. A NaN or a wrong shape is refused; values beyond [-1, 1] are clipped."""
        if self._steps is None or self._steps >= self.episode_steps:
            raise InputError(f"the episode of {self.task.name!r} is over ({self.episode_steps} steps); call reset()")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise InputError(f"an action of {self.task.name!r} has shape {self.action_space.shape}, "
                             f"got {action.shape}")
        if not np.isfinite(action).all():
            raise InputError(f"the action of step {self._steps} is not finite: {action.tolist()}")
        observation, dense, success, info = self._advance(np.clip(action, -1, 1))
        self._steps += 1
        if self.distractor is not None:
            self.distractor.seek(self._episode, self._steps)
        self._any = max(self._any, float(success))
        paid = dense if self.reward == "dense" or self._steps % self.sparse_interval == 0 else 0.0
        info = {**info, "success": float(success), "success_any": self._any, "dense_reward": float(dense)}
        return observation, float(paid), False, self._steps >= self.episode_steps, info

    def render(self) -> np.ndarray:
        """(size, size, 3) uint8 RGB of the current state."""
        if self._renderer is None:
            self._renderer = Renderer(self._model, self.size, sky=self.sky)
        return self._renderer(self.data, self.camera, self.distractor)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything a picture depends on within an episode. Restore with `set_state` in the same episode."""
        state = {name: getattr(self.data, name).copy() for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}
        state |= {name: getattr(self._model, name).copy() for name in ("body_pos", "geom_pos", "site_pos")}
        return state if self.distractor is None else state | {"distraction": self.distractor.state()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Put the simulator into a state that `get_state` gave (for rendering; the step count stays)."""
        import mujoco

        for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
            getattr(self.data, name)[:] = state[name]
        for name in ("body_pos", "geom_pos", "site_pos"):
            getattr(self._model, name)[:] = state[name]
        if self.distractor is not None and "distraction" in state:
            self.distractor.seek(*map(int, state["distraction"]))
        mujoco.mj_forward(self._model, self.data)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class ControlEnv(SuiteEnv):
    """One task of the DeepMind Control Suite, `domain-task`; see the module for repeat, reward and success."""

    sky = True

    def __init__(self, task: str | Task, seed: int = 0, reward: str = "dense", episode_steps: int | None = None,
                 size: int = 64, sparse_interval: int = 128, goals: str = "any",
                 distraction: Distraction | None = None) -> None:
        from dm_control import suite

        domain, name = get_task(task).env_id.split("-")
        self.action_repeat = ACTION_REPEAT[domain]
        self.steps_default = CONTROL_STEPS // self.action_repeat
        env = suite.load(domain, name, task_kwargs={"random": 0})
        self._physics, self._task = env.physics, env.task
        self._substeps = round(env.control_timestep() / env.physics.timestep())
        self.camera = self._model.camera(0).name  # the suite's own view
        length = sum(int(np.prod(part.shape)) for part in env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (length,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, env.action_spec().shape, np.float32)
        super().__init__(task, seed, reward, episode_steps, size, sparse_interval, goals, distraction)

    @property
    def _model(self) -> Any:
        return self._physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's data of the current state."""
        return self._physics.data.ptr

    def _observation(self) -> np.ndarray:
        parts = self._task.get_observation(self._physics).values()
        return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)

    def _begin(self, seed: int) -> np.ndarray:
        self._task.random.seed(seed)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        return self._observation()

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        total = reward = 0.0
        for _ in range(self.action_repeat):
            # the suite's own order, without its time limit: episodes are cut off above
            self._task.before_step(action.astype(np.float64), self._physics)
            self._physics.step(self._substeps)
            self._task.after_step(self._physics)
            reward = float(self._task.get_reward(self._physics))
            total += reward
        return self._observation(), total, reward >= SUCCESS_REWARD, {}


class AdroitDoorEnv(SuiteEnv):
    """Adroit's door: a hand with 24 joints on an arm with 4 turns a latch and pulls a door open.

    observation (39,): joints of arm and hand, latch, door, palm, handle, their difference, whether the door is open.
    """

    camera = "fixed"
    backdrop = ("table",)
    steps_default = DOOR_STEPS

    def __init__(self, task: str | Task = "door", seed: int = 0, reward: str = "dense",
                 episode_steps: int | None = None, size: int = 64, sparse_interval: int = 128, goals: str = "any",
                 distraction: Distraction | None = None) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its notice about the sign of the reward, put right below
            from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv

        self._env = AdroitHandDoorEnv()
        self._model.cam_pos[self._model.camera(self.camera).id] = DOOR_CAMERA_POSITION
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (28,), np.float32)
        super().__init__(task, seed, reward, episode_steps, size, sparse_interval, goals, distraction)

    @property
    def _model(self) -> Any:
        return self._env.model

    @property
    def data(self) -> Any:
        """MuJoCo's data of the current state."""
        return self._env.data

    def _focus(self) -> np.ndarray:
        return np.array((0.0, 0.0, 0.2))  # above the table, between hand and door

    def _begin(self, seed: int) -> np.ndarray:
        return self._env.reset(seed=seed)[0].astype(np.float32)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        observation, reward, _, _, info = self._env.step(action)
        distance = float(np.linalg.norm(observation[35:38]))  # palm - handle
        reward = float(reward) - 0.2 * distance  # from +0.1 to the published -0.1 of the distance
        return observation.astype(np.float32), reward, bool(info["success"]), {}


def make_suite_env(task: Task, seed: int, reward: str, episode_steps: int | None, size: int, sparse_interval: int,
                   goals: str, distraction: Distraction | None) -> SuiteEnv:
    """The environment of a task that is not Meta-World's; use `envs.make_env`."""
    made = {"dm_control": ControlEnv, "adroit": AdroitDoorEnv}
    return made[task.suite](task, seed, reward, episode_steps, size, sparse_interval, goals, distraction)
