"""Class names as text, and the templates around them."""

from prometar.errors import UserError


def readable(classname: str) -> str:
    """Return a class name with spaces in place of underscores."""
    return classname.replace("_", " ")


def is_template(text: object) -> bool:
    """Return True if a text has exactly one "{}".

    Example:
        >>> is_template("a photo of a {}."), is_template("{} and {}"), is_template(None)
        (True, False, False)
    """
    return isinstance(text, str) and text.count("{}") == 1


def filled(template: str, classname: str) -> str:
    """Return a template with the class name for its "{}"; other braces are text.

    Raises:
        UserError: the template has no "{}", or several.

    Example:
        >>> filled("a photo of a {}.", "polka_dotted")
        'a photo of a polka dotted.'
    """
    if not is_template(template):
        raise UserError(f"the template {template[:80]!a} must have {{}} once, for the class name")
    return template.replace("{}", readable(classname))
