"""DreamerV3: rows pair an action with its own outcome, episodes do not leak, and the actor finds the better action."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import IndependentNormal, RSSMRolloutV3, WorldModelWrapper
from torchrl.objectives import DreamerV3ActorLoss
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value.functional import td_lambda_return_estimate

from genreward import files, results
from genreward.agents import check
from genreward.agents.dreamer import DreamerAgent, Replay, lambda_returns
from genreward.errors import InputError
from genreward.profiles import DreamerConfig, SACConfig

CONFIG = DreamerConfig(deter=16, hidden=16, units=16, categoricals=4, classes=4, depth=2, layers=1, blocks=2, batch=4,
                       length=6, imagine_last=3, horizon=3, train_ratio=12.0, prefill=12, warmup=0, replay_size=200)
STATE = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
PIXELS = gymnasium.spaces.Box(0, 255, (16, 32, 3), np.uint8)


def make_agent(seed=0, space=STATE, **changes):
    return DreamerAgent(space, 1, replace(CONFIG, **changes), seed)


def fill(agent, rows=40, episode=10, seed=0, reward=lambda action: float(action[0])):
    """Episodes of random actions in a world where the observation tells the action that led to it."""
    rng = np.random.default_rng(seed)
    for t in range(rows):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        first, last = t % episode == 0, t % episode == episode - 1
        if agent.pixels:
            obs = rng.integers(0, 256, agent.obs_shape, dtype=np.uint8)
        else:
            obs = np.array([t, 0.0 if first else 3 * action[0]], np.float32)
        agent.observe(obs, action, reward(action), first, False, last)
    return agent


def test_rows_pair_each_action_with_its_own_outcome():
    """In a loop of act and step, where the world answers x = 3a and r = -a, every sampled row obeys exactly that."""
    agent = make_agent(batch=16)
    carry, action, reward = agent.initial(), np.zeros(1, np.float32), 0.0
    for t in range(60):
        first, last = t % 12 == 0, t % 12 == 11
        obs = np.array([t, 99.0 if first else 3 * action[0]], np.float32)
        agent.observe(obs, action, reward, first, False, last)
        carry, action = agent.act(carry, obs, first, explore=True)
        reward = -float(action[0])
    batch = agent._batch()
    time, outcome = batch["next", "observation"].unbind(-1)
    start = batch["is_init"][..., 0]
    assert start.any() and not start.all()
    assert ((time % 12 == 0) == start).all() and ((time % 12 == 11) == batch["next", "done"][..., 0]).all()
    assert (time.diff(dim=1) == 1).all()
    actions, rewards = batch["previous_action"][..., 0], batch["next", "reward"][..., 0]
    torch.testing.assert_close(outcome[~start], 3 * actions[~start])
    torch.testing.assert_close(rewards[~start], -actions[~start])
    assert (actions[start] == 0).all() and (rewards[start] == 0).all() and (outcome[start] == 99).all()
    assert actions[~start].std() > 0.2


def test_first_row_of_an_episode_resets_the_recurrent_state():
    """Two histories that differ before (and in the action at) an `is_init` give one belief and posterior from it on."""
    agent = fill(make_agent())
    batch = agent._batch()
    batch["is_init"][:] = False
    batch["is_init"][:, 3] = True
    other = batch.clone()
    other["previous_action"][:, :4] *= -1
    other["next", "observation"][:, :3] += 5
    world_model = agent.model_loss.world_model

    def run(rows):
        torch.manual_seed(0)
        with torch.no_grad():
            return world_model(rows)["next"]

    one, two = run(batch), run(other)
    for key in ("belief", "posterior_logits"):
        assert not torch.allclose(one[key][:, :3], two[key][:, :3])
        torch.testing.assert_close(one[key][:, 3:], two[key][:, 3:])
    batch["is_init"][:, 3] = other["is_init"][:, 3] = False
    assert not torch.allclose(run(batch)["belief"][:, 3:], run(other)["belief"][:, 3:])


def test_acting_filters_as_the_world_model_does():
    """The belief that `act` carries equals the world model's over the same rows, reset included."""
    agent = make_agent(categoricals=1, classes=1)  # one class: no sampling between the two
    rng, carry, beliefs, rows = np.random.default_rng(1), agent.initial(), [], []
    action = np.zeros(1, np.float32)
    for t in range(6):
        obs = rng.normal(size=2).astype(np.float32)
        agent.observe(obs, action, 0.0, t in (0, 4), False, t == 3)
        carry, action = agent.act(carry, obs, t in (0, 4), explore=True)
        beliefs.append(carry["belief"][0])
        rows.append(obs)
    batch = agent._batch()
    assert (batch["next", "observation"][0] == torch.from_numpy(np.stack(rows))).all()
    with torch.no_grad():
        model = agent.model_loss.world_model(batch)["next", "belief"][0]
    torch.testing.assert_close(model, torch.stack(beliefs))
    assert not torch.allclose(model[4], model[3])


