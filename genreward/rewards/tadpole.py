"""TADPoLe: a text-conditioned diffusion model as the judge of a frame, or of a clip (Luo et al. 2024).

A frame is noised to a middling level and the diffusion model is asked twice what the noise was, once told the text of
the goal and once told nothing. The reward is high where the text changes the answer (alignment) and makes it better
(reconstruction). `tadpole` asks a diffusion model of frames, `video_tadpole` this project's CogVideoX about a window of
the episode. In the flow `tasks -> envs -> demos -> video_model -> ... -> rewards -> agents` the frame model learns from
the captioned frames of `demos`, as the frame scorer does; it is kept as a diffusers folder, so that Stable Diffusion
(or DeepFloyd IF) can stand in its place:

    python -m genreward.rewards.tadpole train --profile laptop      # results/laptop/weights/rewards/tadpole
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from .. import demos, errors, files, profiles, results
from ..errors import InputError, unknown
from ..profiles import Profile
from ..tasks import get_task
from ..trajectory import Trajectory, check_frames, uniform_indices
from .base import History, RewardModel, RewardProperties, register

# diffusers and transformers are imported where they are needed: every agent's process imports this registry, and they
# cost ten seconds

ALIGNMENT, RECONSTRUCTION = 2000.0, 200.0  # weights inside the two symlogs
WINDOWS = ("episode", "last")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TEXT_LENGTH = 77  # tokens, as in DeepFloyd IF

_CITATION = "Luo et al., Text-Aware Diffusion for Policy Learning, NeurIPS 2024, arXiv 2407.01903"
_DEVIATIONS = ("Noise and its level are drawn from the seed, the episode's first state and the step, so that an "
               "episode is always paid the same.",
               "The text is the sentence that the finished task satisfies, which is what the captions of the small "
               "model's frames say; pass `text` for another.")


# ---------------------------------------------------------------------------------------------------- the formula

def symlog(x: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), elementwise: linear near 0, logarithmic far from it."""
    return np.sign(x) * np.log1p(np.abs(x))


