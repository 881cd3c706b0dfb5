"""The tables of rlhf estimate: shapes of models, and cards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf_core.errors import UserError
from rlhf_core.estimate import hardware
from rlhf_core.estimate.hardware import CARDS, GIB, Device, device_of, find_card, of
from rlhf_core.estimate.shapes import config_of, find_shape, shapes
from rlhf_core.models.checks import auto_class
from rlhf_core.models.context import context_length

SHAPES = {shape["parameters"]: name for name, shape in shapes().items()}  # one name of each


@pytest.mark.parametrize("name", SHAPES.values())
def test_a_shape_has_the_parameters_that_are_published(name):
    import torch

    shape = find_shape(name)[1]
    config = config_of(shape)
    with torch.device("meta"):
        model = auto_class(config, "causal_lm").from_config(config)
    assert model.num_parameters() == shape["parameters"]


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("0.8B", 873_438_784),
        ("2B", 2_274_069_824),
        ("4B", 4_659_865_088),
        ("9B", 9_653_104_368),
        ("27B", 27_781_427_952),
        ("35B-A3B", 35_951_822_704),
        ("122B-A10B", 125_086_497_008),
        ("397B-A17B", 403_397_928_944),
    ],
)
def test_qwen3_5_has_the_parameters_that_are_published_with_those_that_are_not_loaded(size, published):
    """The files also hold one more layer, which predicts the token after the next."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(find_shape(f"Qwen/Qwen3.5-{size}")[1]))
    hidden = model.config.text_config.hidden_size
    layer = next(layer for layer in model.model.language_model.layers if hasattr(layer, "self_attn"))
    further = sum(weight.numel() for weight in layer.parameters()) + 2 * hidden * hidden + 3 * hidden
    assert model.num_parameters() + further == published


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b-BASE", "Qwen/Qwen3-8B-Base"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("QWEN3 8B", "Qwen/Qwen3-8B"),
        ("qwen3.5-4b", "Qwen/Qwen3.5-4B"),
        ("qwen3-4b", "Qwen/Qwen3-4B"),
        ("qwen3-30b", "Qwen/Qwen3-30B-A3B"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("meta-llama-3.1-8b-instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("gemma-3-4b", "google/gemma-3-4b-it"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    ],
)
def test_a_model_is_found_by_a_short_name(given, name):
    assert find_shape(given)[0] == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("qwen3-9b", r"^qwen3-9b is not among .* Did you mean 'qwen3.5-9b'"),
        ("unsloth/Qwen3-8B", "Did you mean 'qwen/qwen3-8b'"),
        ("qwen2.5-7", "Did you mean"),  # the beginning of two sizes
        ("", "These are known: Qwen/Qwen3-0.6B, "),
        ("my_model", "These are known: .* Of another model give the folder"),
    ],
)
def test_another_model_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        find_shape(given)


def test_a_variant_has_its_own_context():
    assert context_length(config_of(find_shape("qwen3-4b")[1])) == 40960
    assert context_length(config_of(find_shape("qwen3-4b-instruct-2507")[1])) == 262144


def test_a_shape_that_is_changed_is_not_changed_for_others():
    find_shape("gemma-3-4b")[1]["config"]["text_config"]["vocab_size"] = 1
    assert find_shape("gemma-3-4b")[1]["config"]["text_config"]["vocab_size"] == 262208


def test_tables_are_read_without_torch():
    code = (
        "import sys; from rlhf_core.estimate.hardware import find_card; from rlhf_core.estimate.shapes import find_shape;"
        "find_card('h100'); find_shape('qwen3-8b'); print({'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rtx3090", "RTX 3090"),
        ("3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("RTX_3090", "RTX 3090"),
        ("3090-24gb", "RTX 3090"),
        ("4070ti", "RTX 4070 Ti"),
        ("rtx4070tisuper", "RTX 4070 Ti Super"),
        ("3080-12GB", "RTX 3080 12GB"),
        ("a6000", "RTX A6000"),
        ("rtx6000ada", "RTX 6000 Ada"),
        ("a10g", "A10G"),
        ("a100-80gb", "A100 80GB"),
        ("A100 80G", "A100 80GB"),
        ("a100-sxm4-40gb", "A100 40GB"),
        ("h100", "H100"),
        ("h100-pcie", "H100 PCIe"),
        *((name, name) for name in CARDS),
    ],
)
def test_a_card_is_found_as_it_is_typed(given, name):
    assert find_card(given).name == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rtx3009", "^--gpu rtx3009: no such card is known. Did you mean 'rtx3090'"),
        ("my card", "Known are rtx2060, .*b200. For another card give --memory"),
        ("a100", "^--gpu a100: there are several. Write a100-40gb or a100-80gb$"),
        ("3080", "Write rtx3080-10gb or rtx3080-12gb"),
        ("3090-12gb", "^--gpu 3090-12gb: there is rtx3090$"),
        ("rtx4090 laptop", "no such card"),
        ("", "no such card"),
    ],
)
def test_another_card_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        find_card(given)


