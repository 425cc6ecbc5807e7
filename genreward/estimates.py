"""What a profile needs before it starts: parameters, memory, disk, steps and time, and whether the device is there.

A leaf beside the flow: `pipeline` prints the short form before a run of a profile that wants a GPU or the hub's video
model; `python -m genreward.estimates --profile paper` prints the whole table. No weight is downloaded and nothing large
is allocated: parameters are counted on torch's meta device from the published configurations, and an update of
DreamerV3 is counted on a batch of one sequence.

**Where the seconds come from.** A stage says so in its own words, which begin with one of

- *measured*: some updates of it were made on this machine's own device (`measure`);
- *extrapolated*: from a published time, or from counted operations at a stated rate. Nothing of it was run here.

**Memory** is a sum of what can be counted (weights, gradients, optimiser, averages) and of activations by a formula
(`BLOCK_BYTES`) or a count (DreamerV3). Allocators and kernels' work space come on top: leave a quarter free.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import errors, profiles
from .errors import InputError
from .profiles import DreamerConfig, FBConfig, Profile, VideoConfig

if TYPE_CHECKING:
    from .agents.dreamer import DreamerAgent

# The hub's THUDM/CogVideoX-5b-I2V: config.json of its three networks (arXiv 2408.06072).
COGVIDEOX_5B_I2V: dict[str, dict[str, Any]] = {
    "transformer": dict(
        num_attention_heads=48, attention_head_dim=64, num_layers=42, in_channels=32, out_channels=16,
        time_embed_dim=512, text_embed_dim=4096, max_text_seq_length=226, sample_width=90, sample_height=60,
        sample_frames=49, patch_size=2, temporal_compression_ratio=4, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True),
    "text_encoder": dict(  # the encoder of T5 v1.1 XXL
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu"),
    "vae": dict(
        latent_channels=16, block_out_channels=(128, 256, 256, 512), layers_per_block=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        sample_height=480, sample_width=720, scaling_factor=0.7)}
# Seconds for one video of 49 frames at 480 x 720 with 50 steps and guidance, and memory in GB, as its model card has
# them. Divided into the operations of those 100 forward passes, they give the rate at which a card works on this model.
CARD_SECONDS = {"A100": 180.0, "H100": 90.0}
CARD_MEMORY = {"generation": 26, "LoRA, batch 1": 78}
DINOV3_VITS16 = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6,
                     patch_size=16, num_register_tokens=4, image_size=224)
SIGLIP2_BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                    patch_size=16, image_size=224)

# Bytes that a transformer block keeps for its backward pass, for each token and channel, in bfloat16: normalised
# inputs, q, k, v before and after their norm and rotation, attention and its projection, the four-fold inner layer
# before and after its GELU, and what the gates multiply. A LoRA keeps its inputs in float32 besides.
BLOCK_BYTES, LORA_BYTES = 42, 36
LAUNCH_SECONDS = 1e-5  # an operation on a small tensor costs a GPU this much, whatever its size: an assumption
SMALL_RATE = 5e13  # operations a second of a GPU on small networks: an assumption, a sixth of an A100's bfloat16 peak
ACTIONS = 4  # of Meta-World


@dataclass(frozen=True)
class Part:
    """A network: its parameters, and where its sizes come from."""

    name: str
    parameters: int
    source: str


@dataclass(frozen=True)
class Stage:
    """One stage of the work. Memory in bytes (`device`: the accelerator's, `host`: main memory); seconds of one of
    `runs`, by the kind of device; `basis` says where they come from."""

    name: str
    steps: int
    unit: str
    device: float
    host: float
    seconds: dict[str, float]
    basis: str
    runs: int = 1


# ------------------------------------------------------------------------------------------------------- the networks


def count(module: nn.Module, buffers: bool = False) -> int:
    """Parameters of a module, each once; with `buffers` also what else its file holds."""
    return sum(p.numel() for p in module.parameters()) + (
        sum(b.numel() for b in module.buffers()) if buffers else 0)


@functools.cache
def video_networks(config: VideoConfig) -> dict[str, nn.Module]:
    """Transformer, text encoder and VAE of the profile on the meta device: of the configurations in a local folder, of
    CogVideoX-5B-I2V for a hub id, else the small ones."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        if config.pretrained is None:
            from .video_model import VideoModel

            model = VideoModel.small(config, 0)
            return {name: getattr(model, name) for name in COGVIDEOX_5B_I2V}
        if Path(config.pretrained).is_dir():
            folder = config.pretrained
            return {"transformer": CogVideoXTransformer3DModel.from_config(
                        CogVideoXTransformer3DModel.load_config(folder, subfolder="transformer")),
                    "text_encoder": T5EncoderModel(T5Config.from_pretrained(folder, subfolder="text_encoder")),
                    "vae": AutoencoderKLCogVideoX.from_config(
                        AutoencoderKLCogVideoX.load_config(folder, subfolder="vae"))}
        known = COGVIDEOX_5B_I2V
        return {"transformer": CogVideoXTransformer3DModel(**known["transformer"]),
                "text_encoder": T5EncoderModel(T5Config(**known["text_encoder"])),
                "vae": AutoencoderKLCogVideoX(**known["vae"])}


def lora_parameters(transformer: nn.Module, rank: int) -> int:
    """Weights of a LoRA of that rank on the layers that `finetune_lora` adapts: rank x (inputs + outputs) of each."""
    from .video_model import LORA_TARGETS

    total = 0
    for name, module in transformer.named_modules():
        if any(name == target or name.endswith(f".{target}") for target in LORA_TARGETS):
            if isinstance(module, nn.Conv2d):
                total += rank * (module.in_channels * math.prod(module.kernel_size) + module.out_channels)
            elif isinstance(module, nn.Linear):
                total += rank * (module.in_features + module.out_features)
    return total


def _psi(encoder: str) -> Part | None:
    import transformers

    with torch.device("meta"):
        if encoder == "dinov3":
            return Part("psi (DINOv3 ViT-S/16)", count(transformers.DINOv3ViTModel(
                transformers.DINOv3ViTConfig(**DINOV3_VITS16))), "facebook/dinov3-vits16-pretrain-lvd1689m")
        if encoder == "siglip2":
            return Part("psi (SigLIP 2 base, vision)", count(transformers.SiglipVisionModel(
                transformers.SiglipVisionConfig(**SIGLIP2_BASE))), "google/siglip2-base-patch16-224")
    return None  # the video model's VAE, or the frame scorer


def _scorer(profile: Profile) -> Part:
    import open_clip

    name = profile.clip.pretrained[0] if profile.clip.pretrained else None
    if name is not None and Path(name).is_dir():
        from . import files
        from .goals import CONFIG_FILE

        config: dict[str, Any] | None = files.read_json(Path(name) / CONFIG_FILE)["model_cfg"]
    else:
        config = open_clip.get_model_config(name) if name else None
        if name is not None and config is None:
            raise errors.unknown("OpenCLIP model", name, open_clip.list_models())
    with torch.device("meta"):
        if config is not None:
            return Part("frame scorer", count(open_clip.CLIP(**config)), "/".join(profile.clip.pretrained or ()))
    from .goals import FrameScorer

    return Part("frame scorer", count(FrameScorer.small(profile.clip, 0).model), "trained here")


def parts(profile: Profile) -> list[Part]:
    """Every network of the profile with its number of parameters."""
    video, networks = profile.video, video_networks(profile.video)
    source = video.pretrained or "trained here"
    found = [Part(f"CogVideoX {name.replace('_', ' ')}", count(module), source) for name, module in networks.items()]
    found.append(Part(f"LoRA of rank {video.lora_rank}", lora_parameters(networks["transformer"], video.lora_rank),
                      video.lora or "trained here"))
    found.append(_scorer(profile))
    if (psi := _psi(profile.fb.encoder)) is not None:
        found.append(psi)
    found.append(Part("F, B and pi_z", count(_fb(profile.fb, "cpu").networks), "trained here"))
    found.append(Part("DreamerV3", dreamer_counts(profile.dreamer, profile.image_size).parameters, "trained here"))
    return found


# ------------------------------------------------------------------------------------------------ counting operations


class Counter(TorchDispatchMode):
    """Counts what runs inside it: `operations` as torch dispatches them, and their multiply-adds as `flops` (two an
    entry of a matrix product; other operations count as none)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.flops = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.operations += 1
        if (formula := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def tokens(frames: int, transformer: nn.Module) -> int:
    """Tokens of one video of so many frames: the prompt's, and one for each patch of its latents."""
    shape = transformer.config
    patches = shape.sample_height * shape.sample_width // shape.patch_size**2
    return shape.max_text_seq_length + ((frames - 1) // 4 + 1) * patches


def transformer_flops(transformer: nn.Module, length: int) -> tuple[float, float]:
    """Operations of one forward pass over `length` tokens: of the linear layers (2 x 12 width^2 a token and block), of
    attention (4 x length^2 x width a block)."""
    shape = transformer.config
    width = shape.num_attention_heads * shape.attention_head_dim
    return 24.0 * shape.num_layers * width**2 * length, 4.0 * shape.num_layers * length**2 * width


@functools.cache
def card_rates() -> dict[str, float]:
    """Operations a second at which a card runs CogVideoX-5B, from the model card's times for one video."""
    transformer = video_networks(VideoConfig(pretrained="THUDM/CogVideoX-5b-I2V"))["transformer"]
    work = 100 * sum(transformer_flops(transformer, tokens(49, transformer)))
    return {name: work / seconds for name, seconds in CARD_SECONDS.items()}


@dataclass(frozen=True)
class DreamerCounts:
    """Of one update on one sequence: parameters, operations dispatched, flops, bytes kept for the backward pass."""

    parameters: int
    operations: int
    flops: float
    kept: int


def _dreamer(config: DreamerConfig, size: int, device: str) -> DreamerAgent:
    """An agent with a short replay of random rows."""
    import gymnasium
    import numpy as np

    from .agents.dreamer import DreamerAgent

    rng, rows = np.random.default_rng(0), config.length + 8
    pixels = config.observation == "pixels"
    space = (gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) if pixels
             else gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float32))
    agent = DreamerAgent(space, ACTIONS, replace(config, replay_size=rows), 0, device)
    for row in range(rows):
        seen = (rng.integers(0, 256, space.shape, dtype=np.uint8) if pixels
                else rng.normal(size=space.shape).astype(np.float32))
        agent.observe(seen, rng.uniform(-1, 1, ACTIONS).astype(np.float32), 0.0, row == 0, False, row == rows - 1)
    return agent


