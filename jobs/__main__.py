"""`python -m jobs` runs `recaption`, e.g. in `ray job submit --working-dir . -- python -m jobs ...`."""

from __future__ import annotations

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
