"""A step of SAC and an update of F and B with MKL's code for Intel's processors, and with that for other makers'.

PyTorch's matrix products are MKL's, which asks the processor who made it; `experiments run --rounded-as intel` answers
in its place. Each of the two in a process of its own, in turns; writes `results/bench/sums.json`.

    python benchmarks/sums.py --rounds 5
"""

from __future__ import annotations

from genreward import errors, timing


def main() -> None:
    timing.report("sums", timing.sums, timing.options(__doc__, rounds=5).parse_args())


if __name__ == "__main__":
    errors.cli(main)
