"""An exploration bonus for the reward models that are published with one: random network distillation.

A fixed random network maps a frame's features to a few numbers, a second one learns to predict them from the frames
that were met; where the prediction fails, the frame is new (Burda et al., "Exploration by Random Network Distillation",
ICLR 2019). It stands beside the rewards over tokens and is switched off unless its weight is above 0.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError


class Novelty:
    """Prediction error of a random network, divided by its own running spread, for features (N, dim).

    Between two calls of `learn` it is a fixed function of the features: whoever asks in whatever order gets the same.

    seed          of both networks
    observations  at most so many features are kept until `learn` is called, the last ones
    """

    def __init__(self, dim: int, seed: int = 0, hidden: int = 64, out: int = 32, learning_rate: float = 1e-3,
                 observations: int = 2000, batch: int = 64) -> None:
        if dim < 1 or observations < 1:
            raise InputError(f"novelty needs features and room for observations, got {dim} and {observations}")
        self.dim, self.observations, self.batch = dim, observations, batch
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.target, self.predictor = (nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                                         nn.ReLU(), nn.Linear(hidden, out)) for _ in range(2))
        self.target.requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.predictor.parameters(), learning_rate)
        self.count, self.square = 0, 0.0
        self.pending: list[np.ndarray] = []

    def _errors(self, features: np.ndarray) -> torch.Tensor:
        given = torch.from_numpy(np.asarray(features, np.float32))
        return (self.predictor(given) - self.target(given)).square().mean(1)

    @torch.no_grad()
    def bonus(self, features: np.ndarray) -> np.ndarray:
        """(N, dim) -> (N,) float32, not negative: about 1 for frames as new as those met so far were on average."""
        scale = (self.square / self.count) ** 0.5 if self.count else 1.0
        return (self._errors(features) / max(scale, 1e-8)).numpy()

    def observe(self, features: np.ndarray) -> None:
        """Keep features (N, dim) for the next `learn`."""
        self.pending = (self.pending + list(np.asarray(features, np.float32)))[-self.observations:]

    def learn(self) -> None:
        """One pass over what was observed, in order; the running spread counts the errors before it."""
        if not self.pending:
            return
        seen = np.stack(self.pending)
        self.pending = []
        with torch.no_grad():
            errors = self._errors(seen)
        self.count, self.square = self.count + len(seen), self.square + float(errors.double().square().sum())
        for begin in range(0, len(seen), self.batch):
            self.optimiser.zero_grad()
            self._errors(seen[begin:begin + self.batch]).mean().backward()
            self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `learn` changes."""
        return deepcopy({"predictor": self.predictor.state_dict(), "target": self.target.state_dict(),
                         "optimiser": self.optimiser.state_dict(), "count": self.count, "square": self.square,
                         "pending": self.pending})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        state = deepcopy(state)  # the optimiser would go on writing to the tensors that it is given
        self.predictor.load_state_dict(state["predictor"])
        self.target.load_state_dict(state["target"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.count, self.square, self.pending = state["count"], state["square"], list(state["pending"])
