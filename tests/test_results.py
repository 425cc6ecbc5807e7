"""Schema, provenance and statistics, held against numbers worked out by hand."""

import errno
import json
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from genreward import errors, files, results
from genreward.errors import InputError


def row(**changes):
    return {"experiment": "main", "method": "dense", "task": "reach", "seed": 0, "step": 100, "metric": "return",
            "value": 1.5, **changes}


def test_a_run_comes_back_as_it_was_written(tmp_path):
    rows = [row(), row(step=200, value=-2.25), row(metric="success", value=1)]
    path = results.write_run(tmp_path, "dense-reach-0", rows, {"seconds": 3})
    table = results.load(tmp_path)
    assert path.name == "dense-reach-0.csv"
    assert table["value"].tolist() == [1.5, -2.25, 1.0]
    assert table["step"].tolist() == [100, 200, 100] and table["step"].dtype == np.int64
    assert table["run"].unique().tolist() == ["dense-reach-0"]
    (kept,) = results.load_provenance(tmp_path).values()
    assert kept["seconds"] == 3 and len(kept["rows"].split()) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense-reach-0.csv", "dense-reach-0.json"]


def test_the_order_of_columns_does_not_matter(tmp_path):
    table = pd.DataFrame([row()])[["value", "metric", "step", "seed", "task", "method", "experiment"]]
    results.write_run(tmp_path, "r", table, {})
    assert (tmp_path / "r.csv").read_text().splitlines()[0] == ",".join(results.COLUMNS)


@pytest.mark.parametrize(("changes", "why"), [
    ({"value": float("nan")}, "no finite value"),
    ({"value": "abc"}, "no finite value"),
    ({"value": float("inf")}, "no finite value"),
    ({"step": 1.5}, "whole number"),
    ({"seed": -1}, "whole number"),
    ({"method": ""}, "no method"),
    ({"task": None}, "no task"),
    ({}, "repeats an earlier row"),
])
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, changes, why):
    with pytest.raises(InputError, match=f"row 2 .*{why}"):
        results.write_run(tmp_path, "r", [row(), row(**changes)], {})
    assert list(tmp_path.iterdir()) == []


def test_a_bad_run_leaves_the_earlier_one_whole(tmp_path):
    results.write_run(tmp_path, "r", [row()], {"try": 1})
    with pytest.raises(InputError):
        results.write_run(tmp_path, "r", [row(value=float("nan"))], {"try": 2})
    assert results.load(tmp_path)["value"].tolist() == [1.5]
    assert results.load_provenance(tmp_path)["r"]["try"] == 1


@pytest.mark.parametrize("name", ["", "../r", "a/b", ".hidden", "a b"])
def test_a_run_id_makes_a_file_name(tmp_path, name):
    with pytest.raises(InputError, match="run id"):
        results.write_run(tmp_path, name, [row()], {})


def test_no_rows(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        results.write_run(tmp_path, "r", [], {})
    empty = results.load(tmp_path)
    assert len(empty) == 0 and set(results.COLUMNS) < set(empty.columns)


def test_a_file_that_is_no_table_is_called_so(tmp_path):
    (tmp_path / "r.csv").write_text("hello\n")
    with pytest.raises(InputError, match=r"r.csv: not a table of runs \(columns hello\); valid: experiment, method"):
        results.load(tmp_path)


def test_reported_numbers_are_refused_among_measured_ones(tmp_path):
    (tmp_path / "paper.csv").write_text("source,item,method,value\na,b,c,1\n")
    with pytest.raises(InputError, match="paper.csv: not a table of runs"):
        results.load(tmp_path)


@pytest.mark.parametrize(("damage", "why"), [
    (lambda text: text[:-4], "row 2 is cut short"),
    (lambda text: text + 'a,"b', "not a readable table"),
    (lambda text: "", "not a readable table"),
    (lambda text: text + "main,dense,reach,0,300,return,nan\n", "row 3 has no finite value"),
])
def test_a_damaged_file_is_named(tmp_path, damage, why):
    path = results.write_run(tmp_path, "cut", [row(), row(step=200, value=345)], {})
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=f"cut.csv.*{why}"):
        results.load(tmp_path)


