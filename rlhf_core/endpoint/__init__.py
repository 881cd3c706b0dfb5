"""An endpoint that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, DeepSeek, …), for judges and for sampling.

    endpoint = Endpoint("gpt-4o-mini", max_cost=5)
    reply = await endpoint.ask([{"role": "user", "content": "…"}], max_tokens=512)

Replies are kept on disk, so that nothing is paid for twice, and what is spent is counted against a budget. Needs
`pip install 'rlhf-core[endpoint]'`, which is imported when the first `Endpoint` is made.
"""

from rlhf_core.endpoint.asking import Endpoint, EndpointError, Reply
from rlhf_core.endpoint.budget import Spent

__all__ = ["Endpoint", "EndpointError", "Reply", "Spent"]
