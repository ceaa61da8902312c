"""HTML that cannot be forgotten to be escaped: what is not made by `tag` is text.

    tag("p", "1 < 2, ", tag("b", "always"))     <p>1 &lt; 2, <b>always</b></p>

Text of models and files goes through here too. What does not print, or turns the direction of writing, is shown as an escape,
so that an answer can neither run nor look like something else than it is. A page's policy, which allows no script, no
image and no address, is the second wall.
"""

import html
import re

from data.characters import CONTROL, INVISIBLE

# Beside those: marks of direction, halves of a pair, and the tags of plane 14, in which a text can hide another
MARKS = "[\u061c\u200e\u200f\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"
HIDDEN = re.compile(f"{CONTROL.pattern}|\r|{INVISIBLE.pattern}|{MARKS}")
EMPTY = ("meta", "input", "br", "hr")  # elements without an end


class Html(str):
    """Text that is HTML already."""


def tag(element: str, /, *content: str | None, **attributes: str | bool | None) -> Html:
    """The element of that name. Content that is no Html is escaped; None is left out.

    class_ is the attribute class, data_x is data-x. One that is True stands without a value; one that is None, False or ""
    is left out.
    """
    words = [element]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value:
            words.append(f'{key}="{html.escape(escaped(str(value)))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if element in EMPTY else f"{start}{joined(*content)}</{element}>")


def joined(*content: str | None) -> Html:
    """Pieces one after another, each escaped unless it is Html."""
    return Html("".join(one if isinstance(one, Html) else text(one) for one in content if one is not None))


def text(plain: str) -> Html:
    """Text as HTML shows it, letter by letter."""
    pieces, at = [], 0
    for found in HIDDEN.finditer(plain):
        pieces.append(html.escape(plain[at : found.start()], quote=False))
        pieces.append(f'<span class="hidden">{escaped(found[0])}</span>')
        at = found.end()
    return Html("".join([*pieces, html.escape(plain[at:], quote=False)]))


def escaped(plain: str) -> str:
    """The text with what is hidden as Python writes it: \\u202e."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), plain)
