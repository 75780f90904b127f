"""Training data of a recipe: rendered questions, ActivityNet-RTL's layout, or a mixture of LITA's five tasks.

OUTPUT/data/           rendered clips, unless the recipe names its own data
OUTPUT/left_out.txt    annotation rows that cannot be used, each with the reason
OUTPUT/set_aside.txt   videos that cannot be read, each with the reason
OUTPUT/tables/         dialogues as Arrow files, shared by all processes
OUTPUT/features/       features of the frozen encoder
OUTPUT/talk.jsonl      the LLM's own answers to talk, from before training
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.folder_rates import folder_rates
from mmllm.datasets.formats import questions_of
from mmllm.datasets.mixture import Mixture, MixtureConfig, annotation_files, lita_mixture
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.rtl import FAMILY as RTL_FAMILY
from mmllm.datasets.rtl import read_rtl
from mmllm.datasets.shard_samples import read_shards
from mmllm.datasets.shards import is_shards, states_of, with_split
from mmllm.datasets.streams import VideoStream, is_stream
from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.preprocessing.clip_reader import unreadable
from mmllm.runtime import processes
from mmllm.runtime.files import write_text
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import SOUND_FAMILIES, sound_vocabulary, vocabulary
from mmllm.synthetic.rendering import TALK, render
from mmllm.train.features import FeatureCache
from mmllm.train.named_frames import NamedFrames, Spans, read_on_screen
from mmllm.train.own_talk import own_talk, questions_about
from mmllm.train.packing import PackedQuestions
from mmllm.train.record import file_digests
from mmllm.train.row_texts import words_of, writer_of
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun
from mmllm.train.streamed import StreamedDialogues
from mmllm.train.talk import WithTalk

log = logging.getLogger(__name__)

WORD_DRAWS = 5000
"""Draws of a mixture whose words form the vocabulary of a small LLM trained from scratch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the questions come from."""

    root: str | None = None
    """Folder with ActivityNet-RTL's `train.json`, `val.json` and `videos/`, a folder of shards, or a stream (hf:NAME);
    with a `mixture`, folder with the data sets of LITA's five tasks. If None, clips are rendered."""
    mixture: MixtureConfig | None = None
    """LITA's tasks and their sampling rates. Its `draws` follow from the steps, its `seed` from the recipe."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The clips that are rendered if `root` is None."""
    talk: float = 0.0
    """Part of all rows that is talk without a video: dialogues of `talk.jsonl` beside `train.json`. Rendered clips of
    things have such a file."""
    own_talk: bool = False
    """The pretrained LLM's own answers, from before training, take the place of those of that file; it is also asked
    about the names of what is on screen. So it keeps its way of speaking."""
    own_questions: int = 0
    """So many more questions the LLM makes up itself, with `own_talk`."""

    def __post_init__(self) -> None:
        require(self.talk > 0 or not self.own_talk, self, "own_talk", "False without talk")
        allowed = "zero or more, and 0 without own_talk"
        require(self.own_questions >= 0 and (self.own_talk or not self.own_questions), self, "own_questions", allowed)
        allowed = "from 0 to below 1, and 0 with a mixture"
        require(0 <= self.talk < 1 and (self.mixture is None or self.talk == 0), self, "talk", allowed)
        if self.root is not None and is_stream(self.root):
            require(self.mixture is None, self, "mixture", "null with a stream (hf:...)")
            require(self.talk == 0, self, "talk", "0 with a stream (hf:...)")

    def digests(self) -> dict[str, str] | None:
        """Returns path -> digest of each annotation file, or state of each shard; None if there are no such files."""
        if self.root is None or is_stream(self.root):
            return None
        if self.mixture is None and is_shards(Path(self.root)):
            return states_of(with_split(Path(self.root), "train"))
        files = ["train.json"] if self.mixture is None else annotation_files(self.mixture)
        files += [TALK] if self.talk else []
        return file_digests(Path(self.root) / file for file in files)


