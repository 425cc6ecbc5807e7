"""Every picture and table of the book: one style, one colour a method, files that come out the same byte for byte.

Notebooks hand in what `results` computed and get a figure back (`... results -> figures -> book`); nothing here trains,
and the only numbers computed here are the intervals that a curve shows. `save_figure` and `write_table` put the files
under `figures/<profile>/`, with the profile, the number of seeds and the commit of the results in their foot.
"""

from __future__ import annotations

import base64
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from . import demos, profiles, results
from .errors import InputError
from .files import atomic_path
from .trajectory import check_frames, uniform_indices

ROWS = ".rows.csv"  # how the file of the rows behind a figure ends
# Okabe and Ito's colour-blind-safe colours for what is compared most, darker and lighter relatives for the rest.
METHOD_COLOURS: dict[str, str] = {
    "dense": "#000000",
    "sparse": "#a6a6a6",
    "genreward": "#d55e00",
    "genreward_sound": "#0072b2",
    "fb_zero_shot": "#009e73",
    "roboclip": "#cc79a7",
    "diffusion_reward": "#56b4e9",
    "tadpole": "#e69f00",
    "viper": "#f0e442",
    "liv": "#882255",
    "vlmrm": "#44aa99",
    "furl": "#aa4499",
    "rlvlmf": "#999933",
    "genreward_video": "#b2784a",
    "genreward_frame": "#332288",
    "pixel_cosine": "#6699cc",
    "clock": "#ddcc77",
    "oracle": "#117733",
    "expert": "#4d4d4d",
    "random": "#cccccc",
}
METHOD_LABELS: dict[str, str] = {
    "dense": "Dense reward",
    "sparse": "Sparse reward",
    "genreward": "GenReward (as printed)",
    "genreward_sound": "GenReward (every step, buffer targets)",
    "fb_zero_shot": "FB policy, zero-shot",
    "roboclip": "RoboCLIP",
    "diffusion_reward": "Diffusion Reward",
    "tadpole": "TADPoLe",
    "viper": "VIPER",
    "liv": "LIV",
    "vlmrm": "VLM-RM",
    "furl": "FuRL",
    "rlvlmf": "RL-VLM-F",
    "genreward_video": "GenReward, video level only",
    "genreward_frame": "GenReward, frame level only",
    "pixel_cosine": "Cosine of pixels (control)",
    "clock": "Clock (control)",
    "oracle": "goal from a real video",
    "expert": "Scripted expert",
    "random": "Random actions",
}
_RC = {
    "svg.hashsalt": "genreward",  # element ids from the content, not from a random number
    "svg.fonttype": "none",
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "figure.constrained_layout.use": True,
}


def style() -> None:
    """Set the look of every figure that follows: readable at printed size (9 pt), no decoration."""
    seaborn.set_theme(context="paper", style="ticks", rc=_RC)


def colour(method: str) -> str:
    """The method's own colour; a variant (`genreward:alpha=1`) has that of the method before the colon."""
    name = method.split(":")[0]
    if name not in METHOD_COLOURS:
        raise InputError(f"no colour for method {method!r}; valid: {', '.join(METHOD_COLOURS)}")
    return METHOD_COLOURS[name]


def shade(tone: str, number: int) -> str:
    """The colour `tone` (0), and by turns darker and paler ones of the same hue: for variants of one method."""
    strength = (0.0, -0.55, 0.5, -0.3)[number % 4]
    return to_hex((1 - abs(strength)) * np.array(to_rgb(tone)) + max(strength, 0.0))


def label(method: str) -> str:
    """The method's name in print; a variant keeps what stands after the colon."""
    name, _, variant = method.partition(":")
    printed = METHOD_LABELS.get(name, name)
    return f"{printed}, {variant}" if variant else printed


# --- saving ----------------------------------------------------------------------------------------------------------

