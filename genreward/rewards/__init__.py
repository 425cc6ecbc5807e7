"""Reward models: one file a family, one registry for all, one wrapper that pays any of them to any agent."""

import warnings

from . import (  # noqa: F401  (importing them fills the registry)
    controls,
    diffusion_reward,
    environment,
    genreward,
    liv,
    roboclip,
    tadpole,
    viper,
    vlm_rm,
)
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

# `python -m genreward.rewards.x` trains the parts of a model that importing this package has registered already
warnings.filterwarnings("ignore", message="'genreward.rewards", category=RuntimeWarning)

__all__ = ["GenReward", "GoalRewardEnv", "History", "RewardLedger", "RewardModel", "RewardProperties", "available",
           "get_reward", "make_reward", "mean_latent", "register", "table1"]
