"""DreamerV3 (Hafner et al. 2023, arXiv 2301.04104) from TorchRL's parts, from pixels or from state, on one page.

It comes after the reward models and before `training.py`: whatever reward the environment pays, this agent is told
rows, learns a world model from them, and learns to act inside that model. Networks, world-model loss, critic loss,
return normaliser, optimiser, slow critic and update schedule are TorchRL's; how they are connected is below.

One **row** is what the agent knows when an observation arrives: the action that led there, the reward paid on the way,
the observation. So an action stands in the row of its own outcome, and the first row of an episode has none.

| key (`B` sequences of `T` rows)    | shape        | written by           | what it is                              |
|------------------------------------|--------------|----------------------|-----------------------------------------|
| `previous_action`                  | B, T, A      | replay               | a_{t-1}, in [-1, 1]; ignored if is_init |
| `is_init`                          | B, T, 1 bool | replay               | x_t is the first of its episode         |
| `next/observation` or `next/pixels`| B, T, ...    | replay               | x_t (pixels: uint8, channels first)     |
| `next/reward`                      | B, T, 1      | replay, `reward`     | r_t, then its prediction                |
| `next/terminated`, `next/done`     | B, T, 1 bool | replay               | x_t is terminal; x_t ends the episode   |
| `index`                            | B, T         | replay               | where in the replay the row is          |
| `state`, `belief`                  | B, T, Z or D | replay at t = 0      | z_{t-1}, h_{t-1}                        |
| `next/encoded_latents`             | B, T, E      | encoder              | e_t; this name keeps the rollout fast   |
| `next/prior_logits`                | B, T, C, K   | prior                | p(z_t given h_t)                        |
| `next/posterior_logits`            | B, T, C, K   | posterior            | q(z_t given h_t, e_t)                   |
| `next/state`, `next/belief`        | B, T, Z or D | posterior, prior     | z_t (one-hot, Z = C K) and h_t          |
| `next/target`, `next/reconstruction` | as x_t     | symlog, decoder      | symlog(x_t) or pixels, and its prediction |
| `next/reward_logits`               | B, T, 255    | reward head          | two-hot reward                          |
| `next/continue_pred`               | B, T, 1      | continue head        | logit of discount x (not terminal)      |
| `state_value_logits`, `state_value`| ..., 255 or 1| critic               | two-hot value                           |
| `lambda_target`, `discount_weight` | H, N, 1      | `_imagine_losses`    | lambda-return, product of continuations |

Where TorchRL 0.14.1 is left aside, and why (its losses were compared with the paper's equations; none was wrong):

- **Imagination and the actor's loss** are written out here, since they are what a reader comes to see. A test holds
  them against `DreamerEnv.rollout` with `DreamerV3ActorLoss`: same returns, same loss. Written out, the heads run once
  over all imagined states instead of at every step (a quarter faster on one CPU core, critic's loss included), and
  imagination can start from the last few rows of each sequence only (`imagine_last`, as the reference implementation
  offers), which `DreamerV3Loss` cannot.
- **The replay** is a ring of NumPy rows: a checkpoint holds plain arrays and no more rows than were written. With
  `SliceSampler` each draw after an insertion looks for episode ends in the whole store (three times slower at 20,000
  rows), its default `init_key` marks the start of *every* slice as an episode's start, so that the recurrent model
  drops a real action, and slices across an episode's end, which the `is_init` reset makes harmless, are not offered.
  Sequences go on from the z and h that were last inferred at the row before them, as in the reference implementation.
- **One initial value**: layers that read raw numbers before an RMS norm start with random biases (`_random_bias`).
- **Defaults.** TorchRL's are not DreamerV3's: `kl_mode="separate"`, `unimix=0.01`, block GRU, RMS norm, two-hot critic,
  slow-critic regularisation 1 and the continuation target are set explicitly below.

Two traps that are no fault of TorchRL's. With discount 0.997 values are up to 333 rewards high and take thousands of
updates to get there: a short budget needs a shorter horizon (see `check.py`). And sequences that all begin with z = h =
0 teach the model little more than its first guesses: the KL loss is free up to one nat a row, so what z knows of the
state grows by about that much a row, and after eight rows a pole is still known only to a twentieth of a radian.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.modules import (
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    PercentileValueNorm,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMStateEstimatorV3,
    SymExpTwoHot,
)
from torchrl.objectives import DreamerV3ModelLoss, DreamerV3ValueLoss, SoftUpdate, symlog
from torchrl.trainers.algorithms import DreamerV3Optimizer, DreamerV3UpdateRatio

from .. import files
from ..errors import InputError, unknown
from ..profiles import DreamerConfig
from .checkpoints import check_state, read_checkpoint

UNIMIX = 0.01  # share of the uniform distribution in every categorical
BINS = 255  # of the two-hot reward and value, between symexp(-20) and symexp(20)
SLOW_CRITIC_RATE = 0.02
REPLAY_VALUE_WEIGHT = 0.3  # of the critic's loss on real sequences, as in the reference implementation
FORMAT = "genreward-dreamer-2"

Carry = dict[str, Tensor]


def lambda_returns(reward: Tensor, value: Tensor, continuation: Tensor, lambda_: float) -> Tensor:
    """Lambda-returns of H imagined steps (DreamerV3, Eq. 5), from the end backwards.

    R_t = r_{t+1} + c_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1}) with R_H = v_H; the discount is part of c. All three
    inputs are (H, ...) and belong to steps 1..H; the answer (H, ...) belongs to steps 0..H-1.
    """
    returns, following = [], value[-1]
    for step in reversed(range(len(reward))):
        following = reward[step] + continuation[step] * ((1 - lambda_) * value[step] + lambda_ * following)
        returns.append(following)
    return torch.stack(returns[::-1])


class Actor(nn.Module):
    """A bounded normal policy: mean through tanh, standard deviation in [0.1, 1]; actions are clipped when executed."""

    def __init__(self, features: int, actions: int, layers: int, units: int):
        super().__init__()
        self.net = DreamerV3MLP(features, 2 * actions, depth=layers, num_cells=units, outscale=0.01)

    def forward(self, state: Tensor, belief: Tensor) -> Independent:
        """(..., Z) and (..., D) -> a distribution over (..., A)."""
        mean, raw = self.net(state, belief).chunk(2, -1)
        return Independent(Normal(mean.tanh(), 0.1 + 0.9 * torch.sigmoid(raw + 2), validate_args=False), 1,
                           validate_args=False)


class Rollout(nn.Module):
    """The recurrent model over sequences: z and h of every row, from those before the first and all observations."""

    def __init__(self, prior: RSSMPriorV3, posterior: RSSMPosteriorV3):
        super().__init__()
        self.prior, self.posterior = prior, posterior

    def forward(self, state: Tensor, belief: Tensor, action: Tensor, is_init: Tensor,
                embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, T, Z), (B, T, D), (B, T, A), (B, T, 1), (B, T, E) -> z, h, prior and posterior logits (B, T, C, K).

        Of `state` and `belief` the first row alone counts: what was known before the sequence. Where `is_init` is set,
        they and the action are put to zero.
        """
        goes_on = (~is_init).to(belief.dtype)
        action = action * goes_on
        z, h = state[:, 0], belief[:, 0]
        states, beliefs, logits = [], [], []
        for t in range(action.shape[1]):
            h = self.prior.rnn(z * goes_on[:, t], h * goes_on[:, t], action[:, t])
            posterior, z = self.posterior(h, embedding[:, t])
            states.append(z)
            beliefs.append(h)
            logits.append(posterior)
        belief, logits = torch.stack(beliefs, 1), torch.stack(logits, 1)
        prior = self.prior.rnn_to_prior_projector(belief).view(logits.shape)  # nothing in the loop depends on it
        return torch.stack(states, 1), belief, prior, logits


