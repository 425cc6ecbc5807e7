"""The book: which notebooks there are, the rules that they follow, and the runner that turns them into figures.

The last module of the flow (`... results -> figures -> book`). `make figures` runs every notebook of `NOTEBOOKS` in
order with papermill, on results that exist already: nothing here trains an agent, and what a notebook needs and does
not find is named together with the command that makes it.

    python -m genreward.book figures --profile laptop     every notebook, executed copies in build/laptop/book/
    python -m genreward.book run 04 --profile smoke       one notebook; -p name=value sets a parameter
    python -m genreward.book gallery --profile laptop     figures/laptop/README.md, as `figures` does at its end
    python -m genreward.book list                         the table, in Markdown
    python -m genreward.book check                        the rules, one line a breach
    python -m genreward.book strip                        remove outputs and editors' metadata, in place
"""

from __future__ import annotations

import _thread
import argparse
import ast
import contextlib
import json
import multiprocessing
import os
import re
import select
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib

from . import kernels, profiles
from .errors import InputError, at_least, cli, unknown
from .files import atomic_path

if TYPE_CHECKING:
    import nbformat  # costs a second, which every kernel that asks what is missing would wait for

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
KERNEL = "python3"
MOST_CODE_CELLS = 40
MOST_LINES = 15


class NotebookError(RuntimeError):
    """A cell of a notebook failed; the message names the notebook, the cell and the error in one line."""


@dataclass(frozen=True)
class Notebook:
    """One row of the book: `reads` are names of `profiles.Paths`; `seconds` what it once took in `make figures` of the
    laptop's results on two CPU cores: a guide, and the longest is begun first."""

    number: str
    slug: str
    question: str
    paper: str
    reads: tuple[str, ...]
    seconds: int

    @property
    def name(self) -> str:
        """The file's name without its suffix: `04_video_reward`."""
        return f"{self.number}_{self.slug}"

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.ipynb"

    @property
    def writes(self) -> tuple[str, ...]:
        """The figures and tables that its cells save, read off their calls."""
        return written_names(self.path)


def _row(number: str, slug: str, question: str, paper: str, *reads: str, seconds: int) -> Notebook:
    return Notebook(number, slug, question, paper, reads, seconds)


NOTEBOOKS: dict[str, Notebook] = {row.name: row for row in (
    _row("00", "start_here", "Does my machine work, and what is the pipeline?", "Fig. 1, 2", seconds=19),
    _row("01", "video_finetuning", "Does finetuning adapt the video model to the domain?", "Eq. 1-2",
         "video_model", "lora", seconds=47),
    _row("02", "goal_videos", "What does the model think success looks like?", "Fig. 4; hallucinations",
         "video_model", "lora", "scorer", "goals", seconds=22),
    _row("03", "goal_frames", "Which frame is the goal?", "Eq. 6, Fig. 8, Fig. A", "video_model", "lora",
         "scorer", "goals", seconds=37),
    _row("04", "video_reward", "Is latent alignment progress, or only looks?", "Eq. 3-5", "video_model", "lora",
         "goals", seconds=91),
    _row("05", "forward_backward", "Does F^T B see the goal coming?", "Eq. 7-9, Fig. 3", "video_model", "fb",
         "goals", seconds=92),
    _row("06", "reward_models", "How do all the reward models compare before any training?", "Table 1; quality table",
         "study", seconds=28),
    _row("07", "train_agent", "Can an agent learn from these rewards?", "Eq. 10", "goals", "fb", "runs", seconds=18),
    _row("08", "main_results", "Does it beat the baselines?", "Fig. 5, 6, 7, Table A", "runs", "study", seconds=40),
    _row("09", "ablations", "Which part matters?", "Fig. 9, Table D", "runs", "study", seconds=7),
    _row("10", "goal_sources", "How good must the goal video be?", "Fig. 10, Tables B, C", "runs", "goals", seconds=25),
    _row("11", "cost", "What does it cost?", "Table E", "runs", seconds=16),
)}


