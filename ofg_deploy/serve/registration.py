"""Register one pair in memory, top to bottom: ``prepare``, ``predict``, ``finish``; and what comes of it.

Nothing here touches a disk but to read an initial alignment; ``saving`` writes a registration.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.affine import Alignment
from ofg_deploy.background import Background
from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field, total_displacement_mm, warp
from ofg_deploy.nifti import Volume
from ofg_deploy.passes import in_passes
from ofg_deploy.preprocess import NetworkInput, PreparedPair, Start, prepare_pair
from ofg_deploy.serve.companions import Companions, Moved, move
from ofg_deploy.serve.engine import Engine, Served
from ofg_deploy.serve.measures import adds_nothing, compare_labels, landmark_errors, measure
from ofg_deploy.serve.no_network import NoNetwork, Promise
from ofg_deploy.serve.options import Begin, GivenMatrix, Options, check_masks
from ofg_deploy.serve.refinement import Refined, known, refine
from ofg_deploy.transform.dialects import load_linear
from ofg_deploy.transform.inverse import InverseField, inverse_field
from ofg_deploy.transform.maps import FieldMap, Inside, field_map
from ofg_deploy.transform.resample import outside_warning

Align = Callable[[Start, Volume, Volume], Alignment]  # a start, fixed, moving


class Clock:
    """Wall-clock seconds by stage; stages may run at the same time, as measuring and writing do.

    Args:
        progress: called with the name of each stage as it begins; what it raises ends the registration.
    """

    def __init__(self, progress: Callable[[str], object] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Take the time of what is inside under this name."""
        if self._progress:
            self._progress(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 4)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A pair of images in memory, and what moves with them."""

    fixed: Volume
    moving: Volume
    beside: Companions = field(default_factory=Companions)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair that waits for the network, with all that its results need.

    Attributes:
        inputs: as they were read.
        options: what was asked for; init: the start it comes to with this model.
        expects: what the pair was prepared for.
        passes: how often the network is asked; None without one.
        pair: both images on the network's grid.
        notes: warnings about how it was prepared.
        clock: seconds by stage so far.
    """

    inputs: Inputs
    options: Options
    init: Begin
    expects: NetworkInput
    passes: int | None
    pair: PreparedPair
    notes: tuple[str, ...]
    clock: Clock


def begin_with(options: Options, contract: Promise, masked: bool) -> Begin:
    """The start that options come to with a model, or without one.

    Raises:
        UsageError: masks that restrict nothing, a grid the model does not take or that is too small for the steps,
            passes without a network.
    """
    init = options.init or contract.init
    check_masks(init, masked)
    contract.passes_asked(options.passes)
    expects = contract.on_grid(options.grid)
    if expects and (steps := options.steps_on(expects.spacing_mm)):
        steps.check_grid(expects.shape)
    return init


def prepare(
    inputs: Inputs, options: Options, contract: Promise, align: Align = Start.align, clock: Clock | None = None
) -> Prepared:
    """Bring the pair onto the network's grid; needs no engine. Raises as ``register``.

    Args:
        align: what carries out a start; a batch has processes for it.
    """
    clock = clock or Clock()
    init = begin_with(options, contract, inputs.beside.masked)
    with clock("prepare"):
        notes: tuple[str, ...] = ()
        if isinstance(contract, NoNetwork):
            expects, notes = contract.plan(inputs.fixed, inputs.moving)
        else:
            expects = contract.on_grid(options.grid)
        start = align(_start(init, inputs.beside), inputs.fixed, inputs.moving)
        pair = prepare_pair(inputs.fixed, inputs.moving, expects, start)
    return Prepared(inputs, options, init, expects, contract.passes_asked(options.passes), pair, notes, clock)


def predict(engine: Engine, prepared: Prepared) -> Field:
    """The network's field after all passes, (3, X, Y, Z) voxels of its grid.

    Raises:
        InputError: it is not finite or not there.
    """
    pair, passes = prepared.pair, prepared.passes or 1
    with prepared.clock("network"):
        return checked(in_passes(engine.predict, passes)(pair.moving, pair.fixed), pair)


def checked(field_vox: Field, pair: PreparedPair) -> Field:
    """The field as it is. Raises InputError where it is not finite or not on the pair's grid."""
    if field_vox.shape != (3, *pair.grid.shape) or not np.isfinite(field_vox).all():
        raise InputError(f"the model's field {field_vox.shape} is not finite or not on its grid {pair.grid.shape}")
    return field_vox


def finish(prepared: Prepared, network_vox: Field, served: Served) -> Result:
    """From the network's field to a registration. Raises as ``register``."""
    options, inputs, pair, clock = prepared.options, prepared.inputs, prepared.pair, prepared.clock
    fixed, moving = inputs.fixed, inputs.moving
    refined = _refine(prepared, network_vox)
    with clock("transform"):
        field_vox = refined.field if refined else network_vox
        displacement = total_displacement_mm(field_vox, pair.grid, fixed.grid, pair.moving_from_fixed)
        source = f"the field of {_called(served.contract)} for {fixed.path} and {moving.path}"
        forward = field_map(displacement, fixed.grid, source)
    with clock("warp"):
        fill = pair.background if options.fill is None else Background.given(options.fill)
        warped = warp(moving.data, moving.grid, fixed.grid, displacement, fill=np.nan)
        inside = ~np.isnan(warped)
        warped[~inside] = fill.value
        moved = move(inputs.beside, options.label_interpolation, fixed, forward, pair.moving_from_fixed)
    inverse = None
    if options.inverse:
        with clock("invert"):
            inverse = inverse_field(forward, pair.moving_from_fixed, moving.grid)
    return Result(prepared, served, network_vox, refined, forward, warped, inside, fill, moved, inverse)


