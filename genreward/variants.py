"""What the grid's variants read beside the profile's own goals and F and B: goals from other sources, another psi.

Near the end of the flow, beside `experiments`, whose declarations say which variants there are (`... -> fb -> variants
-> training`). A source is a folder results/<profile>/goal_sources/<source>/<task>, in the form of every other goal.

    python -m genreward.pipeline --profile laptop --only variants

The sources of goal videos (Fig. 10; Tables B and C):

| source       | the goal video                                                              | marked as     |
| ------------ | --------------------------------------------------------------------------- | ------------- |
| in_domain    | imagined by a model whose LoRA has seen the task's training episodes         | generated     |
| camera       | imagined from the start as another camera sees it                           | generated     |
| recoloured   | imagined from the start in other colours                                    | generated     |
| expert_video | a real one: the scripted expert from the same start, the upper bound        | demonstration |
| teleport     | the same, but in known frames the object is somewhere else (hallucinations) | demonstration |
| random_frame | the profile's own; the goal frame drawn among those that CLIP did not choose | as there      |
| frame_<k>    | the profile's own; its frame k is the goal frame, whatever its score        | as there      |
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import demos, envs, errors, files, profiles
from .distractions import Distraction
from .errors import InputError
from .goals import Goal, generate_goal, select_frame
from .profiles import Profile
from .reward_episodes import loose_object
from .tasks import get_task
from .training import METHODS, change_name
from .trajectory import uniform_indices

DIFFICULTY = "hard"  # of the other camera and the other colours
AFTER_SUCCESS = 10  # steps that a real goal video goes on after the first success
TELEPORTED = (1 / 3, 2 / 3)  # where in the video the object is elsewhere, for one frame each
JUMP = 0.15  # metres, sideways


def expert_video(task: str, size: int, num_frames: int, seed: int, jump: float = 0.0
                 ) -> tuple[np.ndarray, list[int]]:
    """The scripted expert from the start that goal videos begin with, until shortly after its success: (K, size, size,
    3) uint8, K frames spread evenly. With `jump` (metres) the task's object is drawn that far off in the frames whose
    numbers are returned; the motion stays what it was.

    InputError where the expert fails from this start, or `jump` is asked of a task without a loose object.
    """
    import mujoco

    env = envs.make_env(task, seed=seed, size=size)
    try:
        act = envs.expert_policy(task)
        observation, _ = env.reset()
        snapshots, left, done = [env.get_state()], -1, False
        while not done and left != 0:
            observation, _, terminated, truncated, info = env.step(act(observation))
            snapshots.append(env.get_state())
            left = AFTER_SUCCESS if left < 0 and info["success"] > 0 else left - 1
            done = terminated or truncated
        if left < 0:
            raise InputError(f"the expert of {task!r} does not get there from the start of seed {seed}")
        chosen = [snapshots[index] for index in uniform_indices(len(snapshots), num_frames)]
        frames = demos.render_states(env, chosen)
        moved = [round(share * (num_frames - 1)) for share in TELEPORTED] if jump else []
        for index in moved:
            env.set_state(chosen[index])
            model = env.data.model
            at = int(model.jnt_qposadr[model.body_jntadr[loose_object(env)]])
            # towards the middle of the table, so that it stays in the picture
            env.data.qpos[at] -= np.copysign(jump, env.data.qpos[at])
            mujoco.mj_forward(model, env.data)
            frames[index] = env.render()
        return frames, moved
    finally:
        env.close()


def _imagined(profile: Profile, task: str, source: str, lora: bool | Path = True,
              distraction: Distraction | None = None) -> Goal:
    """A goal as `pipeline.make_goals` makes it, from another picture of the start or by another LoRA."""
    from .pipeline import START_SEED, first_frame, load_scorer, load_video_model

    known, model = get_task(task), load_video_model(profile, lora)
    start = first_frame(task, model.image_size, distraction=distraction)
    return generate_goal(model, load_scorer(profile), start, known.prompt, known.paraphrases, seed=START_SEED,
                         steps=profile.video.inference_steps, guidance=profile.video.guidance,
                         provenance={"task": task, "start_seed": START_SEED, "goal_source": source}
                         | ({"distraction": distraction.name} if distraction else {}))


def in_domain_lora(profile: Profile) -> Path:
    """A LoRA of the same base model, finetuned for as long on training episodes of the evaluated tasks; kept in build/.
    """
    from .video_training import finetune_lora

    where = profiles.paths(profile)
    out = where.build / "video_in_domain"
    if not (out / "lora").is_dir():
        demos.make_demos(where.in_domain_demos, demos.plan_in_domain(profile), jobs=2)
        note = where.results / "video" / "provenance_finetune.json"
        steps = files.read_json(note)["steps"] if note.is_file() else None  # as many as the held-out model's LoRA had
        finetune_lora(where.in_domain_demos, out, profile.video, model=profile.video.pretrained or where.video_model,
                      steps=steps, in_domain=True)
    return out / "lora"


def _in_domain(profile: Profile, task: str) -> Goal:
    return _imagined(profile, task, "in_domain", lora=in_domain_lora(profile))


def _seen_otherwise(kind: str, source: str) -> Callable[[Profile, str], Goal]:
    return lambda profile, task: _imagined(profile, task, source, distraction=Distraction(kind, DIFFICULTY))


def _real(jump: float) -> Callable[[Profile, str], Goal]:
    def make(profile: Profile, task: str) -> Goal:
        from .pipeline import START_SEED, load_scorer

        own = Goal.load(profiles.paths(profile).goals / task)
        frames, moved = expert_video(task, own.video.shape[1], len(own.video), START_SEED, jump)
        known, scorer = get_task(task), load_scorer(profile)
        queries = known.paraphrases or (known.prompt,)
        scores = scorer.score(frames, queries)
        return Goal(known.prompt, queries, frames, scores, select_frame(scores), "clip", "demonstration", {
            "task": task, "start_seed": START_SEED, "scorer": scorer.identity,
            "goal_source": "teleport" if jump else "expert_video",
            **({"teleported_frames": moved, "metres": jump} if jump else {})})

    return make


def _random_frame(profile: Profile, task: str) -> Goal:
    """A draw for each task of its own; were CLIP's choice among them, one draw could be the same goal again."""
    from .pipeline import START_SEED

    own = Goal.load(profiles.paths(profile).goals / task)
    others = np.delete(np.arange(len(own.scores)), own.index)
    index = int(np.random.default_rng([START_SEED, zlib.crc32(task.encode())]).choice(others))
    return _moved(own, index, "random_frame")


