"""The goal: a prompt, the video that the video model imagines for it, and the frame that shows it reached (Eq. 6).

Frames are scored with OpenCLIP (`FrameScorer`): weights of the hub, or a small model of the same class, trained here on
frames and stage captions and kept in open_clip's own folder format. A `Goal` can also be cut from a real video, as an
oracle for studies; it is then marked as a demonstration. Goals feed the encoders, F and B, and the rewards.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import hashlib
import logging
import math
import os
import pickle
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from . import demos, errors, files, profiles
from .errors import InputError, unknown
from .profiles import ClipConfig
from .tasks import STAGES
from .trajectory import check_frames, uniform_indices

SELECTIONS = ("clip", "random", "last")
SOURCES = ("generated", "demonstration")
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"


# ------------------------------------------------------------------------------------------------- scoring frames

class FrameScorer:
    """OpenCLIP as a judge of single frames: cosines between images and sentences.

    model, tokenizer  as open_clip makes them
    config            {"model_cfg": ..., "preprocess_cfg": ...}, what open_clip keeps in `open_clip_config.json`
    identity          what goes into a goal's provenance: the hub's name and tag, or a digest of the weights
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Callable[[list[str]], torch.Tensor],
                 config: dict[str, Any], name: str | None = None, device: str | torch.device = "cpu") -> None:
        import open_clip  # here, since it takes seconds and whoever reads a goal does not need it

        self.model, self.tokenizer, self.config = model.to(device).eval(), tokenizer, config
        self.name, self.device = name, torch.device(device)
        size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
        self.image_size = int(size if isinstance(size, int) else size[0])
        preprocessing = open_clip.transform.PreprocessCfg(size=self.image_size, **config["preprocess_cfg"])
        self._mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
        self._resize = open_clip.transform.image_transform_v2(preprocessing, is_train=False)

    @classmethod
    def small(cls, config: ClipConfig, seed: int, device: str | torch.device = "cpu") -> FrameScorer:
        """An untrained small model: a ResNet for `config.image_size` pixels and a short text transformer."""
        import open_clip

        model_cfg = {
            "embed_dim": config.embed_dim,
            "vision_cfg": {"image_size": config.image_size, "layers": list(config.vision_layers),
                           "width": config.vision_width, "patch_size": None},
            # The vocabulary is open_clip's own: any prompt can be read, and the hub's tools can load the folder.
            "text_cfg": {"context_length": config.context_length, "vocab_size": 49408, "width": config.text_width,
                         "heads": config.text_heads, "layers": config.text_layers}}
        # open_clip draws its weights from the global generator; fork it so that nobody else's numbers change.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = open_clip.CLIP(**model_cfg)
        tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length)
        return cls(model, tokenizer, {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}},
                   device=device)

    @classmethod
    def load(cls, name: str | os.PathLike, pretrained: str | None = None,
             device: str | torch.device = "cpu") -> FrameScorer:
        """A folder that `save` (or open_clip) wrote, or a model of the hub by name and weights tag
        ("ViT-B-32", "laion2b_s34b_b79k"). InputError for an unknown name or tag, a damaged folder, no network."""
        import open_clip

        path = Path(name)
        if path.is_dir():
            return cls._load_folder(path, device)
        name = str(name)
        if name not in open_clip.list_models():
            near = difflib.get_close_matches(name, open_clip.list_models(), 3, 0.3)
            raise InputError(f"no frame scorer {name!r}; valid: a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or an "
                             f"OpenCLIP model ({', '.join([*near, 'ViT-B-32'])}, ...) and its weights tag")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            raise unknown(f"weights tag of {name}:", pretrained, tags)
        try:
            with _quick_to_fail():
                model, _, _ = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        except Exception as problem:  # the hub's client raises many kinds, wrapped by open_clip in RuntimeError
            raise InputError(f"the OpenCLIP weights {name}/{pretrained} are not in the cache and cannot be fetched "
                             f"({_first_line(problem)}); valid: a machine with a network, or a local folder with "
                             f"{CONFIG_FILE} and {WEIGHTS_FILE}") from None
        preprocessing = {key: value for key, value in model.visual.preprocess_cfg.items()
                         if key in ("mean", "std", "interpolation", "resize_mode")}
        config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocessing}
        return cls(model, open_clip.get_tokenizer(name), config, f"{name}/{pretrained}", device)

    @classmethod
    def _load_folder(cls, folder: Path, device: str | torch.device) -> FrameScorer:
        import open_clip

        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / file).is_file():
                raise InputError(f"the scorer {folder} has no {file}")
        config = files.read_json(folder / CONFIG_FILE)
        try:
            model = open_clip.create_model(f"local-dir:{folder}")
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise InputError(f"the scorer {folder} cannot be loaded ({_first_line(problem)}); train it again") from None
        return cls(model, tokenizer, config, device=device)

    def save(self, folder: str | os.PathLike, provenance: dict[str, Any] | None = None) -> None:
        """Write the folder that `local-dir:` of open_clip loads (and `load` here), weights in half precision."""
        with files.atomic_dir(folder) as temporary:
            files.write_json(temporary / CONFIG_FILE, self.config)
            save_file({name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
                       for name, value in self.model.state_dict().items()}, temporary / WEIGHTS_FILE)
            if provenance is not None:
                files.write_json(temporary / "provenance.json", provenance)

    @property
    def identity(self) -> str:
        """The hub's "name/tag", or a digest of the weights (in the half precision that `save` keeps)."""
        if self.name is not None:
            return self.name
        total = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            value = value.half() if value.is_floating_point() else value
            total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"weights {total.hexdigest()[:16]}"

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8 -> (N, 3, S, S) float32, resized and normalised as open_clip does it."""
        if frames.shape[1:3] == (self.image_size, self.image_size):
            frames = np.ascontiguousarray(frames)  # torch takes no negative stride: a clip played backwards has one
            return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        return torch.stack([self._resize(Image.fromarray(frame)) for frame in frames])

    @torch.no_grad()
    def encode_image(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """Unit-length embeddings: (N, H, W, 3) uint8 of any size -> (N, d) float32."""
        frames = check_frames(frames)
        self.model.eval()
        parts = [self.model.encode_image(self.pixels(frames[begin:begin + batch]).to(self.device))
                 for begin in range(0, len(frames), batch)]
        return nnf.normalize(torch.cat(parts).float(), dim=-1).cpu().numpy()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings of M sentences: (M, d) float32."""
        self.model.eval()
        tokens = self.tokenizer(_sentences(prompts)).to(self.device)
        return nnf.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu().numpy()

    def score(self, frames: np.ndarray, prompts: str | Sequence[str]) -> np.ndarray:
        """Eq. 6 before the argmax: (K, H, W, 3) uint8 and paraphrases of one goal -> (K,) float32, the cosine of every
        frame averaged over the paraphrases, in [-1, 1]."""
        return self.encode_image(frames) @ self.encode_text(_sentences(prompts)).mean(axis=0)

    def stage_scores(self, frames: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """(K, S) float32: the cosine of every frame with the caption of every stage."""
        return self.encode_image(frames) @ self.encode_text(captions).T


def stage_accuracy(scorer: FrameScorer, frames: np.ndarray, stages: Sequence[int], captions: Sequence[str]) -> float:
    """The fraction of frames (K, H, W, 3) whose best-matching caption is that of their true stage, in [0, 1]."""
    stages = np.asarray(stages)
    if len(stages) != len(frames) or (len(stages) and not 0 <= stages.min() <= stages.max() < len(captions)):
        raise InputError(f"every frame needs a stage in 0..{len(captions) - 1}; got {len(stages)} stages for "
                         f"{len(frames)} frames")
    return float(np.mean(scorer.stage_scores(frames, captions).argmax(axis=1) == stages))


def _sentences(prompts: str | Sequence[str]) -> list[str]:
    """One or more sentences as a list; InputError for none, or for one without words."""
    sentences = [prompts] if isinstance(prompts, str) else list(prompts)
    if not sentences or not all(isinstance(text, str) and text.strip() for text in sentences):
        raise InputError(f"prompts must be one or more sentences, got {prompts!r}")
    return sentences


@contextlib.contextmanager
def _quick_to_fail() -> Iterator[None]:
    """Without a network use the hub's cache only: its client would retry, loudly, for more than a minute."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    level = logging.root.manager.disable
    try:
        if not urllib.request.getproxies():  # behind a proxy only the client itself can tell
            socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        logging.disable(logging.ERROR)
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
        logging.disable(level)


def _first_line(problem: BaseException) -> str:
    """What went wrong, in one short line."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]


# -------------------------------------------------------------------------------------------- training the scorer

@dataclass
class FramePool:
    """Captioned frames to learn from.

    frames    (N, H, W, 3) uint8
    labels    (N,) index into `captions`
    decoded   (N,) bool: whether the frame went through the video model's VAE, as generated frames do
    captions  distinct sentences
    groups    sets of captions that describe one task's stages: they come into a batch together, since telling them
              apart is what the scorer is for
    """

    frames: np.ndarray
    labels: np.ndarray
    decoded: np.ndarray
    captions: list[str]
    groups: list[list[int]]

    def __post_init__(self) -> None:
        check_frames(self.frames, name="the pool's frames")
        if not len(self.frames) == len(self.labels) == len(self.decoded):
            raise InputError("a pool needs a label and a decoded flag for every frame")
        if len(set(self.captions)) != len(self.captions) or len(self.captions) < 2:
            raise InputError(f"a pool needs at least two distinct captions, got {len(self.captions)}")
        self._members = [[np.flatnonzero((self.labels == label) & (self.decoded == flag)) for flag in (False, True)]
                         for label in range(len(self.captions))]

    @classmethod
    def from_folder(cls, folder: str | os.PathLike | demos.VideoFolder, size: int,
                    tasks: Sequence[str] | None = None, split: str = "train",
                    roundtrip: Callable[[np.ndarray], np.ndarray] | None = None, num_frames: int | None = None,
                    progress: bool = True) -> FramePool:
        """The frames of a folder of videos whose rows carry `stages` (one a frame) and `stage_captions`.

        tasks      keep these only (default: all); split: of the rows' `split`
        roundtrip  (K, size, size, 3) uint8 -> the same after encoding and decoding: adds decoded copies of
                   `num_frames` frames of every clip
        """
        if not isinstance(folder, demos.VideoFolder):
            folder = demos.VideoFolder(folder)
        if tasks is not None:
            present = {row.get("task") for row in folder.clips}
            for task in tasks:
                if task not in present:
                    raise unknown("task in the folder of videos:", task, present)
        chosen = [index for index, row in enumerate(folder.clips)
                  if row.get("stages") and row.get("stage_captions") and row.get("split", split) == split
                  and (tasks is None or row.get("task") in tasks)]
        if not chosen:
            raise InputError(f"{folder.folder} has no {split} clips with stages and stage_captions to learn from")
        captions: dict[str, int] = {}
        groups: dict[tuple[str, ...], set[int]] = {}
        frames, labels, decoded = [], [], []
        for index in tqdm(chosen, desc="frames for the scorer", disable=not progress):
            row, clip = folder.clips[index], folder.frames(index, size=size)
            if len(row["stages"]) != len(clip):
                raise InputError(f"{row['file_name']}: {len(row['stages'])} stages for {len(clip)} frames")
            marks = np.array([captions.setdefault(row["stage_captions"][stage], len(captions))
                              for stage in row["stages"]])
            groups.setdefault(tuple(row["stage_captions"]), set()).update(marks.tolist())
            frames.append(clip)
            labels.append(marks)
            decoded.append(np.zeros(len(clip), bool))
            if roundtrip is not None:
                some = uniform_indices(len(clip), num_frames or len(clip))
                frames.append(check_frames(roundtrip(clip[some]), size, "frames from the round trip"))
                labels.append(marks[some])
                decoded.append(np.ones(len(some), bool))
        return cls(np.concatenate(frames), np.concatenate(labels), np.concatenate(decoded), list(captions),
                   [sorted(group) for group in groups.values()])

    @classmethod
    def merge(cls, pools: Sequence[FramePool]) -> FramePool:
        """One pool of several: captions that are the same sentence become one, groups that hold the same ones too."""
        if not pools:
            raise InputError("no pools to merge; give at least one")
        captions = list(dict.fromkeys(caption for pool in pools for caption in pool.captions))
        number = {caption: label for label, caption in enumerate(captions)}
        new = [np.array([number[caption] for caption in pool.captions]) for pool in pools]
        groups = {tuple(sorted(renamed[group].tolist())) for pool, renamed in zip(pools, new, strict=True)
                  for group in pool.groups}
        return cls(np.concatenate([pool.frames for pool in pools]),
                   np.concatenate([renamed[pool.labels] for pool, renamed in zip(pools, new, strict=True)]),
                   np.concatenate([pool.decoded for pool in pools]), captions,
                   [list(group) for group in sorted(groups)])

    def draw(self, captions: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One image for each of some distinct captions: (indices of frames, indices of captions).

        Distinct, because two images of one caption in a batch would be counted as each other's negatives. Whole groups
        are drawn until there are at least `captions`; a decoded frame is taken half of the time, where there is one.
        """
        drawn: set[int] = set()
        for group in rng.permutation(len(self.groups)):
            drawn.update(self.groups[group])
            if len(drawn) >= max(captions, 2):
                break
        labels = np.array(sorted(drawn))
        frames = []
        for label in labels:
            real, decoded = self._members[label]
            use = decoded if len(decoded) and (not len(real) or rng.random() < 0.5) else real
            frames.append(rng.choice(use))
        return np.array(frames), labels

    @property
    def digest(self) -> str:
        """16 hex digits that name the content."""
        total = hashlib.sha256("\n".join(self.captions).encode())
        for part in (self.frames, self.labels, self.decoded):
            total.update(np.ascontiguousarray(part))  # by its buffer: a copy of a large pool would not be small
        return total.hexdigest()[:16]


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Symmetric InfoNCE: unit vectors (n, d) of n matching pairs; the mean cross-entropy of finding each image's
    text and each text's image among the n (Radford et al. 2021)."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (nnf.cross_entropy(logits, target) + nnf.cross_entropy(logits.T, target)) / 2


def augment(frames: np.ndarray, rng: np.random.Generator, shift: int = 2) -> np.ndarray:
    """Shift every frame by up to `shift` pixels (edges repeated) and change its brightness and contrast a little."""
    padded = np.pad(frames, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    size = frames.shape[1:3]
    moved = np.stack([frame[top:top + size[0], left:left + size[1]] for frame, (top, left)
                      in zip(padded, rng.integers(0, 2 * shift + 1, (len(frames), 2)), strict=True)])
    gain = rng.uniform(0.9, 1.1, (len(frames), 1, 1, 1))
    bias = rng.uniform(-12, 12, (len(frames), 1, 1, 1))
    return (moved * gain + bias).round().clip(0, 255).astype(np.uint8)


def train_scorer(scorer: FrameScorer, pool: FramePool, updates: int, learning_rate: float = 1e-3,
                 per_caption: int = 2, captions_per_batch: int = 64, seed: int = 0,
                 checkpoint: str | os.PathLike | None = None, checkpoint_every: int = 100,
                 progress: bool = True) -> list[dict[str, Any]]:
    """Contrastive training of all weights, in place; returns the loss curve as rows of the results' schema.

    One update averages `contrastive_loss` over `per_caption` batches of one image a caption. With `checkpoint` (a file)
    the state is kept every `checkpoint_every` updates, and the same call continues from it to the same result.
    InputError for a checkpoint that is damaged or was made with other data or settings.
    """
    if updates < 1 or per_caption < 1 or captions_per_batch < 2 or not learning_rate > 0:
        raise InputError(f"updates and per_caption must be at least 1, captions_per_batch at least 2 and the learning "
                         f"rate positive, got {updates}, {per_caption}, {captions_per_batch} and {learning_rate}")
    settings = {"updates": updates, "learning_rate": learning_rate, "per_caption": per_caption, "seed": seed,
                "captions_per_batch": captions_per_batch, "pool": pool.digest, "model": scorer.config["model_cfg"]}
    optimiser = torch.optim.AdamW(scorer.model.parameters(), learning_rate, weight_decay=0.05)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    first = 0
    checkpoint = Path(checkpoint) if checkpoint is not None else None
    if checkpoint is not None and checkpoint.exists():
        state = _read_checkpoint(checkpoint, files.digest(settings))
        scorer.model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        rng.bit_generator.state = state["rng"]
        rows, first = state["rows"], state["step"]
    tokens = scorer.tokenizer(pool.captions).to(scorer.device)
    for step in tqdm(range(first, updates), initial=first, total=updates, desc="frame scorer", disable=not progress):
        # a short warm-up, then half a cosine down to 2 per cent
        rate = min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / updates)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate
        scorer.model.train()
        optimiser.zero_grad()
        total = 0.0
        for _ in range(per_caption):
            index, labels = pool.draw(captions_per_batch, rng)
            pixels = scorer.pixels(augment(pool.frames[index], rng)).to(scorer.device)
            with torch.autocast(scorer.device.type, torch.bfloat16):
                images = scorer.model.encode_image(pixels)
                texts = scorer.model.encode_text(tokens[labels])
            loss = contrastive_loss(nnf.normalize(images.float(), dim=-1), nnf.normalize(texts.float(), dim=-1),
                                    scorer.model.logit_scale.exp().clamp(max=100)) / per_caption
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise InputError(f"the scorer's loss is {total} at update {step + 1}; use a smaller learning rate than "
                             f"{learning_rate}")
        optimiser.step()
        done = step + 1
        if done % 10 == 0 or done == updates:
            rows.append({"experiment": "frame_scorer", "method": "openclip", "task": "all", "seed": seed, "step": done,
                         "metric": "loss", "value": total})
        if checkpoint is not None and (done % checkpoint_every == 0 or done == updates):
            with files.atomic_path(checkpoint) as temporary:
                torch.save({"settings": files.digest(settings), "model": scorer.model.state_dict(), "rows": rows,
                            "optimiser": optimiser.state_dict(), "rng": rng.bit_generator.state, "step": done},
                           temporary)
    scorer.model.eval()
    return rows


def _read_checkpoint(path: Path, settings: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_with = state["settings"]
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as problem:
        raise InputError(f"the checkpoint {path} is damaged ({_first_line(problem)}); "
                         f"remove it to start anew") from None
    if made_with != settings:
        raise InputError(f"the checkpoint {path} was made with other data or settings; remove it to start anew")
    return state


# --------------------------------------------------------------------------------------------------------- the goal

def select_frame(scores: np.ndarray, selection: str = "clip", rng: np.random.Generator | None = None) -> int:
    """The goal frame's index: "clip" the best score (Eq. 6, the first of equals), "random" (needs `rng`) or "last"."""
    scores = np.asarray(scores)
    if selection not in SELECTIONS:
        raise unknown("selection", selection, SELECTIONS)
    if scores.ndim != 1 or not len(scores) or not np.all(np.isfinite(scores)):
        raise InputError(f"scores must be finite, one for each of at least one frame; got {scores}")
    if selection == "random":
        if rng is None:
            raise InputError("a random goal frame needs a generator: rng=np.random.default_rng(seed)")
        return int(rng.integers(len(scores)))
    return int(np.argmax(scores)) if selection == "clip" else len(scores) - 1


@dataclass
class Goal:
    """What the agent is to bring about.

    prompt      G, what the video model was asked for
    paraphrases the sentences that the frames were scored with
    video       V_goal, (K, H, W, 3) uint8
    scores      (K,) float32, Eq. 6 before the argmax
    index       of the goal frame I* in `video`
    selection   how it was chosen: "clip", "random" or "last"
    source      "generated", or "demonstration" when the video is a real one
    provenance  what made it: seeds, models, file
    """

    prompt: str
    paraphrases: tuple[str, ...]
    video: np.ndarray
    scores: np.ndarray
    index: int
    selection: str = "clip"
    source: str = "generated"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.video = check_frames(self.video, name="the goal video")
        self.scores = np.asarray(self.scores, np.float32)
        self.paraphrases = tuple(self.paraphrases)
        self.index = int(self.index)
        if self.scores.shape != (len(self.video),):
            raise InputError(f"a goal video of {len(self.video)} frames needs as many scores, "
                             f"got shape {self.scores.shape}")
        if not np.isfinite(self.scores).all():
            raise InputError(f"the scores of a goal video's frames must be finite, got {self.scores.tolist()}")
        if not 0 <= self.index < len(self.video):
            raise InputError(f"the goal frame's index must be in 0..{len(self.video) - 1}, got {self.index}")
        if self.selection not in SELECTIONS:
            raise unknown("selection", self.selection, SELECTIONS)
        if self.source not in SOURCES:
            raise unknown("goal source", self.source, SOURCES)

    @property
    def frame(self) -> np.ndarray:
        """I*, (H, W, 3) uint8."""
        return self.video[self.index]

    def save(self, folder: str | os.PathLike, fps: int = 8) -> None:
        """Write a folder, whole or not at all: `goal.json`, `frames.npz` (exact), `goal.mp4` (to look at, at least 256
        pixels high), `scores.csv`, `goal_frame.png`."""
        with files.atomic_dir(folder) as temporary:
            np.savez_compressed(temporary / "frames.npz", video=self.video)
            demos.write_video(temporary / "goal.mp4", self.video, fps=fps, lossy=True,
                              scale=math.ceil(256 / min(self.video.shape[1:3])))
            Image.fromarray(self.frame).save(temporary / "goal_frame.png")
            with open(temporary / "scores.csv", "w", newline="") as table:
                writer = csv.writer(table, lineterminator="\n")
                writer.writerow(["frame", "score", "selected"])
                writer.writerows([number, f"{score:.9g}", int(number == self.index)]
                                 for number, score in enumerate(self.scores))
            content = {key: value for key, value in asdict(self).items() if key != "video"}
            files.write_json(temporary / "goal.json", content | {"frames": files.digest(temporary / "frames.npz")})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Goal:
        """Read what `save` wrote; InputError that names the file that is missing, damaged or not the one saved."""
        folder = Path(folder)
        if not folder.is_dir():
            kept = sorted(path.parent.name for path in folder.parent.glob("*/goal.json"))
            raise InputError(f"no such goal folder: {folder} (beside it: {', '.join(kept) or 'none'}); the goals of a "
                             f"profile's tasks are made by: python -m genreward.pipeline --profile laptop --only goals")
        for name in ("goal.json", "frames.npz", "goal.mp4", "scores.csv", "goal_frame.png"):
            if not (folder / name).is_file():
                raise InputError(f"the goal {folder} has no {name}; generate it again")
        content = files.read_json(folder / "goal.json")
        try:
            if content.pop("frames") != files.digest(folder / "frames.npz"):
                raise InputError(f"{folder / 'frames.npz'} is not the file that was saved with goal.json; "
                                 f"generate the goal again")
            with np.load(folder / "frames.npz") as kept:
                return cls(video=kept["video"], **content)
        except (KeyError, TypeError, AttributeError) as problem:
            raise InputError(f"{folder / 'goal.json'} is not a goal's ({_first_line(problem)})") from None


def generate_goal(video_model: Any, scorer: FrameScorer, first_frame: np.ndarray, prompt: str,
                  paraphrases: Sequence[str] = (), seed: int = 0, selection: str = "clip",
                  provenance: dict[str, Any] | None = None, **generation: Any) -> Goal:
    """Imagine the goal video from a first frame (H, W, 3) uint8 and a prompt, score its frames, choose one (Eq. 6).

    The frames are scored with `paraphrases` where there are any (sentences that the *finished* task satisfies find the
    goal frame better than the command does), else with the prompt. `generation` goes to `video_model.generate`.
    """
    if selection not in SELECTIONS:
        raise unknown("selection", selection, SELECTIONS)
    queries = tuple(_sentences(list(paraphrases) or prompt))
    video = video_model.generate(first_frame, prompt, seed, **generation)
    scores = scorer.score(video, queries)
    index = select_frame(scores, selection, np.random.default_rng(seed))
    made = {"seed": seed, "scorer": scorer.identity, "generation": generation,
            "first_frame": hashlib.sha256(np.ascontiguousarray(first_frame).tobytes()).hexdigest()[:16]}
    return Goal(prompt, queries, video, scores, index, selection, "generated", made | (provenance or {}))


def goal_from_video(path: str | os.PathLike, scorer: FrameScorer, prompt: str, paraphrases: Sequence[str] = (),
                    num_frames: int = 9, size: int = 64, selection: str = "clip", seed: int = 0,
                    provenance: dict[str, Any] | None = None) -> Goal:
    """A goal cut from a real video file: `num_frames` frames spread evenly over it, `size` x `size` pixels.

    It is marked as a demonstration, so that a reward made from it is not mistaken for a generated one. InputError for
    a file that is missing, unreadable or empty.
    """
    if num_frames < 1 or size < 1:
        raise InputError(f"num_frames and size must be at least 1, got {num_frames} and {size}")
    queries = tuple(_sentences(list(paraphrases) or prompt))
    frames = demos.read_video(path)
    video = demos.resize(frames[uniform_indices(len(frames), num_frames)], size)
    scores = scorer.score(video, queries)
    made = {"file": Path(path).name, "content": files.digest(Path(path)), "scorer": scorer.identity, "seed": seed}
    return Goal(prompt, queries, video, scores, select_frame(scores, selection, np.random.default_rng(seed)), selection,
                "demonstration", made | (provenance or {}))


def success_hit(goal: Goal, stages: Sequence[int], success_stage: int = len(STAGES) - 1) -> bool:
    """Whether the goal frame shows success, given the true stage of every frame of the goal video."""
    if len(stages) != len(goal.video):
        raise InputError(f"a goal video of {len(goal.video)} frames needs as many stages, got {len(stages)}")
    return int(stages[goal.index]) == success_stage


# ---------------------------------------------------------------------------------------------------- command line

def _train(arguments: argparse.Namespace) -> int:
    profile = profiles.get_profile(arguments.profile)
    paths = profiles.paths(profile)
    config = profile.clip
    if config.pretrained is not None:
        raise InputError(f"profile {profile.name!r} takes its scorer {'/'.join(config.pretrained)} from the hub: "
                         f"nothing to train")
    out = Path(arguments.out or paths.scorer)
    data = Path(arguments.data or paths.demos)
    folder = demos.VideoFolder(data)
    roundtrip, num_frames = None, None
    if arguments.video_model != "none":
        from .video_model import VideoModel

        video_model = VideoModel.load(arguments.video_model or paths.video_model, device=arguments.device)
        num_frames = video_model.num_frames

        def roundtrip(clip: np.ndarray) -> np.ndarray:
            return video_model.decode(video_model.encode(clip))

    tasks = arguments.tasks.split(",") if arguments.tasks else None
    pool = FramePool.from_folder(folder, config.image_size, tasks, roundtrip=roundtrip, num_frames=num_frames)
    scorer = FrameScorer.small(config, arguments.seed, arguments.device)
    updates = arguments.updates or config.updates
    started = time.time()
    rows = train_scorer(scorer, pool, updates, config.learning_rate, config.per_caption, seed=arguments.seed,
                        checkpoint=paths.checkpoints / f"scorer-{out.name}.pt")
    report = evaluate_scorer(scorer, folder, tasks)
    provenance = {"tasks": sorted({row["task"] for row in folder.clips if "task" in row}) if tasks is None else tasks,
                  "frames": len(pool.frames), "decoded_frames": int(pool.decoded.sum()),
                  "captions": len(pool.captions), "updates": updates, "seed": arguments.seed,
                  "seconds": round(time.time() - started, 1), "pool": pool.digest, "stage_accuracy": report}
    scorer.save(out, provenance | {"loss": [[row["step"], round(row["value"], 5)] for row in rows]})
    print(f"{out}: loss {rows[-1]['value']:.3f} after {updates} updates; stage accuracy on held-out clips {report}")
    return 0


def evaluate_scorer(scorer: FrameScorer, folder: demos.VideoFolder, tasks: Sequence[str] | None = None,
                    split: str = "test") -> dict[str, float]:
    """Stage accuracy on the clips of a split, by task and over all frames ("all"); empty when there are none."""
    hits: dict[str, list[np.ndarray]] = {}
    for index, row in enumerate(folder.clips):
        if row.get("split") == split and row.get("stages") and (tasks is None or row.get("task") in tasks):
            frames = folder.frames(index, size=scorer.image_size)
            guess = scorer.stage_scores(frames, row["stage_captions"]).argmax(axis=1)
            hits.setdefault(row["task"], []).append(guess == np.asarray(row["stages"]))
    if not hits:
        return {}
    report = {task: round(float(np.mean(np.concatenate(parts))), 4) for task, parts in sorted(hits.items())}
    return report | {"all": round(float(np.mean(np.concatenate([part for parts in hits.values()
                                                                for part in parts]))), 4)}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.goals train-scorer`: train the small frame scorer on a folder of captioned videos."""
    parser = argparse.ArgumentParser(prog="python -m genreward.goals", description=main.__doc__)
    train = parser.add_subparsers(dest="command", required=True).add_parser("train-scorer", help=main.__doc__)
    train.add_argument("--profile", default="laptop", help="smoke, laptop or gpu")
    train.add_argument("--data", help="folder of videos (default: the profile's demonstrations)")
    train.add_argument("--video-model", help="whose VAE decodes half of the images; 'none': real images only "
                                             "(default: the profile's)")
    train.add_argument("--out", help="folder for the scorer (default: the profile's)")
    train.add_argument("--tasks", help="comma-separated; default: every task in the folder")
    train.add_argument("--updates", type=int, help="default: the profile's")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    return _train(parser.parse_args(arguments))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        errors.cli(main)
