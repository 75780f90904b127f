"""Texts through a classifier: what stays follows from its probabilities, in chunks; times and question stay."""

import json

import pytest
import torch
from tokenizers.models import Unigram, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from mmllm.cli import main
from mmllm.errors import CheckpointError, ConfigError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.llmlingua2 import LlmLingua2Config
from mmllm.preprocessing.text_shortener import TextShortener
from tokenizers import Tokenizer

TEXT = "At 12.5 seconds the red circle starts to spin slowly, then at 31 seconds a blue square enters and stops."
WORDS = sorted(set(TEXT.replace(",", " ,").replace(".", " . ").split()))
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def classifier(folder, kind="bert", labels=2, positions=64):
    """A folder with a tiny classifier, random but for its output, which depends on the piece alone."""
    torch.manual_seed(1)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    names = list(special.values())
    if kind == "bert":
        tokenizer = Tokenizer(WordPiece({word: n for n, word in enumerate([*names, *WORDS])}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = BertPreTokenizer()
        config, made = BertConfig, BertForTokenClassification
    else:
        pieces = [*((name, 0.0) for name in names), *((f"▁{word}", -1.0) for word in WORDS), ("▁", -3.0)]
        tokenizer = Tokenizer(Unigram([*pieces, *((letter, -9.0) for letter in sorted(set(TEXT)))], unk_id=2))
        tokenizer.pre_tokenizer = Metaspace()
        config, made = XLMRobertaConfig, XLMRobertaForTokenClassification
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    settings = {**SMALL, "vocab_size": len(fast), "num_labels": labels, "max_position_embeddings": positions}
    made(config(**settings, pad_token_id=3)).save_pretrained(folder)
    return folder


def shortener(folder, **settings):
    return TextShortener(folder, LlmLingua2Config(**settings), lambda text: max(1, len(text) // 3))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_words_stay_in_order_and_numbers_stay(tmp_path, kind):
    short = shortener(classifier(tmp_path, kind), rate=0.4)(TEXT)
    assert len(short) < 0.8 * len(TEXT)
    assert "12.5" in short
    assert "31" in short
    rest = iter(TEXT)
    assert all(letter in rest for letter in short)


def test_rate_1_is_the_text_itself(tmp_path):
    text = f"  {TEXT}\n\n{TEXT} "
    assert shortener(classifier(tmp_path), rate=1.0)(text) == text


def test_times_stay_and_are_no_words(tmp_path):
    shorten = shortener(classifier(tmp_path), rate=0.3)
    text = f"From <12.4> on: {TEXT} <t3> <t17> {TEXT}"
    short = shorten(text)
    assert [part in short for part in ("<12.4>", "<t3> <t17>")] == [True, True]
    assert shorten("<t3> <t17>") == "<t3> <t17>"
    assert shorten(" \n") == " \n"


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_long_text_is_read_in_chunks_that_fit(tmp_path, kind):
    shorten = shortener(classifier(tmp_path, kind, positions=24), rate=0.5)
    lengths = []
    shorten.model.register_forward_pre_hook(lambda _module, args: lengths.append(args[0].shape[1]))
    short = shorten(" ".join([TEXT] * 5))
    assert max(lengths) <= 24
    assert len(lengths) > 5
    assert short.count("12.5") == 5


def test_as_released_chunks_are_glued(tmp_path):
    folder = classifier(tmp_path, "xlm-roberta", positions=24)
    text = " ".join([TEXT] * 3)
    fixed, released = (shortener(folder, rate=0.9, compat=compat)(text) for compat in ("fixed", "released"))
    assert set(fixed.replace(",", "").replace(".", "").split()) <= set(text.replace(",", "").replace(".", "").split())
    assert max(len(word) for word in released.split()) > max(len(word) for word in text.split())


def test_history_and_system_prompt_are_shortened_and_the_question_is_not(tmp_path, short_clip, monkeypatch):
    qa = VideoQA.from_pretrained(DEFAULT)
    qa.max_new_tokens = 4
    read = []
    prompt = qa.prompt
    monkeypatch.setattr(qa, "prompt", lambda *given: read.append(given) or prompt(*given))
    video = qa.encode_video(short_clip)
    shorten = shortener(classifier(tmp_path), rate=0.4)
    question = "When does the red circle spin?"
    qa.ask_all(video, [question], histories=[[(TEXT, TEXT)]], systems=[TEXT], shorten=shorten)
    ((asked, _, history, system),) = read
    assert asked == question
    assert list(history) == [(shorten(TEXT), shorten(TEXT))]
    assert system == shorten(TEXT) != TEXT


def test_the_command_reads_a_text_first(tmp_path, short_clip, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    folder = classifier(tmp_path / "classifier")
    words = ["ask", str(short_clip), "When does it spin?", "--json", "--max-new-tokens", "4"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--system", str(tmp_path / "text.txt"), "--shorten", str(folder), "--shorten-rate", "0.3"])
    assert not ended.value.code
    assert "text" in json.loads(capsys.readouterr().out)
    (tmp_path / "empty.txt").write_text(" ")
    for more, said in (
        (["--shorten", str(folder)], "give both"),
        (["--system", str(tmp_path / "missing.txt")], "cannot be read as text"),
        (["--system", str(tmp_path / "empty.txt")], "is empty"),
        (["--system", str(tmp_path / "text.txt"), "--shorten", str(folder), "--shorten-rate", "0"], "rate"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="with 2 labels, not by bert with 3"):
        shortener(classifier(tmp_path / "three", labels=3))
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="holds no model"):
        shortener(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no such folder"):
        shortener(tmp_path / "missing")
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded as a token classifier"):
        shortener(tmp_path / "none")
