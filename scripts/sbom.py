"""A software bill of materials: every distribution that our packages need, with its licence, as installed here.

    python scripts/sbom.py dist/sbom.json

Writes CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/) and prints a table. Reads the metadata of this environment
and nothing else: no network. Exit code 1 if a distribution states no licence.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement

OURS = re.compile(r"rlhf-(core|method|reward|formatter|tools)")
NO_FILES = "none needed: it holds no files, and requires others"
EXTRAS = ("train",)  # of rlhf-core; `quantization` and `vllm` are the user's choice


def distributions() -> dict[str, importlib.metadata.Distribution]:
    """Ours and all that they need, by their one spelling (PEP 503), in alphabetical order."""
    installed = {spelling(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    found: dict[str, importlib.metadata.Distribution] = {}
    left = [(name, EXTRAS) for name in installed if OURS.match(name)]
    while left:
        name, extras = left.pop()
        if name in installed:
            left += [need for need in needs(installed[name], extras) if need[0] not in found]
            found[name] = installed[name]
    return dict(sorted(found.items()))


def needs(distribution: importlib.metadata.Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple]]:
    """(name, its extras) of what a distribution requires on this platform."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield spelling(requirement.name), tuple(requirement.extras)


def licence(distribution: importlib.metadata.Distribution) -> str:
    """An SPDX expression where there is one, else what the classifiers or the field say; empty if nothing does."""
    fields = distribution.metadata
    if expression := fields.get("License-Expression"):
        return expression
    classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier", []) if c.startswith("License ::")]
    stated = " and ".join(c for c in classifiers if c != "OSI Approved")
    text = (fields.get("License") or "").strip()
    holds = [file for file in distribution.files or () if ".dist-info" not in file.parts[0]]
    return stated or text.partition("\n")[0][:60] or ("" if holds else NO_FILES)


def spelling(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(found: dict[str, importlib.metadata.Distribution]) -> dict:
    """The CycloneDX document; the same for the same environment."""
    components = []
    for name, each in found.items():
        url = f"pkg:pypi/{name}@{quote(each.version)}"
        component = {"type": "library", "bom-ref": url, "name": name, "version": each.version, "purl": url}
        components.append({**component, "licenses": [{"license": {"name": licence(each)}}] if licence(each) else []})
    root = {"type": "application", "name": "rlhf-core", "version": found["rlhf-core"].version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
    }


def main(path: str) -> int:
    found, file = distributions(), Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(bill(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, each in found.items():
        print(f"{name:32}{each.version:22}{licence(each) or 'NOT STATED'}")
    unstated = [name for name, each in found.items() if not licence(each)]
    print(f"\n{file}: {len(found)} distributions" + (f"; no licence stated: {', '.join(unstated)}" if unstated else ""))
    return bool(unstated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
