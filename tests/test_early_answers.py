"""Wrong weights, data and architectures are told before torch and Ray are loaded, all problems at once."""

import subprocess
import sys
from pathlib import Path

import pytest

NUCLEI = Path(__file__).parent / "data/nuclei"
CASES = {
    "annotate nowhere --weights nuclei-smal": [
        "weights 'nuclei-smal': unknown name; did you mean nuclei-small?",
        "nowhere: no such file, folder or bucket",
    ],
    f"annotate {NUCLEI}/images --weights no.pt": ["weights {here}/no.pt: no such file"],
    f"annotate {NUCLEI}/images --weights ./": ["weights {here}: a folder, not a file"],
    f"annotate {NUCLEI}/images --weights python:x": ["weights 'python:x': write python:module:factory"],
    f"predict {NUCLEI}/images --weights nuclei-small": ["weights nuclei-small: finds instances"],
    f"predict {NUCLEI}/images --weights no.pt": ["weights {here}/no.pt: no such file"],
    f"evaluate --weights no.pt --data {NUCLEI}": ["weights {here}/no.pt: no such file"],
    f"compare --weights no.pt,nuclei-small --data {NUCLEI}/images": [
        "weights {here}/no.pt: no such file",
        "weights nuclei-small: finds instances",
    ],
    "train --data nowhere": ["nowhere: the file is not there"],
    "train --data nowhere --arch compact-maskrcnn": ["nowhere/instances.json: the file is not there"],
    f"train --data {NUCLEI} --arch unett": ["arch: unknown architecture 'unett'; did you mean unet?"],
    f"train --data {NUCLEI} --arch unet:resnet5": [
        "arch: unet has no encoder 'resnet5'; did you mean resnet50"
    ],
}


@pytest.mark.parametrize("command", CASES)
def test_it_is_told_without_torch_and_ray(command: str, tmp_path: Path) -> None:
    program = f"""
import sys
from segray.cli import main
code = main([*{command.split()!r}, "--output", "out"])
print(code, [name for name in ("torch", "ray", "segmentation_models_pytorch") if name in sys.modules])"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "2 []\n", done.stderr
    for line in CASES[command]:
        assert line.format(here=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
