"""A forked kernel is what any other is: same outputs, same errors, and nothing of it is left behind."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from genreward import book

# What a notebook sees of the kernel that it runs in; the last cell's picture is drawn by a module that came with it.
CELLS = (
    "seed = 0",
    "print(seed)",
    "import os, sys\nprint(os.getcwd(), sys.argv[1], len(sys.argv), __name__, os.environ['TOLD'])",
    "os.getpid() == os.getpgid(0)",
    "import random, numpy as np\nnp.random.default_rng(3).normal(size=2), isinstance(sys.stdin, type(None))",
    "import joblib\njoblib.Parallel(2)(joblib.delayed(abs)(k) for k in (-1, -2))",
    "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()",
    "fig, axis = plt.subplots(figsize=(2, 1))\nx = axis.plot([2, 1])",  # nobody says show: a cell's end does
)
# Runs a notebook in a process as single and as warm as the book's; which kernel, source, target, result's file
RUN = """
    import os, sys
    import matplotlib.pyplot, wave
    from pathlib import Path
    from genreward import book, kernels
    how, source, target = sys.argv[1:]
    os.environ["TOLD"] = "by the parent"
    if how == "forked":
        waiting = kernels.Waiting()
        kernels.use(waiting)
    book.execute(Path(source), Path(target), {"seed": 7})
    if how == "forked":
        print(waiting.poll() is None, kernels.Forked.waiting)
"""


def put(path, *sources):
    cells = [new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    content = new_notebook(cells=cells)
    content.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(content, path)
    return path


def run(code, *arguments):
    """As `make figures` would: one thread, and pictures that go where the kernel says."""
    told = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], cwd=book.ROOT, text=True,
                          capture_output=True, timeout=240, env=told)


def test_a_forked_kernel_gives_what_any_kernel_gives(tmp_path):
    source, outputs = put(tmp_path / "trial.ipynb", *CELLS, "'wave' in sys.modules"), {}
    for how in ("forked", "plain"):
        done = run(RUN, how, source, tmp_path / f"{how}.ipynb")
        assert done.returncode == 0, done.stderr[-3000:]
        if how == "forked":
            assert done.stdout.splitlines()[-1] == "False None"  # it became the kernel, is gone, and not used twice
        outputs[how] = [cell.outputs for cell in nbformat.read(tmp_path / f"{how}.ipynb", as_version=4).cells]
    assert outputs["forked"][:-1] == outputs["plain"][:-1]
    assert outputs["plain"][2][0].text == "7\n"
    assert all("image/png" in cell[-1].data for cell in outputs["plain"][-3:-1])
    warm = {how: cells[-1][0].data["text/plain"] for how, cells in outputs.items()}
    assert warm == {"forked": "True", "plain": "False"}  # the one has what its parent imported


@pytest.mark.parametrize(("cell", "told"), [("1 / 0", "ZeroDivisionError"), ("import os; os._exit(3)", "ernel died")])
def test_what_goes_wrong_in_a_forked_kernel_is_told(tmp_path, cell, told):
    done = run(RUN, "forked", put(tmp_path / "trial.ipynb", "seed = 0", cell), tmp_path / "out.ipynb")
    assert done.returncode == 1 and "NotebookError: out: " in done.stderr and told in done.stderr
    assert not (tmp_path / "out.ipynb").exists()


def test_a_process_that_waits_in_vain_ends_with_its_parent():
    done = run("from genreward import kernels; print(kernels.Waiting().pid)")
    pid, since = int(done.stdout), time.monotonic()
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() - since < 20
        time.sleep(0.05)


def test_a_process_that_waits_holds_no_line_of_others_open():
    """Else the book would wait for a notebook's word as long as its kernel lives, though the notebook was killed."""
    done = run("""
        import multiprocessing, os, signal
        from genreward import kernels
        receiver, sender = multiprocessing.Pipe(duplex=False)
        waiting = kernels.Waiting(foreign=[sender])
        sender.close()
        try:
            receiver.recv()
        except EOFError:
            print("heard", waiting.poll())
        waiting.kill()
        print(waiting.wait() == -signal.SIGKILL == waiting.poll())
        waiting.terminate()  # nobody is there: nothing happens
    """)
    assert done.stdout.split() == ["heard", "None", "True"], done.stderr


def test_a_second_kernel_is_refused_where_one_waited(tmp_path):
    source, again = put(tmp_path / "trial.ipynb", "seed = 0"), "book.execute(Path(source), Path(target), {})"
    done = run(textwrap.dedent(RUN) + again, "forked", source, tmp_path / "out.ipynb")
    assert done.returncode == 1 and "no process waits to become a kernel" in done.stderr


def test_a_kernel_of_the_fork_server_starts_processes_as_any_does_and_leaks_no_lock(tmp_path):
    """The server's children start theirs as it does; a bar's lock would then be named, and outlive its kernel."""
    bar = "import multiprocessing\nfrom tqdm import tqdm\nx = list(tqdm(range(2)))\nmultiprocessing.get_start_method()"
    source, target = put(tmp_path / "trial.ipynb", "seed = 0", bar), tmp_path / "out.ipynb"
    done = run("""
        import sys
        from genreward import book
        inside = "from genreward import book, kernels; kernels.use(kernels.Waiting()); book.execute(*given, {})"
        given = [book.Path(path) for path in sys.argv[1:]]
        process = book.APART.Process(target=exec, args=(inside, {"given": given}))
        process.start()
        process.join()
    """, source, target)
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr[-2000:]
    (said,) = [output.data["text/plain"] for output in nbformat.read(target, as_version=4).cells[-1].outputs
               if output.output_type == "execute_result"]
    assert said == repr(multiprocessing.get_all_start_methods()[0])  # the system's own


def test_what_is_kept_warm_is_there_and_has_not_looked_about():
    """MuJoCo may hold a display from its import on, matplotlib's back end looks for its kernel. (A fork server passes
    over what it cannot import, without a word.)"""
    done = run("""
        import importlib, sys, threading
        from pathlib import Path
        from genreward import kernels
        for name in kernels.WARM:
            importlib.import_module(name)
        wary = ("mujoco", "OpenGL", "metaworld", "dm_control", "matplotlib_inline.backend_inline")
        print([name for name in (*wary, "torch") if name in sys.modules])
        print(threading.active_count(), len([*Path("/proc/self/task").iterdir()]),
              sys.modules["torch"].cuda.is_initialized())
    """)
    assert done.stdout.splitlines() == ["['torch']", "1 1 False"], done.stdout + done.stderr[-2000:]
