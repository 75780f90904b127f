"""`python -m mmllm` is `mmllm`."""

from mmllm.cli import main

main()
