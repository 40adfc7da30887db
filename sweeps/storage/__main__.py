"""`python -m sweeps.storage URI NAME`: fetch a study's folder from its storage."""

import sys

from sweeps.storage.remote import main

if __name__ == "__main__":
    sys.exit(main())
