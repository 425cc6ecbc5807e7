"""What a run will take: counts against published ones and against the real classes, and a missing device said first."""

import sys
from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from genreward import errors, estimates, pipeline, profiles
from genreward.errors import InputError
from genreward.video_model import LORA_TARGETS, VideoModel

PAPER, SMOKE = (profiles.get_profile(name) for name in ("paper", "smoke"))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_published_networks_have_their_published_sizes():
    """The hub's files: transformer 4.99 + 4.99 + 1.27 GB and text encoder 4.99 + 4.53 GB in bfloat16; DINOv3 ViT-S/16
    86.4 MB in float32; OpenCLIP's table says 151.3 million for ViT-B-32."""
    networks = estimates.video_networks(PAPER.video)
    assert all(p.is_meta for module in networks.values() for p in module.parameters())
    assert estimates.count(networks["transformer"]) == 5_570_479_680
    assert 2 * estimates.count(networks["transformer"], buffers=True) == pytest.approx(11.25e9, abs=1.5e7)
    assert estimates.count(networks["text_encoder"]) == 4_762_310_656
    assert 2 * estimates.count(networks["text_encoder"]) == pytest.approx(9.52e9, abs=1e7)
    assert estimates.count(networks["vae"]) == 215_583_907
    assert estimates._scorer(PAPER).parameters == 151_277_313
    assert 4 * estimates._psi("dinov3").parameters == pytest.approx(86.4e6, rel=1e-3)
    assert estimates._psi("siglip2").parameters == 92_884_224  # the vision tower of the fixed-resolution checkpoint


def test_a_small_model_on_the_meta_device_is_the_real_one():
    networks = estimates.video_networks(SMOKE.video)
    real = VideoModel.small(SMOKE.video, 0)
    for name, module in networks.items():
        assert estimates.count(module) == estimates.count(getattr(real, name))
    rank = SMOKE.video.lora_rank
    real.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))
    added = sum(p.numel() for name, p in real.transformer.named_parameters() if "lora" in name)
    assert estimates.lora_parameters(networks["transformer"], rank) == added


def test_operations_of_a_forward_pass_by_formula_and_by_torchs_own_count():
    known = {**estimates.COGVIDEOX_5B_I2V["transformer"], "num_layers": 2}
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**known)
        length = estimates.tokens(17, transformer)
        assert length == 226 + 5 * 30 * 45
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            transformer(torch.empty(1, 5, 32, 60, 90), torch.empty(1, 226, 4096), torch.zeros(1, dtype=torch.long))
    assert sum(estimates.transformer_flops(transformer, length)) == pytest.approx(counter.get_total_flops(), rel=0.03)
    rates = estimates.card_rates()  # below the cards' bfloat16 peaks of 312 and 989 Tflop/s, not far below
    assert 100e12 < rates["A100"] < 312e12 and 200e12 < rates["H100"] < 989e12


