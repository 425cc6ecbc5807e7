"""The grids behind the figures, what a run is known by, and what is said of the runs that are there."""

import copy
import functools
import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from genreward import code_identity, errors, execution, experiments, files, locks, profiles, results, training
from genreward.errors import InputError
from genreward.experiments import Arm, Experiment
from genreward.training import Run

_SMOKE = profiles.get_profile("smoke")
TINY = replace(_SMOKE, name="tiny", episode_steps=32, image_size=32, reward=replace(_SMOKE.reward, sparse_interval=16),
               sac=replace(_SMOKE.sac, hidden=(8, 8), learning_starts=16, batch=8),
               run=replace(_SMOKE.run, tasks=("reach",), methods=("dense", "sparse"), agents=("sac",), seeds=2,
                           sac_steps=96, evaluate_every=32, evaluation_episodes=1))


@pytest.fixture
def tiny(root, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "tiny", TINY)
    return root


def run_of(method="dense", seed=0, **more):
    return Run("reach", method, "sac", seed, "tiny", "tiny", **more)


def record(run, steps=96, seconds=10.0, **changes):
    """A record as training leaves it, without the training."""
    me = training.identity(run, training.check_run(run))
    rows = training._rows(run, 32, {"return": 1.0}) + training._rows(run, 64, {"return": 2.0})
    return training._write(profiles.paths("tiny").runs, run, rows, {**me, **changes}, seconds, steps)


# --- what is declared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", list(profiles.PROFILES))
def test_every_item_of_the_paper_is_declared_and_its_runs_can_be_begun(profile):
    declared = experiments.experiments(profile)
    assert {"fig5", "fig6", "fig7", "fig9", "fig10", *(f"table{letter}" for letter in "ABCDE")} < set(declared)
    for run in experiments.grid(profile):
        made = training.check_run(run)  # its task, method, agent, steps and changes are all known
        assert made.name == profile and run.experiment == run.profile == profile
    if profile != "smoke":
        tasks = {run.task for run in declared["fig5"].runs(profile)}
        assert tasks == {"pick-place", "pick-out-of-hole", "bin-picking", "shelf-place", "disassemble"}
        assert {run.task for run in declared["fig7"].runs(profile)} == {"bin-picking"}
        assert len({run.seed for run in declared["fig5"].runs(profile)}) >= 3


def test_fig9_sweeps_four_values_of_either_weight_and_leaves_either_out():
    changes = [dict(run.changes) for run in experiments.experiments("laptop")["fig9"].runs("laptop") if run.seed == 0]
    for name in ("reward.sound_alpha", "reward.sound_beta"):
        values = [change[name] for change in changes if name in change]
        assert 0.0 in values and len(set(values) | {1.0}) >= 5  # 1 is the profile's own: the unchanged run
    assert changes.count({}) == 2  # dense, and the full reward, which the profile's own weights are


def test_runs_that_figures_share_are_made_once_and_as_long_as_the_longest_wants():
    runs = experiments.grid("laptop")
    asked = [run for experiment in experiments.chosen("laptop") for run in experiment.runs("laptop")]
    assert len({run.run_id for run in runs}) == len(runs) < len({id(run) for run in asked})
    steps = {run.run_id: training.total_steps(run, profiles.get_profile("laptop")) for run in runs}
    shared = "laptop-pick-place-sac-genreward_sound_dense-s0"
    wanted = {name: experiment.runs("laptop") for name, experiment in experiments.experiments("laptop").items()}
    lengths = {name: run.steps for name, members in wanted.items() for run in members if run.run_id == shared}
    assert lengths["fig5"] == steps[shared] == 51_200 and lengths["fig9"] == lengths["fig10"] == 30_720
    assert [run.run_id for run in experiments.grid("laptop", ["fig6"])] == [
        run.run_id for run in wanted["fig6"]] and {run.run_id for run in wanted["fig6"]} < {
        run.run_id for run in wanted["fig5"]}


def test_an_unknown_experiment_is_refused():
    with pytest.raises(InputError, match="unknown experiment 'fig8'; valid: again, base, easy, every_frame, fig10"):
        experiments.grid("laptop", ["fig5", "fig8"])


def test_a_weight_that_the_profile_has_anyway_is_no_change():
    profile = profiles.get_profile("laptop")
    one = Experiment("x", "", "", ("reach",), (Arm("genreward", (("reward.alpha", profile.reward.alpha),)),
                                               Arm("genreward", (("reward.alpha", 3.0),))))
    first, second = one.runs("laptop")[:2]
    assert first.changes == () and first.run_id == "laptop-reach-sac-genreward-s0"
    assert second.run_id == "laptop-reach-sac-genreward+alpha-3.0-s0" and second.label == "genreward+alpha-3.0"
    assert training.check_run(second).reward.alpha == 3.0


@pytest.mark.parametrize(("changes", "why"), [
    ((("reward.gamma", 1.0),), "unknown change 'reward.gamma'; valid: reward.alpha, reward.beta"),
    ((("alpha", 1.0),), "unknown change 'alpha'; valid: .*distraction.*goal"),
    ((("fb.action_aware", 0.5),), "is of another kind than the profile's True"),
    ((("fb.encoder", 3),), "is of another kind than the profile's 'vae'"),
    ((("goal", "a/b"),), "does not make a file name"),
    ((("distraction", "fog-easy-static"),), "unknown distraction 'fog'"),
    ((("distraction", "all"),), "unknown distraction 'all'; valid: kind-difficulty-static"),
])
def test_a_wrong_change_is_refused(tiny, changes, why):
    with pytest.raises(InputError, match=why):
        training.check_run(run_of(changes=changes))


