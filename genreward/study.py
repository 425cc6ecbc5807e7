"""Small measurements that the notebooks share: paired episodes, who is preferred, a chain with a known answer.

Stands beside `results` near the end of the flow (`... results -> figures -> book`): it asks the modules before it what
they do on a few episodes rendered on the spot, so that a notebook needs no folder of videos, and trains no agent.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from tqdm import tqdm

from . import demos, envs, errors, files, profiles, results
from .errors import Absent, InputError, unknown
from .rewards import GoalRewardEnv
from .rewards.genreward import centre, cosine
from .tasks import PAPER_TASKS, Task, get_task
from .trajectory import Trajectory, uniform_indices

# "oracle": one more expert of the same start, whose real video takes the goal video's place; "still": nothing moves.
CLIP_KINDS = ("expert", "oracle", "half", "failure", "random", "still")

# ---- episodes that differ in what is done, not in where they start


@dataclass(frozen=True)
class Clip:
    """Some frames of one episode, spread evenly over it.

    kind     one of `CLIP_KINDS`; start: which of the task's 50 starts
    frames   (K, H, W, 3) uint8; steps (K,) int: when they were seen; stages (K,) int index into `tasks.STAGES`
    episode  all states, actions and rewards behind them; None for "still"
    """

    kind: str
    start: int
    frames: np.ndarray
    steps: np.ndarray
    stages: np.ndarray
    episode: Trajectory | None

    @property
    def actions(self) -> np.ndarray:
        """(K, 4) the action taken at each of the frames; at the episode's end, where none was, the last one."""
        if self.episode is None:
            return np.zeros((len(self.frames), 4), np.float32)
        return self.episode.actions[np.minimum(self.steps, len(self.episode) - 1)]


def paired_clips(task: str | Task, kinds: Sequence[str], starts: int, num_frames: int, size: int = 64, seed: int = 0,
                 tries: int = 5, progress: bool = True) -> dict[str, list[Clip]]:
    """Episodes of several kinds from the same starts: kind -> `starts` clips, the i-th of every kind from one start.

    A start from which a kind cannot be had within `tries` (its expert fails, its failure succeeds) is left out for all
    kinds; the order in which starts are tried, and all noise, come from `seed`. InputError for an unknown kind, or
    when fewer than `starts` of the 50 starts will do.
    """
    for kind in kinds:
        if kind not in CLIP_KINDS:
            raise unknown("kind of clip", kind, CLIP_KINDS)
    if not 1 <= starts <= envs.GOALS or num_frames < 1 or tries < 1 or not kinds:
        raise InputError(f"starts must lie in 1..{envs.GOALS}, num_frames and tries be at least 1 and kinds be given; "
                         f"got {starts}, {num_frames}, {tries}, {tuple(kinds)}")
    env = quick(envs.make_env(task, seed=seed, size=size))
    rng = np.random.default_rng([seed, 345])
    clips: dict[str, list[Clip]] = {kind: [] for kind in kinds}
    bar = tqdm(total=starts, desc="episodes, by start", disable=not progress)
    try:
        for start in rng.permutation(envs.GOALS).tolist():
            made = _clips_of(env, kinds, start, num_frames, rng, tries)
            if made is None:
                continue
            for kind, clip in made.items():
                clips[kind].append(clip)
            bar.update()
            if len(clips[kinds[0]]) == starts:
                return clips
    finally:
        bar.close()
        env.close()
    raise InputError(f"only {len(clips[kinds[0]])} of the {envs.GOALS} starts of {env.task.name!r} give episodes of "
                     f"all of {', '.join(kinds)}; ask for fewer starts or kinds")


