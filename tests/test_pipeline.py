"""The pipeline: stages in order, what exists is passed over, a failing run does not stop the others."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from genreward import errors, experiments, forecast, goals, pipeline, profiles, reward_study, training, variants
from genreward.errors import InputError
from genreward.tasks import PAPER_TASKS

SMOKE = profiles.get_profile("smoke")


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("there")


def make_all(where, tasks=PAPER_TASKS):
    """Everything that the stages before the agents leave behind."""
    touch(where.video_model / "model_index.json", where.lora / "weights", where.scorer / "weights")
    touch(where.results / "generation.csv", *(where.goals / task / "goal.json" for task in tasks))
    touch(*(where.fb / f"{task}{end}" for task in profiles.fb_tasks(SMOKE) for end in (".pt", "-normaliser.json")))
    for path, which in variants._left(SMOKE).items():
        touch(path, path.with_name(path.name.replace("-normaliser.json", ".pt")) if len(which) == 3
              else variants.folder(SMOKE, which[1], which[0]) / "goal.json")
    assert not variants.missing(SMOKE)
    touch(*(where.results / folder / f"{what.replace('-', '_')}_{task}_{features}.csv" for task in
            profiles.measured_tasks(SMOKE) for what, folder in (("measure", "calibration"), ("zero-shot", "fb"))
            for features in ("state", "pixels")), *(forecast._path(SMOKE, task) for task in forecast.tasks(SMOKE)))
    touch(*(where.study / name for name in ("trajectories.npz", "goal_frames.npz", "quality/quality.csv")))
    touch(*(where.study / "scores" / f"{name}.npz" for name in reward_study.MODELS))


@pytest.fixture
def made(root, monkeypatch):
    """The stages that would be made, in order, instead of making them."""
    calls = []
    for stage in pipeline.STAGES:
        monkeypatch.setitem(pipeline.MAKERS, stage, lambda profile, stage=stage: calls.append(stage))
    return calls


def test_from_nothing_every_stage_is_made_in_order(made):
    pipeline.run("smoke")
    assert tuple(made) == pipeline.STAGES == tuple(pipeline.MAKERS)


def test_asked_for_backwards_they_are_made_forwards(made):
    pipeline.run("smoke", only=("goals", "demos"))
    assert made == ["demos", "goals"]


def test_what_exists_is_passed_over(made, capsys):
    where = profiles.paths("smoke")
    make_all(where)
    pipeline.run("smoke")
    assert made == ["agents", "behaviour"]  # each run decides for itself; the videos are for training only
    assert "goals: there already" in capsys.readouterr().out
    (where.goals / PAPER_TASKS[3] / "goal.json").unlink()
    (where.study / "scores" / "clock.npz").unlink()
    made.clear()
    pipeline.run("smoke", only=("goals", "fb", "study"))
    assert made == ["goals", "study"]


def test_videos_are_wanted_only_for_training(made):
    where = profiles.paths("smoke")
    make_all(where)
    (where.scorer / "weights").unlink()
    where.scorer.rmdir()
    pipeline.run("smoke", only=("demos", "scorer"))
    assert made == ["demos", "scorer"]
    touch(where.demos / "metadata.jsonl")
    made.clear()
    pipeline.run("smoke", only=("demos", "scorer"))
    assert made == ["scorer"]


def test_an_unknown_stage_or_profile_is_refused_before_anything_is_made(made, monkeypatch, capsys):
    valid = "agents, behaviour, calibration, demos, fb, generation, goals, scorer, study, variants, " \
            "video_model"
    with pytest.raises(InputError, match=f"unknown stage 'goal'; valid: {valid}"):
        pipeline.run("smoke", only=("demos", "goal"))
    with pytest.raises(InputError, match="unknown profile 'smok'"):
        pipeline.run("smok")
    assert made == []
    monkeypatch.setattr(sys, "argv", ["pipeline", "--profile", "smoke", "--only", "weights"])
    with pytest.raises(SystemExit) as end:
        errors.cli(pipeline.main)
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_grid_is_whole_and_a_failing_run_does_not_stop_it(root, monkeypatch):
    profile = replace(SMOKE, run=replace(SMOKE.run, tasks=("reach", "push"), methods=("dense", "sparse"), seeds=2,
                                         agents=("sac", "dreamer")))
    trained = []

    def train(run, **settings):
        trained.append(run)
        if run.method == "sparse" and run.seed == 1 and run.agent == "sac":
            raise InputError("its goal is missing")

    monkeypatch.setattr(training, "train_agent", train)
    with pytest.raises(InputError, match="2 of 16 runs failed; smoke-reach-sac-sparse-s1: its goal is missing; "
                                         "smoke-push-sac-sparse-s1: its goal is missing"):
        pipeline.make_agents(profile)
    assert len({run.run_id for run in trained}) == 16
    assert {(run.profile, run.experiment) for run in trained} == {("smoke", "smoke")}


def test_a_goal_without_its_models_names_what_is_missing(root):
    with pytest.raises(InputError, match="video_model"):
        pipeline.run("smoke", only=("goals",))


def test_publishing_is_all_or_nothing(tmp_path, monkeypatch):
    source, target = tmp_path / "build" / "model", tmp_path / "results" / "model"
    touch(source / "a", source / "deep" / "b", target / "old")

    def broken(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.shutil, "copytree", broken)
        pipeline._publish(source, target)
    assert [path.name for path in target.iterdir()] == ["old"]
    pipeline._publish(source, target)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*")) == ["a", "deep", "deep/b"]


def test_weights_that_a_clone_lacks_are_missing_though_their_normaliser_is_there(root):
    """Large weights are not committed: the command that an error names must then make them."""
    where = profiles.paths("smoke")
    make_all(where)
    assert not pipeline.missing("fb", SMOKE) and not pipeline.missing("variants", SMOKE)
    (where.fb / "pick-place.pt").unlink()
    next(where.fb.glob("*+encoder-*.pt")).unlink()
    assert pipeline.missing("fb", SMOKE) and pipeline.missing("variants", SMOKE)


def test_f_and_b_are_made_for_the_tasks_that_are_named_and_no_others(root, monkeypatch):
    where, made = profiles.paths("laptop"), []
    touch(where.psi)
    monkeypatch.setattr(pipeline, "load_encoder", lambda profile, fitted=True: None)
    monkeypatch.setattr(pipeline, "exploration", lambda profile, task, encoder: task)
    monkeypatch.setattr(goals.Goal, "load", lambda path: path.name)
    monkeypatch.setattr(pipeline, "train_explored", lambda profile, encoder, task: (
        SimpleNamespace(save=lambda path, resume: touch(path)), pd.DataFrame()))
    monkeypatch.setattr(pipeline, "normalise", lambda profile, task, encoder, goal, weights, path: (
        made.append((task, goal)), touch(path)))
    pipeline.run("laptop", ["fb"], ["bin-picking", "push"])
    assert made == [("bin-picking", "bin-picking"), ("push", "push")]
    pipeline.run("laptop", ["fb"], ["bin-picking"])
    assert len(made) == 2 and not pipeline.missing("fb", profiles.get_profile("laptop"), ["push"])
    assert pipeline.missing("fb", profiles.get_profile("laptop"))
    left = variants._left(profiles.get_profile("laptop"), ["walker-walk"])
    assert set(left.values()) == {("walker-walk", "fb.action_aware", False)}
    refused = {("fb",): (["pick"], "unknown task 'pick'; valid: bin-picking, "), ("goals", "fb"): (
        ["push"], "the stage 'goals' is made for all tasks at once; tasks can be named for: fb, variants")}
    for only, (tasks, says) in refused.items():
        with pytest.raises(InputError, match=says):
            pipeline.run("laptop", only, tasks)
    assert len(made) == 2


def test_every_task_that_the_laptops_grid_needs_f_and_b_of_gets_them():
    laptop = profiles.get_profile("laptop")
    needed = {run.task for run in experiments.grid("laptop") if training.METHODS[run.method].fb == "explored"}
    assert needed <= set(profiles.fb_tasks(laptop))
    assert profiles.measured_tasks(laptop) == ("pick-place", "reach", "drawer-close")
