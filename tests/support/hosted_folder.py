"""Folders of tiny random models in transformers' own layout."""

import pytest
from tiny_models import CASES
from tiny_processors import processor


def save_hosted(name, folder):
    """Saves a model of `CASES` and its processor, as transformers does; returns the folder."""
    CASES[name].model.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """Folder of a tiny random Qwen3-VL."""
    return save_hosted("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl"))
