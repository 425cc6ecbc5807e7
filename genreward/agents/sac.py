"""SAC from state, by Stable-Baselines3, cut into chunks that can be resumed exactly.

Stable-Baselines3 trains in one call and keeps no random state, so a run killed half-way cannot go on as it would have.
Here a run is a sequence of chunks, each beginning with a fresh episode; between two chunks everything that the next one
depends on fits into one file: networks, optimisers, replay, counters and the random states of NumPy, Python and torch.
A chunk after a restart is therefore the chunk that an undisturbed run would have had, number for number.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from .. import files
from ..errors import InputError, at_least
from ..profiles import SACConfig
from .checkpoints import check_state, read_checkpoint

FORMAT = "genreward.sac.v1"
_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def check_config(config: SACConfig) -> None:
    """InputError for a number that SAC cannot learn with."""
    if not config.hidden or any(not isinstance(width, int) or width < 1 for width in config.hidden):
        raise InputError(f"hidden must be widths of at least 1, such as (256, 256), got {config.hidden}")
    for name, least in (("learning_starts", 0), ("train_freq", 1), ("gradient_steps", 1), ("batch", 1),
                        ("buffer_size", 1)):
        at_least(name, getattr(config, name), least)
    if not 0 < config.learning_rate < math.inf:
        raise InputError(f"learning_rate must be finite and positive, got {config.learning_rate}")
    if not 0 <= config.gamma <= 1:
        raise InputError(f"gamma must lie in 0..1, got {config.gamma}")


class _EachStep(BaseCallback):
    """Calls a function after every environment step (a progress bar, a log)."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        self.function()
        return True


class SACAgent:
    """Soft actor-critic on one gymnasium environment with Box observations (S,) and actions in [-1, 1].

    `env` is stepped and paid as it is: wrap it in `GoalRewardEnv` first to learn from a goal. Random numbers come from
    the global generators, as Stable-Baselines3 does it; they are seeded here and saved with the agent.
    """

    def __init__(self, env: gymnasium.Env, config: SACConfig, seed: int, device: str = "cpu") -> None:
        if not isinstance(env.observation_space, gymnasium.spaces.Box) or len(env.observation_space.shape) != 1:
            raise InputError(f"SAC learns from state vectors of shape (S,), got {env.observation_space}")
        check_config(config)
        self.env, self.config, self.seed = env, config, seed
        self.model = SAC("MlpPolicy", env, learning_rate=config.learning_rate, buffer_size=config.buffer_size,
                         learning_starts=config.learning_starts, batch_size=config.batch, gamma=config.gamma,
                         train_freq=config.train_freq, gradient_steps=config.gradient_steps, seed=seed, device=device,
                         policy_kwargs={"net_arch": list(config.hidden)})
        # The seed is for the agent. Left there, it would also restart the environment's goals at the first reset of
        # every process, and a resumed run would meet other goals than an undisturbed one.
        self.model.get_env()._reset_seeds()

    @property
    def steps(self) -> int:
        """Environment steps taken so far."""
        return self.model.num_timesteps

    def learn(self, steps: int, on_step: Callable[[], None] | None = None) -> None:
        """Take `steps` environment steps, beginning with a fresh episode, and learn along the way.

        `steps` should be a whole number of episodes: an episode cut off at a chunk's end is not continued.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        self.model._last_obs = None  # makes Stable-Baselines3 reset: the same whether or not the process is new
        self.model.learn(steps, callback=_EachStep(on_step) if on_step else None, reset_num_timesteps=False,
                         log_interval=10**9)

    def act(self, observation: np.ndarray, explore: bool = False) -> np.ndarray:
        """(S,) observation -> (A,) action in [-1, 1]; the policy's mean unless `explore`. Not finite: InputError."""
        observation = np.asarray(observation, np.float32)
        if observation.shape != self.env.observation_space.shape or not np.isfinite(observation).all():
            raise InputError(f"an observation is {self.env.observation_space.shape} finite numbers, got shape "
                             f"{observation.shape}")
        return self.model.predict(observation, deterministic=not explore)[0]

    def state_dict(self) -> dict[str, Any]:
        """Everything the next chunk depends on, but for the environment (its owner saves that)."""
        model, buffer = self.model, self.model.replay_buffer
        filled = buffer.buffer_size if buffer.full else buffer.pos
        return {
            "format": FORMAT, "config": self._identity(),
            "policy": model.policy.state_dict(), "actor_optimizer": model.actor.optimizer.state_dict(),
            "critic_optimizer": model.critic.optimizer.state_dict(),
            "log_ent_coef": model.log_ent_coef.detach().clone(),
            "ent_coef_optimizer": model.ent_coef_optimizer.state_dict(),
            "replay": {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _BUFFER},
            "position": buffer.pos, "full": buffer.full,
            "counters": {name: getattr(model, name) for name in ("num_timesteps", "_n_updates", "_episode_num")},
            "random": {"torch": torch.get_rng_state(), "numpy": _plain_numpy_state(),
                       "python": list(random.getstate()[1]),
                       "actions": model.action_space.np_random.bit_generator.state},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; InputError when it is of another configuration."""
        check_state(state, "SACAgent", FORMAT, self._identity())
        model, buffer = self.model, self.model.replay_buffer
        model.policy.load_state_dict(state["policy"])
        model.actor.optimizer.load_state_dict(state["actor_optimizer"])
        model.critic.optimizer.load_state_dict(state["critic_optimizer"])
        with torch.no_grad():
            model.log_ent_coef.copy_(state["log_ent_coef"])
        model.ent_coef_optimizer.load_state_dict(state["ent_coef_optimizer"])
        for name in _BUFFER:
            rows = state["replay"][name].numpy()
            getattr(buffer, name)[:len(rows)] = rows
        buffer.pos, buffer.full = state["position"], state["full"]
        for name, value in state["counters"].items():
            setattr(model, name, value)
        torch.set_rng_state(state["random"]["torch"])
        kind, keys, *rest = state["random"]["numpy"]
        np.random.set_state((kind, np.array(keys, np.uint32), *rest))
        random.setstate((3, tuple(state["random"]["python"]), None))
        model.action_space.np_random.bit_generator.state = state["random"]["actions"]

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint, whole or not at all."""
        with files.atomic_path(path) as temporary:
            torch.save(self.state_dict(), temporary)

    def load(self, path: str | os.PathLike) -> None:
        """Read a checkpoint; a missing, truncated or foreign one is an `InputError` and leaves the agent as it was."""
        self.load_state_dict(read_checkpoint(path))

    def _identity(self) -> dict[str, Any]:
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return {**plain, "observation_shape": list(self.env.observation_space.shape),
                "action_shape": list(self.env.action_space.shape)}


def _plain_numpy_state() -> list[Any]:
    """NumPy's global random state in types that `torch.load(weights_only=True)` admits."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return [str(kind), keys.tolist(), int(position), int(has_gauss), float(cached)]
