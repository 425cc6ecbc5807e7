"""Reward models: closed forms of Eq. 3-5, 9 and 10, what is rendered, the wrapper, and what is refused.

What every registered model must keep to (offline = online, the past only, bad trajectories) is in
`test_rewards_contract.py`.
"""

import genreward  # noqa: F401  isort: skip
import functools
from dataclasses import dataclass, replace

import gymnasium
import numpy as np
import pytest
import torch

from genreward import rewards
from genreward.errors import InputError
from genreward.forward_backward import ForwardBackward
from genreward.profiles import FBConfig, VideoConfig
from genreward.rewards.base import History
from genreward.rewards.genreward import VideoAlignment, centre, cosine
from genreward.trajectory import Trajectory
from genreward.video_model import VideoModel

SIZE, FRAMES, STEPS = 8, 9, 256


class StubVideo:
    """Latent of a clip = its pixels, one latent frame a frame: cosines can be worked out by hand."""

    image_size, num_frames = SIZE, FRAMES

    def encode(self, clip):
        return clip.transpose(3, 0, 1, 2).astype(np.float32)


class StubEncoder:
    """psi = the mean colour; counts how many frames it was asked for."""

    dim = 3

    def __init__(self):
        self.encoded = 0

    def encode(self, frames):
        self.encoded += len(frames)
        return frames.mean(axis=(1, 2)).astype(np.float32)


class StubFB:
    """r_FB = sum of features * goal + sum of actions, so that every part of Eq. 9's arguments shows."""

    feature_dim = 3

    def __init__(self, frozen=True, fb_targets="buffer"):
        self.frozen, self.config = frozen, FBConfig(fb_targets=fb_targets)

    def reward(self, features, actions, goal):
        return features @ goal + actions.sum(axis=1)


@dataclass
class StubGoal:
    video: np.ndarray
    index: int = -1
    source: str = "generated"

    @property
    def frame(self):
        return self.video[self.index]


class Toy(gymnasium.Env):
    """A point on a line, drawn as a bar of its own colour; counts its renders."""

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
        self.x, self.t = np.clip(self.x + 0.1 * np.asarray(action, float), -1, 1), self.t + 1
        reward = float(self.x.sum())
        return (self.x.astype(np.float32), reward, False, self.t >= self.episode_steps,
                {"success": self.x[0] > 0.9, "dense_reward": 2 * reward})

    def render(self):
        self.renders += 1
        frame = np.full((SIZE, SIZE, 3), 30, np.uint8)
        frame[:, :int((self.x[0] + 1) * SIZE / 2)] = (200, int(100 + 100 * self.x[1]), 50)
        return frame


def goal_video(seed=0, frames=FRAMES):
    return np.random.default_rng(seed).integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)


def parts(**changes):
    """Stub ingredients from which every registered model can be made."""
    return {"goal": StubGoal(goal_video()), "video_model": StubVideo(), "fb": StubFB(),
            "encoder": StubEncoder()} | changes


def make(name, **settings):
    """Any registered model; what needs a normaliser gets one."""
    model = rewards.make_reward(name, parts(), **settings)
    if getattr(model, "normalise", False):
        rng = np.random.default_rng(5)
        model.fit_normaliser(rng.uniform(0, 255, (50, 3)).astype(np.float32), rng.uniform(-1, 1, (50, 2)))
    return model


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


# ------------------------------------------------------------------------------------------------- Eq. 3 to 5

def test_cosine_in_closed_form():
    assert cosine([[3.0, 0.0]], [[2.0, 0.0]]) == 1
    assert cosine([1.0, 0.0], [1.0, 1.0]) == pytest.approx(2**-0.5)
    assert cosine([1.0, 2.0], [-1.0, -2.0]) == pytest.approx(-1)
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0  # nothing is like nothing
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    assert cosine(a, b) == pytest.approx(cosine(7 * a, 0.01 * b)) == pytest.approx(cosine(b, a))


