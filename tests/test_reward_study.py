"""The study of reward models: known progress, pairs that separate looks from function, metrics with known answers,
scores that resume and are refused when they belong to something else."""

import genreward  # noqa: F401  isort: skip
import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from genreward import demos, envs, errors, files, goals, pipeline, profiles, reward_episodes, reward_study, rewards
from genreward.errors import InputError
from genreward.reward_episodes import FAKES, KINDS, LOOKS, OUTCOMES, StudyConfig, progress
from genreward.reward_metrics import (
    METRICS,
    OVER_TASKS,
    QUALITY_COLUMNS,
    ahead,
    auroc,
    conclusions,
    episode_scores,
    late_prior,
    looks_or_function,
    over_tasks,
    pairwise_accuracy,
    partial_spearman,
    quality_of,
    smooth,
    spearman,
    verdicts,
)
from genreward.trajectory import Trajectory

TASKS = ("pick-place", "shelf-place")
TINY = StudyConfig(tasks=TASKS, starts=3, pairs=2, stride=4, interval=2)
STEPS = 8
rng = np.random.default_rng


# ---- true progress


def way(hand, thing, goal=(0.0, 0.0, 0.0)):
    """States (T+1, 39) of a hand and an object that move along x."""
    states = np.zeros((len(hand), 39))
    states[:, 0], states[:, 4], states[:, -3:] = hand, thing, goal
    return states


def test_progress_is_what_the_formula_says():
    # the hand starts 0.45 from the object, the object 0.57 from the goal; 0.05 is held, 0.07 is there
    states = way([1.02, 0.82, 0.62, 0.345, 0.07], [0.57, 0.57, 0.57, 0.32, 0.07])
    reach, carry = [0, 0.5, 1, 1, 1], [0, 0, 0, 0.5, 1]
    expected = [max(r, c) / 3 + 2 * c / 3 for r, c in zip(reach, carry, strict=True)]
    assert progress("pick-place", states, np.zeros(4, bool)) == pytest.approx(expected)
    assert expected == sorted(expected) and expected[-1] == 1
    success = np.array([False, False, True, False])
    assert progress("pick-place", states, success)[3] == 1  # by the environment's word


def test_progress_falls_when_the_object_is_lost_and_stays_in_its_range():
    states = way([1.02, 0.62, 0.30, 0.9], [0.57, 0.57, 0.25, 0.57])
    far = progress("pick-place", states, np.zeros(3, bool))
    assert far[2] > far[1] > far[3] and far[3] < 1 / 3
    wild = rng(0).normal(size=(50, 39))
    for task in ("bin-picking", "disassemble", "reach"):
        assert np.all((0 <= (far := progress(task, wild, np.zeros(49, bool)))) & (far <= 1)), task


def test_progress_of_tasks_with_a_rule_of_their_own():
    states = way([0.5] * 3, [0.5] * 3)
    states[:, 2] = states[:, 6] = [0.0, 0.1, 0.2]  # the hand goes up with it
    states[:, -1] = 0.2
    assert progress("disassemble", states, np.zeros(2, bool)) == pytest.approx([1 / 3, 2 / 3, 1])  # held from the start
    states = way([0.57, 0.32, 0.07], [5.0] * 3)  # the hand's own way to the goal; where the object is does not matter
    assert progress("reach", states, np.zeros(2, bool)) == pytest.approx([0, 0.5, 1])


def test_progress_refuses_other_states():
    for states, success in ((np.zeros((3, 7)), np.zeros(2)), (np.zeros((3, 39)), np.zeros(3))):
        with pytest.raises(InputError, match="progress needs Meta-World states"):
            progress("push", states, success)
    with pytest.raises(InputError, match="unknown task"):
        progress("fly", np.zeros((3, 39)), np.zeros(2))


# ---- recording


@pytest.fixture(scope="module")
def start():
    """One start of pick-place with everything that can be made of it."""
    env = envs.make_env("pick-place", size=32)
    config = StudyConfig(stride=8)
    yield env, config, {one.info["kind"]: one for one in reward_episodes.record_start(env, 4, "short", config, True)}
    env.close()


def test_a_start_gives_every_kind_with_its_outcome(start):
    _, config, made = start
    assert tuple(made) == KINDS and {one.info["start"] for one in made.values()} == {4}
    for kind, one in made.items():
        assert one.succeeded == (kind in ("expert", *LOOKS)), kind
        assert len(one.frames) == len(one.info["progress"]) == len(one) + 1 and one.frames.shape[1:] == (32, 32, 3)
    assert made["failure"].info["failure"] == "short" and made["expert"].info["failure"] == ""
    far = {kind: one.info["progress"].max() for kind, one in made.items()}
    assert far["expert"] == 1 > far["failure"] > far["random"] and far["missing"] < 0.5


def test_pairs_differ_in_looks_or_in_function_only(start):
    _, _, made = start
    expert, missing, displaced = (made[kind] for kind in ("expert", *FAKES))
    for look in LOOKS:
        assert np.array_equal(made[look].states, expert.states) and np.array_equal(made[look].rewards, expert.rewards)
        assert not np.array_equal(made[look].frames, expert.frames), look
    assert np.array_equal(missing.states, displaced.states) and np.array_equal(missing.actions, expert.actions)
    hand = np.linalg.norm(missing.states[:, :3] - expert.states[:, :3], axis=1)
    assert hand.max() < 0.02  # the arm does the same
    moved = displaced.states[:, 4:6] - displaced.states[0, 4:6]
    assert np.linalg.norm(moved, axis=1).max() < 0.05  # and the object does not follow
    assert 0.1 < np.linalg.norm(displaced.states[0, 4:6] - expert.states[0, 4:6]) < 0.2
    differ = (missing.frames != displaced.frames).any(axis=(1, 2, 3))
    assert differ.any() and np.array_equal(made["expert"].frames, made["expert"].frames)


