"""Model files that carry code: `segray annotate` refuses them before work begins, and runs none of it."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segray.models.card_peek import peeked_card
from segray.models.modelfile import FORMAT
from segray.storage import StorageSettings
from tests.bulk.runs import annotate
from tests.sources.pictures import jpeg


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Module(nn.Module):
    """A whole module instead of its weights, as `torch.save(model)` writes it, with a trap inside."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.trap = Trap(mark)


def torch_script(path: Path, mark: Path) -> None:
    """TorchScript, whose archive holds Python source."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def program(path: Path, mark: Path) -> None:
    """A zip that Python would run."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", f"open({str(mark)!r}, 'w')")
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(mark), protocol=2))
        archive.writestr("archive/version", "3\n")


def old_tar(path: Path, mark: Path) -> None:
    """The format of torch before 0.1.10: a tar of pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Trap(mark), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


FILES: dict[str, Callable[[Path, Path], object]] = {
    "pickle.pth": lambda path, mark: path.write_bytes(pickle.dumps({"model": Trap(mark)}, protocol=2)),
    "state.pth": lambda path, mark: torch.save({"model": {"layer.weight": Trap(mark)}}, path),
    "old.pth": lambda path, mark: torch.save({"a": Trap(mark)}, path, _use_new_zipfile_serialization=False),
    "module.pth": lambda path, mark: torch.save(Module(mark), path),
    "card.pt": lambda path, mark: torch.save({"format": FORMAT, "arch": Trap(mark), "state_dict": {}}, path),
    "script.pt": torch_script,
    "program.pt": program,
    "tar.pth": old_tar,
    "string.pt": lambda path, mark: torch.save({"state_dict": "abc"}, path),
    "numbers.pt": lambda path, mark: torch.save({1: 2}, path),
    "none.pt": lambda path, mark: torch.save({"state_dict": {1: None}, ("a",): 2}, path),
    "source.py": lambda path, mark: path.write_text(f"open({str(mark)!r}, 'w')"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", FILES)
def test_code_is_refused_and_not_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    FILES[name](tmp_path / name, tmp_path / "ran")
    peeked_card(str(tmp_path / name), StorageSettings())
    assert not (tmp_path / "ran").exists()
    code = annotate(
        tmp_path / "a.jpg", "--output", tmp_path / "out", "--weights", tmp_path / name, "--dry-run"
    )
    said = capsys.readouterr().err
    assert code == 2
    assert f"weights {tmp_path / name}: " in said
    assert "Traceback" not in said
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