def find(name: str) -> Notebook:
    """The notebook of that name, number (`04`, `4`) or file; an unknown one is an `InputError` with the valid ones."""
    stem = Path(name).name.removesuffix(".ipynb")
    for notebook in NOTEBOOKS.values():
        if stem in (notebook.name, notebook.number, notebook.number.lstrip("0"), notebook.slug):
            return notebook
    raise unknown("notebook", name, NOTEBOOKS)


# --- reading a notebook ----------------------------------------------------------------------------------------------

def read(path: str | os.PathLike) -> nbformat.NotebookNode:
    """The notebook; a missing or damaged file is an `InputError` that names it."""
    import nbformat

    try:
        content = nbformat.read(path, as_version=4)
        nbformat.validate(content)
    except FileNotFoundError:
        raise InputError(f"no such notebook: {_short(path)}") from None
    except (nbformat.ValidationError, nbformat.reader.NotJSONError, json.JSONDecodeError, KeyError, UnicodeDecodeError,
            AttributeError) as problem:
        raise InputError(f"{_short(path)} is not a notebook: {str(problem).splitlines()[0]}") from None
    return content


def _short(path: str | os.PathLike) -> str:
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _code(content: nbformat.NotebookNode) -> list[tuple[int, nbformat.NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(content.cells) if cell.cell_type == "code"]


def default_parameters(path: str | os.PathLike) -> dict[str, Any]:
    """Names and default values in the notebook's cell tagged `parameters`; anything but literals is an `InputError`.

    Papermill puts the given values in a new cell after that one: what is derived inside it would keep the default.
    """
    tagged = [cell for _, cell in _code(read(path)) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{_short(path)}: {len(tagged)} cells tagged 'parameters'; valid: exactly one")
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            if isinstance(statement, ast.Assign):
                (target,) = statement.targets
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                target = statement.target
            else:
                raise ValueError
            if not isinstance(target, ast.Name):
                raise ValueError
            values[target.id] = ast.literal_eval(statement.value)
    except (SyntaxError, ValueError):
        raise InputError(f"{_short(path)}: the parameters cell may hold only lines like name = literal") from None
    return values


def written_names(path: str | os.PathLike) -> tuple[str, ...]:
    """The names under which the notebook's cells call `save_figure` and `write_table`, in order."""
    return tuple(dict.fromkeys(value.value for _, cell in _code(read(path)) for value in _saved_as(_parse(cell.source))
                               if isinstance(value, ast.Constant)))


def _saved_as(tree: ast.AST) -> list[ast.expr]:
    """What the calls of `save_figure` and `write_table` are given as a name, in the order of the lines."""
    given = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if called in ("save_figure", "write_table"):
                given += [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "name")]
    return sorted(given, key=lambda value: (value.lineno, value.col_offset))


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


# --- the rules -------------------------------------------------------------------------------------------------------

def check_notebook(path: str | os.PathLike, question: str | None = None) -> list[str]:
    """Every breach of the book's rules in one notebook, one line each; an empty list when it follows them.

    question: what the title must contain (default: only that it ends with a question mark).
    """
    content = read(path)
    cells = content.cells
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = _code(content)
    problems = []

    def expect(holds: Any, problem: str) -> None:
        if not holds:
            problems.append(f"{_short(path)}: {problem}")

    opening = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    title = opening.split("\n")[0].strip()
    expect(title.startswith("# ") and title.endswith("?"), "the first cell must open with a title that asks a question")
    if question is not None:
        expect(question in title, f"the title must ask: {question}")
    for word in ("paper", "reads", "writes", "minutes"):
        expect(word in opening.lower(), f"the first cell must say about '{word}'")
    expect(content.metadata.get("kernelspec", {}).get("name") == KERNEL, f"the kernelspec must be {KERNEL!r}")
    expect(len(code) <= MOST_CODE_CELLS, f"{len(code)} code cells; at most {MOST_CODE_CELLS}")
    expect(len(prose) >= len(code), f"{len(prose)} prose cells for {len(code)} code cells; at least as many are wanted")
    expect("\n".join(prose).count("**Exercise") >= 2, "at least two exercises (**Exercise ...) are wanted")
    asserts = False
    for i, cell in code:
        expect(not cell.outputs and cell.execution_count is None, f"cell {i}: outputs must be stripped")
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        expect(lines <= MOST_LINES, f"cell {i}: {lines} lines; at most {MOST_LINES}")
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as problem:
            expect(False, f"cell {i} is not plain Python: {problem.msg}")
            continue
        asserts |= any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        expect(not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)), f"cell {i}: no class in a notebook")
    expect(asserts, "no assert holds what the prose says")
    try:
        expect("profile" in default_parameters(path), "the parameters cell must set profile")
    except InputError as problem:
        problems.append(str(problem))
    return problems


