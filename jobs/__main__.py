"""`python -m jobs` is `recaption`: what `ray job submit --working-dir . -- python -m jobs ...` starts."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
