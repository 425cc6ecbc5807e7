"""The distractor study: controllers that do well, episodes that differ in looks only, metrics with known answers."""

import genreward  # noqa: F401  isort: skip
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from genreward import distractor_study, envs, files, results
from genreward.distractions import KINDS, SCALE
from genreward.distractor_study import OUTCOMES, DistractorConfig
from genreward.errors import InputError
from genreward.reward_metrics import ahead, auroc, quality_of, spearman

TINY = DistractorConfig(("pick-place",), ("reacher-easy",), 2, 2, 4, 2, ("hard",), (True,), seed=5)
rng = np.random.default_rng


# ---- the controllers


@pytest.mark.parametrize(("task", "least"), [("cartpole-swingup", 800), ("reacher-easy", 950)])
def test_a_controller_does_well_from_starts_that_it_was_not_chosen_by(task, least):
    env = envs.make_env(task, seed=31, size=16)
    returns = [envs.rollout(env, distractor_study.CONTROLLERS[task], frames=False).rewards.sum() for _ in range(3)]
    assert min(returns) > least and max(returns) <= 1000


def test_the_regulator_brings_the_pole_back_and_the_arm_knows_when_it_is_there():
    assert distractor_study.swing_up(np.array([0, 1, 0, 0, 0.0])) == pytest.approx(0)  # upright, at rest
    right, left = (distractor_study.swing_up(np.array([0, np.cos(a), np.sin(a), 0, 0])) for a in (0.1, -0.1))
    assert right[0] > 0 and right == pytest.approx(-left)  # the cart runs under the pole
    assert distractor_study.swing_up(np.array([0, -1, 0, 0, 0.0])) != 0  # hanging still: a push
    assert distractor_study.reach(np.zeros(6)) == pytest.approx([0, 0], abs=1e-3)
    state = np.array([0.4, 0.9, 0, 0, 0, 0])
    wanted = np.array([0.5, 0.8, 0, 0, 0, 0])
    state[2:4] = distractor_study._fingertip(wanted) - distractor_study._fingertip(state)
    assert distractor_study.reach(state) == pytest.approx([0.1, -0.1], abs=1e-5)


def test_progress_on_the_control_suite():
    assert distractor_study.control_progress("cartpole-swingup", np.zeros((3, 5)), np.array([1.0, 4.0])
                                             ).tolist() == [0, 0.25, 1]
    states = np.zeros((4, 6))
    states[:, 2] = [0.2, 0.1, 0.04, 0.3]  # the distance that is left
    far = distractor_study.control_progress("reacher-easy", states, np.array([0.0, 4.0, 0.0]))
    assert far == pytest.approx([0, 0.5, 1, 0])
    with pytest.raises(InputError, match="unknown task with a controller 'walker-walk'; valid: cartpole"):
        distractor_study.control_progress("walker-walk", states, np.zeros(3))
    with pytest.raises(InputError, match="one state more than rewards"):
        distractor_study.control_progress("reacher-easy", states, np.zeros(4))


# ---- episodes


@pytest.fixture(scope="module")
def reacher():
    env = envs.make_env("reacher-easy", seed=TINY.seed, size=32)
    yield env, distractor_study.stage(env, TINY)
    env.close()


def test_every_start_has_every_outcome_and_the_same_again(reacher):
    env, staged = reacher
    assert [one.trajectory.info["kind"] for one in staged] == [*OUTCOMES] * TINY.control_starts
    for one in staged:
        far, kind = one.trajectory.info["progress"], one.trajectory.info["kind"]
        assert len(one.trajectory) == TINY.steps and len(one.snapshots) == len(far) == TINY.steps + 1
        assert (far[-1] == 1) == one.trajectory.success[-1] == (kind == "expert")
    good, late, _ = staged[:3]
    assert np.allclose(good.trajectory.states[0], late.trajectory.states[0])  # from one start
    assert late.trajectory.info["progress"].max() > late.trajectory.info["progress"][-1]  # it was there and lost it
    again = distractor_study.stage(env, TINY)
    assert all(np.array_equal(a.trajectory.states, b.trajectory.states) for a, b in zip(staged, again, strict=True))


def test_conditions_change_the_pictures_and_nothing_else(reacher):
    env, staged = reacher
    every = distractor_study.conditions(DistractorConfig())
    assert list(every)[0] == "clean" and len(every) == 1 + len(KINDS) * len(SCALE) * 2
    shown = {name: distractor_study.drawn(env, staged, one)
             for name, one in distractor_study.conditions(TINY).items()}
    for name, episodes in shown.items():
        for one, plain in zip(episodes, shown["clean"], strict=True):
            assert np.array_equal(one.states, plain.states) and one.info == plain.info
            assert one.frames.shape == (TINY.steps + 1, 32, 32, 3)
            assert np.array_equal(one.frames, plain.frames) == (name == "clean")


