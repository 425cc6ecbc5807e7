"""From nothing to a trained agent, stage by stage: what `make results` and `make smoke` run.

    demos -> video_model -> scorer -> goals -> generation -> fb -> variants -> calibration -> study -> agents
          -> behaviour

A stage whose product exists is passed over, and each can be stopped at any time: the same command goes on. Weights and
goals lie under results/<profile>/, what only training needs (videos, checkpoints) under build/<profile>/.

    python -m genreward.pipeline --profile laptop                 # everything that is missing
    python -m genreward.pipeline --profile laptop --only goals    # one stage (and an error if it lacks an earlier one)
    python -m genreward.pipeline --profile laptop --only fb variants --tasks bin-picking    # these two, of one task
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import demos, envs, errors, estimates, files, profiles
from .distractions import Distraction
from .errors import InputError
from .profiles import Profile
from .tasks import DOMAIN_TASKS, PAPER_TASKS, get_task

STAGES = ("demos", "video_model", "scorer", "goals", "generation", "fb", "variants", "calibration", "study", "agents",
          "behaviour")
BY_TASK = ("fb", "variants")  # what can be made for some tasks only
START_SEED = 7  # of the episode whose first frame a goal video starts from
EXPLORATION_SEED = 11
ENCODER_FRAMES = 512  # exploratory frames on which the encoder's principal axes are fitted


def make_videos(profile: Profile) -> None:
    """Scripted experts, rendered into build/<profile>/demos at the video model's image size."""
    orders = [replace(order, size=profile.video.image_size) for order in demos.plan(profile)]
    demos.make_demos(profiles.paths(profile).demos, orders, jobs=2)


def make_video_model(profile: Profile) -> None:
    """VAE and transformer from nothing on the pretraining tasks, then LoRA on the pick-and-place domain (Eq. 1-2).

    The hub's model is not trained from nothing but linked to (`link_hub_model`), and a LoRA that the profile names is
    copied instead of trained. Under `accelerate launch -m genreward.pipeline --only video_model` every process trains
    the LoRA, and the main one alone writes.
    """
    from accelerate import PartialState

    from . import video_training

    where, config = profiles.paths(profile), profile.video
    out, processes = where.build / "video", PartialState()
    if config.pretrained is not None:
        with processes.main_process_first():
            link_hub_model(profile)
    if config.lora is not None and not where.lora.is_dir():
        with processes.main_process_first():
            if not where.lora.is_dir():
                fetch_lora(config.lora, where.lora)
    if config.pretrained is None and not (where.video_model / "model_index.json").is_file():
        video_training.train_vae(where.demos, out, config)
        video_training.pretrain_transformer(where.demos, out, config)
        _publish(out / "model", where.video_model)
        for table in sorted([*out.glob("loss_*.csv"), *out.glob("provenance_*.json")]):
            _publish(table, where.results / "video" / table.name)
    if not where.lora.is_dir():
        given = {row["task"] for row in demos.VideoFolder(where.demos, split="train").clips}
        # A profile of few tasks has none of the domain's: it is finetuned on what there is.
        domain = tuple(sorted(given & set(DOMAIN_TASKS))) or tuple(sorted(given))
        video_training.finetune_lora(where.demos, out, config, model=where.video_model, tasks=domain)
        if processes.is_main_process:
            _publish(out / "lora", where.lora)
            for table in sorted([*out.glob("loss_finetune*.csv"), *out.glob("provenance_finetune*.json")]):
                _publish(table, where.results / "video" / table.name)
        processes.wait_for_everyone()


