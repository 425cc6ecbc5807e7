"""README, and its long version beside the results, hold what they promise: code runs, numbers are those on record,
tables are the book's, commands and files exist."""

import ast
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from genreward import (
    behaviour,
    book,
    claims,
    comparison,
    cost,
    envs,
    evidence,
    experiments,
    figures,
    files,
    forecast,
    goals,
    profiles,
    results,
    reward_metrics,
    reward_study,
    rewards,
    trace,
    video_model,
)
from genreward.errors import InputError
from genreward.rewards import base
from genreward.tasks import PAPER_TASKS
from genreward.trajectory import Trajectory

ROOT = Path(__file__).resolve().parent.parent
SHORT, LONG = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "results" / "README.md"))
TEXT = SHORT + LONG  # a number may be told in either

BLOCKS = re.findall(r"```python\n(.*?)```", SHORT, re.DOTALL)


class Video:
    """Stands in for the trained video model."""

    image_size, num_frames = 64, 9

    def encode(self, clip):
        return clip[::4, ::8, ::8].transpose(3, 0, 1, 2).astype(np.float32)


def test_its_ten_lines_run(monkeypatch, capsys):
    from stable_baselines3 import SAC

    block = BLOCKS[0]
    film = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    asked, learn = [], SAC.learn
    goal = goals.Goal("x", (), film, np.zeros(9), 8)
    monkeypatch.setattr(goals.Goal, "load", lambda path: asked.append(path) or goal)
    monkeypatch.setattr(video_model.VideoModel, "load", lambda path: asked.append(path) or Video())
    monkeypatch.setattr(SAC, "learn", lambda self, steps: learn(self, 129))  # past the first payment
    space = {}
    exec(compile(block, "README.md", "exec"), space)
    shares = space["env"].ledger.shares()
    assert set(shares) == {"env", "video"} and sum(shares.values()) == pytest.approx(1) and shares["video"] > 0
    assert str(shares) in capsys.readouterr().out
    assert all(path.startswith("results/laptop/") for path in asked) and len(asked) == 2