def strip(path: str | os.PathLike) -> bool:
    """Remove outputs, execution counts and editors' metadata in place; True when that changed the file."""
    import nbformat

    content = read(path)
    for cell in content.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    spec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": KERNEL}
    content.metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    text = nbformat.writes(content) + "\n"
    if Path(path).read_text(encoding="utf-8") == text:
        return False
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


# --- running ---------------------------------------------------------------------------------------------------------

def missing(notebook: Notebook, profile: str | profiles.Profile) -> str | None:
    """One line naming what the notebook reads and does not find, with the command that makes it; None if all is there.

    Weights that the profile takes from the hub are not looked for: they come when they are asked for.
    """
    chosen = profiles.get_profile(profile)
    places = profiles.paths(chosen)
    from_hub = {"video_model"} if chosen.video.pretrained else set()
    from_hub |= {"lora"} if chosen.video.lora else set()
    from_hub |= {"scorer"} if chosen.clip.pretrained else set()
    for read_name in notebook.reads:
        place = getattr(places, read_name)
        filled = place.exists() and (place.is_file() or any(place.iterdir()))
        if read_name not in from_hub and not filled:
            return (f"notebook {notebook.name} reads {place.relative_to(places.root).as_posix()}, which is missing; "
                    f"make it with: make results PROFILE={chosen.name}")
    return None


def run_notebook(name: str, profile: str | profiles.Profile, parameters: Mapping[str, Any] | None = None) -> Path:
    """Execute a notebook of the book; returns the executed copy, `build/<profile>/book/<name>.ipynb`.

    `profile` is passed as the parameter of that name. It runs in the project's root under a temporary name, which is
    renamed once every cell has passed and every figure that the notebook saves is there. Raises `InputError` before
    anything runs for an unknown notebook, profile or parameter, a missing kernel, or results that are not there;
    `NotebookError` when a cell fails: the copy is then kept as `<name>.failed.ipynb` and an earlier good one stays.
    """
    notebook = find(name)
    chosen = profiles.get_profile(profile).name
    valid = default_parameters(notebook.path)
    given = {"profile": chosen, **(parameters or {})}
    wrong = sorted(set(given) - set(valid))
    if wrong:
        raise unknown(f"parameter of {notebook.name}:", wrong[0], valid)
    for name, value in given.items():
        kind = type(valid[name])
        kinds = {float: (float, int), tuple: (tuple, list), list: (tuple, list)}.get(kind, kind)
        if valid[name] is not None and (not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool)):
            raise InputError(f"parameter {name} of {notebook.name} is {value!r}; valid: such as {valid[name]!r}")
    lacking = missing(notebook, chosen)
    if lacking:
        raise InputError(lacking)
    places = profiles.paths(chosen)
    target = places.build / "book" / f"{notebook.name}.ipynb"
    execute(notebook.path, target, given)
    absent = [saved for saved in notebook.writes if not list(places.figures.glob(f"{saved}.*"))]
    if absent:
        raise NotebookError(f"{notebook.name}: ran, but {', '.join(absent)} is not in {places.figures.name}'s figures")
    return target


def execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> Path:
    """Run the notebook `source` into `target`, which appears only when every cell has passed (see `run_notebook`)."""
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    spec = read(source).metadata.get("kernelspec", {}).get("name")
    if spec is None:
        raise InputError(f"{_short(source)} has no kernelspec; python -m genreward.book strip sets it to {KERNEL}")
    try:
        KernelSpecManager().get_kernel_spec(spec)
    except NoSuchKernel:
        raise InputError(f"{_short(source)} asks for the kernel {spec!r}, which is not installed; "
                         f"valid: {', '.join(sorted(KernelSpecManager().find_kernel_specs())) or 'none'}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    running, failed = (target.with_name(f"{target.stem}.{state}.ipynb") for state in ("running", "failed"))
    failed.unlink(missing_ok=True)
    # Sockets in the file system: a kernel over TCP is open to everyone on the machine, and says so in every run. In a
    # folder of their own: two kernels would otherwise take the same names in the project's.
    folder = tempfile.mkdtemp(prefix="kernel-")
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(folder, "socket")}})
    try:
        with _sums_alike():
            papermill.execute_notebook(str(source), str(running), parameters=dict(parameters), cwd=str(ROOT),
                                       kernel_name=spec, progress_bar=False, start_timeout=300, config=sockets)
        os.replace(running, target)
    except papermill.PapermillExecutionError as problem:
        os.replace(running, failed)
        line = re.sub(r"\x1b\[[0-9;]*m", "", f"{problem.ename}: {problem.evalue}").strip().splitlines()[0]
        text = (problem.source.strip().splitlines() or [""])[0]
        raise NotebookError(f"{target.stem}: the cell that begins {text!r} failed: {line} "
                            f"(the whole of it: {_short(failed)})") from None
    except DeadKernelError as problem:
        raise NotebookError(f"{target.stem}: {str(problem).splitlines()[0]}") from None
    finally:
        running.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _sums() -> dict[str, str]:
    """What decides in which order a kernel adds up: one thread, as `make` has it, and of NumPy's OpenBLAS the code and
    the block sizes for a Haswell, wherever the processor has its instructions. Left to themselves they follow the
    machine, and figures differ in their last digits; the small models are slower with more threads, too."""
    chosen = {"OMP_NUM_THREADS": "1"}
    with contextlib.suppress(OSError):
        if re.search(r"\bavx2\b", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            chosen |= {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_L2_SIZE": "512"}
    return chosen


@contextlib.contextmanager
def _sums_alike() -> Iterator[None]:
    """A kernel started in here adds up by `_sums`, where the environment says nothing else."""
    unsaid = {name: value for name, value in _sums().items() if name not in os.environ}
    os.environ.update(unsaid)
    try:
        yield
    finally:
        for name in unsaid:
            os.environ.pop(name, None)


APART = multiprocessing.get_context("forkserver")  # its server has imported once what each of its children needs
RUNNER = ("papermill", "joblib", "nbformat", "genreward.profiles")
APART.set_forkserver_preload([*RUNNER])


def _run_apart(name: str, profile: str, warm: bool = False) -> tuple[float, str]:
    """Run a notebook in a process of its own: seconds, and what went wrong ("" when nothing did). warm: with a kernel
    that is forked from the fork server (see `kernels`)."""
    began = time.monotonic()
    receiver, sender = APART.Pipe(duplex=False)
    process = APART.Process(target=_run_and_tell, args=(name, profile, sender, warm))
    process.start()
    sender.close()  # the child's end is the last one open: when it dies without a word, we hear of it
    try:
        problem = receiver.recv()
    except EOFError:
        problem = f"error: {name} was killed"
    process.join()
    return time.monotonic() - began, problem


def _end_with_listener(sender: Any) -> None:
    """End this process, and its kernel with it, once nobody listens at the connection's other end any more: whoever
    asked for the notebook was killed, and the fork server would keep what it forked."""
    def watch() -> None:
        hangup = select.poll()
        hangup.register(sender.fileno(), 0)
        hangup.poll()
        _thread.interrupt_main()
        time.sleep(60)  # for the kernel and what was begun to be put away: seconds, more where the machine is busy
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_and_tell(name: str, profile: str, sender: Any, warm: bool) -> None:
    """What `_run_apart`'s process does. Only what is sent is said: what papermill logs beside it is not."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    os.chdir(ROOT)
    try:
        if warm:
            kernels.use(kernels.Waiting(foreign=[sender]))  # forks, and has to come before the thread
        _end_with_listener(sender)
        run_notebook(name, profile)
        sender.send("")
    except (InputError, NotebookError) as problem:
        sender.send(f"error: {problem}")
    except Exception:
        sender.send(traceback.format_exc())


def make_figures(profile: str | profiles.Profile, jobs: int | None = None) -> int:
    """Run the whole book, `jobs` notebooks at once (None: one a core, four at most), one line a notebook as it ends;
    returns how many failed. No notebook reads what another writes, so the order does not matter. What is missing is
    said first.
    """
    chosen = profiles.get_profile(profile).name
    if jobs is not None:
        at_least("jobs", jobs, 1)
    for notebook in NOTEBOOKS.values():
        lacking = missing(notebook, chosen)
        if lacking:
            raise InputError(lacking)
    start, failures, warm = time.monotonic(), 0, kernels.supported()
    APART.set_forkserver_preload([*RUNNER, *(kernels.WARM if warm else ())])
    # each in a process of its own: papermill's kernels wait for one another where they share one; the fork server reads
    # the number of threads as it imports, for all kernels
    with _sums_alike(), ThreadPoolExecutor(jobs or min(4, joblib.cpu_count())) as pool:
        begun = {pool.submit(_run_apart, notebook.name, chosen, warm): notebook for notebook in
                 sorted(NOTEBOOKS.values(), key=lambda notebook: -notebook.seconds)}
        for done in as_completed(begun):
            seconds, problem = done.result()
            print(f"book: {begun[done].name} {'FAILED' if problem else f'{seconds:.0f} s'}", flush=True)
            if problem:
                failures += 1
                print(problem, file=sys.stderr, flush=True)
    page, done = _short(write_gallery(chosen)), len(NOTEBOOKS) - failures
    print(f"book: {done} of {len(NOTEBOOKS)} notebooks in {time.monotonic() - start:.0f} s; {page} shows "
          f"{'what is there, old or new' if failures else 'what they drew'}", flush=True)
    return failures


def drawn(notebook: Notebook, profile: str | profiles.Profile) -> list[tuple[str, str]]:
    """The figures and tables on disk that a notebook's cells save, in order, each with the heading under which it is
    drawn. A name that is put together (an f-string) stands for every file that begins and ends as it does; a variable
    for the last text that it was set to."""
    folder, found, heading = profiles.paths(profile).figures, {}, notebook.question
    there, known = sorted(path.stem for path in folder.glob("[a-z]*") if path.suffix in (".svg", ".md")), {}
    for cell in read(notebook.path).cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in reversed(cell.source.splitlines())
                            if re.match(r"##+ ", line)), heading)
            continue
        tree = _parse(cell.source)
        known |= _texts_of(tree)
        for value in _saved_as(tree):
            name = known.get(value.id) if isinstance(value, ast.Name) else value
            pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in
                              (name.values if isinstance(name, ast.JoinedStr) else [name]) if part is not None)
            found |= {one: heading for one in there if re.fullmatch(pattern, one) and one not in found}
    return list(found.items())


def _texts_of(tree: ast.AST) -> dict[str, ast.expr]:
    """The names that are set to a text, or to an f-string, alone or in a row (`a, b = "x", 1`), by the last setting."""
    set_to = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            names, values = ((side.elts if isinstance(side, ast.Tuple) else [side])
                             for side in (node.targets[0], node.value))
            if len(names) == len(values):
                set_to |= {name.id: value for name, value in zip(names, values, strict=True)
                           if isinstance(name, ast.Name) and (isinstance(value, ast.JoinedStr) or (
                               isinstance(value, ast.Constant) and isinstance(value.value, str)))}
    return set_to


def gallery(profile: str | profiles.Profile) -> str:
    """The page that shows what the book has drawn, in Markdown, as it lies at `figures/<profile>/README.md`: every
    figure, and a link to every table, notebook by notebook, with the rows of those that were saved with them.
    """
    chosen = profiles.get_profile(profile)
    folder = profiles.paths(chosen).figures
    lines = [f"# Every figure and table, {chosen.name} profile", ""]
    for notebook in NOTEBOOKS.values():
        shown, last = drawn(notebook, chosen), None
        if shown:
            link = f"[{notebook.name}]({Path(os.path.relpath(notebook.path, folder)).as_posix()})"
            lines += [f"## {notebook.question}", "", f"Notebook {link}; in the paper: {notebook.paper}.", ""]
        for name, heading in shown:
            if heading not in (last, notebook.question):
                lines += [f"### {heading}", ""]
            last = heading
            ends = [end for end in (".svg", ".rows.csv", ".md", ".csv", ".tex") if (folder / f"{name}{end}").is_file()]
            if ".svg" in ends:
                lines += [f"![{name}]({name}.png)", ""]
            words = {".rows.csv": "rows", ".md": "table"}
            lines += [f"`{name}`: " + ", ".join(f"[{words.get(end, end[1:])}]({name}{end})" for end in ends), ""]
    told = f"Nothing is drawn yet: make figures PROFILE={chosen.name}" if not lines[2:] else (
        f"Drawn by `make figures PROFILE={chosen.name}` from the records in `results/{chosen.name}/`. With a figure or "
        "table of numbers on record lie its *rows*: what its points and means are made of (of learning curves the "
        "evaluations), with the file and line of the record that holds each and the commit whose code made it (`python "
        "-m genreward.trace` follows them). A table of final returns is made of its figure's last rows.")
    return "\n".join([*lines[:2], told, "", *lines[2:]])


def write_gallery(profile: str | profiles.Profile) -> Path:
    """Write `gallery` where it belongs; returns the file."""
    path = profiles.paths(profile).figures / "README.md"
    with atomic_path(path) as temporary:
        temporary.write_text(gallery(profile), encoding="utf-8")
    return path


def table() -> str:
    """The book as a Markdown table, for the README."""
    lines = ["| notebook | question | paper | seconds |", "| --- | --- | --- | ---: |"]
    lines += [f"| [{row.name}](notebooks/{row.name}.ipynb) | {row.question} | {row.paper} | {row.seconds} |"
              for row in NOTEBOOKS.values()]
    return "\n".join(lines)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"parameter {text!r}; valid: name=value")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m genreward.book", description="run and check the notebooks")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (("figures", "run every notebook"), ("run", "run one notebook"),
                           ("gallery", "write the page that shows every figure")):
        sub = commands.add_parser(command, help=about)
        if command == "figures":
            sub.add_argument("--jobs", type=int, help="notebooks at once (default: one a core, four at most)")
        if command == "run":
            sub.add_argument("name", help="04_video_reward, or 04")
            sub.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
        sub.add_argument("--profile", default="laptop", help=f"one of {', '.join(profiles.PROFILES)}")
    for command, about in (("list", "the book as a Markdown table"), ("check", "the rules, one line a breach"),
                           ("strip", "remove outputs, in place")):
        commands.add_parser(command, help=about)
    options = parser.parse_args(arguments)
    if options.command == "figures":
        return 1 if make_figures(options.profile, options.jobs) else 0
    if options.command == "run":
        try:
            print(_short(run_notebook(options.name, options.profile, dict(map(_parameter, options.parameter)))))
        except NotebookError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
    elif options.command == "gallery":
        print(write_gallery(options.profile))
    elif options.command == "list":
        print(table())
    elif options.command == "strip":
        print("\n".join(_short(path) for path in sorted(FOLDER.glob("*.ipynb")) if strip(path)) or "nothing to strip")
    else:
        problems = [line for row in NOTEBOOKS.values() for line in check_notebook(row.path, row.question)]
        print("\n".join(problems) or f"{len(NOTEBOOKS)} notebooks follow the rules")
        return 1 if problems else 0
    return 0


if __name__ == "__main__":
    cli(main)
