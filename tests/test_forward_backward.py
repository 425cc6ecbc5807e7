"""Forward-backward: closed forms on a ring, the printed loss against the sound one, resume, bad input, zero-shot."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

import genreward  # noqa: F401  (import order, see genreward/__init__.py)
from genreward.envs import random_policy
from genreward.errors import InputError
from genreward.forward_backward import (
    FeatureScaler,
    ForwardBackward,
    RewardNormaliser,
    act_toward,
    check_replay,
    collect_exploration,
    fb_terms,
    fb_terms_goal,
    near_object_policy,
    orthonormality_loss,
    project_z,
    state_features,
    train_fb,
    zero_shot,
)
from genreward.profiles import FBConfig

N, GAMMA, RIGHT = 6, 0.8, 0.7  # a ring of 6 states; the sign of the action is the direction
EYE = np.eye(N, dtype=np.float32)
GOAL = 2
CONFIG = FBConfig(dim=8, hidden=48, batch=64, gamma=GAMMA, learning_rate=2e-3, tau=0.05, next_action="replay")
TINY = FBConfig(dim=4, hidden=8, batch=8, gamma=0.9, updates=6)


def ring_replay(transitions: int = 3000, seed: int = 0) -> dict[str, np.ndarray]:
    """Uniform states; the behaviour goes right with probability 0.7, now and at the next step."""
    rng = np.random.default_rng(seed)
    states = rng.integers(N, size=transitions)
    actions, following = (np.where(rng.random(transitions) < RIGHT, 1.0, -1.0) * rng.uniform(0.2, 1.0, transitions)
                          for _ in range(2))
    after = (states + np.sign(actions).astype(int)) % N
    return {"features": EYE[states], "actions": actions[:, None], "next_features": EYE[after],
            "next_actions": following[:, None]}


def ring_measure() -> np.ndarray:
    """Closed form P_a (I - gamma P_pi)^-1 diag(1/rho) for left and right: (2, N, N)."""
    step = np.roll(EYE, 1, axis=1)  # row i: the state right of i
    behaviour = RIGHT * step + (1 - RIGHT) * step.T
    visits = np.linalg.inv(np.eye(N) - GAMMA * behaviour)
    return np.stack([step.T @ visits, step @ visits]) * N


def learned_measure(fb: ForwardBackward) -> np.ndarray:
    z = fb.goal_z(EYE[GOAL])
    return np.stack([fb.successor_measure(EYE, np.full((N, 1), a, np.float32), z, EYE) for a in (-0.6, 0.6)])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.fixture(scope="module")
def ring():
    fb = ForwardBackward(N, 1, CONFIG, seed=0)
    return fb, train_fb(fb, ring_replay(), 500, progress=False, log_every=100)


def batch_of(rng: np.random.Generator, n: int = 8, features: int = 3, actions: int = 2) -> dict[str, np.ndarray]:
    return {"s": rng.normal(size=(n, features)).astype(np.float32),
            "a": rng.uniform(-1, 1, (n, actions)).astype(np.float32),
            "next_s": rng.normal(size=(n, features)).astype(np.float32)}


# ---- what the loss is


def test_loss_terms_by_hand():
    measure = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [-1.0, 2.0]]])
    target = torch.tensor([[9.0, 2.0], [4.0, 9.0]])
    offdiagonal, diagonal = fb_terms(measure, target, 0.5)
    # head 1: ((2-1)^2 + (3-2)^2)/2/2 = 0.5; head 2: ((1-1)^2 + (-1-2)^2)/2/2 = 2.25; diagonals -2.5 and -1
    assert float(offdiagonal) == pytest.approx(0.5 + 2.25)
    assert float(diagonal) == pytest.approx(-2.5 - 1.0)
    # with the second transition terminal, what follows it does not count: 3^2 and (-1)^2 instead
    ended, _ = fb_terms(measure, target, torch.tensor([[0.5], [0.0]]))
    assert float(ended) == pytest.approx((1 + 9) / 4 + (0 + 1) / 4)
    squared, linear = fb_terms_goal(torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([2.0, 4.0]), 0.5)
    assert float(squared) == pytest.approx((0 + 1) / 4 + (1 + 0) / 4)
    assert float(linear) == pytest.approx(-2.0 - 1.0)
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert float(orthonormality_loss(rows)) == pytest.approx(0.0 - 2 * 2 + 2)
    equal = torch.ones(5, 8, requires_grad=True)
    loss = orthonormality_loss(project_z(equal))
    loss.backward()
    assert loss.item() == pytest.approx(8 * 8 - 8, rel=1e-5)
    assert equal.grad.abs().max() < 1e-3  # nothing to descend


@pytest.mark.parametrize("twin", ["mean", "min"])
@pytest.mark.parametrize("targets", ["buffer", "goal"])
def test_update_reports_the_terms_of_its_networks(targets, twin):
    """A two-sample batch, by the definition: F, B, the twin targets, gamma; z is fixed by goal_fraction = 1."""
    config = replace(TINY, fb_targets=targets, twin=twin, next_action="replay", goal_fraction=1.0, orthonormality=0.3)
    fb = ForwardBackward(3, 2, config, seed=1)
    rng = np.random.default_rng(0)
    batch = {**batch_of(rng, 2), "next_a": rng.uniform(-1, 1, (2, 2)).astype(np.float32)}
    goal = rng.normal(size=3).astype(np.float32)
    for target in fb.targets.values():  # targets unlike the online networks, or the test could not tell them apart
        for parameter in target.parameters():
            parameter.mul_(1.1)
    places = batch["next_s"] if targets == "buffer" else np.stack([goal, goal])
    state = fb.generator.get_state()
    torch.randn(2, 4, generator=fb.generator)
    z = fb.backward_map(places)[torch.randperm(2, generator=fb.generator).numpy()]
    fb.generator.set_state(state)

    forward, backward = fb.forward_map(batch["s"], batch["a"], z), fb.backward_map(places)
    with torch.no_grad():
        following = fb.targets["forward_net"](*(torch.from_numpy(v) for v in (batch["next_s"], batch["next_a"], z)))
        seen = fb.targets["backward_net"](torch.from_numpy(places))
    next_measure = {"mean": np.mean, "min": np.min}[twin](following.numpy() @ seen.numpy().T, axis=0)  # (2, 2)
    measure = forward @ backward.T  # (2 heads, 2, 2)
    if targets == "buffer":
        residuals = [measure[h, i, 1 - i] - 0.9 * next_measure[i, 1 - i] for h in range(2) for i in range(2)]
    else:
        residuals = [measure[h, i, i] - 0.9 * next_measure[i, i] for h in range(2) for i in range(2)]
    offdiagonal = 0.5 * np.sum(np.square(residuals)) / 2
    diagonal = -np.sum([measure[h, i, i] for h in range(2) for i in range(2)]) / 2
    orthonormality = (backward[0] @ backward[1]) ** 2 - 2 * 4 + 4
    actor = np.min((fb.forward_map(batch["s"], fb.policy(batch["s"], z), z) * z).sum(-1), axis=0).mean()

    terms = fb.update(batch, goal)
    assert terms["fb_offdiagonal"] == pytest.approx(offdiagonal, rel=1e-4)
    assert terms["fb_diagonal"] == pytest.approx(diagonal, rel=1e-4, abs=1e-5)
    assert terms["orthonormality"] == pytest.approx(orthonormality, rel=1e-4, abs=1e-4)
    assert terms["total"] == pytest.approx(offdiagonal + diagonal + 0.3 * orthonormality, rel=1e-4)
    assert terms["policy"] == pytest.approx(-actor, abs=0.05)  # of F one step later


def test_b_and_z_lie_on_the_sphere():
    fb = ForwardBackward(3, 2, TINY, seed=0)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        np.testing.assert_allclose(np.linalg.norm(fb.backward_map(scale * rng.normal(size=(5, 3))), axis=1), 2.0,
                                   rtol=1e-5)
    goal = rng.normal(size=3)
    np.testing.assert_allclose(fb.goal_z(goal), fb.backward_map(goal)[0], rtol=1e-5)
    # Eq. 9 is F(s, a, z*)^T B(goal)
    features, actions = rng.normal(size=(4, 3)), rng.uniform(-1, 1, (4, 2))
    heads = fb.forward_map(features, actions, fb.goal_z(goal)) @ fb.backward_map(goal)[0]  # (2, 4)
    np.testing.assert_allclose(fb.reward(features, actions, goal), heads.mean(0), rtol=1e-4, atol=1e-6)
    printed = ForwardBackward(3, 2, replace(TINY, twin="min"), seed=0)
    np.testing.assert_allclose(printed.reward(features, actions, goal), heads.min(0), rtol=1e-4, atol=1e-6)


# ---- what it learns, against the closed form


def test_buffer_targets_learn_the_successor_measure(ring):
    fb, log = ring
    learned, exact = learned_measure(fb), ring_measure()
    assert exact.sum(-1) / N == pytest.approx(1 / (1 - GAMMA))  # it integrates to 1/(1-gamma) over rho
    assert correlation(learned, exact) > 0.95
    np.testing.assert_array_equal(learned.argmax(-1), exact.argmax(-1))
    # Eq. 9: which state and action is good for the goal, by the reward itself
    rewards = np.stack([fb.reward(EYE, np.full((N, 1), a, np.float32), EYE[GOAL]) for a in (-0.6, 0.6)])
    assert correlation(rewards, exact[:, :, GOAL]) > 0.95
    # B tells the states apart, and M stays at the scale of a density: 1/(1-gamma) over rho = 1/N
    assert log["rank"].iloc[-1] > 1 and log["effective_rank"].iloc[-1] > 3
    assert log["max_measure"].max() < N / (1 - GAMMA)
    assert log["orthonormality_error"].iloc[-1] < 3  # rank 6 of 8 dimensions: at least sqrt(2)


def test_the_smaller_of_the_twin_heads_loses_mass():
    """M is a density: its mean over independent pairs is 1/(1-gamma) for whatever policy, so also for pi_z. The smaller
    of two estimates is below that at every backup, and gamma/(1-gamma) of them add up."""
    means, largest = {}, {}
    for twin in ("mean", "min"):
        fb = ForwardBackward(N, 1, replace(CONFIG, next_action="policy", twin=twin), seed=0)
        largest[twin] = train_fb(fb, ring_replay(), 400, progress=False, log_every=100)["max_measure"].max()
        z, actions = fb.backward_map(EYE), np.full((N, 1), 0.6, np.float32)
        means[twin] = np.mean([fb.successor_measure(EYE, sign * actions, goal, EYE) for goal in z for sign in (-1, 1)])
    exact = 1 / (1 - GAMMA)
    assert means["mean"] == pytest.approx(exact, rel=0.07)
    assert means["min"] < 0.93 * exact
    assert max(largest.values()) < N / (1 - GAMMA)  # nor does it grow beyond what a density can be


def test_goal_targets_learn_only_a_constant(ring):
    """Eq. 8 as printed: B is one vector, and M becomes 1/(1-gamma) wherever the agent is."""
    fb = ForwardBackward(N, 1, replace(CONFIG, fb_targets="goal"), seed=0)
    log = train_fb(fb, ring_replay(), 500, goal=EYE[GOAL], progress=False, log_every=100)
    assert (log["rank"] == 1).all()
    np.testing.assert_allclose(log["orthonormality"], 8 * 8 - 8, rtol=1e-4)
    column, exact = learned_measure(fb)[:, :, GOAL], ring_measure()[:, :, GOAL]
    assert column.mean() == pytest.approx(1 / (1 - GAMMA), rel=0.15)
    assert column.std() < 0.1 * exact.std()
    assert learned_measure(ring[0])[:, :, GOAL].std() > 0.5 * exact.std()
    assert correlation(learned_measure(fb), ring_measure()) < 0.5


def test_actions_belong_to_their_states(ring):
    """Shuffling the actions against the states destroys what an action is worth."""
    replay = ring_replay()
    replay["actions"] = np.random.default_rng(5).permutation(replay["actions"])
    shuffled = ForwardBackward(N, 1, CONFIG, seed=0)
    train_fb(shuffled, replay, 300, progress=False, log_every=300)
    exact = ring_measure()
    gap, true_gap = np.diff(learned_measure(shuffled), axis=0), np.diff(exact, axis=0)
    assert correlation(np.diff(learned_measure(ring[0]), axis=0), true_gap) > 0.95
    assert np.abs(gap).mean() < 0.25 * np.abs(true_gap).mean()


def test_without_the_action_f_does_not_see_it():
    fb = ForwardBackward(3, 2, replace(TINY, action_aware=False), seed=0)
    rng = np.random.default_rng(0)
    batch = batch_of(rng)
    before = fb.policy(batch["s"], fb.goal_z(batch["s"][0]))
    assert np.isfinite(list(fb.update(batch).values())).all()
    z = rng.normal(size=4)
    np.testing.assert_array_equal(fb.forward_map(batch["s"], batch["a"], z), fb.forward_map(batch["s"], -batch["a"], z))
    np.testing.assert_array_equal(before.shape, (8, 2))
    aware = ForwardBackward(3, 2, TINY, seed=0)
    one, other = (aware.forward_map(batch["s"], sign * batch["a"], z) for sign in (1, -1))
    assert not np.allclose(one, other)


# ---- acting


class Point(gymnasium.Env):
    """A point on a line; the action is its velocity. Success: within 0.1 of 0.6."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    goal = 0.6

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action):
        self.x, self.steps = np.clip(self.x + 0.15 * action, -1, 1).astype(np.float32), self.steps + 1
        distance = abs(float(self.x[0]) - self.goal)
        return self.x.copy(), -distance, False, self.steps >= 40, {"success": float(distance < 0.1)}

    def render(self):
        return np.full((4, 4, 3), int(127 * (self.x[0] + 1)), np.uint8)


