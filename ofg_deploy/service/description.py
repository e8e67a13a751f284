"""The OpenAPI description: what FastAPI cannot know of the routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ofg_deploy.service.limits import LABEL_MAPS
from ofg_deploy.service.options import Options
from ofg_deploy.service.problems import MEDIA_TYPE, title
from ofg_deploy.service.resources import ProblemBody

REFERENCE = {"$ref": "#/components/schemas/ProblemBody"}
IMAGE = {"type": "string", "format": "binary", "description": "NIfTI, .nii or .nii.gz."}


def PROBLEMS(*statuses: int) -> dict[int | str, dict[str, Any]]:  # noqa: N802 - stands where a constant would
    """Answers that are errors, besides those of every route."""
    return {
        status: {"description": title(status), "content": {MEDIA_TYPE: {"schema": REFERENCE}}}
        for status in (*statuses, 401, 403, 421, 500)
    }


def form(models: Iterable[str]) -> dict[str, Any]:
    """The body of a registration with one of these models."""
    options = Options.model_json_schema()
    options["properties"]["model"]["enum"] = [*models, None]
    properties: dict[str, Any] = {
        "fixed": IMAGE,
        "moving": IMAGE,
        "labels": {
            "type": "array",
            "items": IMAGE,
            "minItems": 1,  # an empty one cannot be sent
            "maxItems": LABEL_MAPS,
            "description": "Label maps of the moving image, warped too; the field is repeated.",
        },
        "fixed_labels": {**IMAGE, "description": "Label map of the fixed image: Dice and HD95 of the first of labels."},
        "fixed_mask": {**IMAGE, "description": "The initial alignment ignores voxels where it is 0."},
        "moving_mask": {**IMAGE, "description": "The same of the moving image."},
        "options": options,
    }
    schema = {
        "type": "object",
        "required": ["fixed", "moving"],
        "properties": properties,
        "additionalProperties": False,
        "dependentRequired": {"fixed_labels": ["labels"]},
    }
    encoding = {"options": {"contentType": "application/json"}}
    content = {"multipart/form-data": {"schema": schema, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> None:
    """Make the description once, with the schema of problems and the token."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = found.setdefault("components", {})
            schemas = parts.setdefault("schemas", {})
            schemas["ProblemBody"] = ProblemBody.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors: none is ever sent
                schemas.pop(name, None)
            for route in found["paths"].values():
                for operation in route.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{}, {"token": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
