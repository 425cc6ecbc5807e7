"""Shared settings of the tests: one thread, no window, the package first (it settles the order of two LLVMs)."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402

import genreward  # noqa: E402, F401


def pytest_addoption(parser):
    parser.addoption("--book", action="store_true", help="also train everything at smoke size and run every notebook")
    parser.addoption("--cluster", action="store_true", help="also run the grid on a Ray cluster of two local nodes")


def pytest_collection_modifyitems(config, items):
    """The notebooks take minutes and a cluster wants an idle machine: only with their options are they selected."""
    for mark in ("book", "cluster"):
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and not config.getoption(f"--{mark}"):
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]


@pytest.fixture
def renamed():
    """(file of safetensors, beginning of a weight's name) -> gives that weight another name, as in another model's
    file; returns the name that it had."""
    def rename(path, beginning):
        from safetensors.torch import load_file, save_file

        content = load_file(path)
        name = min(key for key in content if key.startswith(beginning))
        content["another_models." + name] = content.pop(name)
        save_file(content, path, {"format": "pt"})
        return name

    return rename


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project root: everything that a test writes through `profiles.paths` goes there."""
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    return tmp_path
