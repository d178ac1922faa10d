"""`--help` fits the terminal, says what a verb needs first, and loads nothing that takes a while."""

import contextlib
import os
import re
import subprocess
import sys

import pytest

from segray.cli import main
from segray.verbs import VERBS

HEAVY = ("torch", "torchvision", "ray", "segmentation_models_pytorch", "timm", "pyarrow", "pandas", "numpy")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with contextlib.suppress(SystemExit):
        main(arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_it_fits_the_terminal_and_breaks_no_word(
    verb: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not verb and columns < 80:
        return
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys, *filter(None, (verb, "--help")))
    long = [line for line in text.splitlines() if len(line) > columns and len(line.split()) > 1]
    assert [line for line in long if not line.lstrip().startswith("--")] == []  # a choice cannot be broken
    assert "maskrcnn_resnet50_fpn_v2" in text or verb != "train"
    assert "(default: None)" not in text
    assert "(default: [])" not in text
    assert not re.search(r"(dict|list|tuple)\[", text)


def test_groups(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = printed(capsys, "train", "--help")
    parts = (
        *("--data TEXT", "--epochs N", "\nmore options:", "--clip X", "\naugmentation:", "--augment.preset"),
        *("\nRay: where the job runs:", "--ray.address", "\nstorage: how URLs are opened:"),
        *("--storage.attempts", "\nstorage: S3", "--storage.s3.key SECRET", "\nexamples:"),
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert len(text[: text.index("\nmore options:")].split("\n  --")) < 30


def test_a_switch_is_shown_as_what_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "annotate", "--help") + printed(capsys, "train", "--help")
    for shown, hidden in (("  --no-location ", "  --location "), ("  --pretrained ", "--no-pretrained")):
        assert shown in text
        assert hidden not in text
    assert "  --augment.random-crop, --no-augment.random-crop\n" in text  # the preset decides


@pytest.mark.parametrize("verb", VERBS)
def test_it_loads_nothing_heavy(verb: str) -> None:
    program = f"""
import sys
from segray.cli import main
try:
    main(["{verb}", "--help"])
except SystemExit:
    pass
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "usage: " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_names_what_runs_the_verb(verb: str) -> None:
    assert callable(VERBS[verb].function())


def test_output_that_nobody_reads_to_its_end_gives_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "segray.cli", "models"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "segray: the output was not read to its end\n"
