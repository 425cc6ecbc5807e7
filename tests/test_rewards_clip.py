"""RoboCLIP, VLM-RMs and LIV: closed forms, what is paid when, training, and what is kept on disk."""

import genreward  # noqa: F401  isort: skip
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genreward import demos, files, profiles, rewards
from genreward.errors import InputError
from genreward.goals import Goal
from genreward.profiles import ClipConfig
from genreward.rewards import liv, roboclip
from genreward.rewards._video_text import S3D, S3DEncoder, VideoTextEncoder, XClipConfig, XClipEncoder
from genreward.rewards.liv import LIVConfig, LIVModel, VideoPool, vip_loss
from genreward.rewards.roboclip import ClipPool
from genreward.rewards.vlm_rm import BASELINE, goal_baseline_reward
from genreward.trajectory import Trajectory, uniform_indices

SIZE, STEPS = 32, 12
TINY = XClipConfig(image_size=SIZE, num_frames=4, width=16, layers=1, heads=2, embed_dim=16, text_width=16,
                   text_layers=1, text_heads=2, text_length=48)
SCORER = ClipConfig(image_size=SIZE, vision_width=8, embed_dim=16, text_width=32, text_layers=1, context_length=12)


@functools.cache
def encoder():
    return XClipEncoder.small(TINY, seed=0)


@functools.cache
def scorer():
    """A small CLIP whose weights are shaken, since an untrained one gives all pictures of noise the same embedding."""
    from genreward.goals import FrameScorer

    made, generator = FrameScorer.small(SCORER, seed=0), torch.Generator().manual_seed(0)
    for weight in made.model.visual.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return made


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def goal(**changes):
    video = noise(4, SIZE, SIZE, seed=9)
    return Goal(**{"prompt": "push the puck", "paraphrases": ("the puck is there", "done"), "video": video,
                   "scores": np.zeros(4), "index": 2, **changes})


@functools.cache
def trajectory(steps=STEPS, seed=1, size=SIZE):
    rng = np.random.default_rng(seed)
    return Trajectory("push", rng.normal(size=(steps + 1, 3)).astype(np.float32),
                      rng.uniform(-1, 1, (steps, 2)).astype(np.float32), np.zeros(steps, np.float32),
                      np.zeros(steps, bool), noise(steps + 1, size, size, seed=seed))


class Replay:
    """An environment that plays a trajectory's frames back."""

    def __init__(self, episode, stop=None, planned=None):
        self.episode, self.stop = episode, stop
        self.episode_steps, self.renders, self.t = planned or len(episode), [], 0
        self.spec = self.unwrapped = None

    def reset(self, **_):
        self.t = 0
        return self.episode.states[0], {}

    def step(self, action):
        self.t += 1
        return self.episode.states[self.t], 0.0, self.t == self.stop, self.t == self.episode_steps, {}

    def render(self):
        self.renders.append(self.t)
        return self.episode.frames[self.t]


def online(model, episode, **how):
    """What GoalRewardEnv pays along the episode, and at which steps it rendered."""
    import gymnasium

    env = Replay(episode, **how)
    inner = type("Env", (gymnasium.Env,), {"reset": lambda self, **k: env.reset(), "render": lambda self: env.render(),
                                           "step": lambda self, a: env.step(a)})()
    wrapped = rewards.GoalRewardEnv(inner, model, "none", episode_steps=env.episode_steps)
    wrapped.reset()
    paid, ended = [], False
    while not ended:
        _, reward, terminated, truncated, _ = wrapped.step(np.zeros(2))
        paid.append(reward)
        ended = terminated or truncated
    return np.array(paid), env.renders


class MeanColour(VideoTextEncoder):
    """An embedding that can be worked out by hand: the clip's mean colour; a sentence's number of letters, thrice."""

    num_frames, identity = 4, "mean colour"

    def embed_video(self, clips):
        return self.sample(clips).mean(axis=(1, 2, 3)).astype(np.float32)

    def embed_text(self, sentences):
        return np.array([[len(text)] * 3 for text in ([sentences] if isinstance(sentences, str) else sentences)],
                        np.float32)


