"""A saved model goes to the hub whole, with its card: tried with a hub on this machine."""

import huggingface_hub.constants
import pytest
from hub_stub import HubStub, running
from huggingface_hub import ModelCard as HubCard

from mmllm import cli
from mmllm.errors import InputError, MmllmError
from mmllm.hub.publishing import checked_repository, upload


@pytest.fixture
def hub(monkeypatch):
    stub = HubStub()
    with running(stub) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield stub


@pytest.fixture
def folder(untrained_qa, tmp_path):
    untrained_qa.model.save_pretrained(tmp_path / "model")
    untrained_qa.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_put_on_the_hub_with_its_card(hub, folder, capsys):
    (folder / "eval").mkdir()
    (folder / "eval" / "samples.jsonl").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["card", str(folder), "--licence", "apache-2.0", "--push", "someone/finder", "--private"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/someone/finder/commit/1"
    files = hub.repositories["someone/finder"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "modeling_mmllm.py"} <= set(files)
    assert not [name for name in files if name.startswith("eval")]
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = HubCard(files["README.md"].decode()).data
    assert (card.library_name, card.pipeline_tag, card.license) == ("mmllm", "video-text-to-text", "apache-2.0")
    assert hub.created[0].get("private") or hub.created[0]["visibility"] == "private"  # it has two names for it
    assert hub.tokens == {"Bearer hf_secret"}


def test_transformers_own_way_puts_model_and_processor_on_the_hub(hub, untrained_qa):
    untrained_qa.model.push_to_hub("someone/finder")
    untrained_qa.processor.push_to_hub("someone/finder")
    files = hub.repositories["someone/finder"]
    assert {"config.json", "model.safetensors", "modeling_mmllm.py", "tokenizer.json", "processor_config.json"} <= set(
        files
    )


def test_a_hub_that_refuses_is_quoted(hub, folder):
    hub.refuses = True
    with pytest.raises(MmllmError, match=r"someone/finder: the hub has not taken the model: .*403"):
        upload(folder, "someone/finder")


@pytest.mark.parametrize("name", ["finder", "someone/finder/again", "../finder", "some one/finder", ""])
def test_a_name_that_the_hub_does_not_have(name):
    with pytest.raises(InputError, match="write owner/name"):
        checked_repository(name)
