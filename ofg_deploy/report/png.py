"""Pictures as palette indices, and the PNG bytes of one: the same bytes for the same picture.

One palette serves every picture: 128 greys for intensities, 127 colours for what has a sign, white for folds. The
colours are Okabe and Ito's, told apart with any colour vision: blue belongs to the fixed image, orange to the moving.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

FIXED, MOVING, DARK, LIGHT = "#56b4e9", "#e69f00", "#11161c", "#e8eaed"
GREYS, NEUTRAL, FOLD = 128, 191, 255  # 0..127 greys; 128..254 signed, NEUTRAL in their middle; white

Index = npt.NDArray[np.uint8]


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)


def _ramp(low: str, high: str, count: int) -> npt.NDArray[np.float64]:
    share = np.linspace(0, 1, count)[:, None]
    return np.asarray(_rgb(low) * (1 - share) + _rgb(high) * share)


PALETTE: Index = np.round(
    np.concatenate(
        [_ramp(DARK, "#ffffff", GREYS), _ramp(FIXED, DARK, 64)[:-1], _ramp(DARK, MOVING, 64), [[255.0, 255.0, 255.0]]]
    )
).astype(np.uint8)


def grey(picture: npt.NDArray[Any]) -> Index:
    """Intensities of 0..1 -> indices."""
    return np.round(np.clip(picture, 0, 1) * (GREYS - 1)).astype(np.uint8)


def signed(picture: npt.NDArray[Any]) -> Index:
    """-1 (blue) over 0 (dark) to 1 (orange) -> indices."""
    return np.round(NEUTRAL + 63 * np.clip(picture, -1, 1)).astype(np.uint8)


def encode(picture: Index) -> bytes:
    """PNG of (height, width) indices, row 0 at the bottom as in every picture here."""
    rows = picture[::-1]
    up = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # filter 2 of PNG: the difference to the row above
    streams = (np.insert(filtered, 0, kind, axis=1).tobytes() for kind, filtered in ((0, rows), (2, up)))
    body = min((zlib.compress(stream, 9) for stream in streams), key=len)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", PALETTE.tobytes()), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def data_uri(picture: Index) -> str:
    """The PNG itself, as an address."""
    return f"data:image/png;base64,{base64.b64encode(encode(picture)).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