def link_hub_model(profile: Profile) -> Path:
    """The folder of the profile's hub model or local pipeline, as every stage and the agents' training read it:
    results/<profile>/weights/video_model, made of links to the weights and of `genreward.json` with the profile's
    length, steps and guidance.

    The length matters: CogVideoX-5B generates 49 frames unless told otherwise, and the LoRA, the goal video and the
    history that is compared with it must have one length. Raises InputError for a hub id that is neither in the cache
    nor within reach.
    """
    from .goals import _quick_to_fail
    from .video_model import CogVideoXImageToVideoPipeline

    config, target = profile.video, profiles.paths(profile).video_model
    if (target / "model_index.json").is_file():
        return target
    source = Path(config.pretrained)
    if not source.is_dir():
        try:
            with _quick_to_fail():
                source = Path(CogVideoXImageToVideoPipeline.download(config.pretrained))
        except Exception as problem:  # the hub's client raises many kinds
            raise InputError(f"cannot get {config.pretrained!r} from the hub ({type(problem).__name__}); without "
                             "network, put the path of a local copy into the profile's video.pretrained") from None
    if not (source / "model_index.json").is_file():
        raise InputError(f"{source} holds no video model (no model_index.json); valid: a diffusers pipeline")
    with files.atomic_dir(target) as temporary:
        for item in sorted(source.iterdir()):
            if item.name != "genreward.json" and not item.name.startswith("."):
                (temporary / item.name).symlink_to(item.resolve())
        files.write_json(temporary / "genreward.json", {
            "num_frames": config.num_frames, "steps": config.inference_steps, "guidance": config.guidance})
    return target


def fetch_lora(lora: str, target: Path) -> None:
    """Copy a LoRA in diffusers' format into `target`, from a folder, a file, or a repository of the hub."""
    import huggingface_hub

    from .goals import _quick_to_fail
    from .video_model import LORA_FILE

    source = Path(lora)
    if source.is_dir():
        source = source / LORA_FILE
    elif not source.exists() and lora.count("/") == 1 and not lora.startswith((".", "/", "~")):
        try:
            with _quick_to_fail():
                source = Path(huggingface_hub.hf_hub_download(lora, LORA_FILE))
        except Exception as problem:
            raise InputError(f"cannot get the LoRA {lora!r} from the hub ({type(problem).__name__}); valid: a folder "
                             f"with {LORA_FILE}, such a file, or a repository with one") from None
    if not source.is_file():
        raise InputError(f"no LoRA at {lora}; valid: a folder with {LORA_FILE}, such a file, or a hub id")
    with files.atomic_dir(target) as temporary:
        shutil.copyfile(source, temporary / LORA_FILE)


def make_scorer(profile: Profile) -> None:
    """The frame scorer: OpenCLIP, trained on frames and stage captions, decoded frames included.

    It stands in for the hub's OpenCLIP, which has seen everything, and learns the captions of the evaluated tasks too,
    from training episodes that the video model never gets.
    """
    from .goals import FramePool, FrameScorer, evaluate_scorer, train_scorer
    from .video_model import VideoModel

    where, config = profiles.paths(profile), profile.clip
    if config.pretrained is not None:
        return  # the hub's, loaded when it is asked for
    model = VideoModel.load(where.video_model, device=profile.device)
    folder = demos.VideoFolder(where.demos)
    in_domain = demos.make_demos(where.in_domain_demos, demos.plan_in_domain(profile), jobs=2)
    pool = FramePool.merge([FramePool.from_folder(clips, config.image_size, num_frames=model.num_frames,
                                                  roundtrip=lambda clip: model.decode(model.encode(clip)))
                            for clips in (folder, in_domain)])
    scorer = FrameScorer.small(config, 0, profile.device)
    began = time.time()
    rows = train_scorer(scorer, pool, config.updates, config.learning_rate, config.per_caption, seed=0,
                        checkpoint=where.checkpoints / "scorer.pt")
    scorer.save(where.scorer, {
        "updates": config.updates, "seconds": round(time.time() - began, 1), "frames": len(pool.frames),
        "decoded_frames": int(pool.decoded.sum()), "captions": len(pool.captions), "pool": pool.digest,
        "tasks": sorted({row["task"] for clips in (folder, in_domain) for row in clips.clips
                         if row["split"] == "train"}),
        "stage_accuracy": evaluate_scorer(scorer, folder),
        "loss": [[row["step"], round(row["value"], 5)] for row in rows]})


def load_video_model(profile: str | Profile, lora: bool | Path = True) -> object:
    """The profile's video model, with its LoRA unless `lora` is False, or with another one; the hub's in bfloat16 on a
    GPU."""
    from .training import working_dtype
    from .video_model import VideoModel

    profile = profiles.get_profile(profile)
    where, large = profiles.paths(profile), profile.video.pretrained is not None
    adapter = where.lora if isinstance(lora, bool) else lora
    return VideoModel.load(link_hub_model(profile) if large else where.video_model, device=profile.device,
                           lora=adapter if lora and adapter.is_dir() else None,
                           dtype=working_dtype(profile))


