"""Images in JSON: base64 text, in an object whose keys are known; and how its parts are checked."""

from __future__ import annotations

from typing import Any

from models.errors import InputError, UndecodableImageError
from serve.http.asgi import Rejected
from serve.http.bodies import from_base64, load_json

# JSON has six marks an image ({"b64":"data:image/jpeg;base64,..."},), and a few around them.
_JSON_VALUES_AN_IMAGE = 8
_JSON_VALUES_BESIDE = 64


def whole_number(text: str) -> int:
    """Read a top_k that came as text.

    Raises:
        Rejected: 400, it is no whole number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Rejected(400, f"top_k must be a whole number, got {text[:40]!r}")
    return int(text)


def json_object(body: bytes, max_images: int, form: str) -> dict[str, Any]:
    """Parse JSON of an object with so many images.

    Args:
        body: As sent.
        max_images: Of the request; bounds the JSON's values.
        form: What the object has to look like, for the message.

    Raises:
        Rejected: 413 it has too many values, 400 it is no JSON object.
    """
    document = load_json(body, _JSON_VALUES_AN_IMAGE * max_images + _JSON_VALUES_BESIDE)
    if not isinstance(document, dict):
        raise Rejected(400, f"the body must be {form}, got {kind_of(document)}")
    return document


def only_keys(given: dict[str, Any], known: tuple[str, ...], what: str = "keys") -> None:
    """Check that an object has no key that nobody reads.

    Raises:
        Rejected: 400, it has another.
    """
    if unknown := next((name for name in given if name not in known), None):
        raise Rejected(400, f"the {what} are {', '.join(known[:-1])} and {known[-1]}, got {unknown[:60]!r}")


def checked_top_k(value: object) -> int | None:
    """Return a top_k as JSON has it.

    Raises:
        Rejected: 400, it is no whole number.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise Rejected(400, f"top_k must be a whole number, got {kind_of(value)}")
    return value


def images_of(items: object, max_images: int) -> list[bytes | InputError]:
    """Return the images of a JSON list `[{"b64": "..."}]`.

    Raises:
        Rejected: 400 it is no such list, or the one image in it is no base64; 413 there are too many.
    """
    if not isinstance(items, list):
        raise Rejected(400, f"images must be a list, got {kind_of(items)}")
    check_number(len(items), max_images, "images is empty")
    for index, item in enumerate(items):
        if not isinstance(item, dict) or set(item) != {"b64"} or not isinstance(item["b64"], str):
            raise Rejected(
                400, f'images[{index}] must be {{"b64": "<the file in base64>"}}; nothing is fetched from addresses'
            )
    return decoded([item["b64"] for item in items], "images", "b64 ")


def decoded(texts: list[str], name: str, what: str = "") -> list[bytes | InputError]:
    """Return the bytes of images in base64, or of `data:` addresses; broken base64 is that image's own error.

    Args:
        texts: One or more.
        name: Of the list, for the message.
        what: What is not base64, for the message.

    Raises:
        Rejected: 400, there is one, and it is broken.
    """
    images = [_from_base64(text, what) for text in texts]
    if len(images) == 1 and isinstance(images[0], InputError):
        raise Rejected(400, f"{name}[0]: {images[0]}")
    return images


def check_number(got: int, max_images: int, nothing: str) -> None:
    """Check the number of images in a request.

    Raises:
        Rejected: 400 there is none, 413 there are too many.
    """
    if got == 0:
        raise Rejected(400, f"{nothing}; expected at least one image")
    if got > max_images:
        raise Rejected(413, f"the request has {got} images; max_images is {max_images}", kind="too_many_images")


def _from_base64(text: str, what: str) -> bytes | InputError:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return from_base64(text)
    except (ValueError, UnicodeEncodeError) as err:
        return UndecodableImageError(f"{what}is not base64: {str(err)[:80]}")


_KINDS: dict[type, str] = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    float: "a fraction",
}


def kind_of(value: object) -> str:
    """Name a JSON value's type, for messages."""
    return _KINDS.get(type(value), "a number")
