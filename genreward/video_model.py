"""The video model: CogVideoX, small and trained here or large and downloaded, behind one class.

In the flow `tasks -> envs -> demos -> video_model -> goals -> ...` it learns from the videos of `demos` and serves
twice: `generate` imagines the goal video from a first frame and a prompt (the paper's step 1), and `encode` gives the
latents of the causal 3D VAE that the video-level reward compares (Eq. 3-5). The parts are the classes of diffusers and
transformers themselves, and the folder on disk has the hub's layout, so that a model trained here and
`THUDM/CogVideoX-5b-I2V` differ in numbers only. Training (Eq. 1-2) is in `video_training`; the command line of both is
`python -m genreward.video_model`.

**Lengths.** The VAE is causal and compresses time four-fold in chunks of eight frames, the first frame apart: 1, 9, 17,
25, ... (8k+1) frames become 1, 3, 5, 7, ... (2k+1) latents and decode to the same number again. Any other length is
padded inside and comes back with another count (13 frames -> 4 latents -> 16 frames), and 8k frames leave the first
frame without a latent of its own. `encode` therefore spreads a clip of another length evenly over `num_frames`, and
`generate` refuses such a length.

**Scale.** `encode` returns the mode of the VAE's posterior as it is, without noise and without the diffusion's
`scaling_factor` (a cosine does not see a factor); `decode` takes the same. The diffusion works on the scaled ones.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from diffusers.utils import logging
from PIL import Image
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from . import errors, files
from .errors import InputError
from .profiles import VideoConfig, get_profile
from .trajectory import check_frames, uniform_indices

logging.disable_progress_bar()

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "patch_embed.proj", "proj_out")


def is_causal_length(frames: int) -> bool:
    """Whether the causal VAE compresses and restores exactly this many frames: 1, 9, 17, ... (8k+1)."""
    return frames >= 1 and frames % 8 == 1


def latent_length(frames: int) -> int:
    """Latents of an 8k+1 frames' clip: 2k+1 (the first frame alone, then one for every four)."""
    return (frames - 1) // 4 + 1


