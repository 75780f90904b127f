"""The machine: ids of greedy decoding whatever is drafted, one pass for a tree, and what it refuses."""

import pytest
import torch
from greedy_checks import check_embeddings, check_greedy, through
from nearness import assert_near
from transformers import DynamicCache, LogitsProcessorList, QuantizedCache, StaticCache, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.draft import Draft
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.token_recycling import TokenRecycling, TokenRecyclingConfig
from mmllm.llm.cache import CACHE

FAMILIES = ("llama", "qwen2", "gemma")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, family, attention):
    model, method = make_decoder(family, attention), decoding_of("token-recycling")
    check_greedy(model, method, prompts(34), greedy, check_counts)  # 204 prompts with all families and attentions


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_layers_with_sliding_windows(make_decoder, prompts, greedy, attention):
    model, method = make_decoder("gemma3", attention), decoding_of("token-recycling:tree=20")
    for ids in prompts(10):
        assert through(model, method, ids, max_new_tokens=12) == greedy(model, ids, max_new_tokens=12)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_embeddings_and_left_padding(make_decoder, prompts, family):
    model, method = make_decoder(family), decoding_of("token-recycling:tree=20")
    check_embeddings(model, method, prompts(8))


def test_visual_tokens_in_the_prompt(make_model, prompts):
    from mmllm.tokens import VisualSequence

    torch.manual_seed(0)
    for family in FAMILIES:
        model, method = make_model(family), decoding_of("token-recycling:tree=20")
        for ids in prompts(4, vocabulary=100):
            video = VisualSequence(
                embeddings=torch.randn(1, 6, 32), mask=torch.ones(1, 6, dtype=torch.bool),
                frame=torch.arange(6)[None], blocks=(("frames", 6),),
            )  # fmt: skip
            ids = torch.cat([torch.tensor([[200]]), ids], dim=1)
            given = {"input_ids": ids, "sequences": {200: video}, "max_new_tokens": 10, "do_sample": False}
            assert torch.equal(model.generate(**given, custom_generate=method), model.generate(**given))


def test_sampled_ids_are_those_of_plain_sampling_with_the_same_seed(make_decoder, prompts):
    model, method = make_decoder(), decoding_of("token-recycling")
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95, "max_new_tokens": 10}
    for seed, ids in enumerate(prompts(15)):
        torch.manual_seed(seed)
        expected = model.generate(ids, **options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)


def test_a_draft_that_is_always_wrong_costs_a_pass_for_each_token(make_decoder, greedy, oracle, check_counts):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=13)
    method = oracle(answer, shift=1)
    assert through(model, method, ids, max_new_tokens=13) == answer
    check_counts(method.last, 13)
    assert method.last.rounds == 12
    assert method.last.matched == 0


def test_a_draft_that_is_always_right_gives_its_depth_and_one_more(make_decoder, greedy, oracle, check_counts):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    method = oracle(answer, depth=4)
    assert through(model, method, ids, max_new_tokens=16) == answer
    check_counts(method.last, 16)
    assert method.last.emitted_per_round == (5, 5, 5)
    assert method.last.acceptance == 1.0
    assert method.last.peak_kv_positions == 3 + 10 + 5


def test_an_end_token_inside_a_right_draft_ends_the_text(make_decoder, greedy, oracle):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    for place in range(1, 12):
        end = answer[place]
        first = answer.index(end)
        method = oracle(answer, depth=7)
        assert through(model, method, ids, max_new_tokens=16, eos_token_id=end) == answer[: first + 1]


def test_the_limit_inside_a_draft_is_kept(make_decoder, greedy, oracle):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    for limit in range(1, 12):
        assert through(model, oracle(answer, depth=7), ids, max_new_tokens=limit) == answer[:limit]


