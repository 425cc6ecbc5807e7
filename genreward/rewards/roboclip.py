"""RoboCLIP (Sontakke et al. 2023): at the end of an episode, how near its video is to one demonstration, or to a text.

The reward stands behind `demos`, whose clips train the small video-text encoder and give the demonstration; the
encoders themselves are in `_video_text`. Registered as `roboclip` (target: a demonstration of the very task) and
`roboclip_text` (target: the goal's prompt).

    python -m genreward.rewards.roboclip train --profile laptop     # results/laptop/weights/rewards/roboclip
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import demos, errors, files, profiles, results
from ..errors import InputError, unknown
from ..trajectory import Trajectory, check_frames, uniform_indices
from ._fit import augment_clip, curve, fit
from ._video_text import S3DEncoder, VideoTextEncoder, XClipConfig, XClipEncoder
from .base import History, RewardModel, RewardProperties, register

PART = "video_text"  # under which name a reward model is given what `train` makes and `load` reads
SIMILARITIES = ("cosine", "dot")
LEAST_FRAMES = 3  # of a clip that is cut at a stage, where the stage lasts that long

SETTINGS = {
    "smoke": XClipConfig(width=32, layers=1, heads=2, embed_dim=32, text_width=32, text_layers=1, updates=6,
                         captions_per_batch=8, clips_per_task=2),
    "laptop": XClipConfig(),
    "gpu": XClipConfig(patch_size=8, width=256, layers=6, heads=8, embed_dim=256, text_width=256, text_layers=4,
                       text_heads=4, prompt_layers=2, updates=20_000, learning_rate=3e-4, captions_per_batch=64,
                       clips_per_task=100),
    "paper": XClipConfig(pretrained="microsoft/xclip-base-patch32"),
}

_CITATION = "Sontakke et al., RoboCLIP: One Demonstration is Enough to Learn Robot Policies, NeurIPS 2023"
_DEVIATIONS = (
    "The encoder is X-CLIP, by default a small one trained here on captioned clips of all tasks, in place of S3D on "
    "HowTo100M (which is read from a local file where a user has it).",
    "An episode is sampled evenly to the frames that the encoder takes (8) rather than every 4th frame of 128.",
    "The small encoder's training clips include episodes of the evaluated tasks (never the demonstration itself), as "
    "do those of the frame scorer that the other models use.")


# ---------------------------------------------------------------------------------------------------- the reward

class RoboCLIP(RewardModel):
    """Similarity of the episode's video with one demonstration video, paid once, when the episode ends.

    video_text     a VideoTextEncoder
    demonstration  (K, H, W, 3) uint8, an expert's episode of the task; the episode's frames must have its size
    similarity     "dot" (as published) or "cosine" of the two embeddings
    every          None: at the end only. k: also after every k-th step, on the episode so far (a dense variant)

    An episode that ends before its planned length is compared by the nearest of the frames that were rendered for it.
    """

    properties = RewardProperties(demo_free=False, generated=False, action_aware=False, citation=_CITATION,
                                  deviations=_DEVIATIONS)

    def __init__(self, video_text: VideoTextEncoder, demonstration: np.ndarray, similarity: str = "dot",
                 every: int | None = None) -> None:
        clip = check_frames(demonstration, name="the demonstration", least=2)
        self._set(video_text, int(clip.shape[1]), similarity, every)
        self.target = video_text.embed_video(clip[None])[0]

    def _set(self, video_text: VideoTextEncoder, frame_size: int, similarity: str, every: int | None) -> None:
        if similarity not in SIMILARITIES:
            raise unknown("similarity", similarity, SIMILARITIES)
        if every is not None and every < 1:
            raise InputError(f"every must be at least 1 step, or None for the end of the episode only, got {every}")
        self.video_text, self.frame_size = video_text, frame_size
        self.similarity, self.every = similarity, every
        self._needed: dict[int, frozenset[int]] = {}

    def pays(self, history: History, t: int) -> bool:
        """Whether step `t` is paid."""
        return (history.ended and t == len(history)) or (self.every is not None and t % self.every == 0)

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames that the payments of an episode of that length are sampled from."""
        if episode_steps not in self._needed:
            ends = {episode_steps} | (set(range(self.every, episode_steps + 1, self.every)) if self.every else set())
            self._needed[episode_steps] = frozenset(int(step) for end in ends for step in self._steps(end))
        return t in self._needed[episode_steps]

    def terms(self, history: History, t: int) -> dict[str, float]:
        """{"roboclip": the similarity} at a paid step, 0 between."""
        if not self.pays(history, t):
            return {"roboclip": 0.0}
        known = history.cache.get("roboclip", {})
        if t in known:
            return {"roboclip": known[t]}
        return {"roboclip": float(self.compare(history.clip(self._rendered(history, t))[None])[0])}

    def prepare(self, history: History, trajectory: Trajectory) -> None:
        """Encode all clips that a recorded episode will be paid for in batches."""
        steps = len(trajectory)
        ends = sorted({steps, *(range(self.every, steps + 1, self.every) if self.every else ())})
        clips = np.stack([trajectory.frames[self._steps(end)] for end in ends])
        history.cache["roboclip"] = dict(zip(ends, self.compare(clips).tolist(), strict=True))

    def compare(self, clips: np.ndarray) -> np.ndarray:
        """(N, K, H, W, 3) uint8 -> (N,) float64: the similarity of each clip with the target."""
        videos = self.video_text.embed_video(clips)
        return similarity(videos, np.broadcast_to(self.target, videos.shape), self.similarity)

    def _steps(self, end: int) -> np.ndarray:
        return uniform_indices(end + 1, self.video_text.num_frames)

    def _rendered(self, history: History, t: int) -> np.ndarray:
        """The steps to compare at `t`; for an episode cut short, the nearest ones of which there is a frame."""
        steps = self._steps(t)
        if t == history.episode_steps or all(int(step) in history.frames for step in steps):
            return steps
        there = np.array(sorted(step for step in history.frames if step <= t))
        return there[np.abs(there[None] - steps[:, None]).argmin(axis=1)] if len(there) else steps