def test_its_own_reward_rises_as_the_goal_frame_comes_nearer(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # gone again after this test
    before = set(rewards.available())
    block = next(block for block in BLOCKS if "@register" in block)
    exec(compile(block, "README.md", "exec"), {"__name__": "mine"})
    assert set(rewards.available()) - before == {"nearer"} and "nearer" in rewards.table1().index
    film = np.repeat(np.arange(0, 250, 50, np.uint8)[:, None, None, None], 8, 1).repeat(8, 2).repeat(3, 3)
    goal = goals.Goal("x", (), film, np.zeros(5), 4)
    model = rewards.make_reward("nearer", {"goal": goal})
    seen = Trajectory("reach", np.zeros((5, 3), np.float32), np.zeros((4, 2), np.float32), np.zeros(4, np.float32),
                      np.zeros(4, bool), film)
    assert model.score(seen) == pytest.approx(np.array([50, 100, 150, 200]) / 255)
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


def test_its_plain_loop_and_torchrl_pay_the_video_term_when_it_is_due(capsys):
    film = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    reward = rewards.make_reward("genreward_video", {"goal": goals.Goal("x", (), film, np.zeros(9), 8),
                                                     "video_model": Video()}, alpha=1.0, interval=128)
    space = {"reward": reward, "GoalRewardEnv": rewards.GoalRewardEnv, "make_env": envs.make_env}
    exec(compile(next(block for block in BLOCKS if "gymnasium.make" in block), "README.md", "exec"), space)
    terms = space["info"]["episode_terms"]
    assert set(terms) == {"env", "video"} and 0 < abs(terms["video"]) <= 2 and terms["env"] < 0
    assert sorted(space["env"].history.frames)[:1] == [0] and len(space["env"].history.frames) < 40  # not every frame

    exec(compile(next(block for block in BLOCKS if "GymWrapper" in block), "README.md", "exec"), space)
    paid = space["episode"]["next", "reward"].squeeze(-1)
    assert paid.shape == (256,) and paid.nonzero().squeeze(-1).tolist() == [127, 255]
    assert str(float(paid.sum()))[:4] in capsys.readouterr().out


def test_its_claims_are_those_of_the_records():
    between = TEXT.split(claims.BEGIN)[1].split(claims.END)[0].strip()
    assert between == claims.markdown(claims.findings("laptop"))
    for (begin, end), table in ((claims.ON_PAPERS_TASKS, claims.on_papers_tasks), (claims.LEARNED, claims.learned)):
        assert TEXT.split(begin)[1].split(end)[0].strip() == table("laptop")


def _easy_together():
    """The curves of the easy tasks over all of them: name -> task -> normalised final returns."""
    tasks = evidence.members("laptop", "easy")["task"].unique()
    joint = evidence.over_tasks("laptop", "easy", evidence.reference_table("laptop", tasks))
    assert joint["step"].max() == 30_720
    return results.scores(joint, "normalised_return")


def _on_the_way():
    """The evaluations before the last whose dense return, under the dense reward, is shown to lie above random
    actions', on the paper's tasks."""
    rows = evidence.rows("laptop", "fig5").query("method == 'dense' and metric == 'return' and step < 51_200")
    kept = results.load(ROOT / "results" / "laptop" / "references").query("method == 'random' and metric == 'return'")
    lines = [{"task": task, "step": step, **comparison.difference(of["value"], kept.loc[kept["task"] == task, "value"]
                                                                  )._asdict()}
             for (task, step), of in rows.groupby(["task", "step"], sort=False)]
    found = pd.DataFrame(lines)
    return found[found["low"] > 0]


def test_every_gain_that_its_prose_tells_is_one_of_the_records():
    """A typed "+1,713 [1,177, 2,248]" must be what some experiment says today."""
    prose = TEXT
    for begin, end in (claims.ON_PAPERS_TASKS, claims.LEARNED, (claims.BEGIN, claims.END)):
        prose = prose.split(begin)[0] + prose.split(end)[1]
    told = set(re.findall(r"[-+][\d,.]+ \[-?[\d,.]+, -?[\d,.]+\]", " ".join(prose.split())))
    tables = [table("laptop", name) for name in experiments.experiments("laptop")
              for table in (evidence.contrasts, evidence.beyond_random)]
    tables += [evidence.contrasts("laptop", "again", control) for control in (
        evidence.SOURCE_NAMES["random_frame"], "goal frame 0")]
    tables += [evidence.contrasts("laptop", "tableD", "F without the action")]
    steps = sorted(set(evidence.rows("laptop", "longer")["step"]))
    tables += [evidence.contrasts("laptop", "again", longer="longer", step=step) for step in steps]
    rows = evidence.rows("laptop", "fig7").query("metric == 'return' and step == 25_600").groupby("method")["value"]
    half_way = comparison.difference(rows.get_group("genreward_sound"), rows.get_group("sparse"))
    known = {evidence.gained(row) for table in tables for row in table.itertuples()} | {evidence.gained(half_way)}
    known |= {evidence.ranged(row) for row in evidence.would_pay("laptop").itertuples()}  # what a reward would pay
    study = reward_metrics.printed  # of the study, with two digits
    known |= {f"{sign}{study(row)}" for sign in ("", "+") for table in (
        reward_study.recorded_quality("laptop"), *reward_study.compared("laptop").values(),
        reward_metrics.over_tasks(reward_study.recorded_quality("laptop")),
        *(reward_study.ahead_of("laptop", {"partial": "pixel_cosine_first"}, [model]) for model in (
            "genreward_video", "genreward_video_first"))) for _, row in table.iterrows()}
    known |= {evidence.gained(row) for row in _on_the_way().itertuples()}
    known |= {study(results.stratified_ci(ends)._asdict()) for ends in _easy_together().values()}
    assert len(told) > 5 and told <= known, told - known


def test_what_it_tells_of_looks_and_of_bare_pixels_is_on_record():
    text, quality = " ".join(TEXT.split()), reward_study.recorded_quality("laptop")
    given = reward_metrics.verdicts(quality).query("question == 'function'")
    given = given[~given["model"].isin(reward_study.unlearned(given["model"]))]
    assert (f"of the {len(given)} models that have learned something {(given['verdict'] == -1).sum()} prefer looks."
            ) in text
    raw, first, removed = (
        reward_study.ahead_of("laptop", {"partial": rival}, [model]).set_index("task").loc["all"] for model, rival in (
            ("genreward_video", "pixel_cosine"), ("genreward_video", "pixel_cosine_first"),
            ("genreward_video_first", "pixel_cosine_first")))
    assert raw["low"] > 0 > first["high"] and removed["low"] < 0 < removed["high"]
    printed = reward_metrics.printed
    assert (f"it follows progress more than raw bare pixels do (+{printed(raw)}, on the same starts) and less than "
            f"bare pixels with the first frame removed ({printed(first)}); with the first latent removed it is not "
            f"shown to differ from these (+{printed(removed)}).") in text


def test_what_it_tells_of_every_frame_of_a_goal_video_is_on_record():
    found = evidence.frame_by_frame("laptop")
    done = 100 * found[found["task"] == "drawer-close"].set_index("frame")["success"]
    assert (done.loc[1:5] == 0).all()
    assert (f"in {done[6]:.0f}, {done[7]:.0f} and {done[8]:.0f}% of episodes, the five before them never, and the "
            f"*first*, in which it is open, in {done[0]:.0f}%") in " ".join(TEXT.split())
    choice = evidence.frame_choice(found).set_index("task")["rank"]
    assert choice.to_dict() == {"reach": 8, "drawer-close": 1}  # "the best of the nine", "the eighth best"


def test_what_it_tells_over_tasks_and_of_seeds_that_serve_many_comparisons_is_on_record():
    text, quality = " ".join(TEXT.split()), reward_study.recorded_quality("laptop")
    wider = reward_metrics.over_tasks(quality).set_index(["model", "metric"])
    by_task = quality[(quality["metric"] == "auroc_failure") & (quality["task"] != "all")].groupby("model")["value"]
    ends = [f"{by_task.min()[name]:.2f} to {by_task.max()[name]:.2f}" for name in (
        "genreward_frame_goal", "genreward_frame_buffer")]
    goal, buffer, vlm, liv, video, first, oracle = (
        reward_metrics.printed(wider.loc[(name, "auroc_failure")]).replace("1.00]", "1]") for name in (
            "genreward_frame_goal", "genreward_frame_buffer", "vlm_rm", "liv", "genreward_video",
            "genreward_video_first", "genreward_video_oracle"))
    assert f"is {ends[0]} by task (mean over five tasks {goal}; repaired: {ends[1]}, {buffer};" in text
    assert (f"VLM-RM {vlm}, LIV {liv}, the video term {video}, with the first latent removed {first}, "
            f"with a real goal video {oracle}.") in text

    served = evidence.shared("laptop")
    stand = served[served["p_holm"] < 0.05]
    assert f"serve {len(served)} comparisons" in text and len(stand) == 4
    assert stand["p_holm"].max() < 0.005 and (
        f"(p = 0.005 and less by Welch's test, {stand['exact_holm'].min():.3f} to {stand['exact_holm'].max():.3f} by "
        "an exact permutation test)") in text
    longer = served[(served["curve"] == stand["curve"].iloc[0]) & served["control"].str.contains("steps")]
    first, last = (f"{p:.2f}" for p in longer["p_holm"])
    exact = [f"{p:.2f}" for p in longer["exact_holm"]]
    assert (f"these by Welch's test do not (p = {first} and {last}; by an exact permutation test {exact[0]} and "
            f"{exact[1]}, but that one takes both groups to have the same spread).") in text and (
        f"corrected p = {first};" in text)
    assert (f"p is {first} by Welch's test and {exact[0]} by an exact permutation test (which takes both groups to "
            f"have the same spread, and they have not), against twice the steps {last} and {exact[1]}.") in text

    def shares(name, task, method):  # of the pay while they learned
        table = evidence.rows("laptop", name)
        table = table[(table["task"] == task) & (table["method"] == method) & (table["agent"] == "sac")
                      & (table["variant"] == "")].sort_values("step")
        return table.groupby(["metric", "run"])["value"].last()

    drawer = shares("again", "drawer-close", "genreward_sound")
    assert (f"it is {drawer['share_frame'].mean():.0%} of the pay while these agents learn, the video-level one "
            f"{drawer['share_video'].mean():.1%};") in text
    easy = [value for task in ("reach", "drawer-close") for value in shares("easy", task, "genreward")["share_frame"]]
    place = pd.concat([shares(*at, "genreward")["share_frame"] for at in (("base", "pick-place"),
                                                                          ("fig7", "bin-picking"))])
    found = {task: shares("fig5", task, "genreward_dense")["share_frame"] for task in PAPER_TASKS}
    unpaid = found.pop("shelf-place")  # the dense reward was 0 there at every step
    *first, last = found
    assert (f"{100 * min(easy):.2f} to {max(easy):.2%} of what agents are paid while they learn the easy tasks, "
            f"{100 * place.min():.1f} to {place.max():.1%} on pick-place and bin-picking, where the sparse reward pays "
            "next to nothing, and beside the dense reward at most "
            f"{max(paid.max() for paid in found.values()):.2%}, on "
            f"{', '.join(first)} and {last} (up to {unpaid.max():.1%} on shelf-place, where the dense reward was 0 at "
            "every step).") in text
    assert len({"reach", "drawer-close", *PAPER_TASKS}) == 7 and "on the seven tasks where" in text
    assert (f"at most {place.max():.1%} of what they are paid while they learn ({unpaid.max():.1%} on shelf-place, "
            "where the environment paid nothing)") in text
    apart = evidence.seed_for_seed("laptop", "fig5").set_index(["curve", "task"])
    apart = apart[apart["other"] > 0].assign(share=lambda table: table["same"] / table["other"])
    printed = figures.label("genreward")
    quiet, loud = apart.loc[printed].loc[list(found)], apart.drop(index=printed, level="curve")["share"]
    told = [[form.format(value) for value in quiet[column]]
            for column, form in (("same", "{:.2g}"), ("other", "{:.2g}"), ("share", "{:.0%}"))]
    said = [f"{', '.join(values[:-1])} and {values[-1]}" for values in told]
    assert (f"up to {quiet['steps'].iloc[0]:,} steps their returns lie {said[0]} apart, those of two seeds {said[1]}, "
            f"which is {said[2]} of it.") in text
    alike = shares("fig7", "bin-picking", "genreward")["share_video"]
    apart_there = evidence.seed_for_seed("laptop", "fig7").set_index("curve").loc[printed]
    paid = results.load(behaviour.folder("laptop"))
    paid = paid[(paid["task"] == "bin-picking") & (paid["metric"] == "paid_video")
                & paid["method"].isin(["genreward", "genreward_dense"])]["value"]
    most = 2 * profiles.get_profile("laptop").reward.alpha  # two payments an episode
    assert len(paid) == 6 and len(alike) == apart_there["n"] == 3
    assert (f"the printed video-level term is {100 * alike.min():.0f} to {alike.max():.0%} of the pay while agents "
            "learn, it pays an episode of each of six agents there (three beside either reward) "
            f"{paid.min():.4f} to {paid.max():.4f} of at most {most:g}, and an agent stays "
            f"{apart_there['same']:.2g} from the one of its own seed without it, where two seeds are "
            f"{apart_there['other']:.2g} apart "
            f"({apart_there['same'] / apart_there['other']:.0%}).") in text
    assert (f"where it is {alike.min():.0%} of the pay and more (bin-picking, beside the sparse reward): it pays much "
            "the same whatever is done.") in text
    repaired, robo, foretells, *tadpole = (loud.pop((figures.label(method), task)) for method, task in (
        ("genreward_sound", "disassemble"), ("roboclip", "disassemble"), ("diffusion_reward", "disassemble"),
        ("tadpole", "pick-place"), ("tadpole", "bin-picking"), ("tadpole", "pick-out-of-hole")))
    quieter = loud.pop((figures.label("tadpole"), "disassemble"))
    part = {(method, task): 1 - shares("fig5", task, f"{method}_dense")["share_env"].mean() for task in PAPER_TASKS
            for method in ("roboclip", "diffusion_reward", "tadpole", "genreward_sound")}
    least = part.pop(("tadpole", "disassemble"))
    assert min(part.values()) > 0.5 and (
        f"TADPoLe on disassemble, {least:.0%} of the pay there, comes to {quieter:.0%};") in text
    assert f"(TADPoLe on disassemble, {least:.0%} of it, leaves {quieter:.0%})" in text
    assert (f"the repaired one, RoboCLIP and Diffusion Reward on disassemble come to {repaired:.0%}, {robo:.0%} and "
            f"{foretells:.0%}, TADPoLe on pick-place, bin-picking and pick-out-of-hole to {tadpole[0]:.0%}, "
            f"{tadpole[1]:.0%} and {tadpole[2]:.0%}, the rest to "
            f"{np.floor(100 * loud.min()):.0f}% and more") in text
    assert (f"another seed's: {100 * quiet['share'].min():.0f} to {quiet['share'].max():.0%} of that distance by task, "
            "where rewards that are most of the pay and teach nothing leave "
            f"{min(repaired, robo, foretells, *tadpole):.0%} and more (") in text


def test_what_it_tells_of_what_was_foretold_is_on_record():
    text, found = " ".join(TEXT.split()), {}
    for task in forecast.tasks("laptop"):
        lines = evidence.foretold(evidence.foreseen("laptop", task))
        found |= {(task, row.outcome): row for row in lines[lines["told"] == "progress"].itertuples()}
    sent = [found[task, "return of pi_z"] for task in ("drawer-close", "reach")]
    paid = found["drawer-close", "return of agents paid toward it"]
    assert {row.goals for row in sent} == {12} and paid.goals == 6 and sent[0].p < 0.001
    assert f"on drawer-close (Kendall's $\\tau$ = {sent[0].tau:+.2f}) and not on reach ({sent[1].tau:+.2f})" in text
    assert f"({paid.tau:+.2f}, p = {paid.p:.2f}; notebook 10)" in text


def test_what_it_tells_of_others_pay_is_on_record():
    text, found = " ".join(TEXT.split()), evidence.would_pay("laptop")
    at = found.assign(said=[evidence.ranged(row) for row in found.itertuples()]).set_index(["task", "curve", "player"])
    usual, random, camera = figures.label("genreward_sound"), "goal frame at random", "imagined, other camera"
    expert, alone, own = figures.label("expert"), figures.label("fb_zero_shot"), evidence.OWN
    filmed, each = ("pick-place", evidence.SOURCE_NAMES["expert_video"]), evidence.own_pay("laptop")
    each = each[(each["task"] == filmed[0]) & (each["curve"] == filmed[1])]
    agents = [evidence.number(paid) for paid in each["paid"]]
    drawer, hole = "drawer-close", "pick-out-of-hole"
    other = [figures.label(name) for name in ("diffusion_reward", "tadpole")]
    def dense(task, curve):  # so called where there are agents beside the sparse reward, too
        name = f"{curve}, beside the dense reward"
        return name if (task, name, own) in at.index else curve

    beside = {task: dense(task, usual) for task in PAPER_TASKS}

    def said(task, curve, player):
        if curve in other:
            curve = dense(task, curve)
        return at.loc[(task, curve, player), "said"]

    def listed(words):
        return f"{', '.join(words[:-1])} and {words[-1]}"

    def alike(task):
        return listed([said(task, other[1], player) for player in (figures.label("random"), expert, own)])

    def shown(task, curve):
        if curve in other:
            curve = dense(task, curve)
        return at.loc[(task, curve, own), ["n", "above", "below", "success"]].tolist()

    for sentence in (
            "On all five of the paper's tasks it asks for something else than the task: the scripted expert would be "
            f"paid {listed([f'{said(task, usual, expert)} ({task})' for task in PAPER_TASKS])}, agents that never "
            f"succeed, three each, are paid {listed([said(task, beside[task], own) for task in PAPER_TASKS])}.",
            f"toward the goal frame of a real video of pick-place the expert would be paid {said(*filmed, expert)}, "
            f"random actions {said(*filmed, figures.label('random'))}, and $\\pi_z$, which never succeeds, "
            f"{said(*filmed, alone)} (three agents, which never succeed, {listed(agents)}; in the film",
            f"(the expert {said(drawer, random, expert)}, ten agents {said(drawer, random, own)})",
            f"for {said('door-open', usual, own)}, and the expert is not shown to be paid more "
            f"({said('door-open', usual, expert)})",
            "On push $\\pi_z$, which never succeeds either, would be paid more than the expert, on button-press and "
            "reach it is not shown to be paid otherwise: "
            f"{said('push', usual, alone)}, the expert {said('push', usual, expert)}; "
            f"{said('button-press', usual, alone)}, the expert {said('button-press', usual, expert)}; "
            f"{said('reach', usual, alone)}, the expert {said('reach', usual, expert)} (there the agents have not "
            f"found what is to be had: they are paid {said('reach', usual, own)}; of the three on button-press the one "
            "that presses it is paid most).",
            f"Diffusion Reward pays three agents {said('pick-place', other[0], own)} an episode on pick-place, "
            f"{said(hole, other[0], own)} on pick-out-of-hole, {said('bin-picking', other[0], own)} on bin-picking, "
            f"{said('shelf-place', other[0], own)} on shelf-place and {said('disassemble', other[0], own)} on "
            f"disassemble, the expert {listed([said(task, other[0], expert) for task in PAPER_TASKS])}:",
            f"On pick-out-of-hole it pays its agents, {said(hole, other[1], own)}, more than random actions, "
            f"{said(hole, other[1], figures.label('random'))}, and the expert, {said(hole, other[1], expert)}, and",
            "TADPoLe is not shown to pay its three agents otherwise than random actions or the expert on pick-place "
            f"({alike('pick-place')}: random actions, the expert, the agents), bin-picking ({alike('bin-picking')}), "
            f"shelf-place ({alike('shelf-place')}) and disassemble ({alike('disassemble')});",
            f"is paid {said(drawer, camera, alone)}, the agents, which keep away, {said(drawer, camera, own)}, the "
            f"expert {said(drawer, camera, expert)}."):
        assert sentence in text, sentence
    for task in PAPER_TASKS:
        n, _, below, success = shown(task, beside[task])
        assert (n, success) == (3, 0) and expert in below, task
    assert len(each) == 3 and not each["success"].any() and not at.loc[(*filmed, alone), "success"]
    assert at.loc[(*filmed, alone), "low"] > at.loc[(*filmed, expert), "high"]
    assert at.loc[(*filmed, expert), "low"] > at.loc[(*filmed, figures.label("random")), "high"]
    for task, reward in (*((task, other[0]) for task in PAPER_TASKS), (hole, other[1])):
        n, above, below, success = shown(task, reward)
        assert (n, above, success) == (3, "", 0) and expert in below, (task, reward)
    assert figures.label("random") in shown(hole, other[1])[2]
    alike_on = [task for task in PAPER_TASKS if task != hole]
    for task in alike_on:
        assert shown(task, other[1]) == [3, "", "", 0], task
    n, above, below, success = shown(drawer, random)
    assert (n, above) == (10, "") and expert in below
    of = trace.offered("laptop")
    of = of[of["metric"].str.startswith("paid_")].groupby(["task", "curve", "seed"])["value"].sum()
    more = {task: evidence.verdict(pd.Series(comparison.difference(*(of[task, f"{usual}: {player}"] for player in (
        alone, expert)))._asdict())) for task in ("push", "button-press", "reach")}
    assert more == {"push": "better", "button-press": "open", "reach": "open"}
    more = [evidence.verdict(pd.Series(comparison.difference(*(of[task, f"{other[1]}: {player}"] for player in (
        expert, figures.label("random"))))._asdict())) for task in alike_on]
    assert dict(zip(alike_on, more, strict=True)) == {
        "pick-place": "open", "bin-picking": "better", "shelf-place": "open", "disassemble": "worse"}
    pressed = evidence.own_pay("laptop").query("task == 'button-press' and curve == @usual")
    assert pressed["paid"].idxmax() == pressed["success"].idxmax() and (pressed["success"] > 0).sum() == 1
    assert not at.loc[[(task, usual, alone) for task in ("push", "button-press", "reach")], "success"].any()
    assert shown("push", usual)[:2] == [3, ""]
    assert shown("door-open", usual)[1] == "" and shown("reach", usual) == [3, expert, figures.label("random"), 0]
    assert shown(drawer, camera)[1] == alone and shown(drawer, camera)[3] == 0
    assert at.loc[(drawer, camera, alone), "success"] == at.loc[(drawer, camera, expert), "success"] == 1


def test_what_it_tells_of_bin_picking_is_on_record():
    """Above the sparse reward and below random actions: told together, so that nobody reads the first alone."""
    ends = evidence.summary("laptop", "fig7").set_index("curve")
    beyond = evidence.beyond_random("laptop", "fig7").set_index("curve")
    ours, alone = figures.label("genreward_sound"), figures.label("sparse")
    gain = evidence.contrasts("laptop", "fig7").set_index("curve").loc[ours]
    rows = evidence.rows("laptop", "fig7")
    rows = rows[(rows["metric"] == "return") & (rows["step"] == 25_600)].groupby("method")["value"]
    half_way = comparison.difference(rows.get_group("genreward_sound"), rows.get_group("sparse"))
    assert half_way.high < 0 and ends.loc[[ours, alone], "steps"].tolist() == [51_200] * 2
    assert ends.loc[[ours, alone], "n"].tolist() == [3, 3] and not ends.loc[[ours, alone], "success"].any()
    assert beyond.loc[[ours, alone], "high"].max() < 0 < gain["low"]
    assert (f"{evidence.number(ends.loc[alone, 'value'])} (sparse) and {evidence.number(ends.loc[ours, 'value'])} "
            f"(sound), the second above the first ({evidence.gained(gain)}; after half of the steps below it, "
            f"{evidence.gained(half_way)}) and below random actions' "
            f"{evidence.number(beyond.loc[ours, 'random'])} ({evidence.gained(beyond.loc[ours])})") in TEXT


def test_what_it_tells_of_the_dense_reward_on_the_papers_tasks_is_on_record():
    """The environment's own reward teaches nothing there in as many steps, on any of the five."""
    ends, beyond = (table.set_index(["curve", "task"]).loc[figures.label("dense")] for table in
                    (evidence.summary("laptop", "fig5"), evidence.beyond_random("laptop", "fig5")))
    assert set(ends.index) == set(PAPER_TASKS) and set(ends["n"]) == {3} and set(ends["steps"]) == {51_200}
    assert ((beyond["low"] < 0) & (beyond["high"] > 0)).all()
    rows = evidence.rows("laptop", "fig5")
    rows = rows[(rows["method"] == "dense") & rows["metric"].isin(["return", "success"])]
    assert not rows.loc[rows["metric"] == "success", "value"].any()  # in no evaluation of any seed
    assert not rows.loc[rows["task"] == "shelf-place", "value"].any()
    last = rows[(rows["task"] == "bin-picking") & (rows["metric"] == "return") & (rows["step"] == 51_200)]["value"]
    assert f"have begun to rise (to {sorted(last)[1]:.1f} and {max(last):.1f})" in " ".join(LONG.split())
    told = ", ".join(f"{task} {evidence.gained(beyond.loc[task])}" for task in beyond.index)
    assert _on_the_way().groupby("task", sort=False)["step"].max().to_dict() == {
        "pick-place": 20_480, "bin-picking": 25_600}
    long = " ".join(LONG.split())
    assert f"shown to lie above random actions ({told}, where the expert is 1,200 to 2,100 above them)" in long
    yardsticks = evidence.reference_table("laptop", list(PAPER_TASKS))["return"].unstack()
    above = yardsticks["expert"] - yardsticks["random"]
    assert (round(above.min(), -2), round(above.max(), -2)) == (1200, 2100)
    assert ("On the other four tasks neither the dense reward alone, after 51,200 steps, nor a generated one beside it "
            "is shown to end above random actions (README's first table, and the finding above); success 0.") in LONG


def test_what_it_tells_of_generated_rewards_beside_the_dense_one_is_on_record():
    """Every pair of a reward and a task was run with all of its seeds, and none helps."""
    gains, beyond = (table[(table["curve"] != evidence.ZERO_SHOT) & (table["n"] == 3)].set_index(["curve", "task"]) for
                     table in (evidence.contrasts("laptop", "fig5"), evidence.beyond_random("laptop", "fig5")))
    rewards = set(evidence.members("laptop", "fig5")["curve"]) - {figures.label("dense"), evidence.ZERO_SHOT}
    assert (gains["low"] <= 0).all() and (beyond["low"] < 0).all()  # on shelf-place nothing is paid, nothing differs
    rows = evidence.rows("laptop", "fig5")
    assert not rows.loc[rows["metric"] == "success", "value"].any()
    assert len(gains) == len(rewards) * len(PAPER_TASKS)
    pairs = f"{len(gains)} pairs of a reward and a task"
    *first, last = (f"{curve} on {task} ({evidence.gained(row)})" for (curve, task), row in
                    beyond[beyond["high"] < 0].iterrows())
    assert (f"Beside it no generated reward is shown to help ({pairs}, three seeds each, no success: README's first "
            f"table), nor to end above random actions; {', '.join(first)} and {last} end below them."
            ) in " ".join(LONG.split())
    assert f"beside it no generated reward is shown to help, in any of {pairs}." in " ".join(SHORT.split())
    *first, last = (f"{curve} on {task} ({evidence.gained(row)})" for (curve, task), row in
                    gains[gains["high"] < 0].iterrows())
    assert (f"Judged by themselves, {', '.join(first)} and {last} end below the dense reward alone."
            ) in " ".join(LONG.split())


def test_what_it_tells_of_pick_place_beside_the_dense_reward_is_on_record():
    ends = evidence.summary("laptop", "fig5").set_index(["task", "curve"]).loc["pick-place"]
    told = [f"{ends.loc[figures.label(method), 'value']:.2f} ({words}, n={ends.loc[figures.label(method), 'n']})"
            for method, words in (("dense", "dense"), ("genreward_sound", "sound"), ("genreward", "as printed"),
                                  ("roboclip", "RoboCLIP"), ("diffusion_reward", "Diffusion Reward"),
                                  ("tadpole", "TADPoLe"))]
    assert f"after 51,200 steps {', '.join(told[:5])} and {told[5]}, the last five beside dense" in TEXT
    beyond = evidence.beyond_random("laptop", "fig5").set_index(["task", "curve"]).loc["pick-place"]
    below = beyond.loc[[figures.label(method) for method in ("diffusion_reward", "tadpole")]]
    assert "end below random actions in dense return, and so does $\\pi_z$" in " ".join(TEXT.split())
    assert beyond.loc[evidence.ZERO_SHOT, "high"] < 0
    paid = evidence.paid("laptop", "fig5")
    paid = paid[(paid["task"] == "pick-place") & (paid["term"] == "env")].set_index("curve")["share"]
    assert (below["high"] < 0).all()
    first, second = (evidence.gained(row) for _, row in below.iterrows())
    assert (f"Diffusion Reward ({first}) and of TADPoLe ({second}) end below random actions, and what these two pay is "
            f"{1 - paid[below.index[0]]:.1%} and {1 - paid[below.index[1]]:.0%} of") in TEXT
    shorter = pd.concat([evidence.summary("laptop", name) for name in ("tableB", "tableC")]).drop_duplicates("curve")
    shorter = shorter[shorter["n"] > 0].set_index("curve")
    sources = ("expert_video", "teleport", "random_frame")
    goals = [*(evidence.SOURCE_NAMES[name] for name in sources), "picture encoder OpenCLIP"]
    told = [f"{shorter.loc[name, 'value']:.2f}" for name in (*map(figures.label, ("dense", "genreward_sound")), *goals)]
    assert set(shorter["n"]) == {3} and set(shorter["steps"]) == {30_720} and not shorter["success"].any()
    assert (f"after 30,720 steps {told[0]} (dense), {told[1]} (sound beside it), {told[2]} (a real video, Fig. 10), "
            f"{told[3]} (the same in which the object teleports, Table B), {told[4]} (goal frame at random, Table C), "
            f"{told[5]} (OpenCLIP as the picture encoder of $F$ and $B$, Table C), n=3 each, no difference shown."
            ) in TEXT
    halves = evidence.summary("laptop", "fig9").set_index("curve").loc[
        ["without the video-level reward", "without the FB reward"]]
    assert set(halves["n"]) == {3} and not halves["success"].any()
    assert (f"{halves['value'].iloc[0]:.2f} without the video-level one, {halves['value'].iloc[1]:.2f} without the "
            "frame-level one (Fig. 9, n=3 each, no difference to the whole shown)") in TEXT
    apart = pd.concat([evidence.contrasts("laptop", name, control) for name in ("tableB", "tableC", "fig9")
                       for control in (None, figures.label("genreward_sound"))]
                      + [evidence.contrasts("laptop", "tableB", goals[0])])
    assert ((apart["low"] < 0) & (apart["high"] > 0)).all()


def test_what_it_tells_of_walker_walk_is_on_record():
    ends = evidence.summary("laptop", "tableA").set_index(["task", "curve"]).loc["walker-walk"]
    name = figures.label("genreward_sound")
    dense, ours = ends.loc[figures.label("dense")], ends.loc[name]
    assert (f"30,000 steps: {evidence.ranged(dense)} under the dense reward (n={dense['n']}), {evidence.ranged(ours)} "
            f"with the repaired reward beside it (n={ours['n']})") in TEXT
    gains = evidence.contrasts("laptop", "tableA").set_index("curve").drop(columns="task")
    beyond = evidence.beyond_random("laptop", "tableA").set_index("curve")
    moved = [f"{figures.label(method)}, distracted (all-easy-dynamic)" for method in ("dense", "genreward_sound")]
    assert evidence.verdict(gains.loc[name]) == evidence.verdict(gains.loc[moved[1]]) == "open"
    assert (f"no difference between the two is shown ({evidence.gained(gains.loc[name])}), and the latter ends below "
            f"random actions' {evidence.number(beyond.loc[name, 'random'])} ({evidence.gained(beyond.loc[name])})"
            ) in TEXT and beyond.loc[name, "high"] < 0
    assert ends.loc[moved, "n"].eq(3).all()
    assert (f"{evidence.ranged(ends.loc[moved[0]])} and {evidence.ranged(ends.loc[moved[1]])} (n=3 each), no "
            f"difference shown ({evidence.gained(gains.loc[moved[1]])}; Table A)") in TEXT
    pay = evidence.paid("laptop", "tableA").set_index(["curve", "term"]).loc[(name, "frame")]
    assert f"{pay['share']:.0%} of whose pay is for that frame (three seeds)" in TEXT and pay["n"] == 3
    arms = evidence.summary("laptop", "tableD").set_index("curve")
    apart = evidence.contrasts("laptop", "tableD", "F without the action").set_index("curve")
    beyond = evidence.beyond_random("laptop", "tableD")
    assert set(arms["n"]) == {3} and (beyond["high"] < 0).all() and apart.loc[name, "low"] < 0 < apart.loc[name, "high"]
    assert (f"{evidence.ranged(arms.loc[name])} with the action in $F$, {evidence.ranged(arms.drop(name).iloc[0])} "
            f"without it (3 seeds each), no difference shown ({evidence.gained(apart.loc[name])}), both below random "
            f"actions' {evidence.number(beyond['random'].iloc[0])}") in TEXT


def test_what_it_tells_of_door_open_button_press_and_push_is_on_record():
    ends = evidence.summary("laptop", "easy").set_index(["task", "curve"])
    beyond = evidence.beyond_random("laptop", "easy").set_index(["task", "curve"])
    ours, alone, dense = map(figures.label, ("genreward_sound", "sparse", "dense"))
    for task in ("door-open", "button-press", "push"):
        assert ends.loc[[(task, alone), (task, dense)], "n"].tolist() == [3, 3]
        of = evidence.rows("laptop", "easy")
        of = of[(of["task"] == task) & (of["metric"] == "success") & of["method"].isin(("sparse", "dense"))]
        assert len(of) == 36 and not of["value"].any()
    gain = evidence.contrasts("laptop", "easy").set_index(["task", "curve"]).loc[("push", ours)]
    pushed = evidence.rows("laptop", "easy").query("task == 'push' and metric == 'success'")
    assert gain["n"] == 3 and evidence.verdict(gain) == "open" and not pushed["value"].any()
    said = f"Nor is it on push ({evidence.gained(gain)}, three seeds), where no agent succeeds"
    assert said in " ".join(TEXT.split())
    assert beyond.loc[[("door-open", alone), ("door-open", dense)], "low"].min() > 0
    assert beyond.loc[("door-open", ours), "high"] < 0
    assert " ".join(LONG.split()).count(evidence.gained(beyond.loc[("door-open", ours)])) == 2
    harm = evidence.helped("laptop").set_index(["experiment", "task", "curve"]).loc[("easy", "door-open", ours)]
    assert harm["high"] < 0 < 0.1 < harm["p_holm"]
    assert (f"by Welch's interval (p = {harm['p']:.3f} judged by itself, not shown with all lines of notebook 08's "
            "table counted;") in " ".join(SHORT.split())
    assert (f"({evidence.gained(harm)}, three seeds, p = {harm['p']:.3f} judged by itself, and more than 0.1 with all "
            "lines") in " ".join(LONG.split())


def test_what_it_tells_of_the_easy_tasks_together_is_on_record():
    scores = _easy_together()
    for method, told in (("dense", "under the dense reward"), ("sparse", "under the sparse one"),
                         ("genreward_sound", "with the repaired one beside it. (Of 15")):
        ends = scores[figures.label(method)]
        middle = results.stratified_ci(ends)
        assert (len(ends), middle.n) == (5, 15)
        assert f"{middle.value:.2f} [{middle.low:.2f}, {middle.high:.2f}] {told}" in " ".join(LONG.split())
    for method in ("genreward_sound", "dense"):  # what the interquartile mean of fifteen leaves out on top
        of = scores[figures.label(method)]
        best = sorted(((value, task) for task, values in of.items() for value in values), reverse=True)[:3]
        assert {task for _, task in best} == {"drawer-close"}


def test_what_it_tells_of_the_weights_is_on_record():
    text, found = " ".join(TEXT.split()), evidence.trend(evidence.sweep("laptop", "fig9_easy")).set_index("weight")
    alpha, beta = found.loc["alpha"], found.loc["beta"]
    both = comparison.holm(found["p"])[list(found.index).index("beta")]
    assert found["values"].tolist() == [5, 5]
    assert (f"Over {beta['runs']} runs with five weights the return goes with the weight of the frame-level term "
            f"(Kendall's $\\tau$ = {beta['tau']:+.2f}, p = {beta['p']:.3f}, with both weights counted {both:.2f}: a "
            "sign, no proof), not with that of the video-level one "
            f"({alpha['tau']:+.2f}, p = {alpha['p']:.2f}).") in text
    last = " ".join(book.read(book.find("09").path).cells[-1].source.split())
    assert (f"Over the {beta['runs']} runs of its five values the return goes with $\\beta$ ($\\tau$ = "
            f"{beta['tau']:+.2f}, p = {beta['p']:.3f}; with both weights counted {both:.2f})") in last
    counted = evidence.counted("laptop", "fig9_easy", (figures.label("genreward_sound"), None)).sort_values("p")
    above = counted[counted["p"] < 0.05]
    assert (above["low"] > 0).all() and set(above["control"]) == {figures.label("sparse")}
    assert above["curve"].tolist() == ["without the video-level reward", "alpha = 3", "alpha = 0.1", "beta = 10"]
    assert (f"$\\beta$ = 10 (p = {above['p'].min():.3f} to {above['p'].max():.3f}). With all {len(counted)} "
            f"comparisons counted none does (the least p is {counted['p_holm'].min():.3f})") in last


def test_its_table_is_the_books():
    listed = [line for line in TEXT.splitlines() if "](notebooks/" in line]
    of_the_book = [line for line in book.table().splitlines() if "](notebooks/" in line]
    assert listed == of_the_book


def test_every_command_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", TEXT)):
        if f"`make {target}" in TEXT or f"\nmake {target}" in TEXT:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m genreward\.(\w+)", TEXT)):
        assert (ROOT / "genreward" / f"{module}.py").is_file(), module
    assert (ROOT / ".ci" / "run").is_file() and "make test" in (ROOT / ".ci" / "run").read_text()
    stages = set(re.findall(r"-m genreward\.video_model (\w+)", TEXT))
    assert stages == {"vae", "pretrain", "finetune"}
    with pytest.raises(InputError, match="no folder of videos|no such|metadata"):
        video_model.main(["vae", "--data", "my_clips", "--out", "build/mine", "--profile", "laptop"])


def test_every_link_leads_somewhere():
    for text, folder in ((SHORT, ROOT), (LONG, ROOT / "results")):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (folder / target).exists(), target


def test_no_line_of_prose_is_too_long_to_read():
    for text in (SHORT, LONG):
        prose = [line for line in text.splitlines() if not line.startswith(("|", "![")) and "](" not in line]
        assert max(map(len, prose)) <= 125, max(prose, key=len)


def test_no_module_imports_one_that_its_layout_has_further_along():
    order = re.search(r"in the order `(.*?)`", " ".join(SHORT.split())).group(1).split(" -> ")
    assert order[0] == "tasks" and order[-1] == "book" and len(order) > 12
    for place, name in enumerate(order):
        paths = [ROOT / "genreward" / f"{name}.py", *(ROOT / "genreward" / name).glob("*.py")]
        text = "\n".join(path.read_text() for path in paths if path.is_file())
        assert text, name
        ours = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
        imported = {node.module for node in ours} | {alias.name for node in ours if not node.module
                                                     for alias in node.names}
        assert not imported & set(order[place + 1:]), (name, imported & set(order[place + 1:]))


def test_every_folder_of_results_is_told_of():
    told = LONG.split("## Where it lies")[1]
    for path in (ROOT / "results" / "laptop").iterdir():
        assert f"`{path.name}/`" in told or f"`{path.name}`" in told or path.name == "generation.json", path.name
    for path in (ROOT / "results").iterdir():
        assert path.is_file() or f"`{path.name}/`" in LONG or path.name in ("smoke", "tiny"), path.name


def test_its_measured_ratio_is_the_one_on_record():
    measured = files.read_json(ROOT / "results" / "bench" / "render.json")
    assert f"drew {measured['ratio']:.0f} times as many" in TEXT and measured["size"] == 64
    assert round(measured["processor_ratio"]) == 14 and "fourteenth of the processor time" in TEXT
    of = files.read_json(ROOT / "results" / "bench" / "sums.json")
    times = {one["piece"]: one["processor_ratio"] for one in of["ratios"] if one["over"].endswith(", intel")}
    assert (f"on AMD | the same with `--rounded-as intel` | {times['sac, other']:.1f}; {times['F and B, other']:.1f} |"
            in TEXT) and "AMD" in of["provenance"]["processor"]


def test_its_seconds_by_part_are_those_on_record():
    kept = cost.table("laptop").set_index("method")
    names = {"sparse reward alone": "sparse", "RoboCLIP": "roboclip", "Diffusion Reward": "diffusion_reward",
             "TADPoLe": "tadpole", "GenReward as printed, while F and B learn": "genreward, F and B learning",
             "the same once they are frozen": "genreward, F and B frozen", "GenReward sound": "genreward_sound"}
    for printed, method in names.items():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {printed} | ") and line.count("|") == 9]
        said = [float(cell) for cell in line.split("|")[2:-1]]
        columns = [*cost.PARTS, "total", "times_sparse"]
        assert said == pytest.approx([kept.loc[method, column] for column in columns], abs=0.051), printed
