"""Distractions: pictures change and nothing else does; the published numbers; the same picture in every process."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from genreward import demos, distractions, envs
from genreward.distractions import KINDS, SCALE, Distraction, distracted_frames
from genreward.errors import InputError

SIZE = 32
PRINT_PICTURES = """
import hashlib
from genreward import envs
from genreward.distractions import Distraction, distracted_frames
env = envs.make_env("walker-walk", size=32)
env.reset(options={"goal": 7})
seen = distracted_frames(env, [env.get_state()] * 3, Distraction("all", "medium", True, seed=5), episode=11, stride=4)
print(*(hashlib.md5(frame.tobytes()).hexdigest() for frame in seen))
"""


@pytest.fixture(scope="module")
def arm():
    made = envs.make_env("pick-place", size=SIZE)
    made.reset(options={"goal": 3})
    yield made
    made.close()


@pytest.fixture(scope="module")
def walker():
    made = envs.make_env("walker-walk", size=SIZE)
    made.reset(options={"goal": 7})
    yield made
    made.close()


@pytest.fixture
def env(request):
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("env", ["arm", "walker"], indirect=True)


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int)).mean()


def looks_of(env):
    """Everything in the model that a picture is made from."""
    model = env._model
    return {name: getattr(model, name).copy() for name in ("cam_pos", "cam_quat", "cam_fovy", "geom_rgba", "mat_rgba",
                                                           "tex_data", "light_pos", "geom_pos", "geom_size")}


@pytest.mark.parametrize("task", ["reach", "walker-walk"])
def test_physics_observations_and_rewards_are_those_without(task):
    seen = []
    for distraction in (None, Distraction("all", "hard", dynamic=True, seed=3)):
        env = envs.make_env(task, seed=4, size=16, episode_steps=6, distraction=distraction)
        actions, told = np.random.default_rng(0), []
        for _ in range(2):
            told.append(env.reset()[0].tolist())
            for _ in range(6):
                observation, reward, *_, info = env.step(actions.uniform(-1, 1, env.action_space.shape))
                told.append([*observation.tolist(), reward, info["success"], info["dense_reward"]])
                env.render()
        seen.append(told)
        env.close()
    assert seen[0] == seen[1]


@both
def test_it_is_seen_and_gone_without_trace(env):
    plain, before = env.render(), looks_of(env)
    for kind in KINDS:
        env.set_distraction(Distraction(kind, "hard", seed=1))
        assert difference(env.render(), plain) > 3, kind
    env.set_distraction(None)
    assert np.array_equal(env.render(), plain)
    after = looks_of(env)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_same_seed_episode_and_step_give_the_same_picture_in_every_process(walker):
    state = walker.get_state()
    chosen = Distraction("all", "medium", True, seed=5)
    here = distracted_frames(walker, [state] * 3, chosen, episode=11, stride=4)
    there = subprocess.run([sys.executable, "-W", "ignore", "-c", PRINT_PICTURES], capture_output=True, text=True)
    assert there.stdout.split() == [hashlib.md5(frame.tobytes()).hexdigest() for frame in here], there.stderr
    # and in any order: step 8 first, then step 4
    walker.set_distraction(chosen)
    for number in (2, 1):
        walker.distractor.seek(11, 4 * number)
        assert np.array_equal(walker.render(), here[number])
    walker.set_distraction(None)


@both
@pytest.mark.parametrize("kind", KINDS)
def test_static_holds_through_an_episode_and_dynamic_moves(env, kind):
    still = [env.get_state()] * 3
    held = distracted_frames(env, still, Distraction(kind, "hard"), episode=1, stride=10)
    assert np.array_equal(held[0], held[1]) and np.array_equal(held[0], held[2])
    moved = distracted_frames(env, still, Distraction(kind, "hard", dynamic=True), episode=1, stride=10)
    assert np.array_equal(moved[0], held[0])  # it starts where the static one stays
    assert difference(moved[1], moved[0]) > 0.1 and difference(moved[2], moved[1]) > 0.1
    for other in ({"episode": 2}, {"episode": 1, "seed": 1}):
        another = Distraction(kind, "hard", seed=other.pop("seed", 0))
        assert difference(distracted_frames(env, still[:1], another, **other)[0], held[0]) > 0.5


@both
@pytest.mark.parametrize("kind", ["camera", "colour"])
def test_harder_is_further_off(env, kind):
    state, plain = [env.get_state()], env.render()
    off = [np.mean([difference(distracted_frames(env, state, Distraction(kind, level), episode)[0], plain)
                    for episode in range(8)]) for level in ("easy", "medium", "hard")]
    assert 0 < off[0] < off[1] < off[2]


@pytest.mark.parametrize("level", SCALE)
def test_colours_stay_within_the_scale_and_step_by_three_hundredths_of_it(level):
    scale, own = SCALE[level], np.full((400, 3), 0.5)
    walk = distractions._Colours(np.random.default_rng(0), True, own, scale)
    path = np.array([walk.at(step) for step in range(60)])
    assert np.abs(path - own).max() <= scale + 1e-12
    assert np.abs(path[0] - own).mean() == pytest.approx(scale / 2, rel=0.1)  # uniform at first
    free = np.abs(path[:-1] - own).max(-1) < 0.8 * scale
    assert np.diff(path, axis=0)[free].std() == pytest.approx(0.03 * scale, rel=0.05)
    edge = distractions._Colours(np.random.default_rng(0), False, np.array([[0.0, 1.0, 0.95]]), scale).at(0)
    assert (edge >= 0).all() and (edge <= 1).all()


@pytest.mark.parametrize("level", SCALE)
def test_the_camera_keeps_its_range_and_its_speed(level):
    scale = SCALE[level]
    walks = [distractions._Camera(np.random.default_rng(seed), True, scale) for seed in range(200)]
    start = np.array([walk.at(0) for walk in walks])
    turn = np.pi / 2 * scale
    assert np.abs(start[:, [0, 1, 3]]).max() == pytest.approx(turn, rel=0.05)
    assert start[:, 2].min() == pytest.approx(1 - 0.5 * scale, abs=0.02 * scale * 2)
    assert start[:, 2].max() == pytest.approx(1 + 1.5 * scale, abs=0.02 * scale * 2)
    for walk in walks[:20]:
        path = np.array([walk.at(step) for step in range(120)])
        assert np.abs(path[:, [0, 1, 3]]).max() <= turn + 1e-12
        assert path[:, 2].min() >= 1 - 0.5 * scale - 1e-12 and path[:, 2].max() <= 1 + 1.5 * scale + 1e-12
        speed = np.diff(path, axis=0)
        assert np.linalg.norm(speed[:, :3], axis=1).max() <= 0.4 * scale / 4 + 1e-12
        assert np.abs(speed[:, 3]).max() <= np.pi / 50 * scale + 1e-12
        assert np.linalg.norm(speed[:, :3], axis=1).max() > 0.2 * scale / 4


@pytest.mark.parametrize("task", ["pick-place", "walker-walk", "reacher-easy"])
def test_the_camera_turns_about_what_it_looks_at_and_stays_above_the_floor(task):
    env = envs.make_env(task, size=16)
    env.reset(options={"goal": 0})
    env.render()
    scene, camera = env._renderer._renderer.scene, getattr(env, "camera", envs.CAMERA)
    env._renderer._renderer.update_scene(env.data, camera=camera)
    own = (scene.camera[0].pos + scene.camera[1].pos) / 2
    ahead = scene.camera[0].forward.astype(float)
    scale = SCALE["hard"]
    env.set_distraction(Distraction("camera", "hard"))
    target = env.distractor._looks_at(env.data)
    focus = own + float((target - own) @ ahead) * ahead  # on the optical axis, at the distance of what matters
    radius = np.linalg.norm(focus - own)
    turned = []
    for episode in range(40):
        env.distractor.seek(episode, 0)
        env._renderer._renderer.update_scene(env.data, camera=camera)
        env.distractor.change(scene, env.data)
        eye = scene.camera[0]
        place, forward, up = (np.array(part, float) for part in (eye.pos, eye.forward, eye.up))
        away = np.linalg.norm(focus - place)
        assert 1 - 0.5 * scale - 1e-4 <= away / radius <= 1 + 1.5 * scale + 1e-4
        assert np.allclose(place + away * forward, focus, atol=1e-4)
        assert abs(forward @ up) < 1e-5 and np.linalg.norm(up) == pytest.approx(1, abs=1e-5)
        assert place[2] > env.distractor._floor
        turned.append(np.arccos(np.clip(forward @ ahead, -1, 1)))
    assert 0.3 < max(turned) <= np.sqrt(2) * np.pi / 2 * scale + 1e-3
    env.close()


@both
def test_a_background_shows_where_nothing_is_drawn_and_nowhere_else(env, monkeypatch):
    plain, caught = env.render(), []
    compose = distractions.Distractor.compose
    monkeypatch.setattr(distractions.Distractor, "compose",
                        lambda self, picture, empty: caught.append(empty) or compose(self, picture, empty))
    env.set_distraction(Distraction("background", "easy", seed=2))
    picture = env.render()
    behind = env.distractor._background.at(0)
    env.set_distraction(None)
    empty = caught[0]
    assert 0.5 < empty.mean() < 0.99
    assert np.abs(picture[empty == 1] - behind[empty == 1]).max() <= 1
    assert (empty == 0).sum() > 5 and np.array_equal(picture[empty == 0], plain[empty == 0])


def test_a_table_gives_way_unless_its_hole_is_the_task(arm):
    env = envs.make_env("pick-out-of-hole", size=SIZE)
    env.reset(options={"goal": 3})
    for made, least, most in ((arm, 0.6, 0.95), (env, 0.03, 0.3)):
        plain = made.render()
        picture = distracted_frames(made, [made.get_state()], Distraction("background"))[0]
        assert least < (np.abs(picture.astype(int) - plain).sum(-1) > 0).mean() < most
    env.close()


@pytest.mark.parametrize(("level", "least", "most"), [("easy", 4, 4), ("medium", 8, 8), ("hard", 50, 60)])
def test_an_episode_draws_its_background_from_four_eight_or_sixty(level, least, most):
    drawn = {distractions._Background(np.random.default_rng(seed), Distraction("background", level), 8)._index
             for seed in range(300)}
    assert least <= len(drawn) <= most and max(drawn) < most


@pytest.fixture
def videos(tmp_path):
    """Four videos of 5 frames: all pixels of video v, frame f are 40 v + 8 f."""
    for number in range(4):
        frames = np.stack([np.full((24, 32, 3), 40 * number + 8 * frame, np.uint8) for frame in range(5)])
        demos.write_video(tmp_path / f"{number}.mp4", frames)
    return tmp_path


def test_videos_of_a_folder_play_to_and_fro(walker, videos):
    chosen = Distraction("background", "easy", dynamic=True, videos=str(videos))
    seen = set()
    for episode in range(12):
        corner = distracted_frames(walker, [walker.get_state()] * 12, chosen, episode)[:, 0, 0, 0].astype(float)
        video = int(round((corner.mean() - 16) / 40))
        frames = np.round((corner - 40 * video) / 8).astype(int)
        assert np.abs(corner - 40 * video - 8 * frames).max() <= 3  # the codec's loss
        assert set(frames) == set(range(5)) and set(np.abs(np.diff(frames))) == {1}
        seen.add(video)
    assert len(seen) > 2
    held = Distraction("background", "easy", videos=str(videos))
    assert np.ptp(distracted_frames(walker, [walker.get_state()] * 3, held)[:, 0, 0]) == 0


def test_a_state_brings_its_picture_back(walker):
    env = envs.make_env("reach", seed=2, size=16, distraction=Distraction("all", "hard", dynamic=True))
    env.reset()
    for _ in range(4):
        env.step(np.ones(4))
    state, picture = env.get_state(), env.render()
    for _ in range(3):
        env.step(-np.ones(4))
    assert not np.array_equal(env.render(), picture)
    env.set_state(state)
    assert np.array_equal(env.render(), picture)
    # the next episode, here and in another environment that goes on from the saved generator
    saved = env.rng_state()
    env.reset()
    other = envs.make_env("reach", seed=9, size=16, distraction=Distraction("all", "hard", dynamic=True))
    other.set_rng_state(saved)
    other.reset()
    assert np.array_equal(other.render(), env.render())
    first = env.render()
    env.reset()
    assert env.distractor.state()[0] != other.distractor.state()[0] and not np.array_equal(env.render(), first)
    env.close()
    other.close()


def test_frames_of_recorded_states_leave_the_environment_as_it_was():
    env = envs.make_env("reach", seed=1, size=16, distraction=Distraction("colour", "easy"))
    env.reset(options={"goal": 5})
    states = [env.get_state()]
    for _ in range(3):
        env.step(np.ones(4))
        states.append(env.get_state())
    picture = env.render()
    seen = distracted_frames(env, states, Distraction("background"))
    assert seen.shape == (4, 16, 16, 3) and seen.dtype == np.uint8
    assert env.distraction == Distraction("colour", "easy") and np.array_equal(env.render(), picture)
    plain = distracted_frames(env, states, None)
    env.set_distraction(None)
    assert np.array_equal(plain, demos.render_states(env, states))
    for wrong in ({"snapshots": []}, {"snapshots": states, "stride": 0}, {"snapshots": states, "episode": -1}):
        with pytest.raises(InputError):
            distracted_frames(env, distraction=None, **wrong)
    env.close()


def test_names():
    assert Distraction("all") == Distraction(("colour", "camera", "background"))
    assert Distraction(("colour", "camera"), "hard", True).name == "camera+colour-hard-dynamic"
    assert len({Distraction("colour"), Distraction("colour"), Distraction("colour", seed=1)}) == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ({"kinds": "noise"}, "unknown distraction 'noise'; valid: all, background, camera, colour"),
    ({"kinds": ()}, "at least one kind"),
    ({"difficulty": "extreme"}, "unknown difficulty 'extreme'; valid: easy, hard, medium"),
    ({"seed": -1}, "seed must be a whole number, not negative, got -1"),
    ({"seed": 0.5}, "seed must be a whole number"),
    ({"videos": "no/such/folder"}, "no such folder of background videos: no/such/folder"),
])
def test_a_wrong_distraction_is_refused_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        Distraction(**arguments)


def test_too_few_videos_are_refused(videos):
    with pytest.raises(InputError, match="has 4 videos .* draws from 8"):
        Distraction("background", "medium", videos=str(videos))
    Distraction("colour", "medium", videos=str(videos))  # no background, no videos needed
