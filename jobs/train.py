"""Train a model on a cluster: ray job submit … -- python jobs/train.py --config train.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