def test_sequences_go_on_from_what_was_inferred_before_them():
    """What training infers at a row late in an episode is what acting inferred there, not what a newcomer would."""
    agent = make_agent(categoricals=1, classes=1, batch=16)  # one class: no sampling between the two
    rng, carry, beliefs = np.random.default_rng(2), agent.initial(), []
    action = np.zeros(1, np.float32)
    for t in range(40):
        obs = rng.normal(size=2).astype(np.float32)
        agent.observe(obs, action, 0.0, t in (0, 25), False, t == 24)
        carry, action = agent.act(carry, obs, t in (0, 25), explore=True)
        beliefs.append(carry["belief"][0])
    batch = agent._batch()
    starts = batch["index"][:, 0]
    assert (starts > 12).any() and starts.unique().numel() > 4
    expected = torch.stack(beliefs)
    torch.testing.assert_close(batch["belief"][:, 0][starts > 0], expected[starts - 1][starts > 0], atol=1e-3, rtol=0)
    with torch.no_grad():
        inferred = agent.model_loss.world_model(batch.clone())["next", "belief"]
        batch["belief"][:], batch["state"][:] = 0, 0
        ignorant = agent.model_loss.world_model(batch)["next", "belief"]
    torch.testing.assert_close(inferred, expected[batch["index"]], atol=2e-3, rtol=0)
    assert (ignorant - expected[batch["index"]]).abs().max() > 0.05


def test_an_update_renews_what_the_replay_remembers():
    """Rows that an update replayed get its z and h; all others, and a row acted on with another x, keep theirs."""
    agent = fill(make_agent())
    rows = agent.replay.rows
    assert (rows["classes"] == -1).all() and (rows["belief"] == 0).all()
    kept, batch, losses = [], agent._batch, agent._losses
    agent._batch = lambda: kept.append(batch()) or kept[-1]
    agent._losses = lambda td: kept.append(losses(td)) or kept[-1]
    agent.update()
    index, posterior = kept[0]["index"].flatten().numpy(), kept[1][2].flatten()
    state = np.eye(CONFIG.classes)[rows["classes"][index]].reshape(len(index), -1)
    order = {row: last for last, row in enumerate(index)}  # a row drawn twice: either may stay
    last = np.array([order[row] for row in index])
    np.testing.assert_allclose(state[last], posterior["state"].detach().numpy()[last], atol=1e-5)
    np.testing.assert_allclose(rows["belief"][index][last], posterior["belief"].detach().numpy()[last], atol=1e-3)
    others = np.setdiff1d(np.arange(200), index)
    assert (rows["classes"][others] == -1).all()
    before = {name: rows[name].copy() for name in ("classes", "belief")}
    agent.act(agent.initial(), np.array([7.0, 7.0]), False, explore=True)
    agent.act(agent.initial(), rows["observation"][39], False, explore=False)
    assert all((rows[name] == before[name]).all() for name in before)
    agent.act(agent.initial(), rows["observation"][39], False, explore=True)
    assert (rows["belief"][39] != before["belief"][39]).any()


def test_model_sees_how_large_a_single_action_or_observation_is():
    """At the start a small push differs from a full one as clearly as left from right, behind the RMS norm too."""
    space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    for seed in range(3):
        agent = make_agent(seed, space=space, units=64, hidden=64)
        values = torch.tensor([[-1.0], [0.2], [1.0]])
        with torch.no_grad():
            for left, small, full in (agent.prior.rnn.action_projection(values), agent.encoder(values)):
                assert (small - full).norm() > 0.25 * (left - full).norm()


