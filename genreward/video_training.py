"""Training the video model: the VAE, the diffusion transformer, and a LoRA on top of either origin (Eq. 1-2).

It belongs to `video_model` in the flow `tasks -> envs -> demos -> video_model -> goals -> ...` and reads a folder of
videos as `demos` writes it. Three stages share one loop (`_Loop`): `train_vae`, `pretrain_transformer` and
`finetune_lora`. The loop runs through `accelerate`, so mixed precision, gradient accumulation and several GPUs are a
matter of how the command is started. Every random number of a step is drawn from a generator seeded by (seed, step,
micro-batch, process) instead of one that runs on: a checkpoint then needs no random state, and a run that was killed
goes on with the very losses it would have had.

**Held out.** No clip of an evaluated task may be in the data of the model that imagines it: such clips are refused
unless the caller asks for an in-domain model. Clips marked `"split": "test"` are never trained on.

**Text.** No pretrained T5 is at hand without network, and a frozen random one says little about its bytes. The small
model's text encoder is therefore trained together with the transformer and frozen for the LoRA, as CogVideoX's is.

**What is weighted.** In the VAE's loss, pixels that change within the clip count more: the gripper and an object of
five pixels would otherwise be averaged away. In the diffusion's loss each latent position counts by how much it varies
over the data set: a fixed map that does not depend on the sample, so the loss is still least at the conditional mean.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from . import errors, files, results
from .errors import InputError
from .profiles import VideoConfig
from .tasks import PAPER_TASKS, TASKS
from .trajectory import uniform_indices
from .video_model import LORA_FILE, LORA_TARGETS, VideoModel, to_pixels

CHECKPOINT_SECONDS = 120.0
MOVING = 0.12  # a pixel moves when it leaves its clip's median by this much of the range -1..1
MOVING_WEIGHT = 4.0
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5
LATENT_VARIANTS = 3  # differently timed and coloured copies of a clip that the diffusion learns from


# --------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Clips:
    """Decoded episodes: `frames` is a list of (K_i, H, W, 3) uint8, `rows` what the metadata says of each."""

    frames: list[np.ndarray]
    rows: list[dict[str, Any]]
    digest: str

    @property
    def tasks(self) -> list[str]:
        """The tasks that occur, sorted."""
        return sorted({str(row.get("task")) for row in self.rows if row.get("task")})

    def uniform(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """A whole episode as `num_frames` frames, spread evenly; with `rng` the inner ones are moved by up to a third
        of their distance. The first and last frame stay."""
        available = len(self.frames[index])
        chosen = uniform_indices(available, num_frames)
        if rng is not None and available > num_frames:
            shift = (available - 1) / (num_frames - 1) / 3
            moved = np.linspace(0, available - 1, num_frames) + rng.uniform(-shift, shift, num_frames)
            chosen[1:-1] = moved[1:-1].round().astype(int).clip(0, available - 1)
        return self.frames[index][chosen]


def load_clips(folder: str | Path, size: int, *, split: str = "train", kinds: Sequence[str] | None = None,
               exclude: Sequence[str] = (), tasks: Sequence[str] | None = None,
               in_domain: bool = False, progress: bool = True) -> Clips:
    """The clips of a videofolder that may be trained on, decoded once into memory at size x size pixels.

    kinds    only clips of these kinds (expert, half, failure, random); clips that name none count as expert
    tasks    only the clips of these tasks
    exclude  leave out the clips of these tasks; a clip of an evaluated task that is left in raises InputError unless
             `in_domain` (split "train" only: test clips are there to be compared with)
    The decoded frames are kept beside the videos in a hidden file named by the folder's digest.
    """
    from .demos import VideoFolder

    folder = Path(folder)
    videos = VideoFolder(folder)
    there = {str(row["task"]) for row in videos.clips if row.get("task")}
    for task in (*(tasks or ()), *exclude):
        if task not in there and task not in TASKS:
            raise errors.unknown(f"task of {folder}", task, there | set(TASKS))
    chosen = [index for index, row in enumerate(videos.clips)
              if row.get("split", "train") == split and row.get("task") not in exclude
              and (tasks is None or row.get("task") in tasks)
              and (kinds is None or row.get("kind", "expert") in kinds)]
    if split == "train" and not in_domain:
        held_out = sorted({str(videos.clips[index].get("task")) for index in chosen} & set(PAPER_TASKS))
        if held_out:
            raise InputError(f"{folder} holds training clips of evaluated tasks ({', '.join(held_out)}), which the "
                             "model that imagines them must not see; valid: leave them out with --tasks-exclude, or "
                             "say --in-domain")
    if not chosen:
        raise InputError(f"{folder} holds no {split} clip" + (f" of kind {', '.join(kinds)}" if kinds else "")
                         + "; valid: a folder of videos with metadata.jsonl rows of that split")
    rows = [videos.clips[index] for index in chosen]
    stamp = hashlib.sha256(json.dumps(
        [size, rows, [(folder / row["file_name"]).stat().st_size for row in rows]], sort_keys=True).encode())
    digest = stamp.hexdigest()[:16]
    cache = folder / f".decoded-{digest}.npz"
    if cache.exists():
        try:
            with np.load(cache) as stored:
                pixels, lengths = stored["pixels"], stored["lengths"]
            return Clips(np.split(pixels, np.cumsum(lengths)[:-1]), rows, digest)
        except (OSError, ValueError, KeyError):
            cache.unlink(missing_ok=True)  # damaged: decode again
    frames = [videos.frames(index, size=size) for index in tqdm(chosen, "decoding clips", disable=not progress)]
    with files.atomic_path(cache) as temporary:
        np.savez(temporary, pixels=np.concatenate(frames), lengths=[len(clip) for clip in frames])
    return Clips(frames, rows, digest)


def recolour(pixels: torch.Tensor, rng: np.random.Generator, strength: float) -> torch.Tensor:
    """Change a clip's colours as a whole: gain and offset a channel, contrast. (3, K, H, W) in [-1, 1], kept there."""
    gain = torch.tensor(rng.uniform(1 - strength, 1 + strength, (3, 1, 1, 1)), dtype=pixels.dtype)
    offset = torch.tensor(rng.uniform(-strength, strength, (3, 1, 1, 1)) * 0.5, dtype=pixels.dtype)
    return (pixels * gain * float(rng.uniform(1 - strength, 1 + strength)) + offset).clamp(-1, 1)