def register(inputs: Inputs, options: Options, engine: Engine, clock: Clock | None = None) -> Result:
    """Fixed + moving -> warped image, total transform, what moves with them.

    The transform maps fixed points to moving points: u(x) = A(x + d(x)) - x, with A the affine start and d the
    network's field, refined on the pair if that is asked for. Everything is on the fixed image's own grid; the moving
    intensities are interpolated once.

    Raises:
        InputError, GeometryError: input that cannot be used, or a field that leads further than a kilometre.
        UsageError: a grid too small to refine on, or one the model does not take.
    """
    prepared = prepare(inputs, options, engine.contract, clock=clock)
    return finish(prepared, predict(engine, prepared), Served.of(engine))


@dataclass(frozen=True, eq=False)
class Result:
    """A registration in memory.

    Attributes:
        prepared: inputs, options, start and grid.
        served: what ran the network.
        network_vox: (3, X, Y, Z) the network's field, after all its passes, in voxels of its grid.
        refined: what the steps on the pair came to; None without any.
        forward: the total map on the fixed grid, RAS mm.
        warped: (X, Y, Z) the moving image on the fixed grid, ``fill`` where ``inside`` is False.
        moved: label maps, more images and points in the other image's space.
        inverse: on the moving grid, if it was asked for.
    """

    prepared: Prepared
    served: Served
    network_vox: Field
    refined: Refined | None
    forward: FieldMap
    warped: npt.NDArray[np.float32]
    inside: Inside
    fill: Background
    moved: Moved
    inverse: InverseField | None
    _measured: list[tuple[dict[str, Any], tuple[str, ...]]] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def measures(self) -> dict[str, Any]:
        """How good it is, by name (``serve.measures``); computed when first asked for."""
        return self._measure()[0]

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        prepared, fixed, moving = self.prepared, self.prepared.inputs.fixed, self.prepared.inputs.moving
        volumes = {"fixed": fixed, "moving": moving, **prepared.inputs.beside.volumes()}
        found = [*prepared.notes, *(line for volume in volumes.values() for line in volume.warnings)]
        found += [*prepared.pair.warnings(), *self.moved.warnings()]
        if self.inverse and self.inverse.without_percent:
            share = f"{self.inverse.without_percent:.3g} %"
            found.append(f"the map has no inverse at {share} of the moving voxels it reaches")
        found += self.refined.warnings() if self.refined else []
        found += self._measure()[1]
        if self.warped.min() == self.warped.max():
            value = f"{self.warped.flat[0]:g}"
            found.append(
                f"the warped image is {value} everywhere: the map leads out of the moving image, or to one place in it"
            )
        return found + list(outside_warning(self.forward.field, None, fixed.grid, moving.grid))

    def _measure(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Figures, and remarks on them."""
        with self._lock:
            if not self._measured:
                with self.prepared.clock("measure"):
                    self._measured.append(self._measure_now())
        return self._measured[0]

    def _measure_now(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        inputs, pair = self.prepared.inputs, self.prepared.pair
        fixed, beside, start = inputs.fixed, inputs.beside, pair.moving_from_fixed
        numbers = measure(pair, self.network_vox, fixed, inputs.moving, self.warped, self.inside, self.forward.field)
        if beside.fixed_labels:
            numbers |= compare_labels(beside.fixed_labels, beside.labels[0], self.moved.volumes["warped_labels"], start)
        landmarks, why_not = beside.landmarks()
        if landmarks:
            try:
                numbers |= landmark_errors(landmarks, start, self.forward, fixed.grid)
            except GeometryError as error:
                why_not = f"no landmark error: {error}"
        remarks = [why_not] if why_not else []
        if self.refined or not isinstance(self.served.contract, NoNetwork):  # otherwise nothing was to follow the start
            refined = self.refined
            energies = (refined.network_energy, refined.energy) if refined else None
            across = bool(refined and refined.similarity and refined.similarity.differs)
            remarks += [line] if (line := adds_nothing(numbers, energies, across)) else []
        return numbers, tuple(remarks)


def _start(init: Begin, beside: Companions) -> Start:
    if isinstance(init, Path):
        return Start("affine", matrix=load_linear(init))
    if isinstance(init, GivenMatrix):
        return Start("affine", matrix=init.moving_from_fixed)
    return Start(init, beside.fixed_mask, beside.moving_mask)


def _refine(prepared: Prepared, network_vox: Field) -> Refined | None:
    steps, pair, inputs = prepared.options.steps_on(prepared.expects.spacing_mm), prepared.pair, prepared.inputs
    if steps is None:
        return None
    with prepared.clock("refine"):
        moving, fixed = pair.moving, pair.fixed
        if steps.optimiser.blind:
            moving = known(moving, pair.grid, inputs.moving.grid, pair.moving_from_fixed)
            fixed = known(fixed, pair.grid, inputs.fixed.grid, np.eye(4))
        return refine(network_vox, moving, fixed, steps)


def _called(contract: Promise) -> str:
    return "the steps on the pair" if isinstance(contract, NoNetwork) else f"this {contract.network} model"
