"""Ways to call a scalified function: ``@ways`` gives a test each of them."""

import jax
import pytest

WAYS = {"eager": lambda f: f, "jit": jax.jit}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
