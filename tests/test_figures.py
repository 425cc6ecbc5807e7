"""Figures and tables: the same bytes, honest numbers, files that play."""

import itertools
import re

import av
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors, pyplot

from genreward import figures, results
from genreward.errors import InputError


@pytest.fixture(autouse=True)
def clean():
    figures.style()
    yield
    pyplot.close("all")


def clip(n=6, height=8, width=8, value=None):
    frames = np.zeros((n, height, width, 3), np.uint8)
    frames[:] = np.arange(n)[:, None, None, None] * 40 if value is None else value
    return frames


def runs():
    rows = [("main", method, task, seed, step, "episode_return", scale * step + seed)
            for method, scale in (("dense", 2.0), ("genreward", 1.0)) for task in ("reach", "push")
            for seed in range(3 if method == "dense" else 1) for step in (0, 100, 200)]
    return pd.DataFrame(rows, columns=results.COLUMNS)


def test_colours_can_be_told_apart():
    assert set(figures.METHOD_COLOURS) == set(figures.METHOD_LABELS)
    main = list(figures.METHOD_COLOURS)[:8]
    assert main[:4] == ["dense", "sparse", "genreward", "genreward_sound"]
    rgb = {name: np.array(colors.to_rgb(figures.METHOD_COLOURS[name])) for name in figures.METHOD_COLOURS}
    assert len({tuple(value) for value in rgb.values()}) == len(rgb)
    # as seen with deuteranopia (Machado et al. 2009, full severity), the methods of the main figures stay apart
    deuteranopia = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                             [-0.011820, 0.042940, 0.968881]])
    for one, other in itertools.combinations(main, 2):
        assert np.linalg.norm(deuteranopia @ (rgb[one] - rgb[other])) > 0.12, (one, other)


def test_a_variant_has_its_methods_colour():
    assert figures.colour("genreward:alpha=1") == figures.colour("genreward")
    assert figures.label("genreward:alpha=1") == "GenReward (as printed), alpha=1"
    with pytest.raises(InputError, match="valid: dense, sparse"):
        figures.colour("unheard-of")


def test_a_figure_is_the_same_byte_for_byte(root):
    def draw():
        fig, axis = pyplot.subplots()
        axis.plot([0, 1], [1, 0], label="x")
        axis.fill_between([0, 1], [0, 0], [1, 1], alpha=0.2)
        axis.legend()
        path = figures.save_figure(fig, "line", "smoke", n=3)
        return path.read_bytes(), path.with_suffix(".png").read_bytes()

    (svg, png), again = draw(), draw()
    assert (svg, png) == again
    assert (root / "figures" / "smoke" / "line.svg").exists()
    assert b"smoke profile" in svg and b"3 seeds" in svg and results.commit()[0].encode() in svg
    assert not re.search(rb"20\d\d-\d\d-\d\d", svg) and b"Software" not in png


def test_what_the_layout_leaves_in_the_last_digits_does_not_reach_the_file(root, monkeypatch):
    def draw(error):
        fig, (axis, _) = pyplot.subplots(1, 2)
        axis.plot([0, 1], [1, 0])
        fig.colorbar(axis.imshow([[0, 1], [1, 0]]), ax=axis)
        execute = fig.get_layout_engine().execute
        boxes = []

        def inexact(fig):
            execute(fig)
            for axes in fig.axes:
                axes._set_position(np.array(axes.get_position(original=True).bounds) * (1 + error), which="original")
                boxes.append(axes.get_position(original=True).bounds)

        monkeypatch.setattr(fig.get_layout_engine(), "execute", inexact)
        svg = figures.save_figure(fig, "jitter", "smoke", n=1).read_bytes()
        assert all(axes.get_in_layout() for axes in fig.axes)
        return svg, boxes

    (exact, boxes), (inexact, others) = draw(0.0), draw(1e-14)
    assert boxes and boxes != others and exact == inexact


