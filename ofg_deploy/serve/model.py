"""The Python API of registration: load a model once, register as many pairs as there are."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.catalogue import is_name, model_path
from ofg_deploy.errors import InputError, OfgError, UsageError, check_count
from ofg_deploy.geometry import Matrix, Shape
from ofg_deploy.image import AnyImage, in_memory, is_file
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.options.words import Device, Interpolation, PointsFrame, Quality, Runtime, StepSimilarity
from ofg_deploy.preprocess import Init
from ofg_deploy.serve.automatic import choose_model
from ofg_deploy.serve.companions import Companions
from ofg_deploy.serve.engine import Engine, open_engine
from ofg_deploy.serve.found import Failure, Registration, source_of
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import parse_init
from ofg_deploy.serve.no_network import NoNetwork, WithoutNetwork
from ofg_deploy.serve.options import Begin, GivenMatrix, Options
from ofg_deploy.serve.refinement import Refinement
from ofg_deploy.serve.registration import Clock, Inputs, register
from ofg_deploy.transform.points import load_points

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ofg_deploy")
Pair = tuple[AnyImage, AnyImage] | Mapping[str, Any]  # fixed, moving; or the arguments of ``Model.register``


class Model:
    """A registration network that is loaded, or none: made by ``load``. Safe to use from several threads.

    Attributes:
        network: name of the architecture; ``none`` without one, ``auto`` where each pair chooses.
        runtime, provider: what runs it, as the runtime reports it.
        contract: what the model promises and expects; None without a network.
    """

    def __init__(self, engine: Engine | None, open_model: Callable[[Path], Engine], threads: int = 0) -> None:
        """Use ``load``. ``engine``: None to choose for each pair; ``open_model``: loads what was chosen."""
        self._engine, self._open, self._threads = engine, open_model, threads
        self._opened: dict[Path, Engine] = {}
        self._pairs_at_once = 1
        self._lock = threading.Lock()  # a runtime runs one pair at a time

    @property
    def network(self) -> str:
        """See above, as the others."""
        return self._engine.contract.network if self._engine else "auto"

    @property
    def runtime(self) -> str:
        """For people to read."""
        return self._engine.runtime if self._engine else "auto"

    @property
    def provider(self) -> str:
        """For people to read."""
        return self._engine.provider if self._engine else "auto"

    @property
    def contract(self) -> Contract | None:
        """Grid, spacing, intensity recipe and start of its input, and how it was trained."""
        found = self._engine.contract if self._engine else None
        return found if isinstance(found, Contract) else None

    def __repr__(self) -> str:
        return f"<Model {self.network} on {self.provider} ({self.runtime})>"

    def register(
        self,
        fixed: AnyImage,
        moving: AnyImage,
        *,
        moving_labels: AnyImage | Sequence[AnyImage] = (),
        fixed_labels: AnyImage | None = None,
        also: AnyImage | Sequence[AnyImage] = (),
        fixed_mask: AnyImage | None = None,
        moving_mask: AnyImage | None = None,
        fixed_points: str | Path | None = None,
        moving_points: str | Path | None = None,
        points_frame: PointsFrame | None = None,
        init: Init | str | Path | Matrix | None = None,
        quality: Quality | None = None,
        refine: int | None = None,
        similarity: StepSimilarity = "auto",
        grid: Shape | None = None,
        passes: int | None = None,
        fill: float | None = None,
        interpolation: Interpolation | None = None,
        label_interpolation: Literal["nearest", "genericlabel"] = "nearest",
        inverse: bool = False,
        max_voxels: int = MAX_VOXELS,
        progress: Callable[[str], object] | None = None,
    ) -> Registration:
        """Register a pair: bring the moving image to the fixed one. Nothing is written.

        Args:
            fixed, moving: paths of NIfTI images, nibabel images, or ``Image(array, affine)``.
            moving_labels: label maps on the moving image's grid, warped too.
            fixed_labels: label map on the fixed image's grid: Dice and HD95 of the first moving one.
            also: more images in the moving image's world, on any grid, warped too.
            fixed_mask, moving_mask: zero voxels are ignored during the initial alignment.
            fixed_points, moving_points: files of points (CSV, 3D Slicer's), carried to the other image when the
                registration is saved; both: landmark errors.
            points_frame: coordinate frame of a CSV of points, ``ras`` or ``lps``; RAS if None.
            init: initial alignment: ``none``, ``header``, ``centre``, ``rigid``, ``affine``, a file with a linear
                transform, or the matrix itself, (4, 4) fixed world -> moving world in RAS mm. None: as the model was
                trained, affine without a model.
            quality: effort of the steps that optimise the pair itself, ``fast``, ``default`` or ``best``. None: no
                steps after a network, ``default`` without one.
            refine: the same as a number, at most so many steps at each level; 0 for none.
            similarity: what these steps follow: ``ncc`` (local correlation, images of one contrast), ``mind``
                (structure, images of any two contrasts), or ``auto``, chosen by the pair.
            grid: of the network, for models that take several.
            passes: how often the network is asked, each time with the moving image moved by the field so far; None for
                as often as the model was trained for.
            fill: value where the transform leads out of the moving image; None for its background.
            interpolation: of ``also``; None for nearest where one is a label map, linear otherwise.
            label_interpolation: ``genericlabel`` takes the label of the largest linear weight.
            inverse: compute and save the inverse transform too.
            max_voxels: larger files are refused before their voxels are read.
            progress: called with the name of each stage as it begins (``read``, ``prepare``, ``network``, ``refine``,
                ``transform``, ``warp``, ``invert``; while the registration is saved ``measure``, ``write``), from the
                thread that does it; an exception in it ends the registration.

        Raises:
            InputError, GeometryError: images that cannot be used. UsageError: arguments that contradict each other.
            DeviceError: a model that was chosen automatically cannot run here.
        """
        if refine is not None and quality is not None:
            raise UsageError("refine and quality both say how many steps to take: give one of them")
        files = Images()

        def image(given: AnyImage, role: str) -> Volume:
            return files.image(Path(given), max_voxels) if is_file(given) else in_memory(given, role)

        def labels(given: AnyImage | None, role: str) -> Volume | None:
            if given is None:
                return None
            return files.labels(Path(given), max_voxels) if is_file(given) else in_memory(given, role, labels=True)

        clock = Clock(progress)
        with clock("read"):
            pair = image(fixed, "fixed"), image(moving, "moving")
        engine, reason = self._for(pair)
        if refine is None and quality is None and isinstance(engine.contract, NoNetwork):
            quality = "default"
        options = Options(
            init=_begin(init),
            fill=fill,
            interpolation=interpolation,
            label_interpolation=label_interpolation,
            refinement=Refinement.at_most(refine or 0, self._threads, similarity),
            quality=quality,
            similarity=similarity,
            threads=self._threads,
            grid=grid,
            passes=passes,
            points_frame=points_frame,
            inverse=inverse,
            max_voxels=max_voxels,
        )
        beside = Companions(
            tuple(
                volume
                for number, given in enumerate(_several(moving_labels), start=1)
                if (volume := labels(given, _numbered("labels", number)))
            ),
            tuple(
                source_of(given, _numbered("also", number), interpolation, fill, max_voxels)
                for number, given in enumerate(_several(also), start=1)
            ),
            labels(fixed_labels, "fixed_labels"),
            labels(fixed_mask, "fixed_mask"),
            labels(moving_mask, "moving_mask"),
            load_points(Path(fixed_points), points_frame) if fixed_points else None,
            load_points(Path(moving_points), points_frame) if moving_points else None,
        ).check(*pair)
        if beside.fixed_labels and not beside.labels:
            raise UsageError("fixed_labels is compared with the warped moving_labels: give both")
        result = register(Inputs(*pair, beside), options, _InTurn(engine, self._lock), clock)
        logger.debug("%s registered to %s", pair[1].path.name, pair[0].path.name)
        return Registration(result, reason)

    def register_many(
        self, pairs: Iterable[Pair], workers: int = 0, **options: Any
    ) -> Iterator[Registration | Failure]:
        """Register many pairs, in their order; the next ones are under way while one is looked at.

        Args:
            pairs: each (fixed, moving), or a mapping with the arguments of ``register``. An iterator is read no
                further ahead than ``workers`` pairs.
            workers: pairs at once, each with all its images in memory; 0 for the number of cores, at most 4.
            options: arguments of ``register`` for every pair.

        Yields:
            A ``Registration`` for each pair, or a ``Failure`` that says why there is none (``found.ok`` tells which).

        Raises:
            UsageError: a negative number of workers.
        """
        check_count("workers", workers, zero="the number of cores")
        from ofg_deploy.kernels.compiled import most_threads, threads

        count = workers or min(most_threads(), 4)
        share = max(1, most_threads() // count)
        shared = self.sharing(count)

        def one(number: int, pair: Pair) -> Registration | Failure:
            try:
                given = dict(pair) if isinstance(pair, Mapping) else dict(zip(("fixed", "moving"), pair, strict=True))
                arguments = signature(self.register).bind(**{**options, **given})
            except (TypeError, ValueError) as error:
                return Failure(number, UsageError(f"not the arguments of a registration: {error}"))
            try:
                with threads(share):
                    return shared.register(*arguments.args, **arguments.kwargs)
            except OfgError as error:
                return Failure(number, error)
            except Exception as error:  # of one pair, and the others go on
                internal = OfgError(f"internal error, {type(error).__name__}: {error}")
                internal.__cause__ = error
                return Failure(number, internal)

        with ThreadPoolExecutor(count) as pool:
            waiting: deque[Future[Registration | Failure]] = deque()
            try:
                for number, pair in enumerate(pairs):
                    waiting.append(pool.submit(one, number, pair))
                    if len(waiting) > count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def sharing(self, pairs_at_once: int) -> Model:
        """The same model, not loaded again, for so many pairs under way at once: they share the memory equally."""
        shared = copy.copy(self)
        shared._pairs_at_once = pairs_at_once
        if isinstance(self._engine, WithoutNetwork):
            shared._engine = WithoutNetwork(NoNetwork(self._engine.contract.memory_bytes // pairs_at_once))
        return shared

    def _for(self, pair: tuple[Volume, Volume]) -> tuple[Engine, str | None]:
        """What runs this pair, and why where that was chosen."""
        if self._engine:
            return self._engine, None
        found = choose_model([pair])
        if found.path is None:
            return WithoutNetwork(NoNetwork.here(self._pairs_at_once)), found.reason
        with self._lock:
            if found.path not in self._opened:
                self._opened[found.path] = self._open(found.path)
                logger.info("model %s: %s", found.path.stem, found.reason)
            return self._opened[found.path], found.reason


class _InTurn:
    """An engine that several threads share: see ``serve.engine.Engine``."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        self.contract, self.model_sha256 = engine.contract, engine.model_sha256
        self.runtime, self.provider = engine.runtime, engine.provider
        self._engine, self._lock = engine, lock

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As the engine."""
        with self._lock:
            return self._engine.predict(moving, fixed)


def load_model(
    model: str | Path | Engine, *, device: Device = "auto", runtime: Runtime = "auto", threads: int = 0
) -> Model:
    """As ``api.load``, of an exported model by its name or file, ``auto``, ``none``, or an engine that is open."""

    def opened(path: Path) -> Engine:
        of_file = runtime if path.suffix == ".onnx" or runtime != "auto" else None
        return open_engine(path, device, threads, runtime=of_file)

    if not isinstance(model, str | Path):
        return Model(model, opened, threads)
    if model == "auto":
        return Model(None, opened, threads)
    if model == "none":
        return Model(WithoutNetwork(NoNetwork.here()), opened, threads)
    path = model_path(model) if isinstance(model, str) and is_name(model) else Path(model)
    return Model(opened(path), opened, threads)


def _begin(init: Init | str | Path | Matrix | None) -> Begin | None:
    if init is None or isinstance(init, str | Path):
        return parse_init(None if init is None else str(init))
    try:
        matrix = np.asarray(init, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"init is a {type(init).__name__}: expected a name, a file or a (4, 4) matrix") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise InputError(f"init has shape {matrix.shape}: expected an invertible (4, 4) matrix, RAS mm")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"init has the last row {matrix[3]}: expected 0 0 0 1")
    return GivenMatrix(matrix)


def _several(given: AnyImage | Sequence[AnyImage]) -> list[AnyImage]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _numbered(role: str, number: int) -> str:
    return role if number == 1 else f"{role}_{number}"