def test_a_hidden_object_comes_back_and_kinds_are_checked(start):
    env, config, _ = start
    env.reset(options={"goal": 4})
    state = [env.get_state()]
    before = reward_episodes.pictures(env, state, "expert", config, 4)
    hidden = reward_episodes.pictures(env, state, "missing", config, 4)
    assert not np.array_equal(before, hidden)
    assert np.array_equal(before, reward_episodes.pictures(env, state, "displaced", config, 4))
    with pytest.raises(InputError, match="unknown kind of episode 'blurred'"):
        reward_episodes.pictures(env, state, "blurred", config, 4)
    fixed = envs.make_env("button-press")
    fixed.reset()
    with pytest.raises(InputError, match="no loose object"):
        reward_episodes.replay_displaced(fixed, 0, np.zeros((2, 4)), rng(0))


def test_a_stride_keeps_the_promises_of_a_trajectory():
    full = Trajectory("pick-place", rng(1).normal(size=(12, 39)).astype(np.float32), np.arange(44.0).reshape(11, 4),
                      np.arange(11, dtype=np.float32), np.arange(11) == 7, None, {"kind": "expert", "failure": None})
    short, snapshots = reward_episodes.strided(full, [{"number": step} for step in range(12)], 4)
    assert len(short) == 2 and [one["number"] for one in snapshots] == [0, 4, 8]
    assert np.array_equal(short.states, full.states[[0, 4, 8]])
    assert np.array_equal(short.actions, full.actions[[0, 4]])  # taken in the states that are kept
    assert short.rewards.tolist() == [3, 7] and short.success.tolist() == [False, True]  # of the steps that led there
    assert short.info["progress"][2] == 1
    with pytest.raises(InputError, match="11 steps does not give two steps at stride 6"):
        reward_episodes.strided(full, [], 6)


def fake_task(task, config, size, progress_bar=True):
    """Stands in for `record_task`: episodes whose reward is their progress, of random pictures."""
    draw, made = rng([TASKS.index(task)]), []
    for number in range(config.starts):
        for kind in KINDS if number < config.pairs else OUTCOMES:
            end = {"failure": 0.7, "half": 0.4, "random": 0.1, "missing": 0.3, "displaced": 0.3}.get(kind, 1.0)
            far = np.append(0, np.sort(draw.uniform(0, end, STEPS)))
            far[-1], far[1:3] = end, far[2:0:-1].copy()  # not simply the clock
            made.append(Trajectory(
                task, draw.normal(size=(STEPS + 1, 39)).astype(np.float32),
                draw.uniform(-1, 1, (STEPS, 4)).astype(np.float32), far[1:].astype(np.float32), far[1:] == 1,
                draw.integers(0, 256, (STEPS + 1, 8, 8, 3), dtype=np.uint8),
                {"kind": kind, "failure": "drop" if kind == "failure" else "", "start": number,
                 "progress": far.astype(np.float32)}))
    return made


@pytest.fixture
def study(root, monkeypatch):
    """The tiny study, recorded; counts how often a task was."""
    recorded = []
    monkeypatch.setitem(reward_episodes._CONFIGS, "smoke", TINY)
    monkeypatch.setattr(reward_episodes, "record_task", lambda *given: recorded.append(given[0]) or fake_task(*given))
    reward_episodes.record("smoke")
    return recorded


def test_recorded_episodes_come_back_as_they_were(study):
    assert study == list(TASKS)
    for task in TASKS:
        there = reward_episodes.load_episodes("smoke", task)
        for number, (one, was) in enumerate(zip(there, fake_task(task, TINY, 8), strict=True)):
            for name in ("frames", "states", "actions", "rewards", "success"):
                assert np.array_equal(getattr(one, name), getattr(was, name)), name
            assert one.info["episode"] == number and one.info["kind"] == was.info["kind"]
            assert np.array_equal(one.info["progress"], was.info["progress"])
    episodes, steps = reward_episodes.load_trajectories("smoke")
    assert len(episodes) == 2 * (3 * 4 + 2 * 5) and len(steps) == STEPS * len(episodes)
    assert set(episodes.loc[episodes["kind"] == "failure", "failure"]) == {"drop"}
    assert (episodes["succeeded"] == episodes["kind"].isin(("expert", *LOOKS))).all()
    last = steps.groupby(["task", "episode"])["progress"].last()
    assert np.allclose(last.loc[list(zip(episodes["task"], episodes["episode"], strict=True))], episodes["progress"])


def test_an_example_of_every_kind_is_kept(study):
    shown = reward_episodes.load_example("smoke", "shelf-place")
    assert tuple(shown) == KINDS
    first = {one.info["kind"]: one for one in reversed(fake_task("shelf-place", TINY, 8))}  # of the first start
    assert np.array_equal(shown["missing"], first["missing"].frames[[0, 1, 3, 4, 5, 7, 8]])
    with pytest.raises(InputError, match="unknown task of the study 'reach'; valid: pick-place, shelf-place"):
        reward_episodes.load_example("smoke", "reach")


