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
    css_package: str | None = None,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Fill in a page. A name that the template uses and ``values`` lacks is an error.

    A page may extend ``base.html``: document, security policy and style sheet around the blocks ``title`` and ``main``.

    Args:
        package: where the template is.
        page: the template's name.
        values: what it shows; text that is not ``Markup`` is escaped.
        css: name of a style sheet, put in as ``css`` after what all pages share (``base.css``).
        css_package: where the style sheet is; by default beside the template.
        filters: for the template.
    """
    shared, own = files("flywheel_tasks.report"), files(package)
    templates = {"base.html": shared.joinpath("base.html"), page: own.joinpath(page)}
    environment = Environment(
        loader=DictLoader({name: file.read_text(encoding="utf-8") for name, file in templates.items()}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    if css is not None:
        sheets = (shared.joinpath("base.css"), files(css_package or package).joinpath(css))
        style = "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
        values = {**values, "css": Markup(style)}  # noqa: S704 - our own files
    return environment.get_template(page).render(values)
