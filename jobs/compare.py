"""Compare models on a cluster: ray job submit … -- python jobs/compare.py --config compare.yaml"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
