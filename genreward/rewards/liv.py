"""LIV (Ma et al. 2023): the cosine of a frame with the goal, in a CLIP whose distances are steps to the goal.

The reward stands behind `demos`, whose expert videos train it, and `goals`: it starts from the frame scorer's CLIP. The
image tower learns, by VIP's objective, that the value of a frame for a goal rises along a video, and by InfoNCE that a
video's last frame belongs to its caption. The text tower stays the scorer's, so that only the image tower is saved.

    python -m genreward.rewards.liv train --profile laptop     # results/laptop/weights/rewards/liv
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from .. import demos, errors, files, profiles, results
from ..errors import InputError, unknown
from ..trajectory import check_frames
from ._fit import augment_clip, curve, fit
from ._video_text import first_line, weights_digest
from .base import RewardProperties, register
from .roboclip import held_out_experts, shows_success
from .vlm_rm import FrameByFrame, goal_sentences, mean_direction

if TYPE_CHECKING:  # at run time open_clip would take seconds to import
    from ..goals import FrameScorer

PART = "liv"  # under which name the reward model is given what `train` makes and `load` reads
LIV_FILE, TOWER_FILE = "liv.json", "image_tower.safetensors"
TARGETS = ("image", "text")
LAST = 0.05  # of a video: the frames that may stand for what its caption says


@dataclass(frozen=True)
class LIVConfig:
    """How the image tower learns. gamma is a frame's discount; a batch holds one video of each of `batch` captions."""

    gamma: float = 0.98
    image_weight: float = 1.0
    language_weight: float = 1.0
    clip_weight: float = 1.0
    updates: int = 400
    batch: int = 24
    learning_rate: float = 3e-4
    clips_per_task: int = 16


SETTINGS = {
    "smoke": LIVConfig(updates=4, batch=4, clips_per_task=2),
    "laptop": LIVConfig(),
    "gpu": LIVConfig(updates=10_000, batch=45, learning_rate=1e-4, clips_per_task=100),
    "paper": LIVConfig(updates=10_000, batch=45, learning_rate=1e-5, clips_per_task=100),
}


# ------------------------------------------------------------------------------------------------- the representation