def test_centring():
    latent = np.arange(2 * 3 * 1 * 2, dtype=float).reshape(2, 3, 1, 2)
    assert np.array_equal(centre(latent, "none"), latent)
    first = centre(latent, "first")
    assert np.all(first[:, 0] == 0) and np.all(first[:, 2] == 4)
    assert np.all(centre(latent, "mean", latent) == 0)
    with pytest.raises(InputError, match="unknown centring 'median'; valid: first, mean, none"):
        centre(latent, "median")


def history_of(frames):
    """A finished history whose every frame was rendered."""
    history = History(len(frames) - 1, frames=dict(enumerate(frames)))
    history.states = [np.zeros(2)] * len(frames)
    history.actions = [np.zeros(2)] * (len(frames) - 1)
    return history


def test_identical_clip_scores_one_and_hand_made_latents_their_cosine():
    video = goal_video()
    same = VideoAlignment(StubVideo().encode, video, FRAMES, interval=FRAMES - 1)
    assert same.value(history_of(video), FRAMES - 1) == pytest.approx(1)
    angle = np.zeros((2, 1, 1, 3), np.uint8)
    angle[0, ..., 0], angle[1, ..., 1] = 3, 4  # latent (3, 4) against (3, 0): cosine 3/5
    straight = np.zeros_like(angle)
    straight[0, ..., 0] = 3
    assert VideoAlignment(StubVideo().encode, angle, 2, interval=1).value(history_of(straight), 1) == pytest.approx(0.6)


def test_still_clip_is_worth_nothing_once_centred_but_much_when_raw():
    still = np.repeat(goal_video()[:1], FRAMES, axis=0)
    raw, centred = (VideoAlignment(StubVideo().encode, goal_video(), FRAMES, FRAMES - 1, how)
                    for how in ("none", "first"))
    assert raw.value(history_of(still), FRAMES - 1) > 0.7
    assert centred.value(history_of(still), FRAMES - 1) == 0


def test_centring_by_a_mean_needs_it_in_the_right_shape():
    mean = rewards.mean_latent(StubVideo(), np.stack([goal_video(1), goal_video(2)]))
    model = rewards.make_reward("genreward_video", parts(), centring="mean", mean_latent=mean)
    assert np.allclose(model.video.goal, StubVideo().encode(goal_video()) - mean)
    with pytest.raises(InputError, match="needs mean_latent"):
        rewards.make_reward("genreward_video", parts(), centring="mean")
    with pytest.raises(InputError, match="shape"):
        rewards.make_reward("genreward_video", parts(), centring="mean", mean_latent=mean[:, :2])


def test_window_and_interval_choose_the_steps():
    whole = VideoAlignment(StubVideo().encode, goal_video(), FRAMES, 128)
    late = VideoAlignment(StubVideo().encode, goal_video(), FRAMES, 128, window="interval")
    assert whole.steps(256).tolist() == list(range(0, 257, 32))
    assert late.steps(256).tolist() == list(range(128, 257, 16))
    assert [t for t in range(257) if whole.pays(t)] == [128, 256]
    assert {t for t in range(257) if whole.needs_frame(t, 256)} == set(range(0, 129, 16)) | set(range(0, 257, 32))
    assert not any(whole.needs_frame(t, 127) for t in range(128))  # an episode too short to be paid


def test_video_is_paid_at_multiples_of_the_interval_only():
    paid = make("genreward_video").score(record())
    assert np.flatnonzero(paid).tolist() == [127, 255]
    raw = make("genreward_video", alpha=1.0).score(record())
    assert paid == pytest.approx(0.01 * raw, abs=1e-9) and 0 < raw[127] <= 1


# ------------------------------------------------------------------------------------------------------- Eq. 9, 10

