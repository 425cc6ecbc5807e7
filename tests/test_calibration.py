"""Calibration: the exact density predicts what is measured, a wrong one does not; records, resume, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import genreward  # noqa: F401  (import order, see genreward/__init__.py)
from genreward import calibration, envs, forward_backward, pipeline, profiles, results, study
from genreward.calibration import (
    Settings,
    ball_probability,
    calibration_error,
    discounted_visits,
    in_ball,
    pairs,
    reliability,
    skill,
    summary,
)
from genreward.errors import InputError
from genreward.profiles import FBConfig

N, GAMMA, RIGHT = 6, 0.8, 0.7


# ---- closed forms


def ring_pairs(measure: np.ndarray, rollouts: int = 400, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Predicted by `measure` (2, N, N) and measured by walking: every action, state and ball of one or two states."""
    rng = np.random.default_rng(0)
    predicted, measured = [], []
    for action, move in enumerate((-1, 1)):
        for state in range(N):
            walks = np.where(rng.random((rollouts, steps)) < RIGHT, 1, -1)
            walks[:, 0] = move  # the first step is the action, the rest the policy's
            places = (state + np.cumsum(walks, axis=1)) % N
            for ball in ([0], [3], [1, 2]):
                density = measure[action, state, ball][None]
                predicted.append(ball_probability(density, len(ball) / N, GAMMA)[0])
                measured.append(discounted_visits(np.isin(places, ball), GAMMA).mean())
    return np.array(predicted), np.array(measured)


def test_the_exact_measure_of_a_ring_is_calibrated_and_a_wrong_one_is_not():
    exact = study.ring_measure(N, RIGHT, GAMMA)
    predicted, measured = ring_pairs(exact)
    assert 0 <= predicted.min() and predicted.max() <= 1 and np.ptp(measured) > 0.2
    np.testing.assert_allclose(predicted, measured, atol=0.04)  # 400 walks
    assert calibration_error(predicted, measured) < 0.01
    assert skill(predicted, measured) > 0.99
    table = reliability(predicted, measured)
    assert (table["low"] <= table["measured"]).all() and (table["measured"] <= table["high"]).all()
    assert table["n"].sum() == len(predicted) == 36 and table["predicted"].is_monotonic_increasing
    # in the other direction: as large on average, but of the wrong places
    mirrored, _ = ring_pairs(exact.transpose(0, 2, 1))
    assert skill(mirrored, measured) < 0.5
    # three times as large: the right order, the wrong size
    assert calibration_error(3 * predicted, measured) > 0.2


def test_the_whole_space_is_always_visited():
    exact = study.ring_measure(N, RIGHT, GAMMA)
    np.testing.assert_allclose(ball_probability(exact.reshape(-1, N), 1.0, GAMMA), 1.0)
    assert discounted_visits(np.ones(7, bool), 0.9) == pytest.approx(1.0)
    assert discounted_visits(np.array([[False, True], [True, False]]), 0.5).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_calibration_without_skill():
    """Always predicting the mean is calibrated and useless; the two numbers must tell that apart."""
    measured = np.random.default_rng(0).random(60)
    constant = np.full(60, measured.mean())
    assert calibration_error(constant, measured, bins=1) < 1e-9
    assert skill(constant, measured) == pytest.approx(0.0, abs=1e-9)
    assert skill(measured, measured) == 1.0 and np.isnan(skill(constant, constant))
    # predictions beyond [0, 1] are read as the nearest probability
    assert calibration_error(np.array([5.0, -2.0]), np.array([1.0, 0.0]), bins=2) == 0.0


def test_balls():
    goal = np.array([0.0, 0.6, 0.1, 1.0, 0.1, 0.7, 0.02])
    near, hand, thing, grip = goal.copy(), goal.copy(), goal.copy(), goal.copy()
    near[[0, 4]] += 0.04
    hand[1] += 0.06
    thing[5] -= 0.06
    grip[3] = 0.0  # the gripper's opening does not count
    assert in_ball(np.stack([near, hand, thing, grip]), goal, 0.05).tolist() == [True, False, False, True]


def test_bad_input():
    with pytest.raises(InputError, match="one replay state"):
        ball_probability(np.zeros((3, 0)), 0.0, 0.9)
    with pytest.raises(InputError, match="at least one a bin"):
        reliability(np.zeros(3), np.zeros(3), bins=4)
    with pytest.raises(InputError, match="at least one a bin"):
        reliability(np.zeros(3), np.zeros(4), bins=2)
    with pytest.raises(InputError, match="unknown measurement 'guess'; valid: measure, zero-shot"):
        calibration.record("smoke", "guess", ["reach"])
    with pytest.raises(InputError, match="unknown task 'fly'"):
        calibration.record("smoke", "measure", ["fly"])
    with pytest.raises(InputError, match="unknown features 'sound'; valid: pixels, state"):
        calibration.record("smoke", "measure", ["reach"], ["sound"])
    with pytest.raises(InputError, match="at least one task"):
        calibration.record("smoke", "measure", [])


# ---- in the simulator


@pytest.fixture
def reach():
    env = envs.make_env("reach", seed=0, split="eval", episode_steps=200, size=32)
    yield env
    env.close()


