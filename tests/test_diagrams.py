"""Figures 1 and 2: they show the artefacts that they were given, and latents keep their places."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot, rc_context
from matplotlib.patches import ConnectionPatch

from genreward import diagrams
from genreward.errors import InputError


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def _shown(fig):
    return [image.get_array() for axis in fig.axes for image in axis.images]


def test_latents_become_pictures_in_which_equal_places_have_equal_colours():
    latents = np.zeros((5, 2, 4, 4))
    latents[:, :, :2] = np.arange(1, 6)[:, None, None, None]  # two kinds of place, the upper and the lower half
    pictures = diagrams.latent_pictures(latents)
    assert pictures.shape == (2, 4, 4, 3) and pictures.dtype == np.uint8
    assert (pictures[:, :2, :, 0] == 255).all() and (pictures[:, 2:, :, 0] == 0).all()
    assert diagrams.latent_pictures(latents[:1]).shape == (2, 4, 4, 3)  # fewer channels than colours
    with pytest.raises(InputError, match=r"\(C, T', h, w\)"):
        diagrams.latent_pictures(latents[0])
    with pytest.raises(InputError, match="finite"):
        diagrams.latent_pictures(latents * np.nan)


def test_the_idea_shows_every_frame_the_goal_frame_and_every_latent():
    video = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    goal = SimpleNamespace(video=video, scores=np.arange(5) / 10, index=3, frame=video[3], prompt="push the puck")
    latents = np.random.default_rng(1).normal(size=(4, 3, 2, 2))
    start = 255 - video[0]  # the model's own frame 0 is not quite the one that it was shown
    shown = _shown(diagrams.idea_figure(start, goal, latents))
    wanted = [start, *video, *diagrams.latent_pictures(latents), video[3]]
    assert len(shown) == len(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(shown, wanted, strict=True))


def test_a_score_stands_under_its_frame_and_its_mark_is_not_cut():
    video = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    goal = SimpleNamespace(video=video, scores=np.arange(5) / 10, index=4, frame=video[4], prompt="push the puck")
    with rc_context({"figure.constrained_layout.use": True}):  # as the project's style has it
        fig = diagrams.idea_figure(video[0], goal, np.random.default_rng(1).normal(size=(4, 3, 2, 2)))
        fig.savefig(io.BytesIO(), bbox_inches="tight")  # saving must not lay it out anew
        fig.draw_without_rendering()
    (scores,) = [axis for axis in fig.axes if axis.get_ylabel().startswith("score")]
    frames = [axis for axis in fig.axes if axis.get_title() in map(str, range(5))]
    at = scores.transData.transform(np.c_[np.arange(5), goal.scores])
    middles = [np.mean(axis.get_window_extent().intervalx) for axis in frames]
    np.testing.assert_allclose(at[:, 0], middles, atol=0.5)  # pixels
    room = scores.get_window_extent().intervaly[1] - at[:, 1].max()
    assert room > 3.5 * fig.dpi / 72  # the mark's radius: 7 points across


def test_the_pipeline_joins_its_panels_by_arrows():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    fig = diagrams.pipeline_figure([(f"stage {i}", picture, "what it does") for i, picture in enumerate(pictures)])
    assert all(np.array_equal(a, b) for a, b in zip(_shown(fig), pictures, strict=True))
    assert sum(isinstance(artist, ConnectionPatch) for artist in fig.artists) == 3
    with pytest.raises(InputError, match="at least two"):
        diagrams.pipeline_figure([("one", pictures[0], "")])
    with pytest.raises(InputError, match="picture of 'b'"):
        diagrams.pipeline_figure([("a", pictures[0], ""), ("b", pictures[0].astype(float), "")])
