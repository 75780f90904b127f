"""ATP's scores, thresholds and losses; and that tokens dropped inside an LLM are gone and nothing else is changed."""

import copy
from itertools import pairwise

import pytest
import torch
from nearness import assert_near
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.llm.attention import receive
from mmllm.llm.harness import decoder_layers, install
from mmllm.llm.values import LlmPass
from mmllm.pruning.atp import AtpConfig, AtpReducer, lattice_scores, mean_received, pooled_scores, squashed

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 60, "max_position_embeddings": 128}  # fmt: skip
SIDE = 6
BEFORE, VISUAL, AFTER = 3, SIDE * SIDE, 5
LENGTH = BEFORE + VISUAL + AFTER


def logit(theta):
    return torch.logit(torch.tensor(theta)).item() if 0 < theta < 1 else (50.0 if theta else -50.0)


def reducer(theta_r, theta_s, **fields):
    atp = registry.build("reducer", {"name": "atp", **fields}).eval()
    for stage in atp.stages:
        torch.nn.init.constant_(stage.head_r.bias, logit(theta_r))
        torch.nn.init.constant_(stage.head_s.bias, logit(theta_s))
    return atp


def llm(kind="llama", attention="sdpa", scale=3.0):
    torch.manual_seed(0)
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    }
    built = model[kind]().eval()
    for weight in built.parameters():
        weight.data.mul_(scale)  # so that attention is not flat
    built.set_attn_implementation(attention)
    return built


@pytest.fixture
def embeds():
    return torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(1))


def attach(atp, model):
    """Gets an LLM ready for passes with a reducer, as a model of ours does when it is put together."""
    install(model)
    atp.check(len(decoder_layers(model)))
    return atp


def the_pass(*stages, rows=2, extra=0, pad=0, visual=True):
    """`pad` positions of left padding, the prompt, then `extra` positions that came later."""
    shape = (rows, pad + LENGTH + extra)
    number = torch.arange(shape[1]) - pad
    is_visual = ((number >= BEFORE) & (number < BEFORE + VISUAL)).expand(shape) & visual
    return LlmPass(
        visual=is_visual,
        question=((number >= BEFORE + VISUAL) & (number < LENGTH)).expand(shape),
        prompt=((number >= 0) & (number < LENGTH)).expand(shape),
        place=(number - BEFORE).clamp(0, VISUAL - 1).expand(shape),
        grid=(SIDE, SIDE),
        frame=torch.zeros(shape, dtype=torch.long),
        valid=(number >= 0).expand(shape),
        stages=stages,
    )


def run(model, embeds, current, **kwargs):
    with torch.no_grad():
        return model(inputs_embeds=embeds, llm_pass=current, **kwargs)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_thresholds_of_zero_change_nothing(kind, attention, embeds):
    model = llm(kind, attention)
    plain = run(model, embeds, None).logits
    atp = reducer(0.0, 0.0)
    attach(atp, model.model)
    assert_near(run(model, embeds, the_pass(atp)).logits, plain)
    assert torch.equal(run(model, embeds, None).logits, plain) or attention == "eager"
    atp.train()
    atp.config = AtpConfig(temperature=(1e4, 1e4))
    torch.testing.assert_close(run(model, embeds, the_pass(atp)).logits, plain, rtol=1e-3, atol=1e-4)


def test_thresholds_of_one_leave_the_most_attended_token(embeds):
    model = llm()
    atp = attach(reducer(1.0, 1.0), model.model)
    current = the_pass(atp)
    run(model, embeds, current)
    assert sorted(current.notes_of(atp)) == [1, 4, 6]
    for decision in current.notes_of(atp).values():
        assert decision.kept.sum(-1).tolist() == [1, 1]
    assert current.kept[1].position.shape == (2, BEFORE + 1 + AFTER)


@pytest.fixture
def pruned():
    """An LLM that keeps the lattice of every third place after its first layer, and what it attends to, later less."""
    model = llm()
    model.stage = attach(reducer(0.55, 0.6), model.model)
    return model


