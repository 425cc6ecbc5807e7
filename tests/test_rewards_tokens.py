"""Rewards over tokens (VIPER, Diffusion Reward): closed forms on known chains, what a reward belongs to, the bound
against the scheduler's own posterior, training that resumes to the bit, and what is refused."""

import genreward  # noqa: F401  isort: skip
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from genreward import demos, profiles, rewards
from genreward.errors import InputError
from genreward.rewards import diffusion_reward, tokens, viper
from genreward.rewards.diffusion_reward import DiffusionReward, DiffusionRewardConfig, DiffusionRewardModel
from genreward.rewards.novelty import Novelty
from genreward.rewards.tokens import ExpertClips, Tokenizer, TokenizerConfig, Windows, lags, past_steps
from genreward.rewards.viper import Viper, ViperConfig, ViperModel
from genreward.trajectory import Trajectory

SIZE = 8
CHAIN = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])  # p(next | present)
TINY = TokenizerConfig(image_size=SIZE, patch=2, channels=(8, 8), codes=8, code_dim=2, norm_groups=4, steps=8, batch=2,
                       revive_every=2)


class Bright:
    """A tokenizer whose only token is the brightness of each of `cells` columns: 0, 100, 200 -> 0, 1, 2."""

    def __init__(self, cells=1):
        self.config = TokenizerConfig(image_size=SIZE, codes=3, code_dim=1)
        self.tokens, self.digest = cells, f"bright {cells}"

    def encode(self, frames):
        return frames[:, 0, :self.tokens, 0].astype(np.int64) // 100

    def vectors(self, seen):
        return seen.astype(np.float32)


def picture(row):
    """The (SIZE, SIZE, 3) frame of which `Bright` sees the tokens `row`."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[:, :len(row)] = 100 * np.asarray(row, np.uint8)[:, None]
    return frame


def episode(rows, task="toy"):
    """A trajectory that shows those tokens."""
    frames = np.stack([picture(np.atleast_1d(row)) for row in rows])
    steps = len(frames) - 1
    return Trajectory(task, np.zeros((steps + 1, 2), np.float32), np.zeros((steps, 2), np.float32),
                      np.zeros(steps, np.float32), np.zeros(steps, bool), frames)


def clips_of(sequences, spacing=1, evaluated=True):
    """Training clips that show those token sequences."""
    frames = [np.stack([picture(np.atleast_1d(row)) for row in rows]) for rows in sequences]
    return ExpertClips(frames, [np.arange(len(clip)) * spacing for clip in frames], ["toy"] * len(frames),
                       np.full(len(frames), evaluated), "data")


def walk(steps, seed=0):
    """A walk along CHAIN."""
    rng, at = np.random.default_rng(seed), [0]
    for _ in range(steps):
        at.append(int(rng.choice(3, p=CHAIN[at[-1]])))
    return at


class KnownChain:
    """What `Viper` asks of its model, with the chain itself in the network's place."""

    def __init__(self, window=2, statistics=None):
        self.tokenizer, self.config = Bright(), ViperConfig(window=window)
        self.statistics = {"toy": {"mean": 0.0, "std": 1.0}} if statistics is None else statistics

    def log_likelihood(self, past, frame):
        return np.log(CHAIN[past[:, 0, 0], frame[:, 0]])


