"""Marks of the projector `words`: which words of a question a frame resembles, by brute force and in the pipeline."""

import math

import pytest
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.question_marks import (
    HALF,
    LONGEST,
    SOFTNESS,
    USUAL_EXCESS,
    QuestionMarks,
    inside_and_ends,
    outstanding,
)
from mmllm.tokens import VisualTokens

WIDTH, FRAMES = 64, 8
ALL = torch.ones(FRAMES, 3, dtype=torch.bool)


def asked(*questions, features=None):
    """Tokens with questions given as lists of embeddings; B = number of questions."""
    longest = max(len(words) for words in questions)
    ids = torch.full((len(questions), longest), -1)
    words = torch.randn(len(questions), longest, WIDTH)  # what fills up shorter questions may be anything
    for row, question in enumerate(questions):
        if len(question):
            ids[row, : len(question)] = torch.arange(len(question))
            words[row, : len(question)] = torch.stack(list(question))
    given = torch.randn(len(questions), FRAMES, 3, WIDTH) if features is None else features
    return VisualTokens(features=given, grid=None, question=ids, words=words)


def frames_that_show(thing, shown, noise=0.1):
    """T N D: the thing's direction in some frames, another in the rest."""
    frames = torch.randn(WIDTH).expand(FRAMES, 3, WIDTH).clone()
    frames[shown] = thing
    return frames + noise * torch.randn(FRAMES, 3, WIDTH)