def test_the_policy_without_learning_goes_with_its_method_alone(tiny):
    for method, agent in (("fb_zero_shot", "sac"), ("dense", "zero_shot")):
        with pytest.raises(InputError, match="does not go with agent"):
            training.check_run(Run("reach", method, agent, profile="tiny"))
    run = Run("reach", "fb_zero_shot", "zero_shot", profile="tiny")
    assert training.total_steps(run, training.check_run(run)) == 0 and run.label == "fb_zero_shot"


# --- what a run is known by -------------------------------------------------------------------------------------------


@pytest.fixture
def sources(monkeypatch):
    """Modules of the package with another text, as the identity sees them: module -> new text."""
    def clear():
        code_identity._tree.cache_clear()
        code_identity.imports.cache_clear()

    def change(module, edit):
        monkeypatch.setitem(code_identity._SOURCES, module, edit(code_identity._SOURCES[module]))
        clear()

    yield change
    monkeypatch.undo()
    clear()


def code_of(run):
    return training.identity(run, training.check_run(run))["code"]


def test_a_run_depends_on_the_code_that_makes_its_numbers_and_on_no_other(tiny):
    code = code_of(run_of("dense"))
    assert {"envs", "agents.sac", "rewards.base", "rewards.environment", "training"} < set(code)
    assert not {"agents.dreamer", "rewards.genreward", "forward_backward", "goals", "figures", "results"} & set(code)
    more = code_of(run_of("genreward"))
    assert {"rewards.genreward", "forward_backward", "encoders", "goals", "video_model"} < set(more)
    assert "rewards.tadpole" not in more and "rewards.environment" not in more


def test_words_do_not_count_and_everything_else_does(tiny, sources):
    first = code_of(run_of())
    sources("agents.sac", lambda text: text.replace("Soft actor-critic on one", "A soft actor-critic on one")
            + "\n# one more comment\n\n\n")
    sources("training", lambda text: text + "\n\ndef something_else():\n    return 1\n")
    assert code_of(run_of()) == first
    sources("agents.sac", lambda text: text.replace("log_interval=10**9", "log_interval=10**8"))
    changed = code_of(run_of())
    assert {name for name in first if first[name] != changed[name]} == {"agents.sac"}
    sources("training", lambda text: text.replace("returns.append(total)", "returns.append(2 * total)"))
    assert code_of(run_of())["training"] != first["training"]


def test_names_from_a_folders_front_lead_to_where_they_are_from():
    assert "rewards.base" in code_identity.imports("training")
    assert code_identity._where("rewards", "GenReward") == "rewards.genreward"
    assert code_identity.closure(["agents.sac"]) == ("agents.checkpoints", "agents.sac")
    with pytest.raises(InputError, match="unknown function or class of training 'no_such'"):
        code_identity.digest_of("training", ["no_such"])


def test_other_code_is_named_and_only_accepted_on_request(tiny, sources):
    run = run_of()
    record(run)
    assert training.examine(run) == ("done", "")
    sources("envs", lambda text: text + "\n\ndef one_more():\n    return 1\n")
    state, why = training.examine(run)
    assert state == "stale" and "was made with other code.envs; move it away" in why
    with pytest.raises(training.Stale, match="code.envs"):
        training.train_agent(run, progress=False)
    assert training.examine(run, accept_code=True)[0] == "done"


def test_a_record_of_before_the_code_was_recorded_says_so(tiny):
    run = run_of()
    me = training.identity(run, training.check_run(run))
    old = {name: value for name, value in me["numbers"].items() if name not in ("method", "task")}
    record(run, code={}, numbers=old)
    state, why = training.examine(run)
    assert state == "stale" and "made with other code (which one was not recorded); move" in why
    assert training.examine(run, accept_code=True)[0] == "done"
    record(run, code={}, numbers={**old, "sac": "0" * 16})
    assert "other numbers.sac;" in training.examine(run, accept_code=True)[1]


def test_other_numbers_task_and_method_are_named(tiny, monkeypatch):
    run = run_of()
    record(run)
    with monkeypatch.context() as patch:
        patch.setitem(profiles.PROFILES, "tiny", replace(TINY, sac=replace(TINY.sac, batch=9)))
        assert "other numbers.sac;" in training.examine(run)[1]
    with monkeypatch.context() as patch:
        patch.setitem(training.METHODS, "dense", replace(training.METHODS["dense"], env_reward="sparse"))
        assert "other numbers.method;" in training.examine(run)[1]
    with monkeypatch.context() as patch:  # what a method is said to be does not count
        patch.setitem(training.METHODS, "dense", replace(training.METHODS["dense"], what="in other words"))
        assert training.examine(run)[0] == "done"


def test_a_clone_without_the_weights_still_has_the_record(tiny):
    """Inputs that are not there cannot be compared: said so, and done; without a record the run is blocked."""
    run = run_of("video")
    state, why = training.examine(run)
    assert state == "blocked" and "the goal of 'reach' is missing" in why and "--only goals" in why
    where = profiles.paths("tiny")
    for path in (where.goals / "reach" / "goal.json", where.video_model / "model_index.json"):
        path.parent.mkdir(parents=True)
        path.write_text("one")
    record(run)
    assert training.examine(run) == ("done", "")
    (where.goals / "reach" / "goal.json").write_text("two")
    assert "other inputs.goal;" in training.examine(run)[1]
    (where.goals / "reach" / "goal.json").unlink()
    (where.goals / "reach").rmdir()
    assert training.examine(run) == ("done", "not compared with what is not here: goal")


