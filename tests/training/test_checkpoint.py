"""What is saved comes back bit for bit, whatever happened to the process or to the newest file."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from scalify_cli.core import ScaledArray
from scalify_cli.errors import UserError
from scalify_cli.training import checkpoint as module
from scalify_cli.training.checkpoint import Checkpoints

EVERY_FP16 = np.arange(2**16, dtype=np.uint16).view(np.float16)  # NaN payloads and -0 included


def state(seed=0):
    values = np.random.default_rng(seed).integers(0, 2**32, 1000, np.uint32)
    codes = np.arange(2**8, dtype=np.uint8)
    return {
        "weights": [ScaledArray(jnp.asarray(EVERY_FP16), jnp.float32(2.0**-30))],
        "wide": jnp.asarray(values.view(np.float32)),
        "narrow": jnp.asarray(codes.view(ml_dtypes.float8_e4m3fn)),
        "brain": jnp.asarray(EVERY_FP16.view(ml_dtypes.bfloat16)),
        "step": jnp.int32(seed),
        "flag": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "keys": jax.random.split(jax.random.key(seed), 3),
        "hardware_key": jax.random.key(seed, impl="rbg"),
    }


def bits(tree):
    def of(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def save_all(path, steps, keep=3):
    checkpoints = Checkpoints(path, keep)
    for step in steps:
        checkpoints.save(step, state(step), {"data": f"of {step}"})
    return checkpoints


def test_everything_comes_back_bit_for_bit(tmp_path):
    save_all(tmp_path, [7])
    step, restored, extra = Checkpoints(tmp_path).restore_newest(state())
    assert step == 7 and extra == {"data": "of 7"}
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    assert bits(restored) == bits(state(7))


def test_the_template_may_be_abstract(tmp_path):
    save_all(tmp_path, [7])
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state())
    assert bits(Checkpoints(tmp_path).restore_newest(template)[1]) == bits(state(7))


def test_what_comes_back_may_be_donated(tmp_path):
    save_all(tmp_path, [7])
    restored = Checkpoints(tmp_path).restore_newest(state())[1]
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(restored["wide"])
    assert np.array_equal(doubled, 2 * state(7)["wide"], equal_nan=True)
    assert restored["wide"].is_deleted()


def test_nothing_is_there_at_first(tmp_path):
    assert Checkpoints(tmp_path / "missing").steps() == []
    assert Checkpoints(tmp_path / "missing").restore_newest(state()) is None


def test_the_last_ones_are_kept(tmp_path):
    assert save_all(tmp_path, [1, 2, 3, 10], keep=2).steps() == [3, 10]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_step_may_be_saved_again(tmp_path):
    checkpoints = save_all(tmp_path, [1, 2])
    checkpoints.save(2, state(9))
    assert bits(checkpoints.restore_newest(state())[1]) == bits(state(9))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, os.remove])
@pytest.mark.parametrize("file", ["largest", "meta.json", "manifest.json"])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, harm, file):
    save_all(tmp_path, [1, 2])
    files = [path for path in (tmp_path / "00000002").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    harm(largest if file == "largest" else tmp_path / "00000002" / file)
    messages = []
    checkpoints = Checkpoints(tmp_path, notify=messages.append)
    step, restored, _ = checkpoints.restore_newest(state())
    assert step == 1 and bits(restored) == bits(state(1))
    [message] = messages
    assert message.startswith("checkpoint 2 is damaged (")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, state(2))
    assert checkpoints.restore_newest(state())[0] == 2
    assert not list(tmp_path.glob("*.corrupt"))


def test_all_of_them_may_be_damaged(tmp_path):
    save_all(tmp_path, [1, 2])
    for step in ("00000001", "00000002"):
        flip_a_bit(tmp_path / step / "meta.json")
    assert Checkpoints(tmp_path).restore_newest(state()) is None


def test_another_structure_is_no_damage(tmp_path):
    save_all(tmp_path, [1])
    other = state() | {"wide": jnp.zeros(3)}
    with pytest.raises(UserError, match=r"does not fit .*\['wide'\]") as caught:
        Checkpoints(tmp_path).restore_newest(other)
    assert "--force" in caught.value.hint
    assert Checkpoints(tmp_path).steps() == [1]


def test_a_full_disk_is_noticed_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MARGIN", 2**62)
    with pytest.raises(UserError, match="a checkpoint needs") as caught:
        Checkpoints(tmp_path).save(1, state())
    assert caught.value.exit_code == 1


def test_a_disk_that_fills_up_meanwhile_leaves_the_ones_before(tmp_path, monkeypatch):
    save_all(tmp_path, [1])

    def full(folder):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(module, "_checksums", full)
    with pytest.raises(OSError, match="No space left on device"):
        Checkpoints(tmp_path).save(2, state(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000001"]


PROGRAM = textwrap.dedent(
    """
    import sys
    import jax.numpy as jnp
    from scalify_cli.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(sys.argv[1], keep=2)
    for step in range(1, 10_000):
        checkpoints.save(step, {"x": jnp.full(100_000, step, jnp.float32)})
        print(step, flush=True)
    """
)


@pytest.mark.parametrize("saves", [1, 2, 5])
def test_a_process_killed_while_saving_leaves_one_to_go_on_from(tmp_path, saves):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = [int(process.stdout.readline()) for _ in range(saves)][-1]
        while process.poll() is None and not list(tmp_path.glob(".*")):
            pass
        process.send_signal(signal.SIGKILL)
    messages = []
    checkpoints = Checkpoints(tmp_path, keep=2, notify=messages.append)
    step, restored, _ = checkpoints.restore_newest({"x": jnp.zeros(100_000, jnp.float32)})
    assert step >= said and messages == []
    assert np.all(np.asarray(restored["x"]) == step)
    checkpoints.save(step + 1, restored)
    assert not list(tmp_path.glob(".*"))