class Replay(gymnasium.Env):
    """Shows a recorded episode again."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, trajectory):
        self.trajectory, self.episode_steps, self.renders = trajectory, len(trajectory), 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.trajectory.states[0], {"task": self.trajectory.task}

    def step(self, action):
        self.t += 1
        return self.trajectory.states[self.t], 0.0, False, self.t == self.episode_steps, {}

    def render(self):
        self.renders += 1
        return self.trajectory.frames[self.t]


def online(model, trajectory):
    """What `GoalRewardEnv` pays for the episode, and how many frames it renders."""
    inner = Replay(trajectory)
    env = rewards.GoalRewardEnv(inner, model, "none")
    env.reset()
    return [env.step(action)[1] for action in trajectory.actions], inner.renders


def noise_episode(steps=7, seed=0, task="toy"):
    frames = np.random.default_rng(seed).integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8)
    return replace(episode(np.zeros(steps + 1, int), task), frames=frames)


def made(name, **settings):
    """Untrained tiny models of both kinds, with statistics of the task "toy"."""
    statistics = {"toy": {"mean": -8.0, "std": 0.5, "frames": 10}}
    if name == "viper":
        config = ViperConfig(window=3, width=16, layers=1, heads=2, steps=6, batch=4)
        return Viper(ViperModel(Tokenizer(TINY), config, 0, statistics), **settings)
    config = DiffusionRewardConfig(window=3, levels=4, width=16, layers=1, heads=2, steps=6, batch=4, chunk=3)
    return DiffusionReward(DiffusionRewardModel(Tokenizer(TINY), config, 0, statistics), **settings)


BOTH = pytest.mark.parametrize("name", ["viper", "diffusion_reward"])


# ------------------------------------------------------------------------------------------------------- the tokenizer

def test_tokens_of_a_frame_do_not_depend_on_what_else_is_encoded():
    tokenizer = Tokenizer(TINY)
    frames = noise_episode(12).frames
    found = tokenizer.encode(frames)
    assert found.shape == (13, tokenizer.tokens) == (13, 4) and found.min() >= 0 and found.max() < 8
    assert np.array_equal(found[5:6], tokenizer.encode(frames[5:6])) and len(np.unique(found)) > 1
    assert tokenizer.decode(found).shape == frames.shape and tokenizer.decode(found).dtype == np.uint8
    assert tokenizer.vectors(found).shape == (13, 4 * 2)
    assert np.array_equal(Tokenizer(TINY).encode(frames), found)  # the seed, not the moment, makes the weights


def test_perplexity_counts_the_codes_that_are_used(monkeypatch):
    tokenizer = Tokenizer(TINY)
    frames = noise_episode(1).frames
    for row, codes in (([0, 1, 2, 3], 4), ([5, 5, 5, 5], 1), ([0, 0, 7, 7], 2)):
        monkeypatch.setattr(tokenizer, "encode", lambda _, row=row: np.array([row, row]))
        measured = tokenizer.quality(frames)
        assert measured["perplexity"] == pytest.approx(codes) and measured["codes_used"] == codes
    monkeypatch.setattr(tokenizer, "decode", lambda _: np.where(frames > 127, frames - 10, frames + 10))
    assert tokenizer.quality(frames)["psnr"] == pytest.approx(20 * np.log10(25.5))


def test_dead_codes_are_put_where_the_encoder_is_and_the_others_stay():
    training = tokens._VQTraining(Tokenizer(TINY))
    before = training.vq.quantize.embedding.weight.detach().clone()
    training.usage[:] = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
    training.latents = torch.arange(20.0).reshape(10, 2)
    assert training.revive(np.random.default_rng(0)) == 2
    after = training.vq.quantize.embedding.weight.detach()
    assert torch.equal(after[[0, 2, 3, 5, 6, 7]], before[[0, 2, 3, 5, 6, 7]])
    assert all(any(torch.equal(after[dead], row) for row in training.latents) for dead in (1, 4))
    assert training.revive(np.random.default_rng(0)) == 0  # they are given time to be used


def test_training_resumes_to_the_bit_and_improves(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [np.full((4, SIZE, SIZE, 3), rng.integers(256, size=3), np.uint8) for _ in range(6)]
    clips = ExpertClips(scenes, [np.arange(4)] * 6, ["toy"] * 6, np.zeros(6, bool), "data")
    config = replace(TINY, steps=60, batch=8)
    whole = Tokenizer(config)
    psnr = whole.quality(np.concatenate(scenes))["psnr"]
    fit = tokens.fit_tokenizer(whole, clips, tmp_path / "a", progress=False)
    trained = whole.quality(np.concatenate(scenes))
    assert trained["psnr"] > psnr + 4 and trained["codes_used"] > 1
    halves = Tokenizer(config)
    revive, calls = tokens._VQTraining.revive, []

    def stop(self, *given):
        calls.append(0)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return revive(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens._VQTraining, "revive", stop)
        with pytest.raises(KeyboardInterrupt):
            tokens.fit_tokenizer(halves, clips, tmp_path / "b", progress=False, checkpoint_seconds=0)
    resumed = Tokenizer(config, seed=5)  # whatever it starts from, the checkpoint counts
    again = tokens.fit_tokenizer(resumed, clips, tmp_path / "b", progress=False)
    assert again.losses == fit.losses
    for one, two in zip(whole.vq.state_dict().values(), resumed.vq.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(InputError, match="other settings or data"):
        tokens.fit_tokenizer(Tokenizer(replace(config, batch=4)), clips, tmp_path / "b", progress=False)
    (tmp_path / "b" / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        tokens.fit_tokenizer(resumed, clips, tmp_path / "b", progress=False)


def test_tokenizer_saves_and_loads(tmp_path):
    tokenizer = Tokenizer(TINY, seed=3)
    tokens.round_weights(tokenizer.vq)
    tokenizer.save(tmp_path / "tokens")
    frames = noise_episode(5).frames
    back = Tokenizer.load(tmp_path / "tokens")
    assert np.array_equal(back.encode(frames), tokenizer.encode(frames)) and back.digest == tokenizer.digest
    assert back.digest != Tokenizer(TINY, seed=4).digest
    with pytest.raises(InputError, match="python -m genreward.rewards.tokens train"):
        Tokenizer.load(tmp_path / "nothing")
    (tmp_path / "tokens" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="does not hold the weights"):
        Tokenizer.load(tmp_path / "tokens")
    (tmp_path / "tokens" / "config.json").write_text('{"colour": 1}')
    with pytest.raises(InputError, match="has the fields image_size"):
        Tokenizer.load(tmp_path / "tokens")


@pytest.mark.parametrize("frames, message", [
    (np.zeros((2, SIZE, SIZE, 1), np.uint8), "RGB"), (np.zeros((2, SIZE, SIZE, 3)), "uint8"),
    (np.zeros((2, 16, 16, 3), np.uint8), "8x8 pixels, got 16x16"), (np.zeros((0, SIZE, SIZE, 3), np.uint8), "least")])
def test_frames_that_cannot_be_encoded(frames, message):
    with pytest.raises(InputError, match=message):
        Tokenizer(TINY).encode(frames)


def test_tokenizers_that_cannot_be():
    with pytest.raises(InputError, match="divisible by 4"):
        Tokenizer(replace(TINY, image_size=10))
    with pytest.raises(InputError, match=r"numbers in 0\.\.7"):
        Tokenizer(TINY).decode(np.full((1, 4), 8))
    assert [config.grid for config in tokens.TOKENIZERS.values()] == [8, 8, 8, 8]
    assert set(tokens.TOKENIZERS) == set(viper.CONFIGS) == set(diffusion_reward.CONFIGS) == set(profiles.PROFILES)


# --------------------------------------------------------------------------------------------------------- the windows

def test_windows_at_their_boundaries():
    steps = np.array([0, 3, 6, 9, 11, 14, 17])
    assert lags(steps, 1, 4, 4).tolist() == [0, -1, -1]  # the beginning stands in for the first lag only
    assert lags(steps, 3, 4, 4).tolist() == [2, 0, -1]  # wanted 5, 1, -3
    assert lags(steps, 6, 4, 4).tolist() == [5, 3, 2]  # wanted 13, 9, 5
    assert lags(np.arange(9) * 20, 4, 3, 4).tolist() == [3, 3]  # a coarse clip: never the frame itself
    assert past_steps(1, 4, 4) == [0, -1, -1] and past_steps(4, 4, 4) == [0, -1, -1]
    assert past_steps(8, 4, 4) == [4, 0, -1] and past_steps(13, 4, 4) == [9, 5, 1] and past_steps(1, 2, 1) == [0]


def test_training_and_scoring_look_at_the_same_frames():
    """A clip recorded every 4th step and a trajectory that keeps every 4th step give the same windows."""
    rows = walk(9, seed=1)
    windows = Windows(clips_of([rows], spacing=4), Bright(), 4, 4, progress=False)
    model = Viper(KnownChain(window=4), stride=1)
    at = np.array([*rows, 3])  # -1 -> 3, which is none
    for t in range(1, len(rows)):
        past, frame = windows.one(0, t)
        assert [frame[0], *past[:, 0]] == at[model._context(t)].tolist()
    ahead = DiffusionReward.__new__(DiffusionReward)
    ahead.model, ahead.stride = KnownChain(window=4), 1
    for t, seen in enumerate(windows.seen(0), 1):
        assert seen[:, 0].tolist() == at[ahead._context(t)].tolist()


def test_batches_mix_evaluated_and_other_clips():
    clips = clips_of([[0, 0, 0], [2, 2, 2]])
    mixed = replace(clips, evaluated=np.array([True, False]))
    windows = Windows(mixed, Bright(), 2, 1, progress=False)
    drawn = windows.batch(np.random.default_rng(0), 400, 0.75)[1].numpy()
    assert abs((drawn == 0).mean() - 0.75) < 0.08
    assert len(windows.evaluated().tokens) == 1
    alone = Windows(replace(clips, evaluated=np.zeros(2, bool)), Bright(), 2, 1, progress=False)
    assert len(np.unique(alone.batch(np.random.default_rng(0), 50, 0.75)[1])) == 2


# --------------------------------------------------------------------------------------------------------------- viper

def test_reward_is_the_log_likelihood_of_the_frame_just_reached():
    rows = walk(30)
    paid = Viper(KnownChain(), stride=1).score(episode(rows))
    assert paid == pytest.approx([np.log(CHAIN[a, b]) for a, b in itertools.pairwise(rows)], rel=1e-6)
    strided = Viper(KnownChain(), stride=4).score(episode(rows))
    assert strided == pytest.approx([np.log(CHAIN[rows[max(0, t - 4)], rows[t]]) for t in range(1, 31)], rel=1e-6)
    sparse = Viper(KnownChain(), stride=4, interval=4)
    assert sparse.score(episode(rows))[[3, 7]] == pytest.approx(strided[[3, 7]])
    assert np.count_nonzero(sparse.score(episode(rows))) == 7
    assert [t for t in range(31) if sparse.needs_frame(t, 30)] == list(range(0, 29, 4))


def test_an_experts_frame_is_worth_more_than_an_unlikely_one():
    expert, other = episode([0, 0, 0, 2, 1, 2]), episode([0, 2, 0, 1, 0, 1])
    model = Viper(KnownChain(), stride=1)
    assert model.score(expert)[0] == pytest.approx(np.log(0.7)) and model.score(other)[0] == pytest.approx(np.log(0.1))


@BOTH
def test_the_future_does_not_count_and_the_present_does(name):
    before, model = noise_episode(), made(name)
    for changed in (4, 5):
        frames = before.frames.copy()
        frames[changed] = noise_episode(seed=9).frames[0]
        paid, other = model.score(before), model.score(replace(before, frames=frames))
        assert np.array_equal(paid[:changed - 1], other[:changed - 1])
        assert paid[changed - 1] != other[changed - 1]


def test_probabilities_of_all_frames_add_up_to_one():
    """Tokens of a frame that saw each other would not: the property that makes it a likelihood."""
    model = ViperModel(Bright(cells=2), ViperConfig(window=3, width=16, layers=2, heads=2), seed=1)
    frames = np.array(list(itertools.product(range(3), repeat=2)))
    for past in (np.array([[0, 2], [1, 1]]), np.array([[2, 0], [3, 3]])):
        likelihood = model.log_likelihood(np.repeat(past[None], 9, 0), frames)
        assert np.exp(likelihood).sum() == pytest.approx(1, abs=1e-5) and np.ptp(likelihood) > 1e-3


def test_viper_learns_a_known_chain(tmp_path):
    windows = Windows(clips_of([walk(250, seed) for seed in range(12)]), Bright(), 2, 1, progress=False)
    config = ViperConfig(window=2, spacing=1, width=16, layers=1, heads=2, steps=150, batch=64, learning_rate=1e-2)
    model = ViperModel(Bright(), config)
    model.fit(windows, tmp_path, progress=False)
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    learned = model.log_likelihood(pairs[:, :1, None], pairs[:, 1:]).reshape(3, 3)
    assert np.exp(learned) == pytest.approx(CHAIN, abs=0.1)


# ---------------------------------------------------------------------------------------------------- diffusion reward

def toy_diffusion(cells=2, levels=5, **changes):
    config = DiffusionRewardConfig(**{"window": 2, "spacing": 1, "levels": levels, "width": 16, "layers": 1,
                                      "heads": 2} | changes)
    return DiffusionRewardModel(Bright(cells), config)


def test_bound_of_a_model_that_knows_nothing_is_that_of_uniform_tokens():
    model = toy_diffusion(cells=6)
    with torch.no_grad():
        model.network.head.weight.zero_()
        model.network.head.bias.zero_()
    past, frame = torch.zeros(4, 1, 6, dtype=torch.long), torch.randint(0, 3, (4, 6))
    found = model.bound(past, frame, torch.rand(4, 6, generator=torch.Generator().manual_seed(0)))
    assert found.tolist() == pytest.approx([-6 * np.log(3)] * 4, rel=1e-6)
    assert model.confidence(past.numpy(), [(0, t) for t in range(4)]) == pytest.approx(-6 * np.log(3), rel=1e-6)


def test_every_token_is_met_at_one_level_as_often_as_it_is_unmasked_there():
    model = toy_diffusion(cells=1, levels=5)
    uniforms = (torch.arange(4000)[:, None] + 0.5) / 4000
    met = model.turns(uniforms)[:, :, 0]
    assert bool((met.sum(1) == 1).all())
    assert met.double().mean(0).tolist() == pytest.approx(np.diff(model.masked.numpy()), abs=1e-3)
    assert model.masked.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-4)


def test_bound_is_the_schedulers_own_in_expectation():
    """Against the definition: sum over levels of E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), both posteriors by
    the scheduler, the expectation over all masks written out."""
    from diffusers.schedulers.scheduling_vq_diffusion import index_to_log_onehot

    model = toy_diffusion(cells=2, levels=4)
    past, frame = torch.tensor([[[0, 2]]]), torch.tensor([[1, 2]])
    closed = 0.0
    for level, hidden in itertools.product(range(1, 4), itertools.product((False, True), repeat=2)):
        chance = float(np.prod([model.masked[level] if one else 1 - model.masked[level] for one in hidden]))
        noisy = torch.where(torch.tensor([hidden]), model.mask, frame)
        truth = index_to_log_onehot(frame, 4)[:, :-1]
        with torch.no_grad():
            guess = model._denoise(past, noisy, level).transpose(1, 2)
        q, p = (model.scheduler.q_posterior(one, noisy, level).double() for one in (truth, guess))
        closed -= chance * float((q.exp() * (q - p)).sum())
    rng = torch.Generator().manual_seed(0)
    uniforms = torch.rand(6000, 2, generator=rng)
    found = model.bound(past.expand(6000, 1, 2), frame.expand(6000, 2), uniforms)
    error = 4 * float(found.std()) / 6000**0.5
    assert closed < -1 and float(found.mean()) == pytest.approx(closed, abs=error + 1e-3)


def test_samples_follow_the_model():
    model = toy_diffusion(cells=1, levels=3)
    past = torch.ones(4000, 1, 1, dtype=torch.long)
    uniforms = torch.rand(4000, 3, 1, generator=torch.Generator().manual_seed(1))
    share = np.bincount(model.sample(past, uniforms)[:, 0], minlength=3) / 4000
    mask = torch.full((1, 1), model.mask)
    # unmasked at level 2 or 1, half of the time each
    with torch.no_grad():
        expected = np.mean([model._denoise(past[:1], mask, level).exp()[0, 0].numpy() for level in (1, 2)], axis=0)
    assert share == pytest.approx(expected, abs=0.03)


def test_a_sure_future_is_worth_more_than_a_random_one(tmp_path):
    """After 0 comes 1 1 1 1, after 2 comes anything: negative entropies 0 and -4 log 3."""
    rng = np.random.default_rng(0)
    sequences = [[[0] * 4, [1] * 4] if n % 2 else [[2] * 4, rng.integers(0, 3, 4)] for n in range(300)]
    windows = Windows(clips_of(sequences), Bright(4), 2, 1, progress=False)
    model = toy_diffusion(cells=4, levels=3, steps=150, batch=64, learning_rate=1e-2)
    fit = model.fit(windows, tmp_path, progress=False)
    past = np.repeat(np.array([[[0] * 4], [[2] * 4]]), 40, axis=0)
    found = model.confidence(past, [(1, t) for t in range(80)]).reshape(2, 40).mean(1)
    assert found[0] == pytest.approx(0, abs=0.3) and found[1] == pytest.approx(-4 * np.log(3), abs=0.6)
    # the loss is the mean of both, in bits
    assert np.mean(fit.losses[-20:]) == pytest.approx(2 * np.log2(3), abs=0.7)


def test_noise_is_that_of_the_step_and_the_history():
    model = made("diffusion_reward")
    trajectory = noise_episode()
    assert np.array_equal(model.score(trajectory), made("diffusion_reward").score(trajectory))
    assert not np.allclose(model.score(trajectory), made("diffusion_reward", seed=1).score(trajectory))
    still = replace(trajectory, frames=np.repeat(trajectory.frames[:1], 8, axis=0))
    assert len(np.unique(model.score(still)[4:])) > 1  # the same picture, another step
    many = made("diffusion_reward", samples=8)
    assert many.score(still)[4:].std() < model.score(still)[4:].std()


# ------------------------------------------------------------------------------------- standardised, online and offline

@BOTH
def test_per_task_statistics_standardise_their_own_data(name, tmp_path):
    model = made(name, stride=1)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8) for _ in range(4)]
    clips = ExpertClips(frames, [np.arange(9) * 4] * 4, ["a", "a", "b", "b"], np.ones(4, bool), "data")
    model.model.statistics = model.model.measure(Windows(clips, model.model.tokenizer, 3, 4, progress=False), False)
    assert model.model.statistics["a"] != model.model.statistics["b"]
    paid = [model.score(replace(noise_episode(8, task=task), frames=clip))
            for task, clip in zip(clips.tasks, frames, strict=True)]
    for pair in (paid[:2], paid[2:]):
        assert np.mean(pair) == pytest.approx(0, abs=1e-4) and np.std(pair) == pytest.approx(1, abs=1e-4)


@BOTH
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "interval": 3}, {"stride": 1, "standardise": False}])
def test_what_is_scored_is_what_is_paid(name, settings):
    trajectory, model = noise_episode(9, seed=2), made(name, **settings)
    paid, rendered = online(model, trajectory)
    assert paid == pytest.approx(model.score(trajectory), rel=1e-5, abs=1e-6)
    if name == "viper":
        assert np.array_equal(np.float32(paid), model.score(trajectory))  # one frame at a time: the same to the bit
    assert rendered == sum(model.needs_frame(t, 9) for t in range(10))
    assert np.std(paid) > 1e-3


@BOTH
def test_statistics_that_are_missing_are_named_with_their_command(name):
    model, other = made(name), noise_episode(task="push")
    command = f"python -m genreward.rewards.{name} statistics --profile PROFILE --tasks push"
    for attempt in (lambda: model.score(other), lambda: online(model, other)):
        with pytest.raises(InputError, match=command) as problem:
            attempt()
        assert "\n" not in str(problem.value) and "it has: toy" in str(problem.value)
    assert np.all(np.isfinite(made(name, standardise=False).score(other)))
    assert np.array_equal(made(name, task="toy").score(other), model.score(replace(other, task="toy")))


@BOTH
def test_settings_that_cannot_be(name):
    for settings, match in (({"stride": 0}, "stride"), ({"interval": 0}, "interval"), ({"novelty": -1.0}, "novelty"),
                            ({"novelty": float("nan")}, "novelty"), ({"seed": -1}, "seed")):
        with pytest.raises(InputError, match=match):
            made(name, **settings)
    with pytest.raises(InputError, match="samples"):
        made("diffusion_reward", samples=0)
    for config in ({"window": 1}, {"spacing": 0}, {"levels": 1}, {"chunk": 0}):
        with pytest.raises(InputError, match="at least"):
            toy_diffusion(**config)


@BOTH
def test_table1(name):
    row = rewards.table1().loc[name]
    assert row[["demo-free", "generated", "action-aware"]].tolist() == [False, name == "diffusion_reward", False]
    assert row["deviations"] and row["citation"]


# ------------------------------------------------------------------------------------------------------------- novelty

def test_novelty_falls_where_it_has_learned_and_remembers_it():
    novelty, rng = Novelty(6, seed=0), np.random.default_rng(0)
    seen, new = rng.normal(size=(200, 6)), rng.normal(size=(50, 6)) + 3
    assert novelty.bonus(seen).shape == (200,) and np.all(novelty.bonus(seen) >= 0)
    novelty.observe(seen)
    fresh = novelty.bonus(seen)
    assert np.array_equal(fresh, novelty.bonus(seen))  # nothing is learned by asking
    for _ in range(30):
        novelty.observe(seen)
        novelty.learn()
    ratio = novelty.bonus(new).mean() / novelty.bonus(seen).mean()
    assert ratio > 2 * Novelty(6, seed=0).bonus(new).mean() / fresh.mean()
    other = Novelty(6, seed=7)
    novelty.observe(new)
    other.load_state_dict(novelty.state_dict())
    for one in (novelty, other):
        one.learn()
    assert np.array_equal(other.bonus(new), novelty.bonus(new))


@BOTH
def test_novelty_is_off_by_default_and_learns_from_episodes_that_were_played(name):
    trajectory = noise_episode()
    plain, curious = made(name), made(name, novelty=0.5)
    assert set(plain.score_terms(trajectory)) == {plain.term} and plain.state_dict() == {}
    terms = curious.score_terms(trajectory)
    assert np.array_equal(terms[curious.term], plain.score_terms(trajectory)[plain.term])
    assert np.array_equal(curious.score_terms(trajectory)["novelty"], terms["novelty"]) and terms["novelty"].min() > 0
    paid, _ = online(curious, trajectory)
    assert paid == pytest.approx(terms[curious.term] + terms["novelty"], rel=1e-5, abs=1e-6)
    for _ in range(20):
        online(curious, trajectory)
    learned = curious.score_terms(trajectory)["novelty"]
    assert not np.allclose(learned, terms["novelty"])
    resumed = made(name, novelty=0.5)
    resumed.load_state_dict(curious.state_dict())
    assert np.array_equal(resumed.score_terms(trajectory)["novelty"], learned)


# --------------------------------------------------------------------------------------------- trained from end to end

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of videos: experts of "push", and experts of "pick-place" as training and test clips."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for folder, task in (("demos", "push"), ("in_domain", "pick-place")):
        rows = []
        for number, (kind, split) in enumerate([("expert", "train"), ("expert", "train"), ("random", "train"),
                                                ("expert", "test")]):
            name = f"{split}/{number}.mp4"
            frames = np.full((9, 64, 64, 3), rng.integers(40, 200, 3), np.uint8)
            for t in range(9):
                frames[t, 20:30, 5 * t:5 * t + 10] = 255
            demos.write_video(root / folder / name, frames)
            rows.append({"file_name": name, "text": "push", "task": task, "kind": kind, "split": split,
                         "steps": [4 * t for t in range(9)]})
        (root / folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_only_training_clips_of_experts_are_read(folders):
    clips = tokens.training_clips(folders / "demos", folders / "in_domain", 64, progress=False)
    assert clips.tasks == ["push"] * 2 + ["pick-place"] * 2 and clips.evaluated.tolist() == [False] * 2 + [True] * 2
    assert clips.steps[0].tolist() == list(range(0, 33, 4))
    few = tokens.training_clips(folders / "demos", folders / "in_domain", 64, per_task=1, progress=False)
    assert few.tasks == ["push"] + ["pick-place"] * 2 and few.digest != clips.digest
    for wrong in ({"kinds": ("dance",)}, {"tasks": ["reach"]}):
        with pytest.raises(InputError, match="no training clip"):
            tokens.training_clips(folders / "demos", None, 64, progress=False, **wrong)


@pytest.mark.parametrize("module", [viper, diffusion_reward])
def test_training_scoring_and_statistics_from_the_command_line(module, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    name = module.__name__.rsplit(".", 1)[1]
    given = ["--profile", "smoke", "--demos", str(folders / "demos"), "--in-domain", str(folders / "in_domain")]
    with pytest.raises(InputError, match=f"holds no trained {name}; train one"):
        module.main(["statistics", *given, "--tasks", "push"])
    # twelve steps take less than the tenth of a second that the record keeps: here every look at the clock takes one
    reads = itertools.count()
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: next(reads) / 10, process_time=lambda: 0.0))
    module.main(["train", *given])
    folder = profiles.paths("smoke").weights / "rewards" / name
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "statistics.json",
                                                        "provenance.json"}
    made_by = json.loads((folder / "provenance.json").read_text())
    assert made_by["steps"] == 12 == made_by["curve"][-1][0] and 1.2 <= made_by["seconds"] <= next(reads) / 10
    model = module.load(folder, stride=1)
    assert set(model.model.statistics) == {"pick-place"}
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    trajectory = replace(noise_episode(5, task="pick-place"), frames=frames)
    before = model.score(trajectory)
    module.main(["train", *given])  # complete: only read
    assert np.array_equal(module.load(folder, stride=1).score(trajectory), before)
    with pytest.raises(InputError, match="--tasks push"):
        model.score(replace(trajectory, task="push"))
    module.main(["statistics", *given, "--tasks", "push"])
    assert np.all(np.isfinite(module.load(folder, stride=1).score(replace(trajectory, task="push"))))
    with pytest.raises(InputError, match="no expert training clip of reach; valid: push"):
        module.main(["statistics", *given, "--tasks", "push", "reach"])
    with pytest.raises(InputError, match="another tokenizer"):
        module.load(folder, tokenizer=Tokenizer(tokens.TOKENIZERS["smoke"], seed=9))
