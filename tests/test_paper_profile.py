"""The paper profile's own path on tiny checkpoints in the hub's formats, and LoRA finetuning by two processes."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from diffusers import CogVideoXImageToVideoPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from genreward import demos, encoders, estimates, files, pipeline, profiles, results
from genreward.errors import InputError
from genreward.goals import FrameScorer, Goal
from genreward.profiles import ClipConfig, DreamerConfig, VideoConfig
from genreward.video_model import LORA_FILE, LORA_TARGETS, VideoModel

ROOT = Path(__file__).resolve().parent.parent
PAPER = profiles.get_profile("paper")
TINY = VideoConfig(image_size=32, num_frames=17, vae_channels=(8, 8, 8), vae_norm_groups=4, latent_channels=4, heads=2,
                   head_dim=16, layers=2, text_dim=16, text_layers=1, text_heads=2, text_length=16)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """What the hub has, tiny: a CogVideoX pipeline, a LoRA in diffusers' format, OpenCLIP, DINOv3."""
    folder = tmp_path_factory.mktemp("hub")
    model = VideoModel.small(TINY, 0)
    model.pipe.save_pretrained(folder / "cogvideox")  # the pipeline alone: no genreward.json, as on the hub
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False,
                                                 target_modules=list(LORA_TARGETS)))
        dino = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8,
            image_size=32, num_register_tokens=4))
    (folder / "lora").mkdir()
    CogVideoXImageToVideoPipeline.save_lora_weights(
        str(folder / "lora"), transformer_lora_layers=get_peft_model_state_dict(model.transformer),
        weight_name=LORA_FILE)
    FrameScorer.small(ClipConfig(image_size=32, embed_dim=16, vision_width=8, text_width=16, text_layers=1),
                      0).save(folder / "clip")
    dino.save_pretrained(folder / "dinov3")
    transformers.DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "dinov3")
    return folder


def tiny_paper(hub: Path) -> profiles.Profile:
    """The paper profile with local folders in the place of its ids and small numbers; the code is the same."""
    return replace(
        PAPER, device="cpu", image_size=32, episode_steps=64,
        video=replace(PAPER.video, pretrained=str(hub / "cogvideox"), lora=str(hub / "lora"), image_size=32,
                      inference_steps=2),
        clip=replace(PAPER.clip, pretrained=(str(hub / "clip"), "")),
        fb=replace(PAPER.fb, dim=8, hidden=16, batch=32, components=4, updates=1, exploration_steps=64),
        dreamer=DreamerConfig(observation="pixels", deter=16, hidden=16, units=16, categoricals=4, classes=4, depth=2,
                              layers=1, blocks=2, batch=2, length=4, imagine_last=None, horizon=3, replay_size=64,
                              prefill=8, warmup=0, train_ratio=2.0),
        reward=replace(PAPER.reward, interval=32, sparse_interval=32),
        run=replace(PAPER.run, fb_tasks=("reach",), grid_tasks=(), tasks=("pick-place",), evaluate_every=64,
                    evaluation_episodes=1, fb_train_until=64, prefill=32))


