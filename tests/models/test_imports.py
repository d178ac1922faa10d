"""torchvision without the compiler, each time in a process of its own."""

import subprocess
import sys

IMPORTED = "from segray.models.imports import import_torchvision; import_torchvision(); import sys, torch\n"


def printed(program: str) -> str:
    """What the program says."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_compiler_is_left_out() -> None:
    names = (
        '"torch._dynamo" in sys.modules, "torch._inductor" in sys.modules, "torchvision.ops" in sys.modules'
    )
    assert printed(IMPORTED + f"print({names})") == "False False True"


def test_the_compiler_is_torchs_own_afterwards() -> None:
    program = "print(torch._dynamo.__file__ is not None, torch.compile(lambda x: x + 1, backend='eager')(2))"
    assert printed(IMPORTED + program) == "True 3"


def test_roi_align_asks_the_compiler() -> None:
    """Where the answer matters: its own arithmetic in place of a kernel that is not deterministic."""
    program = """
import torchvision
from torchvision.ops import roi_align
torch.use_deterministic_algorithms(True)
x, boxes = torch.arange(64.0).view(1, 1, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 6.0, 6.0]])
sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
print(roi_align(x, boxes, 2, sampling_ratio=2).flatten().tolist(), "torch._dynamo" in sys.modules)
"""
    plain = "import sys, torch\n" + program
    assert printed(IMPORTED + program) == printed(plain)


def test_what_is_there_already_stays() -> None:
    program = "import torch._dynamo as known\n" + IMPORTED + "print(sys.modules['torch._dynamo'] is known)"
    assert printed(program) == "True"
