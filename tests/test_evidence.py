"""What is said of the grid's runs: hand-made records with known answers, unfinished and missing runs, verdicts."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy import stats

from genreward import (
    behaviour,
    claims,
    evidence,
    experiments,
    figures,
    files,
    forecast,
    profiles,
    results,
    training,
    variants,
    would_pay,
)
from genreward.errors import InputError
from genreward.experiments import Arm, Experiment
from genreward.goals import Goal
from genreward.training import Run

TASKS = ("reach", "drawer-close")
TRIAL = Experiment("easy", "Fig. 5, easy tasks", "", TASKS,
                   (Arm("sparse"), Arm("genreward_sound"), Arm("genreward_sound", (("reward.sound_alpha", 0.0),)),
                    Arm("fb_zero_shot")))


@pytest.fixture
def tiny(root, monkeypatch):
    profile = replace(profiles.get_profile("smoke"), name="tiny")
    monkeypatch.setitem(profiles.PROFILES, "tiny", profile)
    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=768, seeds=3))
    declared = experiments.experiments
    monkeypatch.setattr(experiments, "experiments", lambda profile: declared(profile) | {"easy": TRIAL})
    for task in TASKS:
        random_actions(task, [-99.0, -101.0, -100.0, -100.0])
    return profile


def random_actions(task, values):
    results.write_run(profiles.paths("tiny").results / "references", task, [
        {"experiment": "references", "method": "random", "task": task, "seed": seed, "step": 0, "metric": "return",
         "value": value} for seed, value in enumerate(values)], {})


def forget_random_actions(task):
    for suffix in ("csv", "json"):
        (profiles.paths("tiny").results / "references" / f"{task}.{suffix}").unlink()


def record(run, values, length=256, **more):
    """A run's record with those returns at every `length` steps (at step 0 for F and B's own policy)."""
    steps = [0] if run.agent == "zero_shot" else [length * (k + 1) for k in range(len(values))]
    rows = [{"experiment": "tiny", "method": run.label, "task": run.task, "seed": run.seed, "step": step,
             "metric": metric, "value": value} for step, ret in zip(steps, values, strict=True)
            for metric, value in (("return", ret), ("success", float(ret > 100)))]
    results.write_run(profiles.paths("tiny").runs, run.run_id, rows, {"steps": steps[-1], "seconds": 1.0, **more})


def runs(task, method, variant=""):
    return [run for run in TRIAL.runs("tiny") if (run.task, run.method, run.variant) == (task, method, variant)]


def test_students_interval_of_a_handful():
    found = evidence.mean_interval([1.0, 2.0, 6.0])
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    assert found == pytest.approx((3.0, low, high, 3))
    one = evidence.mean_interval([4.0])
    assert one.value == 4 and np.isnan(one.low) and one.n == 1 and evidence.mean_interval([]).n == 0


def test_only_finished_runs_count_and_only_up_to_the_length_asked_for(tiny):
    first, second, third = runs("reach", "sparse")
    record(first, [1.0, 2.0, 3.0])
    record(second, [1.0, 2.0, 5.0, 900.0])  # went on for another figure
    record(third, [7.0, 8.0])  # is not there yet
    found = evidence.summary("tiny", "easy").set_index(["task", "curve"])
    assert len(found) == 8 and found.index.is_unique
    row = found.loc[("reach", "Sparse reward")]
    assert (row["value"], row["n"], row["wanted"], row["steps"], row["success"]) == (4.0, 2, 3, 768, 0.0)
    assert found.loc[("drawer-close", "Sparse reward"), "n"] == 0
    assert np.isnan(found.loc[("drawer-close", "Sparse reward"), "value"])
    assert evidence.rows("tiny", "easy")["step"].max() == 768
    standing = evidence.standing("tiny", ["easy"]).iloc[0]
    assert (standing["runs"], standing["done"], standing["command"]) == (
        24, 2, "make results PROFILE=tiny ONLY=easy")


def test_a_zero_shot_policy_stands_beside_the_others_without_cutting_their_curves(tiny):
    for run in runs("reach", "fb_zero_shot") + runs("reach", "sparse"):
        record(run, [50.0] if run.agent == "zero_shot" else [1.0, 2.0, 3.0 + run.seed])
    found = evidence.summary("tiny", "easy").set_index(["task", "curve"])["value"]
    assert found["reach", "Sparse reward"] == 4 and found["reach", "FB policy, zero-shot"] == 50


def test_contrasts_are_welchs_and_say_better_only_when_the_interval_does(tiny):
    given = {"sparse": [10.0, 12.0, 11.0], "genreward_sound": [20.0, 23.0, 26.0]}
    for method, values in given.items():
        for run, value in zip(runs("reach", method), values, strict=True):
            record(run, [0.0, 0.0, value])
    for run, value in zip(runs("reach", "genreward_sound", "+sound_alpha-0.0"), [9.0, 11.0, 13.5], strict=True):
        record(run, [0.0, 0.0, value])
    found = evidence.contrasts("tiny", "easy", exact=True).set_index("curve")
    best = found.loc["GenReward (every step, buffer targets)"]
    wanted = stats.ttest_ind(given["genreward_sound"], given["sparse"], equal_var=False).confidence_interval(0.95)
    assert best["value"] == pytest.approx(12.0) and (best["low"], best["high"]) == pytest.approx(tuple(wanted))
    pairs = stats.ttest_rel(given["genreward_sound"], given["sparse"]).confidence_interval(0.95)
    assert (best["paired_low"], best["paired_high"]) == pytest.approx(tuple(pairs))
    assert best["p_exact"] == pytest.approx(2 / 20)  # the most extreme of 20 ways to part six, on either side
    assert evidence.verdict(best) == "better" and best["control"] == "Sparse reward"
    assert evidence.verdict(found.loc["without the video-level reward"]) == "open"
    against = evidence.contrasts("tiny", "easy", "GenReward (every step, buffer targets)").set_index("curve")
    assert evidence.verdict(against.loc["Sparse reward"]) == "worse"


def test_a_reward_too_quiet_to_be_heard_leaves_agents_near_the_control_of_their_own_seed(tiny):
    assert evidence.seed_for_seed("tiny", "easy").empty
    for run, value in zip(runs("reach", "sparse"), (10.0, 20.0, 30.0), strict=True):
        record(run, [value, 900.0 * value, 0.0])
    for run, value in zip(runs("reach", "genreward_sound")[:1], (11.0,), strict=True):
        record(run, [value, 0.0, 0.0])
    assert evidence.seed_for_seed("tiny", "easy").empty  # of one seed nothing is said
    for run, value in zip(runs("reach", "genreward_sound")[1:], (22.0, 27.0), strict=True):
        record(run, [value, 0.0, 0.0])
    (line,) = evidence.seed_for_seed("tiny", "easy").to_dict("records")
    assert (line["task"], line["curve"], line["control"]) == (
        "reach", "GenReward (every step, buffer targets)", "Sparse reward")
    # 768 steps, evaluated at each 256th: of the first three fifths the first evaluation
    assert (line["same"], line["other"], line["n"], line["steps"]) == (
        2.0, (9 + 19 + 12 + 8 + 17 + 7) / 6, 3, 460)
    (line,) = evidence.seed_for_seed("tiny", "easy", share=1.0).to_dict("records")
    assert line["same"] == pytest.approx((1 + 9_000 + 2 + 18_000 + 3 + 27_000) / 9)


def test_comparisons_are_counted_once_a_pair_and_corrected_together(tiny):
    given = {("sparse", ""): [10.0, 12.0, 11.0], ("genreward_sound", ""): [20.0, 23.0, 26.0],
             ("genreward_sound", "+sound_alpha-0.0"): [9.0, 11.0, 13.5]}
    for (method, variant), values in given.items():
        for run, value in zip(runs("reach", method, variant), values, strict=True):
            record(run, [0.0, 0.0, value])
    record(runs("drawer-close", "sparse")[0], [0.0, 0.0, 1.0])  # one seed has no p
    record(runs("drawer-close", "genreward_sound")[0], [0.0, 0.0, 2.0])
    full = figures.label("genreward_sound")
    found = evidence.counted("tiny", "easy", (full, None))
    assert {(row.curve, row.control) for row in found.itertuples()} == {
        ("Sparse reward", full), ("without the video-level reward", full),
        ("without the video-level reward", "Sparse reward")}  # the full reward against the sparse one is the first
    values = list(given.values())
    p = sorted(stats.ttest_ind(one, other, equal_var=False).pvalue for one, other in combinations(values, 2))
    wanted = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert sorted(found["p_holm"]) == pytest.approx([min(1.0, one) for one in wanted])
    assert evidence.counted("tiny", "again", (None,)).empty


def test_a_longer_control_is_set_against_at_its_end_or_at_a_step_and_shares_the_figure(tiny, monkeypatch):
    """Two runs that `again` stops at 768 steps and a second experiment takes to 1,536."""
    arms = (Arm("sparse"), Arm("genreward_sound"))
    both = {"again": Experiment("again", "", "", ("reach",), arms, seeds=2),
            "longer": Experiment("longer", "", "", ("reach",), arms[:1], seeds=2, times=2)}
    monkeypatch.setattr(experiments, "experiments", lambda profile: both)
    once, twice = both["again"].runs("tiny"), both["longer"].runs("tiny")
    assert {run.run_id: run.steps for run in twice} == {run.run_id: 1536 for run in once if run.method == "sparse"}
    for run in once:
        record(run, [0.0, 0.0, 9.0 + run.seed])
    name = "GenReward (every step, buffer targets)"
    claim = "Fig. 5, easy task longer"
    assert finding(claim)[:2] == (claims.OPEN, "make results PROFILE=tiny ONLY=longer")
    assert evidence.contrasts("tiny", "again", longer="longer").empty  # the longer control is not there yet
    assert evidence.sentences("tiny", "again", longer="longer") == [
        'nothing can be said yet: make results PROFILE=tiny ONLY="again longer"']
    together = evidence.members("tiny", ["again", "longer"])
    assert len(together) == 4 and together["done"].all() and set(together["wanted"]) == {768}
    record(twice[0], [0.0, 0.0, 1.0, 2.0, 3.0, 8.0])
    record(twice[1], [0.0, 0.0, 2.0, 2.5, 3.2, 8.5])
    found = evidence.contrasts("tiny", "again", longer="longer").iloc[0]
    assert (found["curve"], found["control"], found["n"]) == (name, "Sparse reward, 1,536 steps", 2)
    assert found["value"] == pytest.approx(9.5 - 8.25)
    assert evidence.contrasts("tiny", "again").iloc[0]["value"] == pytest.approx(9.5 - 1.5)  # at again's own length
    assert finding(claim).verdict == claims.NOT and "+1.25 [" in finding(claim).numbers
    later = evidence.contrasts_later("tiny", "again", "longer")
    assert later["step"].tolist() == [1024, 1280, 1536] and later["value"].tolist() == pytest.approx([7.25, 6.4, 1.25])
    assert later["verdict"].tolist() == [evidence.verdict(row) for _, row in later.iterrows()]
    early = evidence.contrasts("tiny", "again", longer="longer", step=1024).iloc[0]
    assert early["value"] == pytest.approx(9.5 - 2.25) and early["control"] == "Sparse reward, 1,024 steps"
    longest = evidence.members("tiny", ["again", "longer"]).groupby("method")["wanted"].max()
    assert longest.to_dict() == {"sparse": 1536, "genreward_sound": 768}
    assert evidence.rows("tiny", ["again", "longer"]).groupby("curve")["step"].max().to_dict() == {
        "Sparse reward": 1536, name: 768}
    record(twice[0], [0.0, 0.0, 1.0, 2.0, 3.0, 2.0])
    record(twice[1], [0.0, 0.0, 2.0, 2.5, 3.2, 2.5])
    found = finding(claim)  # it ends at 2.25, and stood at 3.1 before
    told = "comparisons of these seeds counted); where the control stands best, at 1,280 steps: +6.4 ["
    assert "against Sparse reward, 1,536 steps (n=2): reach +7.25 [" in found.numbers
    assert " (p = " in found.numbers and told in found.numbers


def test_seeds_that_serve_many_comparisons_must_stand_with_all_of_them_counted(tiny, monkeypatch):
    """Three seeds, a variant that is no better, a longer control; the exploration of F and B took 300 steps."""
    arms = (Arm("sparse"), Arm("genreward_sound"), Arm("genreward_sound", (("reward.sound_alpha", 0.0),)))
    both = {"again": Experiment("again", "", "", ("reach",), arms, seeds=3),
            "longer": Experiment("longer", "", "", ("reach",), arms[:1], seeds=3, times=2)}
    monkeypatch.setattr(experiments, "experiments", lambda profile: both)
    monkeypatch.setitem(profiles.PROFILES, "tiny", replace(tiny, fb=replace(tiny.fb, exploration_steps=300)))
    full, half = "GenReward (every step, buffer targets)", "without the video-level reward"
    ends = {("sparse", ""): [1.0, 2.0, 3.0], ("genreward_sound", ""): [7.0, 8.0, 9.5],
            ("genreward_sound", "+sound_alpha-0.0"): [5.0, 9.0, 7.0]}
    for run in both["again"].runs("tiny"):
        values = [0.0, 0.0, ends[run.method, run.variant][run.seed]]
        record(run, values + [1.5 + run.seed, 2.0 + run.seed, 3.5 + run.seed] * (run.method == "sparse"))
    assert evidence.together("tiny", "again", "longer") == 1280  # 768 and 300 taken together: 1,068
    found = evidence.shared("tiny")
    controls = ["Sparse reward" + steps for steps in ("", ", 1,280 steps", ", 1,536 steps")]
    assert list(zip(found["curve"], found["control"], strict=True)) == [
        *((curve, control) for control in controls for curve in (full, half)), (full, half)]
    counted = {name: sorted(found[name]) for name in ("p", "p_holm", "p_exact", "exact_holm")}
    for alone, together in (("p", "p_holm"), ("p_exact", "exact_holm")):  # the least times 7, the next times 6, ...
        most = [min(1.0, p * (7 - place)) for place, p in enumerate(counted[alone])]
        assert counted[together] == pytest.approx([max(most[:place + 1]) for place in range(7)])
    assert found["p_exact"].min() == pytest.approx(0.1)  # of 20 ways to part six runs the most extreme, either side
    last = found.iloc[-1]
    assert last["p_exact"] == pytest.approx(2 * 5 / 20)  # of 5, 7, 7, 8, 9, 9.5 five triples have 7 + 8 + 9.5 or more
    assert last["value"] == pytest.approx(8.1667 - 7, abs=1e-3) and last["low"] < 0 < last["high"]
    plain = stats.ttest_ind([7, 8, 9.5], [3.5, 4.5, 5.5], equal_var=False)
    row = found.iloc[4]
    assert row["p"] == pytest.approx(plain.pvalue) and row["p"] < 0.05 < row["p_holm"] and row["low"] > 0
    assert finding("Fig. 5, easy task again").verdict == claims.REPRODUCED
    longer = finding("Fig. 5, easy task longer")  # better by its own interval, not with seven counted
    assert longer.verdict == claims.NOT and f"p = {row['p_holm']:.2g} with all 7 comparisons" in longer.numbers


def test_contrasts_in_words_name_both_sides_or_the_command_that_makes_the_runs(tiny, monkeypatch):
    assert evidence.sentences("tiny", "easy") == ["nothing can be said yet: make results PROFILE=tiny ONLY=easy"]
    assert evidence.alone(evidence.summary("tiny", "easy")) == {}
    for method, values in {"sparse": [10.0, 12.0, 11.0], "genreward_sound": [7.0, 9.0, 5.0]}.items():
        for run, value in zip(runs("reach", method), values, strict=True):
            record(run, [0.0, 0.0, value])
    low, high = stats.ttest_ind([7, 9, 5], [10, 12, 11], equal_var=False).confidence_interval(0.95)
    name = "GenReward (every step, buffer targets)"
    assert evidence.sentences("tiny", "easy") == [
        f"reach, {name}: -4 [{low:.3g}, {high:.3g}] against 'Sparse reward' (n=3)"]
    assert evidence.sentences("tiny", "easy", name) == [
        f"reach, Sparse reward: +4 [{-high:.3g}, {-low:.3g}] against '{name}' (n=3)"]
    assert evidence.alone(evidence.summary("tiny", "easy")) == {"sparse reward alone": 11.0}
    record(runs("reach", "genreward_sound", "+sound_alpha-0.0")[0], [0.0, 0.0, 12.0])
    assert evidence.sentences("tiny", "easy")[-1] == (
        "reach, without the video-level reward: +1 against 'Sparse reward' (n=1, no interval)")
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": replace(TRIAL, tasks=("reach",))})
    assert evidence.sentences("tiny", "easy")[0].startswith(f"{name}: -4 ")  # one task needs no name


def test_numbers_in_words_have_three_digits_or_are_whole():
    said = [evidence.number(value) for value in (0.01234, -3.456, 99.94, 1234.6)]
    assert said == ["0.0123", "-3.46", "99.9", "1,235"]


def test_what_is_seen_otherwise_is_set_against_a_control_seen_in_the_same_way(tiny, monkeypatch):
    seen = (("distraction", "all-easy-dynamic"),)
    trial = replace(TRIAL, tasks=("reach",), arms=(Arm("dense"), Arm("genreward_sound_dense"), Arm("dense", seen),
                                                   Arm("genreward_sound_dense", seen)))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    for run in trial.runs("tiny"):
        base = 100.0 if run.changes else 10.0
        record(run, [0.0, 0.0, base + run.seed + (5 if run.method != "dense" else 0)])
    found = evidence.contrasts("tiny", "easy")
    assert found["value"].tolist() == pytest.approx([5, 5])
    assert found["control"].tolist() == ["Dense reward", "Dense reward, distracted (all-easy-dynamic)"]


def test_curves_have_the_names_of_what_they_change():
    names = {(): "Dense reward", (("reward.sound_beta", 0.0),): "without the FB reward",
             (("reward.sound_alpha", 3.0),): "alpha = 3", (("goal", "camera"),): "imagined, other camera",
             (("fb.action_aware", False),): "F without the action",
             (("fb.encoder", "siglip2"),): "picture encoder SigLIP 2"}
    for changes, name in names.items():
        method = "genreward_sound_dense" if changes else "dense"
        assert evidence.curve_name(Run("reach", method, changes=changes)) == name
    distracted = Run("walker-walk", "dense", changes=(("distraction", "all-easy-dynamic"),))
    assert evidence.curve_name(distracted) == "Dense reward, distracted (all-easy-dynamic)"


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_no_two_curves_of_an_experiment_share_a_name(profile):
    for name, experiment in experiments.experiments(profile).items():
        if name != "base":
            curves = {(run.task, evidence.curve_name(run)): run.method + run.variant
                      for run in experiment.runs(profile)}
            assert len(curves) == len({(run.task, run.method, run.variant) for run in experiment.runs(profile)}), name


def test_the_papers_number_stands_beside_the_method_that_it_is_of(tiny):
    table = pd.DataFrame({"task": ["bin-picking"] * 3 + ["pick-place"], "variant": ["", "", "+alpha-0.1", ""],
                          "method": ["genreward_dense", "genreward_sound_dense", "genreward_dense", "dense"]})
    found = evidence.beside_reported(table, "Fig. 5")["reported"]
    assert found[0] == 822 and found[1:].isna().all()
    curve = pd.DataFrame({"task": ["bin-picking"], "variant": [""], "method": ["roboclip_dense"]})
    assert evidence.beside_reported(curve, "Fig. 5")["note"].tolist() == ["read off a curve"]


def test_the_papers_distracted_runs_stand_beside_ours_and_a_success_rate_says_that_it_is_one(tiny):
    rows = [("walker-walk", "", "dense"), ("walker-walk", "+distraction-all-easy-dynamic", "dense"),
            ("walker-walk", "+distraction-all-easy-dynamic", "genreward_sound_dense"), ("door", "", "dense")]
    found = evidence.beside_reported(pd.DataFrame(rows, columns=["task", "variant", "method"]), "Table A")
    assert np.isnan(found["reported"][0]) and found["reported"][1:].tolist() == [640, 782, 60]
    assert found["reported_spread"][2] == 110 and found["note"].tolist() == ["", "", "", "success rate"]


def test_a_figure_is_drawn_of_whatever_there_is(tiny):
    references = pd.DataFrame({"return": [5.0, 900.0], "success": [0.0, 1.0], "n": [10, 10]},
                              index=pd.MultiIndex.from_tuples([("reach", "random"), ("reach", "expert")]))
    for run in runs("reach", "sparse")[:2] + runs("reach", "fb_zero_shot")[:1]:
        record(run, [50.0] if run.agent == "zero_shot" else [1.0, 2.0, 3.0 + run.seed])
    fig = evidence.learning_figure("tiny", "easy", references)
    reach, drawer = fig.axes[:2]
    curve = next(line for line in reach.lines if len(line.get_xdata()) == 3 and line.get_gid() != "seed")
    assert sum(line.get_gid() == "seed" for line in reach.lines) == 2
    assert curve.get_xdata().tolist() == [256, 512, 768] and curve.get_ydata().tolist() == [1, 2, 3.5]
    levels = [line.get_ydata()[0] for line in reach.lines if len(line.get_xdata()) == 2]
    assert levels == [50, 900, 5]
    assert [text.get_text() for text in drawer.texts] == ["no run on record"]
    assert [text.get_text() for text in reach.texts] == [
        "no run yet: GenReward (every step, buffer\ntargets), without the video-level reward"]
    assert [text.get_text() for text in fig.legends[0].get_texts()][:2] == [
        "Sparse reward (n=2)", "FB policy, zero-shot (n=1)"]
    found = evidence.with_references(evidence.summary("tiny", "easy"), references)
    fig = evidence.interval_figure(found, "dense return")
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert labels[:3] == ["reach: Random actions (n=10)", "reach: Scripted expert (n=10)", "reach: Sparse reward (n=2)"]
    assert sum(text.get_text() == "no run on record" for text in fig.axes[0].texts) == int((found["n"] == 0).sum())


def test_over_all_tasks_only_what_was_run_on_all_and_on_each_tasks_own_scale(tiny):
    scale = {"reach": (10.0, 110.0), "drawer-close": (-5.0, 5.0)}
    references = pd.DataFrame([{"task": task, "policy": policy, "return": value, "success": 0.0, "n": 10}
                               for task, pair in scale.items()
                               for policy, value in zip(("random", "expert"), pair, strict=True)]
                              ).set_index(["task", "policy"])
    empty = evidence.over_tasks("tiny", "easy", references)
    assert empty.empty
    words = [text.get_text() for axis in evidence.over_tasks_figure("tiny", "easy", empty).axes for text in axis.texts]
    assert words == ["no curve on every task"] * 2
    shares = {"reach": [0.0, 0.1, 0.5], "drawer-close": [-0.2, 0.3, 1.2]}
    for task, (low, high) in scale.items():
        for run, share in zip(runs(task, "sparse"), shares[task], strict=True):
            record(run, [low, low + 0.1 * (high - low), low + share * (high - low)])
    for method in ("genreward_sound", "fb_zero_shot"):  # the one on one task only, the other learns nothing
        for run in runs("reach", method) + (runs("drawer-close", method) if method == "fb_zero_shot" else []):
            record(run, [50.0] if run.agent == "zero_shot" else [1.0, 2.0, 3.0])
    found = evidence.over_tasks("tiny", "easy", references)
    assert set(found["method"]) == {"Sparse reward"} and found["run"].nunique() == 6
    ends = results.scores(found, "normalised_return")["Sparse reward"]
    assert {task: sorted(values) for task, values in ends.items()} == pytest.approx(
        {task: pytest.approx(sorted(values)) for task, values in shares.items()})
    fig = evidence.over_tasks_figure("tiny", "easy", found)
    left, right = fig.axes
    assert left.lines[0].get_xdata().tolist() == [256, 512, 768]
    # the middle four of -0.2, 0, 0.1, 0.3, 0.5, 1.2: one run is cut from either end
    assert left.lines[0].get_ydata().tolist() == pytest.approx([0.0, 0.1, 0.225])
    above = dict(zip(np.round(right.lines[0].get_xdata(), 2), right.lines[0].get_ydata(), strict=True))
    assert [above[tau] for tau in (-0.23, 0.05, 0.2, 0.4, 1.0, 1.23)] == pytest.approx([1, 4/6, 3/6, 2/6, 1/6, 0])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "Sparse reward (n=6)", "Scripted expert", "Random actions"]


def test_a_variant_is_a_curve_of_its_own(tiny, monkeypatch):
    changes = ((), (("reward.sound_alpha", 0.0),), (("goal", "random_frame"),), (("goal", "frame_0"),))
    trial = replace(TRIAL, tasks=("reach",), arms=tuple(Arm("genreward_sound", change) for change in changes))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    ends = {"": 20.0, "+sound_alpha-0.0": 90.0, "+goal-random_frame": 50.0, "+goal-frame_0": 70.0}
    for run in trial.runs("tiny"):
        record(run, [1.0, 2.0, ends[run.variant] + run.seed])
    fig = evidence.learning_figure("tiny", "easy", pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []])))
    drawn = {(line.get_linestyle(), line.get_marker()): line.get_ydata()[-1] for line in fig.axes[0].lines
             if line.get_gid() != "seed" and line.get_linestyle() != "None"}  # without those of the whiskers
    assert drawn == {("-", "o"): 21.0, (":", "s"): 91.0, ("--", "^"): 51.0, ("--", "D"): 71.0}
    assert len(set(map(str, evidence.LINES))) == len(set(evidence.MARKERS)) == len(drawn)
    told = fig.legends[0]
    assert [text.get_text() for text in told.get_texts()][:4] == [
        "GenReward (every step, buffer targets) (n=3)", "without the video-level reward (n=3)",
        "goal frame at random (n=3)", "goal frame 0 (n=3)"]
    assert [(line.get_linestyle(), line.get_marker()) for line in told.get_lines()][:4] == list(drawn)


def test_each_frame_of_a_goal_video_stands_with_its_score_under_its_picture(tiny, monkeypatch):
    trial = Experiment("every_frame", "", "", ("reach",), tuple(
        Arm("fb_zero_shot", (("goal", f"frame_{index}"),)) for index in range(3)))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"every_frame": trial})
    video = np.stack([np.full((8, 8, 3), 100 * index, np.uint8) for index in range(3)])
    Goal("reach it", (), video, np.array([0.1, 0.7, 0.4]), 1).save(profiles.paths("tiny").goals / "reach")
    ends = {"frame_0": [1.0, 2.0, 3.0], "frame_2": [70.0, 80.0, 90.0]}  # the chosen one is not there yet
    for run in trial.runs("tiny"):
        if run.goal_source in ends:
            record(run, [ends[run.goal_source][run.seed]])
    found = evidence.frame_by_frame("tiny").set_index("frame")
    assert found["score"].tolist() == pytest.approx([0.1, 0.7, 0.4])
    assert found["chosen"].tolist() == [False, True, False] and evidence.frame_choice(found.reset_index()).empty
    assert found["n"].tolist() == [3, 0, 3] and found["value"].dropna().tolist() == [2, 80]
    assert found["curve"].tolist() == ["goal frame 0", "goal frame 1", "goal frame 2"]
    references = pd.DataFrame({"return": [0.5]}, index=pd.MultiIndex.from_tuples([("reach", "random")]))
    strip, scores, returns = evidence.frames_figure("tiny", references).axes
    assert [image.get_array()[0, 0, 0] for image in strip.images] == [0, 100, 200]
    assert [patch.get_x() > 0.5 for patch in strip.patches] == [True] and strip.patches[0].get_x() < 1
    assert [bar.get_height() for bar in scores.patches] == pytest.approx([0.1, 0.7, 0.4])
    claim = "Table C, every frame"
    assert finding(claim)[:2] == (claims.OPEN, "make results PROFILE=tiny ONLY=every_frame")  # one missing
    points = {line.get_xdata()[0]: line.get_ydata()[0] for line in returns.lines if line.get_marker() == "o"}
    whiskers = {line.get_xdata()[0]: tuple(line.get_ydata()) for line in returns.lines
                if line.get_marker() != "o" and line.get_xdata()[0] == line.get_xdata()[1]}
    assert points == {0: 2, 2: 80} and set(whiskers) == {0, 2}
    wanted = stats.t.interval(0.95, 2, loc=80, scale=stats.sem(ends["frame_2"]))
    assert whiskers[2] == pytest.approx(wanted)
    for run in trial.runs("tiny"):
        if run.goal_source == "frame_1":
            record(run, [60.0])
    assert finding(claim)[:3] == (
        claims.NOT, "reach: tau +0.33 (p=1.00, n=3 frames), the chosen frame is number 2 by return", True)
    Goal("reach it", (), np.repeat(video, 2, axis=0), np.arange(6) / 6, 5).save(profiles.paths("tiny").goals / "reach")
    told = finding(claim)  # the frame that CLIP chooses was not tried: nothing is shown of its choice
    assert told[:2] == (claims.OPEN, "elsewhere the frame that CLIP chooses is not among those tried "
                                     "(`every_frame` in genreward/experiments.py)") and not told.part


def test_how_well_clip_chooses_is_counted_frame_by_frame():
    found = pd.DataFrame({"task": "reach", "frame": range(5), "n": [3, 3, 3, 3, 0], "score": [0.1, 0.2, 0.3, 0.9, 0.0],
                          "chosen": [False, False, False, True, False], "value": [10.0, 40.0, 20.0, 30.0, np.nan]})
    line = evidence.frame_choice(found).iloc[0]
    # of six pairs of measured frames, four are ordered alike; each of the 24 orders of four is as likely by chance
    assert line["tau"] == pytest.approx((4 - 2) / 6) and line["frames"] == 4
    orders = [sum(np.sign(b - a) for a, b in combinations(order, 2)) for order in permutations(range(4))]
    assert line["p"] == pytest.approx(np.mean(np.abs(orders) >= 2))
    assert (line["chosen"], line["rank"], line["best"], line["best_value"]) == (3, 2, 1, 40)


@pytest.mark.parametrize("more", [(), ("dense", "roboclip")])
def test_few_curves_have_bands_and_many_have_whiskers_of_the_same_interval(tiny, monkeypatch, more):
    trial = replace(TRIAL, tasks=("reach",), arms=tuple(Arm(name) for name in ("sparse", "genreward_sound", *more)))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    ends = {"sparse": [3.0, 4.0, 8.0], "genreward_sound": [20.0, 21.0, 25.0]}
    for run in trial.runs("tiny"):
        if run.method in ends:
            record(run, [1.0, 2.0, ends[run.method][run.seed]])
    axis = evidence.learning_figure("tiny", "easy", pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []]))).axes[0]
    for method, values in ends.items():
        wanted = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        tone = to_rgba(figures.colour(method))
        drawn = [one for one in axis.collections if to_rgba(one.get_facecolor()[0], 1) == tone] if not more else [
            one for one in axis.collections if to_rgba(one.get_color()[0], 1) == tone]
        assert len(drawn) == 1
        points = np.concatenate([path.vertices for path in drawn[0].get_paths()])
        here = points[points[:, 0] >= 768]  # a whisker stands beside the curve's last point, a band ends there
        assert (here[:, 1].min(), here[:, 1].max()) == pytest.approx(wanted)
        assert (here[:, 0] > 768).all() == bool(more) and here[:, 0].max() < axis.get_xlim()[1]


def test_whiskers_are_of_one_step_and_a_curve_that_goes_on_has_another_at_its_end(tiny, monkeypatch):
    arms = tuple(Arm(name) for name in ("sparse", "genreward_sound", "dense", "roboclip"))
    trial = Experiment("easy", "", "", ("reach",), arms)
    longer = replace(trial, name="longer", arms=arms[:1], times=2)
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial, "longer": longer})
    at_half, at_end = [3.0, 4.0, 8.0], [20.0, 21.0, 25.0]
    for run in longer.runs("tiny"):
        record(run, [1.0, 2.0, at_half[run.seed], 9.0, 9.0, at_end[run.seed]])
    for run in trial.runs("tiny"):
        if run.method == "dense":
            record(run, [1.0, 2.0, at_end[run.seed] - 9])
    nothing = pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []]))
    axis = evidence.learning_figure("tiny", ["easy", "longer"], nothing).axes[0]

    def whiskers(method):
        lines = [one for one in axis.collections if to_rgba(one.get_color()[0], 1) == to_rgba(figures.colour(method))]
        points = [line.get_paths()[0].vertices for line in lines]
        return {at[0, 0] <= 1536: (at[:, 1].min(), at[:, 1].max()) for at in points}

    def interval(values):
        return pytest.approx(stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values)))

    assert whiskers("sparse") == {False: interval(at_half), True: interval(at_end)}
    assert whiskers("dense") == {False: interval(np.array(at_end) - 9)}
    assert "at 0.768k" in [text.get_text() for text in axis.texts]


def test_a_film_stands_behind_the_goal_frame_that_its_agent_was_paid_toward(tiny, monkeypatch):
    trial = Experiment("easy", "", "", ("reach",), (Arm("sparse"), Arm("genreward_sound"), *(
        Arm("genreward_sound", (("goal", name),)) for name in ("camera", "recoloured"))))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    own, other, film = (np.full((frames, 64, 64, 3), tone, np.uint8) for frames, tone in ((3, 10), (3, 200), (8, 90)))
    own[1], other[2] = 20, 210
    Goal("x", (), own, np.array([0, 1, 0.0]), 1).save(profiles.paths("tiny").goals / "reach")
    Goal("x", (), other, np.array([0, 0, 1.0]), 2).save(variants.folder("tiny", "camera", "reach"))
    folder = behaviour.folder("tiny")
    folder.mkdir(parents=True)
    for run in trial.runs("tiny"):
        record(run, [0.0, 0.0, 1.0])
        if "recoloured" not in run.variant:
            np.savez(folder / f"{run.run_id}.npz", frames=film + run.seed)
    strips = evidence.goal_films("tiny", "easy")
    first = {curve: int(strip[0].mean()) for curve, strip in strips.items()}
    assert first == {"Sparse reward": 255, figures.label("genreward_sound"): 20, "imagined, other camera": 210}
    assert all(strip.shape == (9, 64, 64, 3) and (strip[1:] == 90).all() for strip in strips.values())


# --- the honesty table ------------------------------------------------------------------------------------------------


def finding(item="Fig. 5, easy tasks"):
    return next(claim for claim in claims.CLAIMS if claim.item == item).find(profiles.get_profile("tiny"))


def fill(task, method, values):
    for run, value in zip(runs(task, method), values, strict=True):
        record(run, [0.0, 0.0, value])


def test_a_claim_is_reproduced_only_where_every_task_shows_it(tiny):
    assert finding()[:2] == (claims.OPEN, "make results PROFILE=tiny ONLY=easy")
    fill("reach", "sparse", [1.0, 1.1, 0.9])
    fill("reach", "genreward_sound", [9.0, 9.1, 8.9])
    found = finding()
    assert found.verdict == claims.OPEN and found.numbers.startswith("1 of 2 tasks so far; GenReward")
    fill("drawer-close", "sparse", [1.0, 1.1, 0.9])
    fill("drawer-close", "genreward_sound", [9.0, 9.1, 8.9])
    assert finding().verdict == claims.REPRODUCED and "+8 [" in finding().numbers
    assert not finding().undecided
    fill("drawer-close", "genreward_sound", [1.0, 1.2, 0.9])  # no different from the control
    assert finding().verdict == claims.NOT and finding().undecided  # not shown, and nothing speaks against it
    told = claims.markdown(claims.findings("tiny"))
    assert "Of those not reproduced 1 are *undecided*" in told and "**not reproduced**, undecided | GenReward" in told
    fill("drawer-close", "genreward_sound", [0.1, 0.2, 0.15])
    assert finding().verdict == claims.NOT and not finding().undecided


def test_a_damaged_record_is_told_of_and_not_taken_for_one_that_is_not_there(tiny):
    fill("reach", "sparse", [1.0, 1.1, 0.9])
    fill("reach", "genreward_sound", [9.0, 9.1, 8.9])
    assert set(claims.findings("tiny")["verdict"]) == {claims.OPEN, claims.UNTESTABLE}
    kept = profiles.paths("tiny").runs / f"{runs('reach', 'sparse')[0].run_id}.csv"
    whole = kept.read_text()
    for damaged in (whole[:-3], whole.replace("1.0", "7.0"), "\n"):
        kept.write_text(damaged)
        with pytest.raises(InputError, match=f"{kept.stem}.csv"):
            claims.findings("tiny")
    kept.write_text(whole)
    page = kept.with_name("page.png")
    page.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match="page.png is not a file of text"):
        claims.write("tiny", page)
    assert page.read_bytes() == b"\x89PNG\r\n"


def test_who_learns_nothing_has_not_learned_more(tiny, monkeypatch):
    """Agents that end clearly above others, and no higher than random actions."""
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": replace(TRIAL, tasks=("reach",))})
    fill("reach", "sparse", [1.0, 1.1, 0.9])
    fill("reach", "genreward_sound", [9.0, 9.1, 8.9])
    assert finding().verdict == claims.REPRODUCED
    values = [7.0, 9.0, 11.0, 9.0]
    random_actions("reach", values)
    found = evidence.beyond_random("tiny", "easy").set_index("curve").loc[figures.label("genreward_sound")]
    wanted = stats.ttest_ind([9.0, 9.1, 8.9], values, equal_var=False).confidence_interval(0.95)
    assert (found["value"], found["low"], found["high"], found["random"]) == pytest.approx((0.0, *wanted, 9.0))
    assert finding().verdict == claims.NOT and "(not shown above random actions: 0 [" in finding().numbers
    assert finding().undecided
    random_actions("reach", [19.0, 21.0, 20.0, 20.0])
    assert finding().verdict == claims.NOT and finding().undecided  # above the control, and below random actions
    assert "+8 [" in finding().numbers and "(below random actions: -11 [" in finding().numbers
    fill("reach", "genreward_sound", [1.0, 1.2, 0.9])  # nor is it the contrary where no difference is shown
    assert finding().verdict == claims.NOT and finding().undecided
    assert "(below random actions: -19 [" in finding().numbers
    fill("reach", "genreward_sound", [0.0, 0.1, 0.2])  # what is, is an end below the control
    assert finding().verdict == claims.NOT and not finding().undecided
    assert "(below random actions: -19.9 [" in finding().numbers
    fill("reach", "genreward_sound", [9.0, 9.1, 8.9])
    random_actions("reach", [1.0, 3.0, 2.0, 2.0])
    assert finding().verdict == claims.REPRODUCED and "random" not in finding().numbers


def test_a_claim_stays_open_while_there_are_no_random_actions_to_be_above(tiny):
    for task in TASKS:
        fill(task, "sparse", [1.0, 1.1, 0.9])
        fill(task, "genreward_sound", [9.0, 9.1, 8.9])
    assert finding().verdict == claims.REPRODUCED
    forget_random_actions("reach")
    found = finding()
    assert found.verdict == claims.OPEN and "reach +8 [" in found.numbers
    assert found.numbers.endswith("random actions are not on record of reach: python -m genreward.behaviour "
                                  "--profile tiny --only easy")
    fill("reach", "genreward_sound", [1.0, 1.1, 0.9])  # no reference could turn this
    assert finding().verdict == claims.NOT and "random" not in finding().numbers


def test_one_task_that_speaks_against_a_claim_is_enough_however_many_are_left(tiny):
    fill("reach", "sparse", [9.0, 9.1, 8.9])
    fill("reach", "genreward_sound", [1.0, 1.1, 0.9])
    assert finding().verdict == claims.NOT and "-8 [" in finding().numbers and not finding().undecided


def test_nothing_is_decided_against_a_claim_while_its_seeds_are_missing(tiny):
    fill("reach", "sparse", [9.0, 9.1, 8.9])
    for run, value in zip(runs("reach", "genreward_sound")[:2], [1.0, 1.1], strict=True):
        record(run, [0.0, 0.0, value])
    found = finding()
    assert found.verdict == claims.OPEN and "-7.95 [" in found.numbers and found.numbers.endswith("; seeds are missing")
    record(runs("reach", "genreward_sound")[2], [0.0, 0.0, 0.9])
    assert finding().verdict == claims.NOT and "missing" not in finding().numbers


def test_nor_for_it(tiny, monkeypatch):
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": replace(TRIAL, tasks=("reach",))})
    fill("reach", "sparse", [1.0, 1.1, 0.9])
    for run, value in zip(runs("reach", "genreward_sound")[:2], [9.0, 9.1], strict=True):
        record(run, [0.0, 0.0, value])
    assert finding().verdict == claims.OPEN and finding().numbers.endswith("; seeds are missing")
    record(runs("reach", "genreward_sound")[2], [0.0, 0.0, 8.9])
    assert finding().verdict == claims.REPRODUCED


def test_a_claim_about_distracted_tasks_is_asked_of_them_too(tiny, monkeypatch):
    seen = (("distraction", "all-easy-dynamic"),)
    mixed = Experiment("easy", "", "", ("reach",), (Arm("sparse"), Arm("genreward_sound"), Arm("sparse", seen),
                                                    Arm("genreward_sound", seen)))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": mixed})

    def fill_seen(method, values):
        for run, value in zip([run for run in mixed.runs("tiny") if run.method == method and run.variant], values,
                              strict=True):
            record(run, [0.0, 0.0, value])

    fill("reach", "sparse", [1.0, 1.1, 0.9])
    fill("reach", "genreward_sound", [9.0, 9.1, 8.9])
    assert finding().verdict == claims.OPEN and "distracted" not in finding().numbers  # the other half is not there yet
    fill_seen("sparse", [4.0, 4.1, 3.9])
    fill_seen("genreward_sound", [6.0, 6.1, 5.9])
    assert finding().verdict == claims.REPRODUCED
    assert "+8 [" in finding().numbers and "distracted (all-easy-dynamic) (n=3): reach +2 [" in finding().numbers
    fill_seen("genreward_sound", [4.0, 4.2, 3.9])
    assert finding().verdict == claims.NOT


def test_both_parts_are_needed_only_where_the_whole_beats_either_half(tiny, monkeypatch):
    halves = Experiment("fig9_easy", "", "", ("reach",), (Arm("sparse"), Arm("genreward_sound"), *(
        Arm("genreward_sound", ((f"reward.sound_{part}", 0.0),)) for part in ("alpha", "beta"))))
    declared = experiments.experiments
    monkeypatch.setattr(experiments, "experiments", lambda profile: declared(profile) | {"fig9_easy": halves})

    def fill_half(variant, values):
        for run, value in zip([run for run in halves.runs("tiny") if (run.method, run.variant) == (
                "genreward_sound", variant)], values, strict=True):
            record(run, [0.0, 0.0, value])

    fill_half("", [9.0, 9.1, 8.9])
    fill_half("+sound_alpha-0.0", [1.0, 1.1, 0.9])
    one = finding("Fig. 9, easy task")  # nothing speaks against it, but one half is still to be made
    assert one.verdict == claims.OPEN and "+8 [" in one.numbers and "against without the video-level" in one.numbers
    fill_half("+sound_beta-0.0", [2.0, 2.1, 1.9])
    both = finding("Fig. 9, easy task")
    assert both.verdict == claims.REPRODUCED and "+8 [" in both.numbers and "+7 [" in both.numbers
    fill_half("+sound_beta-0.0", [9.0, 9.2, 8.8])
    assert finding("Fig. 9, easy task").verdict == claims.NOT


def test_a_sweep_has_each_weight_with_the_unchanged_runs_among_both(tiny, monkeypatch):
    """Three values of each weight, two seeds; the unchanged method's is 1, one run is not finished, one value is not
    there, and a run with another goal is of neither sweep."""
    swept = Experiment("fig9_easy", "", "", ("reach",), (
        Arm("sparse"), Arm("genreward_sound"), Arm("genreward_sound", (("goal", "expert_video"),)),
        *(Arm("genreward_sound", ((f"reward.sound_{part}", at),)) for part in ("alpha", "beta") for at in (0.0, 3.0))),
        seeds=2)
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"fig9_easy": swept})
    ends = {"": [10.0, 20.0], "+sound_alpha-0.0": [1.0, 4.0], "+sound_alpha-3.0": [7.0], "+sound_beta-0.0": [2.0, 3.0],
            "+goal-expert_video": [500.0, 500.0]}
    for run in swept.runs("tiny"):
        if run.method == "genreward_sound" and run.seed < len(ends.get(run.variant, ())):
            record(run, [0.0, 0.0, ends[run.variant][run.seed]])
    found = evidence.sweep("tiny", "fig9_easy")
    table = {(weight, at): tuple(of.sort_values("seed")["return"]) for (weight, at), of in
             found.groupby(["weight", "at"])}
    nan = pytest.approx(np.nan, nan_ok=True)
    assert table == {("alpha", 0.0): (1, 4), ("alpha", 1.0): (10, 20), ("alpha", 3.0): (7, nan),
                     ("beta", 0.0): (2, 3), ("beta", 1.0): (10, 20), ("beta", 3.0): (nan, nan)}
    assert set(found.loc[found["own"], "at"]) == {1.0} and found["own"].sum() == 4
    alpha, beta = evidence.sweep_figure(found, {"sparse reward alone": 5.0}).axes
    assert [label.get_text() for label in alpha.get_xticklabels()] == ["0\nn=2", "1\nn=2", "3\nn=1"]
    assert [label.get_text() for label in beta.get_xticklabels()] == ["0\nn=2", "1\nn=2", "3\nn=0"]
    assert [text.get_text() for text in beta.texts] == ["no run on record"] and not alpha.texts
    dots = [line for line in alpha.lines if line.get_gid() == "seed"]
    assert [sorted(line.get_ydata()) for line in dots] == [[1, 4], [10, 20], [7]]
    half = stats.t.ppf(0.975, 1) * np.std([1, 4], ddof=1) / np.sqrt(2)
    interval = next(line for line in alpha.lines if list(line.get_xdata()) == [0, 0])
    assert tuple(interval.get_ydata()) == pytest.approx((2.5 - half, 2.5 + half))


def test_a_trend_is_kendalls_over_all_runs_and_its_p_that_of_chance():
    """Two runs at each of five weights: alpha's returns rise with it, beta's are set against it and back by turns."""
    at = np.repeat([0.0, 0.1, 1.0, 3.0, 10.0], 2)
    tables = [pd.DataFrame({"task": "reach", "weight": name, "at": at, "return": returns}) for name, returns in (
        ("alpha", np.arange(10.0)), ("beta", np.array([1.0, 2, 9, 10, 3, 4, 7, 8, 5, 6])))]
    found = evidence.trend(pd.concat(tables), draws=999).set_index("weight")
    # of 45 pairs 5 are tied in weight, so tau is 40 / sqrt(40 * 45)
    assert found.loc["alpha", "tau"] == pytest.approx(40 / np.sqrt(40 * 45)) and found.loc["alpha", "p"] <= 0.002
    assert found.loc["beta", "tau"] == pytest.approx(8 / np.sqrt(40 * 45)) and found.loc["beta", "p"] > 0.3
    assert found[["runs", "values"]].to_numpy().tolist() == [[10, 5], [10, 5]]
    assert evidence.trend(tables[0].assign(**{"return": [np.nan, *range(9)]})).empty  # nine runs are too few
    assert evidence.trend(tables[0].assign(at=at > 1)).empty


def test_what_was_told_of_a_goal_stands_beside_what_became_of_it(tiny, monkeypatch):
    """Four goals whose scores follow progress the less the further down they stand; the last is the third's frame."""
    arms = (Arm("sparse"), Arm("genreward_sound"), *(Arm(method, (("goal", source),)) for source in (
        "camera", "frame_3", "random_frame") for method in ("genreward_sound", "fb_zero_shot")), Arm("fb_zero_shot"))
    grid = Experiment("fig10_easy", "", "", ("reach",), arms, seeds=2)
    empty = {name: Experiment(name, "", "") for name in evidence.TOWARD_GOALS}
    monkeypatch.setattr(experiments, "experiments", lambda profile: empty | {"fig10_easy": grid})
    far = np.tile(np.linspace(0, 1, 6), 2)
    orders = {"own": far, "camera": far * np.tile([1, 1, 1, 1, 1, -1], 2), "frame_3": -far, "random_frame": -far}
    monkeypatch.setattr(forecast, "load", lambda profile, task: pd.concat([pd.DataFrame({
        "goal": goal, "kind": np.repeat(["expert", "random"], 6), "episode": 0, "step": np.tile(np.arange(6), 2),
        "progress": far, "done": far >= 1, "score": score,
        "pay": score + np.repeat([0, 100], 6)}) for goal, score in orders.items()]))
    ends = {"": (50.0, 70.0), "+goal-camera": (40.0,), "+goal-frame_3": (10.0, 20.0),
            "+goal-random_frame": (90.0, 90.0)}
    for run in grid.runs("tiny"):
        if run.method == "genreward_sound" and run.seed < len(ends[run.variant]):
            record(run, [0.0, 0.0, ends[run.variant][run.seed]])
        elif run.agent == "zero_shot":
            record(run, [30.0 + run.seed if run.variant else 5.0])
    (paid,) = [run for run in grid.runs("tiny") if run.run_id.endswith("genreward_sound+goal-camera-s0")]
    results.write_run(behaviour.folder("tiny"), paid.run_id, [
        {"experiment": "behaviour", "method": paid.label, "task": "reach", "seed": 0, "step": 768,
         "metric": "paid_frame", "value": 2.0 * tiny.episode_steps}], {})
    found = evidence.foreseen("tiny", "reach").set_index("source")
    assert found["goal"].tolist() == ["as always", "imagined, other camera", "frame 3", "goal frame at random"]
    assert found["repeated"].tolist() == [False, False, False, True]
    assert found["value"].tolist() == [60, 40, 15, 90] and found["n"].tolist() == [2, 1, 2, 2]
    assert found["pi_z"].tolist() == [5, 30.5, 30.5, 30.5] and found["pi_z_n"].tolist() == [2] * 4
    assert found["progress"]["own"] == pytest.approx(1) and found["progress"]["frame_3"] == pytest.approx(-1)
    assert found["expert_pay"]["own"] == pytest.approx(0.5) and found["agents_pay"]["camera"] == 2.0
    assert found["agents_pay"].isna().sum() == 3  # no behaviour on record
    told = evidence.foretold(found.reset_index()).set_index(["told", "outcome"])
    line = told.loc[("progress", "return of agents paid toward it")]
    assert line["tau"] == 1 and line["goals"] == 3  # the frame at random is frame 3 again
    assert evidence.foretold(found.reset_index().iloc[:2]).empty
    paid, sent = evidence.foreseen_figure(found.reset_index()).axes
    assert set(paid.get_legend_handles_labels()[1]) == {
        "as always (n=2)", "imagined, other camera (n=1)", "frame 3 (n=2)", "goal frame at random (n=2)"}
    assert [text.get_text() for text in sent.texts] == ["3", "other camera", "as always"]  # from left to right
    assert [text.xy[0] for text in sent.texts] == sorted(text.xy[0] for text in sent.texts)
    assert [text.get_rotation() for text in sent.texts] == [55, 305, 55]  # neighbours write on different sides