def test_frame_term_is_that_of_the_state_and_action_before_the_step():
    episode, model = record(), make("genreward_frame", beta=2.0)
    goal = model.frame.goal_features
    expected = 2 * (episode.frames[127].mean(axis=(0, 1)) @ goal + episode.actions[127].sum())
    paid = model.score(episode)
    assert np.flatnonzero(paid).tolist() == [127, 255] and paid[127] == pytest.approx(expected, rel=1e-5)


def test_every_step_normalised_frame_term_has_mean_0_and_spread_1_over_its_replay():
    episode, model = record(), rewards.make_reward("genreward_sound", parts(video_model=None))
    with pytest.raises(InputError, match="fit_normaliser"):
        model.score(episode)
    model.fit_normaliser(StubEncoder().encode(episode.frames[:-1]), episode.actions)
    paid = model.score(episode)
    assert abs(paid.mean()) < 1e-4 and paid.std() == pytest.approx(1, abs=1e-4)


def test_nothing_is_paid_for_frames_before_the_freeze():
    fb = StubFB(frozen=False)
    model = rewards.make_reward("genreward", parts(fb=fb))
    env = rewards.GoalRewardEnv(Toy(), model)
    env.reset(seed=0)
    paid = [env.step(np.full(2, 0.5))[4]["reward_terms"]["frame"] for _ in range(128)]
    assert not any(paid)
    with pytest.raises(InputError, match="freeze"):
        model.score(record())
    fb.frozen = True
    paid = [env.step(np.full(2, 0.5))[4]["reward_terms"]["frame"] for _ in range(128)]
    assert np.flatnonzero(paid).tolist() == [127]


def test_features_of_states_need_no_pictures():
    fb = StubFB()
    fb.feature_dim = 2
    model = rewards.make_reward("genreward_frame", {"goal": StubGoal(goal_video()), "fb": fb}, beta=1.0, interval=1,
                                goal_features=np.array([1.0, -1.0]))
    episode = replace(record(4), frames=None)
    assert model.score(episode) == pytest.approx(
        episode.states[:-1] @ [1.0, -1.0] + episode.actions.sum(axis=1), rel=1e-5)
    with pytest.raises(InputError, match="2 finite numbers"):
        rewards.make_reward("genreward_frame", {"goal": StubGoal(goal_video()), "fb": fb}, goal_features=np.ones(3))


def test_equation_10_sums_the_weighted_terms_and_the_environment():
    env = rewards.GoalRewardEnv(Toy(), make("genreward", alpha=3.0, beta=0.5))
    env.reset(seed=1)
    total = {}
    for t in range(1, STEPS + 1):
        _, paid, _, truncated, info = env.step(np.array([0.1, -0.2]))
        terms = info["reward_terms"]
        assert set(terms) == {"env", "video", "frame"} and paid == pytest.approx(sum(terms.values()))
        assert terms["env"] == pytest.approx(float(env.unwrapped.x.sum()))
        assert (terms["video"] != 0) == (terms["frame"] != 0) == (t % 128 == 0)
        total = {name: total.get(name, 0) + value for name, value in terms.items()}
        assert ("episode_terms" in info) == truncated
    assert info["episode_terms"] == pytest.approx(total)


@pytest.mark.parametrize("kind, expected", [("dense", lambda x, t: 2 * x), (None, lambda x, t: x),
                                            ("none", lambda x, t: 0), ("sparse", lambda x, t: 2 * x * (t % 4 == 0))])
def test_the_environments_part(kind, expected):
    env = rewards.GoalRewardEnv(Toy(8), make("clock"), kind, sparse_interval=4)
    env.reset(seed=3)
    for t in range(1, 9):
        terms = env.step(np.array([0.3, 0.1]))[4]["reward_terms"]
        assert terms == pytest.approx({"env": expected(env.unwrapped.x.sum(), t), "clock": t / 8})