def in_cache(cache: Path, repository: str, files_of: Path) -> None:
    """Lay a folder out as the hub's client does in its cache."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    (place / "snapshots" / ("0" * 40)).symlink_to(files_of)


def test_from_the_hubs_folders_to_one_update_of_fb_and_of_the_agent(hub, root, monkeypatch, capsys):
    profile = tiny_paper(hub)
    where = profiles.paths(profile)
    monkeypatch.setattr(encoders, "DINOV3", str(hub / "dinov3"))
    monkeypatch.setattr(pipeline, "PAPER_TASKS", ("pick-place",))
    monkeypatch.setattr(estimates, "compact", lambda profile: "estimate")

    # no demonstration is needed where the LoRA is given
    pipeline.run(profile, only=("demos", "video_model", "scorer", "goals", "fb"))
    said = capsys.readouterr().out
    assert said.startswith("estimate") and "demos: there already" in said and "scorer: there already" in said

    assert (where.video_model / "transformer").is_symlink()
    given, kept = load_file(hub / "lora" / LORA_FILE), load_file(where.lora / LORA_FILE)
    assert given.keys() == kept.keys() and all(torch.equal(given[name], kept[name]) for name in given)
    model, plain = pipeline.load_video_model(profile), pipeline.load_video_model(profile, lora=False)
    assert model.transformer.peft_config and not getattr(plain.transformer, "peft_config", None)
    assert (model.num_frames, model.steps, model.guidance) == (17, 2, 6.0)

    goal = Goal.load(where.goals / "pick-place")
    assert goal.video.shape == (17, 32, 32, 3) and goal.index == int(np.argmax(goal.scores))
    first = pipeline.first_frame("pick-place", 32)
    unadapted = plain.generate(first, goal.prompt, pipeline.START_SEED)
    assert not np.array_equal(unadapted, goal.video)  # the LoRA took part

    encoder = pipeline.load_encoder(profile)
    assert (encoder.name, encoder.source, encoder.raw_dim, encoder.dim) == ("dinov3", "dinov3", 16, 4)
    assert encoder.encode(goal.frame[None]).shape == (1, 4)
    for task in ("pick-place", "reach"):
        normaliser = json.loads((where.fb / f"{task}-normaliser.json").read_text())
        assert np.isfinite(list(normaliser.values())).all()
        assert (where.fb / f"{task}-training.csv").read_text().count("\n") == 2  # the head, and one update

    # what the agent's training does with them; the agent's pictures are smaller than the reward's, as at paper size
    from genreward import behaviour, training

    profile = replace(profile, image_size=16)
    monkeypatch.setitem(profiles.PROFILES, "paper", profile)
    run = training.Run("pick-place", "genreward_sound", "dreamer", 0, "paper", "paper")
    parts = training.load_parts(run, profile)
    assert parts["video_model"].num_frames == 17 and parts["encoder"].dim == 4
    assert parts["fb"].dim == 8 and parts["fb"].frozen
    for method in ("genreward_sound", "genreward"):  # F and B from exploration, and from the agent's own replay
        run = training.Run("pick-place", method, "dreamer", 0, "paper", "paper", 64)
        table = results.read_run(training.train_agent(run, progress=False))
        values = table[table["step"] == 64].set_index("metric")["value"]
        assert values["share_video"] > 0 and np.isfinite(values).all()
        act, env = training.restore(run)
        assert env.unwrapped.render().shape == (32, 32, 3) and env.render().shape == (16, 16, 3)
        env.close()
        assert behaviour.record(run, episodes=1).is_file()


def test_bfloat16_weights_generate_and_encode_as_on_a_gpu(hub):
    model = VideoModel.load(hub / "cogvideox", lora=hub / "lora", dtype=torch.bfloat16)
    clip = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
    video = model.generate(clip[0], "push the puck", 0, num_frames=9, steps=1)
    assert video.shape == (9, 32, 32, 3) and model.encode(clip).dtype == torch.float32


def test_ids_of_the_hub_are_found_in_its_cache_without_network(hub, root, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "diffusers.utils.constants",
                   "diffusers.pipelines.pipeline_utils", "huggingface_hub._snapshot_download"):
        for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE"):
            if name == "HF_HUB_CACHE" or "modules" in module:
                monkeypatch.setattr(f"{module}.{name}", str(root / "cache"), raising=False)
    in_cache(root / "cache", PAPER.video.pretrained, hub / "cogvideox")
    in_cache(root / "cache", "someone/lora", hub / "lora")
    folder = pipeline.link_hub_model(PAPER)
    assert folder == profiles.paths(PAPER).video_model
    assert files.read_json(folder / "genreward.json") == {"num_frames": 17, "steps": 50, "guidance": 6.0}
    assert VideoModel.load(folder).num_frames == 17
    pipeline.fetch_lora("someone/lora", root / "lora")
    assert (root / "lora" / LORA_FILE).read_bytes() == (hub / "lora" / LORA_FILE).read_bytes()
    for given in ("nobody/no-such-lora", str(root / "nowhere")):
        with pytest.raises(InputError, match="LoRA") as problem:
            pipeline.fetch_lora(given, root / "other")
        assert "\n" not in str(problem.value)
    video = replace(PAPER.video, pretrained="nobody/no-such-model")
    with pytest.raises(InputError, match="nobody/no-such-model"):
        pipeline.link_hub_model(replace(PAPER, name="gpu", video=video))


def test_demonstrations_are_rendered_at_the_video_models_size(root, monkeypatch):
    asked = []
    monkeypatch.setattr(demos, "make_demos", lambda folder, orders, jobs: asked.extend(orders))
    pipeline.make_videos(PAPER)
    assert {order.size for order in asked} == {480} and {order.frames for order in asked} == {49}
    asked.clear()
    pipeline.make_videos(profiles.get_profile("laptop"))
    assert asked == demos.plan("laptop")  # and nothing changes for the others


# What each process runs: the command line itself, with its losses and the weights it ends with written down.
WORKER = """
import json, os, sys
import genreward
import torch
from genreward import files, video_model, video_training

local, forward, finetune = [], video_training.DiffusionLoss.forward, video_training.finetune_lora

