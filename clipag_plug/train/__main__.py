"""`python -m clipag_plug.train --recipe FILE`: the same as `clipag train`."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
