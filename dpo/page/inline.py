"""A figure of matplotlib as SVG that stands in a page: in the page's own colours and letters, and no larger than need be.

    style="stroke: #0b66c2; stroke-width: 1.5"      class="chosen" stroke="currentColor" stroke-width="1.5"

A colour that has a name here becomes a class of that name, and the page's style says what it is by day and by night. No style
attribute is left, so that the page's policy need not allow any. Ids that something refers to are made the figure's own.
"""

import re
from io import BytesIO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from matplotlib import rc_context
from matplotlib.figure import Figure

from dpo.page.markup import Html

RUNS = 8  # colours that tell runs apart
COLORS = {"ink": "#1f2328", "grey": "#636c76", "faint": "#d5d9de", "chosen": "#0b66c2", "rejected": "#d1480a"}
COLORS |= {f"run-{number}": f"#{number + 1:02d}0000" for number in range(RUNS)}  # marks, which the page's style colours
NAMES = {color: name for name, color in COLORS.items()}
# letters stay letters; the same figure gives the same bytes
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.sans-serif": ["DejaVu Sans"]}
DROPPED = ("font", "font-family", "stroke-linejoin")


def inline_svg(figure: Figure, name: str, label: str) -> Html:
    """The figure as an element <svg>, as wide as there is room. name: of letters, another one for each figure of a page.
    label: what it shows, for those who do not see it."""
    drawn = BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    referred = set(re.findall(rb"(?:#|url\(#)([\w-]+)", drawn.getvalue()))
    for parent in [root, *root.iter()]:
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _simplify(element, {one.decode() for one in referred}, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"<g>\s*</g>|<defs */>|<defs>\s*</defs>", "", text)
    return Html(re.sub(r">\s+<", "><", re.sub(r" ?\n\s*", " ", text)))


def _simplify(element: Element, referred: set[str], name: str) -> None:
    """Take one element out of its namespace, and its style apart."""
    element.tag = _local(element.tag)
    found = {_local(key): value for key, value in element.attrib.items()}
    if re.match(r"rotate\(-?0 ", found.get("transform", "")):
        del found["transform"]
    if found.get("id") not in referred:
        found.pop("id", None)
    classes = []
    for declaration in filter(None, (part.strip() for part in found.pop("style", "").split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":  # size and family, which the page has of its own
            size = re.search(r"[\d.]+(?=px)", value)
            assert size is not None  # matplotlib writes it in pixels
            found["font-size"] = size[0]
        elif value in NAMES:
            classes.append(NAMES[value])
            value = "currentColor"
        if key not in DROPPED:
            found[key] = value.removesuffix("px")
    if classes:
        found["class"] = classes[-1]
    for key, value in found.items():
        if key == "id":
            found[key] = f"{name}-{value}"
        elif "#" in value:
            found[key] = value.replace("#", f"#{name}-")
        elif key not in ("class", "font-size"):
            found[key] = re.sub(r"(\.\d\d)\d+", r"\1", value)
    element.attrib.clear()
    element.attrib |= found


def _local(name: str) -> str:
    return name.rpartition("}")[2]