def _clips_of(env: envs.MetaWorldEnv, kinds: Sequence[str], start: int, num_frames: int, rng: np.random.Generator,
              tries: int) -> dict[str, Clip] | None:
    """One clip of every kind from one start, or None."""
    made = {}
    needed = demos.steps_to_success(env, start) if {"half", "failure"} & set(kinds) else None  # the same for all kinds
    for kind in kinds:
        if kind == "still":
            env.reset(options={"goal": start})
            frames = np.repeat(env.render()[None], num_frames, axis=0)
            zeros = np.zeros(num_frames, int)
            made[kind] = Clip(kind, start, frames, zeros, zeros, None)
            continue
        for _ in range(tries):
            failure = str(rng.choice(demos.FAILURES)) if kind == "failure" else None
            found = demos.episode(env, "expert" if kind == "oracle" else kind, rng, start, failure, needed)
            if found is not None:
                break
        else:
            return None
        episode, snapshots = found
        steps = uniform_indices(len(snapshots), num_frames)
        stages = demos.stages(episode.states, episode.success)[steps]
        made[kind] = Clip(kind, start, demos.render_states(env, [snapshots[step] for step in steps]), steps, stages,
                          episode)
    return made


def quick(env: gymnasium.Env) -> gymnasium.Env:
    """The environment, which from now on sees by arrays whether the gripper touches something.

    Meta-World asks MuJoCo's bindings for one contact after the other, twice a step: with an object in the gripper, half
    the time of an expert's episode. The answer is the same (a positive force on either pad), and so is the episode.
    """
    inner = getattr(env, "_env", None)
    if not hasattr(inner, "touching_object"):  # of another suite
        return env
    pads = [inner.data.geom(name).id for name in ("leftpad_geom", "rightpad_geom")]

    def touching_object(object_geom_id: int) -> bool:
        contact, forces = inner.data.contact, inner.data.efc_force
        pairs = contact.geom
        with_object = (pairs == object_geom_id).any(1)
        on_pads = [forces[contact.efc_address[with_object & (pairs == pad).any(1)]] for pad in pads]
        return all(sum(of_pad) > 0 for of_pad in on_pads)

    inner.touching_object = touching_object
    return env


def film(env: envs.MetaWorldEnv, policy: envs.Policy, pictures: int = 8, **reset: Any) -> np.ndarray:
    """(pictures, H, W, 3) uint8: one episode of `policy`, evenly spaced, both ends included. Only what is shown is
    rendered, which a policy that reads the simulator's state does not wait for; `reset` goes to the environment."""
    snapshots = []

    def watched(observation: np.ndarray) -> np.ndarray:
        snapshots.append(env.get_state())
        return policy(observation)

    envs.rollout(quick(env), watched, frames=False, **reset)
    snapshots.append(env.get_state())
    return demos.render_states(env, [snapshots[index] for index in uniform_indices(len(snapshots), pictures)])


def share_interval(share: float, n: int) -> results.Interval:
    """A share of n independent trials with its 95% interval by the score method (Wilson 1927, "Probable inference, the
    law of succession, and statistical inference", Journal of the American Statistical Association 22).

    With z = 1.96 the interval is (share + z^2/2n -+ z sqrt(share (1 - share) / n + z^2/4n^2)) / (1 + z^2/n). Unlike a
    bootstrap over zeros and ones it has a width at 0 of n and n of n too. InputError unless 0 <= share <= 1 and n > 0.
    """
    if not 0 <= share <= 1 or n < 1:
        raise InputError(f"a share must lie in 0..1 and come from at least 1 trial, got {share} of {n}")
    square = float(norm.ppf(0.975)) ** 2 / n
    middle, half = share + square / 2, float(np.sqrt(square * (share * (1 - share) + square / 4)))
    return results.Interval(float(share), max(0.0, (middle - half) / (1 + square)),
                            min(1.0, (middle + half) / (1 + square)), int(n))