def test_survivors_are_subsets_and_rows_differ(pruned, embeds):
    current = the_pass(pruned.stage)
    run(pruned, embeds, current)
    positions = [
        [set(alive.position[b][alive.valid[b]].tolist()) for b in range(2)] for _, alive in sorted(current.kept.items())
    ]
    for b in range(2):
        assert positions[0][b] >= positions[1][b] >= positions[2][b]
        assert {0, 1, 2, *range(BEFORE + VISUAL, LENGTH)} <= positions[2][b]
    assert positions[0][0] != positions[0][1]
    assert 4 + BEFORE + AFTER <= len(positions[0][0]) < LENGTH


def test_dropped_tokens_have_no_influence(pruned, embeds):
    current = the_pass(pruned.stage)
    out = run(pruned, embeds, current).logits
    dropped = torch.ones(2, LENGTH, dtype=torch.bool)
    alive = current.kept[1]
    for b in range(2):
        dropped[b, alive.position[b][alive.valid[b]]] = False
    assert dropped.any()
    disturbed = []

    def disturb(module, args, output):
        disturbed.append(True)
        return torch.where(dropped.unsqueeze(-1), torch.full_like(output, 7.0), output)

    handle = pruned.model.layers[0].register_forward_hook(disturb)
    again = run(pruned, embeds, the_pass(pruned.stage)).logits
    handle.remove()
    assert disturbed
    assert_near(again[~dropped], out[~dropped])


def masked_reference(model, embeds, current):
    """Logits when the same tokens stay but are hidden from everybody else in the later layers."""
    rows, count = current.visual.shape
    hidden, decoder = embeds, model.model
    positions = torch.arange(count).expand(rows, count)
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    seen = torch.ones(count, count, dtype=torch.bool).tril().expand(rows, 1, count, count)
    with torch.no_grad():
        for number, layer in enumerate(decoder.layers):
            alive, present = current.kept_at(number), torch.ones(rows, count, dtype=torch.bool)
            if alive is not None:
                present = torch.zeros(rows, count, dtype=torch.bool).scatter(1, alive.position, alive.valid)
            mask = (seen & present[:, None, None]) | torch.eye(count, dtype=torch.bool)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        return model.lm_head(decoder.norm(hidden))


def test_positions_and_masks_are_those_of_the_whole_row(pruned, embeds):
    current = the_pass(pruned.stage)
    out = run(pruned, embeds, current).logits
    expected = masked_reference(pruned, embeds, current)
    text = ~current.visual
    assert_near(out[text], expected[text])


