"""`rlhf plugins install`, `uninstall` and `freeze`: the distributions of plugins, and pip.

    rlhf plugins install rlhf-reward-brevity
    rlhf plugins install -e ./rlhf-reward-brevity
    rlhf plugins uninstall brevity
    rlhf plugins freeze > requirements.txt
    rlhf plugins freeze runs/grpo-20260101-120000 --install-command

pip holds the training libraries at the versions that are installed. No plugin is imported, so a broken one can be
removed. The source of a distribution is in PEP 610's direct_url.json, which pip writes. One that was installed from a
local folder is on no index, so `freeze` makes it a comment.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_core import __version__
from rlhf_core.catalog import Catalog, Entry, normalize
from rlhf_core.cli.listings import show_entries
from rlhf_core.credentials import MASK, masked
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.inputs import parse_json, read_text

# Plugins may not change the versions that models were trained with and that runs are resumed with.
PINNED = ("rlhf-core", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
PINNABLE = re.compile(r"[\w.-]+ [\w.!+-]+", re.ASCII)  # a distribution and its version
Pin = tuple[str, str]  # a requirement for pip and a comment, of which one may be empty


# -h is left to pip's short options: -rhere.txt is no call for help
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SPEC… [PIP OPTIONS]")
def install(arguments: tuple[str, ...]) -> None:
    """Install plugins with pip, without changing torch and the training libraries.

    rlhf plugins install rlhf-reward-brevity

    A plugin is a program: installing it, and running a command that uses it, runs its author's code with your rights.

    SPEC and options are pip's: names, folders, git+https://…, --upgrade, --editable FOLDER, --dry-run. Versions of the
    core, torch and the libraries around it stay what they are; a plugin that needs others is refused.
    """
    _check_markers(arguments)
    before = listed()
    pins = pinned()
    click.echo("Installing a plugin runs its author's code, now and when it is used: install those that you trust.")
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        code, output = run_pip("install", "--constraint", str(constraints), *arguments)
    if code:
        raise UserError(explain(output, pins))
    if "--dry-run" in arguments:
        return
    had = {(e.kind, e.name, e.distribution, e.version) for e in before}
    new = [e for e in listed() if (e.kind, e.name, e.distribution, e.version) not in had]
    click.echo("\nNew plugins:" if new else "\nNo plugin is new or has another version: rlhf plugins lists all.")
    if new:
        show_entries(new, "plugins", as_json=False)


def _check_markers(arguments: Sequence[str]) -> None:
    """Raise `UserError` for a requirement whose part behind `;` pip can't read: it would print a traceback."""
    from packaging.markers import InvalidMarker, Marker

    for text in arguments:
        requirement, semicolon, marker = text.partition(";")
        try:
            if semicolon and not requirement.startswith("-"):
                Marker(marker)
        except InvalidMarker as error:
            raise UserError(
                f"{text!r}: behind ; a requirement says where it holds, as in {requirement}; python_version<'3.13'"
            ) from error


def pinned() -> dict[str, str]:
    """The installed versions of what a plugin may not move, with local labels such as +cpu."""
    installed = {normalize(d.name): d.version for name in PINNED for d in importlib.metadata.distributions(name=name)}
    return {name: installed[name] for name in PINNED if name in installed}


def run_pip(*arguments: str) -> tuple[int, str]:
    """(exit code, pip's output), which is also shown, without the packages that are already installed.

    Raises `UserError` if there is no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"this environment has no pip. Add it with {sys.executable} -m ensurepip, or use another installer, such "
            "as uv pip install NAME"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        for line in pip.stdout or ():
            if not line.startswith("Requirement already satisfied"):
                click.echo(masked(line), nl=False)
            lines.append(line)
    return pip.returncode, "".join(lines)


def explain(output: str, pins: dict[str, str]) -> str:
    """Why pip failed: which plugin needs another version of a pinned package, or else a reference to pip's output."""
    wanted = []
    for who, need in re.findall(r"^\s*(\S.*?) depends on (\S.*)$", output, re.MULTILINE):
        name = normalize(re.split(r"[\s\[<>=!~;@(]", need, maxsplit=1)[0])
        if name in pins:
            wanted.append(f"{who} needs {need.strip()}, and {name} {pins[name]} is installed")
    if not wanted:
        constraints = re.findall(r"\(constraint\) ([\w.-]+)==", output)
        wanted = [f"another {name} than the installed {pins[name]} is needed" for name in constraints if name in pins]
    if not wanted:
        return "pip did not install it: see above"
    return (
        f"{'; '.join(dict.fromkeys(wanted))}. It is pinned, so that a plugin can't change the libraries that runs are "
        "trained with. Use another version of the plugin, or change the library yourself with pip install …"
    )


