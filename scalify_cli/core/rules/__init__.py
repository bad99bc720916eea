"""The table of scale rules: one entry a primitive, grouped by algebra in the files beside."""

from scalify_cli.core.rules import arithmetic, matmul, parallel, programs, structure

RULES = arithmetic.RULES | structure.RULES | matmul.RULES | parallel.RULES | programs.RULES
