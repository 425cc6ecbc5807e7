"""Profiles: every number that differs between a test on a laptop and the paper's GPUs, and nothing else.

All profiles run the same code. `smoke` proves that it runs (minutes, nothing committed), `laptop` is what two CPU cores
can really learn (its results are committed), `gpu` is one GPU, `paper` is what the publication used. A profile is a
frozen dataclass of frozen dataclasses; change one with `dataclasses.replace`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import errors


@dataclass(frozen=True)
class DataConfig:
    """Demonstration videos: how many episodes a task of each kind are rendered, and how many frames each keeps."""

    episodes: int = 24  # expert episodes a pretraining task
    test_episodes: int = 20  # expert episodes of an evaluated task, for the comparison with generated videos only
    in_domain: int = 8  # training episodes of an evaluated task, for the frame scorer only
    failures: int = 4  # failed, half-finished and random episodes a task, each
    frames: int = 33  # frames kept of an episode, spread evenly over it
    tasks: int | None = None  # only the first so many pretraining tasks (None: all)


@dataclass(frozen=True)
class VideoConfig:
    """The video model. Widths are those of diffusers' classes; `pretrained` names a hub id or folder instead."""

    pretrained: str | None = None
    lora: str | None = None
    image_size: int = 64
    num_frames: int = 9  # 8k+1, what the causal VAE compresses without padding: 9 frames -> 3 latents
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_norm_groups: int = 8
    latent_channels: int = 16
    heads: int = 6
    head_dim: int = 32
    layers: int = 6
    patch_size: int = 2
    text_dim: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 48
    prediction_type: str = "v_prediction"
    vae_steps: int = 6200
    vae_batch: int = 2
    vae_learning_rate: float = 2e-3
    pretrain_steps: int = 8000
    batch: int = 16
    learning_rate: float = 8e-4
    lora_rank: int = 16
    lora_steps: int = 800
    lora_learning_rate: float = 5e-4
    gradient_accumulation: int = 1
    mixed_precision: str = "bf16"
    ema_decay: float = 0.999
    text_dropout: float = 0.1
    inference_steps: int = 20
    guidance: float = 1.5


@dataclass(frozen=True)
class ClipConfig:
    """The frame scorer (OpenCLIP). `pretrained` is a pair (model name, weights tag) of the hub, or None: small."""

    pretrained: tuple[str, str] | None = None
    image_size: int = 64
    embed_dim: int = 128
    vision_layers: tuple[int, ...] = (1, 1, 1, 1)
    vision_width: int = 16
    text_width: int = 32
    text_heads: int = 2
    text_layers: int = 2
    context_length: int = 32
    updates: int = 2000
    learning_rate: float = 1e-3
    per_caption: int = 2


@dataclass(frozen=True)
class FBConfig:
    """Forward-backward representation (Eq. 7-9). gamma < 1; `fb_targets` as printed ("goal") or sound ("buffer");
    `twin`: the two forward heads taken together by their "mean", or the smaller of them as printed ("min"); `scaling`:
    psi's features "together" by one factor, or "each" by its own spread (for states)."""

    dim: int = 32
    hidden: int = 256
    learning_rate: float = 3e-4
    batch: int = 256
    gamma: float = 0.98
    tau: float = 0.02  # the mean of M follows at the rate tau (1 - gamma): 86% of it after 5,000 updates
    orthonormality: float = 1.0
    fb_targets: str = "buffer"
    twin: str = "mean"
    scaling: str = "together"
    action_aware: bool = True
    next_action: str = "policy"
    goal_fraction: float = 0.5
    policy_noise: float = 0.2
    updates: int = 5000
    exploration_steps: int = 10_000
    encoder: str = "vae"
    components: int = 64


@dataclass(frozen=True)
class SACConfig:
    """Stable-Baselines3's SAC, from state."""

    hidden: tuple[int, ...] = (256, 256)
    learning_starts: int = 1500
    train_freq: int = 2
    gradient_steps: int = 1
    buffer_size: int = 100_000
    batch: int = 256
    learning_rate: float = 3e-4
    gamma: float = 0.99


@dataclass(frozen=True)
class DreamerConfig:
    """DreamerV3. `train_ratio` counts replayed steps a collected step; sizes as in the reference implementation."""

    observation: str = "state"  # or "pixels"
    deter: int = 512
    hidden: int = 64
    units: int = 64
    categoricals: int = 32
    classes: int = 4
    depth: int = 4
    layers: int = 3
    blocks: int = 8
    batch: int = 16
    length: int = 32
    imagine_last: int | None = 8  # imagine from the last so many steps of each sequence (None: from all)
    horizon: int = 15
    discount: float = 0.997
    lambda_: float = 0.95
    model_lr: float = 3e-4
    actor_lr: float = 3e-4
    value_lr: float = 3e-4
    entropy: float = 3e-4
    warmup: int = 200
    train_ratio: float = 128.0
    prefill: int = 1000
    replay_size: int = 100_000


