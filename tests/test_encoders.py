"""Frozen encoders: real loading code on tiny random checkpoints in the hub's format, exact PCA, bad input."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import genreward  # noqa: F401  (import order, see genreward/__init__.py)
from genreward.encoders import PCA, Encoder, get_encoder
from genreward.errors import InputError


class FakeVideoModel:
    """What `VAEEncoder` asks of a VideoModel; each latent pixel is a block mean, so the answer is known."""

    image_size = 16

    def encode_batch(self, clips: np.ndarray) -> torch.Tensor:
        n, k, h, w, _ = clips.shape
        assert k == 1
        blocks = torch.from_numpy(clips.astype(np.float32)).reshape(n, k, h // 4, 4, w // 4, 4, 3).mean((3, 5))
        return blocks.permute(0, 4, 1, 2, 3)


class FakeScorer:
    def encode_image(self, frames: np.ndarray) -> np.ndarray:
        mean = frames.reshape(len(frames), -1, 3).mean(1).astype(np.float32) + 1.0
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny random models, saved as the hub's repositories are laid out: config, weights, preprocessor."""
    import transformers

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8)
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
                max_position_embeddings=8, projection_size=16)
    dino = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(image_size=32, num_register_tokens=2, **small))
    dino.save_pretrained(root / "dinov3")
    size = {"height": 32, "width": 32}
    transformers.DINOv3ViTImageProcessor(size=size).save_pretrained(root / "dinov3")
    # the fixed-resolution SigLIP 2 checkpoints of the hub are of SigLIP's classes, text tower included
    siglip = transformers.SiglipModel(transformers.SiglipConfig(text_config=text,
                                                                vision_config={"image_size": 32, **small}))
    siglip.save_pretrained(root / "siglip2")
    transformers.SiglipImageProcessor(size=size).save_pretrained(root / "siglip2")
    naflex = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(num_patches=16, **small))
    naflex.save_pretrained(root / "naflex")
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(root / "naflex")
    return root, {"dinov3": dino.eval(), "siglip2": siglip.eval()}


@pytest.mark.parametrize(("name", "folder"), [("dinov3", "dinov3"), ("siglip2", "siglip2"), ("siglip2", "naflex")])
def test_transformers_encoder_loads_and_is_deterministic(checkpoints, frames, name, folder):
    root, _ = checkpoints
    encoder = get_encoder(name, model=root / folder, chunk=4)
    features = encoder.encode(frames)
    assert features.shape == (13, 16) == (13, encoder.dim)
    assert features.dtype == np.float32 and np.isfinite(features).all()
    np.testing.assert_array_equal(features, encoder.encode(frames))
    assert not encoder.network.training and not any(p.requires_grad for p in encoder.network.parameters())
    # chunks are an implementation detail, and different frames have different features
    np.testing.assert_allclose(features[5:6], encoder.encode(frames[5:6]), atol=1e-5)
    assert np.abs(features - features[:1]).max(1)[1:].min() > 1e-4
    assert encoder.describe()["source"] == folder


def test_dinov3_features_are_the_class_token(checkpoints, frames):
    root, models = checkpoints
    encoder = get_encoder("dinov3", model=root / "dinov3")
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = models["dinov3"]((pixels - mean) / std).last_hidden_state[:, 0]
    np.testing.assert_allclose(encoder.encode(frames), expected.numpy(), atol=2e-2)


def test_siglip2_gives_the_vision_tower_of_the_whole_model(checkpoints, frames):
    root, models = checkpoints
    encoder = get_encoder("siglip2", model=root / "siglip2")
    inputs = encoder.processor(images=list(frames), return_tensors="pt")
    with torch.no_grad():
        expected = models["siglip2"].vision_model(**inputs).pooler_output
    np.testing.assert_allclose(encoder.encode(frames), expected.numpy(), atol=1e-5)


def test_transformers_encoder_refuses_what_it_cannot_use(checkpoints, renamed, tmp_path, monkeypatch):
    import huggingface_hub.constants

    root, _ = checkpoints
    with pytest.raises(InputError, match="not one for 'dinov3'"):
        get_encoder("dinov3", model=root / "siglip2")
    with pytest.raises(InputError, match="no such model folder"):
        get_encoder("dinov3", model=tmp_path / "nothing")
    for family in ("dinov3", "siglip2"):
        shutil.copytree(root / family, tmp_path / family)
        name = renamed(tmp_path / family / "model.safetensors", "layer" if family == "dinov3" else "vision_model.enc")
        with pytest.raises(InputError, match=f"{family} lacks 1 weights of its config, .*{name.rpartition('.')[2]}"):
            get_encoder(family, model=tmp_path / family)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(InputError) as caught:
        get_encoder("dinov3", model=tmp_path / "broken")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        get_encoder("siglip2", model="nobody/no-such-model-at-all")
    assert "\n" not in str(caught.value) and "nobody/no-such-model-at-all" in str(caught.value)