@pytest.mark.parametrize(("changes", "said"), [
    ((("goal", "camera"),), "from the source 'camera' is missing; it belongs at .*/goal_sources/camera/reach"),
    ((("fb.action_aware", False),), "is missing; it belongs at results/tiny/weights/fb/reach.no_action_aware.pt")])
def test_a_variant_waits_for_parts_of_its_own(tiny, changes, said):
    where = profiles.paths("tiny")
    for path in (where.goals / "reach" / "goal.json", where.video_model / "model_index.json", where.psi,
                 where.fb / "reach.pt", where.fb / "reach-normaliser.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a stand-in")
    assert training.examine(run_of("genreward_sound"))[0] == "missing"
    with pytest.raises(InputError, match=said):
        training.required(run_of("genreward_sound", changes=changes), TINY)


# --- how it stands ----------------------------------------------------------------------------------------------------


def test_the_overview_counts_and_tells_the_time_that_is_left(tiny, capsys):
    record(run_of("dense"), seconds=48.0)  # 0.5 s a step
    record(run_of("sparse"), steps=64)
    training.examine(run_of("sparse"))
    execution.Status(run_of("dense", 1), "x").write("failed", error="Traceback ...\nZeroDivisionError: by nought\n")
    profiles.paths("tiny").runs.joinpath("tiny-reach-sac-sparse-s1.csv").write_text("cut")
    lines, standings = experiments.overview("tiny", ["base"], jobs=2)
    base, everything = lines
    assert {state: base[state] for state in experiments.STATES} == {
        "done": 1, "running": 0, "partial": 1, "missing": 0, "damaged": 1, "failed": 1, "stale": 0, "blocked": 0}
    assert base["runs"] == 4 and base["each"] == 48.0 and everything["runs"] == 4
    assert base["left"] == (32 + 96 + 96) * 0.5 / 2  # half a second a step, two at once
    experiments.show(lines, standings, detail=True)
    printed = capsys.readouterr().out
    assert "failed: tiny-reach-sac-dense-s1: ZeroDivisionError: by nought" in printed
    assert "partial: tiny-reach-sac-sparse-s0: 64 of 96 steps" in printed
    assert "damaged: tiny-reach-sac-sparse-s1" in printed and "56 s" in printed
    with locks.hold(locks.of_run(run_of("sparse"))):
        assert experiments.standing(run_of("sparse")).state == "running"


def test_nothing_is_promised_where_nothing_was_measured(tiny):
    lines, _ = experiments.overview("tiny", ["base"], jobs=1)
    assert lines[0]["left"] is None and lines[0]["each"] is None and lines[0]["missing"] == 4


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["experiments", *words])
    with pytest.raises(SystemExit) as end:
        errors.cli(experiments.main)
    return end.value.code, capsys.readouterr()