def noted(self, *arguments, **values):
    loss = forward(self, *arguments, **values)
    local.append(float(loss.detach()))
    return loss

def kept(*arguments, **values):
    model = finetune(*arguments, **values, log_every=1)
    weights = [p.detach() for name, p in sorted(model.transformer.named_parameters()) if "lora" in name]
    files.write_json(os.path.join(sys.argv[sys.argv.index("--out") + 1], f"rank{os.environ['RANK']}.json"), {
        "losses": local, "weights": files.digest(*[w.numpy() for w in weights]), "size": sum(map(len, weights)),
        "moved": sum(float(w.abs().sum()) for w in weights)})
    return model

video_training.DiffusionLoss.forward, video_training.finetune_lora = noted, kept
raise SystemExit(video_model.main(sys.argv[1:]))
"""


def test_two_processes_finetune_one_lora(hub, tmp_path):
    rng = np.random.default_rng(0)
    data, out = tmp_path / "clips", tmp_path / "out"
    rows = []
    for number in range(4):
        demos.write_video(data / f"{number}.mp4", rng.integers(0, 256, (17, 32, 32, 3), dtype=np.uint8))
        rows.append(json.dumps({"file_name": f"{number}.mp4", "text": "move", "task": "reach", "split": "train"}))
    (data / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    settings = ["image_size=32", "num_frames=9", "lora_rank=2", "batch=1", "gradient_accumulation=2",
                "lora_learning_rate=0.01", "ema_decay=0.5"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0",
               str(tmp_path / "worker.py"), "finetune", "--data", str(data), "--out", str(out), "--model",
               str(hub / "cogvideox"), "--profile", "smoke", "--steps", "3", "--set", *settings]
    with open(tmp_path / "log", "w") as log:
        launched = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            status = launched.wait(900)
        finally:
            if launched.poll() is None:
                os.killpg(launched.pid, signal.SIGKILL)  # the two processes too
    assert status == 0, (tmp_path / "log").read_text()[-3000:]

    one, two = (json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one["weights"] == two["weights"] and one["moved"] > 0  # one LoRA, and it learned
    assert len(one["losses"]) == len(two["losses"]) == 3 * 2  # each made every micro-batch of every step
    assert not set(one["losses"]) & set(two["losses"])  # on draws of its own
    with open(out / "loss_finetune.csv", newline="") as file:
        curve = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert [step for step, _ in curve] == [1, 2, 3]  # rows are written once, steps not once a process
    together = np.array([one["losses"], two["losses"]]).reshape(2, 3, 2).mean((0, 2))
    np.testing.assert_allclose([loss for _, loss in curve], together, atol=1e-5)
    made = json.loads((out / "provenance_finetune.json").read_text())
    assert made["processes"] == 2 and made["steps"] == 3 and made["finished"] and len(made["sessions"]) == 1
    checkpoint = torch.load(out / "checkpoint_finetune.pt", weights_only=True)
    assert {int(state["step"]) for state in checkpoint["optimiser"]["state"].values()} == {3}
    assert VideoModel.load(hub / "cogvideox", lora=out).transformer.peft_config


def test_other_suites_go_the_whole_way_from_goal_to_paid_agent(hub, root, monkeypatch):
    """Goals, exploration, F and B, and an agent's episode on Adroit's door and walker-walk: other observations, other
    lengths of action and episode than Meta-World's."""
    from genreward import training

    profile = tiny_paper(hub)
    profile = replace(profile, run=replace(profile.run, fb_tasks=("door", "walker-walk"), tasks=("door",)))
    monkeypatch.setattr(encoders, "DINOV3", str(hub / "dinov3"))
    monkeypatch.setattr(pipeline, "PAPER_TASKS", ("door",))
    monkeypatch.setattr(estimates, "compact", lambda profile: "estimate")
    monkeypatch.setitem(profiles.PROFILES, "paper", profile)
    pipeline.run("paper", only=("video_model", "goals", "fb"))
    for task, actions, chunk in (("door", 28, 200), ("walker-walk", 6, 500)):
        goal = Goal.load(profiles.paths(profile).goals / task)
        assert goal.video.shape == (17, 32, 32, 3) and goal.provenance["task"] == task
        run = training.Run(task, "genreward_sound", "sac", 0, "paper", "paper", chunk)
        assert training.load_parts(run, training.check_run(run))["fb"].action_dim == actions
    run = training.Run("door", "genreward_sound", "sac", 0, "paper", "paper", 200,
                       (("distraction", "all-easy-dynamic"),))
    values = results.read_run(training.train_agent(run, progress=False)).set_index("metric")["value"]
    assert values["share_video"] > 0 < values["share_frame"]
