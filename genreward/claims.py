"""The honesty table: each claim of the paper, what was measured of it here, and what may be said.

After `evidence` and the study, before the figures. A verdict is worked out from records by a rule that is written down
beside the claim; nobody types one. Four are possible:

- *reproduced*: the whole 95% interval lies on the claimed side (on every task, where the claim is of several; with a
  correction where the same seeds serve many comparisons), and, where the claim is that agents do better, theirs lies
  above random actions too: who has learned nothing has not learned more. Of two claims the rule is another, and said:
  of Fig. 4 a share of starts, of the order of frames a rank correlation and its p;
- *not reproduced*: measured, and it does not. *Undecided* is added where on no task anything lies on the other side
  either, judged by the same rule: too few seeds or clips, or no effect, but nothing that contradicts the claim;
- *not testable here*: it needs what no profile of two CPU cores has (the hub's weights, real videos, GPU weeks);
- *not measured yet*: the runs that would tell are declared and not made; the command is named.

    python -m genreward.claims --profile laptop                # the table, in Markdown
    python -m genreward.claims --profile laptop --write README.md   # put it, and what agents learned, there
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from . import errors, evidence, figures, files, profiles, reward_study, study
from .errors import Absent, InputError
from .profiles import Profile
from .reward_metrics import printed, sees_fakes

REPRODUCED, NOT, UNTESTABLE, OPEN = "reproduced", "not reproduced", "not testable here", "not measured yet"
VERDICTS = (REPRODUCED, NOT, UNTESTABLE, OPEN)
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
LEARNED = "<!-- learned: begin -->", "<!-- learned: end -->"
ON_PAPERS_TASKS = "<!-- paper's tasks: begin -->", "<!-- paper's tasks: end -->"


class Finding(NamedTuple):
    """What was measured of a claim: one of `VERDICTS`, the numbers with intervals and n in words; of what is not
    reproduced, whether nothing lies on the other side either; whether some of the tasks are not measured yet."""

    verdict: str
    numbers: str
    undecided: bool = False
    part: bool = False


@dataclass(frozen=True)
class Claim:
    """item: figure or table of the paper; says: the claim; rule: what counts as reproduced; notebook: where to look."""

    item: str
    says: str
    rule: str
    notebook: str
    find: Callable[[Profile], Finding]


# --- from the study ---------------------------------------------------------------------------------------------------


def _videos(profile: Profile) -> Finding:
    table = study.load_generation(profile)
    if table is None:
        return Finding(OPEN, f"python -m genreward.pipeline --profile {profile.name} --only generation")
    found = study.generation_summary(table)
    passed = study.generation_verdict(found)
    names = ", ".join(task for task, good in passed.items() if good) or "none"
    starts = int(found["n"].min())
    nearer = found.loc[found["metric"].isin(study.JUDGED), [name for name in found if name.startswith("beats_")]]
    below = any(study.share_interval(share, starts).high < 0.5 for share in nearer.to_numpy().flat)
    return Finding(REPRODUCED if passed.all() else NOT, f"{int(passed.sum())} of {len(passed)} held-out tasks "
                   f"({names}), {starts} starts each", not passed.all() and not below)


def _hits(clips: str) -> Callable[[Profile], Finding]:
    """CLIP's choice must show success more often than chance on every task, one interval above the other."""

    def find(profile: Profile) -> Finding:
        hits = reward_study.goal_frame_hits(profile)
        hits = hits[hits["clips"] == clips].set_index(["task", "rule"])
        if ("all", "clip") not in hits.index:
            return Finding(OPEN, f"python -m genreward.reward_study goals --profile {profile.name}")
        tasks = [task for task in dict.fromkeys(hits.index.get_level_values("task")) if task != "all"]
        good = [task for task in tasks if hits.loc[(task, "clip"), "low"] > hits.loc[(task, "random"), "high"]]
        bad = [task for task in tasks if hits.loc[(task, "clip"), "high"] < hits.loc[(task, "random"), "low"]]
        chosen, chance = hits.loc[("all", "clip")], hits.loc[("all", "random")]
        return Finding(REPRODUCED if good == tasks else NOT,
                       f"{printed(chosen)} of {int(chosen['n'])} clips; a frame at random {printed(chance)}; "
                       f"above it on {len(good)} of {len(tasks)} tasks", good != tasks and not bad)

    return find