def test_recording_goes_on_where_it_was_and_notices_another_order(study, monkeypatch):
    reward_episodes.record("smoke")
    (reward_episodes.study_folder("smoke") / "shelf-place.npz").unlink()
    reward_episodes.record("smoke")
    assert study == [*TASKS, "shelf-place"]
    with pytest.raises(InputError, match="unknown task of the study 'reach'; valid: pick-place, shelf-place"):
        reward_episodes.record("smoke", ["reach"])
    before = reward_episodes.identity(profiles.get_profile("smoke"))
    monkeypatch.setitem(reward_episodes._CONFIGS, "smoke", replace(TINY, seed=5))
    with pytest.raises(InputError, match="of another study; make them again with: python -m genreward.reward_study"):
        reward_episodes.load_episodes("smoke", "pick-place")
    reward_episodes.record("smoke")
    assert len(study) == 5 and reward_episodes.identity(profiles.get_profile("smoke")) != before


def test_what_was_never_recorded_names_its_command(root):
    for call in (lambda: reward_episodes.load_episodes("smoke", "pick-place"),
                 lambda: reward_episodes.load_trajectories("smoke"),
                 lambda: reward_study.score_all("smoke", ["clock"])):
        with pytest.raises(InputError, match="missing; make .* with: python -m genreward.reward_study record"):
            call()


def test_starts_are_held_out_distinct_and_reproducible(monkeypatch):
    seen = []

    def one_start(env, start, failure, config, fakes):
        seen.append((start, failure, fakes))
        return None if len(seen) == 2 else [f"episode {start}"]

    monkeypatch.setattr(reward_episodes, "record_start", one_start)
    config = replace(TINY, starts=4, pairs=1)
    first = reward_episodes.record_task("push", config, 16, False)
    again, seen[:] = list(seen), []
    assert reward_episodes.record_task("push", config, 16, False) == first and seen == again and len(first) == 4
    assert len({start for start, *_ in seen}) == 5  # the second gave nothing, a fifth was taken
    assert [mode for _, mode, _ in seen] == ["drop", "short", "short", "misplace", "drop"]
    assert [fakes for *_, fakes in seen] == [True, False, False, False, False]
    assert config.seed not in {order.seed for order in demos.plan("laptop") + demos.plan_in_domain("laptop")}
    monkeypatch.setattr(reward_episodes, "record_start", lambda *given: None)
    with pytest.raises(InputError, match="no start of 'push' gives"):
        reward_episodes.record_task("push", config, 16, False)


# ---- metrics whose answer is known


def test_auroc_counts_pairs():
    assert auroc([3, 2], [1, 2]) == (1 + 1 + 1 + 0.5) / 4
    assert auroc([1], [2, 3]) == 0 and auroc([1, 1], [1]) == 0.5
    a, b = rng(0).normal(size=40), rng(1).normal(size=30)
    assert auroc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 1200)
    assert auroc(a, b) == pytest.approx(auroc(np.exp(3 * a), np.exp(3 * b)))  # the scale does not matter
    assert auroc(a, b) == pytest.approx(1 - auroc(b, a))
    with pytest.raises(InputError, match="at least one episode"):
        auroc([], [1])


def test_spearman_is_the_rank_correlation():
    a, b = rng(0).integers(0, 9, 50), rng(1).normal(size=50)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(b, b**3) == 1 and spearman(b, -b) == -1 and np.isnan(spearman(b, np.ones(50)))


def test_partial_correlation_takes_the_clock_out():
    time = np.arange(1, 7)
    truth, score = np.array([1, 3, 2, 4, 6, 5]), np.array([2, 1, 3, 5, 4, 6])
    r = [stats.spearmanr(*pair).statistic for pair in itertools.combinations((score, truth, time), 2)]
    by_hand = (r[0] - r[1] * r[2]) / np.sqrt((1 - r[1] ** 2) * (1 - r[2] ** 2))
    assert partial_spearman(score, truth, time) == pytest.approx(by_hand)
    assert partial_spearman(np.exp(score), truth, time) == pytest.approx(by_hand)
    assert partial_spearman(truth, truth, time) == pytest.approx(1)
    assert partial_spearman(time / 6, truth, time) == 0  # the clock says nothing beyond the clock
    assert partial_spearman(np.ones(6), truth, time) == 0
    assert np.isnan(partial_spearman(score, time**2, time)) and np.isnan(partial_spearman(score, np.ones(6), time))


