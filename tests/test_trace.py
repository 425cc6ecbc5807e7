"""From a figure's points to the records and back: hand-made records with known lines, and everything on record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from genreward import evidence, experiments, figures, files, profiles, results, trace
from genreward.errors import InputError
from genreward.experiments import Arm, Experiment

ROOT = Path(__file__).resolve().parent.parent
TRIAL = Experiment("easy", "Fig. 5, easy tasks", "", ("reach",), (Arm("sparse"), Arm("dense")))


@pytest.fixture
def tiny(root, monkeypatch):
    """Two methods of two seeds; the returns of method m, seed s at step 256 k are 100 m + 10 s + k."""
    profile = replace(profiles.get_profile("smoke"), name="tiny")
    monkeypatch.setitem(profiles.PROFILES, "tiny", profile)
    monkeypatch.setitem(experiments.BUDGETS, "tiny", experiments.Budget(steps=768, seeds=2))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {"easy": TRIAL})
    for run in TRIAL.runs("tiny"):
        first = {"sparse": 100, "dense": 200}[run.method] + 10 * run.seed
        rows = [{"experiment": "tiny", "method": run.label, "task": run.task, "seed": run.seed, "step": 256 * k,
                 "metric": metric, "value": value} for k in (1, 2, 3)
                for metric, value in (("success", 0.5), ("return", first + k + 0.1), ("share_env", 1.0))]
        results.write_run(profiles.paths("tiny").runs, run.run_id, rows,
                          {"steps": 768, "seconds": 3.0, "commit": "0123456789abcdef"})
    return root


def test_a_row_names_the_line_that_holds_it(tiny):
    found = trace.rows("tiny", "easy")
    assert list(found.columns) == list(trace.COLUMNS) and len(found) == 2 * 2 * 3
    assert found["commit"].eq("0123456789ab").all()
    for row in found.itertuples():
        line = (tiny / row.file).read_text().splitlines()[row.line - 1].split(",")
        assert line[2:6] == [row.task, str(row.seed), str(row.step), "return"] and float(line[6]) == row.value
    last = trace.rows("tiny", "easy", last=True)
    assert sorted(last["value"]) == pytest.approx([103.1, 113.1, 203.1, 213.1]) and set(last["step"]) == {768}
    shares = trace.rows("tiny", "easy", "share_", last=True)
    assert set(shares["metric"]) == {"share_env"} and len(shares) == 4


def test_points_are_means_over_seeds(tiny):
    found = trace.points(trace.rows("tiny", "easy")).set_index(["curve", "step"])
    sparse = figures.label("sparse")
    assert found.loc[(sparse, 512), "value"] == pytest.approx(107.1) and set(found["n"]) == {2}
    half = 12.706 * 10 / 2  # Student's t of one degree of freedom; two values 10 apart: standard error 5
    assert found.loc[(sparse, 512), "high"] - 107.1 == pytest.approx(half, rel=1e-3)


def test_nothing_on_record_gives_no_rows(root):
    found = trace.rows("smoke", "base")
    assert found.empty and list(found.columns) == list(trace.COLUMNS) and trace.points(found).empty
    assert trace.check("smoke") == {}


def test_a_learning_curve_draws_the_points_of_its_rows(tiny):
    table = trace.points(trace.rows("tiny", "easy"))
    nothing = pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=["task", "policy"]))
    fig = evidence.learning_figure("tiny", "easy", nothing)
    drawn = {tuple(line.get_ydata()) for line in fig.axes[0].lines if line.get_gid() != "seed"}
    assert {tuple(np.round(curve, 9)) for curve in drawn} == {
        tuple(np.round(of.sort_values("step")["value"], 9)) for _, of in table.groupby("curve")}
    pyplot.close(fig)


def test_a_figure_keeps_its_rows_and_a_changed_record_is_named(tiny):
    fig = pyplot.figure()
    kept = trace.rows("tiny", "easy")
    for _ in range(2):  # the same bytes each time
        svg = figures.save_figure(fig, "mine", "tiny", n=2, rows=kept)
        text = svg.with_name("mine.rows.csv").read_text()
    assert text == kept.to_csv(index=False, lineterminator="\n")
    figures.save_figure(fig, "bare", "tiny")
    pyplot.close(fig)
    assert list(trace.traced("tiny")) == ["mine"] and trace.check("tiny") == {"mine": []}
    pd.testing.assert_frame_equal(trace.behind("mine", "tiny"), kept, check_dtype=False)

    row = kept.iloc[4]
    path = tiny / row["file"]
    whole = path.read_text()
    path.write_text(whole.replace(f",{row['value']}", ",999.5"))
    (problem,) = trace.check("tiny")["mine"]
    assert f"{row['file']}:{row['line']} holds" in problem and "999.5" in problem and f"has {row['value']} " in problem
    lines = whole.splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]))  # a line is gone: all below it moved
    assert len(trace.check("tiny")["mine"]) == 3
    for cut in (f",{row['value']}", str(row["value"])):  # cut short before the value, within the line
        path.write_text(whole.replace(cut, ""))
        (problem,) = trace.check("tiny")["mine"]
        assert f"{row['file']}:{row['line']} holds" in problem
    path.write_text(whole)
    beside = path.with_suffix(".json")
    files.write_json(beside, files.read_json(beside) | {"commit": "fedcba9876543210"})
    (problem,) = trace.check("tiny")["mine"]
    assert "of a run that commit fedcba987654 made, where the figure has 0123456789ab" in problem
    path.unlink()
    beside.unlink()
    assert [problem.count("holds nothing") for problem in trace.check("tiny")["mine"]] == [1, 1, 1]

    fig = pyplot.figure()
    figures.save_figure(fig, "mine", "tiny")  # drawn again without its rows
    pyplot.close(fig)
    assert trace.traced("tiny") == {}


def test_its_command_tells_a_points_rows_and_what_is_wrong(tiny, capsys):
    assert trace.main(["--profile", "tiny"]) == 0
    assert "no figure with rows yet; make figures PROFILE=tiny" in capsys.readouterr().out
    fig = pyplot.figure()
    figures.save_figure(fig, "mine", "tiny", n=2, rows=trace.rows("tiny", "easy"))
    pyplot.close(fig)
    assert trace.main(["--profile", "tiny"]) == 0
    assert "mine: 6 points of 12 rows of 4 runs; every row stands in its record" in capsys.readouterr().out
    assert trace.main(["mine", "--profile", "tiny", "--curve", "Sparse reward", "--step", "768"]) == 0
    told = capsys.readouterr().out
    assert "reach, Sparse reward, step 768, return: 108" in told and "(n=2)" in told
    assert "-sparse-s1.csv:9" in told and "-sparse-s1: commit 0123456789ab, 768 steps in 3 s" in told
    assert trace.main(["mine", "--profile", "tiny", "--curve", "Spar"]) == 0  # only one begins so
    assert "Dense" not in capsys.readouterr().out
    for given, why in ((["other"], "unknown figure with rows 'other'; valid: mine"),
                       (["mine", "--curve", "arse"],
                        "curve 'arse' is none of this figure's; valid: 'Sparse reward', 'Dense reward'"),
                       (["mine", "--curve", ""], "curve '' is several of this figure's; valid: 'Sparse reward', 'Den"),
                       (["mine", "--step", "7"], "step 7 is none of this figure's; valid: 256, 512, 768")):
        with pytest.raises(InputError, match=why):
            trace.main([*given, "--profile", "tiny"])
    path = next(profiles.paths("tiny").runs.glob("*sparse-s0.csv"))
    path.write_text(path.read_text().replace("103.1", "104.1"))
    assert trace.main(["mine", "--profile", "tiny", "--task", "reach"]) == 1
    assert "where the figure has 103.1" in capsys.readouterr().out
    path.unlink()
    path.with_suffix(".json").unlink()
    assert trace.main(["mine", "--profile", "tiny", "--curve", "Sparse reward"]) == 1
    told = capsys.readouterr().out
    assert f"{path.stem}: no provenance on record" in told and "holds nothing" in told
    (tiny / "figures" / "tiny" / "mine.rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not the rows of a figure"):
        trace.main(["mine", "--profile", "tiny"])


COMMITTED = {
    "fig5_main_results": "fig5", "easy_tasks": "easy", "easy_task_again": ["again", "longer"],
    "fig5_from_pictures": "pixels", "fig7_sparse_reward": "fig7", "learning_curves_return": "base",
    "learning_curves_success": "base", "reward_shares": "base", "fig9_parts": "fig9", "fig9_weights": "fig9",
    "fig9_easy": "fig9_easy", "fig10_goal_sources": "fig10", "fig10_easy": "fig10_easy",
    "fig10_sources_without_learning": "zero_shot", "fig10_every_frame": "every_frame"}
METRICS = {"learning_curves_success": "success", "reward_shares": "share_"}


def test_every_committed_figure_of_runs_stands_on_its_records():
    found = trace.check("laptop")
    assert set(found) == set(COMMITTED) and not any(found.values()), found
    ends = trace.points(trace.behind("fig9_easy", "laptop")).set_index("curve")  # by another way: the table beside it
    table = pd.read_csv(ROOT / "figures" / "laptop" / "fig9_easy_returns.csv").set_index("curve")
    table = table[table["n"] > 0]
    assert ends["value"].to_dict() == pytest.approx(table["value"].to_dict())
    assert ends["n"].to_dict() == table["n"].to_dict()


@pytest.mark.parametrize("figure", COMMITTED)
def test_a_committed_figure_has_all_the_rows_that_there_are(figure):
    """Runs that were added, and curves that were named otherwise, since it was drawn would show."""
    last = figure.startswith(("fig9", "fig10", "reward_shares"))
    wanted = trace.rows("laptop", COMMITTED[figure], METRICS.get(figure, "return"), last)
    if figure == "fig9_parts":
        wanted = wanted[~wanted["curve"].str.contains(" = ")]
    if figure == "fig10_sources_without_learning":
        wanted["curve"] = wanted["curve"].replace(evidence.ZERO_SHOT, "pi_z, goal frame as always")
    pd.testing.assert_frame_equal(trace.behind(figure, "laptop"), wanted.reset_index(drop=True), check_dtype=False)