@pytest.mark.parametrize("pad", [0, 4])
def test_cached_decoding_is_recomputation(pruned, embeds, pad):
    words = pruned.get_input_embeddings().weight.detach()
    embeds = torch.cat([torch.zeros(2, pad, 32), embeds], dim=1)
    mask = torch.ones(2, pad + LENGTH, dtype=torch.long)
    mask[:, :pad] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, current = DynamicCache(config=pruned.config), the_pass(pruned.stage, pad=pad)
    out = run(
        pruned, embeds, current, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths[0] == pad + LENGTH > lengths[1] >= lengths[4] >= lengths[6]
    for step in range(4):
        token = out.logits[:, -1].argmax(-1)
        embeds = torch.cat([embeds, words[token].unsqueeze(1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        with torch.no_grad():
            out = pruned(
                inputs_embeds=embeds[:, -1:],
                attention_mask=mask,
                position_ids=positions[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
        whole = run(
            pruned, embeds, the_pass(pruned.stage, extra=step + 1, pad=pad), attention_mask=mask, position_ids=positions
        )
        assert_near(out.logits[:, -1], whole.logits[:, -1])


def test_padding_changes_nothing(pruned, embeds):
    alone = run(pruned, embeds[:1], the_pass(pruned.stage, rows=1)).logits
    padded = torch.cat([torch.zeros(1, 4, 32), embeds[:1]], dim=1)
    mask = torch.ones(1, 4 + LENGTH, dtype=torch.long)
    mask[:, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = run(pruned, padded, the_pass(pruned.stage, rows=1, pad=4), attention_mask=mask, position_ids=positions).logits
    assert_near(out[:, -AFTER:], alone[:, -AFTER:])


def test_no_visual_tokens(pruned, embeds):
    plain = llm()
    out = run(pruned, embeds, the_pass(pruned.stage, visual=False)).logits
    assert_near(out, run(plain, embeds, None).logits)


def test_no_question_warns(pruned, embeds):
    current = the_pass(pruned.stage)
    current.question = torch.zeros_like(current.question)
    with pytest.warns(UserWarning, match="no text follows"):
        run(pruned, embeds, current)


@pytest.mark.parametrize("theta_s", [0.5, 0.001])
def test_soft_mask_becomes_the_hard_one(embeds, theta_s):
    """Scores a good way from their thresholds: the sharper the soft mask, the nearer to dropping for real."""
    model = llm(scale=1.5)
    atp = reducer(0.99, theta_s, temperature=(300.0, 300.0))  # only the places on a lattice stay
    attach(atp, model.model)
    hard_pass = the_pass(atp)
    hard = run(model, embeds, hard_pass).logits
    margins = [decision.redundancy.max() for decision in hard_pass.notes_of(atp).values()]
    assert max(margins) < 0.94
    atp.train()
    soft_pass = the_pass(atp)
    soft = run(model, embeds, soft_pass).logits
    text = ~soft_pass.visual
    torch.testing.assert_close(soft[text], hard[text], rtol=1e-3, atol=1e-3)
    for layer, decision in soft_pass.notes_of(atp).items():
        assert decision.remaining.tolist() == pytest.approx(hard_pass.notes_of(atp)[layer].remaining.tolist(), rel=1e-3)
    assert atp.average(soft_pass, 8, hard=True).tolist() == atp.average(hard_pass, 8).tolist()


@pytest.mark.parametrize(("ratio", "falls"), [(0.2, False), (0.9, True)])
def test_losses_move_the_thresholds_towards_the_budget(embeds, ratio, falls):
    model = llm().requires_grad_(False)
    atp = reducer(0.5, 0.6, ratio=ratio, depth_weight=0.0).train()
    attach(atp, model.model)
    current = the_pass(atp)
    model(inputs_embeds=embeds, llm_pass=current)
    average = atp.average(current, 8).mean().item()
    assert (average < ratio * VISUAL) == falls
    losses = atp.llm_losses(current, 8)
    losses["atp_target"].backward()
    for stage in atp.stages:
        assert (stage.head_r.bias.grad > 0) == falls  # a step against the gradient moves the threshold to the budget


def test_thresholds_past_all_scores_are_pulled_back(embeds):
    model = llm().requires_grad_(False)
    atp = reducer(0.9999, 0.9999, ratio=0.9, temperature=(300.0, 300.0)).train()
    attach(atp, model.model)
    current = the_pass(atp)
    model(inputs_embeds=embeds, llm_pass=current)
    losses = atp.llm_losses(current, 8)
    bias = atp.stages[0].head_r.bias
    (lost,) = torch.autograd.grad(losses["atp_target"], bias, retain_graph=True)
    (pulled,) = torch.autograd.grad(losses["atp_rest"], bias)
    assert abs(lost.item()) < 1e-6  # far too few tokens are left, and nothing says so
    assert pulled.item() == pytest.approx(0.03 * 2 * logit(0.9999), rel=1e-2)


@pytest.mark.parametrize("pace", [0.1, 1.0, 5.0])
def test_pace_scales_what_a_step_does_to_thresholds_and_not_where_they_start(pace):
    stage = AtpReducer(AtpConfig(pace=pace)).stages[0]
    theta_r, theta_s = stage(torch.rand(2, 2, 256, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(torch.cat([theta_r, theta_s]), torch.full((4, 1), 0.01))
    theta_r.sum().backward()
    assert stage.head_r.bias.grad.item() == pytest.approx(2 * 0.01 * 0.99 * pace, rel=1e-4)


def test_deeper_tokens_cost_more(embeds):
    model = llm()
    atp = reducer(0.0, 0.0)
    attach(atp, model.model)
    current = the_pass(atp)
    run(model, embeds, current)
    assert atp.llm_losses(current, 8)["atp_depth"].item() == pytest.approx(0.05 * (1 + 4 + 6))
    assert atp.average(current, 8).tolist() == [36.0, 36.0]


def test_the_next_token_loss_reaches_the_thresholds(embeds):
    model = llm().requires_grad_(False)
    atp = reducer(0.5, 0.6).train()
    attach(atp, model.model)
    model(inputs_embeds=embeds, llm_pass=the_pass(atp)).logits[:, -1].logsumexp(-1).sum().backward()
    assert all(stage.head_r.bias.grad.abs() > 0 for stage in atp.stages)


def test_gradient_checkpointing_gives_the_same_gradients(embeds):
    gradients = []
    for checkpointed in (False, True):
        model = llm().train()
        atp = reducer(0.5, 0.6).train()
        attach(atp, model.model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        current = the_pass(atp)
        logits = model(inputs_embeds=embeds, llm_pass=current, use_cache=False).logits
        (logits[:, -1].logsumexp(-1).sum() + sum(atp.llm_losses(current, 8).values())).backward()
        gradients.append([atp.stages[1].head_r.bias.grad, model.model.layers[2].self_attn.q_proj.weight.grad])
    for once, again in zip(*gradients, strict=True):
        assert_near(once, again)


def test_keeping_falls_with_both_thresholds(embeds):
    kept = []
    for theta_r, theta_s in ((0.4, 0.3), (0.5, 0.3), (0.5, 0.65), (0.6, 0.95)):
        model = llm()
        atp = attach(reducer(theta_r, theta_s), model.model)
        current = the_pass(atp)
        run(model, embeds, current)
        kept.append(current.notes_of(atp)[1].kept)
        decision = current.notes_of(atp)[1]
        either = (decision.redundancy > theta_r) | (decision.spatial > theta_s)
        assert torch.equal(decision.kept, either & current.visual)
    for more, fewer in pairwise(kept):
        assert (more | ~fewer).all()


def test_lattices():
    scores = lattice_scores(torch.arange(576), (24, 24), (6, 4, 3, 2), 3.0)
    levels = {0.917: 16, 0.8125: 32, 0.667: 48, 0.25: 96, 0.0: 384}
    for level, count in levels.items():
        assert ((scores - level).abs() < 1e-3).sum() == count
    for theta, count in ((0.95, 0), (0.85, 16), (0.7, 48), (0.3, 96), (0.2, 192)):
        on = (scores > theta).view(24, 24)
        assert on.sum() == count
        quadrants = on.unfold(0, 12, 12).unfold(1, 12, 12).sum((-1, -2)).flatten().tolist()
        assert len(set(quadrants)) == 1
    assert lattice_scores(torch.arange(8), None, (2,), 3.0).tolist() == [0.25, 0, 0, 0, 0.25, 0, 0, 0]


def test_received_attention_and_its_causal_correction():
    query, key = torch.zeros(1, 4, 40, 8), torch.zeros(1, 2, 40, 8)

    def received(mask, rows):
        return receive(query, key, mask, {"rows": rows}, 1.0)["rows"]

    rows = torch.ones(1, 40)
    total = received(None, rows)
    weights = (torch.ones(40, 40).tril() / torch.arange(1, 41).unsqueeze(1)).sum(0)
    assert_near(total[0], weights)
    mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(received(mask, rows), total)
    plain, corrected = (mean_received(total, rows, causal=causal)[0] for causal in (False, True))
    assert corrected.max() / corrected.min() < plain.max() / plain.min()
    part = torch.zeros(1, 40)
    part[0, 10:] = 1
    assert_near(received(None, part) + received(None, 1 - part), total)


def test_squashed_average_is_a_half():
    assert squashed(torch.tensor([[1 / 576]]), torch.tensor([[576]])).item() == pytest.approx(0.5)


def test_pooled_scores():
    visual = torch.tensor([[False, True, True, True]])
    place = torch.tensor([[-1, 0, 3, 3]])
    pooled = pooled_scores(torch.tensor([[9.0, 1.0, 2.0, 4.0]]), visual, place, (2, 2)).view(16, 16)
    assert pooled[0, 0] == 1
    assert pooled[-1, -1] == 3  # two frames show the same place
    assert pooled[0, -1] == 0
    assert pooled_scores(torch.ones(1, 4), visual, torch.tensor([[0, 0, 1, 2]]), None).shape == (1, 256)


def test_first_thresholds_prune_nothing(embeds):
    model, atp = llm(), AtpReducer(AtpConfig()).eval()
    attach(atp, model.model)
    current = the_pass(atp)
    run(model, embeds, current)
    assert current.notes_of(atp)[6].kept.sum() >= 0.9 * 2 * VISUAL


def test_temperature_rises():
    atp = AtpReducer(AtpConfig())
    assert atp.sharpness == 10
    atp.progress = 0.5
    assert atp.sharpness == 55
    atp.progress = 2.0
    assert atp.sharpness == 100


def test_model_can_be_copied(pruned, embeds):
    twin = copy.deepcopy(pruned)
    assert torch.equal(
        run(twin, embeds, the_pass(pruned.stage)).logits, run(pruned, embeds, the_pass(pruned.stage)).logits
    )


def test_bad_input(embeds):
    for wrong in ({"depths": (0.5, 0.5)}, {"depths": ()}, {"depths": (0.5, 1.0)}, {"ratio": 0.0},
                  {"temperature": (0.0, 1.0)}, {"strides": (0,)}, {"pace": 0.0}, {"rest_weight": -1.0}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AtpConfig(**wrong)
    with pytest.raises(ConfigError, match="too shallow"):
        AtpConfig().layers(2)
    with pytest.raises(ConfigError, match=r"first 4 of 32 layers, must be above 0.125"):
        AtpConfig(ratio=0.1).layers(32)
    assert AtpConfig().layers(32) == (4, 14, 24)
    with pytest.raises(ConfigError, match="no list of layers"):
        attach(AtpReducer(AtpConfig()), torch.nn.Linear(2, 2))
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2))
    with pytest.raises(ConfigError, match="sliding_attention"):
        attach(AtpReducer(AtpConfig()), model.model)
    model = llm()
    atp = attach(reducer(0.5, 0.5), model.model)
    embeds[0, 5] = float("nan")
    with pytest.raises(InputError, match="attention that is not finite"):
        run(model, embeds, the_pass(atp))
    flash = llm()
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="with sdpa attention, not 'flash_attention_2'"):
        attach(AtpReducer(AtpConfig()), flash.model)


@pytest.mark.parametrize("what", ["attention", "thresholds"])
def test_a_training_step_that_is_not_finite_is_skipped_and_counted(embeds, what):
    model = llm().train()
    atp = reducer(0.5, 0.5).train()
    attach(atp, model.model)
    if what == "attention":
        embeds[0, 5] = float("nan")
    else:
        atp.stages[1].head_s.bias.data.fill_(float("nan"))
    for count in (1, 2):
        current = the_pass(atp)
        model(inputs_embeds=embeds, llm_pass=current)
        assert current.unusable
        assert atp.skipped == count
        losses = atp.llm_losses(current, 8)
        assert list(losses) == ["atp_skipped"]
        losses["atp_skipped"].backward()
    assert all(weight.grad is None for weight in [*model.parameters(), *atp.parameters()])
    atp.eval()
    with pytest.raises(InputError, match=f"ATP .*{what} that (is|are) not finite"):
        run(model.eval(), embeds, the_pass(atp))
