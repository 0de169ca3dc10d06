"""`pyflash doctor`: what it tells, and which settings it complains about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.machine import hardware, processor


def kept() -> dict[str, str]:
    """Those that say what is tested."""
    return {name: os.environ[name] for name in ("PYFLASH_LIBRARY", "PYFLASH_DEMO") if name in os.environ}


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYFLASH_")}
    inherited |= kept()
    return subprocess.run(
        [sys.executable, "-m", "pyflash", "doctor", *arguments], cwd=cwd, capture_output=True, encoding="utf-8",
        timeout=120, env={**inherited, **env},
    )


def diagnosis(cwd: Path, **env: str) -> dict[str, Any]:
    done = run("--json", cwd=cwd, **env)
    assert done.stdout.count("\n") == 1, done
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["done"] is True
    assert (done.returncode, bool(done.stderr)) == ((1, True) if found["problems"] else (0, False))
    return found


def test_everything_in_order(tmp_path: Path, demo_checkpoint: Path) -> None:
    found = diagnosis(tmp_path, PYFLASH_CACHE=str(tmp_path))
    assert found["version"] == pyflash.__version__ and found["problems"] == [] and found["warnings"] == []
    best = next(each.name for each in hardware.kernel_sets() if each.problem is None)
    assert found["kernel_set"] == best and {each["name"] for each in found["kernels"]} >= {"scalar", best}
    assert found["devices"] == hardware.devices() and found["devices"]["cpu"] == "ready"
    assert re.match("not built in|unusable: |loaded", found["devices"]["cuda"])
    assert found["memory"]["total"] == hardware.memory().total
    assert found["cache_folder"] == str(tmp_path) and found["demo_model_made"] is False
    assert found["demo_checkpoint"] == str(demo_checkpoint)
    assert found["environment"] == {"PYFLASH_CACHE": str(tmp_path), **kept()}
    assert 1 <= found["processor"]["physical"] <= found["processor"]["logical"]


def test_lines_for_people(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    names = [line[:16].strip() for line in done.stdout.splitlines()]
    assert {"pyflash", "library", "processor", "cores", "memory", "device cpu", "demo source", "demo model"} <= set(names)
    for each in hardware.kernel_sets():
        if each.problem:
            assert f"skipped: {each.problem}" in done.stdout


def test_a_model_that_is_there(tmp_path: Path, demo_model: Path) -> None:
    assert diagnosis(tmp_path, PYFLASH_CACHE=str(demo_model.parent))["demo_model_made"] is True


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PYFLASH_CPU", "mmx", ["mmx", "scalar", "models will not open"]),
        ("PYFLASH_TEMP", "warm", ["warm", "change or unset it"]),
        ("PYFLASH_THREADS", "0", ["0", "change or unset it"]),
        ("PYFLASH_CACHE_TYPE", "f17", ["reference"]),
        ("PYFLASH_GPU_LAYERS", "7", ['"cuda" cannot be used']),
        ("PYFLASH_DEVICE", "cuda", ['"cuda" cannot be used']),
    ],
)
def test_settings_that_keep_it_from_running(tmp_path: Path, name: str, value: str, words: list[str]) -> None:
    """Named here, and really refused by `run`."""
    done = run(cwd=tmp_path, **{name: value})
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("pyflash: error: ")
    problem = next(line for line in done.stdout.splitlines() if line.startswith("problem"))
    for word in (name, *words):
        assert word in problem and word in done.stderr
    refused = subprocess.run(
        [sys.executable, "-m", "pyflash", "run", "Hi", "-n", "1"], cwd=tmp_path, capture_output=True, timeout=120,
        env={**os.environ, name: value},
    )
    assert refused.returncode in (1, 2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PYFLASH_TEMPP", "1", ["no effect", "PYFLASH_TEMP"]),
        ("PYFLASH_MODEL", "nowhere.gguf", ["nowhere.gguf", "no file"]),
        ("PYFLASH_REPEAT", "often", ["pyflash bench", "often", "change or unset it"]),
        ("PYFLASH_CACHE", "{here}/file/cache", ["file", "PYFLASH_CACHE"]),
        ("PYFLASH_DEMO", "{here}", ["PYFLASH_DEMO", "no checkpoint folder"]),
    ],
)
def test_settings_that_spoil_a_part(
    tmp_path: Path, demo_checkpoint: Path, name: str, value: str, words: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    warnings = diagnosis(tmp_path, **{name: value.format(here=tmp_path)})["warnings"]
    assert len(warnings) == 1
    for word in words:
        assert word in warnings[0]


def test_every_variable_is_known(tmp_path: Path, demo_checkpoint: Path) -> None:
    """Those that the package reads itself; options bring theirs along."""
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(pyflash.__file__).parent.rglob("*.py"))
    names = set(re.findall(r'environ(?:ment)?(?:\.get\(|\[)"(PYFLASH_\w+)"', sources))
    assert {"PYFLASH_CACHE", "PYFLASH_CPU", "PYFLASH_DEMO", "PYFLASH_LIBRARY", "PYFLASH_STATE"} <= names
    names -= {"PYFLASH_CPU", "PYFLASH_DEMO", "PYFLASH_LIBRARY"}  # which cannot be any folder
    assert diagnosis(tmp_path, PYFLASH_CPU="scalar", **dict.fromkeys(names, str(tmp_path)))["warnings"] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set as Linux has them")
def test_limited_address_space(tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, resource.getrlimit(resource.RLIMIT_AS)[1]))

    done = subprocess.run([sys.executable, "-m", "pyflash", "doctor"], cwd=tmp_path, capture_output=True,
                          encoding="utf-8", timeout=120, preexec_fn=limit)
    assert done.returncode == 0 and "6.0 GB" in done.stdout and "ulimit -v unlimited" in done.stdout


# -- the processor, from files as Linux has them --


def linux(root: Path, **files: str) -> processor.Processor:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return processor.processor(root)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads files as Linux has them")
def test_processor_of_x86(tmp_path: Path) -> None:
    topology = "sys__devices__system__cpu__cpu{}__topology__thread_siblings_list"
    found = linux(tmp_path, proc__cpuinfo="processor\t: 0\nmodel name\t: Some CPU 3000\nflags\t\t: fpu avx avx2 fma\n",
                  **{topology.format(cpu): f"{cpu % 2},{cpu % 2 + 2}\n" for cpu in range(4)},
                  **{"sys__fs__cgroup__cpu.max": "150000 100000\n"})
    assert (found.name, found.physical, found.quota) == ("Some CPU 3000", 2, 1.5)
    assert found.flags == ("fma", "avx", "avx2")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads files as Linux has them")
def test_processor_of_arm_in_an_old_container(tmp_path: Path) -> None:
    found = linux(tmp_path, proc__cpuinfo="processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\n"
                  "CPU part\t: 0xd4f\n",
                  **{"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1\n",
                     "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n"})
    assert "0x41" in found.name and "0xd4f" in found.name
    assert (found.physical, found.quota, found.flags) == (None, None, ("asimd", "asimddp", "i8mm"))


GROUPS = [
    # version 2, nested: the least of the own group's and those above it; "max" is none
    ("0::/a/b\n", {"cpu.max": "max 100000\n", "a__cpu.max": "50000 100000\n", "a__b__cpu.max": "200000 100000\n"}, 0.5),
    ("0::/a/b\n", {"a__b__cpu.max": "150000 100000\n"}, 1.5),
    ("0::/host/path\n", {"cpu.max": "300000 100000\n"}, 3.0),  # a container that sees the host's path
    ("0::/a\n", {"b__cpu.max": "50000 100000\n"}, None),  # another's
    # version 1, also where the controller shares its folder, and beside version 2
    ("4:memory:/x\n3:cpu,cpuacct:/a\n", {"cpu,cpuacct__a__cpu.cfs_quota_us": "70000\n",
                                         "cpu,cpuacct__a__cpu.cfs_period_us": "100000\n"}, 0.7),
    ("3:cpuacct,cpu:/a\n", {"cpu__a__cpu.cfs_quota_us": "-1\n", "cpu__a__cpu.cfs_period_us": "100000\n",
                            "cpu__cpu.cfs_quota_us": "400000\n", "cpu__cpu.cfs_period_us": "100000\n"}, 4.0),
    ("1:name=systemd:/s\n0::/a\n", {"unified__a__cpu.max": "250000 100000\n"}, 2.5),
]  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads files as Linux has them")
@pytest.mark.parametrize(("own", "files", "quota"), GROUPS)
def test_quotas_of_nested_groups(tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    groups = {f"sys__fs__cgroup__{name}": text for name, text in files.items()}
    found = linux(tmp_path, proc__self__cgroup=own, **groups)
    assert found.quota == quota