def _frame(profile: Profile, task: str, index: int) -> Goal:
    own = Goal.load(profiles.paths(profile).goals / task)
    if index >= len(own.video):
        raise InputError(f"the goal video of {task!r} has no frame {index}; valid: 0 to {len(own.video) - 1}")
    return _moved(own, index, f"frame_{index}")


def _moved(own: Goal, index: int, source: str) -> Goal:
    """The goal with another of its frames as the goal frame. Of the ways that a `Goal` knows, "random" is the one in
    which the score has no part."""
    return replace(own, index=index, selection="random",
                   provenance=own.provenance | {"goal_source": source, "clip_index": own.index})


SOURCES: dict[str, Callable[[Profile, str], Goal]] = {
    "in_domain": _in_domain, "camera": _seen_otherwise("camera", "camera"),
    "recoloured": _seen_otherwise("colour", "recoloured"), "expert_video": _real(0.0), "teleport": _real(JUMP),
    "random_frame": _random_frame}
"""Those with a name of their own; `frame_<k>` is one for every frame."""


def maker(source: str) -> Callable[[Profile, str], Goal]:
    """What makes the goals of a source, (profile, task) -> Goal; an unknown source is an InputError."""
    numbered = re.fullmatch(r"frame_(\d+)", source)
    if numbered:
        return functools.partial(_frame, index=int(numbered[1]))
    if source not in SOURCES:
        raise errors.unknown("source of goal videos", source, [*SOURCES, "frame_<k>"])
    return SOURCES[source]


def goal_directions(profile: str | Profile, task: str) -> np.ndarray:
    """(K, d) float32: z = sqrt(d) B(psi(I)) / |B(psi(I))| of each frame I of the profile's own goal video, what pi_z
    would be handed were that frame the goal."""
    from .forward_backward import ForwardBackward
    from .pipeline import load_encoder

    profile = profiles.get_profile(profile)
    where = profiles.paths(profile)
    fb = ForwardBackward.load(where.fb / f"{task}.pt", device=profile.device)
    features = load_encoder(profile).encode(Goal.load(where.goals / task).video)
    return np.stack([fb.goal_z(one) for one in features])