def models():
    """One of each, on small real networks."""
    parts = {"video_text": encoder(), "scorer": scorer(), "liv": LIVModel(scorer()), "goal": goal(),
             "demonstration": noise(9, SIZE, SIZE, seed=4)}
    made = {name: rewards.make_reward(name, parts) for name in ("roboclip", "roboclip_text", "vlm_rm", "liv")}
    return made | {"roboclip_every": rewards.make_reward("roboclip", parts, every=5, similarity="cosine"),
                   "liv_image": rewards.make_reward("liv", parts, target="image", interval=3),
                   "vlm_rm_interval": rewards.make_reward("vlm_rm", parts, interval=5, alpha=0.9)}


# -------------------------------------------------------------------------------------------------------- all of them

@pytest.mark.parametrize("name", models())
def test_what_is_studied_is_what_is_paid(name):
    model = models()[name]
    offline = model.score(trajectory())
    paid, rendered = online(models()[name], trajectory())
    assert paid == pytest.approx(offline, abs=2e-5) and np.any(offline) and offline.dtype == np.float32
    assert rendered == [t for t in range(STEPS + 1) if model.needs_frame(t, STEPS)]
    again = models()[name].score(trajectory())
    assert np.array_equal(offline, again)


@pytest.mark.parametrize("name", models())
def test_the_future_is_not_looked_at(name):
    model, other = models()[name], noise(STEPS + 1, SIZE, SIZE, seed=77)
    other[:7] = trajectory().frames[:7]
    episode = trajectory()
    changed = Trajectory("push", episode.states, episode.actions, episode.rewards, episode.success, other)
    a, b = model.score(episode), model.score(changed)
    assert a[:6] == pytest.approx(b[:6], abs=1e-6) and not np.allclose(a[6:], b[6:])


def test_table_1_and_what_is_refused():
    table = rewards.table1()
    columns = ["demo-free", "generated", "action-aware"]
    assert table.loc[["roboclip", "vlm_rm", "liv"], columns].values.tolist() == [[False] * 3, [True, False, False],
                                                                                 [True, False, False]]
    assert all(len(table.loc[name, "deviations"]) > 40 for name in ("roboclip", "roboclip_text", "vlm_rm", "liv"))
    for model in models().values():
        with pytest.raises(InputError, match=f"must be {SIZE}x{SIZE} pixels, got 16x16"):
            model.score(trajectory(size=16))
        blind = Trajectory("push", *(getattr(trajectory(), key) for key in ("states", "actions", "rewards", "success")))
        with pytest.raises(InputError, match="looks at frames"):
            model.score(blind)
    parts = {"video_text": encoder(), "scorer": scorer(), "liv": LIVModel(scorer()), "goal": goal(),
             "demonstration": noise(9, SIZE, SIZE)}
    for name, setting, message in [
            ("roboclip", {"similarity": "l2"}, "unknown similarity 'l2'; valid: cosine, dot"),
            ("roboclip", {"every": 0}, "every must be at least 1"),
            ("roboclip", {"demonstration": noise(1, SIZE, SIZE)}, "at least 2 frames"),
            ("roboclip", {"demonstration": np.zeros((5, SIZE, SIZE, 3))}, "uint8"),
            ("roboclip_text", {"prompt": " "}, "sentences"), ("vlm_rm", {"alpha": 1.5}, r"alpha must lie in \[0, 1\]"),
            ("vlm_rm", {"interval": 0}, "interval"), ("vlm_rm", {"baseline": "done", "prompt": "done"}, "are the same"),
            ("liv", {"target": "video"}, "unknown target 'video'; valid: image, text"),
            ("liv", {"target": "image", "prompt": "done"}, "no prompt")]:
        with pytest.raises(InputError, match=message):
            rewards.make_reward(name, parts, **setting)
    with pytest.raises(InputError, match="cannot be made without demonstration"):
        rewards.make_reward("roboclip", parts | {"demonstration": None})


# ----------------------------------------------------------------------------------------------------------- RoboCLIP