register("roboclip")(RoboCLIP)


@register("roboclip_text")
class RoboCLIPText(RoboCLIP):
    """The same with a sentence as the target (the publication's variant without a demonstration).

    goal    a Goal: its prompt is the target, its frames' size that of the episode's frames
    prompt  another sentence in its place
    """

    properties = replace(RoboCLIP.properties, demo_free=True, deviations=(
        *_DEVIATIONS, "The sentence is adapted to each video by X-CLIP's video-specific prompt before it is compared."))

    def __init__(self, video_text: VideoTextEncoder, goal: Any, prompt: str | None = None, similarity: str = "dot",
                 every: int | None = None) -> None:
        self._set(video_text, int(goal.frame.shape[0]), similarity, every)
        self.prompt = goal.prompt if prompt is None else prompt
        video_text.embed_text(self.prompt)  # a sentence that cannot be read fails here, not after an episode

    def compare(self, clips: np.ndarray) -> np.ndarray:
        """(N, K, H, W, 3) uint8 -> (N,) float64: the similarity of each clip with the sentence."""
        return similarity(*self.video_text.embed_pair(clips, self.prompt), self.similarity)


def similarity(a: np.ndarray, b: np.ndarray, kind: str = "dot") -> np.ndarray:
    """Rows of a and b, (N, d) each -> (N,) float64: their dot products, or cosines (0 where a row is zero)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    dots = (a * b).sum(axis=1)
    if kind == "dot":
        return dots
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 1e-12)


def demonstration_index(folder: demos.VideoFolder, task: str) -> int:
    """Which clip of the folder is the task's one demonstration: its first successful training expert episode."""
    rows = [(row.get("number", 0), index) for index, row in enumerate(folder.clips)
            if row.get("task") == task and row.get("split", "train") == "train" and shows_success(row)]
    if not rows:
        raise InputError(f"{folder.folder} has no training expert episode of {task!r}; valid: "
                         f"{', '.join(sorted({str(row.get('task')) for row in folder.clips}))}")
    return min(rows)[1]


