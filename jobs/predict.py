"""Make label maps on a cluster: ray job submit … -- python jobs/predict.py --config predict.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