def test_pairwise_accuracy_counts_pairs_that_differ():
    assert pairwise_accuracy([1, 2, 3], [0.1, 0.5, 1.0]) == 1 and pairwise_accuracy([3, 2, 1], [0.1, 0.5, 1.0]) == 0
    assert pairwise_accuracy([1, 3, 2], [0.1, 0.5, 1.0]) == pytest.approx(2 / 3)
    assert pairwise_accuracy([1, 1, 2], [0.1, 0.5, 1.0]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert pairwise_accuracy([2, 1, 9], [0.50, 0.54, 1.0]) == 1  # 0.04 apart: no pair
    assert np.isnan(pairwise_accuracy([1, 2], [0.5, 0.5]))


def made_up(score, starts=6, steps=12, tasks=("pick-place",), pairs=2, seed=0):
    """Tables of made-up episodes and their scores: score(far, when, kind, draw) -> (steps,)."""
    draw, episodes, rows, scores = rng(seed), [], [], []
    for task in tasks:
        number = 0
        for start in range(starts):
            for kind in KINDS if start < pairs else OUTCOMES:
                end = {"failure": 0.7, "half": 0.4, "random": 0.1, "missing": 0.3, "displaced": 0.3}.get(kind, 1.0)
                far, when = end * draw.permutation(np.linspace(0.1, 1, steps)), np.arange(1, steps + 1)
                far[-1] = end
                episodes.append((task, number, kind, "", start, steps, end == 1, end))
                values = score(far, when, kind, draw)
                rows += [(task, number, t, f, f == 1) for t, f in zip(when, far, strict=True)]
                scores += [(task, kind, number, t, v) for t, v in zip(when, values, strict=True)]
                number += 1
    return (pd.DataFrame(episodes, columns=["task", "episode", "kind", "failure", "start", "steps", "succeeded",
                                            "progress"]),
            pd.DataFrame(rows, columns=["task", "episode", "step", "progress", "success"]),
            pd.DataFrame(scores, columns=["task", "kind", "episode", "step", "score"]))


def values(score, **given):
    """Metric -> value of a made-up model over all tasks."""
    found = quality_of("model", episode_scores(*made_up(score, **given)), resamples=50)
    return found[found["task"] == "all"].set_index("metric")["value"]


def test_a_model_that_knows_progress_is_perfect_and_its_scale_does_not_matter():
    for change in (lambda far: far, lambda far: np.exp(5 * far) - 7):
        found = values(lambda far, *_, change=change: change(far), tasks=("push", "reach"))
        assert found[[name for name in METRICS if name != "auroc_sum_failure"]].tolist() == pytest.approx([1] * 7)
    opposite = values(lambda far, *_: -far)
    assert opposite["auroc_failure"] == 0 and opposite["spearman"] == opposite["partial"] == pytest.approx(-1)


def test_the_clock_knows_nothing_and_its_sum_only_the_length():
    found = values(lambda far, when, *_: when / len(when))
    assert found["auroc_failure"] == found["auroc_sum_failure"] == found["function"] == 0.5
    assert found["partial"] == 0 and found["pairwise"] == 0.5
    episodes, steps, scores = made_up(lambda far, when, *_: when / len(when))
    long = scores["kind"] != "expert"  # the experts are cut short: the sum falls for it, the final score does not
    kept = long | (scores["step"] <= 6)
    cut = scores[kept].assign(score=lambda rows: rows["step"] / rows.groupby("episode")["step"].transform("max"))
    table = episode_scores(episodes, steps, cut)
    found = quality_of("clock", table, resamples=10).set_index(["task", "metric"])["value"]
    assert found["all", "auroc_failure"] == 0.5 and found["all", "auroc_sum_failure"] == 0


def test_over_tasks_the_tasks_are_the_sample():
    """Three tasks at 0.2, 0.5 and 0.8, whatever the intervals within them; one task, and one without a value."""
    found = pd.DataFrame([(model, task, metric, value, value - 0.01, value + 0.01, 30) for model, metric, of in (
        ("uneven", "auroc_failure", (0.2, 0.5, 0.8)), ("high", "auroc_failure", (0.7, 1.0, 1.0)),
        ("low", "partial", (-1.0, -0.2, 0.0)), ("one", "function", (0.9,)), ("none", "function", (0.9, np.nan)))
        for task, value in zip("abc", of, strict=False)], columns=list(QUALITY_COLUMNS))
    everything = pd.concat([found, found[found["model"] == "uneven"].assign(task="all", value=99.0)])
    rows = over_tasks(everything).set_index("model")
    assert list(rows.index) == ["uneven", "high", "low", "one"] and set(rows["task"]) == {OVER_TASKS}
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem([0.2, 0.5, 0.8]))
    assert low < 0 and high > 1  # Student's is cut to the range of the metric
    assert tuple(rows.loc["uneven", ["value", "low", "high", "n"]]) == (pytest.approx(0.5), 0, 1, 3)
    assert rows.loc["high", "high"] == 1 and rows.loc["low", "low"] == -1 and 0 < rows.loc["low", "high"] < 1
    assert rows.loc["one", "value"] == 0.9 and np.isnan(rows.loc["one", "low"])
    given = verdicts(over_tasks(everything), OVER_TASKS).set_index("model")["verdict"]
    assert given["uneven"] == 0 and given["one"] == 0


def test_noise_is_near_a_coin_and_inside_its_interval():
    table = episode_scores(*made_up(lambda far, when, kind, draw: draw.random(len(when)), starts=80, pairs=80))
    found = quality_of("noise", table).set_index(["task", "metric"]).loc["all"]
    for name, coin in (("auroc_failure", 0.5), ("partial", 0), ("pairwise", 0.5), ("function", 0.5)):
        assert abs(found.loc[name, "value"] - coin) < 0.12 and found.loc[name, "low"] < coin < found.loc[name, "high"]


def test_looks_and_function_are_told_apart():
    def by_looks(far, when, kind, draw):
        return np.full(len(when), float(kind not in LOOKS))  # pays what looks as always

    def by_function(far, when, kind, draw):
        return np.full(len(when), float(kind not in FAKES))

    assert values(by_looks)["function"] == 0 and values(by_function)["function"] == 1
    table = looks_or_function(episode_scores(*made_up(by_looks)))
    assert len(table) == 2 * 4 * 2 and set(table["look"]) == {"expert", *LOOKS}
    assert (table.loc[table["look"] == "expert", "prefers"] == 0.5).all()
    found = quality_of("m", episode_scores(*made_up(by_function)), resamples=10)
    assert {f"function:{look}:{fake}" for look in LOOKS for fake in FAKES} <= set(found["metric"])


