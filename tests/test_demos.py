"""Demonstration folders: rendered ones and the reader's own, stages from states, files that are no videos."""

import json

import numpy as np
import pytest

from genreward import demos, envs, files
from genreward.errors import InputError
from genreward.profiles import get_profile, paths
from genreward.tasks import PAPER_TASKS, PRETRAIN_TASKS, STAGES

ORDER = demos.Order("reach", expert=1, failure=0, half=0, random=1, split="test", seed=5, frames=5, size=32)


def moving_square(count=6, side=32):
    frames = np.full((count, side, side, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:16, 4 * number: 4 * number + 8] = (220, 60, 30)
    return frames


def test_stages_of_a_hand_made_episode():
    states = np.zeros((6, 39))
    states[:, 4:7] = (0.0, 0.6, 0.02)  # the object
    states[:, :3] = (0.3, 0.6, 0.02)  # the hand, 30 cm beside it
    states[1, :3] = (0.04, 0.6, 0.20)  # 4 cm beside it, far above
    states[2, :3] = (0.04, 0.6, 0.05)  # 5 cm from it in space
    states[3:, :3] = (0.0, 0.6, 0.1)
    states[3:, 4:7] = (0.0, 0.6, 0.05)  # lifted by 3 cm
    success = np.array([False, False, False, False, True])
    named = [STAGES[stage] for stage in demos.stages(states, success)]
    assert named == ["away", "above", "touching", "moving", "moving", "done"]


@pytest.mark.parametrize(("lossy", "tolerance"), [(False, 3), (True, 40)])
def test_a_video_comes_back(tmp_path, lossy, tolerance):
    frames = moving_square()
    path = tmp_path / "a.mp4"
    demos.write_video(path, frames, lossy=lossy, scale=2 if lossy else 1)
    back = demos.read_video(path)
    if lossy:
        assert back.shape == (6, 64, 64, 3)
        back = back[:, ::2, ::2]
    assert back.shape == frames.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).mean() < tolerance
    again = tmp_path / "b.mp4"
    demos.write_video(again, frames, lossy=lossy, scale=2 if lossy else 1)
    assert again.read_bytes() == path.read_bytes()


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video at all")
    with pytest.raises(InputError, match="text.mp4 cannot be read as a video"):
        demos.read_video(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="empty.mp4 (cannot be read as a video|has no frames)"):
        demos.read_video(tmp_path / "empty.mp4")
    demos.write_video(tmp_path / "whole.mp4", moving_square())
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.mp4 (cannot be read as a video|has no frames)"):
        demos.read_video(tmp_path / "cut.mp4")
    with pytest.raises(InputError, match="no such video: .*absent.mp4"):
        demos.read_video(tmp_path / "absent.mp4")
    with pytest.raises(InputError, match="frames of none.mp4 must hold at least 1 frame"):
        demos.write_video(tmp_path / "none.mp4", np.zeros((0, 8, 8, 3), np.uint8))
    assert not (tmp_path / "none.mp4").exists()


def test_resizing_crops_to_the_middle_square():
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 200
    small = demos.resize(frames, 8)
    assert small.shape == (2, 8, 8, 3) and (small == 200).all()
    same = moving_square()
    assert demos.resize(same, 32) is same