def test_what_agents_learned_stands_between_random_actions_and_the_expert(tiny, monkeypatch):
    assert "ONLY=easy" in claims.learned("tiny")
    fill("reach", "sparse", [1.0, 1.0, 1000.0])
    references = pd.DataFrame({"return": [5.0, 900.0], "success": [0.0, 1.0], "n": [20, 20]},
                              index=pd.MultiIndex.from_tuples([("reach", "random"), ("reach", "expert")]))
    monkeypatch.setattr(evidence, "reference_table", lambda profile, tasks: references)
    half = stats.t.ppf(0.975, 2) * 999 / 3  # s = 999 / sqrt 3, over sqrt 3 seeds
    assert claims.learned("tiny").splitlines() == [
        "| paid, or acting | reach |", "| --- | --- |", "| Random actions | 5 (n=20), 0% |",
        "| Scripted expert | 900 (n=20), 100% |",
        f"| Sparse reward | 334 [{334 - half:,.0f}, {334 + half:,.0f}] (n=3), 33% |"]
    first, again = (experiments.experiments("tiny")[name].runs("tiny")[0] for name in ("fig9_easy", "again"))
    assert (first.method, again.method, first.seed, again.seed) == ("sparse", "sparse", 0, 3)
    record(again, [1.0, 2.0, 7.0])
    assert claims.learned("tiny").splitlines()[-3:] == [
        "| drawer-close, paid | fresh seeds |", "| --- | --- |", "| Sparse reward | 7 (n=1), 0% |"]
    record(first, [1.0, 2.0, 400.0])
    assert claims.learned("tiny").splitlines()[-3:] == [
        "| drawer-close, paid | the grid's seeds | fresh seeds |", "| --- | --- | --- |",
        "| Sparse reward | 400 (n=1), 100% | 7 (n=1), 0% |"]
    record(again, [1.0, 2.0, 7.0, 8.0, 9.0, 300.0])  # gone on: its first length is read as before
    assert claims.learned("tiny").splitlines()[-3:] == [
        "| drawer-close, paid | the grid's seeds | fresh seeds | fresh seeds, twice the steps |",
        "| --- | --- | --- | --- |", "| Sparse reward | 400 (n=1), 100% | 7 (n=1), 0% | 300 (n=1), 100% |"]


