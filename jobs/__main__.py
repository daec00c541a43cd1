"""`python -m jobs` is `recaption`: what `ray job submit --working-dir . -- python -m jobs ...` starts."""

from __future__ import annotations

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
