"""Programs of Debian's packages, where there is an apt to fetch them."""

import shutil

import pytest


@pytest.fixture
def apt(request: pytest.FixtureRequest) -> None:
    """For tests that fetch one."""
    if request.config.getoption("without_slurm"):
        pytest.skip("--without-slurm: no apt")


@pytest.fixture
def systemd(request: pytest.FixtureRequest) -> None:
    """For tests that use `systemd-analyze`, which may be on this machine."""
    if shutil.which("systemd-analyze") is None:
        request.getfixturevalue("apt")
