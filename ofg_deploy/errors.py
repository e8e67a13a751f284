"""What can go wrong, as one small tree. Each branch has its own exit code.

OfgError (1)
├── UsageError (2)         the command itself makes no sense
├── InputError (3)         a file or its content cannot be used
│   ├── FormatError (3)    ... because it is in another format
│   ├── SizeError (3)      ... because it is larger than allowed
│   └── GeometryError (3)  ... because of where it says it lies in the world
├── ParityError (4)        a model or a transform does not reproduce what it was made from
├── DeviceError (5)        a device, runtime or provider is not there as asked
├── BatchError (6)         some of many failed, the others are done
├── QualityError (7)       registrations that are worse than the limits asked for
└── Interrupted (130)      Ctrl-C, where something can be said about going on

Every message is one line: what was given, what was expected, what to do. It names parameters as Python has them,
between backquotes: "`lr` 0: give a number above 0", "add `resume=True`". ``str`` of an error drops the backquotes; the
command line makes options of the names instead (``cli/spelling.py``): "--lr 0: ...", "add --resume". An error that
carries the message of another one on takes it with ``marked``, so that the names in it stay marked.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence

PARAMETER = re.compile(r"`([a-z]\w*)(?:=([^`\n]*))?`")  # `name` or `name=value`
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)|(?<=\w)\(0x[0-9a-fA-F]+\)")  # <... at 0x7f1c>, ITK's Name(0x5581)


DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What ``zipfile`` raises for an archive that is truncated, damaged, encrypted, or packed in a way it does not know."""

DAMAGED = (*DAMAGED_ZIP, OSError, ValueError)
"""What reading such an .npz or checkpoint leads to."""


class OfgError(Exception):
    """Root of every error this package raises on purpose."""

    exit_code = 1

    @property
    def marked(self) -> str:
        """The message with its parameters still between backquotes."""
        return without_addresses(super().__str__())

    def __str__(self) -> str:
        return plain(self.marked)


class UsageError(OfgError, ValueError):
    """Options that contradict each other or name something that does not exist."""

    exit_code = 2


class InputError(OfgError, ValueError):
    """A file or its content that cannot be used."""

    exit_code = 3


class FormatError(InputError):
    """A file in another format than the one that is needed."""


class SizeError(InputError):
    """A file, or what its header promises, that is larger than the limit."""


class GeometryError(InputError):
    """An affine, shape or overlap that makes a registration meaningless."""


class ParityError(OfgError, RuntimeError):
    """An exported model, or a transform read back, that differs from its original by more than allowed."""

    exit_code = 4


class DeviceError(OfgError, RuntimeError):
    """A device, runtime or provider that was asked for and is not there."""

    exit_code = 5


class BatchError(OfgError, RuntimeError):
    """Some items of a batch failed. The others are done and their results written."""

    exit_code = 6


class QualityError(OfgError, RuntimeError):
    """A registration that fails its quality control. It is done and written all the same."""

    exit_code = 7


class Interrupted(OfgError):
    """The user stopped long work that can be continued. Code as shells give it for SIGINT."""

    exit_code = 130


def plain(text: str) -> str:
    """A message for who calls functions: without the backquotes around its parameters."""
    return PARAMETER.sub(lambda found: found[0].strip("`"), text)


def without_addresses(text: str) -> str:
    """Without the places in memory that objects of other packages name themselves by: they help nobody."""
    return ADDRESS.sub("", text)


def check_count(option: str, value: int, least: int = 1, zero: str | None = None) -> None:
    """Raises UsageError unless ``value`` is ``least`` or more, or 0 where that has a meaning of its own (``zero``)."""
    if value < least and (value != 0 or zero is None):
        raise UsageError(f"{option} {value}: give {least} or more{f', or 0 for {zero}' if zero else ''}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises UsageError unless ``value`` is one of ``choices``; another one would be taken for something in silence."""
    if value not in choices:
        raise UsageError(f"`{name}` {value!r} is unknown: use {', '.join(choices)}")
