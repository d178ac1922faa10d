"""Score predictions on a cluster: ray job submit … -- python jobs/evaluate.py --config evaluate.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
