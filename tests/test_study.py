"""Measurements of the notebooks: pairs share their start, closed forms, what is paid online is what is scored."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import genreward  # noqa: F401  (import order, see genreward/__init__.py)
from genreward import envs, files, profiles, study
from genreward.errors import InputError
from genreward.forward_backward import check_replay
from genreward.rewards import GoalRewardEnv, make_reward
from genreward.tasks import STAGES

DONE = STAGES.index("done")


@pytest.fixture(scope="module")
def pairs():
    return study.paired_clips("reach", ("expert", "oracle", "half", "still"), 2, 3, size=16, progress=False)


@pytest.mark.parametrize("task", ["pick-place", "door-open"])
def test_touch_is_seen_by_arrays_as_meta_world_sees_it(task):
    """Along an expert's episode, of every object that Meta-World could ask for."""
    env, answers = study.quick(envs.make_env(task, seed=0)), []
    inner, expert = env._env, envs.expert_policy(task)
    observation, _ = env.reset(options={"goal": 3})
    done = False
    while not done:
        observation, _, _, done, _ = env.step(expert(observation))
        for geom in range(inner.model.ngeom):
            said = bool(type(inner).touching_object(inner, geom))
            assert inner.touching_object(geom) is said
            answers.append(said)
    assert 0 < sum(answers) < len(answers)
    plain = envs.rollout(envs.make_env(task, seed=0), expert, frames=False, options={"goal": 3})
    quick = envs.rollout(env, expert, frames=False, options={"goal": 3})
    assert np.array_equal(plain.states, quick.states) and np.array_equal(plain.rewards, quick.rewards)


def test_another_suites_environment_is_left_as_it_is():
    env = envs.make_env("walker-walk", seed=0)
    kept = dict(vars(env))
    assert study.quick(env) is env and vars(env) == kept
    env.close()


def test_the_clips_of_a_pair_start_alike_and_end_differently(pairs):
    assert [len(clips) for clips in pairs.values()] == [2, 2, 2, 2]
    for expert, oracle, half, still in zip(*pairs.values(), strict=True):
        assert expert.start == oracle.start == half.start == still.start
        for clip in (expert, oracle, half):
            assert np.array_equal(clip.frames[0], still.frames[0])
            assert clip.steps[0] == 0 and clip.steps[-1] == len(clip.episode)
        assert (still.frames == still.frames[:1]).all() and not still.stages.any()
        assert expert.episode.succeeded and oracle.episode.succeeded and not half.episode.succeeded
        assert not np.array_equal(expert.episode.states, oracle.episode.states)  # the noise is another
        assert np.array_equal(expert.actions[0], expert.episode.actions[0])
        assert np.array_equal(expert.actions[-1], expert.episode.actions[-1]) and still.actions.shape == (3, 4)
    assert pairs["expert"][0].start != pairs["expert"][1].start


def test_clips_are_a_function_of_their_seed(pairs):
    again = study.paired_clips("reach", ("expert", "oracle", "half", "still"), 1, 3, size=16, progress=False)
    other = study.paired_clips("reach", ("expert",), 1, 3, size=16, seed=1, progress=False)
    for kind, clips in again.items():
        assert np.array_equal(clips[0].frames, pairs[kind][0].frames)
    assert not np.array_equal(other["expert"][0].frames, pairs["expert"][0].frames)


@pytest.mark.parametrize(("kinds", "starts", "message"), [
    (("expret",), 1, "unknown kind of clip 'expret'; valid: expert"), (("expert",), 0, r"starts must lie in 1\.\.50"),
    (("expert",), 51, r"1\.\.50"), ((), 1, "kinds be given")])
def test_bad_orders_are_refused_before_anything_runs(monkeypatch, kinds, starts, message):
    monkeypatch.setattr(envs, "make_env", None)
    with pytest.raises(InputError, match=message):
        study.paired_clips("reach", kinds, starts, 3)