@dataclass(frozen=True)
class RewardConfig:
    """Weights and interval of Eq. 10, as in the paper's pick-place script."""

    alpha: float = 0.01
    beta: float = 1e-5
    interval: int = 128
    sparse_interval: int = 128
    sound_alpha: float = 1.0
    sound_beta: float = 1.0


@dataclass(frozen=True)
class RunConfig:
    """One agent: how long it learns, how often it is evaluated and saved, and how many seeds a curve has. Steps and
    `evaluate_every` are whole numbers of episodes (256 steps), hence 1,024,000 where the paper has 1M."""

    sac_steps: int = 20_480
    dreamer_steps: int = 10_240
    tasks: tuple[str, ...] = ("pick-place",)
    # F and B are trained, psi is fitted and their calibration is measured on these, and on `tasks`
    fb_tasks: tuple[str, ...] = ("pick-place", "reach", "drawer-close")
    # the grid's other tasks: F and B are trained for them too
    grid_tasks: tuple[str, ...] = ("push", "door-open", "button-press", "pick-out-of-hole", "bin-picking",
                                   "shelf-place", "disassemble", "walker-walk", "door")
    methods: tuple[str, ...] = ("dense", "sparse", "genreward", "genreward_sound")
    agents: tuple[str, ...] = ("sac", "dreamer")
    evaluate_every: int = 5120
    evaluation_episodes: int = 10
    seeds: int = 3
    fb_train_until: int = 5120  # environment steps until F and B are frozen, when they learn from the agent's replay
    prefill: int = 1280