class LIVModel:
    """Images by a tower of LIV's, sentences by the frame scorer whose CLIP it started from.

    scorer  a FrameScorer: its text tower and preprocessing
    visual  the image tower; by default the scorer's own, which makes the model a plain CLIP (or a published LIV, which
            is a whole CLIP)
    """

    def __init__(self, scorer: FrameScorer, visual: torch.nn.Module | None = None) -> None:
        self.scorer = scorer
        self.visual = (scorer.model.visual if visual is None else visual).to(scorer.device).eval()

    @classmethod
    def start(cls, scorer: FrameScorer) -> LIVModel:
        """A copy of the scorer's image tower, to be trained; the scorer itself stays as it is."""
        return cls(scorer, copy.deepcopy(scorer.model.visual))

    @classmethod
    def load(cls, folder: str | os.PathLike, scorer: FrameScorer | None = None, pretrained: str | None = None,
             device: str | torch.device = "cpu") -> LIVModel:
        """What `save` wrote, with the scorer that it was trained from; or a whole CLIP in open_clip's format, a folder
        or a model of the hub by name and weights tag. InputError for anything else, or for another scorer."""
        from ..goals import CONFIG_FILE, FrameScorer

        folder_path = Path(folder)
        if pretrained is not None or (folder_path / CONFIG_FILE).is_file():
            return cls(FrameScorer.load(folder, pretrained, device))
        for name in (LIV_FILE, TOWER_FILE):
            if not (folder_path / name).is_file():
                raise InputError(f"{folder} is no LIV model: it has no {name}; valid: what "
                                 f"`python -m genreward.rewards.liv train` saves, or a CLIP in open_clip's format")
        if scorer is None:
            raise InputError(f"the LIV model {folder} is an image tower only; give the frame scorer it was trained "
                             f"from: scorer=...")
        made_from = files.read_json(folder_path / LIV_FILE).get("scorer")
        if made_from != scorer.identity:
            raise InputError(f"the LIV model {folder} was trained from another frame scorer ({made_from}, here "
                             f"{scorer.identity}); train it again")
        model = cls.start(scorer)
        try:
            state = load_file(folder_path / TOWER_FILE)
            model.visual.load_state_dict({name: value.float() if value.is_floating_point() else value
                                          for name, value in state.items()})
        except (SafetensorError, RuntimeError, OSError) as problem:
            raise InputError(f"{folder_path / TOWER_FILE} is not this scorer's image tower ({first_line(problem)}); "
                             f"train it again") from None
        return model

    def save(self, folder: str | os.PathLike, provenance: dict[str, Any] | None = None) -> None:
        """Write the image tower in half precision and which scorer it belongs to, whole or not at all."""
        with files.atomic_dir(folder) as temporary:
            files.write_json(temporary / LIV_FILE, {"scorer": self.scorer.identity})
            save_file({name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
                       for name, value in self.visual.state_dict().items()}, temporary / TOWER_FILE)
            if provenance is not None:
                files.write_json(temporary / "provenance.json", provenance)

    @property
    def identity(self) -> str:
        """A digest of the image tower's weights (in the half precision that `save` keeps)."""
        return weights_digest(self.visual)

    @torch.no_grad()
    def encode_image(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """phi(o), of unit length: (N, H, W, 3) uint8 of any size -> (N, d) float32."""
        frames = check_frames(frames)
        self.visual.eval()
        parts = [self.features(frames[begin:begin + batch]) for begin in range(0, len(frames), batch)]
        return torch.cat(parts).cpu().numpy()

    def features(self, frames: np.ndarray) -> torch.Tensor:
        """The same as a tensor with a gradient, in one batch."""
        return nnf.normalize(self.visual(self.scorer.pixels(frames).to(self.scorer.device)).float(), dim=-1)

    def encode_text(self, prompts: str | Sequence[str]) -> np.ndarray:
        """psi(l), of unit length: M sentences -> (M, d) float32."""
        return self.scorer.encode_text(prompts)


# -------------------------------------------------------------------------------------------------------- the reward

@register("liv")
class LIV(FrameByFrame):
    """cos(phi(o), phi(g)) of every frame, in [-1, 1].

    goal      a Goal: its frame is the goal image, its paraphrases the goal's sentences
    liv       a LIVModel
    target    "text" (the default: what Table 1 of the paper compares, and in need of no picture) or "image"
    prompt    one or more sentences in the place of the goal's
    interval  steps between payments
    """

    properties = RewardProperties(
        demo_free=True, generated=False, action_aware=False,
        citation="Ma et al., LIV: Language-Image Representations and Rewards for Robotic Control, ICML 2023",
        deviations=(
            "The text tower is the frame scorer's and stays frozen; only the image tower learns.",
            "By default the CLIP is the small one trained here, not ResNet-50 on EpicKitchens; it learns from the "
            "expert videos of the pretraining tasks (published weights are read where a user has them).",
            "A step of the value function is one kept frame of a video (33 an episode), not one at camera rate.",
            "InfoNCE has the temperature of the value function, 1 - gamma, as the derivation has it; the published "
            "code has none.",
            "The caption of a video's end is that of its last stage (\"the puck is at the goal\"), which is what the "
            "frozen text tower knows.",
            "The additional negative frames of the published pretraining are left out."))
    term = "liv"

    def __init__(self, goal: Any, liv: LIVModel, target: str = "text", prompt: str | Sequence[str] | None = None,
                 interval: int = 1) -> None:
        if target not in TARGETS:
            raise unknown("target", target, TARGETS)
        if target == "image" and prompt is not None:
            raise InputError("a goal image has no prompt; valid: target='text' with a prompt, or no prompt")
        self._set(interval, int(goal.frame.shape[0]))
        self.liv = liv
        if target == "image":
            self.goal = liv.encode_image(check_frames(goal.frame[None], name="the goal frame"))[0]
            generated = getattr(goal, "source", "generated") == "generated"
            self.properties = replace(self.properties, demo_free=generated, generated=generated)
        else:
            self.goal = mean_direction(liv.encode_text(prompt if prompt is not None else goal_sentences(goal)))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """phi of some frames."""
        return self.liv.encode_image(frames)

    def values(self, embeddings: np.ndarray) -> np.ndarray:
        """Their cosines with the goal."""
        return np.clip(embeddings @ self.goal, -1.0, 1.0)


# ------------------------------------------------------------------------------------------------------ the training

def vip_loss(first: torch.Tensor, now: torch.Tensor, later: torch.Tensor, gamma: float = 0.98) -> torch.Tensor:
    """VIP's objective for goals g, in its dual form, with the constant reward -1 of a step that is not yet at the goal:

        (1 - gamma) E[-V(o_0; g)] + log E[exp(V(o_k; g) + 1 - gamma V(o_k+1; g))],   V = cos / (1 - gamma)

    first, now, later  (n,) cosines of o_0, o_k and o_k+1 with their goals, in [-1, 1]
    The first term pulls a video's beginning to its goal; the second lets no step gain more than the reward allows,
    which spreads the frames between evenly. It is 1 when all cosines are equal. InputError unless 0 <= gamma < 1.
    """
    if not 0 <= gamma < 1:
        raise InputError(f"gamma must lie in [0, 1), got {gamma}")
    scale = 1 / (1 - gamma)
    gains = scale * now + 1 - gamma * scale * later
    return (1 - gamma) * -(scale * first).mean() + torch.logsumexp(gains, 0) - math.log(len(gains))


class VideoPool:
    """Expert videos and what their last frames show.

    clips (K, H, W, 3) uint8 each; captions: distinct sentences; members: caption -> clips that end with it
    """

    def __init__(self, clips: Sequence[np.ndarray], labels: Sequence[str]) -> None:
        if len(clips) != len(labels) or len(set(labels)) < 2 or min(map(len, clips)) < 3:
            raise InputError(f"LIV learns from videos of at least 3 frames with at least two distinct captions, got "
                             f"{len(clips)} videos and {len(set(labels))} captions")
        self.clips, self.captions = list(clips), list(dict.fromkeys(labels))
        self.members = [np.flatnonzero([label == caption for label in labels]) for caption in self.captions]

    @classmethod
    def from_folder(cls, folder: demos.VideoFolder, size: int, clips_per_task: int | None = None) -> VideoPool:
        """The successful training experts of a folder, the first so many of each task. The caption is that of the last
        frame's stage where the rows carry `stages` and `stage_captions`, else the clip's text."""
        clips, labels, taken = [], [], {}
        for index, row in enumerate(folder.clips):
            if row.get("split", "train") != "train" or not shows_success(row):
                continue
            task = row.get("task")
            if task is not None and taken.get(task, 0) >= (clips_per_task or math.inf):
                continue
            taken[task] = taken.get(task, 0) + 1
            clips.append(folder.frames(index, size=size))
            staged = row.get("stages") and row.get("stage_captions")
            labels.append(row["stage_captions"][row["stages"][-1]] if staged else row["text"])
        return cls(clips, labels)

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One video of each of `batch` captions: frames (n, 5, H, W, 3) uint8 and the captions' numbers (n,).

        The five: o_0 and the goal, beginning and end of a random stretch of the video; o_k and o_k+1, a step within it;
        and one of the video's last frames, which is what the caption describes. All are shifted and coloured alike.
        """
        labels = rng.permutation(len(self.captions))[:max(batch, 2)]
        chosen = []
        for label in labels:
            clip = self.clips[rng.choice(self.members[label])]
            first = int(rng.integers(len(clip) - 2))
            goal = int(rng.integers(first + 1, len(clip)))
            now = int(rng.integers(first, goal))
            last = int(rng.integers(min(math.ceil((1 - LAST) * len(clip)), len(clip) - 1), len(clip)))
            chosen.append(augment_clip(clip[[first, goal, now, now + 1, last]], rng))
        return np.stack(chosen), labels

    @property
    def digest(self) -> str:
        """16 hex digits that name the content."""
        total = hashlib.sha256("\n".join(self.captions).encode())
        for clip in self.clips:
            total.update(np.ascontiguousarray(clip))
        total.update(str([member.tolist() for member in self.members]).encode())
        return total.hexdigest()[:16]


def train_liv(model: LIVModel, pool: VideoPool, config: LIVConfig, seed: int = 0,
              checkpoint: str | os.PathLike | None = None, checkpoint_every: int = 100,
              progress: bool = True) -> list[dict[str, Any]]:
    """Train the image tower, in place: `vip_loss` with image goals and with the captions as goals, and InfoNCE between
    last frames and captions; returns the loss curve as rows of the results' schema. See `_fit.fit` for checkpoints."""
    from ..goals import contrastive_loss

    if config.batch < 2:
        raise InputError(f"LIV's batch must be at least 2 videos, got {config.batch}")
    texts = torch.from_numpy(model.encode_text(pool.captions)).to(model.scorer.device)

    def loss(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        frames, labels = pool.draw(config.batch, rng)
        images = model.features(frames.reshape(-1, *frames.shape[2:])).unflatten(0, (len(labels), 5))
        first, goal, now, later, last = images.unbind(1)
        captions = texts[labels]

        def value(target: torch.Tensor) -> torch.Tensor:
            return vip_loss(*((part * target).sum(-1) for part in (first, now, later)), config.gamma)

        return {"vip_image": config.image_weight * value(goal),
                "vip_language": config.language_weight * value(captions),
                "info_nce": config.clip_weight * contrastive_loss(last, captions, 1 / (1 - config.gamma))}

    model.visual.requires_grad_(True)
    rows = fit("liv", model.visual, loss, updates=config.updates, learning_rate=config.learning_rate, seed=seed,
               weight_decay=0.001, settings={"pool": pool.digest, "scorer": model.scorer.identity, "config": config},
               checkpoint=Path(checkpoint) if checkpoint is not None else None, checkpoint_every=checkpoint_every,
               progress=progress)
    model.visual.requires_grad_(False)
    return rows


def evaluate(model: LIVModel, folder: demos.VideoFolder, per_task: int = 4) -> dict[str, float]:
    """Mean Spearman correlation of the reward with time over held-out expert episodes (split "test"): for their own
    last frame as the goal, and for the caption of their last stage. Empty where there are none."""
    found: dict[str, list[float]] = {"image": [], "text": []}
    for index in held_out_experts(folder, per_task):
        row = folder.clips[index]
        phi = model.encode_image(folder.frames(index, size=model.scorer.image_size))
        staged = row.get("stages") and row.get("stage_captions")
        text = model.encode_text(row["stage_captions"][row["stages"][-1]] if staged else row["text"])[0]
        for name, goal in (("image", phi[-1]), ("text", text)):
            found[name].append(float(np.nan_to_num(spearmanr(phi @ goal, np.arange(len(phi))).statistic)))
    if not found["text"]:
        return {}
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()} | {"clips": len(found["text"])}


def train(profile: str | profiles.Profile, out_folder: str | os.PathLike, demos_folder: str | os.PathLike,
          in_domain_folder: str | os.PathLike | None = None, scorer: FrameScorer | None = None, progress: bool = True,
          seed: int = 0) -> LIVModel:
    """Train the scorer's image tower on the expert videos of the pretraining tasks and save it into `out_folder` with
    its provenance. `in_domain_folder` is not used: LIV needs no demonstration of the evaluated tasks. The same call
    goes on after a stop. InputError without a scorer or clips.
    """
    profile = profiles.get_profile(profile)
    config = settings(profile)
    if scorer is None:
        raise InputError("LIV starts from the frame scorer's CLIP; give scorer=goals.FrameScorer.load(...)")
    began = time.time()
    folder = demos.VideoFolder(demos_folder)
    pool = VideoPool.from_folder(folder, scorer.image_size, config.clips_per_task)
    model = LIVModel.start(scorer)
    before = evaluate(model, folder)
    content = files.digest(config, {"seed": seed, "pool": pool.digest, "scorer": scorer.identity})
    checkpoint = profiles.paths(profile).checkpoints / f"liv-{content}.pt"
    rows = train_liv(model, pool, config, seed, checkpoint, progress=progress)
    model.save(out_folder, results.provenance(
        round(time.time() - began, 1), config=config, seed=seed, scorer=scorer.identity, clips=len(pool.clips),
        captions=len(pool.captions), pool=pool.digest, time_correlation={"scorer": before,
                                                                        "liv": evaluate(model, folder)},
        loss=curve(rows)))
    checkpoint.unlink(missing_ok=True)
    return model


def settings(profile: str | profiles.Profile) -> LIVConfig:
    """The training's numbers in a profile."""
    name = profiles.get_profile(profile).name
    if name not in SETTINGS:
        raise unknown("profile of LIV:", name, SETTINGS)
    return SETTINGS[name]


def load(folder: str | os.PathLike, scorer: FrameScorer | None = None, pretrained: str | None = None,
         device: str = "cpu", **parts: Any) -> LIVModel:
    """The model to give the reward as `liv`; see `LIVModel.load`. Other parts are not used."""
    return LIVModel.load(folder, scorer, pretrained, device)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.rewards.liv train`: train LIV's image tower on expert videos, from the frame scorer's."""
    from ..goals import FrameScorer

    parser = argparse.ArgumentParser(prog="python -m genreward.rewards.liv", description=main.__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("train", help=main.__doc__)
    command.add_argument("--profile", default="laptop", help="smoke, laptop, gpu or paper")
    command.add_argument("--demos", help="folder of videos (default: the profile's)")
    command.add_argument("--scorer", help="folder of the frame scorer (default: the profile's)")
    command.add_argument("--out", help="default: results/<profile>/weights/rewards/liv")
    command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    profile, where = profiles.get_profile(chosen.profile), profiles.paths(chosen.profile)
    out = Path(chosen.out or where.weights / "rewards" / "liv")
    if chosen.scorer is None and profile.clip.pretrained is not None:
        scorer = FrameScorer.load(*profile.clip.pretrained, device=profile.device)
    else:
        scorer = FrameScorer.load(chosen.scorer or where.scorer, device=profile.device)
    train(profile, out, chosen.demos or where.demos, scorer=scorer, seed=chosen.seed)
    made = files.read_json(out / "provenance.json")
    print(f"{out}: loss {made['loss']['loss'][-1][1]:.3f}; correlation with time {made['time_correlation']}; "
          f"{made['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    errors.cli(main)