def test_rollout_equals_torchrls():
    """Posteriors so sharp that sampling takes their maximum: all outputs are those of `RSSMRolloutV3`."""
    agent = fill(make_agent())
    agent.posterior.unimix = 0.0
    with torch.no_grad():
        agent.posterior.obs_rnn_to_post_projector[-1].weight.mul_(1e6)
    latent = [("next", "state"), ("next", "belief")]
    theirs = RSSMRolloutV3(
        TensorDictModule(agent.prior, ["state", "belief", "previous_action"], [("next", "prior_logits"), *latent]),
        TensorDictModule(agent.posterior, [latent[1], ("next", "encoded_latents")],
                         [("next", "posterior_logits"), latent[0]]))
    agent.update()
    batch = agent._batch()
    batch["is_init"][:, 4] = True
    assert batch["belief"][:, 0].abs().max() > 0
    with torch.no_grad():
        mine = agent.model_loss.world_model(batch.clone())["next"]
        batch["next", "encoded_latents"] = mine["encoded_latents"]
        expected = theirs(batch)["next"]
    for key in ("state", "belief", "prior_logits", "posterior_logits"):
        torch.testing.assert_close(mine[key], expected[key])


def test_lambda_returns_closed_forms():
    """lambda 1 is the discounted sum with a final bootstrap, lambda 0 is one step; between them as TorchRL's."""
    reward, value = torch.rand(5, 3, 1), torch.rand(5, 3, 1)
    discount = torch.full_like(reward, 0.9)
    powers = 0.9 ** torch.arange(5.0)[:, None, None]
    full = lambda_returns(reward, value, discount, 1.0)
    torch.testing.assert_close(full[0], (powers * reward).sum(0) + 0.9**5 * value[-1])
    torch.testing.assert_close(lambda_returns(reward, value, discount, 0.0), reward + 0.9 * value)
    no = torch.zeros(3, 5, 1, dtype=torch.bool)
    theirs = td_lambda_return_estimate(0.9, 0.7, value.transpose(0, 1), reward.transpose(0, 1), no, no)
    torch.testing.assert_close(lambda_returns(reward, value, discount, 0.7), theirs.transpose(0, 1))
    ended = discount.clone()
    ended[2] = 0
    cut = lambda_returns(reward, value, ended, 0.95)
    torch.testing.assert_close(cut[2], reward[2])
    changed = reward.clone()
    changed[3:] += 100
    torch.testing.assert_close(lambda_returns(changed, value, ended, 0.95)[:3], cut[:3])


def test_imagination_equals_torchrls_environment_and_actor_loss():
    """On one imagined rollout of TorchRL's `DreamerEnv`, returns and actor loss are those of `DreamerV3ActorLoss`."""
    agent = fill(make_agent(model_lr=1e-2, value_lr=1e-2))
    for _ in range(4):
        agent.update()
    policy = ProbabilisticTensorDictSequential(
        TensorDictModule(lambda *latent: (agent.actor(*latent).mean, agent.actor(*latent).stddev), ["state", "belief"],
                         ["loc", "scale"]),
        ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=IndependentNormal,
                                      distribution_kwargs={"tanh_loc": False},
                                      default_interaction_type=InteractionType.RANDOM))
    latent = ["state", "belief"]
    env = DreamerEnv(WorldModelWrapper(
        TensorDictModule(agent.prior, [*latent, "action"], ["_", *latent]),
        TensorDictSequential(TensorDictModule(agent.reward_head, latent, ["reward_logits"]),
                             TensorDictModule(agent.two_hot, ["reward_logits"], ["reward"]))), (16,), (16,))
    env.observation_spec = Composite(state=Unbounded(16), belief=Unbounded(16))
    env.state_spec = env.observation_spec.clone()
    env.action_spec, env.reward_spec = Bounded(-1, 1, (1,)), Unbounded((1,))
    goes_on = TensorDictSequential(TensorDictModule(agent.continue_head, latent, ["logit"]),
                                   TensorDictModule(torch.sigmoid, ["logit"], ["continuation"]))
    theirs = DreamerV3ActorLoss(policy, agent.critic, env, continuation_model=goes_on, use_reinforce=True,
                                imagination_horizon=CONFIG.horizon, entropy_bonus=CONFIG.entropy)
    theirs.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=CONFIG.lambda_)
    theirs.retnorm.load_state_dict(agent.return_norm.state_dict())
    batch = agent.model_loss.world_model(agent._batch())["next"].select(*latent).detach().flatten(0, 1)
    torch.manual_seed(0)
    loss, rollout = theirs(batch)
    agent.imagine = lambda *_: (*(torch.cat([rollout[key], rollout["next", key][:, -1:]], 1).transpose(0, 1)
                                  for key in latent), rollout["action"].transpose(0, 1))
    mine, _, first_return = agent._imagine_losses(batch["state"], batch["belief"])
    assert first_return.abs().max() > 1e-3
    torch.testing.assert_close(first_return, rollout["lambda_target"][:, 0, 0])
    torch.testing.assert_close(mine["actor"].detach(), loss["loss_actor"].detach())