def test_an_episode_of_metaworld_is_seen_evenly_and_to_its_end():
    env = envs.make_env("pick-place", seed=5, size=32)
    staged = distractor_study.stage(env, DistractorConfig(starts=1, steps=4))
    good, late, lost = (one.trajectory for one in staged)
    assert good.success[-1] and not late.succeeded and not lost.succeeded
    assert good.info["progress"][-1] == 1 > late.info["progress"][-1]
    env.close()


def test_what_cannot_be_is_refused(reacher):
    env, staged = reacher
    with pytest.raises(InputError, match="unknown kind of episode 'half'"):
        distractor_study.control_episode(env, "half", rng(0), 0)
    with pytest.raises(InputError, match="an episode of 4 steps cannot be seen at 9"):
        distractor_study.thinned(staged[0].trajectory, staged[0].snapshots, np.zeros(5), 9, "expert", 0)
    for call in (lambda: distractor_study.score_all("smoke", ["viper"]),
                 lambda: distractor_study.needs(None, "viper", "reacher-easy")):
        with pytest.raises(InputError, match="unknown model of the distractor study 'viper'; valid: genreward_video"):
            call()


# ---- metrics


def scores_of(noise, starts=6, seed=0):
    """Raw scores: progress and noise of that size; the last progress of an expert is 1, of the others less."""
    rows, draw = [], rng(seed)
    for task in ("pick-place", "reacher-easy"):
        for start in range(starts):
            for top, kind in zip((1.0, 0.6, 0.1), OUTCOMES, strict=True):
                far = np.linspace(0, top, 5)[1:]
                rows += [{"task": task, "kind": kind, "start": start, "step": step + 1, "progress": far[step],
                          "score": far[step] + noise * draw.normal()} for step in range(4)]
    return pd.DataFrame(rows)


def test_metrics_follow_from_the_raw_scores_and_a_fall_is_their_difference():
    raw = pd.concat([scores_of(0).assign(condition="clean"),
                     scores_of(1, seed=1).assign(condition="camera-hard-static")])
    found = distractor_study.metrics_of("mine", raw).set_index(["condition", "task", "metric"])
    under = raw[(raw["condition"] != "clean") & (raw["task"] == "pick-place")]
    last = under[under["step"] == 4]
    by_hand = auroc(*(last.loc[last["kind"] == kind, "score"] for kind in ("expert", "failure")))
    ranks = [spearman(one["score"], one["progress"]) for _, one in under.groupby(["start", "kind"])]
    assert found.loc[("clean", "pick-place", "auroc_failure"), "value"] == 1
    assert found.loc[("camera-hard-static", "pick-place", "auroc_failure"), "value"] == pytest.approx(by_hand)
    assert found.loc[("camera-hard-static", "pick-place", "spearman"), "value"] == pytest.approx(np.mean(ranks))
    for of in ("pick-place", "reacher-easy", "metaworld", "dm_control"):
        for metric in ("auroc_failure", "auroc_random", "spearman"):
            fall = found.loc[("camera-hard-static", of, f"fall_{metric}")]
            at = found["value"]
            assert fall["value"] == pytest.approx(at["clean", of, metric] - at["camera-hard-static", of, metric])
            assert fall["low"] <= fall["value"] <= fall["high"] and fall["n"] == 6
    assert found.loc[("clean", "metaworld", "spearman"), "value"] == pytest.approx(
        found.loc[("clean", "pick-place", "spearman"), "value"])