def load_scorer(profile: str | Profile) -> object:
    """The profile's frame scorer: the small one trained here, or OpenCLIP from the hub."""
    from .goals import FrameScorer

    profile = profiles.get_profile(profile)
    if profile.clip.pretrained is not None:
        return FrameScorer.load(*profile.clip.pretrained, device=profile.device)
    return FrameScorer.load(profiles.paths(profile).scorer)


def first_frame(task: str, size: int, seed: int = START_SEED, distraction: Distraction | None = None) -> np.ndarray:
    """(size, size, 3) uint8: how an episode of the task begins; what the goal video starts from."""
    env = envs.make_env(task, seed=seed, size=size, distraction=distraction)
    try:
        env.reset()
        return env.render()
    finally:
        env.close()


def make_goals(profile: Profile) -> None:
    """A goal video and goal frame of each evaluated task, imagined from its first frame and prompt (Eq. 6)."""
    from .goals import generate_goal

    where = profiles.paths(profile)
    model, scorer = load_video_model(profile), load_scorer(profile)
    for name in sorted({*PAPER_TASKS, *profiles.fb_tasks(profile)}):
        if (where.goals / name / "goal.json").is_file():
            continue
        task = get_task(name)
        goal = generate_goal(model, scorer, first_frame(name, model.image_size), task.prompt, task.paraphrases,
                             seed=START_SEED, steps=profile.video.inference_steps, guidance=profile.video.guidance,
                             provenance={"task": name, "start_seed": START_SEED,
                                         "video_model": "held-out" if name in PAPER_TASKS else "trained on this task"
                                         if task.suite == "metaworld" else "has seen nothing of this environment"})
        goal.save(where.goals / name)


def make_generation(profile: Profile) -> None:
    """How near the generated videos are to the real ones, over many starts of each evaluated task."""
    from .study import measure_generation

    measure_generation(load_video_model(profile), profile, profile.data.test_episodes)


def exploration(profile: Profile, task: str, encoder: object | None = None) -> dict[str, np.ndarray]:
    """The task-free experience that F and B learn from, with psi of its pictures, or state features without `encoder`.
    Kept under build/; collected anew where it is not there, or was seen with another psi."""
    from .forward_backward import collect_exploration

    size, steps = profile.video.image_size, profile.fb.exploration_steps
    seen = "state" if encoder is None else f"{encoder.name}-{files.digest(encoder.pca.axes, encoder.source)}"
    path = profiles.paths(profile).build / "exploration" / f"{task}-{seen}-{steps}.npz"
    if not path.is_file():
        replay = collect_exploration(lambda seed: envs.make_env(task, seed=seed, size=size), steps, EXPLORATION_SEED,
                                     encoder, explorer(task))
        with files.atomic_path(path) as temporary:
            np.savez(temporary, **replay)
    return files.read_npz(path)


def load_encoder(profile: str | Profile, fitted: bool = True) -> object:
    """psi with the principal axes that F and B of all tasks share, or without any yet. Only the models that it is made
    of are loaded."""
    from .encoders import get_encoder

    profile = profiles.get_profile(profile)
    name = profile.fb.encoder
    # the unadapted model: the LoRA is in the transformer, psi uses the VAE alone
    return get_encoder(name, video_model=load_video_model(profile, lora=False) if name == "vae" else None,
                       scorer=load_scorer(profile) if name == "openclip" else None, device=profile.device,
                       components=profile.fb.components, pca=profiles.paths(profile).psi if fitted else None)


def explorer(task: str) -> Callable | None:
    """How the task is explored: on Meta-World near the object, elsewhere (None) by random actions that are held."""
    from .forward_backward import near_object_policy

    return near_object_policy if get_task(task).suite == "metaworld" else None


def exploratory_frames(profile: Profile, tasks: Sequence[str]) -> np.ndarray:
    """(N, H, W, 3) uint8: about `ENCODER_FRAMES` frames of the tasks, on which an encoder's axes are fitted."""
    rng, frames = np.random.default_rng(EXPLORATION_SEED), []
    episodes = max(1, round(min(ENCODER_FRAMES, profile.fb.exploration_steps) / 128 / len(tasks)))
    for name in tasks:
        env = envs.make_env(name, seed=EXPLORATION_SEED + 1, size=profile.video.image_size)
        chosen = explorer(name)
        policies = [chosen(rng) if chosen else envs.random_policy(rng, actions=int(np.prod(env.action_space.shape)))
                    for _ in range(episodes)]
        frames += [envs.rollout(env, policy, steps=128).frames for policy in policies]
        env.close()
    return np.concatenate(frames)