def test_the_papers_tasks_have_a_table_of_their_own_with_a_dash_where_nothing_was_run(tiny, monkeypatch):
    assert "ONLY=fig5" in claims.on_papers_tasks("tiny")
    pick = {(run.task, run.method): run for run in experiments.experiments("tiny")["fig5"].runs("tiny") if not run.seed}
    for task, method, value in (("pick-place", "dense", 3.0), ("bin-picking", "dense", 4.0),
                                ("bin-picking", "genreward_dense", 200.0)):
        record(pick[task, method], [0.0, 0.0, value])
    monkeypatch.setattr(evidence, "reference_table", lambda profile, tasks: pd.DataFrame(
        {"return": 5.0, "success": 0.0, "n": 20}, index=pd.MultiIndex.from_product([tasks, ["random"]])))
    assert claims.on_papers_tasks("tiny").splitlines() == [
        "| paid, or acting | pick-place | bin-picking |", "| --- | --- | --- |",
        "| Random actions | 5 (n=20), 0% | 5 (n=20), 0% |", "| Dense reward | 3 (n=1), 0% | 4 (n=1), 0% |",
        "| GenReward (as printed) | - | 200 (n=1), 100% |"]


def test_a_study_must_show_it_on_every_task_not_on_their_mean(tiny, monkeypatch):
    rows = [("genreward_video", task, "auroc_failure", value, value - 0.1, value + 0.1, 30)
            for task, value in (("reach", 0.9), ("push", 0.55), ("all", 0.75))]
    rows.append(("pixel_cosine_first", "all", "auroc_failure", 0.5, 0.4, 0.6, 30))
    table = pd.DataFrame(rows, columns=["model", "task", "metric", "value", "low", "high", "n"])
    monkeypatch.setattr(claims.reward_study, "recorded_quality", lambda profile: table)
    found = finding("Eq. 5")
    assert found.verdict == claims.NOT and "0.75" in found.numbers and "above 0.5 on 1 of 2 tasks" in found.numbers
    assert found.undecided
    table.loc[1, "high"] = 0.49  # below the coin on one task, whatever the mean says
    assert finding("Eq. 5").verdict == claims.NOT and not finding("Eq. 5").undecided
    table.loc[1, "high"] = 0.65
    assert "bare pixels" in found.numbers and "0.50" in found.numbers
    table.loc[1, "low"] = 0.51
    assert finding("Eq. 5").verdict == claims.REPRODUCED


