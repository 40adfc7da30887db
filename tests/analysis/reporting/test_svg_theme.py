from __future__ import annotations

from analysis.reporting.svg_theme import apply_theme, colour_variables, dark_colour


class TestTheme:
    def test_colours_become_variables(self):
        drawn = '<g id="axes_1"><path style="fill: #0072B2; stroke: #ffffff"/></g>'
        svg = f'<?xml?><svg width="9pt" height="2pt">{drawn}</svg>'
        text, colours = apply_theme(svg, fixed=["#ffffff"])
        assert text == '<svg><g><path style="fill: var(--c0072b2); stroke: #ffffff"/></g></svg>'
        assert colours == {"#0072b2"}

    def test_the_dark_inverts_greys_and_keeps_hues(self):
        def lightness(colour):
            return sum(int(colour[start : start + 2], 16) for start in (1, 3, 5))

        assert lightness(dark_colour("#1a1a1a")) > 500
        assert lightness(dark_colour("#ebebeb")) < 200
        assert lightness(dark_colour("#0072b2")) > lightness("#0072b2")
        assert "--c0072b2:#0072b2" in colour_variables(["#0072b2"])
