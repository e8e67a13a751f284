"""OFG Deploy: train registration networks with On-the-Fly Guidance, export only the network, register NIfTI pairs.

    import ofg_deploy as ofg

    found = ofg.register("fixed.nii.gz", "moving.nii.gz")
    found.save("out")

Images are paths, nibabel images, or ``ofg.Image(array, affine)``. Points and displacements are RAS+ mm. Nothing is
printed; the logger is called ``ofg_deploy``. Every name here is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ofg_deploy.version import __version__

if TYPE_CHECKING:
    from ofg_deploy.api import apply as apply
    from ofg_deploy.api import load as load
    from ofg_deploy.api import register as register
    from ofg_deploy.errors import DeviceError as DeviceError
    from ofg_deploy.errors import GeometryError as GeometryError
    from ofg_deploy.errors import InputError as InputError
    from ofg_deploy.errors import OfgError as OfgError
    from ofg_deploy.errors import ParityError as ParityError
    from ofg_deploy.errors import UsageError as UsageError
    from ofg_deploy.export.api import Exported as Exported
    from ofg_deploy.export.api import export_model as export_model
    from ofg_deploy.image import Image as Image
    from ofg_deploy.serve.found import Failure as Failure
    from ofg_deploy.serve.found import Registration as Registration
    from ofg_deploy.serve.model import Model as Model
    from ofg_deploy.train.api import Run as Run
    from ofg_deploy.train.api import train_network as train_network

_HOME = {
    "DeviceError": "errors",
    "Exported": "export.api",
    "Failure": "serve.found",
    "GeometryError": "errors",
    "Image": "image",
    "InputError": "errors",
    "Model": "serve.model",
    "OfgError": "errors",
    "ParityError": "errors",
    "Registration": "serve.found",
    "Run": "train.api",
    "UsageError": "errors",
    "apply": "api",
    "export_model": "export.api",
    "load": "api",
    "register": "api",
    "train_network": "train.api",
}

__all__ = [  # noqa: PLE0604  # names are resolved by __getattr__
    *sorted(_HOME),
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