def test_options_that_a_command_does_not_read_are_refused_and_all_are_looked_at_before_anything_is_made(
        tiny, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_agent", lambda run, **settings: pytest.fail("began"))
    for words, why in (
            (("list", "--tasks", "reach"), "--tasks does not go with list; valid with: run, vouch, repeat"),
            (("run", "--pick", "3"), "--pick does not go with run; valid with: repeat"),
            (("run", "--old", "x"), "--old does not go with run; valid with: vouch"),
            (("repeat", "--redo"), "--redo does not go with repeat; valid with: run"),
            (("vouch", "--jobs", "2"), "--jobs does not go with vouch; valid with: run, list"),
            (("run", "--jobs", "0"), "jobs must be at least 1, got 0"),
            (("list", "--jobs", "-3"), "jobs must be at least 1, got -3"),
            (("run", "--every", "nan"), "every must be more than 0 seconds, got nan"),
            (("run", "--check", "--only", "bose"), "unknown experiment 'bose'; valid: again, base"),
            (("run", "--check", "--only", "base", "--seeds", "9"), "unknown seed of these experiments: 9; valid: 0")):
        status, printed = call(monkeypatch, capsys, *words, "--profile", "tiny")
        assert status == 2 and printed.err.startswith(f"error: {why}") and not printed.out, words
    assert call(monkeypatch, capsys, "run", "--check", "--only", "base", "--profile", "tiny") == (0, ("", ""))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(experiments, "execute", lambda runs, *more, executor, **settings: sent.append(executor) or [])
    sent = []
    call(monkeypatch, capsys, "run", "--profile", "gpu", "--only", "again", "--executor", "ray")
    assert sent == ["ray"]  # whose workers have devices of their own
    status, printed = call(monkeypatch, capsys, "run", "--profile", "gpu", "--only", "again")
    assert status == 2 and "error: profile 'gpu' needs a CUDA device" in printed.err and printed.err.count("\n") == 1


def test_the_command_line_makes_and_lists(tiny, monkeypatch, capsys):
    def train(run, **settings):
        if run.method == "sparse" and run.seed == 1:
            raise InputError("its goal is missing")
        if run.method == "dense" and run.seed == 1:
            raise ZeroDivisionError("by nought")
        record(run)

    monkeypatch.setattr(training, "train_agent", train)
    status, printed = call(monkeypatch, capsys, "run", "--profile", "tiny", "--only", "base", "--jobs", "1")
    assert status == 2 and "4 runs: 0 done, 4 to make" in printed.out
    assert printed.err.count("Traceback (most recent call last)") == 1
    assert "tiny-reach-sac-dense-s1 failed:" in printed.err
    last = printed.err.splitlines()[-1]
    assert last == ("error: 2 of 4 runs failed; tiny-reach-sac-dense-s1: ZeroDivisionError: by nought; "
                    "tiny-reach-sac-sparse-s1: its goal is missing")
    status, printed = call(monkeypatch, capsys, "list", "--profile", "tiny", "--only", "base")
    assert status == 0 and printed.out.splitlines()[1].split()[:4] == ["base", "4", "2", "0"]
    monkeypatch.setattr(training, "train_agent", lambda run, **settings: record(run))
    status, printed = call(monkeypatch, capsys, "run", "--profile", "tiny", "--only", "base", "--jobs", "1")
    assert status == 0 and "4 runs: 2 done, 2 to make" in printed.out
    assert len(results.load(profiles.paths("tiny").runs)) == 8


def test_one_reason_is_told_once_however_many_runs_it_holds_back(tiny, capsys):
    for run in experiments.grid("tiny", ["base"]):
        record(run)
        path = profiles.paths("tiny").runs / f"{run.run_id}.json"
        kept = files.read_json(path)
        kept["identity"]["code"]["envs"] = "0" * 16
        if run.method == "dense":
            kept["identity"]["numbers"]["episode_steps"] = "another"
        files.write_json(path, kept)
    lines, standings = experiments.overview("tiny", ["base"], jobs=1)
    experiments.show(lines, standings, detail=False)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stale")]
    assert sorted(told) == [
        f"stale (2): tiny-reach-sac-{method}-s0 and 1 more: was made with other {what}; move it away to train anew"
        for method, what in (("dense", "code.envs, numbers.episode_steps"), ("sparse", "code.envs"))]
    experiments.show(lines, standings, detail=True)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stale: ")]
    assert len(told) == 4 and told[0].startswith("stale: tiny-reach-sac-dense-s0: tiny-reach-sac-dense-s0.csv was made")


def test_a_stale_record_is_kept_unless_it_is_to_be_redone(tiny, monkeypatch, capsys):
    record(run_of(), numbers={"sac": "0" * 16})
    stale = profiles.paths("tiny").runs / "tiny-reach-sac-dense-s0.json"
    before = stale.read_bytes()
    monkeypatch.setattr(training, "train_agent", lambda run, **settings: record(run))
    with pytest.raises(InputError, match="tiny-reach-sac-dense-s0 is kept: .*numbers.sac"):
        experiments.make("tiny", ["base"], jobs=1, every=None)
    assert stale.read_bytes() == before and len(results.load(stale.parent)["run"].unique()) == 4
    experiments.make("tiny", ["base"], jobs=1, every=None, redo=True)
    assert training.examine(run_of()) == ("done", "")
    (kept,) = (tiny / "build" / "tiny" / "replaced").glob("*/*.json")
    assert kept.read_bytes() == before


def test_the_grid_is_rounded_as_the_command_line_says(tiny, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(experiments.rounding, "check", lambda maker: seen.append(f"check {maker}"))
    monkeypatch.setattr(experiments.rounding, "as_if", lambda maker: seen.append(f"as if {maker}"))
    monkeypatch.setattr(training, "train_agent", lambda run, **settings: (seen.append(run.run_id), record(run)))
    words = ("run", "--profile", "tiny", "--only", "base", "--jobs", "1", "--methods", "dense", "--seeds")
    assert call(monkeypatch, capsys, *words, "0", "--rounded-as", "intel")[0] == 0
    assert call(monkeypatch, capsys, *words, "1")[0] == 0
    assert seen == ["check intel", "as if intel", "tiny-reach-sac-dense-s0", "tiny-reach-sac-dense-s1"]
    monkeypatch.undo()
    monkeypatch.setattr(experiments.rounding, "_library", lambda: None)  # before any run is begun
    monkeypatch.setattr(training, "train_agent", lambda run, **settings: pytest.fail("begun"))
    with pytest.raises(InputError, match="no MKL that can be told"):
        experiments.make(TINY, ["base"], jobs=1, every=None, rounded_as="intel")


# --- real runs --------------------------------------------------------------------------------------------------------


def rows(table):
    read = pd.read_csv(table)
    return read[read["metric"] != "seconds"].reset_index(drop=True)


def make_base():
    experiments.make("tiny", ["base"], jobs=1, every=None)


def test_real_agents_killed_again_and_again_end_with_the_same_numbers(tiny, tmp_path, monkeypatch):
    runs = experiments.grid("tiny", ["base"])
    with monkeypatch.context() as patch:
        (tmp_path / "calm").mkdir()
        patch.setenv("GENREWARD_ROOT", str(tmp_path / "calm"))
        make_base()
        calm = {run.run_id: rows(profiles.paths("tiny").runs / f"{run.run_id}.csv") for run in runs}
    where, rng, kills = profiles.paths("tiny"), random.Random(1), 0

    def kept():
        return sorted((path.name, path.stat().st_mtime_ns) for path in where.checkpoints.glob("[!.]*.pt"))

    for _ in range(3):
        before, child = kept(), os.fork()
        if not child:
            try:
                make_base()
            finally:
                os._exit(0)
        over = 0
        while not over and kept() == before:  # until it is one chunk further: then at any moment
            over = os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.002)
        if not over:
            time.sleep(rng.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    make_base()
    assert kills >= 2
    for run in runs:
        pd.testing.assert_frame_equal(rows(profiles.paths("tiny").runs / f"{run.run_id}.csv"), calm[run.run_id],
                                      check_exact=True)
    # a checkpoint and a record that are cut short: both are made again, the same
    checkpoint, table = where.checkpoints / f"{runs[0].run_id}.pt", where.runs / f"{runs[0].run_id}.csv"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    table.write_text(table.read_text()[:-7])
    assert training.examine(runs[0])[0] == "damaged"
    make_base()
    pd.testing.assert_frame_equal(rows(table), calm[runs[0].run_id], check_exact=True)


def test_a_run_goes_on_as_it_was_rounded_or_not_at_all(tiny, monkeypatch):
    run = run_of()

    def stop(step, steps, measured):
        if measured and step < steps:
            raise KeyboardInterrupt

    def begin():
        with pytest.raises(KeyboardInterrupt):
            training.train_agent(run, progress=False, on_progress=stop)
        assert training.examine(run)[0] == "partial"

    begin()
    with monkeypatch.context() as patch:
        patch.setattr(training.rounding, "taken", lambda: "intel")
        with pytest.raises(InputError, match="-s0 was begun rounded as by its machine's own processor; go on with: "
                                             "python -m genreward.experiments run, or"):
            training.train_agent(run, progress=False)
        (profiles.paths("tiny").checkpoints / f"{run.run_id}.pt").unlink()
        begin()
    with pytest.raises(InputError, match="begun rounded as by Intel's processor; .* run --rounded-as intel, or"):
        training.train_agent(run, progress=False)
    monkeypatch.setattr(training.rounding, "taken", lambda: "intel")
    training.train_agent(run, progress=False)
    assert training.examine(run)[0] == "done"


def test_progress_is_told_at_each_step_and_evaluation_and_other_code_is_noted(tiny, sources):
    told = []
    short = run_of(steps=32)
    training.train_agent(short, progress=False, on_progress=lambda *what: told.append(what))
    assert [step for step, _, measured in told if measured is None] == list(range(1, 33))
    assert told[-1][:2] == (32, 32) and set(told[-1][2]) >= {"return", "success", "share_env", "seconds"}
    sources("envs", lambda text: text + "\n\ndef one_more():\n    return 1\n")
    with pytest.raises(training.Stale, match="code.envs"):
        training.train_agent(run_of(steps=64), progress=False)
    table = training.train_agent(run_of(steps=64), progress=False, accept_code=True)
    kept = json.loads(table.with_suffix(".json").read_text())
    assert kept["steps"] == 64 and len(kept["earlier_code"]) == 1
    assert kept["earlier_code"][0]["envs"] != kept["identity"]["code"]["envs"]


def test_a_record_lost_after_its_last_checkpoint_is_written_again(tiny):
    run = run_of(steps=32)
    table = training.train_agent(run, progress=False)
    whole, beside = table.read_bytes(), table.with_suffix(".json")
    for damage in (lambda: table.write_text("cut"), table.unlink, lambda: beside.write_text("{")):
        damage()
        (table.parent / f".{run.run_id}.abc.csv").write_text("left by a kill")
        assert training.train_agent(run, progress=False) == table and table.read_bytes() == whole
        assert sorted(path.name for path in table.parent.iterdir()) == [table.name, beside.name]
        assert files.read_json(beside)["steps"] == 32


def test_two_trainings_of_one_run_do_not_meet(tiny):
    lock = locks.of_run(run_of())
    files.write_json(lock, {"host": "elsewhere", "pid": 7, "started": 1.0})
    with pytest.raises(locks.Busy, match="is being made by process 7 on elsewhere"):
        training.train_agent(run_of(), progress=False)
    assert functools.partial(locks.holder, lock)()["pid"] == 7


def test_a_part_of_the_grid_is_what_was_named_and_a_name_that_is_not_in_it_is_refused():
    part = experiments.Part(tasks=["reach"], methods=["dense", "sparse"], seeds=[1])
    runs = experiments.grid("laptop", ["easy"], part)
    assert {(run.task, run.method, run.seed) for run in runs} == {("reach", "dense", 1), ("reach", "sparse", 1)}
    assert len(experiments.grid("laptop", ["easy"], experiments.Part(seeds=[0]))) * 3 == len(
        experiments.grid("laptop", ["easy"]))
    with pytest.raises(InputError, match="unknown task of these experiments: 'pick-place'; valid: .*reach"):
        experiments.grid("laptop", ["easy"], experiments.Part(tasks=["pick-place"]))
    with pytest.raises(InputError, match="unknown seed of these experiments: 7; valid: 0, 1, 2"):
        experiments.grid("laptop", ["easy"], experiments.Part(seeds=[7]))


@pytest.mark.parametrize("profile", ["laptop", "gpu"])
def test_fresh_seeds_are_none_that_the_figures_have_and_the_runs_are_the_same_otherwise(profile):
    known, new = ({(run.task, run.method, run.variant, run.seed): run for run in experiments.grid(profile, names)}
                  for names in (["fig9_easy", "fig10_easy"], ["again"]))
    assert len(new) == 35 and len({seed for *_, seed in new}) == 7 and not set(known) & set(new)
    for (task, method, variant, _), run in new.items():
        first = run.goal_source == "frame_0"  # a control that the budget's seeds do not have: but for the frame
        like = known[task, method, "+goal-random_frame" if first else variant, 0]
        assert replace(run, seed=0, changes=like.changes if first else run.changes) == like


@pytest.mark.parametrize(("profile", "length"), [("laptop", 30_720), ("gpu", None)])
def test_a_longer_control_is_the_same_runs_taken_twice_as_far(profile, length):
    """A run that one figure wants longer is made once, that long; the other figure's own length is not touched."""
    once, twice = ({run.run_id: run for run in experiments.grid(profile, [name])} for name in ("again", "longer"))
    own = length or profiles.get_profile(profile).run.dreamer_steps
    assert set(twice) < set(once) and {run.method for run in twice.values()} == {"sparse"}
    for name, run in twice.items():
        assert once[name].steps == length and run.steps == 2 * own
        assert replace(run, steps=length) == once[name]
    whole = {run.run_id: run.steps for run in experiments.grid(profile)}
    assert all(whole[name] == 2 * own for name in twice)


# --- after the code has changed ---------------------------------------------------------------------------------------


@pytest.fixture
def old_records(tiny, monkeypatch):
    """The tiny grid, really trained, and then a code that differs in its digest."""
    for run in experiments.grid("tiny", ["base"]):
        training.train_agent(run, progress=False)
    digests = code_identity.digests
    monkeypatch.setattr(code_identity, "digests", lambda roots: {**digests(roots), "envs": "another"})
    assert {experiments.standing(run).state for run in experiments.grid("tiny", ["base"])} == {"stale"}
    return tiny


def kept_of(run):
    return files.read_json(profiles.paths("tiny").runs / f"{run.run_id}.json")


def test_records_of_a_code_that_still_gives_their_numbers_are_todays_again(old_records):
    before = {run.run_id: kept_of(run) for run in experiments.grid("tiny", ["base"])}
    found = experiments.vouch("tiny", ["base"])
    assert [(line["runs"], line["made"], line["same"]) for line in found] == [
        (2, "tiny-reach-sac-dense-s0", True), (2, "tiny-reach-sac-sparse-s0", True)]
    for run in experiments.grid("tiny", ["base"]):
        assert experiments.standing(run).state == "done"
        now, then = kept_of(run), before[run.run_id]
        assert now["identity"]["code"]["envs"] == "another" and now["earlier_code"] == [then["identity"]["code"]]
        assert now["vouched"][0]["by"] == f"tiny-reach-sac-{run.method}-s0" and now["rows"] == then["rows"]
    assert experiments.vouch("tiny", ["base"]) == []  # nothing is left to ask
    assert not list(profiles.paths("tiny").checkpoints.glob("vouch-*"))
    assert not list(profiles.paths("tiny").runs.glob("vouch-*"))
    longer = run_of(steps=128)  # the checkpoint goes on under today's code, without being told to accept another
    table = results.read_run(training.train_agent(longer, progress=False))
    assert table["step"].max() == 128 and kept_of(longer)["earlier_code"]


def test_records_whose_numbers_are_others_now_stay_as_they_are(old_records, monkeypatch, capsys):
    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *given: {
        name: value + 1e-9 for name, value in evaluate(*given).items()})
    before = {run.run_id: kept_of(run) for run in experiments.grid("tiny", ["base"])}
    found = experiments.vouch("tiny", ["base"], part=experiments.Part(methods=["dense"]))
    assert len(found) == 1 and not found[0]["same"] and found[0]["why"].startswith("return at step 32: ")
    assert "differs: return at step 32" in capsys.readouterr().out
    assert {run.run_id: kept_of(run) for run in experiments.grid("tiny", ["base"])} == before


def test_other_numbers_or_files_are_nothing_that_a_comparison_of_code_could_excuse(old_records):
    run = run_of()
    kept = kept_of(run)
    kept["identity"]["numbers"]["sac"] = "another"
    files.write_json(profiles.paths("tiny").runs / f"{run.run_id}.json", kept)
    made = experiments.vouch("tiny", ["base"], part=experiments.Part(methods=["dense"]))
    assert [(line["runs"], line["made"]) for line in made] == [(1, "tiny-reach-sac-dense-s1")]
    assert experiments.standing(run).state == "stale"


@pytest.fixture
def of_another_machine(root, monkeypatch, tmp_path):
    """A run whose record another machine made (its numbers are a little off), a checkout with the code that made it,
    and today's code, which differs in its digest."""
    run = Run("reach", "dense", "sac", 0, "smoke", "smoke", steps=256)
    where = profiles.paths("smoke").runs
    rows = results.read_run(training.train_agent(run, progress=False)).to_dict("records")
    kept = files.read_json(where / f"{run.run_id}.json")
    results.write_run(where, run.run_id, [{**row, "value": row["value"] * (1 + 1e-6)} for row in rows], kept)
    shutil.copytree(os.path.dirname(experiments.__file__), tmp_path / "old" / "genreward",
                    ignore=shutil.ignore_patterns("__pycache__"))
    digests = code_identity.digests
    monkeypatch.setattr(code_identity, "digests", lambda roots: {**digests(roots), "envs": "another"})
    monkeypatch.setattr(experiments, "grid", lambda *given: [run])
    return run, tmp_path / "old"


def test_a_record_of_another_machine_is_vouched_for_by_both_codes_on_this_one(of_another_machine):
    run, old = of_another_machine
    path = profiles.paths("smoke").runs / f"{run.run_id}.json"
    [found] = experiments.vouch("smoke")
    assert not found["same"] and "on record" in found["why"]
    before = files.read_json(path)
    [found] = experiments.vouch("smoke", old=old)
    assert found == {"runs": 1, "made": run.run_id, "same": True, "why": ""}
    now = files.read_json(path)
    assert now["vouched"][0]["how"] == "both codes on one machine, 256 steps"
    assert now["rows"] == before["rows"] and now["earlier_code"] == [before["identity"]["code"]]
    assert experiments.standing(run).state == "done"
    assert [path.name for path in profiles.paths("smoke").checkpoints.glob("*.pt")] == [f"{run.run_id}.pt"]


def test_files_that_this_machine_made_otherwise_do_not_stop_two_codes_from_being_compared(of_another_machine):
    """Both read the same ones. The record keeps the digests of its own, and other numbers are still not excused."""
    run, old = of_another_machine
    path = profiles.paths("smoke").runs / f"{run.run_id}.json"
    kept = files.read_json(path)
    theirs = {**kept["identity"]["inputs"], "demonstration": "theirs"}
    files.write_json(path, {**kept, "identity": {**kept["identity"], "inputs": theirs}})
    assert "inputs.demonstration" in experiments.standing(run).why and not experiments.vouch("smoke")
    identity = training.identity
    with pytest.MonkeyPatch.context() as patched:  # a demonstration that is here, and another one
        patched.setattr(training, "identity", lambda *given: {**identity(*given), "inputs": {"demonstration": "ours"}})
        [found] = experiments.vouch("smoke", old=old)
        assert found["same"] and not experiments.vouch("smoke", old=old)  # the code was all that could be vouched for
        assert experiments.standing(run).why.startswith(f"{run.run_id}.csv was made with other inputs.demonstration;")
    now = files.read_json(path)["identity"]
    assert now["inputs"] == theirs and now["code"] != kept["identity"]["code"]
    files.write_json(path, {**kept, "identity": {**kept["identity"], "numbers": {"sac": "another"}}})
    assert not experiments.vouch("smoke", old=old)


def test_two_codes_that_measure_or_learn_otherwise_are_told_apart(of_another_machine, monkeypatch):
    run, old = of_another_machine
    before = files.read_json(profiles.paths("smoke").runs / f"{run.run_id}.json")
    evaluate, agent = training.evaluate, training._agent
    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate", lambda *given: {
            name: value + 1e-9 for name, value in evaluate(*given).items()})
        [found] = experiments.vouch("smoke", old=old, steps=512)
        assert not found["same"] and found["why"].startswith("return at step 512: ")

    def later(*given):  # learns from the same steps, and evaluates the same, but keeps something else
        made = agent(*given)
        keep = made.state_dict
        made.state_dict = lambda: {**keep(), "config": {**keep()["config"], "batch": -1}}
        return made

    monkeypatch.setattr(training, "_agent", later)
    [found] = experiments.vouch("smoke", old=old)
    assert not found["same"] and found["why"].startswith("checkpoint.agent.config.batch: ")
    assert files.read_json(profiles.paths("smoke").runs / f"{run.run_id}.json") == before