def preference(better: np.ndarray, worse: np.ndarray) -> results.Interval:
    """How often the first of a pair gets the higher score, ties counting half: the area under the ROC curve within
    pairs (1 always, 0.5 a coin), with `share_interval` over pairs. better, worse (n,): the i-th of both share a start.
    """
    better, worse = np.asarray(better, float), np.asarray(worse, float)
    if better.shape != worse.shape or better.ndim != 1:
        raise InputError(f"pairs need two lists of one length, got shapes {better.shape} and {worse.shape}")
    if not (np.isfinite(better).all() and np.isfinite(worse).all() and len(better)):
        raise InputError("pairs to compare must be finite numbers, at least one pair")
    return share_interval(float(np.mean((better > worse) + 0.5 * (better == worse))), len(better))


class _Recorder(gymnasium.Wrapper):
    """Keeps what each step paid."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.paid: list[float] = []

    def step(self, action: np.ndarray) -> tuple:
        outcome = self.env.step(action)
        self.paid.append(float(outcome[1]))
        return outcome


def paid_episode(env: GoalRewardEnv, policy: envs.Policy, **reset: object) -> tuple[Trajectory, np.ndarray]:
    """One episode in a paying environment: the trajectory, with a frame of every state, and (T,) float64 what was paid
    at each step. Scored offline, the trajectory must give the same payments."""
    recorder = _Recorder(env)
    trajectory = envs.rollout(recorder, policy, **reset)
    return trajectory, np.asarray(recorder.paid)


# ---- video level


def paired_cosines(latents: np.ndarray, goals: np.ndarray, centring: str = "none",
                   mean: np.ndarray | None = None) -> np.ndarray:
    """Eq. 5 for n pairs: latents and goals (n, C, T', h, w) -> (n,) cosines of the i-th with the i-th, both centred as
    `rewards.genreward.centre` does it."""
    if len(latents) != len(goals):
        raise InputError(f"pairs need as many clips as goals, got {len(latents)} and {len(goals)}")
    return np.array([cosine(centre(latent, centring, mean), centre(goal, centring, mean))
                     for latent, goal in zip(np.asarray(latents), np.asarray(goals), strict=True)])


# ---- goal frames


def selection_hits(scores: Sequence[np.ndarray], stages: Sequence[np.ndarray], done: int) -> dict[str, np.ndarray]:
    """Whether the frame that each rule selects shows stage `done`, clip by clip: rule -> (n,) float64.

    scores, stages: one (K,) array a clip. "clip": the best score (the first of equals); "last": the last frame;
    "random": the expectation over a frame drawn uniformly, which is the share of frames that show it.
    """
    if len(scores) != len(stages) or not len(scores):
        raise InputError(f"need as many score curves as stage curves, at least one; got {len(scores)} and "
                         f"{len(stages)}")
    pairs = [(np.asarray(score), np.asarray(stage) == done) for score, stage in zip(scores, stages, strict=True)]
    return {"clip": np.array([float(shown[score.argmax()]) for score, shown in pairs]),
            "random": np.array([float(shown.mean()) for _, shown in pairs]),
            "last": np.array([float(shown[-1]) for _, shown in pairs])}


# ---- a chain whose successor measure is known


def ring_replay(states: int = 6, right: float = 0.7, transitions: int = 3000, seed: int = 0) -> dict[str, np.ndarray]:
    """Experience on a ring of states, for `forward_backward.train_fb` with `next_action="replay"`.

    The sign of the one action is the direction, its size says nothing; the behaviour goes right with probability
    `right`, now and at the next step; states are drawn uniformly. Features are one-hot, (transitions, states).
    """
    rng = np.random.default_rng(seed)
    here = rng.integers(states, size=transitions)
    actions, following = (np.where(rng.random(transitions) < right, 1.0, -1.0) * rng.uniform(0.2, 1.0, transitions)
                          for _ in range(2))
    eye = np.eye(states, dtype=np.float32)
    after = (here + np.sign(actions).astype(int)) % states
    return {"features": eye[here], "actions": actions[:, None].astype(np.float32), "next_features": eye[after],
            "next_actions": following[:, None].astype(np.float32)}


def ring_measure(states: int = 6, right: float = 0.7, gamma: float = 0.8) -> np.ndarray:
    """The ring's successor measure in closed form, P_a (I - gamma P_pi)^-1 diag(1/rho): (2, states, states), first for
    the action left, then right; rho is uniform, so that the mean over s' is 1/(1-gamma)."""
    step = np.roll(np.eye(states), 1, axis=1)  # row i: the state right of i
    visits = np.linalg.inv(np.eye(states) - gamma * (right * step + (1 - right) * step.T))
    return np.stack([step.T @ visits, step @ visits]) * states


# ---- actions to choose from


def action_grid(points: int, up: float = 0.0, gripper: float = 0.0) -> np.ndarray:
    """(points * points, 4) Meta-World actions: x along the second axis of a picture made by `reshape(points, points)`,
    y along the first, both from -1 to 1; `up` and `gripper` as given."""
    if points < 2:
        raise InputError(f"a grid of actions needs at least 2 points a side, got {points}")
    side = np.linspace(-1, 1, points, dtype=np.float32)
    y, x = np.meshgrid(side, side, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.full(points**2, up, np.float32),
                     np.full(points**2, gripper, np.float32)], axis=1)


