"""Load a model in the embedded engine, generate with it, and say what happened as one line of JSON.

Run as ``python engine_child.py MODEL SETTINGS``; it is no test. The engine's own log goes to standard error.
It leaves through ``os._exit``, because taking the engine down in-process has been seen to hang.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any


def main() -> None:
    import xllamacpp

    model, wanted = sys.argv[1], json.loads(sys.argv[2])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 4
    params.warmup = False
    params.kv_unified = False
    params.n_parallel = wanted["slots"]
    params.n_ctx = wanted["context"] * wanted["slots"]
    params.n_ubatch = wanted["ubatch"]
    params.cache_type_k = xllamacpp.ggml_type[f"GGML_TYPE_{wanted['kv_type_k'].upper()}"]
    params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{wanted['kv_type_v'].upper()}"]
    flash = "AUTO" if wanted["flash"] else "DISABLED"
    params.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
    if "threads" in wanted:
        params.cpuparams.n_threads = wanted["threads"]
    if "speculation" in wanted:
        name = wanted["speculation"].upper().replace("-", "_")
        params.speculative.types = [xllamacpp.common_speculative_type[f"COMMON_SPECULATIVE_TYPE_{name}"]]
        params.speculative.draft.mparams.path = wanted.get("draft", "")
    params.load_mode = xllamacpp.llama_load_mode["LLAMA_LOAD_MODE_NONE"]
    server = xllamacpp.Server(params)
    found = ask(server.listening_address, wanted["texts"])
    found["asked"] = [post(f"{server.listening_address}/completion", body) for body in wanted.get("asked", [])]
    print(json.dumps(found), flush=True)
    os._exit(0)


def ask(address: str, texts: list[str]) -> dict[str, Any]:
    """Tokens of the texts and what they turn back into; two sampled answers."""
    counts = [post(f"{address}/tokenize", {"content": text})["tokens"] for text in texts]
    back = [post(f"{address}/detokenize", {"tokens": tokens})["content"] for tokens in counts]
    request = {"prompt": "Say something", "n_predict": 24, "temperature": 1, "ignore_eos": True}
    more = {"return_tokens": True, "n_probs": 5}
    answers = [post(f"{address}/completion", {**request, **more, "seed": seed}) for seed in (1, 2)] if texts else []
    return {
        "counts": [len(tokens) for tokens in counts],
        "back": back,
        "answers": [answer["tokens"] for answer in answers],
        "logprobs": [
            choice["logprob"]
            for answer in answers
            for token in answer["completion_probabilities"]
            for choice in token["top_logprobs"]
        ],
    }


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