class KnownWorld(nn.Module):
    """A world model of a bandit: the next belief is the action, whatever came before."""

    def forward(self, state, belief, action):
        return None, state, action.expand_as(belief)


def test_actor_learns_the_better_action_in_a_known_imagined_world():
    """Paid -(a - 0.5)^2 at every imagined step, the policy's mean goes from about 0 to near 0.5, for either sign."""
    for best in (0.5, -0.5):
        agent = make_agent(discount=0.9)
        agent.prior = KnownWorld()
        agent.reward_head = lambda state, belief, best=best: -10 * (belief[..., :1] - best) ** 2
        agent.two_hot = nn.Identity()
        agent.continue_head = lambda state, belief: torch.full_like(belief[..., :1], 2.2)  # sigmoid: 0.9
        state, belief = torch.zeros(32, agent.state_dim), torch.zeros(32, CONFIG.deter)
        parameters = [*agent.actor.parameters(), *(p for p in agent.value_loss.parameters() if p.requires_grad)]
        optimizer = torch.optim.Adam(parameters, lr=3e-3)
        torch.manual_seed(0)
        before = float(agent.actor(state, belief).mean[0, 0].detach())
        for _ in range(120):
            losses, _, _ = agent._imagine_losses(state, belief)
            optimizer.zero_grad()
            (losses["actor"] + losses["value"]).backward()
            optimizer.step()
        after = float(agent.actor(state, belief).mean[0, 0].detach())
        assert abs(before) < 0.1 and abs(after - best) < 0.2


def test_learns_a_bandit_from_its_own_replay():
    """From random rows alone, paid the action itself: model, critic and actor together come to prefer large actions."""
    agent = make_agent(model_lr=5e-3, actor_lr=5e-3, value_lr=5e-3, batch=8)
    fill(agent, rows=200)
    obs = np.zeros(2, np.float32)
    _, before = agent.act(agent.initial(), obs, first=True, explore=False)
    losses = [agent.update() for _ in range(100)]
    _, after = agent.act(agent.initial(), obs, first=True, explore=False)
    assert losses[-1]["model_reward"] < 0.7 * losses[0]["model_reward"]
    assert abs(before[0]) < 0.1 and after[0] > 0.3


def test_update_trains_all_parts_and_moves_the_slow_critic_slowly():
    agent = fill(make_agent())
    heads = {"encoder": agent.encoder, "prior": agent.prior, "posterior": agent.posterior, "reward": agent.reward_head,
             "continue": agent.continue_head, "actor": agent.actor, "critic": agent.critic}
    before = {name: [p.detach().clone() for p in head.parameters()] for name, head in heads.items()}
    slow = [p.clone() for p in agent.value_loss.target_value_model_params.flatten_keys().values()]
    agent.update()
    agent.update()
    change = {name: max(float((p - old).abs().max().detach())
                        for p, old in zip(head.parameters(), before[name], strict=True))
              for name, head in heads.items()}
    assert all(value > 1e-5 for value in change.values()), change
    now = list(agent.value_loss.target_value_model_params.flatten_keys().values())
    slow_change = max(float((p - old).abs().max()) for p, old in zip(now, slow, strict=True))
    assert 0 < slow_change < 0.2 * change["critic"]


