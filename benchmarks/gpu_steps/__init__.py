"""The steps of ``benchmarks/gpu.py``, a module for each; what they share is ``context``, ``report`` and ``plan``."""
