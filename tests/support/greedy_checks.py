"""What every exact decoding method is asked: the ids of one token a pass, from ids or from padded embeddings."""

import torch


def through(model, method, ids, **options):
    """The new ids that a method writes."""
    return model.generate(ids, do_sample=False, custom_generate=method, **options)[0, ids.shape[1] :].tolist()


def check_greedy(model, method, prompts, greedy, check_counts):
    """Ids of prompts with varied limits; each third has a repetition penalty. The counters' identities hold."""
    for number, ids in enumerate(prompts):
        options = {"max_new_tokens": 4 + number % 9}
        if number % 3 == 1:
            options |= {"repetition_penalty": 1.3, "min_new_tokens": 4}
        expected = greedy(model, ids, **options)
        assert through(model, method, ids, **options) == expected
        check_counts(method.last, len(expected))


def check_embeddings(model, method, prompts):
    """Prompts of embeddings; each second stands behind padding."""
    for number, ids in enumerate(prompts):
        embeddings = model.get_input_embeddings()(ids) + 0.1
        mask = torch.ones_like(ids)
        if number % 2:
            embeddings = torch.cat([torch.randn(1, 3, embeddings.shape[-1]), embeddings], dim=1)
            mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), mask], dim=1)
        given = {"inputs_embeds": embeddings, "attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
        assert torch.equal(model.generate(**given, custom_generate=method), model.generate(**given))
