"""Fill the templates beside this file. Each page is one HTML file that needs no font, picture or script from outside."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.quantities import bytes_text, count_text, many_text, rate_text, share_text

LONGEST = 300
# Characters that HTML does not allow, and those that change the direction of the text around them.
_BAD = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160), 65534, 65535), "�")
_BAD |= dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), "�")


def render(template: str, **values: object) -> str:
    """Return a page. Values are escaped, and shortened if they are very long.

    Args:
        template: File name of the template.
        **values: Variables of the template.
    """
    return _environment().get_template(template).render(values)


def cut(value: object, longest: int = LONGEST) -> str:
    """Return a value as text for a page; HTML made by a template is unchanged."""
    if isinstance(value, Markup):
        return value
    words = str(value).translate(_BAD)
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=cut,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": cut, "base64": _base64, "sha256": _sha256}
    environment.globals |= {one.__name__: one for one in (bytes_text, count_text, many_text, rate_text, share_text)}
    return environment


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode("ascii"))


def _sha256(script: str) -> Markup:
    return _base64(hashlib.sha256(script.encode()).digest())