def test_dense_and_sparse_stand_in_for_the_environments_reward():
    episode = record(8)
    assert np.array_equal(make("dense").score(episode), episode.rewards)
    sparse = make("sparse", sparse_interval=4).score(episode)
    assert np.flatnonzero(sparse).tolist() == [3, 7] and sparse[3] == episode.rewards[3]
    env = rewards.GoalRewardEnv(Toy(8), make("dense"))
    env.reset(seed=0)
    _, paid, _, _, info = env.step(np.ones(2))
    assert info["reward_terms"] == {"env": paid} and paid == info["dense_reward"]  # not counted twice


# ---------------------------------------------------------------------------------------------------- what is rendered

def test_the_printed_reward_renders_few_frames_and_encodes_each_once():
    env, model = Toy(), make("genreward")
    encoder = model.frame.encoder
    encoder.encoded = 0
    wrapped = rewards.GoalRewardEnv(env, model)
    wrapped.reset(seed=0)
    for _ in range(STEPS):
        wrapped.step(np.zeros(2))
    assert env.renders == len(set(range(0, 129, 16)) | set(range(0, 257, 32)) | {127, 255}) == 15
    assert encoder.encoded == 2
    assert model.features(wrapped.history, 127).shape == (3,) and encoder.encoded == 2  # from the cache


def test_all_frames_are_rendered_while_F_and_B_learn():
    model = rewards.make_reward("genreward", parts(fb=StubFB(frozen=False)))
    assert all(model.needs_frame(t, STEPS) for t in range(STEPS + 1))


def test_a_frame_that_was_not_rendered_is_named():
    history = history_of(goal_video())
    del history.frames[3]
    with pytest.raises(InputError, match="frame 3 of the episode was not rendered"):
        history.clip(np.arange(5))


# ------------------------------------------------------------------------------------------------------- the wrapper

def test_ledger_holds_each_terms_share():
    ledger = rewards.RewardLedger()
    assert ledger.shares() == {}
    ledger.add({"env": 3.0, "video": -1.0})
    ledger.add({"env": 0.0, "video": 0.0})
    assert ledger.shares() == {"env": 0.75, "video": 0.25} and ledger.totals == {"env": 3.0, "video": -1.0}
    copy = rewards.RewardLedger()
    copy.load_state_dict(ledger.state_dict())
    ledger.add({"env": 4.0})
    copy.add({"env": 4.0})
    assert copy.state_dict() == ledger.state_dict() and copy.steps == 3
    empty = rewards.RewardLedger()
    empty.add({"env": 0.0})
    assert empty.shares() == {"env": 0.0}


def test_resumed_in_mid_episode_pays_the_same():
    actions = np.random.default_rng(2).uniform(-1, 1, (STEPS, 2))

    def start():
        env = rewards.GoalRewardEnv(Toy(), make("genreward_sound"))
        env.reset(seed=2)
        return env

    straight, killed, resumed = start(), start(), start()
    paid = [straight.step(action)[1] for action in actions]
    for action in actions[:100]:
        killed.step(action)
    kept = killed.state_dict()
    killed.step(actions[100])  # what happens after the checkpoint does not reach into it
    resumed.load_state_dict(kept)
    resumed.unwrapped.x, resumed.unwrapped.t = straight.unwrapped.x, 100
    replay = Toy()
    replay.reset(seed=2)
    for action in actions[:100]:
        replay.step(action)
    resumed.unwrapped.x = replay.x
    assert [resumed.step(action)[1] for action in actions[100:]] == paid[100:]
    assert resumed.ledger.state_dict() == straight.ledger.state_dict()


@pytest.mark.parametrize("action", [[np.nan, 0.0], [np.inf, 0.0]])
def test_an_action_that_is_no_number_is_refused_before_it_is_taken(action):
    env = rewards.GoalRewardEnv(Toy(), make("clock"))
    env.reset(seed=0)
    with pytest.raises(InputError, match="the action holds NaN or infinite numbers"):
        env.step(np.array(action))
    assert env.unwrapped.t == 0 and len(env.history) == 0


