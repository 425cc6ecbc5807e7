"""Frames a second: Meta-World's own `env.render()` against genreward's renderer, 64x64, in turns in one process.

The two draw the same moving arm, a few frames each in turn, so that a busy machine slows both and the ratio of the
medians stays comparable; beside it, the quartiles over pairs of frames. The numbers and where they come from are
written to `results/bench/render.json`.

    python benchmarks/render.py --frames 200
"""

from __future__ import annotations

import argparse

from genreward import comparison, errors, files, results, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pick-place")
    parser.add_argument("--frames", type=int, default=200, help="frames timed with each renderer")
    parser.add_argument("--size", type=int, default=64, help="side length of a picture in pixels")
    parser.add_argument("--quick", action="store_true", help="10 frames, to look at: written to build/bench")
    arguments = parser.parse_args()
    frames = 10 if arguments.quick else arguments.frames
    rates = comparison.render_rates(arguments.task, frames, arguments.size)
    found = rates.attrs
    print(rates.round(2).to_string(index=False))
    print("ratio: {ratio:.2f} [{low:.2f}, {high:.2f}] by the clock, {processor_ratio:.2f} [{processor_low:.2f}, "
          "{processor_high:.2f}] in processor time".format(**found))
    files.write_json(timing.bench_file("render", arguments.quick), {
        "task": arguments.task, "frames": frames, "size": arguments.size, **found, "rates": rates.to_dict("records"),
        "provenance": results.provenance()})


if __name__ == "__main__":
    errors.cli(main)
