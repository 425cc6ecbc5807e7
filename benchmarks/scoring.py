"""Frames a second that every reward model of the study scores, against the cosine of plain pixels.

All score the same short episode, in turns in one process; a model whose weights are missing is named with the command
that makes them. Writes `results/bench/scoring.json`.

    python benchmarks/scoring.py --models liv viper
"""

from __future__ import annotations

from genreward import errors, timing


def main() -> None:
    parser = timing.options(__doc__, rounds=5)
    parser.add_argument("--models", nargs="+", help="only these (and pixel_cosine)")
    arguments = parser.parse_args()
    timing.report("scoring", timing.scoring, arguments, models=arguments.models)


if __name__ == "__main__":
    errors.cli(main)