def train_explored(profile: Profile, encoder: object, replay: dict[str, np.ndarray]) -> tuple[object, object]:
    """F, B and pi_z trained on task-free exploration ("buffer" targets), and the log of the training."""
    from .forward_backward import ForwardBackward, train_fb

    fb = ForwardBackward(encoder.dim, replay["actions"].shape[1], replace(profile.fb, fb_targets="buffer"), seed=0,
                         device=profile.device)
    return fb, train_fb(fb, replay)


def normalise(profile: Profile, replay: dict[str, np.ndarray], encoder: object, goal: object, fb: Path, path: Path
              ) -> None:
    """Write to `path` the normaliser of the frame-level reward of the F and B saved at `fb`, toward the goal."""
    from .forward_backward import ForwardBackward
    from .rewards import make_reward

    sound = make_reward("genreward_sound", {"goal": goal, "fb": ForwardBackward.load(fb, device=profile.device),
                                            "encoder": encoder})
    sound.fit_normaliser(replay["features"], replay["actions"])
    files.write_json(path, sound.state_dict())


def _trained(where: profiles.Paths, task: str) -> bool:
    """Whether F, B and their normaliser are there; a clone may have the normaliser alone, weights being large."""
    return all((where.fb / f"{task}{ending}").is_file() for ending in (".pt", "-normaliser.json"))


def make_fb(profile: Profile, tasks: Sequence[str] | None = None) -> None:
    """F, B and pi_z of each task (or of these) from task-free exploration ("buffer" targets), psi's principal axes,
    shared by all tasks, and the normaliser of the frame-level reward."""
    from .goals import Goal

    where = profiles.paths(profile)
    if not where.psi.is_file():
        load_encoder(profile, fitted=False).fit(exploratory_frames(profile, profiles.measured_tasks(profile))).save(
            where.psi, np.float16)
    encoder = load_encoder(profile)
    for name in tasks or profiles.fb_tasks(profile):
        if _trained(where, name):
            continue
        replay = exploration(profile, name, encoder)
        if not (where.fb / f"{name}.pt").is_file():  # it does not depend on the goal, the normaliser does
            fb, log = train_explored(profile, encoder, replay)
            with files.atomic_path(where.fb / f"{name}-training.csv") as temporary:
                log.to_csv(temporary, index=False, float_format="%.6g")
            fb.save(where.fb / f"{name}.pt", resume=False)
        normalise(profile, replay, encoder, Goal.load(where.goals / name), where.fb / f"{name}.pt",
                  where.fb / f"{name}-normaliser.json")


def make_variants(profile: Profile, tasks: Sequence[str] | None = None) -> None:
    """Goals from other sources, and F and B behind another encoder: what the grid's variants read, of every task or of
    these."""
    from . import variants

    variants.make(profile, tasks)


def make_calibration(profile: Profile) -> None:
    """Whether F^T B is a probability, how far pi_z gets by itself, and what r_FB toward each goal says of episodes that
    nobody was paid for: measured once for notebooks 05 and 10."""
    from . import forecast
    from .calibration import MEASURES, record

    for what in MEASURES:
        record(profile, what, profiles.measured_tasks(profile))
    forecast.record(profile)


def make_study(profile: Profile) -> None:
    """Every reward model's scores of the same episodes, and what they measure."""
    from . import reward_study

    reward_study.make_study(profile)


def make_agents(profile: Profile) -> None:
    """Every run of the profile's grid that is not on record yet; a failing one is reported and the others go on."""
    from . import experiments

    experiments.make(profile)


def make_behaviour(profile: Profile) -> None:
    """What finished agents do and are paid, the random policy and the expert beside them, and what the same rewards
    would pay those."""
    from . import behaviour, would_pay

    behaviour.make(profile)
    would_pay.make(profile)