@pytest.mark.parametrize(("old", "new", "why"), [
    ("345.0", "845.0", "row 2 is not the one that was measured .*: main, dense, reach, 0, 200, return, 845.0"),
    ("100,return,1.5\n", "100,return,1.25\n", "row 1 is not the one"),
    ("main,dense,reach,0,300,return,7.0\n", "", "has 2 rows, edited.json says 3; the command that made the run"),
    ("7.0\n", "7.0\nmain,dense,reach,0,400,return,9.0\n", "has 4 rows, edited.json says 3"),
])
def test_a_hand_edited_number_is_found_in_its_row(tmp_path, old, new, why):
    path = results.write_run(tmp_path, "edited", [row(), row(step=200, value=345), row(step=300, value=7)], {})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=f"edited.csv.*{why}"):
        results.load(tmp_path)
    path.write_text(text.replace("\n", "\r\n"))  # another system's line ends are no other numbers
    assert len(results.load(tmp_path)) == 3


def test_what_was_read_before_is_neither_shared_nor_believed(tmp_path):
    path = results.write_run(tmp_path, "r", [row(), row(step=200, value=2.0)], {})
    first = results.read_run(path)
    first.loc[0, "value"] = -9.0
    assert results.read_run(path)["value"].tolist() == [1.5, 2.0]  # a caller's table is its own
    results.write_run(tmp_path, "r", [row(value=3.0)], {})
    assert results.read_run(path)["value"].tolist() == [3.0]  # written anew: read anew
    path.write_text(path.read_text().replace("3.0", "4.0"))
    with pytest.raises(InputError, match="row 1 is not the one that was measured"):
        results.read_run(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="provenance"):
        results.read_run(path)


def test_a_table_whose_provenance_vouches_for_no_row_is_refused(tmp_path):
    path = results.write_run(tmp_path, "old", [row()], {})
    for damage, why in (("[]", "holds a list"), ("{", "is not readable JSON"), ("", "is not readable JSON"),
                        ("{}", "is not the provenance of a run"), ('{"seconds": 1}', "no check sums")):
        path.with_suffix(".json").write_text(damage)
        with pytest.raises(InputError, match=f"old.json .*{why}"):
            results.load(tmp_path)


