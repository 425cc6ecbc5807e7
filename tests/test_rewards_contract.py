"""What every registered reward model must keep to, one family of tests over all of them, made from tiny real parts.

A new reward model needs one line in `BUILDERS` here; everything else is asked of it without being written again.
"""

import genreward  # noqa: F401  isort: skip
import functools
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from genreward import rewards
from genreward.errors import InputError
from genreward.forward_backward import ForwardBackward
from genreward.goals import FrameScorer, Goal
from genreward.profiles import ClipConfig, FBConfig, VideoConfig
from genreward.rewards import make_reward
from genreward.tasks import get_task
from genreward.trajectory import Trajectory

SIZE, STEPS, INTERVAL = 32, 12, 4
TASK = "pick-place"
STATISTICS = {TASK: {"mean": 0.5, "std": 2.0, "frames": 10}}


# ------------------------------------------------------------------------------------------------------- tiny parts

@functools.cache
def goal():
    task = get_task(TASK)
    video = np.random.default_rng(8).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    return Goal(task.prompt, task.paraphrases, video, np.linspace(0, 1, 9), 8, provenance={"task": TASK})


@functools.cache
def video_model():
    from genreward.video_model import VideoModel

    return VideoModel.small(VideoConfig(image_size=SIZE, num_frames=9, vae_channels=(8, 8, 8), vae_norm_groups=4,
                                        latent_channels=4, heads=2, head_dim=16, layers=1, text_layers=1,
                                        text_heads=2, text_dim=32), seed=0)


@functools.cache
def scorer():
    return FrameScorer.small(ClipConfig(image_size=SIZE, embed_dim=16, vision_width=8, text_width=16, text_layers=1),
                             seed=0)


@functools.cache
def xclip():
    from genreward.rewards._video_text import XClipConfig, XClipEncoder

    return XClipEncoder.small(XClipConfig(image_size=SIZE, num_frames=4, width=16, layers=1, heads=2, embed_dim=16,
                                          text_width=16, text_layers=1), seed=0)


@functools.cache
def frame_diffusion():
    from genreward.rewards.tadpole import FrameDiffusion, TadpoleConfig

    return FrameDiffusion.small(TadpoleConfig(image_size=SIZE, channels=(8, 16), text_dim=16, text_layers=1), seed=0)


@functools.cache
def tokenizer():
    from genreward.rewards.tokens import Tokenizer, TokenizerConfig

    return Tokenizer(TokenizerConfig(image_size=SIZE, channels=(8, 8), codes=16, code_dim=4, norm_groups=4), seed=0)


class MeanColour:
    """psi: a frame's mean colour, in -1..1."""

    dim = 3

    def encode(self, frames):
        return (frames.mean(axis=(1, 2)) / 127.5 - 1).astype(np.float32)


@functools.cache
def fb():
    made = ForwardBackward(3, 2, FBConfig(dim=4, hidden=16), seed=0)
    made.freeze()
    return made


def own(name, **settings):
    """GenReward's family and the controls: by the shared parts."""
    model = make_reward(name, {"goal": goal(), "video_model": video_model(), "fb": fb(), "encoder": MeanColour()},
                        **settings)
    if getattr(model, "normalise", False):
        rng = np.random.default_rng(5)
        model.fit_normaliser(rng.uniform(-1, 1, (50, 3)).astype(np.float32), rng.uniform(-1, 1, (50, 2)))
    return model


def liv():
    from genreward.rewards.liv import LIVModel

    return make_reward("liv", {"goal": goal(), "liv": LIVModel(scorer())})


def viper():
    from genreward.rewards.viper import ViperConfig, ViperModel

    config = ViperConfig(window=3, width=16, layers=1, heads=2)
    return make_reward("viper", {"viper_model": ViperModel(tokenizer(), config, 0, STATISTICS)}, task=TASK, stride=2)


