"""What a reward would pay those who never learned from it."""

from dataclasses import replace

import numpy as np
import pytest

from genreward import behaviour, envs, experiments, files, profiles, results, training, would_pay
from genreward.errors import InputError
from genreward.experiments import Arm, Experiment
from genreward.rewards import RewardModel, RewardProperties, base, register
from genreward.training import METHODS, Method, Run


@pytest.fixture
def tiny(root, monkeypatch):
    """A profile whose reward "height" pays the hand's height above the table, in metres, at every step."""
    profile = replace(profiles.get_profile("smoke"), name="tiny", episode_steps=64)
    profile = replace(profile, reward=replace(profile.reward, sparse_interval=32),
                      run=replace(profile.run, evaluate_every=64))
    monkeypatch.setitem(profiles.PROFILES, "tiny", profile)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @register("height")
    class Height(RewardModel):
        properties = RewardProperties(demo_free=True, generated=True, action_aware=False, citation="a test")

        def needs_frame(self, t, episode_steps):
            return False

        def terms(self, history, t):
            return {"height": float(history.states[t][2])}

    Height.__module__ = "genreward.rewards.controls"  # a record names the code of its reward, which the package has
    monkeypatch.setitem(METHODS, "height", Method("sparse", "height"))
    trial = Experiment("easy", "", "", ("reach", "drawer-close"), (Arm("height"), Arm("sparse")))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": trial})
    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=64, seeds=2))
    return profile


def test_what_is_paid_is_what_the_players_own_states_earn(tiny):
    run = Run("reach", "height", profile="tiny", experiment="tiny")
    table = results.read_run(would_pay.record(run, episodes=2))
    found = table.pivot(index=["method", "seed"], columns="metric", values="value")
    assert set(table["method"]) == {"random", "expert"} and len(found) == 4  # no F and B, hence no policy of theirs
    env = envs.make_env("reach", seed=behaviour.SEED, split="eval", episode_steps=64)
    for number in range(2):  # the same starts as finished agents get
        seen = envs.rollout(env, envs.expert_policy("reach"), frames=False)
        row = found.loc[("expert", number)]
        assert row["paid_height"] == pytest.approx(seen.states[1:, 2].sum(), rel=1e-5)
        assert row["return"] == pytest.approx(seen.rewards.sum(), rel=1e-5)
        assert row["paid_env"] == pytest.approx(seen.rewards[[31, 63]].sum(), rel=1e-5)
        assert row["success"] == seen.succeeded and 0.9 < row["progress_end"] <= 1
    env.close()
    assert found.loc["random", "progress_end"].max() < found.loc["expert", "progress_end"].min()
    note = files.read_json(would_pay.folder("tiny") / "reach-height.json")
    assert note["reward"] == "height" and note["commit"]
    other = replace(run, changes=(("reward.sparse_interval", 16),))
    would_pay.record(other, episodes=1)
    both = results.load(would_pay.folder("tiny"))  # two rewards of one task stand side by side
    assert set(both["run"]) == {"reach-height", "reach-" + other.label}


def test_only_rewards_that_an_agent_learned_from_are_asked_and_only_once(tiny, monkeypatch, capsys):
    assert would_pay.missing("tiny") == []
    for run in experiments.grid("tiny"):
        if run.task == "reach":
            results.write_run(profiles.paths("tiny").runs, run.run_id, [
                {"experiment": "tiny", "method": run.label, "task": "reach", "seed": run.seed, "step": 64,
                 "metric": "return", "value": 1.0}], {"steps": 64})
    assert [would_pay.name(run) for run in would_pay.missing("tiny")] == ["reach-height"]  # not each seed, not sparse
    assert would_pay.missing("tiny", tasks=["drawer-close"]) == []
    there = training.required

    def gone(run, profile):
        raise InputError("the goal is missing; make it with: make results")

    monkeypatch.setattr(training, "required", gone)
    would_pay.make("tiny")  # named, and no error: others may have all their parts
    assert "not asked: reach-height: the goal is missing; make it with: make results" in capsys.readouterr().err
    monkeypatch.setattr(training, "required", there)
    would_pay.make("tiny", episodes=1)
    monkeypatch.setattr(would_pay, "record", lambda *given: pytest.fail("asked again"))
    would_pay.make("tiny")


@pytest.mark.parametrize("method", ["sparse", "dense", "genreward", "frame"])
def test_a_reward_without_a_generated_term_or_not_settled_beforehand_is_refused(tiny, method):
    with pytest.raises(InputError, match=f"'{method}' has no generated reward that is settled .* those that have: .*"
                                         "genreward_sound, .*height"):
        would_pay.record(Run("reach", method, profile="tiny", experiment="tiny"))
    assert not would_pay.folder("tiny").exists()


def test_the_policy_of_f_and_b_plays_where_the_reward_has_them(tiny):
    class FB:
        def goal_z(self, psi):
            return psi

        def policy(self, psi, z):
            assert psi.shape == z.shape == (1, 3) and (z == 200).all()  # the goal frame's colour
            return np.full((1, 4), -1.0, np.float32)

    class Encoder:
        def encode(self, frames):
            assert frames.dtype == np.uint8 and frames.shape[1:] == (64, 64, 3)
            return frames[:, 0, 0].astype(np.float32)

    run = Run("reach", "height", profile="tiny", experiment="tiny")
    goal = type("Goal", (), {"frame": np.full((64, 64, 3), 200, np.uint8)})()
    env = training.paying_env(run, tiny, training.build_reward(run, tiny, {}), "eval", 3)
    players = would_pay._players(run, {"fb": FB(), "encoder": Encoder(), "goal": goal}, env)
    assert set(players) == set(would_pay.PLAYERS)
    observation, _ = env.reset()
    assert (players["fb_zero_shot"](observation) == -1).all()
    env.close()