def test_the_simulator_goes_on_from_a_probe_as_it_went_on_before(reach):
    config = Settings(snapshots=2, visited=1, horizon=20, radius=0.05)
    rng = np.random.default_rng(1)
    probes, goals = calibration.explore(reach, 3, config, rng, lambda env, o: forward_backward.state_features(o))
    assert len(probes) == 2 and len(goals) == 1 and len({p.step for p in (*probes, *goals)}) == 3
    # the same episode once more: what came after the probe must come again
    again = np.random.default_rng(1)
    policy, states, actions = forward_backward.near_object_policy(again), [], []
    again.choice(128, 3, replace=False)
    observation, _ = reach.reset(options={"goal": 3})
    for _ in range(128):
        actions.append(policy(observation))
        observation = reach.step(actions[-1])[0]
        states.append(forward_backward.state_features(observation))
    probe = probes[0]
    assert probe.step + config.horizon < 128
    np.testing.assert_allclose(probe.action, actions[probe.step])
    replayed = iter(actions[probe.step + 1:])
    centre = states[probe.step + 5]
    expected = discounted_visits(in_ball(np.stack(states[probe.step:probe.step + 20]), centre, 0.05), 0.9)
    found = calibration.measure_visits(reach, probe, lambda o: next(replayed), centre, config, 0.9)
    assert found == pytest.approx(float(expected), abs=0.02) and found > 0


def test_expert_goals_are_where_the_expert_ends(reach):
    goals = calibration.expert_goals(reach, 2, seed=0, pictures=False)
    assert goals.states.shape == (2, 7) and len(set(goals.starts.tolist())) == 2
    episode = envs.rollout(reach, envs.expert_policy("reach"), frames=False, options={"goal": int(goals.starts[1])})
    np.testing.assert_allclose(forward_backward.state_features(episode.states[-1]), goals.states[1], atol=1e-5)
    hand, target = goals.states[:, :3], episode.states[-1, -3:]
    assert np.linalg.norm(hand[1] - target) < 0.06  # the expert reaches the goal of that start
    with pytest.raises(InputError, match="fewer"):
        calibration.expert_goals(envs.make_env("reach", episode_steps=1), 1, seed=0, pictures=False)


TINY = replace(profiles.get_profile("smoke"),
               fb=FBConfig(dim=4, hidden=16, batch=16, updates=5, exploration_steps=200))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    monkeypatch.setattr(profiles, "get_profile", lambda name: TINY)
    return profiles.paths(TINY)


def test_measuring_leaves_a_record_and_goes_on(tiny, monkeypatch):
    config = Settings(episodes=2, starts=2, snapshots=2, visited=1, horizon=6, radius=0.5, least=1)
    (path,) = calibration.record(TINY, "measure", ["reach"], ["state"], config)
    table = results.load(tiny.results / "calibration")
    told = pairs(table)
    assert set(zip(told["fb_targets"], told["goal"], strict=True)) == {
        ("buffer", "oracle"), ("buffer", "visited"), ("goal", "oracle")}
    assert len(told) == 12 and told["measured"].between(0, 1).all()
    assert (told["measured"] > 0).any()
    logged = table[table["metric"] == "rank"]
    assert (logged[logged["method"] == "state-goal"]["value"] == 1).all()  # as printed B is one point
    line = summary(table).set_index(["fb_targets", "goal"]).loc[("buffer", "oracle")]
    assert line["n"] == 4 and 0 <= line["ece"] <= 1
    # the same numbers from nothing; and what is on record is not measured again
    before = path.read_text()
    path.unlink()
    calibration.record(TINY, "measure", ["reach"], ["state"], config)
    assert path.read_text() == before
    asked, rows = [], table.drop(columns="run").to_dict("records")
    monkeypatch.setitem(calibration.MEASURES, "measure", lambda *given: asked.append(given) or rows)
    assert calibration.record(TINY, "measure", ["reach"], ["state"], config) == [path]
    assert asked == []
    calibration.record(TINY, "measure", ["reach"], ["state"], replace(config, radius=0.4))  # another measurement
    assert len(asked) == 1
    with pytest.raises(InputError, match="models of reach are missing"):
        calibration.record(TINY, "measure", ["reach"], ["state", "pixels"], config)


def test_zero_shot_is_compared_on_the_same_starts(tiny):
    config = Settings(episodes=2, horizon=12)
    calibration.record(TINY, "zero-shot", ["reach"], ["state"], config)
    table = results.load(tiny.results / "fb")
    assert set(table["method"]) == {f"state, {name}" for name in
                                    ("random", "expert", "oracle, own start", "oracle, other start")}
    assert set(table["metric"]) == {"return", "success", "hand_distance", "object_distance"}
    assert (table.groupby(["method", "metric"]).size() == 2).all()
    assert set(table["step"]) == {12}
    with pytest.raises(InputError, match="no predicted and measured"):
        pairs(table)


def test_exploration_is_collected_once(tiny, monkeypatch):
    first = pipeline.exploration(TINY, "reach")
    np.testing.assert_array_equal(first["next_states"], first["next_features"])  # without psi they are the features
    monkeypatch.setattr(forward_backward, "collect_exploration", None)
    second = pipeline.exploration(TINY, "reach")
    assert all(np.array_equal(first[name], second[name]) for name in first)
