"""The base class of each kind of part: the methods it has to write, and defaults for the others.

| kind | base class | constructor |
|---|---|---|
| encoder | `Encoder` | `(config)` |
| audio encoder | `AudioEncoder` | `(config)` |
| audio projector | `AudioProjector` | `(config, *, audio_width, out_width)` |
| image tokenizer | `Autoencoder` | `(config)` |
| reducer behind the encoder | `TokenReducer`; `mmllm.pruning.ranked.BudgetReducer`, which only ranks | `(config)` |
| reducer inside the encoder | `EncoderStage` | `(config)` |
| reducer behind the projector | `ProjectedReducer` | `(config)` |
| reducer inside the LLM | `LlmReducer`; anything else inside the LLM is an `LlmStage` | `(config)` |
| tokenizer | `VisualTokenizer` | `(config, *, in_width, out_width, grid, tower_widths, class_count)` |
| path | `VideoPath` | `(config, *, width, audio_width)` |
| inside the LLM, with or without weights | `LlmStage` | `(config, *, decoder)`: the LLM's configuration |
| context | `ContextPolicy` | `(config)` |
| decoding | `Decoding`; `mmllm.decoding.tree.TreeDecoding`, which only drafts | `(config)` |
| draft beside a frozen model | `mmllm.decoding.trained_draft.TrainedDraft` | `(config, *, model)`: the target |
| time | `TimeFormat` | `(config, *, count)` |

A constructor may leave out any argument besides its config.
"""

from mmllm.interfaces.audio import AudioEncoder, AudioProjector
from mmllm.interfaces.autoencoder import Autoencoder, TrainingPass
from mmllm.interfaces.context_policy import ContextFamily, ContextPolicy, llm_stages
from mmllm.interfaces.decoding import Decoding
from mmllm.interfaces.encoder import FRAMES_AT_ONCE, Encoder, Grid
from mmllm.interfaces.encoder_stage import EncoderStage, InsideBlocks
from mmllm.interfaces.explanation import Explanation
from mmllm.interfaces.llm_stage import LlmReducer, LlmStage
from mmllm.interfaces.part import Part
from mmllm.interfaces.reducer import Groups, Origin, ProjectedReducer, TokenReducer
from mmllm.interfaces.time_format import TimeFormat
from mmllm.interfaces.video_path import VideoPath
from mmllm.interfaces.visual_tokenizer import VisualTokenizer

__all__ = [
    "FRAMES_AT_ONCE",
    "AudioEncoder",
    "AudioProjector",
    "Autoencoder",
    "ContextFamily",
    "ContextPolicy",
    "Decoding",
    "Encoder",
    "EncoderStage",
    "Explanation",
    "Grid",
    "Groups",
    "InsideBlocks",
    "LlmReducer",
    "LlmStage",
    "Origin",
    "Part",
    "ProjectedReducer",
    "TimeFormat",
    "TokenReducer",
    "TrainingPass",
    "VideoPath",
    "VisualTokenizer",
    "llm_stages",
]
