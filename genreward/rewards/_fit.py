"""One training loop for the small networks behind the reward models: seeded, resumable, with a progress bar.

It stands beside the reward models that train something (`roboclip`, `liv`): each says what its loss on one drawn batch
is, and the rest is the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import files
from ..errors import InputError

WARM_UP = 20  # updates until the full learning rate
CLIP_NORM = 1.0  # of the gradient


def fit(name: str, module: torch.nn.Module, loss: Callable[[np.random.Generator], dict[str, torch.Tensor]], *,
        updates: int, learning_rate: float, weight_decay: float = 0.05, seed: int = 0,
        settings: dict[str, Any] | None = None, checkpoint: Path | None = None, checkpoint_every: int = 100,
        progress: bool = True) -> list[dict[str, Any]]:
    """Minimise the sum of the terms that `loss` gives for each drawn batch, over the weights of `module` that require a
    gradient, in place; returns the curve as rows of the results' schema (mean of every ten updates, a row a term).

    name      the method's, in the rows and on the progress bar
    loss      generator -> terms of one batch's loss; it draws from nothing but that generator
    settings  what the result depends on (data, configuration): a checkpoint made with others is an InputError
    A short warm-up, then half a cosine down to 2 per cent of the learning rate. With `checkpoint` (a file) the state
    is kept every `checkpoint_every` updates, and the same call continues from it to the same result.
    """
    if updates < 1 or not learning_rate > 0:
        raise InputError(f"updates must be at least 1 and the learning rate positive, got {updates} and "
                         f"{learning_rate}")
    identity = files.digest({"name": name, "updates": updates, "learning_rate": learning_rate, "seed": seed,
                             "weight_decay": weight_decay, **(settings or {})})
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, learning_rate, weight_decay=weight_decay)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    recent: dict[str, list[float]] = {}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        from ..goals import _read_checkpoint  # here, since open_clip takes seconds to import

        state = _read_checkpoint(checkpoint, identity)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        rng.bit_generator.state = state["rng"]
        rows, recent, first = state["rows"], state["recent"], state["step"]
    module.train()
    for step in tqdm(range(first, updates), initial=first, total=updates, desc=name, disable=not progress):
        rate = min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / updates)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate
        terms = loss(rng)
        total = sum(terms.values())
        if not torch.isfinite(total):
            raise InputError(f"the loss of {name} is {float(total.detach())} at update {step + 1}; use a smaller "
                             f"learning rate than {learning_rate}")
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimiser.step()
        done = step + 1
        for term, value in {"loss": total, **terms}.items():
            recent.setdefault(term, []).append(value.item())
        if done % 10 == 0 or done == updates:
            rows += [{"experiment": "reward_models", "method": name, "task": "all", "seed": seed, "step": done,
                      "metric": term, "value": float(np.mean(values))} for term, values in recent.items()]
            recent = {}
        if checkpoint is not None and (done % checkpoint_every == 0 or done == updates):
            with files.atomic_path(checkpoint) as temporary:
                torch.save({"settings": identity, "module": module.state_dict(), "optimiser": optimiser.state_dict(),
                            "rng": rng.bit_generator.state, "rows": rows, "recent": recent, "step": done}, temporary)
    module.eval()
    return rows


def curve(rows: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """The rows of `fit` as term -> [[step, value], ...], for a provenance file."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        found.setdefault(row["metric"], []).append([row["step"], round(row["value"], 5)])
    return found


def augment_clip(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`goals.augment` for the frames of one clip (K, H, W, 3) uint8: all of them shifted and coloured alike."""
    from ..goals import augment

    k, height, width, _ = frames.shape
    as_one = frames.transpose(1, 2, 0, 3).reshape(1, height, width, 3 * k)
    return augment(as_one, rng).reshape(height, width, k, 3).transpose(2, 0, 1, 3)
