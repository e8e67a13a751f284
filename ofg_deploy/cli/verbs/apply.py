"""``ofg apply`` on a terminal: warnings, what was chosen, the order of the transforms."""

from __future__ import annotations

from typing import Any

from ofg_deploy.cli.terminal import both, warn
from ofg_deploy.serve.apply import Application
from ofg_deploy.serve.apply import apply as apply_transforms


def apply(job: Application) -> dict[str, Any]:
    """Apply, print; the record that is the sidecar. Raises as ``serve.apply.apply``."""
    console, stderr = both()
    record = apply_transforms(job)
    warn(stderr, record["warnings"])
    for note in record.get("notes", ()):
        console.print(note, soft_wrap=True)
    order = ", then ".join(f"{'inverse of ' if step.inverted else ''}{step.path}" for step in job.steps)
    console.print(f"fixed points are mapped by {order}", soft_wrap=True)
    if "direction" in record:
        console.print(
            f"{record['points']} points, {record['direction']} ({record['frame'].upper()} mm)", soft_wrap=True
        )
    for path in (job.out, job.sidecar):
        console.print(str(path), soft_wrap=True)
    return record
