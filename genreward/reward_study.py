"""What does each reward model measure? Episodes whose outcome the simulator knows, scored by every model.

Stands beside `study` near the end of the flow (`... rewards -> ... -> results -> reward_study -> figures -> book`) and
trains no agent. Each step can be stopped at any time and goes on with the same command:

    python -m genreward.reward_study record --profile laptop                    # episodes: build/laptop/study
    python -m genreward.reward_study fb --profile laptop --tasks pick-place     # F and B of the frame-level variants
    python -m genreward.reward_study score --profile laptop --models liv viper  # results/laptop/study/scores
    python -m genreward.reward_study goals --profile laptop                     # score curves of goal videos
    python -m genreward.reward_study summary --profile laptop                   # results/laptop/study/quality
    python -m genreward.reward_study all --profile laptop                       # whatever of these is missing

`record` keeps every `stride`-th step of an episode and renders it; a reward model sees such an episode as a
`Trajectory` of steps / stride steps. `score` keeps the raw scores of each model in a file of its own, so that models
can be added and made anew one at a time, by several processes; every number of the study follows from those files and
`trajectories.npz`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from . import demos, errors, files, profiles, results
from .errors import Absent, InputError
from .forward_backward import ForwardBackward, train_fb
from .goals import Goal
from .profiles import Profile
from .reward_episodes import (
    KINDS,
    get_config,
    identity,
    load_episodes,
    load_trajectories,
    order_of,
    record,
    results_folder,
    study_folder,
)
from .reward_metrics import (
    COMPARISONS,
    HEADLINE,
    METRICS,
    REMEDIES,
    ahead,
    as_records,
    episode_scores,
    from_records,
    printed,
    quality_of,
)
from .rewards import RewardModel, make_reward, mean_latent
from .rewards import table1 as properties_table
from .study import selection_hits, share_interval
from .tasks import get_task
from .trajectory import uniform_indices

# ---- the models


class Memo:
    """Stands in for a model whose `encode` is dear and is asked for the same frames by several rewards.

    Everything else is passed on. `saved` counts the processor seconds that repeated questions would have cost, so that
    a reward's time can be told as if it had asked alone.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.kept, self.saved = inner, {}, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, frames: np.ndarray) -> Any:
        """`inner.encode(frames)`, computed once until `forget`."""
        frames = np.ascontiguousarray(frames)
        key = (frames.shape, hashlib.blake2b(frames.data, digest_size=16).digest())
        if key in self.kept:
            value, seconds = self.kept[key]
            self.saved += seconds
            return value
        began = time.process_time()
        value = self.inner.encode(frames)
        self.kept[key] = (value, time.process_time() - began)
        return value

    def forget(self) -> None:
        """Drop what is kept: between two episodes."""
        self.kept.clear()


class Parts:
    """What reward models are made from, loaded when it is first asked for."""

    def __init__(self, profile: str | Profile) -> None:
        self.profile = profiles.get_profile(profile)
        self.where, self.config = profiles.paths(self.profile), get_config(self.profile)
        self.memos: list[Memo] = []

    def _memo(self, model: Any) -> Memo:
        self.memos.append(Memo(model))
        return self.memos[-1]

    @functools.cached_property
    def plain_video_model(self) -> Any:
        """The video model with its LoRA: what generates and what its diffusion is asked."""
        from .pipeline import load_video_model

        return load_video_model(self.profile)

    @functools.cached_property
    def video_model(self) -> Memo:
        """Its VAE, which the LoRA leaves alone, with a memory."""
        return self._memo(self.plain_video_model)

    @functools.cached_property
    def scorer(self) -> Any:
        from .pipeline import load_scorer

        return load_scorer(self.profile)

    @functools.cache  # noqa: B019  (one object a call of the command line)
    def video_text(self, folder: Path) -> Any:
        """RoboCLIP's video-text encoder."""
        return _module("roboclip").load(folder, device=self.profile.device)

    @functools.cache  # noqa: B019
    def goal(self, task: str) -> Goal:
        """The generated goal of a task."""
        return Goal.load(self.where.goals / task)

    @functools.cache  # noqa: B019
    def demonstration(self, task: str) -> Goal:
        """A goal cut from a training demonstration of the task, at a start that is not in the study."""
        clips = demos.VideoFolder(self.where.in_domain_demos, task=task, kind="expert")
        video = clips.frames(0, self.profile.video.num_frames, self.profile.video.image_size)
        words = get_task(task)
        return Goal(words.prompt, words.paraphrases, video, np.zeros(len(video)), len(video) - 1, "last",
                    "demonstration", {"file": clips.clips[0]["file_name"]})

    @functools.cached_property
    def mean_latent(self) -> np.ndarray:
        """The mean latent of 64 training clips of other tasks than the evaluated ones."""
        clips = demos.VideoFolder(self.where.demos, split="train", kind="expert")
        chosen = np.unique(uniform_indices(len(clips), min(64, len(clips))))
        return mean_latent(self.plain_video_model, np.stack([
            clips.frames(int(i), self.profile.video.num_frames, self.profile.video.image_size) for i in chosen]))

    @functools.cached_property
    def encoder(self) -> Memo:
        """psi, which F and B of all tasks share."""
        from .pipeline import load_encoder

        return self._memo(load_encoder(self.profile))

    @functools.cache  # noqa: B019
    def fb(self, task: str, variant: str) -> ForwardBackward:
        """F, B of a variant of `FB_VARIANTS`, frozen."""
        fb = ForwardBackward.load(_fb_file(self.profile, task, f"{variant}.pt"), device=self.profile.device)
        fb.freeze()
        return fb