class Careless(rewards.RewardModel):
    """A reward of somebody's own that pays what it is told from step 2 on, and looks at frames nobody asked for."""

    def __init__(self, pays=None, looks_at=None):
        self.pays, self.looks_at = pays, looks_at

    def terms(self, history, t):
        if self.looks_at is not None:
            return {"picture": float(history.frames[self.looks_at].mean())}
        return {"mine": 1.0} if t < 2 else self.pays


@pytest.mark.parametrize("model, message", [
    (Careless(pays=0.5), r"reward 'Careless' at step 2: terms\(\) must return a dict .*; got 0.5"),
    (Careless(pays=None), r"'Careless' at step 2: terms\(\) must return a dict .*; got None"),
    (Careless(pays={"mine": np.nan}), "'Careless' at step 2: the term 'mine' must be finite, got nan"),
    (Careless(pays={"mine": 1.0, "more": -np.inf}), "at step 2: the term 'more' must be finite, got -inf"),
    (Careless(pays={"mine": np.zeros(3)}), "at step 2: the term 'mine' must be one number, got array"),
    (Careless(pays={"mine": torch.zeros(2)}), "at step 2: the term 'mine' must be one number, got tensor"),
    (Careless(pays={"mine": None}), "at step 2: the term 'mine' must be one number, got None"),
    (Careless(pays={"mine": "much"}), "at step 2: the term 'mine' must be one number, got 'much'"),
    (Careless(looks_at=1), r"frame 1 of the episode was not rendered; .*needs_frame\(\) must ask for it"),
])
def test_what_a_careless_reward_pays_is_refused_alike_on_record_and_online(model, message):
    with pytest.raises(InputError, match=message):
        model.score_terms(record())
    env = rewards.GoalRewardEnv(Toy(), model)
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(np.zeros(2))
        env.step(np.zeros(2))
    assert env.ledger.paid.get("mine", 0.0) in (0.0, 1.0)  # what was refused is in no sum


@pytest.mark.parametrize("number", [1.5, np.float32(1.5), np.array(1.5), torch.tensor(1.5)])
def test_any_kind_of_one_number_is_paid(number):
    env = rewards.GoalRewardEnv(Toy(), Careless(pays={"mine": number}), "none")
    env.reset(seed=0)
    env.step(np.zeros(2))
    terms = env.step(np.zeros(2))[4]["reward_terms"]
    assert terms == {"env": 0.0, "mine": 1.5} and type(terms["mine"]) is float


def test_a_term_called_env_is_refused_of_whoever_does_not_say_that_it_is_meant():
    class Meant(Careless):
        replaces_env = True

    env = rewards.GoalRewardEnv(Toy(), Careless(pays={"env": 5.0}))
    env.reset(seed=0)
    with pytest.raises(InputError, match="a term called 'env' would replace the environment's own reward; give it ano"):
        for _ in range(2):
            env.step(np.zeros(2))
    env = rewards.GoalRewardEnv(Toy(), Meant(pays={"env": 5.0}))
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[1] for _ in range(2)][-1] == 5.0


def test_a_reward_that_would_never_pay_is_refused_before_the_first_step():
    never, sparse = "never in an episode of 8", {"env_reward": "sparse", "sparse_interval": 9}
    for model, given, why in (
            (make("genreward", interval=9), {}, f"a term of reward 'genreward' is due every 9 steps only, and {never}"),
            (make("clock"), sparse, rf"env_reward='sparse' is due every 9 steps only \(sparse_interval\), and {never}"),
            (make("genreward_sound", interval=9), {}, "a term of reward 'genreward_sound' is due every 9 steps only")):
        with pytest.raises(InputError, match=why):
            rewards.GoalRewardEnv(Toy(8), model, **given)
    for model, given in ((make("genreward", interval=8), {}), (make("clock"), {"sparse_interval": 9}),
                         (make("genreward_sound", interval=9, alpha=0.0), {})):  # the frame term is due at every step
        rewards.GoalRewardEnv(Toy(8), model, **given)