def _stamp(profile: str | profiles.Profile, n: int | None, of: str = "seeds") -> str:
    name = profiles.get_profile(profile).name
    # curves of one figure may have fewer runs than others: which has how many stands in its legend or table
    most = "up to " if of == "seeds" and n is not None and n > 1 else ""
    runs = "" if n is None else f" · {most}{n} {of if n != 1 else of.removesuffix('s')}"
    return f"{name} profile{runs} · results of {results.commit_of(profiles.paths(name).results)}"


def _target(name: str, profile: str | profiles.Profile) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise InputError(f"figure name {name!r} does not make a file name; valid: a-z, 0-9, '_'")
    return profiles.paths(profile).figures / name


def _settle(fig: Figure) -> None:
    """Lay the figure out once and for all, on positions rounded to a billionth of its size.

    The layout's solver is not repeatable in a float's last digits, and Matplotlib names clip paths by a hash of theirs:
    without this, now and then the same figure gives other bytes.
    """
    if fig.get_layout_engine() is not None:
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
    for legend in fig.legends:  # after the layout, which makes room only for those without an anchor
        if legend.get_bbox_to_anchor() is fig.bbox:  # which "tight" moves when it saves; this anchor stays
            legend.set_bbox_to_anchor((0, 0, 1, 1), transform=fig.transFigure)
    for axes in fig.axes:
        counts = axes.get_in_layout()
        axes.set_position(np.round(axes.get_position(original=True).bounds, 9))
        axes.set_in_layout(counts)  # setting a position takes axes out of what is measured for the figure's edges


def save_figure(fig: Figure, name: str, profile: str | profiles.Profile, n: int | None = None, of: str = "seeds",
                rows: pd.DataFrame | None = None) -> Path:
    """Write `figures/<profile>/<name>.svg` and `.png`, stamped with profile, `n` `of` what and the results' commit.

    rows: what its points are made of (`trace.rows`), written beside it as `<name>.rows.csv` where it is given.
    The same figure drawn from the same results gives the same bytes. Returns the SVG's path.
    """
    base = _target(name, profile)
    _settle(fig)
    lowest = fig.get_tightbbox().y0 / fig.get_figheight()  # a legend may reach below the figure's edge
    footer = fig.text(1.0, round(min(lowest, 0.0) - 0.03 / fig.get_figheight(), 6), _stamp(profile, n, of), ha="right",
                      va="top", fontsize=6, color="#666666")
    try:
        with matplotlib.rc_context({key: _RC[key] for key in ("svg.hashsalt", "svg.fonttype", "savefig.dpi")}):
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                with atomic_path(base.with_suffix(suffix)) as temporary:
                    fig.savefig(temporary, metadata=metadata, bbox_inches="tight", pad_inches=0.05)
    finally:
        footer.remove()
    _keep_rows(base, rows)
    return base.with_suffix(".svg")


def _keep_rows(base: Path, rows: pd.DataFrame | None) -> None:
    """Write the rows behind what is called so; without any, those of an earlier one of that name go."""
    beside = base.with_suffix(ROWS)
    if rows is None:
        beside.unlink(missing_ok=True)
    else:
        with atomic_path(beside) as temporary:
            rows.to_csv(temporary, index=False, lineterminator="\n")


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return "-" if math.isnan(value) else f"{value:.{digits}g}"
    return str(value)


def _tex(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
               "±": r"$\pm$", "·": r"$\cdot$", "−": "-"}
    return "".join(special.get(letter, "\\" + letter if letter in "&%$#_{}" else letter) for letter in text)