def _of_model(model: str, metric: str, coin: float, what: str, control: str | None = None
              ) -> Callable[[Profile], Finding]:
    """A metric of one reward model, whose interval must lie above a coin's value on every task. control: a model that
    has learned nothing, printed beside it."""

    def find(profile: Profile) -> Finding:
        everything = reward_study.recorded_quality(profile)
        found = everything[everything["metric"] == metric].set_index(["model", "task"])
        if (model, "all") not in found.index:
            return Finding(OPEN, f"python -m genreward.reward_study all --profile {profile.name}")
        of_tasks = found.loc[model].drop(index="all")
        passed = of_tasks["low"] > coin
        if metric == "function":  # who wins by the oddity has not seen the function
            passed &= pd.Series([sees_fakes(everything, model, task) for task in of_tasks.index], of_tasks.index)
        good, row = int(passed.sum()), found.loc[(model, "all")]
        below = bool((found.loc[model, "high"] < coin).any())
        known = (control, "all") in found.index
        beside = f"; bare pixels, first frame removed, {printed(found.loc[(control, 'all')])}" if known else ""
        return Finding(REPRODUCED if good == len(of_tasks) else NOT,
                       f"{what} {printed(row)}, n={int(row['n'])} starts; above {coin:g} on {good} of {len(of_tasks)} "
                       f"tasks{beside}", good < len(of_tasks) and not below)

    return find


# --- from the grid ----------------------------------------------------------------------------------------------------


def _runs(name: str, ours: Sequence[str], against: Sequence[str] | None = None, curves: Sequence[str] | None = None,
          longer: str | None = None) -> Callable[[Profile], Finding]:
    """Every method of `ours` that has finished runs must end above its control on every task with both, and above
    random actions (`evidence.beyond_random`).

    against: the controls' printed names, all of which must be beaten (those that the profile declares); None: the same
    environment reward alone. curves: only these (printed names); None: the methods as they are, and where the picture
    is distracted, if that is declared (the control is distracted as well).
    longer: the experiment whose runs are the controls. Nothing is decided while parts are missing that could turn the
    verdict: declared seeds; random actions of a task, and tasks or controls where all is well so far.
    """

    def find(profile: Profile) -> Finding:
        declared = evidence.members(profile, name)
        controls = [None] if against is None else [curve for curve in against if curve in set(declared["curve"])]
        unchanged = (declared["variant"] == "") | declared["variant"].str.startswith(evidence.DISTRACTED)
        shown = set(declared.loc[declared["method"].isin(ours) & unchanged, "curve"] if curves is None else curves)
        sides = [evidence.contrasts(profile, name, control, longer=longer) for control in controls]
        sides = [side[side["method"].isin(ours) & side["curve"].isin(shown) & (side["n"] >= 2)] for side in sides]
        found = pd.concat(sides, ignore_index=True)
        if found.empty:
            return Finding(OPEN, f"make results PROFILE={profile.name} ONLY={longer or name}")
        seeds = declared.groupby(["task", "curve"])["seed"].nunique()
        whole = [row.n >= seeds[row.task, row.curve] for row in found.itertuples()]
        said, judged = _judged(profile, name, found)
        told = _by_curve(found, said, named=len(sides) > 1 or longer is not None)
        if longer is not None:  # a control that goes on need not stand best where it ends
            later = evidence.contrasts_later(profile, name, longer)
            worst = later[later["curve"].isin(found["curve"])].sort_values("value").iloc[0]
            told.append(f"where the control stands best, at {worst['step']:,} steps: {evidence.gained(worst)}")
        wanted = declared.loc[declared["method"].isin(ours), "task"].nunique()
        part = f"{found['task'].nunique()} of {wanted} tasks so far; " if found["task"].nunique() < wanted else ""
        begun = declared[declared["method"].isin(found["method"]) & declared["task"].isin(found["task"])]
        begun = set(begun.loc[begun["curve"].isin(shown), ["task", "curve"]].itertuples(index=False, name=None))
        missing = any(side.empty for side in sides) or begun > set(zip(found["task"], found["curve"], strict=True))
        decided = [side for side, full in zip(judged, whole, strict=True) if full]
        if any(side in ("open", "worse") for side in decided):
            return Finding(NOT, part + "; ".join(told), "worse" not in decided, bool(part))
        alone = sorted({row.task for row, side in zip(found.itertuples(), judged, strict=True) if side == "alone"})
        if alone:
            told.append(f"random actions are not on record of {', '.join(alone)}: python -m genreward.behaviour "
                        f"--profile {profile.name} --only {name}")
        elif all(whole) and not part and not missing:
            return Finding(REPRODUCED, "; ".join(told))
        return Finding(OPEN, part + "; ".join(told) + "; seeds are missing" * (not all(whole)), part=bool(part))

    return find