def test_who_wins_by_an_oddity_has_not_seen_the_function(tiny, monkeypatch):
    metrics = {"function": 0.9, "function:expert:missing": 0.8, "function:expert:displaced": 0.8}
    table = pd.DataFrame([("genreward_video", task, metric, value, value - 0.1, 1.0, 30) for task in ("reach", "all")
                          for metric, value in metrics.items()],
                         columns=["model", "task", "metric", "value", "low", "high", "n"])
    monkeypatch.setattr(claims.reward_study, "recorded_quality", lambda profile: table)
    claim = [claim for claim in claims.CLAIMS if claim.item == "Eq. 5"][2]
    assert claim.find(profiles.get_profile("tiny")).verdict == claims.REPRODUCED
    table.loc[table["metric"] == "function:expert:displaced", "low"] = 0.45
    assert claim.find(profiles.get_profile("tiny")).verdict == claims.NOT


@pytest.mark.parametrize(("shares", "undecided"), [((0.9, 0.5), True), ((0.9, 0.2), False)])
def test_videos_that_a_coin_could_have_ordered_contradict_nothing(tiny, monkeypatch, shares, undecided):
    """20 starts: half of them nearer is a coin, four of them (0.08 to 0.42 by Wilson) is not."""
    found = pd.DataFrame([{"task": task, "metric": metric, "n": 20, **{f"beats_{name}": share for name in
                           ("other", "random", "still")}} for task, share in zip(TASKS, shares, strict=True)
                          for metric in ("psnr", "ssim", "latent_cosine_centred")])
    monkeypatch.setattr(claims.study, "load_generation", lambda profile: found)
    monkeypatch.setattr(claims.study, "generation_summary", lambda table: table)
    told = finding("Fig. 4")
    assert told.verdict == claims.NOT and told.undecided == undecided
    assert "1 of 2 held-out tasks (reach)" in told.numbers


