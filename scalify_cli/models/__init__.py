"""Models: plain JAX functions that know nothing of precision."""
