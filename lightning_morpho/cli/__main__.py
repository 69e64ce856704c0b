"""``python -m lightning_morpho.cli``: the command ``morpho`` where its script is not on the path."""

import sys

from lightning_morpho.cli import main

if __name__ == "__main__":
    sys.exit(main())