def test_roboclip_pays_the_dot_product_once_at_the_end():
    episode, demonstration = trajectory(), noise(9, SIZE, SIZE, seed=4)
    model = rewards.make_reward("roboclip", {"video_text": MeanColour(), "demonstration": demonstration})
    seen = episode.frames[uniform_indices(STEPS + 1, 4)].mean(axis=(0, 1, 2))
    target = demonstration[uniform_indices(9, 4)].mean(axis=(0, 1, 2))
    paid = model.score(episode)
    assert np.flatnonzero(paid).tolist() == [STEPS - 1] and paid[-1] == pytest.approx(seen @ target, rel=1e-5)
    cosine = rewards.make_reward("roboclip", {"video_text": MeanColour(), "demonstration": demonstration},
                                 similarity="cosine", every=4).score(episode)
    assert np.flatnonzero(cosine).tolist() == [3, 7, 11]
    assert cosine[-1] == pytest.approx(seen @ target / np.linalg.norm(seen) / np.linalg.norm(target), rel=1e-5)
    prefix = episode.frames[uniform_indices(5, 4)].mean(axis=(0, 1, 2))
    assert cosine[3] == pytest.approx(prefix @ target / np.linalg.norm(prefix) / np.linalg.norm(target), rel=1e-5)


def test_an_episode_equal_to_the_demonstration_has_cosine_one():
    model = rewards.make_reward("roboclip", {"video_text": encoder(), "demonstration": trajectory().frames},
                                similarity="cosine")
    assert model.score(trajectory())[-1] == pytest.approx(1, abs=1e-5)
    assert model.score(trajectory(seed=2))[-1] < 1 - 1e-4


def test_roboclip_text_compares_with_the_prompt():
    parts = {"video_text": MeanColour(), "goal": goal()}
    seen = trajectory().frames[uniform_indices(STEPS + 1, 4)].mean(axis=(0, 1, 2))
    assert rewards.make_reward("roboclip_text", parts).score(trajectory())[-1] == pytest.approx(
        len("push the puck") * seen.sum(), rel=1e-5)
    assert rewards.make_reward("roboclip_text", parts, prompt="ab").score(trajectory())[-1] == pytest.approx(
        2 * seen.sum(), rel=1e-5)


def test_an_episode_cut_short_is_compared_by_the_nearest_rendered_frames():
    model = rewards.make_reward("roboclip", {"video_text": MeanColour(), "demonstration": noise(4, SIZE, SIZE)})
    paid, rendered = online(model, trajectory(), stop=6, planned=STEPS)
    assert rendered == [0, 4] and len(paid) == 6  # steps 0, 4, 8, 12 were planned
    seen = trajectory().frames[[0, 0, 4, 4]].mean(axis=(0, 1, 2))  # nearest to 0, 2, 4, 6
    assert paid[-1] == pytest.approx(seen @ model.target, rel=1e-5)


def test_a_pair_is_compared_as_x_clip_itself_does_it():
    """`embed_pair` against the class's own forward pass: the cosines are its logits over their scale."""
    clips, sentences = noise(3, 4, SIZE, SIZE), ["push the puck", "open the door"]
    with torch.no_grad():
        found = encoder().model(pixel_values=encoder().pixels(clips), **encoder().tokens(sentences))
        cosines = found.logits_per_video / encoder().model.logit_scale.exp()
    for number, sentence in enumerate(sentences):
        videos, texts = encoder().embed_pair(clips, sentence)
        assert roboclip.similarity(videos, texts, "cosine") == pytest.approx(cosines[:, number].numpy(), abs=1e-5)
        assert not np.allclose(texts[0], texts[1])  # the sentence is another one for another video
    assert np.allclose(encoder().embed_video(clips), videos, atol=1e-5)