@functools.cache
def dreamer_counts(config: DreamerConfig, size: int) -> DreamerCounts:
    """Count one real update on a batch of one sequence of the configured length (seconds on a CPU). Operations do not
    depend on the batch, flops and bytes grow with it."""
    agent = _dreamer(replace(config, batch=1), size, "cpu")
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Counter() as counter:
        agent.update()
    weights = {p.data_ptr() for p in agent.networks.parameters()}
    return DreamerCounts(count(agent.networks), counter.operations, counter.flops,
                         sum(size for place, size in kept.items() if place not in weights))


def replay_row(config: DreamerConfig, size: int) -> int:
    """Bytes of one row of the agent's replay: observation, action, reward, marks, z and h."""
    observation = 3 * size**2 if config.observation == "pixels" else 4 * 39
    return observation + 4 * ACTIONS + 4 + 3 + 2 * config.categoricals + 2 * config.deter


# ---------------------------------------------------------------------------------------------------------- measuring


def _seconds(update: Callable[[], Any], device: str, repeats: int = 2) -> float:
    """Seconds of one call, after one that is not counted."""
    update()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        update()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def _fb(config: FBConfig, device: str, features: int | None = None) -> Any:
    from .forward_backward import ForwardBackward

    return ForwardBackward(features or config.components, ACTIONS, replace(config, fb_targets="buffer"), 0, device)


