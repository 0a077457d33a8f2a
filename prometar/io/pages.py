"""Templates of HTML pages."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str) -> Environment:
    """Return the templates of a package and those that all pages share. Texts are escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in (package, "prometar.io")]),
        autoescape=True,  # names come from datasets, reasons from exceptions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
