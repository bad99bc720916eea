"""Powers of two as symbolic exponents, and their computation at run time."""