class RunData:
    """The data of a run, from which each stage gets its rows.

    Args:
        items: a mixture from which rows are drawn, or questions; questions about the same video share a row.
        seed: random seed for drawing questions.
        talk: dialogues of text alone.
        talk_share: part of all rows that is talk.
        on_screen: id of each video -> name -> when it is on screen.
    """

    def __init__(
        self,
        items: Mixture | list[Question],
        seed: int,
        *,
        talk: Sequence[Dialogue] = (),
        talk_share: float = 0.0,
        on_screen: Mapping[str, Mapping[str, Spans]] | None = None,
    ) -> None:
        self.items = items
        self.seed = seed
        self.talk, self.talk_share = talk, talk_share
        self.on_screen = on_screen or {}
        self.set_aside: dict[Path, str] = {}
        """Videos that cannot be read -> the reason; filled when a stage first asks for rows."""
        self._videos_checked = False

    def words(self) -> list[str]:
        """Returns the lower-case words of a mixture's dialogues with punctuation.

        Of questions, only those about sound and those that questions about shapes do not have.
        """
        if isinstance(self.items, Mixture):
            return words_of(self.items.dialogue(number) for number in range(WORD_DRAWS))
        sound = sound_vocabulary() if any(item.family in SOUND_FAMILIES for item in self.items) else []
        asked = [item.dialogue() for item in self.items if item.family != RTL_FAMILY]
        return [*sound, *(word for word in words_of([*asked, *self.talk]) if word not in {*vocabulary(), *sound})]

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs; see `RowSource`."""
        writer = writer_of(run.processor, training)
        media = self._media(run, keep_features)
        workers = 0 if media.cache else run.workers
        if isinstance(self.items, Mixture):
            dataset = DialogueRows(
                self.items, writer, media, rows=training.rows, max_text_tokens=training.max_text_tokens
            )
            return Rows(dataset=dataset, workers=workers)
        packed = PackedQuestions(
            [question for question in self.items if question.video not in self.set_aside],
            writer,
            media.video,
            rows=training.rows,
            questions_per_row=training.questions_per_video,
            seed=self.seed,
            batch=training.batch_size,
            readers=training.readers,
        )
        if not self.talk:
            return Rows(dataset=packed, workers=workers)
        shuffled = Shuffled(self.talk, self.seed)
        talk = DialogueRows(shuffled, writer, media, rows=training.rows, max_text_tokens=training.max_text_tokens)
        return Rows(dataset=WithTalk(packed, talk, self.talk_share), workers=workers)

    def answer_talk(self, model: Any, processor: Any, file: Path, made_up: int = 0) -> None:
        """Puts the LLM's own answers in place of those of the talk, also to questions of its own; see `own_talk`."""
        asked = [dialogue.turns[0].text for dialogue in self.talk]
        names = sorted({name for names in self.on_screen.values() for name in names})
        self.talk = own_talk(model, processor, [*asked, *questions_about(names)], file, made_up=made_up, seed=self.seed)

    def named_frames(self, run: TrainingRun, videos: int) -> NamedFrames:
        """Returns videos with the names of what each of their frames shows; see `RowSource`."""
        files = {} if isinstance(self.items, Mixture) else {each.vid: each.video for each in self.items if each.video}
        cache = self._media(run, keep_features=True).cache
        assert cache is not None
        named = {
            file: self.on_screen[vid]
            for vid, file in files.items()
            if vid in self.on_screen and file not in self.set_aside
        }
        return NamedFrames(named, cache, rows=videos, seed=self.seed)

    def _media(self, run: TrainingRun, keep_features: bool) -> MediaLoader:
        """Returns the loader of videos, after checking that each video can be read.

        A mixture without kept features skips this check: it replaces a dialogue whose video cannot be read when the
        row is drawn.
        """
        mixed = isinstance(self.items, Mixture)
        videos: Sequence[Path] = self.items.videos if mixed else [item.video for item in self.items if item.video]  # type: ignore[union-attr]
        rates = self.items.folder_rates if isinstance(self.items, Mixture) else folder_rates(self.items)
        run.processor.folder_rates = rates
        if keep_features:
            cache = FeatureCache(run.folder / "features", run.model, run.processor)
            self.set_aside |= cache.fill_together(videos, run.workers)
            return MediaLoader(run.processor, cache)
        if not mixed and not self._videos_checked:
            self.set_aside |= unreadable(videos, run.processor.clip_reader(), run.workers)
            self._videos_checked = True
        return MediaLoader(run.processor)

    def report_unreadable(self, file: Path) -> None:
        """Lists the videos that were set aside, in the log and in a file; does nothing if there are none."""
        if self.set_aside:
            lines = [f"{video}: {problem}" for video, problem in self.set_aside.items()]
            write_text(file, "".join(f"{line}\n" for line in lines))
            log.warning("%d videos could not be read and were set aside:\n  %s", len(lines), "\n  ".join(lines))


