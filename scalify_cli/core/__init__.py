"""The paper: ``ScaledArray``, the scale rules and ``scalify``."""

from scalify_cli.core.custom_scale import custom_scale
from scalify_cli.core.dtypes import is_float
from scalify_cli.core.rescale import rescale, rescale_cotangent
from scalify_cli.core.scaled_array import (
    SMALLEST_SCALE,
    ScaledArray,
    as_scaled,
    is_scaled,
    unscale,
)
from scalify_cli.core.tap import tap, tap_p
from scalify_cli.core.transform import RULES, scalify

__all__ = [
    "RULES",
    "SMALLEST_SCALE",
    "ScaledArray",
    "as_scaled",
    "custom_scale",
    "is_float",
    "is_scaled",
    "rescale",
    "rescale_cotangent",
    "scalify",
    "tap",
    "tap_p",
    "unscale",
]
