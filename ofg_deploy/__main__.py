"""``python -m ofg_deploy``."""

from ofg_deploy.cli import main

main()
