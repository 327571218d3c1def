"""A console script of a package that carries a copy of `clip`."""

import sys

from deep_daze.deep_daze import Imagine

if __name__ == "__main__":
    Imagine(sys.argv[1])()
