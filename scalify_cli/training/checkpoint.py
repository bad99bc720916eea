"""Checkpoints: orbax files under a manifest of checksums, bit for bit, newest usable first.

A checkpoint is ``checkpoints/<step>/``: ``state/`` (orbax), ``meta.json`` (what the leaves are, and
the caller's extras) and ``manifest.json`` (SHA-256 of every file). It is built under a hidden name
and renamed, so that a process killed at any moment leaves the previous ones as they were; what a
power cut may do to the files, the checksums find.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalify_cli.errors import UserError

_BLOCK = 2**22
_MARGIN = 2**24  # bytes of disk beyond the arrays themselves


class Checkpoints:
    """The newest ``keep`` checkpoints of a run.

    Args:
        path: the ``checkpoints`` folder; made when needed. One process writes it at a time.
        keep: how many are kept.
        notify: gets a line when a checkpoint turns out to be unusable.
    """

    def __init__(
        self,
        path: Path,
        keep: int = 2,
        notify: Callable[[str], None] = lambda message: None,
    ):
        self.path = Path(path).absolute()
        self._keep = keep
        self._notify = notify

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint, then remove the ones beyond the last ``keep``.

        Args:
            step: updates made so far; a checkpoint of the same step is replaced.
            state: any pytree of arrays and typed PRNG keys; read before this returns.
            extra: a JSON object, given back on restoring.

        Raises:
            UserError: no room on the disk (exit code 1).
            OSError: the folder cannot be written, or the disk filled up meanwhile.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        leaves = _to_host(state)
        self._check_room(sum(array.nbytes for array in leaves.values()))
        temporary = self.path / f".{step:08d}"
        meta = {"step": step, "leaves": _describe(state), "extra": extra or {}}
        try:
            _write(temporary, leaves, meta)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)  # its room is needed for saying so
            raise _as_os_error(error) from error
        final = self.path / f"{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        self._prune()
        return final

    def restore_newest(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint whose files are what was written, as (step, state, extra).

        A damaged one is reported, set aside as ``<step>.corrupt`` until the next save, and passed
        over.

        Args:
            template: a tree of the state's structure; its leaves may be ``jax.ShapeDtypeStruct``.

        Raises:
            UserError: the checkpoint is sound but of another structure than the template.
        """
        for step in reversed(self.steps()):
            found = self._restore(step, template)
            if found is not None:
                return found
        return None

    def _restore(self, step: int, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        path = self.path / f"{step:08d}"
        damage = _damage(path)
        if damage:
            self._notify(f"checkpoint {step} is damaged ({damage}); using the one before.")
            shutil.rmtree(self.path / f"{step:08d}.corrupt", ignore_errors=True)
            os.replace(path, self.path / f"{step:08d}.corrupt")
            return None
        meta = json.loads((path / "meta.json").read_text())
        _check_structure(path, meta["leaves"], _describe(template))
        return step, _read(path, meta["leaves"], template), meta["extra"]

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < needed + _MARGIN:
            raise UserError(
                f"a checkpoint needs {needed / 1e6:.0f} MB and {self.path} has "
                f"{free / 1e6:.0f} MB free.",
                "make room, or put the runs elsewhere with --runs-dir.",
                exit_code=1,
            )

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep]:
            hidden = self.path / f".{step:08d}"
            os.replace(self.path / f"{step:08d}", hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed process left half written, and what was found damaged."""
        for entry in self.path.iterdir():
            if entry.name.startswith(".") or entry.name.endswith(".corrupt"):
                shutil.rmtree(entry, ignore_errors=True)


def _write(folder: Path, leaves: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    folder.mkdir()
    orbax = _orbax()
    with orbax.Checkpointer(_handler(), **_alone()) as checkpointer:
        checkpointer.save(folder / "state", args=orbax.args.PyTreeSave(leaves))
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "manifest.json").write_text(json.dumps(_checksums(folder), indent=1))


def _read(folder: Path, leaves: list[dict[str, Any]], template: Any) -> Any:
    orbax = _orbax()
    numpy = orbax.RestoreArgs(restore_type=np.ndarray)
    as_numpy = {leaf["name"]: numpy for leaf in leaves if 0 not in leaf["shape"]}
    with orbax.Checkpointer(_handler(), **_alone()) as checkpointer:
        arrays = checkpointer.restore(
            folder / "state", args=orbax.args.PyTreeRestore(restore_args=as_numpy)
        )
    goals, structure = jax.tree.flatten(template)
    placed = [
        _to_device(arrays.get(leaf["name"]), leaf, goal)
        for leaf, goal in zip(leaves, goals, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _name(index: int) -> str:
    return f"{index:04d}"


def _describe(tree: Any) -> list[dict[str, Any]]:
    """One row a leaf: orbax's name for it, where it is in the tree, and what it is."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        {
            "name": _name(index),
            "path": jax.tree_util.keystr(path),
            "dtype": str(jnp.result_type(leaf)) if not hasattr(leaf, "dtype") else str(leaf.dtype),
            "shape": list(np.shape(leaf)),
        }
        for index, (path, leaf) in enumerate(found)
    ]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _to_host(state: Any) -> dict[str, np.ndarray]:
    """The leaves by orbax's name for them, without the empty ones, which it refuses."""
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    arrays = [np.asarray(x) for x in jax.device_get(leaves)]
    return {_name(index): array for index, array in enumerate(arrays) if array.size}


def _to_device(array: np.ndarray | None, leaf: dict[str, Any], goal: Any) -> Any:
    """The leaf in memory of its own, where the template's is: an update may donate it."""
    if array is None:
        return jnp.zeros(goal.shape, goal.dtype)
    data = jnp.array(array, copy=True)
    if _is_key(goal):
        data = jax.random.wrap_key_data(data, impl=_key_implementation(leaf["dtype"]))
    sharding = getattr(goal, "sharding", None)
    spread = sharding is not None and len(sharding.device_set) > 1
    return jax.device_put(data, sharding) if spread else data


def _key_implementation(dtype: str) -> str:
    names = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
    return names[dtype]


def _check_structure(path: Path, saved: list[dict], wanted: list[dict]) -> None:
    if saved == wanted:
        return
    different = [row for row in wanted if row not in saved] or [
        row for row in saved if row not in wanted
    ]
    raise UserError(
        f"checkpoint {path} does not fit this version's training state "
        f"(first difference: {different[0]['path']}).",
        "start the run afresh with --force.",
    )


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, digest in manifest.items():
            if _sha256(folder / name) != digest:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__} in its files"
    return None


def _as_os_error(error: Exception) -> Exception:
    """The storage library's own words for a full disk, as the error everybody knows."""
    full = any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "No space left"))
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error


def _handler() -> Any:
    """Uncompressed: six times faster to write, and random low-order bits do not compress."""
    return _orbax().PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=True, use_compression=False, **_alone()
    )


def _alone() -> dict[str, Any]:
    """Of several processes this one alone saves and restores, and waits for no other."""
    if jax.process_count() == 1:
        return {}
    own = jax.process_index()
    options = _orbax().options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"alone{own}"
    )
    return {"multiprocessing_options": options}


def _orbax() -> Any:
    import orbax.checkpoint

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it logs, it raises
    return orbax.checkpoint
