"""Diffusion Reward: how sure a diffusion model of expert video is of what comes next.

A discrete diffusion model learns the tokens (`tokens`) of an expert's next frame given the frames so far. Where an
episode looks like an expert's, few futures are likely and the model's own samples agree; elsewhere they scatter. The
reward of step t is the negative conditional entropy, estimated by the variational bound of a sample x of the model,
log p(x | o_t, o_{t-1}, ...), standardised by task. It needs demonstrations (`demos`), and stands beside the other
rewards, behind `forward_backward` and before the agents.

    python -m genreward.rewards.diffusion_reward train --profile laptop
    python -m genreward.rewards.diffusion_reward statistics --profile laptop --tasks push reach

**The diffusion** is VQ-Diffusion's, by diffusers' `VQDiffusionScheduler`: at level t a token is masked with probability
c_t, which rises linearly to 1, and all but never replaced by another (1e-6 in all). Without that remainder the
variational bound is simple: a masked token becomes unmasked between t and t-1 with probability (c_t - c_{t-1}) / c_t,
so that

    log p(x | past)  >=  E sum_t sum_{i unmasked between t and t-1} log p_theta(x_i | x_t, past).

Drawing one uniform number u_i a token, and masking it at every level with c_t > u_i, meets each token exactly once, at
the level with c_{t-1} <= u_i < c_t: an unbiased estimate with T - 1 evaluations in one batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import errors, profiles
from ..errors import InputError
from . import tokens
from .base import RewardProperties, register
from .tokens import ContextEmbedding, Tokenizer, TokenModel, TokenReward, Windows


@dataclass(frozen=True)
class DiffusionRewardConfig:
    """The denoiser and its levels. `window` counts the frame that is predicted; `spacing` is in environment steps;
    `levels` (T) are noise levels 0..T-1, the last of them all masks; `chunk` windows are sampled at once."""

    window: int = 4
    spacing: int = tokens.SPACING
    levels: int = 6
    width: int = 64
    layers: int = 3
    heads: int = 4
    chunk: int = 16
    steps: int = 2500
    batch: int = 32
    learning_rate: float = 2e-3
    in_domain_share: float = 0.5
    clips_per_task: int = 4


CONFIGS = {
    "smoke": DiffusionRewardConfig(window=3, levels=3, width=16, layers=1, heads=2, steps=12, batch=4),
    "laptop": DiffusionRewardConfig(),
    "gpu": DiffusionRewardConfig(window=9, levels=32, width=256, layers=8, chunk=64, steps=100_000, batch=64,
                                 learning_rate=3e-4, clips_per_task=100),
    "paper": DiffusionRewardConfig(window=3, levels=100, width=512, layers=16, heads=8, chunk=64, steps=500_000,
                                   batch=64, learning_rate=1e-4, clips_per_task=100),
}


class _Denoiser(nn.Module):
    """A BERT encoder over the cells of the next frame: token or mask, what was seen at the cell, the noise level."""

    def __init__(self, cells: int, codes: int, config: DiffusionRewardConfig) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.codes = codes
        self.context = ContextEmbedding(codes, config.window, config.width)
        self.token = nn.Embedding(codes + 1, config.width)  # the last: masked
        self.level = nn.Embedding(config.levels, config.width)
        self.bert = BertModel(BertConfig(
            vocab_size=1, pad_token_id=0, hidden_size=config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=4 * config.width, max_position_embeddings=cells,
            type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), add_pooling_layer=False)
        self.bert.embeddings.word_embeddings.requires_grad_(False)  # inputs come as vectors
        self.head = nn.Linear(config.width, codes)

    def forward(self, past: torch.Tensor, noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """past (B, window - 1, n), noisy (B, n) with `codes` where masked, level (B,) -> log p(x_0 | noisy, past)
        (B, n, codes). A token that is not masked is what it is."""
        inputs = self.context(past) + self.token(noisy) + self.level(level)[:, None]
        chances = self.head(self.bert(inputs_embeds=inputs).last_hidden_state).float().log_softmax(-1)
        sure = torch.log(nn.functional.one_hot(noisy.clamp(max=self.codes - 1), self.codes).float().clamp(min=1e-30))
        return torch.where((noisy == self.codes)[..., None], chances, sure)


class DiffusionRewardModel(TokenModel):
    """p(next frame | frames so far) over tokens by discrete diffusion."""

    kind, config_type, configs = "diffusion_reward", DiffusionRewardConfig, CONFIGS

    def __init__(self, tokenizer: Tokenizer, config: DiffusionRewardConfig, seed: int = 0,
                 statistics: dict[str, dict[str, float]] | None = None) -> None:
        from diffusers import VQDiffusionScheduler

        if config.levels < 2 or config.chunk < 1:
            raise InputError(f"diffusion_reward needs at least 2 levels and a chunk of at least 1, got {config.levels} "
                             f"and {config.chunk}")
        super().__init__(tokenizer, config, seed, statistics)
        codes = tokenizer.config.codes
        self.scheduler = VQDiffusionScheduler(num_vec_classes=codes + 1, num_train_timesteps=config.levels)
        self.masked = self.scheduler.log_cumprod_ct[:config.levels].double().exp()  # c_t
        self.masked[0], self.masked[-1] = 0.0, 1.0  # exactly; the scheduler leaves 1e-5 at either end
        self.freed = (self.masked[1:] - self.masked[:-1]) / self.masked[1:]  # of levels 1..T-1

    def make_network(self) -> nn.Module:
        """The untrained network."""
        return _Denoiser(self.tokenizer.tokens, self.tokenizer.config.codes, self.config)

    @property
    def mask(self) -> int:
        """The token that stands for a masked one."""
        return self.tokenizer.config.codes

    def draws(self) -> tuple[int, int]:
        """Shape of the uniform numbers that one estimate takes: one row a level to sample with, one for the masks."""
        return self.config.levels + 1, self.tokenizer.tokens

    @torch.inference_mode()
    def sample(self, past: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Draw next frames from the model: past (B, window - 1, n), uniforms (B, T, n) in [0, 1) -> (B, n) tokens.

        Ancestral sampling from all masks; a token is drawn by inverting the cumulative distribution at its uniform
        number, so that every frame has noise of its own whatever it is batched with.
        """
        x = torch.full_like(past[:, 0], self.mask)
        for level in range(self.config.levels - 1, 0, -1):
            chances = self._denoise(past, x, level).transpose(1, 2)
            posterior = self.scheduler.q_posterior(chances, x, level)
            x = self._draw(posterior, uniforms[:, level])
        if bool((x == self.mask).any()):  # one in a hundred thousand is still masked at level 0
            x = self._draw(self._denoise(past, x, 0).transpose(1, 2), uniforms[:, 0])
        return x

    @torch.inference_mode()
    def bound(self, past: torch.Tensor, frame: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """One-draw estimate of the bound above: frame (B, n), uniforms (B, n) -> (B,) float64 nats, at most 0."""
        count, levels = len(frame), self.config.levels
        level = torch.arange(1, levels)
        noisy = torch.where(uniforms[:, None].double() < self.masked[level, None], self.mask, frame[:, None])
        chances = self._denoise(past.repeat_interleave(levels - 1, 0), noisy.flatten(0, 1), level.repeat(count))
        chances = chances.reshape(count, levels - 1, -1, self.mask)
        found = chances.gather(-1, frame[:, None, :, None].expand(-1, levels - 1, -1, 1))[..., 0].double()
        return (found * self.turns(uniforms)).sum((1, 2))

    def turns(self, uniforms: torch.Tensor) -> torch.Tensor:
        """(B, n) -> (B, T - 1, n) bool: at which one of the levels 1..T-1 each token is met."""
        edges = self.masked[1:-1].contiguous()
        at = torch.bucketize(uniforms.double(), edges, right=True)
        return nn.functional.one_hot(at, self.config.levels - 1).transpose(1, 2).bool()

    def confidence(self, past: np.ndarray, seeds: Sequence[Sequence[int]], samples: int = 1) -> np.ndarray:
        """(N,) float64 nats: the bound of own samples, which estimates the negative conditional entropy of the next
        frame given past (N, window - 1, n); `seeds[i]` seeds the generator of row i's noise."""
        found = np.empty(len(past))
        for begin in range(0, len(past), self.config.chunk):
            rows = range(begin, min(begin + self.config.chunk, len(past)))
            noise = np.stack([np.random.default_rng(seeds[row]).random((samples, *self.draws()), np.float32)
                              for row in rows])
            given = torch.from_numpy(past[rows.start:rows.stop])
            values = []
            for draw in range(samples):
                uniforms = torch.from_numpy(noise[:, draw])
                values.append(self.bound(given, self.sample(given, uniforms[:, :-1]), uniforms[:, -1]))
            found[rows.start:rows.stop] = torch.stack(values).mean(0).numpy()
        return found

    def loss(self, past: torch.Tensor, frame: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """The bound in bits a frame, the mean over the batch: one level is drawn a window, and the tokens masked there
        count by their chance of being unmasked at it, an unbiased estimate of the bound's gradient."""
        level = torch.from_numpy(rng.integers(1, self.config.levels, len(frame)))
        hidden = torch.from_numpy(rng.random(tuple(frame.shape))) < self.masked[level][:, None]
        weight = (hidden * self.freed[level - 1][:, None]).float().to(frame.device) * (self.config.levels - 1)
        noisy = torch.where(hidden.to(frame.device), self.mask, frame)
        found = self.network(past, noisy, level.to(frame.device)).gather(-1, frame[..., None])[..., 0]
        return -(found * weight).sum(1).mean() / math.log(2)

    def clip_values(self, windows: Windows, clip: int, seed: int = 0) -> np.ndarray:
        """(K-1,) what `DiffusionReward` makes of each frame of a clip but its first, with noise seeded alike."""
        seen = windows.seen(clip)
        return self.confidence(seen, [noise_seed(seed, t + 1, past) for t, past in enumerate(seen)])

    def real_frames(self, windows: Windows, clip: int, seed: int = 0) -> np.ndarray:
        """(K-1,) nats: one-draw estimates of the bound of the real frames of a clip but its first."""
        past, frame = (torch.from_numpy(part) for part in windows.all_of(clip))
        noise = np.random.default_rng([seed, clip]).random(tuple(frame.shape), np.float32)
        return self.bound(past, frame, torch.from_numpy(noise)).numpy()

    def _denoise(self, past: torch.Tensor, noisy: torch.Tensor, level: int | torch.Tensor) -> torch.Tensor:
        device = self.device
        levels = torch.as_tensor(level).expand(len(noisy))
        return self.network(past.to(device), noisy.to(device), levels.to(device)).cpu()

    @staticmethod
    def _draw(log_chances: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """(B, K, n) log-probabilities, (B, n) uniform numbers -> (B, n) classes."""
        below = log_chances.double().exp().cumsum(1)
        chosen = (below <= uniforms[:, None].double() * below[:, -1:]).sum(1)
        return chosen.clamp(max=log_chances.shape[1] - 1)


@register("diffusion_reward")
class DiffusionReward(TokenReward):
    """(bound of own samples of the next frame - mean) / std, the task's own; see `TokenReward` for the settings.

    diffusion_model  a `DiffusionRewardModel`
    samples          futures drawn a step, averaged
    Noise comes from a generator seeded by (seed, t, the seen tokens), so the same episode is always paid the same. The
    environment's sparse success is `GoalRewardEnv`'s `env_reward`.
    """

    properties = RewardProperties(
        demo_free=False, generated=True, action_aware=False,
        citation="Huang et al., Diffusion Reward: Learning Rewards via Conditional Video Diffusion, ECCV 2024",
        deviations=(
            "6 noise levels instead of 100 and a BERT encoder of 3 layers (laptop), and one sample a step.",
            "The frames so far (3, 4 environment steps apart) enter as one summed embedding a grid cell.",
            "The bound leaves out the 1e-6 of tokens that the scheduler replaces by others instead of masking.",
            "The tokenizer is a VQ autoencoder without the adversarial and perceptual losses of a VQ-GAN.",
            "One model for all tasks, trained on few clips of the evaluated tasks and those of the pretraining tasks.",
            "The novelty bonus (random network distillation) is added with its own weight rather than blended, and off "
            "by default."))
    term, module = "entropy", "diffusion_reward"

    def __init__(self, diffusion_model: Any, stride: int = tokens.SPACING, interval: int = 1, samples: int = 1,
                 standardise: bool = True, task: str | None = None, novelty: float = 0.0, seed: int = 0) -> None:
        super().__init__(diffusion_model, stride, interval, standardise, task, novelty, seed)
        if samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        self.samples = samples

    def _context(self, t: int) -> list[int]:
        before = [t - k * self.stride for k in range(1, self.model.config.window - 1)]
        return [t, *(step if step >= 0 else -1 for step in before)]

    def _raw(self, items: list[tuple[int, np.ndarray]]) -> np.ndarray:
        seeds = [noise_seed(self.seed, t, past) for t, past in items]
        return self.model.confidence(np.stack([past for _, past in items]), seeds, self.samples)


def noise_seed(seed: int, t: int, past: np.ndarray) -> tuple[int, int, int]:
    """What seeds the noise of step t: the model's seed, the step, and the tokens that were seen."""
    return seed, t, zlib.crc32(np.ascontiguousarray(past, np.int64).tobytes())


def train(profile: str | profiles.Profile, out_folder: str | Path, demos_folder: str | Path | None,
          in_domain_folder: str | Path | None, progress: bool = True, *, config: DiffusionRewardConfig | None = None,
          seed: int = 0) -> DiffusionRewardModel:
    """Train the profile's model, and its tokenizer where there is none yet; see `TokenModel.train`."""
    return DiffusionRewardModel.train(profile, out_folder, demos_folder, in_domain_folder, progress, config, seed)


def load(folder: str | Path, **parts: Any) -> DiffusionReward:
    """The reward model from a folder of `train`; `parts` may hold a `tokenizer` and settings of `DiffusionReward`."""
    return DiffusionReward(DiffusionRewardModel.load(folder, parts.pop("tokenizer", None)), **parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train Diffusion Reward for a profile, or measure its statistics of further tasks."""
    tokens.command("diffusion_reward", main.__doc__ or "", train, DiffusionRewardModel.add_statistics, arguments)


if __name__ == "__main__":
    errors.cli(main)
