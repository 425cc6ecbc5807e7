"""The ground that everything stands on: import order, OpenGL, pins, and files that must not name a machine."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from genreward import bootstrap, doctor

ROOT = Path(__file__).resolve().parent.parent


def pins(name):
    """Every pinned line of a requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith((" ", "#"))]


def fresh(program, **environment):
    """Run Python in a new process, without this one's OpenGL settings."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run([sys.executable, *program], cwd=ROOT, capture_output=True, text=True,
                          env={**inherited, **environment})


# Mesa's LLVM is loaded with mujoco's OSMesa, Triton's with triton: Mesa's first is a segmentation fault
@pytest.mark.parametrize("modules", ["mujoco triton", "mujoco diffusers torchrl", "torchrl mujoco diffusers"])
def test_no_order_of_imports_kills_the_process(modules):
    uses = {"diffusers": "from diffusers import AutoencoderKLCogVideoX",
            "torchrl": "from torchrl.objectives import DreamerModelLoss",
            "mujoco": "import mujoco; context = mujoco.GLContext(8, 8); context.make_current()",
            "triton": "import triton._C.libtriton"}
    lines = ["import genreward", *(uses[module] for module in modules.split()), "print('alive')"]
    done = fresh(["-c", "\n".join(lines)])
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), (done.returncode, done.stderr[-500:])


def test_the_package_settles_the_back_end_before_mujoco_is_there():
    done = fresh(["-c", "import sys, os, genreward; print(os.environ['MUJOCO_GL'], 'mujoco' in sys.modules)"])
    assert done.stdout.split() == ["egl" if bootstrap.has_gpu() else "osmesa", "False"]
    chosen = fresh(["-c", "import os, genreward; print(os.environ['MUJOCO_GL'])"], MUJOCO_GL="glfw")
    assert chosen.stdout.split() == ["glfw"]


def test_whoever_reads_results_does_not_wait_for_open_clip():
    """It takes seconds, in every notebook; goals can be read without it."""
    done = fresh(["-c", "import sys; from genreward import evidence, goals; print('open_clip' in sys.modules)"])
    assert done.stdout.split() == ["False"], done.stderr[-500:]


def test_the_doctor_finds_nothing_wrong_here():
    found = doctor.report()
    assert found["problems"] == []
    assert found["opengl"]["renderer"] and found["frames_per_second"] > 1
    assert found["versions"]["mujoco"] == "3.3.0" and found["cores"] >= 1 and found["disk_free_gb"] > 0


@pytest.mark.parametrize(("backend", "environment"), [
    ("no-such-back-end", {}),
    # a library path that hides every OSMesa: what a machine without libosmesa6 looks like to PyOpenGL
    ("osmesa", {"PYOPENGL_PLATFORM": "no-such-platform"}),
])
def test_a_broken_back_end_costs_one_line(backend, environment):
    done = fresh(["-m", "genreward.doctor"], MUJOCO_GL=backend, **environment)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"error: no OpenGL with MUJOCO_GL={backend}")
    assert "libosmesa6" in errors[0]


def test_a_wrong_version_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "versions", lambda: {"mujoco": "4.0.0", "peft": "missing"})
    monkeypatch.setattr(doctor, "_probe", lambda program: ("renderer", ""))
    first, second = doctor.report(speed=False)["problems"]
    assert first == "mujoco is 4.0.0, requirements.lock says 3.3.0: run make setup"
    assert second.startswith("peft is missing, requirements.lock says ")


def test_the_lock_answers_what_is_asked_for():
    locked = {}
    for pin in pins("requirements.lock"):
        (version,) = pin.specifier
        assert version.operator == "==", f"{pin} is not pinned"
        if pin.marker is None or pin.marker.evaluate():
            assert pin.name not in locked, f"{pin.name} is pinned twice for this Python"
            locked[pin.name] = Version(version.version)
    for wanted in pins("requirements.in"):
        assert wanted.specifier.contains(locked[wanted.name]), f"{wanted} is locked at {locked[wanted.name]}"


def test_what_is_installed_is_what_the_lock_says():
    assert {name: version.split("+")[0] for name, version in doctor.versions().items()} == {
        name: doctor.locked_versions()[name] for name in doctor.SHOWN}


def test_conda_gets_python_and_the_lock_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, (requirements) = environment["dependencies"]
    assert pip == "pip" and requirements == {"pip": ["--requirement requirements.lock"]}
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert python == f"python={lowest}"
    assert environment["channels"] == ["conda-forge"]


def test_dependency_files_name_no_machine_and_no_address():
    for name in ("requirements.in", "requirements.lock", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"):
        found = re.findall(r".*(?:://|--index-url|--find-links |/home/|/root/|/tmp/).*", (ROOT / name).read_text())
        assert found == [], name


def make(*arguments, **environment):
    # `make test` runs these tests: without its marks this make is a user's own, not a part of that one
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env={**outer, **environment})


@pytest.mark.parametrize(("script", "why"), [
    ('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n', "Python 3.9.1 is too old: Python 3.11 or newer"),
    (None, "no .*python-that-is-not-there here; install Python 3.11 or newer"),
])
def test_a_python_that_will_not_do_costs_one_line(tmp_path, script, why):
    python = tmp_path / "python-that-is-not-there"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    done = make("setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0 and len(errors) == 1 and re.search(why, errors[0])
    assert not (tmp_path / "venv").exists()


def test_setup_without_opengl_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "opengl_works", lambda python, backend: False)
    monkeypatch.setattr(bootstrap.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(SystemExit, match="^error: no OpenGL back end: install libosmesa6 .*make setup` again$"):
        bootstrap.setup_opengl(Path(sys.executable), tmp_path / "log")


def test_setup_installs_opengl_where_it_may(monkeypatch, tmp_path):
    ran = []

    def run(command, label, log):
        ran.append([word for word in command if not word.startswith(("env", "DEBIAN"))])
        return "update" in command or ["apt-get", "update"] in ran  # the package lists are stale at first

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "opengl_works", lambda python, backend: len(ran) == 3)
    monkeypatch.setattr(bootstrap.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert bootstrap.setup_opengl(Path(sys.executable), tmp_path / "log") == "osmesa"
    install = ["apt-get", "install", "-y", "--no-install-recommends", "libosmesa6"]
    assert ran == [install, ["apt-get", "update"], install]


def test_setup_does_nothing_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "requirements.lock")
    bootstrap.LOCK.write_text("numpy==1\n")
    ran = []
    monkeypatch.setattr(bootstrap, "installer", lambda python, log: ["uv"])
    monkeypatch.setattr(bootstrap, "run", lambda command, label, log: ran.append(command) or True)
    for lock, calls in (("numpy==1\n", 2), ("numpy==1\n", 2), ("numpy==2\n", 4)):
        bootstrap.LOCK.write_text(lock)
        bootstrap.install_packages(Path(sys.executable), tmp_path, tmp_path / "log")
        assert len(ran) == calls


def test_pip_takes_over_where_uv_fails(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(bootstrap, "installer", lambda python, log: ["uv"])
    monkeypatch.setattr(bootstrap, "run", lambda command, label, log: ran.append(command) or command[0] != "uv")
    bootstrap.install_packages(Path("python"), tmp_path, tmp_path / "log")
    assert [command[:4] for command in ran] == [["uv", "pip", "sync", "--python"], ["python", "-m", "pip", "install"],
                                               ["python", "-m", "pip", "install"]]


def test_the_ci_calls_make_test():
    script = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in script and "\nmake test" in script and os.access(ROOT / ".ci/run", os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert "bash .ci/run" in steps and any("libosmesa6" in step for step in steps)