@pytest.mark.parametrize(("low", "high", "undecided"), [(0.1, 0.4, True), (0.05, 0.15, False)])
def test_a_choice_no_better_than_chance_contradicts_only_where_it_is_worse(tiny, monkeypatch, low, high, undecided):
    rows = [("real", "reach", "clip", 0.8, 0.7, 0.9), ("real", "push", "clip", (low + high) / 2, low, high),
            ("real", "all", "clip", 0.5, 0.4, 0.6)]
    rows += [("real", task, "random", 0.22, 0.2, 0.24) for task in ("reach", "push", "all")]
    hits = pd.DataFrame(rows, columns=["clips", "task", "rule", "value", "low", "high"]).assign(n=30)
    monkeypatch.setattr(claims.reward_study, "goal_frame_hits", lambda profile: hits)
    told = finding("Fig. 8, ours")
    assert told.verdict == claims.NOT and told.undecided == undecided and "above it on 1 of 2 tasks" in told.numbers


def test_every_claim_gets_one_of_the_four_verdicts_from_an_empty_project(tiny):
    found = claims.findings("tiny")
    assert len(found) == len(claims.CLAIMS) and set(found["verdict"]) == {claims.OPEN, claims.UNTESTABLE}
    assert sum(claims.counts(found).values()) == len(found)
    assert found.loc[found["verdict"] == claims.OPEN, "measured"].str.contains("make|python -m").all()


