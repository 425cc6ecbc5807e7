"""The one data type that demonstrations, reward models and agents share: what was seen, done and paid in an episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError


@dataclass
class Trajectory:
    """An episode of T steps. Index 0 of `frames` and `states` is what `reset` gave; index t is after t steps.

    task     the task's name
    frames   (T+1, H, W, 3) uint8 RGB, or None when nothing was rendered
    states   (T+1, S) float32 observations of the environment
    actions  (T, A) float32 in [-1, 1]; `actions[t]` was taken in `states[t]`
    rewards  (T,) float32, the environment's dense reward of that step
    success  (T,) bool, whether the state after the step counts as success
    info     whatever else the maker wants to keep (kind, seed, stages, ...)
    """

    task: str
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    frames: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        expected = {"states": steps + 1, "rewards": steps, "success": steps}
        if self.frames is not None:
            expected["frames"] = steps + 1
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                raise InputError(f"a trajectory of {steps} actions needs {length} {name}, "
                                 f"got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Success at any point of the episode, as Meta-World counts it."""
        return bool(np.any(self.success))


def check_frames(frames: np.ndarray, size: int | tuple[int, int] | None = None, name: str = "frames",
                 least: int = 1) -> np.ndarray:
    """Return `frames` if they are (N, H, W, 3) uint8 with N >= `least` (and H x W = `size`), else raise InputError."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise InputError(f"{name} must be RGB of shape (N, H, W, 3), got shape {frames.shape}")
    if frames.dtype != np.uint8:
        raise InputError(f"{name} must be uint8 in 0..255, got {frames.dtype}")
    if len(frames) < least:
        raise InputError(f"{name} must hold at least {least} frame{'s' * (least > 1)}, got {len(frames)}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if frames.shape[1:3] != (height, width):
            raise InputError(f"{name} must be {height}x{width} pixels, got {frames.shape[1]}x{frames.shape[2]}")
    return frames


def uniform_indices(available: int, wanted: int) -> np.ndarray:
    """`wanted` indices spread evenly over 0..available-1, both ends included; repeats when there are too few.

    Eq. 3 and 4 of the paper sample the agent's past and the goal video this way to the same number of frames.
    """
    if available < 1 or wanted < 1:
        raise InputError(f"cannot spread {wanted} frames over {available}; both must be at least 1")
    return np.linspace(0, available - 1, wanted).round().astype(int)
