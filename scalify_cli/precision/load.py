"""A config option's policy, for use outside the command line."""

from typing import Any

from omegaconf import OmegaConf

from scalify_cli.errors import UserError
from scalify_cli.precision.recipe import NoScaling, Policy, Precision, Scalify
from scalify_cli.shipped import shipped

_TARGETS = {
    f"scalify_cli.precision.{option.__name__}": option for option in (Precision, Scalify, NoScaling)
}


def load_precision(precision: str = "fp8", scaling: str = "scalify") -> Policy:
    """The policy of ``precision=… scaling=…``, for ``with_precision(f, policy)``.

    Raises:
        UserError: there is no such option.
    """
    return Policy(_option("precision", precision), _option("scaling", scaling))


def _option(group: str, name: str) -> Any:
    options = {path.stem: path for path in sorted((shipped("conf") / group).glob("*.yaml"))}
    if name not in options:
        raise UserError(f"{group}={name}: no such option.", f"choose from: {', '.join(options)}.")
    fields: Any = OmegaConf.to_container(OmegaConf.load(options[name]))
    return _TARGETS[fields.pop("_target_")](**fields)