def test_zero_shot_policy_reaches_the_goal():
    replay = collect_exploration(lambda seed: Point(), 2000, seed=0, progress=False)
    config = FBConfig(dim=16, hidden=48, batch=64, gamma=0.9, learning_rate=1e-3, tau=0.03)
    fb = ForwardBackward(1, 1, config, seed=0)
    untrained = zero_shot(fb, Point(), fb.goal_z([Point.goal]), episodes=5, seed=3)[0]
    train_fb(fb, replay, 500, progress=False, log_every=500)
    z = fb.goal_z(np.array([Point.goal]))
    returns, success = zero_shot(fb, Point(), z, episodes=5, seed=3)
    assert success.all()
    assert returns.mean() > untrained.mean() + 5
    # and toward the other side with the other goal
    other = fb.goal_z([-0.6])
    assert act_toward(fb, [0.0], z)[0] > 0 > act_toward(fb, [0.0], other)[0]
    again = zero_shot(fb, Point(), lambda env, observation: z, episodes=5, seed=3)
    np.testing.assert_array_equal(again[0], returns)


def test_exploration_is_a_chain_of_transitions_and_encodes_each_frame_once():
    class Counting:
        frames = 0

        def encode(self, frames):
            self.frames += len(frames)
            return frames[:, 0, 0, :2].astype(np.float32)

    encoder = Counting()
    replay = collect_exploration(lambda seed: Point(), 100, seed=4, encoder=encoder, progress=False)
    assert replay["features"].shape == (100, 2) and replay["actions"].shape == (100, 1)
    assert encoder.frames == 100 + 3  # two whole episodes of 40 and one of 20, each with its first frame
    assert [int((replay["episodes"] == k).sum()) for k in range(3)] == [40, 40, 20]
    inside = np.diff(replay["episodes"]) == 0
    np.testing.assert_array_equal(replay["next_features"][:-1][inside], replay["features"][1:][inside])
    plain = collect_exploration(lambda seed: Point(), 100, seed=4, progress=False)
    moved = np.clip(plain["features"] + 0.15 * plain["actions"], -1, 1)
    np.testing.assert_array_equal(plain["next_states"], plain["next_features"])
    assert replay["next_states"].shape == (100, 1)  # beside the features of the pictures
    np.testing.assert_allclose(plain["next_features"], moved, atol=1e-6)  # the action is the one taken in that state
    again = collect_exploration(lambda seed: Point(), 100, seed=4, progress=False)
    assert all(np.array_equal(plain[key], again[key]) for key in plain)
    other = collect_exploration(lambda seed: Point(), 100, seed=5, progress=False)
    assert not np.array_equal(plain["actions"], other["actions"])
    # the last row of an episode has no known next action, unless given
    checked = check_replay(plain)
    np.testing.assert_array_equal(np.flatnonzero(~checked["valid"]), [39, 79, 99])
    np.testing.assert_array_equal(checked["next_actions"][:39], plain["actions"][1:40].astype(np.float32))


