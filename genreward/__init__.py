"""GenReward, the reproducible companion of "Goal-Driven Reward by Video Diffusion Models for Reinforcement Learning".

Importing the package settles two things that must be settled before anything else is imported:

- **the OpenGL back end** of MuJoCo: EGL where there is an NVIDIA device, else OSMesa (software). Set `MUJOCO_GL`
  yourself to choose another.
- **the order of two LLVMs**: OSMesa brings one with MuJoCo, Triton brings another, and the process dies when Mesa's is
  loaded first. Triton is therefore imported here, before any module of the package can import MuJoCo.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import warnings

__version__ = "0.1.0"

if "MUJOCO_GL" not in os.environ:
    has_gpu = pathlib.Path("/dev/nvidia0").exists() or pathlib.Path("/dev/nvidiactl").exists()
    os.environ["MUJOCO_GL"] = "egl" if has_gpu else "osmesa"
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
# llvmpipe starts one thread a core by itself; at 64x64 pixels they cost more than they give.
os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Inside a notebook the libraries' progress bars ask for widgets, which an executed copy could not show.
warnings.filterwarnings("ignore", message="IProgress not found")

if importlib.util.find_spec("triton") is not None:
    import triton  # noqa: F401
