"""psi: the frozen image encoders whose features the forward-backward maps learn from.

In the flow: a goal frame comes from `goals`, observations from `envs`; both pass through the same encoder here, and
`forward_backward` only ever sees the features. An encoder is never trained, hence a frame is encoded once, when it is
collected.

| name     | model                                       | what is pooled into one vector a frame                |
|----------|---------------------------------------------|-------------------------------------------------------|
| vae      | CogVideoX's VAE on a clip of one frame      | mode of the latent, flattened, then principal axes    |
| openclip | image tower of a `goals.FrameScorer`        | the projected embedding, of unit length               |
| dinov3   | DINOv3 from the hub or a folder (the paper) | `pooler_output`: the class token after the last norm  |
| siglip2  | SigLIP 2 from the hub or a folder (Table C) | `pooler_output`: the attention-pooling head           |
| concat   | several of the above                        | their features side by side                           |

Principal components, where asked for, are fitted once by `fit` and saved with `save`; every other number is that of the
frozen model.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import errors
from .errors import InputError
from .files import atomic_path, refuse_missing
from .trajectory import check_frames

NAMES = ("concat", "dinov3", "openclip", "siglip2", "vae")
DINOV3 = "facebook/dinov3-vits16-pretrain-lvd1689m"  # gated: its licence has to be accepted on the hub once
SIGLIP2 = "google/siglip2-base-patch16-224"


@dataclass(frozen=True)
class PCA:
    """Principal axes of features: mean (D,), axes (k, D) with orthonormal rows, variance (k,) along each."""

    mean: np.ndarray
    axes: np.ndarray
    variance: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, components: int) -> PCA:
        """The `components` directions of the largest variance of features (N, D), N > components, D >= components.

        Exact, by the eigenvectors of the smaller of the two Gram matrices. The sign of an axis, which is arbitrary, is
        chosen so that its largest entry is positive: the same features always give the same axes.
        """
        features = np.asarray(features, np.float64)
        n, dim = features.shape
        if not 1 <= components <= min(n - 1, dim):
            raise InputError(f"{components} principal components need more than {components} frames and as many "
                             f"features, got {n} frames of {dim} features")
        mean = features.mean(0)
        centred = features - mean
        if dim <= n:
            values, vectors = np.linalg.eigh(centred.T @ centred)
            axes = vectors[:, ::-1][:, :components].T
        else:
            values, vectors = np.linalg.eigh(centred @ centred.T)
            axes = vectors[:, ::-1][:, :components].T @ centred
        values = np.clip(values[::-1][:components], 0.0, None)
        if values[-1] <= 1e-10 * max(values[0], 1e-300):
            raise InputError(f"the frames vary in fewer than {components} directions; give more or other frames")
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        axes *= np.sign(axes[np.arange(components), np.abs(axes).argmax(1)])[:, None]
        return cls(mean.astype(np.float32), axes.astype(np.float32), (values / (n - 1)).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, k) float32."""
        return ((features - self.mean) @ self.axes.T).astype(np.float32)