def listed() -> list[Entry]:
    """The plugins that a new process finds; this one would miss a new editable one."""
    command = [sys.executable, "-P", "-m", "rlhf_core", "plugins", "list", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [Entry(**values) for values in found]


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
def uninstall(names: tuple[str, ...], yes: bool) -> None:
    """Remove the distributions of plugins, by the name of the distribution or of a plugin.

    rlhf plugins uninstall brevity
    """
    entries = Catalog().entries()
    chosen = list(dict.fromkeys(find_distribution(name, entries) for name in names))
    for distribution in chosen:
        plugins = ", ".join(f"{e.kind[:-1]} {e.name}" for e in entries if e.distribution == distribution)
        click.echo(f"{distribution} has: {plugins}")
    if not yes:
        if not _in_terminal():
            raise UserError(f"to remove {', '.join(chosen)} without a question, add --yes")
        click.confirm(f"Remove {', '.join(chosen)}?", abort=True)
    if run_pip("uninstall", "--yes", *chosen)[0]:
        raise UserError("pip did not remove it: see above")


def find_distribution(name: str, entries: Sequence[Entry]) -> str:
    """The distribution with this name, with a plugin of this name, or of `distribution/plugin`."""
    if normalize(name) == "rlhf-core":
        raise UserError("rlhf-core is the trainer, not a plugin. To remove it: pip uninstall rlhf-core")
    for entry in entries:
        full = normalize(entry.distribution)
        if normalize(name) in (full, normalize(f"{full}/{entry.name}")):
            return entry.distribution
    found = list(dict.fromkeys(e.distribution for e in entries if e.name == name))
    if len(found) > 1:
        raise UserError(f"{name!r} is offered by {' and '.join(found)}: give the name of one of them")
    if not found:
        known = {e.name for e in entries} | {e.distribution for e in entries}
        raise UserError(f"no plugin is called {name!r}.{did_you_mean(name, known)} rlhf plugins lists all.")
    return found[0]


def _in_terminal() -> bool:
    return sys.stdin.isatty()


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
        entries = sorted(Catalog().entries(), key=lambda e: normalize(e.distribution))
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
        return list(
            dict.fromkeys(_pins_of(parse_json(read_text(folder / "manifest.json", limit=1 << 26), "manifest.json")))
        )
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, UserError) else "it has another content"
        raise UserError(
            f"{folder} is not a run's folder: its manifest.json can't be read ({reason}). Give a folder that rlhf run "
            "wrote, such as runs/grpo-20260101-120000"
        ) from error


def _pins_of(manifest: dict[str, Any]) -> Iterator[Pin]:
    yield "", f"# Python {_one_line(manifest['python'])}, on which the run was made"
    for name, version in manifest["versions"].items():
        yield pin(name, version)
    for line in manifest["plugins"]:  # "method grpo: rlhf-method-grpo 0.1.0", or "reward ./my.py:near: by path"
        what, _, origin = line.rpartition(": ")
        if origin == "by path":
            yield "", f"# {_one_line(what)}: given by path"
        else:
            name, version = origin.rsplit(" ", 1)
            yield pin(name, version)


def _one_line(text: str) -> str:
    """Text of a manifest for a comment. Raises `ValueError` for a line break, behind which pip would read it."""
    if not text.isprintable():
        raise ValueError
    return text


def pin(name: str, version: str) -> Pin:
    """The requirement of a distribution: its source if this version is installed, else its version. Raises
    `ValueError` for what names none.
    """
    if not PINNABLE.fullmatch(f"{name} {version}"):
        raise ValueError
    installed = (each for each in importlib.metadata.distributions(name=name) if each.version == version)
    text = next((each.read_text("direct_url.json") for each in installed), None)
    if not text:
        public, _, label = version.partition("+")
        return f"{name}=={public}", f"# {name} was {version}" if label else ""
    source = json.loads(text)
    url = source["url"]
    if "dir_info" in source or (url.startswith("file:") and "vcs_info" not in source):
        how = "editable, from" if source.get("dir_info", {}).get("editable") else "from"
        folder = url.removeprefix("file://")
        return "", f"# {name}=={version} is installed {how} {folder}, which is on this machine only"
    url = masked(url).replace(f"{MASK}@", "")  # the output is passed on: no password or token
    fragment = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if vcs := source.get("vcs_info"):
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{fragment}", ""
    digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
    return f"{name} @ {url}" + (f"#sha256={digest}" if digest else fragment), ""
