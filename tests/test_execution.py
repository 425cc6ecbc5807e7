"""The grid under fire: kills, a full disk, broken files, two invocations, dead workers and a dead node."""

import contextlib
import errno
import functools
import os
import pickle
import random
import signal
import sys
import threading
import time
import types
from pathlib import Path

import joblib
import pytest
import stand_in_runs
from joblib._parallel_backends import ThreadingBackend
from stand_in_runs import StandIn, diary, examine, train

from genreward import execution, files, locks, profiles, results
from genreward.errors import InputError


def execute(runs, **settings):
    return execution.execute(runs, examine, train, every=None, **settings)


def in_child(function):
    """Run a function in a forked process; returns its number. It ends with status 0, or 1 after an exception."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    finally:
        os._exit(status)


def ended(child):
    """Wait for a child; its exit status, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tables(root):
    """The recorded tables below a project root, by name."""
    return {path.name: path.read_bytes() for path in (root / "results" / "smoke" / "runs").glob("[!.]*.csv")}


RUNS = [StandIn(f"run-{name}", pause=0.002) for name in "abcdef"]
SLOW = [StandIn(f"run-{name}", chunks=25, pause=0.005) for name in "abcdef"]  # long enough to be killed often


def in_peace(folder, runs):
    """The tables that runs give in a root of their own, where nothing happens to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREWARD_ROOT", str(folder))
        assert {outcome.state for outcome in execute(runs)} == {"done"}
    return tables(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the grid gives when nothing happens to it."""
    return in_peace(tmp_path_factory.mktemp("calm"), RUNS)


def test_killed_many_times_the_grid_ends_as_if_nothing_had_happened(root, tmp_path_factory):
    rng, kills = random.Random(0), 0
    for _ in range(40):
        child = in_child(lambda: execute(SLOW))
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        kills += ended(child) == -signal.SIGKILL
        for path in (root / "results").rglob("[!.]*.csv"):  # at every moment, what is there is whole
            assert path.read_text().endswith("\n")
    outcomes = execute(SLOW)
    assert {outcome.state for outcome in outcomes} == {"done"} and kills > 10
    assert tables(root) == in_peace(tmp_path_factory.mktemp("calm"), SLOW) and len(tables(root)) == len(SLOW)
    assert results.load(root / "results" / "smoke" / "runs")["run"].nunique() == len(SLOW)
    ends = [run_id for what, run_id, _ in diary(SLOW[0]) if what == "ended"]
    assert len(ends) == len(set(ends))  # what was finished was not made again


def test_two_invocations_on_one_folder_make_every_run_once(root, undisturbed):
    children = [in_child(lambda: execute(RUNS)) for _ in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert tables(root) == undisturbed
    begun = [run_id for what, run_id, _ in diary(RUNS[0]) if what == "begun"]
    assert sorted(begun) == sorted(run.run_id for run in RUNS)


def test_a_run_of_a_process_that_dies_is_taken_over(root, monkeypatch):
    monkeypatch.setattr(execution, "PAUSE", 0.05)
    slow = StandIn("slow", pause=0.3)
    child = in_child(lambda: execute([slow]))
    while not examine(slow)[0] == "partial":
        time.sleep(0.02)
    threading.Timer(0.2, os.kill, (child, signal.SIGKILL)).start()
    (outcome,) = execute([slow])  # waits for the other, then goes on where it stopped
    assert ended(child) == -signal.SIGKILL and outcome.state == "done"
    assert [what for what, *_ in diary(slow)] == ["begun", "begun", "ended"]


@pytest.mark.parametrize(("trouble", "said"), [("raise", "ZeroDivisionError: by nought"), ("refuse", "its goal is mis"),
                                               ("full", "No space left on device")])
def test_a_failing_run_stops_no_other_and_is_tried_again(root, undisturbed, trouble, said):
    runs = [StandIn(run.run_id, trouble=trouble if number == 1 else "") for number, run in enumerate(RUNS)]
    outcomes = execute(runs)
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "done", "done", "done", "done"]
    assert said in outcomes[1].message
    assert ("Traceback" in outcomes[1].message) == (trouble != "refuse")  # a clear line needs none
    assert execution.read_status(runs[1])["state"] == "failed"
    assert len(results.load(runs[0].where.runs)) == 5 * 4 + 2  # what it had is whole
    assert [outcome.state for outcome in execute(runs)] == ["done"] * 6
    assert tables(root) == undisturbed