def follow(act: Callable[[np.ndarray], np.ndarray], env: gymnasium.Env) -> envs.Policy:
    """A policy that looks at pictures: `act` maps a frame (H, W, 3) uint8 to an action, `env` renders it."""
    return lambda observation: act(env.render())


# ---- how the video model was trained

VIDEO_STAGES = ("vae", "pretrain", "finetune")


def training_record(folder: str | os.PathLike) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of every stage of the video model's training that left its record in `folder` (results/<profile>/video): the
    loss curve (columns step, loss, seconds; no rows when the stage was shorter than one entry) and the provenance.
    InputError when there is none of them, or a curve without its provenance."""
    folder, found = Path(folder), {}
    for stage in VIDEO_STAGES:
        curve = folder / f"loss_{stage}.csv"
        if curve.is_file():
            found[stage] = (files.read_table(curve, dtype=float), files.read_json(folder / f"provenance_{stage}.json"))
    if not found:
        raise Absent(f"{folder.name}/ holds no record of the video model's training; make it with: make results")
    return found


def training_summary(record: Mapping[str, tuple[pd.DataFrame, dict[str, Any]]]) -> pd.DataFrame:
    """One row a stage: steps, clips and tasks that it saw, minutes, and the mean loss of the first and of the last
    tenth of its curve (NaN where there is no curve)."""
    rows = []
    for stage, (curve, made) in record.items():
        tenth = max(1, len(curve) // 10)
        rows.append({"stage": stage, "steps": made["steps"], "clips": made["clips"], "tasks": len(made["tasks"]),
                     "device": made["device"], "minutes": made["seconds"] / 60,
                     "first_loss": curve["loss"].head(tenth).mean(), "last_loss": curve["loss"].tail(tenth).mean()})
    return pd.DataFrame(rows)


# ---- the diffusion's own error, on clips that it was not trained on


def diffusion_inputs(model: Any, clips: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What the diffusion works on: the scaled latents x_0 (N, T', C, h, w) float32 of clips (N, K, H, W, 3) uint8, and
    the latent of each first frame alone (N, 1, C, h, w), as training and generation condition on it."""
    factor = model.vae.config.scaling_factor
    image_factor = 1 / factor if model.vae.config.invert_scale_latents else factor
    latents = model.encode_batch(clips).permute(0, 2, 1, 3, 4)
    images = model.encode_batch(clips[:, :1]).permute(0, 2, 1, 3, 4)
    return latents * factor, images * image_factor


