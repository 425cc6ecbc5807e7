"""Where the seconds of training go: exclusive parts by a clock that we turn, and a real run's split."""

from dataclasses import replace

import pandas as pd
import pytest

from genreward import cost, profiles, results
from genreward.errors import InputError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Thing:
    def __init__(self, clock):
        self.clock = clock

    def work(self, seconds, inner=None):
        self.clock.now += seconds
        if inner:
            inner()
        self.clock.now += seconds


def test_each_second_belongs_to_the_innermost_part():
    clock = Clock()
    watch, reward, picture = cost.Stopwatch(clock), Thing(clock), Thing(clock)
    watch.around(reward, "work", "reward")
    watch.around(picture, "work", "rendering")
    clock.now += 50  # before the start: not counted
    watch.start()
    clock.now += 1
    reward.work(2, inner=lambda: picture.work(10))
    picture.work(5)
    clock.now += 3
    found = watch.stop()
    assert found == {"environment": 0, "rendering": 30, "reward": 4, "F and B": 0, "agent": 4}
    assert sum(found.values()) == clock.now - 50


def test_a_part_that_fails_is_left_again():
    clock = Clock()
    watch = cost.Stopwatch(clock)
    with pytest.raises(ZeroDivisionError), watch.part("reward"):
        clock.now += 2
        raise ZeroDivisionError
    clock.now += 1
    assert watch.stop() == {"environment": 0, "rendering": 0, "reward": 2, "F and B": 0, "agent": 1}


def test_a_real_split_adds_up_and_what_is_not_used_costs_nothing(root, monkeypatch):
    smoke = profiles.get_profile("smoke")
    tiny = replace(smoke, episode_steps=32, sac=replace(smoke.sac, hidden=(8, 8), learning_starts=16, batch=8),
                   reward=replace(smoke.reward, sparse_interval=16),
                   run=replace(smoke.run, evaluate_every=32, sac_steps=64))
    monkeypatch.setitem(profiles.PROFILES, "smoke", tiny)
    cost.record("sparse", "smoke", "reach", warm=1, episodes=1)
    cost.record("dense", "smoke", "reach", warm=0, episodes=1)
    table = cost.table("smoke")
    assert table["method"].tolist() == ["dense", "sparse"]
    assert table["total"].tolist() == pytest.approx(table[list(cost.PARTS)].sum(axis=1).tolist())
    assert (table[["rendering", "F and B"]] == 0).all(axis=None)
    assert (table[["environment", "agent"]] > 0).all(axis=None)
    assert table.loc[1, "times_sparse"] == 1 and (table["memory"] > 50).all()
    kept = results.load(cost.folder("smoke"))
    assert set(kept["experiment"]) == {"cost"} and len(kept) == 12


def test_names_and_numbers_that_are_wrong_are_refused(root):
    with pytest.raises(InputError, match="unknown method 'greed'; valid: dense, diffusion_reward"):
        cost.measure("greed", "smoke")
    with pytest.raises(InputError, match="episodes must be at least 1"):
        cost.measure("dense", "smoke", episodes=0)
    with pytest.raises(InputError, match="unknown method 'nothing'"):
        cost.main(["--methods", "nothing"])
    with pytest.raises(InputError, match="python -m genreward.cost --profile smoke"):
        cost.table("smoke")
    assert cost.table_of({"dense": dict.fromkeys((*cost.PARTS, "memory"), 1.0)})["times_sparse"].isna().all()
    assert isinstance(cost.table_of({"sparse": dict.fromkeys((*cost.PARTS, "memory"), 1.0)}), pd.DataFrame)
