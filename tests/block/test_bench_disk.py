"""The twin of qemu-img bench: the same flags, comparable numbers, honest results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import _bench_disk

if TYPE_CHECKING:
    from pathlib import Path


def _bench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "aioqemu", "bench-disk", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )


def _json(*words: object) -> Any:
    done = _bench(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_reads(image: Path, engine: str, direct: bool, fdmon: str) -> None:
    cache = "none" if direct else "writeback"
    found = _json(
        *("-c", 500, "-d", 8, "-s", "4k", "-f", "raw", "-t", cache),
        *("-i", "native" if engine == "linux_aio" else engine, "--fdmon", fdmon, image),
    )
    assert (found["count"], found["depth"], found["size"]) == (500, 8, 4096)
    assert (found["engine"], found["fdmon"]) == (engine, fdmon)
    assert found["iops"] > 0
    latency = found["latency_us"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


@pytest.mark.parametrize("drain", [True, False])
def test_it_writes_what_it_says(image: Path, drain: bool) -> None:
    before = image.read_bytes()
    _json(
        *("-w", "-c", 20, "-d", 4, "-s", 1024, "-S", 4096, "-o", 8192),
        *("--pattern", "0xa5", "--flush-interval", 5, image),
        *([] if drain else ["--no-drain"]),
    )
    wanted = bytearray(before)
    for at in range(8192, 8192 + 20 * 4096, 4096):
        wanted[at : at + 1024] = b"\xa5" * 1024
    assert image.read_bytes() == wanted


def test_for_people(image: Path) -> None:
    done = _bench("-c", 10, "-d", 2, "-t", "none", "-n", image)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == (
        "Sending 10 read requests, 4096 bytes each, 2 in parallel "
        "(starting at offset 0, step size 4096)"
    )
    assert second.startswith("Run completed in ")
    assert "engine linux_aio" in done.stdout


def test_it_wraps_as_qemu_does() -> None:
    options = argparse.Namespace(count=7, size=4, step=6, offset=2, random=False)
    places = list(_bench_disk.offsets(options, 20))
    assert places[:3] == [2, 8, 14]
    assert all(0 <= at <= 16 for at in places)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("0xff", 255),
        ("0x1000", 4096),
        ("10", 10),
        ("3b", 3),
        ("4K", 4096),
        ("2g", 2 << 30),
    ],
)
def test_sizes_are_written_as_for_qemu(text: str, wanted: int) -> None:
    assert _bench_disk.size(text) == wanted


@pytest.mark.parametrize("flags", [["-n"], ["-i", "native"], ["-i", "linux_aio"]])
def test_linux_aio_names_the_flag_that_it_needs(image: Path, flags: list[str]) -> None:
    done = _bench(*flags, image)
    assert done.returncode == 1
    assert "it needs -t none" in done.stderr


def test_mistakes(image: Path, tmp_path: Path) -> None:
    for words in (
        ("-c", 0, image),
        ("-s", "4x", image),
        ("-t", "magic", image),
        ("-i", "native", image),
        ("-o", "2M", image),
        ("-w", "--pattern", 256, image),
        ("-d", 4, "--flush-interval", 8, image),
        ("-w", "-d", 4, "--flush-interval", 3, image),
        (tmp_path / "none",),
    ):
        done = _bench(*words)
        assert done.returncode != 0
        assert done.stderr
        assert "Traceback" not in done.stderr
