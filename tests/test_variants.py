"""Goals from other sources: what each one changes, and what it leaves as it is."""

import numpy as np
import pytest

from genreward import experiments, goals, pipeline, profiles, variants
from genreward.errors import InputError
from genreward.experiments import Arm, Experiment
from genreward.forward_backward import ForwardBackward
from genreward.tasks import PAPER_TASKS


@pytest.fixture(scope="module")
def films():
    plain, _ = variants.expert_video("pick-place", 32, 9, seed=7)
    jumping, moved = variants.expert_video("pick-place", 32, 9, seed=7, jump=0.15)
    return plain, jumping, moved


def test_the_real_video_begins_where_imagined_ones_begin(films):
    plain = films[0]
    assert plain.shape == (9, 32, 32, 3) and plain.dtype == np.uint8
    assert (plain[0] == pipeline.first_frame("pick-place", 32, 7)).all()
    assert all((one != another).any() for one, another in zip(plain, plain[1:], strict=False))


def test_the_object_is_elsewhere_in_the_frames_that_are_named_and_in_no_other(films):
    plain, jumping, moved = films
    assert [index for index in range(9) if (plain[index] != jumping[index]).any()] == moved == [3, 5]
    for index in moved:  # little more than the object and its place changes
        assert (plain[index] != jumping[index]).any(-1).mean() < 0.1


def test_a_task_without_a_loose_object_cannot_have_it_teleport():
    with pytest.raises(InputError, match="'drawer-close' has no loose object"):
        variants.expert_video("drawer-close", 32, 9, seed=7, jump=0.1)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A profile whose goal of pick-place is there, scored by a scorer that likes bright frames."""
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    video = np.repeat(np.arange(9, dtype=np.uint8)[:, None, None, None] * 9, 32, 1).repeat(32, 2).repeat(3, 3)
    goal = goals.Goal("pick it up", ("it is up",), video, np.arange(9.0), 8, provenance={"task": "pick-place"})
    goal.save(profiles.paths("smoke").goals / "pick-place")

    class Scorer:
        identity = "brightness"

        def score(self, frames, prompts):
            return frames.mean((1, 2, 3))

    monkeypatch.setattr(pipeline, "load_scorer", lambda profile: Scorer())
    return profiles.get_profile("smoke"), goal


def test_the_random_frame_is_another_one_of_the_same_video_and_always_the_same(kept, monkeypatch):
    profile, own = kept
    monkeypatch.setattr(goals.Goal, "load", lambda path: own)
    first, second = (variants.SOURCES["random_frame"](profile, "pick-place") for _ in range(2))
    assert (first.video == own.video).all() and first.index == second.index
    assert first.selection == "random" and first.provenance["clip_index"] == 8
    drawn = {variants.SOURCES["random_frame"](profile, task).index for task in PAPER_TASKS}
    assert len(drawn) > 1 and 8 not in drawn  # each task has a draw of its own, and none is CLIP's choice again


def test_each_frame_can_be_the_goal_whatever_its_score(kept):
    profile, own = kept
    for index in (0, 5, 8):
        made = variants.maker(f"frame_{index}")(profile, "pick-place")
        assert made.index == index and (made.frame == own.video[index]).all() and (made.scores == own.scores).all()
        assert made.provenance["goal_source"] == f"frame_{index}" and made.provenance["clip_index"] == own.index
    with pytest.raises(InputError, match="the goal video of 'pick-place' has no frame 9; valid: 0 to 8"):
        variants.maker("frame_9")(profile, "pick-place")
    with pytest.raises(InputError, match="unknown source of goal videos 'frame_x'; valid: .*frame_<k>"):
        variants.maker("frame_x")


def test_the_direction_of_each_frame_is_that_of_the_frame_as_the_goal(kept, monkeypatch):
    profile, own = kept
    weights = profiles.paths(profile).fb / "pick-place.pt"
    ForwardBackward(3, 4, profile.fb, seed=0).save(weights, resume=False)
    fb = ForwardBackward.load(weights)  # in the precision that is kept

    class MeanColour:
        def encode(self, frames):
            return np.asarray(frames, np.float32).mean((1, 2)) / 255

    monkeypatch.setattr(pipeline, "load_encoder", lambda profile: MeanColour())
    found = variants.goal_directions(profile, "pick-place")
    assert found.shape == (9, profile.fb.dim)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.sqrt(profile.fb.dim), rel=1e-5)
    for index in (0, 8):
        goal = variants.maker(f"frame_{index}")(profile, "pick-place")
        assert found[index] == pytest.approx(fb.goal_z(MeanColour().encode(goal.frame[None])[0]), rel=1e-5)
    assert not np.allclose(found[0], found[8])


def test_every_frame_of_the_laptops_goal_videos_is_tried_once():
    declared = variants.wanted("laptop")[0]
    for task in ("reach", "drawer-close"):
        assert [source for name, source in declared if name == task and source.startswith("frame_")] == [
            f"frame_{index}" for index in range(9)]
    runs = experiments.chosen("laptop", ["every_frame"])[0].runs("laptop")
    assert len(runs) == len({run.run_id for run in runs}) == 2 * 9 * 3 and {run.agent for run in runs} == {"zero_shot"}


def test_real_videos_are_marked_and_say_where_they_are_false(kept):
    profile, _ = kept
    real, false = (variants.SOURCES[name](profile, "pick-place") for name in ("expert_video", "teleport"))
    assert real.source == false.source == "demonstration" and "teleported_frames" not in real.provenance
    assert false.provenance["teleported_frames"] == [3, 5] and false.provenance["metres"] == variants.JUMP
    assert real.index == int(np.argmax(real.video.mean((1, 2, 3))))


def test_what_the_laptops_grid_declares_can_be_made():
    wanted, encoders = variants.wanted("laptop")
    assert {source for task, source in wanted if task == "pick-place"} == set(variants.SOURCES)
    assert sorted(encoders) == [*((task, "fb.encoder", "openclip") for task in ("drawer-close", "pick-place", "reach")),
                                ("walker-walk", "fb.action_aware", False)]


def test_a_source_that_nobody_makes_is_named(monkeypatch):
    arm = Arm("genreward_sound_dense", (("goal", "hearsay"),))
    monkeypatch.setattr(experiments, "experiments", lambda profile: {
        "one": Experiment("one", "", "", ("pick-place",), (arm,))})
    with pytest.raises(InputError, match="unknown source of goal videos 'hearsay'; valid: camera, expert_video, "):
        variants.wanted("laptop")


def test_made_variants_are_what_runs_ask_for_and_are_not_made_twice(kept, monkeypatch):
    profile, _ = kept
    made = []
    monkeypatch.setattr(pipeline, "load_encoder", lambda profile: None)
    monkeypatch.setattr(pipeline, "exploration", lambda *anything: {})
    monkeypatch.setattr(variants, "_with_setting", lambda *anything: None)
    monkeypatch.setattr(variants, "maker", lambda source: lambda profile, task: kept[1])

    def normalise(profile, replay, encoder, goal, fb, path):
        made.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    monkeypatch.setattr(pipeline, "normalise", normalise)
    assert variants.missing(profile)
    variants.make(profile)
    variants.make(profile)
    assert len(made) == len(set(made)) == len(variants.SOURCES) + experiments.FRAMES
    for run in experiments.grid(profile, ["fig10", "tableB"]):
        if run.goal_source:  # exactly where training looks for them
            assert (variants.folder(profile, run.goal_source, run.task) / "goal.json").is_file()
            assert f"{run.task}+goal-{run.goal_source}-normaliser.json" in made