def write_table(df: pd.DataFrame, name: str, profile: str | profiles.Profile, n: int | None = None,
                digits: int = 4, rows: pd.DataFrame | None = None) -> Path:
    """Write a table as `.csv` (full precision), `.md` and `.tex` (`digits` significant digits) under
    `figures/<profile>/`, the last two stamped like a figure. Returns the Markdown's path. A table without rows says
    "none on record" under its heads (and has heads only as `.csv`); one without columns is an InputError.

    rows: as of `save_figure`; where a figure has the table's name, the figure is saved with them.
    """
    base = _target(name, profile)
    if not len(df.columns):
        raise InputError(f"table {name}: no columns")
    heads = [str(column) for column in df.columns]
    lines = [[_cell(value, digits) for value in row] for row in df.itertuples(index=False, name=None)]
    lines = lines or [["none on record", *[""] * (len(heads) - 1)]]
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in df.dtypes]
    stamp = _stamp(profile, n)
    with atomic_path(base.with_suffix(".csv")) as temporary:
        df.to_csv(temporary, index=False, lineterminator="\n")
    rule = "|".join(" ---: " if right else " --- " for right in numeric)
    markdown = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [heads, *lines]]
    markdown.insert(1, f"|{rule}|")
    with atomic_path(base.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(markdown) + f"\n\n<sub>{stamp}</sub>\n", encoding="utf-8")
    tex = [f"% {stamp}", rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", r"\toprule",
           " & ".join(map(_tex, heads)) + r" \\", r"\midrule",
           *(" & ".join(map(_tex, row)) + r" \\" for row in lines), r"\bottomrule", r"\end{tabular}"]
    with atomic_path(base.with_suffix(".tex")) as temporary:
        temporary.write_text("\n".join(tex) + "\n", encoding="utf-8")
    if rows is not None or not base.with_suffix(".svg").is_file():
        _keep_rows(base, rows)
    return base.with_suffix(".md")


# --- pictures --------------------------------------------------------------------------------------------------------