class Replay:
    """A ring of rows. A sequence starts at any row and may cross an episode's end: `is_init` resets the model there.

    Beside what was observed, a row keeps the latest z (classes, -1 while unknown) and h that the model inferred there,
    first while acting, then at every update that replays the row. They are where a later sequence goes on from.
    """

    def __init__(self, size: int, obs_shape: tuple[int, ...], obs_dtype: np.dtype, action_dim: int, categoricals: int,
                 deter: int):
        self.size, self.count, self.cursor = size, 0, 0
        self.rows = {
            "observation": np.zeros((size, *obs_shape), obs_dtype),
            "previous_action": np.zeros((size, action_dim), np.float32),
            "reward": np.zeros((size, 1), np.float32),
            "is_init": np.zeros((size, 1), bool),
            "terminated": np.zeros((size, 1), bool),
            "done": np.zeros((size, 1), bool),
            "classes": np.full((size, categoricals), -1, np.int16),
            "belief": np.zeros((size, deter), np.float16),  # in [-1, 1], so good to 0.0005
        }

    def append(self, **row: Any) -> None:
        """Write one row, its z and h unknown; the oldest is overwritten once the ring is full."""
        for name, value in {**row, "classes": -1, "belief": 0}.items():
            self.rows[name][self.cursor] = value
        self.cursor, self.count = (self.cursor + 1) % self.size, min(self.count + 1, self.size)

    def remember(self, index: np.ndarray, classes: np.ndarray, belief: np.ndarray) -> None:
        """Write what the model infers at rows `index` (N,): z as classes (N, C) and h (N, D)."""
        self.rows["classes"][index], self.rows["belief"][index] = classes, belief

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
        """`batch` sequences of `length` consecutive rows, each array (batch, length, ...); starts are uniform.

        `index` (batch, length) says which rows they are; `classes` (batch, C) and `belief` (batch, D) belong to the row
        *before* each sequence, and are -1 and 0 where there is none.
        """
        oldest = self.cursor if self.count == self.size else 0
        starts = rng.integers(0, self.count - length + 1, size=batch)
        index = (oldest + starts[:, None] + np.arange(length)) % self.size
        sample = {name: rows[index] for name, rows in self.rows.items() if name not in ("classes", "belief")}
        before, known = (index[:, 0] - 1) % self.size, starts[:, None] > 0
        return {**sample, "index": index, "classes": np.where(known, self.rows["classes"][before], -1),
                "belief": np.where(known, self.rows["belief"][before], 0)}

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far (copies), the number of them and the cursor."""
        rows = {name: torch.from_numpy(rows[: self.count].copy()) for name, rows in self.rows.items()}
        return {"count": self.count, "cursor": self.cursor, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.cursor = state["count"], state["cursor"]
        for name, rows in state["rows"].items():
            self.rows[name][: self.count] = rows.numpy()


class DreamerAgent:
    """DreamerV3 behind the five calls of a training loop: `initial`, `act`, `observe`, `updates_due`, `update`.

    Args:
        obs_space: a `gymnasium.spaces.Box`, (S,) float for state or (H, W, 3) uint8 for pixels (H, W divisible by 16).
        action_dim: A; actions are in [-1, 1].
        config: sizes and rates (`profiles.DreamerConfig`).
        seed: of the weights and of every later draw. The global random state is neither read nor changed.
        device: where the networks live; the replay stays in main memory.

    Raises:
        InputError: a space, size or configuration that cannot work.
    """

    def __init__(self, obs_space: gymnasium.spaces.Box, action_dim: int, config: DreamerConfig, seed: int,
                 device: str | torch.device = "cpu"):
        self.obs_shape = _check(obs_space, action_dim, config)
        self.action_dim, self.config, self.device = action_dim, config, torch.device(device)
        self.pixels = len(self.obs_shape) == 3
        self._random: dict[str, list[Tensor]] = {}
        with torch.random.fork_rng(self._cuda()):
            for stream, number in (("evaluate", seed + 1_000_003), ("train", seed)):
                torch.manual_seed(number)
                self._random[stream] = self._random_state()
        self._rng = np.random.default_rng(seed)
        with self._stream("train"):
            self._build()
        self.replay = Replay(config.replay_size, self.obs_shape, np.dtype(np.uint8 if self.pixels else np.float32),
                             action_dim, config.categoricals, config.deter)
        self._ratio = DreamerV3UpdateRatio(config.train_ratio / (config.batch * config.length))
        self.rows_seen = 0
        self.updates = 0

    # The networks and the losses that train them ------------------------------------------------------------------

    def _build(self) -> None:
        c = self.config
        self.state_dim = c.categoricals * c.classes
        features = self.state_dim + c.deter
        key = "pixels" if self.pixels else "observation"
        self._obs_key = ("next", key)

        def head(outputs: int | None, layers: int, outscale: float = 1.0, inputs: int = features) -> DreamerV3MLP:
            return DreamerV3MLP(inputs, outputs, depth=layers, num_cells=c.units, outscale=outscale)

        if self.pixels:
            height, width, channels = self.obs_shape
            shape = (channels, height, width)
            self.encoder: nn.Module = DreamerV3ImageEncoder(channels, c.depth)
            embedding = self.encoder.output_features(shape)
            decoder: nn.Module = DreamerV3ImageDecoder(features, shape, c.depth, num_blocks=c.blocks)
        else:
            mlp = head(None, c.layers, inputs=self.obs_shape[0])
            _random_bias(mlp.model[0])
            self.encoder = nn.Sequential(_Symlog(), mlp)
            embedding, decoder = c.units, head(self.obs_shape[0], c.layers)
        self.prior = RSSMPriorV3(action_shape=(self.action_dim,), action_dim=self.action_dim, hidden_dim=c.hidden,
                                 rnn_hidden_dim=c.deter, num_categoricals=c.categoricals, num_classes=c.classes,
                                 recurrent_model="block_gru", num_blocks=c.blocks, unimix=UNIMIX)
        _random_bias(self.prior.rnn.action_projection[0])
        self.posterior = RSSMPosteriorV3(hidden_dim=c.hidden, rnn_hidden_dim=c.deter, num_categoricals=c.categoricals,
                                         num_classes=c.classes, obs_embed_dim=embedding, use_rms_norm=True,
                                         unimix=UNIMIX)
        self.reward_head, self.continue_head = head(BINS, 1, outscale=0.0), head(1, 1)
        self.actor = Actor(features, self.action_dim, c.layers, c.units)
        self.two_hot = SymExpTwoHot(BINS)

        latent = [("next", "state"), ("next", "belief")]
        rollout = TensorDictModule(
            Rollout(self.prior, self.posterior),
            ["state", "belief", "previous_action", "is_init", ("next", "encoded_latents")],
            [*latent, ("next", "prior_logits"), ("next", "posterior_logits")])
        world_model = TensorDictSequential(
            TensorDictModule(_unchanged if self.pixels else symlog, [self._obs_key], [("next", "target")]),
            TensorDictModule(self.encoder, [self._obs_key], [("next", "encoded_latents")]),
            rollout,
            TensorDictModule(decoder, latent, [("next", "reconstruction")]),
            TensorDictModule(self.reward_head, latent, [("next", "reward_logits")]),
            TensorDictModule(self.two_hot, [("next", "reward_logits")], [("next", "reward")]),
            TensorDictModule(self.continue_head, latent, [("next", "continue_pred")]))
        self.critic = TensorDictSequential(
            TensorDictModule(head(BINS, c.layers, outscale=0.0), ["state", "belief"], ["state_value_logits"]),
            TensorDictModule(self.two_hot, ["state_value_logits"], ["state_value"]))

        # `continue_target_scale` teaches the continue head c_t = discount x (not terminal), the discount of Eq. 5.
        self.model_loss = DreamerV3ModelLoss(world_model, kl_mode="separate", lambda_dynamic=1.0,
                                             lambda_representation=0.1, free_bits=1.0, unimix=UNIMIX,
                                             lambda_continue=1.0, continue_target_scale=c.discount,
                                             reco_symlog=False, num_reward_bins=BINS, detach_output=False)
        self.model_loss.set_keys(pixels="target", reco_pixels="reconstruction")
        self.value_loss = DreamerV3ValueLoss(self.critic, value_loss="two_hot", num_value_bins=BINS,
                                             slow_critic_regularization=1.0)
        self.return_norm = PercentileValueNorm(quantiles=(0.05, 0.95), rate=0.01, min_scale=1.0)
        self.networks = nn.ModuleDict({"model": self.model_loss, "actor": self.actor, "value": self.value_loss,
                                       "return_norm": self.return_norm}).to(self.device)
        self.filter = RSSMStateEstimatorV3(self.prior, self.posterior)
        self.slow_critic = SoftUpdate(self.value_loss, tau=SLOW_CRITIC_RATE)
        self.optimizer = DreamerV3Optimizer(
            [{"params": list(self.model_loss.parameters()), "lr": c.model_lr},
             {"params": list(self.actor.parameters()), "lr": c.actor_lr},
             {"params": [p for p in self.value_loss.parameters() if p.requires_grad], "lr": c.value_lr}],
            warmup_steps=c.warmup)

    # Acting -------------------------------------------------------------------------------------------------------

    def initial(self, count: int = 1) -> Carry:
        """What is carried from step to step, before an episode: z, h and the last action, all zero, (count, ...)."""
        sizes = {"state": self.state_dim, "belief": self.config.deter, "previous_action": self.action_dim}
        return {name: torch.zeros(count, size, device=self.device) for name, size in sizes.items()}

    @torch.no_grad()
    def act(self, carry: Carry, obs: np.ndarray, first: bool, explore: bool) -> tuple[Carry, np.ndarray]:
        """One action for one observation, or (N, A) actions for (N, ...) observations of `initial(N)`.

        `first` resets what is carried. With `explore` the action is drawn (uniformly until `config.prefill` rows have
        been observed), without it the policy's mean is taken and a random stream of its own used, so that evaluations
        leave training unchanged. Actions are float32 in [-1, 1]. A wrong shape or a NaN is an `InputError`.
        """
        obs = np.asarray(obs)
        single = obs.shape == self.obs_shape
        batch = self._check_obs(obs[None] if single else obs)
        count = len(carry["state"])
        if len(batch) != count:
            raise InputError(f"{len(batch)} observations for a carry of {count}; valid: as many as initial(count) made")
        with self._stream("train" if explore else "evaluate"):
            filtered = self.filter(TensorDict({
                **carry, "is_init": torch.full((count, 1), bool(first), device=self.device),
                "encoded_latents": self.encoder(self._tensor(batch))}, [count], device=self.device))
            policy = self.actor(filtered["state"], filtered["belief"])
            if not explore:
                action = policy.mean
            elif self.rows_seen < self.config.prefill:
                action = torch.rand(count, self.action_dim, device=self.device) * 2 - 1
            else:
                action = policy.sample()
        action = action.clamp(-1, 1)
        if explore and count == 1:
            self._remember_last_row(batch[0], filtered)
        carry = {"state": filtered["state"], "belief": filtered["belief"], "previous_action": action}
        actions = action.cpu().numpy()
        return carry, actions[0] if single else actions

    def observe(self, obs: np.ndarray, prev_action: np.ndarray, reward: float, first: bool, terminal: bool,
                last: bool) -> None:
        """Append a row: `obs` is what `prev_action` led to and `reward` what was paid for it.

        On an episode's `first` row action and reward count for nothing and are stored as zero. `last` ends an episode;
        `terminal` says that nothing follows (a time limit is `last` without `terminal`). Raises `InputError` on a
        wrong shape, a value that is not finite, an action outside [-1, 1], or `terminal` without `last`.
        """
        obs = self._check_obs(np.asarray(obs)[None])[0]
        action = np.asarray(prev_action, np.float32)
        if action.shape != (self.action_dim,):
            raise InputError(f"action of shape {action.shape}; valid: ({self.action_dim},)")
        if not np.isfinite(action).all() or np.abs(action).max() > 1 + 1e-5:
            raise InputError(f"action {action.tolist()}; valid: finite numbers in [-1, 1]")
        if not np.isfinite(reward):
            raise InputError(f"reward {reward}; valid: a finite number")
        if terminal and not last:
            raise InputError("a terminal row that is not the last of its episode; valid: terminal only with last")
        if first:
            action, reward = np.zeros_like(action), 0.0
        self.replay.append(observation=obs, previous_action=action, reward=reward, is_init=first, terminated=terminal,
                           done=last)
        self.rows_seen += 1

    # Learning -----------------------------------------------------------------------------------------------------

    def updates_due(self, env_step: int) -> int:
        """How many updates are owed at this environment step; none before `prefill` rows. Call once a step."""
        ready = self.rows_seen >= self.config.prefill and self.replay.count >= self.config.length
        return self._ratio(env_step) if ready else 0

    def update(self) -> dict[str, float]:
        """One update of world model, actor and critic on a fresh batch; the losses and a few readings, as floats.

        Returns {} and changes nothing while the replay holds fewer rows than a sequence is long. Raises
        `FloatingPointError` when the loss is not finite; nothing has been changed then either.
        """
        c = self.config
        if self.replay.count < c.length:
            return {}
        with self._stream("train"):
            batch = self._batch()
            losses, total, posterior = self._losses(batch)
            if not torch.isfinite(total):
                raise FloatingPointError(f"the loss of update {self.updates} is not finite: {losses}")
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()
            self.slow_critic.step()
        self.replay.remember(batch["index"].flatten().cpu().numpy(), *self._latent(posterior.flatten()))
        self.updates += 1
        return losses

    def _batch(self) -> TensorDict:
        """A (batch, length) TensorDict of rows, with z and h of the row before at the first of each sequence.

        Without them every sequence would begin in ignorance, as no step of acting but an episode's first does: the
        free nat of the KL loss lets about one nat of each observation into z, so that the state is known well only
        after many steps.
        """
        c = self.config
        rows = self.replay.sample(self._rng, c.batch, c.length)
        shape = (c.batch, c.length)
        state, belief = torch.zeros(*shape, self.state_dim), torch.zeros(*shape, c.deter)
        state[:, 0] = torch.from_numpy(rows["classes"][..., None] == np.arange(c.classes)).flatten(1).float()
        belief[:, 0] = torch.from_numpy(rows["belief"])
        return TensorDict({
            "previous_action": torch.from_numpy(rows["previous_action"]), "is_init": torch.from_numpy(rows["is_init"]),
            "index": torch.from_numpy(rows["index"]), "state": state, "belief": belief,
            "next": TensorDict({self._obs_key[1]: self._tensor(rows["observation"]),
                                **{name: torch.from_numpy(rows[name]) for name in ("reward", "terminated", "done")}},
                               shape)}, shape).to(self.device)

    def _latent(self, rows: TensorDict) -> tuple[np.ndarray, np.ndarray]:
        """What the replay keeps of `state` (N, Z) and `belief` (N, D): classes (N, C) and h, both NumPy."""
        state = rows["state"].detach().unflatten(-1, (self.config.categoricals, self.config.classes))
        return state.argmax(-1).cpu().numpy(), rows["belief"].detach().cpu().numpy()

    def _remember_last_row(self, obs: np.ndarray, filtered: TensorDict) -> None:
        """Keep z and h at the row observed last, if it is the one acted on."""
        last = (self.replay.cursor - 1) % self.replay.size
        if self.replay.count and np.array_equal(self.replay.rows["observation"][last], obs):
            self.replay.remember(np.array([last]), *self._latent(filtered))

    def _losses(self, batch: TensorDict) -> tuple[dict[str, float], Tensor, TensorDict]:
        """World-model, imagination and replay-value losses of a batch: for people, summed for autograd; and z and h.

        The gradient of the imagination stops at the posterior states it starts from; that of the replay value goes on
        into the world model, as in the reference implementation.
        """
        c = self.config
        terms, posterior = self.model_loss(batch)
        recent = posterior["next"].select("state", "belief")[:, -(c.imagine_last or c.length):]
        losses, readings, first_return = self._imagine_losses(recent["state"].detach().flatten(0, 1),
                                                              recent["belief"].detach().flatten(0, 1))
        replay = recent.clone(recurse=False)
        replay["bootstrap"] = first_return.reshape(recent.shape)
        replay["next"] = batch["next"].select("reward", "done", "terminated")[:, -recent.shape[1]:]
        losses["replay_value"] = REPLAY_VALUE_WEIGHT * self.value_loss.replay_value_loss(
            replay, horizon=1 / (1 - c.discount), lmbda=c.lambda_)["loss_replay_value"]
        losses |= {name.removeprefix("loss_"): loss.squeeze() for name, loss in terms.items()}
        total = torch.stack(list(losses.values())).sum()
        return {name: float(value.detach()) for name, value in {**losses, **readings}.items()}, total, \
            posterior["next"].select("state", "belief")

    @torch.no_grad()
    def imagine(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Follow the policy inside the model from N starts, H steps.

        (N, Z), (N, D) -> states (H+1, N, Z), beliefs (H+1, N, D), actions (H, N, A); action t leads to state t+1.
        """
        states, beliefs, actions = [state], [belief], []
        for _ in range(self.config.horizon):
            actions.append(self.actor(state, belief).sample())
            _, state, belief = self.prior(state, belief, actions[-1])
            states.append(state)
            beliefs.append(belief)
        return torch.stack(states), torch.stack(beliefs), torch.stack(actions)

    def _imagine_losses(self, state: Tensor, belief: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Actor and critic losses on imagined steps (DreamerV3, Eq. 5 to 7); readings; the starts' returns (N,).

        Actor: REINFORCE with the critic as baseline, advantages divided by max(1, spread of returns between their 5th
        and 95th percentile, averaged over time), plus the entropy bonus. Both losses are weighted by the probability
        that the imagined episode is still going on.
        """
        c = self.config
        states, beliefs, actions = self.imagine(state, belief)
        with torch.no_grad():
            reward = self.two_hot(self.reward_head(states[1:], beliefs[1:]))
            continuation = torch.sigmoid(self.continue_head(states, beliefs))
            value = self.critic(TensorDict({"state": states, "belief": beliefs}, states.shape[:2]))["state_value"]
            returns = lambda_returns(reward, value[1:], continuation[1:], c.lambda_)
            weight = continuation[:-1].cumprod(0)
            self.return_norm.update(returns)
            scale = self.return_norm.scale()
            advantage = (returns - value[:-1]) / scale
        policy = self.actor(states[:-1], beliefs[:-1])
        entropy = policy.entropy()[..., None]
        actor = -(weight * (policy.log_prob(actions)[..., None] * advantage + c.entropy * entropy)).mean()
        imagined = TensorDict({"state": states[:-1], "belief": beliefs[:-1], "lambda_target": returns,
                               "discount_weight": weight}, returns.shape[:2])
        value_terms, _ = self.value_loss(imagined)
        readings = {"policy_entropy": entropy.mean().detach(), "return_scale": scale.squeeze(),
                    "imagined_reward": reward.mean(), "imagined_return": returns.mean(),
                    "continuation": continuation.mean()}
        return {"actor": actor, "value": value_terms["loss_value"]}, readings, returns[0].squeeze(-1)

    # Checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on: weights, slow critic, optimiser, normaliser, random states, replay."""
        return {"format": FORMAT, "config": self._identity(), "networks": self.networks.state_dict(),
                "optimizer": self.optimizer.state_dict(), "slow_critic": self.slow_critic.state_dict(),
                "ratio": self._ratio.state_dict(), "replay": self.replay.state_dict(), "random": dict(self._random),
                "numpy": self._rng.bit_generator.state, "rows_seen": self.rows_seen, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; a state of another configuration is an `InputError`."""
        check_state(state, "DreamerAgent", FORMAT, self._identity())
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slow_critic.load_state_dict(state["slow_critic"])
        self._ratio.load_state_dict(state["ratio"])
        self.replay.load_state_dict(state["replay"])
        self._random = {stream: [part.cpu() for part in parts] for stream, parts in state["random"].items()}
        self._rng.bit_generator.state = state["numpy"]
        self.rows_seen, self.updates = state["rows_seen"], state["updates"]

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint, whole or not at all."""
        with files.atomic_path(path) as temporary:
            torch.save(self.state_dict(), temporary)

    def load(self, path: str | os.PathLike) -> None:
        """Read a checkpoint; a missing, truncated or foreign one is an `InputError` and leaves the agent as it was."""
        self.load_state_dict(read_checkpoint(path, self.device))

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.config), "obs_shape": list(self.obs_shape), "action_dim": self.action_dim}

    # Small things -------------------------------------------------------------------------------------------------

    def _check_obs(self, batch: np.ndarray) -> np.ndarray:
        if batch.shape[1:] != self.obs_shape:
            raise InputError(f"observation of shape {batch.shape[1:]}; valid: {self.obs_shape}")
        if self.pixels:
            if batch.dtype != np.uint8:
                raise InputError(f"pixels of type {batch.dtype}; valid: uint8")
            return batch
        batch = batch.astype(np.float32)
        if not np.isfinite(batch).all():
            raise InputError("observation with NaN or infinity; valid: finite numbers")
        return batch

    def _tensor(self, obs: np.ndarray) -> Tensor:
        """Observations for the networks: float32, or uint8 with channels first."""
        tensor = torch.from_numpy(obs).to(self.device)
        return tensor.movedim(-1, -3).contiguous() if self.pixels else tensor

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda())]

    @contextmanager
    def _stream(self, name: str) -> Iterator[None]:
        """TorchRL draws from the global generator: lend it this agent's own state and give the old one back."""
        with torch.random.fork_rng(self._cuda()):
            main, *rest = self._random[name]
            torch.set_rng_state(main)
            for device, state in zip(self._cuda(), rest, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._random[name] = self._random_state()


class _Symlog(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return symlog(value)


def _random_bias(layer: nn.Linear) -> None:
    """Start a bias as if its input ended in a constant one, for a layer that reads raw numbers before an RMS norm.

    The norm takes away the length of what it is given: with a zero bias, where the reference implementation starts, a
    single number keeps no more than its sign, and the model has to find out first that half a push is not a push.
    """
    std = 1.1368 / layer.in_features**0.5  # that of the weights
    nn.init.trunc_normal_(layer.bias, std=std, a=-2 * std, b=2 * std)


def _unchanged(value: Tensor) -> Tensor:
    return value


def _check(obs_space: gymnasium.spaces.Box, action_dim: int, config: DreamerConfig) -> tuple[int, ...]:
    """The observation's shape, after everything that can be wrong about the arguments has been looked at."""
    if not isinstance(obs_space, gymnasium.spaces.Box):
        raise InputError(f"observation space {obs_space!r}; valid: gymnasium.spaces.Box")
    shape = tuple(obs_space.shape)
    image = len(shape) == 3 and shape[-1] == 3 and obs_space.dtype == np.uint8
    if not image and not (len(shape) == 1 and np.issubdtype(obs_space.dtype, np.floating)):
        raise InputError(f"observation space {shape} {obs_space.dtype}; valid: (S,) float or (H, W, 3) uint8")
    if image and (shape[0] % 16 or shape[1] % 16):
        raise InputError(f"images of {shape[0]}x{shape[1]}; valid: both divisible by 16")
    if action_dim < 1:
        raise InputError(f"action_dim {action_dim}; valid: 1 or more")
    check_config(config)
    c = config
    if image and (c.deter + c.categoricals * c.classes) % c.blocks:
        raise InputError(f"config.blocks {c.blocks}; valid: a divisor of deter ({c.deter}) and of deter + "
                         f"categoricals x classes ({c.deter + c.categoricals * c.classes})")
    return shape


def check_config(config: DreamerConfig) -> None:
    """InputError for a number or word that DreamerV3 cannot learn with."""
    c = config
    if c.observation not in ("state", "pixels"):
        raise unknown("config.observation", c.observation, ("state", "pixels"))
    for name in ("model_lr", "actor_lr", "value_lr", "train_ratio"):
        if not 0 < getattr(c, name) < math.inf:
            raise InputError(f"config.{name} {getattr(c, name)}; valid: finite numbers above 0")
    for name in ("entropy", "warmup", "prefill"):
        if not 0 <= getattr(c, name) < math.inf:
            raise InputError(f"config.{name} {getattr(c, name)}; valid: finite numbers of 0 or more")
    whole = ("deter", "hidden", "units", "categoricals", "classes", "depth", "layers", "blocks", "batch", "horizon")
    for name in whole:
        if getattr(c, name) < 1:
            raise InputError(f"config.{name} {getattr(c, name)}; valid: 1 or more")
    if c.length < 2 or c.replay_size < c.length:
        raise InputError(f"config.length {c.length} with replay_size {c.replay_size}; valid: 2 <= length <= "
                         "replay_size")
    if c.imagine_last is not None and not 2 <= c.imagine_last <= c.length:
        raise InputError(f"config.imagine_last {c.imagine_last}; valid: None or 2 to length ({c.length})")
    if not 0 < c.discount < 1 or not 0 <= c.lambda_ <= 1:
        raise InputError(f"config.discount {c.discount}, lambda_ {c.lambda_}; valid: (0, 1) and [0, 1]")
    if c.deter % c.blocks:
        raise InputError(f"config.blocks {c.blocks}; valid: a divisor of deter ({c.deter}), and from pictures of deter "
                         f"+ categoricals x classes ({c.deter + c.categoricals * c.classes})")
