"""Policies where models are asked: VideoQA, kept prefixes, commands, reducers, decoding methods, hosted models."""

import json
import threading

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import processor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from mmllm import cli, registry
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.samples import read_samples
from mmllm.hosting.model import HostedModel
from mmllm.inference.answering import VideoQA
from mmllm.inference.contexts import policies_of, written
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.prefix_file import save_prefix
from mmllm.llm.counters import ContextCounts
from mmllm.tokens import VideoClip

QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?", "When?"]
SMALL = [
    "h2o:heavy=4,recent=4",
    "streaming:sinks=2,window=6",
    "streaming:window=6,positions=inside",
    "keyformer:budget=8",
    "random:drawn=4,recent=4",
]


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, untrained_qa):
    folder = tmp_path_factory.mktemp("model")
    untrained_qa.model.save_pretrained(folder)
    untrained_qa.processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("policy", ["full", "h2o:heavy=500,recent=500", "streaming", "window:recent=500"])
def test_an_ample_budget_changes_no_answer_and_says_so(untrained_qa, encoded, policy):
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    answers = untrained_qa.ask_all(encoded, QUESTIONS, context=policy)
    assert answers == plain
    assert plain[0].context is None
    for answer in answers:
        said = answer.to_json()["context"]
        assert said["policies"] == [policy]
        assert said["dense"]
        assert said["bytes_needed"] == said["bytes_dense"] <= said["bytes_held"]


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("policy", SMALL)
def test_a_batch_of_questions_is_answered_as_one_by_one(untrained_qa, encoded, policy, keeps):
    qa = untrained_qa.with_context(policy)
    qa.keeps_prefix = keeps
    together = qa.ask_all(encoded, QUESTIONS)
    assert [qa.ask(encoded, question) for question in QUESTIONS] == together
    said = together[0].context
    assert not said["dense"]
    assert said["bytes_needed"] < said["bytes_dense"]
    assert len(said["kept_by_frame"]) == len(encoded.times_s)
    assert sum(said["kept_by_frame"]) <= 10.5


def test_a_kept_prefix_is_that_of_its_policy(untrained_qa, encoded):
    """The same encoded video is asked under several policies; none of them sees the cache of another."""
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    wanted = {}
    for policy in SMALL:
        qa, fresh = untrained_qa.with_context(policy), untrained_qa.encode_again(encoded)
        wanted[policy] = qa.ask_all(fresh, QUESTIONS)
    for policy in SMALL * 2:
        assert untrained_qa.ask_all(encoded, QUESTIONS, context=policy) == wanted[policy]
        assert untrained_qa.ask_all(encoded, QUESTIONS) == plain


