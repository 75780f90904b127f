"""The loss of a training step: without additions it is the tokenizer's own, and its parts are counted by name."""

import frozen_networks
import pytest
import torch
from torch import nn

from mmllm.interfaces import Autoencoder
from mmllm.tokenizers.autoencoders.flextok import FlexTok, FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.latents import Latents, LatentsConfig
from mmllm.tokenizers.autoencoders.text_features import TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTok, TexTokConfig
from mmllm.train.image_losses.adversarial import AdversarialConfig
from mmllm.train.image_losses.perceptual import PerceptualConfig
from mmllm.train.image_losses.repa import RepaConfig
from mmllm.train.image_losses.training_loss import PictureTraining, TrainingLoss
from mmllm.train.stages.autoencoder import AutoencoderTraining

HALF = {"channels": 12, "grid": (4, 4), "registers": 8, "layers": 2, "width": 32, "head_width": 16}
CAPTIONS = ["a red circle", "a blue square", ""]


def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def textok(quantizer):
    text = TextFeaturesConfig(source=None, width=32, words=("red", "blue", "circle", "square", "a"), most_words=6)
    return TexTok(
        TexTokConfig(
            image_size=16, patch_size=4, tokens=4, width=32, layers=1, heads=4, text=text, quantizer=quantizer, codes=16
        )
    )


def flextok():
    latents = LatentsConfig(kind="pixels", stride=2)
    halves = {"encoder": FlexTokEncoderConfig(**HALF), "decoder": FlexTokDecoderConfig(**HALF)}
    return FlexTok(FlexTokConfig(image_size=16, latents=latents, **halves))


class Doubling(Autoencoder):
    """A tokenizer of another package: it has a `forward` and nothing else."""

    image_size, most_tokens, reads_text = 16, 1, True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.captions = None

    def forward(self, images, generator=None, captions=None):
        self.captions = captions
        return (self.weight * images).square().mean()


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: textok("none"), {"pixels"}),
        (lambda: textok("vq"), {"pixels", "codebook"}),
        (lambda: Latents(LatentsConfig(stride=2, channels=4, width=8)), {"pixels", "divergence"}),
        (flextok, {"reconstruction"}),
        (Doubling, {"reconstruction"}),
    ],
)
def test_without_additions_it_is_the_own_loss_to_the_last_bit(build, names):
    torch.manual_seed(0)
    part = build()
    whole = TrainingLoss(part, PictureTraining(), image_size=16)
    torch.manual_seed(1)
    found = whole(images(), CAPTIONS)["loss"]
    torch.manual_seed(1)
    text = {"captions": CAPTIONS} if getattr(part, "reads_text", False) else {}
    assert torch.equal(found, part(images(), **text))
    assert set(whole.means()) == names
    assert {name.removeprefix("part.") for name in whole.state_dict()} == set(part.state_dict())


def test_means_are_over_the_passes_since_the_last_call():
    part = Doubling()
    whole = TrainingLoss(part, PictureTraining(), image_size=16)
    whole(images(), CAPTIONS)
    assert part.captions == CAPTIONS
    whole(images() * 0, CAPTIONS)
    torch.testing.assert_close(whole.means()["reconstruction"], images().square().mean() / 2)
    assert whole.means() == {}
    whole(images(), CAPTIONS)
    torch.testing.assert_close(whole.means()["reconstruction"], images().square().mean())


def test_all_losses_and_gradients_are_finite_in_bfloat16(tmp_path):
    source = frozen_networks.dinov2(tmp_path / "dinov2")
    repa = RepaConfig(encoder=frozen_networks.DINOV2, source=source, hidden_width=16, grid=6)
    perceptual = PerceptualConfig(source=frozen_networks.resnet(tmp_path / "resnet"), layers=(0, 1))
    adversarial = AdversarialConfig(width=4, most_width=8, start=0.0)
    both = PictureTraining(perceptual=perceptual, adversarial=adversarial)
    for whole in (
        TrainingLoss(textok("vq"), both, image_size=16),
        TrainingLoss(flextok(), AutoencoderTraining(repa=repa), image_size=16),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = whole(images(), CAPTIONS)["loss"]
        loss.backward()
        assert loss.isfinite()
        gradients = [weight.grad for weight in whole.parameters() if weight.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