GROUPS = ("environment", "control", "published", "genreward")


@dataclass(frozen=True)
class Entry:
    """A model of the study: how it is made, and the files that it needs.

    reward  the registered reward behind it
    make    (parts, task) -> the model
    needs   (paths, task) -> (file or folder, the command that makes it) pairs
    group   one of `GROUPS`, for tables and figures
    """

    reward: str
    make: Callable[[Parts, str], RewardModel]
    needs: Callable[[profiles.Paths, str], list[tuple[Path, str]]] = lambda where, task: []
    group: str = "published"

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise errors.unknown("group of models", self.group, GROUPS)


COMPLETE = {"tadpole": "model_index.json", "liv": "liv.json"}  # the file that a finished folder holds
PUBLISHED = ("roboclip", "vlm_rm", "liv", "viper", "diffusion_reward", "tadpole")
FB_VARIANTS = {"goal": ("goal", True), "buffer": ("buffer", True), "goal_no_action": ("goal", False),
               "buffer_no_action": ("buffer", False)}


def _fb_file(profile: str | Profile, task: str, name: str) -> Path:
    return study_folder(profile) / "fb" / f"{task}-{name}"


def _stage(where: profiles.Paths, stage: str) -> str:
    return f"python -m genreward.pipeline --profile {where.results.name} --only {stage}"


