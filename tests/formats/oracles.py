"""What a cast ought to return, three ways that share no code with ours."""

import gfloat
import gfloat.formats as known
import numpy as np

from scalify_cli.formats import Format

GFLOAT = {
    "fp32": known.format_info_binary32,
    "bf16": known.format_info_bfloat16,
    "fp16": known.format_info_binary16,
    "e4m3": known.format_info_ocp_e4m3,
    "e5m2": known.format_info_ocp_e5m2,
    "e3m2": known.format_info_ocp_e3m2,
    "e2m3": known.format_info_ocp_e2m3,
    "e2m1": known.format_info_ocp_e2m1,
}


def by_ml_dtypes(x: np.ndarray, format: Format, low: float, high: float) -> np.ndarray:
    """Clip, then a round trip through the container."""
    clipped = np.clip(x.astype(np.float32), np.float32(low), np.float32(high))
    if format.kind == "integer":
        return np.rint(clipped)
    held = clipped.astype(format.dtype).astype(np.float32)
    return held if format.has_nan else np.where(np.isnan(x), np.nan, held)


def by_gfloat(x: np.ndarray, format: Format, low: float, high: float) -> np.ndarray:
    clipped = np.clip(x.astype(np.float32).astype(np.float64), low, high)
    return gfloat.round_ndarray(GFLOAT[format.name], clipped, sat=True)


def by_definition(x, format: Format, low: float, high: float, to_integer=np.rint) -> np.ndarray:
    """A multiple of the step at x, in float64, where every step here is exact."""
    clipped = np.clip(x.astype(np.float32).astype(np.float64), low, high)
    _, exponent = np.frexp(clipped)
    floor = np.log2(format.min_normal)
    step = 2.0 ** (np.maximum(exponent - 1, floor) - format.mantissa_bits)
    steps = clipped / step
    if format.kind == "power" and to_integer is np.rint:
        return np.where(steps >= 1.5, 2, 1) * step + 0 * clipped
    return to_integer(steps) * step
