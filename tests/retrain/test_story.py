"""The walk-through of `docs/retrain.md` on real pictures, block by block, each command with its exit code."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segray.cli import main
from segray.registry.aliases import Aliases
from segray.registry.registry import Registry
from segray.storage import StorageSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/retrain.md"
LABELS = Path("tests/data/nuclei-story")
FIRST, MORE, MIXED_UP, BACK = (
    *("First labels", "New labels of a new kind of picture", "Labels that got mixed up"),
    "A way back",
)
SPOILT_IN = 6
"""Epochs."""


class Story:
    """The page, acted out in a folder; no block twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chapters = dict(chapters())
        self._told: set[str] = set()

    def up_to(self, title: str) -> None:
        """Act out all chapters before the one of this title, and that one."""
        for each in (FIRST, MORE, MIXED_UP, BACK):
            if each not in self._told:
                self._told.add(each)
                for language, text in self._chapters[each]:
                    act(language, text)
            if each == title:
                return

    def train_less(self) -> None:
        """From now on: wrong labels spoil a champion in fewer epochs than right ones make one."""
        path = self.folder / "retrain.yaml"
        short, found = re.subn(
            r"^  epochs: \d+$", f"  epochs: {SPOILT_IN}", path.read_text(), flags=re.MULTILINE
        )
        assert found == 1
        path.write_text(short)

    def mix_up(self, seed: int) -> None:
        """Mend the labels and mix them up in another way than the page."""
        shutil.copy("nuclei/more.json", "nuclei/instances.json")
        (text,) = (text for language, text in self._chapters[MIXED_UP] if language == "python")
        assert "random.seed(0)" in text
        act("python", text.replace("random.seed(0)", f"random.seed({seed})"))

    def decision(self, number: int) -> Any:
        """Of a round."""
        return json.loads((self.folder / f"rounds/rounds/{number:04d}/decision.json").read_text())

    def groups(self, number: int) -> dict[str, Any]:
        """Of its decision, by name."""
        return {row["name"]: row for row in self.decision(number)["groups"]}

    def splits(self, number: int) -> dict[str, str]:
        """Name of a picture -> its split in a round."""
        frozen = json.loads((self.folder / f"rounds/rounds/{number:04d}/labels.json").read_text())
        return {Path(image["file_name"]).name: image["split"] for image in frozen["images"]}

    @property
    def last(self) -> Any:
        """The record of the last round."""
        return json.loads((self.folder / "rounds/run.json").read_text())

    @property
    def aliases(self) -> Aliases:
        """As they are now."""
        return Registry(str(self.folder / "models"), StorageSettings()).aliases("nuclei")


def chapters() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(Title, its blocks: language and text), in the order of the page."""
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        title = part.partition("\n")[0]
        yield title, re.findall(r"^```(\w+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)


def act(language: str, text: str) -> None:
    """Do what a block says, in the present folder; every call of segray names its exit code."""
    if language == "python":
        exec(text, {})
        return
    for line in text.splitlines():
        command, _, words = line.partition("# exit code ")
        if "segray" not in shlex.split(command)[:3]:
            subprocess.run(shlex.split(command), check=True)
            continue
        assert shlex.split(command)[:3] == ["uv", "run", "segray"]
        assert main(shlex.split(command)[3:]) == int(words), line


@pytest.fixture(scope="module")
def story(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """In a fresh folder, with the file of settings that the page shows."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(ROOT / LABELS, folder / LABELS)
    (settings,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "retrain.yaml").write_text(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Story(folder)


def test_the_first_labels_make_a_champion(story: Story) -> None:
    story.up_to(FIRST)
    decision = story.decision(1)
    assert decision["promoted"]
    assert decision["gain"] is None
    (group,) = decision["groups"]
    assert (group["name"], group["images"], group["judged"]) == ("fluorescence", 4, True)
    assert group["challenger"] > 0.2
    assert (
        story.aliases.history[0].after
        == json.loads((story.folder / "rounds/rounds/0001/run.json").read_text())["version"]
    )


def test_labels_of_a_new_kind_make_a_better_one(story: Story) -> None:
    story.up_to(MORE)
    decision, groups = story.decision(2), story.groups(2)
    assert decision["promoted"]
    assert decision["gain"]["lower"] > 0
    assert {name: row["images"] for name, row in groups.items()} == {"fluorescence": 4, "stained": 6}
    assert groups["stained"]["champion"] < 0.02
    assert groups["stained"]["challenger"] > groups["stained"]["champion"] + 0.05
    assert groups["fluorescence"]["challenger"] > groups["fluorescence"]["champion"] - 0.2
    before, after = story.splits(1), story.splits(2)
    assert {name: after[name] for name in before} == before
    assert sorted(after.values()).count("test") == 10
    aliases = story.aliases
    assert [event.what for event in aliases.history[:2]] == ["promote", "promote"]
    assert story.decision(2)["champion_version"] == aliases.history[0].after


def test_mixed_up_labels_are_refused(story: Story, pytestconfig: pytest.Config) -> None:
    """As often as `--shuffles` says; the first time as on the page."""
    story.up_to(MORE)
    story.train_less()
    story.up_to(MIXED_UP)
    champion = story.aliases.champion
    assert champion == story.aliases.history[1].after
    for trial in range(pytestconfig.getoption("--shuffles")):
        if trial:
            story.mix_up(trial)
            assert main(["retrain", "--config", "retrain.yaml"]) == 5
        decision = story.decision(3 + trial)
        assert not decision["promoted"]
        assert decision["champion_version"] == champion
        assert decision["gain"]["difference"]["figure"] < 0
        assert story.last["data"]["changed"] > 10
        assert (story.aliases.champion, story.aliases.challenger) == (champion, story.last["version"])
        assert story.aliases.history[-1].what == "refuse"
    assert (story.folder / "rounds/rounds/0003/report.html").read_text().count("Refused") > 0


def test_there_is_a_way_back(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    story.up_to(BACK)
    aliases = story.aliases
    assert aliases.champion == aliases.history[0].after
    assert aliases.history[-1].what == "rollback"
    told = capsys.readouterr().out
    assert "a round would begin" in told


def test_the_files_that_the_page_names(story: Story) -> None:
    story.up_to(FIRST)
    for name in re.findall(r"`(rounds/[\w./]+\.\w+)`", PAGE.read_text()):
        assert (story.folder / name).is_file(), name
    for name in re.findall(r"\]\(([\w./]+\.md)\)", PAGE.read_text()):
        assert (PAGE.parent / name).is_file(), name
