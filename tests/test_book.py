"""The runner's promises (whole files, loud errors), the rules, and the book itself."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genreward import book, kernels, profiles, trace
from genreward.errors import InputError

OPENING = "# Does it run?\n\nPaper: Eq. 1. Reads nothing, writes nothing. Minutes: 1."
EXERCISES = "**Exercise 1.** Predict.\n\n**Exercise 2.** Compare."


def notebook(*sources, parameters='profile = "laptop"\nseed = 0', opening=OPENING):
    """A notebook that follows the rules, with one code cell a source."""
    cells = [new_markdown_cell(opening), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    for source in (*sources, "assert 1 + 1 == 2"):
        cells += [new_markdown_cell("Prose."), new_code_cell(source)]
    content = new_notebook(cells=[*cells, new_markdown_cell(EXERCISES)])
    content.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return content


@pytest.fixture
def shelf(root, monkeypatch):
    """A book with one notebook `00_trial` in an empty project; call it with the notebook's content."""
    folder = root / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(book, "FOLDER", folder)
    entry = book.Notebook("00", "trial", "Does it run?", "Eq. 1", (), {"laptop": 1, "smoke": 1})
    monkeypatch.setattr(book, "NOTEBOOKS", {entry.name: entry})

    def put(content):
        nbformat.write(content, entry.path)
        return entry.path

    return put