def test_preference_is_the_area_under_the_curve_within_pairs():
    found = study.preference([3, 2, 1, 1], [1, 1, 1, 2])
    assert found.value == pytest.approx((1 + 1 + 0.5 + 0) / 4) and found.n == 4
    assert found.low <= found.value <= found.high
    sure = study.preference([2, 3], [1, 1])
    assert (sure.value, sure.high, sure.n) == (1, 1, 2) and sure.low < 0.5  # two of two may be a coin's doing
    with pytest.raises(InputError, match="one length"):
        study.preference([1, 2], [1])
    with pytest.raises(InputError, match="finite numbers, at least one pair"):
        study.preference([], [])
    with pytest.raises(InputError, match="finite"):
        study.preference([1, np.nan], [0, 0])


def test_a_shares_interval_is_wilsons():
    square = 1.959963984540054**2
    four = study.share_interval(1.0, 4)  # n of n: from n / (n + z^2) to 1
    assert (four.low, four.high) == (pytest.approx(4 / (4 + square)), 1.0) and round(four.low, 2) == 0.51
    none = study.share_interval(0.0, 4)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - four.low))
    half = study.share_interval(0.5, 4)  # by hand: 0.5 -+ 0.5 sqrt(z^2 / (4 + z^2))
    assert half.high - 0.5 == pytest.approx(0.5 - half.low) == pytest.approx(0.5 * (square / (4 + square)) ** 0.5)
    for successes, trials in ((13, 20), (1, 7), (0, 3), (12, 12)):
        by_scipy = binomtest(successes, trials).proportion_ci(method="wilson")
        ours = study.share_interval(successes / trials, trials)
        assert (ours.low, ours.high) == pytest.approx((by_scipy.low, by_scipy.high), abs=1e-9)
    assert study.share_interval(13 / 20, 20).low < 0.5 < study.share_interval(15 / 20, 20).low
    for share, trials in ((1.1, 4), (-0.1, 4), (0.5, 0)):
        with pytest.raises(InputError, match="a share must lie in"):
            study.share_interval(share, trials)


def test_cosines_of_pairs_by_hand():
    latents = np.array([[[1.0, 1.0], [0.0, 1.0]], [[2.0, 0.0], [1.0, 1.0]]]).reshape(2, 1, 2, 1, 2)
    goals = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 5.0]]]).reshape(2, 1, 2, 1, 2)
    # (1,1,0,1).(1,0,0,1) = 2 of lengths sqrt(3), sqrt(2); (2,0,1,1).(0,0,0,5) = 5 of sqrt(6), 5
    np.testing.assert_allclose(study.paired_cosines(latents, goals), [2 / 6**0.5, 1 / 6**0.5])
    # less the first latent frame: (-1,0).(-1,1) = 1 of 1, sqrt(2); (-1,1).(0,5) = 5 of sqrt(2), 5
    np.testing.assert_allclose(study.paired_cosines(latents, goals, "first"), [0.5**0.5, 0.5**0.5])
    # less the first goal: nothing is left of that goal; (1,0,1,0).(-1,0,0,4) = -1 of sqrt(2), sqrt(17)
    np.testing.assert_allclose(study.paired_cosines(latents, goals, "mean", goals[0]), [0, -1 / 34**0.5])
    with pytest.raises(InputError, match="as many"):
        study.paired_cosines(latents, goals[:1])


def test_what_is_paid_online_is_what_is_scored_offline():
    env = GoalRewardEnv(envs.make_env("reach", size=16, episode_steps=12), make_reward("clock"), env_reward="none")
    trajectory, paid = study.paid_episode(env, envs.random_policy(np.random.default_rng(0)), options={"goal": 3})
    env.close()
    np.testing.assert_allclose(paid, np.arange(1, 13) / 12)
    np.testing.assert_allclose(env.reward_model.score(trajectory), paid, rtol=1e-6)
    assert trajectory.frames.shape == (13, 16, 16, 3)