def test_who_likes_the_oddity_is_not_said_to_see_the_function():
    def by_oddity(far, when, kind, draw):
        return np.full(len(when), float(kind in LOOKS))  # wins every counted pair, and is a coin where nothing is odd

    found = quality_of("odd", episode_scores(*made_up(by_oddity, starts=12, pairs=12)), resamples=50)
    assert found.set_index(["task", "metric"]).loc[("all", "function"), "low"] == 1
    given = verdicts(found).set_index("question").loc["function"]
    assert given["verdict"] == 0 and given["unseen"] and "not shown to see the fake" in given["text"]
    assert any(line.startswith("odd: wins its pairs, but is not shown to see the fake") for line in conclusions(found))
    assert not verdicts(found)["unseen"][:2].any()


def test_intervals_hold_their_value_and_are_the_same_again():
    given = episode_scores(*made_up(lambda far, when, kind, draw: far + draw.normal(size=len(far)), starts=12, pairs=5,
                                    tasks=("push", "reach")))
    found = quality_of("noisy", given)
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    pd.testing.assert_frame_equal(found, quality_of("noisy", given))
    assert not found.equals(quality_of("noisy", given, seed=1))
    for metric, part in found.groupby("metric"):
        value = part.set_index("task")["value"]
        assert value["all"] == pytest.approx((value["push"] + value["reach"]) / 2), metric
    n = found.set_index(["task", "metric"])["n"]
    assert n["all", "partial"] == 24 and n["push", "pairwise"] == 12 and n["all", "function"] == 10


def test_a_model_is_no_distance_ahead_of_itself_and_half_a_scale_of_a_coin():
    """The starts that are drawn are the same for both, so a model's distance to itself has no width at all."""
    noisy = episode_scores(*made_up(lambda far, when, kind, draw: far + draw.normal(size=len(far)), starts=12, pairs=5,
                                    tasks=("push", "reach")))
    same = ahead("noisy", noisy, noisy, resamples=100)
    assert (same[["value", "low", "high"]] == 0).all(axis=None) and len(same) == len(quality_of("noisy", noisy))
    one, other = (quality_of("noisy", noisy.assign(final=noisy["final"] + shift), resamples=100) for shift in (0, 9))
    pd.testing.assert_frame_equal(one, other)  # a constant changes nothing, so nothing is gained by it either
    coin = episode_scores(*made_up(lambda far, when, *_: when / len(when), starts=12, pairs=5, tasks=("push", "reach")))
    found = ahead("noisy", noisy, coin, ["auroc_failure"], resamples=100).set_index("task")
    own = quality_of("noisy", noisy, resamples=100)
    own = own[own["metric"] == "auroc_failure"].set_index("task")
    for column in ("value", "low", "high"):  # the clock's 0.5 does not vary: what is left is the model's own interval
        assert found[column].to_numpy() == pytest.approx(own.loc[found.index, column].to_numpy() - 0.5)
    with pytest.raises(InputError, match="not scored on the same starts"):
        ahead("noisy", noisy, coin[coin["start"] > 0])


def test_one_start_gives_no_interval():
    found = quality_of("model", episode_scores(*made_up(lambda far, *_: far, starts=1)), resamples=10)
    assert found["low"].isna().all() and found["value"].notna().all()
    assert (verdicts(found)["verdict"] == 0).all()


def test_an_episode_that_is_never_paid_counts_as_zero():
    episodes, steps, scores = made_up(lambda far, *_: far, starts=2, pairs=0)
    table = episode_scores(episodes, steps, scores[scores["kind"] != "failure"])
    unpaid = table[table["kind"] == "failure"]
    assert (unpaid[["final", "total"]] == 0).all(axis=None) and unpaid["spearman"].isna().all()
    with pytest.raises(InputError, match="steps that the episodes do not have"):
        episode_scores(episodes, steps, scores.assign(step=scores["step"] + 100))


def test_words_follow_from_the_numbers():
    tables = [quality_of(name, episode_scores(*made_up(score, starts=12, pairs=12)), resamples=200)
              for name, score in (("good", lambda far, *_: far), ("bad", lambda far, *_: -far),
                                  ("blind", lambda far, when, *_: np.zeros(len(when))))]
    found = pd.concat(tables)
    given = verdicts(found).set_index(["model", "question"])["verdict"].unstack()
    assert given.loc["good"].tolist() == [1, 1, 1] and given.loc["bad"].tolist() == [-1, -1, -1]
    assert given.loc["blind"].tolist() == [0, 0, 0]
    assert conclusions(found, {"success": {"bad"}}, ["bad"])[0] == (
        "1 of 2 models: tells a success from a late failure (good); of these better than the best control: none.")
    assert "(good); of these better than the best control: good." in conclusions(found, {"success": {"good"}})[0]
    lines = conclusions(found.replace({"good": "genreward_sound", "bad": "genreward"}))
    scored = {name: episode_scores(*made_up(score, starts=12, pairs=12)) for name, score in (
        ("genreward_sound", lambda far, *_: far), ("genreward", lambda far, *_: -far))}
    assert "1 of 3 models: tells a success from a late failure (genreward_sound)." in lines
    assert "1 of 3 models: prefers looks over function (genreward)." in lines
    assert any(line.startswith("The sound variant, or as printed: genreward_sound against genreward: auroc_failure "
                               "1.00 [1.00, 1.00] against 0.00 [0.00, 0.00];") for line in lines)
    sound, printed = (quality_of(name, table, resamples=10) for name, table in scored.items())
    apart = {("genreward_sound", "genreward"): ahead("genreward_sound", *scored.values(), resamples=10)}
    line = next(line for line in conclusions(pd.concat([sound, printed]), apart=apart) if line.startswith("The sound"))
    assert "auroc_failure 1.00 [1.00, 1.00] against 0.00 [0.00, 0.00] (+1.00 [1.00, 1.00]);" in line


# ---- scoring


