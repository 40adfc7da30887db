"""Makes the SVG that Matplotlib writes fit for a page: colours become CSS variables with a light and a dark value.

The same figure is drawn as PNG too, so it has colours of its own, and they are replaced in the text of the SVG. In the
dark, greys are inverted; other colours keep their hue and become light enough to be read.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable

MIN_DARK_LIGHTNESS = 0.62  # of a colour with a hue, on a dark page
MAX_GREY_SATURATION = 0.08
DARK_PAGE = "#14171a"
_HEX = re.compile(r"#([0-9a-fA-F]{6})\b(?=[;\"'])")
_GROUP = re.compile(r'<g id="[^"]*"')


def apply_theme(svg: str, fixed: Iterable[str] = ()) -> tuple[str, set[str]]:
    """Replace the colours of a drawn SVG by variables.

    Args:
        svg: what Matplotlib writes.
        fixed: colours, as `#rrggbb`, that are the same in the light and in the dark.

    Returns:
        The `<svg>` element, which scales with its container and has `var(--crrggbb)` for its colours; and those
        colours, as `#rrggbb`.
    """
    fixed = {colour.lower() for colour in fixed}
    colours: set[str] = set()

    def to_variable(match: re.Match[str]) -> str:
        colour = f"#{match[1].lower()}"
        if colour in fixed:
            return colour
        colours.add(colour)
        return f"var(--c{colour[1:]})"

    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)
    element = _GROUP.sub("<g", element)  # two pictures of a page would have the same ids
    element = element.replace("xlink:href", "href")
    return _HEX.sub(to_variable, element), colours


def dark_colour(colour: str) -> str:
    """Return the colour that stands for another one on a dark page, both as `#rrggbb`."""
    if colour == "#ffffff":
        return DARK_PAGE
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    grey = saturation < MAX_GREY_SATURATION
    lightness = 0.12 + 0.82 * (1 - lightness) if grey else max(MIN_DARK_LIGHTNESS, lightness)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def colour_variables(colours: Iterable[str]) -> str:
    """Return the CSS that gives every variable its value; dark on dark screens only.

    Args:
        colours: as `#rrggbb`.

    Returns:
        The rules, as CSS.
    """
    names = sorted(set(colours))
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in names)
    dark = "".join(f"--c{colour[1:]}:{dark_colour(colour)};" for colour in names)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
