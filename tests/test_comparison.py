"""What the runs say: differences against closed forms, sentences that match their numbers, what is missing."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from genreward import comparison, files, profiles, results
from genreward.errors import InputError
from genreward.training import Run


def table_of(values, metric="return", steps=(256, 512)):
    """{method: one final value a seed} as rows; each earlier evaluation is half as good."""
    return pd.DataFrame([
        {"experiment": "smoke", "method": method, "task": "pick-place", "seed": seed, "step": step, "metric": metric,
         "value": value * (1.0 if step == steps[-1] else 0.5), "run": f"{method}{seed}"}
        for method, finals in values.items() for seed, value in enumerate(finals) for step in steps])


def test_a_difference_has_welchs_interval():
    found = comparison.difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    # equal variances of 1 and n = 3: standard error sqrt(2/3), 4 degrees of freedom, t = 2.7764
    assert found.value == 2 and found.n == 3
    assert found.low == pytest.approx(2 - 2.776445 * math.sqrt(2 / 3), abs=1e-5)
    assert found.high == pytest.approx(2 + 2.776445 * math.sqrt(2 / 3), abs=1e-5)
    alone = comparison.difference([3.0], [1.0, 2.0])
    assert alone.value == 1.5 and alone.n == 1 and math.isnan(alone.low)
    assert comparison.difference([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0, 2)
    assert comparison.difference([0.1] * 3, [0.1] * 3) == (0.0, 0.0, 0.0, 3)  # whose variance is rounded to 2e-34
    with pytest.raises(InputError, match="at least one run"):
        comparison.difference([], [1.0])


def test_p_is_small_where_the_interval_leaves_0_and_is_welchs():
    first, second = [3.0, 5.0, 4.0], [1.0, 2.0, 3.5]
    assert comparison.welch_p(first, second) == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    apart = [value + 4 for value in first]
    assert comparison.welch_p(apart, second) < 0.05 < comparison.welch_p(first, second)
    assert comparison.difference(apart, second).low > 0 > comparison.difference(first, second).low
    assert np.isnan(comparison.welch_p([3.0], second))
    assert comparison.welch_p([2.0, 2.0], [1.0, 1.0]) == 0 and comparison.welch_p([2.0, 2.0], [2.0, 2.0]) == 1


def test_the_exact_permutation_test_counts_the_ways_to_part_the_runs():
    """Of the ten ways to part five runs in two and three one has means 5 apart, three (with 9 and a 4, or 7) 2.5."""
    assert comparison.permutation_p([9.0, 7.0], [1.0, 4.0, 4.0]) == pytest.approx(2 * 1 / 10)
    assert comparison.permutation_p([9.0, 4.0], [1.0, 7.0, 4.0]) == pytest.approx(2 * 3 / 10)
    assert comparison.permutation_p([4.0, 4.0], [4.0, 4.0]) == 1
    assert np.isnan(comparison.permutation_p([1.0], [2.0, 3.0]))
    with pytest.raises(InputError, match="15 against 15 runs can be parted in 155,117,520 ways"):
        comparison.permutation_p(range(15), range(15))
    few = [0.0, 0.1, 0.2], [5.0, 5.1, 5.2]
    assert comparison.permutation_p(*few) == pytest.approx(2 / 20)  # three a side cannot say more
    assert comparison.welch_p(*few) < 0.001


def test_holms_correction_by_hand_and_its_promise():
    """0.01 x 4, then 0.02 x 3, then 0.03 x 2 which is no smaller, then 0.9, in whatever order they come."""
    assert comparison.holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert comparison.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0]) and len(comparison.holm([])) == 0
    draws = np.random.default_rng(0).random((4000, 10))  # ten true nulls: one is called false in 5% of families
    called = np.mean([comparison.holm(p).min() < 0.05 for p in draws])
    assert abs(called - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000) and np.mean(draws.min(axis=1) < 0.05) > 0.3
    with pytest.raises(InputError, match=r"every p must lie in \[0, 1\]"):
        comparison.holm([0.1, np.nan])


@pytest.mark.parametrize(("treated", "end"), [
    ((100.0, 101.0, 102.0), "The reward helped."), ((1.0, 2.0, 3.0), "The reward hurt."),
    ((20.0, 50.0, 80.0), "cannot be told from these runs."), ((100.0,), "nothing can be concluded.")])
def test_the_sentence_says_what_the_numbers_say(treated, end):
    effects = comparison.effects(table_of({"sparse": (49.0, 50.0, 51.0), "genreward": treated}))
    (effect,) = effects.itertuples(index=False)
    assert (effect.agent, effect.method, effect.control) == ("sac", "genreward", "sparse")
    assert effect.value == pytest.approx(np.mean(treated) - 50)
    said = comparison.verdict(effect)
    assert said.endswith(end) and said.startswith("SAC on pick-place: with GenReward (as printed) the final return is")
    assert f"{np.mean(treated):.3g}" in said


def test_the_control_is_the_same_agent_with_the_same_environment_reward():
    table = table_of({"dreamer_sparse": (1.0, 2.0), "dreamer_genreward": (5.0, 7.0), "dense": (90.0, 92.0),
                      "sparse": (3.0, 4.0), "genreward_dense": (95.0, 96.0), "genreward": (3.0, 5.0)})
    effects = comparison.effects(table).set_index(["agent", "method"])
    assert set(effects.index) == {("dreamer", "genreward"), ("sac", "genreward"), ("sac", "genreward_dense")}
    assert effects.loc[("dreamer", "genreward"), "value"] == 4.5
    assert effects.loc[("sac", "genreward_dense"), "control"] == "dense"
    assert comparison.effects(table_of({"genreward": (1.0,)})).empty  # no control, no claim
    # another camera is another control, which the label does not tell: no variant is set against the usual one
    varied = table_of({"dense": (90.0, 92.0), "genreward_dense+distraction-camera": (5.0, 6.0)})
    assert comparison.effects(varied).empty


def test_runs_of_different_lengths_meet_where_all_have_been():
    long, short = table_of({"sparse": (8.0,)}, steps=(256, 512)), table_of({"genreward": (6.0,)}, steps=(256,))
    ends = comparison.finals(pd.concat([long, short]), "return")
    assert ends.loc[("sac", "pick-place", "sparse", 0)] == 4.0 and ends.loc[("sac", "pick-place", "genreward", 0)] == 6
    with pytest.raises(InputError, match="no rows of metric 'success'; valid: return"):
        comparison.finals(long, "success")
    unlearned = table_of({"fb_zero_shot": (5.0,)}, steps=(0,))  # learns nothing, ends at 0, shortens nobody's run
    ends = comparison.finals(pd.concat([long, unlearned]), "return")
    assert ends.to_dict() == {("sac", "pick-place", "sparse", 0): 8, ("zero_shot", "pick-place", "fb_zero_shot", 0): 5}


def test_shares_are_the_last_ones_and_panels_are_by_agent():
    table = pd.concat([table_of({"genreward": (0.75,)}, "share_env"), table_of({"genreward": (0.25,)}, "share_video"),
                       table_of({"dreamer_sparse": (1.0,)}, "share_env")])
    shares = comparison.final_shares(table).set_index(["agent", "method", "term"])["share"]
    assert shares.loc[("sac", "genreward")].to_dict() == {"env": 0.75, "video": 0.25}
    assert shares.loc[("dreamer", "sparse", "env")] == 1.0
    assert set(comparison.panels(table)["task"]) == {"pick-place, SAC", "pick-place, DreamerV3"}
    assert set(comparison.panels(table)["method"]) == {"genreward", "sparse"}


def test_missing_runs_are_named_with_their_command_and_costs_add_up(root):
    profile, where = profiles.get_profile("smoke"), profiles.paths("smoke")
    with pytest.raises(InputError, match="no runs on record for profile 'smoke'; .*make results PROFILE=smoke"):
        comparison.records("smoke")
    everything = comparison.missing("smoke", "pick-place")
    assert len(everything) == len(profile.run.agents) * len(profile.run.methods) * profile.run.seeds
    for method, steps, seconds in (("dense", profile.run.sac_steps, 30.0), ("sparse", 256, 10.0)):
        run = Run("pick-place", method, "sac", 0, "smoke", "smoke")
        results.write_run(where.runs, run.run_id, table_of({method: (1.0,)}).drop(columns="run"),
                          {"seconds": seconds, "steps": steps, "device": "cpu", "identity": {"run": {
                              "agent": "sac", "method": method, "task": "pick-place"}}})
    left = comparison.missing("smoke", "pick-place").set_index("run")
    assert len(left) == len(everything) - 1 and left.loc["smoke-pick-place-sac-sparse-s0", "steps"] == 256
    assert left.loc["smoke-pick-place-sac-sparse-s0", "command"].endswith(
        "--task pick-place --method sparse --agent sac --seed 0 --profile smoke --experiment smoke")
    (where.weights / "rewards" / "tadpole").mkdir(parents=True)
    files.write_json(where.weights / "rewards" / "tadpole" / "provenance.json", {"seconds": 60.0, "device": "cpu"})
    costs = comparison.costs("smoke").set_index("stage")
    assert costs["seconds"].to_dict() == {"reward model: tadpole": 60.0, "SAC: Dense reward": 30.0,
                                          "SAC: Sparse reward": 10.0}
    assert costs["share"].to_dict() == {"reward model: tadpole": 0.6, "SAC: Dense reward": 0.3,
                                        "SAC: Sparse reward": 0.1}
    times = comparison.training_time("smoke").set_index("method")["seconds_per_step"]
    assert times["sparse"] == 10 / 256 and times["dense"] == 30 / profile.run.sac_steps
    assert len(comparison.records("smoke")) == 4


def test_a_tasks_records_are_the_profiles_own_runs_up_to_their_own_length(root):
    profile = profiles.get_profile("smoke")
    own = Run("pick-place", "dense", "sac", 0, "smoke", "smoke")
    length = profile.run.sac_steps
    for run, steps in ((own, (length // 2, length, 2 * length)), (Run("pick-place", "roboclip", "sac", 0, "smoke",
                                                                      "smoke"), (length,))):
        rows = [{"experiment": "smoke", "method": run.label, "task": run.task, "seed": 0, "step": step, "metric":
                 "return", "value": float(step)} for step in steps]
        results.write_run(profiles.paths("smoke").runs, run.run_id, rows, {"steps": steps[-1], "seconds": 1.0})
    assert len(comparison.records("smoke")) == 4
    found = comparison.records("smoke", "pick-place")
    assert found["step"].tolist() == [length // 2, length] and set(found["run"]) == {own.run_id}
    with pytest.raises(InputError, match="no runs on record for profile 'smoke' on reach; .*make results"):
        comparison.records("smoke", "reach")


def test_training_time_is_of_whole_runs_of_one_kind(root):
    runs = [*(Run("reach", "dense", "dreamer", seed) for seed in range(3)),
            Run("reach", "dense", "dreamer", 0, changes=(("dreamer.observation", "pixels"),))]
    for run, steps, seconds in zip(runs, (100, 100, 50), (10.0, 30.0, 50.0), strict=False):
        results.write_run(profiles.paths("smoke").runs, run.run_id, table_of({"dense": (1.0,)}).drop(columns="run"),
                          {"seconds": seconds, "steps": steps, "device": "cpu", "identity": {"run": {
                              "agent": "dreamer", "method": "dense", "task": "reach"}}})
    results.write_run(profiles.paths("smoke").runs, runs[3].run_id, table_of({"dense": (1.0,)}).drop(columns="run"),
                      {"seconds": 90.0, "steps": 100, "device": "cpu", "identity": {"run": {
                          "agent": "dreamer", "method": "dense", "task": "reach",
                          "changes": {"dreamer.observation": "pixels"}}}})
    times = comparison.training_time("smoke").set_index("method")
    assert times.loc["dense"].to_dict() == {
        "agent": "dreamer", "task": "reach", "n": 2, "steps": 100, "seconds_per_step": 0.2, "lowest": 0.1,
        "highest": 0.3}
    assert times.loc["dense+observation-pixels", "seconds_per_step"] == 0.9 and len(times) == 2


def test_both_renderers_are_timed_on_the_same_number_of_frames():
    rates = comparison.render_rates("reach", frames=1, size=32, block=1)
    assert rates["renderer"].tolist() == ["env.render() of Meta-World", "genreward"]
    assert np.isfinite(rates[["milliseconds", "processor_milliseconds", "frames_per_second"]]).all(axis=None)
    assert rates.attrs["ratio"] == rates["milliseconds"][0] / rates["milliseconds"][1] > 0
    with pytest.raises(InputError, match="frames and block must be at least 1, got 0 and 5"):
        comparison.render_rates("reach", frames=0)
