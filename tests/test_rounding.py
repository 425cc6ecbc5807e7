"""Whose processor's code MKL takes: asked and answered in processes of their own, since what is chosen once stays."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from genreward import results, rounding
from genreward.errors import InputError

SUMS = """
import json, sys
from genreward import results, rounding
before = rounding.own(), rounding.taken()
if sys.argv[1] != "-":
    rounding.as_if(sys.argv[1])
import torch
torch.manual_seed(0)
a, b = torch.randn(100, 300), torch.randn(300, 200)
print(json.dumps({"before": before, "own": rounding.own(), "taken": rounding.taken(), "product": (a @ b).tolist(),
                  "kept": results.provenance().get("rounded_as")}))
"""
HERE = rounding.own()


def sums(maker):
    done = subprocess.run([sys.executable, "-c", SUMS, maker], capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def test_what_mkl_is_told_it_believes_and_the_provenance_says_so():
    plain = sums("-")
    assert plain["own"] == HERE and plain["taken"] is None and plain["kept"] is None
    for maker in rounding.MAKERS:
        if HERE is None:  # a PyTorch without MKL: there is nobody to tell
            with pytest.raises(InputError, match="no MKL that can be told"):
                rounding.as_if(maker)
            continue
        told = sums(maker)
        assert told["before"] == [HERE, None]
        assert (told["own"], told["taken"], told["kept"]) == (maker, maker, maker)
        same = np.array_equal(told["product"], plain["product"])  # bit for bit
        assert same or maker != HERE  # its own maker's name changes nothing
        assert np.allclose(told["product"], plain["product"], atol=1e-4)  # the same sums, whoever rounds


def test_this_process_was_told_nothing():
    expected = rounding.of(results.processor()) if rounding._library() is not None else None
    assert rounding.own() == HERE == expected and rounding.taken() is None


def test_the_maker_of_a_processor_by_its_name():
    assert rounding.of("Intel(R) Xeon(R) Platinum 8488C, family 6, model 143, AVX512") == "intel"
    assert rounding.of("AMD EPYC, family 25, model 17, AVX512") == "other"
    assert rounding.of(None) is None and rounding.of("") is None


def test_an_unknown_maker_and_a_pytorch_without_mkl_are_refused(monkeypatch):
    with pytest.raises(InputError, match="unknown maker of processors 'amd'; valid: intel, other"):
        rounding.as_if("amd")
    monkeypatch.setattr(rounding, "_library", lambda: None)
    assert rounding.own() is None
    with pytest.raises(InputError, match="no MKL that can be told"):
        rounding.as_if("intel")
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert rounding.own() is None
    assert rounding.taken() is None


A_RUN = """
import sys
from genreward import experiments, results, rounding, training
training.train_agent = lambda run, **settings: print(run, rounding.own(), results.provenance().get("rounded_as"))
for maker in (None, *[sys.argv[1]] * 2):
    experiments._train("a run", None, rounded_as=maker)
"""


def test_a_run_of_the_grid_is_rounded_as_it_is_told_before_it_begins():
    other = "other" if HERE == "intel" else "intel"
    done = subprocess.run([sys.executable, "-c", A_RUN, other], capture_output=True, text=True, check=False)
    told = [f"a run {other} {other}"] * 2 if HERE else []
    assert done.stdout.splitlines() == [f"a run {HERE} None", *told]
    assert ("no MKL that can be told" in done.stderr) == (HERE is None) == (done.returncode != 0)
