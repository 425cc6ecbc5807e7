"""What the frame-level reward says of recorded episodes: known orders, steps that belong together, what is made anew.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from genreward import forecast, pipeline, profiles, variants
from genreward.errors import InputError
from genreward.goals import Goal

SMOKE = profiles.get_profile("smoke")


def scored(score, kinds=("expert", "random"), episodes=3, steps=5):
    """Episodes in which the task comes 0.2 further a step and is done at 1, the last kind's stay at 0.3."""
    rows = [("a", kind, episode, step, far := (0.3 if kind == kinds[-1] else 0.2 * step), far >= 1,
             value := score(far, step, episode), 2 * value)
            for kind in kinds for episode in range(episodes) for step in range(1, steps + 1)]
    return pd.DataFrame(rows, columns=["goal", "kind", "episode", "step", "progress", "done", "score", "pay"])


def test_a_score_in_the_order_of_progress_is_told_from_its_opposite_at_any_scale():
    (good,) = forecast.told(scored(lambda far, *_: np.exp(9 * far) - 40)).itertuples()
    assert (good.progress, good.done, good.n) == (pytest.approx(1), 1, 6)
    assert (good.progress_low, good.progress_high, good.done_low) == (pytest.approx(1), pytest.approx(1), 1)
    (bad,) = forecast.told(scored(lambda far, *_: -far)).itertuples()
    assert (bad.progress, bad.done) == (pytest.approx(-1), 0)
    assert bad.expert_pay == pytest.approx(-2 * 0.6)  # the mean of 0.2 to 1, of the experts alone


def test_a_score_that_knows_the_end_only_and_one_that_knows_nothing():
    """Done at 3 of 30 steps. At ties a coin; whole episodes are drawn, so an episode's own level makes intervals."""
    (end,) = forecast.told(scored(lambda far, *_: float(far >= 1))).itertuples()
    assert end.done == 1 and 0 < end.progress < 1
    (flat,) = forecast.told(scored(lambda *_: 2.0)).itertuples()
    assert np.isnan(flat.progress) and flat.done == 0.5
    (level,) = forecast.told(scored(lambda far, step, episode: episode + 0.001 * far)).itertuples()
    assert level.progress_low < level.progress < level.progress_high and level.done_low < level.done_high
    never = scored(lambda far, *_: far).assign(done=False)
    assert forecast.told(never)["done"].isna().all() and forecast.told(never)["done_low"].isna().all()


def test_goals_are_told_apart_in_their_order():
    both = pd.concat([scored(lambda far, *_: far).assign(goal="z"), scored(lambda far, *_: -far)])
    found = forecast.told(both, resamples=5)
    assert found["goal"].tolist() == ["z", "a"] and found["progress"].round(6).tolist() == [1, -1]


class Counter:
    """An environment whose picture shows how many steps were taken, and whose task is done after 6 of 8."""

    def reset(self):
        self.taken = 0
        return self._state(), {}

    def _state(self):
        state = np.zeros(39)
        state[0] = 0.8 - 0.1 * self.taken  # the hand nears the goal at 0
        return state

    def render(self):
        return np.full((2, 2, 3), self.taken, np.uint8)

    def step(self, action):
        self.taken += 1
        return self._state(), 0.0, False, self.taken == 8, {"success": float(self.taken >= 6)}


def test_a_scored_step_has_the_picture_and_action_before_it_and_the_progress_after_it():
    env = Counter()
    frames, actions, steps, far, done = forecast._episode(env, lambda state: np.full(4, env.taken), "reach", 3)
    assert steps.tolist() == [3, 6] and frames[:, 0, 0, 0].tolist() == [2, 5] and actions[:, 0].tolist() == [2, 5]
    assert done.tolist() == [False, True] and far[1] == 1 and 0 < far[0] < 1


@pytest.fixture
def there(root, monkeypatch):
    """A task with F, B and two goals, whose scores cost nothing."""
    where, made = profiles.paths("smoke"), []
    for path in (where.fb / "pick-place.pt", where.psi, where.video_model / "model_index.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("there")
    film = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    own = Goal("lift it", (), film, np.zeros(9), 8, "clip", "generated", {})
    own.save(where.goals / "pick-place")
    source = variants.wanted("smoke")[0][0][1]
    variants._moved(own, 3, source).save(variants.folder("smoke", source, "pick-place"))
    monkeypatch.setattr(pipeline, "load_encoder", lambda profile: SimpleNamespace())

    def score(profile, task, toward, encoder, effort):
        made.append(list(toward))
        n = len(forecast.KINDS)
        return {"kind": np.arange(n), "episode": np.zeros(n, int), "step": np.full(n, 4),
                "progress": np.linspace(0, 1, n), "done": np.arange(n) > 1, "kinds": np.array(forecast.KINDS),
                "goals": np.array(list(toward)),
                "scores": np.stack([np.arange(n) * sign for sign in (1.0, -1.0)][:len(toward)], 1).astype(np.float32)}

    monkeypatch.setattr(forecast, "_scored", score)
    return where, source, made


def test_what_is_on_record_is_made_anew_only_where_a_goal_or_weights_changed(there):
    where, source, made = there
    with pytest.raises(InputError, match="no scores toward the goals of 'pick-place'; make them with: python -m"):
        forecast.load("smoke", "pick-place")
    forecast.record("smoke", ["pick-place"])
    forecast.record("smoke", ["pick-place"])
    assert made == [[forecast.OWN, source]]
    found = forecast.load("smoke", "pick-place")
    assert found.groupby("goal")["score"].apply(list).to_dict() == {forecast.OWN: [0, 1, 2], source: [0, -1, -2]}
    assert found["kind"].tolist() == list(forecast.KINDS) * 2 and found["done"].dtype == bool
    assert found["pay"].isna().all()
    (where.fb / "pick-place-normaliser.json").write_text('{"mean": 1.0, "spread": 0.5}')
    assert forecast.load("smoke", "pick-place")["pay"].tolist()[:3] == [-2, 0, 2]
    Goal.load(where.goals / "pick-place").save(where.goals / "pick-place")  # the same again
    forecast.record("smoke", ["pick-place"])
    assert len(made) == 1
    (where.fb / "pick-place.pt").write_text("trained anew")
    forecast.record("smoke", ["pick-place"])
    assert len(made) == 2


def test_without_f_and_b_it_is_refused_before_anything_is_scored(there):
    with pytest.raises(InputError, match="the forward-backward model of 'reach' is missing; .*--tasks reach"):
        forecast.record("smoke", ["pick-place", "reach"])
    with pytest.raises(InputError, match="unknown task with a scripted expert 'reech'; valid: assembly"):
        forecast.record("smoke", ["pick-place", "reech"])
    assert there[2] == []
