"""A checkpoint is used only if each of its files is what was written; of those before it, the next whole one is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from rlhf_core.errors import UserError
from rlhf_core.training import checkpoint
from rlhf_core.training.checkpoint import RECORD, damage, newest_whole, seal, set_aside_after

FILES = {
    **{"model.safetensors": 5000, "config.json": 300, "adapter_model.safetensors": 900, "adapter_config.json": 90},
    **{"optimizer.pt": 7000, "scheduler.pt": 1400, "scaler.pt": 900, "rng_state.pth": 1500, "rng_state_0.pth": 700},
    **{"trainer_state.json": 800, "training_args.bin": 600, "tokenizer.json": 2000, "chat_template.jinja": 40},
    **{"value_head.safetensors": 128, "value_model/model.safetensors": 3000, "kl_coef.txt": 4},
    **{"reference.safetensors": 5000, "pytorch_model_fsdp_0/__0_0.distcp": 4000, "empty.txt": 0},
}


def make(folder: Path, steps: int) -> Path:
    """A checkpoint with every kind of file, sealed."""
    made = folder / "checkpoints" / f"checkpoint-{steps}"
    for name, size in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(bytes((i * steps) % 251 for i in range(size)))
    seal(made, steps, {"config": {"method": "sft"}, "manifest": {}})
    return made


def flip(file: Path, share: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int((len(content) - 1) * share)] ^= 1
    file.write_bytes(content)


def replace_by(file: Path, make_it) -> None:
    file.unlink()
    make_it(file)


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "a flipped bit": flip,
    "a flipped first byte": lambda file: flip(file, 0),
    "a flipped last byte": lambda file: flip(file, 1),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a folder": lambda file: replace_by(file, Path.mkdir),
    "a dangling link": lambda file: replace_by(file, lambda path: path.symlink_to("nowhere")),
    "a link to itself": lambda file: replace_by(file, lambda path: path.symlink_to(path.name)),
    "a device": lambda file: replace_by(file, lambda path: path.symlink_to("/dev/zero")),
    "a pipe": lambda file: replace_by(file, os.mkfifo),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"), 4)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_found(whole, tmp_path, kind):
    assert damage(whole) == ""
    for name in [*FILES, RECORD]:
        if FILES.get(name) == 0 and ("flipped" in kind or kind in ("empty", "truncated", "zeros")):
            continue
        copy = shutil.copytree(whole, tmp_path / name.replace("/", "-") / whole.name)
        DAMAGE[kind](copy / name)
        assert name.rpartition("/")[2] in damage(copy), name


def test_whole_checkpoints_with_other_names_and_places_of_files(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / whole.name)
    for harmless in (".DS_Store", "README.md", "notes.txt", ".nfs0001"):
        (copy / harmless).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(copy / "optimizer.pt", tmp_path / "elsewhere")  # to a larger disk
    (copy / "optimizer.pt").symlink_to(tmp_path / "elsewhere" / "optimizer.pt")
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked" / whole.name
    link.symlink_to(copy)
    assert (damage(copy), damage(link)) == ("", "")


@pytest.mark.parametrize("added", ["pytorch_model.bin", "adapter_model.bin", "optimizer.bin", "model-1.safetensors"])
def test_a_file_that_a_trainer_would_read_instead_is_found(whole, tmp_path, added):
    copy = shutil.copytree(whole, tmp_path / whole.name)
    (copy / added).write_bytes(b"other weights")
    assert damage(copy) == f"{added} was added to it"


def test_a_record_that_was_edited_or_is_of_another_step_is_found(whole, tmp_path, monkeypatch):
    copy = shutil.copytree(whole, tmp_path / "checkpoint-8")
    assert damage(copy) == "it holds step 4, so it was renamed"
    for other in ({"files": {}}, {"step": 8, "files": [1]}, {"step": 8, "files": {"config.json": {}}}):
        (copy / RECORD).write_text(json.dumps({"sha256": checkpoint._digest_of(other), **other}))
        assert damage(copy) == f"{RECORD} is not what was written", other
    for text in ('{"sha256": "0", "files": {}}', "[]", "null", "NaN", "{" * 2000, "\x00" * 90):
        (copy / RECORD).write_text(text)
        assert RECORD in damage(copy), text
    monkeypatch.setattr(checkpoint, "LIMIT", 100)
    assert RECORD in damage(whole)
    monkeypatch.undo()
    values = json.loads((whole / RECORD).read_text())
    (copy / RECORD).write_text(json.dumps({**values, "config": {"method": "sft", "seed": 1}}))
    assert damage(copy) == f"{RECORD} is not what was written"


def test_parts_of_a_large_file_have_hashes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART", 1000)
    made = make(tmp_path, 2)
    content = (made / "optimizer.pt").read_bytes()
    parts = [hashlib.sha256(content[start : start + 1000]).hexdigest() for start in range(0, 7000, 1000)]
    assert checkpoint.record(made)["files"]["optimizer.pt"]["sha256"] == parts
    assert damage(made) == ""
    assert (made / RECORD).stat().st_mode & 0o777 == 0o600  # it holds the configuration
    flip(made / "optimizer.pt")
    assert damage(made) == "the content of optimizer.pt is not what was written"


def test_the_newest_whole_checkpoint_is_taken_and_damage_is_said(tmp_path):
    for steps in (2, 4, 10):
        make(tmp_path, steps)
    checkpoints, said = tmp_path / "checkpoints", []
    for name in ("checkpoint-1²", "checkpoint-x", "checkpoint-012", "checkpoint-"):
        (checkpoints / name).mkdir()
    assert newest_whole(tmp_path, said.append) == checkpoints / "checkpoint-10"
    assert said == []
    (checkpoints / "checkpoint-10" / "scheduler.pt").unlink()
    shutil.rmtree(checkpoints / "checkpoint-4")
    (checkpoints / "checkpoint-4").write_text("a file")
    assert newest_whole(tmp_path, said.append) == checkpoints / "checkpoint-2"
    assert [text.rpartition("/")[2] for text in said[:2]] == [
        "checkpoint-10 is damaged: scheduler.pt is missing.",
        "checkpoint-4 is damaged: it is no folder.",
    ]
    assert said[2] == "Going on from checkpoint-2; what is damaged is kept under another name."
    set_aside_after(checkpoints, 2)
    assert {path.name for path in checkpoints.glob("damaged-*")} == {
        "damaged-1-checkpoint-10",
        "damaged-1-checkpoint-4",
    }
    flip(checkpoints / "checkpoint-2" / "model.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole: checkpoint-2 \(the content of model"):
        newest_whole(tmp_path, said.append)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("0", 0), ("12", 12), ("9" * 18, 10**18 - 1), ("9" * 19, -1), ("1²", -1), ("٣", -1), ("x", -1), ("", -1)],
)
def test_the_step_of_a_name(name, steps):
    assert checkpoint.step(Path(f"checkpoint-{name}")) == steps


def test_a_checkpoint_without_a_record_is_taken_only_if_asked(tmp_path):
    (make(tmp_path, 2) / RECORD).unlink()
    with pytest.raises(UserError, match="an earlier version wrote it.*--allow-changed checkpoint"):
        newest_whole(tmp_path, print)
    assert newest_whole(tmp_path, print, ["checkpoint"]) == tmp_path / "checkpoints" / "checkpoint-2"


def test_without_any_checkpoint_a_run_begins_anew_but_not_over_its_model(tmp_path):
    assert newest_whole(tmp_path, print) is None
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="has the model of a finished run and no checkpoint"):
        newest_whole(tmp_path, print)
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="is no folder"):
        newest_whole(tmp_path, print)


def test_the_configuration_that_a_checkpoint_holds_is_offered_where_it_can_be_read(tmp_path, monkeypatch):
    for steps in (1, 2):
        make(tmp_path, steps)
    assert f"{tmp_path}/checkpoints/checkpoint-2/{RECORD}" in checkpoint.copies(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a run of another user
    assert checkpoint.copies(tmp_path) == ""
