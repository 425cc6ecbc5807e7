"""Demonstration videos: scripted experts rendered into a folder of captioned clips, and the reader of such folders.

The folder follows the `videofolder` convention (clips beside a `metadata.jsonl` with `file_name` and `text`), so a
reader can put RT-1, Bridge or their own clips in its place: only `file_name` and `text` are needed. What is known
about rendered clips comes along: task, kind (expert, failure, half, random), split, success, and the stage of every
frame, whose captions teach the frame scorer.

    python -m genreward.demos --profile laptop        # build/laptop/demos; run again to go on after a stop
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import envs, errors, files, profiles
from .errors import InputError
from .tasks import PAPER_TASKS, PRETRAIN_TASKS, STAGES, get_task
from .trajectory import Trajectory, check_frames, uniform_indices

KINDS = ("expert", "failure", "half", "random")
FAILURES = ("drop", "short", "misplace")
EXPERT_NOISE = 0.05  # standard deviation added to the expert's actions: no two episodes are alike
MAX_STEPS = 220  # an expert that has not succeeded by then is tried again at another goal
AFTER_SUCCESS = (10, 40)  # steps that an episode runs on after success: else "the last frame" would be the goal frame


# --- stages -----------------------------------------------------------------------------------------------------------


def stages(states: np.ndarray, success: np.ndarray) -> np.ndarray:
    """(T+1,) int index into `tasks.STAGES` of every state of an episode, from simulator state.

    states (T+1, 39) observations, success (T,) bool after each step. "moving" is an object more than 2 cm from where
    it started, "touching" within 7 cm of the hand, "above" within 5 cm of it horizontally.
    """
    hand, thing = states[:, :3], states[:, 4:7]
    stage = np.zeros(len(states), int)
    stage[np.linalg.norm((hand - thing)[:, :2], axis=1) < 0.05] = STAGES.index("above")
    stage[np.linalg.norm(hand - thing, axis=1) < 0.07] = STAGES.index("touching")
    stage[np.linalg.norm(thing - thing[0], axis=1) > 0.02] = STAGES.index("moving")
    stage[1:][success] = STAGES.index("done")
    return stage


# --- episodes ---------------------------------------------------------------------------------------------------------


def steps_to_success(env: envs.MetaWorldEnv, goal: int | None = None) -> int:
    """How many steps the noiseless expert needs from the next start (that of `goal`, if given), or -1 if it does not
    get there. The environment's generator is left as it was: its next start is still this one."""
    keep = env.rng_state()
    episode = envs.rollout(env, envs.expert_policy(env.task), frames=False, steps=MAX_STEPS, **_options(goal))
    env.set_rng_state(keep)
    return int(np.argmax(episode.success)) + 1 if episode.succeeded else -1


def _options(goal: int | None) -> dict[str, Any]:
    return {} if goal is None else {"options": {"goal": goal}}


