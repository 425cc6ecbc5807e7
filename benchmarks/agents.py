"""Environment steps a second of SAC and DreamerV3, learning included, against the environment alone.

Both are past the steps that they take before they learn, and paid by the dense reward. Whole episodes, in turns in one
process; writes `results/bench/agents.json`.

    python benchmarks/agents.py --rounds 5
"""

from __future__ import annotations

from genreward import errors, timing


def main() -> None:
    timing.report("agents", timing.agent_steps, timing.options(__doc__, rounds=5).parse_args())


if __name__ == "__main__":
    errors.cli(main)