def augment(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """For the VAE, which must also serve objects it has not met: mirror, recolour, exchange channels, zoom in."""
    if rng.random() < 0.5:
        pixels = pixels.flip(-1)
    if rng.random() < 0.7:
        pixels = recolour(pixels, rng, 0.2)
    if rng.random() < 0.1:
        pixels = pixels[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.25:
        size = pixels.shape[-1]
        part = int(rng.integers(size * 5 // 8, size))
        top, left = rng.integers(0, size - part + 1, 2)
        cut = pixels[..., top:top + part, left:left + part].transpose(0, 1)
        pixels = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False).transpose(0, 1)
    return pixels


# ------------------------------------------------------------------------------------------------------------- losses


class VaeLoss(nn.Module):
    """Reconstruction (L1 + L2 + edges, moving pixels weighted) and a small KL term; returns the loss of a batch."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise_seed: int) -> torch.Tensor:
        """pixels (N, 3, K, H, W) in [-1, 1]; the posterior is sampled from a generator of `noise_seed`."""
        posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(noise_seed))
        latents = posterior.mean + posterior.std * noise.to(pixels.device, posterior.mean.dtype)
        restored = self.vae.decode(latents).sample.float()
        leaving = (pixels - pixels.median(dim=2, keepdim=True).values).abs().amax(1, keepdim=True) > MOVING
        moving = leaving.float()
        weight = 1 + MOVING_WEIGHT * (moving + 0.5 * moving.amax(2, keepdim=True))
        weight = weight / weight.mean()
        error = restored - pixels
        loss = (weight * (error.abs() + 2 * error.square())).mean()
        for axis in (-1, -2):
            loss = loss + EDGE_WEIGHT * (weight.narrow(axis, 1, weight.shape[axis] - 1)
                                         * error.diff(dim=axis).abs()).mean()
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        return loss + KL_WEIGHT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def prediction_target(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor,
                      timesteps: torch.Tensor) -> torch.Tensor:
    """What the transformer must output for x_t = alpha_t x_0 + sigma_t eps (Eq. 1), by the scheduler's own setting.

    epsilon: eps (Eq. 2 as printed); v_prediction: alpha_t eps - sigma_t x_0 (CogVideoX); sample: x_0.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise InputError(f"unknown prediction_type {kind!r} of the scheduler; valid: epsilon, sample, v_prediction")


class DiffusionLoss(nn.Module):
    """Eq. 1-2 for image-to-video: noise the latents, ask the transformer for the target, mean squared error.

    The first frame's latent is given on extra channels, followed by zeros, as the diffusers pipeline does when it
    generates (which draws that latent from the VAE's posterior; here it is the mode). With a text encoder its weights
    learn too; without, `text` holds embeddings made beforehand.
    """

    def __init__(self, model: VideoModel, weight: torch.Tensor, learn_text: bool) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.text_encoder = model.text_encoder if learn_text else None
        self.scheduler = model.pipe.scheduler
        self.register_buffer("weight", weight, persistent=False)
        height, width = model.frame_shape
        self.rotary = model.pipe._prepare_rotary_positional_embeddings(
            height, width, weight.shape[0], model.device) if (
            model.transformer.config.use_rotary_positional_embeddings) else None

    def forward(self, latents: torch.Tensor, image: torch.Tensor, text: torch.Tensor, text_index: torch.Tensor,
                noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """latents, noise (N, T', C, h, w); image (N, 1, C, h, w); text: the distinct prompts' tokens (P, L) or
        embeddings (P, L, D), of which sample n has number `text_index[n]`; timesteps (N,)."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        condition = torch.cat([image, torch.zeros_like(latents[:, 1:])], 1)
        embeddings = text if self.text_encoder is None else self.text_encoder(text)[0]
        offset = self.transformer.config.ofs_embed_dim
        rotary = None if self.rotary is None else tuple(part.to(latents.device) for part in self.rotary)
        predicted = self.transformer(
            hidden_states=torch.cat([noisy, condition], 2), encoder_hidden_states=embeddings[text_index],
            timestep=timesteps, ofs=None if offset is None else latents.new_full((1,), 2.0), image_rotary_emb=rotary,
            return_dict=False)[0]
        return (self.weight * (predicted.float() - target.float()).square().mean(2)).mean()


# --------------------------------------------------------------------------------------------------------------- loop


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast: by `steps`, or by `minutes` summed over all resumes (the cosine follows the clock)."""

    steps: int
    minutes: float | None
    learning_rate: float
    accumulation: int = 1
    ema_decay: float = 0.0
    weight_decay: float = 0.0
    log_every: int = 10
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def progress(self, step: int, seconds: float) -> float:
        """The part of the training that is done, 0..1."""
        return min(1.0, step / self.steps if self.minutes is None else seconds / (60 * self.minutes))

    def rate(self, step: int, progress: float) -> float:
        """Linear warm-up over the first steps, then half a cosine down to 2%."""
        warm = min(1.0, (step + 1) / (50 if self.minutes is not None else max(1, min(50, self.steps // 10))))
        return self.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class _Loop:
    """One training stage: steps, loss rows, checkpoints, resume, averaged weights.

    Files in `out`: `loss_<stage>.csv` (step, loss, seconds), `checkpoint_<stage>.pt` (weights, averages, optimiser,
    step, seconds), `provenance_<stage>.json`. `export` is called with the averaged weights in place whenever a
    checkpoint is written, so that a run can be looked at while it goes on.
    """

    def __init__(self, stage: str, out: Path, module: nn.Module, schedule: Schedule, accelerator: Any, seed: int,
                 identity: dict[str, Any], provenance: dict[str, Any], export: Callable[[], None]) -> None:
        self.stage, self.out, self.schedule, self.accelerator = stage, out, schedule, accelerator
        self.seed, self.identity, self.provenance, self.export = seed, identity, provenance, export
        self.named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.named.items()} if schedule.ema_decay else {}
        optimiser = torch.optim.AdamW(self.named.values(), schedule.learning_rate, betas=(0.9, 0.95),
                                      weight_decay=schedule.weight_decay, fused=True)
        self.step, self.seconds, self.sum, self.count, self.rows = 0, 0.0, 0.0, 0, []
        self.sessions: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.curve = out / f"checkpoint_{stage}.pt", out / f"loss_{stage}.csv"
        self.module, self.optimiser = accelerator.prepare(module, optimiser)
        self._resume()

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            stored = torch.load(self.checkpoint, map_location=self.accelerator.device, weights_only=True)
            identity, weights = stored["identity"], stored["weights"]
        except Exception as problem:
            raise InputError(f"the checkpoint {self.checkpoint} cannot be read (cut short?): "
                             f"{str(problem).splitlines()[0][:120]}; delete it to start this stage anew") from None
        if identity != json.loads(json.dumps(self.identity)):
            different = sorted(key for key in set(identity) | set(self.identity)
                               if identity.get(key) != json.loads(json.dumps(self.identity)).get(key))
            raise InputError(f"the checkpoint {self.checkpoint} belongs to another configuration (different: "
                             f"{', '.join(different)}); valid: the same settings, another --out, or delete it")
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(weights[name])
                if self.averages:
                    self.averages[name].copy_(stored["averages"][name])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.step, self.seconds, self.sessions = stored["step"], stored["seconds"], stored["sessions"]
        self.sum, self.count = stored["sum"], stored["count"]
        if self.curve.exists():
            with open(self.curve, newline="") as file:
                self.rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()
                             and int(row[0]) <= stored["step"]]

    def run(self, batch: Callable[[np.random.Generator], dict[str, Any]]) -> None:
        """Train until the schedule is through; `batch(rng)` gives the keyword arguments of the loss module."""
        accelerator, schedule = self.accelerator, self.schedule
        if schedule.progress(self.step, self.seconds) >= 1:
            accelerator.print(f"{self.stage}: already trained for {self.step} steps in {self.out}")
            return
        if accelerator.is_main_process:
            self._write_rows(self.rows, "w")
        start, saved, before = time.monotonic(), time.monotonic(), self.seconds
        begun = {"from_step": self.step, "data_digest": self.provenance["data_digest"]}
        bar = tqdm(total=schedule.steps if schedule.minutes is None else None, initial=self.step,
                   desc=self.stage, disable=not accelerator.is_main_process, mininterval=1.0)
        self.module.train()
        while (progress := self._agreed(schedule.progress(self.step, self.seconds))) < 1:
            for group in self.optimiser.param_groups:
                group["lr"] = schedule.rate(self.step, progress)
            total = 0.0
            for micro in range(schedule.accumulation):
                rng = np.random.default_rng([self.seed, self.step, micro, accelerator.process_index])
                values = {name: value.to(accelerator.device) if torch.is_tensor(value) else value
                          for name, value in batch(rng).items()}
                with accelerator.accumulate(self.module):
                    loss = self.module(**values)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(list(self.named.values()), 1.0)
                    self.optimiser.step()
                    self.optimiser.zero_grad()
                total += float(accelerator.reduce(loss.detach(), "mean")) / schedule.accumulation
            if not math.isfinite(total):
                raise InputError(f"the {self.stage} loss became {total} at step {self.step}; valid: a lower learning "
                                 "rate (--set), continuing from the last checkpoint")
            self.step += 1
            self.seconds = before + time.monotonic() - start
            self._average()
            self.sum, self.count = self.sum + total, self.count + 1
            if self.count == schedule.log_every:
                row = [self.step, f"{self.sum / self.count:.6f}", f"{self.seconds:.1f}"]
                self.sum, self.count = 0.0, 0
                if accelerator.is_main_process:
                    self._write_rows([row], "a")
                bar.set_postfix(loss=row[1], minutes=f"{self.seconds / 60:.1f}")
            bar.update()
            if self._agreed(time.monotonic() - saved) > schedule.checkpoint_seconds:
                self._save(begun)
                saved = time.monotonic()
        bar.close()
        self._save(begun)

    def _agreed(self, value: float) -> float:
        """The main process's value in all of them: clocks differ, but all must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor(value, device=self.accelerator.device)))

    def _average(self) -> None:
        if self.averages:
            decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.averages.values()), [p.detach() for p in self.named.values()], 1 - decay)

    def _write_rows(self, rows: Sequence[Sequence[Any]], mode: str) -> None:
        if mode == "w":
            with files.atomic_path(self.curve) as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([("step", "loss", "seconds"), *rows])
        else:
            with open(self.curve, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the current ones."""
        current = {name: p.detach().clone() for name, p in self.named.items()} if self.averages else {}
        with torch.no_grad():
            for name in current:
                self.named[name].copy_(self.averages[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in current.items():
                    self.named[name].copy_(value)

    def _save(self, begun: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            sessions = [*self.sessions, {**begun, "to_step": self.step, "seconds": round(self.seconds, 1)}]
            with files.atomic_path(self.checkpoint) as temporary:
                torch.save({"identity": json.loads(json.dumps(self.identity)), "step": self.step,
                            "seconds": self.seconds, "sum": self.sum, "count": self.count, "sessions": sessions,
                            "weights": {name: p.detach() for name, p in self.named.items()},
                            "averages": self.averages, "optimiser": self.optimiser.state_dict()}, temporary)
            with self.averaged():
                self.export()
            files.write_json(self.out / f"provenance_{self.stage}.json", {
                **self.provenance, "stage": self.stage, "steps": self.step, "seconds": round(self.seconds, 1),
                "minutes_budget": self.schedule.minutes, "sessions": sessions, "identity": self.identity,
                "processes": self.accelerator.num_processes, "device": str(self.accelerator.device),
                "finished": self.schedule.progress(self.step, self.seconds) >= 1})
        self.accelerator.wait_for_everyone()


def _accelerator(config: VideoConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    precision = config.mixed_precision
    if precision not in ("no", "bf16", "fp16"):
        raise InputError(f"unknown mixed_precision {precision!r}; valid: no, bf16, fp16")
    if AcceleratorState._shared_state and AcceleratorState._shared_state.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()  # one process may train with two settings, one after the other
    # The transformer's text stream of the last block leads nowhere, so some of its weights get no gradient.
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=config.gradient_accumulation,
                       kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def _provenance(command: str | None, clips: Clips, in_domain: bool, seed: int) -> dict[str, Any]:
    return results.provenance(command=command, data_digest=clips.digest, clips=len(clips.rows), tasks=clips.tasks,
                              in_domain=in_domain, seed=seed, threads=torch.get_num_threads())


# ------------------------------------------------------------------------------------------------------------- stages


def train_vae(data: str | Path, out: str | Path, config: VideoConfig, *, steps: int | None = None,
              minutes: float | None = None, seed: int = 0, exclude: Sequence[str] = (),
              tasks: Sequence[str] | None = None, in_domain: bool = False, command: str | None = None,
              log_every: int = 10, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> VideoModel:
    """Train the causal VAE from nothing on all train clips; writes `out/model`. The same call continues after a kill.

    Half of the samples are whole episodes at `num_frames` (what is generated and compared later), half shorter windows
    at every stride that fits; all kinds of episodes, since the reward must also encode an agent's failures. At the end
    `scaling_factor` is set to one over the latents' standard deviation on the data.
    """
    out = Path(out)
    clips = load_clips(data, config.image_size, exclude=exclude, tasks=tasks, in_domain=in_domain)
    model = VideoModel.small(config, seed)
    model.vae.requires_grad_(True)
    accelerator = _accelerator(dataclasses.replace(config, gradient_accumulation=1))
    schedule = Schedule(steps or config.vae_steps, minutes, config.vae_learning_rate, log_every=log_every,
                        checkpoint_seconds=checkpoint_seconds)

    def batch(rng: np.random.Generator) -> dict[str, Any]:
        chosen = []
        for index in rng.integers(len(clips.frames), size=config.vae_batch):
            frames, length = clips.frames[index], config.num_frames
            longest = (len(frames) - 1) // (length - 1)
            if longest < 1 or rng.random() < 0.5:
                part = clips.uniform(index, length, rng)
            else:
                stride = int(rng.integers(1, longest + 1))
                start = int(rng.integers(len(frames) - stride * (length - 1)))
                part = frames[start:start + stride * (length - 1) + 1:stride]
            chosen.append(augment(to_pixels(part[None])[0], rng))
        return {"pixels": torch.stack(chosen), "noise_seed": int(rng.integers(2**62))}

    def export() -> None:
        model.vae.eval()
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(clips.frames))[:48]
        latents = model.encode_batch(np.stack([clips.uniform(index, config.num_frames) for index in some]))
        model.vae.register_to_config(scaling_factor=float(1 / latents.std()))
        model.save(out / "model")
        model.vae.train()

    loop = _Loop("vae", out, VaeLoss(model.vae), schedule, accelerator, seed,
                 {"seed": seed, "in_domain": in_domain, **_only(config, "image_size", "num_frames", "vae_channels",
                                                                "latent_channels", "vae_batch", "vae_learning_rate")},
                 _provenance(command, clips, in_domain, seed), export)
    loop.run(batch)
    return VideoModel.load(out / "model")


def pretrain_transformer(data: str | Path, out: str | Path, config: VideoConfig, *, steps: int | None = None,
                         minutes: float | None = None, seed: int = 0, exclude: Sequence[str] = (),
                         tasks: Sequence[str] | None = None, in_domain: bool = False, command: str | None = None,
                         log_every: int = 10, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> VideoModel:
    """Train transformer and text encoder from nothing on the expert clips, with the VAE of `out/model`.

    Writes `out/model` (averaged weights). The same call continues after a kill. The VAE's latents are computed once and
    kept in `out/latents_<digest>.pt`.
    """
    out = Path(out)
    clips = load_clips(data, config.image_size, kinds=("expert",), exclude=exclude, tasks=tasks, in_domain=in_domain)
    trained = VideoModel.load(out / "model")
    _same_vae(trained, config)
    model = VideoModel.small(config, seed)
    model.vae.load_state_dict(trained.vae.state_dict())
    model.vae.register_to_config(scaling_factor=trained.vae.config.scaling_factor)
    model.transformer.requires_grad_(True)
    model.text_encoder.requires_grad_(True)
    return _train_diffusion("pretrain", model, clips, out, config, learn_text=True, seed=seed, command=command,
                            in_domain=in_domain, export=lambda: model.save(out / "model"),
                            schedule=Schedule(steps or config.pretrain_steps, minutes, config.learning_rate,
                                              config.gradient_accumulation, config.ema_decay, 0.01, log_every,
                                              checkpoint_seconds))


def finetune_lora(data: str | Path, out: str | Path, config: VideoConfig, *, model: str | Path | VideoModel,
                  steps: int | None = None, minutes: float | None = None, seed: int = 0, exclude: Sequence[str] = (),
                  tasks: Sequence[str] | None = None, in_domain: bool = False, command: str | None = None,
                  log_every: int = 10, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> VideoModel:
    """Finetune with a LoRA on the domain's expert clips (Eq. 2): the paper's step 1, for a small model or the hub's.

    Only the LoRA's weights learn; they are written to `out/lora` in diffusers' format (load with
    `VideoModel.load(model, lora=out)`). The VAE and the text encoder stay as they are. Returns the adapted model.
    """
    from diffusers import CogVideoXImageToVideoPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    out = Path(out)
    clips = load_clips(data, config.image_size, kinds=("expert",), exclude=exclude, tasks=tasks, in_domain=in_domain)
    accelerator = _accelerator(config)
    if not isinstance(model, VideoModel):
        large = accelerator.device.type == "cuda" and config.pretrained is not None
        model = VideoModel.load(model, device=accelerator.device, dtype=torch.bfloat16 if large else torch.float32)
    if model.transformer.config.patch_size_t is not None:
        raise InputError("CogVideoX 1.5 (patches in time) is not supported for finetuning; valid: a 1.0 model such as "
                         "THUDM/CogVideoX-5b-I2V")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.transformer.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank,
                                                 init_lora_weights=True, target_modules=list(LORA_TARGETS)))
    for parameter in model.transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if max(model.frame_shape) > 256:
        model.transformer.enable_gradient_checkpointing()

    def export() -> None:
        weights = {name: value.detach().to("cpu", torch.float16).contiguous()
                   for name, value in get_peft_model_state_dict(model.transformer).items()}
        with files.atomic_dir(out / "lora") as temporary:
            CogVideoXImageToVideoPipeline.save_lora_weights(str(temporary), transformer_lora_layers=weights,
                                                            weight_name=LORA_FILE)

    return _train_diffusion("finetune", model, clips, out, config, learn_text=False, seed=seed, command=command,
                            in_domain=in_domain, export=export,
                            schedule=Schedule(steps or config.lora_steps, minutes, config.lora_learning_rate,
                                              config.gradient_accumulation, config.ema_decay, 0.0, log_every,
                                              checkpoint_seconds))


def _train_diffusion(stage: str, model: VideoModel, clips: Clips, out: Path, config: VideoConfig, *, learn_text: bool,
                     seed: int, command: str | None, in_domain: bool, export: Callable[[], None],
                     schedule: Schedule) -> VideoModel:
    accelerator = _accelerator(config)
    with accelerator.main_process_first():
        latents, images = _latents(model, clips, config.num_frames, out, seed, accelerator.is_main_process)
    prompts = ["", *sorted({str(row["text"]) for row in clips.rows})]
    number = np.array([prompts.index(str(row["text"])) for row in clips.rows])
    tokens = model.pipe.tokenizer(prompts, padding="max_length", max_length=model.text_length, truncation=True,
                                  add_special_tokens=True, return_tensors="pt").input_ids
    texts = tokens
    if not learn_text:
        with torch.no_grad(), model.autocast():
            texts = torch.cat([model.text_encoder(row[None].to(model.text_encoder.device))[0] for row in tokens])
        texts = texts.to("cpu", torch.float32 if model.dtype == torch.float32 else model.dtype)
    # How much each place (T', h, w) departs from the first latent over the data: standard deviation, mean 1.
    spread = (latents.float() - latents[:, :, :1].float()).square().mean((0, 1, 3)).sqrt()
    weight = 0.5 + 0.5 * spread / spread.mean().clamp(min=1e-6)
    module = DiffusionLoss(model, weight / weight.mean(), learn_text)
    levels = model.pipe.scheduler.config.num_train_timesteps

    def batch(rng: np.random.Generator) -> dict[str, Any]:
        index = rng.integers(len(latents), size=config.batch)
        variant = rng.integers(latents.shape[1], size=config.batch)
        chosen = np.where(rng.random(config.batch) < config.text_dropout, 0, number[index])
        distinct, place = np.unique(chosen, return_inverse=True)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = latents[index, variant].to(model.dtype)
        return {"latents": clean, "image": images[index, variant].to(model.dtype), "text": texts[distinct],
                "text_index": torch.from_numpy(place),
                "timesteps": torch.from_numpy(rng.integers(levels, size=config.batch)),
                "noise": torch.randn(clean.shape, generator=generator).to(model.dtype)}

    identity = {"seed": seed, "in_domain": in_domain, "vae": _weights_digest(model.vae),
                "base": _weights_digest(model.transformer), **_only(
        config, "image_size", "num_frames", "heads", "head_dim", "layers", "patch_size", "text_dim", "text_layers",
        "text_length", "prediction_type", "batch", "gradient_accumulation", "learning_rate", "lora_learning_rate",
        "lora_rank", "ema_decay", "text_dropout")}
    loop = _Loop(stage, out, module, schedule, accelerator, seed, identity,
                 _provenance(command, clips, in_domain, seed), export)
    loop.run(batch)
    with torch.no_grad():  # what is handed back is what was written: the averaged weights
        for name, average in loop.averages.items():
            loop.named[name].copy_(average)
    for part in (model.transformer, model.text_encoder):
        part.eval().requires_grad_(False)
    return model


@torch.no_grad()
def _latents(model: VideoModel, clips: Clips, num_frames: int, out: Path, seed: int,
             progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents of every clip (N, V, T', C, h, w) and of its first frame alone (N, V, 1, C, h, w), float16.

    Variant 0 is the clip as it is; the others are timed and coloured a little differently. They are kept in a file
    named by the data and the VAE, so a resumed run does not encode again.
    """
    name = files.digest([clips.digest, num_frames, seed, LATENT_VARIANTS, _weights_digest(model.vae)])
    cache = out / f"latents_{name}.pt"
    if cache.exists():
        try:
            stored = torch.load(cache, weights_only=True)
            return stored["latents"], stored["images"]
        except Exception:
            cache.unlink()  # damaged: encode again
    videos, images = [], []
    for index in tqdm(range(len(clips.frames)), "encoding clips", disable=not progress):
        rng = np.random.default_rng([seed, index])
        variants = [to_pixels(clips.uniform(index, num_frames)[None])[0]]
        for _ in range(LATENT_VARIANTS - 1):
            variants.append(recolour(to_pixels(clips.uniform(index, num_frames, rng)[None])[0], rng, 0.12))
        frames = (((torch.stack(variants) + 1) * 127.5).round().to(torch.uint8)).permute(0, 2, 3, 4, 1).numpy()
        frames = np.stack([model.pad(variant) for variant in frames])
        videos.append(model.encode_batch(frames).permute(0, 2, 1, 3, 4).half())
        images.append(model.encode_batch(frames[:, :1]).permute(0, 2, 1, 3, 4).half())
    factor = model.vae.config.scaling_factor
    # CogVideoX-5b-I2V was trained with the first frame's latent divided by the factor; the pipeline follows its config.
    image_factor = 1 / factor if model.vae.config.invert_scale_latents else factor
    latents = (torch.stack(videos).float() * factor).half()
    first = (torch.stack(images).float() * image_factor).half()
    with files.atomic_path(cache) as temporary:
        torch.save({"latents": latents, "images": first}, temporary)
    return latents, first


@torch.no_grad()
def _weights_digest(module: nn.Module) -> str:
    """Tells two sets of frozen weights apart; cheap enough for a model of billions."""
    return files.digest([f"{float(p.float().abs().sum()):.6e}" for p in module.parameters() if not p.requires_grad])


def _only(config: VideoConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _same_vae(model: VideoModel, config: VideoConfig) -> None:
    found = (tuple(model.vae.config.block_out_channels), model.vae.config.latent_channels)
    wanted = (tuple(config.vae_channels), config.latent_channels)
    if found != wanted:
        raise InputError(f"the trained VAE has (widths, latent channels) {found}, the profile asks for {wanted}; "
                         "valid: the profile that it was trained with")


# -------------------------------------------------------------------------------------------------------------- sample


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; infinite when they are equal."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def sample(model: str | Path | VideoModel, data: str | Path, out: str | Path, *, count: int = 8, seed: int = 0,
           lora: str | Path | None = None, split: str = "test") -> dict[str, float]:
    """Generate from the first frames of expert test clips, spread over the tasks; write a sheet of film strips.

    Each pair of rows in `out/samples.png` is the real clip and the generated one. Returns (and writes to
    `out/samples.json`) mean PSNR against the real clip of the generated video, of the VAE's reconstruction and of a
    copy of the first frame, and how often the generated video is nearer to its own clip than to another's.
    """
    if not isinstance(model, VideoModel):
        model = VideoModel.load(model, lora=lora)
    clips = load_clips(data, model.image_size, split=split, kinds=("expert",))
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[int]] = {}
    for index in rng.permutation(len(clips.rows)):
        by_task.setdefault(str(clips.rows[index].get("task")), []).append(int(index))
    chosen = [group[turn] for turn in range(max(map(len, by_task.values())))
              for _, group in sorted(by_task.items()) if turn < len(group)][:count]
    real = np.stack([clips.uniform(index, model.num_frames) for index in chosen])
    made = model.generate_batch(real[:, 0], [clips.rows[index]["text"] for index in chosen],
                                [seed + place for place in range(len(chosen))])
    restored = np.concatenate([model.decode(model.encode_batch(real[place:place + 1]))
                               for place in range(len(chosen))])
    own = np.array([psnr(a, b) for a, b in zip(made, real, strict=True)])
    other = np.array([psnr(a, b) for a, b in zip(made, np.roll(real, 1, 0), strict=True)])
    still = np.array([psnr(np.repeat(b[:1], len(b), 0), b) for b in real])
    numbers = {"clips": float(len(chosen)), "psnr_generated": float(own.mean()),
               "psnr_first_frame": float(still.mean()),
               "psnr_vae": float(np.mean([psnr(a, b) for a, b in zip(restored, real, strict=True)])),
               "nearer_to_own": float((own > other).mean()), "better_than_still": float((own > still).mean())}
    sheet = [np.concatenate(list(strip), axis=1) for pair in zip(real, made, strict=True) for strip in pair]
    out = Path(out)
    with files.atomic_path(out / "samples.png") as temporary:
        picture = np.concatenate(sheet)
        scale = max(1, 128 // model.image_size)
        Image.fromarray(picture.repeat(scale, 0).repeat(scale, 1)).save(temporary)
    files.write_json(out / "samples.json", numbers)
    print(json.dumps(numbers, indent=1))
    return numbers