def test_hits_of_the_three_rules():
    scores = [np.array([0.1, 0.9, 0.3]), np.array([0.5, 0.2, 0.5]), np.array([0.1, 0.2, 0.3])]
    stages = [np.array([0, DONE, 1]), np.array([DONE, DONE, 3]), np.array([0, 1, 2])]
    hits = study.selection_hits(scores, stages, DONE)
    assert hits["clip"].tolist() == [1, 1, 0]  # of equal scores the first
    np.testing.assert_allclose(hits["random"], [1 / 3, 2 / 3, 0])
    assert hits["last"].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="as many"):
        study.selection_hits(scores, stages[:2], DONE)


def test_the_rings_closed_form_satisfies_bellman_and_its_replay_follows_it():
    states, right, gamma = 5, 0.6, 0.7
    measure = study.ring_measure(states, right, gamma)
    np.testing.assert_allclose(measure.mean(-1), 1 / (1 - gamma))
    behaved = (1 - right) * measure[0] + right * measure[1]
    for direction, action in ((-1, 0), (1, 1)):
        for state in range(states):
            after = (state + direction) % states
            np.testing.assert_allclose(measure[action, state],
                                       states * np.eye(states)[after] + gamma * behaved[after])
    replay = check_replay(study.ring_replay(states, right, 2000, seed=3), states, 1)
    here, after = replay["features"].argmax(1), replay["next_features"].argmax(1)
    assert np.array_equal(after, (here + np.sign(replay["actions"][:, 0]).astype(int)) % states)
    assert (replay["actions"] > 0).mean() == pytest.approx(right, abs=0.05)
    assert (replay["next_actions"] > 0).mean() == pytest.approx(right, abs=0.05)


def test_a_grid_of_actions_reads_like_a_map():
    grid = study.action_grid(3, up=0.5, gripper=-1.0).reshape(3, 3, 4)
    assert grid[0, 2].tolist() == [1, -1, 0.5, -1] and grid[2, 0].tolist() == [-1, 1, 0.5, -1]
    assert np.array_equal(grid[1, 1], [0, 0, 0.5, -1])
    with pytest.raises(InputError, match="2 points"):
        study.action_grid(1)


def test_a_policy_can_look_at_pictures():
    env = envs.make_env("reach", size=8, episode_steps=2)
    seen = []
    policy = study.follow(lambda frame: seen.append(frame.shape) or np.zeros(4, np.float32), env)
    assert len(envs.rollout(env, policy, frames=False)) == 2
    env.close()
    assert seen == [(8, 8, 3)] * 2


# ---- the video model's record and error


def test_the_training_record_is_read_and_summed_up(tmp_path):
    with pytest.raises(InputError, match="no record"):
        study.training_record(tmp_path)
    (tmp_path / "loss_vae.csv").write_text("step,loss,seconds\n" + "".join(f"{10 * i},{i},1\n" for i in range(1, 21)))
    with pytest.raises(InputError, match="provenance_vae.json"):
        study.training_record(tmp_path)
    made = {"steps": 200, "clips": 5, "tasks": ["reach", "push"], "device": "cpu", "seconds": 90}
    files.write_json(tmp_path / "provenance_vae.json", made)
    (tmp_path / "loss_finetune.csv").write_text("step,loss,seconds\n")
    files.write_json(tmp_path / "provenance_finetune.json", made)
    table = study.training_summary(study.training_record(tmp_path)).set_index("stage")
    assert table.loc["vae", ["steps", "clips", "tasks", "minutes", "first_loss", "last_loss"]].tolist() == [
        200, 5, 2, 1.5, 1.5, 19.5]
    assert table.loc["finetune", "steps"] == 200 and np.isnan(table.loc["finetune", "last_loss"])


@pytest.fixture(scope="module")
def video_model():
    from genreward.video_model import VideoModel

    return VideoModel.small(profiles.get_profile("smoke").video, seed=0)


