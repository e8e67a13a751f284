"""Every choice, default and sentence of the options of training and export, once. Imports nothing heavy.

The command line (``cli/``), the configuration of a run (``train/config.py``), what ``train_network`` and
``export_model`` take, and docs/training-options.md are made from the dataclasses in ``training`` and ``export``.
"""