def test_two_threads_under_two_policies(untrained_qa, encoded):
    wanted = {policy: untrained_qa.ask(encoded, QUESTIONS[0], context=policy) for policy in SMALL[:2]}
    wrong = []

    def ask(policy):
        for _ in range(5):
            if untrained_qa.ask(encoded, QUESTIONS[0], context=policy) != wanted[policy]:
                wrong.append(policy)

    threads = [threading.Thread(target=ask, args=(policy,)) for policy in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Aware(type(registry.build("context", "h2o"))):
    """A policy that looks at the question."""

    depends_on_question = True


def test_a_policy_that_looks_at_the_question_keeps_no_prefix(untrained_qa):
    qa = untrained_qa.with_context("h2o")
    assert qa.prefix_problem is None
    qa.model.context = [Aware(qa.model.context[0].config)]
    assert "'h2o' decides inside the LLM by what follows the video" in qa.prefix_problem
    assert not qa.keeps({})


@pytest.mark.parametrize("first", ["fastv:layer=1,ratio=0.5", "random:keep=6"])
def test_reducers_and_policies_compose(untrained_qa, encoded, first):
    reduced = untrained_qa.with_stages(reducers=[first])
    video = reduced.encode_again(encoded)
    plain = reduced.ask_all(video, QUESTIONS)
    assert reduced.ask_all(video, QUESTIONS, context="h2o:heavy=500,recent=500") == plain
    small = reduced.ask(video, QUESTIONS[0], context="h2o:heavy=3,recent=3")
    assert small.context["bytes_needed"] < small.context["bytes_dense"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_a_stage_that_removes_positions_and_an_ample_budget(make_model, family):
    model = make_model(family, decoder={"num_hidden_layers": 4}, reducers=["atp:depths=0.25+0.5,ratio=0.5"])
    for stage in model.reducers[0].stages:
        torch.nn.init.constant_(stage.head_r.bias, 0.2)
        torch.nn.init.constant_(stage.head_s.bias, 0.4)
    pixels = torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    asked = {"input_ids": torch.tensor([[5, 6, 7, 200, 8, 9, 10, 11]]), "pixel_values_videos": pixels}
    asked |= {"max_new_tokens": 8, "min_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    alone = model.generate(**asked)
    for policy in ("h2o:heavy=500,recent=500", "streaming", "keyformer:budget=500"):
        counts = ContextCounts()
        both = model.with_stages(context=[policy]).generate(**asked, context_counts=counts)
        assert torch.equal(both.sequences, alone.sequences)
        torch.testing.assert_close(torch.stack(both.logits), torch.stack(alone.logits), atol=1e-5, rtol=1e-5)
        assert len({record.keys.shape[2] for record in counts.records}) > 1  # some positions never reach the last layer
    small = ContextCounts()
    model.with_stages(context=["h2o:heavy=3,recent=3,protect=none"]).generate(**asked, context_counts=small)
    assert {record.keys.shape[2] for record in small.records} == {6}


@pytest.mark.parametrize("method", ["token-recycling", "prompt-lookup", "assisted:layers=1"])
def test_decoding_methods_are_refused_by_name(untrained_qa, encoded, method):
    with pytest.raises(ConfigError, match=rf"decoding {method.split(':')[0]}: h2o works inside the LLM"):
        untrained_qa.ask(encoded, QUESTIONS[0], context="h2o", decoding=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "static"}, "static.*need a dynamic cache.*kvcode"),
        ({"cache_implementation": "quantized"}, "quantized.*need a dynamic cache.*kvcode"),
        ({"cache_implementation": "offloaded"}, "offloaded.*need a dynamic cache"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: after a stage has removed keys"),
        ({"use_cache": False}, "use_cache = False: a stage that removes or chooses keys"),
    ],
)
def test_options_of_generate_that_do_not_work(untrained_qa, encoded, options, message):
    with pytest.raises(ConfigError, match=message):
        untrained_qa.ask(encoded, QUESTIONS[0], context="h2o", **options)


def test_guessed_tokens_are_refused_by_scores_and_taken_back_by_a_whole_cache(untrained_qa, encoded):
    with pytest.raises(ConfigError, match="noted what guessed tokens looked at"):
        untrained_qa.ask(encoded, QUESTIONS[0], context="h2o:rule=mask", prompt_lookup_num_tokens=3)
    guessed = untrained_qa.ask(encoded, QUESTIONS[0], context="full", prompt_lookup_num_tokens=3)
    assert guessed == untrained_qa.ask(encoded, QUESTIONS[0])


def test_a_file_of_a_kept_video_is_refused_with_a_policy(untrained_qa, encoded, tmp_path):
    save_prefix(tmp_path / "clip.kv", untrained_qa, encoded)
    with pytest.raises(ConfigError, match="context h2o: a file holds no record of its keys"):
        untrained_qa.ask(tmp_path / "clip.kv", QUESTIONS[0], context="h2o")
    small = untrained_qa.with_context("h2o")
    with pytest.raises(ConfigError, match="h2o keeps tensors of its own beside the LLM's cache"):
        save_prefix(tmp_path / "small.kv", small, small.encode_again(encoded))


def test_caches_of_other_kinds_are_refused(make_model):
    model = make_model(context=["h2o"])
    ids = torch.tensor([[5, 6, 7, 8]])
    for cache, kind in [
        (StaticCache(config=model.config.text_config, max_cache_len=20), "StaticCache"),
        (EncoderDecoderCache(DynamicCache(), DynamicCache()), "EncoderDecoderCache"),
    ]:
        with pytest.raises(ConfigError, match=f"need a DynamicCache, not {kind}; a quantised one"):
            model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=2)


def test_models_in_which_no_policy_works(make_model):
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    with pytest.raises(ConfigError, match="full_attention; this LLM has sliding_attention"):
        make_model("qwen2", decoder=windows, context=["h2o"])
    longer = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(ConfigError, match="frequencies of rotary embedding 'dynamic' change"):
        make_model(decoder=longer, context=["streaming:positions=inside"])
    assert make_model(decoder=longer, context=["streaming"]).context  # absolute positions turn no key


def test_no_training_with_a_policy_that_evicts_or_chooses(make_model):
    ids = torch.tensor([[5, 6, 7, 8]])
    for policy in ("h2o", "h2o:rule=mask"):
        model = make_model(context=[policy]).train()
        with pytest.raises(ConfigError, match=r"h2o removes or chooses keys of the cache.*cannot work in training"):
            model(input_ids=ids, labels=ids)
    assert make_model(context=["full"]).train()(input_ids=ids, labels=ids).loss.isfinite()


def test_scores_that_are_no_numbers_are_refused(make_model):
    model = make_model(context=["h2o:heavy=2,recent=2,protect=none"])
    model.language_model.base_model.layers[1].self_attn.q_proj.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="not a number, so no key can be chosen"):
        model.generate(input_ids=torch.arange(5, 25)[None], max_new_tokens=3)


def test_two_policies(untrained_qa):
    with pytest.raises(ConfigError, match="one stage at most removes keys from the cache, not h2o and window"):
        untrained_qa.with_context(["h2o", "window"])
    with pytest.raises(ConfigError, match="context 'h2o' and 'h2o' both decide what is seen"):
        untrained_qa.with_context(["h2o", "h2o:rule=mask"])
    assert len(untrained_qa.with_context(["full", "h2o"]).context) == 2