class VideoModel:
    """CogVideoX image-to-video with its VAE, text encoder and scheduler.

    Make one with `small` (random weights, to be trained) or `load` (a folder or hub id). `pipe` is the diffusers
    pipeline itself. `num_frames` (8k+1) and `image_size` (height in pixels) are what it was trained for. On a CPU the
    networks run in bfloat16 autocast (several times faster there) around float32 weights.
    """

    def __init__(self, pipe: CogVideoXImageToVideoPipeline, num_frames: int | None = None,
                 steps: int = 50, guidance: float = 6.0) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        self.vae, self.transformer, self.text_encoder = pipe.vae.eval(), pipe.transformer.eval(), pipe.text_encoder
        self.text_encoder.eval()
        for module in self.vae.modules():
            if isinstance(module, CogVideoXSpatialNorm3D):
                module.forward = functools.partial(_spatial_norm, module)
        for module in (self.vae, self.transformer, self.text_encoder):
            module.requires_grad_(False)
        self.num_frames = num_frames or pipe.transformer.config.sample_frames
        self.steps, self.guidance = steps, guidance
        factor = pipe.vae_scale_factor_spatial
        self.frame_shape = (pipe.transformer.config.sample_height * factor,
                            pipe.transformer.config.sample_width * factor)
        self.image_size = self.frame_shape[0]
        if max(self.frame_shape) > 256:  # a 5B model's decoder needs 20 GB in one piece
            self.vae.enable_slicing()
            self.vae.enable_tiling()

    # ------------------------------------------------------------------------------------------ making and keeping

    @classmethod
    def small(cls, config: VideoConfig, seed: int) -> VideoModel:
        """A model of the same classes with a small config and random weights drawn from `seed`.

        Three VAE blocks give /4 in space and x4 in time; the transformer takes 2 x latent channels (noisy latents and
        the first frame's); text is read byte by byte (ByT5), which needs no vocabulary file.
        """
        _check_config(config)
        blocks = len(config.vae_channels)
        latent_size = config.image_size // 2 ** (blocks - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = AutoencoderKLCogVideoX(
                block_out_channels=tuple(config.vae_channels), latent_channels=config.latent_channels,
                layers_per_block=1, norm_num_groups=config.vae_norm_groups, temporal_compression_ratio=4,
                down_block_types=("CogVideoXDownBlock3D",) * blocks, up_block_types=("CogVideoXUpBlock3D",) * blocks,
                sample_height=config.image_size, sample_width=config.image_size, scaling_factor=1.0)
            text_encoder = T5EncoderModel(T5Config(
                vocab_size=384, d_model=config.text_dim, d_kv=max(8, config.text_dim // config.text_heads),
                d_ff=2 * config.text_dim, num_layers=config.text_layers, num_heads=config.text_heads,
                feed_forward_proj="gated-gelu", dropout_rate=0.0))
            transformer = CogVideoXTransformer3DModel(
                num_attention_heads=config.heads, attention_head_dim=config.head_dim,
                in_channels=2 * config.latent_channels, out_channels=config.latent_channels,
                time_embed_dim=128, text_embed_dim=config.text_dim, num_layers=config.layers,
                sample_width=latent_size, sample_height=latent_size, sample_frames=config.num_frames,
                patch_size=config.patch_size, temporal_compression_ratio=4, max_text_seq_length=config.text_length,
                use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
                spatial_interpolation_scale=1.0, temporal_interpolation_scale=1.0)
        scheduler = CogVideoXDDIMScheduler(prediction_type=config.prediction_type, rescale_betas_zero_snr=True,
                                           timestep_spacing="trailing", snr_shift_scale=1.0)
        pipe = CogVideoXImageToVideoPipeline(tokenizer=ByT5Tokenizer(), text_encoder=text_encoder, vae=vae,
                                             transformer=transformer, scheduler=scheduler)
        return cls(pipe, config.num_frames, config.inference_steps, config.guidance)

    @classmethod
    def load(cls, path: str | os.PathLike, lora: str | os.PathLike | None = None, device: str | torch.device = "cpu",
             dtype: torch.dtype = torch.float32, fuse: bool = False) -> VideoModel:
        """Load a pipeline folder (hub layout) or hub id, and optionally a LoRA (a folder or file) on top of it;
        `fuse` adds the LoRA into the weights.

        A training folder of this project (with the pipeline in its `model/`) is accepted too. Raises InputError for a
        folder that is missing, incomplete or cut short, and for a hub id without network.
        """
        text, path = str(path), Path(path)
        if path.is_dir():
            if not (path / "model_index.json").exists() and (path / "model" / "model_index.json").exists():
                path = path / "model"
            if not (path / "model_index.json").exists():
                raise InputError(f"{path} holds no video model (no model_index.json); valid: a folder written by "
                                 "`VideoModel.save` or a diffusers pipeline")
            source = str(path)
        elif text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.parent.exists():
            source = text
        else:
            raise InputError(f"no such video model folder: {text}; valid: a local folder or a hub id such as "
                             "THUDM/CogVideoX-5b-I2V")
        try:
            pipe = load_pipeline(CogVideoXImageToVideoPipeline, source, dtype)
        except InputError:
            raise
        except Exception as problem:
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0][:160]
            if path.is_dir():
                raise InputError(f"the video model in {path} cannot be loaded (a file is missing or cut short): "
                                 f"{reason}") from None
            raise InputError(f"cannot get {text!r} from the hub ({type(problem).__name__}); without network, pass the "
                             "path of a local copy") from None
        settings: dict[str, Any] = {}
        if path.is_dir():
            if (path / "genreward.json").exists():
                settings = files.read_json(path / "genreward.json")
        model = cls(pipe.to(device), settings.get("num_frames"), settings.get("steps", 50),
                    settings.get("guidance", 6.0))
        if lora is not None:
            model.load_lora(lora, fuse)
        return model

    def load_lora(self, path: str | os.PathLike, fuse: bool = False) -> None:
        """Put a LoRA in diffusers' format (folder or file) on the transformer; `fuse` adds it into the weights."""
        file = Path(path)
        for candidate in (file, file / LORA_FILE, file / "lora" / LORA_FILE):
            if candidate.is_file():
                file = candidate
                break
        else:
            raise InputError(f"no LoRA at {path}; valid: a folder with {LORA_FILE}, or such a file")
        try:
            self.pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        except Exception as problem:
            raise InputError(f"the LoRA {file} cannot be loaded onto this model (cut short, or made for another "
                             f"size): {str(problem).splitlines()[0][:160]}") from None
        if fuse:
            self.pipe.fuse_lora(components=["transformer"])
            self.pipe.unload_lora_weights()
        self.transformer.requires_grad_(False)

    def save(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
        """Write the pipeline in the hub's layout, weights as safetensors in `dtype`; whole or not at all.

        A LoRA is kept in a file of its own; a model that carries one not fused is refused.
        """
        if getattr(self.transformer, "peft_config", None):
            raise InputError("this model carries a LoRA that is not part of its weights; valid: load it with "
                             "fuse=True, or keep the LoRA's own file")
        parts = {}
        with torch.random.fork_rng(devices=[]):
            for name in ("vae", "transformer", "text_encoder"):
                module = getattr(self.pipe, name)
                make = type(module) if name == "text_encoder" else type(module).from_config
                parts[name] = make(module.config)
                parts[name].load_state_dict(module.state_dict())
                parts[name].to("cpu", dtype)
        whole = CogVideoXImageToVideoPipeline(tokenizer=self.pipe.tokenizer, scheduler=self.pipe.scheduler, **parts)
        with files.atomic_dir(folder) as temporary:
            whole.save_pretrained(temporary, safe_serialization=True)
            (temporary / "genreward.json").write_text(json.dumps(
                {"num_frames": self.num_frames, "steps": self.steps, "guidance": self.guidance}) + "\n")

    @property
    def device(self) -> torch.device:
        """Where the VAE's weights are."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the VAE's weights."""
        return next(self.vae.parameters()).dtype

    @property
    def text_length(self) -> int:
        """Tokens of a prompt: what the transformer was built for, and what the pipeline must always be told."""
        return self.transformer.config.max_text_seq_length

    def parameters(self) -> int:
        """The number of weights of VAE, transformer and text encoder together."""
        return sum(p.numel() for m in (self.vae, self.transformer, self.text_encoder) for p in m.parameters())

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 autocast around float32 weights on a CPU; nothing elsewhere, where the weights' type decides."""
        enabled = self.device.type == "cpu" and self.dtype == torch.float32
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)

    # -------------------------------------------------------------------------------------------------- generation

    def generate(self, first_frame: np.ndarray, prompt: str, seed: int, num_frames: int | None = None,
                 steps: int | None = None, guidance: float | None = None) -> np.ndarray:
        """A video of `prompt` that starts at `first_frame`: (K, H, W, 3) uint8, the same for the same seed.

        first_frame  (H, W, 3) uint8 of the model's `frame_shape`; a square frame of its height is accepted by a wider
                     model: the borders are repeated to fill its width, and cut off again
        num_frames   8k+1 (default: what the model was trained for)
        steps        denoising steps; guidance: classifier-free, 1 means none
        Raises InputError for a frame of another size or type, another length, an empty prompt.
        """
        return self.generate_batch([first_frame], [prompt], [seed], num_frames, steps, guidance)[0]

    @torch.no_grad()
    def generate_batch(self, first_frames: Sequence[np.ndarray] | np.ndarray, prompts: Sequence[str],
                       seeds: Sequence[int], num_frames: int | None = None, steps: int | None = None,
                       guidance: float | None = None, batch: int = 16) -> np.ndarray:
        """`generate` for many at once: (N, K, H, W, 3) uint8. Every video has a noise source of its own, so it depends
        on its seed and not on its place in the batch."""
        if not len(first_frames) == len(prompts) == len(seeds):
            raise InputError(f"as many first frames, prompts and seeds are needed, got {len(first_frames)}, "
                             f"{len(prompts)} and {len(seeds)}")
        if not len(first_frames):
            raise InputError("no first frame was given; at least one is needed")
        frames = [np.asarray(frame) for frame in first_frames]
        for frame in frames:
            self._check_first_frame(frame)
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise InputError("a prompt must be a text that is not empty")
        num_frames = self.num_frames if num_frames is None else num_frames
        if not is_causal_length(num_frames) or num_frames == 1:
            raise InputError(f"cannot generate {num_frames} frames: the causal VAE restores 8k+1 frames; valid: 9, 17, "
                             "25, ...")
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        guidance = self.guidance if guidance is None else guidance
        videos = []
        for start in range(0, len(frames), batch):
            part = slice(start, start + batch)
            images = [Image.fromarray(self.pad(frame[None])[0]) for frame in frames[part]]
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[part]]
            with self.autocast():
                video = self.pipe(
                    image=images, prompt=list(prompts[part]), height=self.frame_shape[0], width=self.frame_shape[1],
                    num_frames=num_frames, num_inference_steps=steps, guidance_scale=guidance,
                    max_sequence_length=self.text_length, generator=generators, output_type="pt").frames
            video = (video.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
            width, wanted = video.shape[3], frames[0].shape[1]
            left = (width - wanted) // 2
            videos.append(video[:, :, :, left:left + wanted])
        return np.concatenate(videos)

    def pad(self, frames: np.ndarray) -> np.ndarray:
        """(K, H, W, 3) frames widened to the model's width by repeating the left and right columns."""
        missing = self.frame_shape[1] - frames.shape[2]
        if missing <= 0:
            return frames
        return np.pad(frames, ((0, 0), (0, 0), (missing // 2, missing - missing // 2), (0, 0)), mode="edge")

    def _check_first_frame(self, frame: np.ndarray) -> None:
        height, width = self.frame_shape
        if frame.ndim != 3:
            raise InputError(f"first_frame must be RGB of shape ({height}, {width}, 3), got shape {frame.shape}")
        size = (height, frame.shape[1] if frame.shape[1] == height <= width else width)
        check_frames(frame[None], size, "first_frame")

    # ------------------------------------------------------------------------------------------- encoding, decoding

    def encode(self, clip: np.ndarray) -> torch.Tensor:
        """The latents of a clip (Eq. 3-4): (K, H, W, 3) uint8 -> (C, T', H/f, W/f) float32 on the CPU.

        The posterior's mode, so the same clip always gives the same latents. A clip whose length is not 8k+1 is first
        spread evenly over `num_frames` frames, both ends included.
        """
        clip = check_frames(clip, name="clip")
        return self.encode_batch(clip[None])[0]

    @torch.no_grad()
    def encode_batch(self, clips: np.ndarray, batch: int = 16) -> torch.Tensor:
        """`encode` for many clips of one length: (N, K, H, W, 3) uint8 -> (N, C, T', H/f, W/f) float32 on the CPU."""
        clips = np.asarray(clips)
        if clips.ndim != 5 or not len(clips):
            raise InputError(f"clips must have shape (N, K, H, W, 3) with N >= 1, got {clips.shape}")
        factor = self.pipe.vae_scale_factor_spatial
        check_frames(clips[0], name="clips")
        if clips.dtype != np.uint8 or clips.shape[2] % factor or clips.shape[3] % factor:
            raise InputError(f"clips must be uint8 with height and width divisible by {factor}, got {clips.dtype} of "
                             f"{clips.shape[2]}x{clips.shape[3]}")
        if not is_causal_length(clips.shape[1]):
            clips = clips[:, uniform_indices(clips.shape[1], self.num_frames)]
        latents = []
        for start in range(0, len(clips), batch):
            pixels = to_pixels(clips[start:start + batch]).to(self.device, self.dtype)
            with self.autocast():
                latents.append(self.vae.encode(pixels).latent_dist.mode().float().cpu())
        return torch.cat(latents)

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """Latents of a clip that arrives in pieces: 9 frames first, then 8 at a time, each (., H, W, 3) uint8.

        Yields (C, 3, h, w), then (C, 2, h, w) a piece; together they equal `encode` of the whole. Only this chunking
        does: the group norms pool over a chunk, and others differ by one or two per cent.
        """
        cache = None
        for number, chunk in enumerate(chunks):
            wanted = 8 if number else 9
            if len(check_frames(chunk, name="chunk")) != wanted:
                raise InputError(f"chunk {number} must hold {wanted} frames (9 first, then 8 each), got {len(chunk)}")
            pixels = to_pixels(chunk[None]).to(self.device, self.dtype)
            with self.autocast():
                moments, cache = self.vae.encoder(pixels, conv_cache=cache)
            yield moments[0, :self.vae.config.latent_channels].float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Frames of latents as `encode` gives them: (C, T', h, w) -> (K, H, W, 3) uint8, or a batch of them."""
        if latents.ndim not in (4, 5) or latents.shape[-4] != self.vae.config.latent_channels:
            raise InputError(f"latents must have shape (C, T', h, w) or (N, C, T', h, w) with C = "
                             f"{self.vae.config.latent_channels}, got {tuple(latents.shape)}")
        batch = latents if latents.ndim == 5 else latents[None]
        with self.autocast():
            pixels = self.vae.decode(batch.to(self.device, self.dtype)).sample
        frames = to_frames(pixels)
        return frames if latents.ndim == 5 else frames[0]


def to_pixels(clips: np.ndarray) -> torch.Tensor:
    """(N, K, H, W, 3) uint8 -> (N, 3, K, H, W) float32 in [-1, 1]."""
    # A fixed memory layout: the convolutions choose their kernel, and so their rounding, by it.
    # (And torch takes no negative stride: a clip played backwards has one.)
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).contiguous().float() / 127.5 - 1


def to_frames(pixels: torch.Tensor) -> np.ndarray:
    """(N, 3, K, H, W) in [-1, 1] -> (N, K, H, W, 3) uint8."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 4, 1).cpu().numpy()


def _spatial_norm(norm: CogVideoXSpatialNorm3D, features: torch.Tensor, latents: torch.Tensor,
                  conv_cache: dict[str, torch.Tensor] | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The decoder's latent-conditioned group norm, with its two 1x1x1 convolutions before the enlargement.

    A pointwise convolution and nearest-neighbour enlargement commute, so this equals diffusers' own order at a
    fraction of the work: the scale and shift of a latent are broadcast over the pixels that it stands for.
    """
    scale, shift = norm.conv_y.conv(latents), norm.conv_b.conv(latents)
    features = norm.norm_layer(features)
    if features.shape[2] > 1 and features.shape[2] % 2:  # the first frame has a latent of its own
        parts = [_modulate(features[:, :, cut], scale[:, :, cut], shift[:, :, cut])
                 for cut in (slice(0, 1), slice(1, None))]
        return torch.cat(parts, 2), {}
    return _modulate(features, scale, shift), {}


def _modulate(features: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """features (N, C, T, H, W) x scale + shift, both (N, C, T/a, H/b, W/c), each value over its a x b x c places."""
    if any(large % small for large, small in zip(features.shape[2:], scale.shape[2:], strict=True)):
        size = features.shape[2:]
        return features * torch.nn.functional.interpolate(scale, size) + torch.nn.functional.interpolate(shift, size)
    blocks = features.shape[:2] + tuple(
        part for large, small in zip(features.shape[2:], scale.shape[2:], strict=True)
        for part in (small, large // small))
    spread = scale.shape[:2] + tuple(part for small in scale.shape[2:] for part in (small, 1))
    return (features.reshape(blocks) * scale.reshape(spread) + shift.reshape(spread)).reshape(features.shape)


def _check_config(config: VideoConfig) -> None:
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                errors.at_least(part.name, number, 1)
    for name in ("vae_learning_rate", "learning_rate", "lora_learning_rate"):
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"{name} must be a finite number above 0, got {getattr(config, name)}")
    for name, most in (("ema_decay", 1.0), ("text_dropout", 1.0), ("guidance", float("inf"))):
        if not 0 <= getattr(config, name) <= most:
            raise InputError(f"{name} must lie in 0..{most:g}, got {getattr(config, name)}")
    if not is_causal_length(config.num_frames) or config.num_frames == 1:
        raise InputError(f"num_frames must be 8k+1 (9, 17, ...), got {config.num_frames}")
    if len(config.vae_channels) != 3:
        raise InputError(f"vae_channels must name three widths (/4 in space, x4 in time), got {config.vae_channels}")
    if any(width % config.vae_norm_groups for width in config.vae_channels):
        raise InputError(f"vae_norm_groups must divide every width of {config.vae_channels}, got "
                         f"{config.vae_norm_groups}")
    if config.head_dim % 16:
        raise InputError("head_dim must be a multiple of 16 (rotary embeddings over three axes), got "
                         f"{config.head_dim}")
    if config.image_size % (4 * config.patch_size):
        raise InputError(f"image_size must be a multiple of {4 * config.patch_size}, got {config.image_size}")
    if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise errors.unknown("prediction_type", config.prediction_type, ("epsilon", "v_prediction", "sample"))


def load_pipeline(kind: Any, source: str, dtype: torch.dtype, **options: Any) -> Any:
    """`kind.from_pretrained` (of a diffusers pipeline, from a folder or hub id) that refuses a model of its own
    libraries whose weights are not all there: an InputError instead of random numbers. Its parts are loaded one by one,
    since only they say what they lack; those that `options` give (None: without it) are left alone."""
    parts = {}
    for name, told in kind.load_config(source).items():
        library, model = told if isinstance(told, (list, tuple)) and len(told) == 2 else (None, None)
        if library not in ("diffusers", "transformers") or model is None or name in options:
            continue
        of = getattr(importlib.import_module(library), model)
        if issubclass(of, torch.nn.Module):
            parts[name], info = of.from_pretrained(source, subfolder=name, dtype=dtype, output_loading_info=True)
            files.refuse_missing(f"the {name} in {source}", info["missing_keys"])
    return kind.from_pretrained(source, dtype=dtype, **parts, **options)


# ------------------------------------------------------------------------------------------------------ command line


def configured(profile: str, settings: Sequence[str] = ()) -> VideoConfig:
    """The profile's VideoConfig with `name=value` settings put in; an unknown name or bad value is an InputError."""
    config = get_profile(profile).video
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changes = {}
    for setting in settings:
        name, found, value = setting.partition("=")
        if not found or name not in known:
            raise errors.unknown("video setting", setting, (f"{name}=..." for name in known))
        try:
            if isinstance(known[name], tuple):
                changes[name] = tuple(int(part) for part in value.split(","))
            else:
                changes[name] = type(known[name])(value) if known[name] is not None else value
        except ValueError:
            raise InputError(f"{name} must be like {known[name]!r}, got {value!r}") from None
    changed = dataclasses.replace(config, **changes)
    _check_config(changed)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.video_model vae|pretrain|finetune|sample --data FOLDER --out FOLDER ...`"""
    from . import video_training

    parser = argparse.ArgumentParser(prog="python -m genreward.video_model", description=(
        "Train the video model, or look at what it generates. The same command continues after a kill; under "
        "`accelerate launch -m genreward.video_model ...` it runs on several GPUs."))
    parser.add_argument("stage", choices=("vae", "pretrain", "finetune", "sample"))
    parser.add_argument("--data", required=True, help="folder of videos with metadata.jsonl")
    parser.add_argument("--out", required=True, help="training folder: model/, lora/, loss_*.csv, provenance_*.json")
    parser.add_argument("--model", help="finetune, sample: the model's folder or hub id (default: the one in --out)")
    parser.add_argument("--lora", help="sample: a LoRA to put on the model")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--steps", type=int, help="train so many steps (default: the profile's)")
    parser.add_argument("--minutes", type=float, help="instead of steps: train so long, summed over all resumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks-exclude", nargs="*", default=(), help="leave the clips of these tasks out")
    parser.add_argument("--tasks", nargs="*", help="only the clips of these tasks (default: all)")
    parser.add_argument("--in-domain", action="store_true", help="allow clips of the evaluated tasks (for studies)")
    parser.add_argument("--count", type=int, default=8, help="sample: how many test clips")
    parser.add_argument("--set", nargs="*", default=(), metavar="NAME=VALUE", help="change the profile's VideoConfig")
    options = parser.parse_args(arguments)
    config = configured(options.profile, options.set)
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        raise InputError(f"--minutes must be a finite number above 0, got {options.minutes}")
    for name, least in (("steps", 1), ("seed", 0), ("count", 1)):
        if (value := getattr(options, name)) is not None:
            errors.at_least(f"--{name}", value, least)
    if options.stage == "sample":
        video_training.sample(options.model or options.out, options.data, options.out, count=options.count,
                              seed=options.seed, lora=options.lora)
        return 0
    common = dict(steps=options.steps, minutes=options.minutes, seed=options.seed, exclude=tuple(options.tasks_exclude),
                  tasks=options.tasks, in_domain=options.in_domain,
                  command="python -m genreward.video_model " + " ".join(arguments or sys.argv[1:]))
    if options.stage == "vae":
        video_training.train_vae(options.data, options.out, config, **common)
    elif options.stage == "pretrain":
        video_training.pretrain_transformer(options.data, options.out, config, **common)
    else:
        video_training.finetune_lora(options.data, options.out, config,
                                     model=options.model or config.pretrained or options.out, **common)
    return 0


if __name__ == "__main__":
    errors.cli(main)