def test_the_table_is_put_between_the_markers_and_nowhere_else(tiny, tmp_path):
    page = tmp_path / "page.md"
    (begin, end), (first, last) = claims.LEARNED, claims.ON_PAPERS_TASKS
    page.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nbetween\n{begin}\nold\n{end}\nafter\n"
                    f"{first}\nold\n{last}\n")
    for _ in range(2):
        claims.write("tiny", page)
        table, learned = claims.markdown(claims.findings("tiny")), claims.learned("tiny")
        assert page.read_text() == (
            f"before\n{claims.BEGIN}\n{table}\n{claims.END}\nbetween\n{begin}\n{learned}\n{end}\nafter\n"
            f"{first}\n{claims.on_papers_tasks('tiny')}\n{last}\n")
    page.write_text("no markers")
    with pytest.raises(InputError, match="must hold"):
        claims.write("tiny", page)
    assert page.read_text() == "no markers"


# --- what agents do and are paid --------------------------------------------------------------------------------------


def test_a_term_that_is_progress_correlates_fully_and_shares_are_of_absolute_pay():
    states = np.zeros((6, 39), np.float32)
    states[:, 0] = np.linspace(1.0, 0.2, 6)  # the hand comes nearer to the goal at 0
    terms = pd.DataFrame({"env": [0, 0, 0, 0, 6.0], "near": [1.0, 2, 3, 4, 5], "far": [-1.0, -2, -3, -4, -5],
                          "flat": [1.0, 1, 1, 1, 1]})
    found = behaviour._measures("reach", [(states, terms, np.zeros(5, bool), 7.0)] * 2)
    assert found["correlation_near"] == 1 and found["correlation_far"] == -1
    assert "correlation_flat" not in found and "correlation_env" not in found  # paid evenly; paid once an episode
    assert found["share_near"] == found["share_far"] == pytest.approx(15 / 41)
    assert (found["paid_far"], found["payments_env"], found["return"]) == (-15, 2, 7)
    assert 0 < found["progress_end"] == found["progress_best"] < 1
    walker = behaviour._measures("walker-walk", [(states[:, :24], terms, np.zeros(5, bool), 7.0)])
    assert "progress_end" not in walker and "correlation_near" not in walker


