"""What a client may ask for: the options of ``ofg register`` that decide a result, checked by pydantic."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from ofg_deploy.errors import UsageError
from ofg_deploy.options.words import MOST_PASSES, Dialect, Init, LabelInterpolation, Quality, StepSimilarity
from ofg_deploy.service.problems import Problem

MOST_STEPS = 10_000
LONGEST_AXIS = 4096
SHOWN = 60  # characters of a value that is not understood
NOT_BOTH: JsonDict = {
    "not": {
        "required": ["quality", "refine"],
        "properties": {"quality": {"type": "string"}, "refine": {"type": "integer"}},
    }
}
Axis = Annotated[int, Field(ge=1, le=LONGEST_AXIS)]


class Options(BaseModel):
    """As the options of ``ofg register`` that are called alike, with the same defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=NOT_BOTH)

    model: str | None = Field(default=None, max_length=64, description="One of /v1/models; the first if absent.")
    quality: Quality | None = Field(
        default=None,
        description="Effort of the steps that optimise the pair itself; if absent, default without a network and no "
        "steps after one.",
    )
    refine: int | None = Field(
        default=None,
        ge=0,
        le=MOST_STEPS,
        description="The same as a number: most steps at each level; 0: none.",
    )
    similarity: StepSimilarity = Field(default="auto", description="What these steps follow.")
    init: Init | None = Field(default=None, description="Initial alignment; that of the model if absent.")
    grid: tuple[Axis, Axis, Axis] | None = Field(default=None, description="Network grid X Y Z (dynamic-shape models).")
    passes: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PASSES,
        description="Passes of the network over the pair; as many as the model was trained for if absent.",
    )
    fill: float | None = Field(
        default=None, allow_inf_nan=False, description="Value outside the moving image; its own background if absent."
    )
    label_interpolation: LabelInterpolation = Field(
        default="nearest", description="genericlabel: the label of the largest linear weight."
    )
    format: Dialect = Field(default="itk", description="Additional transform format; that of ITK is always there.")
    inverse: bool = Field(default=False, description="Compute the inverse transform on the moving grid too.")
    report: bool = Field(default=False, description="Make a page to look at.")

    keep_images: bool = Field(
        default=False,
        description="Keep the images that were sent as long as the results, so that the page can show them.",
    )

    @property
    def to_register(self) -> dict[str, Any]:
        """Those that ``Model.register`` takes."""
        return self.model_dump(exclude={"model", "format", "report", "keep_images"})

    @property
    def takes_steps(self) -> bool:
        """Whether steps on the pair are asked for."""
        return self.quality is not None or bool(self.refine)


def parse(text: bytes | None) -> Options:
    """Options of a request; None is without any.

    Raises:
        Problem: not JSON (400). UsageError: not options, or options that contradict each other.
    """
    try:
        given = json.loads(text or b"{}", parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"options are not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"options are {_shown(given)}: expected an object of JSON")
    if isinstance(given.get("grid"), list):
        given["grid"] = tuple(given["grid"])  # JSON has no tuples
    try:
        options = Options.model_validate(given)
    except ValidationError as error:
        raise UsageError(_sentence(error)) from error
    if options.refine is not None and options.quality is not None:
        raise UsageError("refine and quality both say how many steps to take: give one of them")
    return options


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, as ``options.value.Option`` words it."""
    first = error.errors(include_url=False, include_context=True)[0]
    name, given = str(first["loc"][0])[:SHOWN] if first["loc"] else "options", _shown(first["input"])
    if first["type"] == "extra_forbidden":
        return f"there is no option {name!r}: use {', '.join(Options.model_fields)}"
    if first["type"] == "literal_error":
        kind = Options.model_fields[name].annotation
        choices = [each for part in (kind, *get_args(kind)) for each in get_args(part) if isinstance(each, str)]
        return f"`{name}` {given} is unknown: use {', '.join(dict.fromkeys(choices))}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"`{name}` {given}: expected {expected}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
