"""`python -m iclora`, for launchers that want a module."""

import sys

from iclora.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