def test_a_full_disk_leaves_everything_earlier_whole(root, undisturbed, monkeypatch):
    execute(RUNS[:3])
    before, room = tables(root), [8]
    replace = os.replace

    def full(source, target):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        outcomes = execute(RUNS)
    assert [outcome.state for outcome in outcomes] == ["done"] * 3 + ["failed"] * 3
    assert all("No space left on device" in outcome.message for outcome in outcomes[3:])
    assert before.items() <= tables(root).items()
    results.load(root / "results" / "smoke" / "runs")
    assert {outcome.state for outcome in execute(RUNS)} == {"done"} and tables(root) == undisturbed


@pytest.mark.parametrize("damage", ["record", "provenance", "edited", "both", "checkpoint"])
def test_what_is_cut_short_or_edited_is_found_and_made_again(root, undisturbed, damage):
    execute(RUNS)
    run = RUNS[2]
    text = run.table.read_text()
    if damage in ("record", "both"):
        run.table.write_text(text[: len(text) // 2])
    if damage == "edited":
        run.table.write_text(text.replace(text.splitlines()[2], text.splitlines()[2][:-1] + "7"))
    if damage == "provenance":
        run.table.with_suffix(".json").write_text("{")
    if damage in ("checkpoint", "both"):
        run.checkpoint.write_text(run.checkpoint.read_text()[:100])
    if damage == "checkpoint":  # the record is whole: nothing to do until it is wanted
        assert {outcome.state for outcome in execute(RUNS)} == {"done"} and tables(root) == undisturbed
        run.table.unlink()
    assert examine(run)[0] in ("damaged", "missing")
    assert {outcome.state for outcome in execute(RUNS)} == {"done"} and tables(root) == undisturbed
    begun = [run_id for what, run_id, _ in diary(run) if what == "begun"]
    assert len(begun) == len(RUNS) + (2 if damage in ("both", "checkpoint") else 1)  # and no other run was touched


def test_an_unknown_executor_and_no_jobs_are_refused(root):
    with pytest.raises(InputError, match="unknown executor 'slurm'; valid: joblib, ray"):
        execute(RUNS, executor="slurm")
    with pytest.raises(InputError, match="jobs must be at least 1, got 0"):
        execute(RUNS, jobs=0)
    assert execute([]) == []


# --- workers and nodes that die ---------------------------------------------------------------------------------------


def importable(monkeypatch):
    """Let processes that are started from here find the stand-ins."""
    monkeypatch.setenv("PYTHONPATH", str(Path(stand_in_runs.__file__).parent))


def test_a_worker_that_is_killed_costs_one_attempt(root, undisturbed, monkeypatch, capsys):
    importable(monkeypatch)
    runs = [StandIn(run.run_id, trouble="die" if number == 1 else "") for number, run in enumerate(RUNS)]
    outcomes = execute(runs, jobs=2)
    assert [outcome.state for outcome in outcomes] == ["done"] * 6
    assert tables(root) == undisturbed and "a worker was lost" in capsys.readouterr().out
    ends = [run_id for what, run_id, _ in diary(runs[0]) if what == "ended"]
    assert sorted(ends) == sorted(run.run_id for run in runs)
    begun = [run_id for what, run_id, _ in diary(runs[0]) if what == "begun"]
    assert begun.count(runs[1].run_id) == 2 and len(begun) <= len(runs) + 2  # its own, and its neighbour's in the pool


def test_a_run_whose_process_always_dies_is_given_up(root, monkeypatch):
    """A pool that breaks, without the processes: the run's own died, again and again."""
    monkeypatch.setattr(execution, "_workers", lambda *_: ({"backend": "sequential"}, 1))
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    one = execution._one

    def dies(run, attempt, *more):
        if run.run_id != "cursed":
            return one(run, attempt, *more)
        status = execution.Status(run, attempt)
        status.content["pid"] = dead
        status.write("running")
        raise RuntimeError("the pool broke")

    monkeypatch.setattr(execution, "_one", dies)
    outcomes = execute([StandIn("cursed"), StandIn("well")])
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    assert outcomes[0].message.startswith("its process died 3 times")


def test_what_breaks_every_pool_is_raised(root, monkeypatch):
    def broken(*_):
        raise RuntimeError("no pool at all")

    monkeypatch.setattr(execution, "_one", broken)
    with pytest.raises(RuntimeError, match="no pool at all"):
        execute([StandIn("a")])


class TwoNodes(ThreadingBackend):
    """Stands in for Ray's joblib backend: every call runs in a process of its own on one of two nodes, by turns. A
    process that dies takes the pool with it, as a dead node does. The real Ray is in tests/test_cluster.py."""

    alive, processes, told = [1, 2], {1: [], 2: []}, []

    def __init__(self, ray_remote_args=None, **more):
        super().__init__(**more)
        self.told.append(ray_remote_args)

    def submit(self, func, callback=None):
        return super().submit(functools.partial(self.elsewhere, func), callback)

    def elsewhere(self, func):
        node = min(self.alive, key=lambda name: len(self.processes[name]))
        reading, writing = os.pipe()
        child = in_child(lambda: os.write(writing, pickle.dumps(func())))
        self.processes[node].append(child)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        if ended(child) != 0 or not said:
            raise ConnectionError(f"node {node} died")
        return pickle.loads(said)

    @classmethod
    def kill(cls, node):
        cls.alive = [name for name in cls.alive if name != node]
        for child in cls.processes[node]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_a_cluster_that_loses_a_node_makes_every_run_once(root, undisturbed, monkeypatch, capsys):
    ray, bridge = types.ModuleType("ray"), types.ModuleType("ray.util.joblib")
    started = []
    ray.is_initialized = lambda: bool(started)
    ray.init = lambda **settings: started.append(settings)
    ray.cluster_resources = lambda: {"CPU": float(len(TwoNodes.alive))}
    bridge.register_ray = lambda: joblib.register_parallel_backend("ray", TwoNodes)
    for name, module in (("ray", ray), ("ray.util", types.ModuleType("ray.util")), ("ray.util.joblib", bridge)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(execution, "PAUSE", 0.05)
    runs = [StandIn(run.run_id, pause=0.15) for run in RUNS]

    def kill_one():
        while not TwoNodes.processes[2] or not any(examine(run)[0] == "partial" for run in runs):
            time.sleep(0.01)
        TwoNodes.kill(2)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = execute(runs, executor="ray")
    killer.join()
    assert started == [{"address": "somewhere:6379", "log_to_driver": False}]
    assert TwoNodes.told[0] == {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
    assert "a worker was lost (ConnectionError); going on with the rest" in capsys.readouterr().out
    assert [outcome.state for outcome in outcomes] == ["done"] * 6
    assert tables(root) == undisturbed
    ends = [run_id for what, run_id, _ in diary(runs[0]) if what == "ended"]
    assert sorted(ends) == sorted(run.run_id for run in runs)  # all, none twice
    begun = [run_id for what, run_id, _ in diary(runs[0]) if what == "begun"]
    assert len(begun) > len(runs)  # the one that was interrupted began again


# --- locks ------------------------------------------------------------------------------------------------------------


def test_only_one_process_at_a_time_holds_a_lock(tmp_path):
    """Five processes add to a number, read and written back in two steps, as fast as they get the lock."""
    lock, number = tmp_path / "it.lock", tmp_path / "number"
    number.write_text("0")

    def add():
        done = 0
        while done < 20:
            try:
                with locks.hold(lock):
                    value = int(number.read_text())
                    time.sleep(0.0005)
                    number.write_text(str(value + 1))
                    done += 1
            except locks.Busy:
                time.sleep(0.001)

    assert [ended(child) for child in [in_child(add) for _ in range(5)]] == [0] * 5
    assert number.read_text() == "100" and not lock.exists()


def test_a_living_holder_is_named_and_a_dead_one_replaced(tmp_path):
    lock = tmp_path / "it.lock"

    def hold_and_sleep():
        with locks.hold(lock):
            time.sleep(60)

    child = in_child(hold_and_sleep)
    while not lock.is_file():
        time.sleep(0.01)
    with pytest.raises(locks.Busy, match=f"it is being made by process {child} on"), locks.hold(lock):
        pass
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert lock.is_file() and locks.holder(lock) is None
    with locks.hold(lock):
        assert locks.holder(lock)["pid"] == os.getpid()
        with locks.hold(lock):  # the holder may enter again
            pass
        assert lock.is_file()
    assert not lock.exists()


def test_a_number_that_was_given_to_another_process_is_no_holder(tmp_path):
    lock = tmp_path / "it.lock"
    files.write_json(lock, {**locks.me(), "started": 1.0})
    assert locks.holder(lock) is None
    for text in ("", "[]", "{", '{"pid": 1}'):
        lock.write_text(text)
        assert locks.holder(lock) is None


def test_another_machine_is_believed_as_long_as_it_gives_signs(tmp_path):
    lock = tmp_path / "it.lock"
    files.write_json(lock, {"host": "elsewhere", "pid": 1, "started": 1.0})
    with pytest.raises(locks.Busy, match="process 1 on elsewhere"), locks.hold(lock):
        pass
    long_ago = time.time() - 2 * locks.SILENCE
    os.utime(lock, (long_ago, long_ago))
    with locks.hold(lock):
        pass


def test_a_holder_gives_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locks.hold(tmp_path / "it.lock"):
        os.utime(tmp_path / "it.lock", (1, 1))
        until = time.time() + 10
        while (tmp_path / "it.lock").stat().st_mtime == 1 and time.time() < until:
            time.sleep(0.01)
        assert (tmp_path / "it.lock").stat().st_mtime > 1


# --- progress ---------------------------------------------------------------------------------------------------------


def test_a_line_says_step_return_speed_and_what_is_left():
    line = execution.progress_line({"run": "a", "step": 5120, "steps": 51200, "return": 3.21, "speed": 64.0,
                                    "left": 720.0})
    assert line == "a  5,120/51,200 steps  return 3.2  64 steps/s  12 min left"
    assert execution.progress_line({"run": "a"}) == "a  starting"
    assert [execution.span(seconds) for seconds in (None, 5, 600, 7200)] == ["?", "5 s", "10 min", "2.0 h"]


def test_only_runs_at_work_have_a_line(root, monkeypatch):
    monkeypatch.setattr(execution, "STATUS_EVERY", 0.0)
    runs = [StandIn("at-work"), StandIn("done"), StandIn("dead"), StandIn("not-begun")]
    working, done, dead = (execution.Status(run, "x") for run in runs[:3])
    for step in (1, 2, 3):
        working(step, 10, None)
    working(3, 10, {"return": 2.0})
    done.write("done")
    dead.content["started"] = 1.0
    dead.write("running")
    (line,) = execution.Monitor(runs, 1.0).lines()
    assert line.startswith("at-work  3/10 steps  return 2.0  ") and line.endswith(" left")


def test_a_disk_without_room_for_a_status_does_not_stop_the_run(root, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    status = execution.Status(StandIn("a"), "x")
    with monkeypatch.context() as patch:
        patch.setattr(execution.os, "replace", full)
        status(1, 2, None)
    assert execution.read_status(StandIn("a")) == {}
    assert list((profiles.paths("smoke").build / "status").iterdir()) == []


def test_tensorboard_gets_each_evaluation(root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = StandIn("logged", chunks=3)
    (outcome,) = execute([run], tensorboard=True)
    assert outcome.state == "done"
    events = EventAccumulator(str(run.where.build / "tensorboard" / "logged")).Reload().Scalars("return")
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx(results.read_run(run.table)["value"].tolist())