def test_raw_scores_are_what_the_models_pay(study):
    assert reward_study.score_all("smoke", ["dense", "sparse", "clock", "random"]) == {}
    table, made = reward_study.load_scores("smoke", "dense")
    episodes, steps = reward_episodes.load_trajectories("smoke")
    joined = table.merge(steps, on=["task", "episode", "step"])
    assert len(joined) == len(steps) and np.allclose(joined["score"], joined["progress"], atol=1e-6)
    assert made["properties"]["action_aware"] and made["seconds_per_1000_frames"] > 0 and made["group"] == "environment"
    assert made["tasks"]["pick-place"]["frames"] == 22 * (STEPS + 1)
    noise, model = reward_study.load_scores("smoke", "random")[0], rewards.make_reward("random")
    one = reward_episodes.load_episodes("smoke", "shelf-place")[7]
    mine = noise[(noise["task"] == "shelf-place") & (noise["episode"] == 7)]
    assert np.array_equal(mine["score"].to_numpy(np.float32), model.score(one)) and set(mine["kind"]) == {"missing"}
    assert reward_study.scored_models("smoke") == ["dense", "sparse", "clock", "random"]
    assert reward_study.load_scores("smoke", "sparse")[0].empty  # 128 steps apart: no episode is as long
    found = reward_study.quality("smoke").set_index(["model", "task", "metric"])["value"]
    assert found["dense", "all", "auroc_failure"] == 1 and found["sparse", "all", "auroc_failure"] == 0.5
    assert found["clock", "all", "partial"] == 0


def test_scoring_goes_on_where_it_was(study, monkeypatch):
    calls = []
    dense = rewards.get_reward("dense")
    monkeypatch.setattr(dense, "score", lambda self, one: calls.append(one.task) or one.rewards)
    real, wrong = reward_study._score_task, {"left": 1}

    def stops(profile, task, pending, parts):
        if task == "shelf-place" and wrong["left"]:
            wrong["left"] = 0
            raise KeyboardInterrupt
        return real(profile, task, pending, parts)

    monkeypatch.setattr(reward_study, "_score_task", stops)
    with pytest.raises(KeyboardInterrupt):
        reward_study.score_all("smoke", ["dense"])
    assert reward_study.scored_models("smoke") == []  # nothing half is among the results
    reward_study.score_all("smoke", ["dense"])
    assert [len(list(part)) for _, part in itertools.groupby(calls)] == [22, 22]
    reward_study.score_all("smoke", ["dense"])
    assert len(calls) == 44
    for part in (reward_episodes.study_folder("smoke") / "scores").rglob("*.npz"):
        part.unlink()  # as in a fresh clone, which has the results only
    reward_study.score_all("smoke", ["dense"])
    assert len(calls) == 44
    reward_study.score_all("smoke", ["dense"], ["pick-place"], anew=True)
    assert len(calls) == 66


@pytest.fixture
def pixels(study):
    """The tiny study with goals, for the models that need them."""
    where = profiles.paths("smoke")
    for task in TASKS:
        film = rng(3).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
        goals.Goal("x", ("x",), film, np.zeros(9), 8).save(where.goals / task)
    return where


def test_models_that_lack_something_are_named_with_the_command(study):
    absent = reward_study.score_all("smoke")
    assert set(reward_study.scored_models("smoke")) == {"dense", "sparse", "clock", "random"}
    assert set(absent) == set(reward_study.MODELS) - {"dense", "sparse", "clock", "random"}
    assert all("make it with: python -m genreward." in lack for lacks in absent.values() for lack in lacks.values())
    models, left = reward_study.build_models("smoke", "pick-place")
    assert set(models) | set(left) == set(reward_study.MODELS) and not set(models) & set(left)
    with pytest.raises(InputError, match="model 'pixel_cosine': results/smoke/goals/pick-place/goal.json is missing; "
                                         "make it with: python -m genreward.pipeline --profile smoke --only goals"):
        reward_study.score_all("smoke", ["clock", "pixel_cosine"])
    with pytest.raises(InputError, match="unknown model of the study 'tide'; valid: "):
        reward_study.score_all("smoke", ["tide"])
    with pytest.raises(InputError, match="no scores of model 'viper'; make them with: python -m genreward.reward_study "
                                         "score --profile smoke --models viper"):
        reward_study.load_scores("smoke", "viper")


def test_scores_of_other_weights_are_made_again(pixels):
    reward_study.score_all("smoke", ["pixel_cosine"])
    table, made = reward_study.load_scores("smoke", "pixel_cosine")
    assert set(table["step"]) == {2, 4, 6, 8}  # paid at every `interval`-th step, and only those are kept
    film = rng(4).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    goals.Goal("x", ("x",), film, np.zeros(9), 8).save(pixels.goals / "shelf-place")
    reward_study.score_all("smoke", ["pixel_cosine"])
    again, made_again = reward_study.load_scores("smoke", "pixel_cosine")
    changed = table["score"] != again["score"]
    assert set(table.loc[changed, "task"]) == {"shelf-place"}
    assert made_again["tasks"]["pick-place"] == made["tasks"]["pick-place"]


def test_scores_of_other_episodes_are_refused(study, monkeypatch):
    reward_study.score_all("smoke", ["clock"])
    monkeypatch.setitem(reward_episodes._CONFIGS, "smoke", replace(TINY, seed=9))
    reward_episodes.record("smoke")
    with pytest.raises(InputError, match="scores of 'clock' are of other episodes; .* --models clock --anew"):
        reward_study.quality("smoke")
    reward_study.score_all("smoke", ["clock"])
    assert len(reward_study.quality("smoke"))


