"""Fig. 1 and Fig. 2: the idea and the pipeline, drawn from what the pipeline made rather than from clip art.

Stands beside `figures` at the end of the flow (`... results -> figures -> book`): it lays out pictures, scores and
latents that notebook 00 loads, and computes nothing but the colours in which latents are shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from .errors import InputError
from .figures import METHOD_COLOURS
from .trajectory import check_frames


def latent_pictures(latents: Any) -> np.ndarray:
    """Latents (C, T', h, w) as pictures (T', h, w, 3) uint8: their three principal channels as red, green and blue,
    each stretched over its own range (1st to 99th percentile). A single channel, or two, leave the rest black."""
    values = np.asarray(latents, np.float64)
    if values.ndim != 4 or not np.isfinite(values).all():
        raise InputError(f"latents to look at must be finite, of shape (C, T', h, w), got shape {values.shape}")
    flat = values.reshape(len(values), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    axes = np.linalg.svd(flat @ flat.T)[0][:, :3]
    axes = axes * np.where(axes.sum(axis=0) < 0, -1, 1)  # an axis has no sign of its own: fix one
    shown = axes.T @ flat
    low, high = np.percentile(shown, [1, 99], axis=1, keepdims=True)
    shown = ((shown - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    colours = np.zeros((3, shown.shape[1]))
    colours[:len(shown)] = shown
    return (255 * colours).round().astype(np.uint8).reshape(3, *values.shape[1:]).transpose(1, 2, 3, 0)


def _picture(axis: Any, frame: np.ndarray, title: str = "", edge: str | None = None) -> None:
    axis.imshow(frame, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)
    for spine in axis.spines.values():
        spine.set(visible=edge is not None, color=edge, linewidth=2.5)


def idea_figure(first_frame: np.ndarray, goal: Any, latents: Any) -> Figure:
    """Fig. 1: a first frame and a prompt become a goal video, its frames are scored, the best is the goal frame.

    first_frame  (H, W, 3) uint8 that the model was shown; goal: a `goals.Goal`; latents (C, T', h, w) of its video
    """
    check_frames(np.asarray(first_frame)[None], name="the first frame")
    frames, pictures = check_frames(goal.video, name="the goal video"), latent_pictures(latents)
    count, tone = len(frames), METHOD_COLOURS["genreward"]
    # Fixed places: a solver would move the scores away from under their frames to make room for a label. Switched off
    # and not left out, since saving a figure that never had a layout gives it the default one.
    fig, gap = pyplot.figure(figsize=(9.0, 3.8), layout="constrained"), 0.12
    fig.set_layout_engine("none")
    grid = fig.add_gridspec(3, 3, width_ratios=[2, count, 2], height_ratios=[1.2, 1, 1.2], left=0.01, right=0.99,
                            bottom=0.02, top=0.93, wspace=0.2, hspace=0.6)
    _picture(fig.add_subplot(grid[0, 0]), first_frame, "first frame")
    words = fig.add_subplot(grid[1:, 0])
    words.text(0.5, 0.6, textwrap.fill(f"“{goal.prompt}”", 18), ha="center", va="center", fontsize=9, style="italic")
    words.set_title("prompt", fontsize=8)
    words.axis("off")
    for i, cell in enumerate(grid[0, 1].subgridspec(1, count, wspace=gap)):
        _picture(fig.add_subplot(cell), frames[i], f"{i}", tone if i == goal.index else None)
    scores = fig.add_subplot(grid[1, 1])
    scores.plot(goal.scores, color="#4d4d4d", marker="o", markersize=3, linewidth=1)
    scores.plot(goal.index, goal.scores[goal.index], color=tone, marker="o", markersize=7)
    beside = 0.5 / (1 + gap)  # half a frame, in steps from one frame's middle to the next one's
    scores.set(xlim=(-beside, count - 1 + beside), xticks=range(count))
    scores.margins(y=0.2)
    scores.set_ylabel("score (Eq. 6)", fontsize=8)
    for i, cell in enumerate(grid[2, 1].subgridspec(1, len(pictures))):
        _picture(fig.add_subplot(cell), pictures[i], f"latent {i}")
    _picture(fig.add_subplot(grid[0, 2]), goal.frame, "goal frame", tone)
    rewards = (("fine: the frame", "$F(s,a,z^*)^\\top B(\\psi(I^*))$\ndoes this step lead\nthere?"),
               ("coarse: the video", "$\\cos(z_v, z_{goal})$\ndoes the episode look\nlike it?"))
    for row, (title, text) in enumerate(rewards, 1):
        axis = fig.add_subplot(grid[row, 2])
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=8)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    return fig


def pipeline_figure(panels: Sequence[tuple[str, np.ndarray, str]], width: float = 9.0) -> Figure:
    """Fig. 2: the stages from left to right with arrows between them.

    panels: (title, picture (H, W, 3) uint8, caption), at least two; `width` in inches.
    """
    if len(panels) < 2:
        raise InputError(f"a pipeline needs at least two panels, got {len(panels)}")
    for title, picture, _ in panels:
        check_frames(np.asarray(picture)[None], name=f"the picture of {title!r}")
    fig, axes = pyplot.subplots(1, len(panels), figsize=(width, width / len(panels) + 0.9), layout="constrained")
    fig.get_layout_engine().set(wspace=0.12)  # room for the arrows
    for axis, (title, picture, caption) in zip(axes, panels, strict=True):
        _picture(axis, picture, title)
        axis.set_xlabel(textwrap.fill(caption, 22), fontsize=7)
    for left, right in zip(axes[:-1], axes[1:], strict=True):
        fig.add_artist(ConnectionPatch((1.02, 0.5), (-0.02, 0.5), left.transAxes, right.transAxes, arrowstyle="-|>",
                                       color="#4d4d4d", linewidth=1.2))
    return fig
