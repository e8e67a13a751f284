"""``python -m ofg_deploy``."""

import os
import sys

if __name__ == "__main__":  # processes that a batch starts import this file, too
    # With -m Python looks for modules in the current folder first, whatever lies there.
    found_in = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib may lie there
    if sys.path[0] != found_in and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    from ofg_deploy.cli import main

    main()
