"""The fixed slots of every histogram, so that any two runs can be laid over each other.

Slot 0 counts zeros, 1 infinities, 2 NaNs; then one slot per binade of |value|: slot
``FIRST + k`` holds 2^(LOWEST + k) <= |value| < 2^(LOWEST + k + 1). Values beyond the outermost
binades are counted in them.
"""

ZERO, INF, NAN, FIRST = range(4)
LOWEST, HIGHEST = -64, 63
BINADES = HIGHEST - LOWEST + 1
SLOTS = FIRST + BINADES

EDGES = tuple(range(LOWEST, HIGHEST + 2))
"""log2 of the 129 edges of the binades."""