def _publish(source: Path, target: Path) -> None:
    """Copy a finished file or folder to its place, whole or not at all."""
    if source.is_dir():
        with files.atomic_dir(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    else:
        with files.atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


MAKERS: dict[str, Callable[..., None]] = {
    "demos": make_videos, "video_model": make_video_model, "scorer": make_scorer, "goals": make_goals,
    "generation": make_generation, "fb": make_fb, "variants": make_variants, "calibration": make_calibration,
    "study": make_study, "agents": make_agents, "behaviour": make_behaviour}


def missing(stage: str, profile: Profile, tasks: Sequence[str] | None = None) -> bool:
    """Whether a stage has something left to make (of `tasks`, for those in `BY_TASK`)."""
    where = profiles.paths(profile)
    if stage == "demos":  # only training needs the videos
        given = profile.video.pretrained is not None and profile.video.lora is not None
        return (missing("video_model", profile) and not given or missing("scorer", profile)) and not (
            where.demos / "metadata.jsonl").is_file()
    if stage == "video_model":
        return not where.lora.is_dir() or not (where.video_model / "model_index.json").is_file()
    if stage == "scorer":
        return profile.clip.pretrained is None and not where.scorer.is_dir()
    if stage == "goals":
        wanted = (*PAPER_TASKS, *profiles.fb_tasks(profile))
        return any(not (where.goals / name / "goal.json").is_file() for name in wanted)
    if stage == "generation":
        return not (where.results / "generation.csv").is_file()
    if stage == "fb":
        return not all(_trained(where, name) for name in tasks or profiles.fb_tasks(profile))
    if stage == "variants":
        from . import variants

        return variants.missing(profile, tasks)
    if stage == "calibration":
        from . import forecast
        from .calibration import FEATURES, FOLDERS, run_name

        return forecast.missing(profile) or any(
            not (where.results / folder / f"{run_name(what, name, one)}.csv").is_file()
            for what, folder in FOLDERS.items() for name in profiles.measured_tasks(profile) for one in FEATURES)
    if stage == "study":
        from . import reward_study

        return reward_study.missing(profile)
    return True  # each run decides for itself


def run(profile: str | Profile, only: Sequence[str] = STAGES, tasks: Sequence[str] | None = None) -> None:
    """Make what is missing of the stages in `only`, in order; of the stages `BY_TASK`, and these alone, for `tasks`
    where they are given. Unknown names and a missing device are an InputError before anything runs. What a run on a
    GPU, or of the hub's video model, will take is printed first."""
    profile = profiles.get_profile(profile)
    for stage in only:
        if stage not in STAGES:
            raise errors.unknown("stage", stage, STAGES)
        if tasks and stage not in BY_TASK:
            raise InputError(f"the stage {stage!r} is made for all tasks at once; tasks can be named for: "
                             f"{', '.join(BY_TASK)}")
    for task in tasks or ():
        if task not in profiles.fb_tasks(profile):
            raise errors.unknown("task", task, profiles.fb_tasks(profile))
    if estimates.wanted(profile) and any(missing(stage, profile, tasks) for stage in only if stage != "demos"):
        estimates.require_device(profile)
        print(estimates.compact(profile), flush=True)
    for stage in [stage for stage in STAGES if stage in only]:
        if not missing(stage, profile, tasks):
            print(f"{stage}: there already", flush=True)
            continue
        began = time.time()
        print(f"{stage}: {(MAKERS[stage].__doc__ or '').split('.')[0].strip()}", flush=True)
        MAKERS[stage](profile, *((tasks,) if tasks else ()))
        print(f"{stage}: done in {time.time() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--only", nargs="+", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--before", metavar="STAGE", help="only the stages before this one")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"only these tasks, of: {', '.join(BY_TASK)}")
    arguments = parser.parse_args()
    if arguments.before is not None and arguments.before not in STAGES:
        raise errors.unknown("stage", arguments.before, STAGES)
    last = len(STAGES) if arguments.before is None else STAGES.index(arguments.before)
    only = [stage for stage in arguments.only if stage not in STAGES[last:]]
    if not only:
        raise InputError(f"no stage of {', '.join(arguments.only)} comes before {arguments.before}; the order is: "
                         f"{', '.join(STAGES)}")
    run(arguments.profile, only, arguments.tasks)


if __name__ == "__main__":
    errors.cli(main)
