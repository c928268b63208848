"""What a user may ask of activation maps, checked before anything is trained. Loads neither torch nor a library."""

from __future__ import annotations

import importlib.util

from src.choices import check_choice

EXACT = "exact"
TITLES = {  # all but the first through torchcam
    EXACT: "exact class-activation maps",
    "gradcam": "Grad-CAM maps",
    "gradcam_pp": "Grad-CAM++ maps",
    "layercam": "LayerCAM maps",
}
METHODS = tuple(TITLES)


def check_cam(method: str, scores: int) -> None:
    """Refuse what cannot be done with maps.

    Args:
        method: `cam_method`.
        scores: `cam_scores`.

    Raises:
        ValueError: no such method, its library is not installed, or a negative number of pictures.
    """
    check_choice("cam_method", method, METHODS)
    if method != EXACT and importlib.util.find_spec("torchcam") is None:
        raise ValueError(
            f"cam_method={method} needs torchcam, which is not installed; python -m pip install -e '.[cam]' adds it,"
            f" and cam_method={EXACT} needs nothing"
        )
    if scores < 0:
        raise ValueError(f"cam_scores={scores} must not be negative; 0 scores no activation maps")
