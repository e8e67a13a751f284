"""Parameters in messages: plain for who calls functions, options on the terminal."""

from __future__ import annotations

import pickle
import sys

import pytest

from ofg_deploy.cli.spelling import spelled
from ofg_deploy.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("verb", "marked", "plain", "terminal"),
    [
        ("train", "`lr` 0: give more", "lr 0: give more", "--lr 0: give more"),
        ("train", "add `resume=True`", "add resume=True", "add --resume"),
        ("train", "with `guidance=none`", "with guidance=none", "with --guidance none"),
        ("train", "`steady=False`, `two_way=False`", "steady=False, two_way=False", "--no-steady, --one-way"),
        ("train", "`guidance_field_sigma` 3", "guidance_field_sigma 3", "--guidance-field-sigma 3"),
        ("train", "`images` is missing", "images is missing", "DATA is missing"),
        ("train", "`run` exists", "run exists", "--out exists"),
        ("export", "`trt=True`, `atol_mm` 1", "trt=True, atol_mm 1", "--trt, --atol-mm 1"),
        ("register", "`max_voxels` 3", "max_voxels 3", "--max-voxels 3"),
        ("train", "`nothing_of_ours` 3", "nothing_of_ours 3", "nothing_of_ours 3"),
        ("train", "a `Path/x` and 5` 3`", "a `Path/x` and 5` 3`", "a `Path/x` and 5` 3`"),
    ],
)
def test_a_message_in_both_spellings(
    monkeypatch: pytest.MonkeyPatch, verb: str, marked: str, plain: str, terminal: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["ofg", verb, "x"])
    error = UsageError(marked)
    assert str(error) == plain
    assert spelled(error.marked) == terminal
    assert str(pickle.loads(pickle.dumps(error))) == plain
    assert spelled(InputError(f"file: {error.marked}").marked) == f"file: {terminal}"
