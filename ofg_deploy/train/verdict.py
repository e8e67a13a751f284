"""What the validation of a run says of its best epoch, and what it cannot say."""

from __future__ import annotations

from collections.abc import Sequence

from ofg_deploy.train.run import EpochRecord
from ofg_deploy.train.validation import Scores

FEWEST_PAIRS = 5  # of validation: with fewer one odd subject decides
EARLY, FEWEST_EPOCHS = 0.25, 4  # of the epochs of a run of at least so many: a best one before that is by chance
LEAST_GAIN = 2e-3  # of Dice or NCC over the initial alignment: less is none


def judged(history: Sequence[EpochRecord], validation_pairs: int, start: Scores) -> tuple[str | None, list[str]]:
    """Which epoch ``best.pt`` holds, by what; and doubts, a line each.

    Args:
        validation_pairs: how many pairs decided.
        start: scores of the initial alignment, without a network.
    """
    scored = [(row.score, row.epoch, row) for row in history if row.score is not None]
    if not scored:
        return None, ["no validation pair: best.pt is the last epoch, and nothing says how good it is"]
    score, epoch, row = max(scored, key=lambda each: each[:2])
    name, before = ("NCC", start.ncc) if row.val_dice is None else ("Dice", start.dice)
    many = "pair" if validation_pairs == 1 else "pairs"
    chosen = f"best: epoch {epoch} of {len(history)}, by {validation_pairs} validation {many} ({name} {score:.4f})"
    found = doubts(epoch, len(history), validation_pairs)
    if before is not None and score - before < LEAST_GAIN:
        found.append(
            f"the network gains nothing over the initial alignment ({name} {before:.4f} -> {score:.4f}): train longer, "
            "or leave out `lr`, which then follows the length of the run"
        )
    return chosen, found


def doubts(epoch: int, epochs: int, validation_pairs: int) -> list[str]:
    """Why the best epoch may not be the best one, a line each."""
    found = []
    if validation_pairs < FEWEST_PAIRS:
        found.append(
            f"{validation_pairs} validation pair{'s' * (validation_pairs != 1)} cannot tell which epoch is best: give "
            f"more images, for at least {FEWEST_PAIRS} validation pairs"
        )
    if epochs >= FEWEST_EPOCHS and epoch <= EARLY * epochs:
        found.append(f"the best epoch came early ({epoch} of {epochs}), later ones validated worse: look at curve.png")
    return found