def test_a_falls_interval_is_paired():
    """Where every start falls by the same, its interval has no width, however wide the metrics' own are; and against
    a model that is perfect everywhere, it is the metric's own interval turned over."""
    def table(spearmans, final=(1.0, 0.0, 0.0)):
        return pd.DataFrame([{"task": "pick-place", "kind": kind, "start": start, "final": final[number],
                              "total": 0.0, "partial": np.nan, "progress": 1.0 - number / 2, "spearman": value}
                             for start, value in enumerate(spearmans) for number, kind in enumerate(OUTCOMES)])

    wide = np.array([0.9, 0.1, 0.5, 0.7, 0.2])
    fall = ahead("mine", table(wide), table(wide - 0.1), distractor_study.MEASURED).set_index(["task", "metric"])
    assert fall.loc[("all", "spearman"), ["value", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    own = quality_of("mine", table(wide)).set_index(["task", "metric"]).loc[("pick-place", "spearman")]
    fall = ahead("mine", table(np.ones(5)), table(wide), distractor_study.MEASURED).set_index(["task", "metric"])
    turned = fall.loc[("pick-place", "spearman")]
    assert 1 - own[["value", "high", "low"]].to_numpy(float) == pytest.approx(
        turned[["value", "low", "high"]].to_numpy(float))


def test_sentences_say_what_the_numbers_say():
    def row(condition, metric, value, low, high):
        kind, difficulty = (*condition.split("-"), "clean")[:2] if condition != "clean" else ("", "clean")
        return {"model": "mine", "condition": condition, "task": "metaworld", "metric": metric, "value": value,
                "low": low, "high": high, "n": 9, "kind": kind, "difficulty": difficulty, "dynamic": False}

    table = pd.DataFrame([row("clean", "auroc_failure", 0.9, 0.8, 1.0), row("clean", "spearman", 0.1, -0.2, 0.3),
                          row("camera-hard-static", "auroc_failure", 0.5, 0.3, 0.7),
                          row("colour-hard-static", "auroc_failure", 0.9, 0.8, 1.0),
                          row("camera-hard-static", "fall_auroc_failure", 0.4, 0.2, 0.6),
                          row("colour-hard-static", "fall_auroc_failure", 0.0, -0.1, 0.1)])
    first, second = distractor_study.findings(table, "metaworld")
    assert "falls under 1 of 2 hard distractions, most under camera-hard-static (by 0.40 [0.20, 0.60])" in first
    assert first.endswith("above the coin under 1 of 2.") and "nothing to lose" in second
    assert distractor_study.findings(table, "dm_control") == []


def test_an_order_the_wrong_way_round_is_called_so():
    def row(metric, value, low, high):
        return {"model": "it", "condition": "clean", "task": "dm_control", "metric": metric, "n": 12, "value": value,
                "low": low, "high": high, "kind": "", "difficulty": "clean", "dynamic": False}

    first, second = distractor_study.findings(pd.DataFrame([
        row("auroc_failure", 0.26, 0.11, 0.42), row("spearman", -0.3, -0.5, -0.1)]), "dm_control")
    assert first == "it, plain: 0.26 [0.11, 0.42] (n=12): ranks late failures above successes."
    assert second == "it, plain: -0.30 [-0.50, -0.10] (n=12): runs against progress."


# ---- on record


class Brightness:
    """A stand-in reward model: the mean brightness of every second frame."""

    interval, calls = 2, 0

    def score(self, trajectory):
        Brightness.calls += 1
        scores = trajectory.frames[1:].mean((1, 2, 3)).astype(np.float32)
        return np.where(np.arange(1, len(scores) + 1) % 2 == 0, scores, 0)


def test_the_record_resumes_and_follows_its_weights(root, monkeypatch):
    weights = root / "weights"
    weights.write_text("first")
    entry = SimpleNamespace(make=lambda parts, task: Brightness(), needs=lambda where, task: [(weights, "make them")])
    monkeypatch.setitem(distractor_study.MODELS, "brightness", ("dm_control",))
    monkeypatch.setitem(distractor_study.ENTRIES, "brightness", entry)
    monkeypatch.setitem(distractor_study._CONFIGS, "smoke", TINY)
    assert distractor_study.recorded("smoke").empty
    with pytest.raises(InputError, match="make them with: python -m genreward.distractor_study --profile smoke"):
        distractor_study.load_raw("smoke", "brightness")
    assert distractor_study.score_all("smoke", ["brightness"]) == {}
    conditions, episodes = 1 + len(KINDS), 3 * TINY.control_starts
    assert Brightness.calls == conditions * episodes
    table = distractor_study.recorded("smoke")
    assert set(table["task"]) == {"reacher-easy", "dm_control"} and set(table["difficulty"]) == {"clean", "hard"}
    raw = distractor_study.load_raw("smoke", "brightness")
    assert len(raw) == conditions * episodes * 2 and set(raw["step"]) == {2, 4}
    again = distractor_study.metrics_of("brightness", raw).set_index(["condition", "task", "metric"])["value"]
    kept = table.set_index(["condition", "task", "metric"])["value"]
    assert kept.to_dict() == pytest.approx(again.reindex(kept.index).to_dict())  # the record follows from raw scores
    folder = root / "results" / "smoke" / "study" / "distractors"
    assert results.load(folder)["run"].unique().tolist() == ["brightness"]
    assert files.read_json(folder / "brightness.json")["config"]["starts"] == TINY.starts

    parts = root / "build" / "smoke" / "study" / "distractors" / "brightness"
    before = (folder / "brightness.csv").read_bytes()
    (parts / "reacher-easy--clean.npz").unlink()  # as after a stop
    distractor_study.score_all("smoke", ["brightness"])
    assert Brightness.calls == (conditions + 1) * episodes and (folder / "brightness.csv").read_bytes() == before
    weights.write_text("second")
    distractor_study.score_all("smoke", ["brightness"])
    assert Brightness.calls == (2 * conditions + 1) * episodes
    weights.unlink()
    with pytest.raises(InputError, match="model 'brightness': weights is missing; make it with: make them"):
        distractor_study.score_all("smoke", ["brightness"])
