"""Training: killed runs end like undisturbed ones, foreign or broken checkpoints are named, F and B learn online."""

import errno
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from genreward import envs, errors, files, profiles, results, training
from genreward.errors import InputError
from genreward.forward_backward import ForwardBackward
from genreward.goals import Goal
from genreward.rewards import GoalRewardEnv, make_reward
from genreward.training import OnlineFB, Run, train_agent

_SMOKE = profiles.get_profile("smoke")
TINY = replace(
    _SMOKE, name="tiny", episode_steps=32, image_size=32,
    sac=replace(_SMOKE.sac, hidden=(8, 8), learning_starts=16, batch=8),
    reward=replace(_SMOKE.reward, interval=16, sparse_interval=16, alpha=0.5, beta=0.1),
    run=replace(_SMOKE.run, tasks=("reach",), sac_steps=96, dreamer_steps=96, evaluate_every=32, evaluation_episodes=1,
                fb_train_until=48, prefill=32))


class Video:
    """Stands in for the video model: a clip's latent is every eighth pixel of it."""

    image_size, num_frames = 32, 9

    def encode(self, clip):
        return clip[:, ::8, ::8].transpose(3, 0, 1, 2).astype(np.float32) / 255


class Psi:
    """Stands in for the image encoder: four pixels."""

    dim = 12

    def encode(self, frames):
        return frames[:, 8::16, 8::16].reshape(len(frames), -1).astype(np.float32) / 255


def stub_parts(seed=0):
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    fb = ForwardBackward(Psi.dim, 4, replace(TINY.fb, fb_targets="goal", next_action="policy"), seed)
    return {"goal": Goal("reach", (), video, np.zeros(9), 8), "video_model": Video(), "encoder": Psi(), "fb": fb}


def train(method, agent="sac", **changes):
    """One tiny run below the present project root, with stand-ins for the trained models."""
    where = profiles.paths("tiny")
    for path in (where.goals / "reach" / "goal.json", where.video_model / "model_index.json",
                 where.psi):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a stand-in")
    parts = stub_parts() if "goal" in training.METHODS[method].needs else {}
    return train_agent(Run("reach", method, agent, 0, "tiny", "test", **changes), progress=False, parts=parts)


def die_while_writing(number):
    """Let the process be killed half-way through writing its checkpoint `number`."""
    save, calls = torch.save, []

    def killed(state, path, *more):
        calls.append(1)
        if len(calls) == number:
            Path(path).write_bytes(b"half a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path, *more)

    torch.save = killed


@pytest.fixture
def tiny(root, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "tiny", TINY)
    return root


def rows(table):
    """A run's rows without the time they took."""
    read = pd.read_csv(table)
    return read[read["metric"] != "seconds"].reset_index(drop=True)


def test_a_killed_sac_run_ends_with_the_rows_of_an_undisturbed_one(tiny, tmp_path, monkeypatch):
    """SAC, GenReward as printed: agent, replay, goals, F and B and the ledger all have to come back."""
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
              "import genreward, test_training as t\n"
              "t.profiles.PROFILES['tiny'] = t.TINY\nt.die_while_writing(2)\nt.train('genreward')\n")
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    table = profiles.paths("tiny").runs / "test-reach-sac-genreward-s0.csv"
    assert sorted(set(rows(table)["step"])) == [32]
    assert train("genreward") == table
    resumed = rows(table)

    (tmp_path / "undisturbed").mkdir()
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path / "undisturbed"))
    undisturbed = rows(train("genreward"))
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)

    assert sorted(set(undisturbed["step"])) == [32, 64, 96]
    assert set(undisturbed["method"]) == {"genreward"} and set(undisturbed["experiment"]) == {"test"}
    values = undisturbed.pivot(index="step", columns="metric", values="value")
    shares = values.filter(like="share_")
    assert set(shares.columns) == {"share_env", "share_video", "share_frame"}
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-9)  # Eq. 10: each term's part of all that was paid
    assert (shares["share_video"] > 0).all()
    assert shares["share_frame"].iloc[0] == 0 < shares["share_frame"].iloc[-1]  # nothing before F and B are frozen
    assert values["success"].between(0, 1).all()
    before = table.read_bytes()
    monkeypatch.undo()
    assert results.load(tmp_path / "undisturbed" / "results" / "tiny" / "runs")["run"].nunique() == 1
    assert table.read_bytes() == before


