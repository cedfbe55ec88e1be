"""`python -m attlas` is `attlas`."""

import sys

from attlas.cli import main

sys.exit(main())
