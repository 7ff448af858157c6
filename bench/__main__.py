"""`python -m bench`."""

from __future__ import annotations

import sys

from bench.run import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