def test_what_was_paid_is_a_mean_over_the_seeds_that_can_say_it(tiny):
    """Three seeds: one was paid nothing, one too evenly to follow anything; F and B's own policy thrice."""
    given = [{"share_env": 0.0, "share_frame": 0.0}, {"share_env": 0.4, "share_frame": 0.6, "correlation_frame": 0.2},
             {"share_env": 0.2, "share_frame": 0.8}]
    same = {"share_env": 1.0, "correlation_env": 0.5}
    for run, measured in [*zip(runs("reach", "genreward_sound"), given, strict=True),
                          *((run, same) for run in runs("reach", "fb_zero_shot"))]:
        record(run, [5.0] if run.agent == "zero_shot" else [1.0, 2.0, 3.0])
        step = 0 if run.agent == "zero_shot" else 768
        results.write_run(behaviour.folder("tiny"), run.run_id, [
            {"experiment": "tiny", "method": run.label, "task": run.task, "seed": run.seed, "step": step,
             "metric": metric, "value": value} for metric, value in measured.items()], {})
    found = evidence.paid("tiny", "easy").set_index(["curve", "term"])
    ours, alone = figures.label("genreward_sound"), evidence.ZERO_SHOT
    assert found.loc[(ours, "frame"), "share"] == pytest.approx(0.7)
    assert found.loc[(ours, "env"), "share"] == pytest.approx(0.3)
    assert found.loc[(ours, "frame"), ["n", "n_correlation", "correlation"]].tolist() == [3, 1, 0.2]
    assert found.loc[(ours, "env"), "n_correlation"] == 0 and np.isnan(found.loc[(ours, "env"), "correlation"])
    assert found.loc[(alone, "env"), ["n", "n_correlation"]].tolist() == [1, 1]
    assert np.isnan(found.loc[(alone, "env"), "low"])


@pytest.mark.parametrize(("expert", "above", "below"), [
    ((99.0, 101.0), ["expert"], ["random"]), ((9.0, 11.0), [], ["expert", "random"]), ((40.0, 60.0), [], ["random"])])
def test_whom_a_reward_is_shown_to_prefer(tiny, expert, above, below):
    """Its own agents are paid 49, 50 and 51 an episode, and 10 by the environment; the expert more, less, or nobody
    can tell."""
    above, below = (", ".join(map(figures.label, names)) for names in (above, below))
    for run, total in zip(runs("drawer-close", "genreward_sound"), (49.0, 50.0, 51.0), strict=True):
        record(run, [1.0, 2.0, 3.0])
        rows = {"return": 300.0, "success": 1.0, "progress_end": 0.9, "paid_env": 10.0,
                "paid_frame": total - 5, "paid_video": 5.0, "share_env": 0.2}
        results.write_run(behaviour.folder("tiny"), run.run_id, [
            {"experiment": "behaviour", "method": run.label, "task": run.task, "seed": run.seed, "step": 768,
             "metric": metric, "value": value} for metric, value in rows.items()], {})
    assert evidence.would_pay("tiny", ["easy"]).empty  # nobody was asked yet
    played = [(player, number, paid) for player, of in (("expert", expert), ("random", (-3.0, -1.0)))
              for number, paid in enumerate(of)]
    results.write_run(would_pay.folder("tiny"), would_pay.name(run), [
        {"experiment": "would_pay", "method": player, "task": run.task, "seed": number, "step": 0, "metric": metric,
         "value": value} for player, number, paid in played
        for metric, value in (("return", 7.0), ("success", 0.0), ("progress_end", 0.2), ("paid_env", 1.0),
                              ("paid_frame", paid))], {})
    found = evidence.would_pay("tiny", ["easy"]).set_index("player")
    assert list(found["value"]) == pytest.approx([sum(expert) / 2, -2, 50]) and list(found["n"]) == [2, 2, 3]
    assert found.loc[evidence.OWN, ["above", "below"]].tolist() == [above, below]
    assert (found.drop(evidence.OWN)[["above", "below"]] == "").all(axis=None)
    assert list(found["environment"]) == [1, 1, 10]
    assert list(found["return"]) == [7, 7, 300] and found.loc[evidence.OWN, "success"] == 1
    low, high = stats.t.interval(0.95, 2, loc=50, scale=stats.sem([49, 50, 51]))
    assert found.loc[evidence.OWN, ["low", "high"]].tolist() == pytest.approx([low, high])
    own = evidence.own_pay("tiny", ["easy"])
    assert own["paid"].tolist() == pytest.approx([49, 50, 51]) and own["seed"].tolist() == [0, 1, 2]
    (said,) = evidence.preferences(found.reset_index(), own)
    assert "its own agents 49 (100%), 50 (100%), 51 (100%)" in said
    assert said.endswith(f"less than they: {below}")
    assert (f"shown to be paid more than they: {above};" in said) == bool(above)
    panel = evidence.would_pay_figure(found.reset_index(), own).axes[0]
    places = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in panel.lines
              if not line.get_label().startswith("_")}
    assert places[evidence.OWN] == pytest.approx((0.9, 50)) and places[figures.label("random")] == (0.2, -2)


