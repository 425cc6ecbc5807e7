"""The grid on a real Ray cluster of two nodes on this machine, one of which is killed.

Selected by `--cluster`: Ray gives a node 30 seconds to start, which a machine that is busy with something else may not
manage. What is special about it beside Ray itself is tested without it in tests/test_execution.py.
"""

import threading
import time
from pathlib import Path

import pytest
import stand_in_runs
from stand_in_runs import StandIn, diary, examine, train

from genreward import execution, results


@pytest.mark.cluster
def test_a_cluster_of_two_nodes_survives_the_death_of_one(root, monkeypatch):
    """Ray through joblib: a node is killed while it makes a run; all runs end, and none is made twice."""
    monkeypatch.setenv("PYTHONPATH", str(Path(stand_in_runs.__file__).parent))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import psutil
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    runs = [StandIn(f"run-{name}", pause=0.5) for name in "abcdef"]
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    killed = []
    try:
        second = cluster.add_node(**{key: value for key, value in small.items() if key != "include_dashboard"})
        ray.init(address=cluster.address, log_to_driver=False)

        def kill_one():
            """The second machine dies while it makes a run: its raylet and that one's workers, at one blow."""
            raylet = psutil.Process(second.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid)
            ended, at_work = set(), False
            while not at_work and len(ended) < len(runs):
                time.sleep(0.05)
                workers = {process.pid: process for process in raylet.children(recursive=True)}
                ended = {run_id for what, run_id, _ in diary(runs[0]) if what == "ended"}
                at_work = any(what == "begun" and int(pid) in workers and run_id not in ended
                              for what, run_id, pid in diary(runs[0]))
            for process in workers.values():
                process.kill()
            cluster.remove_node(second, allow_graceful=False)
            killed.append(len(ended))

        killer = threading.Thread(target=kill_one)
        killer.start()
        outcomes = execution.execute(runs, examine, train, executor="ray", every=None)
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [outcome.state for outcome in outcomes] == ["done"] * 6
    assert killed[0] < 6  # in the middle of it
    ends = [run_id for what, run_id, _ in diary(runs[0]) if what == "ended"]
    assert sorted(ends) == [run.run_id for run in runs]
    begun = [run_id for what, run_id, _ in diary(runs[0]) if what == "begun"]
    assert len(begun) > len(runs)  # at least one was interrupted and taken up again
    assert all(len(results.read_run(run.table)) == run.chunks for run in runs)
