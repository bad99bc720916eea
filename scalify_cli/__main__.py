"""``python -m scalify_cli``: the command line."""

import sys

from scalify_cli.cli.app import main

sys.exit(main())