def test_a_reward_beside_either_reward_of_the_environment_is_asked_about_twice(tiny, monkeypatch):
    both = Experiment("easy", "", "", ("reach",), (Arm("genreward_sound"), Arm("genreward_sound_dense")), seeds=1)
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": both})
    paid = {"genreward_sound": 10.0, "genreward_sound_dense": 30.0}
    for run in both.runs("tiny"):
        record(run, [1.0, 2.0, 3.0])
        results.write_run(behaviour.folder("tiny"), run.run_id, [
            {"experiment": "behaviour", "method": run.label, "task": "reach", "seed": 0, "step": 768, "metric": metric,
             "value": value} for metric, value in (("return", 3.0), ("success", 0.0), ("progress_end", 0.5),
                                                   ("paid_env", 1.0), ("paid_frame", paid[run.method]))], {})
        results.write_run(would_pay.folder("tiny"), would_pay.name(run), [
            {"experiment": run.method, "method": "random", "task": "reach", "seed": 0, "step": 0, "metric": metric,
             "value": value} for metric, value in (("return", 7.0), ("success", 0.0), ("progress_end", 0.2),
                                                   ("paid_env", 1.0), ("paid_frame", paid[run.method] + 1))], {})
    found = evidence.would_pay("tiny", ["easy"]).set_index(["curve", "player"])["value"]
    usual, beside = figures.label("genreward_sound"), figures.label("genreward_sound") + ", beside the dense reward"
    random = figures.label("random")
    assert found.to_dict() == {(usual, random): 11, (usual, evidence.OWN): 10, (beside, random): 31,
                               (beside, evidence.OWN): 30}


def test_an_expert_far_above_all_curves_has_a_strip_of_its_own(tiny):
    for run in runs("reach", "sparse") + runs("drawer-close", "sparse"):
        record(run, [1.0, 2.0, 3.0 if run.task == "reach" else 300.0])
    references = pd.DataFrame({"return": [2000.0, 400.0, 1.5, 1.5]}, index=pd.MultiIndex.from_product(
        [("expert", "random"), TASKS]).swaplevel())
    reach, drawer = evidence.learning_figure("tiny", "easy", references).axes[:2]

    def height(axis, value):
        return axis.transAxes.inverted().transform(axis.transData.transform((0, value)))[1]

    assert height(reach, 2) - height(reach, 1) > 0.3
    assert height(reach, 3) - height(reach, 2) == pytest.approx(height(reach, 2) - height(reach, 1))
    assert height(reach, 3) < 0.85 < height(reach, 2000) < 1 and 2000 in reach.get_yticks()
    assert height(drawer, 400) - height(drawer, 300) == pytest.approx(height(drawer, 300) - height(drawer, 200))


def test_finished_runs_are_played_once_and_again_when_they_have_gone_on(tiny, monkeypatch):
    small = replace(tiny, episode_steps=32, sac=replace(tiny.sac, hidden=(8, 8), learning_starts=16, batch=8),
                    run=replace(tiny.run, evaluate_every=32))
    monkeypatch.setitem(profiles.PROFILES, "tiny", small)
    trial = replace(TRIAL, tasks=("reach",), arms=(Arm("dense"),), seeds=1)
    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=32))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    forget_random_actions("reach")
    (run,) = experiments.grid("tiny")
    assert behaviour.missing("tiny") == []  # nothing is finished
    training.train_agent(run, progress=False)
    behaviour.make("tiny", episodes=2)
    assert behaviour.missing("tiny") == []
    table = results.load(behaviour.folder("tiny")).set_index("metric")["value"]
    assert table["share_env"] == 1 and table["paid_env"] == pytest.approx(table["return"], rel=1e-5)
    assert behaviour.films("tiny")[run.run_id].shape == (8, 64, 64, 3)
    found = evidence.paid("tiny", "easy")
    assert found["term"].tolist() == ["env"] and found["n"].tolist() == [1]
    references = evidence.reference_table("tiny", ["reach"])
    assert references.loc[("reach", "expert"), "return"] > references.loc[("reach", "random"), "return"] > 0

    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=64))
    (longer,) = experiments.grid("tiny")
    training.train_agent(longer, progress=False)
    assert behaviour.missing("tiny") == [longer]
    twin = replace(trial, times=2)
    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=32))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial, "longer": twin})
    assert evidence.paid("tiny", "easy")["n"].tolist() == [1] and evidence.paid("tiny", "longer").empty
    behaviour.make("tiny", ["easy"], episodes=1)  # asked for by the shorter one, and played as far as it has come
    assert evidence.paid("tiny", "easy").empty and evidence.paid("tiny", "longer")["n"].tolist() == [1]
    (profiles.paths("tiny").checkpoints / f"{run.run_id}.pt").unlink()
    assert behaviour.missing("tiny") == []  # what is known of it stays, and nothing more can be
    with pytest.raises(InputError, match="no such checkpoint|checkpoint"):
        training.restore(longer)
    assert files.read_json(behaviour.folder("tiny") / f"{run.run_id}.json")["episodes"] == 1


def test_a_policy_is_restored_as_it_was_evaluated(tiny, monkeypatch):
    small = replace(tiny, episode_steps=32, sac=replace(tiny.sac, hidden=(8, 8), learning_starts=16, batch=8),
                    run=replace(tiny.run, evaluate_every=32, evaluation_episodes=2))
    monkeypatch.setitem(profiles.PROFILES, "tiny", small)
    run = Run("reach", "dense", "sac", 0, "tiny", "tiny", steps=64)
    table = results.read_run(training.train_agent(run, progress=False))
    last = table[(table["step"] == 64) & (table["metric"] == "return")]["value"].item()
    act, env = training.restore(run)
    env.close()
    again = training.evaluate(act, "reach", run.seed * 1000 + 2, 2, 32)
    assert again["return"] == last


def test_an_agent_is_held_against_its_own_kind(tiny):
    ends = {("sac", "sparse"): 1.0, ("dreamer", "sparse"): 100.0, ("sac", "genreward"): 3.0,
            ("dreamer", "genreward"): 105.0}
    for run in experiments.experiments("tiny")["base"].runs("tiny"):
        if (run.agent, run.method) in ends:
            record(run, [ends[run.agent, run.method] + run.seed] * 3)
    found = evidence.contrasts("tiny", "base")
    gains = {curve.rpartition(", ")[2]: (value, control) for curve, value, control in
             found.loc[found["method"] == "genreward", ["curve", "value", "control"]].itertuples(index=False)}
    assert gains == {"SAC": (2.0, "Sparse reward, SAC"), "DreamerV3": (5.0, "Sparse reward, DreamerV3")}


def test_all_comparisons_of_agents_that_learned_are_counted_together(tiny, monkeypatch):
    """Two tasks, of which one never varies; the policy that does not learn is no agent's seed."""
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": TRIAL})
    fill("reach", "sparse", [1.0, 2.0, 3.0])
    fill("reach", "genreward_sound", [7.0, 8.0, 9.5])
    for run in runs("reach", "genreward_sound", "+sound_alpha-0.0"):
        record(run, [0.0, 0.0, [5.0, 9.0, 7.0][run.seed]])
    for run in runs("reach", "fb_zero_shot"):
        record(run, [50.0 + run.seed])
    fill("drawer-close", "sparse", [0.0, 0.0, 0.0])
    fill("drawer-close", "genreward_sound", [0.0, 0.0, 0.0])
    found = evidence.helped("tiny", ["easy"]).set_index(["task", "curve"])
    full, half = figures.label("genreward_sound"), "without the video-level reward"
    p = [stats.ttest_ind(ours, [1, 2, 3], equal_var=False).pvalue for ours in ([7, 8, 9.5], [5, 9, 7])]
    assert p[0] < p[1]
    assert found.loc[("reach", full), "p_holm"] == pytest.approx(2 * p[0])
    assert found.loc[("reach", half), "p_holm"] == pytest.approx(max(2 * p[0], p[1]))
    assert found.loc[[("reach", evidence.ZERO_SHOT), ("drawer-close", full)], "p_holm"].isna().all()
    assert set(found["experiment"]) == {"easy"} and found.loc[("reach", full), "verdict"] == "better"


def test_curves_of_two_agents_are_told_apart(tiny):
    first = evidence.members("tiny", "base")
    assert set(first["agent"]) == {"sac", "dreamer"}
    assert {"Sparse reward, SAC", "Sparse reward, DreamerV3"} < set(first["curve"])
    assert not first.duplicated(["task", "curve", "seed"]).any()
    assert "Sparse reward" in set(evidence.members("tiny", "easy")["curve"])  # one learns, the other is evaluated


def test_labels_have_colours():
    assert all(evidence._plain(method) in figures.METHOD_COLOURS for method in training.METHODS
               if method not in ("video", "frame"))
