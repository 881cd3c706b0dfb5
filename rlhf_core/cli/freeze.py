"""`rlhf plugins freeze`: the installed plugins, or those that a run was made with, as requirements for pip.

    rlhf plugins freeze > requirements.txt
    rlhf plugins freeze runs/grpo-20260101-120000 --install-command

The source of a distribution is in PEP 610's direct_url.json, which pip writes. One that was installed from a local
folder is on no index, so it becomes a comment.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click

from rlhf_core import __version__
from rlhf_core.catalog import Catalog, normalize
from rlhf_core.errors import UserError, describe

Pin = tuple[str, str]  # a requirement for pip and a comment, of which one may be empty


@click.command()
@click.argument("run_folder", required=False, metavar="[RUN_FOLDER]")
@click.option("--install-command", is_flag=True, help="Print one command line of pip instead.")
def freeze(run_folder: str | None, install_command: bool) -> None:
    """Print the core and the installed plugins as requirements; with RUN_FOLDER, those of that run.

    rlhf plugins freeze runs/grpo-20260101-120000 --install-command
    """
    if run_folder:
        pins = of_run(Path(run_folder))
    else:
        entries = sorted(Catalog().all_entries(), key=lambda e: normalize(e.distribution))
        versions = {"rlhf-core": __version__, **{e.distribution: e.version for e in entries}}
        pins = [pin(name, version) for name, version in versions.items()]
    lines = ["  ".join(filter(None, each)) for each in pins]
    if install_command:
        lines = [comment for _, comment in pins if comment]
        lines.append(shlex.join(["pip", "install", *(requirement for requirement, _ in pins if requirement)]))
    click.echo("\n".join(lines))


def of_run(folder: Path) -> list[Pin]:
    """The distributions in `manifest.json`. Raises `UserError` if it can't be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        versions, plugins, python = manifest["versions"], manifest["plugins"], manifest["python"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else describe(error)
        raise UserError(
            f"{folder} is not a run's folder: its manifest.json can't be read ({reason}). Give a folder that rlhf run "
            "wrote, such as runs/grpo-20260101-120000"
        ) from error
    pins = [("", f"# Python {python}, on which the run was made")]
    pins += [pin(name, version) for name, version in versions.items()]
    for line in plugins:  # "method grpo: rlhf-method-grpo 0.1.0", or "reward ./my.py:near: by path"
        what, _, origin = line.rpartition(": ")
        pins.append(("", f"# {what}: given by path") if origin == "by path" else pin(*origin.rsplit(" ", 1)))
    return list(dict.fromkeys(pins))


def pin(name: str, version: str) -> Pin:
    """The requirement of a distribution: its source if this version is installed, else its version."""
    source = _direct_url(name, version)
    if not source:
        public, _, label = version.partition("+")
        return f"{name}=={public}", f"# {name} was {version}" if label else ""
    url = str(source["url"])
    if "dir_info" in source or (url.startswith("file:") and "vcs_info" not in source):
        how = "editable, from" if source.get("dir_info", {}).get("editable") else "from"
        folder = url.removeprefix("file://")
        return "", f"# {name}=={version} is installed {how} {folder}, which is on this machine only"
    if url.startswith("http"):
        url = re.sub(r"(?<=://)[^/@]*@(?!$)", "", url)  # the output is passed on: no password or token
    fragment = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if vcs := source.get("vcs_info"):
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{fragment}", ""
    digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
    return f"{name} @ {url}" + (f"#sha256={digest}" if digest else fragment), ""


def _direct_url(name: str, version: str) -> dict[str, Any]:
    """What direct_url.json says; empty where there is none, or another version is installed."""
    for distribution in importlib.metadata.distributions(name=name):
        if distribution.version == version:
            return json.loads(distribution.read_text("direct_url.json") or "{}")
    return {}
