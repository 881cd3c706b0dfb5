"""Fixtures: a two-layer model that trains in milliseconds, short runs on it, and placeholder distributions."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_core import testing
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve

os.environ["OMP_NUM_THREADS"] = "1"  # a model this small is faster so, also in the processes that tests start
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # benchmarks/gpu.sh is for GPUs


# Tests that start many processes or train one method after another in many variants: `make test` runs the variants that
# are named here (ids hold one of these texts), or none, `make test-all` every one.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plugins/grpo/tests/test_config_fields.py::test_training_with_a_setting_equals_trl": (
        "'beta'",
        "dr_grpo",
        "normalize_then_sum",
    ),
    "plugins/grpo/tests/test_equals_trl.py::test_training_in_two_processes_is_trls": (),
    "plugins/grpo/tests/test_equals_trl.py::test_training_is_trls": ("two phases", "accumulation", "LoRA, with"),
    "plugins/ppo/tests/test_plugin.py::test_a_resumed_run_equals_one_that_was_never_stopped": ("minibatches",),
    "plugins/sft/tests/test_config_fields.py::test_training_with_a_setting_equals_trl": ("{} lora", "bfd_split", "dft"),
    "plugins/tools/tests/test_recommend.py::test_costs_are_estimated_and_options_added_until_it_fits": (),
    "plugins/tools/tests/test_recommend.py::test_a_dry_run_accepts_the_classic_pipeline_in_4_bits": (),
    "tests/test_multimodal.py::test_text_shares_its_prompts": (
        *("gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5"),
    ),
    "tests/test_prefix_list.py::test_a_family_shares_exactly_or_is_refused_with_the_reason": (
        *("qwen3_moe", "deepseek_v3", "gemma3_text", "cohere2"),
    ),
    "tests/test_prefix_recurrent.py::test_log_probabilities_states_and_gradients_are_those_of_rows_alone": (
        *("qwen3_next", "two phases", "olmo_hybrid", "falcon_h1", "granitemoehybrid", "nemotron_h", "lfm3"),
    ),
    "tests/test_conformance.py::test_our_formatters_keep_the_rules": (
        "response_preference",
        "messages",
        "multiple_choice",
    ),
    "tests/test_conformance.py::test_our_methods_keep_the_rules": ("grpo",),
    "tests/test_conformance.py::test_our_rewards_keep_the_rules": ("medical_keyword",),
    "tests/test_conformance.py::test_without_names_every_plugin_gets_a_line": (),
    "tests/test_doctor.py::test_this_machine": (),
    "tests/test_equals_trl.py::test_dpo": ("label smoothing-lora", "sigmoid-full", "ipo-full"),
    "tests/test_equals_trl.py::test_reward_model": ("shared-end", "padded-pad-full"),
    "tests/test_estimate.py::test_a_folder_with_a_configuration_alone_is_enough": ("flags0-gemma",),
    "tests/test_estimate.py::test_groups_that_are_measured_once_take_what_they_take_one_by_one": (),
    "tests/test_estimate.py::test_what_does_not_fit_is_not_probed_and_tried_with_remedies_in_their_order": (),
    "tests/test_estimate_before_run.py::test_a_run_with_an_estimate_is_the_run_without_to_the_last_bit": (),
    "tests/test_estimate_truth.py::test_each_phase_takes_what_is_counted": ("grpo-full",),
    "tests/test_faults.py::test_a_short_run_finishes_and_says_what_failed": (
        "async_raises",
        "crash",
        "hang]",
    ),
    "tests/test_guide.py::test_the_examples_pass_their_own_tests": ("consultation",),
    "tests/test_guide.py::test_the_examples_keep_the_rules_of_their_kind": ("brevity",),
    "tests/test_killed.py::test_a_killed_run_resumes_whatever_it_was_doing": (),
    "tests/test_killed.py::test_a_run_that_is_killed_while_it_resumes_can_still_be_resumed": (),
    "tests/test_killed.py::test_every_method_resumes_from_its_last_checkpoint": (),
    "tests/test_launch.py::test_a_run_out_of_memory_resumes_with_a_smaller_micro_batch": (),
    "tests/test_launch.py::test_ctrl_c_stops_all_processes_after_the_same_step": (),
    "tests/test_launch.py::test_no_process_is_left_when_the_command_ends": (),
    "tests/test_methods.py::test_a_resumed_run_equals_one_that_was_never_stopped": ("grpo",),
    "tests/test_methods.py::test_quantized_weights": ("4bit",),
    "tests/test_methods.py::test_the_saved_model_computes_the_same_logits": ("True",),
    "tests/test_mixed_precision.py::test_a_method_keeps_the_rules_of_the_kit": (),
    "tests/test_mixed_precision.py::test_prompts_are_shared_and_all_weights_learn": ("-False]",),
    "tests/test_pipeline.py::test_a_real_pipeline_and_the_same_again": (),
    "tests/test_plugins_command.py::test_a_new_package_passes_its_own_tests": ("reward",),
    "tests/test_preferences_path.py::test_from_prompts_to_a_better_model": ("endpoint",),
    "tests/test_prefix_processes.py::test_gradients_of_two_processes_equal_those_of_one": (),
    "tests/test_ranks.py::test_what_happens_to_a_rank_is_said_once_and_ends_the_others": ("hang",),
    "tests/test_resume.py::test_a_finished_run_that_is_made_longer_follows_the_schedule_of_its_new_length": ("cosine",),
    "tests/test_ranks.py::test_a_command_that_is_killed_on_machine_0_is_said_on_machine_1": (),
    "tests/test_run.py::test_a_resumed_run_is_the_run_that_never_stopped": ("second epoch",),
    "tests/test_run.py::test_the_evaluation_samples_with_the_options": ("top_p",),
    "tests/test_run.py::test_two_processes_stop_together": (),
    "tests/test_trainable.py::test_an_adapter_goes_on_from_its_values_and_all_entries_move": ("dpo", "grpo-4bit"),
}


THRESHOLD = gc.get_threshold()
gc.set_threshold(100_000, 20, 100)  # until all tests are collected: imports make many objects, and little garbage


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: every run that trains asks for a whole one."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLD)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unused = {(test, name) for test, names in VARIANTS.items() for name in (*names, "")}
    for item in items:
        test, _, variant = item.nodeid.partition("[")
        if (names := VARIANTS.get(test)) is None:
            continue
        kept = [name for name in names if name in variant]
        unused -= {(test, name) for name in (*kept, "")}
        if not kept:
            item.add_marker(pytest.mark.thorough)
    if unused and config.args == config.getini("testpaths"):
        raise pytest.UsageError(f"VARIANTS in conftest.py: there is no such test, or variant of it: {sorted(unused)}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return testing.tiny_model(tmp_path_factory.mktemp("model"))


SHORT = {
    "data": "data.jsonl",
    "output_dir": "out",
    "max_steps": 4,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "save_steps": 2,
    "num_eval_prompts": 0,
    "gradient_checkpointing": False,
}


@pytest.fixture
def resolved(tmp_path, tiny_model, monkeypatch, request):
    """resolved(option=…) -> (configuration, method) of a short run on the two-layer model, in an empty folder.

    The test module's ROWS are its data, its VALUES go before those of SHORT.
    """
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("\n".join(map(json.dumps, request.module.ROWS)))

    def make(**values):
        return resolve({**SHORT, "model": str(tiny_model), **request.module.VALUES, **values}, Catalog())

    return make


@pytest.fixture
def made_run(resolved):
    """made_run(option=…) -> a Run, ready for its method's trainer(run)."""
    from rlhf_core.training.run import Run, prepare

    def make(**values) -> Run:
        config, method = resolved(**values)
        return prepare(config, method, Catalog())

    return make


