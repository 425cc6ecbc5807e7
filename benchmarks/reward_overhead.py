"""Seconds that GenReward adds to 1,000 environment steps, as printed and sound, and what drawing only the needed frames
saves against drawing one at every step.

Whole episodes of the same random actions, in turns in one process; writes `results/bench/reward_overhead.json`.

    python benchmarks/reward_overhead.py --rounds 3
"""

from __future__ import annotations

from genreward import errors, timing


def main() -> None:
    timing.report("reward_overhead", timing.reward_overhead, timing.options(__doc__, rounds=3).parse_args())


if __name__ == "__main__":
    errors.cli(main)