def test_axes_legend_and_stamp_keep_out_of_each_others_way(root, monkeypatch):
    fig, axis = pyplot.subplots(figsize=(3, 2))
    axis.plot([0, 1], [0, 1], label="y")
    fig.legend(loc="outside lower center")
    boxes = {}

    def measure(*arguments, **options):
        fig.canvas.draw()
        renderer = fig.canvas.get_renderer()
        boxes.update(stamp=fig.texts[0].get_window_extent(renderer), legend=fig.legends[0].get_window_extent(renderer),
                     axes=axis.get_tightbbox(renderer))
        save(*arguments, **options)

    save = fig.savefig
    monkeypatch.setattr(fig, "savefig", measure)
    path = figures.save_figure(fig, "legend", "smoke", n=1).with_suffix(".png")
    assert boxes["stamp"].y1 < boxes["legend"].y0 and boxes["legend"].y1 < boxes["axes"].y0
    picture = pyplot.imread(path)[..., :3].min(axis=-1)  # the same in the file: an empty line above the stamp
    ink = np.flatnonzero((picture < 0.9).any(axis=1))
    last = ink[np.flatnonzero(np.diff(ink) > 1)[-1] + 1:]
    assert len(last) < 18  # pixels, 150 an inch: one line of 6 points, and nothing of the legend's above it


def test_the_stamp_does_not_stay_on_the_figure(root):
    fig, _ = pyplot.subplots()
    figures.save_figure(fig, "a", "smoke", n=1)
    figures.save_figure(fig, "a", "smoke", n=2)
    assert fig.texts == []
    svg = (root / "figures/smoke/a.svg").read_text()
    assert "2 seeds" in svg and "1 seed" not in svg


@pytest.mark.parametrize("name", ["", "../up", "Fig 1", "a.svg"])
def test_figure_names(root, name):
    with pytest.raises(InputError, match="figure name"):
        figures.save_figure(pyplot.figure(), name, "smoke")
    assert list(root.iterdir()) == []


def test_unknown_profile(root):
    with pytest.raises(InputError, match="unknown profile 'huge'"):
        figures.save_figure(pyplot.figure(), "a", "huge")


def test_a_table_in_three_forms(root):
    table = pd.DataFrame({"method": ["a_b", "50% | x"], "return": [1.23456789, float("nan")], "n": [3, 1],
                          "demo-free": [True, False]})
    path = figures.write_table(table, "quality", "smoke", n=3)
    markdown = path.read_text().splitlines()
    assert markdown[:4] == ["| method | return | n | demo-free |", "| --- | ---: | ---: | --- |",
                            "| a_b | 1.235 | 3 | yes |", "| 50% \\| x | - | 1 | no |"]
    assert "smoke profile · up to 3 seeds" in markdown[-1]
    tex = path.with_suffix(".tex").read_text()
    assert r"\begin{tabular}{lrrl}" in tex and r"a\_b & 1.235 & 3 & yes \\" in tex and r"50\% | x" in tex
    assert "1.23456789" in path.with_suffix(".csv").read_text()


def test_a_table_without_rows_says_so_and_one_without_columns_is_refused(root):
    path = figures.write_table(pd.DataFrame(columns=["task", "n"]), "quality", "smoke", n=0)
    assert path.read_text().splitlines()[0::2][:2] == ["| task | n |", "| none on record |  |"]
    assert r"none on record &  \\" in path.with_suffix(".tex").read_text()
    assert path.with_suffix(".csv").read_text() == "task,n\n"
    with pytest.raises(InputError, match="no columns"):
        figures.write_table(pd.DataFrame(), "quality", "smoke")


def test_a_film_strip_of_long_labels_is_as_high_as_its_smaller_pictures():
    short, long = (figures.film_strip({name: clip(9), "random": clip(5)}, columns=4) for name in ("expert", "x" * 40))
    for fig in (short, long):
        fig.canvas.draw()
        boxes = [axis.get_window_extent() for axis in fig.axes]
        empty = fig.bbox.height - (max(box.y1 for box in boxes) - min(box.y0 for box in boxes))
        assert empty < boxes[0].height / 2
    assert long.get_figheight() < 0.8 * short.get_figheight() and long.get_figwidth() == short.get_figwidth()


