"""The example that copies a disk image, checked by a tool that no one here wrote."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "copy_image.py"
MIB = 1 << 20


def _image(path: Path, size: int, seed: int = 0) -> Path:
    """Data, holes, and zeroes that are stored, all over the place."""
    chance = random.Random(seed)
    with path.open("wb") as f:
        f.truncate(size)
        for _ in range(24):
            f.seek(chance.randrange(size - 300_000))
            f.write(chance.randbytes(chance.randrange(1, 200_000)))
            f.seek(chance.randrange(size - 300_000))
            f.write(bytes(chance.randrange(100_000, 300_000)))
    return path


def _copy(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(EXAMPLE), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False
    )


def _same(a: Path, b: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    words = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(a), str(b)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--direct"], ["--jobs", 1, "--verify"]])
def test_a_copy_is_the_same(disk: Path, flags: list[object]) -> None:
    source = _image(disk / "source", 16 * MIB + 12_345)
    target = disk / "target"
    target.write_bytes(b"what was here before" * MIB)
    done = _copy(source, target, "--verify", *flags)
    assert done.returncode == 0, done.stderr
    assert f"{16 * MIB + 12_345} bytes" in done.stdout
    assert target.read_bytes() == source.read_bytes()
    assert os.stat(target).st_blocks <= os.stat(source).st_blocks
    _same(source, target)


def test_an_empty_image_and_one_hole(disk: Path) -> None:
    for size in (0, 5 * MIB):
        with (disk / "source").open("wb") as f:
            f.truncate(size)
        assert _copy(disk / "source", disk / "target", "--verify").returncode == 0
        assert (disk / "target").stat().st_size == size
        assert os.stat(disk / "target").st_blocks == 0


def test_a_failure_says_what(disk: Path) -> None:
    done = _copy(disk / "none", disk / "target")
    assert done.returncode == 1
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_is_not_copied_onto_itself(disk: Path) -> None:
    source = _image(disk / "source", MIB)
    before = source.read_bytes()
    (disk / "hard").hardlink_to(source)
    (disk / "soft").symlink_to(source)
    for target in ("source", "hard", "soft"):
        done = _copy(source, disk / target)
        assert done.returncode == 1
        assert "one file" in done.stderr
        assert "Traceback" not in done.stderr
        assert source.read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_gigabytes_stay_below_64_mebibytes(disk: Path) -> None:
    free = shutil.disk_usage(disk).free
    if free < 3 << 30:
        pytest.skip(f"only {free >> 20} MiB are free")
    source, target = disk / "source", disk / "target"
    block = random.Random(1).randbytes(MIB)
    with source.open("wb") as f:
        f.truncate(4 << 30)
        for i in range(0, 4096, 4):  # a quarter of it is data
            f.seek(i * MIB)
            f.write(block)
    code = (
        "import resource, runpy, sys\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"sys.argv = ['copy_image', {str(source)!r}, {str(target)!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown_kib = int(done.stdout.split()[-1])
    assert grown_kib < 64 * 1024
    _same(source, target)
