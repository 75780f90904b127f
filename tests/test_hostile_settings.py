"""Settings from flags, recipes and text that no program can use: each a short ConfigError or InputError."""

import pytest

from mmllm import registry
from mmllm.cli import main
from mmllm.commands.train import fields_of_file
from mmllm.errors import InputError, is_out_of_memory
from mmllm.fields import decode, shown
from mmllm.modeling.tower import read_scores
from mmllm.train.recipes import recipe

LONG = "9" * 60


@pytest.mark.parametrize(
    "value",
    ["²", "1²", "1e309", "-1e309", "nan", "inf", LONG, "9" * 5000, 10**400, int(LONG), 1e400, float("nan"), "", "1.5"],
)
def test_no_whole_number(value):
    with pytest.raises(InputError) as refused:
        decode(int, value, "seed")
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("value", ["²", "1e309", "nan", "-inf", 10**400, float("inf"), "1,5", "x" * 11_000])
def test_no_finite_number(value):
    with pytest.raises(InputError) as refused:
        decode(float, value, "rate")
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("value", "number"), [("2e3", 2000), ("-7", -7), (2.0, 2), (2**62, 2**62), ("+3", 3), ("٣", 3)]
)
def test_whole_numbers_stay_exact(value, number):
    assert decode(int, value, "seed") == number


@pytest.mark.parametrize(
    ("words", "least"),
    [
        (["eval", "default-small", "here"], 1),
        (["tune-reducer", "default-small", "here"], 1),
        (["train", "smoke"], 0),
        (["finetune", "here", "--model", "default-small"], 0),
        (["reinforce", "here", "--model", "default-small"], 0),
        (["train-draft", "fastdraft", "--model", "default-small"], 0),
        (["train-tokenizer", "textok-tiny"], 0),
    ],
)
def test_numbers_of_workers(words, least, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("[]")
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--workers", str(least - 1)])
    assert f"--workers {least - 1}: must be from {least} to" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("seed", [int(LONG), -1, 2**32, "²", "1e309", [1]])
def test_seeds_of_a_recipe(seed):
    with pytest.raises(InputError, match="seed"):
        recipe("smoke").changed({"seed": seed})
    assert recipe("smoke").changed({"seed": 2**32 - 1}).seed == 2**32 - 1


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 5000, b"{a: " * 5000, b"\xff\xfe\x00", b"seed: " + b"9" * 5000, b"- 1", b"seed: [",
        b"!!python/object:os.x {}",
        b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (n, n, *[n - 1] * 8)
                                                for n in range(98, 112)),
        b"a: &a [*a]", b"x: 2020-99-99", b"#" * (1 << 21), b"model: " + b"x" * 11_000,
    ],
)  # fmt: skip
def test_files_of_settings(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        recipe("smoke").changed(fields_of_file(file), "recipe.yaml")
    assert len(str(refused.value)) < 1200


def test_a_folder_is_no_file_of_settings(tmp_path):
    with pytest.raises(InputError, match="no file"):
        fields_of_file(tmp_path)


@pytest.mark.parametrize(
    "text", ["fastervlm:keep=²", "fastervlm:keep=1e309", "uniform:ratio=nan", "uniform:" + "x" * 11_000]
)
def test_settings_of_a_part(text):
    with pytest.raises(InputError) as refused:
        registry.config_of("reducer", text)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["cls_attention@²", "cls_attention@--1", "cls_attention@" + LONG, "cls_attention@"])
def test_layers_of_a_score(name):
    with pytest.raises(InputError, match=r"layers|score"):
        read_scores([name], encoder="clip", offers=["cls_attention"], layers=4)


def test_long_and_deep_values_are_cut():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 11_000, list(range(10_000)), int(LONG) ** 50):
        assert len(shown(value)) < 150


@pytest.mark.parametrize(
    "message", ["[enforce fail] can't allocate memory", "libtorch_cpu.so: failed to map segment from shared object"]
)
def test_memory_that_is_missing_at_an_import(message):
    assert is_out_of_memory(ImportError(message))
