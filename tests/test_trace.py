"""From a figure's points to the records and back: hand-made records with known lines, and everything on record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from genreward import distractor_study, evidence, experiments, figures, files, profiles, results, trace
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
    with pytest.raises(InputError, match="mine.rows.csv has columns a, b; valid: task, curve"):
        trace.main(["mine", "--profile", "tiny"])


def test_records_of_any_folder_keep_their_names_and_lines(tiny, capsys):
    folder = profiles.paths("tiny").results / "study" / "some"
    given = [("plain/clean", "liv", "a task", "auroc", 0.5), ("plain/clean", "liv", "a task", "auroc_low", 0.25),
             ("plain", "pixels, random", "a task", "auroc", 1.5)]
    results.write_run(folder, "one", [
        {"experiment": experiment, "method": method, "task": task, "seed": 3, "step": 10, "metric": metric,
         "value": value} for experiment, method, task, metric, value in given], {"seconds": 2.0, "commit": "ab" * 20})
    found = trace.records("tiny", "study/some")
    assert list(found["curve"]) == ["liv, clean", "liv, clean", "pixels, random"] and list(found["line"]) == [2, 3, 4]
    assert set(found["file"]) == {"results/tiny/study/some/one.csv"} and set(found["commit"]) == {"ab" * 6}
    assert trace.changed(found, "tiny") == []  # a name with a comma in it, too
    assert list(trace.records("tiny", "study/some", "auroc")["value"]) == [0.5, 1.5]  # the whole name
    figures.write_table(found, "told", "tiny", rows=found)
    assert trace.main(["told", "--profile", "tiny", "--curve", "pixels, random"]) == 0
    told = capsys.readouterr().out
    assert "a task, pixels, random, step 10, auroc: 1.5 (n=1)" in told and "study/some/one.csv:4" in told
    assert "one: commit abababababab in 2 s on ?" in told  # no run: of steps there are none
    nothing = trace.records("tiny", "study/none")
    assert nothing.empty and list(nothing.columns) == list(trace.COLUMNS)
    path = folder / "one.csv"
    path.write_text(path.read_text().replace("1.5", "1.25"))
    (problem,) = trace.changed(found, "tiny")
    assert 'one.csv:4 holds plain,"pixels, random",a task,3,10,auroc,1.25, where the figure has 1.5' in problem


def test_a_table_is_saved_with_its_rows_and_leaves_those_of_a_figure_alone(tiny):
    kept, numbers = trace.rows("tiny", "easy"), pd.DataFrame({"a": [1]})
    figures.write_table(numbers, "both", "tiny", rows=kept)
    assert list(trace.traced("tiny")) == ["both"] and trace.check("tiny") == {"both": []}
    figures.write_table(numbers, "both", "tiny")  # now without
    assert trace.traced("tiny") == {}
    fig = pyplot.figure()
    figures.save_figure(fig, "both", "tiny", rows=kept)
    pyplot.close(fig)
    figures.write_table(numbers, "both", "tiny")  # the rows are the figure's
    assert list(trace.traced("tiny")) == ["both"]


def test_seconds_of_runs_stand_in_lines_of_their_provenance(tiny):
    for run, steps, took in (("slow", 512, 40.5), ("quick", 512, 20.25), ("short", 256, 1.0)):
        results.write_run(profiles.paths("tiny").runs, run, [
            {"experiment": "tiny", "method": "dense", "task": "push", "seed": 0, "step": len(run) + steps,
             "metric": "return", "value": 1.0}], {
                "steps": steps, "seconds": took, "commit": "12" * 20, "a": {"seconds": 9.0},
                "identity": {"run": {"agent": "sac", "task": "push", "method": "dense", "seed": len(run)}}})
    found = trace.seconds("tiny")
    assert sorted(found["value"]) == [20.25, 40.5]  # not the shorter one's
    assert set(found["curve"]) == {"dense, SAC"} and set(found["metric"]) == {"seconds"}
    for row in found.itertuples():
        text = (tiny / row.file).read_text().splitlines()[row.line - 1]
        assert text.strip().rstrip(",") == f'"seconds": {row.value}'
    assert trace.changed(found, "tiny") == []
    path = profiles.paths("tiny").runs / "slow.json"
    path.write_text(path.read_text().replace("40.5", "41.5"))
    (problem,) = trace.changed(found, "tiny")
    assert 'holds "seconds": 41.5, where the figure has 40.5' in problem


def _of_study(metrics, which=lambda table: table["task"] == "all"):
    table = trace.records("laptop", "study/quality", metrics)
    return table[which(table)]


def _distractors(suite):
    shown = {"genreward_video", "vlm_rm", "genreward_video_first", "liv", "pixel_cosine"}
    table = trace.records("laptop", "study/distractors")
    asked = table["metric"].str.replace("_(low|high)$", "", regex=True).isin(distractor_study.METRICS)
    return table[asked & (table["task"] == suite) & table["curve"].str.split(",").str[0].isin(shown)]


def _parts():
    table = trace.rows("laptop", "fig9", last=True)
    return table[~table["curve"].str.contains(" = ")]


def _without_learning():
    table = trace.rows("laptop", "zero_shot", last=True)
    return table.assign(curve=table["curve"].replace(evidence.ZERO_SHOT, "goal frame as always"))


def _visits(goals):
    table = trace.records("laptop", "calibration", "predicted|measured")
    return table[table["curve"].str.split("-").str[-1].isin(goals)]


def _on_every_task():
    table = trace.rows("laptop", "easy")
    table = table[table["curve"] != evidence.ZERO_SHOT]
    return table[table.groupby("curve")["task"].transform("nunique") == table["task"].nunique()]


SINGLE = "function:[a-z]+:[a-z]+"
COMMITTED = {
    "fig5_main_results": lambda: trace.rows("laptop", "fig5"), "easy_tasks": lambda: trace.rows("laptop", "easy"),
    "easy_over_tasks": _on_every_task,
    "easy_task_again": lambda: trace.rows("laptop", ["again", "longer"]),
    "fig5_from_pictures": lambda: trace.rows("laptop", "pixels"),
    "fig7_sparse_reward": lambda: trace.rows("laptop", "fig7"),
    "learning_curves_return": lambda: trace.rows("laptop", "base"),
    "learning_curves_success": lambda: trace.rows("laptop", "base", "success"),
    "reward_shares": lambda: trace.rows("laptop", "base", "share_", last=True),
    "fig9_parts": _parts, "fig9_weights": lambda: trace.rows("laptop", "fig9", last=True),
    "fig9_easy": lambda: trace.rows("laptop", "fig9_easy", last=True),
    "fig10_goal_sources": lambda: trace.rows("laptop", "fig10", last=True),
    "fig10_easy": lambda: trace.rows("laptop", "fig10_easy", last=True),
    "fig10_sources_without_learning": _without_learning,
    "fig10_every_frame": lambda: trace.rows("laptop", "every_frame", last=True),
    "table_a_other_environments": lambda: trace.rows("laptop", "tableA", last=True),
    "table_b_hallucinations": lambda: trace.rows("laptop", "tableB", last=True),
    "table_c_selection_and_encoder": lambda: trace.rows("laptop", "tableC", last=True),
    "table_d_action": lambda: trace.rows("laptop", "tableD", last=True),
    "table_e_training_time": lambda: trace.seconds("laptop"),
    "table_e_where_the_time_goes": lambda: trace.records("laptop", "cost"),
    "what_agents_are_paid": lambda: trace.played("laptop", ("base", "easy", "again", "longer", "fig5", "fig7",
                                                            "tableA")),
    "fig9_easy_paid": lambda: trace.played("laptop", ["fig9_easy"]), "would_pay": lambda: trace.offered("laptop"),
    "generation_similarity": lambda: trace.generation("laptop", ["psnr", "ssim", "latent_cosine_centred"]),
    "reward_quality": lambda: _of_study("(auroc_failure|function|partial)(_low|_high)?"),
    "looks_or_function": lambda: _of_study(SINGLE),
    "video_reward_function": lambda: _of_study(f"function(_low|_high)?|{SINGLE}", lambda table: (
        table["task"] == "all") & table["curve"].str.match("dense|clock|pixel_cosine|genreward_video")),
    "distractors_metaworld": lambda: _distractors("metaworld"),
    "distractors_dm_control": lambda: _distractors("dm_control"),
    "fb_zero_shot_table": lambda: trace.records("laptop", "fb"),
    "fb_calibration_table": lambda: trace.records("laptop", "calibration", "predicted|measured"),
    "fb_reliability": lambda: _visits(("oracle", "visited"))}


def test_every_committed_figure_of_records_stands_on_them():
    found = trace.check("laptop")
    assert set(found) == set(COMMITTED) and not any(found.values()), found


@pytest.mark.parametrize("figure", COMMITTED)
def test_a_committed_figure_has_all_the_rows_that_there_are(figure):
    """Runs that were added, and curves that were named otherwise, since it was drawn would show."""
    wanted = COMMITTED[figure]().reset_index(drop=True)
    assert len(wanted)
    pd.testing.assert_frame_equal(trace.behind(figure, "laptop"), wanted, check_dtype=False)


def _table(name, by):
    """A committed table by some of its columns."""
    return pd.read_csv(ROOT / "figures" / "laptop" / f"{name}.csv").set_index(by)


def _points(figure):
    return trace.points(trace.behind(figure, "laptop"))


@pytest.mark.parametrize("figure, table", [
    ("fig9_easy", "fig9_easy_returns"), ("fig10_easy", "fig10_easy_returns"),
    *[(name, name) for name in ("table_a_other_environments", "table_b_hallucinations",
                                "table_c_selection_and_encoder", "table_d_action")]])
def test_final_returns_are_the_means_of_their_rows(figure, table):
    ends, told = _points(figure).set_index(["task", "curve"]), _table(table, ["task", "curve"])
    told = told[told["n"] > 0]
    for column in ("value", "low", "high", "n"):
        assert ends[column].to_dict() == pytest.approx(told[column].to_dict(), nan_ok=True)


def test_what_rewards_would_pay_is_the_sum_of_the_terms_of_its_rows():
    paid = _points("would_pay")
    paid = paid[paid["metric"].str.startswith("paid_")].groupby(["task", "curve"])
    told = _table("would_pay", ["task", "curve", "player"])
    told.index = [(task, f"{curve}: {player}") for task, curve, player in told.index]
    assert paid["value"].sum().to_dict() == pytest.approx(told["value"].to_dict())
    assert paid["n"].first().to_dict() == told["n"].to_dict()


def test_other_tables_are_what_their_rows_say():
    rows = trace.behind("fig9_easy_paid", "laptop")
    rows = rows[rows["metric"].str.startswith("share_")]
    paid = rows.groupby("file")["value"].transform("sum") > 0  # of nothing there are no shares
    shares = trace.points(rows[paid]).set_index(["curve", "metric"])["value"]
    told = _table("fig9_easy_paid", ["curve", "term"])["share"]
    assert {(curve, f"share_{term}"): share for (curve, term), share in told.items()} == pytest.approx(shares.to_dict())

    taken = trace.behind("table_e_training_time", "laptop")
    each = (taken["value"] / taken["step"]).groupby([taken["task"], taken["curve"]]).mean()
    told = _table("table_e_training_time", ["task", "method", "agent"])["seconds_per_step"]
    agents = {"sac": "SAC", "dreamer": "DreamerV3"}
    assert each.to_dict() == pytest.approx({(task, f"{method}, {agents[agent]}"): seconds
                                            for (task, method, agent), seconds in told.items()})

    reached = _points("fb_zero_shot_table").set_index(["task", "curve", "metric"])["value"].unstack()
    told = _table("fb_zero_shot_table", ["task", "features", "policy"])
    for (task, features, policy), row in told.iterrows():
        at = reached.loc[(task, f"{features}, {policy}")]
        assert (at["return"], at["success"]) == pytest.approx((row["return"], row["success"]))

    near = _points("generation_similarity").set_index(["task", "metric", "curve"])["value"]
    for (task, metric), row in _table("generation_numbers", ["task", "metric"]).iterrows():
        assert near.get((task, metric, "generated against own"), row["own"]) == pytest.approx(row["own"])

    asked = trace.behind("reward_quality", "laptop").set_index(["curve", "metric"])["value"]
    for model, row in _table("reward_quality", "model").iterrows():
        parts = [asked.get((model, f"partial{end}")) for end in ("", "_low", "_high")]
        assert row["partial"] == ("{:.2f} [{:.2f}, {:.2f}]".format(*parts) if parts[0] is not None else "-")