def test_explorers_stay_in_range_and_go_near_the_object():
    def closest(share: float) -> float:
        rng = np.random.default_rng(0)
        policy = near_object_policy(rng, share)
        observation, distances = np.zeros(39), []
        observation[:7] = 0.0, 0.6, 0.2, 1.0, 0.1, 0.7, 0.02
        for _ in range(400):
            action = policy(observation)
            assert action.shape == (4,) and action.dtype == np.float32 and np.abs(action).max() <= 1
            observation[:3] += 0.01 * action[:3]
            distances.append(np.linalg.norm(observation[:3] - observation[4:7]))
        return float(np.mean(np.array(distances) < 0.1))

    assert closest(1.0) > 0.5 > closest(0.0)
    hold = random_policy(np.random.default_rng(0), hold=3, actions=2)
    actions = np.stack([hold(np.zeros(1)) for _ in range(6)])
    assert (actions[:3] == actions[0]).all() and (actions[3] != actions[0]).all()
    observation = np.arange(39)
    np.testing.assert_array_equal(state_features(observation), np.arange(7))
    with pytest.raises(InputError, match="share"):
        near_object_policy(np.random.default_rng(0), 1.5)


# ---- scaling, keeping, refusing


def test_scaling_of_features_and_rewards():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3)) * [1.0, 20.0, 0.0] + [5.0, 0.0, 7.0]
    scaler = FeatureScaler(3)
    row = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(scaler(row), row)
    scaler.fit(torch.from_numpy(features))
    scaled = scaler(torch.from_numpy(features).float()).numpy()
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), [1 / 1.2, 1 / 1.01, 0], rtol=0.03)
    assert scaler(torch.full((1, 3), 1e6)).abs().max() == 10 and scaler(torch.full((1, 3), 1e6))[0, 2] == 0

    # one factor for all keeps their proportions, and still drops what never varied
    together = FeatureScaler(3, "together")
    together.fit(torch.from_numpy(features))
    spreads = together(torch.from_numpy(features).float()).numpy().std(0)
    assert spreads[1] / spreads[0] == pytest.approx(20, rel=0.1) and spreads[2] == 0
    assert np.sqrt(np.mean(spreads[:2] ** 2)) == pytest.approx(1.0, rel=0.01)
    assert ForwardBackward(3, 2, TINY).scaler.scaling == TINY.scaling == "together"

    normaliser = RewardNormaliser.fit(np.array([1.0, 3.0]))
    np.testing.assert_allclose(normaliser(np.array([1.0, 3.0, 2.0])), [-1, 1, 0])
    np.testing.assert_allclose(RewardNormaliser.fit(np.full(4, 50.0))(np.full(2, 50.0)), 0)
    fb = ForwardBackward(3, 2, TINY, seed=0)
    batch = batch_of(rng, 40)
    paid = fb.reward_normaliser(batch["s"], batch["a"], batch["s"][0])(fb.reward(batch["s"], batch["a"], batch["s"][0]))
    assert abs(paid.mean()) < 1e-4 and paid.std() == pytest.approx(1, rel=1e-3)
    with pytest.raises(InputError):
        RewardNormaliser.fit(np.array([np.nan]))


