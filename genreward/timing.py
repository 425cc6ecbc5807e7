"""What things cost, measured in pairs: every piece once a round, in turns, in one process.

A time alone says little on a machine that does other work as well; a ratio of two times does, when both were slowed
alike. So all pieces of a benchmark are timed in each round, every second round in the opposite order, and what is
reported is the median over rounds of the ratio *within* a round, with its quartiles: by the clock, and in processor
time of all threads.

Stands at the end of the flow, beside `comparison`: it calls envs, rewards, agents and the study, and nothing calls it
but the scripts in `benchmarks/`, each of which writes `results/bench/<name>.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from . import envs, files, forward_backward, profiles, results, rounding, training
from .errors import InputError
from .profiles import Profile
from .rewards import GoalRewardEnv
from .tasks import get_task

QUICK = 2  # rounds of a quick look
ALONE = "environment alone"
REFERENCE = "pixel_cosine"  # what the study's models are measured against

clock: Callable[[], float] = time.perf_counter
processor: Callable[[], float] = time.process_time  # of every thread of the process


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Something to be timed: one call of `run` does `units` units of work (steps, updates, frames); with `elsewhere`
    in another process, and returns what `seconds` would have there."""

    run: Callable[[], Any]
    units: float = 1.0
    elsewhere: bool = False

    def seconds(self) -> tuple[float, float]:
        """Run it once: the seconds that this took by the clock, and in processor time."""
        began, worked = clock(), processor()
        found = self.run()
        return found if self.elsewhere else (clock() - began, processor() - worked)


def in_turns(pieces: Mapping[str, Piece], rounds: int, warm: int = 1) -> dict[str, np.ndarray]:
    """Seconds that a unit of each piece takes: name -> (rounds, 2), by the clock and in processor time.

    Each round calls every piece once, every second round in the opposite order: a machine that grows slower or faster
    then favours nobody. `warm` rounds before them do not count.
    """
    check_rounds(rounds)
    if not pieces or any(piece.units <= 0 for piece in pieces.values()):
        raise InputError("nothing to time: give at least one piece, each of more than 0 units of work")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pieces}
    with tqdm(total=(warm + rounds) * len(pieces), desc="timing", leave=False) as bar:
        for number in range(-warm, rounds):
            for name in list(pieces) if number % 2 == 0 else reversed(pieces):
                seconds = pieces[name].seconds()
                if number >= 0:
                    taken[name].append((seconds[0] / pieces[name].units, seconds[1] / pieces[name].units))
                bar.update()
    return {name: np.array(rows) for name, rows in taken.items()}


def lasting(piece: Piece, seconds: float = 0.25) -> Piece:
    """The piece, repeated in one call until that takes about `seconds`: on a busy machine a call shorter than a time
    slice is seldom interrupted, a longer one always, and by the clock the two cannot be compared. Calls it twice."""
    piece.run()
    began = clock()
    piece.run()
    times = max(1, math.ceil(seconds / max(clock() - began, 1e-6)))

    def repeated() -> None:
        for _ in range(times):
            piece.run()

    return Piece(repeated, times * piece.units)


def check_rounds(rounds: int) -> None:
    """InputError unless there is at least one round."""
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")


def ratio(taken: Mapping[str, np.ndarray], piece: str, over: str) -> dict[str, Any]:
    """How many times the seconds of `over` the piece takes, unit for unit: median over rounds of the ratio within a
    round (`ratio`), its quartiles (`low`, `high`), and the same in processor time (`processor_` before the name)."""
    if np.any(taken[over] <= 0):
        raise InputError(f"{over!r} took no measurable time; give it more to do")
    return {"piece": piece, "over": over, "rounds": len(taken[piece]),
            **_spread(taken[piece] / taken[over], "ratio", "low", "high")}


def added(taken: Mapping[str, np.ndarray], piece: str, over: str) -> dict[str, Any]:
    """The seconds a unit that the piece takes more than `over`: median over rounds of the difference within a round
    (`seconds`), its quartiles (`low`, `high`), and the same in processor time."""
    return {"piece": piece, "over": over, "rounds": len(taken[piece]),
            **_spread(taken[piece] - taken[over], "seconds", "low", "high")}


def _spread(values: np.ndarray, *names: str) -> dict[str, float]:
    """Median, lower and upper quartile of values (rounds, 2) by column, under `names` and `processor_<names>`."""
    middle, low, high = np.quantile(values, (0.5, 0.25, 0.75), axis=0)
    return {prefix + name: float(numbers[column]) for column, prefix in enumerate(("", "processor_"))
            for name, numbers in zip(names, (middle, low, high), strict=True)}


