"""Encoders that bring videos and sentences into one space: what RoboCLIP compares an episode with.

They stand between `demos` (whose captioned clips train the small one) and `rewards.roboclip`. Two are known: X-CLIP,
the class of transformers itself, small and trained here or published and loaded by its hub id, and S3D, the encoder of
the publication, from a local file. The folder of a small X-CLIP has the hub's layout; it reads text byte by byte
(ByT5), since the hub's vocabulary would weigh several times what the rest does.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from .. import files
from ..errors import InputError
from ..trajectory import check_frames, uniform_indices


def sentence_list(sentences: str | Sequence[str]) -> list[str]:
    """One or more sentences as a list; InputError for none, or for one without words."""
    from ..goals import _sentences  # here, since open_clip takes seconds to import

    return _sentences(sentences)


def first_line(problem: BaseException) -> str:
    """What went wrong, in one short line."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]


class VideoTextEncoder(ABC):
    """Videos and sentences as vectors of one space.

    num_frames  frames that the encoder takes of a video; `sample` spreads any clip evenly over them
    identity    what goes into a provenance: the hub's id, or a digest of the weights
    """

    num_frames: int
    identity: str

    @abstractmethod
    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Clips (N, K, H, W, 3) uint8 of any length and size -> (N, d) float32, not normalised."""

    @abstractmethod
    def embed_text(self, sentences: str | Sequence[str]) -> np.ndarray:
        """M sentences -> (M, d) float32, not normalised."""

    def embed_pair(self, clips: np.ndarray, sentence: str) -> tuple[np.ndarray, np.ndarray]:
        """Clips (N, K, H, W, 3) uint8 and one sentence, both as (N, d): the sentence as it is compared with each clip.
        By default it is the same for all."""
        videos = self.embed_video(clips)
        return videos, np.repeat(self.embed_text(sentence), len(videos), axis=0)

    def sample(self, clips: np.ndarray) -> np.ndarray:
        """Clips (N, K, H, W, 3) uint8 -> (N, num_frames, H, W, 3); InputError for anything else."""
        clips = np.asarray(clips)
        if clips.ndim != 5 or not len(clips):
            raise InputError(f"videos to encode must be of shape (N, K, H, W, 3), N at least 1, got {clips.shape}")
        check_frames(clips[0], name="videos to encode")
        return clips[:, uniform_indices(clips.shape[1], self.num_frames)]


# --------------------------------------------------------------------------------------------------------- X-CLIP

@dataclass(frozen=True)
class XClipConfig:
    """A small X-CLIP (or `pretrained`, the hub's) and its training; about 0.7 million weights by default."""

    pretrained: str | None = None
    image_size: int = 64
    patch_size: int = 16
    num_frames: int = 8
    width: int = 96
    layers: int = 3
    heads: int = 4
    embed_dim: int = 80
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 2
    text_length: int = 80
    prompt_layers: int = 1
    updates: int = 400
    learning_rate: float = 1.5e-3
    captions_per_batch: int = 36
    clips_per_task: int = 16


class XClipEncoder(VideoTextEncoder):
    """transformers' X-CLIP (Ni et al. 2022): a frame transformer whose frames exchange messages, one more transformer
    over the frames, and sentences that are adapted to the video that they are compared with.

    model, tokenizer, processor  as transformers makes them; the processor's size is set to the model's
    """

    def __init__(self, model: nn.Module, tokenizer: Any, processor: Any, name: str | None = None,
                 device: str | torch.device = "cpu") -> None:
        self.model, self.tokenizer, self.processor = model.to(device).eval(), tokenizer, processor
        self.name, self.device = name, torch.device(device)
        vision, text = model.config.vision_config, model.config.text_config
        self.num_frames, self.image_size = vision.num_frames, vision.image_size
        self.text_length = text.max_position_embeddings
        # Some published preprocessors crop to another size than their model reads.
        processor.size, processor.crop_size = ({"shortest_edge": self.image_size},
                                               {"height": self.image_size, "width": self.image_size})
        self._mean = torch.tensor(processor.image_mean).view(1, 1, 3, 1, 1)
        self._std = torch.tensor(processor.image_std).view(1, 1, 3, 1, 1)

    @classmethod
    def small(cls, config: XClipConfig, seed: int, device: str | torch.device = "cpu") -> XClipEncoder:
        """An untrained small model with weights drawn from `seed`."""
        from transformers import ByT5Tokenizer, VideoMAEImageProcessor, XCLIPConfig, XCLIPModel

        for name, width, heads in (("width", config.width, config.heads), ("embed_dim", config.embed_dim, config.heads),
                                   ("text_width", config.text_width, config.text_heads)):
            if width % heads:
                raise InputError(f"{name} must be a multiple of the number of heads, got {width} and {heads}")
        if config.image_size % config.patch_size:
            raise InputError(f"image_size must be a multiple of patch_size, got {config.image_size} and "
                             f"{config.patch_size}")
        form = XCLIPConfig(
            text_config={"vocab_size": 384, "hidden_size": config.text_width, "num_hidden_layers": config.text_layers,
                         "intermediate_size": 2 * config.text_width, "num_attention_heads": config.text_heads,
                         "max_position_embeddings": config.text_length,
                         "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1},
            vision_config={"image_size": config.image_size, "patch_size": config.patch_size,
                           "num_frames": config.num_frames, "hidden_size": config.width,
                           "intermediate_size": 2 * config.width, "num_hidden_layers": config.layers,
                           "num_attention_heads": config.heads, "mit_hidden_size": config.embed_dim,
                           "mit_intermediate_size": 2 * config.embed_dim, "mit_num_attention_heads": config.heads},
            projection_dim=config.embed_dim, prompt_layers=config.prompt_layers,
            prompt_num_attention_heads=config.heads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = XCLIPModel(form)
        processor = VideoMAEImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        return cls(model, ByT5Tokenizer(), processor, device=device)

    @classmethod
    def load(cls, name: str | os.PathLike, device: str | torch.device = "cpu") -> XClipEncoder:
        """A folder in the hub's layout (what `save` wrote), or a hub id such as microsoft/xclip-base-patch32.
        InputError for an unknown or damaged one, a model of another class, no network."""
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, XCLIPModel

        from ..goals import _quick_to_fail

        location = os.fspath(name)
        local = Path(location).is_dir()
        try:
            with _quick_to_fail():
                kind = AutoConfig.from_pretrained(location).model_type
                if kind != "xclip":
                    raise InputError(f"{location} is a {kind!r} model; valid: X-CLIP ('xclip')")
                parts = [loader.from_pretrained(location) for loader in (AutoTokenizer, AutoImageProcessor)]
                model, told = XCLIPModel.from_pretrained(location, dtype=torch.float32, output_loading_info=True)
                files.refuse_missing(location, told["missing_keys"])
        except InputError:
            raise
        # whatever the hub's client, the JSON and the safetensors readers raise, the user can only name a good model
        except Exception as problem:
            raise InputError(f"cannot load X-CLIP from {location!r} ({first_line(problem)}); valid: a folder in the "
                             f"hub's layout, or a hub id such as microsoft/xclip-base-patch32 while the network is "
                             f"there") from None
        return cls(model, *parts, name=None if local else location, device=device)

    def save(self, folder: str | os.PathLike, provenance: dict[str, Any] | None = None) -> None:
        """Write the folder that `load` and transformers read, whole or not at all, weights in half precision."""
        import copy

        with files.atomic_dir(folder) as temporary:
            copy.deepcopy(self.model).half().save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            if provenance is not None:
                files.write_json(temporary / "provenance.json", provenance)

    @property
    def identity(self) -> str:
        """The hub's id, or a digest of the weights (in the half precision that `save` keeps)."""
        return self.name or weights_digest(self.model)

    def pixels(self, clips: np.ndarray) -> torch.Tensor:
        """(N, num_frames, H, W, 3) uint8 -> (N, num_frames, 3, S, S) float32 as the model's preprocessor makes it."""
        if clips.shape[2:4] == (self.image_size, self.image_size):
            return (torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255 - self._mean) / self._std
        return torch.cat([self.processor(list(clip), return_tensors="pt")["pixel_values"] for clip in clips])

    def tokens(self, sentences: Sequence[str]) -> dict[str, torch.Tensor]:
        """M sentences -> input_ids and attention_mask (M, L); what does not fit into the model's length is cut off."""
        found = self.tokenizer(list(sentences), padding="max_length", max_length=self.text_length, truncation=True,
                               return_tensors="pt")
        return {"input_ids": found.input_ids.to(self.device), "attention_mask": found.attention_mask.to(self.device)}

    @torch.no_grad()
    def embed_video(self, clips: np.ndarray, batch: int = 16) -> np.ndarray:
        """Clips (N, K, H, W, 3) uint8 -> (N, d) float32: the mean over the frames after the last transformer."""
        clips = self.sample(clips)
        parts = [self._features(clips[begin:begin + batch]).pooler_output for begin in range(0, len(clips), batch)]
        return torch.cat(parts).float().cpu().numpy()

    @torch.no_grad()
    def embed_text(self, sentences: str | Sequence[str]) -> np.ndarray:
        """M sentences -> (M, d) float32, as they are before a video adapts them."""
        found = self.model.get_text_features(**self.tokens(sentence_list(sentences)))
        return found.pooler_output.float().cpu().numpy()

    @torch.no_grad()
    def embed_pair(self, clips: np.ndarray, sentence: str, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
        """Clips and one sentence, adapted to each clip by X-CLIP's video-specific prompt: twice (N, d) float32."""
        clips = self.sample(clips)
        text = self.model.get_text_features(**self.tokens(sentence_list(sentence))).pooler_output
        videos, texts = [], []
        for begin in range(0, len(clips), batch):
            found = self._features(clips[begin:begin + batch])
            n = len(found.pooler_output)
            patches = self.model.prompts_visual_layernorm(found.last_hidden_state[:, 1:])
            patches = (patches @ self.model.prompts_visual_projection).unflatten(0, (n, -1)).mean(dim=1)
            own = text.expand(n, 1, -1)
            videos.append(found.pooler_output)
            texts.append((own + self.model.prompts_generator(own, patches))[:, 0])
        return torch.cat(videos).float().cpu().numpy(), torch.cat(texts).float().cpu().numpy()

    def _features(self, clips: np.ndarray) -> Any:
        self.model.eval()
        return self.model.get_video_features(pixel_values=self.pixels(clips).to(self.device))


def weights_digest(module: nn.Module) -> str:
    """"weights " and 16 hex digits that name a module's weights, in half precision."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.half() if value.is_floating_point() else value
        total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"weights {total.hexdigest()[:16]}"


# ------------------------------------------------------------------------------------------------------------ S3D

class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; a separable one does space first and time after. The names of the parts here and
    below are those of the published weights."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (1, 1, 1),
                 padding: tuple[int, int, int] = (0, 0, 0), separable: bool = False) -> None:
        super().__init__()
        time, *space = kernel
        first = (1, *space) if separable else kernel
        self.conv1 = nn.Conv3d(inputs, outputs, first, padding=(0, *padding[1:]) if separable else padding, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.separable = separable
        if separable:
            self.conv2 = nn.Conv3d(outputs, outputs, (time, 1, 1), padding=(padding[0], 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nnf.relu(self.bn1(self.conv1(x)))
        return nnf.relu(self.bn2(self.conv2(x))) if self.separable else x


class _Gate(nn.Module):
    """Each channel times a sigmoid of all channels' means (S3D-G's feature gating)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc(x.mean(dim=(2, 3, 4))))[..., None, None, None]


class _Mixed(nn.Module):
    """An inception block: 1x1x1, two separable 3x3x3 behind bottlenecks, and a pooled branch, gated, side by side."""

    def __init__(self, inputs: int, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int) -> None:
        super().__init__()
        wide = {"kernel": (3, 3, 3), "padding": (1, 1, 1), "separable": True}
        self.conv_b0 = _Conv(inputs, b0)
        self.conv_b1_a, self.conv_b1_b = _Conv(inputs, b1[0]), _Conv(*b1, **wide)
        self.conv_b2_a, self.conv_b2_b = _Conv(inputs, b2[0]), _Conv(*b2, **wide)
        self.conv_b3_b = _Conv(inputs, b3)
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = map(_Gate, (b0, b1[1], b2[1], b3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.gating_b0(self.conv_b0(x)), self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
                          self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
                          self.gating_b3(self.conv_b3_b(nnf.max_pool3d(x, 3, stride=1, padding=1)))], dim=1)


# Channels of every inception block: alone, (bottleneck, out), (bottleneck, out), pooled (Xie et al. 2018).
_MIXED = {"mixed_3b": (64, (96, 128), (16, 32), 32), "mixed_3c": (128, (128, 192), (32, 96), 64),
          "mixed_4b": (192, (96, 208), (16, 48), 64), "mixed_4c": (160, (112, 224), (24, 64), 64),
          "mixed_4d": (128, (128, 256), (24, 64), 64), "mixed_4e": (112, (144, 288), (32, 64), 64),
          "mixed_4f": (256, (160, 320), (32, 128), 128), "mixed_5b": (256, (160, 320), (32, 128), 128),
          "mixed_5c": (384, (192, 384), (48, 128), 128)}
_POOLED_BEFORE = {"mixed_4b": (3, 3, 3), "mixed_5b": (2, 2, 2)}  # the pool's kernel; its stride is 2 everywhere


class _Words(nn.Module):
    """A bag of words: embeddings, a hidden layer, the largest value of each unit over the words, a linear layer."""

    def __init__(self, words: int, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(words, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(nnf.relu(self.fc1(self.word_embd(tokens))).amax(dim=1))


class S3D(nn.Module):
    """S3D-G with the space-to-depth stem and the word module of Miech et al. (2020), whose weights RoboCLIP used.

    forward   video (N, 3, T, H, W) in 0..1, T even, H and W multiples of 32 -> (N, 512)
    text_module(tokens)   (M, words) int64 -> (M, 512)
    """

    def __init__(self, dim: int = 512, words: int = 66250, word_width: int = 300, hidden: int = 2048) -> None:
        super().__init__()
        self.conv1 = _Conv(24, 64, (2, 4, 4), (1, 2, 2))
        self.conv_2b, self.conv_2c = _Conv(64, 64), _Conv(64, 192, (3, 3, 3), (1, 1, 1), separable=True)
        self.gating = _Gate(192)
        channels = 192
        for name, (b0, b1, b2, b3) in _MIXED.items():
            setattr(self, name, _Mixed(channels, b0, b1, b2, b3))
            channels = b0 + b1[1] + b2[1] + b3
        self.fc = nn.Linear(channels, dim)
        self.text_module = _Words(words, word_width, hidden, dim)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        n, c, t, h, w = video.shape
        blocks = video.view(n, c, t // 2, 2, h // 2, 2, w // 2, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
        # the first cell of each axis is cut off: together with the padding that is TensorFlow's "same"
        x = self.conv1(blocks.reshape(n, 8 * c, t // 2, h // 2, w // 2))[:, :, 1:, 1:, 1:]
        x = self.conv_2c(self.conv_2b(_pool_same(x, (1, 3, 3))))
        x = _pool_same(self.gating(x), (1, 3, 3))
        for name in _MIXED:
            if name in _POOLED_BEFORE:
                x = _pool_same(x, _POOLED_BEFORE[name])
            x = getattr(self, name)(x)
        return self.fc(x.mean(dim=(2, 3, 4)))


def _pool_same(x: torch.Tensor, kernel: tuple[int, int, int]) -> torch.Tensor:
    """Max pooling by 2 (by 1 in an axis whose kernel is 1), zeros added at the far end as TensorFlow does it."""
    stride = tuple(min(size, 2) for size in kernel)
    time, height, width = (size - step for size, step in zip(kernel, stride, strict=True))
    return nnf.max_pool3d(nnf.pad(x, (0, width, 0, height, 0, time)), kernel, stride, ceil_mode=True)


class S3DEncoder(VideoTextEncoder):
    """S3D trained on HowTo100M, RoboCLIP's own encoder, from a local file that the user has.

    Its weights are on no package registry: `load` takes the published state file (s3d_howto100m.pth), or a TorchScript
    module (N, 3, T, H, W) in 0..1 -> (N, d). Frames are scaled to `image_size` and fed as 0..1.

    words     word -> number (from 1; 0 is padding), for sentences; None: videos only
    """

    max_words = 16

    def __init__(self, network: nn.Module, words: dict[str, int] | None = None, num_frames: int = 32,
                 image_size: int = 224, device: str | torch.device = "cpu") -> None:
        if num_frames < 2 or num_frames % 2 or image_size < 32 or image_size % 32:
            raise InputError(f"S3D takes an even number of frames and a multiple of 32 pixels, got {num_frames} and "
                             f"{image_size}")
        self.network, self.words = network.to(device).eval(), words
        self.num_frames, self.image_size, self.device = num_frames, image_size, torch.device(device)
        self.identity = weights_digest(network)

    @classmethod
    def load(cls, path: str | os.PathLike, words: str | os.PathLike | None = None, num_frames: int = 32,
             image_size: int = 224, device: str | torch.device = "cpu") -> S3DEncoder:
        """A state file or TorchScript module, and the published list of words (s3d_dict.npy) for sentences.
        InputError for a file that is missing or is neither."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no such S3D file: {path}; valid: the HowTo100M state file (s3d_howto100m.pth) or a "
                             f"TorchScript module, which no package registry holds")
        vocabulary = None
        if words is not None:
            try:
                listed = np.load(words, allow_pickle=False)
                vocabulary = {str(word): number for number, word in enumerate(listed.tolist(), 1)}
            except (OSError, ValueError, TypeError) as problem:
                raise InputError(f"{words} is not a list of words in .npy ({first_line(problem)})") from None
        return cls(cls._network(path), vocabulary, num_frames, image_size, device)

    @staticmethod
    def _network(path: Path) -> nn.Module:
        try:
            return torch.jit.load(path, map_location="cpu")
        except RuntimeError:  # no TorchScript: a state file then
            pass
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            shape = state["text_module.word_embd.weight"].shape
            network = S3D(len(state["fc.bias"]), *shape, len(state["text_module.fc1.bias"]))
            network.load_state_dict(state)
            return network
        except Exception as problem:  # pickle, zip, key and shape errors all mean that this is another file
            raise InputError(f"{path} is neither a TorchScript module nor the state file of S3D on HowTo100M "
                             f"({first_line(problem)})") from None

    @torch.no_grad()
    def embed_video(self, clips: np.ndarray, batch: int = 4) -> np.ndarray:
        """Clips (N, K, H, W, 3) uint8 -> (N, d) float32."""
        from ..demos import resize

        clips, parts = self.sample(clips), []
        for begin in range(0, len(clips), batch):
            some = np.stack([resize(clip, self.image_size) for clip in clips[begin:begin + batch]])
            parts.append(self.network(torch.from_numpy(some).permute(0, 4, 1, 2, 3).float().to(self.device) / 255))
        return torch.cat(parts).float().cpu().numpy()

    @torch.no_grad()
    def embed_text(self, sentences: str | Sequence[str]) -> np.ndarray:
        """M sentences -> (M, d) float32; words that the list does not know are passed over."""
        if self.words is None or not hasattr(self.network, "text_module"):
            raise InputError("this S3D encodes videos only; for sentences load the state file together with its list "
                             "of words (s3d_dict.npy)")
        rows = []
        for sentence in sentence_list(sentences):
            found = [self.words[word] for word in re.findall(r"[\w']+", sentence.lower()) if word in self.words]
            if not found:
                raise InputError(f"S3D knows no word of {sentence!r}")
            rows.append((found + [0] * self.max_words)[:self.max_words])
        return self.network.text_module(torch.tensor(rows, device=self.device)).float().cpu().numpy()
