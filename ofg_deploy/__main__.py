"""``python -m ofg_deploy``."""

from ofg_deploy.cli import main

if __name__ == "__main__":  # processes that a batch starts import this file, too
    main()