def test_a_broken_off_dreamer_run_loses_and_doubles_no_step(tiny, monkeypatch):
    save, calls = torch.save, []

    def failing(state, path, *more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(state, path, *more)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        train("sparse", "dreamer")
    table = profiles.paths("tiny").runs / "test-reach-dreamer-sparse-s0.csv"
    first = rows(table)
    assert set(first["step"]) == {32}
    train("sparse", "dreamer")
    whole = rows(table)
    returns = whole[whole["metric"] == "return"]
    assert returns["step"].tolist() == [32, 64, 96] and set(whole["method"]) == {"dreamer_sparse"}
    pd.testing.assert_frame_equal(whole[whole["step"] == 32].reset_index(drop=True), first)


def test_a_finished_run_goes_further_and_trouble_leaves_it_whole(tiny, monkeypatch, capsys):
    """One short run, then everything that can be wrong with what it left behind."""
    table = train("dense", steps=32)
    checkpoint = profiles.paths("tiny").checkpoints / f"{table.stem}.pt"
    first, kept, whole = rows(table), table.read_bytes(), checkpoint.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "build_env", None)  # a finished run needs nothing
        assert train("dense", steps=32) == table

    def no_room(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(files.os, "replace", no_room)
        errors.cli(lambda: train("dense", steps=64))
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: the disk is full") and printed.count("\n") == 1
    assert table.read_bytes() == kept and checkpoint.read_bytes() == whole
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]

    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{table.stem}.pt is not a whole checkpoint .*remove it to start again"):
        train("dense", steps=64)
    checkpoint.write_bytes(whole)

    with monkeypatch.context() as patch:
        patch.setitem(profiles.PROFILES, "tiny", replace(TINY, sac=replace(TINY.sac, batch=9)))
        for steps in (32, 64):  # the record, and the checkpoint
            with pytest.raises(InputError, match="was made with other numbers.sac; move it away to train anew"):
                train("dense", steps=steps)
    assert table.read_bytes() == kept

    further = rows(train("dense", steps=64))
    assert sorted(set(further["step"])) == [32, 64]
    pd.testing.assert_frame_equal(further[further["step"] == 32].reset_index(drop=True), first)


def test_an_identity_names_every_difference():
    mine = {"run": {"task": "reach", "seed": 0}, "inputs": {"goal": "a"}}
    training._same(mine, mine, Path("x.pt"))
    with pytest.raises(InputError, match="x.pt was made with other inputs.goal, run.seed; move it away"):
        training._same({"run": {"task": "reach", "seed": 1}, "inputs": {"goal": "b"}}, mine, Path("x.pt"))
    with pytest.raises(InputError, match="inputs.goal, run.seed, run.task"):
        training._same(None, mine, Path("x.pt"))


def test_another_goal_is_another_run(tiny):
    where, run = profiles.paths("tiny"), Run("reach", "video", profile="tiny")
    for path in (where.goals / "reach" / "goal.json", where.video_model / "model_index.json"):
        path.parent.mkdir(parents=True)
        path.write_text("one")
    first = training.identity(run, TINY)
    (where.goals / "reach" / "goal.json").write_text("two")
    with pytest.raises(InputError, match="other inputs.goal;"):
        training._same(first, training.identity(run, TINY), Path("x"))


