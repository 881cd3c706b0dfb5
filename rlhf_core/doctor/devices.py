"""What the device can do: memory, driver, bfloat16, a step, attention, quantized weights and several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rlhf_core.doctor import Check, one_line
from rlhf_core.doctor.asking import Answer, Asking
from rlhf_core.doctor.packages import TESTED, judge_version, supported, version_of

Facts = dict[str, Any]
GB = 1e9
APART = {"4": 0.02, "8": 0.05}  # share of a product: rounding to bfloat16, and of the inputs to 8 bits
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
GET_TORCH = "Choose one for your GPU at https://pytorch.org/get-started/locally"


def examine(asking: Asking, broken: str) -> Iterator[Check | str]:
    """`broken`: the first package that training needs and that can't be imported."""
    nvidia = asking.ask("nvidia")
    if broken == "torch":
        yield judge_without_torch(nvidia)
        return
    answer = asking.ask("devices")
    if answer.error:
        yield Check(
            "GPU",
            "fail",
            f"looking for devices failed: {one_line(answer.error)}",
            "Restart the machine, or install its driver again",
        )
        return
    yield from judge_devices(answer.found, asking.ask("torch").found, nvidia, os.environ)
    yield judge_bfloat16(answer.found)
    if broken:
        yield Check("training", "missing", f"no step was tried, which needs {broken}")
    else:
        yield "a training step"
        yield judge_step(asking.ask("step"))
    yield "attention"
    yield judge_attention(asking.ask("attention"))
    yield "bitsandbytes"
    yield judge_bitsandbytes(version_of("bitsandbytes"), {bits: asking.ask("bitsandbytes", bits) for bits in APART})
    yield "several processes"
    backend = "nccl" if answer.found["kind"] == "cuda" else "gloo"
    yield judge_processes(backend, asking.ask("processes", backend))


def judge_without_torch(nvidia: Answer) -> Check:
    what = ", ".join(nvidia.found.get("names", ())) or "none that nvidia-smi knows"
    return Check("GPU", "warn", f"{what}; nothing was tried on it, which needs torch")


def judge_devices(facts: Facts, torch: Facts, nvidia: Answer, environment: Any) -> Iterator[Check]:
    if facts["devices"]:
        driver = nvidia.found.get("driver", "")
        numbers = len(facts["devices"]) > 1
        for number, each in enumerate(facts["devices"]):
            yield _judge_device(f"GPU {number}" if numbers else "GPU", each, torch, driver)
        return
    names = nvidia.found.get("names", [])
    hidden = [f"{name}={environment[name]}" for name in HIDING if name in environment]
    said = one_line(" ".join(facts["said"]))
    if names:
        there = f"{', '.join(names)} with driver {nvidia.found['driver']}, which torch can't use"
        if hidden:
            yield Check(
                "GPU", "warn", f"{there}: {hidden[0]} hides it", f"To use it: unset {hidden[0].partition('=')[0]}"
            )
        elif not torch["cuda"]:
            yield Check("GPU", "warn", f"{there}: this torch was built without CUDA", GET_TORCH)
        else:
            reason = said or f"it was built for CUDA {torch['cuda']}"
            yield Check(
                "GPU", "warn", f"{there}: {reason}", "Update the driver, or install a torch that was built for it"
            )
    elif failed := nvidia.found.get("failed") or nvidia.error:
        yield Check(
            "GPU", "warn", f"nvidia-smi fails: {one_line(failed)}", "Restart the machine, or install the driver again"
        )
    else:
        built = "CUDA" if torch["cuda"] else "ROCm" if torch["hip"] else ""
        why = f"none; torch was built for {built}" + (f" and says: {said}" if said else "") if built else "none"
        yield Check("GPU", "missing", f"{why}: training uses the CPU, which is for small models")


