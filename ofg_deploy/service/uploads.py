"""A multipart request, written to the disk as it comes in: nothing of it is held in memory or decompressed.

The names that a client gives its files are not read. Parts are told apart by their field names, and files are called by
those.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ofg_deploy.errors import UsageError
from ofg_deploy.service.limits import CHUNK_S, LABEL_MAPS, OPTIONS_BYTES, UPLOAD_S, Limits
from ofg_deploy.service.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# Field of the form -> how many files of that name may be given.
FILES = {"fixed": 1, "moving": 1, "labels": LABEL_MAPS, "fixed_labels": 1, "fixed_mask": 1, "moving_mask": 1}
OPTIONS = "options"
FORM = "multipart/form-data"
BUFFERED = 2**20  # bytes that go to the disk in one piece
LEARN2REG = {"fixed": "fixed_0001", "moving": "moving_0002"}  # it names fields after case numbers


@dataclass
class Received:
    """What came in.

    Attributes:
        files: names in the folder by field, in the order in which they came.
        options: of the request; None without any.
        bytes: of the whole request.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    options: bytes | None = None
    bytes: int = 0


def boundary_of(content_type: str) -> bytes:
    """What separates the parts. Raises Problem: another type of content (415), or none given (400)."""
    kind, parameters = parse_options_header(content_type)
    if kind.decode("latin-1").lower() != FORM:
        shown = kind.decode("latin-1")[:60] or "no type"
        raise Problem(415, f"the request is {shown}: send {FORM} with the fields fixed and moving")
    if not parameters.get(b"boundary"):
        raise Problem(400, f"the request is {FORM} without a boundary")
    return parameters[b"boundary"]


async def receive(chunks: AsyncIterator[bytes], boundary: bytes, folder: Path, limits: Limits) -> Received:
    """Write the files of a request into ``folder``.

    Raises:
        Problem: too large (413), too slow (408), not multipart (400). UsageError: other fields than those of a job.
    """
    form, pending, total = _Form(folder), bytearray(), 0
    try:
        parser = MultipartParser(boundary, form.callbacks())
        with anyio.fail_after(UPLOAD_S):
            async for chunk in _in_time(chunks):
                total += len(chunk)
                check_size(total, limits)
                pending += chunk
                if len(pending) >= BUFFERED:
                    await run_sync(parser.write, bytes(pending))
                    pending.clear()
            await run_sync(parser.write, bytes(pending))
    except FormParserError as error:
        raise Problem(400, f"the request is not {FORM} as it says: {error}") from error
    except TimeoutError as error:
        raise Problem(408, "the upload is too slow: it was given up, send it again") from error
    finally:
        form.close()
    if not form.ended:
        raise Problem(400, "the request ends before its last boundary: it was cut off, send it again")
    if missing := [name for name in ("fixed", "moving") if name not in form.found.files]:
        raise UsageError(f"the field {missing[0]} is missing: send a fixed and a moving image")
    if "fixed_labels" in form.found.files and "labels" not in form.found.files:
        raise UsageError("fixed_labels is compared with the warped labels: give both")
    form.found.bytes = total
    return form.found


def check_size(count: int, limits: Limits) -> None:
    """Raises Problem for a request of more bytes than allowed."""
    if count > limits.upload_bytes:
        raise Problem(413, f"the request is larger than {limits.upload_mib} MiB, the most that is taken here")


def for_learn2reg(received: Received, folder: Path) -> Received:
    """With names of which Learn2Reg can make that of a field."""
    files = {role: [*names] for role, names in received.files.items()}
    for role, name in LEARN2REG.items():
        old = folder / files[role][0]
        new = old.rename(old.with_name(old.name.replace(role, name, 1)))
        files[role] = [new.name]
    return Received(files, received.options, received.bytes)


async def _in_time(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, each within ``CHUNK_S``. Raises TimeoutError."""
    while True:
        with anyio.fail_after(CHUNK_S):
            try:
                chunk = await anext(chunks)
            except StopAsyncIteration:
                return
        yield chunk


class _Form:
    """What the parser calls while it reads."""

    def __init__(self, folder: Path) -> None:
        self.found, self.ended = Received(), False
        self._folder = folder
        self._name, self._value, self._disposition = b"", b"", b""
        self._file: BinaryIO | None = None
        self._text: bytearray | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: setattr(self, "_name", self._name + data[start:end]),
            "on_header_value": lambda data, start, end: setattr(self, "_value", self._value + data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._open,
            "on_part_data": self._write,
            "on_part_end": self._close,
            "on_end": lambda: setattr(self, "ended", True),
        }

    def close(self) -> None:
        """Whatever state it is in."""
        if self._file:
            self._file.close()

    def _begin(self) -> None:
        self._disposition = b""

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _open(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name == OPTIONS:
            if self.found.options is not None:
                raise UsageError("options are given twice: send one object of JSON")
            self._text = bytearray()
            return
        if name not in FILES:
            raise UsageError(f"there is no field {name[:60]!r}: use {', '.join(FILES)} and {OPTIONS}")
        there = self.found.files.setdefault(name, [])
        if len(there) == FILES[name]:
            raise UsageError(f"more than {FILES[name]} of {name} are given")
        there.append(f"{name}{f'_{len(there) + 1}' if FILES[name] > 1 else ''}.nii")
        self._file = (self._folder / there[-1]).open("xb")

    def _write(self, data: bytes, start: int, end: int) -> None:
        part = memoryview(data)[start:end]
        if self._text is not None:
            if len(self._text) + len(part) > OPTIONS_BYTES:
                raise Problem(413, f"options are larger than {OPTIONS_BYTES} bytes")
            self._text += part
        elif self._file:
            self._file.write(part)

    def _close(self) -> None:
        if self._text is not None:
            self.found.options, self._text = bytes(self._text), None
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())  # before the client hears that it was accepted
            self._file.close()
            self._file = None