@pytest.mark.parametrize(("run", "message"), [
    (Run("walk", "dense", profile="tiny"), "unknown task 'walk'; valid: assembly"),
    (Run("reach", "dens", profile="tiny"), "unknown method 'dens'; valid: dense, "),
    (Run("reach", "dense", "ppo", profile="tiny"), "unknown agent 'ppo'; valid: dreamer, sac"),
    (Run("reach", "dense", profile="tony"), "unknown profile 'tony'; valid: gpu, laptop, paper, smoke, tiny"),
    (Run("reach", "dense", seed=-1, profile="tiny"), "seed must be at least 0, got -1"),
    (Run("reach", "dense", profile="tiny", steps=40), r"steps \(40\) must be a multiple of evaluate_every \(32\)"),
    (Run("reach", "dense", profile="tiny", steps=0), r"steps \(0\) must be a multiple of evaluate_every \(32\)"),
    (Run("reach", "sparse", profile="tiny", changes=(("reward.sparse_interval", 8.5),)),
     r"the change reward.sparse_interval = 8.5 must be a whole number, as the profile's \d+ is"),
    (Run("reach", "dense", profile="tiny", experiment="../.."), "the experiment '../..' does not begin a file name"),
    *((Run("reach", method, agent, profile="tiny", changes=((name, value),)), message)
      for method, agent, name, value, message in (
          ("dense", "sac", "sac.batch", 0, "batch must be at least 1, got 0"),
          ("dense", "sac", "sac.gamma", 5.0, "gamma must lie in 0..1, got 5.0"),
          ("dense", "sac", "sac.gamma", math.nan, "gamma must lie in 0..1, got nan"),
          ("dense", "sac", "sac.gradient_steps", -5, "gradient_steps must be at least 1, got -5"),
          ("dense", "sac", "sac.learning_rate", math.nan, "learning_rate must be finite and positive, got nan"),
          ("dense", "sac", "sac.hidden", 64, r"the change sac.hidden = 64 is of another kind than the profile's"),
          ("dense", "sac", "sac.hidden", (8, 0), "does not make a file name"),
          ("dense", "sac", "sac.learning_starts", -1, "learning_starts must be at least 0, got -1"),
          ("genreward", "sac", "fb.tau", 0.0, "tau must lie in 0..1, 0 excluded, got 0.0"),
          ("genreward", "sac", "fb.twin", "max", "unknown twin 'max'; valid: mean, min"),
          ("genreward", "sac", "fb.learning_rate", math.nan, "learning_rate must be finite and positive, got nan"),
          ("genreward_sound", "sac", "fb.encoder", "eye", "unknown encoder 'eye'; valid: concat, dinov3"),
          ("genreward", "sac", "reward.alpha", math.inf, "reward.alpha must be finite, got inf"),
          ("genreward", "sac", "reward.interval", 0, "reward.interval must be at least 1, got 0"),
          ("dense", "dreamer", "dreamer.observation", "text", "unknown config.observation 'text'; valid: pixels,"),
          ("dense", "dreamer", "dreamer.train_ratio", math.nan, "config.train_ratio nan; valid: finite numbers"),
          ("dense", "dreamer", "dreamer.discount", 0.0, "config.discount 0.0"),
          ("dense", "sac", "run.evaluate_every", 0, "run.evaluate_every must be at least 1, got 0"),
          ("dense", "sac", "run.evaluation_episodes", 0, "run.evaluation_episodes must be at least 1, got 0"))),
    *((Run("reach", method, agent, profile="tiny", steps=32, changes=((name, value),)),
       f"the change {name} makes no difference to {method!r} with {agent!r}, which .*reads: .*{valid}")
      for method, agent, name, value, valid in (
          ("genreward_sound", "sac", "reward.alpha", 0.5, "reward.sound_alpha"),
          ("sparse", "sac", "goal", "camera", "sac.…"), ("frame", "sac", "reward.alpha", 0.5, "reward.beta"),
          ("dense", "sac", "reward.sparse_interval", 4, "sac.…"), ("dense", "sac", "dreamer.units", 8, "run.evaluate"),
          ("genreward", "sac", "fb.fb_targets", "buffer", "fb.…"), ("genreward", "sac", "fb.updates", 3, "fb.…"),
          ("genreward_sound", "sac", "fb.fb_targets", "goal", "fb.…"), ("dense", "sac", "run.seeds", 2, "sac.…"),
          ("dense", "sac", "run.sac_steps", 64, "sac.…"), ("dense", "sac", "video.layers", 2, "sac.…"))),
])
def test_a_wrong_run_is_refused_before_it_starts(tiny, run, message):
    with pytest.raises(InputError, match=message):
        train_agent(run, progress=False)
    assert not list(tiny.rglob("*"))


def test_the_grids_of_all_profiles_can_be_meant_and_weights_go_where_they_are_read():
    from genreward import experiments

    for name in profiles.PROFILES:
        assert experiments.asked(name, list(experiments.experiments(name)))  # each run of it would be refused by name
    weights = {"genreward": {"alpha": 3.0, "beta": 1e-5, "interval": 128},
               "genreward_sound": {"alpha": 1.0, "beta": 0.25, "interval": 128}, "dense": {}}
    for method, change in (("genreward", ("reward.alpha", 3.0)), ("genreward_sound", ("reward.sound_beta", 0.25)),
                           ("dense", ("sac.gamma", 0.5))):
        run = Run("reach", method, changes=(change,))
        assert training.reward_settings(run, training.check_run(run)) == weights[method]


@pytest.mark.parametrize(("method", "interval", "paid"), [
    ("sparse", 8, [8, 16, 24, 32]), ("sparse", 32, [32]), ("dense", 8, list(range(1, 33)))])
