"""Reward models: one file a family, one registry for all, one wrapper that pays any of them to any agent."""

from . import controls, environment, genreward  # noqa: F401  (importing them fills the registry)
from .base import (
    GoalRewardEnv,
    History,
    RewardLedger,
    RewardModel,
    RewardProperties,
    available,
    get_reward,
    make_reward,
    register,
    table1,
)
from .genreward import GenReward, mean_latent

__all__ = ["GenReward", "GoalRewardEnv", "History", "RewardLedger", "RewardModel", "RewardProperties", "available",
           "get_reward", "make_reward", "mean_latent", "register", "table1"]