def measure_fb(config: FBConfig, device: str) -> float:
    """Seconds of one update of F, B and pi_z at the configured sizes, on random features."""
    fb, generator = _fb(config, device), torch.Generator().manual_seed(0)
    rows = {name: torch.rand(config.batch, width, generator=generator) * 2 - 1
            for name, width in (("s", fb.feature_dim), ("a", ACTIONS), ("next_s", fb.feature_dim))}
    return _seconds(lambda: fb.update(rows), device, 5)


def measure_dreamer(config: DreamerConfig, size: int, device: str) -> float:
    """Seconds of one update of DreamerV3 at the configured sizes and batch."""
    return _seconds(_dreamer(config, size, device).update, device)


def measure_video(config: VideoConfig, device: str) -> dict[str, float]:
    """Seconds of one training step of the small VAE, and of the small transformer with its text encoder."""
    from .video_model import VideoModel
    from .video_training import DiffusionLoss, VaeLoss

    model = VideoModel.small(config, 0)
    model.pipe.to(device)
    for module in (model.vae, model.transformer, model.text_encoder):
        module.requires_grad_(True)
    latents, side = (config.num_frames - 1) // 4 + 1, config.image_size // 4
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(config.batch, latents, config.latent_channels, side, side, generator=generator).to(device)
    pixels = torch.rand(config.vae_batch, 3, config.num_frames, config.image_size, config.image_size,
                        generator=generator).to(device) * 2 - 1
    text = torch.zeros(1, config.text_length, dtype=torch.long, device=device)
    diffusion = DiffusionLoss(model, torch.ones(latents, side, side, device=device), learn_text=True)
    vae = VaeLoss(model.vae)

    def step(loss: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            value = loss()
        value.backward()

    index = torch.zeros(config.batch, dtype=torch.long, device=device)
    return {"vae": _seconds(lambda: step(lambda: vae(pixels, 0)), device),
            "transformer": _seconds(lambda: step(
                lambda: diffusion(clean, clean[:, :1], text, index, clean, index + 500)), device)}


# --------------------------------------------------------------------------------------------------------- the stages


def has_device(profile: Profile) -> bool:
    """Whether this machine has the profile's device."""
    return not profile.device.startswith("cuda") or torch.cuda.is_available()


def require_device(profile: Profile) -> None:
    """InputError, in one line, where the profile's device is missing; it names the profiles that would run here."""
    if not has_device(profile):
        valid = ", ".join(sorted(name for name, one in profiles.PROFILES.items() if has_device(one)))
        raise InputError(f"profile {profile.name!r} needs a CUDA device and torch finds none here; valid on this "
                         f"machine: --profile {valid.replace(', ', ' or ')} (what it would take: python -m "
                         f"genreward.estimates --profile {profile.name})")


def _finetuning_clips(profile: Profile) -> int:
    """Expert clips that the LoRA learns from."""
    from .tasks import DOMAIN_TASKS, PRETRAIN_TASKS

    given = set(PRETRAIN_TASKS[: profile.data.tasks] if profile.data.tasks else PRETRAIN_TASKS)
    return profile.data.episodes * len(given & set(DOMAIN_TASKS) or given)


def _video_stages(profile: Profile, measured: dict[str, float]) -> list[Stage]:
    """Training of the video model, its LoRA, and the videos that the pipeline generates."""
    from .tasks import PAPER_TASKS, PRETRAIN_TASKS

    video, networks = profile.video, video_networks(profile.video)
    transformer, shape = networks["transformer"], networks["transformer"].config
    width, length = shape.num_attention_heads * shape.attention_head_dim, tokens(video.num_frames, transformer)
    linear, attention = transformer_flops(transformer, length)
    half = video.pretrained is not None and profile.device.startswith("cuda")
    weights = sum(count(module, buffers=True) for module in networks.values()) * (2 if half else 4)
    clip = profile.data.frames * video.image_size**2 * 3
    lora = lora_parameters(transformer, video.lora_rank)
    checkpointed = shape.sample_height * 8 > 256 and video.pretrained is not None
    kept = (2 * shape.num_layers + BLOCK_BYTES + LORA_BYTES if checkpointed
            else shape.num_layers * (BLOCK_BYTES + LORA_BYTES))
    passes = video.lora_steps * video.gradient_accumulation * video.batch
    # forward, once more where blocks are recomputed, and backward: inputs' gradients of the linear layers (the frozen
    # weights need none), twice attention's forward
    work = passes * ((2 + checkpointed) * linear + (3 + checkpointed) * attention)
    guided = 2 if video.guidance > 1 else 1
    one = video.inference_steps * guided * (linear + attention)
    goals, starts = len({*PAPER_TASKS, *profiles.fb_tasks(profile)}), len(PAPER_TASKS) * profile.data.test_episodes
    stages = []
    if video.pretrained is not None:
        rates = card_rates()
        tuning, making = ({name: amount / rate for name, rate in rates.items()} for amount in (work, one))
        basis = "extrapolated from the model card's seconds for one video of 49 frames, by operations"
    else:
        for name, steps, learnt, batch in (("vae", video.vae_steps, ("vae",), video.vae_batch),
                                           ("transformer", video.pretrain_steps, ("transformer", "text_encoder"),
                                            video.batch)):
            trained = sum(count(networks[part]) for part in learnt)
            activations = (batch * length * width * shape.num_layers * BLOCK_BYTES if name == "transformer" else
                           batch * video.num_frames * video.image_size**2 * sum(video.vae_channels) * 2 * 8)
            stages.append(Stage(f"{name}, from nothing", steps, "steps",
                                weights + trained * (16 if name == "transformer" else 12) + activations,
                                profile.data.episodes * len(PRETRAIN_TASKS[: profile.data.tasks]) * clip,
                                {"here": steps * measured[name]} if measured else {},
                                "measured, a few steps" if measured else "not known: measure on the device"))
        tuning = {"here": video.lora_steps * video.gradient_accumulation * measured["transformer"]} if measured else {}
        making = ({"here": measured["transformer"] / video.batch / 3 * guided * video.inference_steps}
                  if measured else {})
        basis = "measured, as the transformer's steps" if measured else "not known: measure on the device"
    if video.lora is None:
        stages.append(Stage("LoRA", video.lora_steps, f"steps of {video.gradient_accumulation} x {video.batch}",
                            weights + lora * 20 + video.batch * length * width * kept,
                            _finetuning_clips(profile) * clip, tuning, basis))
    drawing = guided * length * width * BLOCK_BYTES + 6 * 9 * (video.image_size**2 / 2) * 256 * (2 if half else 4) * (
        video.pretrained is not None)
    stages.append(Stage("goal and test videos", goals + starts, f"videos of {video.num_frames} frames",
                        weights + lora * (2 if half else 4) + drawing, 0,
                        {name: (goals + starts) * seconds for name, seconds in making.items()}, basis))
    return stages


def stages(profile: str | Profile, measure: bool = True) -> list[Stage]:
    """Every stage of the profile that takes a GPU's time. With `measure` some updates are made where the profile's
    device is here (seconds to a minute); F and B are so small that they are measured on any machine."""
    profile = profiles.get_profile(profile)
    there = measure and has_device(profile)
    video, fb, dreamer = profile.video, profile.fb, profile.dreamer
    small = measure_video(video, profile.device) if there and video.pretrained is None else {}
    found = _video_stages(profile, small)

    networks = count(_fb(fb, "cpu").networks)
    device = profile.device if there else "cpu"
    found.append(Stage("F, B and pi_z", fb.updates, "updates", networks * 20 + fb.batch**2 * 4 * 12,
                       fb.exploration_steps * (2 * fb.components + ACTIONS + 78) * 4.0,
                       {"here": fb.updates * measure_fb(fb, device)} if measure else {},
                       f"measured on this machine's {device}" if measure else "not known: not measured",
                       len(profiles.fb_tasks(profile))))

    counts = dreamer_counts(dreamer, profile.image_size)
    updates = round(profile.run.dreamer_steps * dreamer.train_ratio / (dreamer.batch * dreamer.length))
    memory = counts.parameters * 16.0 + counts.kept * dreamer.batch
    # beside the agent: the reward's video model, which the training loads whole in float32
    memory += sum(count(module, buffers=True) for module in video_networks(video).values()) * 4.0
    if there:
        seconds = {"here": updates * measure_dreamer(dreamer, profile.image_size, profile.device)}
        basis = "measured, a few updates"
    else:
        seconds = {"any": updates * max(counts.operations * LAUNCH_SECONDS, counts.flops * dreamer.batch / SMALL_RATE)}
        basis = (f"extrapolated: {counts.operations} operations an update of {LAUNCH_SECONDS * 1e6:.0f} us each, an "
                 "assumption; environment steps come on top")
    runs = len(profile.run.tasks) * len(profile.run.methods) * profile.run.seeds * ("dreamer" in profile.run.agents)
    found.append(Stage("DreamerV3", updates, "updates", memory, float(dreamer.replay_size * replay_row(
        dreamer, profile.image_size)), seconds, basis, runs))
    return found


def disk(profile: str | Profile) -> float:
    """Bytes that the hub's weights take on the disk: the video model in bfloat16, scorer and psi in float32."""
    profile = profiles.get_profile(profile)
    total = 0.0
    if profile.video.pretrained is not None:
        total += 2.0 * sum(count(module, buffers=True) for module in video_networks(profile.video).values())
    if profile.clip.pretrained is not None:
        total += 4.0 * _scorer(profile).parameters
    return total + (4.0 * psi.parameters if (psi := _psi(profile.fb.encoder)) else 0.0)


# ---------------------------------------------------------------------------------------------------------- in words


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 1e11 else f"{size / 1e9:.0f}"


def duration(seconds: float) -> str:
    """42 s, 17 min, 3.5 h, 12 days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if unit == 3600 else 0}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def _times(stage: Stage) -> str:
    return ", ".join(f"{duration(seconds)}{'' if name in ('here', 'any') else f' ({name})'}"
                     for name, seconds in stage.seconds.items()) or "?"


def available() -> float | None:
    """Bytes of the first CUDA device's memory; None without one."""
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def table(profile: str | Profile, measure: bool = True) -> str:
    """The whole table, as text."""
    profile = profiles.get_profile(profile)
    lines = [f"profile {profile.name!r} on {profile.device}: an estimate, not a measurement, but where it says so", "",
             f"{'network':28} {'parameters':>14}  from"]
    lines += [f"{part.name:28} {part.parameters:14,}  {part.source}" for part in parts(profile)]
    lines += ["", f"{'stage':22} {'device GB':>9} {'host GB':>8} {'steps':>9}  one run takes"]
    found = stages(profile, measure)
    for stage in found:
        many = f"; {stage.runs} runs" if stage.runs > 1 else ""
        lines += [f"{stage.name:22} {gigabytes(stage.device):>9} {gigabytes(stage.host):>8} {stage.steps:9,}  "
                  f"{_times(stage)}{many}", f"{'':22} {stage.unit}; {stage.basis}"]
    lines += ["", f"disk for the hub's weights: {gigabytes(disk(profile))} GB"]
    if profile.video.pretrained is not None:
        lines.append("the model card's own memory: " + ", ".join(
            f"{what} {size} GB" for what, size in CARD_MEMORY.items()) + " (49 frames, its own code)")
    lines.append(_room(profile, max(stage.device for stage in found)))
    return "\n".join(lines)


def _room(profile: Profile, needed: float) -> str:
    if not profile.device.startswith("cuda"):
        return f"no GPU is needed; the largest stage holds {gigabytes(needed)} GB"
    room = available()
    if room is None:
        return f"the largest stage needs {gigabytes(needed)} GB of GPU memory; this machine has no GPU"
    verdict = "enough" if room > 1.25 * needed else "tight" if room > needed else "NOT ENOUGH"
    return f"the largest stage needs {gigabytes(needed)} GB of GPU memory; this one has {gigabytes(room)}: {verdict}"


def compact(profile: str | Profile, measure: bool = True) -> str:
    """A line a stage: what it holds, how long it takes; then whether the GPU's memory is enough."""
    profile = profiles.get_profile(profile)
    found = stages(profile, measure)
    lines = [f"estimate for {profile.name}: {stage.name}: {stage.steps:,} {stage.unit}, {gigabytes(stage.device)} GB, "
             f"{_times(stage)}{f' x {stage.runs} runs' if stage.runs > 1 else ''} ({stage.basis.split(',')[0]})"
             for stage in found]
    return "\n".join([*lines, f"estimate for {profile.name}: {gigabytes(disk(profile))} GB of weights from the hub; "
                      + _room(profile, max(stage.device for stage in found))])


def wanted(profile: Profile) -> bool:
    """Whether a run should say beforehand what it takes: it wants a GPU, or the hub's video model."""
    return profile.device.startswith("cuda") or profile.video.pretrained is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one profile."""
    parser = argparse.ArgumentParser(prog="python -m genreward.estimates", description=main.__doc__)
    parser.add_argument("--profile", default="paper", help=", ".join(profiles.PROFILES))
    parser.add_argument("--no-measure", action="store_true", help="make no update on this machine")
    options = parser.parse_args(arguments)
    print(table(options.profile, not options.no_measure))
    return 0


if __name__ == "__main__":
    errors.cli(main)