@pytest.mark.parametrize(
    ("torch_name", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("Tesla V100-PCIE-16GB", "V100 PCIe 16GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 3080", None),  # of 10 or of 12 GB
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA A100-SXM-64GB", None),
        ("Quadro RTX 6000", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_card_is_found_by_the_name_that_torch_gives(torch_name, name):
    card = of(torch_name)
    assert (card and card.name) == name


def test_memory_alone_is_that_of_a_gpu_that_computes_in_bfloat16(monkeypatch):
    """Whatever is here."""
    monkeypatch.setattr(hardware, "here", lambda: Device("the CPU", 9, bfloat16=False, is_gpu=False))
    assert device_of(None, "12GB") == Device("a GPU", 12 * 10**9, bfloat16=True, is_gpu=True)


def test_the_memory_that_torch_sees_tells_cards_apart_and_is_taken_over():
    card = of("NVIDIA GeForce RTX 3080", int(11.75 * GIB))
    assert (card.name, card.memory) == ("RTX 3080 12GB", int(11.75 * GIB))
    assert of("NVIDIA GeForce RTX 3060", 8 * GIB) is None  # another card, with another bus


def test_a_card_has_a_little_less_memory_than_on_its_box():
    for size, card in CARDS.values():
        assert 0.91 * size * GIB < card.memory < size * GIB


def test_cards_before_ampere_have_no_bfloat16():
    without = {card.name.split()[0] for _, card in CARDS.values() if not card.bfloat16 and "RTX" not in card.name}
    assert without == {"T4", "V100"}
    assert not find_card("rtx2060").bfloat16
    assert find_card("rtx3060").bfloat16


# Cores, their boost clock in GHz, bits of the memory's bus, and Gbit/s of each.
CHIPS = {
    "RTX 2060": (1920, 1.68, 192, 14),
    "RTX 2080 Ti": (4352, 1.545, 352, 14),
    "RTX 3060": (3584, 1.777, 192, 15),
    "RTX 3070": (5888, 1.725, 256, 14),
    "RTX 3080 10GB": (8704, 1.71, 320, 19),
    "RTX 3080 12GB": (8960, 1.71, 384, 19),
    "RTX 3090": (10496, 1.695, 384, 19.5),
    "RTX 4060": (3072, 2.46, 128, 17),
    "RTX 4060 Ti 8GB": (4352, 2.535, 128, 18),
    "RTX 4060 Ti 16GB": (4352, 2.535, 128, 18),
    "RTX 4070": (5888, 2.475, 192, 21),
    "RTX 4070 Super": (7168, 2.475, 192, 21),
    "RTX 4070 Ti": (7680, 2.61, 192, 21),
    "RTX 4070 Ti Super": (8448, 2.61, 256, 21),
    "RTX 4080": (9728, 2.505, 256, 22.4),
    "RTX 4080 Super": (10240, 2.55, 256, 23),
    "RTX 4090": (16384, 2.52, 384, 21),
    "RTX 5070": (6144, 2.512, 192, 28),
    "RTX 5070 Ti": (8960, 2.452, 256, 28),
    "RTX 5080": (10752, 2.617, 256, 30),
    "RTX 5090": (21760, 2.407, 512, 28),
    "RTX A4000": (6144, 1.56, 256, 14),
    "RTX A5000": (8192, 1.695, 384, 16),
    "RTX A6000": (10752, 1.8, 384, 16),
    "RTX 6000 Ada": (18176, 2.505, 384, 20),
}


@pytest.mark.parametrize("name", [name for name in CARDS if name.startswith("RTX")])
def test_figures_follow_from_cores_and_clocks(name):
    """Tensor cores do 8 operations a cycle for each core where they add up in float32, and half of that on GeForce cards
    since Ampere."""
    cores, clock, bits, rate = CHIPS[name]
    card = find_card(name)
    is_geforce = name[4] in "345" and card.bfloat16
    assert card.flops == pytest.approx(cores * clock * 1e9 * (4 if is_geforce else 8), rel=0.005)
    assert card.bandwidth == pytest.approx(bits * rate * 1e9 / 8, rel=0.005)
