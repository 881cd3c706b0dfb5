"""`rlhf plugins freeze`: the installed plugins, or those that a run was made with, as requirements for pip.

    rlhf plugins freeze > requirements.txt
    rlhf plugins freeze runs/grpo-20260101-120000 --install-command

Where a distribution came from is read off PEP 610's direct_url.json, which pip writes. What was installed from a local
folder is on no index, so it becomes a comment.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rlhf_core import __version__
from rlhf_core.catalog import Catalog, normalize
from rlhf_core.errors import UserError, describe


@dataclass(frozen=True)
class Pin:
    """One distribution: its requirement for pip, if it has one. `note` says why not, or what else there is to know."""

    requirement: str | None
    note: str = ""

    def __str__(self) -> str:
        if self.requirement is None:
            return f"# {self.note}"
        return self.requirement + (f"  # {self.note}" if self.note else "")


@click.command()
@click.argument("run_folder", required=False, metavar="[RUN_FOLDER]")
@click.option("--install-command", is_flag=True, help="Print one command line of pip instead.")
def freeze(run_folder: str | None, install_command: bool) -> None:
    """Print the core and the installed plugins as requirements; with RUN_FOLDER, what that run was made with.

    rlhf plugins freeze runs/grpo-20260101-120000 --install-command
    """
    pins = of_run(Path(run_folder)) if run_folder else of_environment()
    if not install_command:
        for pin in pins:
            click.echo(str(pin))
        return
    for pin in pins:
        if pin.requirement is None or pin.note:
            click.echo(str(Pin(None, pin.note)))
    click.echo(shlex.join(["pip", "install", *(pin.requirement for pin in pins if pin.requirement)]))


def of_environment() -> list[Pin]:
    """rlhf-core and every distribution that holds plugins, as they are installed."""
    entries = sorted(Catalog().all_entries(), key=lambda e: normalize(e.distribution))
    versions = {"rlhf-core": __version__, **{e.distribution: e.version for e in entries}}
    return [pin(name, version) for name, version in versions.items()]


def of_run(folder: Path) -> list[Pin]:
    """What `manifest.json` says. Raises `UserError` where there is none."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        versions, plugins, python = manifest["versions"], manifest["plugins"], manifest["python"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else describe(error)
        raise UserError(
            f"{folder} is no run's folder: its manifest.json can't be read ({reason}). Give a folder as rlhf run "
            "leaves it, such as runs/grpo-20260101-120000"
        ) from error
    pins = [Pin(None, f"Python {python}, on which the run was made")]
    pins += [pin(name, version) for name, version in versions.items()]
    found: dict[str, Pin] = {}
    for line in plugins:  # "method grpo: rlhf-method-grpo 0.1.0", or "reward ./my.py:near: by path"
        what, _, origin = line.rpartition(": ")
        name, _, version = origin.rpartition(" ")
        if origin == "by path":
            found.setdefault(what, Pin(None, f"{what}: given by path"))
        else:
            found.setdefault(name, pin(name, version))
    return [*pins, *found.values()]


def pin(name: str, version: str) -> Pin:
    """`version` of a distribution, from where it is installed if that is the version installed."""
    public, _, label = version.partition("+")
    source = _direct_url(name, version)
    if source is None:
        return Pin(f"{name}=={public}", f"{name} was {version}" if label else "")
    url = str(source["url"])
    if vcs := source.get("vcs_info"):
        return Pin(f"{name} @ {vcs['vcs']}+{_without_password(url)}@{vcs['commit_id']}" + _subdirectory(source))
    if "dir_info" in source or url.startswith("file:"):
        editable = source.get("dir_info", {}).get("editable", False)
        folder = url.removeprefix("file://")
        how = "editable, from" if editable else "from"
        return Pin(None, f"{name}=={version} is installed {how} {folder}, which is on this machine only")
    digest = (source.get("archive_info") or {}).get("hashes", {}).get("sha256")
    fragment = f"#sha256={digest}" if digest else ""
    return Pin(f"{name} @ {_without_password(url)}{fragment or _subdirectory(source)}")


def _direct_url(name: str, version: str) -> dict[str, Any] | None:
    try:
        distribution = importlib.metadata.distribution(name)
        text = distribution.read_text("direct_url.json") if distribution.version == version else None
        return json.loads(text) if text else None
    except (importlib.metadata.PackageNotFoundError, json.JSONDecodeError):
        return None


def _subdirectory(source: dict[str, Any]) -> str:
    return f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""


def _without_password(url: str) -> str:
    """What is printed is passed on, and a token in it would be too."""
    return re.sub(r"(?<=://)[^/@]*@(?!$)", "", url) if url.startswith("http") else url
