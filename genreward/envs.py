"""The environments: Meta-World tasks as plain gymnasium environments with a fast off-screen renderer.

What is changed against Meta-World's own, and why:

- the goal is observable (Meta-World hides it by default, and its scripted experts then fail);
- each episode draws one of the task's 50 fixed goals from a generator of the environment's own, so a training and an
  evaluation environment have separate seeds and the order of goals can be saved and restored;
- a picture is rendered only when `render()` is called, at 64x64 from a camera close enough that the object is several
  pixels wide, with shadow map, multisampling and sky off: on a machine without a GPU these cost most of the time;
- episodes end by truncation (256 steps in the paper); success is reported per step and, as Meta-World counts it, at
  any point of the episode.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from .errors import InputError, at_least, unknown
from .tasks import Task, get_task
from .trajectory import Trajectory

if TYPE_CHECKING:
    from .distractions import Distraction, Distractor
    from .suites import SuiteEnv

REWARDS = ("dense", "sparse")
CAMERA = "corner2"
CAMERA_POSITION = (0.80, 0.10, 0.70)  # moved in from Meta-World's own, so that the table fills the picture
CAMERA_FOVY = 31.0  # degrees, vertical
CAMERA_FOCUS = (0.0, 0.6, 0.1)  # where it looks: the middle of the table, a little above
BACKDROP = ("table_wood", "wall_metal")  # materials of what gives way to a distracting background
HOLE_TASKS = ("hand-insert", "pick-out-of-hole", "sweep-into")  # here the table stays: its hole is the task
GOALS = 50  # goals a task, as in Meta-World's MT1 and MT50
GOAL_SEED = 42  # fixes which 50


@cache
def _goals(env_id: str) -> np.ndarray:
    """The task's 50 goal vectors (positions of object and goal at reset), the same in every process."""
    import pickle

    import metaworld

    tasks = metaworld.MT1(env_id, seed=GOAL_SEED).train_tasks
    return np.stack([pickle.loads(task.data)["rand_vec"] for task in tasks])


def episode_key(rng: np.random.Generator) -> int:
    """A number for the episode that `rng` is about to draw, by which a distraction knows it: the generator's state
    without drawing from it, so that a distraction neither changes the episodes nor needs a state of its own."""
    state = json.dumps(rng.bit_generator.state, sort_keys=True, default=int)
    return int.from_bytes(hashlib.sha256(state.encode()).digest()[:6])


class Renderer:
    """Renders a MuJoCo model off screen, `size` x `size` RGB, right side up.

    Pictures are drawn at twice the size and averaged 2x2: with multisampling off, thin objects would flicker.
    Quality settings are fixed when the OpenGL context is made, hence set on the model before. `sky` draws the model's
    sky, where the suite's usual pictures have one; without, what is behind everything is black.
    """

    def __init__(self, model: Any, size: int, supersample: int = 2, sky: bool = False) -> None:
        import mujoco

        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        self.size, self.supersample = size, supersample
        side = size * supersample
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, side)
        model.vis.global_.offheight = max(model.vis.global_.offheight, side)
        try:
            self._renderer = mujoco.Renderer(model, side, side)
        except Exception as problem:  # PyOpenGL and MuJoCo raise a dozen types when a back end is missing
            import os

            raise InputError(
                f"no OpenGL: back end {os.environ.get('MUJOCO_GL')!r} does not start ({type(problem).__name__}: "
                f"{problem}); install libosmesa6 (CPU) or set MUJOCO_GL=egl (GPU)".replace("\n", " ")) from None
        for flag in ("SHADOW", "REFLECTION", "HAZE"):
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._sky, self._sky_flag = sky, int(mujoco.mjtRndFlag.mjRND_SKYBOX)

    def __call__(self, data: Any, camera: str = CAMERA, distractor: Distractor | None = None) -> np.ndarray:
        """(size, size, 3) uint8 of the state in `data`."""
        self._renderer.update_scene(data, camera=camera)
        filled = distractor is not None and distractor.needs_background
        self._renderer.scene.flags[self._sky_flag] = self._sky and not filled
        if distractor is not None:
            distractor.change(self._renderer.scene, data)
        picture = self._renderer.render()
        empty = self._empty() if filled else None
        if camera == CAMERA:  # this camera is mounted upside down
            picture, empty = picture[::-1, ::-1], None if empty is None else empty[::-1, ::-1]
        if self.supersample > 1:
            n, k = self.size, self.supersample
            picture = picture.reshape(n, k, n, k, 3).mean((1, 3)).round().astype(np.uint8)
            empty = None if empty is None else empty.reshape(n, k, n, k).mean((1, 3))
        if distractor is not None and empty is not None:
            picture = distractor.compose(picture, empty)
        return np.ascontiguousarray(picture)

    def _empty(self) -> np.ndarray:
        """(side, side) bool: where the picture just drawn shows nothing. Read from its depth, so it costs no second
        pass; MuJoCo counts depth from 0, infinitely far, to 1."""
        import mujoco

        side = self.size * self.supersample
        depth = np.empty((side, side), np.float32)
        mujoco.mjr_readPixels(None, depth, mujoco.MjrRect(0, 0, side, side), self._renderer._mjr_context)
        return depth[::-1] == 0.0

    def close(self) -> None:
        """Free what the renderer holds. Its own OpenGL context must be current meanwhile: MuJoCo deletes buffers by
        number in whichever context is, and would otherwise take those of another environment."""
        inner = self._renderer
        if inner._gl_context and inner._mjr_context:
            inner._gl_context.make_current()
            inner._mjr_context.free()
            inner._mjr_context = None
        inner.close()

    def __del__(self) -> None:
        if hasattr(self, "_renderer"):
            self.close()


