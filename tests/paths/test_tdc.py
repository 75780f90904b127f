"""The TDC path: order, counts and budget; what each token depends on; and what is refused."""

import dataclasses

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.modeling.scenes import frame_similarity
from mmllm.paths.tdc import TdcConfig, TdcPath
from mmllm.tokens import Tiling, VisualTokens

WORDS = ("when", "is", "the", "red", "square", "green")
SMALL = {
    "tokens": 3, "cuts": 2, "window": 4, "width": 12, "layers": 2, "heads": 2, "mlp_width": 16, "frame_tokens": 12,
    "question_words": WORDS, "most_words": 8, "positions": 16, "max_length": 4096,
}  # fmt: skip
D, GRID = 10, (3, 4)
FRAME = 12 + 3  # patches and row ends


def path_of(**changes):
    torch.manual_seed(1)
    return TdcPath(TdcConfig(**{**SMALL, **changes}), width=D, audio_width=6).eval()


def tokens_of(frames=14, videos=1, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(videos, frames, 12, D, generator=generator)
    question = torch.tensor([[4, 5, 6, 7]]).repeat(videos, 1)
    tokens = VisualTokens(features=features, grid=GRID, question=question, **fields)
    return tokens.replace(similarity=frame_similarity(tokens))


def changed_frame(tokens, frame):
    """Another picture in one frame; the cuts stay where they are."""
    features = tokens.features.clone()
    features[:, frame] = torch.randn(12, D, generator=torch.Generator().manual_seed(frame + 100))
    return tokens.replace(features=features)


def tokens_of_frame(sequence, frame):
    return sequence.embeddings[0][(sequence.frame[0] == frame) & sequence.mask[0]]


def calls(path):
    """The number of frames of each call of the compressor, filled while the path runs."""
    counted = []
    path.compressor.register_forward_hook(lambda module, given, out: counted.append(len(out)))
    return counted


@torch.no_grad()
def test_windows_come_in_time_order_each_frame_ended_by_a_separator():
    path, tokens = path_of(), tokens_of()
    sequence, windows = path(tokens), path.scenes(tokens, 0).windows
    assert sum(count for _, count in windows) == 14
    expected = sum(FRAME + 1 + (count - 1) * (3 + 1) for _, count in windows)
    assert sequence.mask.sum() == sequence.embeddings.shape[1] == expected
    assert sequence.blocks == (("scenes", expected),)
    position = 0
    for first, count in windows:
        static = sequence.embeddings[0, position : position + FRAME]
        rows = tokens.features[0, first].view(3, 4, D)
        assert torch.equal(static, torch.cat([rows, path.newline.expand(3, 1, D)], dim=1).flatten(0, 1))
        assert sequence.place[0, position : position + 5].tolist() == [0, 1, 2, 3, -2]
        position += FRAME
        assert torch.equal(sequence.embeddings[0, position], path.frame_seg)
        position += 1
        for frame in range(first + 1, first + count):
            context = sequence.embeddings[0, position : position + 3]
            torch.testing.assert_close(context.norm(dim=-1), torch.ones(3))
            assert sequence.frame[0, position : position + 4].tolist() == [frame] * 4
            assert sequence.place[0, position : position + 4].tolist() == [-2] * 4
            assert torch.equal(sequence.embeddings[0, position + 3], path.frame_seg)
            position += 4
    sequence.check_places()


@torch.no_grad()
def test_a_short_clip_keeps_every_frame_and_compresses_nothing():
    path = path_of(cuts=24, window=8)
    counted = calls(path)
    for frames in (1, 2, 25):
        assert path(tokens_of(frames)).mask.sum() == frames * (FRAME + 1)
    assert counted == []
    sequence = path(tokens_of(26))
    assert counted == [1]
    assert sequence.mask.sum() == 25 * (FRAME + 1) + 4


@torch.no_grad()
def test_a_later_frame_changes_its_own_tokens_only():
    path, tokens = path_of(), tokens_of()
    before = path(tokens)
    first, _ = next(window for window in path.scenes(tokens, 0).windows if window[1] > 2)
    after = path(changed_frame(tokens, first + 1))
    for frame in range(14):
        same = torch.equal(tokens_of_frame(before, frame), tokens_of_frame(after, frame))
        assert same == (frame != first + 1)


@torch.no_grad()
@pytest.mark.parametrize("queries", ["pooled", "learned"])
def test_the_first_frame_changes_its_whole_window_if_queries_are_pooled_from_it(queries):
    path, tokens = path_of(queries=queries), tokens_of()
    before = path(tokens)
    first, count = next(window for window in path.scenes(tokens, 0).windows if window[1] > 2)
    after = path(changed_frame(tokens, first))
    changed = {
        frame for frame in range(14) if not torch.equal(tokens_of_frame(before, frame), tokens_of_frame(after, frame))
    }
    assert changed == (set(range(first, first + count)) if queries == "pooled" else {first})


@torch.no_grad()
def test_text_changes_context_tokens_only():
    path, tokens = path_of(), tokens_of()
    before, after = path(tokens), path(tokens.replace(question=torch.tensor([[4, 5, 6, 9]])))
    firsts = {first for first, _ in path.scenes(tokens, 0).windows}
    for frame in range(14):
        same = torch.equal(tokens_of_frame(before, frame), tokens_of_frame(after, frame))
        assert same == (frame in firsts)
    blind = path_of(text_input=False)
    assert torch.equal(
        blind(tokens).embeddings, blind(tokens.replace(question=torch.tensor([[4, 5, 6, 9]]))).embeddings
    )


@torch.no_grad()
def test_shuffling_the_later_frames_of_a_window_shuffles_their_tokens():
    path, tokens = path_of(), tokens_of()
    first, count = next(window for window in path.scenes(tokens, 0).windows if window[1] == 4)
    order = torch.arange(14)
    order[first + 1 : first + count] = torch.tensor([first + 3, first + 1, first + 2])
    before, after = path(tokens), path(tokens.replace(features=tokens.features[:, order]))
    for frame in range(14):
        own = tokens_of_frame(before, int(order[frame]))
        torch.testing.assert_close(tokens_of_frame(after, frame), own, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_batch_gives_what_each_video_gives_alone():
    path = path_of()
    mask = torch.ones(2, 14, 12, dtype=torch.bool)
    mask[1, 9:] = False
    tokens = tokens_of(videos=2, mask=mask)
    tokens = tokens.replace(
        question=torch.tensor([[4, 5, 6], [7, -1, -1]]), similarity=frame_similarity(tokens), text_tokens=None
    )
    together = path(tokens)
    for video, frames in ((0, 14), (1, 9)):
        alone = path(
            VisualTokens(
                features=tokens.features[video : video + 1, :frames],
                grid=GRID,
                question=tokens.question[video : video + 1],
                similarity=tokens.similarity[video : video + 1, :frames],
            )
        )
        valid = together.mask[video]
        torch.testing.assert_close(together.embeddings[video][valid], alone.embeddings[0], rtol=0, atol=1e-6)
        assert torch.equal(together.frame[video][valid], alone.frame[0])
        assert not together.embeddings[video][~valid].any()


@torch.no_grad()
def test_without_static_tokens_every_frame_is_compressed():
    path = path_of(add_static=False)
    sequence = path(tokens_of())
    assert sequence.mask.sum() == 14 * 4
    assert path(tokens_of(1)).mask.sum() == 4


@torch.no_grad()
def test_reduced_tokens_keep_their_rows_and_padding_changes_nothing():
    path, tokens = path_of(), tokens_of()
    kept = torch.tensor([0, 1, 5, 6, 11]).expand(1, 14, 5)
    reduced = tokens.take(kept)
    sequence = path(reduced)
    assert sequence.place[0, :8].tolist() == [0, 1, -2, 5, 6, -2, 11, -2]
    padded = tokens.take(torch.tensor([0, 1, 5, 6, 11, 11]).expand(1, 14, 6))
    mask = torch.ones(1, 14, 6, dtype=torch.bool)
    mask[..., 5] = False
    torch.testing.assert_close(path(padded.replace(mask=mask)).embeddings, sequence.embeddings, rtol=0, atol=1e-6)
    mask[0, 0, 4] = mask[0, 3, 3] = False  # a budget that differs from frame to frame
    ragged = path(padded.replace(mask=mask))
    assert ragged.mask.sum() < sequence.mask.sum()
    assert ragged.embeddings.isfinite().all()
    line = path(
        VisualTokens(features=tokens.features, grid=None, question=tokens.question, similarity=tokens.similarity)
    )
    assert (line.place[line.mask] == -2).all()


@torch.no_grad()
def test_three_hundred_frames_are_read_at_equal_steps():
    path = path_of(cuts=24, window=8)
    tokens = tokens_of(300)
    read = path.frames_read(tokens.frame_mask, None)
    assert read.sum() == 224
    assert read[0].nonzero().squeeze(1).tolist() == [int(300 / 224 * i) for i in range(224)]
    tokens = tokens.replace(mask=tokens.mask & read.unsqueeze(-1))
    sequence = path(tokens.replace(similarity=frame_similarity(tokens)))
    assert set(sequence.frame[0].tolist()) <= set(read[0].nonzero().squeeze(1).tolist())


def test_frames_fit_beside_the_text_as_published():
    config = TdcConfig()
    assert config.frames_that_fit(10) == 224
    assert config.frames_that_fit(8192 - 16 - 32 * 10 - 1) == 10
    assert config.frames_that_fit(9000) == 1
    assert dataclasses.replace(config, audio=True, max_frames=1000).frames_that_fit(0) == (8192 - 1 - 16) // 38
    assert dataclasses.replace(config, add_static=False, max_frames=1000).frames_that_fit(0) == (8192 - 1 - 16) // 16


@torch.no_grad()
def test_a_sequence_over_the_budget_loses_the_ends_of_its_windows():
    path = path_of()
    tokens = tokens_of()
    whole, windows = path(tokens), path.scenes(tokens, 0).windows
    lengths = [FRAME + 1 + (count - 1) * 4 for _, count in windows]
    budget = sum(lengths) - 7
    short = path_of(max_length=budget + 16 + 5)
    cut = short(tokens.replace(text_tokens=torch.tensor([5])))
    lost = -(-7 // len(windows))
    pieces = torch.split(whole.embeddings[0], lengths)
    expected = torch.cat([piece[: len(piece) - lost] for piece in pieces])[:budget]
    torch.testing.assert_close(cut.embeddings[0], expected)
    tight = path_of(max_length=3 + 16 + 5, frame_tokens=12)(tokens.replace(text_tokens=torch.tensor([5])))
    assert tight.mask.sum() <= 3


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 4, 14, 224])
def test_no_video_has_more_tokens_than_are_announced(frames):
    path = path_of(max_length=2048)
    tokens = tokens_of(frames)
    counted = path.token_counts(frames, GRID, 12)
    assert int(path(tokens).mask.sum()) <= counted["scenes"] <= 2048
    similarity = torch.full((1, frames), 0.5)
    similarity[0, -3:] = -1.0  # scenes of one frame, and a long one: the most windows if its length fits
    assert int(path(tokens.replace(similarity=similarity)).mask.sum()) <= counted["scenes"]


@torch.no_grad()
@pytest.mark.parametrize(("correct", "size", "left"), [(False, (720, 1280), 84), (True, (720, 1280), 78),
                                                       (False, (1280, 720), 78), (True, (640, 640), 156)])  # fmt: skip
def test_a_frame_has_the_published_number_of_tokens(correct, size, left):
    torch.manual_seed(0)
    settings = {"name": "sva", "width": 32, "depth": 1, "correct_unpad": correct}
    connector = registry.build("tokenizer", settings, in_width=8, out_width=D, grid=(24, 24), tower_widths=(3, 5))
    tokens = VisualTokens(features=torch.randn(1, 2, 576, 8), grid=(24, 24), frame_size=torch.tensor([size]))
    tokens = connector(tokens.replace(question=torch.tensor([[4]]), similarity=torch.tensor([[0.5, 0.0]])))
    assert path_of()(tokens).mask.sum() == 2 * (left + 1)


def test_published_counts():
    published = TdcConfig()
    with torch.device("meta"):
        path = TdcPath(published, width=64)
    assert path.token_counts(8, (12, 12), 144) == {"scenes": 8 * 157}
    full_windows = TdcConfig(cuts=1)
    with torch.device("meta"):
        path = TdcPath(full_windows, width=64)
    assert path.token_counts(16, (12, 12), 144) == {"scenes": 3 * 157 + 13 * 17}
    assert path.token_counts(224, (12, 12), 144)["scenes"] <= 8192 - 16


@torch.no_grad()
def test_an_empty_question_has_the_ids_of_its_tokenizer():
    sizes = {"question_words": (), "vocabulary": 110}
    path, tokens = path_of(**sizes), tokens_of()
    empty = path(tokens.replace(question=torch.full((1, 3), -1)))
    written = path(tokens.replace(question=torch.tensor([[101, 102, -1]])))
    assert torch.equal(empty.embeddings, written.embeddings)
    words = path_of()
    assert words(tokens.replace(question=torch.full((1, 3), -1))).embeddings.isfinite().all()


def test_questions_are_cut_at_the_published_length():
    reader = TdcConfig().question_reader
    assert (reader.source, reader.most_words) == ("google-bert/bert-base-uncased", 256)
    assert TdcConfig(text_input=False).question_reader is None


@torch.no_grad()
def test_sound_follows_each_frame_and_is_read_with_later_ones():
    path, tokens = path_of(audio=True), tokens_of()
    silent = path(tokens)
    audio = torch.randn(1, 14, 5, 6)
    heard = path(tokens.replace(audio=audio))
    windows = path.scenes(tokens, 0).windows
    assert heard.mask.sum() == silent.mask.sum() + 5 * len(windows)
    first = heard.embeddings[0, FRAME : FRAME + 5]
    torch.testing.assert_close(first, path.audio_proj(audio[0, 0]))
    first_later = next(first for first, count in windows if count > 1) + 1
    assert not torch.equal(tokens_of_frame(heard, first_later), tokens_of_frame(silent, first_later))
    other = path(tokens.replace(audio=audio.roll(1, 1)))
    assert not torch.equal(tokens_of_frame(other, first_later), tokens_of_frame(heard, first_later))
    mute = tokens.replace(audio=audio, audio_mask=torch.zeros(1, 14, dtype=torch.bool))
    assert torch.equal(path(mute).embeddings, silent.embeddings)
    with pytest.raises(ConfigError, match="needs an audio_encoder"):
        TdcPath(TdcConfig(**SMALL, audio=True), width=D)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens = 0"),
        ({"tokens": -1}, "tokens = -1"),
        ({"tokens": 145}, "tokens = 145: must be at most frame_tokens = 144"),
        ({"cuts": 0}, "cuts = 0"),
        ({"window": 0}, "window = 0"),
        ({"most_words": 600}, "positions = 512: must be at least most_words = 600"),
        ({"heads": 5}, "divisible by heads = 5"),
        ({"reserve": -1}, "reserve = -1"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        registry.config_of("path", {"name": "tdc", **settings})


@torch.no_grad()
def test_input_that_cannot_be_arranged_is_refused():
    path, tokens = path_of(), tokens_of()
    with pytest.raises(InputError, match="video 0 of the batch has no frame"):
        path(tokens.replace(mask=torch.zeros(1, 14, 12, dtype=torch.bool)))
    with pytest.raises(InputError, match=r"5000 tokens of text leave no room.*max_length = 4096"):
        path(tokens.replace(text_tokens=torch.tensor([5000])))
    with pytest.raises(InputError, match="reads the question"):
        path(tokens.replace(question=None))
    with pytest.raises(InputError, match="similarity"):
        path(tokens.replace(similarity=None))
    with pytest.raises(InputError, match="NaN"):
        path(tokens.replace(similarity=torch.full((1, 14), torch.nan)))
    with pytest.raises(InputError, match="tokens cannot be pooled to 3 queries"):
        path_of(newline=False)(tokens.take(torch.tensor([0, 5]).expand(1, 14, 2)))
    tiled = tokens.replace(tiling=(Tiling(rows=1, cols=2, height=30, width=60),))
    with pytest.raises(InputError, match="anyres"):
        path(tiled)


def test_every_weight_that_is_used_gets_a_gradient():
    path = path_of(audio=True)
    sequence = path(tokens_of().replace(audio=torch.randn(1, 14, 5, 6)))
    sequence.embeddings.pow(3).sum().backward()
    idle = {name for name, weight in path.named_parameters() if weight.requires_grad and weight.grad is None}
    # in the last layer, nothing reads the text any more
    assert {name.partition("layer.1.")[2].partition(".")[0] for name in idle} <= {"intermediate", "output"}
