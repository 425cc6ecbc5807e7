"""Updates of F and B a second at the paper's sizes: features kept beside the replay against each batch's frames encoded
anew.

The encoder is the profile's own (laptop: the small VAE), so the ratio is a lower bound for DINOv3. In turns in one
process; writes `results/bench/fb_updates.json`.

    python benchmarks/fb_updates.py --rounds 3
"""

from __future__ import annotations

from genreward import errors, timing


def main() -> None:
    timing.report("fb_updates", timing.fb_updates, timing.options(__doc__, rounds=3).parse_args())


if __name__ == "__main__":
    errors.cli(main)
