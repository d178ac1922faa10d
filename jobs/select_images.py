"""Select images on a cluster: ray job submit … -- python jobs/select_images.py --config select.yaml

Not select.py: Python looks for its own module `select` next to the file that it runs.
"""

import sys

from segray.cli import main

if __name__ == "__main__":
    sys.exit(main(["select", *sys.argv[1:]]))