def _needs_goal(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
    return [(where.goals / task / name, _stage(where, "goals")) for name in ("goal.json", "frames.npz")]


def _needs_video(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
    from_hub = profiles.get_profile(where.results.name).video.pretrained is not None
    vae = [] if from_hub else [(where.video_model / "vae", _stage(where, "video_model"))]
    return [*vae, *_needs_goal(where, task)]


def _needs_fb(*variants: str) -> Callable[[profiles.Paths, str], list[tuple[Path, str]]]:
    def needs(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
        command = f"python -m genreward.reward_study fb --profile {where.results.name} --tasks {task}"
        return [*_needs_video(where, task), (where.psi, _stage(where, "fb")),
                *((where.build / "study" / "fb" / f"{task}-{one}.pt", command) for one in variants)]
    return needs


def _pixels(**settings: Any) -> Entry:
    return Entry("pixel_cosine", lambda parts, task: make_reward(
        "pixel_cosine", {"goal": parts.goal(task)}, num_frames=parts.profile.video.num_frames, alpha=1.0,
        interval=parts.config.interval, **settings), _needs_goal, "control")


def _video(centring: str, oracle: bool = False) -> Entry:
    def make(parts: Parts, task: str) -> RewardModel:
        goal = parts.demonstration(task) if oracle else parts.goal(task)
        mean = parts.mean_latent if centring == "mean" else None
        return make_reward("genreward_video", {"goal": goal, "video_model": parts.video_model}, alpha=1.0,
                           interval=parts.config.interval, centring=centring, mean_latent=mean)

    def needs(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
        more = {"mean": [(where.demos / "metadata.jsonl", f"python -m genreward.demos --profile {where.results.name}")]}
        return [*_needs_video(where, task), *more.get(centring, []),
                *(_needs_demonstration(where, task) if oracle else [])]
    return Entry("genreward_video", make, needs, "genreward")


def _frame(variant: str) -> Entry:
    return Entry("genreward_frame", lambda parts, task: make_reward(
        "genreward_frame", {"goal": parts.goal(task), "fb": parts.fb(task, variant), "encoder": parts.encoder},
        beta=1.0, interval=1, frame_paid="every_step"), _needs_fb(variant), "genreward")


def _both(name: str, variant: str) -> Entry:
    def make(parts: Parts, task: str) -> RewardModel:
        given = {"goal": parts.goal(task), "video_model": parts.video_model, "fb": parts.fb(task, variant),
                 "encoder": parts.encoder}
        numbers = parts.profile.reward
        weights = {"alpha": numbers.alpha, "beta": numbers.beta} if name == "genreward" else {}
        model = make_reward(name, given, interval=parts.config.interval, **weights)
        if name == "genreward_sound":
            model.load_state_dict(files.read_json(_fb_file(parts.profile, task, f"{variant}-normaliser.json")))
        return model
    return Entry(name, make, _needs_fb(variant), "genreward")


def _published(module: str, make: Callable[[Any, Path, Parts, str], RewardModel], reward: str | None = None,
               more: Callable[[profiles.Paths, str], list[tuple[Path, str]]] = _needs_goal, beside: tuple[str, ...] = ()
               ) -> Entry:
    """A model of `genreward.rewards.<module>` with weights of its own in results/<profile>/weights/rewards/<module>
    (and in the folders `beside` that one); make: (the module, its folder, parts, task) -> the model."""
    def needs(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
        command = f"python -m genreward.rewards.{module} train --profile {where.results.name}"
        folders = [where.weights / "rewards" / name for name in (module, *beside)]
        return [*((folder / COMPLETE.get(folder.name, "config.json"), command) for folder in folders),
                *((folder, command) for folder in folders), *more(where, task)]

    def build(parts: Parts, task: str) -> RewardModel:
        return make(_module(module), parts.where.weights / "rewards" / module, parts, task)
    return Entry(reward or module, build, needs)


def _module(name: str) -> Any:
    return importlib.import_module(f".rewards.{name}", __package__)


def _needs_scorer(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
    from_hub = profiles.get_profile(where.results.name).clip.pretrained is not None
    return [*([] if from_hub else [(where.scorer, _stage(where, "scorer"))]), *_needs_goal(where, task)]


def _needs_demonstration(where: profiles.Paths, task: str) -> list[tuple[Path, str]]:
    return [(where.in_domain_demos / "metadata.jsonl",
             f"python -m genreward.demos --profile {where.results.name} --in-domain")]


def _roboclip(module: Any, folder: Path, parts: Parts, task: str) -> RewardModel:
    shown = module.demonstration(parts.where.in_domain_demos, task, parts.profile.video.image_size)
    return make_reward("roboclip", {"video_text": parts.video_text(folder), "demonstration": shown},
                       every=parts.config.interval)


def _roboclip_text(module: Any, folder: Path, parts: Parts, task: str) -> RewardModel:
    return make_reward("roboclip_text", {"video_text": parts.video_text(folder), "goal": parts.goal(task)},
                       every=parts.config.interval)


def _vlm_rm(parts: Parts, task: str) -> RewardModel:
    _module("vlm_rm")
    return make_reward("vlm_rm", {"goal": parts.goal(task), "scorer": parts.scorer}, task=task)


def _video_tadpole(parts: Parts, task: str) -> RewardModel:
    _module("tadpole")
    return make_reward("video_tadpole", {"video_model": parts.plain_video_model, "goal": parts.goal(task)},
                       interval=parts.config.interval)


def _of_tokens(module: Any, folder: Path, parts: Parts, task: str) -> RewardModel:
    return module.load(folder, stride=max(1, _module("tokens").SPACING // parts.config.stride))


MODELS: dict[str, Entry] = {
    "dense": Entry("dense", lambda parts, task: make_reward("dense"), group="environment"),
    "sparse": Entry("sparse", lambda parts, task: make_reward("sparse", sparse_interval=max(
        1, parts.profile.reward.sparse_interval // parts.config.stride)), group="environment"),
    "clock": Entry("clock", lambda parts, task: make_reward("clock"), group="control"),
    "random": Entry("random", lambda parts, task: make_reward("random"), group="control"),
    "pixel_cosine": _pixels(),
    "pixel_cosine_first": _pixels(centring="first"),
    "roboclip": _published("roboclip", _roboclip, more=_needs_demonstration),
    "roboclip_text": _published("roboclip", _roboclip_text, "roboclip_text"),
    "vlm_rm": Entry("vlm_rm", _vlm_rm, _needs_scorer),
    "liv": _published("liv", lambda module, folder, parts, task: make_reward(
        "liv", {"goal": parts.goal(task), "liv": module.load(folder, scorer=parts.scorer)}), more=_needs_scorer),
    "viper": _published("viper", _of_tokens, more=lambda where, task: [], beside=("tokens",)),
    "diffusion_reward": _published("diffusion_reward", _of_tokens, more=lambda where, task: [], beside=("tokens",)),
    "tadpole": _published("tadpole", lambda module, folder, parts, task: module.load(
        folder, goal=parts.goal(task), interval=1)),
    "video_tadpole": Entry("video_tadpole", _video_tadpole, _needs_video),
    "genreward": _both("genreward", "goal"),
    "genreward_sound": _both("genreward_sound", "buffer"),
    "genreward_video": _video("none"),
    "genreward_video_first": _video("first"),
    "genreward_video_mean": _video("mean"),
    "genreward_video_oracle": _video("first", oracle=True),
    **{f"genreward_frame_{variant}": _frame(variant) for variant in FB_VARIANTS},
}


def lacking(profile: str | Profile, name: str, task: str) -> str | None:
    """What the model `name` lacks for a task and the command that makes it, or None. InputError for an unknown name."""
    if name not in MODELS:
        raise errors.unknown("model of the study", name, MODELS)
    for path, command in MODELS[name].needs(profiles.paths(profile), task):
        if not path.exists():
            return f"{path.relative_to(profiles.paths(profile).root).as_posix()} is missing; make it with: {command}"
    return None


def build_models(profile: str | Profile, task: str, names: Sequence[str] | None = None, parts: Parts | None = None
                 ) -> tuple[dict[str, RewardModel], dict[str, str]]:
    """The models that can be made for a task, and for the others what is missing and the command that makes it."""
    parts = parts or Parts(profile)
    absent = {name: lack for name in names or MODELS if (lack := lacking(profile, name, task))}
    return {name: MODELS[name].make(parts, task) for name in names or MODELS if name not in absent}, absent


# ---- F and B for the frame-level variants


def make_fb(profile: str | Profile, tasks: Sequence[str] | None = None, variants: Sequence[str] = tuple(FB_VARIANTS)
            ) -> None:
    """Train F, B and pi_z of every variant on the same task-free exploration and for the same number of updates
    (`StudyConfig.fb_updates`), a file a task and variant, in build/<profile>/study/fb; what is there and was made with
    the same psi and goal is passed over."""
    profile = profiles.get_profile(profile)
    config, where, parts = get_config(profile), profiles.paths(profile), Parts(profile)
    for task in tasks or config.tasks:
        if task not in config.tasks:
            raise errors.unknown("task of the study", task, config.tasks)
    for variant in variants:
        if variant not in FB_VARIANTS:
            raise errors.unknown("variant of F and B", variant, FB_VARIANTS)
    for task in tasks or config.tasks:
        for path, command in _needs_fb()(where, task):
            if not path.exists():
                raise InputError(f"{path.relative_to(where.root).as_posix()} is missing; make it with: {command}")
    for task in tasks or config.tasks:
        made_from = files.digest(*(path for path, _ in _needs_fb()(where, task)), vars(profile.fb), config.fb_updates)
        note = _fb_file(profile, task, "made.json")
        if note.is_file() and files.read_json(note)["made_from"] == made_from:
            done = [one for one in variants if _fb_file(profile, task, f"{one}-normaliser.json").is_file()]
        else:
            done = []
            for one in FB_VARIANTS:
                for ending in (".pt", "-normaliser.json"):
                    _fb_file(profile, task, one + ending).unlink(missing_ok=True)
            files.write_json(note, {"made_from": made_from})
        left = [one for one in variants if one not in done]
        if left:
            _train_fb(parts, task, left)


def _train_fb(parts: Parts, task: str, variants: Sequence[str]) -> None:
    from .pipeline import exploration, load_encoder

    profile = parts.profile
    encoder = load_encoder(profile)
    replay = exploration(profile, task, encoder)
    goal = encoder.encode(parts.goal(task).frame[None])[0]
    for variant in variants:
        targets, action_aware = FB_VARIANTS[variant]
        fb = ForwardBackward(encoder.dim, replay["actions"].shape[1], replace(
            profile.fb, fb_targets=targets, action_aware=action_aware,
            updates=min(parts.config.fb_updates, profile.fb.updates)), seed=0, device=profile.device)
        train_fb(fb, replay, goal=goal if targets == "goal" else None)
        path = _fb_file(profile, task, f"{variant}.pt")
        fb.save(path, resume=False)
        fb = ForwardBackward.load(path, device=profile.device)  # as it will be used: saved in less precision
        files.write_json(_fb_file(profile, task, f"{variant}-normaliser.json"),
                         asdict(fb.reward_normaliser(replay["features"], replay["actions"], goal)))


# ---- scoring


def score_all(profile: str | Profile, models: Sequence[str] | None = None, tasks: Sequence[str] | None = None,
              anew: bool = False) -> dict[str, dict[str, str]]:
    """Score the recorded episodes with every model and keep the raw scores: results/<profile>/study/scores/<model>.npz
    (columns task, kind, episode, step, score: one entry for each step that the model pays) and, beside it, what made
    them (<model>.json: weights' digests, processor seconds per 1,000 frames, Table 1 properties).

    A task that was scored with the same weights before is passed over (`anew`: it is not), which is said of models that
    were named: what changed may be the model's code. And a task is kept in build/ as soon as it is done, so the same
    call goes on after a stop. Processes may work on different models at the same time. Returns model -> task -> what is
    missing; when a model was named and none of its tasks can be scored, that is an InputError.
    """
    profile = profiles.get_profile(profile)
    config, where = get_config(profile), profiles.paths(profile)
    names = list(models or MODELS)
    for name in names:
        if name not in MODELS:
            raise errors.unknown("model of the study", name, MODELS)
    wanted = list(tasks or config.tasks)
    for task in wanted:
        if task not in config.tasks:
            raise errors.unknown("task of the study", task, config.tasks)
    absent = {name: {task: lack for task in wanted if (lack := lacking(profile, name, task))} for name in names}
    if models:
        for name, lacks in absent.items():
            if len(lacks) == len(wanted):
                raise InputError(f"model {name!r}: {next(iter(lacks.values()))}")
    load_trajectories(profile)
    parts = Parts(profile)
    for task in wanted:
        pending = {}
        for name in names:
            if task in absent[name]:
                continue
            weights = _weights(where, name, task, profile)
            if anew or not _scored(profile, name, task, weights):
                pending[name] = weights
            elif models:
                print(f"{name}, {task}: scored before with the same files; --anew scores it again", flush=True)
        if pending:
            _score_task(profile, task, pending, parts)
    for name in names:
        _assemble(profile, name)
    return {name: lacks for name, lacks in absent.items() if lacks}


def _weights(where: profiles.Paths, name: str, task: str, profile: Profile) -> str:
    """A digest of everything that a model's scores of a task depend on: episodes and files."""
    config = get_config(profile)
    depends = [_digest(path, _changed(path)) for path, _ in MODELS[name].needs(where, task)]
    return files.digest(order_of(task, config, profile), config.interval, asdict(profile.reward), depends)


@functools.lru_cache
def _digest(path: Path, changed: tuple[int, ...]) -> str:
    """The digest of a file or folder, read once as long as nothing in it changes."""
    return files.digest(path)


def _changed(path: Path) -> tuple[int, ...]:
    return tuple(one.stat().st_mtime_ns for one in ([path] if path.is_file() else sorted(path.rglob("*"))))


def _part(profile: Profile, name: str, task: str) -> Path:
    return study_folder(profile) / "scores" / name / f"{task}.npz"


def _scored(profile: Profile, name: str, task: str, weights: str) -> bool:
    """Whether these very scores are in build/ or among the results."""
    part = _part(profile, name, task)
    if part.is_file():
        if str(files.read_npz(part, "identity")["identity"]) == weights:
            return True
    made = results_folder(profile) / "scores" / f"{name}.json"
    return made.is_file() and files.read_json(made)["tasks"].get(task, {}).get("identity") == weights


def paid_steps(model: RewardModel, steps: int) -> np.ndarray:
    """The steps (1-based) of an episode at which all of the model's terms are due: every `interval`-th; for a model
    that pays at the end, every `every`-th and the last."""
    if hasattr(model, "every"):
        return np.unique(np.append(np.arange(model.every, steps + 1, model.every) if model.every else [], steps)
                         ).astype(int)
    return np.arange(model.interval, steps + 1, model.interval)


def _score_task(profile: Profile, task: str, pending: dict[str, str], parts: Parts) -> None:
    models, _ = build_models(profile, task, list(pending), parts)
    found: dict[str, list] = {name: [] for name in models}
    seconds, frames = dict.fromkeys(models, 0.0), 0
    for one in tqdm(load_episodes(profile, task), desc=f"scoring {task}"):
        frames += len(one) + 1
        for name, model in models.items():
            began, saved = time.process_time(), sum(memo.saved for memo in parts.memos)
            scores = model.score(one)
            seconds[name] += time.process_time() - began + sum(memo.saved for memo in parts.memos) - saved
            if not np.all(np.isfinite(scores)):
                raise InputError(f"model {name!r} scores episode {one.info['episode']} of {task!r} with NaN or "
                                 "infinite numbers")
            paid = paid_steps(model, len(one))
            found[name].append((KINDS.index(one.info["kind"]), one.info["episode"], paid, scores[paid - 1]))
        for memo in parts.memos:
            memo.forget()
    for name, model in models.items():
        counts = [len(paid) for _, _, paid, _ in found[name]]
        with files.atomic_path(_part(profile, name, task)) as temporary:
            np.savez_compressed(
                temporary, identity=pending[name], seconds=seconds[name], frames=frames,
                properties=json.dumps(asdict(model.properties)),
                kind=np.repeat([kind for kind, *_ in found[name]], counts).astype(np.uint8),
                episode=np.repeat([episode for _, episode, *_ in found[name]], counts).astype(np.uint16),
                step=np.concatenate([paid for *_, paid, _ in found[name]]).astype(np.uint16),
                score=np.concatenate([scores for *_, scores in found[name]]).astype(np.float32))


def _assemble(profile: Profile, name: str) -> None:
    """Put the finished tasks of one model into its file of results; tasks that were scored before stay."""
    config = get_config(profile)
    path = results_folder(profile) / "scores" / f"{name}.npz"
    made: dict[str, Any] = {"tasks": {}}
    columns: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file() and path.with_suffix(".json").is_file():
        made = files.read_json(path.with_suffix(".json"))
        kept = files.read_npz(path)
        columns = {task: {key: kept[key][kept["task"] == number] for key in ("kind", "episode", "step", "score")}
                   for number, task in enumerate(kept["tasks"].tolist())}
        if made.get("episodes") != identity(profile):  # of an earlier study
            made, columns = {"tasks": {}}, {}
    changed = False
    for task in config.tasks:
        part = _part(profile, name, task)
        if not part.is_file():
            continue
        kept = files.read_npz(part)
        weights = str(kept["identity"])
        if lacking(profile, name, task) is None and weights != _weights(profiles.paths(profile), name, task, profile):
            continue  # made with weights that are no longer there
        if made["tasks"].get(task, {}).get("identity") == weights and made["tasks"][task]["seconds"] == round(
                float(kept["seconds"]), 3):
            continue
        changed = True
        columns[task] = {key: kept[key] for key in ("kind", "episode", "step", "score")}
        made["tasks"][task] = {"identity": weights, "seconds": round(float(kept["seconds"]), 3),
                               "frames": int(kept["frames"])}
        made["properties"] = json.loads(str(kept["properties"]))
    if not changed:
        return
    present = [task for task in config.tasks if task in columns]
    total = {key: sum(made["tasks"][task][key] for task in present) for key in ("seconds", "frames")}
    with files.atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, tasks=np.array(present),
            task=np.repeat(np.arange(len(present)), [len(columns[task]["score"]) for task in present]).astype(np.uint8),
            **{key: np.concatenate([columns[task][key] for task in present])
               for key in ("kind", "episode", "step", "score")})
    files.write_json(path.with_suffix(".json"), results.provenance(
        total["seconds"], tasks=made["tasks"], properties=made["properties"], episodes=identity(profile),
        seconds_per_1000_frames=round(1000 * total["seconds"] / total["frames"], 4), model=name,
        reward=MODELS[name].reward, group=MODELS[name].group))


def load_scores(profile: str | Profile, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A model's raw scores (columns task, kind, episode, step, score) and what made them. InputError for a missing
    file, or one that belongs to other episodes than `trajectories.npz`."""
    path = results_folder(profile) / "scores" / f"{name}.npz"
    command = (f"python -m genreward.reward_study score --profile {profiles.get_profile(profile).name} --models {name}")
    if not path.is_file():
        raise Absent(f"no scores of model {name!r}; make them with: {command}")
    made = files.read_json(path.with_suffix(".json"))
    scored = files.read_npz(results_folder(profile) / "trajectories.npz", "identity")["identity"]
    if made.get("episodes") != str(scored):
        raise InputError(f"the scores of {name!r} are of other episodes; make them again with: {command} --anew")
    kept = files.read_npz(path, "tasks", "task", "kind", "episode", "step", "score")
    table = pd.DataFrame({"task": kept["tasks"][kept["task"]], "kind": np.array(KINDS)[kept["kind"]],
                          "episode": kept["episode"].astype(int), "step": kept["step"].astype(int),
                          "score": kept["score"].astype(float)})
    return table, made


def scored_models(profile: str | Profile, everywhere: bool = False) -> list[str]:
    """The models whose scores are on record, in the order of `MODELS`, then others by name. everywhere: only those that
    were scored on every task on which any was, as models must be to be compared."""
    folder = results_folder(profile) / "scores"
    there = {path.stem for path in folder.glob("*.npz")}
    names = [name for name in MODELS if name in there] + sorted(there - set(MODELS))
    if not everywhere:
        return names
    tasks = {name: set(files.read_json(folder / f"{name}.json")["tasks"]) for name in names}
    every = set().union(*tasks.values())
    return [name for name in names if tasks[name] == every]


def quality(profile: str | Profile, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Metrics of all models on record (or of `models`), computed from the committed raw scores: see `quality_of`."""
    return pd.concat([quality_of(name, table) for name, table in _scored_episodes(profile, models).items()],
                     ignore_index=True)


def ahead_of(profile: str | Profile, controls: Mapping[str, str], models: Sequence[str] | None = None) -> pd.DataFrame:
    """How far models are ahead of a control, on the same starts: rows as `quality`'s whose value is a difference
    (`reward_metrics.ahead`). controls: metric -> the model that it is taken to."""
    tables = _scored_episodes(profile, [*(models or scored_models(profile)), *controls.values()])
    rows = []
    for control in dict.fromkeys(controls.values()):
        asked = [metric for metric, name in controls.items() if name == control]
        rows += [ahead(name, table, tables[control], asked) for name, table in tables.items() if name != control]
    return pd.concat(rows, ignore_index=True)


def unlearned(models: Iterable[str]) -> list[str]:
    """Those of the models that are no reward model to be judged: controls, and the environment's own reward."""
    return [name for name in models if name in MODELS and MODELS[name].group in ("control", "environment")]


def compared(profile: str | Profile) -> dict[tuple[str, str], pd.DataFrame]:
    """(model, other) of `reward_metrics.COMPARISONS` -> how far the first is ahead, where both are scored."""
    known = set(scored_models(profile))
    pairs = [(first, second) for first, second, _ in COMPARISONS if {first, second} <= known]
    tables = _scored_episodes(profile, [name for pair in pairs for name in pair]) if pairs else {}
    return {(first, second): ahead(first, tables[first], tables[second], HEADLINE) for first, second in pairs}


def _scored_episodes(profile: str | Profile, models: Sequence[str] | None) -> dict[str, pd.DataFrame]:
    """Model -> the final and summed score of every episode (`episode_scores`)."""
    names = list(dict.fromkeys(models)) if models is not None else scored_models(profile)
    if not names:
        raise Absent(f"no model has been scored yet; do it with: python -m genreward.reward_study score --profile "
                     f"{profiles.get_profile(profile).name}")
    episodes, steps = load_trajectories(profile)
    tables = {}
    for name in names:
        scores, made = load_scores(profile, name)
        tables[name] = episode_scores(episodes, steps, scores, list(made["tasks"]))
    return tables


def summary_table(profile: str | Profile, found: pd.DataFrame, task: str = "all") -> pd.DataFrame:
    """One row a model: Table 1 properties, every metric as "value [low, high]", on how many tasks, and the processor
    seconds that scoring 1,000 frames costs."""
    rows = []
    for name, part in found[found["task"] == task].groupby("model", sort=False):
        made = load_scores(profile, str(name))[1]
        known = made["properties"]
        at = part.set_index("metric")
        rows.append({"model": name, "group": made["group"], "demo-free": known["demo_free"],
                     "generated": known["generated"],
                     # the properties are the reward's, whose F may have been made without the action
                     "action-aware": known["action_aware"] and not str(name).endswith("_no_action"),
                     "tasks": len(made["tasks"]), "starts": int(at["n"].iloc[0]),
                     **{metric: printed(at.loc[metric]) if metric in at.index else "-" for metric in METRICS},
                     "s per 1,000 frames": made["seconds_per_1000_frames"]})
    return pd.DataFrame(rows)


def table1(profile: str | Profile) -> pd.DataFrame:
    """The paper's Table 1 from the properties of the registered rewards that the study knows, with citation and
    deviations, and whether scores are on record."""
    there = set(scored_models(profile))
    for module in PUBLISHED:
        _module(module)  # which registers its rewards
    known = properties_table()
    rows = []
    for reward in dict.fromkeys(entry.reward for entry in MODELS.values()):
        if reward in known.index:
            mine = [name for name, entry in MODELS.items() if entry.reward == reward]
            rows.append({"reward": reward, **known.loc[reward].to_dict(),
                         "scored": any(name in there for name in mine)})
    return pd.DataFrame(rows)


# ---- the goal frame


def make_goal_frames(profile: str | Profile) -> Path:
    """Score every recorded expert clip and, for the starts that give pairs, a video generated from its first frame,
    with Eq. 6; keep the curves in results/<profile>/study/goal_frames.npz. A generated frame has no truth of its own:
    it gets that of the real expert at the same fraction of the episode."""
    from .pipeline import load_scorer

    profile = profiles.get_profile(profile)
    config, parts = get_config(profile), Parts(profile)
    scorer, model = load_scorer(profile), parts.plain_video_model
    curves, done, rows = [], [], []
    for number, task in enumerate(config.tasks):
        words, experts = get_task(task), [one for one in load_episodes(profile, task) if one.info["kind"] == "expert"]
        texts = scorer.encode_text(list(words.paraphrases)).mean(axis=0)
        some = experts[:config.pairs]
        videos = model.generate_batch(np.stack([one.frames[0] for one in some]), [words.prompt] * len(some),
                                      [one.info["start"] for one in some], steps=profile.video.inference_steps,
                                      guidance=profile.video.guidance)
        for source, clips in (("real", [one.frames for one in experts]), ("generated", list(videos))):
            for one, clip in zip(experts, clips, strict=False):
                truth = np.append(False, one.success)
                curves.append((scorer.encode_image(clip) @ texts).astype(np.float32))
                done.append(truth[uniform_indices(len(truth), len(clip))])
                rows.append((number, source == "generated", one.info["start"], len(clip)))
    path = results_folder(profile) / "goal_frames.npz"
    with files.atomic_path(path) as temporary:
        np.savez_compressed(temporary, tasks=np.array(config.tasks), identity=identity(profile),
                            clips=np.array(rows, np.uint16), curve=np.concatenate(curves), done=np.concatenate(done))
    where = profiles.paths(profile)
    files.write_json(path.with_suffix(".json"), results.provenance(
        None, scorer=scorer.identity, video_model=files.digest(where.video_model) if where.video_model.is_dir() else
        profile.video.pretrained, pairs=config.pairs))
    return path


def goal_frame_hits(profile: str | Profile) -> pd.DataFrame:
    """How often the chosen frame shows success: columns clips ("real", "real, there and back", "generated (proxy)"),
    rule, task or "all", value, low, high, n, over the experts' clips in which some frame does.

    "there and back" plays a clip forwards and then backwards, so that the success lies in the middle: a rule that only
    knows that experts end well fails there. "random" is the expectation over a frame drawn uniformly, with a bootstrap
    over clips; of the others each clip is a hit or none, and the interval that of a share (`study.share_interval`),
    which has a width where all clips agree. Over all tasks it takes the clips as one sample: a bit too wide.
    """
    rows = []
    for (kind, rule), by_task in _goal_frame_hits(profile).items():
        told = results.bootstrap_ci if rule == "random" else lambda hits: share_interval(np.mean(hits), len(hits))
        rows += [{"clips": kind, "rule": rule, "task": task, **told(values)._asdict()}
                 for task, values in by_task.items()]
        every = (results.stratified_ci(by_task, np.mean) if rule == "random"
                 else told(np.concatenate([*by_task.values()])))
        rows.append({"clips": kind, "rule": rule, "task": "all", **every._asdict()})
    return pd.DataFrame(rows)


def goal_frame_changes(profile: str | Profile) -> pd.DataFrame:
    """What a rule changes against Eq. 6 alone, clip by clip: columns clips, rule, value (mean difference of hits), low,
    high (95%, clips drawn again within their tasks), n, gained and lost (clips). Every rule chooses from the same
    clips, so it is the difference that has to be told from zero, and two intervals may overlap where it is."""
    found, rows = _goal_frame_hits(profile), []
    for (kind, rule), by_task in found.items():
        if rule in ("clip", "random"):  # a frame at random is no choice of a clip: its hit is a share
            continue
        change = {task: np.subtract(values, found[kind, "clip"][task]) for task, values in by_task.items()}
        every = np.concatenate(list(change.values()))
        rows.append({"clips": kind, "rule": rule, **results.stratified_ci(change, np.mean)._asdict(),
                     "gained": int((every > 0).sum()), "lost": int((every < 0).sum())})
    return pd.DataFrame(rows)


def _goal_frame_hits(profile: str | Profile) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(clips, rule) -> task -> whether the chosen frame of each clip shows success, the clips in one order."""
    path = results_folder(profile) / "goal_frames.npz"
    if not path.is_file():
        raise Absent(f"{path.name} of the study is missing; make it with: python -m genreward.reward_study goals "
                     f"--profile {profiles.get_profile(profile).name}")
    kept = files.read_npz(path, "clips", "curve", "done", "tasks")
    ends = np.cumsum(kept["clips"][:, 3].astype(int))
    hits: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (number, generated, _, length), end in zip(kept["clips"].tolist(), ends.tolist(), strict=True):
        curve, done = kept["curve"][end - length:end], kept["done"][end - length:end].astype(int)
        if not done.any():
            continue
        task = str(kept["tasks"][number])
        name = "generated (proxy)" if generated else "real"
        clips = [(name, curve, done)]
        if not generated:
            clips.append(("real, there and back", np.append(curve, curve[-2::-1]), np.append(done, done[-2::-1])))
        for kind, scores, truth in clips:
            of = {rule: selection_hits([change(scores)], [truth], 1)["clip"][0] for rule, change in REMEDIES.items()}
            plain = selection_hits([scores], [truth], 1)
            for rule, hit in (of | {"random": plain["random"][0], "last": plain["last"][0]}).items():
                hits.setdefault((kind, rule), {}).setdefault(task, []).append(float(hit))
    return hits


# ---- results on record


def summarise(profile: str | Profile) -> pd.DataFrame:
    """Compute all metrics and keep them in the results' schema: results/<profile>/study/quality/quality.csv with
    metrics `<metric>`, `<metric>_low`, `<metric>_high`; `step` is the number of starts."""
    profile = profiles.get_profile(profile)
    began, found = time.time(), quality(profile)
    rows = as_records(found.assign(experiment="reward_study"))
    results.write_run(results_folder(profile) / "quality", "quality", rows, results.provenance(
        round(time.time() - began, 1), episodes=identity(profile), resamples=results.RESAMPLES,
        models={name: load_scores(profile, name)[1]["tasks"] for name in scored_models(profile)}))
    return found


def recorded_quality(profile: str | Profile) -> pd.DataFrame:
    """What `summarise` kept, as rows of `QUALITY_COLUMNS`."""
    table = results.load(results_folder(profile) / "quality")
    if table.empty:
        raise Absent(f"the study has no summary; make it with: python -m genreward.reward_study summary --profile "
                     f"{profiles.get_profile(profile).name}")
    return from_records(table)


def missing(profile: str | Profile) -> bool:
    """Whether the study has something left to make with the models that are there: episodes, scores, goal frames."""
    profile = profiles.get_profile(profile)
    folder, config = results_folder(profile), get_config(profile)
    if not all((folder / name).is_file() for name in ("trajectories.npz", "goal_frames.npz", "quality/quality.csv")):
        return True
    return any(not (folder / "scores" / f"{name}.npz").is_file() and any(
        lacking(profile, name, task) is None for task in config.tasks) for name in MODELS)


def make_study(profile: str | Profile) -> None:
    """Everything that is missing: episodes, F and B of the frame-level variants, scores of all models that can be
    made, goal frames, summary. What cannot be scored is named with the command that makes it."""
    profile = profiles.get_profile(profile)
    record(profile)
    make_fb(profile)
    for name, lacks in score_all(profile).items():
        print(f"not scored: {name} on {', '.join(lacks)}: {next(iter(lacks.values()))}", flush=True)
    if not (results_folder(profile) / "goal_frames.npz").is_file():
        make_goal_frames(profile)
    summarise(profile)


# ---- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genreward.reward_study record|fb|score|goals|summary|all --profile laptop`"""
    parser = argparse.ArgumentParser(prog="python -m genreward.reward_study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("record", "fb", "score", "goals", "summary", "all"))
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--tasks", nargs="+", help="record, fb, score: only these tasks")
    parser.add_argument("--models", nargs="+", help=f"score: only these of {', '.join(MODELS)}")
    parser.add_argument("--variants", nargs="+", default=list(FB_VARIANTS), help=f"fb: {', '.join(FB_VARIANTS)}")
    parser.add_argument("--anew", action="store_true", help="score: also what was scored before")
    options = parser.parse_args(arguments)
    profile = profiles.get_profile(options.profile)
    if options.step == "record":
        record(profile, options.tasks)
    elif options.step == "fb":
        make_fb(profile, options.tasks, options.variants)
    elif options.step == "score":
        for name, lacks in score_all(profile, options.models, options.tasks, options.anew).items():
            print(f"not scored: {name} on {', '.join(lacks)}: {next(iter(lacks.values()))}")
    elif options.step == "goals":
        print(make_goal_frames(profile).name)
    elif options.step == "all":
        make_study(profile)
    if options.step in ("summary", "all"):
        found = summarise(profile) if options.step == "summary" else recorded_quality(profile)
        print(summary_table(profile, found).to_string(index=False))
    return 0


if __name__ == "__main__":
    errors.cli(main)
