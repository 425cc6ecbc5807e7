"""The step before the flow: builds `.venv` from requirements.lock and finds an OpenGL back end for MuJoCo.

`make setup` runs this file as a script with nothing but Python's standard library, so it imports no module of the
package. Running it again costs a second: what is already there is not installed again, and then no network is needed.
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
OSMESA_PACKAGE = "libosmesa6"


def say(line: str) -> None:
    """One line of progress, shown at once even through a pipe."""
    print(f"setup: {line}", flush=True)


def stop(line: str) -> SystemExit:
    """The one-line end of a set-up that cannot go on."""
    return SystemExit(f"error: {line}")


def run(command: list[str], label: str, log: Path) -> bool:
    """Run a command with its output in `log`; a terminal sees one line with the seconds. True when it succeeded."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    live = sys.stdout.isatty()
    if not live:
        say(label)
    with open(log, "a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        while True:
            try:
                status = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if live:
                    print(f"\rsetup: {label} ... {time.monotonic() - start:.0f} s", end="", flush=True)
    took = f"{time.monotonic() - start:.0f} s"
    print(f"\rsetup: {label}: {took}" if live else f"setup: done in {took}", flush=True)
    return status == 0


def last_line(log: Path) -> str:
    """The last thing that a failed command said, for the one-line error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def environment_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(venv: Path, log: Path) -> Path:
    """A virtual environment at `venv`, made anew when its Python does not start (moved, or its Python removed)."""
    python = environment_python(venv)
    works = python.exists() and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    if not works:
        made = run([sys.executable, "-m", "venv", "--clear", str(venv)], f"making {venv.name}", log)
        if not made:
            if shutil.which("uv") and run(["uv", "venv", "--clear", "--python", sys.executable, str(venv)],
                                          f"making {venv.name} with uv", log):
                return python
            raise stop("this Python cannot make a virtual environment (on Debian: apt-get install python3-venv); "
                       f"it said: {last_line(log)}")
    return python


def installer(python: Path, log: Path) -> list[str] | None:
    """uv where it can be had (on the path, or from pip inside the environment), since it takes seconds where pip takes
    minutes; None when only pip is left."""
    inside = [str(python), "-m", "uv"]
    for command in ([shutil.which("uv")], inside):
        if command[0] and subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    got = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"],
                         stdin=subprocess.DEVNULL, capture_output=True, text=True)
    with open(log, "a") as output:
        output.write(got.stdout + got.stderr)
    return inside if got.returncode == 0 else None


def install_packages(python: Path, venv: Path, log: Path) -> None:
    """Make the environment hold exactly what the lock says, and the package itself in place (editable)."""
    stamp = venv / "lock.sha256"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    count = sum("==" in line and not line.startswith((" ", "#")) for line in LOCK.read_text().splitlines())
    label = f"installing the {count} packages of {LOCK.name} (about 6 GB on disk, 1 to 5 minutes)"
    uv = installer(python, log)
    done = False
    if uv is not None:
        done = run([*uv, "pip", "sync", "--python", str(python), str(LOCK)], label, log)
        done = done and run([*uv, "pip", "install", "--python", str(python), "--no-deps", "--no-build-isolation",
                             "--editable", str(ROOT)], "installing genreward itself, in place", log)
        if not done:
            say("uv did not manage; trying pip")
    if not done:
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        done = run([*pip, "--requirement", str(LOCK)], label, log)
        done = done and run([*pip, "--no-build-isolation", "--editable", str(ROOT)],
                            "installing genreward itself, in place", log)
    if not done:
        raise stop(f"the packages could not be installed: {last_line(log)} (all of it: {log.relative_to(ROOT)})")
    stamp.write_text(wanted)


def has_gpu() -> bool:
    """The same sign by which the package chooses EGL."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()


def opengl_works(python: Path, backend: str) -> bool:
    """Whether MuJoCo can open an OpenGL context, asked in a process of its own: a broken driver may kill it."""
    program = "import genreward, mujoco; c = mujoco.GLContext(64, 64); c.make_current(); c.free()"
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    return subprocess.run([python, "-c", program], cwd=ROOT, env=environment, capture_output=True).returncode == 0


def setup_opengl(python: Path, log: Path) -> str:
    """Find a working back end, installing Debian's OSMesa where this user may; returns its name."""
    wanted = os.environ.get("MUJOCO_GL") or ("egl" if has_gpu() else "osmesa")
    if opengl_works(python, wanted):
        return wanted
    if wanted == "osmesa" and not ctypes.util.find_library("OSMesa"):
        may = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
        if may:
            environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
            install = [*environment, "apt-get", "install", "-y", "--no-install-recommends", OSMESA_PACKAGE]
            done = run(install, f"installing {OSMESA_PACKAGE} (OpenGL without a GPU)", log) or (
                run([*environment, "apt-get", "update"], "refreshing the package lists", log)
                and run(install, f"installing {OSMESA_PACKAGE}", log))
            if done and opengl_works(python, wanted):
                return wanted
        raise stop(f"no OpenGL back end: install {OSMESA_PACKAGE} (Debian, Ubuntu: sudo apt-get install "
                   f"{OSMESA_PACKAGE}; Fedora: mesa-libOSMesa), then run `make setup` again")
    if wanted == "egl" and opengl_works(python, "osmesa"):
        raise stop("EGL does not work on this machine though it has a GPU; OSMesa does: export MUJOCO_GL=osmesa, "
                   "then run `make setup` again")
    raise stop(f"OpenGL by MUJOCO_GL={wanted} does not work here; valid: egl (needs a GPU driver), osmesa (needs "
               f"{OSMESA_PACKAGE}), glfw (needs a screen)")


def main() -> None:
    """Environment, packages, OpenGL: three steps, each skipped when it is done already."""
    parser = argparse.ArgumentParser(description="build .venv from requirements.lock and find an OpenGL back end")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment goes")
    venv = parser.parse_args().venv.absolute()
    start = time.monotonic()
    log = ROOT / "build" / "setup.log"
    python = make_environment(venv, log)
    install_packages(python, venv, log)
    backend = setup_opengl(python, log)
    say(f"ready in {time.monotonic() - start:.0f} s (OpenGL: {backend})")


if __name__ == "__main__":
    main()