class MetaWorldEnv(gymnasium.Env):
    """One Meta-World task.

    observation  (39,) float32: gripper and objects now, the same one step ago, the goal's position
    action       (4,) float32 in [-1, 1]: gripper velocity xyz, opening
    reward       "dense": Meta-World's own, 0 to 10 a step; "sparse": that reward every `sparse_interval` steps, else 0
    info         success (0 or 1, this step), success_any (so far), dense_reward, and Meta-World's own entries
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, task: str | Task, seed: int = 0, reward: str = "dense", episode_steps: int = 256,
                 size: int = 64, sparse_interval: int = 128, goals: str = "fifty",
                 distraction: Distraction | None = None) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.task = get_task(task)
        if reward not in REWARDS:
            raise unknown("environment reward", reward, REWARDS)
        if goals not in ("fifty", "any"):
            raise unknown("choice of goals", goals, ("fifty", "any"))
        if episode_steps < 1 or sparse_interval < 1 or size < 8:
            raise InputError(f"episode_steps and sparse_interval must be at least 1 and size at least 8, got "
                             f"{episode_steps}, {sparse_interval}, {size}")
        self.reward, self.episode_steps, self.size = reward, episode_steps, size
        self.sparse_interval, self.goals = sparse_interval, goals
        self.render_mode = "rgb_array"
        env = ALL_V3_ENVIRONMENTS[self.task.env_id]()
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)  # cached before the line above: it would clip the goal to 0
        env._set_task_called = True
        env.max_path_length = 10**9  # truncation is counted here
        self._env = env
        self._camera = self._model.camera(CAMERA)
        self._model.cam_pos[self._camera.id] = CAMERA_POSITION
        self._model.cam_fovy[self._camera.id] = CAMERA_FOVY
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._renderer: Renderer | None = None
        self._steps: int | None = None
        self.seed_goals(seed)
        self._episode = episode_key(self._rng)
        self.set_distraction(distraction)

    @property
    def _model(self) -> Any:
        return self._env.model

    @property
    def data(self) -> Any:
        """MuJoCo's data of the current state."""
        return self._env.data

    def set_distraction(self, distraction: Distraction | None) -> None:
        """From now on draw pictures under `distraction`; None: as they are."""
        self.distraction = distraction
        backdrop = BACKDROP[1:] if self.task.name in HOLE_TASKS else BACKDROP
        self.distractor = None if distraction is None else distraction.begin(
            self._model, self.size, CAMERA, np.array(CAMERA_FOCUS), backdrop)
        if self.distractor is not None:
            self.distractor.seek(self._episode, self._steps or 0)

    def seed_goals(self, seed: int) -> None:
        """Restart the generator that draws goals."""
        self._rng = np.random.default_rng([seed, 2512])
        self.action_space.seed(int(self._rng.integers(2**31)))

    def rng_state(self) -> dict[str, Any]:
        """The goal generator's state: all that an environment needs to go on after an episode's end."""
        return self._rng.bit_generator.state

    def set_rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode at one of the goals; `options={"goal": i}` takes goal i of the 50."""
        super().reset(seed=seed)
        if seed is not None:
            self.seed_goals(seed)
        options = options or {}
        if "goal" in options and not 0 <= int(options["goal"]) < GOALS:
            raise InputError(f"task {self.task.name!r} has no goal {options['goal']}; valid: 0 to {GOALS - 1}")
        env = self._env
        self._episode = episode_key(self._rng)
        if self.goals == "any" and "goal" not in options:
            # Some tasks reject draws whose object lies too near the goal, and draw again: they must do it themselves.
            env._freeze_rand_vec, env.seeded_rand_vec = False, True
            env.np_random = np.random.default_rng(int(self._rng.integers(2**63)))
        else:
            env._freeze_rand_vec = True
            env._last_rand_vec = _goals(self.task.env_id)[int(options.get("goal", self._rng.integers(GOALS)))]
        observation, _ = env.reset()
        self._steps, self._any = 0, 0.0
        if self.distractor is not None:
            self.distractor.seek(self._episode, 0)
        return observation.astype(np.float32), {"success": 0.0, "success_any": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of 1/80 s x 5. A NaN or a wrong shape is refused; values beyond [-1, 1] are clipped."""
        if self._steps is None or self._steps >= self.episode_steps:
            raise InputError(f"the episode of {self.task.name!r} is over ({self.episode_steps} steps); call reset()")
        action = np.asarray(action, np.float32)
        if action.shape != (4,):
            raise InputError(f"an action of {self.task.name!r} has shape (4,), got {action.shape}")
        if not np.isfinite(action).all():
            raise InputError(f"the action of step {self._steps} is not finite: {action.tolist()}")
        observation, dense, _, _, info = self._env.step(np.clip(action, -1, 1))
        self._steps += 1
        if self.distractor is not None:
            self.distractor.seek(self._episode, self._steps)
        self._any = max(self._any, float(info["success"]))
        paid = dense if self.reward == "dense" or self._steps % self.sparse_interval == 0 else 0.0
        info = {**info, "dense_reward": float(dense), "success_any": self._any}
        return observation.astype(np.float32), float(paid), False, self._steps >= self.episode_steps, info

    def render(self) -> np.ndarray:
        """(size, size, 3) uint8 RGB of the current state."""
        if self._renderer is None:
            self._renderer = Renderer(self._model, self.size)
        return self._renderer(self.data, distractor=self.distractor)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything a picture depends on within an episode. Restore with `set_state` in the same episode."""
        data = self.data
        state = {"qpos": data.qpos.copy(), "qvel": data.qvel.copy(), "mocap_pos": data.mocap_pos.copy(),
                 "mocap_quat": data.mocap_quat.copy(), "body_pos": self._model.body_pos.copy(),
                 "site_pos": self._model.site_pos.copy()}
        return state if self.distractor is None else state | {"distraction": self.distractor.state()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Put the simulator into a state that `get_state` gave (for rendering; the step count stays)."""
        import mujoco

        for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
            getattr(self.data, name)[:] = state[name]
        self._model.body_pos[:], self._model.site_pos[:] = state["body_pos"], state["site_pos"]
        if self.distractor is not None and "distraction" in state:
            self.distractor.seek(*map(int, state["distraction"]))
        mujoco.mj_forward(self._model, self.data)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def make_env(task: str | Task, seed: int = 0, reward: str = "dense", split: str = "train",
             episode_steps: int | None = None, size: int = 64, sparse_interval: int = 128, goals: str | None = None,
             distraction: Distraction | None = None) -> MetaWorldEnv | SuiteEnv:
    """The environment of a task, of whichever suite.

    split          keeps training and evaluation apart: the same seed gives other orders of goals
    episode_steps  None: 256 on Meta-World, elsewhere the suite's own (see `suites`)
    goals          "fifty" (fixed ones), "any", or None: fifty on Meta-World, any elsewhere, as these suites count
    distraction    changes the pictures and nothing else (see `distractions`)
    """
    if split not in ("train", "eval"):
        raise unknown("split", split, ("train", "eval"))
    at_least("seed", seed, 0)
    seed += {"train": 0, "eval": 1_000_003}[split]
    task = get_task(task)
    if task.suite != "metaworld":
        from .suites import make_suite_env  # other suites build on this module and are not loaded where unused

        return make_suite_env(task, seed, reward, episode_steps, size, sparse_interval, goals or "any", distraction)
    return MetaWorldEnv(task, seed, reward, 256 if episode_steps is None else episode_steps, size, sparse_interval,
                        goals or "fifty", distraction)


