"""The pairs on which accuracy is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ofg_deploy.field import Field
from ofg_deploy.preprocess import NetworkInput, PreparedPair


@dataclass(frozen=True, eq=False)
class BenchPairs:
    """Prepared pairs.

    Attributes:
        dice: per pair, mean Dice of a field, or None without labels.
        origin: where they came from, for the record.
    """

    pairs: list[PreparedPair]
    dice: list[Callable[[Field], float] | None]
    origin: str


def find_bench_pairs(given: Path | None, weights: Path | None, expects: NetworkInput, scratch: Path) -> BenchPairs:
    """The pairs given, else the validation pairs of the run that the weights lie in, else one synthetic pair.

    Args:
        given: folder or list of pairs.
        weights: checkpoint; the folder it lies in may be a run.
        scratch: where pairs that no run has prepared are kept.

    Raises:
        InputError: pairs that cannot be read.
    """
    from ofg_deploy.export.parity import synthetic_pair
    from ofg_deploy.export.source import MAX_PARITY_PAIRS, prepare_pairs
    from ofg_deploy.train.pairs import check_pairs, find_pairs
    from ofg_deploy.train.run import Run
    from ofg_deploy.train.synthesis.held_out import with_images

    if given is not None:
        found = check_pairs(find_pairs(given, None, MAX_PARITY_PAIRS, seed=0), skip_bad=False)[0]
        origin, cache = str(given), scratch
    elif weights is not None and (run := Run(weights.parent)).config.exists():
        config, found, cache = run.read()
        found = replace(found, validation=with_images(found.validation[:MAX_PARITY_PAIRS], config, cache))
        origin = f"run {weights.parent}"
    else:
        return BenchPairs([synthetic_pair(expects)], [None], "one synthetic pair")
    chosen = (found.validation or found.training)[:MAX_PARITY_PAIRS]
    prepared, dice = prepare_pairs(list(chosen), expects, cache, lambda: None)
    return BenchPairs(prepared, dice, origin)
