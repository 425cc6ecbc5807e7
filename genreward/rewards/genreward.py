"""The paper's reward: how well the episode's video aligns with the goal video (Eq. 3-5), and how surely the step just
taken leads to the goal frame (Eq. 9).

Registered under four names: `genreward` is Eq. 3-10 as printed, `genreward_video` and `genreward_frame` pay one of its
two terms alone, and `genreward_sound` is the same method with the changes that this project's measurements call for
(centred latents, B evaluated on buffer states, the frame term normalised and paid at every step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..errors import InputError, unknown
from ..forward_backward import RewardNormaliser, state_features
from ..trajectory import Trajectory, check_frames, uniform_indices
from .base import History, RewardModel, RewardProperties, register

CENTRINGS = ("none", "first", "mean")
WINDOWS = ("episode", "interval")
FRAME_PAID = ("interval", "every_step")

_PROPERTIES = RewardProperties(
    demo_free=True, generated=True, action_aware=True,
    citation="Wang et al., arXiv 2512.00961, CVPR 2026",
    deviations=("Goal video and history are sampled to 8k+1 frames, which the causal VAE compresses without padding, "
                "rather than to 16.", "Latents are the VAE's mode, so that the same video always gives the same "
                "reward.", "The two heads of F are averaged, where the paper takes the smaller one (notebook 05 "
                "shows what that does)."))


# ----------------------------------------------------------------------------------------- video level, Eq. 3 to 5

def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two arrays of one shape, flattened (Eq. 5), in [-1, 1]; 0 where either of them is zero."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / length, -1.0, 1.0)) if length > 1e-12 else 0.0


def centre(latent: np.ndarray, centring: str, mean: np.ndarray | None = None) -> np.ndarray:
    """Take from a clip's latent (C, T', h, w) what all clips share, so that the cosine has room to differ.

    "none": nothing (as printed); "first": the clip's own first latent frame, leaving what has changed since;
    "mean": `mean`, the mean latent of a data set (C, T', h, w).
    """
    if centring not in CENTRINGS:
        raise unknown("centring", centring, CENTRINGS)
    if centring == "first":
        return latent - latent[:, :1]
    return latent - mean if centring == "mean" else latent


def mean_latent(video_model: Any, clips: np.ndarray) -> np.ndarray:
    """The mean latent (C, T', h, w) of clips (N, K, H, W, 3) uint8, for `centring="mean"`."""
    if len(clips) < 1:
        raise InputError("a mean latent needs at least one clip, got none")
    return np.mean([_numpy(video_model.encode(clip)) for clip in clips], axis=0)


class VideoAlignment:
    """cos(z_v, z_goal), Eq. 3-5, at every `interval`-th step of an episode.

    encode      (K, H, W, 3) uint8 -> (C, T', h, w): the video model's VAE, or the pixels themselves as a control
    goal_video  (K', H, W, 3) uint8; sampled uniformly to `num_frames`, as is the history
    window      "episode": frames o_0:t; "interval": the last `interval` steps only
    """

    def __init__(self, encode: Callable[[np.ndarray], Any], goal_video: np.ndarray, num_frames: int,
                 interval: int = 128, centring: str = "none", window: str = "episode",
                 mean: np.ndarray | None = None) -> None:
        if centring not in CENTRINGS:
            raise unknown("centring", centring, CENTRINGS)
        if window not in WINDOWS:
            raise unknown("window", window, WINDOWS)
        if interval < 1:
            raise InputError(f"interval must be at least 1 step, got {interval}")
        if centring == "mean" and mean is None:
            raise InputError("centring 'mean' needs mean_latent, the mean latent of a data set; see mean_latent()")
        self.encode, self.num_frames = encode, num_frames
        self.interval, self.centring, self.window = interval, centring, window
        self.mean = mean
        self.goal = _numpy(encode(goal_video[uniform_indices(len(goal_video), num_frames)]))
        if mean is not None and np.shape(mean) != self.goal.shape:
            raise InputError(f"mean_latent must have the goal latent's shape {self.goal.shape}, got {np.shape(mean)}")
        if centring == "first" and self.goal.shape[1] < 2:
            raise InputError("centring 'first' needs a clip of at least two latent frames; valid: none, mean")
        self.goal = centre(self.goal, centring, mean)
        self._needed: dict[int, frozenset[int]] = {}

    def steps(self, t: int) -> np.ndarray:
        """The `num_frames` steps whose frames are compared at step t."""
        begin = 0 if self.window == "episode" else t - self.interval
        return begin + uniform_indices(t - begin + 1, self.num_frames)

    def pays(self, t: int) -> bool:
        """Whether step t is one of those at which the video is compared."""
        return t > 0 and t % self.interval == 0

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """Whether any payment of an episode of that length looks at the frame after step t."""
        if episode_steps not in self._needed:
            payments = range(self.interval, episode_steps + 1, self.interval)
            self._needed[episode_steps] = frozenset(int(step) for end in payments for step in self.steps(end))
        return t in self._needed[episode_steps]

    def value(self, history: History, t: int) -> float:
        """The cosine at step t, in [-1, 1]; 0 for a clip that centring leaves nothing of (a still one)."""
        latent = _numpy(self.encode(history.clip(self.steps(t))))
        return cosine(centre(latent, self.centring, self.mean), self.goal)


def _numpy(latent: Any) -> np.ndarray:
    """A latent as a NumPy array, whichever library made it."""
    return np.asarray(latent.detach().float().cpu() if hasattr(latent, "detach") else latent, dtype=np.float32)


# ------------------------------------------------------------------------------------------------- frame level, Eq. 9

class FrameReward:
    """r_FB(s, a, I*) = F(s, a, z*)^T B(psi(I*)), Eq. 9, for the step just taken.

    fb             a ForwardBackward; nothing is paid before it is frozen
    encoder        psi, or None for features of the observation (`forward_backward.state_features`; then
                   `goal_features` is needed)
    goal_frame     (H, W, 3) uint8, encoded once
    goal_features  (feature_dim,), or rows of them for several views of the goal, instead of encoding `goal_frame`
    """

    def __init__(self, fb: Any, encoder: Any, goal_frame: np.ndarray | None,
                 goal_features: np.ndarray | None = None) -> None:
        if encoder is None and goal_features is None:
            raise InputError("the frame-level reward needs an encoder for the goal frame, or goal_features")
        self.fb, self.encoder = fb, encoder
        if goal_features is None:
            goal_features = encoder.encode(goal_frame[None])[0]
        self.goal_features = np.asarray(goal_features, np.float32)
        if self.goal_features.shape[-1:] != (fb.feature_dim,) or not np.all(np.isfinite(self.goal_features)):
            raise InputError(f"the goal's features must be {fb.feature_dim} finite numbers, which F and B were made "
                             f"for, got shape {self.goal_features.shape}")
        self.normaliser: RewardNormaliser | None = None

    def features(self, history: History, t: int) -> np.ndarray:
        """psi of the picture after step t, (feature_dim,); encoded once an episode and kept in `history.cache`."""
        if self.encoder is None:
            return state_features(history.states[t])
        known = history.cache.setdefault("features", {})
        if t not in known:
            known[t] = np.asarray(self.encoder.encode(history.clip(np.array([t])))[0], np.float32)
        return known[t]

    def values(self, features: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Eq. 9 for N steps, before normalisation: features (N, feature_dim), actions (N, A) -> (N,) float32."""
        return np.asarray(self.fb.reward(features, actions, self.goal_features), np.float32).reshape(len(features))


class GenReward(RewardModel):
    """alpha * r_video + beta * r_FB (Eq. 10 without r_env); the terms "video" and "frame" hold both, weighted.

    goal         a Goal: its video (K, H, W, 3) for the first term, its selected frame for the second
    video_model  gives the latents; None leaves the video term out
    fb, encoder  F, B and psi; without fb the frame term is left out. It pays 0 until F and B are
                 learned (`fb.frozen`)
    alpha, beta  weights; a term whose weight is 0 is not computed
    interval     environment steps between payments of the video term, and of the frame term when `frame_paid` is
                 "interval" (as printed; "every_step" pays it for each step)
    centring     "none" as printed, "first" or "mean" (with `mean_latent`); see `centre`
    window       "episode": the video is o_0:t as printed; "interval": the last `interval` steps
    normalise    pay (r_FB - mean) / std with mean and std measured by `fit_normaliser`
    """

    properties = _PROPERTIES

    def __init__(self, goal: Any, video_model: Any = None, fb: Any = None, encoder: Any = None, alpha: float = 0.01,
                 beta: float = 1e-5, interval: int = 128, centring: str = "none", window: str = "episode",
                 frame_paid: str = "interval", normalise: bool = False, mean_latent: np.ndarray | None = None,
                 goal_features: np.ndarray | None = None) -> None:
        if frame_paid not in FRAME_PAID:
            raise unknown("frame_paid", frame_paid, FRAME_PAID)
        if interval < 1:
            raise InputError(f"interval must be at least 1 step, got {interval}")
        if not (np.isfinite(alpha) and np.isfinite(beta)):
            raise InputError(f"the weights alpha and beta must be finite, got {alpha} and {beta}")
        self.goal, self.alpha, self.beta = goal, float(alpha), float(beta)
        self.interval, self.frame_paid, self.normalise = interval, frame_paid, normalise
        self.video: VideoAlignment | None = None
        self.frame: FrameReward | None = None
        if video_model is not None and alpha:
            check_frames(goal.video, video_model.image_size, "the goal video")
            self.frame_size = video_model.image_size
            self.video = VideoAlignment(video_model.encode, goal.video, video_model.num_frames, interval, centring,
                                        window, mean_latent)
        if fb is not None and beta:
            self.frame = FrameReward(fb, encoder, goal.frame, goal_features)
            # psi may be picky about sizes where the video model is absent: the goal frame shows which one is meant
            if self.frame_size is None and encoder is not None:
                self.frame_size = int(goal.frame.shape[0])
        if self.video is None and self.frame is None:
            raise InputError(f"reward {self.name!r} has no term to pay: give video_model and alpha, or fb and beta")
        if getattr(goal, "source", "generated") == "demonstration":
            self.properties = replace(self.properties, demo_free=False, generated=False)

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames of the video term, and the state frame o_{t-1} of every paid (s, a) of the frame term; all of them
        while F and B are still learning, since their replay holds the features of every frame."""
        if self.video is not None and self.video.needs_frame(t, episode_steps):
            return True
        if self.frame is None or self.frame.encoder is None:
            return False
        return not self.frame.fb.frozen or (t < episode_steps and self._frame_pays(t + 1))

    def pays_within(self, episode_steps: int) -> bool:
        """Whether each of its terms is due at least once in an episode of that length."""
        return super().pays_within(episode_steps) or (self.video is None and self.frame_paid == "every_step")

    def terms(self, history: History, t: int) -> dict[str, float]:
        """What step t pays: {"video": alpha * Eq. 5, "frame": beta * Eq. 9}, 0 where its term is not due."""
        paid = {}
        if self.video is not None:
            paid["video"] = self.alpha * self.video.value(history, t) if self.video.pays(t) else 0.0
        if self.frame is not None:
            due = self.frame.fb.frozen and self._frame_pays(t)
            paid["frame"] = self.beta * self._frame_value(history, t) if due else 0.0
        return paid

    def prepare(self, history: History, trajectory: Trajectory) -> None:
        """Encode in one batch the frames that the frame term will ask for. InputError when F and B are not frozen:
        the scores would be zeros that nobody asked for."""
        if self.frame is None:
            return
        if not self.frame.fb.frozen:
            raise InputError("F and B are still learning; freeze them before scoring trajectories")
        steps = [t - 1 for t in range(1, len(trajectory) + 1) if self._frame_pays(t)]
        if self.frame.encoder is not None and steps:
            features = self.frame.encoder.encode(trajectory.frames[steps])
            history.cache["features"] = dict(zip(steps, np.asarray(features, np.float32), strict=True))

    def fit_normaliser(self, features: np.ndarray, actions: np.ndarray) -> None:
        """Measure the frame term's mean and spread over a replay; needed once before `normalise` can pay."""
        frame = self._with_frame("normalise")
        frame.normaliser = RewardNormaliser.fit(frame.values(features, actions))

    def features(self, history: History, t: int) -> np.ndarray:
        """psi after step t, (feature_dim,), as the frame term uses it: what a replay keeps for F and B."""
        return self._with_frame("take features from").features(history, t)

    def state_dict(self) -> dict[str, Any]:
        """The normaliser, for checkpoints."""
        return {} if self.frame is None or self.frame.normaliser is None else asdict(self.frame.normaliser)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self.frame is not None:
            self.frame.normaliser = RewardNormaliser(**state) if state else None

    def _frame_pays(self, t: int) -> bool:
        return t > 0 and (self.frame_paid == "every_step" or t % self.interval == 0)

    def _frame_value(self, history: History, t: int) -> float:
        """Eq. 9 for the pair (o_{t-1}, a_{t-1}) that step t has just taken, normalised where that is wanted."""
        if self.normalise and self.frame.normaliser is None:
            raise InputError("the frame term is to be paid normalised: call fit_normaliser on the replay first")
        value = self.frame.values(self.frame.features(history, t - 1)[None], history.actions[t - 1][None])
        return float(self.frame.normaliser(value)[0] if self.normalise else value[0])

    def _with_frame(self, purpose: str) -> FrameReward:
        if self.frame is None:
            raise InputError(f"reward {self.name!r} has no frame term to {purpose}: it was made without fb or beta")
        return self.frame


register("genreward")(GenReward)


@register("genreward_video")
class GenRewardVideo(GenReward):
    """The video-level term alone (ablation "without FB reward", Fig. 9)."""

    properties = replace(_PROPERTIES, action_aware=False)

    def __init__(self, goal: Any, video_model: Any, alpha: float = 0.01, interval: int = 128, centring: str = "none",
                 window: str = "episode", mean_latent: np.ndarray | None = None) -> None:
        super().__init__(goal, video_model=video_model, alpha=alpha, beta=0.0, interval=interval, centring=centring,
                         window=window, mean_latent=mean_latent)


@register("genreward_frame")
class GenRewardFrame(GenReward):
    """The frame-level term alone (ablation "without video-level reward", Fig. 9)."""

    def __init__(self, goal: Any, fb: Any, encoder: Any = None, beta: float = 1e-5, interval: int = 128,
                 frame_paid: str = "interval", normalise: bool = False,
                 goal_features: np.ndarray | None = None) -> None:
        super().__init__(goal, fb=fb, encoder=encoder, alpha=0.0, beta=beta, interval=interval, frame_paid=frame_paid,
                         normalise=normalise, goal_features=goal_features)


@register("genreward_sound")
class GenRewardSound(GenReward):
    """The same method with what measurement calls for: latents centred by their first frame, B learned on buffer
    states, the frame term normalised over the replay and paid at every step."""

    properties = replace(_PROPERTIES, deviations=_PROPERTIES.deviations + (
        "Latents are centred by their first frame: the raw cosine lies within a few percent of 1 for any episode.",
        "B is evaluated at states of the replay (as in the forward-backward literature), not at the goal frame only.",
        "The frame-level reward is normalised by its mean and spread over the replay and paid at every step.",
        "Both weights are 1."))

    def __init__(self, goal: Any, video_model: Any = None, fb: Any = None, encoder: Any = None, alpha: float = 1.0,
                 beta: float = 1.0, interval: int = 128, centring: str = "first", window: str = "episode",
                 frame_paid: str = "every_step", normalise: bool = True, mean_latent: np.ndarray | None = None,
                 goal_features: np.ndarray | None = None) -> None:
        if fb is not None and fb.config.fb_targets != "buffer":
            raise InputError(f"genreward_sound needs F and B trained with fb_targets='buffer', "
                             f"got {fb.config.fb_targets!r}")
        super().__init__(goal, video_model, fb, encoder, alpha, beta, interval, centring, window, frame_paid,
                         normalise, mean_latent, goal_features)