def shows_success(row: dict[str, Any]) -> bool:
    """Whether a clip shows its task done by an expert; a user's own clips, of which nothing else is known, do."""
    return row.get("kind", "expert") == "expert" and bool(row.get("success", True))


def demonstration(folder: str | os.PathLike | demos.VideoFolder, task: str, size: int | None = None) -> np.ndarray:
    """The one demonstration of a task, (K, H, W, 3) uint8; InputError when the folder has none. The encoder's training
    leaves it out where the folder is that of the evaluated tasks."""
    folder = folder if isinstance(folder, demos.VideoFolder) else demos.VideoFolder(folder)
    return folder.frames(demonstration_index(folder, task), size=size)


# ------------------------------------------------------------------------------------- training a small X-CLIP

@dataclass
class ClipPool:
    """Captioned clips to learn from.

    clips     (K, H, W, 3) uint8 each
    captions  distinct sentences
    members   caption -> (clip, frames at which it may end): a clip from its start to one of them is what is described
    groups    sets of captions of one task, which come into a batch together
    """

    clips: list[np.ndarray]
    captions: list[str]
    members: list[list[tuple[int, np.ndarray]]]
    groups: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.captions) < 2 or len(set(self.captions)) != len(self.captions):
            raise InputError(f"clips to learn from need at least two distinct captions, got {len(self.captions)}")

    @classmethod
    def from_folders(cls, folders: Sequence[demos.VideoFolder], size: int, clips_per_task: int | None = None,
                     without: Sequence[tuple[int, int]] = ()) -> ClipPool:
        """The training clips of some folders: a successful expert's whole clip with its text, and where the rows carry
        `stages` and `stage_captions`, clips up to a frame with the caption of the stage that it ends in.

        clips_per_task  only the first so many of each kind; without: (folder, clip) numbers to leave out
        """
        clips: list[np.ndarray] = []
        members: dict[str, list[tuple[int, np.ndarray]]] = {}
        groups: dict[str, set[str]] = {}
        for number, folder in enumerate(folders):
            taken: dict[tuple[Any, Any], int] = {}
            for index, row in enumerate(folder.clips):
                kind = (row.get("task"), row.get("kind"))
                if row.get("split", "train") != "train" or (number, index) in without \
                        or taken.get(kind, 0) >= (clips_per_task or np.inf):
                    continue
                taken[kind] = taken.get(kind, 0) + 1
                frames = folder.frames(index, size=size)
                group = groups.setdefault(str(row.get("task", row["text"])), set())
                if shows_success(row):
                    members.setdefault(row["text"], []).append((len(clips), np.array([len(frames) - 1])))
                    group.add(row["text"])
                if row.get("stages") and row.get("stage_captions"):
                    stages = np.asarray(row["stages"])
                    for stage in np.unique(stages):
                        ends = np.flatnonzero(stages == stage)
                        caption = row["stage_captions"][stage]
                        late = ends[ends >= LEAST_FRAMES - 1]
                        members.setdefault(caption, []).append((len(clips), late if len(late) else ends))
                        group.add(caption)
                clips.append(frames)
        captions = list(members)
        where = {caption: label for label, caption in enumerate(captions)}
        return cls(clips, captions, list(members.values()),
                   [sorted(where[caption] for caption in group) for group in groups.values() if group])

    def draw(self, captions: int, num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One clip for each of about that many distinct captions, whole groups at a time: clips (n, num_frames, H, W,
        3) uint8, spread unevenly in time and shifted and coloured a little, and their captions' numbers (n,)."""
        drawn: set[int] = set()
        for group in rng.permutation(len(self.groups)):
            drawn.update(self.groups[group])
            if len(drawn) >= max(captions, 2):
                break
        labels = np.array(sorted(drawn))
        chosen = []
        for label in labels:
            clip, ends = self.members[label][rng.integers(len(self.members[label]))]
            chosen.append(jitter(self.clips[clip][:int(rng.choice(ends)) + 1], num_frames, rng))
        return np.stack(chosen), labels

    @property
    def digest(self) -> str:
        """16 hex digits that name the content."""
        total = hashlib.sha256("\n".join(self.captions).encode())
        for clip in self.clips:
            total.update(np.ascontiguousarray(clip))
        for label, rows in enumerate(self.members):
            for clip, ends in rows:
                total.update(f"{label} {clip} {ends.tolist()}".encode())
        return total.hexdigest()[:16]


def jitter(clip: np.ndarray, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """`num_frames` of a clip (K, H, W, 3) uint8 at times that wander by up to half their distance, in order, with the
    last one kept; all of them shifted and coloured alike."""
    last = len(clip) - 1
    times = np.linspace(0, last, num_frames) + rng.uniform(-0.5, 0.5, num_frames) * last / max(num_frames - 1, 1)
    times[-1] = last
    return augment_clip(clip[np.sort(times.round().clip(0, last).astype(int))], rng)


def train_xclip(encoder: XClipEncoder, pool: ClipPool, updates: int, learning_rate: float = 1e-3,
                captions_per_batch: int = 36, seed: int = 0, checkpoint: str | os.PathLike | None = None,
                checkpoint_every: int = 100, progress: bool = True) -> list[dict[str, Any]]:
    """X-CLIP's own contrastive loss between clips and captions, over all weights, in place; returns the loss curve as
    rows of the results' schema. See `_fit.fit` for checkpoints."""
    if captions_per_batch < 2:
        raise InputError(f"captions_per_batch must be at least 2, got {captions_per_batch}")
    tokens = encoder.tokens(pool.captions)

    def loss(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        clips, labels = pool.draw(captions_per_batch, encoder.num_frames, rng)
        found = encoder.model(pixel_values=encoder.pixels(clips).to(encoder.device), return_loss=True,
                              **{name: values[labels] for name, values in tokens.items()})
        return {"contrastive": found.loss}

    return fit("roboclip", encoder.model, loss, updates=updates, learning_rate=learning_rate, seed=seed,
               settings={"pool": pool.digest, "model": encoder.model.config.to_diff_dict(),
                         "captions": captions_per_batch},
               checkpoint=Path(checkpoint) if checkpoint is not None else None, checkpoint_every=checkpoint_every,
               progress=progress)


def retrieval(encoder: VideoTextEncoder, clips: np.ndarray, captions: Sequence[str], labels: Sequence[int],
              kind: str = "cosine") -> float:
    """The fraction of clips (N, K, H, W, 3) whose nearest caption is their own, in [0, 1]."""
    scores = np.stack([similarity(*encoder.embed_pair(clips, caption), kind) for caption in captions], axis=1)
    return float(np.mean(scores.argmax(axis=1) == np.asarray(labels)))


def held_out_experts(folder: demos.VideoFolder, per_task: int) -> list[int]:
    """The first so many expert episodes of each task among a folder's test clips (split "test")."""
    found: dict[Any, list[int]] = {}
    for index, row in enumerate(folder.clips):
        if row.get("split") == "test" and row.get("kind") == "expert":
            found.setdefault(row.get("task"), []).append(index)
    return [index for indices in found.values() for index in indices[:per_task]]


def evaluate(encoder: VideoTextEncoder, folder: demos.VideoFolder, per_task: int = 2) -> dict[str, float]:
    """How often an expert's held-out episode (split "test") finds its own text among the texts of the test tasks, with
    n clips and chance; empty where there are no test clips."""
    rows = [(index, folder.clips[index]) for index in held_out_experts(folder, per_task)]
    if not rows:
        return {}
    texts = sorted({row["text"] for _, row in rows})
    clips = np.stack([folder.frames(index, encoder.num_frames) for index, _ in rows])
    accuracy = retrieval(encoder, clips, texts, [texts.index(row["text"]) for _, row in rows])
    return {"text_retrieval": round(accuracy, 4), "chance": round(1 / len(texts), 4), "clips": len(rows)}


def train(profile: str | profiles.Profile, out_folder: str | os.PathLike, demos_folder: str | os.PathLike,
          in_domain_folder: str | os.PathLike | None, scorer: Any = None, progress: bool = True,
          seed: int = 0) -> XClipEncoder:
    """Train the profile's small X-CLIP on the clips of both folders (but no task's demonstration) and save it into
    `out_folder` with its provenance. `scorer` is not used. The same call goes on after a stop.

    InputError for a profile that takes its encoder from the hub, or a folder without clips.
    """
    profile = profiles.get_profile(profile)
    config = settings(profile)
    if config.pretrained is not None:
        raise InputError(f"profile {profile.name!r} takes RoboCLIP's encoder {config.pretrained} from the hub: nothing "
                         f"to train")
    began = time.time()
    folders = [demos.VideoFolder(demos_folder)]
    without = []
    if in_domain_folder is not None:
        inside = demos.VideoFolder(in_domain_folder)
        folders.append(inside)
        without = [(1, demonstration_index(inside, task)) for task in sorted({row["task"] for row in inside.clips
                                                                             if row.get("kind") == "expert"})]
    pool = ClipPool.from_folders(folders, config.image_size, config.clips_per_task, without)
    encoder = XClipEncoder.small(config, seed, profile.device)
    content = files.digest(config, {"seed": seed, "pool": pool.digest})
    checkpoint = profiles.paths(profile).checkpoints / f"roboclip-{content}.pt"
    rows = train_xclip(encoder, pool, config.updates, config.learning_rate, config.captions_per_batch, seed, checkpoint,
                       progress=progress)
    encoder.save(out_folder, results.provenance(
        round(time.time() - began, 1), config=config, seed=seed, clips=len(pool.clips), captions=len(pool.captions),
        pool=pool.digest, held_out=evaluate(encoder, folders[0]), loss=curve(rows)))
    checkpoint.unlink(missing_ok=True)
    return encoder


def settings(profile: str | profiles.Profile) -> XClipConfig:
    """The encoder's configuration in a profile."""
    name = profiles.get_profile(profile).name
    if name not in SETTINGS:
        raise unknown("profile of RoboCLIP's encoder:", name, SETTINGS)
    return SETTINGS[name]


def load(folder: str | os.PathLike, device: str = "cpu", **parts: Any) -> VideoTextEncoder:
    """The encoder to give a reward model as `video_text`: what `train` saved, a hub id, or a local S3D file (one ending
    in .pt, .pth or .ts; with `words=` the list for sentences). Other parts are not used."""
    if Path(folder).suffix in (".pt", ".pth", ".ts"):
        return S3DEncoder.load(folder, parts.get("words"), device=device)
    return XClipEncoder.load(folder, device)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.rewards.roboclip train`: train RoboCLIP's small video-text encoder on captioned clips."""
    parser = argparse.ArgumentParser(prog="python -m genreward.rewards.roboclip", description=main.__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("train", help=main.__doc__)
    command.add_argument("--profile", default="laptop", help="smoke, laptop or gpu")
    command.add_argument("--demos", help="folder of videos (default: the profile's)")
    command.add_argument("--in-domain", help="folder with training episodes of the evaluated tasks, or 'none' "
                                             "(default: the profile's)")
    command.add_argument("--out", help="default: results/<profile>/weights/rewards/roboclip")
    command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    where = profiles.paths(chosen.profile)
    out = Path(chosen.out or where.weights / "rewards" / "roboclip")
    inside = None if chosen.in_domain == "none" else chosen.in_domain or where.in_domain_demos
    train(chosen.profile, out, chosen.demos or where.demos, inside, seed=chosen.seed)
    made = files.read_json(out / "provenance.json")
    print(f"{out}: contrastive loss {made['loss']['loss'][-1][1]:.3f}; held-out clips {made['held_out']}; "
          f"{made['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    errors.cli(main)
