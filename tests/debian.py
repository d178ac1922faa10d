"""Programs of Debian's packages, fetched by apt into the user's cache, without rights."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def unpacked(name: str, packages: Sequence[str], *, needed: bool = False) -> Path:
    """The folder with these packages laid out, fetched when it is not there.

    needed: with the packages that they depend on, as far as this system lacks them. Raises RuntimeError where
    there is no apt or it fails.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segray-tests"
    target = caches / name
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RuntimeError(f"the tests with {name} fetch Debian's packages: no apt here")
    caches.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=caches) as scratch:
        folder = Path(scratch)
        for part in ("debs", "root"):
            (folder / part).mkdir()
        apt = private_apt(folder)
        environment = os.environ | {"TMPDIR": scratch}  # apt's own default may not be writable

        def run(*words: str) -> str:
            done = subprocess.run(
                [*apt, *words],
                cwd=folder / "debs", env=environment, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"apt-get {words[0]} failed: {done.stderr.strip()[-500:]}")
            return done.stdout

        run("update")
        if needed:
            uris = run("install", "--print-uris", "--no-install-recommends", *packages)
            packages = [line.split()[1].split("_")[0] for line in uris.splitlines()]
        run("download", *packages)
        for package in sorted((folder / "debs").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
        with suppress(OSError):  # another test run was faster
            (folder / "root").rename(target)
    return target


def private_apt(folder: Path) -> list[str]:
    """`apt-get` with its lists and what it fetches in a folder, so that it needs no rights."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    places = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    return ["apt-get", "-qq", *(word for name, value in places.items() for word in ("-o", f"{name}={value}"))]


SYSTEMD = (
    *("systemd", "libsystemd-shared", "libseccomp2", "libpam0g", "libaudit1", "libkmod2", "libapparmor1"),
    *("libselinux1", "libcap2", "libcap-ng0", "libcrypt1", "libblkid1", "libmount1", "libacl1"),
    *("libcryptsetup12", "libip4tc2", "libfdisk1", "libpcre2-8-0"),
)
"""`systemd-analyze` with the units that others refer to, and libraries that a container may lack."""


def systemd_analyze(*words: str, units: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze` says, in UTC; units: a folder whose units refer to each other."""
    root = Path("/") if shutil.which("systemd-analyze") else unpacked("systemd", SYSTEMD)
    libraries = [each.parent for each in root.glob("usr/lib/*/systemd/libsystemd-shared-*")]
    known = [*([units] if units else []), root / "lib/systemd/system"]
    environment = os.environ | {"TZ": "UTC", "SYSTEMD_UNIT_PATH": ":".join(map(str, known))}
    if root != Path("/"):
        found = [*libraries, *root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")]
        environment["LD_LIBRARY_PATH"] = ":".join(map(str, found))
    command = [str(root / "usr/bin/systemd-analyze"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def chromium() -> tuple[Path, dict[str, str]]:
    """Chromium's headless shell, the one of this system or fetched (100 MB), and its environment."""
    for name in ("chromium-headless-shell", "chromium", "google-chrome"):
        if found := shutil.which(name):
            return Path(found), {}
    root = unpacked("chromium", ["chromium-headless-shell"], needed=True)
    libraries = [*root.glob("usr/lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu/pulseaudio")]
    return root / "usr/lib/chromium/chromium-headless-shell", {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "FONTCONFIG_PATH": "/etc/fonts",
    }