def test_an_environment_made_without_pictures_is_named_with_what_would_give_them():
    class Blind(Toy):
        render_mode = None

        def render(self):
            raise AttributeError("'NoneType' object has no attribute 'id'")

    env = rewards.GoalRewardEnv(Blind(8), make("genreward", interval=4))
    with pytest.raises(InputError, match="render.. failed .AttributeError: .*make the environment with render_mode="):
        env.reset(seed=0)
    env.unwrapped.render_mode = "rgb_array"  # then it is its own fault
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
        env.reset(seed=0)


def test_an_environment_that_pays_nan_is_stopped():
    inner = Toy()
    inner.step = lambda action: (inner.x, np.nan, False, False, {})
    env = rewards.GoalRewardEnv(inner, make("clock"))
    env.reset(seed=0)
    with pytest.raises(InputError, match="the environment's own reward must be finite, got nan at step 1"):
        env.step(np.zeros(2))
    env = rewards.GoalRewardEnv(inner, make("clock"), "none")  # where it is not paid, nobody minds
    env.reset(seed=0)
    assert env.step(np.zeros(2))[4]["reward_terms"]["env"] == 0


def test_the_frames_of_a_kept_episode_are_a_plain_dict():
    env = rewards.GoalRewardEnv(Toy(), make("genreward_sound"))
    env.reset(seed=0)
    kept = env.state_dict()["history"]["frames"]
    assert type(kept) is dict and 0 in kept  # `torch.load(weights_only=True)` admits no other
    resumed = rewards.GoalRewardEnv(Toy(), make("genreward_sound"))
    resumed.load_state_dict(env.state_dict())
    with pytest.raises(InputError, match="frame 7 of the episode was not rendered"):
        resumed.history.frames[7]


def test_wrapper_refuses_what_it_cannot_use():
    with pytest.raises(InputError, match="unknown env_reward 'shaped'; valid: dense, none, sparse"):
        rewards.GoalRewardEnv(Toy(), make("clock"), "shaped")
    with pytest.raises(InputError, match="sparse_interval"):
        rewards.GoalRewardEnv(Toy(), make("clock"), "sparse", sparse_interval=0)
    with pytest.raises(InputError, match="how long an episode is"):
        rewards.GoalRewardEnv(Toy(episode_steps=None), make("clock"))
    blind = Toy()
    blind.render = lambda: None
    with pytest.raises(InputError, match="gave nothing"):
        rewards.GoalRewardEnv(blind, make("genreward")).reset()
    blind.render = lambda: np.zeros((SIZE, SIZE + 1, 3), np.uint8)
    with pytest.raises(InputError, match="must be 8x8 pixels"):
        rewards.GoalRewardEnv(blind, make("genreward")).reset()


# ------------------------------------------------------------------------------------------------------ the registry

def test_unknown_names_and_settings():
    with pytest.raises(InputError, match="unknown reward 'dens'; valid: clock, dense, .*genreward, .*viper, vlm_rm"):
        rewards.get_reward("dens")
    with pytest.raises(InputError, match="unknown setting of reward 'genreward': 'gamma'; valid: alpha"):
        rewards.make_reward("genreward", parts(), gamma=1.0)
    with pytest.raises(InputError, match="'genreward' cannot be made without goal"):
        rewards.make_reward("genreward", {})
    with pytest.raises(InputError, match="has no term to pay"):
        rewards.make_reward("genreward", {"goal": StubGoal(goal_video())})
    for setting, match in [({"centring": "x"}, "centring"), ({"window": "x"}, "window"), ({"interval": 0}, "interval"),
                           ({"frame_paid": "x"}, "frame_paid"), ({"alpha": float("nan")}, "finite")]:
        with pytest.raises(InputError, match=match):
            rewards.make_reward("genreward", parts(), **setting)
    with pytest.raises(InputError, match="fb_targets='buffer'"):
        rewards.make_reward("genreward_sound", parts(fb=StubFB(fb_targets="goal")))
    with pytest.raises(InputError, match="goal video must be 8x8"):
        rewards.make_reward("genreward", parts(goal=StubGoal(np.zeros((9, 4, 4, 3), np.uint8))))


