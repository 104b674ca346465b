"""The kinds of values in a recipe, and what all its sections share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from medzoo.errors import ConfigError

__all__ = [
    "Count",
    "Factor",
    "Finite",
    "Flag",
    "NotNegative",
    "Positive",
    "Range",
    "Rate",
    "Section",
    "Text",
    "Whole",
    "list_text",
    "ordered",
]


def _no_code(text: str) -> str:
    """Return the text, or refuse what other configuration systems would evaluate."""
    if text.startswith("$") or "${" in text:
        raise PydanticCustomError("recipe", "expected a plain text, as a recipe holds no code")
    return text


def ordered(pair: tuple[float, float]) -> tuple[float, float]:
    """Return the pair, or refuse one whose first number is the larger."""
    if pair[0] > pair[1]:
        raise PydanticCustomError("recipe", "expected the smaller number first")
    return pair


def list_text(pair: tuple[float, ...] | None) -> str:
    """Return a pair as a recipe writes it."""
    return "null" if pair is None else str(list(pair))


Text = Annotated[str, AfterValidator(_no_code)]
Flag = Annotated[bool, Field(strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Positive = Annotated[Finite, Field(gt=0)]
NotNegative = Annotated[Finite, Field(ge=0)]
Rate = Annotated[Finite, Field(ge=0, lt=1)]
Factor = Annotated[Finite, Field(gt=0, le=1)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(ordered)]


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown fields.

    Raises:
        ConfigError: fields that cannot be; lists all of them with their path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            from medzoo.training.recipe_faults import describe_faults

            raise ConfigError(describe_faults(type(self).__name__, error, type(self))) from None

    # As in pydantic's RootModel: a section within a recipe is checked with it, not by a constructor of its own.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield each field that contradicts another, and what is expected there."""
        yield from ()

    @model_validator(mode="after")
    def _follows_the_rules(self) -> Self:
        faults = tuple(self.rules())
        if faults:
            raise PydanticCustomError("recipe_rules", "contradictions", {"faults": faults})
        return self