def tadpole_terms(text: torch.Tensor, null: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """The two terms of the reward, (N, 2) float64: alignment and reconstruction.

    text, null, noise  (N, ...) the noise predicted with the text, without it, and the true one:
    symlog(2000 mean((e_text - e_null)^2)) and symlog(200 (mean((e_null - e)^2) - mean((e_text - e)^2))).
    """
    def error(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return (a.double() - b.double()).square().flatten(1).mean(1).cpu().numpy()

    alignment = symlog(ALIGNMENT * error(text, null))
    return np.stack([alignment, symlog(RECONSTRUCTION * (error(null, noise) - error(text, noise)))], axis=1)


def to_epsilon(kind: str, output: torch.Tensor, noisy: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """The noise that a network's output stands for, given x_t = a x_0 + s e with a^2 = alpha_bar, s^2 = 1 - alpha_bar.

    kind       the scheduler's `prediction_type`: "epsilon" (the output is e), "v_prediction" (a e - s x_0), "sample"
               (x_0; s must not be 0)
    alpha_bar  of each sample, broadcast over its numbers
    """
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return a * output + s * noisy
    if kind == "sample":
        return (noisy - a * output) / s
    raise unknown("prediction_type of the scheduler:", kind, PREDICTIONS)


class Denoiser(ABC):
    """A text-conditioned diffusion model as this reward sees it. A subclass encodes pictures and calls its network.

    scheduler   diffusers' own; its `alphas_cumprod` and `prediction_type` say what the network's output means
    image_size  height and width in pixels of what it looks at
    """

    scheduler: Any
    image_size: int

    @abstractmethod
    def encode(self, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Frames (N, H, W, 3) or clips (N, K, H, W, 3) uint8 -> x_0 (N, ...) float32 and what conditions beside the
        text."""

    @abstractmethod
    def output(self, noisy: torch.Tensor, levels: torch.Tensor, texts: Sequence[str],
               condition: torch.Tensor | None) -> torch.Tensor:
        """The network's raw output for x_t (N, ...) at timesteps (N,), with a text for each."""

    def alpha_bar(self, levels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """alpha_bar of timesteps (N,), shaped to be broadcast over `like` (N, ...)."""
        values = self.scheduler.alphas_cumprod.to(like.device, torch.float32)[levels.to(like.device)]
        return values.view(-1, *[1] * (like.ndim - 1))

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x_t of Eq. 1 at timesteps (N,)."""
        alpha_bar = self.alpha_bar(levels, clean)
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    @torch.no_grad()
    def epsilon(self, noisy: torch.Tensor, levels: torch.Tensor, texts: Sequence[str],
                condition: torch.Tensor | None = None) -> torch.Tensor:
        """The predicted noise, (N, ...) float32, whatever the network was trained to predict."""
        output = self.output(noisy, levels, texts, condition).float()
        kind = self.scheduler.config.prediction_type
        return to_epsilon(kind, output, noisy, self.alpha_bar(levels, noisy))

    def noise(self, shape: Sequence[int], seeds: Sequence[Sequence[int]]) -> torch.Tensor:
        """(N, *shape) standard normal numbers, each sample's from its own seed."""
        return torch.from_numpy(np.stack([np.random.default_rng(list(seed)).standard_normal(tuple(shape), np.float32)
                                          for seed in seeds]))

    def judge(self, pictures: np.ndarray, text: str, levels: Sequence[int], seeds: Sequence[Sequence[int]],
              ) -> np.ndarray:
        """`tadpole_terms` of pictures, (N, 2): each noised to its own level with noise from its own seed."""
        clean, condition = self.encode(pictures)
        noise = self.noise(clean.shape[1:], seeds).to(clean.device)
        level = torch.as_tensor(np.asarray(levels), dtype=torch.long)
        noisy = self.noised(clean, noise, level)
        # Both questions in one batch: an agent asks about one frame at a time, where the call itself costs most.
        twice = None if condition is None else torch.cat([condition] * 2)
        told, untold = self.epsilon(torch.cat([noisy] * 2), level.repeat(2), [text] * len(noisy) + [""] * len(noisy),
                                    twice).chunk(2)
        return tadpole_terms(told, untold, noise)


# ------------------------------------------------------------------------------------------------ the frame model

@dataclass(frozen=True)
class TadpoleConfig:
    """The small frame model and its training.

    patch           the UNet sees patch x patch pixels as one place of 3 patch^2 channels: nothing is lost, and it costs
                    as much as an image of half the size
    clips_per_task  of the pretraining tasks
    in_domain       share of the samples that are of the evaluated tasks, where their training episodes are given
    middling        share of the noise levels drawn from 300..699, where the reward looks; the others from all levels
    """

    image_size: int = 64
    patch: int = 2
    channels: tuple[int, ...] = (24, 32, 40)
    text_dim: int = 48
    text_layers: int = 2
    prediction_type: str = "epsilon"
    clips_per_task: int = 16
    in_domain: float = 0.5
    middling: float = 0.5
    text_dropout: float = 0.15
    steps: int = 1000
    batch: int = 16
    learning_rate: float = 2e-3
    ema_decay: float = 0.995


CONFIGS = {
    "smoke": TadpoleConfig(channels=(8, 8, 16), text_dim=16, text_layers=1, clips_per_task=1, steps=8, batch=4),
    "laptop": TadpoleConfig(),
    "gpu": TadpoleConfig(channels=(64, 128, 256), text_dim=256, text_layers=4, clips_per_task=1000, steps=40_000,
                         batch=128, learning_rate=3e-4, ema_decay=0.9995),
}


class FrameDiffusion(Denoiser):
    """A text-conditioned diffusion model of single frames: a diffusers pipeline with `unet`, `text_encoder`,
    `tokenizer` and `scheduler`, and a `vae` or none (Stable Diffusion; DeepFloyd IF, or a small model trained here).

    The networks run in float32 on a CPU: two predictions are compared that differ by less than bfloat16 can tell.
    """

    def __init__(self, pipe: Any) -> None:
        missing = [name for name in ("unet", "text_encoder", "tokenizer", "scheduler")
                   if getattr(pipe, name, None) is None]
        if missing or hasattr(pipe, "text_encoder_2"):
            raise InputError(f"{type(pipe).__name__} is not a diffusion model of frames with one text encoder"
                             + (f" (no {missing[0]})" if missing else "") + "; valid: pipelines with the parts of "
                             "StableDiffusionPipeline or IFPipeline")
        self.pipe, self.unet, self.text_encoder = pipe, pipe.unet.eval(), pipe.text_encoder.eval()
        self.scheduler, self.vae = pipe.scheduler, getattr(pipe, "vae", None)
        if self.scheduler.config.prediction_type not in PREDICTIONS:
            raise unknown("prediction_type of the scheduler:", self.scheduler.config.prediction_type, PREDICTIONS)
        side, channels = int(self.unet.config.sample_size), int(self.unet.config.in_channels)
        self.patch = 1 if self.vae is not None else math.isqrt(channels // 3)
        if self.vae is None and 3 * self.patch**2 != channels:
            raise InputError(f"a diffusion model of pixels has 3 p^2 input channels, got {channels}")
        factor = self.patch if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_size = side * factor
        self._embedded: dict[str, torch.Tensor] = {}
        for module in (self.unet, self.text_encoder, *([self.vae] if self.vae is not None else [])):
            module.requires_grad_(False)

    @classmethod
    def small(cls, config: TadpoleConfig, seed: int) -> FrameDiffusion:
        """An untrained small model: a UNet of pixels in the layout of diffusers' IFPipeline. Text is read byte by byte
        (no vocabulary file) and reaches the UNet by its time embedding and by cross-attention at the coarsest level."""
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import T5Config, T5EncoderModel

        _check_config(config)
        last = len(config.channels) - 1
        blocks = ["DownBlock2D"] * last + ["CrossAttnDownBlock2D"]
        pixels = 3 * config.patch**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(
                sample_size=config.image_size // config.patch, in_channels=pixels, out_channels=pixels,
                down_block_types=tuple(blocks), up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * last,
                block_out_channels=config.channels, layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
                cross_attention_dim=config.text_dim, addition_embed_type="text", addition_embed_type_num_heads=4)
            text_encoder = T5EncoderModel(T5Config(
                vocab_size=384, d_model=config.text_dim, d_kv=config.text_dim // 4, d_ff=2 * config.text_dim,
                num_layers=config.text_layers, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0))
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                  prediction_type=config.prediction_type, clip_sample=False)
        return cls(_pipeline(unet, text_encoder, scheduler))

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu",
             dtype: torch.dtype = torch.float32) -> FrameDiffusion:
        """Load a diffusers folder or hub id; InputError for one that is missing, incomplete, cut short or of another
        kind, and for a hub id without network."""
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        from ..video_model import load_pipeline

        logging.disable_progress_bar()
        text, path = str(path), Path(path)
        is_id = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.parent.exists()
        if not path.is_dir() and not is_id:
            raise InputError(f"no such folder of a diffusion model: {text}; valid: a folder in diffusers' layout, a "
                             "hub id, or one made by `python -m genreward.rewards.tadpole train`")
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise InputError(f"{path} holds no diffusion model (no model_index.json); valid: a folder in diffusers' "
                             "layout")
        try:
            pipe = load_pipeline(DiffusionPipeline, text, dtype, safety_checker=None, requires_safety_checker=False)
        except InputError:
            raise
        except Exception as problem:
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0][:160]
            where = (f"the diffusion model in {path} cannot be loaded (a file is missing or cut short)"
                     if path.is_dir() else f"cannot get the diffusion model {text!r} from the hub")
            raise InputError(f"{where}: {reason}") from None
        model = cls(pipe.to(device))
        nn.Module.to(model.unet, memory_format=torch.channels_last)  # a seventh faster on a CPU
        return model

    def save(self, folder: str | os.PathLike, provenance: dict[str, Any] | None = None,
             dtype: torch.dtype = torch.float16) -> None:
        """Write a small model as a diffusers folder (safetensors in `dtype`), with `provenance.json` where there is
        one; whole or not at all."""
        if self.vae is not None:
            raise InputError("only a model of pixels is saved here; keep the folder that this one came from")
        with torch.random.fork_rng(devices=[]):
            unet = type(self.unet).from_config(self.unet.config)
            text_encoder = type(self.text_encoder)(self.text_encoder.config)
        for copy, original in ((unet, self.unet), (text_encoder, self.text_encoder)):
            copy.load_state_dict(original.state_dict())
            nn.Module.to(copy, "cpu", dtype)  # diffusers' own warns of parts that would have to stay in float32: none
        with files.atomic_dir(folder) as temporary:
            _pipeline(unet, text_encoder, self.scheduler).save_pretrained(temporary, safe_serialization=True)
            if provenance is not None:
                files.write_json(temporary / "provenance.json", provenance)

    @property
    def device(self) -> torch.device:
        """Where the UNet's weights are."""
        return self.unet.device

    def parameters(self) -> int:
        """The number of weights of UNet and text encoder together."""
        return sum(p.numel() for module in (self.unet, self.text_encoder) for p in module.parameters())

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> tuple[torch.Tensor, None]:
        """(N, H, W, 3) uint8 -> x_0: blocks of pixels in -1..1 (N, 3 p^2, h, w), or the VAE's scaled latents (the
        posterior's mode). Only a model with a VAE accepts frames of another size; it gets them enlarged."""
        frames = check_frames(pictures, self.image_size if self.vae is None else None)
        pixels = torch.from_numpy(demos.resize(frames, self.image_size)).permute(0, 3, 1, 2).contiguous().float()
        pixels = (pixels / 127.5 - 1).to(self.device)
        if self.vae is None:
            return nnf.pixel_unshuffle(pixels, self.patch), None
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return latents * self.vae.config.scaling_factor, None

    @torch.no_grad()
    def embed(self, text: str) -> torch.Tensor:
        """(1, L, D): the text encoder's states, by the pipeline's own rules; "" is the null text."""
        if text not in self._embedded:
            self._embedded[text] = self.pipe.encode_prompt(prompt=[text], device=self.device, num_images_per_prompt=1,
                                                           do_classifier_free_guidance=False)[0]
        return self._embedded[text]

    def output(self, noisy: torch.Tensor, levels: torch.Tensor, texts: Sequence[str],
               condition: torch.Tensor | None = None) -> torch.Tensor:
        """The UNet's output (N, C, h, w); channels beyond the input's (a learned variance) are left out."""
        embeddings = torch.cat([self.embed(text) for text in texts])
        return self.unet(noisy.to(self.unet.dtype), levels.to(noisy.device),
                         encoder_hidden_states=embeddings).sample[:, :noisy.shape[1]]


def _pipeline(unet: nn.Module, text_encoder: nn.Module, scheduler: Any) -> Any:
    from diffusers import IFPipeline
    from transformers import ByT5Tokenizer

    return IFPipeline(tokenizer=ByT5Tokenizer(), text_encoder=text_encoder, unet=unet, scheduler=scheduler,
                      safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False)


def _check_config(config: TadpoleConfig) -> None:
    if any(width % 8 for width in config.channels) or not config.channels or config.text_dim % 4:
        raise InputError(f"channels must be multiples of 8 and text_dim of 4, got {config.channels} and "
                         f"{config.text_dim}")
    if config.image_size % (config.patch * 2 ** (len(config.channels) - 1)):
        raise InputError(f"image_size must be divisible by patch x 2^{len(config.channels) - 1}, got "
                         f"{config.image_size}")
    if config.prediction_type not in PREDICTIONS:
        raise unknown("prediction_type", config.prediction_type, PREDICTIONS)


# ------------------------------------------------------------------------------------------------ the video model

class VideoDiffusion(Denoiser):
    """This project's CogVideoX (a `VideoModel`) asked about clips: text against empty text, the clip's first frame as
    the image that it is conditioned on. The transformer runs in the type of its weights, without autocast."""

    def __init__(self, video_model: Any) -> None:
        self.model, self.scheduler = video_model, video_model.pipe.scheduler
        self.image_size = video_model.image_size
        if video_model.transformer.config.patch_size_t is not None:
            raise InputError("CogVideoX 1.5 (patches in time) is not supported here; valid: a 1.0 model such as "
                             "THUDM/CogVideoX-5b-I2V")
        self._embedded: dict[str, torch.Tensor] = {}
        self._rotary: dict[int, Any] = {}

    def encode(self, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K, H, W, 3) uint8 -> scaled latents (N, T', C, h, w) and the latent of each first frame alone, followed
        by zeros, as the pipeline conditions on it. One clip at a time: bfloat16 convolutions round by the batch."""
        config = self.model.vae.config
        factor = config.scaling_factor
        image_factor = 1 / factor if config.invert_scale_latents else factor
        clean = torch.stack([self.model.encode(clip) for clip in pictures]).transpose(1, 2) * factor
        first: dict[bytes, torch.Tensor] = {}
        for clip in pictures:  # windows of one episode often share it
            key = clip[0].tobytes()
            if key not in first:
                first[key] = self.model.encode(clip[:1]).transpose(0, 1) * image_factor
        condition = torch.zeros_like(clean)
        condition[:, :1] = torch.stack([first[clip[0].tobytes()] for clip in pictures])
        return clean.contiguous().to(self.model.device), condition.to(self.model.device)

    @torch.no_grad()
    def embed(self, text: str) -> torch.Tensor:
        """(1, L, D): the text encoder's states; "" is the null text."""
        if text not in self._embedded:
            tokens = self.model.pipe.tokenizer(
                [text], padding="max_length", max_length=self.model.text_length, truncation=True,
                add_special_tokens=True, return_tensors="pt").input_ids
            self._embedded[text] = self.model.text_encoder(tokens.to(self.model.device))[0]
        return self._embedded[text]

    def output(self, noisy: torch.Tensor, levels: torch.Tensor, texts: Sequence[str],
               condition: torch.Tensor | None = None) -> torch.Tensor:
        """The transformer's output (N, T', C, h, w), v for CogVideoX."""
        transformer, length = self.model.transformer, noisy.shape[1]
        if length not in self._rotary:
            self._rotary[length] = self.model.pipe._prepare_rotary_positional_embeddings(
                *self.model.frame_shape, length, noisy.device
            ) if transformer.config.use_rotary_positional_embeddings else None
        offset = transformer.config.ofs_embed_dim
        embeddings = torch.cat([self.embed(text) for text in texts])
        return transformer(
            hidden_states=torch.cat([noisy, condition], 2).to(transformer.dtype), encoder_hidden_states=embeddings,
            timestep=levels.to(noisy.device), ofs=None if offset is None else embeddings.new_full((1,), 2.0),
            image_rotary_emb=self._rotary[length], return_dict=False)[0]


# ---------------------------------------------------------------------------------------------------- the rewards

class _Tadpole(RewardModel):
    """What both share: the level of an episode, when is paid, and the batch in which a recorded episode is scored."""

    def __init__(self, denoiser: Denoiser, text: str | None, alpha: float, interval: int, level: int,
                 level_range: int, seed: int, batch: int) -> None:
        steps = int(denoiser.scheduler.config.num_train_timesteps)
        if interval < 1 or batch < 1 or seed < 0:
            raise InputError(f"interval and batch must be at least 1 and seed not negative, got {interval}, {batch} "
                             f"and {seed}")
        if level_range < 1 or level < 0 or level + level_range > steps:
            raise InputError(f"noise levels [{level}, {level + level_range}) must lie within [0, {steps})")
        if not np.isfinite(alpha):
            raise InputError(f"the weight alpha must be finite, got {alpha}")
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise InputError("text must be a sentence that is not empty")
        self.denoiser, self.text, self.alpha, self.interval = denoiser, text, float(alpha), interval
        self.level, self.level_range, self.seed, self.batch = level, level_range, seed, batch

    def steps(self, t: int) -> np.ndarray:
        """The steps whose frames are judged at step t."""
        return np.array([t])

    def pays(self, t: int) -> bool:
        """Whether step t is one of those that are paid."""
        return t > 0 and t % self.interval == 0

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames of every paid step."""
        return self.pays(t)

    def terms(self, history: History, t: int) -> dict[str, float]:
        """{"alignment", "reconstruction"}, alpha times the two symlogs at every `interval`-th step, 0 between."""
        if not self.pays(t):
            return {"alignment": 0.0, "reconstruction": 0.0}
        known = history.cache.setdefault(self.name, {})
        if t not in known:
            known[t] = self._judge(history, [t], history.clip(self.steps(t))[None])[0]
        alignment, reconstruction = known[t]
        return {"alignment": self.alpha * float(alignment), "reconstruction": self.alpha * float(reconstruction)}

    def prepare(self, history: History, trajectory: Trajectory) -> None:
        """Judge all paid steps of a recorded episode, `batch` at a time."""
        due = [t for t in range(1, len(trajectory) + 1) if self.pays(t)]
        known = history.cache.setdefault(self.name, {})
        for begin in range(0, len(due), self.batch):
            part = due[begin:begin + self.batch]
            clips = np.stack([trajectory.frames[self.steps(t)] for t in part])
            known.update(zip(part, self._judge(history, part, clips), strict=True))

    def episode_level(self, first_state: Any) -> int:
        """The noise level of an episode, in [level, level + level_range): by the seed and its first state."""
        return int(np.random.default_rng([self.seed, _mark(first_state)]).integers(self.level,
                                                                                  self.level + self.level_range))

    def _judge(self, history: History, steps: Sequence[int], clips: np.ndarray) -> np.ndarray:
        mark = _mark(history.states[0])
        level = self.episode_level(history.states[0])
        return self.denoiser.judge(self._pictures(clips), self._text(history.task), [level] * len(steps),
                                   [(self.seed, mark, t) for t in steps])

    def _pictures(self, clips: np.ndarray) -> np.ndarray:
        return clips

    def _text(self, task: str) -> str:
        if self.text is not None:
            return self.text
        if not task:
            raise InputError(f"reward {self.name!r} does not know the task; give it `text` or a goal")
        return self._sentence(get_task(task))

    def _sentence(self, task: Any) -> str:
        return task.done


def _mark(state: Any) -> int:
    """A number that names a state."""
    return zlib.crc32(np.ascontiguousarray(state, np.float32).tobytes())


@register("tadpole")
class TADPoLe(_Tadpole):
    """A frame as a text-conditioned diffusion model of frames judges it.

    frame_diffusion     a FrameDiffusion, or the folder or hub id of one
    text, goal          what the text says: `text`, else the goal's first paraphrase (its prompt where it has none),
                        else the sentence of the episode's task that its finished state satisfies
    alpha               weight of both terms; interval: steps between payments
    level, level_range  the noise level of an episode is drawn from [level, level + level_range): 400 in the paper for
                        control, 500 for manipulation
    seed                of levels and noise; batch: frames judged at once offline
    """

    properties = RewardProperties(
        demo_free=True, generated=True, action_aware=False, citation=_CITATION,
        deviations=_DEVIATIONS + (
            "Stable Diffusion 2.1 is no longer on its hub: the model is a parameter. The small one is trained here "
            "from nothing on frames of scripted episodes with the captions that the frame scorer learns; those of the "
            "evaluated tasks (training episodes) are among them, in the place of a model that has seen everything.",
            "A model with a VAE is given the posterior's mode instead of a sample of it."))

    def __init__(self, frame_diffusion: FrameDiffusion | str | os.PathLike, text: str | None = None, goal: Any = None,
                 alpha: float = 1.0, interval: int = 1, level: int = 500, level_range: int = 100, seed: int = 0,
                 batch: int = 32) -> None:
        if isinstance(frame_diffusion, (str, os.PathLike)):
            frame_diffusion = FrameDiffusion.load(frame_diffusion)
        if text is None and goal is not None:
            text = goal.paraphrases[0] if goal.paraphrases else goal.prompt
        super().__init__(frame_diffusion, text, alpha, interval, level, level_range, seed, batch)
        if getattr(frame_diffusion, "vae", None) is None:
            self.frame_size = frame_diffusion.image_size

    def _pictures(self, clips: np.ndarray) -> np.ndarray:
        return clips[:, 0]


@register("video_tadpole")
class VideoTADPoLe(_Tadpole):
    """A window of the episode as the text-conditioned video model judges it.

    window     "episode": `video_model.num_frames` frames spread over o_0:t, as the video model saw episodes; "last":
               the latest so many (the first frame is repeated where there are too few)
    text, goal as in `TADPoLe`, but the goal's prompt and the task's, which the video model was trained with
    interval   steps between payments
    """

    properties = RewardProperties(
        demo_free=True, generated=True, action_aware=False, citation=_CITATION,
        deviations=_DEVIATIONS[:1] + (
            "The video model is this project's CogVideoX, which also takes the window's first frame as its image; its "
            "v-prediction is turned into the noise that it stands for.",
            "The window is the whole episode so far, evenly sampled, as in the video model's training; the latest "
            "frames on request.", "Paid every 4 steps instead of at each."))

    def __init__(self, video_model: Any, text: str | None = None, goal: Any = None, alpha: float = 1.0,
                 interval: int = 4, window: str = "episode", level: int = 500, level_range: int = 100, seed: int = 0,
                 batch: int = 8) -> None:
        if window not in WINDOWS:
            raise unknown("window", window, WINDOWS)
        if text is None and goal is not None:
            text = goal.prompt
        super().__init__(VideoDiffusion(video_model), text, alpha, interval, level, level_range, seed, batch)
        self.window, self.num_frames = window, video_model.num_frames
        self.frame_size = video_model.image_size
        self._needed: dict[int, frozenset[int]] = {}

    def steps(self, t: int) -> np.ndarray:
        """The `num_frames` steps of the window that ends at step t."""
        begin = max(0, t + 1 - self.num_frames) if self.window == "last" else 0
        return begin + uniform_indices(t + 1 - begin, self.num_frames)

    def needs_frame(self, t: int, episode_steps: int) -> bool:
        """The frames of every window of an episode of that length."""
        if episode_steps not in self._needed:
            paid = range(self.interval, episode_steps + 1, self.interval)
            self._needed[episode_steps] = frozenset(int(step) for end in paid for step in self.steps(end))
        return t in self._needed[episode_steps]

    def _sentence(self, task: Any) -> str:
        return task.prompt


def load(folder: str | os.PathLike, **parts: Any) -> TADPoLe:
    """`tadpole` with the frame model of a folder (or hub id); `parts` are the reward's other parts and settings, of
    which it takes those that it knows."""
    return TADPoLe.build(parts | {"frame_diffusion": FrameDiffusion.load(folder)})


# ------------------------------------------------------------------------------------------------------- training

class _FrameLoss(nn.Module):
    """Eq. 1-2 for single frames: mean squared error of what the scheduler says that the UNet predicts."""

    def __init__(self, diffusion: FrameDiffusion) -> None:
        super().__init__()
        self.unet, self.text_encoder = diffusion.unet, diffusion.text_encoder
        self.diffusion = [diffusion]  # in a list: not a module of its own

    def forward(self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor, tokens: torch.Tensor,
                mask: torch.Tensor, text_index: torch.Tensor) -> torch.Tensor:
        """clean, noise (N, C, h, w); levels (N,); tokens, mask (P, L) of the distinct texts, of which sample n has
        number `text_index[n]`."""
        diffusion = self.diffusion[0]
        noisy = diffusion.noised(clean, noise, levels)
        embeddings = self.text_encoder(tokens, attention_mask=mask)[0]
        output = self.unet(noisy, levels, encoder_hidden_states=embeddings[text_index]).sample.float()
        alpha_bar = diffusion.alpha_bar(levels, clean)
        target = {"epsilon": noise, "sample": clean,
                  "v_prediction": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean}
        return (output - target[diffusion.scheduler.config.prediction_type]).square().mean()


def train(profile: str | Profile, out_folder: str | os.PathLike, demos_folder: str | os.PathLike,
          in_domain_folder: str | os.PathLike | None = None, progress: bool = True, seed: int = 0,
          config: TadpoleConfig | None = None) -> FrameDiffusion:
    """Train the small frame model from nothing on captioned frames (split "train") and write `out_folder`.

    demos_folder      frames of the pretraining tasks; in_domain_folder: training episodes of the evaluated tasks, or
                      None for a model that has never seen them
    progress          show how far the reading of the videos is (the training always does)
    Texts are the captions of the frames' stages, drawn evenly, with a part of them left out (classifier-free). The same
    call continues after a kill; `provenance.json` holds settings, data, the loss curve and the held-out losses.
    """
    from ..video_training import Schedule, _accelerator, _Loop

    profile = profiles.get_profile(profile)
    config = config or CONFIGS.get(profile.name)
    if config is None:
        raise InputError(f"profile {profile.name!r} takes its diffusion model of frames from the hub: nothing to "
                         "train; give the folder or hub id as `frame_diffusion`")
    from ..goals import FramePool  # brings open_clip, which only training needs

    out_folder, started = Path(out_folder), time.process_time()
    folder = demos.VideoFolder(demos_folder)
    pools = [FramePool.from_folder(_some(folder, config.clips_per_task), config.image_size, progress=progress)]
    if in_domain_folder is not None:
        pools.append(FramePool.from_folder(in_domain_folder, config.image_size, progress=progress))
    diffusion = FrameDiffusion.small(config, seed)
    diffusion.unet.requires_grad_(True)
    diffusion.text_encoder.requires_grad_(True)
    captions = ["", *dict.fromkeys(caption for pool in pools for caption in pool.captions)]
    tokens = diffusion.pipe.tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True,
                                      return_tensors="pt")
    members = [[np.flatnonzero(pool.labels == label) for label in range(len(pool.captions))] for pool in pools]
    levels = int(diffusion.scheduler.config.num_train_timesteps)

    def batch(rng: np.random.Generator) -> dict[str, Any]:
        frames, texts = [], []
        for _ in range(config.batch):
            which = int(len(pools) > 1 and rng.random() < config.in_domain)
            pool = pools[which]
            label = int(rng.choice(pool.groups[rng.integers(len(pool.groups))]))
            frames.append(pool.frames[rng.choice(members[which][label])])
            texts.append(0 if rng.random() < config.text_dropout else captions.index(pool.captions[label]))
        distinct, place = np.unique(texts, return_inverse=True)
        middling = rng.integers(levels * 3 // 10, levels * 7 // 10, config.batch)
        level = np.where(rng.random(config.batch) < config.middling, middling, rng.integers(levels, size=config.batch))
        clean = nnf.pixel_unshuffle(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1,
                                    config.patch)
        return {"clean": clean, "levels": torch.from_numpy(level), "text_index": torch.from_numpy(place),
                "tokens": tokens.input_ids[distinct], "mask": tokens.attention_mask[distinct],
                "noise": torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))}

    work = profiles.paths(profile).checkpoints / f"tadpole-{out_folder.name}"
    digest = files.digest([pool.digest for pool in pools])
    made = results.provenance(data_digest=digest, seed=seed, frames=[len(pool.frames) for pool in pools],
                              captions=len(captions) - 1, in_domain=in_domain_folder is not None)
    loop = _Loop("tadpole", work, _FrameLoss(diffusion), Schedule(
        config.steps, None, config.learning_rate, ema_decay=config.ema_decay, weight_decay=0.01,
        checkpoint_seconds=60.0), _accelerator(replace(profile.video, gradient_accumulation=1)), seed,
        {"seed": seed, "data": digest, **asdict(config)}, made, export=lambda: None)
    loop.run(batch)
    with torch.no_grad():
        for name, average in loop.averages.items():
            loop.named[name].copy_(average)
    diffusion.unet.eval().requires_grad_(False)
    diffusion.text_encoder.eval().requires_grad_(False)
    curve = [[int(step), float(loss)] for step, loss, *_ in _rows(work / "loss_tadpole.csv")]
    diffusion.save(out_folder, made | {
        "config": config, "parameters": diffusion.parameters(), "seconds": round(loop.seconds, 1),
        "cpu_seconds_of_last_call": round(time.process_time() - started, 1), "loss": curve,
        "held_out": held_out_losses(diffusion, folder, seed=seed)})
    return FrameDiffusion.load(out_folder)


def _some(folder: demos.VideoFolder, per_task: int) -> demos.VideoFolder:
    """The folder with the first `per_task` training clips of each task only; the others are kept out of memory."""
    kept, count = [], {}
    for row in folder.clips:
        key = row.get("task")
        if row.get("split", "train") == "train" and count.get(key, 0) < per_task:
            count[key] = count.get(key, 0) + 1
            kept.append(row)
    if not kept:
        raise InputError(f"{folder.folder} has no train clips to learn from")
    small = demos.VideoFolder(folder.folder)
    small.clips = kept
    return small


def _rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]] if path.exists() else []


def held_out_losses(diffusion: Denoiser, folder: demos.VideoFolder, per_clip: int = 4, clips_per_task: int = 10,
                    levels: tuple[int, int] = (400, 600), seed: int = 0, batch: int = 32) -> dict[str, Any]:
    """How well noise is predicted on clips of split "test" by the text that goes with a frame, and by others.

    For `per_clip` frames of each of some clips a task, noised to a level in `levels`: the mean of mean((e_hat - e)^2)
    with the caption of the frame's stage ("right"), of another stage of the task ("other_stage"), of the same stage of
    another task ("other_task") and without text ("none"), the noise being the same. "gain_over": by how much the right
    text's error is less than each of the others', frame by frame; frames differ far more than texts do. Each is [value,
    low, high] with a 95% bootstrap interval over clips. "right_is_better_than": the share of frames. Empty when there
    are no such clips with stages.
    """
    rng = np.random.default_rng([seed, 1])
    count: dict[str, int] = {}
    chosen = []
    for index, row in enumerate(folder.clips):
        task = row.get("task")
        if row.get("split") == "test" and row.get("stages") and count.get(task, 0) < clips_per_task:
            count[task] = count.get(task, 0) + 1
            chosen.append(index)
    sets = {row["task"]: row["stage_captions"] for row in (folder.clips[index] for index in chosen)}
    if not chosen:
        return {}
    names = ("right", "other_stage", "other_task", "none") if len(sets) > 1 else ("right", "other_stage", "none")
    frames, texts, owners = [], [], []
    for number, index in enumerate(chosen):
        row = folder.clips[index]
        clip = folder.frames(index, size=diffusion.image_size)
        for place in uniform_indices(len(clip), per_clip):
            stage, captions = row["stages"][place], row["stage_captions"]
            others = [caption for caption in captions if caption != captions[stage]]
            strangers = [sets[task][stage] for task in sorted(sets) if task != row["task"]]
            texts.append({"right": captions[stage], "other_stage": str(rng.choice(others)), "none": "",
                          "other_task": str(rng.choice(strangers)) if strangers else ""})
            frames.append(clip[place])
            owners.append(number)
    level = torch.from_numpy(rng.integers(*levels, size=len(frames)))
    errors_of = {name: np.zeros(len(frames)) for name in names}
    for begin in range(0, len(frames), batch):
        part = slice(begin, begin + batch)
        clean, condition = diffusion.encode(np.stack(frames[part]))
        noise = diffusion.noise(clean.shape[1:], [(seed, 2, begin + n) for n in range(len(clean))]).to(clean.device)
        noisy = diffusion.noised(clean, noise, level[part])
        for name in names:
            guess = diffusion.epsilon(noisy, level[part], [text[name] for text in texts[part]], condition)
            errors_of[name][part] = (guess - noise).square().flatten(1).mean(1).cpu().numpy()
    owners = np.array(owners)
    report: dict[str, Any] = {"clips": len(chosen), "frames": len(frames), "levels": list(levels)}

    def over_clips(values: np.ndarray) -> list[float]:
        by_clip = [values[owners == number].mean() for number in range(len(chosen))]
        return [float(f"{value:.5g}") for value in results.bootstrap_ci(by_clip)[:3]]

    report |= {name: over_clips(errors_of[name]) for name in names}
    report["gain_over"] = {name: over_clips(errors_of[name] - errors_of["right"]) for name in names[1:]}
    report["right_is_better_than"] = {name: round(float(np.mean(errors_of["right"] < errors_of[name])), 4)
                                      for name in names[1:]}
    return report


# --------------------------------------------------------------------------------------------------- command line

def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.rewards.tadpole train`: train the small diffusion model of frames."""
    parser = argparse.ArgumentParser(prog="python -m genreward.rewards.tadpole", description=main.__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("train", help=main.__doc__)
    command.add_argument("--profile", default="laptop", help="smoke, laptop or gpu")
    command.add_argument("--out", help="folder of the model (default: the profile's weights/rewards/tadpole)")
    command.add_argument("--data", help="folder of videos (default: the profile's demonstrations)")
    command.add_argument("--in-domain", help="training episodes of the evaluated tasks (default: the profile's); "
                                             "'none': without")
    command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    paths = profiles.paths(options.profile)
    out = Path(options.out or paths.weights / "rewards" / "tadpole")
    in_domain = None if options.in_domain == "none" else options.in_domain or paths.in_domain_demos
    train(options.profile, out, options.data or paths.demos, in_domain, seed=options.seed)
    report = files.read_json(out / "provenance.json")
    print(f"{out}: {report['parameters']} parameters, {report['seconds']} s; held out: "
          f"{json.dumps(report['held_out'])}")
    return 0


if __name__ == "__main__":
    errors.cli(main)
