"""``python -m server``: the same as ``parley``."""

import sys

from server.cli import main

sys.exit(main())
