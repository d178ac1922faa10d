"""Fuse two runs on a cluster: ray job submit … -- python jobs/panoptic.py --config panoptic.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["panoptic", *sys.argv[1:]]))