def tiny_replay() -> dict[str, np.ndarray]:
    batch = batch_of(np.random.default_rng(3), 50)
    return {"features": batch["s"], "actions": batch["a"], "next_features": batch["next_s"]}


def test_resume_is_exact_and_seeds_decide(tmp_path):
    straight = ForwardBackward(3, 2, TINY, seed=7)
    whole = train_fb(straight, tiny_replay(), 12, progress=False, log_every=6)
    first = ForwardBackward(3, 2, TINY, seed=7)
    train_fb(first, tiny_replay(), 6, progress=False, log_every=6)
    first.save(tmp_path / "fb.pt")
    second = ForwardBackward.load(tmp_path / "fb.pt", TINY)
    rest = train_fb(second, tiny_replay(), 6, progress=False, log_every=6)
    assert rest["update"].tolist() == [12]
    for column in whole:
        assert rest[column].iloc[-1] == whole[column].iloc[-1], column
    for key, value in straight.networks.state_dict().items():
        assert torch.equal(value, second.networks.state_dict()[key]), key
    other = ForwardBackward(3, 2, TINY, seed=8)
    same = ForwardBackward(3, 2, TINY, seed=7)
    assert not np.array_equal(other.backward_map(np.ones(3)), same.backward_map(np.ones(3)))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ForwardBackward(3, 2, TINY, seed=1)
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone


def test_freeze_and_small_files(tmp_path):
    fb = ForwardBackward(3, 2, TINY, seed=0)
    train_fb(fb, tiny_replay(), 3, progress=False)
    fb.save(tmp_path / "resume.pt")
    fb.save(tmp_path / "frozen.pt", resume=False)
    assert (tmp_path / "frozen.pt").stat().st_size < 0.6 * (tmp_path / "resume.pt").stat().st_size
    loaded = ForwardBackward.load(tmp_path / "frozen.pt")
    assert loaded.frozen and not fb.frozen
    s, a, goal = np.ones((2, 3)), np.zeros((2, 2)), np.zeros(3)
    np.testing.assert_allclose(loaded.reward(s, a, goal), fb.reward(s, a, goal), rtol=0.02, atol=5e-3)  # float16
    z = fb.goal_z(goal)
    np.testing.assert_allclose(loaded.policy(s, z), fb.policy(s, z), atol=5e-3)
    for name, value in loaded.scaler.state_dict().items():
        assert torch.equal(value, fb.scaler.state_dict()[name]), name
    fb.freeze()
    for model in (fb, loaded):
        with pytest.raises(InputError, match="frozen"):
            model.update(batch_of(np.random.default_rng(0)))
        with pytest.raises(InputError, match="frozen"):
            train_fb(model, tiny_replay(), 1, progress=False)


