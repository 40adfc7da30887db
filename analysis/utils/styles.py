"""Colours and markers of methods and references: the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable

# Okabe and Ito's colours, which stay apart for colour-blind readers; each also has a marker of its own.
METHOD_STYLES = {
    "tensor_train": ("#0072B2", "o"), "tucker": ("#D55E00", "s"), "bottleneck": ("#009E73", "D"),
    "hashed": ("#CC79A7", "^"), "shuffle": ("#E69F00", "v"), "acdc": ("#56B4E9", "P"), "cp": ("#7F7F7F", "X"),
    "spatial_svd": ("#0072B2", "o"), "tucker2": ("#D55E00", "s"), "svd": ("#009E73", "D"),
    "cp_kernel": ("#7F7F7F", "X"), "tensor_train_kernel": ("#CC79A7", "^"),
}  # fmt: skip
SPARE_STYLES = [
    ("#000000", "<"), ("#B8A800", ">"), ("#0072B2", "h"), ("#D55E00", "d"), ("#009E73", "p"), ("#CC79A7", "H"),
]  # fmt: skip
REFERENCE_COLOURS = ("#222222", "#8A5A00", "#5B2A86", "#00624A", "#8C1D40", "#3A5A00")


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each method.

    A method of `METHOD_STYLES` looks the same in every figure; the others share `SPARE_STYLES` in alphabetical order.

    Args:
        methods: names of methods; repeats count once.

    Returns:
        Method -> (colour as `#RRGGBB`, Matplotlib marker), in alphabetical order.
    """
    names = sorted(set(methods))
    others = [name for name in names if name not in METHOD_STYLES]
    spare = {name: SPARE_STYLES[index % len(SPARE_STYLES)] for index, name in enumerate(others)}
    return {name: METHOD_STYLES.get(name) or spare[name] for name in names}