def test_only_the_code_that_made_a_record_can_speak_for_it(of_another_machine, tmp_path):
    run, old = of_another_machine
    (old / "genreward" / "envs.py").write_text((old / "genreward" / "envs.py").read_text() + "\nNEW = 1\n")
    [found] = experiments.vouch("smoke", old=old)
    assert not found["same"] and found["why"] == f"{old} is not the code that made {run.run_id}: envs differ"
    with pytest.raises(InputError, match="is no checkout of the project; git worktree add"):
        experiments.vouch("smoke", old=tmp_path / "nowhere")
    for wrong in ({"old": old, "steps": 100}, {"steps": 256}):
        with pytest.raises(InputError, match="steps goes with old, and must be a multiple of an episode's"):
            experiments.vouch("smoke", **wrong)


def test_the_first_difference_of_two_states():
    state = {"a": [1, {"w": torch.tensor([1.0, float("nan")])}], "b": float("nan"), "c": b"x"}
    assert experiments._first_difference(state, copy.deepcopy(state)) == ""
    other = copy.deepcopy(state)
    other["a"][1]["w"][0] += 1e-6
    assert experiments._first_difference(state, other) == "a[1].w: another tensor"
    assert experiments._first_difference(state, {**state, "c": b"y"}).startswith("c: ")
    assert experiments._first_difference({"a": [1]}, {"a": [1, 2]}).startswith("a: ")