def read_data(config: DataConfig, output: Path, *, rows: int, seed: int, workers: int) -> RunData | StreamedDialogues:
    """Reads the data of a recipe, before any model is loaded; lists annotation rows that cannot be used in a file.

    Args:
        config: where the data comes from.
        output: the run's folder.
        rows: how many rows are drawn from a mixture.
        seed: random seed of the draw.
        workers: number of processes that render.

    Raises:
        InputError: if there is nothing to train on.
    """
    if config.root is not None and is_stream(config.root):
        return StreamedDialogues(VideoStream(config.root, "train"), seed)
    if config.mixture is None:
        root = data_root(config, output, workers)
        if is_shards(root):
            annotations = questions_of(read_shards(with_split(root, "train"), policy="skip"))
        else:
            annotations = read_rtl(root / "train.json", root / "videos", policy="skip")
        left_out = [f"{Path(annotations.source).name}, {problem}" for problem in annotations.bad]
        items: Mixture | list[Question] = annotations.items
        talk = _talk(root / TALK) if config.talk else []
        on_screen = read_on_screen(root)
    else:
        if config.root is None:
            raise InputError("LITA's tasks cannot be rendered: give the folder of their data with --data-root")
        mixture = replace(config.mixture, draws=max(rows, 1), seed=seed)
        items = lita_mixture(Path(config.root), mixture, output / "tables")
        left_out, talk, on_screen = items.left_out, [], {}
    if left_out and processes.is_main():
        write_text(output / "left_out.txt", "".join(f"{line}\n" for line in left_out))
        log.warning("%d annotation rows are left out; see %s for the reasons", len(left_out), output / "left_out.txt")
    return RunData(items, seed, talk=talk, talk_share=config.talk, on_screen=on_screen)


def _talk(file: Path) -> list[Dialogue]:
    """The dialogues of a file of talk.

    Raises:
        InputError: if it is missing or empty, or a dialogue has a video or an image.
    """
    if not file.exists():
        raise InputError(
            f"{file}: is missing, and data.talk says that rows of it are mixed in; rendered clips of things "
            "have it, or write it yourself: dialogues without a video"
        )
    dialogues = read_dialogues(file, policy="raise").items
    with_media = [dialogue.record_id for dialogue in dialogues if dialogue.media]
    if with_media or not dialogues:
        raise InputError(f"{file}: talk is dialogues without a video; {', '.join(with_media[:3]) or 'there is none'}")
    return dialogues


def data_root(config: DataConfig, output: Path, workers: int) -> Path:
    """Returns the folder of the data in ActivityNet-RTL's layout; renders the data if the recipe has no `root`.

    Raises:
        InputError: if the recipe's folder has no `train.json`.
    """
    if config.root is not None:
        root = Path(config.root)
        if not is_shards(root) and not (root / "train.json").exists():
            raise InputError(f"{root}: it has no train.json (expected layout: train.json, val.json, videos/)")
        return root
    with processes.main_first():
        render(output / "data", config.synthetic, workers=workers)
    return output / "data"