def test_pca_equals_the_singular_vectors_either_way_round():
    rng = np.random.default_rng(1)
    for shape in ((40, 6), (8, 30)):
        features = rng.normal(size=shape) * np.linspace(1, 4, shape[1])
        pca = PCA.fit(features, 3)
        _, values, vectors = np.linalg.svd(features - features.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(pca.axes), np.abs(vectors[:3]), atol=1e-5)
        np.testing.assert_allclose(pca.variance, values[:3] ** 2 / (shape[0] - 1), rtol=1e-5)
        np.testing.assert_allclose(pca.axes @ pca.axes.T, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(pca(features).var(0, ddof=1), pca.variance, rtol=1e-4)
        # the order of the frames decides nothing, not even a sign
        np.testing.assert_allclose(PCA.fit(features[::-1], 3).axes, pca.axes, atol=1e-5)
    with pytest.raises(InputError, match="need more than"):
        PCA.fit(rng.normal(size=(3, 10)), 3)
    with pytest.raises(InputError, match="fewer than 2 directions"):
        PCA.fit(np.outer(np.arange(5.0), np.ones(4)), 2)


def test_vae_encoder_flattens_the_mode_and_keeps_its_axes(frames, tmp_path):
    encoder = get_encoder("vae", video_model=FakeVideoModel(), components=4, chunk=5)
    assert (encoder.raw_dim, encoder.dim) == (48, 4)
    raw = FakeVideoModel().encode_batch(frames[:, None]).flatten(1).numpy()
    np.testing.assert_allclose(encoder.raw(frames), raw)
    with pytest.raises(InputError, match=r"call fit\(frames\)"):
        encoder.encode(frames)
    features = encoder.fit(frames).encode(frames)
    np.testing.assert_allclose(features, PCA.fit(raw, 4)(raw), atol=1e-4)
    encoder.save(tmp_path / "axes.npz")
    again = get_encoder("vae", video_model=FakeVideoModel(), components=4, pca=tmp_path / "axes.npz")
    np.testing.assert_allclose(again.encode(frames), features, atol=1e-4)
    encoder.save(tmp_path / "half.npz", np.float16)
    half = get_encoder("vae", video_model=FakeVideoModel(), components=4, pca=tmp_path / "half.npz")
    assert half.pca.axes.dtype == np.float32 and not np.array_equal(half.pca.axes, encoder.pca.axes)
    np.testing.assert_allclose(half.encode(frames), features, atol=2e-3 * np.abs(features).max())

    with pytest.raises(InputError, match="4 axes"):
        get_encoder("vae", video_model=FakeVideoModel(), components=5, pca=tmp_path / "axes.npz")
    whole = (tmp_path / "axes.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match="not a complete file"):
        again.load_pca(tmp_path / "cut.npz")
    with pytest.raises(InputError, match="no such file"):
        again.load_pca(tmp_path / "none.npz")


def test_openclip_and_concat(frames):
    clip = get_encoder("openclip", scorer=FakeScorer())
    np.testing.assert_allclose(clip.encode(frames), FakeScorer().encode_image(frames))
    both = get_encoder("concat", encoders=[clip, get_encoder("vae", video_model=FakeVideoModel(), components=2)])
    features = both.fit(frames).encode(frames)
    assert features.shape == (13, 5) == (13, both.dim)
    np.testing.assert_array_equal(features[:, :3], clip.encode(frames))


def test_bad_input_is_one_line(frames):
    with pytest.raises(InputError, match="unknown encoder 'dino'; valid: concat, dinov3, openclip, siglip2, vae"):
        get_encoder("dino")
    with pytest.raises(InputError, match="video_model="):
        get_encoder("vae")
    with pytest.raises(InputError, match="scorer="):
        get_encoder("openclip")
    with pytest.raises(InputError, match="at least one"):
        get_encoder("concat")
    clip = get_encoder("openclip", scorer=FakeScorer())
    for bad in (frames.astype(np.float32), frames[0], frames[:0]):
        with pytest.raises(InputError):
            clip.encode(bad)
    with pytest.raises(InputError, match="16x16"):
        get_encoder("vae", video_model=FakeVideoModel()).raw(frames[:, :8])
    with pytest.raises(TypeError):
        Encoder("x", "x", 3).encode(frames)