def test_runs_made_again_from_nothing_are_compared_whole_and_leave_the_records_alone(tiny, capsys, monkeypatch):
    runs = experiments.grid("tiny", ["base"])
    for run in runs[:3]:
        training.train_agent(run, progress=False)
    before = {run.run_id: kept_of(run) for run in runs[:3]}
    found = experiments.repeat("tiny", ["base"])
    assert [(line["run"], line["same"], line["why"]) for line in found] == [(run.run_id, True, "") for run in runs[:3]]
    rows = results.read_run(profiles.paths("tiny").runs / f"{runs[0].run_id}.csv")
    assert found[0]["numbers"] == (rows["metric"] != "seconds").sum() and rows["step"].max() == 96
    assert {run.run_id: kept_of(run) for run in runs[:3]} == before
    assert not [path for place in (profiles.paths("tiny").checkpoints, profiles.paths("tiny").runs)
                for path in place.glob("vouch-*")]

    rows.loc[(rows["step"] == 64) & (rows["metric"] == "return"), "value"] += 1e-9  # a record that was improved upon
    results.write_run(profiles.paths("tiny").runs, runs[0].run_id,
                      rows[["experiment", "method", "task", "seed", "step", "metric", "value"]].to_dict("records"),
                      kept_of(runs[0]))
    (other,) = experiments.repeat("tiny", ["base"], experiments.Part(methods=[runs[0].method], seeds=[runs[0].seed]))
    assert not other["same"] and other["why"].startswith("return at step 64: ") and "step 96" not in other["why"]
    assert "made on" not in other["why"]  # it says that it was made here
    assert "differs: return at step 64" in capsys.readouterr().out
    monkeypatch.setattr(experiments.rounding, "own", lambda: None)  # no MKL that could round as another processor
    for said, expected in (("Z80, AVX9", "Z80, AVX9"), (None, "a processor that the record does not name")):
        files.write_json(profiles.paths("tiny").runs / f"{runs[0].run_id}.json",
                         {**kept_of(runs[0]), "processor": said})
        (other,) = experiments.repeat("tiny", ["base"], experiments.Part(methods=[runs[0].method],
                                                                         seeds=[runs[0].seed]))
        assert other["why"].endswith(f" (made on {expected}; here: {results.processor()})")