def test_descriptions():
    assert policies_of("h2o:heavy=0.2")[0]["heavy"] == 0.2
    assert policies_of([]) == []
    assert written(policies_of(["h2o:heavy=0.2,protect=none", {"name": "full"}])) == [
        "h2o:protect=none,heavy=0.2",
        "full",
    ]
    with pytest.raises(ConfigError, match="unknown context 'h20'; did you mean 'h2o'"):
        policies_of("h20")


# --- commands ---------------------------------------------------------------------------------------------------


def run(command, capsys):
    """What a command prints to both streams."""
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert not ended.value.code
    return capsys.readouterr()


def test_ask_says_what_was_held_and_draws_it(saved, short_clip, tmp_path, capsys):
    command = ["ask", str(short_clip), QUESTIONS[0], "--model", str(saved), "--context", "h2o:heavy=4,recent=4"]
    said = json.loads(run([*command, "--json", "--plot", str(tmp_path / "held.png")], capsys).out)
    assert said["context"]["policies"] == ["h2o:heavy=4,recent=4"]
    assert (tmp_path / "held.png").stat().st_size > 1000
    assert "context: h2o:heavy=4,recent=4:" in run(command, capsys).err


def test_eval_says_what_was_held(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "held"
    command = ["eval", "default", "--render-seed", "7", "--render-videos", "1", "--no-shuffle", "--limit", "1",
               "--output", str(output), "--context", "h2o:heavy=0.2,recent=0.2"]  # fmt: skip
    assert "Context h2o:heavy=0.2,recent=0.2:" in " ".join(run(command, capsys).out.split())
    said = json.loads((output / "metrics.json").read_text())["context"]
    assert said["policies"] == ["h2o:heavy=0.2,recent=0.2"]
    assert 0 < said["bytes_held"] < said["bytes_dense"]
    (file,) = [path for path in output.rglob("*.jsonl") if "context" in path.read_text()]
    samples = read_samples(file)
    assert sum(sample.context["bytes_held"] for sample in samples) == pytest.approx(said["bytes_held"] * len(samples))
    assert all("kept_by_frame" not in sample.context for sample in samples)
    assert json.loads((output / "answered_by.json").read_text())["config"]["context"][0]["name"] == "h2o"


def test_tokens_and_list(saved, capsys):
    sizes = []
    for policy in ("full", "window:recent=10"):
        cost = json.loads(run(["tokens", str(saved), "--context", policy, "--json"], capsys).out)
        sizes.append(cost["kv_cache_bytes"] * cost["stages"][-1]["tokens"] // cost["kv_cache_bytes_dense"])
    assert sizes[1] == 10 < sizes[0]
    rows = {row["name"]: row for row in json.loads(run(["list", "contexts", "--json"], capsys).out)["contexts"]}
    assert rows["h2o"]["does"] == "evict"
    assert rows["h2o"]["question"] == "blind"
    assert rows["full"]["training"] == "training-free"


# --- hosted models ----------------------------------------------------------------------------------------------


def clip():
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(4) / 2, duration_s=4.0)


def hosted(name):
    return HostedVideoQA(HostedModel(CASES[name].model, processor(name)), max_new_tokens=8)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_hosted_models(name):
    qa = hosted(name)
    video = qa.encode_video(clip())
    options = {"suppress_tokens": [190, 191]}
    plain = qa.ask_all(video, QUESTIONS, **options)
    assert qa.ask_all(video, QUESTIONS, context="h2o:heavy=500,recent=500", **options) == plain
    small = qa.with_context("h2o:heavy=3,recent=3,protect=system+time+question")
    together = small.ask_all(video, QUESTIONS, **options)
    assert [small.ask(video, question, **options) for question in QUESTIONS] == together
    said = together[0].context
    assert said["bytes_needed"] < said["bytes_dense"]
    assert 0 < sum(said["kept_by_frame"]) <= 6.5
    assert qa.costs(4)[1] > small.costs(4)[1]
    assert small.identity()["hosted"]["context"] == small.context


def test_a_hosted_model_with_several_numbers_a_position_turns_no_key():
    with pytest.raises(ConfigError, match="multi-axis rotary embedding"):
        hosted("qwen2_5_vl").with_context("streaming:positions=inside")
    assert hosted("internvl").with_context("streaming:positions=inside,window=8").context


def test_counters_of_a_prompt_of_text(make_model):
    model, counts = make_model(context=["window:recent=4"]), ContextCounts()
    model.generate(input_ids=torch.arange(5, 25)[None], max_new_tokens=3, context_counts=counts)
    assert counts.kept_by_frame == []
    assert counts.held_bytes == counts.needed_bytes == 2 * 2 * 2 * 4 * 8 * 4


def test_a_saved_model_has_its_policies_again(untrained_qa, tmp_path):
    """Settings of policies such as shares of depth are no sizes of the model."""
    context = "lazyllm:depths=0.3+0.6,keep=0.5+0.4"
    qa = untrained_qa.with_context(context)
    qa.model.save_pretrained(tmp_path)
    qa.processor.save_pretrained(tmp_path)
    assert VideoQA.from_pretrained(tmp_path).context == policies_of(context)
    assert VideoQA.from_pretrained(tmp_path, context="h2o").context == policies_of("h2o")