def episode(env: envs.MetaWorldEnv, kind: str, rng: np.random.Generator, goal: int | None = None,
            failure: str | None = None, needed: int | None = None
            ) -> tuple[Trajectory, list[dict[str, np.ndarray]]] | None:
    """One episode of a kind, with the simulator's state at every step (to render from), or None if it turned out to be
    of another kind (an expert that fails, a failure that succeeds): the caller tries again.

    kind     "expert" (with noise), "failure" (see `failure`), "half" (stops about half-way, then moves at random),
             "random"
    failure  "drop": opens the gripper under way; "short": stops at 80% of the way; "misplace": aims at a goal 12 to 18
             cm off
    needed   what `steps_to_success` says of this start, from a caller who has asked (half-way is half of it); None: it
             is asked here, where the kind wants it
    """
    if kind not in KINDS:
        raise errors.unknown("kind of episode", kind, KINDS)
    if kind == "failure" and failure not in FAILURES:
        raise errors.unknown("failure", failure, FAILURES)
    if kind not in ("failure", "half"):
        needed = -1
    else:
        needed = steps_to_success(env, goal) if needed is None else needed
        if needed < 0:
            env.reset(**_options(goal))  # draws the next goal, so that another try is another start
            return None
    expert, explore = envs.expert_policy(env.task), envs.random_policy(rng)
    share = {"half": rng.uniform(0.35, 0.6), "drop": rng.uniform(0.6, 0.8), "short": rng.uniform(0.72, 0.85)}
    turn = int(needed * share.get(failure or kind, 1.0))
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.18)
    offset = np.array([np.cos(angle), np.sin(angle), 0]) * radius if failure == "misplace" else np.zeros(3)
    last_grip = -1.0

    observation, _ = env.reset(**_options(goal))
    states, actions, rewards, success = [observation], [], [], []
    snapshots = [env.get_state()]
    remaining: int | None = None
    limit = {"random": 120, "half": needed + 20, "failure": needed + 40}.get(kind, MAX_STEPS)
    for step in range(limit):
        if kind == "random" or (kind == "half" and step >= turn):
            action = explore(observation)
        elif failure == "short" and step >= turn:
            action = np.array([0, 0, 0, last_grip], np.float32)
        else:
            seen = observation.copy()
            seen[-3:] += offset
            action = np.clip(expert(seen) + EXPERT_NOISE * rng.normal(size=4), -1, 1).astype(np.float32)
            if failure == "drop" and step >= turn:
                action[3] = -1.0  # opens
            last_grip = float(action[3])
        observation, _, _, _, info = env.step(action)
        states.append(observation)
        actions.append(action)
        rewards.append(info["dense_reward"])
        success.append(info["success"] > 0)
        snapshots.append(env.get_state())
        if kind == "expert" and success[-1] and remaining is None:
            remaining = int(rng.integers(*AFTER_SUCCESS))
        if remaining is not None:
            remaining -= 1
            if remaining < 0:
                break
    done = Trajectory(env.task.name, np.stack(states), np.stack(actions), np.asarray(rewards, np.float32),
                      np.asarray(success, bool))
    if done.succeeded != (kind == "expert") and kind != "random":
        return None
    done.info = {"kind": kind, "failure": failure}
    return done, snapshots


def render_states(env: envs.MetaWorldEnv, snapshots: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """(N, H, W, 3) uint8: a picture of each state."""
    pictures = []
    for state in snapshots:
        env.set_state(state)
        pictures.append(env.render())
    return np.stack(pictures)


# --- video files ------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: np.ndarray, fps: float = 10, lossy: bool = False, scale: int = 1) -> None:
    """Write frames (N, H, W, 3) uint8 as H.264, whole or not at all.

    By default with full colour resolution and near-lossless, for models; `lossy=True` writes what every browser plays
    (4:2:0), enlarged by `scale` with hard pixel edges so that 64x64 can be seen.
    """
    import av

    frames = check_frames(frames, name=f"frames of {Path(path).name}")
    if scale > 1:
        frames = frames.repeat(scale, 1).repeat(scale, 2)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    with files.atomic_path(path) as temporary:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p" if lossy else "yuv444p"
            # x264's fast paths, those for B-frames above all, now and then decide by memory that nobody wrote: without
            # this option one file in fifty differed from the others of the same frames
            stream.options = {"crf": "16" if lossy else "6", "preset": "fast", "x264-params": "cpu-independent=1"}
            stream.codec_context.thread_count = 1  # the same bytes on every machine
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())


