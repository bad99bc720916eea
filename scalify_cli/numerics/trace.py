"""``trace(f, *args)``: where does the scale go wrong?

Runs ``f`` once under ``scalify``'s rules and lists every equation, those inside loops too, with the
line of code it came from, the rule that gave its scale, and what the scale and the data were. Data
far from 1 is data that its scale does not fit.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend import core as jex

from scalify_cli.core import RULES, is_scaled
from scalify_cli.core.storage import at
from scalify_cli.core.transform import propagate, rule_for
from scalify_cli.core.values import Scaled
from scalify_cli.jaxprs.interpreter import Apply, scope_of, trace_call
from scalify_cli.jaxprs.meshes import on_mesh_of
from scalify_cli.numerics.probe import evaluate_probed, probe
from scalify_cli.scales.scale import ONE

_FOREIGN = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(jax.__file__).parent,
        *(Path(__file__).parents[1] / name for name in ("core", "numerics", "precision")),
    )
)
_TITLES = ("equation", "output", "scale", "data", "rule", "source", "scope")


class Row(NamedTuple):
    """One output of one equation.

    Attributes:
        depth: how many calls, loops and rematerialised parts the equation is in.
        primitive: its name.
        dtype, shape: of the output.
        kind: of the output's scale: ``static`` (known while tracing), ``run time``, ``any`` (zeros
            and infinities), or empty where there is none.
        scale: its smallest and largest log2 over the iterations of the loops around it, if known.
        data: smallest and largest log2 of the root mean square of its finite data (-inf: zeros);
            None where it is not known.
        nonfinite: the largest number of infinities and NaN in its data.
        rule: the rule's name; ``unscaled`` where no operand has a scale.
        source: ``path:line`` of the code that computed it, outside of JAX and the transforms.
        scope: the named scope, such as ``block/attention``.
    """

    depth: int
    primitive: str
    dtype: Any
    shape: tuple[int, ...]
    kind: str
    scale: tuple[int, int] | None
    data: tuple[float, float] | None
    nonfinite: int
    rule: str
    source: str
    scope: str

    @property
    def fallback(self) -> bool:
        """Whether the primitive has no rule: computed on true values, its scale is 1."""
        return self.rule == "fallback"

    @property
    def drift(self) -> float:
        """Binades between the data and 1; infinite for data that is not finite."""
        if self.nonfinite:
            return float("inf")
        return max((abs(x) for x in self.data or () if np.isfinite(x)), default=0.0)


@dataclass(frozen=True)
class Trace:
    """The table that ``trace`` returns; ``str`` prints it. ``2^k`` is a scale or the data's root
    mean square, ``=2^k`` one that was known while tracing, ``2^j..2^k`` the range over a loop."""

    rows: tuple[Row, ...]

    @property
    def fallbacks(self) -> tuple[Row, ...]:
        """The equations without a rule of their own."""
        return tuple(row for row in self.rows if row.fallback)

    def worst(self, count: int = 10) -> "Trace":
        """The rows whose data is farthest from 1, the farthest first."""
        return Trace(tuple(sorted(self.rows, key=lambda row: -row.drift)[:count]))

    def __str__(self) -> str:
        cells = [_TITLES, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        names = sorted({row.primitive for row in self.fallbacks})
        count = f"{len(self.fallbacks)} without a rule" + (f": {', '.join(names)}" if names else "")
        return "\n".join([*lines, f"{len(self.rows)} rows, {count}"])


def trace(f: Callable, *args: Any, **kwargs: Any) -> Trace:
    """The equations of ``scalify(f)(*args, **kwargs)``, in the order in which they run.

    Args:
        f: as for ``scalify``; give it as it is, not under ``scalify``.
        args, kwargs: f's arguments. With ``jax.ShapeDtypeStruct`` for arrays (and for ``data`` and
            ``scale`` of a ``ScaledArray``) nothing is computed, and only static scales are known.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    dynamic = [i for i, x in enumerate(leaves) if hasattr(x, "dtype")]
    recorder = _Recorder()

    def run(arrays: Sequence[Any]) -> list[Any]:
        full = dict(enumerate(leaves)) | dict(zip(dynamic, arrays, strict=True))
        inner_args, inner_kwargs = jax.tree.unflatten(structure, full.values())
        program = trace_call(f, inner_args, inner_kwargs, is_scaled)
        return propagate(program, RULES, recorder.watch)

    arrays = [leaves[i] for i in dynamic]
    with on_mesh_of(arrays):
        closed = jax.make_jaxpr(run)(arrays)
        if not abstract:
            evaluate_probed(closed, jax.tree.leaves(arrays))
    return Trace(tuple(recorder.node.rows()))