def test_damaged_and_foreign_files(tmp_path):
    fb = ForwardBackward(3, 2, TINY, seed=0)
    fb.save(tmp_path / "fb.pt")
    whole = (tmp_path / "fb.pt").read_bytes()
    for cut in (0, 40, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="not a complete forward-backward model") as caught:
            ForwardBackward.load(tmp_path / "cut.pt")
        assert "\n" not in str(caught.value)
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not a forward-backward model"):
        ForwardBackward.load(tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="no such"):
        ForwardBackward.load(tmp_path / "none.pt")
    with pytest.raises(InputError, match="dim 4 instead of 6"):
        ForwardBackward.load(tmp_path / "fb.pt", replace(TINY, dim=6))
    with pytest.raises(InputError, match="feature_dim 3 instead of 4"):
        ForwardBackward(4, 2, TINY, seed=0).load_state_dict(fb.state_dict())
    assert ForwardBackward.load(tmp_path / "fb.pt", replace(TINY, updates=99)).updates == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.pt", "fb.pt", "foreign.pt"]


def test_older_files_keep_the_rules_that_they_were_trained_by(tmp_path):
    old = ForwardBackward(3, 2, replace(TINY, twin="min", scaling="each"), seed=0)
    state = old.state_dict()
    for name in ("twin", "scaling"):  # could not be chosen then
        del state["config"][name]
    torch.save(state, tmp_path / "old.pt")
    loaded = ForwardBackward.load(tmp_path / "old.pt")
    assert (loaded.config.twin, loaded.config.scaling) == ("min", "each")
    with pytest.raises(InputError, match="twin 'min' instead of 'mean'"):
        ForwardBackward.load(tmp_path / "old.pt", TINY)