@pytest.mark.parametrize(("said", "right", "tries"), [
    ({"processor": "Intel(R) Xeon(R), AVX512"}, "intel", ["whole intel"]),
    ({"processor": "AMD EPYC, AVX512"}, "other", ["whole here"]),
    ({"processor": "AMD EPYC, AVX512", "rounded_as": "intel"}, "intel", ["whole intel"]),
    ({}, "other", ["begun here", "whole here"]),
    ({}, "intel", ["begun here", "begun intel", "whole intel"]),
    ({}, "neither", ["begun here", "begun intel"]),
    ({"processor": "Intel(R) Xeon(R), AVX2"}, "neither", ["whole intel"]),
])
def test_a_run_is_made_again_rounded_as_its_record_was(tiny, monkeypatch, capsys, said, right, tries):
    """On a processor that is not Intel's; `right` is the rounding that gives the record's numbers."""
    run, seen = run_of(), []
    training.train_agent(run, progress=False)
    path = profiles.paths("tiny").runs / f"{run.run_id}.json"
    kept = {name: value for name, value in files.read_json(path).items() if name != "processor"}
    files.write_json(path, {**kept, **said})
    train = training.train_agent

    def made(maker, again, folder):
        seen.append(f"{'whole' if again.steps == training.total_steps(run, profiles.get_profile('tiny')) else 'begun'} "
                    f"{maker}")
        table = results.read_run(train(again, progress=False, folder=folder))
        if maker.replace("here", "other") != right:  # other sums: other numbers
            table.loc[table["metric"] == "return", "value"] += 1e-6
            results.write_run(folder, again.run_id, table.to_dict("records"), {"steps": 1})

    monkeypatch.setattr(experiments.rounding, "own", lambda: "other")
    monkeypatch.setattr(experiments, "_make_here", lambda again, folder: made("here", again, folder))
    monkeypatch.setattr(experiments, "_make_rounded", made)
    (line,) = experiments.repeat("tiny", ["base"])
    assert seen == tries and line["same"] == (right != "neither")
    assert line["rounded_as"] == ("intel" if "whole intel" in tries else "")
    told = capsys.readouterr().out
    assert ("(rounded as by Intel's processor)" in told) == (line["rounded_as"] == "intel")
    assert ("the same, all" in told) == line["same"] and ("differs: return" in told) != line["same"]


def test_a_run_made_again_has_one_thread_as_the_grid_gave_it(tiny, monkeypatch):
    training.train_agent(run_of(), progress=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    train = training.train_agent
    monkeypatch.setattr(training, "train_agent", lambda *given, **more: (
        seen.append(torch.get_num_threads()), train(*given, **more))[1])
    try:
        torch.set_num_threads(2)
        assert experiments.repeat("tiny", ["base"])[0]["same"] and seen == [1]
    finally:
        torch.set_num_threads(before)


def test_a_draw_of_runs_is_the_same_for_a_seed_and_never_more_than_there_are(tiny, monkeypatch):
    monkeypatch.setattr(experiments, "_repeated", lambda run: (1, "", ""))
    for run in experiments.grid("tiny", ["base"]):
        record(run)
    draws = [[line["run"] for line in experiments.repeat("tiny", ["base"], pick=2, seed=seed)] for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) > 1 and len(set(draws[0])) == 2
    with pytest.raises(InputError, match="4 of these runs are on record .* at least 5 wanted"):
        experiments.repeat("tiny", ["base"], pick=5)
    with pytest.raises(InputError, match="pick must be at least 1, got 0"):
        experiments.repeat("tiny", ["base"], pick=0)
