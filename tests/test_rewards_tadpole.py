"""TADPoLe: the formula on a fake diffusion model, what it is asked, noise, prediction types, files, training."""

import genreward  # noqa: F401  isort: skip
import functools
import json
import math
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genreward import demos, profiles, rewards
from genreward.errors import InputError
from genreward.profiles import VideoConfig
from genreward.rewards import tadpole
from genreward.rewards.tadpole import Denoiser, FrameDiffusion, TadpoleConfig, VideoDiffusion
from genreward.tasks import get_task
from genreward.trajectory import Trajectory
from genreward.video_model import VideoModel

SIZE = 16
TINY = TadpoleConfig(image_size=SIZE, channels=(8, 16), text_dim=16, text_layers=1, clips_per_task=1, steps=6, batch=4)


def scheduler(kind="epsilon"):
    bars = torch.linspace(0.999, 0.01, 1000)
    return types.SimpleNamespace(alphas_cumprod=bars, config=types.SimpleNamespace(prediction_type=kind,
                                                                                   num_train_timesteps=1000))


class Oracle(Denoiser):
    """Knows x_0, so it knows the noise; answers `told` + noise with a text and `untold` + noise without."""

    image_size = 4

    def __init__(self, told=0.0, untold=0.0, kind="epsilon"):
        self.offsets, self.scheduler, self.asked = {False: told, True: untold}, scheduler(kind), []

    def encode(self, pictures):
        self.clean = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1)
        return self.clean, None

    def output(self, noisy, levels, texts, condition=None):
        self.asked += zip(texts, levels.tolist(), strict=True)
        clean = self.clean.repeat(len(noisy) // len(self.clean), 1, 1, 1)
        offset = torch.tensor([self.offsets[text == ""] for text in texts]).view(-1, 1, 1, 1)
        bar = self.alpha_bar(levels, noisy)
        a, s = bar.sqrt(), (1 - bar).sqrt()
        noise = (noisy - a * clean) / s + offset
        clean = (noisy - s * noise) / a  # what x_0 would be, were the noise as it says
        return {"epsilon": noise, "sample": clean, "v_prediction": a * noise - s * clean}[self.scheduler.config
                                                                                         .prediction_type]


def episode(steps=6, size=4, seed=0, task="pick-place"):
    rng = np.random.default_rng(seed)
    return Trajectory(task, rng.normal(size=(steps + 1, 3)).astype(np.float32),
                      rng.uniform(-1, 1, (steps, 2)).astype(np.float32), np.zeros(steps, np.float32),
                      np.zeros(steps, bool), rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8))


@functools.cache
def tiny(prediction="epsilon", seed=0):
    return FrameDiffusion.small(replace(TINY, prediction_type=prediction), seed)


@functools.cache
def video_model():
    return VideoModel.small(VideoConfig(image_size=SIZE, num_frames=9, vae_channels=(8, 8, 8), vae_norm_groups=4,
                                        latent_channels=4, heads=2, head_dim=16, layers=1, text_layers=1,
                                        text_heads=2, text_dim=32), seed=0)


# -------------------------------------------------------------------------------------------------------- the formula

def test_symlog_in_closed_form():
    assert tadpole.symlog(np.array([0.0, math.e - 1, 1 - math.e, 1e-9])) == pytest.approx([0, 1, -1, 1e-9])
    x = np.linspace(-50, 50, 101)
    assert np.all(np.diff(tadpole.symlog(x)) > 0) and np.array_equal(tadpole.symlog(-x), -tadpole.symlog(x))


def test_formula_by_hand():
    noise = torch.zeros(2, 3, 2, 2)
    text = torch.stack([torch.full((3, 2, 2), 0.1), torch.full((3, 2, 2), 0.3)])
    null = torch.stack([torch.full((3, 2, 2), 0.2), torch.full((3, 2, 2), 0.3)])
    terms = tadpole.tadpole_terms(text, null, noise)
    assert terms[0] == pytest.approx([math.log1p(2000 * 0.01), math.log1p(200 * (0.04 - 0.01))], rel=1e-5)
    assert terms[1].tolist() == [0, 0]
    assert tadpole.tadpole_terms(null, text, noise)[0] == pytest.approx([math.log1p(20), -math.log1p(6)], rel=1e-5)