def test_a_model_that_pays_nan_is_stopped(study, monkeypatch):
    monkeypatch.setattr(rewards.get_reward("clock"), "score", lambda self, one: np.full(len(one), np.nan))
    with pytest.raises(InputError, match="'clock' scores episode 0 of 'pick-place' with NaN"):
        reward_study.score_all("smoke", ["clock"])
    assert reward_study.scored_models("smoke") == []


def test_what_is_shared_is_computed_once_and_charged_to_everyone():
    class Dear:
        image_size, asked = 8, 0

        def encode(self, frames):
            self.asked += 1
            return sum(np.sort(rng(0).normal(size=200_000)).sum() for _ in range(3)) * 0 + frames.mean()

    dear = Dear()
    memo = reward_study.Memo(dear)
    frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    assert memo.image_size == 8 and memo.encode(frames) == memo.encode(frames.copy()) and dear.asked == 1
    assert memo.saved > 0
    memo.encode(frames.reshape(1, 4, 2, 3))  # the same bytes in another shape are another clip
    assert dear.asked == 2
    memo.forget()
    memo.encode(frames)
    assert dear.asked == 3


def test_every_entry_is_made_from_a_registered_reward(root):
    table = reward_study.table1("smoke").set_index("reward")
    assert {entry.reward for entry in reward_study.MODELS.values()} == set(table.index) <= set(rewards.available())
    assert table.loc["genreward", ["demo-free", "generated", "action-aware"]].all()
    assert not table.loc["dense", "scored"] and table.loc["dense", "citation"]


def test_paid_steps_are_those_that_are_due():
    class Model:
        interval = 3

    model = Model()
    assert reward_study.paid_steps(model, 10).tolist() == [3, 6, 9]
    model.every = 4
    assert reward_study.paid_steps(model, 10).tolist() == [4, 8, 10]
    assert reward_study.paid_steps(model, 8).tolist() == [4, 8]
    model.every = None
    assert reward_study.paid_steps(model, 10).tolist() == [10]


# ---- F and B of the variants


def test_variants_of_f_and_b_share_their_exploration(pixels, monkeypatch):
    collected = []

    class Psi:
        dim = 3

        def encode(self, frames):
            return frames.mean(axis=(1, 2)).astype(np.float32)

    def explore(profile, task, encoder):
        collected.append(task)
        draw = rng(1)
        features = draw.uniform(0, 255, (70, 3)).astype(np.float32)
        return {"features": features, "actions": draw.uniform(-1, 1, (70, 4)).astype(np.float32),
                "next_features": np.roll(features, -1, 0)}

    monkeypatch.setattr(pipeline, "load_encoder", lambda profile: Psi())
    monkeypatch.setattr(pipeline, "exploration", explore)
    monkeypatch.setitem(reward_episodes._CONFIGS, "smoke", replace(TINY, fb_updates=3))
    with pytest.raises(InputError, match="results/smoke/weights/video_model/vae is missing"):
        reward_study.make_fb("smoke")
    (pixels.video_model / "vae").mkdir(parents=True)
    files.write_json(pixels.psi, {})
    reward_study.make_fb("smoke", ["pick-place"])
    assert collected == ["pick-place"]
    parts = reward_study.Parts("smoke")
    for variant, (targets, action_aware) in reward_study.FB_VARIANTS.items():
        config = parts.fb("pick-place", variant).config
        assert (config.fb_targets, config.action_aware, config.updates) == (targets, action_aware, 3)
        assert reward_study.lacking("smoke", f"genreward_frame_{variant}", "pick-place") is None
    reward_study.make_fb("smoke", ["pick-place"])
    assert collected == ["pick-place"]
    (reward_episodes.study_folder("smoke") / "fb" / "pick-place-goal-normaliser.json").unlink()
    reward_study.make_fb("smoke", ["pick-place"])
    assert collected == ["pick-place"] * 2  # only the variant that is missing is trained
    lack = reward_study.lacking("smoke", "genreward_sound", "shelf-place")
    assert lack.endswith("make it with: python -m genreward.reward_study fb --profile smoke --tasks shelf-place")
    for given, name in ((["reach"], "task of the study"), (["pick-place"], "variant of F and B")):
        with pytest.raises(InputError, match=f"unknown {name}"):
            reward_study.make_fb("smoke", given, ["both"])


# ---- goal frames


def test_remedies_do_what_they_say():
    assert smooth([0, 3, 0, 0, 6]) == pytest.approx([1, 1, 1, 2, 4])
    assert smooth([5, 1, 2], 1) == pytest.approx([5, 1, 2]) and smooth(np.ones(4), 3) == pytest.approx([1] * 4)
    assert late_prior([1, 1, 1]) == pytest.approx([0, 0.5, 1])
    assert late_prior([0, 2]) == pytest.approx([-1, 2]) and late_prior([0, 2], 0) == pytest.approx([-1, 1])
    assert late_prior([3, 7, 5]) == pytest.approx(late_prior([30, 70, 50]))  # the scorer's scale does not matter
    for width in (0, 2):
        with pytest.raises(InputError, match="must be odd and positive"):
            smooth([1, 2], width)