def test_time_limit_is_not_terminal():
    """The continue head learns from `terminated` alone; `done` without it changes nothing."""
    agent = fill(make_agent())
    batch = agent._batch()

    def loss(done, terminated):
        rows = batch.clone()
        rows["next", "done"][:], rows["next", "terminated"][:] = done, terminated
        torch.manual_seed(0)
        return agent.model_loss(rows)[0]["loss_model_continue"].item()

    assert loss(True, False) == loss(False, False) != loss(True, True)


def test_determined_by_the_seed_and_leaves_the_global_random_state_alone():
    def losses(seed, disturb):
        agent = fill(make_agent(seed))
        found = []
        for _ in range(3):
            torch.manual_seed(disturb)
            np.random.seed(disturb)
            found.append(agent.update())
            agent.act(agent.initial(), np.zeros(2), True, explore=False)  # an evaluation must not matter either
        return found

    assert losses(3, 0) == losses(3, 1)
    assert losses(3, 0)[2] != losses(4, 0)[2]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    agent = fill(make_agent())
    agent.update()
    agent.act(agent.initial(), np.zeros(2), True, explore=True)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_goes_on_exactly_where_it_was(tmp_path):
    agent = fill(make_agent(), rows=230)  # more than the replay holds: the ring's cursor matters
    agent.updates_due(1)
    agent.update()
    agent.save(tmp_path / "agent.pt")
    other = make_agent(seed=9)
    other.load(tmp_path / "agent.pt")
    for step in (2, 3, 4, 5):
        assert agent.updates_due(step) == other.updates_due(step)
    obs, carry, other_carry = np.ones(2, np.float32), agent.initial(), other.initial()
    for explore in (True, False, True):
        carry, mine = agent.act(carry, obs, False, explore)
        other_carry, theirs = other.act(other_carry, obs, False, explore)
        assert (mine == theirs).all()
    for late in (agent, other):
        late.observe(obs, np.zeros(1), 1.0, False, False, False)
    assert [agent.update() for _ in range(3)] == [other.update() for _ in range(3)]
    assert agent.updates == other.updates == 4


def test_damaged_or_foreign_checkpoint_is_one_clear_line(tmp_path):
    agent = fill(make_agent())
    path = tmp_path / "agent.pt"
    agent.save(path)
    whole = path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["agent.pt"]
    weights = [p.detach().clone() for p in agent.actor.parameters()]
    for cut in (0, 10, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="not a whole checkpoint"):
            agent.load(path)
    assert all(torch.equal(a, b) for a, b in zip(weights, agent.actor.parameters(), strict=True))
    with pytest.raises(InputError, match="no such checkpoint"):
        agent.load(tmp_path / "nothing.pt")
    path.write_bytes(whole)
    with pytest.raises(InputError, match="units 16 .here 32."):
        make_agent(units=32).load(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="not a checkpoint of this agent"):
        agent.load(path)


def test_pixels():
    """Images go in as (H, W, 3) and reach the encoder as (B, T, 3, H, W); the whole update runs on them."""
    agent = fill(make_agent(space=PIXELS))
    batch = agent._batch()
    pixels = batch["next", "pixels"]
    assert pixels.shape == (4, 6, 3, 16, 32) and pixels.dtype == torch.uint8
    stored = agent.replay.rows["observation"][:40]
    assert any((pixels[0, 0].movedim(0, -1).numpy() == row).all() for row in stored)
    with torch.no_grad():
        out = agent.model_loss.world_model(batch)
    assert out["next", "reconstruction"].shape == pixels.shape
    first = agent.update()
    assert np.isfinite(list(first.values())).all()
    for _ in range(8):
        last = agent.update()
    assert last["model_reco"] < first["model_reco"]
    _, action = agent.act(agent.initial(), stored[0], True, explore=True)
    assert action.shape == (1,) and action.dtype == np.float32 and abs(action[0]) <= 1


