"""Runs ``ofg`` and kills this process, as the kernel or a batch system would, at a certain point of a pair.

Arguments: the signal, the point, the number of the pair, then those of ``ofg``. Prints the processes it had started.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from batches import children

from ofg_deploy.transform import dialects


def killing(whole: Any, number: int) -> Any:
    """``whole``, until call ``number`` is done."""
    calls = []

    def once(*arguments: Any, **named: Any) -> Any:
        done = whole(*arguments, **named)
        calls.append(1)
        if len(calls) == number:
            print(*children(), flush=True)
            os.kill(os.getpid(), deadly)
        return done

    return once


if __name__ == "__main__":
    from ofg_deploy.cli import main

    deadly, point, pair = signal.Signals[sys.argv.pop(1)], sys.argv.pop(1), int(sys.argv.pop(1))
    if point == "half-written":
        dialects.write = killing(dialects.write, pair)
    else:  # files are moved to their places: the record of the batch, then four files of each pair
        Path.replace = killing(Path.replace, 1 + 4 * (pair - 1) + 2)  # type: ignore[method-assign]
    main()
