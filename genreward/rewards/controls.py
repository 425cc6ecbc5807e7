"""Cheap controls that any learned reward has to beat: the clock, noise, and pixels instead of latents."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..errors import InputError
from ..trajectory import check_frames
from .base import History, RewardModel, RewardProperties, register
from .genreward import VideoAlignment


@register("clock")
class ClockReward(RewardModel):
    """t / T: rises with time whatever the agent does. A reward that correlates with progress no better than this has
    only learned that time passes."""

    properties = RewardProperties(True, False, False, "control of this project")

    def terms(self, history: History, t: int) -> dict[str, float]:
        """The fraction of the episode that has passed, in (0, 1]."""
        return {"clock": t / history.episode_steps}


@register("random")
class RandomReward(RewardModel):
    """Uniform noise in [0, 1), drawn anew for every state but the same whenever that state is met at that step."""

    properties = RewardProperties(True, False, False, "control of this project")

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise InputError(f"seed must not be negative, got {seed}")
        self.seed = seed

    def terms(self, history: History, t: int) -> dict[str, float]:
        """A number that depends on the seed, the step and the state only."""
        state = np.ascontiguousarray(history.states[t], np.float32)
        return {"random": float(np.random.default_rng([self.seed, t, zlib.crc32(state.tobytes())]).random())}


@register("pixel_cosine")
class PixelCosineReward(RewardModel):
    """The video-level reward (Eq. 3-5) with pixels in the place of latents: what looks alone are worth."""

    properties = RewardProperties(True, True, False, "control of this project")

    def __init__(self, goal: Any, num_frames: int = 9, alpha: float = 0.01, interval: int = 128,
                 centring: str = "none", window: str = "episode") -> None:
        check_frames(goal.video, name="the goal video")
        self.frame_size = int(goal.video.shape[1])
        self.alpha, self.interval = float(alpha), interval
        self.video = VideoAlignment(_pixels, goal.video, num_frames, interval, centring, window)

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames that Eq. 3 samples."""
        return self.video.needs_frame(t, episode_steps)

    def terms(self, history: History, t: int) -> dict[str, float]:
        """{"video": alpha * cosine of the pixels} at every `interval`-th step, 0 between."""
        return {"video": self.alpha * self.video.value(history, t) if self.video.pays(t) else 0.0}


def _pixels(clip: np.ndarray) -> np.ndarray:
    """(K, H, W, 3) uint8 -> (3, K, H, W) float32 in -1..1, the range that the VAE is fed."""
    return clip.transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1