@pytest.mark.parametrize("told, untold", [(0.0, 0.2), (0.1, 0.0), (0.05, 0.05)])
def test_formula_through_the_reward(told, untold):
    model = rewards.make_reward("tadpole", {"frame_diffusion": Oracle(told, untold)})
    terms = model.score_terms(episode())
    assert terms["alignment"] == pytest.approx(np.full(6, math.log1p(2000 * (told - untold)**2)), abs=1e-3)
    gain = 200 * (untold**2 - told**2)
    assert terms["reconstruction"] == pytest.approx(np.full(6, math.copysign(math.log1p(abs(gain)), gain)), abs=1e-3)
    assert model.score(episode()) == pytest.approx(terms["alignment"] + terms["reconstruction"])
    half = rewards.make_reward("tadpole", {"frame_diffusion": Oracle(told, untold)}, alpha=0.5)
    assert half.score(episode()) == pytest.approx(0.5 * model.score(episode()))


@pytest.mark.parametrize("kind", tadpole.PREDICTIONS)
def test_every_prediction_type_says_the_same_noise(kind):
    oracle = Oracle(kind=kind)
    clean, _ = oracle.encode(episode().frames[:3])
    levels = torch.tensor([0, 400, 998])
    noise = oracle.noise(clean.shape[1:], [(0, n) for n in range(3)])
    guess = oracle.epsilon(oracle.noised(clean, noise, levels), levels, ["a"] * 3)
    assert torch.allclose(guess, noise, atol=2e-3)
    terms = rewards.make_reward("tadpole", {"frame_diffusion": Oracle(0.0, 0.2, kind)}).score_terms(episode())
    assert terms["alignment"] == pytest.approx(np.full(6, math.log1p(80)), abs=1e-3)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(InputError, match="unknown prediction_type of the scheduler: 'flow'; valid: epsilon, sample, v"):
        tadpole.to_epsilon("flow", torch.zeros(1), torch.zeros(1), torch.tensor(0.5))
    pipe = FrameDiffusion.small(TINY, 0).pipe
    pipe.scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(InputError, match="unknown prediction_type"):
        FrameDiffusion(pipe)


def test_a_network_that_does_not_read_scores_nothing():
    """Identical answers with and without the text: both terms are exactly 0, whatever their error."""
    diffusion = FrameDiffusion.small(TINY, 3)
    diffusion.embed("")
    diffusion._embedded["deaf"] = diffusion._embedded[""]
    paid = rewards.make_reward("tadpole", {"frame_diffusion": diffusion}, text="deaf").score(episode(size=SIZE))
    assert np.array_equal(paid, np.zeros(6, np.float32))
    heard = rewards.make_reward("tadpole", {"frame_diffusion": diffusion}, text="a puck").score(episode(size=SIZE))
    assert np.all(heard != 0)


# ------------------------------------------------------------------------------------------------- noise and its level

def test_level_is_one_an_episode_and_within_its_range():
    oracle = Oracle()
    model = rewards.make_reward("tadpole", {"frame_diffusion": oracle}, level=400, batch=4)
    model.score(episode())
    levels = {level for _, level in oracle.asked}
    assert len(levels) == 1 and 400 <= levels.pop() < 500
    drawn = [model.episode_level(np.random.default_rng(n).normal(size=3)) for n in range(300)]
    assert min(drawn) >= 400 and max(drawn) < 500 and len(set(drawn)) > 60
    narrow = rewards.make_reward("tadpole", {"frame_diffusion": oracle}, level=7, level_range=1)
    assert narrow.episode_level(np.ones(3)) == 7
    assert rewards.make_reward("tadpole", {"frame_diffusion": oracle}).level == 500  # manipulation


