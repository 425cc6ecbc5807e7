"""VLM-RMs (Rocamonde et al. 2024): how near a frame is to a sentence in CLIP's space, along the line that matters.

The reward stands behind `goals`, whose `FrameScorer` gives the embeddings (OpenCLIP from the hub, or the small one
trained here) and whose `Goal` gives the sentence. Nothing is trained. A *baseline* sentence, which describes the scene
without the goal, says which direction of the embedding space is about the goal; alpha says how much of the rest is
left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..tasks import TASKS
from ..trajectory import Trajectory
from .base import History, RewardModel, RewardProperties, register

if TYPE_CHECKING:  # at run time open_clip would take seconds to import
    from ..goals import FrameScorer

BASELINE = "a robot arm at a table"


def goal_baseline_reward(frames: np.ndarray, goal: np.ndarray, baseline: np.ndarray, alpha: float) -> np.ndarray:
    """1 - 1/2 || (x - g) (alpha P + (1 - alpha) I) ||^2, P the projection onto the line from b to g (Eq. 2 and
    Definition 1 of the publication).

    frames (N, d) x, goal (d,) g, baseline (d,) b, each of unit length; alpha in [0, 1] -> (N,) float64, at most 1.
    With alpha 0 it is the cosine of x and g; with alpha 1 only what lies along the line counts. InputError when goal
    and baseline are the same point: there is no line then.
    """
    x, g, b = (np.asarray(part, np.float64) for part in (frames, goal, baseline))
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie in [0, 1], got {alpha}")
    line = g - b
    length = np.linalg.norm(line)
    if length < 1e-6 and alpha > 0:
        raise InputError("the goal and the baseline are the same to this CLIP; give another baseline, or alpha=0")
    away = x - g
    along = np.outer(away @ line, line) / length**2 if alpha > 0 else 0.0
    return 1 - 0.5 * np.square(alpha * along + (1 - alpha) * away).sum(axis=-1)


def goal_sentences(goal: Any) -> tuple[str, ...]:
    """What a goal's frames are compared with: the sentences that the finished task satisfies, else the prompt."""
    return tuple(goal.paraphrases) or (goal.prompt,)


def mean_direction(embeddings: np.ndarray) -> np.ndarray:
    """(M, d) unit vectors -> (d,): their mean, of unit length."""
    mean = np.asarray(embeddings, np.float64).mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise InputError("the sentences cancel each other out in this CLIP; give fewer")
    return (mean / length).astype(np.float32)


class FrameByFrame(RewardModel):
    """Base of the rewards that look at one frame at a time: each is encoded once, and paid every `interval` steps."""

    term = "frame"

    @abstractmethod
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> (N, d) float32 of unit length."""

    @abstractmethod
    def values(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, d) -> (N,): what these frames are worth."""

    def _set(self, interval: int, frame_size: int | None) -> None:
        if interval < 1:
            raise InputError(f"interval must be at least 1 step, got {interval}")
        self.interval, self.frame_size = interval, frame_size

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames after every `interval`-th step."""
        return t > 0 and t % self.interval == 0

    def terms(self, history: History, t: int) -> dict[str, float]:
        """{term: value of the frame after step `t`} at every `interval`-th step, 0 between."""
        if t % self.interval:
            return {self.term: 0.0}
        known = history.cache.get(self.term, {})
        if t not in known:
            return {self.term: float(self.values(self.encode(history.clip(np.array([t]))))[0])}
        return {self.term: known[t]}

    def prepare(self, history: History, trajectory: Trajectory) -> None:
        """Encode the frames of a recorded episode in batches."""
        steps = list(range(self.interval, len(trajectory) + 1, self.interval))
        if steps:
            values = self.values(self.encode(trajectory.frames[steps]))
            history.cache[self.term] = dict(zip(steps, values.tolist(), strict=True))


@register("vlm_rm")
class VLMRM(FrameByFrame):
    """The goal-baseline regularised CLIP reward of every frame; see `goal_baseline_reward`.

    goal      a Goal: its paraphrases (sentences that the finished task satisfies) are the goal's, unless `prompt` is
              given; its frames' size is that of the episode's frames
    scorer    a FrameScorer
    alpha     0: the cosine with the goal; 1: only the line from baseline to goal counts (0.5 as in the publication's
              code)
    baseline  a neutral description of the scene; by default the first stage's caption of the goal's task (what its
              provenance or `task` names), else "a robot arm at a table"
    interval  steps between payments
    """

    properties = RewardProperties(
        demo_free=True, generated=False, action_aware=False,
        citation="Rocamonde et al., Vision-Language Models are Zero-Shot Reward Models for Reinforcement Learning, "
                 "ICLR 2024",
        deviations=(
            "CLIP is the project's frame scorer: by default the small OpenCLIP trained here, which has seen captioned "
            "frames of the evaluated tasks in the place of the web's pictures.",
            "The goal is the normalised mean of several paraphrases' embeddings, not one sentence's.",
            "The baseline sentence is the caption of the task's first stage (object and arm at the start)."))
    term = "vlm_rm"

    def __init__(self, goal: Any, scorer: FrameScorer, alpha: float = 0.5, baseline: str | None = None,
                 prompt: str | Sequence[str] | None = None, task: str | None = None, interval: int = 1) -> None:
        self._set(interval, int(goal.frame.shape[0]))
        self.scorer, self.alpha = scorer, float(alpha)
        self.baseline = baseline if baseline is not None else self._scene(goal, task)
        self.goal = mean_direction(scorer.encode_text(prompt if prompt is not None else goal_sentences(goal)))
        self._b = scorer.encode_text(self.baseline)[0]
        goal_baseline_reward(self.goal[None], self.goal, self._b, self.alpha)  # refuses bad settings before an episode

    @staticmethod
    def _scene(goal: Any, task: str | None) -> str:
        name = task or getattr(goal, "provenance", {}).get("task")
        return TASKS[name].stage_captions[0] if name in TASKS else BASELINE

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """The scorer's image embeddings."""
        return self.scorer.encode_image(frames)

    def values(self, embeddings: np.ndarray) -> np.ndarray:
        """The reward of each frame, at most 1."""
        return goal_baseline_reward(embeddings, self.goal, self._b, self.alpha)