Policy = Callable[[np.ndarray], np.ndarray]


def expert_policy(task: str | Task) -> Policy:
    """Meta-World's scripted expert: (39,) observation -> (4,) action in [-1, 1]."""
    from metaworld.policies import ENV_POLICY_MAP

    if get_task(task).suite != "metaworld":
        raise InputError(f"task {get_task(task).name!r} has no scripted expert; only Meta-World's tasks have one")
    # Its experts ask for more than the action space allows and are clipped, below as in the environment.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    policy = ENV_POLICY_MAP[get_task(task).env_id]()

    def act(observation: np.ndarray) -> np.ndarray:
        return np.clip(policy.get_action(np.asarray(observation, np.float64)), -1, 1).astype(np.float32)

    return act


def random_policy(rng: np.random.Generator, hold: int = 5, actions: int = 4) -> Policy:
    """Uniform actions (actions,) in [-1, 1], each held for `hold` steps so that the arm gets somewhere."""
    state: dict[str, Any] = {"left": 0}

    def act(observation: np.ndarray) -> np.ndarray:
        if state["left"] == 0:
            state.update(action=rng.uniform(-1, 1, actions).astype(np.float32), left=hold)
        state["left"] -= 1
        return state["action"]

    return act


def exploration_policy(rng: np.random.Generator, hold: int = 20) -> Policy:
    """Task-free exploration: the arm is sent to random points of its space, the gripper opens and closes at random."""
    state: dict[str, Any] = {"left": 0}

    def act(observation: np.ndarray) -> np.ndarray:
        if state["left"] == 0:
            state.update(point=rng.uniform((-0.3, 0.45, 0.05), (0.3, 0.9, 0.3)), gripper=rng.uniform(-1, 1), left=hold)
        state["left"] -= 1
        velocity = 10 * (state["point"] - observation[:3]) + 0.3 * rng.normal(size=3)
        return np.clip(np.append(velocity, state["gripper"]), -1, 1).astype(np.float32)

    return act


def rollout(env: gymnasium.Env, policy: Policy, frames: bool = True, steps: int | None = None,
            **reset: Any) -> Trajectory:
    """One episode of `policy` in `env` (until truncation, or `steps`), with a frame of every state if `frames`."""
    if steps is not None:
        at_least("steps", steps, 1)
    observation, _ = env.reset(**reset)
    pictures, states, actions, rewards, success = [], [observation], [], [], []
    if frames:
        pictures.append(env.render())
    done = False
    while not done and (steps is None or len(actions) < steps):
        action = policy(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        states.append(observation)
        actions.append(action)
        rewards.append(info.get("dense_reward", reward))
        success.append(info.get("success", 0.0) > 0)
        if frames:
            pictures.append(env.render())
        done = terminated or truncated
    task = getattr(env.unwrapped, "task", None)
    return Trajectory(task.name if task is not None else "", np.stack(states).astype(np.float32),
                      np.stack(actions).astype(np.float32), np.asarray(rewards, np.float32), np.asarray(success, bool),
                      np.stack(pictures) if frames else None)