def test_same_episode_same_score_and_other_seeds_other_noise():
    def score(seed=0, batch=32, **changes):
        model = rewards.make_reward("tadpole", {"frame_diffusion": tiny()}, text="a puck", seed=seed, batch=batch)
        return model.score(replace(episode(size=SIZE), **changes))

    first = score()
    assert np.array_equal(first, score())
    assert np.allclose(first, score(batch=1), rtol=1e-4)
    assert not np.allclose(first, score(seed=1), rtol=1e-3)
    states = episode(size=SIZE).states.copy()
    states[1:] += 1
    assert np.array_equal(first, score(states=states))  # only the first state names the episode
    states[0] += 1
    assert not np.allclose(first, score(states=states), rtol=1e-3)
    still = np.repeat(episode(size=SIZE).frames[:1], 7, axis=0)
    assert len(set(score(frames=still).tolist())) == 6  # noise differs from step to step


# ------------------------------------------------------------------------------------------------------ what is asked

def test_which_text_is_asked_for():
    goal = types.SimpleNamespace(prompt="do it", paraphrases=("it is done", "done"))
    for given, sentence in [({}, get_task("pick-place").done), ({"goal": goal}, "it is done"),
                            ({"goal": goal, "text": "a ball"}, "a ball"),
                            ({"goal": types.SimpleNamespace(prompt="do it", paraphrases=())}, "do it")]:
        oracle = Oracle()
        rewards.make_reward("tadpole", {"frame_diffusion": oracle} | given).score(episode())
        assert {text for text, _ in oracle.asked} == {sentence, ""}
    video = rewards.make_reward("video_tadpole", {"video_model": video_model(), "goal": goal})
    assert video.text == "do it"
    with pytest.raises(InputError, match="'tadpole' does not know the task; give it `text` or a goal"):
        rewards.make_reward("tadpole", {"frame_diffusion": Oracle()}).score(episode(task=""))
    with pytest.raises(InputError, match="unknown task 'somersault'"):
        rewards.make_reward("tadpole", {"frame_diffusion": Oracle()}).score(episode(task="somersault"))


def test_video_windows():
    whole = rewards.make_reward("video_tadpole", {"video_model": video_model()}, text="a", interval=8)
    assert whole.steps(16).tolist() == list(range(0, 17, 2)) and len(whole.steps(3)) == 9
    assert {t for t in range(17) if whole.needs_frame(t, 16)} == set(range(9)) | set(range(0, 17, 2))
    last = rewards.make_reward("video_tadpole", {"video_model": video_model()}, text="a", window="last", interval=8)
    assert last.steps(16).tolist() == list(range(8, 17)) and last.steps(3).tolist()[::8] == [0, 3]
    paid = whole.score(episode(16, SIZE))
    assert np.flatnonzero(paid).tolist() == [7, 15]
    assert paid[7] == last.score(episode(16, SIZE))[7] and paid[15] != last.score(episode(16, SIZE))[15]


def test_video_model_is_asked_as_the_pipeline_asks_it(monkeypatch):
    """One denoising step of the diffusers pipeline's network equals ours: same inputs, same v."""
    from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video as theirs_module

    monkeypatch.setattr(theirs_module, "retrieve_latents", lambda output, generator: output.latent_dist.mode())
    model = video_model()
    ours = VideoDiffusion(model)
    clip = episode(8, SIZE).frames[None]
    clean, condition = ours.encode(clip)
    assert clean.shape == condition.shape == (1, 3, 4, 4, 4)
    assert torch.count_nonzero(condition[:, 1:]) == 0
    factor = model.vae.config.scaling_factor
    assert torch.equal(clean[0].transpose(0, 1), model.encode(clip[0]) * factor)
    seen = {}
    forward = model.transformer.forward

    def spy(**given):
        seen.update(given)
        return forward(**given)

    model.transformer.forward = spy
    try:
        model.generate(clip[0, 0], "push it", seed=0, steps=1, guidance=1.0)
        level = torch.tensor([int(seen["timestep"][0])])
        noisy = seen["hidden_states"][:, :, :4].float()
        theirs = forward(**seen)[0]
        image = seen["hidden_states"][:, :, 4:].float()
        answer = ours.output(noisy, level, ["push it"], image)
    finally:
        model.transformer.forward = forward
    assert torch.allclose(answer, theirs.float(), atol=0.03 * float(theirs.abs().max()))  # theirs ran in bfloat16
    assert torch.allclose(image[:, :1], condition[:, :1], atol=0.05 * float(condition.abs().max()))
    bar = ours.alpha_bar(level, noisy)
    noise = bar.sqrt() * answer + (1 - bar).sqrt() * noisy
    assert torch.allclose(ours.epsilon(noisy, level, ["push it"], image), noise)


