"""The numbers that table rules judge, as a contract names them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Where = dict[str, str | int | bool]


class _Measure(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def compares(self) -> bool:
        """Whether it needs the profile of the last accepted generation."""
        return False


class Rows(_Measure):
    """Number of rows (of those with ``where``)."""

    kind: Literal["rows"]
    where: Where = {}


class Distinct(_Measure):
    """Number of different values of ``column``."""

    kind: Literal["distinct"]
    column: str


class Repeated(_Measure):
    """Number of rows whose value of ``column`` another row has too."""

    kind: Literal["repeated"]
    column: str


class Lacking(_Measure):
    """Number of rows that are lacking for every combination of ``columns`` to have as many rows as the fullest."""

    kind: Literal["lacking"]
    columns: tuple[str, ...]


class NullShare(_Measure):
    """Share of rows (of those with ``where``) without a value of ``column``."""

    kind: Literal["null_share"]
    column: str
    where: Where = {}


class QuarantinedShare(_Measure):
    """Share of the rows read that were set aside under ``rules``."""

    kind: Literal["quarantined_share"]
    rules: tuple[str, ...]


class NewestDay(_Measure):
    """Rows of the newest day as a multiple of the median of the days before it (at least ``min_days``)."""

    kind: Literal["newest_day"]
    min_days: Annotated[int, Field(ge=1)] = 3


class MissingDays(_Measure):
    """Number of days between the first and the newest without a single row."""

    kind: Literal["missing_days"]


class AgeDays(_Measure):
    """Days from the newest day with ``min_share`` of the median day's rows or more to that of the newest partition."""

    kind: Literal["age_days"]
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.1


class VolumeChange(_Measure):
    """Mean rows a day as a multiple of the last accepted generation's."""

    kind: Literal["volume_change"]

    @property
    def compares(self) -> bool:
        """It does."""
        return True


class NullChange(_Measure):
    """Share of nulls in ``column`` minus that of the last accepted generation, without its sign."""

    kind: Literal["null_change"]
    column: str

    @property
    def compares(self) -> bool:
        """It does."""
        return True


class Drift(_Measure):
    """Distance of a distribution from that of the last accepted generation.

    Attributes:
        of: ``lengths`` of texts in characters, or the shares of ``categories``.
        column: the column.
        where: only rows with these values.
        distance: ``kolmogorov_smirnov`` (greatest difference of the cumulative shares) or ``wasserstein``
            (characters) for lengths; ``jensen_shannon`` (distance to base 2, 0 to 1) or
            ``population_stability`` (index) for categories.
    """

    kind: Literal["drift"]
    of: Literal["lengths", "categories"]
    column: str
    where: Where = {}
    distance: Literal["kolmogorov_smirnov", "wasserstein", "jensen_shannon", "population_stability"]

    @property
    def compares(self) -> bool:
        """It does."""
        return True

    @property
    def key(self) -> str:
        """Name of the distribution in a profile, such as ``lengths of text, role=user``."""
        return ", ".join(
            [
                f"{self.of} of {self.column}",
                *(f"{name}={value}" for name, value in sorted(self.where.items())),
            ]
        )

    @model_validator(mode="after")
    def _fits(self) -> "Drift":
        of = "lengths" if self.distance in ("kolmogorov_smirnov", "wasserstein") else "categories"
        if self.of != of:
            raise ValueError(f"distance {self.distance} is for {of}")
        return self


Measure = Annotated[
    Rows
    | Distinct
    | Repeated
    | Lacking
    | NullShare
    | QuarantinedShare
    | NewestDay
    | MissingDays
    | AgeDays
    | VolumeChange
    | NullChange
    | Drift,
    Field(discriminator="kind"),
]


_DISTANCES = {
    "kolmogorov_smirnov": "Kolmogorov-Smirnov distance",
    "wasserstein": "Wasserstein distance (characters)",
    "jensen_shannon": "Jensen-Shannon distance",
    "population_stability": "Population stability index",
}


def describe(measure: Measure) -> str:
    """A measure in words, with the names it is about."""
    words = (type(measure).__doc__ or "").split("\n")[0].rstrip(".")
    if isinstance(measure, Drift):
        return f"{_DISTANCES[measure.distance]} of {measure.key} from the last accepted generation"
    if isinstance(measure, Rows) and measure.where:
        words = "Number of rows with ``where``"
    for name in ("column", "columns", "rules", "where", "min_days", "min_share"):
        value = getattr(measure, name, None)
        if value:
            shown = (
                ", ".join(f"{k}={v}" for k, v in value.items())
                if isinstance(value, dict)
                else ", ".join(value)
                if isinstance(value, tuple)
                else value
            )
            words = words.replace(f"``{name}``", str(shown))
    return words.replace(" (of those with ``where``)", "")
