"""Frames as words: a small VQ autoencoder that turns a frame into a grid of tokens, and what reward models over tokens
share. VIPER and Diffusion Reward both model video as sequences of such tokens; they read demonstrations (`demos`) and
stand beside the other rewards, behind `forward_backward` and before the agents.

    python -m genreward.rewards.tokens train --profile laptop

Here too: the training loop of these models (`Fit`: resumable to the bit, since every step draws its random numbers from
a generator seeded by (seed, step)), the windows of frames that they look at, and `TokenReward`, the part of their
reward models that is the same.

**One spacing.** Demonstration clips keep about every third to fifth environment step; the models learn windows of
frames that lie `spacing` environment steps apart (each the recorded frame nearest to that step). A reward model is told
by `stride` how many steps of its trajectories make up one spacing: 4 for an environment stepped at its full rate, 1
for trajectories that keep every 4th step.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .. import errors, files, profiles, results
from ..demos import VideoFolder
from ..errors import InputError
from ..trajectory import Trajectory, check_frames
from .base import History, RewardModel
from .novelty import Novelty

MOVING = 0.12  # a pixel moves when it leaves its clip's median by this much of the range -1..1
MOVING_WEIGHT = 4.0
CHECKPOINT_SECONDS = 60.0
SPACING = 4  # environment steps between two frames of a window
WEIGHTS, CONFIG, CHECKPOINT, STATISTICS = "model.safetensors", "config.json", "checkpoint.pt", "statistics.json"


# ------------------------------------------------------------------------------------------------------- training data


@dataclass(frozen=True)
class ExpertClips:
    """Decoded training clips. `frames[i]` is (K_i, H, W, 3) uint8, `steps[i]` (K_i,) each frame's environment step,
    `tasks[i]` the clip's task, `evaluated[i]` whether it came from the folder of evaluated tasks."""

    frames: list[np.ndarray]
    steps: list[np.ndarray]
    tasks: list[str]
    evaluated: np.ndarray
    digest: str


def training_clips(demos_folder: str | Path | None, in_domain_folder: str | Path | None, size: int,
                   per_task: int | None = None, kinds: Sequence[str] = ("expert",),
                   tasks: Sequence[str] | None = None, progress: bool = True) -> ExpertClips:
    """The training clips (split "train") of both folders, scaled to `size` x `size`; either folder may be None.

    per_task  at most so many clips a task of `demos_folder`, evenly over the folder (None: all); the other folder,
              which is small, is always read whole
    tasks     only these tasks
    Clips that name no kind count as expert, those that name no steps as lying `SPACING` steps apart. InputError where
    nothing is left.
    """
    found: list[tuple[VideoFolder, int, bool]] = []
    for folder, evaluated in ((demos_folder, False), (in_domain_folder, True)):
        if folder is None:
            continue
        videos, counts = VideoFolder(folder), {}
        for index, row in enumerate(videos.clips):
            task = str(row.get("task", ""))
            if (row.get("split", "train") != "train" or row.get("kind", "expert") not in kinds
                    or (tasks is not None and task not in tasks)):
                continue
            counts[task, row.get("kind")] = counts.get((task, row.get("kind")), 0) + 1
            if evaluated or per_task is None or counts[task, row.get("kind")] <= per_task:
                found.append((videos, index, evaluated))
    if not found:
        named = f" of {', '.join(tasks)}" if tasks is not None else ""
        raise InputError(f"there is no training clip of kind {', '.join(kinds)}{named}; valid: folders of videos as "
                         "`python -m genreward.demos` writes them (with --in-domain for the evaluated tasks)")
    rows = [videos.clips[index] for videos, index, _ in found]
    frames = [videos.frames(index, size=size) for videos, index, _ in tqdm(found, "decoding", disable=not progress)]
    steps = [np.asarray(row.get("steps") or np.arange(len(clip)) * SPACING)
             for row, clip in zip(rows, frames, strict=True)]
    for row, clip, at in zip(rows, frames, steps, strict=True):
        if len(at) != len(clip):
            raise InputError(f"{row['file_name']} has {len(clip)} frames and names the steps of {len(at)}")
    return ExpertClips(frames, steps, [str(row.get("task", "")) for row in rows],
                       np.array([evaluated for *_, evaluated in found]), files.digest(rows, size))


def lags(steps: np.ndarray, index: int, window: int, spacing: int = SPACING) -> np.ndarray:
    """(window - 1,) indices of the frames before frame `index` >= 1 of a clip, nearest first: those recorded nearest to
    1, 2, ... spacings earlier. -1 stands for a frame before the clip's beginning; the first is never missing, since the
    clip's beginning stands in for it.
    """
    wanted = steps[index] - spacing * np.arange(1, window)
    chosen = np.abs(steps[:index, None] - wanted).argmin(axis=0)
    chosen[1:][wanted[1:] < steps[0]] = -1
    return chosen


