"""Frames a second: Meta-World's own `env.render()` against genreward's renderer, 64x64, in turns in one process.

The two draw the same moving arm, a few frames each in turn, so that a busy machine slows both and the ratio of the
medians stays comparable. The numbers and where they come from are written to `results/bench/render.json`.

    python benchmarks/render.py --frames 200
"""

from __future__ import annotations

import argparse

from genreward import comparison, errors, files, profiles, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pick-place")
    parser.add_argument("--frames", type=int, default=200, help="frames timed with each renderer")
    parser.add_argument("--size", type=int, default=64, help="side length of a picture in pixels")
    arguments = parser.parse_args()
    rates = comparison.render_rates(arguments.task, arguments.frames, arguments.size)
    print(rates.round(2).to_string(index=False))
    print(f"ratio: {rates.attrs['ratio']:.2f} by the clock, {rates.attrs['processor_ratio']:.2f} in processor time")
    files.write_json(profiles.paths("smoke").root / "results" / "bench" / "render.json", {
        "task": arguments.task, "frames": arguments.frames, "size": arguments.size, **rates.attrs,
        "rates": rates.to_dict("records"), "provenance": results.provenance()})


if __name__ == "__main__":
    errors.cli(main)
