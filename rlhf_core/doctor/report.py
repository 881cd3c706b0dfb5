"""The checks as JSON, and as the text that a bug report needs: without secrets, and the home folder as ~."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_core import __version__
from rlhf_core.catalog import Catalog
from rlhf_core.credentials import masked
from rlhf_core.doctor import Check
from rlhf_core.doctor.packages import TOLD, version_of
from rlhf_core.doctor.system import home_as_tilde

# Variables whose values are told. Of all others not even the names are.
VARIABLES = (
    *(
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
    ),
    *(
        "NCCL_P2P_DISABLE",
        "NCCL_IB_DISABLE",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
    ),
    *("TRANSFORMERS_OFFLINE", "ACCELERATE_TORCH_DEVICE", "RLHF_DISABLE_PLUGINS", "LANG", "LC_ALL"),
)


def works(checks: Sequence[Check]) -> bool:
    return all(check.status != "fail" for check in checks)


def as_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """For --json."""
    entries = Catalog().entries()
    return {
        "works": works(checks),
        "rlhf_core": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in TOLD if (version := version_of(name))},
        "plugins": {entry.distribution: entry.version for entry in entries},
        "environment": {name: _told(os.environ[name]) for name in VARIABLES if name in os.environ},
        "devices": [check.values for check in checks if check.values],
        "checks": [
            {"name": c.name, "status": c.status, "text": _told(c.text), "advice": _told(c.advice)} for c in checks
        ],
    }


def as_text(checks: Sequence[Check]) -> str:
    """For a bug report, as GitHub shows it."""
    found = as_dict(checks)
    of_commit = f" (commit {found['commit']})" if found["commit"] else ""
    lines = [f"rlhf-core {found['rlhf_core']}{of_commit}, Python {found['python']}, {found['platform']}"]
    for title, separator in (("packages", " "), ("plugins", " "), ("environment", "=")):
        pairs = [f"{name}{separator}{value}" for name, value in found[title].items()]
        lines.append(f"{title}: {', '.join(pairs) or 'none'}")
    width = max(len(check.name) for check in checks)
    lines += [f"{c['status']:8}{c['name']:{width + 2}}{c['text']}" for c in found["checks"]]
    return "\n".join(["```text", *lines, "```"])


def _told(text: str) -> str:
    return home_as_tilde(masked(text)).replace("```", "'''")


def commit() -> str | None:
    """The commit of the core, if it is installed in place, from a git checkout."""
    try:
        source = importlib.metadata.distribution("rlhf-core").read_text("direct_url.json")
        if not source or not json.loads(source).get("dir_info", {}).get("editable"):
            return None
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
        return done.stdout.strip() if done.returncode == 0 else None
    return None
