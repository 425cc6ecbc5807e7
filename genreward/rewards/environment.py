"""The environment's own reward as reward models: what every generated reward is compared with."""

from __future__ import annotations

from ..errors import InputError
from .base import History, RewardModel, RewardProperties, register

_CITATION = "Meta-World: Yu et al., arXiv 1910.10897; McLean et al., arXiv 2505.11289"


@register("dense")
class DenseReward(RewardModel):
    """The hand-designed reward of the environment at every step (Meta-World: 0..10)."""

    replaces_env = True
    properties = RewardProperties(True, False, True, _CITATION)

    def terms(self, history: History, t: int) -> dict[str, float]:
        """The reward of step `t`, as the term "env"."""
        return {"env": history.rewards[t - 1]}


@register("sparse")
class SparseReward(RewardModel):
    """The same reward, paid at every `interval`-th step of the episode only, as the paper trains its agents."""

    replaces_env = True
    properties = RewardProperties(True, False, True, _CITATION)

    def __init__(self, sparse_interval: int = 128) -> None:
        if sparse_interval < 1:
            raise InputError(f"sparse_interval must be at least 1, got {sparse_interval}")
        self.interval = sparse_interval

    def terms(self, history: History, t: int) -> dict[str, float]:
        """The reward of step `t` where `t` is a multiple of the interval, else 0."""
        return {"env": history.rewards[t - 1] if t % self.interval == 0 else 0.0}