# ------------------------------------------------------------------------------------------------- the model's folder

def test_save_and_load(tmp_path):
    diffusion = tiny()
    diffusion.save(tmp_path / "model", {"why": "test"})
    again = FrameDiffusion.load(tmp_path / "model")
    assert again.image_size == SIZE and again.patch == 2 and again.parameters() == diffusion.parameters()
    assert json.loads((tmp_path / "model" / "provenance.json").read_text()) == {"why": "test"}
    for name, value in diffusion.unet.state_dict().items():
        assert torch.equal(value.half().float(), again.unet.state_dict()[name])
    exact = FrameDiffusion.small(TINY, 0)
    exact.unet.load_state_dict(again.unet.state_dict())
    exact.text_encoder.load_state_dict(again.text_encoder.state_dict())
    one, other = (rewards.make_reward("tadpole", {"frame_diffusion": given}, text="a puck")
                  for given in (exact, str(tmp_path / "model")))
    assert one.score(episode(size=SIZE)) == pytest.approx(other.score(episode(size=SIZE)), rel=1e-5)
    loaded = tadpole.load(tmp_path / "model", text="a puck", goal=None, video_model="another model's part")
    assert np.array_equal(loaded.score(episode(size=SIZE)), other.score(episode(size=SIZE)))


def test_the_laptops_model_fits_its_share_of_the_repository(tmp_path):
    FrameDiffusion.small(tadpole.CONFIGS["laptop"], 0).save(tmp_path / "model")
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*") if file.is_file()) <= 1.5e6