def read_video(path: str | Path) -> np.ndarray:
    """(N, H, W, 3) uint8 of a video file; a file that cannot be read or has no frames is an `InputError`."""
    import av

    if not Path(path).is_file():
        raise InputError(f"no such video: {path}")
    try:
        with av.open(str(path)) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError, ValueError) as problem:
        raise InputError(f"{path} cannot be read as a video ({type(problem).__name__}: {problem})") from None
    if not pictures:
        raise InputError(f"{path} has no frames")
    return np.stack(pictures)


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Centre-crop to a square and scale to `size` x `size` by area averaging (antialiased)."""
    import torch
    import torch.nn.functional as nn

    height, width = frames.shape[1:3]
    if height == width == size:
        return frames
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frames[:, top:top + side, left:left + side])).permute(0, 3, 1, 2)
    small = nn.interpolate(square.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class VideoFolder:
    """A folder of captioned clips: `metadata.jsonl` with a row a clip, `file_name` and `text` at least.

    clips    the rows, in the file's order
    frames   decoded clips; decoding is remembered, since training asks for the same clip again and again
    """

    def __init__(self, folder: str | Path, **where: Any) -> None:
        """Open `folder`; keyword arguments keep rows by value, e.g. `task=["push", "reach"], kind="expert"`."""
        self.folder = Path(folder)
        table = self.folder / "metadata.jsonl"
        if not table.is_file():
            raise InputError(f"{self.folder} is no folder of videos: it has no metadata.jsonl")
        self.clips: list[dict[str, Any]] = []
        for number, line in enumerate(files.read_text(table).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                file, text = row["file_name"], row["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as problem:
                raise InputError(f"{table}, line {number}: needs a JSON object with file_name and text "
                                 f"({type(problem).__name__}: {problem})") from None
            if not (isinstance(file, str) and isinstance(text, str)):
                raise InputError(f"{table}, line {number}: file_name and text must be words, got {file!r}, {text!r}")
            if not (self.folder / file).is_file():
                raise InputError(f"{table}, line {number}: no such clip: {file}")
            self.clips.append(row)
        for key, wanted in where.items():
            values = {wanted} if isinstance(wanted, str) else set(wanted)
            self.clips = [row for row in self.clips if row.get(key) in values]
        if not self.clips:
            raise InputError(f"{self.folder} has no clips" + (f" with {where}" if where else ""))
        self._decoded: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def frames(self, index: int, num_frames: int | None = None, size: int | None = None) -> np.ndarray:
        """(K, H, W, 3) uint8 of clip `index`, `num_frames` of them spread evenly, scaled to `size`."""
        name = self.clips[index]["file_name"]
        if name not in self._decoded:
            clip = read_video(self.folder / name)
            self._decoded[name] = resize(clip, size) if size is not None else clip
        clip = self._decoded[name]
        if size is not None and clip.shape[1:3] != (size, size):
            clip = resize(clip, size)
        return clip if num_frames is None else clip[uniform_indices(len(clip), num_frames)]

    def trajectory(self, index: int) -> Trajectory:
        """States, actions, rewards and success of the whole episode behind clip `index` (frames: None)."""
        row = self.clips[index]
        if not row.get("trajectory"):
            raise InputError(f"{row['file_name']} has no trajectory: only rendered episodes have one")
        kept = files.read_npz(self.folder / row["trajectory"], "states", "actions", "rewards", "success")
        return Trajectory(row["task"], kept["states"], kept["actions"], kept["rewards"], kept["success"], None, row)


# --- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What is wanted of one task: how many episodes of each kind, and with which seed."""

    task: str
    expert: int
    failure: int
    half: int
    random: int
    split: str
    seed: int
    frames: int = 33
    size: int = 64


def plan(profile: str | profiles.Profile) -> list[Order]:
    """The orders of a profile: experts of the pretraining tasks for training; of the paper's tasks, for tests and
    studies only (split "test"), experts, failures, half-finished and random episodes."""
    config = profiles.get_profile(profile)
    data = config.data
    chosen = PRETRAIN_TASKS[: data.tasks] if data.tasks else PRETRAIN_TASKS
    common: dict[str, Any] = {"frames": data.frames, "size": config.image_size}
    orders = [Order(task, data.episodes, 0, 0, 1, "train", 1, **common) for task in chosen]
    return orders + [Order(task, data.test_episodes, data.failures, data.failures, data.failures, "test", 2, **common)
                     for task in PAPER_TASKS]


def plan_in_domain(profile: str | profiles.Profile) -> list[Order]:
    """Training episodes of the evaluated tasks, at other starts than the tests': never for the video model that
    imagines them (but for its in-domain variant), only for the frame scorer, which stands in for an OpenCLIP that has
    seen everything."""
    config = profiles.get_profile(profile)
    return [Order(task, config.data.in_domain, 0, 0, 1, "train", 3, config.data.frames, config.image_size)
            for task in PAPER_TASKS]


