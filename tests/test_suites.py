"""DeepMind Control Suite and Adroit's door: the interface of Meta-World's, the suites' own numbers, rewards paid."""

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from genreward import envs, suites
from genreward.errors import InputError
from genreward.rewards import GoalRewardEnv, make_reward
from genreward.tasks import CONTROL_TASKS

TASKS = (*CONTROL_TASKS, "door")
SHAPES = {"walker-walk": (24, 6, 500), "cheetah-run": (17, 6, 250), "reacher-easy": (6, 2, 250),
          "cartpole-swingup": (5, 1, 250), "finger-spin": (9, 2, 500), "ball_in_cup-catch": (8, 2, 250),
          "door": (39, 28, 200)}


@pytest.fixture(scope="module")
def made():
    """One environment a task, made when first asked for."""
    kept = {}

    def get(task):
        if task not in kept:
            kept[task] = envs.make_env(task, seed=1, size=32)
        return kept[task]

    yield get
    for env in kept.values():
        env.close()


def run(env, steps, seed=0, **reset):
    """Observations and paid rewards of fixed random actions."""
    rng = np.random.default_rng(seed)
    told = [env.reset(**reset)[0].tolist()]
    for _ in range(steps):
        observation, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        told.append([*observation.tolist(), reward])
    return told


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the checker: it likes bounded observations, and a spec
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_finds_nothing_wrong(made, task):
    env = made(task)
    states, actions, steps = SHAPES[task]
    assert env.observation_space.shape == (states,) and env.action_space.shape == (actions,)
    assert env.episode_steps == steps
    check_env(env, skip_close_check=True)
    observation, reward, terminated, truncated, info = env.step(np.zeros(actions))
    assert observation.dtype == np.float32 and np.isfinite(observation).all() and isinstance(reward, float)
    assert {"success", "success_any", "dense_reward"} <= info.keys() and info["dense_reward"] == reward


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_is_of_the_state_and_changes_with_it(made, task):
    env = made(task)
    env.reset(options={"goal": 2})
    first, state = env.render(), env.get_state()
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and first.std() > 10
    for action in np.random.default_rng(0).choice([-1.0, 1.0], (12, *env.action_space.shape)):
        env.step(action)
    assert not np.array_equal(env.render(), first)
    env.set_state(state)
    assert np.array_equal(env.render(), first)
    env.reset(options={"goal": 3})
    env.reset(options={"goal": 2})
    assert np.array_equal(env.render(), first)


def test_the_walker_stands_on_its_feet_in_the_picture(made):
    env = made("walker-walk")
    env.reset(options={"goal": 2})
    data = env._physics.data
    data.qpos[:] = 0  # upright, straight legs
    state = env.get_state()
    env.set_state(state)
    red, green, blue = env.render().astype(int).transpose(2, 0, 1)
    body = np.argwhere(red > blue + 40)  # orange before a blue scene
    assert np.ptp(body[:, 0]) > 15 and np.ptp(body[:, 0]) > 1.5 * np.ptp(body[:, 1])  # higher than wide
    top, bottom = body[body[:, 0] < body[:, 0].mean()], body[body[:, 0] > body[:, 0].mean()]
    assert np.ptp(top[:, 1]) < np.ptp(bottom[:, 1])  # the feet point forward, the torso is a single rod


@pytest.mark.parametrize("task", ["walker-walk", "reacher-easy", "door"])
def test_seeds_starts_and_splits(made, task):
    env = made(task)
    first = run(env, 4, seed=5)
    env.reset(seed=123)
    state = env.rng_state()
    expected = [run(env, 3) for _ in range(2)]
    env.reset(seed=7)
    env.set_rng_state(state)
    assert [run(env, 3) for _ in range(2)] == expected and expected[0] != expected[1] and expected[0] != first
    assert run(env, 3, options={"goal": 4}) == run(env, 3, options={"goal": 4}) != run(env, 3, options={"goal": 5})
    env.seed_goals(0)
    train = env.reset()[0]
    env.seed_goals(1_000_003)  # what split="eval" makes of seed 0
    assert not np.array_equal(env.reset()[0], train)
    with pytest.raises(InputError, match=f"task '{task}' has no goal 50; valid: 0 to 49"):
        env.reset(options={"goal": 50})


def test_fifty_starts_are_those_that_can_be_asked_for():
    env = envs.make_env("reacher-easy", seed=3, goals="fifty")
    fifty = {tuple(env.reset(options={"goal": goal})[0]) for goal in range(50)}
    assert len(fifty) == 50
    assert {tuple(env.reset()[0]) for _ in range(10)} <= fifty
    env = envs.make_env("reacher-easy", seed=3)
    assert not {tuple(env.reset()[0]) for _ in range(10)} & fifty


@pytest.mark.parametrize("task", ["walker-walk", "cheetah-run", "finger-spin"])
def test_an_episode_is_that_of_dm_control(made, task):
    from dm_control import suite

    env = made(task)
    env.reset(options={"goal": 6})
    start = int(np.random.default_rng([suites.START_SEED, 6]).integers(2**31))
    theirs = suite.load(*task.split("-"), task_kwargs={"random": start})
    theirs.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)).astype(np.float32):
        observation, reward, *_ = env.step(action)
        total = 0.0
        for _ in range(env.action_repeat):
            step = theirs.step(action)
            total += step.reward
        assert np.allclose(observation, np.concatenate([np.ravel(part) for part in step.observation.values()]))
        assert reward == pytest.approx(total)
    assert env.episode_steps * env.action_repeat == 1000 == theirs._step_limit