class Encoder:
    """Frames to features: deterministic, in evaluation mode, without gradients, in chunks of `chunk` frames.

    name        as in `get_encoder`
    source      what the weights are (a hub id, a folder's name, ...), for provenance
    components  principal components to reduce to, or None for the model's own features
    """

    def __init__(self, name: str, source: str, raw_dim: int, components: int | None = None, chunk: int = 64,
                 image_size: int | None = None) -> None:
        if chunk < 1 or (components is not None and components < 1):
            raise InputError(f"chunk and components must be at least 1, got {chunk} and {components}")
        self.name, self.source, self.raw_dim, self.chunk = name, source, int(raw_dim), int(chunk)
        self.components, self.image_size, self.pca = components, image_size, None

    @property
    def dim(self) -> int:
        """Length of a frame's feature vector."""
        return self.raw_dim if self.components is None else self.components

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> (N, dim) float32. InputError for other frames, or principal axes not fitted yet."""
        if self.components is not None and self.pca is None:
            raise InputError(f"the encoder {self.name!r} reduces to {self.components} principal components: "
                             "call fit(frames) or load_pca(path) first")
        features = self.raw(frames)
        return features if self.pca is None else self.pca(features)

    def raw(self, frames: np.ndarray) -> np.ndarray:
        """The model's own features before any reduction: (N, H, W, 3) uint8 -> (N, raw_dim) float32."""
        frames = check_frames(frames, size=self.image_size)
        with torch.inference_mode():
            parts = [np.asarray(self._features(frames[begin:begin + self.chunk]), np.float32)
                     for begin in range(0, len(frames), self.chunk)]
        return np.concatenate(parts)

    def fit(self, frames: np.ndarray) -> Encoder:
        """Fit the principal axes on frames (N, H, W, 3), N > components; nothing to do without `components`."""
        if self.components is not None:
            self.pca = PCA.fit(self.raw(frames), self.components)
        return self

    def save(self, path: str | os.PathLike, dtype: type = np.float32) -> None:
        """Write the fitted principal axes (.npz); the model itself stays where it came from. As float16 they take half
        the room: an axis then is off by a thousandth at most, and `encode` with the axes read back is what to use."""
        if self.pca is None:
            raise InputError(f"the encoder {self.name!r} has no fitted principal axes to save; call fit(frames) first")
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, name=self.name, mean=self.pca.mean, axes=self.pca.axes.astype(dtype),
                     variance=self.pca.variance)

    def load_pca(self, path: str | os.PathLike) -> Encoder:
        """Read what `save` wrote; InputError for a missing or damaged file, or axes of another encoder."""
        try:
            with np.load(path, allow_pickle=False) as file:
                name, pca = str(file["name"]), PCA(file["mean"], file["axes"].astype(np.float32), file["variance"])
        except FileNotFoundError:
            raise InputError(f"no such file of principal axes: {path}") from None
        except Exception as problem:  # a damaged zip archive raises whatever its reader stumbled on
            raise InputError(f"{path} is not a complete file of principal axes ({type(problem).__name__})") from None
        if name != self.name or pca.axes.shape != (self.components, self.raw_dim):
            raise InputError(f"{path} holds {pca.axes.shape[0]} axes of {pca.axes.shape[1]} features for {name!r}; "
                             f"this is {self.name!r} with {self.components} of {self.raw_dim}")
        self.pca = pca
        return self

    def describe(self) -> dict[str, Any]:
        """For provenance: name, source, dim, raw_dim."""
        return {"name": self.name, "source": self.source, "dim": self.dim, "raw_dim": self.raw_dim}

    def _features(self, frames: np.ndarray) -> np.ndarray | torch.Tensor:
        """One chunk (n, H, W, 3) -> (n, raw_dim)."""
        raise TypeError("use get_encoder: a plain Encoder has no model")


class VAEEncoder(Encoder):
    """The mode (not a sample) of CogVideoX's VAE latent of each frame, taken as a clip of one frame.

    The same VAE serves the video-level reward, so no further model is needed. The frames must have the video model's
    image size: the latent's length depends on it.
    """

    def __init__(self, video_model: Any, components: int | None = 64, chunk: int = 32) -> None:
        size = int(video_model.image_size)
        blank = np.zeros((1, 1, size, size, 3), np.uint8)
        raw_dim = int(np.prod(video_model.encode_batch(blank).shape[1:]))
        super().__init__("vae", "CogVideoX VAE", raw_dim, components, chunk, size)
        self.video_model = video_model

    def _features(self, frames: np.ndarray) -> torch.Tensor:
        return self.video_model.encode_batch(frames[:, None]).flatten(1).float().cpu()


class OpenCLIPEncoder(Encoder):
    """The image tower of a frame scorer; its embeddings have unit length."""

    def __init__(self, scorer: Any, source: str = "OpenCLIP", components: int | None = None, chunk: int = 64) -> None:
        blank = np.zeros((1, 64, 64, 3), np.uint8)
        super().__init__("openclip", source, np.asarray(scorer.encode_image(blank)).shape[-1], components, chunk)
        self.scorer = scorer

    def _features(self, frames: np.ndarray) -> np.ndarray:
        return self.scorer.encode_image(frames)