def diffusion_reward():
    from genreward.rewards.diffusion_reward import DiffusionRewardConfig, DiffusionRewardModel

    config = DiffusionRewardConfig(window=3, levels=3, width=16, layers=1, heads=2)
    model = DiffusionRewardModel(tokenizer(), config, 0, STATISTICS)
    return make_reward("diffusion_reward", {"diffusion_model": model}, task=TASK, stride=2)


BUILDERS = {
    "dense": lambda: make_reward("dense"),
    "sparse": lambda: make_reward("sparse", sparse_interval=INTERVAL),
    "clock": lambda: make_reward("clock"),
    "random": lambda: make_reward("random"),
    "pixel_cosine": lambda: own("pixel_cosine", interval=INTERVAL, alpha=1.0),
    "genreward": lambda: own("genreward", interval=INTERVAL, alpha=1.0, beta=1.0),
    "genreward_video": lambda: own("genreward_video", interval=INTERVAL, alpha=1.0),
    "genreward_frame": lambda: own("genreward_frame", interval=INTERVAL, beta=1.0),
    "genreward_sound": lambda: own("genreward_sound", interval=INTERVAL),
    "roboclip": lambda: make_reward("roboclip", {"video_text": xclip(), "demonstration": goal().video}, every=INTERVAL),
    "roboclip_text": lambda: make_reward("roboclip_text", {"video_text": xclip(), "goal": goal()}, every=INTERVAL),
    "vlm_rm": lambda: make_reward("vlm_rm", {"goal": goal(), "scorer": scorer()}),
    "liv": liv,
    "viper": viper,
    "diffusion_reward": diffusion_reward,
    "tadpole": lambda: make_reward("tadpole", {"frame_diffusion": frame_diffusion(), "goal": goal()}),
    "video_tadpole": lambda: make_reward("video_tadpole", {"video_model": video_model(), "goal": goal()},
                                         interval=INTERVAL),
}
TABLE1 = {  # demo-free, generated, action-aware, as the paper prints it
    "roboclip": (False, False, False), "vlm_rm": (True, False, False), "liv": (True, False, False),
    "viper": (False, False, False), "diffusion_reward": (False, True, False), "tadpole": (True, True, False),
    "genreward": (True, True, True)}
OURS = ("environment", "controls")  # modules whose rewards depart from no publication

every = pytest.mark.parametrize("name", rewards.available())


# -------------------------------------------------------------------------------------------------- a tiny environment