@pytest.mark.parametrize(("change", "message"), [
    ({"gamma": 1.0}, "gamma must lie between 0 and 1"), ({"gamma": 1.5}, "gamma"), ({"gamma": 0.0}, "gamma"),
    ({"fb_targets": "both"}, "unknown fb_targets 'both'; valid: buffer, goal"),
    ({"next_action": "best"}, "unknown next_action"), ({"twin": "max"}, "unknown twin 'max'; valid: mean, min"),
    ({"scaling": "none"}, "unknown scaling 'none'; valid: each, together"),
    ({"dim": 0}, "dim"), ({"batch": 1}, "batch"),
    ({"goal_fraction": 1.1}, "goal_fraction"), ({"tau": 0.0}, "tau"), ({"policy_noise": -1.0}, "policy_noise"),
    ({"learning_rate": 0.0}, "learning_rate")])
def test_bad_configurations(change, message):
    with pytest.raises(InputError, match=message):
        ForwardBackward(3, 2, replace(TINY, **change), seed=0)


def test_bad_batches_and_replays():
    fb = ForwardBackward(3, 2, TINY, seed=0)
    good = batch_of(np.random.default_rng(0))
    nan = good["s"].copy()
    nan[0, 0] = np.nan
    for change, message in (({"s": nan}, "finite"), ({"a": good["a"] * np.inf}, "finite"),
                            ({"a": good["a"][:4]}, "rows"),
                            ({"s": good["s"][:, :2]}, r"\(N, 3\)"), ({"next_s": good["next_s"][:3]}, "next_s"),
                            ({"a": good["a"] + 3}, "-1..1"), ({"done": np.zeros(3)}, "done"),
                            ({key: value[:1] for key, value in good.items()}, "at least 2")):
        with pytest.raises(InputError, match=message):
            fb.update({**good, **change})
    assert fb.updates == 0
    with pytest.raises(InputError, match="z must"):
        fb.policy(good["s"], np.ones((3, 4)))
    with pytest.raises(InputError, match="goal="):
        ForwardBackward(3, 2, replace(TINY, fb_targets="goal"), seed=0).update(good)
    with pytest.raises(InputError, match="next_a"):
        ForwardBackward(3, 2, replace(TINY, next_action="replay"), seed=0).update(good)
    replay = tiny_replay()
    with pytest.raises(InputError, match="missing: next_features"):
        check_replay({"features": replay["features"], "actions": replay["actions"]})
    for key, value in (("features", nan), ("actions", replay["actions"][:3]),
                       ("next_features", replay["features"][:, :1]),
                       ("dones", np.zeros(2)), ("next_actions", np.zeros((2, 2)))):
        with pytest.raises(InputError, match=key):
            check_replay({**replay, key: value})
    with pytest.raises(InputError, match="consecutive"):
        train_fb(ForwardBackward(3, 2, replace(TINY, next_action="replay"), seed=0), replay, 1, progress=False)
    with pytest.raises(InputError, match="updates"):
        train_fb(fb, replay, 0)
    fb.update(good)
    with pytest.raises(InputError, match="scaling"):
        fb.fit_scaler(good["s"])


def test_a_terminated_episode_has_nothing_after_it():
    """The residual of a terminated transition is M itself: `done` changes that term, and only that."""
    config = replace(TINY, policy_noise=0.0)
    batch = batch_of(np.random.default_rng(0))
    going, ended = (ForwardBackward(3, 2, config, seed=0).update({**batch, "done": np.full(8, flag)})
                    for flag in (False, True))
    unmarked = ForwardBackward(3, 2, config, seed=0).update(batch)
    assert going == pytest.approx(unmarked)
    assert ended["fb_offdiagonal"] != pytest.approx(going["fb_offdiagonal"], rel=1e-3)
    assert ended["fb_diagonal"] == pytest.approx(going["fb_diagonal"])
