"""Names, shapes and types of the weights in a model's files. Only headers of safetensors files are read: milliseconds
for any size. What is wrong with the files themselves is one message, and pickles, which may hold code, are not opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlhf_core.errors import UserError, excerpt, first_line, listed
from rlhf_core.inputs import path_of
from rlhf_core.models.files import CONFIG, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLES = ("pytorch_model*", "adapter_model.bin", "model.pt", "model.bin", "consolidated*.pth", "*.ckpt")
CONVERT = (
    "Convert it where you trust it, in Python: from transformers import AutoModelForCausalLM; "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER). An adapter likewise with PEFT's "
    "AutoPeftModelForCausalLM"
)
# Methods of quantization whose files have other types than floating-point ones, and what their weights are scaled by.
PACKING = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "fp8", "fbgemm_fp8", "mxfp4", "gptq", "awq")
SCALE = re.compile(r"(.+?)\.(?:weight[._](?:scale|absmax|quant_state|quant_map|nested).*|scale.*|SCB)")


class Weight(NamedTuple):
    """A weight in a file; `dtype` is safetensors' name of its type, such as BF16."""

    shape: list[int]
    dtype: str


Weights = dict[str, Weight]


def read_weights(path: str, called: str) -> Weights | None:
    """Each weight of the full model at `path`, a folder or a Hub id; None for a Hub model that is not downloaded yet.
    Raises `UserError`.
    """
    folder = Path(path)
    if not folder.is_dir():
        return _downloaded(path, called)
    named = read_object(folder / CONFIG).get("transformers_weights")
    single = SINGLE if named is None else _inside(named, f"{called}: transformers_weights in its {CONFIG}")
    if single.endswith(".index.json") or (named is None and not (folder / single).is_file()):
        index = INDEX if named is None else single
        if (folder / index).is_file():
            return _sharded(folder, index, called)
    if (folder / single).is_file():
        return _header(folder / single, called)
    if pickles := _pickles(folder):
        raise UserError(f"{called} has its weights in {pickles[0]} alone, a pickle, which may run code. {CONVERT}")
    found = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))) or "none"
    raise UserError(f"{called} has no weights: {SINGLE} or {INDEX} is missing. Other files of weights there: {found}")


def read_adapter_weights(folder: Path, called: str) -> Weights:
    """The same of an adapter's folder."""
    if (folder / ADAPTER).is_file():
        return _header(folder / ADAPTER, called)
    if pickles := _pickles(folder):
        raise UserError(f"{called} has its weights in {pickles[0]} alone, a pickle, which may run code. {CONVERT}")
    raise UserError(f"{called} has no weights: {folder / ADAPTER} is missing")


def is_float(dtype: str) -> bool:
    """Whether weights of this type, in safetensors' name, can be read as they are: smaller ones are of quantization."""
    return dtype in ("F64", "F32", "F16", "BF16")


def check_quantized(held: Weights, method: str, called: str) -> None:
    """Raise `UserError` for files that are not quantized although config.json says so, or that lack scales."""
    if method not in PACKING:
        return
    packed = [name for name, (_, dtype) in held.items() if not is_float(dtype)]
    if not packed:
        raise UserError(
            f"{called} is quantized by its {CONFIG} ({method}), and all weights in its files are plain: take "
            f"quantization_config out of its {CONFIG}, or copy the quantized files again"
        )
    scaled = {found[1] for name in held if (found := SCALE.fullmatch(name))}
    without = [name for name in packed if name.endswith(".weight") and name.removesuffix(".weight") not in scaled]
    if without:
        raise UserError(
            f"{called} is quantized ({method}) and not complete: its files have no scale of {listed(without)}. Copy "
            "or download it again"
        )


