"""Models that transformers saved and loaded again are hosted alike: what a family reads of a configuration is written."""

import pytest
import torch
from tiny_inputs import PLACEHOLDERS
from tiny_models import some

from mmllm.hosting.model import HostedModel

GREEDY = {"max_new_tokens": 20, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}


def one_of_each_model():
    """A case for each class of transformers, with both kinds of media where there is one."""
    chosen = {param.values[0].base: param for param in some()}
    return list(chosen.values())


@pytest.mark.parametrize("case", one_of_each_model())
def test_a_saved_model_says_bit_by_bit_the_same(case, tmp_path):
    case.model.save_pretrained(tmp_path)
    model = type(case.model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    inputs = case.inputs()
    theirs = model.generate(**case.inputs(), **GREEDY, **LOGITS)
    assert torch.equal(theirs.sequences, case.model.generate(**case.inputs(), **GREEDY))
    host = HostedModel(model)
    ours = host.generate(inputs, host.encode(inputs), **GREEDY, **LOGITS)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(own, their) for own, their in zip(ours.logits, theirs.logits, strict=True))