def denoising_errors(model: Any, clips: np.ndarray, prompts: Sequence[str], levels: Sequence[int],
                     seed: int = 0) -> np.ndarray:
    """Eq. 2 on given clips: (N, len(levels)) mean squared error of what the transformer predicts for x_t.

    clips   (N, K, H, W, 3) uint8; prompts: one a clip; levels: timesteps t in 0..999
    The noise depends on `seed`, the clip's place and the level only, so two models are compared on the same noise.
    """
    from .video_training import DiffusionLoss

    steps = model.pipe.scheduler.config.num_train_timesteps
    if len(clips) != len(prompts) or not len(clips):
        raise InputError(f"as many clips as prompts are needed, at least one; got {len(clips)} and {len(prompts)}")
    if not len(levels) or not all(0 <= level < steps for level in levels):
        raise InputError(f"noise levels must lie in 0..{steps - 1}, got {list(levels)}")
    latents, images = diffusion_inputs(model, clips)
    tokens = model.pipe.tokenizer(list(prompts), padding="max_length", max_length=model.text_length, truncation=True,
                                  add_special_tokens=True, return_tensors="pt").input_ids.to(model.device)
    weight = torch.ones(latents.shape[1], *latents.shape[3:])
    loss = DiffusionLoss(model, weight, learn_text=False).to(model.device)
    errors = np.empty((len(clips), len(levels)))
    with torch.no_grad(), model.autocast():
        texts = model.text_encoder(tokens)[0]
        for n, column in np.ndindex(errors.shape):
            noise = torch.randn(latents[n:n + 1].shape, generator=torch.Generator().manual_seed(
                int(np.random.default_rng([seed, n, int(levels[column])]).integers(2**62))))
            clean, image, noise = (part.to(model.device) for part in (latents[n:n + 1], images[n:n + 1], noise))
            errors[n, column] = float(loss(clean, image, texts[n:n + 1], torch.zeros(1, dtype=torch.long), noise,
                                           torch.tensor([int(levels[column])], device=model.device)))
    return errors


# ---- what the VAE keeps


def restoration(model: Any, clips: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Clips (N, K, H, W, 3) uint8 through the VAE and back: the restored clips, and how near they are to the originals.

    The table has a row a clip: PSNR in dB of the restored clip and of its first frame repeated, over all pixels
    (`restored`, `still`) and over the moving ones alone (`restored_moving`, `still_moving`; NaN where nothing moves).
    A pixel moves when it leaves its clip's median by the threshold that the VAE's loss uses.
    """
    from .video_training import MOVING, psnr

    restored = np.stack([model.decode(model.encode(clip)) for clip in clips])
    rows = []
    for clip, back in zip(clips, restored, strict=True):
        still = np.repeat(clip[:1], len(clip), axis=0)
        leaving = np.abs(clip - np.median(clip, axis=0, keepdims=True)).max(axis=-1) > MOVING * 127.5
        parts = {"": np.ones_like(leaving), "_moving": leaving}
        rows.append({f"{name}{part}": psnr(shown[where], clip[where]) if where.any() else np.nan
                     for part, where in parts.items() for name, shown in (("restored", back), ("still", still))})
    return restored, pd.DataFrame(rows)


# ---- generated videos beside real ones


def expert_of_start(task: str | Task, start_seed: int, num_frames: int, size: int = 64, seed: int = 0,
                    tries: int = 5) -> np.ndarray:
    """(num_frames, size, size, 3) uint8: an expert's video from the start that `pipeline.first_frame` shows for
    `start_seed`. InputError when the expert fails `tries` times there."""
    env = quick(envs.make_env(task, seed=start_seed, size=size))
    try:
        for attempt in range(tries):
            env.seed_goals(start_seed)
            found = demos.episode(env, "expert", np.random.default_rng([seed, attempt]))
            if found is not None:
                return demos.render_states(env, [found[1][i] for i in uniform_indices(len(found[1]), num_frames)])
    finally:
        env.close()
    raise InputError(f"the expert of {env.task.name!r} failed {tries} times from the start of seed {start_seed}")


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two clips (K, H, W, 3) uint8, in [-1, 1]: the mean over frames, channels and pixels,
    with Gaussian windows of standard deviation 1.5 pixels (Wang et al. 2004)."""
    from scipy.ndimage import gaussian_filter

    if np.shape(first) != np.shape(second):
        raise InputError(f"clips to compare must have one shape, got {np.shape(first)} and {np.shape(second)}")

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5, axes=(1, 2))

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mean_a * mean_b + c1) * (2 * both + c2)
                         / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def frame_changes(video: np.ndarray) -> np.ndarray:
    """(K-1,) mean absolute difference of each frame (K, H, W, 3) uint8 from the one before, in grey levels 0..255."""
    return np.abs(np.diff(np.asarray(video, np.float64), axis=0)).mean(axis=(1, 2, 3))