def summary(taken: Mapping[str, np.ndarray], unit: str, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What a benchmark writes: `pieces`, medians a unit and every round's seconds, and `ratios` of the `pairs`
    (piece, over)."""
    medians = {name: np.median(rows, axis=0) for name, rows in taken.items()}
    return {"unit": unit, "pieces": [
        {"piece": name, "seconds": float(by_clock), "processor_seconds": float(by_processor),
         "per_second": float(1 / by_clock) if by_clock > 0 else None, "rounds": taken[name].tolist()}
        for name, (by_clock, by_processor) in medians.items()],
        "ratios": [ratio(taken, piece, over) for piece, over in pairs]}


# --- what reward models add to an environment step --------------------------------------------------------------------


@contextmanager
def overhead_pieces(task: str, profile: str | Profile, rounds: int
                    ) -> Iterator[tuple[dict[str, Piece], dict[str, Any]]]:
    """Whole episodes of random actions, the same for every piece: the environment alone, and paid by GenReward as
    printed (F and B frozen; drawing the frames that it needs, or every frame), as printed while F and B learn from the
    agent's replay, and by its sound variant. A unit is 1,000 environment steps."""
    profile = profiles.get_profile(profile)
    get_task(task)
    run = {method: training.Run(task, method, profile=profile.name) for method in ("genreward", "genreward_sound")}
    steps = profile.episode_steps
    frames: dict[str, int] = {ALONE: 0}
    made: dict[str, gymnasium.Env] = {ALONE: _task_env(task, profile)}

    def paid(name: str, method: str, parts: dict[str, Any], every_frame: bool = False) -> GoalRewardEnv:
        model = training.build_reward(run[method], profile, parts)
        if every_frame:
            model.needs_frame = lambda t, episode_steps: True  # of this object only
        frames[name] = sum(model.needs_frame(t, steps) for t in range(steps + 1))
        made[name] = GoalRewardEnv(_task_env(task, profile), model, training.METHODS[method].env_reward,
                                   profile.reward.sparse_interval)
        return made[name]

    try:
        printed = training.load_parts(run["genreward"], profile)
        printed["fb"].freeze()  # what a step costs does not depend on what F and B have learned
        paid("genreward", "genreward", printed)
        paid("genreward, every frame drawn", "genreward", printed, every_frame=True)
        learning = training.load_parts(run["genreward"], profile)
        # it learns from its second episode on: the first, which fills the replay, is the round that does not count
        made["genreward, F and B learning"] = training.OnlineFB(
            paid("genreward, F and B learning", "genreward", learning), learning["fb"], (rounds + 2) * steps, steps, 0)
        paid("genreward_sound", "genreward_sound", training.load_parts(run["genreward_sound"], profile))
        yield ({name: Piece(_episodes(env, steps), steps / 1000) for name, env in made.items()},
               {"episode_steps": steps, "interval": profile.reward.interval, "image_size": profile.image_size,
                "frames_drawn_an_episode": frames})
    finally:
        for env in made.values():
            env.close()


def _task_env(task: str, profile: Profile) -> gymnasium.Env:
    return envs.make_env(task, episode_steps=profile.episode_steps, size=profile.image_size)


def _episodes(env: gymnasium.Env, steps: int) -> Callable[[], None]:
    """One episode of random actions a call; the n-th call is the same in every environment."""
    count = 0

    def episode() -> None:
        nonlocal count
        actions = np.random.default_rng([count, 7]).uniform(-1, 1, (steps, *env.action_space.shape))
        env.reset(seed=count)
        for action in actions.astype(np.float32):
            env.step(action)
        count += 1

    return episode


def reward_overhead(task: str = "pick-place", rounds: int = 3, profile: str | Profile = "laptop") -> dict[str, Any]:
    """What paying GenReward adds to 1,000 environment steps, and what drawing only the needed frames saves.

    Besides `summary`'s: `added`, seconds per 1,000 steps over the environment alone, and the frames drawn an episode.
    """
    check_rounds(rounds)
    with overhead_pieces(task, profile, rounds) as (pieces, about):
        taken = in_turns(pieces, rounds)
    others = [name for name in taken if name != ALONE]
    return {"task": task, "profile": profiles.get_profile(profile).name, **about,
            **summary(taken, "1,000 environment steps", [
                *((name, ALONE) for name in others), ("genreward, every frame drawn", "genreward")]),
            "added": [added(taken, name, ALONE) for name in others]}


# --- updates of F and B -----------------------------------------------------------------------------------------------


def fb_pieces(task: str, profile: str | Profile, sizes: str = "paper", steps: int = 64, updates: int = 10,
              encoder: Any = None) -> tuple[dict[str, Piece], dict[str, Any]]:
    """Updates of F and B of the sizes of the profile `sizes`: with psi of the replay's frames kept, and with both
    frames of each transition of the batch encoded anew; as printed ("goal" targets), and kept with "buffer" targets.

    psi is `profile`'s own encoder unless another is given: for laptop the small VAE of 64x64 frames, far cheaper than
    the DINOv3 of the paper, so the ratio is from below. The replay is an episode's beginning of `steps` random steps;
    how long it is does not change what an update costs. `updates`: in one call of a piece that keeps its features.
    """
    if steps < 1 or updates < 1:
        raise InputError(f"steps and updates must be at least 1, got {steps} and {updates}")
    profile, config = profiles.get_profile(profile), profiles.get_profile(sizes).fb
    get_task(task)
    if encoder is None:
        from .pipeline import load_encoder

        encoder = load_encoder(profile)
    env = envs.make_env(task, size=profile.video.image_size)
    try:
        seen = envs.rollout(env, envs.random_policy(np.random.default_rng(0), actions=env.action_space.shape[0]),
                            steps=steps)
    finally:
        env.close()
    kept, goal = encoder.encode(seen.frames), encoder.encode(seen.frames[-1:])[0]

    def learning(targets: str, anew: bool, count: int) -> Piece:
        fb = forward_backward.ForwardBackward(encoder.dim, seen.actions.shape[1], replace(config, fb_targets=targets))
        fb.fit_scaler(kept)
        rng = np.random.default_rng(1)

        def run(count: int = count, anew: bool = anew) -> None:
            for _ in range(count):
                rows = rng.integers(0, len(seen), config.batch)
                before, after = ((encoder.encode(seen.frames[at]) if anew else kept[at]) for at in (rows, rows + 1))
                fb.update({"s": before, "a": seen.actions[rows], "next_s": after}, goal)

        run(1, False)  # the first update makes the optimisers' moments; the encoder has been called above
        return Piece(run, count)

    return ({"features kept": learning("goal", False, updates), "encoded anew": learning("goal", True, 1),
             "features kept, buffer targets": learning("buffer", False, updates)},
            {"sizes": {**asdict(config), "profile": sizes, "feature_dim": encoder.dim},
             "encoder": {**encoder.describe(), "image_size": int(seen.frames.shape[1])},
             "frames_encoded_an_update": 2 * config.batch})


def fb_updates(task: str = "pick-place", rounds: int = 3, profile: str | Profile = "laptop") -> dict[str, Any]:
    """Updates of F and B a second at the paper's sizes, with features kept against frames encoded anew."""
    check_rounds(rounds)
    pieces, about = fb_pieces(task, profile)
    taken = in_turns(pieces, rounds, warm=0)  # each has been called; a round of encoding is too dear to throw away
    return {"task": task, "profile": profiles.get_profile(profile).name, **about,
            **summary(taken, "update", [("encoded anew", "features kept"),
                                        ("features kept, buffer targets", "features kept")])}


# --- steps of the agents ----------------------------------------------------------------------------------------------


@contextmanager
def agent_pieces(task: str, profile: str | Profile, agents: Sequence[str] = ("sac", "dreamer")
                 ) -> Iterator[tuple[dict[str, Piece], dict[str, Any]]]:
    """An episode of each of the agents, paid densely and learning as a run of the profile does, and one of random
    actions without an agent. The agents first take the steps after which they begin to learn. A unit is a step."""
    profile = profiles.get_profile(profile)
    get_task(task)
    steps = profile.episode_steps
    made = {ALONE: _task_env(task, profile)}
    pieces = {ALONE: Piece(_episodes(made[ALONE], steps), steps)}
    try:
        for name in agents:
            run = training.Run(task, "dense", name, profile=profile.name)
            made[name] = training.build_env(run, profile, {}, training.build_reward(run, profile, {}))
            agent = training._agent(run, profile, made[name])
            learn = _learner(name, agent, made[name], profile)
            begins = profile.sac.learning_starts if name == "sac" else profile.dreamer.prefill
            learn(math.ceil(begins / steps) * steps)
            pieces[name] = Piece(lambda learn=learn: learn(steps), steps)
        dreamer = profile.dreamer
        yield pieces, {"episode_steps": steps, "updates_per_step": {
            "sac": profile.sac.gradient_steps / profile.sac.train_freq,
            "dreamer": dreamer.train_ratio / (dreamer.batch * dreamer.length)}, "observation": {
            "sac": "state", "dreamer": dreamer.observation}}
    finally:
        for env in made.values():
            env.close()


def _learner(name: str, agent: Any, env: gymnasium.Env, profile: Profile) -> Callable[[int], None]:
    """So many more steps of an agent, a whole number of episodes, with the updates that they owe."""
    taken = 0

    def learn(steps: int) -> None:
        nonlocal taken
        if name == "sac":
            agent.learn(steps)
        else:
            training._learn_dreamer(agent, env, profile.dreamer.observation == "pixels", steps, taken, lambda: None)
        taken += steps

    return learn


def agent_steps(task: str = "pick-place", rounds: int = 5, profile: str | Profile = "laptop") -> dict[str, Any]:
    """Steps a second of SAC and DreamerV3, learning included, and against the environment alone."""
    check_rounds(rounds)
    with agent_pieces(task, profile) as (pieces, about):
        taken = in_turns(pieces, rounds)
    return {"task": task, "profile": profiles.get_profile(profile).name, **about, **summary(
        taken, "environment step", [("sac", ALONE), ("dreamer", ALONE), ("dreamer", "sac")])}


# --- whose code the sums take -----------------------------------------------------------------------------------------


def _pieces_as_if(maker: str, task: str, profile: str, end: Any) -> None:
    """The life of a process whose MKL is told of `maker`'s processor: sends the units of its pieces (or the InputError
    that kept it from making them), then the seconds of each piece that it is asked for by name, until asked for None.
    """
    rounding.as_if(maker)
    with contextlib.ExitStack() as made:
        try:
            updates, _ = fb_pieces(task, profile, sizes=profile)
            agents, _ = made.enter_context(agent_pieces(task, profile, ("sac",)))
            pieces = {"sac": agents["sac"], "F and B": updates["features kept, buffer targets"]}
        except InputError as problem:
            end.send(problem)
            return
        end.send({name: piece.units for name, piece in pieces.items()})
        for name in iter(end.recv, None):
            end.send(pieces[name].seconds())


@contextmanager
def sums_pieces(task: str, profile: str | Profile) -> Iterator[dict[str, Piece]]:
    """A step of SAC, its environment's included, and an update of F and B ("buffer" targets) at the profile's sizes:
    once with MKL's code for Intel's processors, once with that for other makers' (`rounding`), each in a process of its
    own, since what MKL has once chosen it keeps. InputError where MKL cannot be told."""
    profile = profiles.get_profile(profile)
    get_task(task)
    for maker in rounding.MAKERS:
        rounding.check(maker)
    apart, pieces, working = multiprocessing.get_context("spawn"), {}, {}

    def asked(end: Any, name: str) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            end.send(name)
            return end.recv()
        return run

    try:
        for maker in rounding.MAKERS:
            end, theirs = apart.Pipe()
            process = apart.Process(target=_pieces_as_if, args=(maker, task, profile.name, theirs), daemon=True)
            process.start()
            theirs.close()  # theirs alone now: should it die, `recv` ends instead of waiting
            working[maker] = process, end
        for maker, (_, end) in working.items():
            units = end.recv()
            if isinstance(units, InputError):
                raise units
            pieces |= {f"{name}, {maker}": Piece(asked(end, name), count, elsewhere=True)
                       for name, count in units.items()}
        yield pieces
    finally:
        for process, end in working.values():
            with contextlib.suppress(OSError):
                end.send(None)
            process.join(10)
            process.kill()


def sums(task: str = "pick-place", rounds: int = 5, profile: str | Profile = "laptop") -> dict[str, Any]:
    """What MKL's code for other makers' processors takes, against that for Intel's, on this processor."""
    check_rounds(rounds)
    with sums_pieces(task, profile) as pieces:
        taken = in_turns(pieces, rounds)
    return {"task": task, "profile": profiles.get_profile(profile).name, "own": rounding.own(), **summary(
        taken, "environment step, or update", [(f"{what}, other", f"{what}, intel") for what in ("sac", "F and B")])}


# --- scoring ----------------------------------------------------------------------------------------------------------


def scoring_pieces(task: str, profile: str | Profile, models: Sequence[str] | None = None, steps: int = 64
                   ) -> tuple[dict[str, Piece], dict[str, Any]]:
    """The study's models (or those named, and the reference), each scoring the same `steps` first steps of an expert's
    episode. A unit is a frame of it, looked at or not. Those that cannot be made are in `absent`, with the reason."""
    from . import reward_study

    if steps < 2:
        raise InputError(f"steps must be at least 2, got {steps}")
    profile = profiles.get_profile(profile)
    expert = envs.expert_policy(task)
    parts = reward_study.Parts(profile)
    made, absent = reward_study.build_models(profile, get_task(task).name, [REFERENCE, *(
        name for name in models or reward_study.MODELS if name != REFERENCE)], parts)
    if REFERENCE in absent:
        raise InputError(f"model {REFERENCE!r}: {absent[REFERENCE]}")
    env = envs.make_env(task, size=profile.video.image_size)
    try:
        episode = envs.rollout(env, expert, steps=steps)
    finally:
        env.close()

    def scoring(model: Any) -> Callable[[], None]:
        def run() -> None:
            for memo in parts.memos:  # what another model has asked for must be worked out again
                memo.forget()
            model.score(episode)
        return run

    return ({name: Piece(scoring(model), len(episode) + 1) for name, model in made.items()},
            {"frames": len(episode) + 1, "image_size": profile.video.image_size,
             "interval": {name: model.interval for name, model in made.items()}, "absent": absent})


def scoring(task: str = "pick-place", rounds: int = 5, profile: str | Profile = "laptop",
            models: Sequence[str] | None = None) -> dict[str, Any]:
    """Frames a second that each reward model scores, and against `pixel_cosine`, which has a turn beside each of them.
    """
    check_rounds(rounds)
    pieces, about = scoring_pieces(task, profile, models)
    reference = lasting(pieces[REFERENCE])
    taken: dict[str, np.ndarray] = {REFERENCE: np.empty((0, 2))}
    ratios = []
    for name, piece in pieces.items():
        if name == REFERENCE:
            continue
        pair = in_turns({REFERENCE: reference, name: lasting(piece)}, rounds, warm=0)
        ratios.append(ratio(pair, name, REFERENCE))
        taken[name], taken[REFERENCE] = pair[name], np.concatenate([taken[REFERENCE], pair[REFERENCE]])
    if not ratios:
        raise InputError(f"no model to compare with {REFERENCE!r}: " + "; ".join(about["absent"].values()))
    return {"task": task, "profile": profiles.get_profile(profile).name, **about, **summary(taken, "frame", ()),
            "ratios": ratios}


# --- command lines ----------------------------------------------------------------------------------------------------


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """What every benchmark's command line takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pick-place")
    parser.add_argument("--profile", default="laptop", help="whose sizes and weights")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"times that each piece is timed ({rounds})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds, to look at: written to build/bench")
    return parser


def bench_file(name: str, quick: bool = False) -> Path:
    """Where a benchmark's numbers go: results/bench/<name>.json; a quick look replaces no record."""
    return profiles.paths("smoke").root / ("build" if quick else "results") / "bench" / f"{name}.json"


def report(name: str, measure: Callable[..., dict[str, Any]], arguments: argparse.Namespace, **more: Any) -> None:
    """Measure as the command line says, print what was found and write it with its provenance, whole or not at all."""
    began = time.perf_counter()
    found = measure(arguments.task, QUICK if arguments.quick else arguments.rounds, arguments.profile, **more)
    files.write_json(bench_file(name, arguments.quick), {**found, "quick": arguments.quick, "provenance":
        results.provenance(round(time.perf_counter() - began, 1), threads=torch.get_num_threads(),
                           load=round(os.getloadavg()[0], 1))})
    print(told(found))


def told(found: Mapping[str, Any]) -> str:
    """The numbers of a benchmark as text: medians of the pieces, then the ratios with their quartiles."""
    pieces = pd.DataFrame(found["pieces"])[["piece", "seconds", "processor_seconds", "per_second"]]
    lines = [f"{found['task']}, {found['profile']}; a unit: {found['unit']}",
             pieces.to_string(index=False, float_format="{:.4g}".format)]
    for one in found["ratios"]:
        lines.append("{piece}: {ratio:.3g} [{low:.3g}, {high:.3g}] times the seconds of {over} by the clock, "
                     "{processor_ratio:.3g} [{processor_low:.3g}, {processor_high:.3g}] in processor time"
                     .format(**one))
    for one in found.get("added", ()):
        lines.append("{piece}: {seconds:.3g} [{low:.3g}, {high:.3g}] s more by the clock, {processor_seconds:.3g} "
                     "[{processor_low:.3g}, {processor_high:.3g}] s in processor time".format(**one))
    lines += [f"{name}: not measured; {why}" for name, why in found.get("absent", {}).items()]
    return "\n".join(lines)
