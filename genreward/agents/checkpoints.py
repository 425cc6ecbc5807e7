"""Reading an agent's checkpoint: whole and of this very configuration, or one clear line."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import Damaged, InputError


def read_checkpoint(path: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Any]:
    """A checkpoint file's content; a missing one is an `InputError`, a truncated one a `Damaged`."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no such checkpoint: {path}") from None
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError,
            KeyError) as problem:  # where a file is cut decides at which of these its reader stumbles
        reason = str(problem).splitlines()[0][:100] if str(problem) else type(problem).__name__
        raise Damaged(f"{path} is not a whole checkpoint ({reason}); remove it to start again") from None


def check_state(state: Any, agent: str, form: str, configuration: Mapping[str, Any]) -> None:
    """InputError unless `state` is of the format `form` and made with `configuration`; each difference is named."""
    if not isinstance(state, dict) or state.get("format") != form:
        raise InputError(f"not a checkpoint of this agent; valid: what {agent}.save wrote ({form})")
    other = state["config"]
    foreign = [f"{key} {other.get(key)!r} (here {configuration.get(key)!r})"
               for key in sorted(configuration.keys() | other.keys()) if configuration.get(key) != other.get(key)]
    if foreign:
        raise InputError(f"the checkpoint is of another configuration: {', '.join(foreign)}")
