"""Makes `answer.png`, the README's first picture: `python docs/images/answer.py` from the root of the repository.

The packaged model answers a question about a clip that it was not trained on; the truth is what was drawn.
"""

from pathlib import Path

from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.plotting import plot_answer

SEED, CLIPS, QUESTION = 7, 20, "When does the yellow triangle move left?"


def draw(picture: Path) -> tuple[float, float, float, float]:
    """Draws the picture. Returns start and end of the answer, then of the truth, in seconds."""
    questions = fresh_benchmark(SEED, videos=CLIPS, workers=1).questions
    question = next(question for question in questions if question.question == QUESTION)
    assert question.video is not None
    qa = VideoQA.from_pretrained(DEFAULT)
    encoded = qa.encode_video(question.video)
    answer, truth = qa.ask(encoded, QUESTION), question.truth()
    plot_answer(encoded.clip, QUESTION, answer.spans, picture, truth=truth.spans)
    return (answer.spans[0].start_s, answer.spans[0].end_s, truth.spans[0].start_s, truth.spans[0].end_s)


if __name__ == "__main__":
    print(draw(Path(__file__).with_name("answer.png")))
