"""How a model that mmllm builds sees a video: once for all questions, and again where other stages ask for it.

V = 1 video, T frames, Q ids of a question
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.decisions import encoded_for
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.overlay import kept_patches, ranking_map
from mmllm.inference.piecewise import WHOLE_FRAMES, Feed, LongVideo, PiecewiseEncoding
from mmllm.modalities.video import clip_inputs, video_tokens
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.token_store import piece_of
from mmllm.processor import MmllmProcessor
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip, VisualTokens


class OwnEncoding(VideoAnswering):
    """The half of `VideoQA` that looks at videos."""

    model: MmllmForConditionalGeneration
    processor: MmllmProcessor

    @torch.no_grad()
    def encode_fed(
        self, feed: Feed, *, progress: bool = False, whole: int = WHOLE_FRAMES, question: str | None = None
    ) -> EncodedVideo:
        """Encodes the video that `feed` reads: its clip if it has at most `whole` frames, else piece by piece.

        The results are the same.

        Args:
            feed: gives the prepared frames to a sink, if that takes them, and returns the clip.
            progress: whether the progress of a long video is shown.
            whole: the most frames of a video that is held whole.
            question: as for `for_question`, if the model reads questions.
        """
        started = time.perf_counter()
        ids = self._question_ids(question)
        with PiecewiseEncoding(self.model, self.processor, ids, whole=whole, progress=progress) as encoding:
            clip = feed(encoding)
            decoded_s = time.perf_counter() - started
            in_memory = not encoding.taken
            if in_memory and not encoding.takes(len(clip)):
                return self._encode(clip, {"decode": decoded_s}, question)
            decoded_s -= encoding.seconds
            for frame in clip.frames if in_memory else ():
                encoding.put(frame)
            shown, tokens, long = encoding.finish(clip, feed)
            self._wait()
        seconds = {"decode": decoded_s, "encode": encoding.seconds}
        if tokens is None and long.reduced is None:
            return EncodedVideo(clip=shown, sequences={}, seconds=seconds, long=long)
        encoded = self._arrange(shown, tokens, seconds, question, long)
        return dataclasses.replace(encoded, tokens=None) if self.model.encoder_reads_question else encoded

    @torch.no_grad()
    def encode_again(self, encoded: EncodedVideo) -> EncodedVideo:
        """A video that went through other reducers or another path, now through those of this model.

        It is encoded again only if `needs_frames` says so, and then a long video is also decoded again.
        """
        encoded.require_frames()
        if self.needs_frames(encoded):
            return self._encode_again(encoded)
        return self._arrange(encoded.clip, encoded.tokens, {}, None, encoded.long)

    def needs_frames(self, encoded: EncodedVideo) -> bool:
        """Whether a video has to be encoded again for the stages of this model.

        So it is if its tokens were merged inside the encoder, if this model merges them there, if a reducer needs
        scores that the tokens do not carry, if the path reads frames that were not encoded, if the tokens of a long
        video were not kept, or if the encoder reads questions.
        """
        tokens = encoded.tokens
        if tokens is None or self.model.encoder_reads_question:
            return True
        if tokens.size is None and tokens.shape[2] != self.model.encoder.tokens_per_frame:
            return True  # an encoder with another number of tokens
        read = self.model.path.frames_read(torch.ones_like(tokens.frame_mask), tokens.text_tokens)
        if bool((read & ~tokens.frame_mask).any()):
            return True  # the earlier path did not read these frames, so they were not encoded
        already_merged = tokens.size is not None
        merges = self.model.encoder_stage is not None
        has_scores = set(self.model.scores_needed) <= set(tokens.scores)
        return already_merged or merges or not has_scores

    @torch.no_grad()
    def for_question(self, encoded: EncodedVideo, question: str, text_tokens: int | None = None) -> EncodedVideo:
        """The video as this model sees it for a question; as it is if the model reads no questions.

        What does not depend on the question is not computed again.

        Args:
            encoded: what `encode_video` returned.
            question: the words of the user's turn that holds the video; see `question_about_video`.
            text_tokens: tokens of the whole text, for a path that leaves room for it; None if that is unknown.
        """
        fits = text_tokens is None or not self.model.path.counts_text
        if not self.reads_question or (encoded.question == question and fits):
            return encoded
        reduced = encoded.long is not None and encoded.long.reduced is not None
        if self.model.encoder_reads_question or (encoded.tokens is None and not reduced):
            return self._encode_again(encoded, question)
        return self._arrange(encoded.clip, encoded.tokens, {}, question, encoded.long, text_tokens)

    def seen_for(self, encoded: EncodedVideo, question: str) -> EncodedVideo:
        """The video with `kept` and `ranking` as stages inside the LLM decide for a question."""
        encoded.require_frames()
        return encoded_for(self, encoded, question)

    def _encode_again(self, encoded: EncodedVideo, question: str | None = None) -> EncodedVideo:
        """The video from its frames on; a long one is read again."""
        if encoded.long is None:
            return self._encode(encoded.clip, {}, question)
        return self.encode_fed(encoded.long.feed, whole=0, question=question)

    def _encode(self, clip: VideoClip, seconds: dict[str, float], question: str | None = None) -> EncodedVideo:
        if self.model.encoder_reads_question and question is None:
            return EncodedVideo(clip=clip, sequences={}, seconds=seconds)
        started = time.perf_counter()
        inputs = clip_inputs(self.processor, clip).asked(self._question_ids(question))
        tokens = video_tokens(self.model, inputs.to(self.model.input_device))
        self._wait()
        seconds = {**seconds, "encode": time.perf_counter() - started}
        encoded = self._arrange(clip, tokens, seconds, question)
        return dataclasses.replace(encoded, tokens=None) if self.model.encoder_reads_question else encoded

    def _question_ids(self, question: str | None) -> Tensor | None:
        """int64, 1 Q; None without a question, or if the model reads none."""
        return None if question is None else self.processor.question_ids([question])

    def _arrange(
        self,
        clip: VideoClip,
        tokens: VisualTokens | None,
        seconds: dict[str, float],
        question: str | None = None,
        long: LongVideo | None = None,
        text_tokens: int | None = None,
    ) -> EncodedVideo:
        """The video for the LLM, from the encoder's tokens, or from those of a long video that are reduced already."""
        if self.reads_question and question is None:
            return EncodedVideo(clip=clip, sequences={}, seconds=seconds, tokens=tokens, long=long)
        started = time.perf_counter()
        given = tokens if long is None or tokens is not None else long.reduced
        assert given is not None
        if (ids := self._question_ids(question)) is not None:
            given = given.replace(question=ids.to(given.features.device))
        if text_tokens is not None:
            given = given.replace(text_tokens=torch.tensor([text_tokens], device=given.features.device))
        reduced = given if tokens is None else self.model.reduce(given)
        text = self.processor.frame_text([clip.times_s if long is None else long.times_s])
        projected = self.model.project(reduced)
        behind = self.model.projected_reducers
        arranged = self.model.reduce_projected(projected)
        sequence = self.model.lay_out(arranged)
        if text is not None:
            sequence = dataclasses.replace(sequence, frame_text=text.to(self.model.input_device))
        self._wait()
        placeholder = self.model.config.video_token_id
        assert placeholder is not None, "a model that is asked has words"
        return EncodedVideo(
            clip=clip,
            sequences={placeholder: sequence},
            seconds={**seconds, "reduce": time.perf_counter() - started},
            tokens=tokens,
            kept=kept_patches(arranged if behind else reduced),
            ranking=long.ranking if tokens is None and long else self._ranking(given, projected),
            token_counts={
                "encoder": int(given.mask.sum()) if long is None else long.encoder_count,
                "reducers": int((arranged if behind else reduced).mask.sum()),
                **{name: int(sequence.mask[:, sequence.block(name)].sum()) for name, _ in sequence.blocks},
            },
            question=question if self.reads_question else None,
            long=long,
        )

    def _ranking(self, given: VisualTokens, projected: VisualTokens) -> tuple[str, np.ndarray] | None:
        """What the first reducer that ranks tokens ranked them by, in front of the projector or behind it."""
        behind = self.model.projected_reducers
        in_front = [reducer for reducer in self.model.reducers if reducer not in behind]
        return ranking_map(in_front, given) or (ranking_map(behind, projected) if behind else None)

    def _wait(self) -> None:
        """Waits for the accelerator: its work is asynchronous, and a stage is timed with all its work."""
        if self.model.input_device.type == "cuda":
            torch.cuda.synchronize(self.model.input_device)

    @torch.no_grad()
    def part_of(self, encoded: EncodedVideo, frames: slice, span: Span) -> EncodedVideo:
        """A run of a video's frames as a video of its own, which begins at 0. Nothing is decoded or encoded again.

        Args:
            encoded: the video, as this model encoded it.
            frames: which of the T frames.
            span: from when to when they are shown, in seconds of the whole video.

        Raises:
            InputError: if the encoder reads questions and the pixels of a long video were not kept.
        """
        encoded.require_frames()
        times_s = encoded.times_s[frames] - encoded.times_s[frames.start]
        pictures: slice | np.ndarray = frames
        long = encoded.long
        if long is not None:
            if self.model.encoder_reads_question:
                raise InputError("the encoder reads questions: it cannot look at the parts of a long video again")
            pictures, long = long.run(frames, times_s)
        clip = dataclasses.replace(
            encoded.clip,
            frames=encoded.clip.frames[pictures],
            times_s=encoded.clip.times_s[pictures] - encoded.times_s[frames.start],
            valid=encoded.clip.valid[pictures],
            duration_s=span.length_s,
        )
        if self.model.encoder_reads_question:
            return EncodedVideo(clip=clip, sequences={})
        tokens = None if encoded.tokens is None else piece_of(encoded.tokens, frames)
        return self._arrange(clip, tokens, {}, None, long)