def test_hits_of_each_rule_are_counted(study):
    lengths, rows = 5, [(0, False, 0), (0, False, 1), (0, True, 0), (1, False, 0)]
    curve = np.array([[0, 0, 9, 1, 1.1], [9, 0, 0, 0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]], np.float32)
    done = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    folder = reward_episodes.results_folder("smoke")
    np.savez(folder / "goal_frames.npz", tasks=np.array(TASKS), clips=[(*row, lengths) for row in rows],
             curve=curve.ravel(), done=done.ravel(), identity="x")
    found = reward_study.goal_frame_hits("smoke").set_index(["clips", "rule", "task"])["value"]
    assert found["real", "clip", "pick-place"] == 0 and found["real", "last", "pick-place"] == 1
    assert found["real", "random", "pick-place"] == 0.4 and found["generated (proxy)", "clip", "all"] == 1
    assert found["real, there and back", "last", "all"] == 0
    assert found["real, there and back", "random", "all"] == pytest.approx(3 / 9)
    assert ("real", "clip", "shelf-place") not in found  # no frame of that clip shows success
    assert found["real", "clip, smoothed", "pick-place"] == 0.5  # the lone peak of the first is spread to its neighbour
    change = reward_study.goal_frame_changes("smoke").set_index(["clips", "rule"])
    assert "clip" not in change.index.get_level_values("rule")
    smoothed, last = change.loc[("real", "clip, smoothed")], change.loc[("real, there and back", "last")]
    assert (smoothed["value"], smoothed["gained"], smoothed["lost"], smoothed["n"]) == (0.5, 1, 0, 2)
    assert smoothed["low"] == 0 and smoothed["high"] == 1  # of two clips, one gained
    assert last["value"] == -found["real, there and back", "clip", "all"]
    told = reward_study.goal_frame_hits("smoke").set_index(["clips", "rule", "task"])[["value", "low", "high"]]
    none, both = (told.loc[("real", rule, "pick-place")] for rule in ("clip", "last"))  # of two clips, Wilson's
    assert none.tolist() == pytest.approx([0, 0, 3.8415 / 5.8415], abs=1e-4)
    assert both.tolist() == pytest.approx([1, 2 / 5.8415, 1], abs=1e-4)
    assert told.loc[("real", "random", "pick-place")].tolist() == [0.4, 0.4, 0.4]  # a share of frames, no trial


# ---- results on record


def test_the_summary_says_what_the_raw_scores_say(study, capsys):
    with pytest.raises(InputError, match="no summary; make it with"):
        reward_study.recorded_quality("smoke")
    with pytest.raises(InputError, match="no model has been scored"):
        reward_study.quality("smoke")
    reward_study.score_all("smoke", ["dense", "clock"])
    found = reward_study.summarise("smoke")
    kept = reward_study.recorded_quality("smoke").set_index(["model", "task", "metric"])
    computed = reward_study.quality("smoke").set_index(["model", "task", "metric"])
    computed = computed[computed["value"].notna()]
    pd.testing.assert_frame_equal(kept.sort_index(), computed.sort_index(), check_dtype=False)
    table = reward_study.summary_table("smoke", found).set_index("model")
    assert table.loc["dense", "auroc_failure"] == "1.00 [1.00, 1.00]" and table.loc["clock", "tasks"] == 2
    assert table.loc["clock", "starts"] == 6 and not table.loc["clock", "action-aware"]
    assert reward_study.main(["summary", "--profile", "smoke"]) == 0
    assert "auroc_failure" in capsys.readouterr().out
    assert reward_study.missing("smoke")  # no goal frames yet


def test_a_model_of_ones_own_scored_on_one_task_is_left_out_of_what_compares_models(study, monkeypatch, capsys):
    own = reward_study.Entry("clock", lambda parts, task: rewards.make_reward("clock"), group="control")
    monkeypatch.setitem(reward_study.MODELS, "own", own)
    reward_study.score_all("smoke", ["dense", "clock"])
    reward_study.score_all("smoke", ["own"], ["shelf-place"])
    assert reward_study.scored_models("smoke") == ["dense", "clock", "own"]
    whole = reward_study.scored_models("smoke", everywhere=True)
    assert whole == ["dense", "clock"]
    assert set(reward_study.ahead_of("smoke", {"partial": "clock"}, whole)["model"]) == {"dense"}
    capsys.readouterr()
    reward_study.score_all("smoke", ["own"])
    assert capsys.readouterr().out == "own, shelf-place: scored before with the same files; --anew scores it again\n"
    assert reward_study.scored_models("smoke", everywhere=True) == ["dense", "clock", "own"]
    monkeypatch.delitem(reward_study.MODELS, "own")  # another process, in which nobody made an entry of it
    assert reward_study.scored_models("smoke", everywhere=True)[-1] == "own"
    assert reward_study.unlearned(["own", "clock", "dense"]) == ["clock", "dense"]
    with pytest.raises(InputError, match="unknown group of models 'mine'; valid: control, environment, genreward, pub"):
        reward_study.Entry("clock", own.make, group="mine")


def test_an_f_without_the_action_is_not_said_to_see_it():
    table = reward_study.summary_table("laptop", reward_study.recorded_quality("laptop")).set_index("model")
    for targets in ("goal", "buffer"):
        seen = table.loc[[f"genreward_frame_{targets}", f"genreward_frame_{targets}_no_action"], "action-aware"]
        assert seen.tolist() == [True, False]


def test_the_command_line_refuses_in_one_line(study, capsys, monkeypatch):
    for given in (["score", "--profile", "smoke", "--models", "tide"], ["record", "--profile", "smoky"],
                  ["fb", "--profile", "smoke", "--variants", "half"]):
        with pytest.raises(SystemExit) as end:
            errors.cli(lambda given=given: reward_study.main(given))
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert reward_study.main(["score", "--profile", "smoke", "--models", "clock"]) == 0
    made = reward_episodes.results_folder("smoke") / "scores" / "clock.json"
    assert json.loads(made.read_text())["model"] == "clock"
