import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.tokens import VisualTokens


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp:depth=3,norm=true"])
def test_tokens_are_projected_one_by_one(name):
    project = registry.build("tokenizer", name, in_width=6, out_width=10, grid=(2, 2))
    tokens = VisualTokens(features=torch.randn(2, 3, 4, 6), grid=(2, 2))
    out = project(tokens)
    assert out.shape == (2, 3, 4, 10)
    shuffled = torch.tensor([2, 0, 3, 1])
    again = project(tokens.replace(features=tokens.features[:, :, shuffled]))
    torch.testing.assert_close(again.features, out.features[:, :, shuffled])


def test_the_mlp_has_llavas_parameter_names_and_the_exact_gelu():
    project = registry.build("tokenizer", "mlp", in_width=6, out_width=10, grid=(2, 2))
    assert sorted(project.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    x = torch.randn(1, 1, 4, 6)
    expected = project[2](torch.nn.functional.gelu(project[0](x)))
    torch.testing.assert_close(project(VisualTokens(features=x, grid=(2, 2))).features, expected)
    with pytest.raises(ConfigError, match=r"MlpConfig\.depth = 0"):
        registry.config_of("tokenizer", "mlp:depth=0")