class TransformersEncoder(Encoder):
    """The pooled output of a vision model in the hub's format, with the preprocessing that is saved beside it.

    model  a hub id or a folder. A checkpoint of an image-text model (SigLIP 2's) gives its vision tower. Checkpoints
           without a preprocessor are refused: the right size and normalisation cannot be guessed.
    """

    families = {"dinov3": ("dinov3_vit", "dinov3_convnext"),
                "siglip2": ("siglip2", "siglip2_vision_model", "siglip", "siglip_vision_model")}

    def __init__(self, name: str, model: str | os.PathLike, components: int | None = None, chunk: int = 32,
                 device: str | torch.device = "cpu") -> None:
        import transformers

        location = os.fspath(model)
        if (Path(location).is_absolute() or location.startswith(".")) and not Path(location).is_dir():
            raise InputError(f"no such model folder: {location}")
        with _quiet(fetch=not Path(location).is_dir()):
            try:
                config = transformers.AutoConfig.from_pretrained(location)
                if config.model_type not in self.families[name]:
                    raise InputError(f"{location} is a {config.model_type!r} model, not one for {name!r}; "
                                     f"valid: {', '.join(self.families[name])}")
                self.processor = transformers.AutoImageProcessor.from_pretrained(location)
                towers = {"siglip": transformers.SiglipVisionModel, "siglip2": transformers.Siglip2VisionModel}
                network, told = towers.get(config.model_type, transformers.AutoModel).from_pretrained(
                    location, output_loading_info=True)
                refuse_missing(location, told["missing_keys"])
            except InputError:
                raise
            # whatever the hub's client, the JSON and the safetensors readers raise, the user can only name a good model
            except Exception as problem:
                reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
                raise InputError(f"cannot load {location!r} for {name!r} ({reason[:160]}); valid: a folder in the "
                                 f"hub's format, or a hub id while the network is there") from None
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        source = Path(location).name if Path(location).is_dir() else location
        sizes = getattr(network.config, "hidden_sizes", None)
        super().__init__(name, source, sizes[-1] if sizes else network.config.hidden_size, components, chunk)

    def _features(self, frames: np.ndarray) -> torch.Tensor:
        inputs = self.processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")
        pooled = self.network(**inputs.to(self.device)).pooler_output
        return pooled.flatten(1).float().cpu()


class ConcatEncoder(Encoder):
    """The features of several encoders side by side. Their scales may differ: give F and B `scaling="each"` then."""

    def __init__(self, parts: Sequence[Encoder]) -> None:
        if not parts:
            raise InputError("concat needs at least one encoder; give encoders=[...]")
        super().__init__("concat", " + ".join(part.source for part in parts), sum(part.dim for part in parts))
        self.parts = list(parts)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.concatenate([part.encode(frames) for part in self.parts], axis=1)

    raw = encode

    def fit(self, frames: np.ndarray) -> Encoder:
        for part in self.parts:
            part.fit(frames)
        return self


def get_encoder(name: str, *, video_model: Any | None = None, scorer: Any | None = None,
                model: str | os.PathLike | None = None, pretrained: str | None = None,
                encoders: Sequence[Encoder] | None = None, components: int | None = None,
                pca: str | os.PathLike | None = None, chunk: int = 32, device: str | torch.device = "cpu") -> Encoder:
    """The encoder of that name (see the table at the module's head).

    video_model  for "vae": a `video_model.VideoModel`; 64 components unless said otherwise
    scorer       for "openclip": a `goals.FrameScorer`; else `model` and `pretrained` as `FrameScorer.load` takes them
    model        for "dinov3" and "siglip2": a hub id or a folder (default: a small published checkpoint)
    encoders     for "concat": the encoders to join
    components   reduce to so many principal components, to be fitted by `fit`, or read from `pca` (a file of `save`)

    Raises InputError for an unknown name, a missing part, a model that cannot be loaded (also without network).
    """
    if name not in NAMES:
        raise errors.unknown("encoder", name, NAMES)
    if name == "vae":
        if video_model is None:
            raise InputError("the encoder 'vae' needs video_model=, a VideoModel")
        encoder: Encoder = VAEEncoder(video_model, 64 if components is None else components, chunk)
    elif name == "openclip":
        source = "OpenCLIP (frame scorer)"
        if scorer is None:
            if model is None:
                raise InputError("the encoder 'openclip' needs scorer=, a FrameScorer, or model= (and pretrained=)")
            from .goals import FrameScorer

            scorer = FrameScorer.load(model, pretrained, device)
            source = f"{Path(model).name} {pretrained or ''}".strip()
        encoder = OpenCLIPEncoder(scorer, source, components, chunk)
    elif name == "concat":
        encoder = ConcatEncoder(encoders or ())
    else:
        encoder = TransformersEncoder(name, model or {"dinov3": DINOV3, "siglip2": SIGLIP2}[name], components, chunk,
                                      device)
    return encoder.load_pca(pca) if pca is not None else encoder


@contextlib.contextmanager
def _quiet(fetch: bool) -> Iterator[None]:
    """Loading a vision tower out of an image-text model reports every text weight as unexpected; it is. Where the hub
    would be asked (`fetch`) and there is no network, only its cache is."""
    if fetch:
        from .goals import _quick_to_fail as network
    else:
        network = contextlib.nullcontext
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with network():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