def test_stopping_criteria_are_asked_after_each_token(make_decoder, greedy, oracle):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    stop = StoppingCriteriaList([lambda text, _: torch.tensor([text.shape[1] >= 3 + 8])])
    assert through(model, oracle(answer), ids, max_new_tokens=16, stopping_criteria=stop) == answer[:8]


def test_a_streamer_gets_one_put_a_round(make_decoder, greedy, oracle):
    class Streamer(BaseStreamer):
        def __init__(self):
            self.puts, self.ended = [], False

        def put(self, value):
            self.puts.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    import functools

    model, ids, streamer = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]]), Streamer()
    answer = greedy(model, ids, max_new_tokens=11)
    method = oracle(answer)
    through(model, functools.partial(method, streamer=streamer), ids, max_new_tokens=11)
    assert streamer.puts == [answer[:1], answer[1:6], answer[6:11]]
    assert streamer.ended


def test_every_node_is_a_run_of_its_path_and_the_cache_is_a_fresh_one(make_decoder):
    for family in (*FAMILIES, "gemma3"):
        for attention in ("eager", "sdpa"):
            model, ids = make_decoder(family, attention), torch.tensor([[5, 9, 11, 4, 8, 7, 3]])
            reader, _ = CachedReader.of_embeddings(model, model.get_input_embeddings()(ids), torch.ones_like(ids))
            draft = Draft(tokens=torch.tensor([6, 7, 8, 9, 10, 11]), parents=torch.tensor([-1, 0, 0, 1, 2, 4]))
            logits = reader.read(draft.tokens, draft.parent_of)
            for node in range(len(draft)):
                path = [draft.ids[step] for step in draft.path_to(node)]
                alone = model(torch.cat([ids, torch.tensor([path])], dim=1)).logits[0, -1]
                assert_near(logits[node], alone)
            reader.settle([0, 2, 4])
            later = reader.read(torch.tensor([12]), [-1])[0]
            assert_near(later, model(torch.cat([ids, torch.tensor([[6, 8, 10, 12]])], dim=1)).logits[0, -1])


def test_embeddings_stand_in_for_tokens_and_nodes_without_tokens_are_never_accepted(make_decoder):
    from mmllm.decoding.acceptance import point
    from mmllm.decoding.writing import Written

    model, ids = make_decoder(), torch.tensor([[5, 9, 11]])
    words = model.get_input_embeddings()
    readers = [CachedReader.of_embeddings(model, words(ids), torch.ones_like(ids))[0] for _ in range(2)]
    tokens, parents = torch.tensor([6, 7]), [-1, 0]
    logits = readers[0].read(tokens, parents)
    assert_near(readers[1].read(tokens, parents, words(tokens)), logits)
    best = int(logits[0].argmax())
    draft = Draft(tokens=torch.tensor([6, best]), parents=torch.tensor(parents), is_token=torch.tensor([True, False]))
    text = Written(ids, LogitsProcessorList(), StoppingCriteriaList(), limit=20)
    assert point(draft, logits, text) == [0]
    assert text.new == [best]


def test_of_equal_siblings_the_longest_match_is_taken(make_decoder, greedy):
    from mmllm.decoding.acceptance import point
    from mmllm.decoding.writing import Written

    draft = Draft(tokens=torch.tensor([0, 1, 1, 2]), parents=torch.tensor([-1, 0, 0, 2]))
    logits = torch.eye(4)[[1, 2, 2, 3]]
    text = Written(torch.tensor([[0]]), LogitsProcessorList(), StoppingCriteriaList(), limit=20)
    assert point(draft, logits, text) == [0, 2, 3]
    assert text.new == [1, 2, 3]


def test_the_cache_that_is_returned_goes_on(make_decoder, greedy):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    out = model.generate(
        ids, max_new_tokens=8, do_sample=False, return_dict_in_generate=True,
        custom_generate=decoding_of("token-recycling"),
    )  # fmt: skip
    assert out.past_key_values.get_seq_length() == 3 + 8 - 1
    again = model.generate(out.sequences, past_key_values=out.past_key_values, max_new_tokens=5, do_sample=False,
                           custom_generate=decoding_of("token-recycling"))  # fmt: skip
    assert again[0].tolist() == [5, 9, 11, *greedy(model, ids, max_new_tokens=13)]