def test_dreamer_is_counted_on_real_updates_at_the_papers_sizes():
    from genreward.agents.dreamer import DreamerAgent

    counts = estimates.dreamer_counts(PAPER.dreamer, PAPER.image_size)
    agent = estimates._dreamer(replace(PAPER.dreamer, batch=2, length=4, warmup=0), PAPER.image_size, "cpu")
    assert isinstance(agent, DreamerAgent) and agent.obs_shape == (64, 64, 3)
    sizes = agent.config
    assert (sizes.deter, sizes.units, sizes.depth, sizes.categoricals, sizes.classes) == (512, 512, 32, 32, 32)
    assert counts.parameters == sum(p.numel() for p in agent.networks.parameters()) == 11_216_266
    assert counts.flops > 6 * 64 * 5e6 and counts.operations > 1000 and counts.kept > 1e8
    before = [p.detach().clone() for p in agent.networks.parameters() if p.requires_grad]
    agent.update()  # the last layers of reward and value begin at zero: what lies under them learns from the second on
    readings = agent.update()
    assert agent.updates == 2 and all(torch.isfinite(torch.tensor(value)) for value in readings.values())
    after = [p for p in agent.networks.parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    row = sum(value[:1].nbytes for value in agent.replay.rows.values())
    assert estimates.replay_row(sizes, 64) == row


def test_the_paper_table_says_what_is_extrapolated_and_from_what(no_gpu):
    text = estimates.table(PAPER, measure=False)
    for words in ("5,570,479,680", "4,762,310,656", "THUDM/CogVideoX-5b-I2V", "20,000", "steps of 8 x 1", "512,000",
                  "extrapolated from the model card", "an assumption", "not measured", "this machine has no GPU"):
        assert words in text, words
    lora, videos, fb, dreamer = estimates.stages(PAPER, measure=False)
    assert 2 * 10.5e9 < videos.device < lora.device < 45e9  # bfloat16 weights, and less than the card's 78 GB
    assert set(lora.seconds) == {"A100", "H100"} and lora.seconds["A100"] == 2 * lora.seconds["H100"]
    # 17 frames take less than 17/49 of the 90 s that the model card gives for 49
    assert 0.15 * 90 < videos.seconds["H100"] / videos.steps < 17 / 49 * 90
    assert fb.seconds == {} and dreamer.runs == 20 and dreamer.host == pytest.approx(13.4e9, rel=0.01)


def test_where_the_device_is_there_some_updates_are_measured():
    found = {stage.name: stage for stage in estimates.stages(SMOKE)}
    assert set(found) == {"vae, from nothing", "transformer, from nothing", "LoRA", "goal and test videos",
                          "F, B and pi_z", "DreamerV3"}
    assert all(stage.basis.startswith("measured") and stage.seconds["here"] > 0 for stage in found.values())
    assert found["DreamerV3"].steps == 512 * 1 // (4 * 8)


def test_a_missing_device_is_one_line_before_anything_starts(root, no_gpu, monkeypatch, capsys):
    made = []
    for stage in pipeline.STAGES:
        monkeypatch.setitem(pipeline.MAKERS, stage, lambda profile, stage=stage: made.append(stage))
    words = "profile 'paper' needs a CUDA device .* --profile laptop or smoke"
    with pytest.raises(InputError, match=words):
        pipeline.run("paper")
    with pytest.raises(InputError, match="'gpu' needs a CUDA device"):
        pipeline.run("gpu", only=("demos", "video_model"))
    assert not made and not capsys.readouterr().out
    pipeline.run("paper", only=("demos",))  # rendering needs no GPU
    assert made == ["demos"]
    monkeypatch.setattr(sys, "argv", ["pipeline", "--profile", "paper"])
    with pytest.raises(SystemExit) as end:
        errors.cli(pipeline.main)
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_run_of_the_hubs_model_says_first_what_it_takes(root, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(estimates, "compact", lambda profile: said.append(profile.name) or "estimate")
    monkeypatch.setitem(pipeline.MAKERS, "goals", lambda profile: print("goals are made"))
    pipeline.run(replace(PAPER, device="cpu"), only=("goals",))
    out = capsys.readouterr().out
    assert said == ["paper"] and out.index("estimate") < out.index("goals are made")
    pipeline.run("smoke", only=("goals",))
    assert said == ["paper"]


@pytest.mark.parametrize("memory, verdict", [(80e9, "enough"), (50e9, "tight"), (24e9, "NOT ENOUGH")])
def test_the_short_form_compares_with_the_memory_that_is_there(monkeypatch, memory, verdict):
    monkeypatch.setattr(estimates, "available", lambda: memory)
    monkeypatch.setattr(estimates, "has_device", lambda profile: False)
    text = estimates.compact(PAPER, measure=False)
    assert text.endswith(verdict) and len(text.splitlines()) == 5


def test_durations_and_bad_names():
    assert [estimates.duration(seconds) for seconds in (3, 600, 9000, 200_000)] == ["3 s", "10 min", "2.5 h",
                                                                                   "2.3 days"]
    with pytest.raises(InputError, match="unknown profile 'papr'"):
        estimates.main(["--profile", "papr"])


def test_the_command_prints_a_table(capsys):
    assert estimates.main(["--profile", "smoke", "--no-measure"]) == 0
    printed = capsys.readouterr().out
    assert "profile 'smoke'" in printed and "DreamerV3" in printed and "no GPU is needed" in printed