def jumps(video: np.ndarray, real: Sequence[np.ndarray]) -> np.ndarray:
    """Indices of the frames that differ from the one before by more than any frame of any `real` video of as many
    frames does: what the eye sees as a jump. It sees the arm; an object of a few pixels hardly counts."""
    if not len(real):
        raise InputError("jumps are measured against real videos; none was given")
    return np.flatnonzero(frame_changes(video) > max(frame_changes(clip).max() for clip in real)) + 1


METRICS = ("psnr", "ssim", "latent_cosine", "latent_cosine_centred")
JUDGED = ("psnr", "ssim", "latent_cosine_centred")  # by which a generated video must be nearer (`generation_verdict`)
REFERENCES = ("own", "other", "random", "still")
GENERATION_COLUMNS = ("task", "start", "subject", "reference", "metric", "value")


def evaluate_generation(model: Any, task: str | Task, starts: int, seed: int = 0, steps: int | None = None,
                        guidance: float | None = None, progress: bool = True) -> pd.DataFrame:
    """How near a task's generated videos are to the real one of the same start, and to what they should be less near.

    Rows of `GENERATION_COLUMNS`. Subject "generated" is compared with the references: "own", an expert's video of the
    same start; "other", the expert's videos of the other starts (mean over them); "random", random actions from the
    same start; "still", the first frame repeated. "still" and "restored" (own, through the VAE and back) are compared
    with "own" too: what not moving scores, and the most that any video out of this VAE can score. Metrics: PSNR in dB
    and SSIM of pixels, cosine of latents (Eq. 5) and the same with each clip's first latent taken off. All are larger
    for more similar videos. `steps`, `guidance`: of the sampler (default: the model's). InputError below 2 starts.
    """
    from .video_training import psnr

    if starts < 2:
        raise InputError(f"{starts} start leaves no other start to compare with; valid: 2 to {envs.GOALS}")
    task = get_task(task)
    real = paired_clips(task, ("expert", "random", "still"), starts, model.num_frames, model.image_size, seed,
                        progress=progress)
    videos = {name: np.stack([clip.frames for clip in real[kind]])
              for name, kind in (("own", "expert"), ("random", "random"), ("still", "still"))}
    numbers = [clip.start for clip in real["expert"]]
    videos["generated"] = model.generate_batch(videos["own"][:, 0], [task.prompt] * starts,
                                               [seed * envs.GOALS + number for number in numbers], steps=steps,
                                               guidance=guidance)
    latents = {name: model.encode_batch(clips).numpy() for name, clips in videos.items()}
    videos["restored"] = np.stack([model.decode(model.encode(clip)) for clip in videos["own"]])
    latents["restored"] = model.encode_batch(videos["restored"]).numpy()

    def similarity(subject: str, i: int, reference: str, j: int) -> np.ndarray:
        first, second = latents[subject][i], latents[reference][j]
        return np.array([psnr(videos[subject][i], videos[reference][j]), ssim(videos[subject][i], videos[reference][j]),
                         cosine(first, second), cosine(centre(first, "first"), centre(second, "first"))])

    rows = []
    for i, number in enumerate(numbers):
        found = {("generated", name): similarity("generated", i, name, i) for name in ("own", "random", "still")}
        found["generated", "other"] = np.mean([similarity("generated", i, "own", j) for j in range(starts) if j != i],
                                              axis=0)
        found |= {(name, "own"): similarity(name, i, "own", i) for name in ("still", "restored")}
        rows += [(task.name, number, *pair, metric, float(value)) for pair, values in found.items()
                 for metric, value in zip(METRICS, values, strict=True)]
    return pd.DataFrame(rows, columns=list(GENERATION_COLUMNS))