def test_denoising_errors_have_a_closed_form_for_a_model_that_predicts_nothing(video_model):
    clips = np.random.default_rng(0).integers(0, 256, (2, 9, 64, 64, 3), dtype=np.uint8)
    latents, images = study.diffusion_inputs(video_model, clips)
    assert latents.shape == (2, 3, 4, 16, 16) and images.shape == (2, 1, 4, 16, 16)
    given = study.denoising_errors(video_model, clips, ["push", "pull"], (0, 500, 999))
    again = study.denoising_errors(video_model, clips, ["push", "pull"], (0, 500, 999))
    other = study.denoising_errors(video_model, clips, ["push", "pull"], (0, 500, 999), seed=1)
    assert np.array_equal(given, again) and not np.allclose(given, other)
    with torch.no_grad():
        kept = [part.clone() for part in video_model.transformer.proj_out.parameters()]
        for part in video_model.transformer.proj_out.parameters():
            part.zero_()
    errors = study.denoising_errors(video_model, clips, ["push", "pull"], (0, 999))
    with torch.no_grad():
        for part, value in zip(video_model.transformer.proj_out.parameters(), kept, strict=True):
            part.copy_(value)
    # alpha_999 = 0 (zero terminal SNR): v = -x_0; at t = 0 hardly any noise: v is about eps, of variance 1
    np.testing.assert_allclose(errors[:, 1], latents.square().mean((1, 2, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(errors[:, 0], 1, atol=0.15)


@pytest.mark.parametrize(("prompts", "levels", "message"), [
    (["push"], (5,), "as many clips as prompts"), (["push", "pull"], (1000,), r"0\.\.999"),
    (["push", "pull"], (), r"0\.\.999")])
def test_bad_questions_about_denoising_are_refused(video_model, prompts, levels, message):
    with pytest.raises(InputError, match=message):
        study.denoising_errors(video_model, np.zeros((2, 9, 64, 64, 3), np.uint8), prompts, levels)


# ---- generated beside real


def test_ssim_of_known_pictures():
    flat = np.full((2, 16, 16, 3), 100, np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, flat.shape, dtype=np.uint8)
    c1 = 2.55**2
    assert study.ssim(noisy, noisy) == pytest.approx(1)
    assert study.ssim(flat, flat // 2) == pytest.approx((2 * 100 * 50 + c1) / (100**2 + 50**2 + c1))
    assert study.ssim(noisy, 255 - noisy) < 0 < study.ssim(noisy, noisy // 2) < 1
    with pytest.raises(InputError, match="one shape"):
        study.ssim(flat, flat[:1])


def test_a_jump_is_a_change_that_no_real_video_shows():
    ramp = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 4, 3), 10, np.uint8)
    assert study.frame_changes(ramp).tolist() == [10] * 4
    leaping = ramp.copy()
    leaping[3:] += 5
    assert study.jumps(leaping, [ramp]).tolist() == [3] and not len(study.jumps(ramp, [ramp, leaping]))
    with pytest.raises(InputError, match="real videos"):
        study.jumps(ramp, [])


def _imagines(kind):
    """A video model whose latents are the pixels; it generates clips of one kind, one level brighter."""
    def generate_batch(first_frames, prompts, seeds, steps, guidance):
        clips = study.paired_clips("reach", ("expert", "random", "still"), len(seeds), 3, 16, 5, progress=False)
        assert np.array_equal(first_frames, [clip.frames[0] for clip in clips["expert"]])
        return np.stack([np.clip(clip.frames, 0, 254) + 1 for clip in clips[kind]]).astype(np.uint8)

    return SimpleNamespace(
        num_frames=3, image_size=16, generate_batch=generate_batch, decode=lambda latent: latent.astype(np.uint8),
        encode=lambda clip: clip.astype(np.float32),
        encode_batch=lambda clips: torch.from_numpy(clips.astype(np.float32)).permute(0, 4, 1, 2, 3))


def test_a_model_that_imagines_the_expert_beats_every_control_and_one_that_imagines_nothing_does_not():
    table = study.evaluate_generation(_imagines("expert"), "reach", 2, seed=5, progress=False)
    assert len(table) == 2 * 6 * 4 and np.isfinite(table.query("subject != 'restored'")["value"]).all()
    summary = study.generation_summary(table).set_index("metric")
    assert (summary["n"] == 2).all() and list(summary.index) == list(study.METRICS)
    assert summary.loc["psnr", "own"] == pytest.approx(20 * np.log10(255), abs=0.3)  # an error of one level everywhere
    assert summary.loc["ssim", "restored_to_own"] == pytest.approx(1)
    assert study.generation_verdict(summary.reset_index()).to_dict() == {"reach": True}
    for name in ("other", "random", "still"):
        assert (summary[f"beats_{name}"] == 1).all() and (summary["own"] > summary[name]).all()
    lazy = study.generation_summary(study.evaluate_generation(_imagines("still"), "reach", 2, 5, progress=False))
    assert (lazy.query("metric == 'psnr'")["beats_still"] == 0).all()
    assert study.generation_verdict(lazy).to_dict() == {"reach": False}
    with pytest.raises(InputError, match="unknown metric 'fid'"):
        study.generation_verdict(lazy, ("fid",))
    with pytest.raises(InputError, match="no other start"):
        study.evaluate_generation(_imagines("expert"), "reach", 1)


def test_the_table_of_generation_is_written_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    assert study.load_generation("smoke") is None
    written = study.measure_generation(_imagines("random"), "smoke", starts=2, seed=5, tasks=("reach",))
    read = study.load_generation("smoke")
    assert read.drop(columns="value").equals(written.drop(columns="value"))
    np.testing.assert_allclose(read["value"], written["value"], rtol=1e-5)
    made = files.read_json(tmp_path / "results" / "smoke" / "generation.json")
    assert (made["starts"], made["seed"], made["tasks"]) == (2, 5, ["reach"])
    (tmp_path / "results" / "smoke" / "generation.csv").write_text("task,value\nreach,1\n")
    with pytest.raises(InputError, match="columns task, value"):
        study.load_generation("smoke")


def test_restoration_tells_moving_pixels_from_the_rest():
    clip = np.zeros((3, 4, 4, 3), np.uint8)
    clip[1, 0, 0] = 100  # one pixel of one frame leaves the median
    model = SimpleNamespace(encode=lambda clip: clip, decode=lambda clip: clip + np.uint8(1))
    restored, table = study.restoration(model, np.stack([clip, np.zeros_like(clip)]))
    assert (restored[1] == 1).all() and restored.shape == (2, 3, 4, 4, 3)
    np.testing.assert_allclose(table["restored"], 20 * np.log10(255))
    assert table.loc[0, "restored_moving"] == pytest.approx(20 * np.log10(255))
    assert table.loc[0, "still_moving"] == pytest.approx(20 * np.log10(255 / 100))
    assert np.isinf(table.loc[1, "still"]) and np.isnan(table.loc[1, "still_moving"])


def test_the_experts_video_begins_where_the_goal_video_does():
    from genreward.pipeline import first_frame

    video = study.expert_of_start("reach", 7, 3, size=16)
    assert video.shape == (3, 16, 16, 3) and np.array_equal(video[0], first_frame("reach", 16, 7))
    assert not np.array_equal(video[0], first_frame("reach", 16, 8))


def test_a_film_shows_what_a_rollout_that_renders_everything_shows_at_its_steps():
    env = envs.make_env("reach", seed=1, size=32, episode_steps=21)
    shown = study.film(env, envs.expert_policy("reach"), 6, options={"goal": 2})
    whole = envs.rollout(env, envs.expert_policy("reach"), options={"goal": 2}).frames
    assert len(whole) == 22 and np.abs(shown[0].astype(int) - shown[-1]).max() > 50
    assert np.array_equal(shown, whole[[0, 4, 8, 13, 17, 21]])
    env.close()