def _judged(profile: Profile, name: str, found: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Of each line of an experiment's `contrasts`: its numbers in words, and whether it speaks for a claim that agents
    do better ("better"), against it ("worse") or neither ("open"). In `evidence.SHARED` a difference must stand after
    Holm's correction for all of `evidence.shared`, too; elsewhere each is judged by itself. Whoever is not shown to end
    above random actions has not learned more; that one ends below them is told, but is not the contrary of the claim.
    What would be better if there were random actions on record to be above is "alone"."""
    said = [evidence.gained(row) for row in found.itertuples()]
    judged = [evidence.verdict(row) for _, row in found.iterrows()]
    if name == evidence.SHARED:
        known = evidence.shared(profile).set_index(["task", "curve", "control"])["p_holm"]
        corrected = [known[row.task, row.curve, row.control] for row in found.itertuples()]
        said = [f"{words} (p = {p:.2g} with all {len(known)} comparisons of these seeds counted)"
                for words, p in zip(said, corrected, strict=True)]
        judged = [side if p < 0.05 else "open" for side, p in zip(judged, corrected, strict=True)]
    beyond = evidence.beyond_random(profile, name).set_index(["task", "curve"])
    for number, row in enumerate(found.itertuples()):
        if (row.task, row.curve) not in beyond.index:
            judged[number] = "alone" if judged[number] == "better" else judged[number]
            continue
        own = beyond.loc[(row.task, row.curve)]
        side = evidence.verdict(own)
        if side == "worse" or (side == "open" and judged[number] == "better"):
            where = "below" if side == "worse" else "not shown above"
            said[number] += f" ({where} random actions: {evidence.gained(own)})"
        if side != "better" and judged[number] == "better":
            judged[number] = "open"
    return said, judged


def _by_curve(found: pd.DataFrame, said: Sequence[str], named: bool) -> list[str]:
    """What was said of the lines of `contrasts`, task by task, put together by curve, with the number of seeds once
    where it is the same on all tasks. named: with the control's name, where there are several."""
    lines = []
    for (curve, control), of in found.assign(said=said).groupby(["curve", "control"], sort=False):
        alike = of["n"].nunique() == 1
        of_tasks = [f"{row.task} {row.said}" + f" (n={row.n})" * (not alike) for row in of.itertuples()]
        lines.append(curve + f" against {control}" * named + f" (n={of['n'].iloc[0]})" * alike + ": "
                     + ", ".join(of_tasks))
    return lines


def _frames(profile: Profile) -> Finding:
    """CLIP's scores must order a goal video's frames as pi_z's returns toward them do, on every task."""
    declared = evidence.members(profile, "every_frame")
    if not declared["done"].all():
        return Finding(OPEN, f"make results PROFILE={profile.name} ONLY=every_frame")
    found = evidence.frame_choice(evidence.frame_by_frame(profile))
    said = [f"{row.task}: tau {row.tau:+.2f} (p={row.p:.2f}, n={row.frames} frames), the chosen frame is number "
            f"{row.rank} by return" for row in found.itertuples()]
    shown, against = (((sign * found["tau"] > 0) & (found["p"] < 0.05)) for sign in (1, -1))
    part = set(found["task"]) != set(declared["task"])
    if part and shown.all():  # of no task at all, perhaps
        return Finding(OPEN, "; ".join([*said, "elsewhere the frame that CLIP chooses is not among those tried "
                                               "(`every_frame` in genreward/experiments.py)"]), part=bool(said))
    return Finding(REPRODUCED if shown.all() else NOT, "; ".join(said), not shown.all() and not against.any(), part)


def _hub(why: str) -> Callable[[Profile], Finding]:
    return lambda profile: Finding(UNTESTABLE, why)


_OURS = ("genreward_dense", "genreward_sound_dense")
_ZERO = ("fb_zero_shot",)
_SPARSE = ("genreward", "genreward_sound")
_REPAIRED = (figures.label("genreward_sound"), figures.label("genreward"))
_WITHOUT = ("without the FB reward", "without the video-level reward")
_RANDOM_FRAME = (evidence.SOURCE_NAMES["random_frame"],)
_BOTH = "the full reward ends above the reward without either and above random actions, the whole interval"
_ABOVE = "the interval of the difference lies above 0, and that of the difference to random actions too, on every task"
_FRESH = "the same, and p < 0.05 after Holm's correction for all comparisons that these seeds serve"

CLAIMS: tuple[Claim, ...] = (
    Claim("Fig. 4", "a finetuned video model imagines, from first frame and text, how a held-out task is done: its "
          "film is near the real one of the same start",
          "by PSNR, SSIM and centred latents nearer to the real video than to other starts, to random actions and to a "
          "still picture in more than half of the starts, on every task", "02", _videos),
    Claim("Fig. 4", "the same from CogVideoX-5B, finetuned on Bridge, RT-1 and RLBench", "-", "11",
          _hub("needs the hub's weights and about 16 GPUs for a week")),
    Claim("Fig. 8, ours", "the frame that CLIP scores highest shows the task done: in real clips (the scorer has seen "
          "these tasks' stages; the last frame does better still where clips end in success, notebook 03)",
          "its interval lies above that of a frame at random, on every task", "03", _hits("real")),
    Claim("Fig. 8", "the same in generated clips (judged by the expert at the same fraction of the episode, a proxy)",
          "its interval lies above that of a frame at random, on every task", "03", _hits("generated (proxy)")),
    Claim("Eq. 5", "the video-level reward knows a success from a failure",
          "AUROC against late failures above 0.5, on every task", "06",
          _of_model("genreward_video", "auroc_failure", 0.5, "AUROC", "pixel_cosine_first")),
    Claim("Eq. 5", "it follows progress, not only time", "rank correlation given time above 0, on every "
          "task", "06", _of_model("genreward_video", "partial", 0.0, "partial correlation", "pixel_cosine_first")),
    Claim("Eq. 5", "it sees what was done rather than how it looks",
          "prefers an odd-looking success to a good-looking fake in more than half of the pairs, on every task", "06",
          _of_model("genreward_video", "function", 0.5, "share of pairs", "pixel_cosine_first")),
    Claim("Eq. 9", "the frame-level reward, B at the goal frame as printed, knows a success from a failure",
          "AUROC against late failures above 0.5, on every task", "06",
          _of_model("genreward_frame_goal", "auroc_failure", 0.5, "AUROC")),
    Claim("Eq. 9", "the same with B learned at states of the replay", "AUROC against late failures above 0.5, on "
          "every task", "06", _of_model("genreward_frame_buffer", "auroc_failure", 0.5, "AUROC")),
    Claim("Fig. 5", "an agent learns more with GenReward beside the dense reward than without", _ABOVE, "08",
          _runs("fig5", _OURS)),
    Claim("Fig. 5", "and more than with RoboCLIP", _ABOVE, "08", _runs("fig5", _OURS, ["RoboCLIP"])),
    Claim("Fig. 5", "and more than with Diffusion Reward", _ABOVE, "08", _runs("fig5", _OURS, ["Diffusion Reward"])),
    Claim("Fig. 5", "and more than with TADPoLe", _ABOVE, "08", _runs("fig5", _OURS, ["TADPoLe"])),
    Claim("Fig. 5, easy tasks", "where learning shows within a small budget, an agent with GenReward beside the sparse "
          "reward learns more than without", _ABOVE, "08", _runs("easy", _SPARSE)),
    Claim("Fig. 5, easy task again", "the same for the repaired reward on drawer-close, on fresh seeds, which were "
          "declared after the first ones had been seen", _FRESH, "08", _runs("again", _SPARSE)),
    Claim("Fig. 5, easy task longer", "and still more than without where the sparse reward has twice the steps, more "
          "than F's and B's exploration took", _FRESH, "08", _runs("again", _SPARSE, longer="longer")),
    Claim("Fig. 9, easy task again", "more than the sparse reward at equal steps with the frame-level reward alone, "
          "which did best on the first seeds",
          _FRESH, "08", _runs("again", _SPARSE, curves=["without the video-level reward"])),
    Claim("Fig. 5, from pictures", "the same with DreamerV3 from pictures, on drawer-close", _ABOVE, "08",
          _runs("pixels", _SPARSE, curves=[f"{name}, from pictures" for name in _REPAIRED])),
    Claim("Fig. 7", "the same under sparse reward, on bin-picking", _ABOVE, "08", _runs("fig7", _SPARSE)),
    Claim("Fig. 9", "both terms of the reward are needed", _BOTH, "09", _runs("fig9", _OURS, _WITHOUT)),
    Claim("Fig. 9, easy task", "the same where the reward moves the agent, beside the sparse reward", _BOTH, "09",
          _runs("fig9_easy", _SPARSE, _WITHOUT)),
    Claim("Fig. 10", "the better the source of the goal video (Bridge, RT-1, RLBench), the better the agent", "-", "10",
          _hub("needs the hub's weights and those data sets")),
    Claim("Fig. 10, ours", "pi_z, without further learning, gets further toward a real video's goal frame than toward "
          "an imagined one's (one F, B and one frame a task: n counts evaluation seeds)", _ABOVE, "10",
          _runs("zero_shot", _ZERO, [evidence.ZERO_SHOT], [evidence.SOURCE_NAMES["expert_video"]])),
    Claim("Fig. 10, easy task", "an agent paid by a real video's goal ends higher than one paid by an imagined one's",
          _ABOVE, "10", _runs("fig10_easy", _SPARSE, _REPAIRED, [evidence.SOURCE_NAMES["expert_video"]])),
    Claim("Table A", "it helps on Distracting Control's walker-walk and Adroit's door (and without the distractions)",
          _ABOVE, "08", _runs("tableA", _OURS)),
    Claim("Table B", "hallucinated goal videos (teleporting objects) still teach", _ABOVE, "10",
          _runs("tableB", _OURS, curves=[evidence.SOURCE_NAMES["teleport"]])),
    Claim("Table C", "a goal frame by CLIP teaches more than one at random", _ABOVE, "10",
          _runs("tableC", _OURS, _RANDOM_FRAME)),
    Claim("Table C, psi", "it teaches with another picture encoder psi in F and B (DINOv3 and SigLIP 2 there, OpenCLIP "
          "here)", _ABOVE, "10", _runs("tableC", _OURS, curves=["picture encoder OpenCLIP"])),
    Claim("Table C, easy task", "the same where the reward moves the agent, beside the sparse reward (one other frame, "
          "number 5, drawn once)", _ABOVE, "10",
          _runs("fig10_easy", _SPARSE, _RANDOM_FRAME)),
    Claim("Table C, easy task again", "the same on fresh seeds (the same other frame)", _FRESH, "08",
          _runs("again", _SPARSE, _RANDOM_FRAME)),
    Claim("Table C, first frame", "and more than the frame with which the video begins, which shows nothing done "
          "(fresh seeds)", _FRESH, "08", _runs("again", _SPARSE, ["goal frame 0"])),
    Claim("Table C, ours", "the same without further learning: pi_z gets further toward CLIP's frame than toward "
          "another one (one F, B a task: n counts evaluation seeds)", _ABOVE, "10",
          _runs("zero_shot", _ZERO, _RANDOM_FRAME)),
    Claim("Table C, every frame", "CLIP's scores order the frames of a goal video by how good a goal each is for pi_z "
          "(one F, B and one video a task)", "Kendall's tau above 0 with p < 0.05, on every task", "10", _frames),
    Claim("Table D", "F with the action teaches more than without, on walker-walk", _ABOVE, "09",
          _runs("tableD", _SPARSE, ["F without the action"])),
    Claim("Table E", "training with the reward takes about as long as with the others", "-", "11",
          _hub("the published times are of CogVideoX-5B on GPUs; the small models' own times are in notebook 11")),
)


def findings(profile: str | Profile) -> pd.DataFrame:
    """The table: item, claim, verdict, undecided, in part, measured, counts (the rule), notebook."""
    profile = profiles.get_profile(profile)
    lines = []
    for claim in CLAIMS:
        try:
            found = claim.find(profile)
        except Absent as problem:  # the message names the command
            found = Finding(OPEN, str(problem))
        lines.append({"item": claim.item, "claim": claim.says, "verdict": found.verdict,
                      "undecided": found.undecided, "in part": found.part, "measured": found.numbers,
                      "counts as reproduced": claim.rule, "notebook": claim.notebook})
    return pd.DataFrame(lines)


def markdown(found: pd.DataFrame) -> str:
    """For README: how many claims have which verdict, and the table of claim, verdict, numbers, notebook."""
    told = ", ".join(f"{number} {verdict}" for verdict, number in counts(found).items())
    lines = [f"Of {len(found)} claims: {told}.",
             f"Of those not reproduced {int(found['undecided'].sum())} are *undecided*; {int(found['in part'].sum())} "
             f"are measured on some of their tasks only.", "",
             "| paper | claim | verdict | measured here | notebook |", "| --- | --- | --- | --- | --- |"]
    for row in found.itertuples():
        to_run = row.measured.startswith(("make ", "python "))
        measured = f"`{row.measured}`" if to_run else row.measured.replace("; ", ";<br>")
        verdict = f"**{row.verdict}**" + ", undecided" * row.undecided
        lines.append(f"| {row.item} | {row.claim} | {verdict} | {measured} | {row.notebook} |")
    return "\n".join(lines)


def on_papers_tasks(profile: str | Profile) -> str:
    """What agents reached on the paper's tasks (Fig. 5), for README: a table in Markdown as `learned`'s first."""
    return _of_methods(profile, "fig5")


def learned(profile: str | Profile) -> str:
    """What agents reached on the easy tasks, for README, in Markdown. One table of every method, a column a task that
    has finished runs of any kind, between random actions and the scripted expert; one of the reward's parts and goals
    on the task of Fig. 9, on the grid's seeds and on fresh ones. A cell: mean final dense return, [Student's 95%
    interval], number of seeds, and the share of evaluation episodes with success."""
    seeds = {"the grid's seeds": ("fig9_easy", "fig10_easy"), "fresh seeds": ("again",),
             "fresh seeds, twice the steps": ("longer",)}
    of_parts = pd.concat([evidence.summary(profile, name).assign(task=column) for column, names in seeds.items()
                          for name in names])
    kept = of_parts["task"].isin(set(of_parts.loc[of_parts["n"] > 0, "task"]))
    tables = [_of_methods(profile, "easy"), _grid("drawer-close, paid", of_parts[kept])]
    return "\n\n".join(table for table in tables if table)


def _of_methods(profile: str | Profile, name: str) -> str:
    """The final summaries of an experiment as a table, or the command that makes its runs."""
    found = evidence.summary(profile, name)
    tasks = list(dict.fromkeys(found.loc[found["n"] > 0, "task"]))
    if not tasks:
        return f"No run on record yet: make results PROFILE={profiles.get_profile(profile).name} ONLY={name}"
    yardsticks = evidence.reference_table(profile, tasks)
    return _grid("paid, or acting", evidence.with_references(found[found["task"].isin(tasks)], yardsticks))


def _grid(head: str, found: pd.DataFrame) -> str:
    """A Markdown table of summaries: a line a curve that was measured anywhere, a column for each of `task`."""
    cells = {(row.curve, row.task): f"{evidence.ranged(row)} (n={row.n}), {row.success:.0%}"
             for row in found.itertuples() if row.n}
    columns, measured = list(dict.fromkeys(found["task"])), {curve for curve, _ in cells}
    curves = [curve for curve in dict.fromkeys(found["curve"]) if curve in measured]
    lines = [f"| {head} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    lines += [f"| {curve} | {' | '.join(cells.get((curve, column), '-') for column in columns)} |" for curve in curves]
    return "\n".join(lines) if curves else ""


def _put(page: str, text: str, begin: str, end: str, path: str | Path) -> str:
    """The page of that path with the text between the two markers, in place of what stands there."""
    if page.count(begin) != 1 or page.count(end) != 1:
        raise InputError(f"{path} must hold {begin} and {end} once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def write(profile: str | Profile, path: str | Path) -> None:
    """Put all tables between their markers in a file; where a marker is missing it is left as it is."""
    page = _put(files.read_text(path), on_papers_tasks(profile), *ON_PAPERS_TASKS, path)
    page = _put(page, learned(profile), *LEARNED, path)
    page = _put(page, markdown(findings(profile)), BEGIN, END, path)
    with files.atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def counts(found: pd.DataFrame) -> dict[str, int]:
    """Verdict -> how many claims got it, in the order of `VERDICTS`."""
    return {verdict: int((found["verdict"] == verdict).sum()) for verdict in VERDICTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", help=", ".join(profiles.PROFILES))
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    if arguments.write is None:
        print(markdown(findings(arguments.profile)))
    else:
        write(arguments.profile, arguments.write)


if __name__ == "__main__":
    errors.cli(main)
