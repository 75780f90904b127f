"""FSDP 2 in two gloo processes: the steps of one process, a checkpoint with a file of each process, and going on."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.utils import DistributedType
from hosted_folder import hosted
from same_training import assert_same_training

import mmllm
from mmllm.errors import ConfigError
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.spreading import layer_classes

__all__ = ["hosted"]
pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(scope="module")
def launched():
    """The variables that `accelerate launch --config_file mmllm/train/launch/fsdp.yaml` sets."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = Path(mmllm.__file__).parent / "train" / "launch" / "fsdp.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "-m", "mmllm"])
    variables = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in variables.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


def settings(base, accumulation, rank=0):
    training = FinetuneTraining(
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        batch_size=2,
        save_steps=1,
        logging_steps=1,
        lora_rank=rank,
    )
    return FinetuneConfig(model=str(base), training=training)


def spread(config, file, output, environment):
    """Fine-tunes under FSDP, which accelerate else leaves out, without a word, where there is no GPU."""
    os.environ.update(environment)
    prepare = PartialState.__init__

    def as_on_a_gpu(self, *arguments, **options):
        prepare(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_on_a_gpu
    finetune(config, file, output, workers=0)


def test_two_processes_train_as_one_and_go_on(together, launched, own_clips, tiny_base, tmp_path):
    file, one, two = own_clips / "clips.jsonl", tmp_path / "one", tmp_path / "two"
    finetune(settings(tiny_base, 2), file, one, workers=0)
    together(2, spread, settings(tiny_base, 1), file, two, launched)
    assert_same_training(one, two, STEPS)
    checkpoints = two / "language" / "checkpoints"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        files = {path.name.split("_")[2] for path in (checkpoints / "checkpoint-2" / part).glob("*.distcp")}
        assert files == {"0", "1"}, "a file of each process"
    # stopped after the second step: the checkpoint of the third is not there yet, and no model
    shutil.rmtree(checkpoints / "checkpoint-3")
    shutil.rmtree(two / "model")
    together(2, spread, settings(tiny_base, 1), file, two, launched)
    assert_same_training(one, two, STEPS)


def test_a_ring_under_fsdp_trains_as_one(together, launched, own_clips, tiny_base, tmp_path):
    file, one, two = own_clips / "clips.jsonl", tmp_path / "one", tmp_path / "two"
    finetune(settings(tiny_base, 1), file, one, workers=0)
    ring = settings(tiny_base, 1)
    together(2, spread, replace(ring, training=replace(ring.training, ring=2)), file, two, launched)
    assert_same_training(one, two, STEPS)


def refused(reason, train, *arguments):
    with pytest.raises(ConfigError, match=reason):
        train(*arguments)


def ignored(config, file, output, environment):
    os.environ.update(environment)
    finetune(config, file, output, workers=0)


def test_fsdp_that_accelerate_ignores_is_an_error(together, launched, own_clips, tiny_base, tmp_path):
    data = own_clips / "clips.jsonl", tmp_path / "run", launched
    together(2, refused, "FSDP was asked for", ignored, settings(tiny_base, 1), *data)


def test_a_layer_that_the_model_does_not_have_is_refused(together, launched, own_clips, tiny_base, tmp_path):
    named = {**launched, "FSDP_TRANSFORMER_CLS_TO_WRAP": "GemmaDecoderLayer"}
    data = own_clips / "clips.jsonl", tmp_path / "run", named
    reason = "GemmaDecoderLayer.*FSDP spreads its own: LlamaDecoderLayer"
    together(2, refused, reason, spread, settings(tiny_base, 1), *data)


def test_adapters_are_refused(together, launched, own_clips, tiny_base, tmp_path):
    data = own_clips / "clips.jsonl", tmp_path / "run", launched
    together(2, refused, "lora_rank = 0, or take", spread, settings(tiny_base, 1, 4), *data)


def test_another_number_of_processes_is_refused(together, launched, own_clips, tiny_base, tmp_path):
    file, run = own_clips / "clips.jsonl", tmp_path / "run"
    together(2, spread, settings(tiny_base, 1), file, run, launched)
    with pytest.raises(ConfigError, match="processes: 2 -> 1"):
        finetune(settings(tiny_base, 1), file, run, workers=0)


def test_the_layers_are_those_of_the_llm(make_model):
    model = make_model()
    assert layer_classes(model) == ["LlamaDecoderLayer"]
    assert layer_classes(model.encoder) == []


def test_a_hosted_model_is_trained_and_saved_whole(together, launched, own_clips, hosted, tmp_path):
    file, one, two = own_clips / "clips.jsonl", tmp_path / "one", tmp_path / "two"
    finetune(settings(hosted, 2), file, one, workers=0)
    together(2, spread, settings(hosted, 1), file, two, launched)
    assert_same_training(one, two, STEPS)
