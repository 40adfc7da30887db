"""`python -m sweeps.tracking STUDY_DIR`: carry a study's records to MLflow."""

import sys

from sweeps.tracking.follower import main

if __name__ == "__main__":
    sys.exit(main())