class Toy(gymnasium.Env):
    """A point in a square, drawn as a block of its own colour on a lighter or darker ground; counts its renders."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, episode_steps=STEPS):
        self.episode_steps, self.renders = episode_steps, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 2), 0
        return self.x.astype(np.float32), {}

    def step(self, action):
        self.x, self.t = np.clip(self.x + 0.3 * np.asarray(action, float), -1, 1), self.t + 1
        reward = float(self.x.sum())
        return (self.x.astype(np.float32), reward, False, self.t >= self.episode_steps,
                {"success": bool(self.x[0] > 0.9), "dense_reward": 2 * reward})

    def render(self):
        self.renders += 1
        frame = np.full((SIZE, SIZE, 3), int(120 + 100 * self.x[1]), np.uint8)
        left, top = ((self.x + 1) / 2 * (SIZE - 12)).astype(int)
        frame[top:top + 12, left:left + 12] = (220, int(120 + 100 * self.x[0]), 30)
        return frame


@functools.cache
def record(steps=STEPS, seed=0):
    """An episode of Toy with every frame."""
    env, rng = Toy(steps), np.random.default_rng(seed)
    state, _ = env.reset(seed=seed)
    states, frames, actions, paid, success = [state], [env.render()], [], [], []
    for _ in range(steps):
        actions.append(rng.uniform(-1, 1, 2).astype(np.float32))
        state, _, _, _, info = env.step(actions[-1])
        states.append(state)
        frames.append(env.render())
        paid.append(info["dense_reward"])
        success.append(info["success"])
    return Trajectory("toy", np.array(states), np.array(actions), np.array(paid, np.float32), np.array(success),
                      np.array(frames))


def spliced(now, later, t):
    """The first `t` steps of one episode, then whatever another one holds."""
    def join(key):
        at = t + 1 if key in ("states", "frames") else t
        return np.concatenate([getattr(now, key)[:at], getattr(later, key)[at:]])

    return Trajectory("toy", *(join(key) for key in ("states", "actions", "rewards", "success", "frames")))


@functools.cache
def make(name):
    """One instance a name; tests that need a fresh one call the builder."""
    return BUILDERS[name]()


def looks(name):
    return any(make(name).needs_frame(t, STEPS) for t in range(STEPS + 1))


# --------------------------------------------------------------------------------------------------------- the family

def test_every_registered_reward_has_a_builder():
    missing = sorted(set(rewards.available()) - set(BUILDERS))
    assert not missing, f"add a line to BUILDERS for: {', '.join(missing)}"


@every
def test_scores_are_one_finite_float32_a_step_and_always_the_same(name):
    scores = make(name).score(record())
    assert scores.shape == (STEPS,) and scores.dtype == np.float32 and np.all(np.isfinite(scores))
    assert np.any(scores != 0)
    assert np.array_equal(scores, make(name).score(record()))
    assert np.array_equal(scores, BUILDERS[name]().score(record())), "another instance of the same parts pays otherwise"
    terms = make(name).score_terms(record())
    assert np.allclose(scores, np.sum(list(terms.values()), axis=0), rtol=1e-6)


@every
def test_what_is_studied_is_what_is_paid(name):
    episode, env, model = record(seed=4), Toy(), make(name)
    wrapped = rewards.GoalRewardEnv(env, model, "none")
    for _ in range(2):  # and what the first episode left behind does not matter to the second
        env.renders = 0
        wrapped.reset(seed=4)
        online = [wrapped.step(action)[1] for action in episode.actions]
        assert online == pytest.approx(model.score(episode), rel=1e-4, abs=1e-5)
        wanted = sum(model.needs_frame(t, STEPS) for t in range(STEPS + 1))
        assert env.renders == wanted, "a frame was rendered that nobody asked for"
    if wanted == 0:
        assert np.array_equal(model.score(replace(episode, frames=None)), model.score(episode))


@every
@pytest.mark.parametrize("t", [4, 9])
def test_scores_look_at_the_past_only(name, t):
    """Whatever comes after step t, steps 1..t are paid the same; what comes after is not."""
    episode, mixed = record(seed=6), spliced(record(seed=6), record(seed=7), t)
    before, after = make(name).score(episode), make(name).score(mixed)
    assert np.allclose(before[:t], after[:t], rtol=1e-5, atol=1e-6)
    if name != "clock":
        assert not np.allclose(before[t:], after[t:], rtol=1e-4, atol=1e-5)


@every
def test_gymnasiums_checker_passes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of any wrapper, and of spaces without bounds
        check_env(rewards.GoalRewardEnv(Toy(), make(name)))


@every
def test_properties_are_complete(name):
    cls = rewards.get_reward(name)
    properties = cls.properties
    for value in (properties.demo_free, properties.generated, properties.action_aware):
        assert isinstance(value, bool)
    assert properties.citation.strip() and cls.name == name and (cls.__doc__ or "").strip()
    assert isinstance(properties.deviations, tuple)
    assert all(sentence.endswith(".") for sentence in properties.deviations)
    assert properties.deviations or cls.__module__.rsplit(".", 1)[-1] in OURS


@pytest.mark.parametrize("name", TABLE1)
def test_table1_is_the_papers(name):
    row = rewards.table1().loc[name]
    assert tuple(row[["demo-free", "generated", "action-aware"]]) == TABLE1[name]
    assert tuple(getattr(make(name).properties, field) for field in ("demo_free", "generated", "action_aware")
                 ) == TABLE1[name]


# ---------------------------------------------------------------------------------------------------------- bad input

def spoil(**changes):
    return lambda episode: replace(episode, **{name: change(getattr(episode, name))
                                               for name, change in changes.items()})


def cut(steps):
    return lambda episode: Trajectory("toy", episode.states[:steps + 1], episode.actions[:steps],
                                      episode.rewards[:steps], episode.success[:steps], episode.frames[:steps + 1])


def with_nan(values):
    values = values.copy()
    values[1] = np.nan
    return values


BAD = {
    "no step": (cut(0), "at least 2 steps, got 0"),
    "one step": (cut(1), "at least 2 steps, got 1"),
    "grey": (spoil(frames=lambda f: f[..., :1]), "must be RGB"),
    "no channel": (spoil(frames=lambda f: f[..., 0]), "must be RGB"),
    "float": (spoil(frames=lambda f: f / 255.0), "must be uint8"),
    "NaN state": (spoil(states=with_nan), "states hold NaN"),
    "NaN action": (spoil(actions=with_nan), "actions hold NaN"),
    "NaN reward": (spoil(rewards=with_nan), "rewards hold NaN"),
    "larger": (spoil(frames=lambda f: f.repeat(2, 1).repeat(2, 2)), "must be 32x32 pixels, got 64x64"),
    "not square": (spoil(frames=lambda f: f[:, :, :16]), "must be 32x32 pixels, got 32x16"),
    "no frames": (spoil(frames=lambda f: None), "looks at frames and the trajectory has none"),
}
ONLY_IF_IT_LOOKS = ("larger", "not square", "no frames")


@every
def test_bad_trajectories_cost_one_line(name):
    for case, (change, message) in BAD.items():
        if case in ONLY_IF_IT_LOOKS and not looks(name):
            continue
        with pytest.raises(InputError, match=message) as problem:
            make(name).score(change(record()))
        assert "\n" not in str(problem.value), case


@every
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(InputError, match=f"unknown setting of reward '{name}': 'sharpness'"):
        make_reward(name, {}, sharpness=1)


# ------------------------------------------------------------------------------------------------ from outside

def test_a_reward_from_outside_the_package():
    @rewards.register("left_half")
    class LeftHalf(rewards.RewardModel):
        properties = rewards.RewardProperties(True, False, False, "this test")

        def needs_frame(self, t, episode_steps):
            return t > 0

        def terms(self, history, t):
            return {"left": float(history.frames[t][:, :SIZE // 2].mean() / 255)}

    try:
        env = rewards.GoalRewardEnv(Toy(), make_reward("left_half"), "none")
        env.reset(seed=4)
        episode = record(seed=4)
        assert [env.step(action)[1] for action in episode.actions] == pytest.approx(
            episode.frames[1:, :, :SIZE // 2].mean(axis=(1, 2, 3)) / 255)
        assert make_reward("left_half").score(episode) == pytest.approx(
            episode.frames[1:, :, :SIZE // 2].mean(axis=(1, 2, 3)) / 255)
        assert "left_half" in rewards.table1().index and "left_half" in rewards.available()
        with pytest.raises(InputError, match="is taken by"):
            rewards.register("left_half")(type("Other", (LeftHalf,), {"__qualname__": "Other"}))
    finally:
        rewards.base._REGISTRY.pop("left_half")
    with pytest.raises(InputError, match="must be a subclass of RewardModel"):
        rewards.register("nothing")(dict)
    with pytest.raises(InputError, match="needs `properties`"):
        rewards.register("nothing")(type("Bare", (rewards.RewardModel,), {}))


def test_a_module_run_as_a_program_registers_its_rewards_once_more(monkeypatch):
    """`python -m genreward.rewards.x` runs a module that the package has imported: its names are its own."""
    import sys
    import types

    known = rewards.get_reward("clock")
    spec = types.SimpleNamespace(name=known.__module__)
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    monkeypatch.setitem(rewards.base._REGISTRY, "clock", known)
    again = type("ClockReward", (known,), {"__module__": "__main__", "__qualname__": known.__qualname__})
    assert rewards.register("clock")(again) is again
    with pytest.raises(InputError, match="is taken by"):
        rewards.register("dense")(again)