@dataclass(eq=False)
class _Output:
    """One output of an equation, and what was measured of it in each iteration."""

    aval: Any
    kind: str = ""
    exponents: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    nonfinite: int = 0

    def probed(self, x: Scaled) -> Scaled:
        """x, with its scale noted if it is known and its values watched."""
        self.kind = "any" if x.scale is None else "static" if x.scale.static else "run time"
        exponents = [x.scale.exponent()] if x.scale and not x.scale.static else []
        if x.scale and x.scale.static:
            self.exponents = [x.scale.constant]
        return x.with_data(probe(self.see, x.data, at(x, x.scale or ONE), *exponents))

    def see(self, data: np.ndarray, at_scale: np.ndarray, *exponents: np.ndarray) -> None:
        """What one evaluation computed."""
        wide = at_scale.astype(np.float64)
        finite = np.isfinite(wide)
        size = np.sqrt(np.mean(np.square(wide[finite]))) if finite.any() else 0
        self.sizes.append(math.log2(size) if size else -math.inf)
        self.nonfinite = max(self.nonfinite, int(np.sum(~np.isfinite(data.astype(np.float64)))))
        self.exponents += np.ravel(exponents).astype(int).tolist()

    def row(self, node: "_Node") -> Row:
        return Row(
            node.depth,
            node.equation.primitive.name,
            self.aval.dtype,
            self.aval.shape,
            self.kind,
            _range(self.exponents),
            _range(self.sizes),
            self.nonfinite,
            node.rule,
            node.source,
            scope_of(node.equation),
        )


@dataclass(eq=False)
class _Node:
    """An equation and those inside it; a body that JAX traces again replaces itself."""

    equation: Any = None
    rule: str = ""
    source: str = ""
    depth: int = -1
    outputs: list[_Output] = field(default_factory=list)
    children: dict[int, "_Node"] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        yield from (output.row(self) for output in self.outputs)
        for child in self.children.values():
            yield from child.rows()


class _Recorder:
    """Wraps what computes an equation, and notes what it gave."""

    def __init__(self):
        self.node = _Node()

    def watch(self, apply: Apply) -> Apply:
        def watched(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
            parent = self.node
            rule = _name(equation.primitive, rule_for(equation, operands, RULES))
            source = _source(equation) or parent.source
            self.node = _Node(equation, rule, source, parent.depth + 1)
            parent.children[id(equation)] = self.node
            results = []
            for variable, x in zip(equation.outvars, apply(equation, operands), strict=True):
                output = _Output(variable.aval)
                results.append(output.probed(x) if isinstance(x, Scaled) else x)
                self.node.outputs.append(output)
            self.node = parent
            return results

        return watched


def _range(values: list) -> tuple | None:
    return (min(values), max(values)) if values else None


def _name(primitive: jex.Primitive, rule: Callable) -> str:
    """The name of a rule's function, or of the family that made it, or of its own primitive."""
    if rule is getattr(primitive, "scale_rule", None):
        return primitive.name
    return getattr(rule, "func", rule).__qualname__.partition(".")[0].strip("_")


def _source(equation: jex.JaxprEqn) -> str:
    """``path:line`` of the innermost frame that is neither JAX's nor a transform's."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(_FOREIGN):
            return f"{frame.file_name}:{frame.line_num}"
    return ""


def _cells(row: Row) -> tuple[str, ...]:
    scale = _powers(row.scale) if row.scale else row.kind
    data = "" if row.data is None else _powers(row.data)
    if row.nonfinite:
        data += f" {row.nonfinite} inf/nan"
    return (
        "  " * row.depth + row.primitive,
        ShapedArray(row.shape, row.dtype).str_short(short_dtypes=True),
        f"={scale}" if row.kind == "static" else scale,
        data,
        f"! {row.rule}" if row.fallback else row.rule,
        Path(row.source).name,
        row.scope,
    )


def _powers(ends: tuple[float, float]) -> str:
    low, high = (f"2^{round(x)}" if np.isfinite(x) else "0" for x in ends)
    return low if low == high else f"{low}..{high}"
