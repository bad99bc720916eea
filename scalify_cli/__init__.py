"""Train transformers in FP8 and FP16 with scales propagated end to end.

Importing this package imports nothing else; each name brings what it needs on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalify_cli.core import ScaledArray as ScaledArray
    from scalify_cli.core import as_scaled as as_scaled
    from scalify_cli.core import custom_scale as custom_scale
    from scalify_cli.core import rescale as rescale
    from scalify_cli.core import scalify as scalify
    from scalify_cli.core import unscale as unscale
    from scalify_cli.numerics.observe import observe as observe
    from scalify_cli.numerics.trace import trace as trace
    from scalify_cli.precision import with_precision as with_precision

    __version__: str

_HOME = {
    "ScaledArray": "core",
    "as_scaled": "core",
    "custom_scale": "core",
    "observe": "numerics.observe",
    "rescale": "core",
    "scalify": "core",
    "trace": "numerics.trace",
    "unscale": "core",
    "with_precision": "precision",
}
__all__ = [
    "ScaledArray",
    "as_scaled",
    "custom_scale",
    "observe",
    "rescale",
    "scalify",
    "trace",
    "unscale",
    "with_precision",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import version

    return version("scalify-cli")
