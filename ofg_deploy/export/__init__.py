"""Checkpoint -> self-contained model file that is proved to reproduce its network."""
