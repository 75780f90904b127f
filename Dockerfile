# mmllm on a CPU, as a user without rights:
#   docker build -t mmllm .
#   docker run --rm -v "$PWD:/videos" mmllm ask clip.mp4 "When is the red circle on screen?"
#   docker run --rm -p 127.0.0.1:8000:8000 -e MMLLM_SERVE_KEY=secret mmllm serve --host 0.0.0.0
FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY mmllm mmllm
# the wheels of PyTorch without CUDA, a tenth of the size
# bytecode: who runs it may not write beside the libraries
ENV UV_TORCH_BACKEND=cpu UV_COMPILE_BYTECODE=1
RUN uv venv /opt/mmllm && uv pip install --no-cache --python /opt/mmllm/bin/python ".[demo,serve,eval]"

FROM python:3.12-slim
RUN useradd --create-home mmllm
COPY --from=build /opt/mmllm /opt/mmllm
ENV PATH=/opt/mmllm/bin:$PATH
USER mmllm
WORKDIR /videos
EXPOSE 8000
ENTRYPOINT ["mmllm"]
CMD ["--help"]