@dataclass(frozen=True)
class Profile:
    """A name and the numbers behind it."""

    name: str
    image_size: int = 64
    episode_steps: int = 256
    device: str = "cpu"
    data: DataConfig = field(default_factory=DataConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    fb: FBConfig = field(default_factory=FBConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    dreamer: DreamerConfig = field(default_factory=DreamerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    run: RunConfig = field(default_factory=RunConfig)


_LAPTOP = Profile(
    "laptop",
    # DreamerV3 as small and fast as it learns cartpole in the check of the agents; a longer view for longer tasks.
    dreamer=DreamerConfig(deter=128, layers=2, blocks=4, length=16, discount=0.99, model_lr=1e-3, actor_lr=5e-4,
                          value_lr=1e-3, warmup=100, train_ratio=64.0),
)

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "smoke",
        data=DataConfig(episodes=2, test_episodes=2, in_domain=1, failures=1, frames=17, tasks=3),
        video=VideoConfig(vae_channels=(8, 8, 8), vae_norm_groups=4, latent_channels=4, heads=2, layers=2,
                          text_layers=1, text_heads=2, text_dim=32, vae_steps=12, pretrain_steps=12, batch=2,
                          lora_rank=4, lora_steps=6, inference_steps=3, ema_decay=0.9),
        clip=ClipConfig(vision_width=8, embed_dim=32, text_width=32, text_layers=1, updates=12),
        fb=FBConfig(dim=8, hidden=32, batch=32, updates=60, exploration_steps=256, components=16),
        sac=SACConfig(hidden=(32, 32), learning_starts=128, buffer_size=2000, batch=32),
        dreamer=DreamerConfig(deter=64, hidden=32, units=32, categoricals=4, classes=4, layers=1, blocks=4, batch=4,
                              length=8, imagine_last=4, horizon=5, train_ratio=1.0, prefill=128, warmup=5),
        run=RunConfig(fb_tasks=("pick-place",), grid_tasks=(), sac_steps=768, dreamer_steps=512, evaluate_every=256,
                      evaluation_episodes=1, seeds=1, fb_train_until=512, prefill=128),
    ),
    "laptop": _LAPTOP,
    "gpu": replace(
        _LAPTOP, name="gpu", device="cuda",
        data=DataConfig(episodes=100, test_episodes=20, failures=20),
        video=VideoConfig(vae_channels=(64, 128, 256), vae_norm_groups=32, heads=12, layers=12, vae_steps=40_000,
                          vae_batch=16, vae_learning_rate=5e-4, pretrain_steps=100_000, batch=64, learning_rate=3e-4,
                          text_dim=256, text_layers=4, lora_rank=64, lora_steps=10_000, ema_decay=0.9999,
                          inference_steps=50),
        fb=FBConfig(dim=50, hidden=1024, batch=1024, learning_rate=1e-4, tau=0.01, updates=100_000,
                    exploration_steps=100_000, encoder="vae", components=256),
        dreamer=DreamerConfig(observation="pixels", deter=2048, hidden=256, units=256, categoricals=32, classes=16,
                              depth=16, batch=16, length=64, imagine_last=None, train_ratio=512.0, prefill=5000,
                              model_lr=1e-4, actor_lr=3e-5, value_lr=3e-5, warmup=1000, replay_size=500_000),
        run=RunConfig(sac_steps=512_000, dreamer_steps=512_000, evaluate_every=10_240, evaluation_episodes=10, seeds=5,
                      fb_train_until=100_000, prefill=5000),
    ),
    "paper": Profile(
        "paper", device="cuda",
        data=DataConfig(episodes=100, test_episodes=20, failures=20, frames=49),
        video=VideoConfig(pretrained="THUDM/CogVideoX-5b-I2V", image_size=480, num_frames=17, lora_rank=128,
                          lora_steps=20_000, lora_learning_rate=1e-4, batch=1, gradient_accumulation=8,
                          inference_steps=50, guidance=6.0),
        clip=ClipConfig(pretrained=("ViT-B-32", "laion2b_s34b_b79k"), image_size=224),
        fb=FBConfig(dim=64, hidden=512, learning_rate=1e-4, tau=0.01, batch=1024, fb_targets="goal", twin="min",
                    encoder="dinov3", updates=100_000, exploration_steps=100_000),
        dreamer=DreamerConfig(observation="pixels", deter=512, hidden=512, units=512, categoricals=32, classes=32,
                              depth=32, batch=16, length=64, imagine_last=None, train_ratio=512.0, prefill=5000,
                              model_lr=1e-4, actor_lr=3e-5, value_lr=3e-5, warmup=1000, replay_size=1_000_000),
        run=RunConfig(sac_steps=1_024_000, dreamer_steps=1_024_000, evaluate_every=10_240, evaluation_episodes=10,
                      seeds=5, fb_train_until=100_000, prefill=5000),
    ),
}


def get_profile(name: str | Profile) -> Profile:
    """The profile of that name; an unknown one is an `InputError` that lists the valid ones."""
    if isinstance(name, Profile):
        return name
    if name not in PROFILES:
        raise errors.unknown("profile", name, PROFILES)
    return PROFILES[name]


def measured_tasks(profile: Profile) -> tuple[str, ...]:
    """The tasks on which psi is fitted and F and B are measured."""
    return tuple(dict.fromkeys((*profile.run.tasks, *profile.run.fb_tasks)))


def fb_tasks(profile: Profile) -> tuple[str, ...]:
    """The tasks that F and B are trained for."""
    return tuple(dict.fromkeys((*measured_tasks(profile), *profile.run.grid_tasks)))


@dataclass(frozen=True)
class Paths:
    """Where a profile keeps things. `build` is ignored by git; `results` and `figures` are committed for laptop."""

    root: Path
    build: Path
    results: Path
    figures: Path

    @property
    def demos(self) -> Path:
        return self.build / "demos"

    @property
    def in_domain_demos(self) -> Path:
        """Training episodes of the evaluated tasks, kept apart from what the held-out video model learns from."""
        return self.build / "demos_in_domain"

    @property
    def weights(self) -> Path:
        """Trained models. The laptop's are committed, the others' are large or worthless."""
        return self.results / "weights"

    @property
    def video_model(self) -> Path:
        return self.weights / "video_model"

    @property
    def lora(self) -> Path:
        return self.weights / "lora"

    @property
    def scorer(self) -> Path:
        return self.weights / "scorer"

    @property
    def fb(self) -> Path:
        return self.weights / "fb"

    @property
    def psi(self) -> Path:
        """Principal axes of the encoder that F and B of all tasks share."""
        return self.fb / "encoder.npz"

    @property
    def goals(self) -> Path:
        return self.results / "goals"

    @property
    def study(self) -> Path:
        """What the study of reward models found: raw scores, and what the simulator knows of the scored episodes."""
        return self.results / "study"

    @property
    def runs(self) -> Path:
        return self.results / "runs"

    @property
    def checkpoints(self) -> Path:
        return self.build / "checkpoints"


def paths(profile: str | Profile) -> Paths:
    """The folders of a profile, below the project's root (or below `GENREWARD_ROOT`, where that is set; it must be a
    folder, else an InputError: what is not found below a misspelt one would read as not measured yet)."""
    name = get_profile(profile).name
    root = Path(os.environ.get("GENREWARD_ROOT") or Path(__file__).resolve().parent.parent)
    if not root.is_dir():
        raise errors.InputError(f"GENREWARD_ROOT is {root}, which is no folder; make it, or unset GENREWARD_ROOT for "
                                "the project's own")
    return Paths(root, root / "build" / name, root / "results" / name, root / "figures" / name)