def test_a_disk_that_fills_up_leaves_the_earlier_record_whole(tmp_path, monkeypatch):
    results.write_run(tmp_path, "r", [row()], {"try": 1})
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_run(tmp_path, "r", [row(), row(step=200)], {"try": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_the_command_line_checks_and_exports(tmp_path, monkeypatch, capsys):
    results.write_run(tmp_path / "runs", "a", [row(), row(step=200, value=2)], {})
    results.write_run(tmp_path / "runs", "b", [row(seed=1, metric="success")], {})

    def call(*words):
        monkeypatch.setattr("sys.argv", ["results", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            errors.cli(results.main)
        return end.value.code, capsys.readouterr()

    assert call("check", tmp_path / "runs")[1].out == "2 runs, 3 rows: all whole\n"
    results.write_run(tmp_path / "cut", "a", [row()], {})
    results.write_run(tmp_path / "cut", "b", [row(seed=1)], {}).unlink()
    (tmp_path / "empty").mkdir()
    assert call("export", tmp_path / "runs", "--output", tmp_path / "out.json")[0] == 0
    records = json.loads((tmp_path / "out.json").read_text())
    assert records == [{"task": "reach", "method": "dense", "seed": 0, "xs": [100, 200], "ys": [1.5, 2.0]}]
    assert json.loads(call("export", tmp_path / "runs")[1].out) == records
    for words, why in ((("export", tmp_path / "runs", "--metric", "x"), "no rows of metric 'x'; valid: return, succ"),
                       (("check", tmp_path / "nowhere"), "no such folder"),
                       (("check", tmp_path / "cut"), "the table is missing of b;"),
                       (("check", tmp_path / "empty"), "holds no runs"),
                       (("export", tmp_path / "runs", "--output", tmp_path / "runs"), "runs: Is a directory"),
                       (("export", tmp_path), "has no runs")):
        status, printed = call(*words)
        assert status == 2 and why in printed.err and printed.err.count("\n") == 1


def test_a_table_without_provenance_is_refused(tmp_path):
    results.write_run(tmp_path, "r", [row()], {}).with_suffix(".json").unlink()
    with pytest.raises(InputError, match="r.json is missing"):
        results.load(tmp_path)


def test_two_runs_may_not_claim_the_same_row(tmp_path):
    results.write_run(tmp_path, "a", [row()], {})
    results.write_run(tmp_path, "b", [row(value=2)], {})
    with pytest.raises(InputError, match="a and b"):
        results.load(tmp_path)


def test_records_hold_one_curve_each():
    table = pd.DataFrame([row(step=200, value=2), row(), row(seed=1, value=7), row(metric="success", value=0)])
    assert results.export_records(table, "return") == [
        {"task": "reach", "method": "dense", "seed": 0, "xs": [100, 200], "ys": [1.5, 2.0]},
        {"task": "reach", "method": "dense", "seed": 1, "xs": [100], "ys": [7.0]},
    ]
    json.dumps(results.export_records(table, "return"))
    with pytest.raises(InputError, match="valid: return, success"):
        results.export_records(table, "speed")


def test_provenance_says_what_made_the_numbers_and_not_where():
    found = results.provenance(seconds=2.5, data="0123abcd")
    assert found["seconds"] == 2.5 and found["data"] == "0123abcd"
    assert found["versions"]["mujoco"] == "3.3.0"
    name, *rest = found["processor"].split(", ")
    assert name and rest[-1] == torch.backends.cpu.get_cpu_capability()
    text = json.dumps(found)
    assert socket.gethostname() not in text and os.getcwd() not in text and os.path.expanduser("~") + "/" not in text


def test_iqm_by_hand():
    assert results.iqm([1, 2, 3, 4]) == 2.5  # 2 and 3 are left
    assert results.iqm([0, 1, 2, 3, 4, 5, 6, 100]) == 3.5  # 2..5 are left
    assert results.iqm([1, 5, 6]) == 4  # a quarter of three is less than one: nothing is cut
    assert results.iqm([[4, 1], [3, 2]]) == 2.5  # over all tasks and seeds at once


def test_bootstrap_by_enumeration():
    # two runs: a resample is (0,0), (0,1), (1,0), (1,1): the mean's 2.5% and 97.5% points are 0 and 1
    assert results.bootstrap_ci([0, 1]) == results.Interval(0.5, 0, 1, 2)
    assert results.bootstrap_ci([3, 3, 3]) == results.Interval(3, 3, 3, 3)


def test_bootstrap_agrees_with_the_normal_interval_for_many_runs():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = results.bootstrap_ci(values)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_is_seeded_and_leaves_the_global_stream_alone():
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    before = np.random.get_state()[1].copy()
    assert results.bootstrap_ci(values, seed=3) == results.bootstrap_ci(values, seed=3)
    assert (np.random.get_state()[1] == before).all()


def test_one_run_has_no_interval():
    found = results.bootstrap_ci([2.0])
    assert found.value == 2 and found.n == 1 and np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("values", [[], [1, float("nan")]])
def test_statistics_refuse_what_is_not_a_number(values):
    with pytest.raises(InputError, match="finite"):
        results.bootstrap_ci(values)


def test_stratified_resampling_stays_within_the_tasks():
    # every seed of a task agrees, the tasks differ: nothing can move when each task is resampled on its own
    assert results.stratified_ci({"a": [0, 0], "b": [10, 10, 10]}, np.mean) == results.Interval(6, 6, 6, 5)
    # one task spreads by 0..1 with two seeds, the other is fixed: the mean runs over 0.5 * (0..1) + 0.5 * 4
    found = results.stratified_ci({"a": [0, 1], "b": [4, 4]}, np.mean)
    assert (found.low, found.value, found.high) == (2.0, 2.25, 2.5)


def test_stratified_with_one_seed_each_has_no_interval():
    found = results.stratified_ci({"a": [1], "b": [3]})
    assert found.value == 2 and found.n == 2 and np.isnan(found.low)


def test_normalised_by_hand():
    assert results.normalised([10, 60, 110, 0], random=10, expert=110).tolist() == [0, 0.5, 1, -0.1]
    with pytest.raises(InputError, match="two different"):
        results.normalised([1], random=5, expert=5)


def test_the_papers_numbers():
    table = results.reported()
    fig5 = table[(table["item"] == "Fig. 5") & (table["method"] == "GenReward")].set_index("task")["value"]
    assert fig5.to_dict() == {"pick-out-of-hole": 582, "bin-picking": 822, "shelf-place": 814}
    assert table["approximate"].dtype == bool and not table.loc[table["method"] == "GenReward", "approximate"].any()