def by_hand(features, words, centre):
    """T R, and the runs: the soft maximum of the cosines of a frame's tokens and each run of words, over its median."""
    runs, columns = [], []
    for n in range(1, LONGEST + 1):
        for first in range(len(words) - n + 1):
            target = sum(words[first : first + n]) / n - centre
            likeness = [soft_maximum([torch.cosine_similarity(token, target, dim=0) for token in f]) for f in features]
            columns.append([max(value - sorted(likeness)[(len(features) - 1) // 2], 0.0) for value in likeness])
            runs.append((first, first + n))
    return torch.tensor(columns).T, runs


def soft_maximum(cosines):
    return math.log(sum(math.exp(20 * float(value)) for value in cosines) / len(cosines)) / 20


@torch.no_grad()
def test_sizes_are_those_by_hand():
    torch.manual_seed(0)
    marks, centre = QuestionMarks(WIDTH, 2), torch.randn(WIDTH)
    features, words = torch.randn(FRAMES, 3, WIDTH), torch.randn(5, WIDTH)
    expected, runs = by_hand(features, words, centre)
    chosen = outstanding(expected, runs, 2)
    sizes = marks.sizes([features], ALL, words, centre)
    for number, run in enumerate(chosen):
        assert_near(sizes[:, number], marks_by_hand(expected[:, run].tolist()))


@torch.no_grad()
def test_what_the_classes_say_counts_by_itself():
    torch.manual_seed(1)
    marks, centre = QuestionMarks(WIDTH, 1), torch.zeros(WIDTH)
    tokens = asked(torch.randn(2, WIDTH))
    thing = tokens.words[0, 1]
    named = frames_that_show(thing, [2, 3]).unsqueeze(0)
    sizes = marks.sizes([tokens.features[0], named[0]], ALL, tokens.words[0], centre)
    parts = [by_hand(source[0], tokens.words[0], centre) for source in (tokens.features, named)]
    excess = parts[0][0] + parts[1][0]
    chosen = outstanding(excess, parts[0][1], 1)
    assert_near(sizes[:, 0], marks_by_hand(excess[:, chosen[0]].tolist()))
    assert sizes[:, 0, 0].round().nonzero().flatten().tolist() == [2, 3]
    assert not torch.allclose(marks(tokens, centre, named), marks(tokens, centre))
    # in a mixture with loud learned parts, the same names are lost
    blended = named[0] + 30 * torch.randn(FRAMES, 3, WIDTH)
    assert marks.sizes([blended], ALL, tokens.words[0], centre)[[2, 3], 0, 0].min() < sizes[[2, 3], 0, 0].min()


def marks_by_hand(excess):
    """T K: one run's marks."""
    peak = sum(sorted(excess)[-2:]) / 2
    inside = [1 / (1 + math.exp((HALF - value / peak) / SOFTNESS)) for value in excess]
    rows = []
    for t, share in enumerate(inside):
        before = inside[t - 1] if t else 0.0
        after = inside[t + 1] if t + 1 < len(inside) else 0.0
        rows.append([share, share * (1 - before), share * (1 - after)])
    return torch.tensor(rows) * peak / USUAL_EXCESS


def test_the_first_and_the_last_frame_of_each_stretch_are_marked():
    excess = torch.tensor([0.3, 0.3, 0, 0, 0.02, 0.28, 0.3, 0.29, 0]).unsqueeze(1)
    inside, begins, ends = (inside_and_ends(excess)[:, 0] / (0.3 / USUAL_EXCESS)).unbind(-1)
    assert inside.round().tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 0]
    assert begins.round().tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert ends.round().tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_runs_stand_out_by_two_frames_and_share_no_word():
    runs = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    excess = torch.zeros(4, 5)
    excess[:2, 3] = torch.tensor([0.4, 0.3])  # words 0 and 1
    excess[0, 0] = 0.5  # stands out in one frame only
    excess[:2, 2] = 0.1
    assert outstanding(excess, runs, 1) == [3]
    assert outstanding(excess, runs, 2) == [3, 2]
    assert outstanding(excess, runs, 5) == [3, 2]


@torch.no_grad()
def test_the_frames_that_show_the_thing_asked_about_are_marked():
    torch.manual_seed(1)
    thing, others = torch.randn(WIDTH), torch.randn(4, WIDTH)
    features = frames_that_show(thing, [2, 3, 4])
    marks = QuestionMarks(WIDTH, 1)
    sizes = marks.sizes([features], ALL, torch.stack([*others, thing]), torch.zeros(WIDTH))
    inside, begins, ends = sizes[:, 0].unbind(-1)
    assert inside[[2, 3, 4]].min() > 3
    assert inside[[0, 1, 5, 6, 7]].max() < 0.1
    assert (begins > 3).tolist() == [t == 2 for t in range(FRAMES)]
    assert (ends > 3).tolist() == [t == 4 for t in range(FRAMES)]
    absent = marks.sizes([features], ALL, others, torch.zeros(WIDTH))
    assert absent.max() < 3


@torch.no_grad()
def test_a_mark_is_a_direction_as_large_as_its_token():
    torch.manual_seed(2)
    marks, centre = QuestionMarks(WIDTH, 2), torch.zeros(WIDTH)
    thing = torch.randn(WIDTH)
    features = frames_that_show(thing, [1, 2])
    tokens = asked([torch.randn(WIDTH), thing], [torch.randn(WIDTH)], features=torch.stack([features, features]))
    marked = marks(tokens, centre)
    for row, words in enumerate((tokens.words[0], tokens.words[1, :1])):
        sizes = marks.sizes([features], tokens.mask[row], words, centre)
        rms = features.square().mean(-1, keepdim=True).sqrt()
        expected = features + rms * torch.einsum("tmk,mkd->td", sizes, marks.directions).unsqueeze(1)
        assert_near(marked[row], expected)


@torch.no_grad()
def test_tokens_and_frames_that_are_masked_do_not_count():
    torch.manual_seed(3)
    marks, words, centre = QuestionMarks(WIDTH, 2), torch.randn(4, WIDTH), torch.randn(WIDTH)
    features = torch.randn(FRAMES, 3, WIDTH)
    mask = torch.ones(FRAMES + 2, 4, dtype=torch.bool)
    mask[FRAMES:], mask[:, 3] = False, False
    padded = torch.randn(FRAMES + 2, 4, WIDTH) * 9
    padded[:FRAMES, :3] = features
    sizes = marks.sizes([padded], mask, words, centre)
    assert_near(sizes[:FRAMES], marks.sizes([features], ALL, words, centre))
    assert not sizes[FRAMES:].any()


@torch.no_grad()
def test_nothing_is_marked_without_words_or_other_frames():
    marks = QuestionMarks(WIDTH, 2)
    tokens = asked([], [torch.randn(WIDTH)])
    assert torch.equal(marks(tokens, torch.zeros(WIDTH))[0], tokens.features[0])
    still = VisualTokens(
        features=torch.randn(1, 1, 3, WIDTH), grid=None, question=torch.tensor([[0]]), words=torch.randn(1, 1, WIDTH)
    )
    assert torch.equal(marks(still, torch.zeros(WIDTH)), still.features)


def test_words_that_never_help_lose_their_weight():
    """Gradients reach the directions and, through the chosen run, the gate and the frames."""
    torch.manual_seed(4)
    marks, thing = QuestionMarks(WIDTH, 1), torch.randn(WIDTH)
    features = frames_that_show(thing, [1, 2]).requires_grad_()
    tokens = asked([thing], features=features.unsqueeze(0))
    marks(tokens, torch.zeros(WIDTH)).square().sum().backward()
    for gradient in (marks.directions.grad, marks.gate.weight.grad, marks.gate.bias.grad, features.grad):
        assert gradient.abs().sum() > 0
    before = marks.sizes([features], tokens.mask[0], tokens.words[0], torch.zeros(WIDTH))
    with torch.no_grad():
        marks.gate.bias.fill_(-20.0)
    assert marks.sizes([features], tokens.mask[0], tokens.words[0], torch.zeros(WIDTH)).max() < 1e-6 < before.max()


ENCODER = {"name": "timm", "model": "resnet18", "image_size": 64, "classes": "frame"}


def test_a_model_marks_by_its_own_words(make_model):
    model = make_model(encoder=ENCODER, visual_tokenizer="words:marks=2", path="plain")
    assert model.reads_question
    assert not model.encoder_reads_question
    model.visual_tokenizer.start_from(torch.randn(1000, 32))
    pixels = torch.rand(1, 5, 3, 64, 64)
    question = torch.tensor([[3, 4, 5, -1]])
    with torch.no_grad():
        tokens = model.encode(pixels, question=question)
        marked = model.project(tokens).features
        unasked = model.visual_tokenizer.unasked(tokens)
        words = model.get_input_embeddings()(question.clamp(min=0))
        projector = model.visual_tokenizer
        named = projector.mean_words(tokens.features[..., -1000:])
        expected = projector.marks(unasked.replace(words=words), projector.embeddings.mean(0), named)
    assert torch.equal(marked, expected)
    assert not torch.equal(marked, unasked.features)
    with pytest.raises(InputError, match="words"):
        model.project(model.encode(pixels))


def test_bad_settings():
    with pytest.raises(ConfigError, match="marks = -1: must be zero or more"):
        registry.build("tokenizer", "words:marks=-1", in_width=12, out_width=6, class_count=7)
