"""Sidecars as ``ofg register`` writes them, with images to match, made without registering; and a reader of pages."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ofg_deploy.cli import main

SHAPE = (12, 14, 10)
AFFINE = np.array([[-4.0, 0, 0, 20], [0, 5.0, 0, -30], [0, 0, 6.0, -25], [0, 0, 0, 1]])
VOID = {"meta", "img", "br", "hr", "input", "wbr"}
GOOD = {
    "ncc_before": 0.8,
    "ncc_after": 0.9,
    "folding_percent": 0.1,
    "min_jacobian": 0.3,
    "displacement_mm_max": 6.0,
    "overlap": 1.0,
}


def write_pair(folder: Path, name: str, seed: int = 0, **metrics: float | None) -> Path:
    """One registration without labels, ``metrics`` over those of a good one; the sidecar's path."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    fixed, moving = (gaussian_filter(rng.random(SHAPE), 1.5).astype(np.float32) for _ in range(2))
    files = {"fixed": images / f"{seed}-fixed.nii.gz", "moving": images / f"{seed}-moving.nii.gz"}
    outputs = {"warped": f"{name}_warped.nii.gz", "transform": f"{name}_Warp.nii.gz"}
    for path, data in (
        (files["fixed"], fixed),
        (files["moving"], moving),
        (folder / outputs["warped"], fixed + moving),
    ):
        nib.save(nib.Nifti1Image(data, AFFINE), path)
    image = nib.Nifti1Image(gaussian_filter(rng.normal(0, 5, (*SHAPE, 1, 3)), 2).astype(np.float32), AFFINE)
    image.header.set_intent(1007)
    nib.save(image, folder / outputs["transform"])
    record: dict[str, Any] = {
        "schema": 1,
        "tool": "ofg_deploy",
        "inputs": {
            role: {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for role, path in files.items()
        },
        "outputs": outputs,
        "transform": {"unit": "mm"},
        "init": "none",
        "start": {"moving_from_fixed": np.eye(4).tolist()},
        "metrics": {**GOOD, "dice_per_label": {"1": 0.5}, **metrics},
        "seconds": {"read": 0.25, "network": 0.5},
        "warnings": [],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """What a command left on a terminal."""

    returncode: int
    stdout: str
    stderr: str


def run_ofg(patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """``ofg`` in this process: starting Python takes longer than what is tested here."""
    patch.setattr(sys, "argv", ["ofg", *map(str, arguments)])
    captured.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    return Done(int(stopped.value.code or 0), *captured.readouterr())


class Page(HTMLParser):
    """Fails on a tag closed out of order; remembers tags with their attributes, text, rows of the pairs' table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"th", "td"} & set(self.open):
            self.cells[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def links(self) -> list[str]:
        """Everything that the page refers to."""
        keys = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        return [attributes[key] for _, attributes in self.tags for key in keys if key in attributes]