def executed(root):
    folder = root / "build" / "smoke" / "book"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_notebook_runs_with_its_parameters(shelf, root):
    shelf(notebook("print(profile, seed)", "import os, genreward; print(os.path.isdir('genreward'))"))
    path = book.run_notebook("00", "smoke", {"seed": 7})
    cells = nbformat.read(path, as_version=4).cells
    printed = [output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert printed == ["smoke 7\n", "True\n"]
    assert executed(root) == ["00_trial.ipynb"]


CORE = """import ctypes, os, numpy
from pathlib import Path
libraries = sorted(Path(numpy.__file__).parents[1].glob("numpy.libs/libscipy_openblas64_*.so"))
core = [ctypes.CDLL(str(library)).scipy_openblas_get_corename64_ for library in libraries]
for ask in core:
    ask.restype = ctypes.c_char_p
print(os.environ["OMP_NUM_THREADS"], *[ask().decode() for ask in core])"""


@pytest.mark.parametrize("said", [{}, {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem"}])
def test_a_kernel_adds_up_in_one_order_unless_told_otherwise(shelf, root, monkeypatch, said):
    """Else a figure's last digits would hang on the number of cores and the processor of the machine that drew it."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    shelf(notebook(CORE))
    before = dict(os.environ)
    cells = nbformat.read(book.run_notebook("00", "smoke"), as_version=4).cells
    threads, *core = next(cell for cell in cells if cell.source == CORE).outputs[0].text.split()
    assert threads == said.get("OMP_NUM_THREADS", "1")
    own_library = platform.system() == "Linux" and platform.machine() == "x86_64"  # elsewhere another
    if own_library and (said or "avx2" in Path("/proc/cpuinfo").read_text()):
        assert core == [said.get("OPENBLAS_CORETYPE", "Haswell")]
    assert dict(os.environ) == before


def test_two_notebooks_run_at_once_with_a_kernel_each(root):
    """Kernels that talk through the same files would each get the other's answers, or none."""
    nbformat.write(notebook("import time; time.sleep(2); print(seed)"), root / "one.ipynb")
    code = ("import sys; from pathlib import Path; from genreward import book; "
            "book.execute(Path(sys.argv[1]), Path(sys.argv[2]), {'seed': int(sys.argv[3])})")
    begun = [subprocess.Popen([sys.executable, "-c", code, root / "one.ipynb", root / f"out{seed}.ipynb", str(seed)],
                              cwd=book.ROOT) for seed in (3, 4)]
    assert [one.wait(timeout=120) for one in begun] == [0, 0]
    for seed in (3, 4):
        cells = nbformat.read(root / f"out{seed}.ipynb", as_version=4).cells
        assert [cell.outputs[0].text for cell in cells if cell.cell_type == "code" and cell.outputs] == [f"{seed}\n"]


WHOEVER_ASKED = """import sys
from pathlib import Path
from genreward import book, kernels

def child(sender, folder, warm):
    if warm:
        kernels.use(kernels.Waiting(foreign=[sender]))
    book._end_with_listener(sender)
    book.execute(folder / "one.ipynb", folder / "out.ipynb", {})

if __name__ == "__main__":
    receiver, sender = book.APART.Pipe(duplex=False)
    book.APART.Process(target=child, args=(sender, Path(sys.argv[1]), sys.argv[2] == "warm")).start()
    sender.close()
    receiver.recv()
"""


@pytest.mark.parametrize("kernel", ["warm", "cold"])
def test_who_is_killed_while_a_notebook_runs_leaves_no_process_behind(root, kernel):
    nbformat.write(notebook("import os, time, pathlib",
                            f"told = pathlib.Path({str(root)!r}, 'pids')\n"
                            "told.with_suffix('.part').write_text(f'{os.getpid()} {os.getppid()}')\n"
                            "told.with_suffix('.part').rename(told)",
                            "time.sleep(300)"), root / "one.ipynb")
    (root / "asked.py").write_text(WHOEVER_ASKED)
    asked = subprocess.Popen([sys.executable, root / "asked.py", root, kernel], cwd=book.ROOT,
                             stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(book.ROOT)})
    deadline = time.monotonic() + 120
    while not (root / "pids").is_file() and asked.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    begun = [psutil.Process(int(pid)) for pid in (root / "pids").read_text().split()]
    asked.send_signal(signal.SIGTERM)
    assert psutil.wait_procs(begun, timeout=90)[1] == [] and asked.wait(30) == -signal.SIGTERM
    assert sorted(path.name for path in root.glob("*.ipynb")) == ["one.ipynb"]


def test_a_failing_notebook_keeps_the_earlier_copy_and_names_the_cell(shelf, root):
    shelf(notebook("x = 1"))
    good = book.run_notebook("trial", "smoke").read_bytes()
    shelf(notebook("y = {}\ny['goal']"))
    with pytest.raises(book.NotebookError, match=r"00_trial: the cell that begins 'y = \{\}' failed: KeyError: 'goal'"):
        book.run_notebook("trial", "smoke")
    assert executed(root) == ["00_trial.failed.ipynb", "00_trial.ipynb"]
    assert (root / "build/smoke/book/00_trial.ipynb").read_bytes() == good


def test_a_dying_kernel_is_an_error_and_leaves_nothing(shelf, root):
    shelf(notebook("import os; os._exit(3)"))
    with pytest.raises(book.NotebookError, match="00_trial: .*[Kk]ernel"):
        book.run_notebook("trial", "smoke")
    assert "00_trial.ipynb" not in executed(root)


def test_unknown_names_cost_one_line_and_nothing_runs(shelf, root):
    shelf(notebook())
    with pytest.raises(InputError, match="parameter of 00_trial: 'sed'; valid: profile, seed"):
        book.run_notebook("00", "smoke", {"sed": 1})
    with pytest.raises(InputError, match="parameter seed of 00_trial is 'many'; valid: such as 0"):
        book.run_notebook("00", "smoke", {"seed": "many"})
    with pytest.raises(InputError, match="unknown notebook '99'; valid: 00_trial"):
        book.run_notebook("99", "smoke")
    with pytest.raises(InputError, match="unknown profile 'huge'; valid: gpu, laptop"):
        book.run_notebook("00", "huge")
    assert executed(root) == []


def test_a_missing_or_foreign_kernel(shelf, root):
    content = notebook()
    content.metadata = {}
    shelf(content)
    with pytest.raises(InputError, match="no kernelspec"):
        book.run_notebook("00", "smoke")
    content.metadata = {"kernelspec": {"name": "julia", "display_name": "Julia"}}
    shelf(content)
    with pytest.raises(InputError, match="'julia', which is not installed; valid: .*python3"):
        book.run_notebook("00", "smoke")
    assert executed(root) == []


def test_a_figure_that_was_promised_must_be_there(shelf, root):
    source = "from genreward import figures\nif False:\n    figures.save_figure(None, 'fig1', profile)"
    shelf(notebook(source))
    assert book.find("00").writes == ("fig1",)
    with pytest.raises(book.NotebookError, match="fig1"):
        book.run_notebook("00", "smoke")
    assert executed(root) == ["00_trial.ipynb"]


@pytest.mark.parametrize("reads", ["video_model", "goals", "fb", "runs"])
def test_what_is_missing_is_named_with_its_command(root, reads):
    entry = book.Notebook("04", "x", "?", "", (reads,), {})
    place = getattr(profiles.paths("laptop"), reads)
    assert book.missing(entry, "laptop").endswith("which is missing; make it with: make results PROFILE=laptop")
    assert place.relative_to(root).as_posix() in book.missing(entry, "laptop")
    place.mkdir(parents=True)
    assert book.missing(entry, "laptop")  # an empty folder is no result
    (place / "something").touch()
    assert book.missing(entry, "laptop") is None


def test_weights_from_the_hub_are_not_looked_for(root):
    entry = book.Notebook("04", "x", "?", "", ("video_model", "scorer"), {})
    assert book.missing(entry, "paper") is None


def die(name, profile, sender, warm):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_notebook_in_a_process_of_its_own_says_what_went_wrong(monkeypatch, capfd):
    for warm in (False, True) if kernels.supported() else (False,):  # True: a kernel waits, and is not used
        seconds, problem = book._run_apart("99", "smoke", warm)
        assert problem.startswith("error: unknown notebook '99'; valid: 00_start_here") and seconds >= 0
    seconds, problem = book._run_apart("04", "no_profile")
    assert problem.startswith("error: unknown profile 'no_profile'") and "Traceback" not in problem
    monkeypatch.setattr(book, "_run_and_tell", die)
    assert book._run_apart("04", "smoke")[1] == "error: 04 was killed"
    assert capfd.readouterr() == ("", "")


def test_fewer_than_one_notebook_at_once_is_refused():
    for jobs in (0, -3):
        with pytest.raises(InputError, match=f"jobs must be at least 1, got {jobs}"):
            book.make_figures("smoke", jobs)


def test_figures_of_an_empty_project_say_what_to_make(tmp_path):
    done = subprocess.run([sys.executable, "-m", "genreward.book", "figures", "--profile", "smoke"], text=True,
                          capture_output=True, cwd=book.ROOT, env={**os.environ, "GENREWARD_ROOT": str(tmp_path)})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "make results PROFILE=smoke" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["a = 1\nb = a + 1", "import os", "a = [print()]", "a, b = 1, 2", "a ="])
def test_parameters_are_literals_only(shelf, source):
    path = shelf(notebook(parameters=source))
    with pytest.raises(InputError, match="name = literal"):
        book.default_parameters(path)


def test_parameters_are_read(shelf):
    path = shelf(notebook(parameters='profile = "smoke"  # why\nseeds: tuple = (0, -1)\ntask = None'))
    assert book.default_parameters(path) == {"profile": "smoke", "seeds": (0, -1), "task": None}


def breach(change):
    content = notebook()
    change(content)
    return content


@pytest.mark.parametrize(("content", "why"), [
    (notebook(opening="# Video reward\n\nPaper, reads, writes, minutes."), "asks a question"),
    (notebook(opening="# Other?\n\nPaper, reads, writes, minutes."), "must ask: Does it run?"),
    (notebook(opening="# Does it run?\n\nPaper, reads, writes."), "about 'minutes'"),
    (notebook("class A: pass"), "no class"),
    (notebook("\n".join(["x = 1"] * 16)), "16 lines; at most 15"),
    (notebook("%matplotlib inline"), "not plain Python"),
    (notebook(*["x = 1"] * 40), "42 code cells; at most 40"),
    (notebook(parameters="seed = 0"), "must set profile"),
    (notebook(parameters="profile = str()"), "name = literal"),
    (breach(lambda n: n.cells[1].metadata.update(tags=[])), "0 cells tagged"),
    (breach(lambda n: n.cells[3].update(execution_count=1)), "outputs must be stripped"),
    (breach(lambda n: n.metadata.clear()), "kernelspec"),
    (breach(lambda n: n.cells.pop()), "two exercises"),
    (breach(lambda n: n.cells[3].update(source="1 + 1")), "no assert"),
    (breach(lambda n: n.cells.insert(2, new_code_cell("x = 1"))
            or n.cells.insert(2, new_code_cell("y = 1"))), "prose cells"),
])
def test_every_breach_of_the_rules_is_found(shelf, content, why):
    problems = book.check_notebook(shelf(content), "Does it run?")
    assert any(why in problem for problem in problems), problems
    assert book.check_notebook(shelf(notebook()), "Does it run?") == []


def test_strip_leaves_the_text_and_takes_the_rest(shelf):
    content = notebook("x = 1")
    content.cells[3].update(execution_count=4, outputs=[nbformat.v4.new_output("stream", text="1\n")])
    content.cells[3].metadata = {"collapsed": True}
    content.metadata["widgets"] = {"big": 1}
    path = shelf(content)
    assert book.strip(path) and not book.strip(path)
    stripped = nbformat.read(path, as_version=4)
    assert [cell.source for cell in stripped.cells] == [cell.source for cell in content.cells]
    assert stripped.cells[1].metadata == {"tags": ["parameters"]} and stripped.cells[3].metadata == {}
    assert set(stripped.metadata) == {"kernelspec", "language_info"}
    assert book.check_notebook(path, "Does it run?") == []


@pytest.mark.parametrize("text", ["", "{", "{}", '{"cells": [{}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'])
def test_a_damaged_notebook_is_named(tmp_path, text):
    path = tmp_path / "cut.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match="cut.ipynb is not a notebook"):
        book.read(path)
    with pytest.raises(InputError, match="no such notebook: gone.ipynb"):
        book.read(tmp_path / "gone.ipynb")


# --- the book itself -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", book.NOTEBOOKS)
def test_the_books_notebooks_follow_the_rules(name):
    entry = book.NOTEBOOKS[name]
    assert book.check_notebook(entry.path, entry.question) == []


def test_the_page_of_figures_shows_each_of_them_once_and_links_to_what_is_there():
    folder = profiles.paths("laptop").figures
    text = (folder / "README.md").read_text()
    assert text == book.gallery("laptop")  # as the notebooks and the folder stand now
    shown = re.findall(r"!\[(\w+)\]\((\w+)\.png\)", text)
    assert sorted(name for name, _ in shown) == sorted(path.stem for path in folder.glob("*.svg"))
    assert all(name == file for name, file in shown)
    tables = re.findall(r"\[table\]\((\w+)\.md\)", text)
    assert sorted(tables) == sorted(path.stem for path in folder.glob("[a-z]*.md"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / target).exists(), target
    for name in trace.traced("laptop"):
        first = f"[svg]({name}.svg), " if (folder / f"{name}.svg").is_file() else ""
        assert f"`{name}`: {first}[rows]({name}.rows.csv)" in text
    assert text.index("### Fig. 1: the idea") < text.index("fig1_idea") < text.index("cost_by_stage_bars")


def test_the_page_of_an_empty_folder_shows_nothing(root):
    text = book.gallery("smoke")
    assert text.startswith("# Every figure and table, smoke profile") and "](" not in text
    assert "Nothing is drawn yet: make figures PROFILE=smoke" in text
    assert book.write_gallery("smoke") == root / "figures" / "smoke" / "README.md"


def test_a_figure_stands_under_the_heading_of_the_cell_that_saves_it(shelf, root):
    content = new_notebook(cells=[
        new_markdown_cell(OPENING), new_code_cell("print('other')\nname, rules = 'set_before', 3"),
        new_markdown_cell("## One\n\nProse."),
        new_code_cell("figures.write_table(t, 'table', profile)\nfigures.save_figure(fig, 'plain', 'x', of='other')"),
        new_markdown_cell("## Two\n\n### Two and a half\n\nProse."),
        new_code_cell("for suite in 'xy':\n    name = f'kind_{suite}'\n    figures.save_figure(fig, name, profile)"),
        new_markdown_cell("No heading."),
        new_code_cell("name = 'set_here'\nfigures.save_figure(fig, name, profile)\nsave_figure(g, not_known, profile)"),
        new_markdown_cell("## Three"),
        new_code_cell("figures.save_figure(fig, 'plain', profile)\nfigures.save_figure(fig, 'not_drawn', profile)")])
    shelf(content)
    folder = profiles.paths("smoke").figures
    folder.mkdir(parents=True)
    for name in ("plain.svg", "table.md", "kind_x.svg", "kind_y.svg", "set_here.svg", "set_before.svg", "other.svg"):
        (folder / name).touch()
    assert book.drawn(book.NOTEBOOKS["00_trial"], "smoke") == [
        ("table", "One"), ("plain", "One"), ("kind_x", "Two and a half"), ("kind_y", "Two and a half"),
        ("set_here", "Two and a half")]
    page = book.gallery("smoke")
    assert "](../../notebooks/00_trial.ipynb)" in page and page.count("### Two and a half") == 1
    assert [line for line in page.splitlines() if line.startswith("`table`")] == ["`table`: [table](table.md)"]


def test_the_table_and_the_folder_hold_the_same_notebooks():
    assert sorted(path.stem for path in book.FOLDER.glob("*.ipynb")) == list(book.NOTEBOOKS)
    names = [name for entry in book.NOTEBOOKS.values() for name in entry.writes]
    assert len(names) == len(set(names)), "two notebooks save under one name"


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory):
    """A project root with everything that the notebooks read, made from nothing at smoke size."""
    folder = tmp_path_factory.mktemp("smoke")
    done = subprocess.run([sys.executable, "-m", "genreward.pipeline", "--profile", "smoke"], text=True,
                          capture_output=True, cwd=book.ROOT, env={**os.environ, "GENREWARD_ROOT": str(folder)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.book
@pytest.mark.parametrize("name", book.NOTEBOOKS)
def test_a_notebook_of_the_book_runs_at_smoke_size(smoke_root, monkeypatch, name):
    monkeypatch.setenv("GENREWARD_ROOT", str(smoke_root))
    path = book.run_notebook(name, "smoke")
    assert path == smoke_root / "build" / "smoke" / "book" / f"{name}.ipynb"
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code if cell.source.strip())
