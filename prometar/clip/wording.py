"""How CLIP is told a class: names as text, and the templates that hold them."""

from prometar.errors import UserError


def readable(classname: str) -> str:
    """A class name as it is read: underscores become spaces."""
    return classname.replace("_", " ")


def is_template(text: object) -> bool:
    """Whether a class's name has its place there, and one only.

    Example:
        >>> is_template("a photo of a {}."), is_template("{} and {}"), is_template(None)
        (True, False, False)
    """
    return isinstance(text, str) and text.count("{}") == 1


def filled(template: str, classname: str) -> str:
    """A template with the class name for its "{}"; other braces are text.

    Raises:
        UserError: the template has no "{}", or several.

    Example:
        >>> filled("a photo of a {}.", "polka_dotted")
        'a photo of a polka dotted.'
    """
    if not is_template(template):
        raise UserError(f"the template {template[:80]!a} must hold {{}} once, where a class's name goes")
    return template.replace("{}", readable(classname))
