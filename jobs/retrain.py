"""Retrain a model on a cluster: ray job submit … -- python jobs/retrain.py --config retrain.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["retrain", *sys.argv[1:]]))