def test_a_film_strip_shows_both_ends_and_marks_the_goal():
    fig = figures.film_strip({"expert": clip(9), "random": clip(5)}, columns=3, marks={"expert": 8})
    grid = np.array(fig.axes).reshape(2, 3)
    shown = [[axis.images[0].get_array()[0, 0, 0] // 40 for axis in row] for row in grid]
    assert shown[0] == [0, 4, (8 * 40 % 256) // 40] and shown[1] == [0, 2, 4]
    marked = [[axis.spines["left"].get_visible() for axis in row] for row in grid]
    assert marked == [[False, False, True], [False, False, False]]
    assert [row[0].get_ylabel() for row in grid] == ["expert", "random"]


@pytest.mark.parametrize(("arguments", "why"), [
    ({"rows": {"a": clip().astype(float)}}, "uint8"),
    ({"rows": {"a": clip()[0]}}, r"\(N, H, W, 3\)"),
    ({"rows": {}}, "at least one clip"),
    ({"rows": {"a": clip()}, "marks": {"b": 0}}, "valid: a"),
    ({"rows": {"a": clip()}, "titles": ["one"], "columns": 3}, "1 titles for 3 columns"),
])
def test_film_strip_bad_input(arguments, why):
    with pytest.raises(InputError, match=why):
        figures.film_strip(**arguments)


def test_a_heat_map_prints_the_number_that_its_colour_shows():
    matrix = np.array([[1.0, -0.04], [0.26, -1.0]])
    fig = figures.heatmaps({"reach": matrix, "push": -matrix[:1]}, "frame")
    assert [axis.get_title() for axis in fig.axes] == ["reach", "push"]
    printed = [[text.get_text() for text in axis.texts] for axis in fig.axes]
    assert printed == [["1.0", "0.0", "0.3", "-1.0"], ["-1.0", "0.0"]]  # and no "-0.0"
    tones = fig.axes[0].collections[0].get_array().reshape(2, 2)
    assert tones.tolist() == [[1.0, 0.0], [0.3, -1.0]]


@pytest.mark.parametrize(("matrices", "why"), [
    ({}, "at least one matrix"), ({"a": np.zeros(3)}, r"'a': need a matrix .* got shape \(3,\)$"),
    ({"a": np.full((2, 2), -3.0)}, r"up to 3 in size"),
])
def test_heat_maps_bad_input(matrices, why):
    with pytest.raises(InputError, match=why):
        figures.heatmaps(matrices, "frame")


def test_curves_show_means_intervals_and_the_number_of_seeds():
    fig = figures.learning_curves(runs(), "episode_return", lines={"expert": 500, "random": {"push": -5}})
    panels = {axis.get_title(): axis for axis in fig.axes}
    dense = next(line for line in panels["reach"].lines if line.get_color() == figures.colour("dense"))
    assert dense.get_xdata().tolist() == [0, 100, 200]
    assert np.allclose(dense.get_ydata(), [1, 201, 401])  # seeds add 0, 1 and 2
    band = panels["reach"].collections[0].get_paths()[0].vertices
    half = 4.303 / np.sqrt(3)  # Student's t of two degrees of freedom; three values 1 apart
    assert np.allclose([band[band[:, 0] == 200, 1].min(), band[band[:, 0] == 200, 1].max()], [401 - half, 401 + half],
                       atol=1e-3)
    assert len(panels["reach"].collections) == 1  # one seed gives no interval: only dense is shaded
    assert len(panels["push"].lines) == len(panels["reach"].lines) + 1  # the random policy is known for push alone
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend[:2] == ["Dense reward (n=3)", "GenReward (as printed) (n=1)"]


def test_curves_bad_input():
    with pytest.raises(InputError, match="valid: episode_return"):
        figures.learning_curves(runs(), "speed")
    with pytest.raises(InputError, match="no rows of task shelf; valid: push, reach"):
        figures.learning_curves(runs(), "episode_return", tasks=["shelf"])


def test_a_video_plays_and_is_right_side_up(tmp_path):
    frames = clip(5, 33, 33, value=20)
    frames[:, :10] = (200, 30, 30)  # a red band at the top
    path = figures.write_video(tmp_path / "a.mp4", frames, fps=5, scale=64)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (66, 66) and stream.average_rate == 5
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 5
    top, bottom = shown[-1][5:15].mean((0, 1)), shown[-1][-10:].mean((0, 1))
    assert np.abs(top - (200, 30, 30)).max() < 12 and np.abs(bottom - 20).max() < 12
    assert path.read_bytes() == figures.write_video(tmp_path / "b.mp4", frames, fps=5, scale=64).read_bytes()


def test_an_odd_side_is_made_even(tmp_path):
    path = figures.write_video(tmp_path / "a.mp4", clip(2, 7, 11), scale=5)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (12, 8)


def test_bad_videos_leave_the_file_that_was_there(tmp_path):
    path = figures.write_video(tmp_path / "a.mp4", clip())
    before = path.read_bytes()
    for bad, arguments in ((clip(0), {}), (clip().astype(np.float32), {}), (clip(), {"fps": 0})):
        with pytest.raises(InputError):
            figures.write_video(path, bad, **arguments)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(InputError, match=r"\.mp4"):
        figures.write_video(tmp_path / "a.gif", clip())


def test_a_notebook_gets_a_large_video_in_its_own_text():
    page = figures.video_html(clip(3, 64, 64), caption="goal <1>").data
    assert "data:video/mp4;base64,AAAA" in page and "goal &lt;1&gt;" in page
    assert figures.enlarge(clip(1, 64, 64), 256).shape == (1, 256, 256, 3)
    assert figures.enlarge(clip(1, 480, 480), 256).shape == (1, 480, 480, 3)


def test_a_broken_scale_is_even_below_and_keeps_the_order_above():
    fig, axis = pyplot.subplots()
    figures.break_scale(axis, 10, 2000, low=-2)
    height = [axis.transAxes.inverted().transform(axis.transData.transform((0, value)))[1]
              for value in (-2, 4, 10, 1005, 2000)]
    assert height[0] == pytest.approx(0) and height[2] - height[1] == pytest.approx(height[1] - height[0])
    assert height[4] - height[3] == pytest.approx(height[3] - height[2]) and height[4] < 1
    assert (height[4] - height[2]) / (height[2] - height[0]) == pytest.approx(figures.BROKEN)
    assert axis.get_yticks()[-1] == 2000 and all(-2 <= at <= 10 for at in axis.get_yticks()[:-1])
    with pytest.raises(InputError, match="from low to near to far"):
        figures.break_scale(axis, 10, 5)


def test_only_a_line_far_from_all_others_is_set_apart():
    fig, (far, near) = pyplot.subplots(1, 2)
    for axis, best in ((far, 30.0), (near, 500.0)):
        axis.plot([0, 1], [10.0, best])
        axis.axhline(1000)
    assert not figures.set_apart(near, 1000) and near.get_yscale() == "linear"
    assert figures.set_apart(far, 1000, also=[0, 40])

    def height(value):
        return far.transAxes.inverted().transform(far.transData.transform((0, value)))[1]

    assert height(40) - height(20) == pytest.approx(height(20) - height(0)) and height(0) > 0
    assert height(40) < 1 / (1 + figures.BROKEN * 1.4) < height(1000)


@pytest.mark.parametrize("method", ["genreward_sound", "dense", "sparse"])
def test_shades_of_a_colour_are_told_apart_and_begin_with_itself(method):
    tone = figures.colour(method)
    shades = [figures.shade(tone, number) for number in range(4)]
    assert shades[0] == tone.lower() == figures.shade(tone, 4)
    assert len(set(shades)) == (4 if method != "dense" else 2)  # black has paler ones only