@pytest.fixture
def go(resolved):
    """go(option=…) -> (exit code, the run's folder); the trainers that were made are in go.trainers."""
    from rlhf_core.training.run import train

    def start(resume: bool = False, allow_changed: Sequence[str] = (), **values) -> tuple[int, Path]:
        config, method = resolved(**values)
        build = method.trainer
        method.trainer = lambda run: start.trainers.append(build(run)) or start.trainers[-1]
        code = train(config, method, Catalog(), resume=resume, allow_changed=allow_changed)
        return code, Path(config.output_dir)

    start.trainers = []
    return start


@pytest.fixture(scope="session")
def in_two_processes(tmp_path_factory):
    """in_two_processes(work) calls it in two copies of this process: tests/two_processes.py."""
    from tests.two_processes import start

    return lambda work: start(work, tmp_path_factory.mktemp("logs"))


@pytest.fixture
def families_models(monkeypatch):
    """benchmarks/families_models.py, which makes a model of any family small; here smaller still."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    module = importlib.import_module("families_models")
    for setting, value in {"vocab_size": 97, "vocab_size_per_layer_input": 97, "num_hidden_layers": 2}.items():
        monkeypatch.setitem(module.SMALL, setting, value)
    return module


@pytest.fixture
def said(caplog):
    """said() -> our warnings so far."""
    caplog.set_level(logging.WARNING, logger="rlhf")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "rlhf"]


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows to a file: write_jsonl("data.jsonl", rows) -> path as text."""

    def write(name: str, rows: list) -> str:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Make a distribution importable: distribution("dist", {"module": code}, {"rlhf.rewards": {"name": "module"}})."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name: str, modules: dict[str, str], points: dict[str, dict[str, str]], requires: str = "") -> None:
        for module, code in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
            monkeypatch.delitem(sys.modules, module, raising=False)
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: an example\n"
        (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""))
        lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return make


@pytest.fixture
def vllm_server():
    """tests/vllm_server.py, a stand-in for `vllm serve`, running."""
    from tests.vllm_server import Server

    made = Server("/models/tiny")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def sent(monkeypatch):
    """The weights that TRL's client sends to a server of vLLM, by name; as if vLLM and a GPU were there."""
    pytest.importorskip("requests")
    from tests.vllm_server import without_nccl

    return without_nccl(monkeypatch)
