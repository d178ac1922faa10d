"""Units that systemd takes without a word, and no misspelt name in them."""

import re
import shlex
import sysconfig
from pathlib import Path

import pytest

from segray.cli import main
from tests.debian import systemd_analyze
from tests.schedule.made import REMOTE, fake_segray, written

pytestmark = pytest.mark.usefixtures("systemd")


def said_of(folder: Path, texts: dict[str, str]) -> str:
    """What systemd says of a service and its timer; nothing when they are right."""
    folder.mkdir(exist_ok=True)
    for suffix, text in texts.items():
        (folder / f"nightly{suffix}").write_text(text)
    done = systemd_analyze(
        "verify", *(str(folder / f"nightly{each}") for each in (".service", ".timer")), units=folder
    )
    return done.stdout + done.stderr + f"rc {done.returncode}" * (done.returncode != 0)


def units(folder: Path, *options: str, cron: str = "0 3 13 * 5") -> dict[str, str]:
    files = written(folder, "systemd", "--name", "nightly", *options, cron=cron)
    del files[".yaml"]
    return files


@pytest.mark.parametrize("options", [(), ("--time-zone", "Europe/Berlin", "--retries", "0")])
def test_systemd_takes_them_and_no_misspelt_name(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / 'a "b" 5%h $HOME \\x'
    odd.mkdir()
    monkeypatch.chdir(odd)
    programs = tmp_path / "5%h $HOME;"
    programs.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(fake_segray(programs, 0).parent))
    right = units(odd / "made", *options)
    assert said_of(tmp_path / "right", right) == ""
    slips = 0
    for suffix, text in right.items():
        for key in dict.fromkeys(re.findall(r"^(\w+)=|^\[(\w+)\]", text, re.MULTILINE)):
            name = "".join(key)
            wrong = right | {suffix: re.sub(rf"^(\[?{name})(=|\])", r"\1x\2", text, flags=re.MULTILINE)}
            assert said_of(tmp_path / "wrong", wrong) != "", name
            slips += 1
    assert slips > 15


def test_what_the_units_say(tmp_path: Path) -> None:
    folder = tmp_path / 'a 5%h $b "\\'
    made = units(folder / "0", "--time-zone", "Europe/Berlin", "--retries", "2")
    service = dict(re.findall(r"^(\w+)=(.*)", made[".service"], re.MULTILINE))
    assert service["SuccessExitStatus"] == "4"
    assert service["RestartPreventExitStatus"] == "2 3 5"
    assert (service["Restart"], service["StartLimitBurst"]) == ("on-failure", "3")
    assert int(service["StartLimitIntervalSec"]) == 43_200
    assert re.findall("^OnCalendar=(.*)", made[".timer"], re.MULTILINE) == [
        "*-*-13 03:00:00 Europe/Berlin", "Fri *-*-* 03:00:00 Europe/Berlin",
    ]  # fmt: skip
    for calendar in re.findall("^OnCalendar=(.*)", made[".timer"], re.MULTILINE):
        assert systemd_analyze("calendar", calendar).returncode == 0
    words = shlex.split(service["ExecStart"].replace("$$", "$").replace("%%", "%"))
    assert words[1:] == ["annotate", "--config", f'{tmp_path}/a 5%h $b "\\/0/nightly.yaml']
    assert service["EnvironmentFile"] == f'-{tmp_path}/a 5%%h $b "\\/0/nightly.env'
    assert "%%h $$b" in service["ExecStart"]
    assert "Restart=no\n" in units(tmp_path / "1", "--retries", "0")[".service"]


def test_a_program_that_systemd_would_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/home/me/it's")
    assert main(["schedule", "--cron", "0 3 * * *", "--as", "systemd", *REMOTE]) == 2
    assert "cannot start a program with quotes" in capsys.readouterr().err
