"""The paper: ``ScaledArray``, the jaxpr interpreter, the scale rules and ``scalify``."""

from scalify_cli.core.scaled_array import ScaledArray, as_scaled, is_scaled, unscale
from scalify_cli.core.transform import RULES, scalify

__all__ = ["RULES", "ScaledArray", "as_scaled", "is_scaled", "scalify", "unscale"]
