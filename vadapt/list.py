"""List what there is: `python -m vadapt.list [backbones|adapters|heads|...]`."""

import sys

from vadapt.catalogue import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
