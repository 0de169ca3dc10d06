"""packaging/: the service and the image say what the command line knows, and are shut as docs/serve.md tells."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"
UNIT = (PACKAGING / "pyflash.service").read_text(encoding="utf-8")
IMAGE = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")


def options() -> set[str]:
    from pyflash.cli.commands.serve import serve

    return {name for parameter in serve.params for name in parameter.opts}


@pytest.mark.parametrize("text", [UNIT, IMAGE], ids=["unit", "image"])
def test_options_are_the_commands(text: str) -> None:
    commands = [line for line in text.splitlines() if re.match(r"(ExecStart|ENTRYPOINT|Environment=\"PYFLASH_SERVE)", line.lstrip("# "))]
    used = set(re.findall(r"--[a-z][a-z-]+", " ".join(commands)))
    assert used and used <= options()


def test_the_unit_gives_no_rights() -> None:
    told = dict(line.split("=", 1) for line in UNIT.splitlines() if "=" in line and not line.startswith("#"))
    wanted = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "UMask": "0077",
              "CapabilityBoundingSet": "", "StateDirectoryMode": "0700", "CacheDirectoryMode": "0700"}  # fmt: skip
    assert {key: told[key] for key in wanted} == wanted
    assert "PYFLASH_API_KEY" not in UNIT  # whoever may see the unit sees its environment


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    (tmp_path / "pyflash.service").write_text(UNIT.replace("/opt/pyflash/bin/pyflash", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", tmp_path / "pyflash.service"], capture_output=True, text=True)
    assert done.returncode == 0 and "pyflash.service" not in done.stderr, done.stderr


def test_the_image_runs_without_rights_or_compiler() -> None:
    last = IMAGE.split("\nFROM ")[-1]
    assert re.search(r"^USER (?!root|0$)\w+$", last, re.MULTILINE) and last.index("USER") < last.index("ENTRYPOINT")
    assert "apt-get" not in last and "HEALTHCHECK" in last and "/health" in last and "--no-auth" not in IMAGE