def test_imagination_starts_from_the_last_rows_and_may_start_from_all():
    for last, starts in ((3, 3), (None, 6)):
        agent = fill(make_agent(imagine_last=last))
        seen = []
        imagine = agent.imagine
        agent.imagine = lambda state, belief, f=imagine, seen=seen: seen.append(len(state)) or f(state, belief)
        agent.update()
        assert seen == [4 * starts]
        states, beliefs, actions = imagine(torch.zeros(5, agent.state_dim), torch.zeros(5, 16))
        assert states.shape == (4, 5, agent.state_dim) and beliefs.shape == (4, 5, 16) and actions.shape == (3, 5, 1)


def test_replay_gives_consecutive_rows_and_forgets_the_oldest():
    replay = Replay(20, (1,), np.dtype(np.float32), 1, categoricals=2, deter=1)
    rng = np.random.default_rng(0)
    for t in range(47):
        replay.append(observation=t, previous_action=0, reward=t, is_init=t == 0, terminated=False, done=False)
        if t % 7:
            replay.remember(np.array([t % 20]), np.array([[t, t]]), np.array([[t]]))
        if replay.count >= 5:
            sample = replay.sample(rng, 30, 5)
            time, before = sample["observation"][..., 0], sample["observation"][:, 0, 0] - 1
            assert (np.diff(time, axis=1) == 1).all() and time.min() >= max(0, t - 19) and time.max() <= t
            unknown = (before < max(0, t - 19)) | (before % 7 == 0)  # forgotten, or never inferred
            assert (sample["classes"] == np.where(unknown, -1, before)[:, None]).all()
            assert (sample["belief"][:, 0] == np.where(unknown, 0, before)).all()
            assert (replay.rows["observation"][sample["index"], 0] == time).all()
    starts = replay.sample(rng, 2000, 5)["reward"][:, 0, 0]
    assert set(starts) == set(range(27, 43))
    assert np.unique(starts, return_counts=True)[1].min() > 70  # 125 expected of each


def test_updates_follow_the_train_ratio_after_prefill():
    agent = make_agent(prefill=12, train_ratio=12.0)  # 24 replayed rows an update: one update every second step
    due = []
    for step in range(1, 41):
        agent.observe(np.zeros(2), np.zeros(1), 0.0, step == 1, False, False)
        due.append(agent.updates_due(step))
    assert not any(due[:11]) and 13 <= sum(due) <= 16 and max(due) == 1
    assert make_agent().update() == {}


def test_batched_acting_equals_acting_alone_in_shape_and_range():
    agent = fill(make_agent())
    carry, actions = agent.act(agent.initial(3), np.zeros((3, 2)), True, explore=True)
    assert actions.shape == (3, 1) and np.abs(actions).max() <= 1 and carry["belief"].shape == (3, 16)
    assert len(set(actions[:, 0])) > 1
    with pytest.raises(InputError, match="3 observations for a carry of 1"):
        agent.act(agent.initial(), np.zeros((3, 2)), True, explore=True)


def test_bad_input_is_refused_before_it_reaches_the_replay():
    agent = make_agent()
    obs, action = np.zeros(2), np.zeros(1)
    for arguments, message in [
        ((np.array([0, np.nan]), action, 0.0, False, False, False), "NaN"),
        ((np.zeros(3), action, 0.0, False, False, False), r"shape \(3,\); valid: \(2,\)"),
        ((obs, np.zeros(2), 0.0, False, False, False), r"action of shape \(2,\)"),
        ((obs, np.array([np.nan]), 0.0, False, False, False), "finite"),
        ((obs, np.array([1.5]), 0.0, False, False, False), r"\[-1, 1\]"),
        ((obs, action, float("inf"), False, False, False), "reward inf"),
        ((obs, action, 0.0, False, True, False), "terminal"),
    ]:
        with pytest.raises(InputError, match=message):
            agent.observe(*arguments)
    assert agent.replay.count == 0
    with pytest.raises(InputError, match="NaN"):
        agent.act(agent.initial(), np.array([np.nan, 0]), True, True)
    with pytest.raises(InputError, match="uint8"):
        make_agent(space=PIXELS).act(agent.initial(), np.zeros((16, 32, 3)), True, True)


