"""Environments: the same picture everywhere, nothing rendered unasked, goals, seeds, rewards, and what is refused."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from genreward import envs
from genreward.errors import InputError
from genreward.tasks import PAPER_TASKS

PRINT_PICTURES = """
import hashlib, numpy as np
from genreward import envs
env = envs.make_env("pick-place", seed=99)
for goal in (5, 31):
    env.reset(options={"goal": goal})
    for action in np.random.default_rng(goal).uniform(-1, 1, (8, 4)):
        env.step(action)
    print(hashlib.md5(env.render().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def env():
    made = envs.make_env("pick-place", seed=3)
    yield made
    made.close()


def at(env, goal, steps=8):
    """The state after `steps` fixed actions from that goal's start."""
    observation, _ = env.reset(options={"goal": goal})
    for action in np.random.default_rng(goal).uniform(-1, 1, (8, 4))[:steps]:
        observation = env.step(action)[0]
    return observation


def test_the_same_state_gives_the_same_picture_in_every_process(env):
    at(env, 17)
    here = []
    for goal in (5, 31):
        at(env, goal)
        here.append(hashlib.md5(env.render().tobytes()).hexdigest())
    there = subprocess.run([sys.executable, "-W", "ignore", "-c", PRINT_PICTURES], capture_output=True, text=True)
    assert there.stdout.split() == here, there.stderr
    assert here[0] != here[1]


def test_reset_does_not_depend_on_what_was_before(env):
    first = at(env, 5)
    picture = env.render()
    at(env, 31)
    env.step(np.ones(4))
    assert np.array_equal(at(env, 5), first)
    assert np.array_equal(env.render(), picture)


def test_a_picture_is_right_side_up_and_rgb(env):
    env.reset(options={"goal": 0})
    picture = env.render()
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    arm = (red > green + 50) & (red > blue + 50)  # the arm is dark red and hangs in from above
    assert arm[:32].sum() > 100 and arm[:32].sum() > 5 * arm[32:].sum()
    rows = np.argwhere(arm)[:, 0].mean()
    for _ in range(12):
        env.step([0, 0, 1, -1])
    red, green, blue = env.render().astype(int).transpose(2, 0, 1)
    lifted = (red > green + 50) & (red > blue + 50)
    assert lifted.sum() < arm.sum() or np.argwhere(lifted)[:, 0].mean() < rows  # up in the world is up in the picture


def test_a_state_that_is_put_back_looks_the_same(env):
    at(env, 5)
    state, picture = env.get_state(), env.render()
    for _ in range(6):
        env.step(np.ones(4))
    assert not np.array_equal(env.render(), picture)
    env.set_state(state)
    assert np.array_equal(env.render(), picture)


def test_nothing_is_rendered_unasked(env, monkeypatch):
    calls = []
    draw = envs.Renderer.__call__
    monkeypatch.setattr(envs.Renderer, "__call__", lambda *given, **more: calls.append(1) or draw(*given, **more))
    env.reset(options={"goal": 1})
    for _ in range(3):
        env.step(np.zeros(4))
    assert not calls
    env.render()
    assert len(calls) == 1
    seen = envs.rollout(env, lambda observation: np.zeros(4, np.float32), steps=3)
    assert len(calls) == 5 and seen.frames.shape == (4, 64, 64, 3)


def test_closing_one_environment_leaves_the_others_pictures_alone(env):
    env.reset(options={"goal": 1})
    for close in (lambda made: made.close(), lambda made: None):  # closed, or only forgotten
        other = envs.make_env("reach", size=64)
        other.reset()
        other.render()
        picture = env.render()  # now this one's OpenGL context is current
        close(other)
        del other
        assert np.array_equal(env.render(), picture)


def test_fifty_goals_and_two_orders_of_them(env):
    goals = envs._goals("pick-place-v3")
    assert len(goals) == len(np.unique(goals, axis=0)) == envs.GOALS == 50

    def drawn(made, count=6):
        return [made.reset()[0][-3:].tolist() for _ in range(count)]

    env.seed_goals(0)
    train = drawn(env)
    env.seed_goals(0)
    assert drawn(env) == train
    env.seed_goals(1_000_003)  # what split="eval" makes of seed 0
    assert drawn(env) != train
    assert {tuple(np.float32(goal[3:])) for goal in goals} >= {tuple(np.float32(goal)) for goal in train}
    assert train[0][-1] != 0.0  # the goal is visible


def test_the_evaluation_split_is_another_seed(env, monkeypatch):
    seeds = []
    monkeypatch.setattr(envs, "MetaWorldEnv", lambda task, seed, *more: seeds.append(seed))
    for split in ("train", "eval"):
        for seed in range(5):
            envs.make_env("pick-place", seed=seed, split=split)
    assert len(set(seeds)) == 10


def test_the_order_of_goals_goes_on_where_it_was_saved(env):
    env.reset()
    state = env.rng_state()
    expected = [env.reset()[0].tolist() for _ in range(3)]
    env.reset(seed=77)
    env.set_rng_state(state)
    assert [env.reset()[0].tolist() for _ in range(3)] == expected


def test_any_goal_lies_outside_the_fifty_and_is_seeded():
    made = envs.MetaWorldEnv("pick-place", seed=4, goals="any")
    fifty = {tuple(np.float32(goal[3:])) for goal in envs._goals("pick-place-v3")}
    drawn = [tuple(made.reset()[0][-3:]) for _ in range(4)]
    assert len(set(drawn)) == 4 and not set(drawn) & fifty
    made.seed_goals(4)
    assert [tuple(made.reset()[0][-3:]) for _ in range(4)] == drawn


def test_sparse_pays_the_dense_reward_at_its_interval_and_the_episode_is_cut_off():
    made = envs.make_env("reach", seed=0, reward="sparse", episode_steps=8, sparse_interval=4)
    made.reset()
    steps = [made.step(np.zeros(4)) for _ in range(8)]
    for number, (_, paid, terminated, truncated, info) in enumerate(steps, 1):
        assert info["dense_reward"] > 0 and not terminated and truncated == (number == 8)
        assert paid == (info["dense_reward"] if number % 4 == 0 else 0.0)
    with pytest.raises(InputError, match=r"the episode of 'reach' is over \(8 steps\); call reset"):
        made.step(np.zeros(4))


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_the_expert_succeeds(task):
    made = envs.make_env(task, seed=0)
    policy = envs.expert_policy(task)
    for goal in (0, 1, 2):  # the scripted experts fail now and then; one of three must do
        observation, _ = made.reset(options={"goal": goal})
        success = 0.0
        for _ in range(256):
            observation, reward, _, over, info = made.step(policy(observation))
            success = info["success_any"]
            assert 0 <= reward <= 10 + 1e-6
            if success or over:
                break
        if success:
            return
    raise AssertionError(f"the expert of {task} failed at three goals")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"task": "pick-plaze"}, "unknown task 'pick-plaze'; valid: assembly"),
    ({"reward": "thick"}, "unknown environment reward 'thick'; valid: dense, sparse"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"split": "test"}, "unknown split 'test'; valid: eval, train"),
    ({"goals": "all"}, "unknown choice of goals 'all'; valid: any, fifty"),
    ({"episode_steps": 0}, "episode_steps and sparse_interval must be at least 1"),
])
def test_a_wrong_name_is_refused_with_the_valid_ones(arguments, message):
    with pytest.raises(InputError, match=message):
        envs.make_env(**({"task": "reach"} | arguments))


def test_an_episode_of_no_steps_is_refused(env):
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        envs.rollout(env, lambda observation: np.zeros(4), steps=0)


def test_a_wrong_action_or_goal_is_refused_and_changes_nothing(env):
    at(env, 5)
    before = env.get_state()
    with pytest.raises(InputError, match="the action of step 8 is not finite"):
        env.step([0, np.nan, 0, 0])
    with pytest.raises(InputError, match=r"has shape \(4,\), got \(3,\)"):
        env.step(np.zeros(3))
    with pytest.raises(InputError, match="task 'pick-place' has no goal 50; valid: 0 to 49"):
        env.reset(options={"goal": 50})
    after = env.get_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_stepping_before_reset_is_refused():
    made = envs.MetaWorldEnv("reach")
    with pytest.raises(InputError, match="call reset"):
        made.step(np.zeros(4))


def test_a_missing_back_end_is_one_line(env, monkeypatch):
    import mujoco

    def fail(*_):
        raise RuntimeError("invalid\nvalue for MUJOCO_GL")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(InputError, match="no OpenGL: back end .* install libosmesa6") as problem:
        envs.Renderer(env._model, 64)
    assert "\n" not in str(problem.value)
