"""`python -m transformers_ait` is the command `transformers-ait`."""

import sys

from transformers_ait_command import main

if __name__ == "__main__":
    sys.exit(main())