def test_bad_configuration_is_refused():
    for changes, message in [({"blocks": 3}, "blocks 3"), ({"imagine_last": 9}, "imagine_last 9"),
                             ({"length": 1}, "length 1"), ({"discount": 1.0}, "discount"), ({"units": 0}, "units 0")]:
        with pytest.raises(InputError, match=message):
            make_agent(**changes)
    with pytest.raises(InputError, match="divisible by 16"):
        make_agent(space=gymnasium.spaces.Box(0, 255, (20, 16, 3), np.uint8))
    with pytest.raises(InputError, match="action_dim 0"):
        DreamerAgent(STATE, 0, CONFIG, 0)
    with pytest.raises(InputError, match="Box"):
        DreamerAgent(gymnasium.spaces.Discrete(3), 1, CONFIG, 0)


class Killed(Exception):
    """Stands for a kill in the middle of a leg."""


SMALL_SAC = SACConfig(hidden=(8, 8), learning_starts=4, batch=8, buffer_size=100)
SUBJECTS = {"dreamer": lambda: check.dreamer(3, replace(CONFIG, prefill=8), threshold=1e9, leg=1, seconds=0.2),
            "sac": lambda: check.sac(3, SMALL_SAC, threshold=1e9, leg=1, steps=10)}


def run_check(subject, root, legs):
    """Run a check on episodes of 10 steps until `legs` legs of this call have been evaluated."""
    evaluate, calls = subject.evaluate, []

    def evaluate_or_die():
        calls.append(1)
        if len(calls) > legs:
            raise Killed
        return evaluate()

    subject.evaluate = evaluate_or_die
    with pytest.raises(Killed):
        check.run(subject, root, 3)


@pytest.mark.parametrize("agent", ["dreamer", "sac"])
def test_check_killed_in_a_leg_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, agent):
    """The curve of a run killed after one leg and started again equals that of an undisturbed one, to the digit."""
    monkeypatch.setattr(check, "EPISODES", 2)
    for name, parts in (("whole", [3]), ("killed", [1, 2])):
        for legs in parts:
            run_check(SUBJECTS[agent](), tmp_path / name, legs)
    tables = [results.load(tmp_path / name / "results" / "check") for name in ("whole", "killed")]
    one, two = (table[~table["metric"].str.contains("seconds")].drop(columns="run") for table in tables)
    assert one.equals(two)
    assert sorted(one["step"].unique()) == [0, 10, 20, 30]
    assert {"return_mean", "random_return", "zero_action_return"} <= set(one["metric"])
    assert len(list((tmp_path / "killed" / "build" / "check").iterdir())) == 2  # one state, one checkpoint


def test_check_stops_when_the_threshold_and_the_margin_are_reached(tmp_path, monkeypatch):
    """Doing nothing never counts as learning: what is wanted lies above it, and both returns are kept."""
    monkeypatch.setattr(check, "EPISODES", 2)
    subject = check.dreamer(0, replace(CONFIG, prefill=8), threshold=0.0, leg=1, seconds=0.2)
    returns = iter([5.0, 1e6])
    subject.evaluate = lambda: np.full(2, next(returns))
    subject.margin = 50.0
    assert check.run(subject, tmp_path, 0) is True
    record = files.read_json(tmp_path / "results" / "check" / "dreamer_cartpole-balance.json")
    assert record["reached"] is True and record["steps"] == 20
    assert record["wanted"] == pytest.approx(max(record["baselines"].values()) + 50)
    assert check.run(subject, tmp_path, 0) is True  # finished: no third evaluation, which would raise


def test_cartpole_is_a_time_limit_and_repeats_its_seeds():
    env = check.CartpoleBalance(0, seconds=0.2)
    first, _ = env.reset(seed=5)
    steps = [env.step(np.array([0.3])) for _ in range(10)]
    assert [step[3] for step in steps] == [False] * 9 + [True] and not any(step[2] for step in steps)
    assert all(0 <= step[1] <= 2 for step in steps) and first.shape == (5,)
    state = env.rng_state()
    second, _ = env.reset()
    env.set_rng_state(state)
    assert np.array_equal(env.reset()[0], second) and not np.array_equal(first, second)
    assert np.array_equal(env.reset(seed=5)[0], first)


def test_check_refuses_an_unknown_agent():
    with pytest.raises(InputError, match="unknown agent 'ppo'; valid: both, dreamer, sac"):
        check.main(["ppo"])
    with pytest.raises(InputError, match="held out"):
        check.main(["sac", "--seed", "10000"])
