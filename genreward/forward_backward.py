"""Forward-backward representation: from a goal frame to a reward for each state and action (Eq. 7-9).

In the flow: `encoders` turns frames into features psi(o); this module learns, from features and actions alone and
without any reward, two maps F and B whose product says how often a policy will be where; `rewards` reads the
frame-level reward off it for the goal frame that `goals` selected.

What is learned is the successor measure of the policies pi_z, as a density with respect to rho, the distribution of the
*next* states in the replay:

    M^{pi_z}(s, a, s') = (1 / rho(s')) sum_{t>=0} gamma^t Pr(s_{t+1} = s' | s_0 = s, a_0 = a, pi_z)
                       ~ F(s, a, z)^T B(s')                                                              (Eq. 7)

Time starts at the first state *after* the action, hence on a finite chain with transition matrix P_a and policy matrix
P_pi the matrix of row (s, a) is `P_a (I - gamma P_pi)^-1 diag(1/rho)`; its rows integrate to 1/(1-gamma), which is
finite because gamma < 1.

Two losses, chosen by `FBConfig.fb_targets`:

- "buffer", as in the forward-backward literature: B is evaluated at the next states of the whole batch;
- "goal", as the paper prints Eq. 8: B is evaluated at the goal frame only. All rows of B are then one vector, the
  orthonormality term is the constant d^2 - d without a gradient, and the loss has the constant M = 1/(1-gamma) as its
  fixed point whatever the state: nothing says where any state lies. It is kept to show just that.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from . import errors
from .envs import Policy, exploration_policy, random_policy
from .errors import InputError
from .files import atomic_path
from .profiles import FBConfig

FB_TARGETS = ("buffer", "goal")
NEXT_ACTIONS = ("policy", "replay")
SCALINGS = ("each", "together")
TWINS = ("mean", "min")
LOSS_TERMS = ("fb_offdiagonal", "fb_diagonal", "orthonormality", "policy", "total")
FORMAT = "genreward.forward_backward.v1"
# How long to train says nothing about what the networks are: a run may be resumed for longer.
_NOT_PART_OF_THE_MODEL = ("updates", "exploration_steps")
_BEFORE = {"twin": "min", "scaling": "each"}  # how files trained before it could be chosen were
_LIMIT = 10.0

Array = np.ndarray | torch.Tensor
FeatureFunction = Callable[[gymnasium.Env, np.ndarray], np.ndarray]


class FeatureScaler(nn.Module):
    """Features brought to a scale of 1 by mean and spread of the replay, clipped to -10..10; identity until `fit`.

    scaling "together"  one factor for all of them: what varies most stays what varies most. For features of one space,
                        like principal axes, whose smallest hold little but noise: at equal size they drown the rest
            "each"      every feature by its own spread, for features of different units, like parts of a state. 1% of
                        the largest spread is added to each, so that a component of hardly any variance is not blown up

    A feature that never varied in the replay says nothing there and gets weight 0: at a goal it could only be an input
    that the networks have never seen. The statistics are saved with the networks.
    """

    def __init__(self, dim: int, scaling: str = "each") -> None:
        super().__init__()
        self.scaling = scaling
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.ones(dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, features: torch.Tensor) -> None:
        """Take mean and spread from `features` (N, D), N >= 2."""
        if len(features) < 2:
            raise InputError(f"standardising features needs at least 2 rows, got {len(features)}")
        features = features.double()
        spread = features.std(0, correction=0)
        largest = spread.max()
        varies = spread > 1e-6 * largest
        scale = spread + 0.01 * largest
        if self.scaling == "together" and varies.any():
            scale = spread[varies].square().mean().sqrt().expand_as(spread)
        weight = torch.where(varies, 1.0 / scale, torch.zeros_like(spread))
        self.mean.copy_(features.mean(0))
        self.weight.copy_(weight)
        self.fitted.fill_(True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return ((features - self.mean) * self.weight).clamp(-_LIMIT, _LIMIT) if self.fitted else features


@dataclass(frozen=True)
class RewardNormaliser:
    """Mean and spread of the FB reward of one goal over the replay, which bring it to mean 0 and spread 1.

    M is a density, so its scale depends on how rare the goal is in the replay; paid at every step beside another
    reward, it has to be brought to a known scale first.
    """

    mean: float
    spread: float

    @classmethod
    def fit(cls, rewards: np.ndarray) -> RewardNormaliser:
        """From FB rewards (N,) over the replay; a spread of 0 counts as 1, which leaves the reward at 0."""
        rewards = np.asarray(rewards, np.float64)
        if rewards.size == 0 or not np.isfinite(rewards).all():
            raise InputError("a reward normaliser needs at least one reward, all finite")
        spread = float(rewards.std())
        # below float32's resolution of the mean there is no signal, only rounding
        return cls(float(rewards.mean()), spread if spread > 1e-6 * max(1.0, abs(float(rewards.mean()))) else 1.0)

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """(rewards - mean) / spread as float32, same shape."""
        return ((np.asarray(rewards) - self.mean) / self.spread).astype(np.float32)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; the first is normalised and squashed, which bounds what any input can do."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.Tanh(),
                         nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class _Forward(nn.Module):
    """Two independent forward maps F(s, a, z); with `action_aware` off neither is shown the action (Table D)."""

    def __init__(self, feature_dim: int, action_dim: int, dim: int, hidden: int, action_aware: bool) -> None:
        super().__init__()
        self.action_aware = action_aware
        self.heads = nn.ModuleList(_mlp(feature_dim + action_aware * action_dim + dim, hidden, dim) for _ in range(2))

    def forward(self, features: torch.Tensor, actions: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([features, actions, z] if self.action_aware else [features, z], dim=-1)
        return torch.stack([head(inputs) for head in self.heads])  # (2, N, d)


class _Backward(nn.Module):
    """B(s'), scaled onto the sphere of radius sqrt(d).

    E[B B^T] = I asks for E||B||^2 = d. On the sphere that part holds by construction, so B can neither blow up nor
    vanish against F, and every B(s') is itself a valid z: goals and the z of training come from the same set.
    """

    def __init__(self, feature_dim: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = _mlp(feature_dim, hidden, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return project_z(self.net(features))


class _Policy(nn.Module):
    """pi_z(s): the deterministic action in [-1, 1] that makes F(s, a, z)^T z large."""

    def __init__(self, feature_dim: int, action_dim: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = _mlp(feature_dim + dim, hidden, action_dim)

    def forward(self, features: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.net(torch.cat([features, z], dim=-1)))


def project_z(vectors: torch.Tensor) -> torch.Tensor:
    """(..., d) scaled to length sqrt(d)."""
    return math.sqrt(vectors.shape[-1]) * nn.functional.normalize(vectors, dim=-1)


def fb_terms(measure: torch.Tensor, target: torch.Tensor, gamma: float | torch.Tensor,
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of the FB loss with `fb_targets="buffer"`, summed over the two forward heads.

    measure  (2, N, N): F(s_i, a_i, z_i)^T B(s'_j) of either head
    target   (N, N): the two target heads at (s'_i, a'_i, z_i) taken together, not yet discounted
    gamma    the discount, or (N, 1) with 0 where an episode truly ended

    Returns (1/2 mean_{i != j} (M - gamma target)^2, - mean_i M_ii). Column i is the pair's own next state: there the
    linear term, which stands for the Dirac mass at s'_i, is evaluated; the other columns are independent draws from
    rho. It is half of Eq. 8, which has the same minimiser.
    """
    n = measure.shape[-1]
    squares = (measure - gamma * target).square()
    own = torch.diagonal(squares, dim1=-2, dim2=-1).sum(-1)
    offdiagonal = 0.5 * (squares.sum((-2, -1)) - own) / (n * (n - 1))
    diagonal = -torch.diagonal(measure, dim1=-2, dim2=-1).mean(-1)
    return offdiagonal.sum(), diagonal.sum()


def fb_terms_goal(measure: torch.Tensor, target: torch.Tensor, gamma: float | torch.Tensor,
                  ) -> tuple[torch.Tensor, torch.Tensor]:
    """The same two terms as Eq. 8 prints them (`fb_targets="goal"`), halved like the others.

    measure (2, N): F(s_i, a_i, z_i)^T B(psi(I*)); target (N,): that of the target networks at (s'_i, a'_i).
    """
    squared = 0.5 * (measure - gamma * target).square().mean(-1)
    return squared.sum(), -measure.mean(-1).sum()


def orthonormality_loss(backward: torch.Tensor) -> torch.Tensor:
    """Unbiased estimate of ||E[B B^T] - I||_F^2 from `backward` (N, d).

    It is mean_{i != j} (B_i^T B_j)^2 - 2 mean_i ||B_i||^2 + d.

    Rows that are all equal and of length sqrt(d) give d^2 - d, with gradient 0.
    """
    n, dim = backward.shape
    gram = backward @ backward.T
    norms = torch.diagonal(gram)
    offdiagonal = (gram.square().sum() - norms.square().sum()) / (n * (n - 1))
    return offdiagonal - 2.0 * norms.mean() + dim


class ForwardBackward:
    """F, B and pi_z with their target networks, optimisers, feature scaling and random state.

    Public methods take NumPy arrays or tensors of *unscaled* features and give NumPy float32; only `update` learns.
    One row may be given as (D,), it counts as (1, D). Everything is a function of `seed` and the batches.

    feature_dim  D, the length of psi(o)
    action_dim   A; actions are in [-1, 1]
    config       sizes and coefficients, see `profiles.FBConfig`
    Raises InputError for gamma outside (0, 1), unknown `fb_targets` or `next_action`, sizes below 1.
    """

    def __init__(self, feature_dim: int, action_dim: int, config: FBConfig, seed: int = 0,
                 device: str | torch.device = "cpu") -> None:
        check_config(config)
        for name, value in (("feature_dim", feature_dim), ("action_dim", action_dim)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.feature_dim, self.action_dim, self.config = int(feature_dim), int(action_dim), config
        self.device = torch.device(device)
        self.seed, self.updates, self._frozen = int(seed), 0, False
        self.generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            forward = _Forward(feature_dim, action_dim, config.dim, config.hidden, config.action_aware)
            backward = _Backward(feature_dim, config.dim, config.hidden)
            policy = _Policy(feature_dim, action_dim, config.dim, config.hidden)
        self.networks = nn.ModuleDict({"forward_net": forward, "backward_net": backward, "policy_net": policy,
                                       "scaler": FeatureScaler(feature_dim, config.scaling)}).to(self.device)
        self.targets = nn.ModuleDict({name: copy.deepcopy(self.networks[name])
                                      for name in ("forward_net", "backward_net")}).requires_grad_(False)
        self._fb_parameters = [*self.networks["forward_net"].parameters(), *self.networks["backward_net"].parameters()]
        self._policy_parameters = list(self.networks["policy_net"].parameters())
        self.fb_optimiser = torch.optim.Adam(self._fb_parameters, lr=config.learning_rate)
        self.policy_optimiser = torch.optim.Adam(self._policy_parameters, lr=config.learning_rate)

    # ---- the maps

    @property
    def dim(self) -> int:
        """d, the length of F, B and z."""
        return self.config.dim

    @property
    def scaler(self) -> FeatureScaler:
        return self.networks["scaler"]

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called: the reward no longer changes and `update` raises."""
        return self._frozen

    def freeze(self) -> None:
        """Keep F, B and pi_z as they are from here on."""
        self._frozen = True

    def fit_scaler(self, features: Array) -> None:
        """Standardise with the mean and spread of `features` (N, D); before the first update only."""
        self._must_learn()
        if self.updates:
            raise InputError("the feature scaling cannot change once F and B have been trained with another")
        self.scaler.fit(self._features(features))

    @torch.no_grad()
    def forward_map(self, features: Array, actions: Array, z: Array) -> np.ndarray:
        """F(s, a, z) of the twin heads: features (N, D), actions (N, A), z (d,) or (N, d) -> (2, N, d)."""
        scaled = self.scaler(self._features(features))
        return _numpy(self.networks["forward_net"](scaled, self._actions(actions, len(scaled)),
                                                   self._z(z, len(scaled))))

    @torch.no_grad()
    def backward_map(self, features: Array) -> np.ndarray:
        """B(s'): features (N, D) -> (N, d), each of length sqrt(d)."""
        return _numpy(self._b(self._features(features)))

    @torch.no_grad()
    def policy(self, features: Array, z: Array) -> np.ndarray:
        """pi_z(s): features (N, D), z (d,) or (N, d) -> actions (N, A) in [-1, 1]."""
        scaled = self.scaler(self._features(features))
        return _numpy(self.networks["policy_net"](scaled, self._z(z, len(scaled))))

    def goal_z(self, goal_features: Array) -> np.ndarray:
        """z* = sqrt(d) B(psi(I*)) / ||B(psi(I*))|| of Eq. 9: goal features (D,) -> (d,).

        Several rows (G, D) are several views of one goal: their B are averaged before the scaling.
        """
        with torch.no_grad():
            return _numpy(project_z(self._b(self._features(goal_features, "goal features")).mean(0)))

    @torch.no_grad()
    def successor_measure(self, features: Array, actions: Array, z: Array, next_features: Array) -> np.ndarray:
        """M(s_i, a_i, s'_j) of Eq. 7, the twin heads together: (N, D), (N, A), z, (M, D) -> (N, M).

        A density with respect to the replay's next states (see the module's head): its mean over draws of s' from the
        replay is near 1/(1-gamma). Multiplied by (1-gamma) rho(s') it is a probability.
        """
        forward = torch.from_numpy(self.forward_map(features, actions, z)).to(self.device)
        backward = self._b(self._features(next_features, "next features"))
        return _numpy(self._together(forward @ backward.T))

    def reward(self, features: Array, actions: Array, goal_features: Array) -> np.ndarray:
        """Eq. 9, r_FB(s, a, I*) = F(s, a, z*)^T B(psi(I*)): (N, D), (N, A), goal (D,) -> (N,) float32.

        In units of the successor measure, hence in 0 .. 1/((1-gamma) rho(goal)) up to approximation error.
        """
        goal = self._features(goal_features, "goal features")
        z = self.goal_z(goal)
        return self.successor_measure(features, actions, z, goal).mean(1)

    def reward_normaliser(self, features: Array, actions: Array, goal_features: Array,
                          limit: int = 5000) -> RewardNormaliser:
        """Mean and spread of `reward` for this goal over (at most `limit`, evenly spread) rows of the replay."""
        if len(features) == 0:
            raise InputError("a reward normaliser needs a replay of at least one transition")
        rows = np.unique(np.linspace(0, len(features) - 1, min(limit, len(features))).round().astype(int))
        return RewardNormaliser.fit(self.reward(features[rows], actions[rows], goal_features))

    # ---- learning

    def update(self, batch: Mapping[str, Array], goal: Array | None = None) -> dict[str, float]:
        """One step of gradient descent on Eq. 8; returns the named terms of the loss before it.

        batch  s (N, D), a (N, A), next_s (N, D), N >= 2; optional next_a (N, A), needed by `next_action="replay"`;
               optional done (N,) bool, true where the episode *terminated* (not where a time limit cut it): nothing
               follows there
        goal   features (D,) of the goal frame, needed by `fb_targets="goal"` and ignored by "buffer"

        fb_offdiagonal   the squared Bellman residual, fb_diagonal the linear term, see `fb_terms`
        orthonormality   estimate of ||E[B B^T] - I||_F^2, before its coefficient
        policy           - mean F(s, pi_z(s), z)^T z, what the policy minimises
        total            fb_offdiagonal + fb_diagonal + coefficient * orthonormality
        """
        self._must_learn()
        config, noise = self.config, self._normal
        features = self._features(batch["s"], "s")
        n = len(features)
        if n < 2:
            raise InputError("an update needs at least 2 transitions: s' of one is compared with the others'")
        actions = self._actions(batch["a"], n)
        next_features = self._features(batch["next_s"], "next_s")
        if len(next_features) != n:
            raise InputError(f"next_s must have {n} rows like s, got {len(next_features)}")
        if config.fb_targets == "goal" and goal is None:
            raise InputError('fb_targets="goal" needs the features of the goal frame; give goal=')
        if config.next_action == "replay" and batch.get("next_a") is None:
            raise InputError('next_action="replay" needs next_a in the batch')
        discount: float | torch.Tensor = config.gamma
        if batch.get("done") is not None:
            done = torch.as_tensor(np.asarray(batch["done"], np.float32) if not torch.is_tensor(batch["done"])
                                   else batch["done"], dtype=torch.float32, device=self.device).reshape(-1, 1)
            if len(done) != n:
                raise InputError(f"done must have {n} rows like s, got {len(done)}")
            discount = config.gamma * (1.0 - done)

        scaled, next_scaled = self.scaler(features), self.scaler(next_features)
        forward_net, backward_net = self.networks["forward_net"], self.networks["backward_net"]
        policy_net = self.networks["policy_net"]
        # where B is looked at: the batch's own next states, or the one goal
        seen = next_scaled if config.fb_targets == "buffer" else self.scaler(self._features(goal, "goal")).expand(n, -1)
        with torch.no_grad():
            z = self._sample_z(backward_net(seen))
            if config.next_action == "policy":
                next_actions = policy_net(next_scaled, z) + config.policy_noise * noise(n, self.action_dim)
                next_actions = next_actions.clamp(-1.0, 1.0)
            else:
                next_actions = self._actions(batch["next_a"], n)
            target_forward = self.targets["forward_net"](next_scaled, next_actions, z)
            target_backward = self.targets["backward_net"](seen)
        forward, backward = forward_net(scaled, actions, z), backward_net(seen)
        if config.fb_targets == "buffer":
            target = self._together(target_forward @ target_backward.T)
            offdiagonal, diagonal = fb_terms(forward @ backward.T, target, discount)
        else:
            target = self._together((target_forward * target_backward).sum(-1))
            scalar = discount if isinstance(discount, float) else discount[:, 0]
            offdiagonal, diagonal = fb_terms_goal((forward * backward).sum(-1), target, scalar)
        orthonormality = orthonormality_loss(backward)
        total = offdiagonal + diagonal + config.orthonormality * orthonormality
        if not torch.isfinite(total):
            raise InputError("the FB loss is not finite; lower the learning rate or look at the features")
        self.fb_optimiser.zero_grad()
        total.backward()
        self.fb_optimiser.step()

        # The actor climbs F^T z through the action. Without the action in F there is no slope to climb.
        with torch.set_grad_enabled(config.action_aware):
            value = (forward_net(scaled, policy_net(scaled, z), z) * z).sum(-1).amin(0)
            policy_loss = -value.mean()
        if config.action_aware:
            self.policy_optimiser.zero_grad()
            policy_loss.backward(inputs=self._policy_parameters)
            self.policy_optimiser.step()
        with torch.no_grad():
            for name, target_net in self.targets.items():
                torch._foreach_lerp_(list(target_net.parameters()), list(self.networks[name].parameters()), config.tau)
        self.updates += 1
        terms = (offdiagonal, diagonal, orthonormality, policy_loss, total)
        return {name: float(value.detach()) for name, value in zip(LOSS_TERMS, terms, strict=True)}

    @torch.no_grad()
    def diagnostics(self, batch: Mapping[str, Array], goal: Array | None = None) -> dict[str, float]:
        """What a healthy FB shows over a batch as `update` takes it; changes nothing, draws nothing.

        rank                  numerical rank of B at the places where the loss looks at it (the next states, or the
                              goal for every row): 1 means that all of them are one point to B
        effective_rank        (sum of squared singular values)^2 / sum of their fourth powers, in 1..d
        replay_rank           rank of B over the batch's next states, whatever the loss looked at
        orthonormality_error  ||mean B B^T - I||_F over those places
        max_measure           largest |F^T B| over pairs of rows, with z of each row's own next state
        mean_measure          its mean, near `measure_scale` once learned
        measure_scale         1/(1-gamma), what every row of M integrates to
        """
        next_features = self._features(batch["next_s"], "next_s")
        replayed = seen = self._b(next_features)
        places = next_features
        if self.config.fb_targets == "goal":
            if goal is None:
                raise InputError('fb_targets="goal" needs the features of the goal frame; give goal=')
            places = self._features(goal, "goal").expand(len(replayed), -1)
            seen = self._b(places)
        measure = self.successor_measure(batch["s"], batch["a"], seen, places)
        values = torch.linalg.svdvals(seen.double())
        # 1e-3 of the largest: rows that differ by float32 rounding only count as one
        rank = int((values > 1e-3 * values[0]).sum())
        own = torch.linalg.svdvals(replayed.double())
        covariance = seen.T @ seen / len(seen)
        error = torch.linalg.norm(covariance - torch.eye(self.dim, device=self.device))
        return {"rank": float(rank), "effective_rank": float(values.square().sum() ** 2 / values.pow(4).sum()),
                "replay_rank": float((own > 1e-3 * own[0]).sum()), "orthonormality_error": float(error),
                "max_measure": float(np.abs(measure).max()), "mean_measure": float(measure.mean()),
                "measure_scale": 1.0 / (1.0 - self.config.gamma)}

    # ---- keeping

    def state_dict(self, resume: bool = True) -> dict[str, Any]:
        """Networks and scaling; with `resume` also targets, optimisers and random state for an exact resume, without it
        the weights as float16, a quarter of a percent of the reward's spread away at most."""
        state = {"format": FORMAT, "feature_dim": self.feature_dim, "action_dim": self.action_dim,
                 "config": asdict(self.config), "seed": self.seed, "updates": self.updates,
                 "frozen": self.frozen or not resume, "networks": self.networks.state_dict()}
        if resume:
            state.update(targets=self.targets.state_dict(), fb_optimiser=self.fb_optimiser.state_dict(),
                         policy_optimiser=self.policy_optimiser.state_dict(), generator=self.generator.get_state())
        else:
            state["networks"] = {name: value.half() if value.is_floating_point() and not name.startswith("scaler.")
                                 else value for name, value in state["networks"].items()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`; InputError when it belongs to another configuration."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise InputError(f"not a forward-backward state of format {FORMAT}")
        mine = {"feature_dim": self.feature_dim, "action_dim": self.action_dim, **asdict(self.config)}
        theirs = {"feature_dim": state["feature_dim"], "action_dim": state["action_dim"], **_BEFORE, **state["config"]}
        different = [f"{key} {theirs.get(key)!r} instead of {mine.get(key)!r}" for key in sorted(mine | theirs)
                     if theirs.get(key) != mine.get(key) and key not in _NOT_PART_OF_THE_MODEL]
        if different:
            raise InputError(f"the saved forward-backward model has {', '.join(different)}")
        self.networks.load_state_dict(state["networks"])
        self.seed, self.updates, self._frozen = state["seed"], state["updates"], state["frozen"]
        if "targets" in state:
            self.targets.load_state_dict(state["targets"])
            self.fb_optimiser.load_state_dict(copy.deepcopy(state["fb_optimiser"]))
            self.policy_optimiser.load_state_dict(copy.deepcopy(state["policy_optimiser"]))
            self.generator.set_state(state["generator"].cpu())

    def save(self, path: str | os.PathLike, resume: bool = True) -> None:
        """Write to one file, whole or not at all; without `resume` far smaller, and frozen when loaded."""
        with atomic_path(path) as temporary:
            torch.save(self.state_dict(resume), temporary)

    @classmethod
    def load(cls, path: str | os.PathLike, config: FBConfig | None = None,
             device: str | torch.device = "cpu") -> ForwardBackward:
        """Read what `save` wrote. InputError for a missing, cut-short or foreign file, or one of another `config`."""
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            raise InputError(f"no such forward-backward model: {path}") from None
        except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as problem:
            reason = str(problem).strip().splitlines() or [type(problem).__name__]
            raise InputError(f"{path} is not a complete forward-backward model ({reason[0][:100]})") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise InputError(f"{path} is not a forward-backward model of format {FORMAT}")
        try:
            saved = FBConfig(**{**_BEFORE, **state["config"]})
        except TypeError as problem:
            raise InputError(f"{path} has a configuration of another version ({problem})") from None
        model = cls(state["feature_dim"], state["action_dim"], config or saved, state["seed"], device)
        try:
            model.load_state_dict(state)
        except (RuntimeError, KeyError, InputError) as problem:
            raise InputError(f"{path}: {str(problem).strip().splitlines()[0]}") from None
        return model

    # ---- helpers

    def _must_learn(self) -> None:
        if self._frozen:
            raise InputError("this forward-backward model is frozen; load one saved for resuming to train on")

    def _b(self, features: torch.Tensor) -> torch.Tensor:
        return self.networks["backward_net"](self.scaler(features))

    def _together(self, measures: torch.Tensor) -> torch.Tensor:
        """One M out of the twin heads' (2, ...)."""
        return measures.mean(0) if self.config.twin == "mean" else measures.amin(0)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def _sample_z(self, backward: torch.Tensor) -> torch.Tensor:
        """z of a batch (N, d): a share `goal_fraction` is B of what the loss looks at, in random order (so that a row's
        goal is not its own next state); the rest is uniform on the sphere."""
        n = len(backward)
        uniform = project_z(self._normal(n, self.dim))
        order = torch.randperm(n, generator=self.generator).to(self.device)
        chosen = torch.rand(n, 1, generator=self.generator).to(self.device) < self.config.goal_fraction
        return torch.where(chosen, backward[order], uniform)

    def _tensor(self, values: Array, name: str) -> torch.Tensor:
        tensor = torch.as_tensor(values).to(self.device, torch.float32)
        return tensor[None] if tensor.ndim == 1 else tensor

    def _features(self, values: Array, name: str = "features") -> torch.Tensor:
        return _checked(self._tensor(values, name), self.feature_dim, name)

    def _actions(self, values: Array, rows: int) -> torch.Tensor:
        tensor = _checked(self._tensor(values, "actions"), self.action_dim, "actions")
        if len(tensor) != rows:
            raise InputError(f"actions must have {rows} rows like the features, got {len(tensor)}")
        if tensor.numel() and tensor.abs().max() > 1.0 + 1e-5:
            raise InputError("actions must lie in -1..1")
        return tensor

    def _z(self, values: Array, rows: int) -> torch.Tensor:
        tensor = _checked(self._tensor(values, "z"), self.dim, "z")
        if len(tensor) not in (1, rows):
            raise InputError(f"z must be one vector or {rows} rows like the features, got {len(tensor)}")
        return tensor.expand(rows, -1)


def check_config(config: FBConfig) -> None:
    """InputError for a number or word that F and B cannot be trained with."""
    if not 0.0 < config.gamma < 1.0:
        raise InputError(f"gamma must lie between 0 and 1, both excluded, got {config.gamma}: "
                         "with gamma = 1 the successor measure is infinite")
    if config.fb_targets not in FB_TARGETS:
        raise errors.unknown("fb_targets", config.fb_targets, FB_TARGETS)
    if config.next_action not in NEXT_ACTIONS:
        raise errors.unknown("next_action", config.next_action, NEXT_ACTIONS)
    if config.scaling not in SCALINGS:
        raise errors.unknown("scaling", config.scaling, SCALINGS)
    if config.twin not in TWINS:
        raise errors.unknown("twin", config.twin, TWINS)
    for name, least in (("dim", 1), ("hidden", 1), ("components", 1), ("updates", 1), ("exploration_steps", 1),
                        ("batch", 2)):
        errors.at_least(name, getattr(config, name), least)
    if not 0.0 <= config.goal_fraction <= 1.0:
        raise InputError(f"goal_fraction must lie in 0..1, got {config.goal_fraction}")
    if not 0.0 < config.tau <= 1.0:
        raise InputError(f"tau must lie in 0..1, 0 excluded, got {config.tau}")
    for name in ("policy_noise", "orthonormality"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name} must be finite and not negative, got {getattr(config, name)}")
    if not 0 < config.learning_rate < math.inf:
        raise InputError(f"learning_rate must be finite and positive, got {config.learning_rate}")


def _checked(tensor: torch.Tensor, width: int, name: str) -> torch.Tensor:
    if tensor.ndim != 2 or tensor.shape[1] != width:
        raise InputError(f"{name} must have shape (N, {width}), got {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{name} must be finite, but some are NaN or infinite")
    return tensor


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def check_replay(replay: Mapping[str, np.ndarray], feature_dim: int | None = None,
                 action_dim: int | None = None) -> dict[str, np.ndarray]:
    """A replay as float32 arrays, with the next actions found, or InputError.

    replay  features (N, D), actions (N, A) in [-1, 1], next_features (N, D), in the order of collection; optional dones
            (N,) bool (terminated, not truncated); optional next_actions (N, A)

    Without `next_actions`, the action after row i is that of row i+1 wherever row i+1 starts where row i ended; `valid`
    (N,) bool says where that is so.
    """
    missing = [key for key in ("features", "actions", "next_features") if replay.get(key) is None]
    if missing:
        raise InputError(f"a replay needs features, actions and next_features; missing: {', '.join(missing)}")
    features, actions, next_features = (np.asarray(replay[key], np.float32)
                                        for key in ("features", "actions", "next_features"))
    n = len(features)
    if features.ndim != 2 or n < 2 or (feature_dim is not None and features.shape[1] != feature_dim):
        raise InputError(f"features must have shape (N >= 2, {feature_dim or 'D'}), got {features.shape}")
    if next_features.shape != features.shape:
        raise InputError(f"next_features must have shape {features.shape} like features, got {next_features.shape}")
    if actions.ndim != 2 or len(actions) != n or (action_dim is not None and actions.shape[1] != action_dim):
        raise InputError(f"actions must have shape ({n}, {action_dim or 'A'}), got {actions.shape}")
    for name, values in (("features", features), ("actions", actions), ("next_features", next_features)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} of the replay must be finite, but some are NaN or infinite")
    if np.abs(actions).max() > 1.0 + 1e-5:
        raise InputError("actions of the replay must lie in -1..1")
    dones = np.zeros(n, bool) if replay.get("dones") is None else np.asarray(replay["dones"], bool)
    if dones.shape != (n,):
        raise InputError(f"dones must have shape ({n},), got {dones.shape}")
    if replay.get("next_actions") is None:
        valid = np.append((next_features[:-1] == features[1:]).all(1), False) | dones
        next_actions = np.concatenate([actions[1:], actions[-1:]])
    else:
        next_actions, valid = np.asarray(replay["next_actions"], np.float32), np.ones(n, bool)
        if next_actions.shape != actions.shape:
            raise InputError(f"next_actions must have shape {actions.shape} like actions, got {next_actions.shape}")
    return {"features": features, "actions": actions, "next_features": next_features, "dones": dones,
            "next_actions": next_actions, "valid": valid}


def train_fb(fb: ForwardBackward, replay: Mapping[str, np.ndarray], updates: int | None = None,
             goal: Array | None = None, progress: bool = True, log_every: int = 100) -> pd.DataFrame:
    """Train F, B and pi_z on a replay, as `check_replay` describes it; task-free exploration will do.

    updates    how many steps of gradient descent to add (default: the configuration's)
    goal       features (D,) of the goal frame, for `fb_targets="goal"`
    log_every  a row is kept every so many updates, and at the end

    Returns one row a log: update (counted over the model's life), the mean of each loss term since the row before, and
    `diagnostics` over the last batch. Scales the features by this replay if no scaling was fitted yet. Batches are
    drawn with the model's own random state: interrupted, saved, loaded and continued gives the same model.
    """
    fb._must_learn()
    updates = fb.config.updates if updates is None else int(updates)
    if updates < 1 or log_every < 1:
        raise InputError(f"updates and log_every must be at least 1, got {updates} and {log_every}")
    checked = check_replay(replay, fb.feature_dim, fb.action_dim)
    rows = np.arange(len(checked["features"]))
    if fb.config.next_action == "replay":
        rows = rows[checked["valid"]]
        if len(rows) < 2:
            raise InputError('next_action="replay" needs consecutive rows (or next_actions) in the replay')
    if fb.config.fb_targets == "goal" and goal is None:
        raise InputError('fb_targets="goal" needs the features of the goal frame; give goal=')
    if not fb.scaler.fitted:
        fb.fit_scaler(checked["features"])
    named = (("s", "features"), ("a", "actions"), ("next_s", "next_features"), ("next_a", "next_actions"),
             ("done", "dones"))
    kept = {short: torch.from_numpy(checked[name][rows]).to(fb.device) for short, name in named}
    log, sums, since = [], dict.fromkeys(LOSS_TERMS, 0.0), 0
    for step in tqdm(range(updates), desc=f"forward-backward ({fb.config.fb_targets})", disable=not progress):
        index = torch.randint(len(rows), (fb.config.batch,), generator=fb.generator).to(fb.device)
        batch = {name: values[index] for name, values in kept.items()}
        for name, value in fb.update(batch, goal).items():
            sums[name] += value
        since += 1
        if (step + 1) % log_every == 0 or step + 1 == updates:
            log.append({"update": fb.updates, **{name: value / since for name, value in sums.items()},
                        **fb.diagnostics(batch, goal)})
            sums, since = dict.fromkeys(LOSS_TERMS, 0.0), 0
    return pd.DataFrame(log)


# ---- experience without a task, and acting toward a goal without learning any further


def state_features(observation: np.ndarray, indices: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)) -> np.ndarray:
    """The part of a Meta-World observation (39,) that a picture shows: hand (3), gripper opening (1), object (3).

    The rest is left out: the goal (last 3), which no state contains; the previous frame; rotations. Observations
    shorter than 39 are those of another environment and are taken whole.
    """
    observation = np.asarray(observation, np.float32)
    return observation[..., list(indices)] if observation.shape[-1] == 39 else observation


def feature_function(encoder: Any | None = None) -> FeatureFunction:
    """`(env, observation) -> features (D,)`: of the rendered frame with `encoder`, else of the state observation."""
    if encoder is None:
        return lambda env, observation: state_features(observation)
    return lambda env, observation: encoder.encode(env.render()[None])[0]


def near_object_policy(rng: np.random.Generator, share: float = 0.5, hold: int = 20) -> Policy:
    """`envs.exploration_policy` with a share of its points around the object, so that the object is moved at all.

    Points are drawn 5 cm around the object; half of these with the gripper kept closed and the point lifted by up to
    10 cm. It reads where the object is, not what is to be done with it: no task is in it.
    """
    if not 0.0 <= share <= 1.0 or hold < 1:
        raise InputError(f"share must lie in 0..1 and hold be at least 1, got {share} and {hold}")
    elsewhere = exploration_policy(rng, hold)
    state: dict[str, Any] = {"left": 0}

    def act(observation: np.ndarray) -> np.ndarray:
        if state["left"] == 0:
            state.update(near=rng.random() < share, left=hold, gripper=rng.uniform(-1, 1),
                         point=observation[4:7] + rng.normal(scale=0.05, size=3))
            if rng.random() < 0.5:
                state.update(gripper=1.0, point=state["point"] + [0.0, 0.0, rng.uniform(0.0, 0.1)])
        state["left"] -= 1
        away = elsewhere(observation)  # asked at every step, so that both keep the same rhythm
        if not state["near"]:
            return away
        velocity = 10 * (state["point"] - observation[:3]) + 0.3 * rng.normal(size=3)
        return np.clip(np.append(velocity, state["gripper"]), -1, 1).astype(np.float32)

    return act


def collect_exploration(env_factory: Callable[[int], gymnasium.Env], steps: int, seed: int, encoder: Any | None = None,
                        explorer: Callable[[np.random.Generator], Policy] | None = None,
                        progress: bool = True) -> dict[str, np.ndarray]:
    """Task-free experience for F and B: a replay of `steps` transitions, without any reward in it.

    env_factory  seed -> environment with actions in [-1, 1]; reset whenever an episode ends, closed at the end
    encoder      psi: each frame is rendered and encoded once, episode by episode, and only features are kept; without
                 one the features are `state_features` of the observation
    explorer     rng -> policy, e.g. `near_object_policy`; by default `envs.exploration_policy` for Meta-World's
                 observations (39,) and `envs.random_policy` elsewhere

    Returns features, next_features (steps, D) float32, next_states (steps, S) float32 (`state_features`, for measuring:
    nothing learns from them), actions (steps, A) float32, dones (steps,) bool (terminated) and episodes (steps,) int64,
    the number of the episode that a row is from.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    rng = np.random.default_rng(seed)
    env = env_factory(int(seed))
    if explorer is not None:
        policy = explorer(rng)
    elif env.observation_space.shape == (39,) and env.action_space.shape == (4,):
        policy = exploration_policy(rng)
    else:
        policy = random_policy(rng, actions=int(np.prod(env.action_space.shape)))
    parts: dict[str, list[np.ndarray]] = {key: [] for key in
                                          ("features", "next_features", "next_states", "actions", "dones", "episodes")}
    collected, episode = 0, 0
    bar = tqdm(total=steps, desc="exploration", disable=not progress)
    try:
        while collected < steps:
            observation, _ = env.reset(seed=int(seed)) if episode == 0 else env.reset()
            views = [env.render() if encoder is not None else state_features(observation)]
            states, actions, dones, over = [], [], [], False
            while not over and collected + len(actions) < steps:
                action = policy(observation)
                observation, _, terminated, truncated, _ = env.step(action)
                states.append(state_features(observation))
                views.append(env.render() if encoder is not None else states[-1])
                actions.append(action)
                dones.append(bool(terminated))
                over = terminated or truncated
            features = encoder.encode(np.stack(views)) if encoder is not None else np.stack(views)
            parts["features"].append(features[:-1])
            parts["next_features"].append(features[1:])
            parts["next_states"].append(np.stack(states))
            parts["actions"].append(np.stack(actions))
            parts["dones"].append(np.asarray(dones))
            parts["episodes"].append(np.full(len(actions), episode))
            collected, episode = collected + len(actions), episode + 1
            bar.update(len(actions))
    finally:
        bar.close()
        env.close()
    types = {"dones": bool, "episodes": np.int64}
    return {key: np.concatenate(values).astype(types.get(key, np.float32)) for key, values in parts.items()}


def act_toward(fb: ForwardBackward, features: Array, z: Array) -> np.ndarray:
    """pi_z(s) for one state: features (D,), z (d,) -> action (A,) in [-1, 1]."""
    return fb.policy(features, z)[0]


def zero_shot(fb: ForwardBackward, env: gymnasium.Env, goal_z: Array | Callable[[gymnasium.Env, np.ndarray], Array],
              feature_fn: FeatureFunction | None = None, episodes: int = 10, seed: int = 0,
              progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Follow FB's own policy toward a goal, with no further learning.

    goal_z      (d,) from `ForwardBackward.goal_z`, or (env, first observation) -> (d,) for a goal of each episode's own
    feature_fn  see `feature_function`; the state by default

    Returns (returns (episodes,) float64 by the environment's dense reward where its info has one, success (episodes,)
    bool, at any point of the episode). An environment that never ends by itself is an InputError after 100,000 steps.
    """
    if episodes < 1:
        raise InputError(f"episodes must be at least 1, got {episodes}")
    feature_fn = feature_fn or feature_function()
    returns, successes = np.zeros(episodes), np.zeros(episodes, bool)
    for episode in tqdm(range(episodes), desc="zero-shot", disable=not progress):
        observation, _ = env.reset(seed=int(seed)) if episode == 0 else env.reset()
        z = goal_z(env, observation) if callable(goal_z) else goal_z
        over, steps = False, 0
        while not over:
            action = act_toward(fb, feature_fn(env, observation), z)
            observation, reward, terminated, truncated, info = env.step(action)
            returns[episode] += float(info.get("dense_reward", reward))
            successes[episode] |= bool(info.get("success", False))
            over, steps = terminated or truncated, steps + 1
            if steps >= 100_000:
                raise InputError("the environment does not end its episodes; wrap it in gymnasium's TimeLimit")
    return returns, successes
