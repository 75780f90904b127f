"""ATP trained through the whole pipeline on rendered clips: as many tokens as it is told, more for some questions."""

from itertools import pairwise

import pytest
import torch

from mmllm.evaluation.run import read_benchmark
from mmllm.inference.answering import VideoQA
from mmllm.inference.decisions import encoded_for, finished_pass
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.data import DataConfig
from mmllm.train.model_config import DecoderConfig, ModelConfig
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.language import LanguageTraining

RATIO, LAYERS = 0.6, 4


@pytest.mark.long  # a minute of training
@pytest.mark.timeout(1800)
def test_the_number_of_tokens_is_near_its_target_and_differs_between_questions(tmp_path):
    clips = SyntheticConfig(
        train_videos=60, val_videos=12, world="basic", families=("visible", "direct"), max_duration_s=20.0
    )
    recipe = Recipe(
        name="atp",
        data=DataConfig(synthetic=clips),
        model=ModelConfig(
            encoder="tiny:width=32,heads=2,channels=16+16+32",
            reducers=(f"atp:depths=0.25+0.5+0.75,ratio={RATIO},pace=0.1",),
            path="plain",
            decoder=DecoderConfig(width=32, layers=LAYERS, mlp_width=64),
            num_frames=6,
        ),
        stages=(LanguageTraining(max_steps=480, batch_size=6, learning_rate=0.005, questions_per_video=1),),
    )
    qa = VideoQA.from_pretrained(train(recipe, tmp_path, workers=1))
    model, averages, left = qa.model, [], []
    for question in read_benchmark(tmp_path / "data").questions:
        encoded = qa.encode_video(question.video)
        current = finished_pass(qa, encoded, question.question)
        averages.append(model.reducers[0].average(current, LAYERS, hard=True).item() / (6 * 16))
        left.append([decision.kept.sum().item() for _, decision in sorted(current.notes_of(model.reducers[0]).items())])
    mean, spread = torch.tensor(averages).mean().item(), torch.tensor(averages).std().item()
    print(f"average {mean:.4f} +- {spread:.4f}, target {RATIO}; left behind each stage {left[:6]}")
    assert mean == pytest.approx(RATIO, rel=0.05)
    assert spread > 0.003
    assert all(shallow >= deep for counts in left for shallow, deep in pairwise(counts))
    seen = encoded_for(qa, encoded, question.question)
    assert seen.kept.sum() == left[-1][-1]