def test_table1_says_what_the_paper_says():
    table = rewards.table1()
    assert table.loc["genreward", ["demo-free", "generated", "action-aware"]].tolist() == [True, True, True]
    assert not table.loc["genreward_video", "action-aware"]
    assert len(table.loc["genreward_sound", "deviations"]) > len(table.loc["genreward", "deviations"]) > 0
    oracle = rewards.make_reward("genreward", parts(goal=StubGoal(goal_video(), source="demonstration")))
    assert not oracle.properties.demo_free and not oracle.properties.generated
    assert rewards.get_reward("genreward").properties.demo_free  # the class is not changed by one oracle


# ------------------------------------------------------------------------------------------------- with real models

def test_with_the_real_small_classes():
    """VideoModel and ForwardBackward in the stubs' places: the goal itself scores 1, Eq. 9 is what F and B say."""
    config = VideoConfig(image_size=16, num_frames=9, vae_channels=(8, 8, 8), vae_norm_groups=4, latent_channels=4,
                         heads=2, head_dim=16, layers=1, text_layers=1, text_heads=2, text_dim=32)
    video_model = VideoModel.small(config, seed=0)
    fb = ForwardBackward(3, 2, FBConfig(dim=4, hidden=16), seed=0)
    fb.freeze()
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    given = {"goal": StubGoal(clip), "video_model": video_model, "fb": fb, "encoder": StubEncoder()}
    episode = Trajectory("toy", np.zeros((9, 2), np.float32), rng.uniform(-1, 1, (8, 2)).astype(np.float32),
                         np.zeros(8, np.float32), np.zeros(8, bool), clip)
    terms = rewards.make_reward("genreward", given, alpha=1.0, beta=1.0, interval=8).score_terms(episode)
    assert terms["video"].tolist() == pytest.approx([0] * 7 + [1], abs=1e-6)
    features = StubEncoder().encode(clip)
    expected = fb.reward(features[7:8], episode.actions[7:8], features[8])
    assert terms["frame"][7] == pytest.approx(float(expected[0]), rel=1e-5)
    sound = rewards.make_reward("genreward_sound", given, interval=8)
    sound.fit_normaliser(features[:-1], episode.actions)
    paid = sound.score_terms(episode)
    assert paid["video"][7] == pytest.approx(1, abs=1e-6)
    assert abs(paid["frame"].mean()) < 1e-3 and paid["frame"].std() == pytest.approx(1, abs=1e-3)


def test_online_the_history_knows_the_environments_task():
    """Rewards that depend on the task (its statistics, its text) must read the same name online as offline."""
    from genreward.envs import make_env

    class Names(rewards.RewardModel):
        properties = rewards.RewardProperties(True, False, False, "-")

        def terms(self, history, t):
            return {"length": float(len(history.task))}

    seen = []
    env = rewards.GoalRewardEnv(make_env("reach", episode_steps=2), Names())
    env.reset()
    seen.append(env.history.task)
    for said, inner, name in (({"task": "from info"}, "other", "from info"), ({}, "named", "named"), ({}, None, "")):
        plain = gymnasium.make("CartPole-v1").unwrapped
        plain.task = inner
        plain.reset = lambda seed=None, options=None, said=said: (np.zeros(4, np.float32), said)
        wrapped = rewards.GoalRewardEnv(plain, Names(), episode_steps=5)
        wrapped.reset()
        assert wrapped.history.task == name
    assert seen == ["reach"]
