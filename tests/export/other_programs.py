"""Run the blocks of docs/open.md that need other programs, each with `uv run --with`; print what they print.

FiftyOne and CVAT themselves are not among them.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tests.export.test_open import SECTIONS, blocks, lay

PROGRAMS = ("CVAT", "Label Studio", "supervision", "YOLO trainers")
"""Their last blocks; FiftyOne wants a database."""


def main() -> None:
    """Lay the data, then run each block in a fresh environment."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        lay(Path(name))
        for section in PROGRAMS:
            packages = re.findall(r"--with ([\w-]+)", SECTIONS[section]) or ["supervision"]
            if section == "YOLO trainers":
                exec(blocks(section, "python")[0], {})
            uv = ["uv", "run", "--no-project", *(word for each in packages for word in ("--with", each))]
            code = blocks(section, "python")[-1]
            done = subprocess.run([*uv, "python", "-c", code], capture_output=True, text=True)
            print(f"{section}: {done.stdout.strip() if done.returncode == 0 else done.stderr}")


if __name__ == "__main__":
    main()