def _judge_device(name: str, each: Facts, torch: Facts, driver: str) -> Check:
    if "memory" not in each:  # Apple's, Intel's
        return Check(name, "ok", f"{each['name']}; tested are CUDA and CPUs alone", values=each)
    built = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}"
    versions = ", ".join([f"compute capability {each['capability']}", built, *[f"driver {driver}"] * bool(driver)])
    text = f"{each['name']}, {each['free'] / GB:.1f} of {each['memory'] / GB:.1f} GB free; {versions}"
    if each["free"] < each["memory"] / 2:
        return Check(name, "warn", text, "Another process takes the rest: nvidia-smi lists them", each)
    return Check(name, "ok", text, values=each)


def judge_bfloat16(facts: Facts) -> Check:
    have = {each["bfloat16"] for each in facts["devices"] if "bfloat16" in each}
    if not have:
        return Check("bfloat16", "ok", "not used: without CUDA, weights are float32")
    if have == {"native"}:
        return Check("bfloat16", "ok", "computed by the GPU")
    text = "emulated on this GPU, slowly" if "none" not in have else "not on this GPU"
    advice = "A model whose numbers are too large for float16 needs --dtype float32"
    return Check("bfloat16", "warn", f"{text}: frozen weights are float16, those that are all trained float32", advice)


def judge_step(answer: Answer) -> Check:
    name, facts = "training", answer.found
    if answer.error:
        unbuilt = "no kernel image" in answer.error
        advice = f"This torch has no code for this GPU. {GET_TORCH}" if unbuilt else ""
        return Check(name, "fail", f"a step of the built-in model failed: {one_line(answer.error)}", advice)
    where = f"{facts['device']} in {facts['dtype']}"
    before, after = facts["losses"]
    if not after < before:  # also where it is no number
        wrong = f"a step on {where} took the loss from {before:.3g} to {after:.3g}, and should lower it"
        return Check(name, "fail", wrong, "The device or its driver computes wrongly")
    return Check(name, "ok", f"two steps of the built-in model on {where}")


def judge_attention(answer: Answer) -> Check:
    name, facts = "attention", answer.found
    slow = "shared prompts are computed by plain arithmetic, slowly"
    if answer.error:
        return Check(name, "warn", f"trying it failed: {one_line(answer.error)}", "Train with --no-shared-prefix")
    if not facts["kernel"]:
        return Check(name, "warn", f"torch has no flash kernel that is used on {facts['device']}: {slow}")
    if facts["problem"]:
        return Check(name, "warn", f"torch's flash kernel fails: {one_line(facts['problem'])}: {slow}")
    return Check(name, "ok", f"torch's flash kernel on {facts['device']} equals plain arithmetic")


def judge_bitsandbytes(version: str | None, answers: dict[str, Answer]) -> Check:
    name = "bitsandbytes"
    if version is None:
        cost = "not installed: --load-in-4bit and --load-in-8bit can't be used"
        return Check(name, "missing", cost, "To have it: pip install 'rlhf-core[quantization]'")
    wrong, found = [], []
    for bits, answer in answers.items():
        if answer.error:
            wrong.append(f"{bits}-bit weights fail: {one_line(answer.error)}")
        elif not answer.found["apart"] < APART[bits]:
            wrong.append(f"{bits}-bit weights multiply wrongly, {answer.found['apart']:.2g} of the product away")
        else:
            found.append(f"{bits}-bit")
    if wrong:
        text = f"{version}: {'; '.join(dict.fromkeys(wrong))}"
        return Check(name, "warn", text, "To see more: python -m bitsandbytes")
    checked = judge_version(name, version, supported(name), TESTED[name])
    if checked.status != "ok":
        return checked
    return Check(name, "ok", f"{checked.text}; {' and '.join(found)} weights multiply as they should")


def judge_processes(backend: str, answer: Answer) -> Check:
    name, facts = "processes", answer.found
    if answer.error:
        wrong = f"{backend} fails, so --num-processes can't be used: {one_line(answer.error)}"
        interface = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME"
        return Check(name, "warn", wrong, f"The variable {interface} names the network interface to use")
    if not facts["available"]:
        return Check(name, "missing", f"this torch has no {backend}: --num-processes can't be used")
    if not facts["correct"]:
        return Check(name, "warn", f"{backend} sums wrongly: don't use --num-processes")
    return Check(name, "ok", f"{' '.join(filter(None, (backend, facts['version'])))} sums as it should")
