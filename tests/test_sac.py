"""SAC in chunks: a chunk after a restart is the chunk of an undisturbed run, number for number."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from genreward.agents.checkpoints import read_checkpoint
from genreward.agents.sac import SACAgent
from genreward.errors import InputError
from genreward.profiles import SACConfig

CONFIG = SACConfig(hidden=(8, 8), learning_starts=16, train_freq=2, gradient_steps=1, buffer_size=60, batch=8)


class Line(gymnasium.Env):
    """A point on a line that starts where a generator of its own says; episodes of 8 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, seed=0):
        self.rng, self.starts = np.random.default_rng(seed), []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.x, self.t = float(self.rng.uniform(-1, 1)), 0
        self.starts.append(self.x)
        return np.array([self.x, 0], np.float32), {}

    def step(self, action):
        self.x, self.t = self.x + 0.2 * float(action[0]), self.t + 1
        return np.array([self.x, self.t / 8], np.float32), -abs(self.x), False, self.t == 8, {}


def weights(agent):
    return {name: value.clone() for name, value in agent.model.policy.state_dict().items()}


def test_two_chunks_with_a_restart_between_are_two_chunks_without(tmp_path):
    """The second chunk overfills the replay, so its ring position is resumed as well."""
    undisturbed = SACAgent(Line(), CONFIG, seed=1)
    undisturbed.learn(40)
    undisturbed.save(tmp_path / "a.pt")
    line = undisturbed.env.rng.bit_generator.state
    undisturbed.learn(40)

    resumed = SACAgent(Line(seed=5), CONFIG, seed=1)
    resumed.load(tmp_path / "a.pt")
    assert resumed.steps == 40
    resumed.env.rng.bit_generator.state = line
    resumed.learn(40)
    assert resumed.steps == undisturbed.steps == 80
    first, second = weights(undisturbed), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(undisturbed.model.log_ent_coef, resumed.model.log_ent_coef)
    assert undisturbed.model.replay_buffer.full
    one, two = undisturbed.model.replay_buffer, resumed.model.replay_buffer
    for name in ("observations", "actions", "rewards"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_the_seed_is_the_agents_and_leaves_the_environment_alone():
    env = Line(seed=3)
    SACAgent(env, CONFIG, seed=1).learn(8)
    assert env.starts[0] == np.random.default_rng(3).uniform(-1, 1)
    one, two, other = (weights(SACAgent(Line(), CONFIG, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_acts_without_noise():
    agent = SACAgent(Line(), CONFIG, seed=0)
    before = weights(agent)
    agent.learn(40)
    assert any(not torch.equal(value, before[name]) for name, value in weights(agent).items())
    observation = np.array([0.5, 0.0])
    assert np.array_equal(agent.act(observation), agent.act(observation))
    noisy = np.stack([agent.act(observation, explore=True) for _ in range(5)])
    assert len(np.unique(noisy)) > 1 and np.abs(noisy).max() <= 1


def test_bad_input_is_named(tmp_path):
    agent = SACAgent(Line(), CONFIG, seed=0)
    agent.learn(16)
    kept = weights(agent)
    with pytest.raises(InputError, match="finite numbers"):
        agent.act(np.array([np.nan, 0]))
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        agent.learn(0)
    path = tmp_path / "whole.pt"
    agent.save(path)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (read_checkpoint, agent.load):
        with pytest.raises(InputError, match="cut.pt is not a whole checkpoint"):
            read(cut)
    with pytest.raises(InputError, match="no such checkpoint: .*gone.pt"):
        agent.load(tmp_path / "gone.pt")
    with pytest.raises(InputError, match=r"another configuration: batch 8 \(here 16\)"):
        SACAgent(Line(), replace(CONFIG, batch=16), seed=0).load(path)
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not a checkpoint of this agent"):
        agent.load(tmp_path / "foreign.pt")
    assert all(torch.equal(value, kept[name]) for name, value in weights(agent).items())


def test_pictures_are_not_for_sac():
    class Pixels(Line):
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    with pytest.raises(InputError, match="SAC learns from state vectors"):
        SACAgent(Pixels(), CONFIG, seed=0)
