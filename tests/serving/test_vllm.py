"""Where vLLM is installed: it writes our ids from our embeddings."""

import pytest

from mmllm.inference.answering import VideoQA
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import save_decoder
from mmllm.inference.prompts import Medium, Turn
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_writes_our_ids(tmp_path, short_clip):
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    decoder = DecoderConfig(width=256, layers=2, heads=4, mlp_width=512)  # engines want heads of 64
    qa = VideoQA(*build_model(ModelConfig(decoder=decoder, num_frames=12), seed=0))
    save_decoder(qa, tmp_path / "llm")
    prompts = OwnPrompts(qa)
    medium = Medium(kind="video", encoded=qa.encode_video(short_clip))
    prompt = prompts.prompt([Turn(role="user", content=(medium, "When does the red circle spin?"))])
    llm = vllm.LLM(str(tmp_path / "llm"), enable_prompt_embeds=True, dtype="float32", enforce_eager=True)
    greedy = vllm.SamplingParams(temperature=0, max_tokens=24, skip_special_tokens=False)
    (reply,) = llm.generate({"prompt_embeds": prompts.embeddings(prompt).cpu()}, greedy)
    assert list(reply.outputs[0].token_ids) == prompts.generate([prompt], max_new_tokens=24)[0].tolist()
