"""Benchmarks: the arithmetic of paired times on a clock of our own, what each script writes, and that its pieces are
what they say. No test asserts how fast anything is."""

import contextlib
import importlib.util
import math
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from genreward import comparison, files, goals, profiles, reward_study, rounding, timing, training
from genreward.errors import InputError
from genreward.forward_backward import ForwardBackward

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


class Clock:
    """Two clocks that only work moves; `slowness` is what a busy machine does to both."""

    def __init__(self, monkeypatch):
        self.seconds, self.worked, self.slowness, self.called = 0.0, 0.0, 1.0, []
        monkeypatch.setattr(timing, "clock", lambda: self.seconds)
        monkeypatch.setattr(timing, "processor", lambda: self.worked)

    def piece(self, name, seconds, units=1.0):
        """Takes `seconds` by the clock and half of it of processor time."""
        def run():
            self.called.append(name)
            self.seconds += seconds * self.slowness
            self.worked += seconds / 2 * self.slowness
        return timing.Piece(run, units)


@pytest.fixture
def fake(monkeypatch):
    return Clock(monkeypatch)


def run_script(name, monkeypatch, *arguments):
    """Run benchmarks/<name>.py as its command line would."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    module.main()


def written(root, name):
    """What a quick look wrote: under build/, and nothing among the results."""
    assert not (root / "results").exists()
    found = files.read_json(root / "build" / "bench" / f"{name}.json")
    if name != "render":
        assert found["quick"] is True and found["task"] == "pick-place" and found["profile"] == "laptop"
        assert {"seconds", "threads", "load", "commit", "versions"} <= found["provenance"].keys()
        for piece in found["pieces"]:
            assert np.shape(piece["rounds"]) == (timing.QUICK, 2)
            assert piece["seconds"] == pytest.approx(np.median(np.array(piece["rounds"])[:, 0]))
            assert piece["per_second"] == pytest.approx(1 / piece["seconds"])
    return found


def pairs(found):
    return {(one["piece"], one["over"]): one["ratio"] for one in found["ratios"]}


# --- the arithmetic ---------------------------------------------------------------------------------------------------


def test_a_machine_that_slows_down_changes_no_ratio(fake):
    slow = timing.Piece(lambda: (setattr(fake, "slowness", fake.slowness * 1.5), fake.piece("slow", 6.0).run()), 2.0)
    quick = fake.piece("quick", 1.0)
    # within a round both meet the same slowness: it changes before `slow` is timed and after `quick` was
    taken = {"slow": [], "quick": []}
    for slowness in (1.0, 2.0, 5.0):
        fake.slowness = slowness
        once = timing.in_turns({"slow": fake.piece("slow", 6.0, 2.0), "quick": quick}, 1)
        for name, rows in once.items():
            taken[name].append(rows[0])
    taken = {name: np.array(rows) for name, rows in taken.items()}
    assert taken["slow"].tolist() == [[3.0, 1.5], [6.0, 3.0], [15.0, 7.5]]  # seconds a unit
    found = timing.ratio(taken, "slow", "quick")
    assert found == {"piece": "slow", "over": "quick", "rounds": 3, "ratio": 3.0, "low": 3.0, "high": 3.0,
                     "processor_ratio": 3.0, "processor_low": 3.0, "processor_high": 3.0}
    assert timing.added(taken, "slow", "quick")["seconds"] == 4.0  # of 2, 4 and 10
    drifting = timing.in_turns({"slow": slow, "quick": quick}, 4)
    assert timing.ratio(drifting, "slow", "quick")["low"] < timing.ratio(drifting, "slow", "quick")["high"]


def test_the_order_alternates_and_the_first_round_does_not_count(fake):
    taken = timing.in_turns({name: fake.piece(name, 1.0) for name in "abc"}, 3)
    assert "".join(fake.called) == "cba" + "abc" + "cba" + "abc"
    assert all(rows.shape == (3, 2) for rows in taken.values())
    fake.called.clear()
    timing.in_turns({name: fake.piece(name, 1.0) for name in "ab"}, 1, warm=0)
    assert "".join(fake.called) == "ab"


def test_of_a_piece_in_another_process_that_ones_clocks_count(fake):
    def asked():
        fake.piece("waiting", 100.0).run()
        return 3.0, 1.0

    taken = timing.in_turns({"there": timing.Piece(asked, 2.0, elsewhere=True), "here": fake.piece("here", 2.0)}, 1)
    assert taken["there"].tolist() == [[1.5, 0.5]] and taken["here"].tolist() == [[2.0, 1.0]]


def test_short_pieces_are_repeated_and_counted(fake):
    piece = timing.lasting(fake.piece("a", 0.03125, 5))
    assert len(fake.called) == 2 and piece.units == 8 * 5  # 8 times 1/32 s
    taken = timing.in_turns({"a": piece}, 1, warm=0)
    assert taken["a"].tolist() == [[0.00625, 0.003125]] and len(fake.called) == 10
    assert timing.lasting(fake.piece("a", 4.0, 5)).units == 5


def test_quartiles_are_of_the_ratios_within_rounds():
    taken = {"a": np.array([[1.0, 1], [4, 4], [9, 1], [16, 1], [25, 1]]),
             "b": np.array([[1.0, 2], [2, 2], [3, 2], [4, 2], [5, 2]])}
    found = timing.ratio(taken, "a", "b")
    assert (found["low"], found["ratio"], found["high"]) == (2, 3, 4)
    assert (found["processor_low"], found["processor_ratio"], found["processor_high"]) == (0.5, 0.5, 0.5)
    less = timing.added(taken, "b", "a")
    assert (less["low"], less["seconds"], less["high"]) == (-12, -6, -2)
    whole = timing.summary(taken, "thing", [("a", "b")])
    assert [piece["seconds"] for piece in whole["pieces"]] == [9, 3] and whole["pieces"][1]["per_second"] == 1 / 3
    assert whole["ratios"] == [found] and whole["unit"] == "thing"


def test_what_cannot_be_timed_is_said_in_a_line(fake, root):
    with pytest.raises(InputError, match="rounds must be at least 1, got 0"):
        timing.in_turns({"a": fake.piece("a", 1.0)}, 0)
    with pytest.raises(InputError, match="at least one piece"):
        timing.in_turns({}, 1)
    with pytest.raises(InputError, match="more than 0 units"):
        timing.in_turns({"a": fake.piece("a", 1.0, 0)}, 1)
    with pytest.raises(InputError, match="'a' took no measurable time"):
        timing.ratio(timing.in_turns({"a": fake.piece("a", 0.0), "b": fake.piece("b", 1.0)}, 1), "b", "a")
    for measure in (timing.reward_overhead, timing.fb_updates, timing.agent_steps, timing.scoring, timing.sums):
        with pytest.raises(InputError, match="rounds must be at least 1, got -1"):
            measure(rounds=-1)
        with pytest.raises(InputError, match="unknown profile 'desktop'"):
            measure(profile="desktop")
        with pytest.raises(InputError, match="unknown task 'juggle'"):
            measure("juggle", profile="smoke")
    with pytest.raises(InputError, match="unknown model of the study 'oracle'"):
        timing.scoring(models=["oracle"], profile="smoke")
    with pytest.raises(InputError, match="is missing; make it with|is missing .*make it with"):
        timing.scoring(models=["dense"], profile="smoke")  # no goal for what it is compared with
    with pytest.raises(InputError, match="is missing"):
        timing.reward_overhead(profile="smoke")
    assert not any(root.iterdir())


# --- one test a script ------------------------------------------------------------------------------------------------


def test_render(root, monkeypatch, capsys):
    table = pd.DataFrame({"renderer": ["a", "b"], "milliseconds": [8.0, 2.0], "processor_milliseconds": [6.0, 2.0],
                          "frames_per_second": [125.0, 500.0]})
    table.attrs.update(ratio=4.0, processor_ratio=3.0, low=3.5, high=4.5, processor_low=2.5, processor_high=3.5)
    asked = []
    monkeypatch.setattr(comparison, "render_rates", lambda *given: asked.append(given) or table)
    run_script("render", monkeypatch, "--quick")
    assert asked == [("pick-place", 10, 64)]
    found = written(root, "render")
    assert found["ratio"] == 4.0 and found["rates"][1]["frames_per_second"] == 500 and found["size"] == 64
    assert "ratio: 4.00 [3.50, 4.50] by the clock, 3.00 [2.50, 3.50] in processor time" in capsys.readouterr().out


def test_reward_overhead(root, monkeypatch, fake, capsys):
    @contextlib.contextmanager
    def pieces(task, profile, rounds):
        assert (task, profile, rounds) == ("pick-place", "laptop", timing.QUICK)
        yield ({timing.ALONE: fake.piece("alone", 0.5, 0.25), "genreward": fake.piece("printed", 1.0, 0.25),
                "genreward, every frame drawn": fake.piece("all", 4.0, 0.25)}, {"episode_steps": 250})

    monkeypatch.setattr(timing, "overhead_pieces", pieces)
    run_script("reward_overhead", monkeypatch, "--quick")
    found = written(root, "reward_overhead")
    assert pairs(found) == {("genreward", timing.ALONE): 2, ("genreward, every frame drawn", timing.ALONE): 8,
                            ("genreward, every frame drawn", "genreward"): 4}
    assert [one["seconds"] for one in found["added"]] == [2, 14]  # per 1,000 steps: 4 and 16, less 2
    assert [one["processor_seconds"] for one in found["added"]] == [1, 7] and found["episode_steps"] == 250
    assert "genreward: 2 [2, 2] s more by the clock, 1 [1, 1] s in processor time" in capsys.readouterr().out


def test_fb_updates(root, monkeypatch, fake, capsys):
    monkeypatch.setattr(timing, "fb_pieces", lambda task, profile: (
        {"features kept": fake.piece("kept", 2.0, 10), "encoded anew": fake.piece("anew", 5.0, 1),
         "features kept, buffer targets": fake.piece("buffer", 3.0, 10)}, {"encoder": {"name": "vae"}}))
    run_script("fb_updates", monkeypatch, "--quick")
    found = written(root, "fb_updates")
    assert pairs(found) == {("encoded anew", "features kept"): pytest.approx(25),
                            ("features kept, buffer targets", "features kept"): pytest.approx(1.5)}
    assert found["encoder"] == {"name": "vae"} and found["unit"] == "update" and len(fake.called) == 3 * timing.QUICK
    assert "encoded anew: 25 [25, 25] times the seconds of features kept by the clock" in capsys.readouterr().out


def test_agents(root, monkeypatch, fake, capsys):
    @contextlib.contextmanager
    def pieces(task, profile):
        yield ({timing.ALONE: fake.piece("alone", 1.0, 256), "sac": fake.piece("sac", 4.0, 256),
                "dreamer": fake.piece("dreamer", 16.0, 256)}, {"updates_per_step": {"sac": 0.5}})

    monkeypatch.setattr(timing, "agent_pieces", pieces)
    run_script("agents", monkeypatch, "--quick")
    found = written(root, "agents")
    assert pairs(found) == {("sac", timing.ALONE): 4, ("dreamer", timing.ALONE): 16, ("dreamer", "sac"): 4}
    assert [piece["per_second"] for piece in found["pieces"]] == [256, 64, 16]
    assert "dreamer: 4 [4, 4] times the seconds of sac by the clock" in capsys.readouterr().out


def test_scoring(root, monkeypatch, fake, capsys):
    asked = []

    def pieces(task, profile, models):
        asked.append(models)
        return ({"pixel_cosine": fake.piece("pixels", 0.125, 65), "liv": fake.piece("liv", 0.5, 65)},
                {"frames": 65, "absent": {"viper": "config.json is missing"}})

    monkeypatch.setattr(timing, "scoring_pieces", pieces)
    run_script("scoring", monkeypatch, "--quick", "--models", "liv", "viper")
    found = written(root, "scoring")
    assert asked == [["liv", "viper"]] and pairs(found) == {("liv", "pixel_cosine"): 4}
    assert [piece["per_second"] for piece in found["pieces"]] == [520, 130] and found["frames"] == 65
    # each is called twice to see how long it takes; then two calls of the short one are a turn, and one of the long one
    turn = ["pixels", "pixels"]
    assert fake.called == [*turn, "liv", "liv", *turn, "liv", "liv", *turn]
    assert "viper: not measured; config.json is missing" in capsys.readouterr().out


# --- the pieces are what they say -------------------------------------------------------------------------------------


class Video:
    """Stands in for the trained video model."""

    image_size, num_frames, asked = 32, 5, 0

    def encode(self, clip):
        self.asked += 1
        return clip[::2, ::8, ::8].transpose(3, 0, 1, 2).astype(np.float32)


class Psi:
    """Stands in for psi; counts the frames that it encodes."""

    dim, frames = 6, 0

    def encode(self, frames):
        self.frames += len(frames)
        return frames.reshape(len(frames), -1)[:, :: frames[0].size // 6][:, :6].astype(np.float32)

    def describe(self):
        return {"name": "stand-in", "dim": self.dim}


@pytest.fixture
def small():
    """The smoke profile with short episodes."""
    smoke = profiles.get_profile("smoke")
    return replace(smoke, episode_steps=16, image_size=32, video=replace(smoke.video, image_size=32),
                   reward=replace(smoke.reward, interval=8, sparse_interval=8),
                   sac=replace(smoke.sac, learning_starts=20),
                   dreamer=replace(smoke.dreamer, prefill=20, train_ratio=16.0))


def test_the_overheads_pieces_draw_what_they_say(small, monkeypatch):
    film = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    goal, video, psi = goals.Goal("x", (), film, np.zeros(5), 4), Video(), Psi()

    def parts(run, profile):
        targets = {"genreward": "goal", "genreward_sound": "buffer"}[run.method]
        fb = ForwardBackward(6, 4, replace(profile.fb, fb_targets=targets, batch=8))
        if targets == "buffer":
            fb.freeze()
        return {"goal": goal, "video_model": video, "encoder": psi, "fb": fb}

    def build(run, profile, parts):
        model = training.make_reward(run.method, parts, **training.reward_settings(run, profile))
        model.load_state_dict({"mean": 0.0, "spread": 1.0})
        return model

    monkeypatch.setattr(training, "load_parts", parts)
    monkeypatch.setattr(training, "build_reward", build)
    monkeypatch.setattr(training, "required", lambda run, profile: {})
    with timing.overhead_pieces("reach", small, rounds=1) as (pieces, about):
        drawn = about["frames_drawn_an_episode"]
        # o_0:8 and o_0:16 sampled to 5 frames, and o_7 and o_15 of the frame term
        assert drawn["genreward"] == len({0, 2, 4, 6, 8, 12, 16, 7, 15})
        assert drawn["genreward, every frame drawn"] == drawn["genreward_sound"] == 17 and drawn[timing.ALONE] == 0
        asked = {}
        for name, piece in pieces.items():
            assert piece.units == 0.016
            before = psi.frames
            piece.run()
            asked[name] = psi.frames - before
        # psi of o_{t-1}: at two payments; in each step; of both ends of each step while the replay is kept
        assert asked == {timing.ALONE: 0, "genreward": 2, "genreward, every frame drawn": 2,
                         "genreward, F and B learning": 17, "genreward_sound": 16}


def test_both_ways_of_updating_see_the_same_features(small, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "smoke", small)
    seen = []

    class Watched(ForwardBackward):
        def update(self, batch, goal=None):
            seen.append((self.config.fb_targets, {name: np.array(rows) for name, rows in batch.items()}))
            return super().update(batch, goal)

    monkeypatch.setattr(timing.forward_backward, "ForwardBackward", Watched)
    psi = Psi()
    pieces, about = timing.fb_pieces("reach", "smoke", sizes="smoke", steps=6, updates=1, encoder=psi)
    assert about["frames_encoded_an_update"] == 2 * small.fb.batch and about["sizes"]["feature_dim"] == 6
    assert [targets for targets, _ in seen] == ["goal", "goal", "buffer"]  # each has been called once
    seen.clear()
    encoded = psi.frames
    for piece in pieces.values():
        piece.run()
    assert psi.frames - encoded == 2 * small.fb.batch  # by one of them only
    for name in ("s", "a", "next_s"):
        np.testing.assert_array_equal(seen[0][1][name], seen[1][1][name])
    with pytest.raises(InputError, match="steps and updates must be at least 1, got 0 and 10"):
        timing.fb_pieces("reach", "smoke", steps=0)


def test_the_agents_are_learning_when_they_are_timed(small, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "smoke", small)
    made = {}

    def agent(run, profile, env, original=training._agent):
        made[run.agent] = original(run, profile, env)
        return made[run.agent]

    monkeypatch.setattr(training, "_agent", agent)
    with timing.agent_pieces("reach", "smoke") as (pieces, about):
        assert about["updates_per_step"] == {"sac": 0.5, "dreamer": 0.5}  # 16 replayed steps a step, 4 x 8 an update
        sac, dreamer = made["sac"], made["dreamer"]
        assert sac.steps == 32 and dreamer.rows_seen >= small.dreamer.prefill
        before = sac.model._n_updates, dreamer.updates
        for piece in pieces.values():
            piece.run()
            assert piece.units == 16
        assert (sac.model._n_updates - before[0], dreamer.updates - before[1]) == (8, 8) and sac.steps == 48


def test_each_of_two_processes_is_told_of_a_maker_before_it_makes_anything(fake, monkeypatch):
    done = []
    monkeypatch.setattr(timing.rounding, "as_if", lambda maker: done.append(f"as if {maker}"))

    def updates(task, profile, sizes):
        done.append(f"F and B of {task}, {sizes}")
        return {"features kept, buffer targets": fake.piece("update", 3.0, 10)}, {}

    @contextlib.contextmanager
    def agents(task, profile, which):
        done.append(f"{which} on {task}")
        yield {"sac": fake.piece("step", 2.0, 256)}, {}
        done.append("closed")

    monkeypatch.setattr(timing, "fb_pieces", updates)
    monkeypatch.setattr(timing, "agent_pieces", agents)
    here, there = multiprocessing.Pipe()
    for said in ("F and B", "sac", None):
        here.send(said)
    timing._pieces_as_if("intel", "reach", "smoke", there)
    assert done == ["as if intel", "F and B of reach, smoke", "('sac',) on reach", "closed"]
    assert [here.recv() for _ in range(3)] == [{"sac": 256, "F and B": 10}, (3.0, 1.5), (2.0, 1.0)]
    assert fake.called == ["update", "step"]


def test_what_a_process_lacks_is_said_here_and_none_is_left(root):
    before = set(multiprocessing.active_children())  # other tests' workers
    lacks = "no such video model folder: .*smoke" if rounding.own() else "no MKL that can be told"
    with pytest.raises(InputError, match=lacks), timing.sums_pieces("reach", "smoke"):
        pytest.fail("made without weights")
    assert set(multiprocessing.active_children()) <= before


def test_nothing_is_begun_where_mkl_cannot_be_told(monkeypatch):
    monkeypatch.setattr(timing.rounding, "_library", lambda: None)
    monkeypatch.setattr(timing.multiprocessing, "get_context", lambda kind: pytest.fail("begun"))
    with pytest.raises(InputError, match="no MKL that can be told"), timing.sums_pieces("reach", "smoke"):
        pytest.fail("made")


def test_all_score_the_same_frames_and_none_profits_from_another(small, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "smoke", small)
    scored, counted = [], []

    class Model:
        interval = 4

        def __init__(self, memo):
            self.memo = memo

        def score(self, trajectory):
            scored.append(trajectory.frames)
            self.memo.encode(trajectory.frames[:2])
            return np.zeros(len(trajectory))

    inner = SimpleNamespace(encode=lambda frames: counted.append(len(frames)))

    def build(profile, task, names, parts):
        memo = parts._memo(inner)
        return {name: Model(memo) for name in names if name != "tadpole"}, {"tadpole": "not there"}

    monkeypatch.setattr(reward_study, "build_models", build)
    pieces, about = timing.scoring_pieces("reach", "smoke", ["liv", "tadpole", "pixel_cosine"], steps=4)
    assert list(pieces) == ["pixel_cosine", "liv"] and about["absent"] == {"tadpole": "not there"}
    assert about["frames"] == 5 and {piece.units for piece in pieces.values()} == {5}
    for piece in pieces.values():
        piece.run()
    assert counted == [2, 2]  # the second had to encode anew
    assert scored[0] is scored[1] and scored[0].shape == (5, 32, 32, 3)
    with pytest.raises(InputError, match="steps must be at least 2, got 1"):
        timing.scoring_pieces("reach", "smoke", steps=1)


def test_one_line_for_bad_input(monkeypatch, capsys):
    from genreward import errors

    with pytest.raises(SystemExit) as ended:
        errors.cli(lambda: run_script("agents", monkeypatch, "--rounds", "0"))
    assert ended.value.code == 2 and capsys.readouterr().err == "error: rounds must be at least 1, got 0\n"


def test_make_bench_runs_them_all():
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    assert "benchmarks/*.py" in makefile.partition("\nbench:")[2].partition("\n\n")[0]
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert names == {"render", "reward_overhead", "fb_updates", "agents", "scoring", "sums"}
    for name in names:
        assert f"results/bench/{name}.json" in (BENCHMARKS / f"{name}.py").read_text()


def test_a_record_holds_a_number_for_every_piece():
    folder = BENCHMARKS.parent / "results" / "bench"
    for path in folder.glob("*.json"):
        found = files.read_json(path)
        if path.stem == "render":
            continue
        assert found["quick"] is False and found["ratios"]
        assert all(math.isfinite(one["ratio"]) and one["low"] <= one["ratio"] <= one["high"]
                   for one in found["ratios"])
