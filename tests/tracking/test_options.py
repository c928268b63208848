"""Tracking options: choices, limits and the schema."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from src.tracking.options import TrackingOptions


def test_defaults_make_a_schema() -> None:
    schema = OmegaConf.structured(TrackingOptions)
    options = OmegaConf.to_object(OmegaConf.merge(schema, {"mode": "offline", "tags": ["a"]}))
    assert options == TrackingOptions(mode="offline", tags=["a"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "ofline"}, "'ofline'.*mean offline"),
        ({"mode": "Online"}, "mean online"),
        ({"mode": ""}, "tracking.mode=''"),
        ({"project": "a/b"}, "tracking.project='a/b'"),
        ({"project": ""}, "tracking.project"),
        ({"tags": ["x" * 65]}, "65 characters"),
        ({"tags": [""]}, "tracking.tags"),
        ({"timeout_seconds": 0.0}, "timeout_seconds=0.0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        TrackingOptions(**values)
    assert "\n" not in str(caught.value)