def past_steps(t: int, window: int, stride: int) -> list[int]:
    """The same for a trajectory: steps t - stride, t - 2 stride, ...; -1 where that is before its beginning, but 0 for
    the first of them. t >= 1."""
    return [max(0, t - stride)] + [t - k * stride if t >= k * stride else -1 for k in range(2, window)]


# ------------------------------------------------------------------------------------------------------- training loop


class Fit:
    """Trains a module for a number of steps, goes on after a kill from the last checkpoint, and remembers its losses.

    module     what is trained; its buffers are kept as well
    identity   what a checkpoint must have been made with; another one is refused
    Adam with a linear warm-up and half a cosine down to 2% of the learning rate; gradients clipped to norm 1.
    """

    def __init__(self, stage: str, folder: str | Path, module: nn.Module, steps: int, learning_rate: float, seed: int,
                 identity: dict[str, Any], progress: bool = True,
                 checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
        self.stage, self.folder, self.module, self.steps = stage, Path(folder), module, steps
        self.learning_rate, self.seed, self.identity = learning_rate, seed, files.digest(identity, steps, seed)
        self.progress, self.checkpoint_seconds = progress, checkpoint_seconds
        self.optimiser = torch.optim.AdamW(module.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
        self.step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.losses: list[float] = []
        self.checkpoint = self.folder / CHECKPOINT
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        try:
            kept = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            identity = kept["identity"]
        except Exception as problem:  # a damaged archive raises whatever its reader stumbled on
            raise InputError(f"the checkpoint {self.checkpoint} cannot be read ({type(problem).__name__}); delete it "
                             "to start anew") from None
        if identity != self.identity:
            raise InputError(f"the checkpoint {self.checkpoint} belongs to other settings or data; valid: the same "
                             "ones, another folder, or delete it")
        self.module.load_state_dict(kept["module"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step, self.losses = kept["step"], kept["losses"]
        self.seconds, self.cpu_seconds = kept["seconds"], kept["cpu_seconds"]

    def run(self, loss: Callable[[np.random.Generator], torch.Tensor],
            after: Callable[[np.random.Generator], None] | None = None) -> None:
        """Take the steps that are left. `loss(rng)` gives a step's loss, `after(rng)` is called when it is taken."""
        wall, cpu, saved = time.monotonic(), time.process_time(), time.monotonic()
        self.module.train()
        device = next(self.module.parameters()).device.type
        with tqdm(total=self.steps, initial=self.step, desc=self.stage, disable=not self.progress) as bar:
            while self.step < self.steps:
                rng = np.random.default_rng([self.seed, self.step])
                warm = min(1.0, (self.step + 1) / max(1, min(50, self.steps // 10)))
                cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
                for group in self.optimiser.param_groups:
                    group["lr"] = self.learning_rate * warm * (0.02 + 0.98 * cosine)
                with torch.autocast(device, torch.bfloat16):
                    value = loss(rng)
                if not torch.isfinite(value):
                    raise InputError(f"the loss of {self.stage} became {float(value)} at step {self.step}; valid: a "
                                     "lower learning rate")
                value.backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad()
                if after is not None:
                    after(rng)
                self.losses.append(float(value.detach()))
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{np.mean(self.losses[-20:]):.3f}", refresh=False)
                if time.monotonic() - saved >= self.checkpoint_seconds:
                    self._account(wall, cpu)
                    wall, cpu, saved = time.monotonic(), time.process_time(), time.monotonic()
                    self._save()
        self._account(wall, cpu)
        self.module.eval()

    def _account(self, wall: float, cpu: float) -> None:
        self.seconds += time.monotonic() - wall
        self.cpu_seconds += time.process_time() - cpu

    def _save(self) -> None:
        with files.atomic_path(self.checkpoint) as temporary:
            torch.save({"identity": self.identity, "step": self.step, "losses": self.losses, "seconds": self.seconds,
                        "cpu_seconds": self.cpu_seconds, "module": self.module.state_dict(),
                        "optimiser": self.optimiser.state_dict()}, temporary)

    def curve(self, points: int = 100) -> list[list[float]]:
        """[step, mean loss since the point before] of at most `points` points, for the provenance."""
        parts = np.array_split(np.arange(len(self.losses)), min(points, max(1, len(self.losses))))
        return [[int(part[-1]) + 1, round(float(np.mean(np.asarray(self.losses)[part])), 5)] for part in parts
                if len(part)]

    def provenance(self, **more: Any) -> dict[str, Any]:
        """Seconds, steps, seed and loss curve of this training, with whatever else is given."""
        return results.provenance(round(self.seconds, 1), cpu_seconds=round(self.cpu_seconds, 1), stage=self.stage,
                                  steps=self.step, seed=self.seed, curve=self.curve(), **more)


def place(config: profiles.Profile) -> torch.device:
    """The profile's device, or the CPU where it has a GPU and this machine has none."""
    return torch.device(config.device if torch.cuda.is_available() else "cpu")


def read_config(cls: type, content: dict[str, Any]) -> Any:
    """A config dataclass from JSON: lists become tuples again; unknown or missing fields are an InputError."""
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})
    except TypeError:
        raise InputError(f"a {cls.__name__} has the fields {', '.join(field.name for field in fields(cls))}; got "
                         f"{', '.join(content)}") from None


def round_weights(module: nn.Module) -> None:
    """Round the weights to what is stored (half precision), so that a model scores alike before and after a reload."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def save_weights(module: nn.Module, folder: str | Path, content: dict[str, Any]) -> None:
    """Write the module's weights in half precision and then `content` as its config.json, which marks it complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {name: tensor.detach().cpu().half().contiguous() if tensor.is_floating_point() else tensor.cpu()
               for name, tensor in module.state_dict().items()}
    with files.atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    files.write_json(folder / CONFIG, content)


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Fill the module with what `save_weights` wrote; InputError for a damaged file or weights of another model."""
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        module.load_state_dict(load_file(path))
    except Exception as problem:  # the reader's and load_state_dict's many kinds
        raise InputError(f"{path} does not hold the weights of the model beside it "
                         f"({str(problem).splitlines()[0][:120]})") from None


# ------------------------------------------------------------------------------------------------------- the tokenizer


@dataclass(frozen=True)
class TokenizerConfig:
    """The VQ autoencoder. A frame is folded into `patch` x `patch` blocks of pixels, which the first convolution reads
    as channels, and halved between `channels`: 64 pixels with patch 4 and two widths give 8 x 8 tokens."""

    image_size: int = 64
    patch: int = 4
    channels: tuple[int, ...] = (48, 48)
    codes: int = 128
    code_dim: int = 8
    norm_groups: int = 8
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3
    revive_every: int = 20
    clips_per_task: int = 4

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.image_size // (self.patch * 2 ** (len(self.channels) - 1))


TOKENIZERS = {
    "smoke": TokenizerConfig(channels=(8, 8), codes=16, code_dim=4, norm_groups=4, steps=12, batch=4),
    "laptop": TokenizerConfig(),
    "gpu": TokenizerConfig(patch=2, channels=(64, 128, 128), codes=1024, code_dim=32, steps=40_000, batch=64,
                           learning_rate=5e-4, clips_per_task=100),
    "paper": TokenizerConfig(patch=1, channels=(128, 128, 256, 256), codes=1024, code_dim=64, norm_groups=32,
                             steps=100_000, batch=64, learning_rate=1e-4, clips_per_task=100),
}


class Tokenizer:
    """Frames (N, size, size, 3) uint8 <-> tokens (N, grid * grid) int64 in 0..codes-1, row by row.

    Frames are encoded one at a time: a batch may change the last digits of a convolution, and then a token; so a frame
    has the same tokens whether it was met online or in a recording.
    """

    def __init__(self, config: TokenizerConfig, seed: int = 0) -> None:
        from diffusers import VQModel

        side = config.patch * 2 ** (len(config.channels) - 1)
        if config.image_size % side or config.codes < 2:
            raise InputError(f"a tokenizer needs at least 2 codes and an image size divisible by {side}, got "
                             f"{config.codes} codes and {config.image_size} pixels")
        self.config = config
        pixels = 3 * config.patch**2
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.vq = VQModel(pixels, pixels, ("DownEncoderBlock2D",) * len(config.channels),
                              ("UpDecoderBlock2D",) * len(config.channels), config.channels,
                              latent_channels=2 * config.code_dim, num_vq_embeddings=config.codes,
                              norm_num_groups=config.norm_groups, vq_embed_dim=config.code_dim,
                              mid_block_add_attention=False).eval()
        self.vq.quantize.legacy = False  # the class's default puts the weight of 1/4 on the codebook's term

    @property
    def tokens(self) -> int:
        """Tokens a frame."""
        return self.config.grid**2

    @property
    def digest(self) -> str:
        """Tells two trained tokenizers apart: the models over tokens refuse another than their own."""
        return files.digest(asdict(self.config), [f"{float(value.double().abs().sum()):.6e}"
                                                  for value in self.vq.state_dict().values()])

    def fold(self, frames: np.ndarray) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3 patch^2, H / patch, W / patch) float32 in [-1, 1]."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(pixels, self.config.patch)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 -> (N, tokens) int64. InputError for other frames."""
        folded = self.fold(check_frames(frames, self.config.image_size)).to(self.vq.device)
        found = [self.vq.quantize(self.vq.encode(one[None]).latents)[2][2] for one in folded]
        return torch.stack(found).cpu().numpy()

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """(N, tokens) int -> (N, size, size, 3) uint8."""
        tokens, grid = self._checked(tokens), self.config.grid
        vectors = self.vq.quantize.embedding(torch.from_numpy(tokens).to(self.vq.device))
        vectors = vectors.reshape(-1, grid, grid, self.config.code_dim).permute(0, 3, 1, 2)
        folded = self.vq.decode(vectors, force_not_quantize=True).sample
        pixels = (F.pixel_shuffle(folded, self.config.patch) + 1) * 127.5
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    @torch.inference_mode()
    def vectors(self, tokens: np.ndarray) -> np.ndarray:
        """(N, tokens) int -> (N, tokens * code_dim) float32: the frame as its codes' vectors."""
        flat = torch.from_numpy(self._checked(tokens)).to(self.vq.device)
        return self.vq.quantize.embedding(flat).flatten(1).float().cpu().numpy()

    def quality(self, frames: np.ndarray) -> dict[str, float]:
        """How well frames survive: PSNR in dB over all of them, perplexity of the codes (1..codes; exp of the entropy
        of how often each is used) and how many codes occur."""
        tokens = self.encode(frames)
        error = np.mean((self.decode(tokens).astype(np.float64) - frames) ** 2)
        share = np.bincount(tokens.ravel(), minlength=self.config.codes) / tokens.size
        used = share[share > 0]
        return {"psnr": float(10 * np.log10(255**2 / error)) if error else math.inf,
                "perplexity": float(np.exp(-(used * np.log(used)).sum())), "codes_used": int(len(used)),
                "frames": len(frames)}

    def save(self, folder: str | Path) -> None:
        """Write config.json and half-precision weights."""
        save_weights(self.vq, folder, asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Tokenizer:
        """Read what `save` wrote; InputError for a missing or damaged folder."""
        path = Path(folder) / CONFIG
        if not path.is_file():
            raise InputError(f"{folder} holds no trained tokenizer; train one with: python -m genreward.rewards.tokens "
                             "train --profile PROFILE")
        tokenizer = cls(read_config(TokenizerConfig, files.read_json(path)))
        load_weights(tokenizer.vq, folder)
        tokenizer.vq.to(device)
        return tokenizer

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64)
        if tokens.ndim != 2 or tokens.shape[1] != self.tokens or tokens.min() < 0 or tokens.max() >= self.config.codes:
            raise InputError(f"tokens must be (N, {self.tokens}) numbers in 0..{self.config.codes - 1}, got shape "
                             f"{tokens.shape}")
        return tokens


class _VQTraining(nn.Module):
    """The autoencoder with its codes' recent use; codes that nothing uses are put where the encoder's outputs are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.vq, self.config = tokenizer.vq, tokenizer.config
        self.register_buffer("usage", torch.zeros(tokenizer.config.codes))
        self.latents = torch.zeros(0)

    def loss(self, pixels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """pixels (N, C, h, w) folded frames, weight of their shape, mean about 1: weighted L1 + L2 and the codes' loss.
        """
        latents = self.vq.encode(pixels).latents.float()
        quantised, commitment, (_, _, index) = self.vq.quantize(latents)
        self.latents = latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        self.usage.mul_(0.95).add_(torch.bincount(index, minlength=len(self.usage)), alpha=0.05)
        error = self.vq.decode(quantised, force_not_quantize=True).sample.float() - pixels
        return (weight * (error.abs() + 2 * error.square())).mean() + commitment

    def revive(self, rng: np.random.Generator, optimiser: torch.optim.Optimizer | None = None) -> int:
        """Move the codes whose recent use is below 5% of the mean to encoder outputs of the last batch; how many."""
        codebook = self.vq.quantize.embedding.weight
        dead = torch.nonzero(self.usage < 0.05 * self.usage.mean().clamp(min=1e-9))[:, 0]
        chosen = rng.choice(len(self.latents), len(dead), replace=len(dead) > len(self.latents))
        with torch.no_grad():
            codebook[dead] = self.latents[torch.from_numpy(chosen)].to(codebook)
            self.usage[dead] = self.usage.mean()
            for moment in (optimiser.state.get(codebook, {}) if optimiser else {}).values():
                if moment.shape == codebook.shape:
                    moment[dead] = 0
        return len(dead)


def fit_tokenizer(tokenizer: Tokenizer, clips: ExpertClips, folder: str | Path, seed: int = 0, progress: bool = True,
                  checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Fit:
    """Train on single frames of the clips, pixels that move within their clip weighted up; resumable in `folder`."""
    config, training = tokenizer.config, _VQTraining(tokenizer)
    device = tokenizer.vq.device
    training.to(device)
    medians = [np.median(clip, axis=0) for clip in clips.frames]
    fit = Fit("tokens", folder, training, config.steps, config.learning_rate, seed,
              {"config": asdict(config), "data": clips.digest}, progress, checkpoint_seconds)

    def batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        frames, weights = [], []
        for clip in rng.integers(len(clips.frames), size=config.batch):
            frame = clips.frames[clip][rng.integers(len(clips.frames[clip]))]
            moving = np.abs(frame - medians[clip]).max(axis=-1, keepdims=True) > MOVING * 127.5
            mirrored = slice(None, None, -1 if rng.random() < 0.5 else 1)
            frames.append(frame[:, mirrored])
            weights.append(np.repeat(1 + MOVING_WEIGHT * moving[:, mirrored], 3, axis=-1))
        weight = torch.from_numpy(np.stack(weights)).permute(0, 3, 1, 2).float()
        weight = F.pixel_unshuffle(weight / weight.mean(), config.patch)
        return tokenizer.fold(np.stack(frames)).to(device), weight.to(device)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        pixels, weight = batch(rng)
        if fit.step == 0:  # codes begin where the encoder's outputs are
            with torch.no_grad():
                training.loss(pixels, weight)
            training.usage.zero_()
            training.usage[0] = 1e-6
            training.revive(rng)
            training.usage.fill_(1.0)
        return training.loss(pixels, weight)

    def after(rng: np.random.Generator) -> None:
        if (fit.step + 1) % config.revive_every == 0 and fit.step < 0.7 * config.steps:
            training.revive(rng, fit.optimiser)

    fit.run(loss, after)
    round_weights(tokenizer.vq)
    return fit


def train(profile: str | profiles.Profile, out_folder: str | Path, demos_folder: str | Path | None,
          in_domain_folder: str | Path | None, progress: bool = True, *, config: TokenizerConfig | None = None,
          seed: int = 0) -> Tokenizer:
    """Train the profile's tokenizer on both folders' training clips (expert and random), or read it where `out_folder`
    already has it. Goes on where an earlier call was stopped."""
    chosen = profiles.get_profile(profile)
    out_folder = Path(out_folder)
    if (out_folder / CONFIG).is_file():
        return Tokenizer.load(out_folder)
    config = config or TOKENIZERS[chosen.name]
    clips = training_clips(demos_folder, in_domain_folder, config.image_size, config.clips_per_task,
                           ("expert", "random"), progress=progress)
    tokenizer = Tokenizer(config, seed)
    tokenizer.vq.to(place(chosen))
    fit = fit_tokenizer(tokenizer, clips, out_folder, seed, progress)
    tokenizer.vq.to("cpu")
    sample = np.concatenate([clip[::8] for clip in clips.frames])[:400]
    files.write_json(out_folder / "provenance.json", fit.provenance(
        config=asdict(config), clips=len(clips.frames), data_digest=clips.digest,
        on_training_frames=tokenizer.quality(sample)))
    tokenizer.save(out_folder)
    fit.checkpoint.unlink(missing_ok=True)
    return tokenizer


# --------------------------------------------------------------------------------------------- models of token windows


class Windows:
    """Training windows over clips of tokens: the frame to predict and those before it, at one spacing.

    tokens  the clips, each (K_i, n) int64; `none` (= codes) stands for a frame that there is not
    """

    def __init__(self, clips: ExpertClips, tokenizer: Tokenizer, window: int, spacing: int,
                 progress: bool = True) -> None:
        self.clips, self.window, self.spacing, self.none = clips, window, spacing, tokenizer.config.codes
        self.tokens = [tokenizer.encode(clip) for clip in tqdm(clips.frames, "tokens", disable=not progress)]

    def one(self, clip: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame `index` >= 1 of a clip: the past (window - 1, n), nearest first, and the frame's tokens (n,)."""
        chosen = lags(self.clips.steps[clip], index, self.window, self.spacing)
        past = np.where(chosen[:, None] < 0, self.none, self.tokens[clip][chosen])
        return past, self.tokens[clip][index]

    def seen(self, clip: int) -> np.ndarray:
        """(K-1, window - 1, n): what has been seen at each frame of a clip but its first, for a model that looks ahead:
        that frame and those before it, so that it is the past of a frame one spacing later."""
        steps, found = self.clips.steps[clip], []
        for index in range(1, len(self.tokens[clip])):
            chosen = lags(steps, index, self.window - 1, self.spacing)
            if len(chosen) and steps[index] - self.spacing < steps[0]:
                chosen[0] = -1
            past = np.where(chosen[:, None] < 0, self.none, self.tokens[clip][chosen])
            found.append(np.concatenate([self.tokens[clip][index][None], past]))
        return np.stack(found)

    def evaluated(self) -> Windows:
        """The windows of the evaluated tasks' clips alone; all of them where there is none."""
        kept = np.flatnonzero(self.clips.evaluated)
        if not len(kept):
            return self
        part = copy(self)
        part.tokens = [self.tokens[clip] for clip in kept]
        part.clips = ExpertClips([self.clips.frames[clip] for clip in kept], [self.clips.steps[clip] for clip in kept],
                                 [self.clips.tasks[clip] for clip in kept], self.clips.evaluated[kept],
                                 self.clips.digest)
        return part

    def all_of(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """All frames of a clip but its first: (K-1, window - 1, n) and (K-1, n)."""
        pairs = [self.one(clip, index) for index in range(1, len(self.tokens[clip]))]
        return np.stack([past for past, _ in pairs]), np.stack([frame for _, frame in pairs])

    def batch(self, rng: np.random.Generator, size: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`size` random windows, a `share` of them from the evaluated tasks' clips where there are such."""
        groups = [np.flatnonzero(self.clips.evaluated == which) for which in (True, False)]
        pairs = []
        for _ in range(size):
            group = groups[int(rng.random() >= share)]
            clip = rng.choice(group if len(group) else np.arange(len(self.tokens)))
            pairs.append(self.one(clip, int(rng.integers(1, len(self.tokens[clip])))))
        return (torch.from_numpy(np.stack([past for past, _ in pairs])),
                torch.from_numpy(np.stack([frame for _, frame in pairs])))


class ContextEmbedding(nn.Module):
    """What has been seen at each cell of the grid: the sum over past frames of a vector for (lag, token)."""

    def __init__(self, codes: int, window: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codes + 1, width) for _ in range(window - 1))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.5 / math.sqrt(max(1, window - 1)))

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        """(B, window - 1, n) int64 -> (B, n, width)."""
        return torch.stack([table(past[:, lag]) for lag, table in enumerate(self.tables)]).sum(0)


class TokenReward(RewardModel):
    """Base of reward models over token windows: the frames they need, their tokens, per-task standardisation, novelty.

    A subclass gives `model` (with `.tokenizer`, `.config.window`, `.config.spacing`, `.statistics`), `term`, `_context`
    and `_raw`.

    stride       steps of the trajectory that make up the `spacing` environment steps that the model was trained at
    interval     pay at every so many steps (1: always)
    standardise  pay (value - mean) / std with the task's own statistics; InputError for a task that has none
    task         whose statistics; None: the episode's own
    novelty      weight of the exploration bonus, the prediction error of a random network (0: none). The predictor
                 learns, when an episode begins, from the episode before that was met online; scoring a recording
                 teaches it nothing.
    """

    term: ClassVar[str] = ""
    module: ClassVar[str] = ""

    def __init__(self, model: Any, stride: int = SPACING, interval: int = 1, standardise: bool = True,
                 task: str | None = None, novelty: float = 0.0, seed: int = 0) -> None:
        if stride < 1 or interval < 1:
            raise InputError(f"stride and interval must be at least 1 step, got {stride} and {interval}")
        if not (np.isfinite(novelty) and novelty >= 0) or seed < 0:
            raise InputError(f"the weight of novelty and the seed must not be negative, got {novelty} and {seed}")
        self.model, self.stride, self.interval, self.standardise = model, stride, interval, standardise
        self.task, self.seed, self.weight = task, seed, float(novelty)
        self.frame_size = model.tokenizer.config.image_size
        tokenizer = model.tokenizer
        self.novelty = Novelty(tokenizer.tokens * tokenizer.config.code_dim, seed) if novelty else None
        self._needed: dict[int, frozenset[int]] = {}

    def _context(self, t: int) -> list[int]:
        """The steps whose frames the value of step t is made of; -1 for those before the beginning."""
        raise TypeError("a TokenReward must say which frames it looks at")

    def _raw(self, items: list[tuple[int, np.ndarray]]) -> np.ndarray:
        """Values of steps, before standardisation: each item is (t, tokens (frames, n) of `_context(t)`)."""
        raise TypeError("a TokenReward must say what a step is worth")

    def pays(self, t: int) -> bool:
        """Whether step t is one of those that are paid for."""
        return t > 0 and t % self.interval == 0

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """Whether the value of any paid step looks at the frame after step t."""
        if episode_steps not in self._needed:
            paid = range(self.interval, episode_steps + 1, self.interval)
            self._needed[episode_steps] = frozenset(step for end in paid for step in self._context(end))
        return t in self._needed[episode_steps]

    def statistics_of(self, task: str) -> tuple[float, float]:
        """(mean, std) of the task; InputError that names the command which computes them."""
        name = self.task if self.task is not None else task
        found = self.model.statistics.get(name)
        if found is None:
            known = ", ".join(sorted(self.model.statistics)) or "none yet"
            if not name:
                raise InputError(f"reward {self.name!r} pays by statistics of the task, and the episode does not say "
                                 f"which one it is of; give task=... when it is made (it has: {known})")
            raise InputError(f"reward {self.name!r} has no statistics of task {name!r} (it has: {known}); compute them "
                             f"with: python -m genreward.rewards.{self.module} statistics --profile PROFILE --tasks "
                             f"{name}")
        return float(found["mean"]), float(found["std"])

    def reset(self, history: History) -> None:
        """Look for the task's statistics before the episode is played; let the novelty learn from the last one."""
        if self.standardise:
            self.statistics_of(history.task)
        if self.novelty is not None and not history.cache.get("recorded"):
            self.novelty.learn()

    def prepare(self, history: History, trajectory: Trajectory) -> None:
        """Token every frame that will be asked for and compute all values, in batches where that is faster."""
        if self.standardise:
            self.statistics_of(trajectory.task)
        history.cache["recorded"] = True
        steps = len(trajectory)
        wanted = [t for t in range(steps + 1) if self.needs_frame(t, steps)]
        history.cache["tokens"] = dict(zip(wanted, self.model.tokenizer.encode(trajectory.frames[wanted]),
                                           strict=True)) if wanted else {}
        paid = [t for t in range(1, steps + 1) if self.pays(t)]
        values = self._raw([(t, self._tokens(history, self._context(t))) for t in paid]) if paid else []
        history.cache["values"] = dict(zip(paid, values, strict=True))

    def terms(self, history: History, t: int) -> dict[str, float]:
        """{term: the standardised value}, and {"novelty": weight * bonus} where that is switched on."""
        paid = dict.fromkeys((self.term, "novelty") if self.novelty is not None else (self.term,), 0.0)
        if not self.pays(t):
            return paid
        known = history.cache.get("values", {})
        value = known[t] if t in known else self._raw([(t, self._tokens(history, self._context(t)))])[0]
        if self.standardise:
            mean, std = self.statistics_of(history.task)
            value = (value - mean) / std
        paid[self.term] = float(value)
        if self.novelty is not None:
            features = self.model.tokenizer.vectors(self._tokens(history, [t]))
            paid["novelty"] = self.weight * float(self.novelty.bonus(features)[0])
            if not history.cache.get("recorded"):
                self.novelty.observe(features)
        return paid

    def state_dict(self) -> dict[str, Any]:
        """What the novelty has learned, for checkpoints."""
        return {} if self.novelty is None else {"novelty": self.novelty.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self.novelty is not None and state:
            self.novelty.load_state_dict(state["novelty"])

    def _tokens(self, history: History, steps: list[int]) -> np.ndarray:
        """(len(steps), n) int64 tokens of the frames at those steps, each encoded once an episode; rows of `none` for
        -1."""
        known = history.cache.setdefault("tokens", {})
        for step in steps:
            if step >= 0 and step not in known:
                known[step] = self.model.tokenizer.encode(history.clip(np.array([step])))[0]
        none = np.full(self.model.tokenizer.tokens, self.model.tokenizer.config.codes, np.int64)
        return np.stack([known[step] if step >= 0 else none for step in steps])


class TokenModel:
    """Base of the trained models over token windows: a tokenizer, a network, a config and each task's statistics.

    A subclass gives `kind` (its module's name), `config_type`, `configs` (profile -> config), sets `network`, and says
    in `clip_values` what its reward is before standardisation along a clip and in `loss` what a batch costs.
    statistics  task -> {"mean", "std", "frames"} of those values over the task's expert clips
    """

    kind: ClassVar[str] = ""
    config_type: ClassVar[type]
    configs: ClassVar[dict[str, Any]]
    network: nn.Module

    def __init__(self, tokenizer: Tokenizer, config: Any, seed: int = 0,
                 statistics: dict[str, dict[str, float]] | None = None) -> None:
        if config.window < 2 or config.spacing < 1:
            raise InputError(f"{self.kind} needs a window of at least 2 frames and a spacing of at least 1 step, got "
                             f"{config.window} and {config.spacing}")
        self.tokenizer, self.config, self.statistics = tokenizer, config, dict(statistics or {})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = self.make_network().eval()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def make_network(self) -> nn.Module:
        """The untrained network, from PyTorch's global generator."""
        raise TypeError("a TokenModel must make its network")

    def loss(self, past: torch.Tensor, frame: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Bits a frame of a batch of windows, past (B, window - 1, n) and frame (B, n)."""
        raise TypeError("a TokenModel must have a loss")

    def clip_values(self, windows: Windows, clip: int) -> np.ndarray:
        """(K-1,) what the reward is before standardisation at frames 1.. of a clip."""
        raise TypeError("a TokenModel must say what its reward is")

    def fit(self, windows: Windows, folder: str | Path, seed: int = 0, progress: bool = True,
            checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Fit:
        """Train on the windows; resumable in `folder`."""
        config = self.config
        fit = Fit(self.kind, folder, self.network, config.steps, config.learning_rate, seed,
                  {"config": asdict(config), "data": windows.clips.digest, "tokenizer": self.tokenizer.digest},
                  progress, checkpoint_seconds)

        def loss(rng: np.random.Generator) -> torch.Tensor:
            past, frame = windows.batch(rng, config.batch, config.in_domain_share)
            return self.loss(past.to(self.device), frame.to(self.device), rng)

        fit.run(loss)
        round_weights(self.network)
        return fit

    def measure(self, windows: Windows, progress: bool = True) -> dict[str, dict[str, float]]:
        """Task -> mean, std and number of the values over all frames but the first of its clips."""
        found: dict[str, list[np.ndarray]] = {}
        for clip, task in enumerate(tqdm(windows.clips.tasks, "statistics", disable=not progress)):
            found.setdefault(task, []).append(self.clip_values(windows, clip))
        joined = {task: np.concatenate(parts).astype(np.float64) for task, parts in found.items()}
        return {task: {"mean": float(values.mean()), "std": max(float(values.std()), 1e-6), "frames": len(values)}
                for task, values in joined.items()}

    def save(self, folder: str | Path) -> None:
        """Write config.json, statistics.json and half-precision weights; the tokenizer has a folder of its own."""
        files.write_json(Path(folder) / STATISTICS, self.statistics)
        save_weights(self.network, folder, {**asdict(self.config), "tokenizer": self.tokenizer.digest})

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> Self:
        """Read what `save` wrote; the tokenizer comes from the folder `tokens` beside it unless it is given. InputError
        for a missing or damaged folder, or another tokenizer than the one of its training."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} holds no trained {cls.kind}; train one with: python -m "
                             f"genreward.rewards.{cls.kind} train --profile PROFILE")
        content = files.read_json(folder / CONFIG)
        tokenizer = tokenizer or Tokenizer.load(folder.parent / "tokens")
        digest = content.pop("tokenizer", "")
        if tokenizer.digest != digest:
            raise InputError(f"{folder} was trained with another tokenizer ({digest}) than the one given "
                             f"({tokenizer.digest}); valid: the one of its own training, or train it anew")
        model = cls(tokenizer, read_config(cls.config_type, content), statistics=files.read_json(folder / STATISTICS))
        load_weights(model.network, folder)
        return model

    @classmethod
    def train(cls, profile: str | profiles.Profile, out_folder: str | Path, demos_folder: str | Path | None,
              in_domain_folder: str | Path | None, progress: bool = True, config: Any = None, seed: int = 0) -> Self:
        """Train the profile's model on expert clips (and its tokenizer, in the folder `tokens` beside `out_folder`,
        where there is none yet), measure the statistics of the evaluated tasks, save. Goes on where an earlier call
        stopped; what is complete is only read."""
        chosen, out_folder = profiles.get_profile(profile), Path(out_folder)
        tokenizer = train(chosen, out_folder.parent / "tokens", demos_folder, in_domain_folder, progress)
        if (out_folder / CONFIG).is_file():
            return cls.load(out_folder, tokenizer)
        config = config or cls.configs[chosen.name]
        clips = training_clips(demos_folder, in_domain_folder, tokenizer.config.image_size, config.clips_per_task,
                               progress=progress)
        windows = Windows(clips, tokenizer, config.window, config.spacing, progress)
        model = cls(tokenizer, config, seed)
        model.network.to(place(chosen))
        fit = model.fit(windows, out_folder, seed, progress)
        model.network.to("cpu")
        model.statistics = model.measure(windows.evaluated(), progress)
        files.write_json(out_folder / "provenance.json", fit.provenance(
            config=asdict(config), clips=len(clips.frames), data_digest=clips.digest, tokenizer=tokenizer.digest,
            loss="bits a frame"))
        model.save(out_folder)
        fit.checkpoint.unlink(missing_ok=True)
        return model

    @classmethod
    def add_statistics(cls, folder: str | Path, demos_folder: str | Path | None, in_domain_folder: str | Path | None,
                       tasks: Sequence[str], progress: bool = True) -> dict[str, dict[str, float]]:
        """Measure and store the statistics of tasks with expert training clips in either folder, and return them;
        InputError for a task without any. A folder that does not exist is left out."""
        model = cls.load(folder)
        present = [one if one is not None and Path(one).is_dir() else None for one in (demos_folder, in_domain_folder)]
        config = model.config
        clips = training_clips(*present, model.tokenizer.config.image_size, config.clips_per_task, tasks=tasks,
                               progress=progress)
        missing = sorted(set(tasks) - set(clips.tasks))
        if missing:
            raise InputError(f"there is no expert training clip of {', '.join(missing)}; valid: "
                             f"{', '.join(sorted(set(clips.tasks)))}, or render more with python -m genreward.demos")
        found = model.measure(Windows(clips, model.tokenizer, config.window, config.spacing, progress), progress)
        files.write_json(Path(folder) / STATISTICS, model.statistics | found)
        return found


def command(module: str, description: str, train_model: Callable[..., Any],
            statistics: Callable[..., Any] | None = None, arguments: Sequence[str] | None = None) -> None:
    """The command line of a model over tokens: `train`, and `statistics` of further tasks where the model has any."""
    parser = argparse.ArgumentParser(prog=f"python -m genreward.rewards.{module}", description=description)
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("train", "statistics") if statistics else ("train",):
        sub = actions.add_parser(action)
        sub.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
        sub.add_argument("--demos", default=None, help="folder of demonstrations (default: the profile's)")
        sub.add_argument("--in-domain", default=None, help="folder of the evaluated tasks' experts (same)")
        sub.add_argument("--out", default=None, help="folder of the model (default: weights/rewards of the profile)")
        if action == "statistics":
            sub.add_argument("--tasks", nargs="+", required=True, help="tasks with expert training clips")
    options = parser.parse_args(arguments)
    where = profiles.paths(options.profile)
    out = Path(options.out) if options.out else where.weights / "rewards" / module
    demos = Path(options.demos) if options.demos else where.demos
    in_domain = Path(options.in_domain) if options.in_domain else where.in_domain_demos
    if options.action == "train":
        train_model(options.profile, out, demos, in_domain)
    else:
        for task, row in statistics(out, demos, in_domain, options.tasks).items():
            print(f"{task}: mean {row['mean']:.2f}, std {row['std']:.2f} over {row['frames']} frames", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the tokenizer of a profile."""
    command("tokens", main.__doc__ or "", train, arguments=arguments)


if __name__ == "__main__":
    errors.cli(main)
