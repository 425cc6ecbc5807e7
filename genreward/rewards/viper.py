"""VIPER: how likely the frame just reached is, to a model that has watched experts only.

A tokenizer (`tokens`) turns frames into grids of tokens; an autoregressive transformer learns to predict an expert's
frame, token by token, from the frames before it. The reward of step t is log p(o_t | o_{t-1}, ...): an agent is paid
for being where an expert's video would have gone. It needs demonstrations (`demos`), and stands beside the other
rewards, behind `forward_backward` and before the agents.

    python -m genreward.rewards.viper train --profile laptop
    python -m genreward.rewards.viper statistics --profile laptop --tasks push reach
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import errors, profiles
from . import tokens
from .base import RewardProperties, register
from .tokens import ContextEmbedding, TokenModel, TokenReward, Windows


@dataclass(frozen=True)
class ViperConfig:
    """The transformer over tokens. `window` counts the frame that is scored; `spacing` is in environment steps;
    `in_domain_share` of every batch are clips of the evaluated tasks, the rest the pretraining tasks'."""

    window: int = 4
    spacing: int = tokens.SPACING
    width: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 2400
    batch: int = 16
    learning_rate: float = 1.5e-3
    in_domain_share: float = 0.5
    clips_per_task: int = 4


CONFIGS = {
    "smoke": ViperConfig(window=3, width=16, layers=1, heads=2, steps=12, batch=4),
    "laptop": ViperConfig(),
    "gpu": ViperConfig(window=16, width=256, layers=8, heads=4, steps=100_000, batch=64, learning_rate=3e-4,
                       clips_per_task=100),
    "paper": ViperConfig(window=16, width=256, layers=8, heads=4, steps=500_000, batch=64, learning_rate=3e-4,
                         clips_per_task=100),
}


class _Network(nn.Module):
    """GPT-2 over the past (one position a cell) followed by the frame (one position a token)."""

    def __init__(self, cells: int, codes: int, config: ViperConfig) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        self.codes, self.cells = codes, cells
        self.context = ContextEmbedding(codes, config.window, config.width)
        self.token = nn.Embedding(codes + 1, config.width)  # the last: nothing yet
        self.here = nn.Linear(config.width, config.width)
        self.gpt = GPT2Model(GPT2Config(
            vocab_size=1, n_positions=2 * cells, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
            eos_token_id=0))
        self.gpt.wte.requires_grad_(False)  # inputs come as vectors
        self.head = nn.Linear(config.width, codes)

    def forward(self, past: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """past (B, window - 1, n) with `codes` where there is no frame, frame (B, n) -> logits (B, n, codes), those of
        token i made from the past and the tokens before i."""
        seen = self.context(past)
        before = torch.cat([torch.full_like(frame[:, :1], self.codes), frame[:, :-1]], 1)
        inputs = torch.cat([seen, self.token(before) + self.here(seen)], 1)
        hidden = self.gpt(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return self.head(hidden[:, self.cells:])


class ViperModel(TokenModel):
    """p(o_t | o_{t-s}, o_{t-2s}, ...) over the tokens of frames, s the spacing."""

    kind, config_type, configs = "viper", ViperConfig, CONFIGS

    def make_network(self) -> nn.Module:
        """The untrained network."""
        return _Network(self.tokenizer.tokens, self.tokenizer.config.codes, self.config)

    @torch.inference_mode()
    def log_likelihood(self, past: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """past (N, window - 1, n), frame (N, n) int64 -> (N,) float64 nats, at most 0. One frame at a time, so that a
        value does not depend on what else was asked for."""
        found = np.empty(len(frame))
        for i, (before, now) in enumerate(zip(torch.from_numpy(past), torch.from_numpy(frame), strict=True)):
            before, now = before[None].to(self.device), now[None].to(self.device)
            chances = self.network(before, now).log_softmax(-1)
            found[i] = float(chances.gather(-1, now[..., None]).double().sum())
        return found

    def loss(self, past: torch.Tensor, frame: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Bits that an ideal code built on the model needs for a frame, the mean over the batch."""
        logits = self.network(past, frame).float()
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), frame.flatten()) * frame.shape[1]
        return nats / math.log(2)

    def clip_values(self, windows: Windows, clip: int) -> np.ndarray:
        """(K-1,) log-likelihood of each frame of a clip but its first, in nats."""
        return self.log_likelihood(*windows.all_of(clip))


@register("viper")
class Viper(TokenReward):
    """(log p(o_t | frames before) - mean) / std, with the task's own mean and std; see `TokenReward` for the settings.

    viper_model  a `ViperModel`
    The first frames of an episode, which have no full window before them, are scored with what there is.
    """

    properties = RewardProperties(
        demo_free=False, generated=False, action_aware=False,
        citation="Escontrela et al., Video Prediction Models as Rewards for Reinforcement Learning, NeurIPS 2023",
        deviations=(
            "The log-likelihood is that of the frame just reached given those before it, as the publication says; its "
            "code pays that of another frame.",
            "The window holds 4 frames, 4 environment steps apart, instead of 16 (laptop).",
            "The frames of the window enter as one summed embedding a grid cell instead of all their tokens in a row, "
            "which a CPU can afford.",
            "The tokenizer is a VQ autoencoder without the adversarial and perceptual losses of a VQ-GAN.",
            "The log-likelihood is standardised by each task's mean and spread on its expert training clips.",
            "One model for all tasks, trained on few clips of the evaluated tasks and those of the pretraining tasks; "
            "it is not told the task.",
            "The exploration bonus (random network distillation) is off by default."))
    term, module = "viper", "viper"

    def __init__(self, viper_model: Any, stride: int = tokens.SPACING, interval: int = 1, standardise: bool = True,
                 task: str | None = None, novelty: float = 0.0, seed: int = 0) -> None:
        super().__init__(viper_model, stride, interval, standardise, task, novelty, seed)

    def _context(self, t: int) -> list[int]:
        return [t, *tokens.past_steps(t, self.model.config.window, self.stride)]

    def _raw(self, items: list[tuple[int, np.ndarray]]) -> np.ndarray:
        return self.model.log_likelihood(np.stack([frames[1:] for _, frames in items]),
                                         np.stack([frames[0] for _, frames in items]))


def train(profile: str | profiles.Profile, out_folder: str | Path, demos_folder: str | Path | None,
          in_domain_folder: str | Path | None, progress: bool = True, *, config: ViperConfig | None = None,
          seed: int = 0) -> ViperModel:
    """Train the profile's VIPER, and its tokenizer where there is none yet; see `TokenModel.train`."""
    return ViperModel.train(profile, out_folder, demos_folder, in_domain_folder, progress, config, seed)


def load(folder: str | Path, **parts: Any) -> Viper:
    """The reward model from a folder of `train`; `parts` may hold a `tokenizer` and settings of `Viper`."""
    return Viper(ViperModel.load(folder, parts.pop("tokenizer", None)), **parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train VIPER for a profile, or measure its statistics of further tasks."""
    tokens.command("viper", main.__doc__ or "", train, ViperModel.add_statistics, arguments)


if __name__ == "__main__":
    errors.cli(main)