def not_finite(named: Iterable[tuple[str, Any]]) -> list[str]:
    """The names of weights that hold NaN or infinity. One tensor is read from the device."""
    import torch

    kept = [(name, weight.detach()) for name, weight in named if weight.is_floating_point() and weight.numel()]
    kept = [(name, weight) for name, weight in kept if weight.device.type != "meta" and weight.dtype.itemsize > 1]
    if not kept:
        return []
    extremes = [torch.stack(weight.aminmax()).float() for _, weight in kept]  # reads a weight once, and copies none
    finite = torch.stack([one.to(extremes[0].device) for one in extremes]).isfinite().all(dim=1)
    return [name for (name, _), good in zip(kept, finite.tolist(), strict=True) if not good]


def refuse_not_finite(named: Iterable[tuple[str, Any]], called: str) -> None:
    """Raise `UserError` for weights that are NaN or infinite, naming the first."""
    if wrong := not_finite(named):
        more = f" and {len(wrong) - 1} more weights have" if len(wrong) > 1 else " has"
        raise UserError(
            f"{called}: {wrong[0]}{more} values that are NaN or infinite, so it can compute nothing. Copy or download "
            "it again, or take an earlier checkpoint"
        )


def _pickles(folder: Path) -> list[Path]:
    return sorted(file for pattern in PICKLES for file in folder.glob(pattern))


def _inside(name: Any, where: str) -> str:
    """`name` if it can be that of a safetensors file in the model's folder."""
    path = PurePosixPath(name) if isinstance(name, str) and name else PurePosixPath("/")
    good = (
        not path.is_absolute()
        and ".." not in path.parts
        and str(name).endswith((".safetensors", ".safetensors.index.json"))
    )
    if not good:
        raise UserError(f"{where}: {excerpt(repr(name))} is no safetensors file in the model's folder")
    path_of(name, where)
    return str(name)


def _sharded(folder: Path, index: str, called: str) -> Weights:
    """The weights of all files that an index names, each where the index says."""
    placed = _shards(folder / index, called)
    files = {name: folder / name for name in sorted(set(placed.values()))}
    if missing := [file for file in files.values() if not file.is_file()]:
        more = f" ({len(missing)} of {len(files)} files are)" if len(missing) > 1 else ""
        raise UserError(f"{called} is not complete: {missing[0]} is missing{more}. Copy or download it again")
    found = {name: _header(file, called) for name, file in files.items()}
    for weight, name in placed.items():
        if weight not in found[name]:
            raise UserError(f"{called}: {folder / index} places {excerpt(weight)} in {name}, which has no such weight")
    for name, weights in found.items():
        if twice := [weight for weight in weights if placed.get(weight, name) != name]:
            raise UserError(f"{called}: {excerpt(twice[0])} is in {name} and in {placed[twice[0]]}: which is meant?")
    return {weight: held for weights in found.values() for weight, held in weights.items()}


def _shards(index: Path, called: str) -> dict[str, str]:
    values = read_object(index)
    placed = values.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{called}: {index} is no index of weights: it has no weight_map of names to files")
    if not isinstance(values.get("metadata"), dict):
        raise UserError(f'{called}: {index} has no "metadata", an object, without which transformers reads no index')
    return {weight: _inside(name, f"{index}, {excerpt(weight)}") for weight, name in placed.items()}


def _downloaded(repository: str, called: str) -> Weights | None:
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> list[Path]:
        found = try_to_load_from_cache(repository, name)
        return [Path(found)] if isinstance(found, str) else []

    files = cached(SINGLE)
    if not files and (index := cached(INDEX)):
        names = set(_shards(index[0], called).values())
        files = [file for name in names for file in cached(name)]
        files = files if len(files) == len(names) else []
    return {name: weight for file in files for name, weight in _header(file, called).items()} or None


def _header(file: Path, called: str) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {name: Weight(part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        size = f"{file.stat().st_size:,} bytes"
        raise UserError(
            f"{called}: {file} ({size}) is damaged or not complete: {first_line(error)}. Copy or download it again"
        ) from error
