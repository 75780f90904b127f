"""Which tests need which extra of the package. Where it is not installed they are skipped and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmllm.errors import EXTRAS, is_installed

TESTS = Path(__file__).resolve().parents[1]
NEEDED = {
    "demo": ("app/", "commands/test_demo.py", "hosting/test_hosted_commands.py::test_the_demo"),
    "serve": ("serving/", "commands/test_serve.py", "benchmarks/test_scripts.py"),
    "train": (
        "train/",
        "docs/",
        "benchmarks/",
        "checkpoints/test_adapters.py",
        "commands/test_encode_many.py",
        "datasets/test_fault_cases.py",
        "datasets/test_moments.py::test_it_can_be_evaluated_and_trained_on",
        "datasets/test_stored.py",
        "hosting/test_hosted_qa.py::test_adapters",
        "modalities/test_border.py::test_the_trainer_of_transformers",
        "times/test_times.py::test_every_way_is_trained",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments3",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments4",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments5",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments6",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments7",
        "test_cli.py::test_bad_input_is_one_line_and_exit_code_2[arguments8",
        "test_rooms.py::test_libraries_of_the_same_name",
    ),
    "rl": (
        "reinforcement/test_run.py",
        "reinforcement/test_hosted.py",
        "commands/test_reinforce.py",
        "benchmarks/",
        "docs/",
    ),
    "tune": (
        "tuning/test_halving.py",
        "tuning/test_search.py",
        "commands/test_tune_reducer.py",
        "checkpoints/test_published_tuning.py",
        "docs/",
    ),
    "eval": (
        "evaluation/test_pictures.py",
        "hosting/test_hosted_commands.py::test_ask",
        "inference/test_plotting.py",
        "inference/test_overlay.py",
    ),
    "diffusers": (
        "checkpoints/test_flextok_checkpoint.py",
        "tokenizers/autoencoders/test_kl_autoencoder.py",
        "benchmarks/test_scripts.py::test_encoders_of_1d_tokens",
    ),
    "gguf": ("hub/test_gguf.py",),
    "kv": ("llm/codecs/test_kvcode.py", "benchmarks/test_scripts.py::test_a_kept_prefix"),
    "openclip": ("encoders/test_clip_names.py", "test_rooms.py::test_transformers_timm_and_open_clip"),
}
"""Extra -> how the names of its tests begin, seen from this folder."""


def reason_to_skip(test: str) -> str | None:
    """What is not installed for a test, and how to install it; None if nothing is missing."""
    for extra, beginnings in NEEDED.items():
        missing = [library for library in EXTRAS[extra] if not is_installed(library)]
        if missing and test.startswith(beginnings):
            return f"{', '.join(missing)} not installed: pip install 'mmllm[{extra}]'"
    return None


class SkippedModule(pytest.Module):
    """A file of tests that is not even imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(reason_to_skip(self.path.relative_to(TESTS).as_posix()) or "", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skips a whole file."""
    if module_path.is_relative_to(TESTS) and reason_to_skip(module_path.relative_to(TESTS).as_posix()):
        return SkippedModule.from_parent(parent, path=module_path)
    return None


def skip_without_extra(items: list[pytest.Item]) -> None:
    """Skips tests whose extra is not installed."""
    for item in items:
        if reason := reason_to_skip(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.skip(reason=reason))