def measure_generation(model: Any, profile: str | profiles.Profile, starts: int = 20, seed: int = 0,
                       tasks: Sequence[str] = PAPER_TASKS) -> pd.DataFrame:
    """`evaluate_generation` of every task with the profile's sampler settings, written to results/<profile>/
    generation.csv with its provenance beside it (generation.json). Minutes a task."""
    profile = profiles.get_profile(profile)
    began, config = time.time(), profile.video
    table = pd.concat([evaluate_generation(model, task, starts, seed, config.inference_steps, config.guidance)
                       for task in tasks], ignore_index=True)
    path = profiles.paths(profile).results / "generation.csv"
    files.write_json(path.with_suffix(".json"), results.provenance(
        round(time.time() - began, 1), starts=starts, seed=seed, tasks=list(tasks), steps=config.inference_steps,
        guidance=config.guidance))
    with files.atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return table


def load_generation(profile: str | profiles.Profile) -> pd.DataFrame | None:
    """The table that `measure_generation` wrote, or None where there is none; InputError for another table."""
    path = profiles.paths(profile).results / "generation.csv"
    if not path.is_file():
        return None
    return files.read_table(path, GENERATION_COLUMNS)


def generation_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a task and metric: n starts, the mean similarity of generated videos to each reference, that of the
    still picture and of the VAE's restoration to the real video (`still_to_own`, `restored_to_own`), and in how many
    of the starts (0..1) the generated video is nearer to its own real video than to each of the others
    (`beats_other`, `beats_random`, `beats_still`), ties counting half."""
    lines = []
    for (task, metric), rows in table.groupby(["task", "metric"], sort=False):
        wide = rows.pivot(index="start", columns=["subject", "reference"], values="value")
        made = wide["generated"]
        line = {"task": task, "metric": metric, "n": len(wide), **{name: made[name].mean() for name in REFERENCES},
                "still_to_own": wide["still", "own"].mean(), "restored_to_own": wide["restored", "own"].mean()}
        line |= {f"beats_{name}": preference(made["own"], made[name]).value for name in REFERENCES[1:]}
        lines.append(line)
    return pd.DataFrame(lines)


def generation_verdict(summary: pd.DataFrame, metrics: Sequence[str] = JUDGED,
                       share: float = 0.5) -> pd.Series:
    """Task -> whether its generated videos are nearer to the real one than to other starts, to random actions and to
    the still picture in more than `share` of the starts, by every one of `metrics`."""
    absent = sorted(set(metrics) - set(summary["metric"]))
    if absent:
        raise unknown("metric", absent[0], summary["metric"].unique())
    beats = summary.loc[summary["metric"].isin(metrics), [f"beats_{name}" for name in REFERENCES[1:]]] > share
    return beats.all(axis=1).groupby(summary["task"], sort=False).all()


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m genreward.study --profile laptop`: compare generated with real videos, once, for notebook 02."""
    from .pipeline import load_video_model

    parser = argparse.ArgumentParser(prog="python -m genreward.study", description=main.__doc__)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--starts", type=int, default=20, help="starts a task, 2 to 50")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 2 <= options.starts <= envs.GOALS:
        raise InputError(f"--starts must lie in 2..{envs.GOALS}, got {options.starts}")
    table = measure_generation(load_video_model(options.profile), options.profile, options.starts, options.seed)
    print(generation_summary(table).round(3).to_string(index=False))


if __name__ == "__main__":
    errors.cli(main)