def test_a_stable_diffusion_folder_stands_in_its_place(tmp_path):
    """A latent model in StableDiffusionPipeline's format, as small as its classes allow: frames of any size."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=16,
                                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2)
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz",
             *(letter + "</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=20)
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16,
                                                num_hidden_layers=1, num_attention_heads=2, bos_token_id=0,
                                                eos_token_id=1, max_position_embeddings=20))
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
                                   scheduler=DDIMScheduler(prediction_type="v_prediction"), safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "sd")
    diffusion = FrameDiffusion.load(tmp_path / "sd")
    assert diffusion.image_size == 16 and diffusion.vae is not None
    clean, _ = diffusion.encode(episode(size=24).frames)
    assert clean.shape == (7, 4, 8, 8)
    model = rewards.make_reward("tadpole", {"frame_diffusion": diffusion}, text="a puck")
    assert model.frame_size is None
    paid = model.score(episode(size=24))
    assert np.all(np.isfinite(paid)) and np.all(paid != 0)
    with pytest.raises(InputError, match="only a model of pixels is saved"):
        diffusion.save(tmp_path / "copy")
    # the hub's files have the names that older libraries gave their weights; they are all there nevertheless
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of the VAE's attention
    for part in ("text_encoder", "vae"):
        (file,) = (tmp_path / "sd" / part).glob("*.safetensors")
        content = load_file(file)
        for name in list(content):
            before = f"text_model.{name}" if part == "text_encoder" else name
            for new, old in older.items():
                before = before.replace(new, old)
            content[before] = content.pop(name)
        assert content.keys() != load_file(file).keys()
        save_file(content, file, {"format": "pt"})
    again = FrameDiffusion.load(tmp_path / "sd")
    for part in ("text_encoder", "vae", "unet"):
        there = getattr(again, part).state_dict()
        assert all(torch.equal(there[name], weight) for name, weight in getattr(diffusion, part).state_dict().items())
    (file,) = (tmp_path / "sd" / "vae").glob("*.safetensors")
    save_file({name: weight for name, weight in load_file(file).items() if "decoder.conv_in" not in name}, file,
              {"format": "pt"})
    with pytest.raises(InputError, match="the vae in .*sd lacks 2 weights of its config, decoder.conv_in.bias first"):
        FrameDiffusion.load(tmp_path / "sd")


def test_pixels_become_blocks_and_back():
    frames = episode(size=SIZE).frames
    clean, condition = tiny().encode(frames)
    assert clean.shape == (7, 12, SIZE // 2, SIZE // 2) and condition is None
    back = torch.nn.functional.pixel_shuffle(clean, 2).permute(0, 2, 3, 1)
    assert np.array_equal(((back + 1) * 127.5).round().numpy().astype(np.uint8), frames)


def test_training_reads_text_as_scoring_does():
    """The tokens of a batch give the embedding that `embed` (the pipeline's own) gives."""
    diffusion, texts = tiny(), ["", "the puck is at the goal"]
    tokens = diffusion.pipe.tokenizer(texts, padding="max_length", max_length=tadpole.TEXT_LENGTH, truncation=True,
                                      return_tensors="pt")
    with torch.no_grad():
        trained = diffusion.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    assert torch.allclose(trained, torch.cat([diffusion.embed(text) for text in texts]), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- training

@functools.cache
def _clip(task, number):
    """Nine frames in the task's own colour, brighter with every stage."""
    shade = {"pick-place": 0, "shelf-place": 1}.get(task, 2)
    stages = [0, 0, 1, 1, 2, 2, 3, 4, 4]
    frames = np.full((9, SIZE, SIZE, 3), 20, np.uint8)
    for place, stage in enumerate(stages):
        frames[place, :, :, shade] = 60 + 45 * stage + number
    return frames, stages


def folder(path, tasks, split, clips=2):
    path.mkdir(parents=True)
    rows = []
    for name in tasks:
        task = get_task(name)
        for number in range(clips):
            frames, stages = _clip(name, number)
            demos.write_video(path / f"{name}-{number}.mp4", frames)
            rows.append({"file_name": f"{name}-{number}.mp4", "text": task.prompt, "task": name, "split": split,
                         "stages": stages, "stage_captions": list(task.stage_captions)})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def videos(tmp_path):
    data = folder(tmp_path / "demos", ["push", "reach"], "train")
    test = folder(tmp_path / "test", ["pick-place", "shelf-place"], "test")
    for clip in test.glob("*.mp4"):
        shutil.move(clip, data / clip.name)
    (data / "metadata.jsonl").write_text((data / "metadata.jsonl").read_text() + (test / "metadata.jsonl").read_text())
    return data, folder(tmp_path / "own", ["pick-place"], "train", clips=1)


def test_a_killed_training_goes_on_to_the_same_weights(root, videos, monkeypatch):
    def weights(name):
        return FrameDiffusion.load(root / name).unet.state_dict()

    data, own = videos
    tadpole.train("smoke", root / "straight", data, own, progress=False, config=TINY)
    noised, calls = FrameDiffusion.noised, []

    def dies(self, *given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return noised(self, *given)

    from genreward import video_training
    schedule = video_training.Schedule
    monkeypatch.setattr(video_training, "Schedule", lambda *given, **more: schedule(
        *given, **(more | {"checkpoint_seconds": -1.0})))  # one after every step
    monkeypatch.setattr(FrameDiffusion, "noised", dies)
    with pytest.raises(KeyboardInterrupt):
        tadpole.train("smoke", root / "killed", data, own, progress=False, config=replace(TINY))
    assert not (root / "killed").exists()
    checkpoint = profiles.paths("smoke").checkpoints / "tadpole-killed" / "checkpoint_tadpole.pt"
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    monkeypatch.undo()
    monkeypatch.setenv("GENREWARD_ROOT", str(root))
    tadpole.train("smoke", root / "killed", data, own, progress=False, config=TINY)
    assert all(torch.equal(value, weights("killed")[name]) for name, value in weights("straight").items())
    with pytest.raises(InputError, match="belongs to another configuration"):
        tadpole.train("smoke", root / "killed", data, own, progress=False, config=replace(TINY, batch=5))


def test_training_lowers_the_loss_and_reports_on_clips_not_seen(root, videos):
    data, own = videos
    config = replace(TINY, steps=60, batch=8, learning_rate=5e-3, ema_decay=0.9)
    diffusion = tadpole.train("smoke", root / "model", data, own, progress=False, config=config)
    made = json.loads((root / "model" / "provenance.json").read_text())
    assert made["loss"][-1][1] < 0.85 * made["loss"][0][1]
    report = made["held_out"]
    assert report["clips"] == 4 and report["frames"] == 16 and made["in_domain"] and made["frames"] == [18, 9]
    for name in ("right", "other_stage", "other_task", "none"):
        value, low, high = report[name]
        assert low <= value <= high
    assert set(report["right_is_better_than"]) == {"other_stage", "other_task", "none"}
    for name, (gain, low, high) in report["gain_over"].items():
        assert gain == pytest.approx(report[name][0] - report["right"][0], abs=1e-4) and low <= gain <= high
    untrained = tadpole.held_out_losses(FrameDiffusion.small(config, 0), demos.VideoFolder(data))
    assert report["right"][0] < 0.9 * untrained["right"][0]
    assert report == tadpole.held_out_losses(diffusion, demos.VideoFolder(data)) or report["right"] == pytest.approx(
        tadpole.held_out_losses(diffusion, demos.VideoFolder(data))["right"], rel=0.01)  # weights were rounded


def test_command_line_at_smoke(root, videos, monkeypatch, capsys):
    monkeypatch.setitem(tadpole.CONFIGS, "smoke", TINY)
    assert tadpole.main(["train", "--profile", "smoke", "--data", str(videos[0]), "--in-domain", "none"]) == 0
    out = profiles.paths("smoke").weights / "rewards" / "tadpole"
    assert not json.loads((out / "provenance.json").read_text())["in_domain"]
    assert str(out) in capsys.readouterr().out
    assert tadpole.load(out, text="a puck").frame_size == SIZE


# ---------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("settings, message", [
    ({"interval": 0}, "interval"), ({"batch": 0}, "batch"), ({"seed": -1}, "seed"), ({"alpha": float("inf")}, "alpha"),
    ({"level": -1}, r"noise levels \[-1, 99\) must lie within \[0, 1000\)"), ({"level": 950}, "noise levels"),
    ({"level_range": 0}, "noise levels"), ({"text": "  "}, "not empty"), ({"text": 3}, "not empty")])
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        rewards.make_reward("tadpole", {"frame_diffusion": Oracle()}, **settings)


def test_bad_models_and_folders(renamed, tmp_path):
    with pytest.raises(InputError, match="unknown window 'all'; valid: episode, last"):
        rewards.make_reward("video_tadpole", {"video_model": video_model()}, window="all")
    with pytest.raises(InputError, match="no such folder of a diffusion model"):
        rewards.make_reward("tadpole", {"frame_diffusion": str(tmp_path / "none")})
    with pytest.raises(InputError, match="no model_index.json"):
        FrameDiffusion.load(tmp_path)
    tiny().save(tmp_path / "cut")
    weights = next((tmp_path / "cut" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded .a file is missing or cut short."):
        FrameDiffusion.load(tmp_path / "cut")
    for part in ("unet", "text_encoder"):
        tiny().save(tmp_path / part)
        (weights,) = (tmp_path / part / part).glob("*.safetensors")
        name = renamed(weights, "")
        with pytest.raises(InputError, match=f"the {part} in .* lacks 1 weights of its config, {name} first"):
            FrameDiffusion.load(tmp_path / part)
    with pytest.raises(InputError, match="is not a diffusion model of frames"):
        FrameDiffusion(video_model().pipe)
    for change, message in [({"channels": (10, 16)}, "multiples of 8"), ({"image_size": 18}, "divisible by"),
                            ({"prediction_type": "flow"}, "unknown prediction_type 'flow'")]:
        with pytest.raises(InputError, match=message):
            FrameDiffusion.small(replace(TINY, **change), 0)


def test_training_refuses_what_it_cannot_use(root, videos):
    with pytest.raises(InputError, match="nothing to train; give the folder or hub id"):
        tadpole.train("paper", root / "x", videos[0])
    with pytest.raises(InputError, match="no metadata.jsonl"):
        tadpole.train("smoke", root / "x", root / "nowhere")
    only_tests = folder(root / "tests", ["push"], "test", clips=1)
    with pytest.raises(InputError, match="no train clips"):
        tadpole.train("smoke", root / "x", only_tests)
