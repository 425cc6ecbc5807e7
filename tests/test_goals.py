"""Goals: Eq. 6, the scorer's training, goal folders, and real videos as goals."""

import genreward  # noqa: F401  isort: skip
import functools
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from genreward import demos, goals
from genreward.errors import InputError
from genreward.goals import FramePool, FrameScorer, Goal
from genreward.profiles import ClipConfig

SIZE = 32
TINY = ClipConfig(image_size=SIZE, vision_width=8, embed_dim=16, text_width=32, text_layers=1, context_length=12)
COLOURS = {"a red square": (220, 30, 30), "a green square": (30, 200, 30), "a blue square": (40, 40, 230),
           "no square": (90, 90, 90)}


def square(colour, rng):
    """A grey picture with a square of that colour somewhere."""
    frame = np.full((SIZE, SIZE, 3), 90, np.uint8)
    top, left = rng.integers(0, SIZE - 12, 2)
    frame[top:top + 12, left:left + 12] = colour
    return frame


def squares(per_colour, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(COLOURS)), per_colour)
    return np.stack([square(list(COLOURS.values())[label], rng) for label in labels]), labels


def pool_of_squares(per_colour=12, seed=0):
    frames, labels = squares(per_colour, seed)
    return FramePool(frames, labels, np.arange(len(labels)) % 2 == 0, list(COLOURS), [[0, 1, 2, 3]])


@functools.cache
def tiny():
    """One untrained scorer for the tests that only read it."""
    return FrameScorer.small(TINY, seed=0)


