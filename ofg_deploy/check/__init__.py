"""``ofg check``: what is wrong with NIfTI files, and how to mend it."""