BAD_OPTIONS = {
    "beams": ({"num_beams": 2}, "num_beams"),
    "several": ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
    "scores": ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    "no cache": ({"use_cache": False}, "use_cache"),
    "chunks": ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    "static": ({"cache_implementation": "static"}, "StaticCache"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_do_not_work_are_refused_by_name(make_decoder, case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        make_decoder().generate(torch.tensor([[5, 9]]), custom_generate=decoding_of("token-recycling"),
                                max_new_tokens=4, **options)  # fmt: skip


@pytest.mark.parametrize("name", ["token-recycling", "prompt-lookup", "spectr"])
def test_a_batch_is_refused(make_decoder, name):
    with pytest.raises(ValueError, match="one text at a time, not a batch of 2"):
        make_decoder().generate(torch.tensor([[5, 9], [4, 7]]), custom_generate=decoding_of(name), max_new_tokens=4)


def test_caches_that_do_not_keep_every_position_are_refused(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9]])
    offloaded = DynamicCache(offloading=True) if torch.cuda.is_available() else None
    static = StaticCache(config=model.config, max_cache_len=32)
    for cache, name in ((static, "StaticCache"), (offloaded, "offloaded")):
        if cache is not None:
            with pytest.raises(ValueError, match=name):
                model.generate(ids, custom_generate=decoding_of("token-recycling"), past_key_values=cache)
    from mmllm.decoding.refusals import _kept_whole

    quantised = QuantizedCache.__new__(QuantizedCache)
    with pytest.raises(ValueError, match="QuantizedCache"):
        _kept_whole("token-recycling", quantised)


def test_flash_attention_and_linear_layers_are_refused(make_decoder):
    from mmllm.decoding.refusals import check_llm

    model = make_decoder()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        check_llm("token-recycling", model)
    model.config._attn_implementation = "sdpa"
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        check_llm("token-recycling", model)


def test_stages_inside_the_llm_are_refused_by_name(make_model):
    model = make_model(reducers=["fastv:layer=1,ratio=0.5"])
    with pytest.raises(ValueError, match="fastv works inside the LLM"):
        model.generate(torch.tensor([[5, 9]]), custom_generate=decoding_of("token-recycling"), max_new_tokens=4)


def test_logits_of_nan_are_refused(make_decoder, greedy):
    model = make_decoder()
    method = TokenRecycling(TokenRecyclingConfig())
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model.generate(torch.tensor([[5, 9]]), custom_generate=method, max_new_tokens=4, do_sample=False)


def test_a_draft_deeper_than_the_room_is_refused(make_decoder, oracle):
    class Deep(oracle):
        def start(self, request):
            source = super().start(request)
            source.propose = lambda root, room: Draft.chain([root, *[5] * (room + 1)])
            return source

    with pytest.raises(ValueError, match="depth"):
        through(make_decoder(), Deep([]), torch.tensor([[5, 9]]), max_new_tokens=4)


def test_a_placeholder_is_never_drafted(make_model, oracle):
    model = make_model()
    with pytest.raises(ValueError, match=r"id 20\d cannot be drafted"):
        through(model, oracle([200] * 9), torch.tensor([[5, 9]]), max_new_tokens=6)


def test_a_cache_with_a_beginning_of_the_prompt_is_used(make_decoder, greedy):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11, 20, 21]])
    cache = model(ids[:, :3], **{CACHE: DynamicCache()})[CACHE]
    out = model.generate(ids, do_sample=False, max_new_tokens=9, custom_generate=decoding_of("token-recycling"),
                         past_key_values=cache)  # fmt: skip
    assert out[0, 5:].tolist() == greedy(model, ids, max_new_tokens=9)