def noise(count=5, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- Eq. 6

def test_score_is_the_mean_cosine_over_paraphrases():
    frames, sentences = noise(), ["the puck is at the goal", "done"]
    images, texts = tiny().encode_image(frames), tiny().encode_text(sentences)
    assert images.shape == (5, 16) and texts.shape == (2, 16) and images.dtype == texts.dtype == np.float32
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    scores = tiny().score(frames, sentences)
    assert np.allclose(scores, (images @ texts.T).mean(axis=1), atol=1e-6) and np.all(np.abs(scores) <= 1)
    assert np.allclose(tiny().score(frames, sentences[0]), images @ texts[0], atol=1e-6)
    assert np.allclose(tiny().stage_scores(frames, sentences), images @ texts.T, atol=1e-6)


def test_batching_and_neighbours_do_not_change_an_embedding():
    frames = noise(7)
    assert np.allclose(tiny().encode_image(frames, batch=2), tiny().encode_image(frames, batch=64), atol=1e-5)


def test_other_sizes_are_resized_as_open_clip_does_it():
    frame = noise(1, 50)[0]
    scorer = tiny()
    transform = open_clip.image_transform(SIZE, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(scorer.pixels(frame[None])[0], transform(Image.fromarray(frame)))
    same = noise(1)[0]
    assert torch.allclose(scorer.pixels(same[None])[0], transform(Image.fromarray(same)), atol=1e-6)


def test_a_clip_played_backwards_scores_backwards():
    """It has a negative stride, which torch does not take."""
    frames = noise(4)
    assert np.array_equal(tiny().encode_image(frames[::-1]), tiny().encode_image(frames[::-1].copy()))


def test_selection():
    scores = np.array([0.1, 0.7, 0.7, 0.2])
    assert goals.select_frame(scores) == 1 and goals.select_frame(scores, "last") == 3
    drawn = [goals.select_frame(scores, "random", np.random.default_rng(seed)) for seed in range(40)]
    assert set(drawn) == {0, 1, 2, 3}
    assert goals.select_frame(scores, "random", np.random.default_rng(7)) == drawn[7]
    for bad, message in [(("best",), "unknown selection 'best'; valid: clip, last, random"), (("random",), "rng")]:
        with pytest.raises(InputError, match=message):
            goals.select_frame(scores, *bad)
    with pytest.raises(InputError, match="finite"):
        goals.select_frame(np.array([0.1, np.nan]))
    with pytest.raises(InputError, match="finite"):
        goals.select_frame(np.array([]))


@pytest.mark.parametrize("frames, prompts, message", [
    (np.zeros((0, SIZE, SIZE, 3), np.uint8), "x", "at least 1 frame"),
    (noise()[..., :1], "x", "RGB"), (noise() / 255.0, "x", "uint8"), (noise(), [], "sentences"),
    (noise(), ["x", " "], "sentences"), (noise(), [3], "sentences")])
def test_scoring_refuses(frames, prompts, message):
    with pytest.raises(InputError, match=message):
        tiny().score(frames, prompts)


# ------------------------------------------------------------------------------------------------- the scorer on disk

def test_saved_folder_loads_here_and_in_open_clip(tmp_path):
    tiny().save(tmp_path / "scorer", {"tasks": ["reach"]})
    again, frames = FrameScorer.load(tmp_path / "scorer"), noise()
    assert np.allclose(again.encode_image(frames), tiny().encode_image(frames), atol=2e-3)  # half precision on disk
    assert np.allclose(again.encode_text(["a b"]), tiny().encode_text(["a b"]), atol=2e-3)
    assert again.identity == tiny().identity
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'scorer'}")
    with torch.no_grad():
        theirs = model.eval().encode_image(preprocess(Image.fromarray(frames[0]))[None], normalize=True)[0].numpy()
    assert np.allclose(theirs, again.encode_image(frames)[0], atol=1e-5)
    again.save(tmp_path / "twice")
    assert FrameScorer.load(tmp_path / "twice").identity == again.identity


def test_same_seed_same_scorer():
    before = torch.random.get_rng_state()
    assert FrameScorer.small(TINY, 0).identity == tiny().identity != FrameScorer.small(TINY, 1).identity
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's numbers change


def test_damaged_folders_and_unknown_names(tmp_path):
    folder = tmp_path / "scorer"
    tiny().save(folder)
    weights = (folder / goals.WEIGHTS_FILE).read_bytes()
    (folder / goals.WEIGHTS_FILE).write_bytes(weights[:len(weights) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        FrameScorer.load(folder)
    (folder / goals.WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=f"has no {goals.WEIGHTS_FILE}"):
        FrameScorer.load(folder)
    FrameScorer.small(ClipConfig(**{**vars(TINY), "embed_dim": 8}), 0).save(tmp_path / "other")
    (folder / goals.WEIGHTS_FILE).write_bytes((tmp_path / "other" / goals.WEIGHTS_FILE).read_bytes())
    with pytest.raises(InputError, match="cannot be loaded"):
        FrameScorer.load(folder)
    with pytest.raises(InputError, match="no frame scorer 'ViT-B-3'; valid: a folder .* ViT-B-32"):
        FrameScorer.load("ViT-B-3")
    with pytest.raises(InputError, match="unknown weights tag of ViT-B-32: 'best'; valid: .*laion2b_s34b_b79k"):
        FrameScorer.load("ViT-B-32", "best")


def test_no_network_is_said_in_one_line(tmp_path, monkeypatch):
    before = goals.huggingface_hub.constants.HF_HUB_OFFLINE

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(goals.urllib.request, "getproxies", dict)
    monkeypatch.setattr(goals.socket, "create_connection", refuse)
    monkeypatch.setattr(goals.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(InputError, match="ViT-B-32/laion2b_s34b_b79k are not in the cache .* local folder") as problem:
        FrameScorer.load("ViT-B-32", "laion2b_s34b_b79k")
    assert "\n" not in str(problem.value)
    assert goals.huggingface_hub.constants.HF_HUB_OFFLINE is before


# --------------------------------------------------------------------------------------------------------- training

def test_contrastive_loss_in_closed_form():
    for count, scale in [(2, 1.0), (5, 3.0)]:
        pairs = torch.eye(count)
        expected = np.log(1 + (count - 1) * np.exp(-scale))
        assert goals.contrastive_loss(pairs, pairs, scale).item() == pytest.approx(expected, rel=1e-5)
        alike = torch.ones(count, 4) / 2
        assert goals.contrastive_loss(alike, alike, scale).item() == pytest.approx(np.log(count), rel=1e-5)
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert goals.contrastive_loss(a, b, 2.0).item() == pytest.approx(goals.contrastive_loss(b, a, 2.0).item())


def test_a_batch_holds_one_image_a_caption_and_whole_groups():
    labels = np.repeat(np.arange(6), 10)
    frames = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 4, 4, 3))
    pool = FramePool(frames, labels, np.arange(60) % 10 == 0, [f"caption {n}" for n in range(6)],
                     [[0, 1], [2, 3], [3, 4, 5]])
    rng, decoded = np.random.default_rng(0), []
    for _ in range(200):
        index, drawn = pool.draw(3, rng)
        assert len(set(drawn)) == len(drawn) >= 3 and np.array_equal(pool.labels[index], drawn)
        assert any(set(group) <= set(drawn) for group in pool.groups)
        decoded.append(pool.decoded[index].mean())
    assert np.mean(decoded) == pytest.approx(0.5, abs=0.05)  # half of the images, though a tenth of the pool


def test_training_tells_coloured_squares_apart():
    scorer = FrameScorer.small(TINY, seed=1)
    frames, labels = squares(12, seed=9)
    before = goals.stage_accuracy(scorer, frames, labels, list(COLOURS))
    rows = goals.train_scorer(scorer, pool_of_squares(), updates=60, learning_rate=3e-3, per_caption=3, progress=False)
    after = goals.stage_accuracy(scorer, frames, labels, list(COLOURS))
    assert before < 0.6 and after > 0.85, (before, after)
    assert rows[-1]["value"] < rows[0]["value"] and [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert set(rows[0]) == {"experiment", "method", "task", "seed", "step", "metric", "value"}


def test_killed_training_continues_to_the_same_weights(tmp_path, monkeypatch):
    def train(checkpoint):
        scorer = FrameScorer.small(TINY, seed=0)
        return goals.train_scorer(scorer, pool_of_squares(4), 6, checkpoint=checkpoint, checkpoint_every=2, seed=3,
                                  progress=False), scorer.identity

    straight = train(None)
    calls, step = [], torch.optim.AdamW.step

    def stop_at_the_fourth(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "state.pt")
    assert train(tmp_path / "state.pt") == straight
    assert train(tmp_path / "state.pt") == straight  # finished: nothing is trained twice
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_checkpoints_that_do_not_fit(tmp_path):
    state = tmp_path / "state.pt"
    pool = pool_of_squares(4)
    goals.train_scorer(FrameScorer.small(TINY, 0), pool, 1, checkpoint=state, progress=False)
    with pytest.raises(InputError, match="other data or settings"):
        goals.train_scorer(FrameScorer.small(TINY, 0), pool, 2, checkpoint=state, progress=False)
    with pytest.raises(InputError, match="other data or settings"):
        goals.train_scorer(FrameScorer.small(TINY, 0), pool_of_squares(5), 1, checkpoint=state, progress=False)
    whole = state.read_bytes()
    for length in (0, 5000, len(whole) - 10):
        state.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is damaged"):
            goals.train_scorer(FrameScorer.small(TINY, 0), pool, 1, checkpoint=state, progress=False)
    with pytest.raises(InputError, match="at least 1"):
        goals.train_scorer(tiny(), pool, 0)


def test_stage_accuracy_counts_hits():
    class Oracle:
        def stage_scores(self, frames, captions):
            return np.eye(3)[[0, 1, 1, 2]]

    assert goals.stage_accuracy(Oracle(), noise(4), [0, 1, 2, 2], ["a", "b", "c"]) == 0.75
    with pytest.raises(InputError, match="a stage in 0..2"):
        goals.stage_accuracy(Oracle(), noise(4), [0, 1, 2, 3], ["a", "b", "c"])
    with pytest.raises(InputError, match="3 stages for 4 frames"):
        goals.stage_accuracy(Oracle(), noise(4), [0, 1, 2], ["a", "b", "c"])


@pytest.fixture
def folder(tmp_path):
    """Two tasks of two clips and a test clip each, as `demos` writes them."""
    rows, rng = [], np.random.default_rng(0)
    for task, names in [("push", ["a red square", "a green square"]), ("pull", ["a green square", "a blue square"])]:
        for number, split in enumerate(["train", "train", "test"]):
            stages = [0, 0, 1, 1, 1]
            clip = np.stack([square(COLOURS[names[stage]], rng) for stage in stages])
            file = f"{task}-{number}.mp4"
            demos.write_video(tmp_path / "data" / file, clip)
            rows.append({"file_name": file, "text": task, "task": task, "split": split, "stages": stages,
                         "stage_captions": names})
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_pool_from_a_folder_of_videos(folder):
    pool = FramePool.from_folder(folder, SIZE, roundtrip=lambda clip: 255 - clip, num_frames=3, progress=False)
    assert pool.captions == ["a red square", "a green square", "a blue square"]  # shared captions are one
    assert pool.groups == [[0, 1], [1, 2]]
    assert len(pool.frames) == 4 * (5 + 3) and pool.decoded.sum() == 12
    assert pool.labels[:8].tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    assert np.array_equal(pool.frames[5:8], 255 - pool.frames[[0, 2, 4]])
    assert FramePool.from_folder(folder, SIZE, ["pull"], progress=False).captions == ["a green square", "a blue square"]
    with pytest.raises(InputError, match="unknown task .*'lift'; valid: pull, push"):
        FramePool.from_folder(folder, SIZE, ["lift"])
    with pytest.raises(InputError, match="no validation clips with stages"):
        FramePool.from_folder(folder, SIZE, split="validation")
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace("[0, 0, 1, 1, 1]", "[0, 0, 1]", 1))
    with pytest.raises(InputError, match="push-0.mp4: 3 stages for 5 frames"):
        FramePool.from_folder(folder, SIZE, progress=False)


def test_command_line_trains_saves_and_reports(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENREWARD_ROOT", str(tmp_path))
    out = tmp_path / "scorer"
    assert goals.main(["train-scorer", "--profile", "smoke", "--data", str(folder), "--video-model", "none", "--out",
                       str(out), "--updates", "2", "--tasks", "push"]) == 0
    made = json.loads((out / "provenance.json").read_text())
    assert made["tasks"] == ["push"] and made["updates"] == 2 and made["decoded_frames"] == 0
    assert set(made["stage_accuracy"]) == {"push", "all"} and "stage accuracy" in capsys.readouterr().out
    assert FrameScorer.load(out).image_size == 64
    with pytest.raises(InputError, match="from the hub"):
        goals.main(["train-scorer", "--profile", "paper", "--data", str(folder)])


# --------------------------------------------------------------------------------------------------------- the goal

class StubVideoModel:
    """Imagines the first frame growing brighter."""

    def generate(self, first_frame, prompt, seed, num_frames=9):
        steps = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
        return first_frame[None] // 2 + steps * np.uint8(seed + 1)


def goal(**changes):
    content = {"prompt": "push", "paraphrases": ("pushed", "done"), "video": noise(9), "index": 4,
               "scores": np.linspace(-0.1, 0.3, 9), "provenance": {"seed": 3}}
    return Goal(**content | changes)


def test_a_goal_whose_scores_say_nothing_is_refused():
    for scores in ([0.1] * 8 + [np.nan], [np.inf] + [0.1] * 8):
        with pytest.raises(InputError, match="the scores of a goal video's frames must be finite"):
            goal(scores=scores)


def test_generated_goal_takes_the_best_frame_and_says_how_it_was_made():
    made = goals.generate_goal(StubVideoModel(), tiny(), noise(1)[0], "push", ("pushed",), seed=2)
    assert made.source == "generated" and made.paraphrases == ("pushed",) and made.prompt == "push"
    assert made.index == int(np.argmax(made.scores)) and np.array_equal(made.frame, made.video[made.index])
    assert np.allclose(made.scores, tiny().score(made.video, ["pushed"]), atol=1e-6)
    assert made.provenance["seed"] == 2 and made.provenance["scorer"] == tiny().identity
    again = goals.generate_goal(StubVideoModel(), tiny(), noise(1)[0], "push", ("pushed",), seed=2)
    assert np.array_equal(again.video, made.video) and np.array_equal(again.scores, made.scores)
    assert goals.generate_goal(StubVideoModel(), tiny(), noise(1)[0], "push").paraphrases == ("push",)
    assert goals.generate_goal(StubVideoModel(), tiny(), noise(1)[0], "push", selection="last").index == 8
    control = goals.generate_goal(StubVideoModel(), tiny(), noise(1)[0], "push", selection="random", seed=5)
    assert control.index == np.random.default_rng(5).integers(9)
    with pytest.raises(InputError, match="unknown selection"):
        goals.generate_goal(None, tiny(), noise(1)[0], "push", selection="first")


def test_goal_folder_gives_back_the_goal(tmp_path):
    made = goal(source="demonstration", selection="random")
    made.save(tmp_path / "goal")
    again = Goal.load(tmp_path / "goal")
    assert np.array_equal(again.video, made.video) and again.video.dtype == np.uint8
    assert np.allclose(again.scores, made.scores, atol=1e-7)
    for name in ("prompt", "paraphrases", "index", "selection", "source", "provenance"):
        assert getattr(again, name) == getattr(made, name)
    film = demos.read_video(tmp_path / "goal" / "goal.mp4")
    assert film.shape == (9, 256, 256, 3)  # eight times 32: large enough to look at
    table = (tmp_path / "goal" / "scores.csv").read_text().splitlines()
    assert table[0] == "frame,score,selected" and len(table) == 10 and table[5].endswith(",1")
    first = {file.name: file.read_bytes() for file in (tmp_path / "goal").iterdir()}
    made.save(tmp_path / "goal")
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "goal").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["goal"]


@pytest.mark.parametrize("name", ["goal.json", "frames.npz", "goal.mp4", "scores.csv", "goal_frame.png"])
def test_goal_folder_with_a_file_missing(tmp_path, name):
    goal().save(tmp_path / "goal")
    (tmp_path / "goal" / name).unlink()
    with pytest.raises(InputError, match=f"goal has no {name}"):
        Goal.load(tmp_path / "goal")


def test_damaged_goal_folders(tmp_path):
    with pytest.raises(InputError, match=r"no such goal folder: .*nothing \(beside it: none\); .* --only goals"):
        Goal.load(tmp_path / "nothing")
    folder = tmp_path / "goal"
    goal().save(folder)
    with pytest.raises(InputError, match=r"no such goal folder: .*nothing \(beside it: goal\)"):
        Goal.load(tmp_path / "nothing")
    np.savez_compressed(folder / "frames.npz", video=noise(9, seed=1))
    with pytest.raises(InputError, match="is not the file that was saved"):
        Goal.load(folder)
    goal().save(folder)
    content = json.loads((folder / "goal.json").read_text())
    (folder / "goal.json").write_text(json.dumps(content | {"colour": "red"}))
    with pytest.raises(InputError, match="is not a goal's"):
        Goal.load(folder)
    (folder / "goal.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        Goal.load(folder)


def test_a_failed_save_leaves_the_earlier_goal(tmp_path, monkeypatch):
    goal(prompt="first").save(tmp_path / "goal")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demos, "write_video", full_disk)
    with pytest.raises(OSError):
        goal(prompt="second").save(tmp_path / "goal")
    assert Goal.load(tmp_path / "goal").prompt == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("changes, message", [
    ({"index": 9}, "index must be in 0..8"), ({"index": -1}, "index must be"), ({"scores": np.zeros(8)}, "as many"),
    ({"selection": "best"}, "unknown selection"), ({"source": "dream"}, "unknown goal source"),
    ({"video": noise(9) / 255.0}, "uint8")])
def test_goals_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        goal(**changes)


def test_a_real_video_becomes_a_goal_marked_as_a_demonstration(tmp_path):
    clip = np.stack([np.full((48, 64, 3), 8 * number, np.uint8) for number in range(17)])
    demos.write_video(tmp_path / "real.mp4", clip)
    made = goals.goal_from_video(tmp_path / "real.mp4", tiny(), "push", ("pushed",), num_frames=5, size=SIZE)
    assert made.source == "demonstration" and made.video.shape == (5, SIZE, SIZE, 3)
    assert made.video.mean(axis=(1, 2, 3)) == pytest.approx([0, 32, 64, 96, 128], abs=3)
    assert made.index == int(np.argmax(made.scores)) and made.provenance["file"] == "real.mp4"


def test_videos_that_cannot_be_goals(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in [("none.mp4", "no such video"), ("text.mp4", "cannot be read"),
                          ("empty.mp4", "cannot be read")]:
        with pytest.raises(InputError, match=message) as problem:
            goals.goal_from_video(tmp_path / name, tiny(), "push")
        assert "\n" not in str(problem.value)
    with pytest.raises(InputError, match="at least 1"):
        goals.goal_from_video(tmp_path / "text.mp4", tiny(), "push", num_frames=0)


def test_success_hit():
    stages = [0, 0, 1, 2, 4, 4, 4, 4, 4]
    assert goals.success_hit(goal(index=4), stages) and not goals.success_hit(goal(index=3), stages)
    with pytest.raises(InputError, match="as many stages"):
        goals.success_hit(goal(), [0])


def test_merged_pools_share_captions_and_keep_every_frame_with_its_own():
    def pool(captions, labels, shade):
        frames = np.full((len(labels), 64, 64, 3), shade, np.uint8)
        return goals.FramePool(frames, np.array(labels), np.zeros(len(labels), bool), captions, [[0, 1]])

    merged = goals.FramePool.merge([pool(["a", "b"], [0, 1, 1], 10), pool(["b", "c"], [0, 1], 200),
                                    pool(["b", "a"], [0, 1], 90)])
    assert merged.captions == ["a", "b", "c"]
    assert [merged.captions[label] for label in merged.labels] == ["a", "b", "b", "b", "c", "b", "a"]
    assert merged.frames[:, 0, 0, 0].tolist() == [10, 10, 10, 200, 200, 90, 90]
    assert merged.groups == [[0, 1], [1, 2]]
