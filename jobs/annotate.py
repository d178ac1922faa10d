"""Annotate images on a cluster: ray job submit … -- python jobs/annotate.py --config annotate.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["annotate", *sys.argv[1:]]))
