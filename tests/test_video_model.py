"""The video model: lengths, determinism, the training targets' closed form, files, resume, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D

from genreward import demos, video_model, video_training
from genreward.errors import InputError
from genreward.profiles import VideoConfig
from genreward.video_model import VideoModel

CONFIG = VideoConfig(image_size=32, num_frames=9, vae_channels=(8, 8, 8), vae_norm_groups=4, latent_channels=4, heads=2,
                     head_dim=16, layers=2, text_dim=16, text_layers=1, text_heads=2, text_length=16, vae_steps=6,
                     vae_batch=2, pretrain_steps=6, batch=2, learning_rate=1e-2, lora_rank=2, lora_steps=6,
                     lora_learning_rate=2e-2, ema_decay=0.5, inference_steps=2, guidance=1.5)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return VideoModel.small(CONFIG, seed=0)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)


def square(rightwards: bool, frames: int = 17) -> np.ndarray:
    """A red square on grey that crosses the picture."""
    video = np.full((frames, 32, 32, 3), 90, np.uint8)
    for number in range(frames):
        place = number if rightwards else frames - number
        video[number, 12:20, place:place + 8] = (220, 30, 30)
    return video


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> object:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(6):
        name = f"clip{number}.mp4"
        demos.write_video(folder / name, square(number % 2 == 0))
        rows.append({"file_name": name, "text": f"move the square {'right' if number % 2 == 0 else 'left'}",
                     "task": "reach", "kind": "expert", "split": "test" if number >= 4 else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> object:
    out = tmp_path_factory.mktemp("trained")
    video_training.train_vae(data, out, CONFIG, steps=2, log_every=1)
    video_training.pretrain_transformer(data, out, CONFIG, steps=2, log_every=1)
    return out


def losses(path) -> list[tuple[str, str]]:
    with open(path, newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------------- encode and decode


@pytest.mark.parametrize("frames, latents", [(1, 1), (9, 3), (17, 5)])
def test_causal_lengths_come_back(model, clip, frames, latents):
    encoded = model.encode(clip[:frames])
    assert encoded.shape == (4, latents, 8, 8) and encoded.dtype == torch.float32
    assert video_model.latent_length(frames) == latents
    assert model.decode(encoded).shape == (frames, 32, 32, 3)


def test_another_length_is_spread_over_num_frames(model, clip):
    chosen = np.linspace(0, 12, 9).round().astype(int)
    assert torch.equal(model.encode(clip[:13]), model.encode(clip[:13][chosen]))


def test_encode_is_the_mode_whatever_the_random_state_and_batch(model, clip):
    clips = np.stack([clip[:9], clip[8:17], clip[4:13]])
    torch.manual_seed(1)
    together = model.encode_batch(clips)
    torch.manual_seed(2)
    assert torch.equal(together, model.encode_batch(clips))
    alone = torch.stack([model.encode(one) for one in clips])
    assert torch.allclose(together, alone, atol=0.02 * float(alone.abs().max()))
    assert not torch.allclose(alone[0], alone[1], atol=0.02 * float(alone.abs().max()))


def test_a_stream_of_nine_then_eights_equals_the_whole(model, clip):
    streamed = torch.cat(list(model.encode_stream([clip[:9], clip[9:]])), 1)
    assert torch.allclose(streamed, model.encode(clip), atol=1e-5)
    with pytest.raises(InputError, match="chunk 1 must hold 8 frames"):
        list(model.encode_stream([clip[:9], clip[9:13]]))


def test_the_faster_decoder_norm_equals_diffusers_own():
    torch.manual_seed(0)
    norm = CogVideoXSpatialNorm3D(8, 4, 4)
    latents = torch.randn(2, 4, 3, 4, 4)
    for shape in ((2, 8, 9, 16, 16), (2, 8, 3, 4, 4), (2, 8, 5, 8, 8)):
        features = torch.randn(shape)
        assert torch.allclose(video_model._spatial_norm(norm, features, latents)[0],
                              CogVideoXSpatialNorm3D.forward(norm, features, latents)[0], atol=1e-5)
    even, one = torch.randn(2, 8, 4, 8, 8), torch.randn(2, 4, 2, 4, 4)
    assert torch.allclose(video_model._spatial_norm(norm, even, one)[0],
                          CogVideoXSpatialNorm3D.forward(norm, even, one)[0], atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- generation


def test_generation_depends_on_the_seed_and_not_on_the_place_in_the_batch(model, clip):
    first = model.generate(clip[0], "open the door", seed=3)
    assert first.shape == (9, 32, 32, 3) and first.dtype == np.uint8
    torch.manual_seed(5)
    assert np.array_equal(first, model.generate(clip[0], "open the door", seed=3))
    other = model.generate(clip[0], "open the door", seed=4)
    assert not np.array_equal(first, other)
    batch = model.generate_batch([clip[1], clip[0]], ["close it", "open the door"], [9, 3])
    difference = np.abs(batch[1].astype(int) - first).mean()
    assert difference < 0.2 * np.abs(other.astype(int) - first).mean()


def test_generation_is_told_the_first_frame_and_the_length(model, clip):
    assert model.generate(clip[0], "open", seed=0, num_frames=17).shape[0] == 17
    assert not np.array_equal(model.generate(clip[0], "open", seed=0), model.generate(clip[5], "open", seed=0))


def test_a_square_frame_is_widened_for_a_wider_model_and_cut_back(model, clip):
    wide = SimpleNamespace(frame_shape=(32, 48))
    padded = VideoModel.pad(wide, clip[:2])
    assert padded.shape == (2, 32, 48, 3)
    assert np.array_equal(padded[:, :, 8:40], clip[:2]) and np.array_equal(padded[:, :, 0], clip[:2, :, 0])


# -------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_that_of_the_closed_form(model, kind):
    """A transformer that answers zero is charged the mean square of the target; what it is shown is Eq. 1."""
    made = VideoModel.small(dataclasses.replace(CONFIG, prediction_type=kind), seed=0)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 4, 8, 8, generator=generator) for _ in range(2))
    times = torch.tensor([100, 700])
    shown = {}

    class Zero(torch.nn.Module):
        config = made.transformer.config

        def forward(self, **arguments):
            shown.update(arguments)
            return (torch.zeros_like(clean),)

    weight = torch.rand(3, 8, 8, generator=generator)
    loss = video_training.DiffusionLoss(made, weight, learn_text=False)
    loss.transformer = Zero()
    image, text = torch.randn(2, 1, 4, 8, 8), torch.randn(2, 16, 16)
    value = loss(clean, image, text, torch.tensor([1, 0]), noise, times)

    kept = made.pipe.scheduler.alphas_cumprod[times].float().view(2, 1, 1, 1, 1)
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[kind]
    assert math.isclose(float(value), float((weight * target.square().mean(2)).mean()), rel_tol=1e-5)
    assert torch.allclose(shown["hidden_states"][:, :, :4], alpha * clean + sigma * noise, atol=1e-5)
    assert torch.equal(shown["hidden_states"][:, :1, 4:], image)
    assert not shown["hidden_states"][:, 1:, 4:].any()
    assert torch.equal(shown["encoder_hidden_states"], text[[1, 0]])


def test_an_unknown_target_is_refused():
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="score"))
    with pytest.raises(InputError, match="unknown prediction_type 'score'"):
        video_training.prediction_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_the_rate_warms_up_and_falls_with_steps_or_with_the_clock():
    by_steps = video_training.Schedule(100, None, 1.0)
    assert by_steps.rate(0, 0.0) == pytest.approx(0.1)
    assert by_steps.rate(50, by_steps.progress(50, 0.0)) == pytest.approx(0.51)
    assert by_steps.rate(100, 1.0) == pytest.approx(0.02)
    by_clock = video_training.Schedule(100, 2.0, 1.0)
    assert by_clock.progress(1_000_000, 60.0) == 0.5 and by_clock.progress(1, 500.0) == 1.0


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_saved_model_comes_back(model, clip, tmp_path):
    model.save(tmp_path / "exact", torch.float32)
    model.save(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "model_index.json").read_text())["_class_name"] == (
        "CogVideoXImageToVideoPipeline")
    exact, half = VideoModel.load(tmp_path / "exact"), VideoModel.load(tmp_path / "half")
    assert (exact.num_frames, exact.steps, exact.guidance) == (9, 2, 1.5)
    assert torch.allclose(exact.encode(clip), model.encode(clip), atol=1e-6)
    video = model.generate(clip[0], "open", seed=1).astype(int)
    assert np.abs(exact.generate(clip[0], "open", seed=1) - video).max() <= 1
    assert np.abs(half.generate(clip[0], "open", seed=1) - video).mean() < 3
    assert half.pipe.vae.dtype == torch.float32


def test_a_lora_saved_loaded_and_fused_is_the_same(data, trained, tmp_path, clip):
    adapted = video_training.finetune_lora(data, tmp_path, CONFIG, model=trained, steps=4, log_every=1)
    base, loaded = VideoModel.load(trained), VideoModel.load(trained, lora=tmp_path)
    fused = VideoModel.load(trained, lora=tmp_path / "lora", fuse=True)
    inputs = dict(hidden_states=torch.randn(1, 3, 8, 8, 8), encoder_hidden_states=torch.randn(1, 16, 16),
                  timestep=torch.tensor([300]),
                  image_rotary_emb=base.pipe._prepare_rotary_positional_embeddings(32, 32, 3, torch.device("cpu")))
    with torch.no_grad():
        plain, ours, again, added = (m.transformer(**inputs).sample for m in (base, adapted, loaded, fused))
    assert torch.allclose(ours, again, atol=2e-3) and torch.allclose(again, added, atol=1e-4)
    assert (plain - again).abs().max() > 10 * (ours - again).abs().max()
    fused.save(tmp_path / "fused")
    with pytest.raises(InputError, match="carries a LoRA"):
        loaded.save(tmp_path / "not")


def test_damaged_folders_are_named(trained, renamed, tmp_path):
    with pytest.raises(InputError, match="no such video model folder"):
        VideoModel.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no video model"):
        VideoModel.load(tmp_path / "empty")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    cut, remove = (lambda file: file.write_bytes(file.read_bytes()[:2000])), (lambda file: file.unlink())
    for name, damage in (("cut", cut), ("gone", remove)):
        shutil.copytree(trained / "model", tmp_path / name)
        damage(tmp_path / name / weights)
        with pytest.raises(InputError, match="missing or cut short"):
            VideoModel.load(tmp_path / name)
    shutil.copytree(trained / "model", tmp_path / "other")
    config = json.loads((tmp_path / "other/transformer/config.json").read_text())
    (tmp_path / "other/transformer/config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(InputError, match="lacks .* weights of its config"):
        VideoModel.load(tmp_path / "other")
    for part, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shutil.copytree(trained / "model", tmp_path / part)
        name = renamed(tmp_path / part / part / f"{file}.safetensors", "encoder.")
        with pytest.raises(InputError, match=f"the {part} in .*{part} lacks 1 weights of its config, {name} first"):
            VideoModel.load(tmp_path / part)
    with pytest.raises(InputError, match="no LoRA at"):
        VideoModel.load(trained, lora=tmp_path / "empty")
    (tmp_path / "empty" / video_model.LORA_FILE).write_bytes(b"short")
    with pytest.raises(InputError, match="cannot be loaded onto this model"):
        VideoModel.load(trained, lora=tmp_path / "empty")


def test_a_hub_id_without_network_says_to_pass_a_path(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub to load the files, and couldn't find them in the cached files.\n")

    monkeypatch.setattr(video_model.CogVideoXImageToVideoPipeline, "from_pretrained", unreachable)
    with pytest.raises(InputError, match=r"'THUDM/CogVideoX-5b-I2V'.*pass the path of a local copy"):
        VideoModel.load("THUDM/CogVideoX-5b-I2V")


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("stage", ["vae", "pretrain", "finetune"])
def test_a_killed_training_goes_on_with_the_rows_it_would_have_had(stage, data, trained, tmp_path, monkeypatch):
    def train(out):
        if stage == "vae":
            return video_training.train_vae(data, out, CONFIG, steps=5, log_every=1)
        if stage == "pretrain":
            return video_training.pretrain_transformer(data, out, CONFIG, steps=5, log_every=1)
        return video_training.finetune_lora(data, out, CONFIG, model=trained, steps=5, log_every=1)

    for name in ("whole", "killed"):
        shutil.copytree(trained / "model", tmp_path / name / "model")
    train(tmp_path / "whole")
    rows = losses(tmp_path / "whole" / f"loss_{stage}.csv")
    assert [int(step) for step, _ in rows] == [1, 2, 3, 4, 5]

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        average, count = video_training._Loop._average, []

        def dies_in_the_fourth_step(loop):
            count.append(0)
            average(loop)
            if len(count) == 2:
                loop._save({"from_step": 0})
            if len(count) == 4:
                raise Killed

        patch.setattr(video_training._Loop, "_average", dies_in_the_fourth_step)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    curve = tmp_path / "killed" / f"loss_{stage}.csv"
    assert len(losses(curve)) == 3
    with open(curve, "a") as file:
        file.write("4,0.1")  # a row cut short
    train(tmp_path / "killed")
    assert losses(curve) == rows
    stored = json.loads((tmp_path / "killed" / f"provenance_{stage}.json").read_text())
    assert stored["finished"] and stored["steps"] == 5 and stored["tasks"] == ["reach"] and stored["clips"] == 4
    before = curve.read_bytes()
    train(tmp_path / "killed")  # nothing is left to do
    assert curve.read_bytes() == before


def test_training_the_vae_lowers_its_loss(data, tmp_path):
    trained = video_training.train_vae(data, tmp_path, CONFIG, steps=30, log_every=5)
    values = [float(loss) for _, loss in losses(tmp_path / "loss_vae.csv")]
    assert values[-1] < 0.7 * values[0]
    latents = trained.encode_batch(np.stack([square(True, 9), square(False, 9)]))
    assert 0.5 < float(latents.std()) * trained.vae.config.scaling_factor < 2


def test_accumulated_micro_batches_are_counted_as_one_step(data, trained, tmp_path):
    config = dataclasses.replace(CONFIG, gradient_accumulation=2)
    video_training.finetune_lora(data, tmp_path, config, model=trained, steps=2, log_every=1)
    checkpoint = torch.load(tmp_path / "checkpoint_finetune.pt", weights_only=True)
    assert len(losses(tmp_path / "loss_finetune.csv")) == 2
    assert {int(state["step"]) for state in checkpoint["optimiser"]["state"].values()} == {2}


def test_only_the_lora_learns_when_finetuning(data, trained, tmp_path):
    adapted = video_training.finetune_lora(data, tmp_path, CONFIG, model=trained, steps=2, log_every=1)
    base = VideoModel.load(trained)
    weights = adapted.transformer.state_dict()
    for name, value in base.transformer.state_dict().items():
        stem, _, kind = name.rpartition(".")
        assert torch.equal(value, weights.get(name, weights.get(f"{stem}.base_layer.{kind}")))
    assert all("lora" in name for name in torch.load(tmp_path / "checkpoint_finetune.pt", weights_only=True)["weights"])


def test_unusable_checkpoints_are_named(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "t")
    file = tmp_path / "t" / "checkpoint_vae.pt"
    with pytest.raises(InputError, match="another configuration .*vae_batch"):
        video_training.train_vae(data, tmp_path / "t", dataclasses.replace(CONFIG, vae_batch=1), steps=3)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read .*delete it"):
        video_training.train_vae(data, tmp_path / "t", CONFIG, steps=3)
    with pytest.raises(InputError, match="the trained VAE has"):
        video_training.pretrain_transformer(data, tmp_path / "t", dataclasses.replace(CONFIG, latent_channels=8))


# ----------------------------------------------------------------------------------------------------------------- data


def test_clips_of_evaluated_tasks_are_refused_unless_left_out_or_wanted(data, tmp_path):
    shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns(".*"))
    table = tmp_path / "d" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[0]["task"] = rows[5]["task"] = "pick-place"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="evaluated tasks .pick-place."):
        video_training.train_vae(tmp_path / "d", tmp_path / "out", CONFIG, steps=1)
    assert not (tmp_path / "out").exists()
    assert len(video_training.load_clips(tmp_path / "d", 32, exclude=("pick-place",)).rows) == 3
    assert len(video_training.load_clips(tmp_path / "d", 32, in_domain=True).rows) == 4
    assert len(video_training.load_clips(tmp_path / "d", 32, split="test").rows) == 2


def test_a_whole_episode_keeps_its_ends_when_its_inside_is_shifted(data):
    clips = video_training.load_clips(data, 32)
    rng = np.random.default_rng(0)
    plain = clips.uniform(0, 9)
    shifted = [clips.uniform(0, 9, rng) for _ in range(5)]
    assert all(np.array_equal(one[[0, -1]], plain[[0, -1]]) for one in shifted)
    assert any(not np.array_equal(one, plain) for one in shifted)


def test_augmentation_keeps_shape_and_range():
    rng = np.random.default_rng(0)
    pixels = torch.rand(3, 9, 32, 32) * 2 - 1
    for _ in range(20):
        changed = video_training.augment(pixels, rng)
        assert changed.shape == pixels.shape and changed.abs().max() <= 1


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("change, words", [
    ({"num_frames": 16}, "8k\\+1"), ({"vae_channels": (8, 8)}, "three widths"), ({"vae_norm_groups": 3}, "must divide"),
    ({"head_dim": 24}, "multiple of 16"), ({"prediction_type": "score"}, "unknown prediction_type"),
    ({"image_size": 30}, "multiple of 8")])
def test_configs_that_cannot_work_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        VideoModel.small(dataclasses.replace(CONFIG, **change), seed=0)


@pytest.mark.parametrize("frame, words", [
    (np.zeros((16, 16, 3), np.uint8), "must be 32x32 pixels"), (np.zeros((32, 32, 3)), "must be uint8"),
    (np.zeros((32, 32), np.uint8), "first_frame must be RGB")])
def test_first_frames_that_do_not_fit_are_refused(model, frame, words):
    with pytest.raises(InputError, match=words):
        model.generate(frame, "open", seed=0)


def test_other_bad_requests_are_refused(model, clip):
    for arguments, words in (({"num_frames": 16}, "valid: 9, 17"), ({"steps": 0}, "steps must be"),
                             ({"prompt": " "}, "not empty")):
        with pytest.raises(InputError, match=words):
            model.generate(**{"first_frame": clip[0], "prompt": "open", "seed": 0, **arguments})
    with pytest.raises(InputError, match="as many first frames"):
        model.generate_batch([clip[0]], ["a", "b"], [0])
    with pytest.raises(InputError, match="clip must be uint8"):
        model.encode(clip.astype(np.float32))
    with pytest.raises(InputError, match="at least 1 frame"):
        model.encode(clip[:0])
    with pytest.raises(InputError, match="divisible by 4"):
        model.encode(clip[:9, :30])
    with pytest.raises(InputError, match="latents must have shape"):
        model.decode(torch.zeros(3, 3, 8, 8))


def test_settings_of_the_command_line_are_checked(data, tmp_path):
    assert video_model.configured("laptop", ["layers=8", "vae_channels=16,32,32"]).vae_channels == (16, 32, 32)
    for setting, words in (("depth=3", "unknown video setting"), ("layers=many", "must be like"),
                           ("image_size=0", "image_size must be at least 1, got 0"), ("vae_batch=0", "at least 1"),
                           ("vae_channels=16,0,32", "vae_channels must be at least 1, got 0"),
                           ("learning_rate=nan", "learning_rate must be a finite number above 0, got nan"),
                           ("guidance=-1", "guidance must lie in 0..inf, got -1"),
                           ("text_dropout=1.5", "text_dropout must lie in 0..1, got 1.5")):
        with pytest.raises(InputError, match=words):
            video_model.configured("laptop", [setting])
    for option, value, words in (("minutes", "0", "a finite number above 0"), ("minutes", "nan", "above 0, got nan"),
                                 ("seed", "-1", "at least 0, got -1"), ("steps", "0", "at least 1, got 0"),
                                 ("count", "0", "at least 1, got 0"),
                                 ("tasks-exclude", "pick-plaze", "unknown task of .* 'pick-plaze'; valid: "),
                                 ("tasks", "pick-plaze", "unknown task of .* 'pick-plaze'; valid: ")):
        with pytest.raises(InputError, match=words):
            video_model.main(["vae", "--data", str(data), "--out", str(tmp_path), f"--{option}", value])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no test clip"):
        video_training.load_clips(data, 32, split="test", kinds=("random",))


def test_a_sheet_of_samples_is_written_with_its_numbers(data, trained, tmp_path):
    numbers = video_training.sample(trained, data, tmp_path, count=2)
    assert numbers["clips"] == 2 and 0 < numbers["psnr_generated"] < 60
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "samples.json").is_file()
