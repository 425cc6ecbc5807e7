"""`python -m genreward.doctor`: does this machine work? Versions, OpenGL, render speed, disk, cores, GPU.

Stands beside the flow: it looks at what all the other modules stand on. `report()` gives the same as a dict, which
notebook 00 shows. What may crash (a graphics driver) is tried in a process of its own, so that a broken back end costs
one line and not the caller.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .errors import cli

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("torch", "torchvision", "diffusers", "transformers", "peft", "open-clip-torch", "metaworld", "mujoco",
         "gymnasium", "torchrl", "tensordict", "stable-baselines3", "numpy", "papermill")
ADVICE = {
    "osmesa": "install libosmesa6 (Debian, Ubuntu: sudo apt-get install libosmesa6)",
    "egl": "EGL needs a GPU driver; without one install libosmesa6 and set MUJOCO_GL=osmesa",
    "glfw": "glfw needs a screen; without one install libosmesa6 and set MUJOCO_GL=osmesa",
}

_PROBE_GL = """
import json, genreward, mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
from OpenGL import GL
print(json.dumps(GL.glGetString(GL.GL_RENDERER).decode()))
"""
_PROBE_SPEED = """
import json, time, genreward
from genreward.envs import make_env
env = make_env("reach", seed=0, size=64)
env.reset(seed=0)
env.render()
start, frames = time.perf_counter(), 0
while frames < 20 or time.perf_counter() - start < 0.5:
    env.render()
    frames += 1
print(json.dumps(frames / (time.perf_counter() - start)))
"""


def _probe(program: str) -> tuple[Any, str]:
    """What the program printed (JSON) and no complaint, or None and the last line of its complaint."""
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None, "no answer in 300 s"
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0 or not said:
        return None, f"the process died (status {done.returncode})"
    # an object's destructor may complain after the error itself: the first line that names an error is the cause
    named = [line for line in said if line.split(":")[0].endswith(("Error", "Exception")) and " " not in
             line.split(":")[0]]
    return None, (named or said)[-1]


def versions() -> dict[str, str]:
    """Installed version of each package in `SHOWN`; "missing" where there is none."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def locked_versions(path: Path = ROOT / "requirements.lock") -> dict[str, str]:
    """Package -> version in the lock, for this Python and this system."""
    from packaging.requirements import Requirement

    pins = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                pins[requirement.name] = str(requirement.specifier).removeprefix("==")
    return pins


def gpus() -> list[dict[str, Any]]:
    """Name and memory (GB) of every CUDA device that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": device.name, "memory_gb": round(device.total_memory / 1e9, 1)} for device in devices]


def report(speed: bool = True) -> dict[str, Any]:
    """What the machine has: python, versions, opengl (backend, renderer), frames_per_second (64 x 64 pixels, None
    unless `speed`), disk_free_gb, cores, memory_gb, gpus, and `problems`, one line each (empty: all is well)."""
    import psutil

    backend = os.environ.get("MUJOCO_GL", "")
    installed, problems = versions(), []
    pins = locked_versions() if (ROOT / "requirements.lock").exists() else {}
    for name, version in installed.items():
        wanted = pins.get(name, version)
        if version.split("+")[0] != wanted:
            problems.append(f"{name} is {version}, requirements.lock says {wanted}: run make setup")
    renderer, complaint = _probe(_PROBE_GL)
    if renderer is None:
        advice = ADVICE.get(backend, "valid: MUJOCO_GL=egl (GPU), osmesa (libosmesa6), glfw (screen)")
        problems.append(f"no OpenGL with MUJOCO_GL={backend}: {advice} ({complaint})")
    frames_per_second = None
    if speed and renderer is not None:
        frames_per_second, complaint = _probe(_PROBE_SPEED)
        if frames_per_second is None:
            problems.append(f"the environments do not render: {complaint}")
    disk = shutil.disk_usage(ROOT).free / 1e9
    if disk < 2:
        problems.append(f"only {disk:.1f} GB of disk are free; demonstrations and checkpoints want at least 2")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "versions": installed,
        "opengl": {"backend": backend, "renderer": renderer},
        "frames_per_second": frames_per_second and round(frames_per_second, 1),
        "disk_free_gb": round(disk, 1),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus(),
        "problems": problems,
    }


def main() -> int:
    """Print the report; status 1 with one `error:` line a problem."""
    argparse.ArgumentParser(prog="python -m genreward.doctor", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = report()
    print(f"{'python':20} {found['python']}")
    for name, version in found["versions"].items():
        print(f"{name:20} {version}")
    speed = found["frames_per_second"]
    print(f"{'OpenGL':20} {found['opengl']['backend']}: {found['opengl']['renderer'] or 'does not work'}")
    print(f"{'rendering':20} {f'{speed:.0f} frames/s at 64 x 64' if speed else 'not measured'}")
    print(f"{'disk':20} {found['disk_free_gb']} GB free")
    print(f"{'cores, memory':20} {found['cores']}, {found['memory_gb']} GB")
    print(f"{'GPU':20} " + (", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in found["gpus"]) or "none"))
    for problem in found["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    cli(main)