def test_the_environments_reward_is_paid_as_often_as_a_run_says(tiny, method, interval, paid):
    changes = (("reward.sparse_interval", interval),) if method == "sparse" else ()
    run = Run("reach", method, profile="tiny", changes=changes)
    profile = training.check_run(run)
    env = training.build_env(run, profile, {}, training.build_reward(run, profile, {}))
    env.reset(seed=0)
    try:
        steps = [env.step(np.zeros(4)) for _ in range(32)]
    finally:
        env.close()
    assert [t for t, step in enumerate(steps, 1) if step[1]] == paid
    assert all(steps[t - 1][1] == pytest.approx(steps[t - 1][4]["dense_reward"]) for t in paid)


def test_where_nothing_can_be_written_or_the_device_is_missing_no_run_begins(tiny, monkeypatch):
    run = Run("reach", "dense", profile="tiny", experiment="test", steps=32)
    (tiny / "taken").touch()
    with pytest.raises(InputError, match="taken/runs cannot be a folder: a file is in its place or above it"):
        train_agent(run, progress=False, folder=tiny / "taken" / "runs")
    monkeypatch.setitem(profiles.PROFILES, "tiny", replace(TINY, device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="profile 'tiny' needs a CUDA device and torch finds none here"):
        train_agent(run, progress=False)
    assert not list((tiny / "results").rglob("*.csv"))


def test_the_command_line_keeps_a_run_under_its_profiles_name(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train_agent", lambda run, **more: asked.append(run))
    words = ["training", "--task", "reach", "--method", "dense", "--profile", "tiny"]
    for more in ([], ["--experiment", "mine"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        training.main()
    assert [run.experiment for run in asked] == ["tiny", "mine"] and asked[0].run_id == "tiny-reach-sac-dense-s0"


@pytest.mark.parametrize(("method", "what", "stage"), [
    ("genreward", "the goal of 'reach' is missing", "goals"), ("genreward_sound", "the goal of 'reach'", "goals"),
    ("frame", "the goal of 'reach'", "goals")])
def test_what_is_missing_is_named_with_the_command_that_makes_it(tiny, method, what, stage):
    with pytest.raises(InputError, match=f"{what}.*python -m genreward.pipeline --profile tiny --only {stage}"):
        train_agent(Run("reach", method, profile="tiny"), progress=False)


def test_every_method_is_made_of_what_exists():
    from genreward.rewards import available

    for name, method in training.METHODS.items():
        assert method.reward in available() and method.env_reward in ("dense", "sparse"), name
        assert bool(method.fb) == ("fb" in method.needs) and method.what
    assert Run("reach", "sparse").label == "sparse" and Run("reach", "sparse", "dreamer").label == "dreamer_sparse"
    assert len({Run("reach", "sparse", agent, seed).run_id for agent in ("sac", "dreamer") for seed in (0, 1)}) == 4


def test_evaluation_adds_up_the_dense_reward_of_its_own_goals():
    from genreward import envs

    measured = training.evaluate(lambda observation, first: np.zeros(4), "reach", 7, 2, episode_steps=5)
    env = envs.make_env("reach", seed=7, split="eval", episode_steps=5)
    by_hand = [envs.rollout(env, lambda observation: np.zeros(4), frames=False).rewards.sum() for _ in range(2)]
    assert measured["return"] == pytest.approx(np.mean(by_hand), rel=1e-5) and measured["success"] == 0


# --- F and B learning online ------------------------------------------------------------------------------------------


class Toy(gymnasium.Env):
    """Its observation is drawn into its picture, so that features tell which state they are of."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    render_mode, episode_steps = "rgb_array", 12

    def __init__(self):
        self.episode, self.renders = 0, []

    def _look(self):
        return np.array([self.episode, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        return self._look(), 1.0, False, self.t == 12, {"success": False}

    def render(self):
        self.renders.append((self.episode, self.t))
        return np.tile(np.array([10 * self.episode, self.t, 7], np.uint8), (32, 32, 1))


class Colour:
    """psi that reads the state back from the picture: (episode, step, 1)."""

    dim = 3

    def encode(self, frames):
        return (frames[:, 0, 0] / np.array([10, 1, 7])).astype(np.float32)


def online(until):
    goal = Goal("go", (), np.full((9, 32, 32, 3), 7, np.uint8), np.zeros(9), 8)
    fb = ForwardBackward(3, 4, replace(TINY.fb, fb_targets="goal", batch=8), seed=0)
    reward = make_reward("genreward_frame", {"goal": goal, "fb": fb, "encoder": Colour()}, interval=4, beta=1.0)
    env = GoalRewardEnv(Toy(), reward, env_reward="none")
    return OnlineFB(env, fb, until, prefill=8, seed=0), fb, env


def test_online_transitions_are_the_environments_own_and_learning_ends_when_it_should():
    wrapped, fb, env = online(until=18)
    rng, actions = np.random.default_rng(0), []
    for _ in range(3):
        wrapped.reset()
        paid = []
        for _ in range(12):
            actions.append(rng.uniform(-1, 1, 4).astype(np.float32))
            *_, info = wrapped.step(actions[-1])
            paid.append(info["reward_terms"]["frame"])
            assert fb.frozen == (len(actions) >= 18)
        if len(actions) == 12:
            assert not any(paid)  # still learning
    assert fb.updates == 18 - 8 + 1
    steps = [(1, t) for t in range(12)] + [(2, t) for t in range(6)]
    assert wrapped.features[:, :2].tolist() == [list(step) for step in steps]
    assert wrapped.next_features[:, :2].tolist() == [[episode, t + 1] for episode, t in steps]
    assert np.array_equal(wrapped.actions, np.stack(actions)[:18])
    assert [bool(value) for value in paid] == [t % 4 == 0 for t in range(1, 13)]  # frozen: paid at the interval
    assert len(env.unwrapped.renders) == len(set(env.unwrapped.renders))  # no picture is drawn twice
    assert [t for episode, t in env.unwrapped.renders if episode == 3] == [3, 7, 11]  # and none that nobody asks for


def test_online_learning_resumes_where_it_was():
    def steps(wrapped, count):
        rng = np.random.default_rng(wrapped.taken)
        wrapped.reset()
        for _ in range(count):
            wrapped.step(rng.uniform(-1, 1, 4).astype(np.float32))

    first, fb, env = online(until=24)
    steps(first, 12)
    state = first.state_dict()
    steps(first, 12)
    second, other, inner = online(until=24)
    inner.unwrapped.episode = 1
    second.load_state_dict(state)
    assert second.taken == 12 and not other.frozen
    steps(second, 12)
    assert fb.frozen and other.frozen and fb.updates == other.updates
    features, chosen = first.features[:4], first.actions[:4]
    goal = env.reward_model.frame.goal_features
    assert np.array_equal(fb.reward(features, chosen, goal), other.reward(features, chosen, goal))


# --- other suites, two sizes of pictures ------------------------------------------------------------------------------


def test_a_suites_own_episodes_give_the_length_of_a_run_and_its_chunks():
    laptop = profiles.get_profile("laptop")
    for task, length, chunk, steps in (("pick-place", 256, 5120, 30_720), ("walker-walk", 500, 5000, 30_000),
                                       ("door", 200, 5200, 31_200), ("cheetah-run", 250, 5000, 30_000)):
        run = Run(task, "dense", steps=30_720)
        fitted = training.check_run(run)
        assert (fitted.episode_steps, fitted.run.evaluate_every) == (length, chunk)
        assert training.total_steps(run, laptop) == training.total_steps(run, fitted) == steps


def test_walker_walk_is_trained_and_played_in_its_suites_own_episodes(tiny):
    run = Run("walker-walk", "dense", "sac", 0, "tiny", "test", steps=96)  # a chunk is an episode at least
    table = rows(train_agent(run, progress=False))
    assert sorted(set(table["step"])) == [500]
    act, env = training.restore(run)
    observation, _ = env.reset()
    assert act(observation, True).shape == (6,) and env.unwrapped.episode_steps == 500
    env.close()


def test_the_action_of_f_is_as_long_as_the_tasks():
    assert [training._action_dim(task) for task in ("reach", "walker-walk", "door")] == [4, 6, 28]


@pytest.mark.parametrize("distraction", [None, "all-easy-dynamic"])
def test_the_agents_view_is_what_an_environment_of_its_size_shows(distraction):
    distraction = training._distraction((("distraction", distraction),)) if distraction else None
    large, small, plain = (envs.make_env("pick-place", seed=3, size=size, distraction=distraction)
                           for size in (64, 32, 32))
    view = training.AgentView(large, small)
    rng = np.random.default_rng(0)
    try:
        for _ in range(2):
            view.reset()
            plain.reset()
            for _ in range(5):
                action = rng.uniform(-1, 1, 4).astype(np.float32)
                view.step(action)
                plain.step(action)
                np.testing.assert_array_equal(view.render(), plain.render())
                assert large.render().shape == (64, 64, 3)
    finally:
        view.close()
        plain.close()
