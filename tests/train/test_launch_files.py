"""The files for `accelerate launch` are what accelerate reads."""

from pathlib import Path

import pytest
import yaml

import mmllm

FOLDER = Path(mmllm.__file__).parent / "train" / "launch"
KINDS = {"cpu": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def test_there_is_one_for_each_way():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_accelerate_reads_it(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    assert config.use_cpu is (name == "cpu")
    assert (config.num_processes, config.mixed_precision) == ((2, "no") if name == "cpu" else (8, "bf16"))


def test_fsdp_names_no_class_of_layers_and_spreads_its_checkpoints():
    fields = yaml.safe_load((FOLDER / "fsdp.yaml").read_text())["fsdp_config"]
    assert "fsdp_transformer_layer_cls_to_wrap" not in fields
    assert (fields["fsdp_version"], fields["fsdp_state_dict_type"]) == (2, "SHARDED_STATE_DICT")