def make_demos(folder: str | Path, orders: Sequence[Order], jobs: int = 1, progress: bool = True) -> VideoFolder:
    """Render every order into `folder` and write its `metadata.jsonl`.

    Each order is finished before its rows are recorded, so a stopped call goes on where it was. The same orders give
    the same frames: starts and noise come from generators seeded by (seed, task, kind).
    """
    from joblib import Parallel, delayed

    errors.at_least("jobs", jobs, 1)
    folder = Path(folder)
    parts = [folder / ".parts" / f"{order.task}-{files.digest(order)}.jsonl" for order in orders]
    missing = [(order, part) for order, part in zip(orders, parts, strict=True) if not part.is_file()]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_fill)(folder, order, part) for order, part in missing)
    for _ in tqdm(work, total=len(missing), desc="episodes, by task", unit="task", disable=not progress):
        pass
    with files.atomic_path(folder / "metadata.jsonl") as temporary:
        temporary.write_text("".join(part.read_text() for part in parts))
    return VideoFolder(folder)


def _fill(folder: Path, order: Order, part: Path) -> None:
    """Render one order's episodes and record them."""
    task = get_task(order.task)
    rows: list[dict[str, Any]] = []
    letters = [ord(letter) for letter in task.name]
    # Pretraining starts may lie anywhere; evaluated tasks keep to the 50 goals that agents meet.
    env = envs.make_env(task, seed=order.seed, size=order.size, goals="any" if order.split == "train" else "fifty")
    try:
        for kind in KINDS:
            rng = np.random.default_rng([order.seed, KINDS.index(kind), *letters])
            env.seed_goals(int(rng.integers(2**31)))
            wanted, tries, made = getattr(order, kind), 0, 0
            while made < wanted and tries < 8 * wanted + 8:
                tries += 1
                failure = FAILURES[made % len(FAILURES)] if kind == "failure" else None
                result = episode(env, kind, rng, failure=failure)
                if result is None:
                    continue
                trajectory, snapshots = result
                rows.append(_save(folder, order, kind, made, trajectory, snapshots, env))
                made += 1
    finally:
        env.close()
    with files.atomic_path(part) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save(folder: Path, order: Order, kind: str, number: int, trajectory: Trajectory,
          snapshots: list[dict[str, np.ndarray]], env: envs.MetaWorldEnv) -> dict[str, Any]:
    task = env.task
    chosen = uniform_indices(len(snapshots), order.frames)
    name = f"{order.split}/{task.name}-{kind}-{order.seed}-{number:03d}"
    write_video(folder / f"{name}.mp4", render_states(env, [snapshots[i] for i in chosen]))
    kept = None
    if order.split == "test":
        kept = f"{name}.npz"
        with files.atomic_path(folder / kept) as temporary:
            np.savez_compressed(temporary, states=trajectory.states, actions=trajectory.actions,
                                rewards=trajectory.rewards, success=trajectory.success)
    first = int(np.argmax(trajectory.success)) + 1 if trajectory.succeeded else None
    return {"file_name": f"{name}.mp4", "text": task.prompt, "task": task.name, "kind": kind,
            "failure": trajectory.info["failure"], "split": order.split, "seed": order.seed, "number": number,
            "success": trajectory.succeeded, "steps": chosen.tolist(), "success_step": first,
            "stages": stages(trajectory.states, trajectory.success)[chosen].tolist(),
            "stage_captions": list(task.stage_captions), "trajectory": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help="smoke, laptop, gpu or paper")
    parser.add_argument("--out", default=None, help="folder (default: build/<profile>/demos)")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--in-domain", action="store_true", help="training episodes of the evaluated tasks instead")
    arguments = parser.parse_args()
    where = profiles.paths(arguments.profile)
    orders = plan_in_domain(arguments.profile) if arguments.in_domain else plan(arguments.profile)
    out = Path(arguments.out) if arguments.out else where.in_domain_demos if arguments.in_domain else where.demos
    made = make_demos(out, orders, arguments.jobs)
    print(f"{len(made)} clips in {out}")


if __name__ == "__main__":
    errors.cli(main)
