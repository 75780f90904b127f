"""transformers' own Trainer with our model: metrics, label smoothing, and losses normalised by labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Trainer, TrainingArguments

VIDEO = 200
ROWS = [
    {"input_ids": [5, VIDEO, 6, 7, 8], "labels": [-100, -100, -100, 7, 8]},
    {"input_ids": [5, 9, 3, VIDEO, 8, 9, 4], "labels": [-100, 9, -100, -100, -100, 9, 4]},
    {"input_ids": [5, VIDEO, 10, 11], "labels": [-100, -100, 10, 11]},
    {"input_ids": [5, VIDEO, 12, 13, 14, 15], "labels": [-100, -100, -100, -100, -100, 15]},
]


def collated(rows):
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name, fill):
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    pixels = [torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(len(r["input_ids"]))) for r in rows]
    ids = padded("input_ids", 0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": padded("labels", -100),
        "pixel_values_videos": torch.stack(pixels),
    }


def trainer(model, folder, **options):
    callbacks = {name: options.pop(name) for name in ("compute_metrics", "compute_loss_func") if name in options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **options,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS, data_collator=collated, **callbacks
    )


def reference(model, rows, smoothing=0.0):
    """Mean loss over all labels of the rows, each row alone and from logits of all positions."""
    losses, counts = [], []
    for row in rows:
        batch = collated([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            logits = model(**batch).logits[0]
        grown = logits.shape[0] - len(labels)
        video = row["input_ids"].index(VIDEO)
        place = [i if i < video else i + grown for i in range(len(labels))]  # a video ends where its last token is
        chosen = [i for i in range(1, len(labels)) if labels[i] >= 0]
        before = logits[[place[i - 1] for i in chosen]]
        losses.append(functional.cross_entropy(before, labels[chosen], label_smoothing=smoothing, reduction="sum"))
        counts.append(len(chosen))
    return float(sum(losses) / sum(counts))


def test_metrics_get_a_prediction_for_each_label(make_model, tmp_path):
    seen = []

    def metrics(prediction):
        assert isinstance(prediction.predictions, np.ndarray)
        assert prediction.predictions.shape[:2] == prediction.label_ids.shape
        seen.append(prediction)
        said, labels = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
        return {"accuracy": float((said == labels)[labels != -100].mean())}

    model = make_model()
    result = trainer(model, tmp_path, compute_metrics=metrics, per_device_eval_batch_size=2).evaluate()
    assert 0 <= result["eval_accuracy"] <= 1
    logits = torch.tensor(seen[0].predictions)[:, :-1]
    labels = torch.tensor(seen[0].label_ids)[:, 1:]
    wanted = reference(model, ROWS)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_smoothed_labels_are_shifted_and_placed_behind_the_video(make_model, tmp_path):
    model = make_model()
    wanted = reference(model, ROWS, smoothing=0.2)
    smooth = trainer(model, tmp_path, label_smoothing_factor=0.2, per_device_eval_batch_size=4)
    assert smooth.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-4)
    model.train()
    loss = smooth.compute_loss(model, collated(ROWS), num_items_in_batch=torch.tensor(8))
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    assert (
        trainer(model, tmp_path, per_device_eval_batch_size=4).evaluate()["eval_loss"] < smooth.evaluate()["eval_loss"]
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulated_batches_count_each_label_once(make_model, tmp_path, size):
    """However four rows are cut into batches, one step is the same: the mean over all their labels."""
    model = make_model(loss={"time_sigma": 0.5})
    wanted = reference(model, ROWS)
    fit = trainer(
        model,
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=4 // size,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=1.0,
        max_grad_norm=0.0,
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    fit.train()
    assert fit.state.log_history[0]["loss"] == pytest.approx(wanted, rel=1e-3)
    fresh = make_model(loss={"time_sigma": 0.5}).train()
    fresh(**collated(ROWS)).loss.backward()
    for name, weight in fresh.named_parameters():
        moved = before[name] - dict(model.named_parameters())[name]
        torch.testing.assert_close(
            moved, torch.zeros_like(moved) if weight.grad is None else weight.grad, rtol=1e-3, atol=1e-4
        )


def test_a_loss_is_divided_by_the_number_of_labels_of_the_step(make_model):
    model = make_model(loss={"grounding_weight": 1.0})
    batch = collated(ROWS[:2])
    batch["labels"][0, 3], batch["labels"][0, 4] = 101, 104
    times = {"video_times_s": torch.arange(6.0).expand(2, 6), "video_durations_s": torch.full((2,), 6.0)}
    alone = model(**batch, **times)
    labels = int((batch["labels"][:, 1:] >= 0).sum())
    share = model(**batch, **times, num_items_in_batch=2 * labels)
    for name, loss in alone.losses.items():
        torch.testing.assert_close(share.losses[name], loss / 2)
    same = model(**batch, **times, num_items_in_batch=torch.tensor(labels))
    torch.testing.assert_close(same.loss, alone.loss)


def test_a_loss_of_ones_own_gets_a_logit_for_each_id(make_model, tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        assert outputs.logits.shape[:2] == labels.shape
        flat = outputs.logits[:, :-1].flatten(0, 1)
        return functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    model = make_model()
    result = trainer(model, tmp_path, compute_loss_func=loss, per_device_eval_batch_size=4).evaluate()
    assert result["eval_loss"] == pytest.approx(reference(model, ROWS), rel=1e-4)


def test_training_computes_labelled_logits_only(make_model):
    out = make_model().train()(**collated(ROWS))
    assert out.logits is None
    assert out.loss.isfinite()