def test_success_is_a_reward_of_nine_tenths():
    env = envs.make_env("reacher-easy", seed=0)
    env.reset(options={"goal": 0})
    physics = env._physics
    info = env.step(np.zeros(2))[-1]
    assert info["success"] == info["success_any"] == 0.0
    # put the target under the fingertip
    physics.named.model.geom_pos["target", :2] = physics.named.data.geom_xpos["finger", :2]
    reward, _, _, info = env.step(np.zeros(2))[1:]
    assert reward == env.action_repeat == 4 and info["success"] == 1.0
    physics.named.model.geom_pos["target", :2] += 0.15
    info = env.step(np.zeros(2))[-1]
    assert info["success"] == 0.0 and info["success_any"] == 1.0


def test_the_door_counts_as_the_package_does_with_the_published_sign(made):
    env = made("door")
    env.reset(options={"goal": 1})
    theirs, zero = env._env, np.zeros(28)
    for angle in (0.0, 0.5, 1.4):
        theirs.data.qpos[theirs.door_hinge_addrs] = angle
        observation, reward, _, _, info = env.step(zero)
        hinge = float(theirs.data.qpos[theirs.door_hinge_addrs])
        places = theirs.data.site_xpos
        palm = np.linalg.norm(places[theirs.grasp_site_id] - places[theirs.handle_site_id])
        bonus = 2.0 * (hinge > 0.2) + 8.0 * (hinge > 1.0) + 10.0 * (hinge > 1.35)
        published = -0.1 * palm - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.sum(theirs.data.qvel**2) + bonus
        assert reward == pytest.approx(published, abs=1e-5) and info["success"] == float(hinge >= 1.35)
    assert info["success"] == 1.0
    env.reset(options={"goal": 1})


def test_sparse_pays_at_its_interval_and_the_episode_is_cut_off():
    env = envs.make_env("walker-walk", reward="sparse", episode_steps=8, sparse_interval=4)
    env.reset()
    steps = [env.step(np.zeros(6)) for _ in range(8)]
    for number, (_, paid, terminated, truncated, info) in enumerate(steps, 1):
        assert info["dense_reward"] > 0 and not terminated and truncated == (number == 8)
        assert paid == (info["dense_reward"] if number % 4 == 0 else 0.0)
    with pytest.raises(InputError, match=r"the episode of 'walker-walk' is over \(8 steps\); call reset"):
        env.step(np.zeros(6))


@pytest.mark.parametrize("task", ["walker-walk", "door"])
@pytest.mark.parametrize("name", ["pixel_cosine", "clock"])
def test_a_reward_model_is_paid_online_as_offline(task, name):
    env = envs.make_env(task, seed=3, size=16, episode_steps=8)
    policy = envs.random_policy(np.random.default_rng(0), actions=env.action_space.shape[0])
    goal = SimpleNamespace(video=envs.rollout(env, policy).frames)
    settings = {"goal": goal, "alpha": 1.0, "interval": 4} if name == "pixel_cosine" else {}
    reward = make_reward(name, {}, **settings)
    paying = GoalRewardEnv(env, reward, env_reward="none")
    paid = []

    def act(observation):
        return np.full(env.action_space.shape, 0.5, np.float32)

    episode = envs.rollout(env, act, options={"goal": 1})
    paying.reset(options={"goal": 1})
    for _ in range(8):
        _, value, _, truncated, info = paying.step(act(None))
        paid.append(value)
    assert truncated and np.allclose(paid, reward.score(episode)) and np.count_nonzero(paid) == (8 if name == "clock"
                                                                                              else 2)
    assert episode.task == task and info["episode_terms"]["env"] == 0
    env.close()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"reward": "thick"}, "unknown environment reward 'thick'; valid: dense, sparse"),
    ({"goals": "all"}, "unknown choice of goals 'all'; valid: any, fifty"),
    ({"episode_steps": 0}, "episode_steps and sparse_interval must be at least 1"),
    ({"task": "walker-fly"}, "unknown task 'walker-fly'; valid: .*walker-walk"),
])
def test_a_wrong_name_is_refused_with_the_valid_ones(arguments, message):
    with pytest.raises(InputError, match=message):
        envs.make_env(**({"task": "walker-walk"} | arguments))


def test_a_wrong_action_is_refused_and_changes_nothing(made):
    env = made("walker-walk")
    env.reset(options={"goal": 1})
    before = env.get_state()
    with pytest.raises(InputError, match="the action of step 0 is not finite"):
        env.step(np.full(6, np.nan))
    with pytest.raises(InputError, match=r"has shape \(6,\), got \(4,\)"):
        env.step(np.zeros(4))
    after = env.get_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_there_is_no_scripted_expert():
    with pytest.raises(InputError, match="task 'walker-walk' has no scripted expert"):
        envs.expert_policy("walker-walk")
