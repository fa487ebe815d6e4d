"""Elements of a page and of the pictures in it, made so that nothing in a recording can become markup.

Everything is an ElementTree element, whose serializer escapes text and attributes; a name from outside is only ever
text. Numbers in pictures are rounded, so that a page of four hundred updates stays small.
"""

import xml.etree.ElementTree as ET  # only written, never parsed

from .text import printable

LABEL_WIDTH = 190
"""Units that the names of a picture's rows take, of `WIDTH`."""

WIDTH = 1_000
"""Units that a picture is wide."""


def element(tag: str, /, *children: "ET.Element | str", **attributes: object) -> ET.Element:
    """Make an element; `class_` is class, and an underscore in another attribute's name is a hyphen."""
    own = ET.Element(tag)
    for key, value in attributes.items():
        if value is not None:
            own.set("class" if key == "class_" else key.replace("_", "-"), _text(value))
    last: ET.Element | None = None
    for child in children:
        if isinstance(child, ET.Element):
            own.append(child)
            last = child
        elif last is None:
            own.text = (own.text or "") + printable(child)
        else:
            last.tail = (last.tail or "") + printable(child)
    return own


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def picture(height: float, title: str, *children: ET.Element, width: float = WIDTH) -> ET.Element:
    """Make a picture with a name for who cannot see it."""
    svg = element("svg", element("title", title), *children, role="img", class_="picture")
    svg.set("viewBox", f"0 0 {width:g} {height:g}")
    svg.set("aria-label", printable(title))
    svg.set("style", f"min-width:{width if width > WIDTH else width * 0.72:g}px")
    return svg


def rect(x: float, y: float, width: float, height: float, class_: str, title: str | None = None) -> ET.Element:
    """Make a rectangle."""
    children = [] if title is None else [element("title", title)]
    return element(
        "rect", *children, x=round(x, 2), y=round(y, 2), width=round(width, 2), height=round(height, 2), class_=class_
    )


def label(x: float, y: float, text: str, class_: str = "label", anchor: str | None = None) -> ET.Element:
    """Write into a picture."""
    return element("text", text, x=round(x, 2), y=round(y, 2), class_=class_, text_anchor=anchor)


def hatches() -> ET.Element:
    """Make the hatchings that every picture of a page fills missing ranges with: not by colour alone."""
    definitions = element("defs")
    for name, colour, thickness in (("hold", "--warn", 2), ("exposed", "--bad", 3)):
        stripe = element("rect", width=thickness, height=6, style=f"fill:var({colour})")
        pattern = element("pattern", stripe, id=f"hatch-{name}", width=5, height=6)
        pattern.set("patternUnits", "userSpaceOnUse")
        pattern.set("patternTransform", "rotate(45)")
        definitions.append(pattern)
    return element("svg", definitions, width=0, height=0, aria_hidden="true", style="position:absolute")


def html(root: ET.Element) -> str:
    """Give a page's text."""
    return "<!doctype html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"
