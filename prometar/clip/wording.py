"""Prompt templates, and the readable class names that fill them."""

from prometar.errors import UserError


def readable(classname: str) -> str:
    """Return a class name with spaces instead of underscores."""
    return classname.replace("_", " ")


def is_template(text: object) -> bool:
    """Return True if `text` is a string with exactly one "{}".

    Example:
        >>> is_template("a photo of a {}."), is_template("{} and {}"), is_template(None)
        (True, False, False)
    """
    return isinstance(text, str) and text.count("{}") == 1


def fill_template(template: str, classname: str) -> str:
    """Replace "{}" in a template with the readable class name. Keep other braces.

    Raises:
        UserError: the template does not contain "{}" exactly once.

    Example:
        >>> fill_template("a photo of a {}.", "polka_dotted")
        'a photo of a polka dotted.'
    """
    if not is_template(template):
        raise UserError(f"Template {template[:80]!a} must contain {{}}, for the class name, exactly once.")
    return template.replace("{}", readable(classname))
