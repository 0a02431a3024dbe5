"""Pages that are one file and need nothing else: a template of a package, filled in, every text escaped."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup


def render_file(
    package: str,
    page: str,
    values: Mapping[str, Any],
    *,
    css: str | None = None,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Fill in a page. A name that the template uses and ``values`` lacks is an error.

    Args:
        package: where the files are.
        page: the template's name.
        values: what it shows; text that is not ``Markup`` is escaped.
        css: name of a style sheet, put in as ``css`` after what all pages share (``base.css``).
        filters: for the template.
    """
    folder = files(package)
    environment = Environment(
        loader=DictLoader({page: folder.joinpath(page).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    if css is not None:
        sheets = (files("flywheel_tasks.report").joinpath("base.css"), folder.joinpath(css))
        style = "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
        values = {**values, "css": Markup(style)}  # noqa: S704 - our own files
    return environment.get_template(page).render(values)
