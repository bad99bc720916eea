"""From ``key=value`` words to one validated, resolved configuration; no third-party import yet."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalify_cli.config.composition import compose as compose
    from scalify_cli.config.identity import difference as difference
    from scalify_cli.config.identity import signature as signature
    from scalify_cli.config.identity import to_yaml as to_yaml
    from scalify_cli.config.targets import build as build

_HOME = {
    "build": "targets",
    "compose": "composition",
    "difference": "identity",
    "signature": "identity",
    "to_yaml": "identity",
}
__all__ = ["build", "compose", "difference", "signature", "to_yaml"]


def __getattr__(name: str) -> Any:
    """Import on first use: completion and ``--help`` must not pay for Hydra."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