def test_x_clip_folder_keeps_weights_tokens_and_pixels(renamed, tmp_path):
    encoder().save(tmp_path / "x", {"note": 1})
    again, clips = roboclip.load(tmp_path / "x", scorer=None), noise(2, 7, SIZE, SIZE)
    assert np.allclose(again.embed_video(clips), encoder().embed_video(clips), atol=2e-2)
    assert again.identity == encoder().identity and again.num_frames == 4
    long = "a sentence that is much longer than the small model can read, and goes on"
    for sentence in ("push the puck", long):
        ids = again.tokens([sentence])["input_ids"][0]
        assert torch.equal(ids, encoder().tokens([sentence])["input_ids"][0]) and (ids == 1).sum() == 1
    other = noise(1, 4, 40, 48)
    assert torch.allclose(again.pixels(other), encoder().pixels(other)) and again.pixels(other).shape[-2:] == (32, 32)
    same = again.processor(list(clips[0, :4]), return_tensors="pt")["pixel_values"]
    assert torch.allclose(again.pixels(clips[:1, :4]), same, atol=1e-6)
    name = renamed(tmp_path / "x" / "model.safetensors", "vision_model.encoder")
    with pytest.raises(InputError, match=f"x lacks 1 weights of its config, {name} first"):
        roboclip.load(tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").write_bytes(b"cut")
    for place in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(InputError, match="cannot load X-CLIP"):
            roboclip.load(place)


@pytest.mark.parametrize("shape", [(4, SIZE, SIZE, 3), (0, 4, SIZE, SIZE, 3), (1, 0, SIZE, SIZE, 3),
                                   (1, 4, SIZE, SIZE, 1)])
def test_clips_of_the_wrong_shape(shape):
    with pytest.raises(InputError):
        encoder().embed_video(np.zeros(shape, np.uint8))


def test_s3d_from_local_files(tmp_path):
    class Means(torch.nn.Module):
        def forward(self, video):
            return video.mean(dim=(2, 3, 4))

    clips = noise(2, 9, 40, 40)
    torch.jit.script(Means()).save(tmp_path / "s3d.pt")
    scripted = S3DEncoder.load(tmp_path / "s3d.pt", num_frames=4, image_size=32)
    assert np.allclose(scripted.embed_video(clips), clips[:, [0, 3, 5, 8]].mean(axis=(1, 2, 3)) / 255, atol=0.01)
    with pytest.raises(InputError, match="videos only"):
        scripted.embed_text("push")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = S3D(dim=8, words=4, word_width=6, hidden=10).eval()
    torch.save(network.state_dict(), tmp_path / "s3d_howto100m.pth")
    np.save(tmp_path / "words.npy", np.array(["push", "the", "puck"]))
    published = roboclip.load(tmp_path / "s3d_howto100m.pth", words=tmp_path / "words.npy")
    assert published.num_frames == 32 and published.image_size == 224
    published.num_frames, published.image_size = 8, 32
    assert published.embed_video(clips).shape == (2, 8)
    expected = network.text_module(torch.tensor([[1, 2, 3] + [0] * 13])).detach().numpy()
    assert np.allclose(published.embed_text("Push the big puck!"), expected)
    with pytest.raises(InputError, match="no word"):
        published.embed_text("open")
    (tmp_path / "bad.pth").write_bytes(b"no network")
    for name, message in [("bad.pth", "neither a TorchScript module nor"), ("none.pth", "no such S3D file")]:
        with pytest.raises(InputError, match=message):
            S3DEncoder.load(tmp_path / name)
    with pytest.raises(InputError, match="not a list of words"):
        S3DEncoder.load(tmp_path / "s3d.pt", words=tmp_path / "bad.pth")


# ------------------------------------------------------------------------------------------------------------ VLM-RMs

def test_goal_baseline_reward_in_two_dimensions():
    g, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    assert goal_baseline_reward(x, g, b, 0.0) == pytest.approx(x @ g)  # alpha 0: the cosine
    # alpha 1: x - g projected on (1, -1)/sqrt(2); for (0.6, 0.8): (-0.4, 0.8) -> length 1.2/sqrt(2)
    assert goal_baseline_reward(x, g, b, 1.0) == pytest.approx([1, 0, 1 - 1.44 / 4, 0])
    # half of each: for (0, 1), which is b, projection and identity agree
    assert goal_baseline_reward(x, g, b, 0.5)[:2] == pytest.approx([1, 0])
    mixed = 0.5 * np.array([-0.6, 0.6]) + 0.5 * np.array([-0.4, 0.8])
    assert goal_baseline_reward(x, g, b, 0.5)[2] == pytest.approx(1 - 0.5 * mixed @ mixed)


def test_goal_baseline_reward_in_three_dimensions():
    rng = np.random.default_rng(0)
    g, b, x = (v / np.linalg.norm(v) for v in rng.normal(size=(3, 3)))
    across = np.cross(g - b, rng.normal(size=3))  # orthogonal to the line
    values = [goal_baseline_reward(np.stack([x, x + across]), g, b, alpha) for alpha in (0.0, 0.5, 1.0)]
    assert values[2][0] == pytest.approx(values[2][1]) and values[0][0] != pytest.approx(values[0][1])
    for alpha in (0.0, 0.3, 1.0):
        assert goal_baseline_reward(g[None], g, b, alpha) == pytest.approx([1])
        assert np.all(goal_baseline_reward(rng.normal(size=(50, 3)), g, b, alpha) <= 1)
    assert goal_baseline_reward(b[None], g, b, 1.0) == pytest.approx(g @ b)  # all of b - g is along the line
    with pytest.raises(InputError, match="the same"):
        goal_baseline_reward(x[None], g, g, 0.5)
    assert goal_baseline_reward(x[None], g, g, 0.0) == pytest.approx([x @ g])


def test_vlm_rm_at_alpha_0_is_the_scorers_cosine():
    model = rewards.make_reward("vlm_rm", {"goal": goal(), "scorer": scorer()}, alpha=0.0, prompt="the puck is there")
    expected = scorer().score(trajectory().frames[1:], "the puck is there")
    assert model.score(trajectory()) == pytest.approx(expected, abs=1e-5)
    both = rewards.make_reward("vlm_rm", {"goal": goal(), "scorer": scorer()}, alpha=0.0).score(trajectory())
    mean = scorer().score(trajectory().frames[1:], ["the puck is there", "done"])
    assert np.corrcoef(both, mean)[0, 1] == pytest.approx(1, abs=1e-4)  # the mean cosine, up to a factor


def test_the_baseline_is_the_tasks_first_stage():
    parts = {"scorer": scorer()}
    assert rewards.make_reward("vlm_rm", parts | {"goal": goal()}).baseline == BASELINE
    known = goal(provenance={"task": "push"})
    assert rewards.make_reward("vlm_rm", parts | {"goal": known}).baseline == (
        "the gripper is away from the puck on the table")
    assert rewards.make_reward("vlm_rm", parts | {"goal": known}, baseline="a table").baseline == "a table"


# ---------------------------------------------------------------------------------------------------------------- LIV

def test_vip_loss_in_closed_form():
    same = torch.full((5,), 0.3)
    assert vip_loss(same, same, same).item() == pytest.approx(1, abs=1e-5)  # -c + c + 1
    # The values of a video that reaches its goal in n steps, V = -(1 - gamma^n) / (1 - gamma), gain just the reward.
    gamma, left = 0.9, torch.arange(6.0, 0, -1)
    value = -(1 - gamma**left)
    later = -(1 - gamma ** (left - 1))
    assert vip_loss(value[:1].expand(6), value, later, gamma).item() == pytest.approx(1 - gamma**6, abs=1e-5)
    # by hand, gamma 1/2 (scale 2): two pairs with gains 2*0.5+1-0.5*2*0 = 2 and 2*0+1-0.5*2*1 = 0
    by_hand = -(0.2 + 0.4) / 2 + np.log((np.exp(2) + 1) / 2)
    found = vip_loss(torch.tensor([0.2, 0.4]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert found.item() == pytest.approx(by_hand, abs=1e-5)
    with pytest.raises(InputError, match="gamma"):
        vip_loss(same, same, same, 1.0)


def test_vip_loss_prefers_values_that_rise():
    rising = torch.linspace(-0.9, 0.9, 10)
    kinds = {name: vip_loss(path[:1].expand(9), path[:-1], path[1:]).item()
             for name, path in {"rising": rising, "falling": rising.flip(0)}.items()}
    assert kinds["rising"] < kinds["falling"]


def test_liv_is_the_cosine_with_the_goal_frame_or_the_sentence():
    model = LIVModel(scorer())
    image = rewards.make_reward("liv", {"goal": goal(), "liv": model}, target="image")
    phi, g = scorer().encode_image(trajectory().frames[1:]), scorer().encode_image(goal().frame[None])[0]
    assert image.score(trajectory()) == pytest.approx(phi @ g, abs=1e-5)
    reached = trajectory().frames.copy()
    reached[5] = goal().frame
    episode = trajectory()
    there = Trajectory("push", episode.states, episode.actions, episode.rewards, episode.success, reached)
    assert image.score(there)[4] == pytest.approx(1, abs=1e-5)
    text = rewards.make_reward("liv", {"goal": goal(), "liv": model}, prompt="done")
    assert text.score(episode) == pytest.approx(scorer().score(episode.frames[1:], "done"), abs=1e-5)
    assert image.properties.generated and image.properties.demo_free and not text.properties.generated
    oracle = rewards.make_reward("liv", {"goal": goal(source="demonstration"), "liv": model}, target="image")
    assert not oracle.properties.demo_free and not oracle.properties.generated


def video(colour, moving, seed=0, frames=9):
    """A square that goes from left to right (or right to left) over grey noise."""
    rng = np.random.default_rng(seed)
    clip = np.full((frames, SIZE, SIZE, 3), 90, np.uint8) + rng.integers(0, 12, (frames, 1, 1, 1), dtype=np.uint8)
    top = int(rng.integers(4, 18))
    for t in range(frames):
        left = int((SIZE - 10) * (t if moving == "right" else frames - 1 - t) / (frames - 1))
        clip[t, top:top + 10, left:left + 10] = colour
    return clip


KINDS = {f"the {name} square is {way}": (colour, way) for name, colour in
         {"red": (230, 30, 30), "green": (30, 210, 30), "blue": (40, 40, 240)}.items() for way in ("left", "right")}


def folder_of_squares(path, each=3, first=0):
    """A folder of captioned clips as `make_demos` writes them: two stages, two splits, and a clip to be left out."""
    rows = []
    for label, (caption, (colour, way)) in enumerate(KINDS.items()):
        for number in range(each):
            name = f"{label}-{number}.mp4"
            demos.write_video(path / name, video(colour, way, first + 10 * label + number))
            rows.append({"file_name": name, "text": f"move {caption}", "task": f"task {label}", "kind": "expert",
                         "split": "test" if number == each - 1 else "train", "number": number, "success": True,
                         "stages": [0] * 6 + [1] * 3, "stage_captions": [f"it is not true that {caption}", caption]})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return demos.VideoFolder(path)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return folder_of_squares(tmp_path_factory.mktemp("squares"))


def test_pools_hold_the_training_clips_and_what_they_show(squares):
    pool = ClipPool.from_folders([squares], SIZE, without=[(0, 0)])
    assert len(pool.clips) == 11 and len(pool.captions) == 18 and len(pool.groups) == 6
    for label, caption in enumerate(pool.captions):
        ends = np.concatenate([ends for _, ends in pool.members[label]])
        allowed = {8} if caption.startswith("move") else set(range(2, 6)) if "not" in caption else {6, 7, 8}
        assert set(ends.tolist()) == allowed, caption
    clips, labels = pool.draw(6, 4, np.random.default_rng(0))
    assert clips.shape == (len(labels), 4, SIZE, SIZE, 3) and len(set(labels)) == len(labels) >= 6
    videos = VideoPool.from_folder(squares, SIZE, clips_per_task=1)
    assert len(videos.clips) == 6 and videos.captions == list(KINDS)
    frames, labels = videos.draw(4, np.random.default_rng(0))
    assert frames.shape == (4, 5, SIZE, SIZE, 3) and len(set(labels)) == 4
    assert VideoPool.from_folder(squares, SIZE).digest != videos.digest


def test_frames_of_a_stretch_are_in_order():
    """Frame t of the clip has grey level 10 t: what is drawn can be read off."""
    clip = np.repeat(10 * np.arange(20, dtype=np.uint8)[:, None, None, None], SIZE, 1).repeat(SIZE, 2).repeat(3, 3)
    pool, rng = VideoPool([clip, clip], ["a", "b"]), np.random.default_rng(0)
    for _ in range(30):
        frames, _ = pool.draw(2, rng)
        for first, end, now, later, last in frames.mean(axis=(2, 3, 4)):
            assert first <= now < later <= end <= last + 1e-9
    early = clip[:12]
    drawn = np.stack([roboclip.jitter(early, 4, rng).mean(axis=(1, 2, 3)) for _ in range(20)])
    assert np.all(np.diff(drawn, axis=1) >= 0) and len(np.unique(drawn[:, 1].round())) > 3


def test_x_clip_learns_captions_and_resumes_to_the_same_weights(squares, tmp_path):
    colours = {"red": (230, 30, 30), "green": (30, 210, 30), "blue": (40, 40, 240)}
    clips = [video(colour, "right", seed) for seed in range(4) for colour in colours.values()]
    pool = ClipPool(clips, list(colours), [[(clip, np.array([8])) for clip in range(label, 12, 3)]
                                           for label in range(3)], [[0, 1, 2]])
    learner = XClipEncoder.small(TINY, seed=0)
    rows = roboclip.train_xclip(learner, pool, 80, 3e-3, 3, seed=0, progress=False)
    losses = [row["value"] for row in rows if row["metric"] == "loss"]
    assert losses[-1] < 0.5 * losses[0] and [row["step"] for row in rows][-1] == 80
    test = np.stack([video(colour, "right", seed) for seed in range(50, 54) for colour in colours.values()])
    assert roboclip.retrieval(learner, test, list(colours), [0, 1, 2] * 4) >= 0.75  # chance 1/3
    pool = ClipPool.from_folders([squares], SIZE)

    def short(until, file):
        new = XClipEncoder.small(TINY, seed=0)
        try:
            roboclip.train_xclip(new, Stopping(pool, until), 6, seed=3, captions_per_batch=4, checkpoint=file,
                                 checkpoint_every=2, progress=False)
        except KeyboardInterrupt:
            pass
        return new.identity

    whole = short(None, None)
    assert short(5, tmp_path / "c.pt") != whole
    assert short(None, tmp_path / "c.pt") == whole
    with pytest.raises(InputError, match="other data or settings"):
        roboclip.train_xclip(encoder(), pool, 7, checkpoint=tmp_path / "c.pt", progress=False)


class Stopping:
    """A pool whose draws are interrupted after some of them, as a killed process is."""

    def __init__(self, pool, after):
        self.pool, self.left = pool, after

    def __getattr__(self, name):
        return getattr(self.pool, name)

    def draw(self, *arguments):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.pool.draw(*arguments)


class Known(LIVModel):
    """A frozen text tower that knows its sentences: orthogonal vectors for the captions of the moving squares."""

    def encode_text(self, prompts):
        return np.eye(16, dtype=np.float32)[[list(KINDS).index(text) for text in
                                             ([prompts] if isinstance(prompts, str) else prompts)]]


def test_liv_learns_values_that_rise_and_leaves_the_scorer_alone(squares, tmp_path):
    before, learner = scorer().identity, Known.start(scorer())
    pool = VideoPool.from_folder(squares, SIZE)
    untrained = liv.evaluate(learner, squares, 9)
    rows = liv.train_liv(learner, pool, LIVConfig(updates=100, batch=6, learning_rate=3e-3), seed=0, progress=False)
    assert {row["metric"] for row in rows} == {"loss", "vip_image", "vip_language", "info_nce"}
    for term in ("loss", "vip_image", "vip_language", "info_nce"):
        values = [row["value"] for row in rows if row["metric"] == term]
        assert np.mean(values[-3:]) < np.mean(values[:3]), term
    after = liv.evaluate(learner, squares, 9)  # clips that were not learned from
    assert after["clips"] == 6 and after["text"] > max(0.5, untrained["text"])
    assert scorer().identity == before != learner.identity
    learner.save(tmp_path / "liv", {"note": 1})
    again, frames = liv.load(tmp_path / "liv", scorer=scorer(), goal=None), noise(3, SIZE, SIZE)
    assert again.identity == learner.identity
    assert np.allclose(again.encode_image(frames), learner.encode_image(frames), atol=1e-2)
    assert np.array_equal(again.encode_text("done"), scorer().encode_text("done"))

    def short(until, file):
        new = LIVModel.start(scorer())
        try:
            liv.train_liv(new, Stopping(pool, until), LIVConfig(updates=6, batch=3), seed=1, checkpoint=file,
                          checkpoint_every=2, progress=False)
        except KeyboardInterrupt:
            pass
        return new.identity

    whole = short(None, None)
    assert short(3, tmp_path / "c.pt") != whole and short(None, tmp_path / "c.pt") == whole


def test_liv_belongs_to_its_scorer(tmp_path):
    from genreward.goals import FrameScorer

    LIVModel(scorer()).save(tmp_path / "liv")
    with pytest.raises(InputError, match="give the frame scorer"):
        liv.load(tmp_path / "liv")
    with pytest.raises(InputError, match="another frame scorer"):
        liv.load(tmp_path / "liv", scorer=FrameScorer.small(SCORER, seed=1))
    with pytest.raises(InputError, match="is no LIV model: it has no liv.json"):
        liv.load(tmp_path)
    (tmp_path / "liv" / "image_tower.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="not this scorer's image tower"):
        liv.load(tmp_path / "liv", scorer=scorer())
    scorer().save(tmp_path / "clip")  # a whole CLIP in open_clip's format needs no scorer
    frames = noise(2, SIZE, SIZE)
    assert np.allclose(liv.load(tmp_path / "clip").encode_image(frames), scorer().encode_image(frames), atol=2e-3)


# ---------------------------------------------------------------------------------- what the study and the shell call

def test_train_and_load_by_profile(squares, tmp_path, root, monkeypatch):
    inside = folder_of_squares(tmp_path / "inside", each=2, first=300)
    monkeypatch.setitem(roboclip.SETTINGS, "smoke", XClipConfig(**{**vars(TINY), "updates": 2,
                                                                    "captions_per_batch": 4, "clips_per_task": 1}))
    made = roboclip.train("smoke", tmp_path / "x", squares.folder, inside.folder, progress=False)
    note = files.read_json(tmp_path / "x" / "provenance.json")
    # a task's one training clip in the second folder is its demonstration, which is not learned from
    assert note["clips"] == 6 and note["held_out"]["clips"] == 6 and note["held_out"]["chance"] == 0.1667
    assert roboclip.load(tmp_path / "x").identity == made.identity
    assert {"commit", "seconds", "loss", "config"} <= note.keys() and len(note["loss"]["loss"]) == 1
    shown = roboclip.demonstration(inside, "task 3")
    assert np.array_equal(shown, inside.frames(6)) and inside.clips[6]["number"] == 0
    with pytest.raises(InputError, match="no training expert episode of 'push'"):
        roboclip.demonstration(inside, "push")
    liv.train("smoke", tmp_path / "liv", squares.folder, inside.folder, scorer(), progress=False)
    note = files.read_json(tmp_path / "liv" / "provenance.json")
    assert note["clips"] == 12 and note["scorer"] == scorer().identity
    assert note["time_correlation"].keys() == {"scorer", "liv"}
    assert not list(profiles.paths("smoke").checkpoints.glob("*"))
    with pytest.raises(InputError, match="from the hub: nothing to train"):
        roboclip.train("paper", tmp_path / "y", squares.folder, None)
    with pytest.raises(InputError, match="give scorer="):
        liv.train("smoke", tmp_path / "y", squares.folder)
    odd = SimpleNamespace(name="odd")
    for module in (roboclip, liv):
        monkeypatch.setattr(profiles, "get_profile", lambda name: odd)
        with pytest.raises(InputError, match="'odd'; valid: gpu, laptop, paper, smoke"):
            module.settings("odd")


def test_laptop_sizes_fit_their_caps():
    model = XClipEncoder.small(roboclip.SETTINGS["laptop"], seed=0).model
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 1.5e6