def folder(profile: str | Profile, source: str, task: str) -> Path:
    """Where the goal of a source is kept."""
    return profiles.paths(profile).results / "goal_sources" / source / task


def wanted(profile: str | Profile) -> tuple[list[tuple[str, str]], list[tuple[str, str, Any]]]:
    """The variants that the profile's grid declares and that can be made: (task, source) of goals, and (task, setting,
    value) of F and B with another setting ("fb.encoder", "fb.action_aware"). Only of tasks that F and B are trained
    for, and of F and B that are trained beforehand."""
    from .experiments import grid

    profile = profiles.get_profile(profile)
    goals, settings = {}, {}
    for run in grid(profile):
        if run.task not in profiles.fb_tasks(profile):
            continue
        for name, value in run.changes:
            if name == "goal":
                goals[run.task, value] = None
            elif name.startswith("fb.") and (METHODS[run.method].fb == "explored" or name == "fb.encoder"):
                settings[run.task, name, value] = None
    for _, source in goals:
        maker(source)
    return list(goals), list(settings)


def _left(profile: Profile, tasks: Sequence[str] | None = None) -> dict[Path, tuple[Any, ...]]:
    """The normalisers of the variants (of `tasks`) that are still to be made -> (task, source) or (task, setting,
    value). F and B with another setting are there when their weights are, which a clone may lack."""
    where = profiles.paths(profile)
    goals, settings = wanted(profile)
    found: dict[Path, tuple[Any, ...]] = {}
    for task, source in goals:
        path = where.fb / f"{task}+goal-{source}-normaliser.json"
        if not (path.is_file() and (folder(profile, source, task) / "goal.json").is_file()):
            found[path] = (task, source)
    for task, name, value in settings:
        path = where.fb / f"{task}+{change_name(name, value)}-normaliser.json"
        if not (path.is_file() and path.with_name(path.name.replace("-normaliser.json", ".pt")).is_file()):
            found[path] = (task, name, value)
    return {path: which for path, which in found.items() if not tasks or which[0] in tasks}


def missing(profile: str | Profile, tasks: Sequence[str] | None = None) -> bool:
    """Whether a variant (of `tasks`) is still to be made."""
    return bool(_left(profiles.get_profile(profile), tasks))


def make(profile: str | Profile, tasks: Sequence[str] | None = None) -> None:
    """Every declared variant (of `tasks`) that is not there: the goal, and the normaliser of the frame-level reward
    toward it; F and B with another setting."""
    from .pipeline import exploration, load_encoder, normalise

    profile = profiles.get_profile(profile)
    left = _left(profile, tasks)
    encoder = load_encoder(profile) if any(len(one) == 2 for one in left.values()) else None
    for path, (task, *which) in left.items():
        if len(which) == 2:
            _with_setting(profile, task, *which)
            continue
        target = folder(profile, which[0], task)
        if not (target / "goal.json").is_file():
            maker(which[0])(profile, task).save(target)
        normalise(profile, exploration(profile, task, encoder), encoder, Goal.load(target),
                  profiles.paths(profile).fb / f"{task}.pt", path)


def _with_setting(profile: Profile, task: str, name: str, value: Any) -> None:
    """F and B of one task with another setting, trained as the profile's own are; psi too where it is what changes."""
    from .pipeline import exploration, exploratory_frames, load_encoder, normalise, train_explored

    where, stem = profiles.paths(profile), f"{task}+{change_name(name, value)}"
    axes, weights = where.fb / f"{stem}-encoder.npz", where.fb / f"{stem}.pt"
    profile = replace(profile, fb=replace(profile.fb, **{name.removeprefix("fb."): value}))
    other = name in ("fb.encoder", "fb.components")
    encoder = load_encoder(profile, fitted=not other)
    if other:
        if not axes.is_file():
            encoder.fit(exploratory_frames(profile, [task])).save(axes, np.float16)
        encoder.load_pca(axes)
    replay = exploration(profile, task, encoder)
    if not weights.is_file():
        train_explored(profile, encoder, replay)[0].save(weights, resume=False)
    normalise(profile, replay, encoder, Goal.load(where.goals / task), weights, where.fb / f"{stem}-normaliser.json")
