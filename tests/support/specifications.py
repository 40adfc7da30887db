"""Whole specifications for records that are made by hand, of which a test names only what it is about."""

from __future__ import annotations

from typing import Any

from sweeps.records.specification import TrialSpec


def make_specification(**sections: Any) -> TrialSpec:
    """Make a specification; a section that is not named is that of a dense ResNet-9 on the digits, trained once."""
    return TrialSpec.parse(plain_specification(**sections))


def plain_specification(**sections: Any) -> dict[str, Any]:
    """Return what a journal holds of such a specification."""
    content = {
        "network": {"name": "resnet9"}, "method": {"name": "dense"}, "train": {"epochs": 1}, "views": {},
        "data": {"name": "digits", "fingerprint": "f00d"}, "seed": 0,
    }  # fmt: skip
    return content | sections


def change(specification: TrialSpec | None, **sections: Any) -> TrialSpec:
    """Return the specification with other fields in some sections, or with another seed."""
    assert specification is not None
    content = specification.to_json()
    for name, value in sections.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return TrialSpec.parse(content)
