"""Statistics over tasks, seeds and steps: hand-computed cases, known properties, and what the intervals cover."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from genreward import results
from genreward.errors import InputError

RNG = np.random.default_rng


def table(curves, metric="return"):
    """{(method, task, seed): {step: value}} as rows of the schema."""
    return pd.DataFrame([{"experiment": "x", "method": method, "task": task, "seed": seed, "step": step,
                          "metric": metric, "value": float(value)}
                         for (method, task, seed), curve in curves.items() for step, value in curve.items()])


# --- the bootstrap itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [np.mean, np.median, results.iqm, np.max])
def test_resampling_agrees_with_every_possible_resample(statistic):
    """Three and two seeds of two tasks: 27 x 4 equally likely resamples, whose quantiles can be listed."""
    scores = {"a": [0.0, 1.0, 5.0], "b": [2.0, 9.0]}
    listed = [statistic(np.array([*first, *second])) for first in product(scores["a"], repeat=3)
              for second in product(scores["b"], repeat=2)]
    found = results.stratified_ci(scores, statistic, resamples=20_000)
    assert found.value == pytest.approx(statistic(np.array([0, 1, 5, 2, 9.0]))) and found.n == 5
    for edge, share in ((found.low, 0.025), (found.high, 0.975)):  # up to the resamples' own chance
        lowest, highest = np.quantile(listed, [share - 0.006, share + 0.006], method="closest_observation")
        assert lowest - 1e-12 <= edge <= highest + 1e-12


def test_a_task_of_one_seed_is_held_and_the_others_move():
    found = results.stratified_ci({"a": [0, 1], "b": [4]}, np.mean)
    assert (found.low, found.high) == pytest.approx((4 / 3, 6 / 3)) and found.n == 3


def test_intervals_are_seeded_and_move_with_the_scores():
    scores = {"a": RNG(0).normal(size=6), "b": RNG(1).normal(size=5)}
    first = results.stratified_ci(scores, seed=4)
    assert first == results.stratified_ci(scores, seed=4)
    assert first != results.stratified_ci(scores, seed=5)
    moved = results.stratified_ci({task: 3 * values - 2 for task, values in scores.items()}, seed=4)
    np.testing.assert_allclose(moved[:3], 3 * np.array(first[:3]) - 2)
    turned = results.stratified_ci({task: values[::-1].copy() for task, values in scores.items()}, seed=4)
    assert turned.value == pytest.approx(first.value)  # the order of the seeds says nothing


def coverage(seeds, simulations, resamples=300):
    """How often the interval of the mean over three tasks contains the true mean."""
    rng, hits = RNG(7), 0
    for number in range(simulations):
        scores = {task: rng.normal(mean, 1, seeds) for task, mean in enumerate((0.0, 3.0, -1.0))}
        found = results.stratified_ci(scores, np.mean, seed=number, resamples=resamples)
        hits += found.low <= 2 / 3 <= found.high
    return hits / simulations


def test_intervals_cover_the_truth_as_often_as_they_say_and_with_few_seeds_less_often():
    simulations = 400
    error = 3 * math.sqrt(0.95 * 0.05 / simulations)
    assert abs(coverage(30, simulations) - 0.95) < error + 0.005  # a percentile bootstrap of 3 x 30 covers about 94.5%
    # known and said in the docstring: within a task of n seeds the resamples' variance is (n - 1)/n of what it should
    # be. With three seeds the interval is sqrt(2/3) as wide: 1 - 2 Phi(-1.96 sqrt(2/3)) = 0.89 were it normal.
    assert coverage(3, simulations) < 0.95 - error


# --- performance profiles ---------------------------------------------------------------------------------------------


def test_a_profile_by_hand():
    found = results.performance_profile({"a": [0.1, 0.6], "b": [0.6, 1.2]}, [0, 0.1, 0.5, 0.6, 1, 2])
    assert found["value"].tolist() == [1, 0.75, 0.75, 0.25, 0.25, 0]
    assert (found["n"] == 4).all()
    assert found.loc[0, ["low", "high"]].tolist() == [1, 1] and found.loc[5, ["low", "high"]].tolist() == [0, 0]
    # at 1 only one of b's two seeds is above: a resample of b has 0, 1 or 2 of them, a none
    assert found.loc[4, ["low", "high"]].tolist() == [0, 0.5]


def test_profiles_never_rise_and_their_bands_hold_them():
    scores = {task: RNG(task).uniform(-0.2, 1.3, 7) for task in range(3)}
    found = results.performance_profile(scores)
    for column in ("value", "low", "high"):
        assert (np.diff(found[column]) <= 1e-12).all()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert found["value"].between(0, 1).all() and len(found) == 21
    # the mean is the area under the profile, for scores between its first and last threshold
    inside = {"a": [0.125, 0.5, 0.875]}
    area = results.performance_profile(inside, np.linspace(0, 1, 1001))["value"].mean()
    assert area == pytest.approx(0.5, abs=2e-3)


def test_one_seed_gives_a_profile_without_bands():
    found = results.performance_profile({"a": [0.4], "b": [0.6]}, [0.5])
    assert found["value"].tolist() == [0.5] and found[["low", "high"]].isna().all(axis=None)
    with pytest.raises(InputError, match="thresholds must ascend"):
        results.performance_profile({"a": [1]}, [0.5, 0.5])


# --- probability of improvement ---------------------------------------------------------------------------------------


def test_improvement_by_hand_and_by_mann_whitney():
    # pairs (1,0) (1,2) (3,0) (3,2): three of four wins; with a tie for one of them three and a half
    assert results.probability_of_improvement({"a": [1, 3]}, {"a": [0, 2]}).value == 0.75
    assert results.probability_of_improvement({"a": [1, 3]}, {"a": [0, 1]}).value == 0.875
    first, second = RNG(0).integers(0, 9, 8), RNG(1).integers(2, 9, 11)
    u = stats.mannwhitneyu(first, second).statistic
    found = results.probability_of_improvement({"a": first}, {"a": second})
    assert found.value == pytest.approx(u / (8 * 11)) and found.n == 8
    assert found.low <= found.value <= found.high


def test_improvement_is_averaged_over_tasks_whatever_their_numbers_of_seeds():
    found = results.probability_of_improvement({"a": [1], "b": [0] * 9}, {"a": [0, 0], "b": [1]})
    assert found.value == 0.5 and found.n == 3


def test_improvement_is_fair_to_both_and_blind_to_scale():
    first = {task: RNG(task).integers(0, 6, 5) for task in range(3)}
    second = {task: RNG(task + 9).integers(0, 6, 4) for task in range(3)}
    there, back = (results.probability_of_improvement(*pair).value for pair in ((first, second), (second, first)))
    assert there + back == pytest.approx(1)
    assert results.probability_of_improvement(first, first).value == pytest.approx(0.5)
    bent = [{task: np.exp(values) for task, values in method.items()} for method in (first, second)]
    assert results.probability_of_improvement(*bent) == results.probability_of_improvement(first, second)


def test_improvement_needs_the_same_tasks():
    with pytest.raises(InputError, match="only one has b, c"):
        results.probability_of_improvement({"a": [1], "b": [1]}, {"a": [1], "c": [1]})


# --- curves -----------------------------------------------------------------------------------------------------------


def test_area_by_hand():
    assert results.area_under_curve([0, 10, 20], [0, 1, 1]) == 0.75
    assert results.area_under_curve([0, 10, 30], [0, 3, 3]) == pytest.approx((15 + 60) / 30)  # uneven steps
    assert results.area_under_curve([5], [2]) == 2
    assert results.area_under_curve([0, 1], [[0, 2], [4, 4]]).tolist() == [1, 4]
    for steps, values in (([0, 1], [1, 2, 3]), ([1, 0], [1, 2])):
        with pytest.raises(InputError, match="as many values as ascending steps"):
            results.area_under_curve(steps, values)


def test_scores_by_method_task_and_seed():
    rows = table({("m", "a", 0): {0: 0, 10: 8, 20: 4}, ("m", "a", 1): {20: 6, 10: 2, 0: 2}, ("w", "b", 0): {0: 3}})
    assert {m: {t: v.tolist() for t, v in found.items()} for m, found in results.scores(rows, "return").items()} == {
        "m": {"a": [4, 6]}, "w": {"b": [3]}}
    assert results.scores(rows, "return", last=2)["m"]["a"].tolist() == [6, 4]
    assert results.scores(rows, "return", "best")["m"]["a"].tolist() == [8, 6]
    assert results.scores(rows, "return", "area")["m"]["a"].tolist() == [5, 3]
    with pytest.raises(InputError, match="unknown score 'mean'; valid: area, best, final"):
        results.scores(rows, "return", "mean")
    with pytest.raises(InputError, match="seed 0 of w on b has two values of 'return' at step 0"):
        results.scores(pd.concat([rows, rows.tail(1).assign(experiment="y")]), "return")
    with pytest.raises(InputError, match="no rows of metric 'speed'; valid: return"):
        results.scores(rows, "speed")
    short = rows[(rows["seed"] == 0) | (rows["step"] < 20)]
    with pytest.raises(InputError, match="the seeds of m on a end at different steps.*: 0 at 20, 1 at 10; finish them"):
        results.scores(short, "return")


def test_sample_efficiency_by_hand():
    rows = table({("m", "a", 0): {10: 0, 20: 4, 30: 9}, ("m", "a", 1): {10: 0, 20: 6}, ("m", "b", 0): {10: 3, 20: 2}})
    found = results.sample_efficiency(rows, "return", np.mean)
    assert found["step"].tolist() == [10, 20] and found["n"].tolist() == [3, 3]  # 30 is one seed's alone
    assert found["value"].tolist() == [1, 4]
    # at 10 both seeds of a agree; at 20 a resample of them sums to 8, 10 or 12
    np.testing.assert_allclose(found[["low", "high"]].to_numpy(), [[1, 1], [10 / 3, 14 / 3]])
    with pytest.raises(InputError, match="runs of 'm' have no step in common"):
        results.sample_efficiency(table({("m", "a", 0): {1: 0}, ("m", "a", 1): {2: 0}}), "return")


def test_a_curve_is_resampled_whole():
    """Two seeds whose curves mirror each other: a resample moves both steps at once, in opposite directions."""
    rows = table({("m", "a", 0): {10: 0, 20: 1}, ("m", "a", 1): {10: 1, 20: 0}})
    seen = []
    results.sample_efficiency(rows, "return", lambda values: seen.append(values.mean()) or values.mean(), resamples=20)
    steps = np.array(seen[2:]).reshape(2, -1)  # after the two of the point estimate: step x resample
    np.testing.assert_allclose(steps.sum(axis=0), 1)


# --- normalised scores ------------------------------------------------------------------------------------------------


def test_tables_are_normalised_task_by_task():
    references = table({("random", "a", 0): {0: 10}, ("random", "a", 1): {0: 30}, ("expert", "a", 0): {0: 120},
                        ("random", "b", 0): {0: 0}, ("expert", "b", 0): {0: 4}})
    rows = table({("m", "a", 0): {5: 70}, ("m", "b", 0): {5: 1}, ("m", "a", 1): {5: 20}})
    found = results.normalise(rows, references)
    assert found["value"].tolist() == [0.5, 0.25, 0] and set(found["metric"]) == {"normalised_return"}
    assert results.check_rows(found).shape == (3, 7)
    with pytest.raises(InputError, match="no return of the expert policy on 'b'"):
        results.normalise(rows, references[references["value"] != 4])


def test_order_and_rank_survive_normalising():
    values = RNG(0).normal(size=20)
    scaled = results.normalised(values, random=-3, expert=8)
    assert (np.argsort(values) == np.argsort(scaled)).all()
    np.testing.assert_allclose(scaled * 11 - 3, values)