def test_a_readers_own_folder_needs_two_columns_only(tmp_path):
    demos.write_video(tmp_path / "clips" / "mine.mp4", moving_square())
    demos.write_video(tmp_path / "other.mp4", moving_square(3)[:, ::-1])
    rows = [{"file_name": "clips/mine.mp4", "text": "slide the square"}, {"file_name": "other.mp4", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    folder = demos.VideoFolder(tmp_path)
    assert len(folder) == 2 and folder.clips == rows
    clip = folder.frames(0, num_frames=9, size=16)
    assert clip.shape == (9, 16, 16, 3)
    assert folder.frames(0).shape[0] == 6
    assert len(demos.VideoFolder(tmp_path, text="b")) == 1
    with pytest.raises(InputError, match="has no clips with {'task': 'reach'}"):
        demos.VideoFolder(tmp_path, task="reach")
    with pytest.raises(InputError, match="clips/mine.mp4 has no trajectory"):
        folder.trajectory(0)


def test_fewer_than_one_process_is_refused(tmp_path):
    with pytest.raises(InputError, match="jobs must be at least 1, got 0"):
        demos.make_demos(tmp_path / "videos", (), jobs=0)
    assert not (tmp_path / "videos").exists()


@pytest.mark.parametrize(("line", "message"), [
    ('{"file_name": "a.mp4"}', "line 2: needs a JSON object with file_name and text .*text"),
    ('{"file_name": "a.mp4", "text"', "line 2: needs a JSON object"),
    ('"a.mp4"', "line 2: needs a JSON object"),
    ('{"file_name": "gone.mp4", "text": "x"}', "line 2: no such clip: gone.mp4"),
    ('{"file_name": "a.mp4", "text": null}', "line 2: file_name and text must be words, got 'a.mp4', None"),
    ('{"file_name": 3, "text": "x"}', "line 2: file_name and text must be words, got 3, 'x'"),
    ("\udcff\udcfe", "metadata.jsonl is not a file of text"),
])
def test_a_bad_row_is_named_by_its_line(tmp_path, line, message):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_bytes(
        ('{"file_name": "a.mp4", "text": "good"}\n' + line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        demos.VideoFolder(tmp_path)


def test_a_folder_without_its_table_or_without_clips_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no metadata.jsonl"):
        demos.VideoFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no clips"):
        demos.VideoFolder(tmp_path)


def test_no_clip_of_an_evaluated_task_is_for_training():
    for name in ("smoke", "laptop", "paper"):
        for order in demos.plan(name):
            assert (order.split == "test") == (order.task in PAPER_TASKS)
            assert order.frames == get_profile(name).data.frames
    assert {order.task for order in demos.plan("laptop") if order.split == "train"} == set(PRETRAIN_TASKS)


def test_training_episodes_of_evaluated_tasks_lie_apart_and_start_elsewhere_than_tests():
    apart, tests = demos.plan_in_domain("laptop"), [order for order in demos.plan("laptop") if order.split == "test"]
    assert {order.task for order in apart} == set(PAPER_TASKS) and {order.split for order in apart} == {"train"}
    assert not {order.seed for order in apart} & {order.seed for order in tests}
    assert paths("laptop").in_domain_demos != paths("laptop").demos


def test_rendered_episodes_go_on_after_a_stop_and_are_the_same_again(tmp_path, monkeypatch):
    other = demos.Order("drawer-close", 0, 0, 0, 1, "train", 5, frames=5, size=32)
    first = demos.make_demos(tmp_path / "a", [ORDER], progress=False)
    assert [row["kind"] for row in first.clips] == ["expert", "random"]
    expert = first.clips[0]
    assert expert["success"] and len(expert["stages"]) == len(expert["steps"]) == 5
    assert STAGES[expert["stages"][-1]] == "done" and expert["text"] == "reach the goal with the hand"
    episode = first.trajectory(0)
    assert episode.succeeded and int(np.argmax(episode.success)) + 1 == expert["success_step"]
    assert expert["steps"][-1] == len(episode) and first.frames(0).shape == (5, 32, 32, 3)
    before = files.digest(tmp_path / "a" / "test")

    filled = []
    fill = demos._fill
    monkeypatch.setattr(demos, "_fill", lambda folder, order, part: filled.append(order) or fill(folder, order, part))
    more = demos.make_demos(tmp_path / "a", [ORDER, other], progress=False)
    assert filled == [other] and len(more) == 3  # what was finished is not rendered again
    assert files.digest(tmp_path / "a" / "test") == before
    demos.make_demos(tmp_path / "b", [ORDER], progress=False)
    assert files.digest(tmp_path / "b" / "test") == before


def test_a_failure_fails_and_wrong_kinds_are_refused():
    env = envs.make_env("reach", seed=1, size=32)
    result = None
    for attempt in range(5):
        result = result or demos.episode(env, "failure", np.random.default_rng(attempt), failure="short")
    trajectory, snapshots = result
    assert not trajectory.succeeded and len(snapshots) == len(trajectory) + 1
    assert trajectory.info == {"kind": "failure", "failure": "short"}
    with pytest.raises(InputError, match="unknown kind of episode 'win'; valid: expert, failure, half, random"):
        demos.episode(env, "win", np.random.default_rng(0))
    with pytest.raises(InputError, match="unknown failure None; valid: drop, misplace, short"):
        demos.episode(env, "failure", np.random.default_rng(0))


def test_what_the_expert_needs_can_be_asked_once_for_all_kinds(monkeypatch):
    """It hangs on the start alone, so a caller who hands it over gets the same episodes, without another trial."""
    trials, try_it = [], demos.steps_to_success
    monkeypatch.setattr(demos, "steps_to_success", lambda *given: trials.append(given) or try_it(*given))

    def episodes(env, needed):
        return [demos.episode(env, "failure" if failure else "half", np.random.default_rng(3), 3, failure, needed)
                for failure in ("short", "drop", None)]

    alone = episodes(envs.make_env("reach", seed=1, size=32), None)
    assert len(trials) == 3 and sum(episode is not None for episode in alone) >= 2
    env = envs.make_env("reach", seed=1, size=32)
    before = env.rng_state()
    needed = try_it(env, 3)
    assert 1 <= needed <= demos.MAX_STEPS and env.rng_state() == before
    for a, b in zip(alone, episodes(env, needed), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.array_equal(a[0].states, b[0].states) and np.array_equal(a[0].actions, b[0].actions)
    assert len(trials) == 3
    assert demos.episode(env, "half", np.random.default_rng(0), 3, needed=-1) is None  # where the expert fails
