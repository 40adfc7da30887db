"""Makes drawn SVG fit to stand inside a page: its colours become variables, with one set for light and one for dark.

Greys are turned over in the dark; colours keep their hue and become light enough to be read there.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable

_HEX = re.compile(r"#([0-9a-fA-F]{6})\b(?=[;\"'])")
_GROUP = re.compile(r'<g id="[^"]*"')
DARKEST, PAGE_DARK = 0.62, "#14171a"


def themed(svg: str, kept: Iterable[str] = ()) -> tuple[str, set[str]]:
    """The `<svg>` element with `var(--c...)` for its colours, and those colours; the `kept` ones stay as they are.

    `svg` is what matplotlib writes. The element scales with its container.
    """
    untouched = {colour.lower() for colour in kept}
    found: set[str] = set()

    def variable(match: re.Match[str]) -> str:
        colour = f"#{match[1].lower()}"
        if colour in untouched:
            return colour
        found.add(colour)
        return f"var(--c{colour[1:]})"

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body)
    body = _GROUP.sub("<g", body)  # two pictures of a page would have the same
    body = body.replace("xlink:href", "href")
    return _HEX.sub(variable, body), found


def dark(colour: str) -> str:
    """The colour for a dark ground, both as `#rrggbb`."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if colour == "#ffffff":
        return PAGE_DARK
    lightness = 0.12 + 0.82 * (1 - lightness) if saturation < 0.08 else max(DARKEST, lightness)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def variables(colours: Iterable[str]) -> str:
    """The style sheet that gives every variable its value, in the light and in the dark; print is light."""
    names = sorted(set(colours))
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in names)
    night = "".join(f"--c{colour[1:]}:{dark(colour)};" for colour in names)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{night}}}}}\n"