def enlarge(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (N,H,W,3) uint8, every pixel repeated a whole number of times until both sides are at least `size`."""
    check_frames(frames)
    factor = max(1, math.ceil(size / min(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def film_strip(rows: Mapping[str, np.ndarray] | Sequence[np.ndarray] | np.ndarray, columns: int = 8,
               titles: Sequence[str] | None = None, marks: Mapping[str, int] | None = None,
               width: float = 7.0) -> Figure:
    """One row of pictures a clip, evenly spaced over it, both ends included.

    rows: label -> frames (N,H,W,3) uint8, or clips without labels; `columns`: pictures a row at most; `titles`: one a
    column; `marks`: label -> frame index, framed in colour at the column nearest to it (the goal frame); `width` in
    inches.
    """
    if isinstance(rows, np.ndarray) and rows.ndim == 4:
        rows = [rows]
    named = dict(rows) if isinstance(rows, Mapping) else {str(i): clip for i, clip in enumerate(rows)}
    show_labels = isinstance(rows, Mapping)
    if not named or columns < 1:
        raise InputError("film strip: need at least one clip and one column")
    for name, clip in named.items():
        check_frames(clip, name=f"film strip row {name!r}")
    columns = min(columns, max(map(len, named.values())))
    if titles is not None and len(titles) != columns:
        raise InputError(f"film strip: {len(titles)} titles for {columns} columns")
    unknown = set(marks or {}) - set(named)
    if unknown:
        raise InputError(f"film strip: marks for {', '.join(sorted(unknown))}; valid: {', '.join(named)}")
    aspect = np.mean([clip.shape[1] / clip.shape[2] for clip in named.values()])
    longest = max(len(line) for name in named for line in name.split("\n"))
    cell = (width - (max(1.1, 0.06 * longest) if show_labels else 0)) / columns  # 0.06 inches a letter of the labels
    fig, axes = pyplot.subplots(len(named), columns, squeeze=False, layout="compressed",
                                figsize=(width, len(named) * cell * aspect + (0.3 if titles else 0.1)))
    for row, (name, clip) in zip(axes, named.items(), strict=True):
        indices = uniform_indices(len(clip), columns)
        mark = None if marks is None or name not in marks else int(np.abs(indices - marks[name]).argmin())
        for column, (axis, index) in enumerate(zip(row, indices, strict=True)):
            axis.imshow(clip[index], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=column == mark, color=METHOD_COLOURS["genreward"], linewidth=2.5)
        if show_labels:
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], titles or (), strict=False):
        axis.set_title(title, fontsize=8)
    return fig


# --- curves ----------------------------------------------------------------------------------------------------------

def learning_curves(table: pd.DataFrame, metric: str, tasks: Iterable[str] | None = None,
                    methods: Iterable[str] | None = None, lines: Mapping[str, Any] | None = None,
                    ylabel: str | None = None, columns: int = 3) -> Figure:
    """A metric against environment steps, one panel a task, one curve a method: mean over seeds, Student's 95%
    interval shaded, the number of seeds in the legend (a range where it differs between panels).

    table: rows of `results.load`; `tasks`, `methods`: which, in that order (default: all). `lines`: reference name
    (`expert`, `random`) -> one value, or task -> value; drawn dashed. A single seed is drawn without an interval.
    """
    chosen = table[table["metric"] == metric]
    if chosen.empty:
        raise InputError(f"no rows of metric {metric!r}; valid: {', '.join(sorted(table['metric'].unique()))}")
    tasks = list(tasks) if tasks is not None else sorted(chosen["task"].unique())
    known = [name for name in METHOD_COLOURS if name in set(chosen["method"])]
    methods = list(methods) if methods is not None else known + sorted(set(chosen["method"]) - set(known))
    for kind, names in (("task", tasks), ("method", methods)):
        missing = sorted(set(names) - set(chosen[kind]))
        if missing:
            valid = ", ".join(sorted(chosen[kind].unique()))
            raise InputError(f"no rows of {kind} {', '.join(missing)}; valid: {valid}")
    across = min(columns, len(tasks))
    down = math.ceil(len(tasks) / across)
    fig, axes = pyplot.subplots(down, across, squeeze=False, layout="constrained",
                                figsize=(max(2.4 * across, 4.2), 2.1 * down + 0.7))
    seeds: dict[str, set[int]] = {method: set() for method in methods}
    for axis, task in zip(axes.flat, tasks, strict=False):
        for method in methods:
            rows = chosen[(chosen["task"] == task) & (chosen["method"] == method)]
            if rows.empty:
                continue
            seeds[method].add(rows["seed"].nunique())
            curve = pd.DataFrame({step: results.mean_interval(at["value"])._asdict()
                                  for step, at in rows.groupby("step")}).T
            tone = colour(method)
            axis.plot(curve.index, curve["value"], color=tone, marker="o", markersize=2.5, linewidth=1.3)
            if curve["low"].notna().any():
                axis.fill_between(curve.index, curve["low"], curve["high"], color=tone, linewidth=0,
                                  alpha=0.2 if len(methods) < 4 else 0.1)  # many bands would hide each other
        for name, level in (lines or {}).items():
            value = level.get(task) if isinstance(level, Mapping) else level
            if value is not None:
                axis.axhline(float(value), color=colour(name), linestyle=_dash(name), linewidth=1)
        axis.set_title(task)
        axis.set_xlabel("environment steps")
        axis.set_xlim(left=0)
    for axis in list(axes.flat)[len(tasks):]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(ylabel or metric.replace("_", " "))
    handles = [pyplot.Line2D([], [], color=colour(method), marker="o", markersize=2.5,
                             label=f"{label(method)} (n={_span(seeds[method])})") for method in methods]
    handles += [pyplot.Line2D([], [], color=colour(name), linestyle=_dash(name), label=label(name))
                for name in lines or {}]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    seaborn.despine(fig)
    return fig


def _dash(reference: str) -> str:
    return "--" if reference == "expert" else ":"


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)}-{max(counts)}"


curves = learning_curves  # the short name that notebooks use

BROKEN = 0.14
"""The part of a panel, above its even scale, that `break_scale` leaves to what lies far away."""


def break_scale(axis: Axes, near: float, far: float, low: float = 0.0) -> None:
    """An even vertical scale from `low` to `near`, and on top of it a grey strip that squeezes all there is between
    `near` and `far` (a yardstick that no curve comes close to), which is marked at its place: for panels in which one
    distant line would press all curves into the floor."""
    if not low < near < far:
        raise InputError(f"a broken scale goes up from low to near to far; got {low:g}, {near:g}, {far:g}")
    squeeze = BROKEN * (near - low) / (far - near)
    axis.set_yscale("function", functions=(
        lambda y: np.where(np.asarray(y) <= near, y, near + squeeze * (np.asarray(y) - near)),
        lambda y: np.where(np.asarray(y) <= near, y, near + (np.asarray(y) - near) / squeeze)))
    axis.set_ylim(low, far + 0.4 * (far - near))
    axis.set_yticks([*(at for at in MaxNLocator(4).tick_values(low, near) if low <= at <= near), far])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, position: f"{value:,.10g}" if value < near else f"{value:,.0f}")
    axis.axhspan(near, axis.get_ylim()[1], color="0.93", linewidth=0, zorder=0)


def set_apart(axis: Axes, far: float, fraction: float = 0.2, also: Sequence[float] = ()) -> bool:
    """`break_scale` between the axis' lines and the one at `far`, if none of the others comes to that `fraction` of it;
    whether it was done. The even part holds every other line, and `also` those heights; bands may leave it."""
    heights = np.concatenate([*(np.asarray(line.get_ydata(), float) for line in axis.lines), np.asarray(also, float)])
    nearby = heights[heights < far]
    if not len(nearby) or nearby.max() >= fraction * far:
        return False
    room = 0.06 * max(float(np.ptp(nearby)), 1e-9)
    break_scale(axis, float(nearby.max()) + room, far, float(nearby.min()) - room)
    return True


def heatmaps(matrices: Mapping[str, np.ndarray], label: str, cell: float = 0.36) -> Figure:
    """One panel a matrix of numbers in [-1, 1], each number printed in its cell; rows and columns are counted from 0
    and both called `label`; `cell` in inches."""
    if not matrices:
        raise InputError("heat maps: need at least one matrix")
    for name, matrix in matrices.items():
        if np.ndim(matrix) != 2 or np.abs(matrix).max(initial=0.0) > 1 + 1e-6:
            raise InputError(f"heat map {name!r}: need a matrix of numbers in [-1, 1], got shape {np.shape(matrix)}"
                             + (f" up to {np.abs(matrix).max():g} in size" if np.ndim(matrix) == 2 else ""))
    widest, highest = (max(np.shape(matrix)[axis] for matrix in matrices.values()) for axis in (1, 0))
    fig, axes = pyplot.subplots(1, len(matrices), squeeze=False, layout="constrained",
                                figsize=(cell * widest * len(matrices) + 0.8, cell * highest + 0.8))
    for axis, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        # rounded first: a colour and its number never disagree, nor change with a float's last digits
        seaborn.heatmap(np.round(matrix, 1) + 0.0, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".1f", square=True,
                        cbar=False, annot_kws={"size": 7}, ax=axis)
        axis.set(title=name, xlabel=label)
        axis.tick_params(length=0, rotation=0)
    axes[0, 0].set_ylabel(label)
    return fig


# --- videos ----------------------------------------------------------------------------------------------------------

def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 8, scale: int = 256) -> Path:
    """Write frames (N,H,W,3) uint8 as an mp4 that every browser plays: H.264, yuv420p, pixels enlarged until both
    sides are at least `scale`, sides made even by repeating the last row or column. Returns the path."""
    if not fps > 0:
        raise InputError(f"fps must be positive, not {fps}")
    large = enlarge(np.asarray(frames), scale)
    large = np.pad(large, ((0, 0), (0, large.shape[1] % 2), (0, large.shape[2] % 2), (0, 0)), mode="edge")
    path = Path(path)
    if path.suffix != ".mp4":
        raise InputError(f"{path}: a video is written as .mp4")
    demos.write_video(path, large, fps, lossy=True)
    return path


def video_html(frames: np.ndarray, fps: float = 8, scale: int = 256, caption: str = "") -> Any:
    """Frames (N,H,W,3) uint8 as a video that plays inside a notebook, without a file beside it (IPython `HTML`)."""
    import html

    from IPython.display import HTML

    with tempfile.TemporaryDirectory() as folder:
        data = write_video(Path(folder) / "video.mp4", frames, fps, scale).read_bytes()
    source = base64.b64encode(data).decode()
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return HTML(f'<figure style="display:inline-block;margin:4px"><video controls loop muted autoplay '
                f'src="data:video/mp4;base64,{source}"></video>{text}</figure>')
