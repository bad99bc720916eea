"""Where values are rounded (precision) and how a cast picks its scale (scaling)."""

from scalify_cli.precision.load import load_precision
from scalify_cli.precision.recipe import NoScaling, Policy, Precision, Scalify, dtype_of
from scalify_cli.precision.transform import with_precision

__all__ = [
    "NoScaling",
    "Policy",
    "Precision",
    "Scalify",
    "dtype_of",
    "load_precision",
    "with_precision",
]
