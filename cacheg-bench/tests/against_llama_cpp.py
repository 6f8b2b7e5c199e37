#!/usr/bin/env python3
"""Compares `cacheg-bench model read` with llama.cpp: token ids, perplexity, greedy text, prefill speed.

    pip install llama-cpp-python
    python3 cacheg-bench/tests/against_llama_cpp.py CACHEG-BENCH MODEL.gguf TEXT...

Both get the same file, threads and texts, in turns. Not part of the tests; docs/quality.md has what it printed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from llama_cpp import Llama


def ours(args, texts, greedy):
    command = [args.bench, "model", "read", "--model", args.model, "--tokens", str(args.tokens), "--json",
               "--greedy", str(greedy), *texts]
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)["rows"]


def log_likelihoods(llm, ids):
    """By a model with logits_all."""
    llm.reset()
    llm.eval(ids)
    logits = np.asarray(llm.scores[: len(ids) - 1], np.float64)
    top = logits.max(-1)
    return logits[np.arange(len(ids) - 1), ids[1:]] - top - np.log(np.exp(logits - top[:, None]).sum(-1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--greedy", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    common = dict(model_path=args.model, n_ctx=args.tokens + args.greedy + 64, n_threads=args.threads,
                  n_threads_batch=args.threads, n_batch=512, verbose=False)
    reader, writer = Llama(logits_all=True, **common), Llama(logits_all=False, **common)
    # Models that want their first token before every text say so; `cacheg-bench` does as they say.
    how = dict(add_bos=reader.metadata.get("tokenizer.ggml.add_bos_token") == "true", special=True)
    same = 0
    for text, row in zip(args.texts, ours(args, args.texts, args.greedy)):
        ids = reader.tokenize(open(text, "rb").read(), **how)[: args.tokens]
        perplexity = math.exp(-log_likelihoods(reader, ids).mean())
        writer.reset()
        writer.eval(ids)
        greedy = []
        for _ in range(args.greedy):
            logits = writer._ctx.get_logits_ith(-1)
            token = int(np.ctypeslib.as_array(logits, (writer.n_vocab(),)).argmax())
            greedy.append(token)
            writer.eval([token])
        agree = next((i for i, (a, b) in enumerate(zip(greedy, row["greedy_ids"])) if a != b), len(greedy))
        same += agree == args.greedy
        print(f"{text}: ids {'equal' if ids == row['token_ids'] else 'DIFFER'}; perplexity {perplexity:.4f} here, "
              f"{row['perplexity']:.4f} ours ({100 * (row['perplexity'] / perplexity - 1):+.3f} %); greedy text equal "
              f"for {agree} of {args.greedy} tokens")
    print(f"greedy text equal throughout on {same} of {len(args.texts)}")
    speeds = []
    for _ in range(args.rounds):
        for text in args.texts:
            ids = writer.tokenize(open(text, "rb").read(), **how)[: args.tokens]
            writer.reset()
            start = time.perf_counter()
            writer.eval(ids)
            theirs = len(ids) / (time.perf_counter() - start)
            speeds.append((theirs, ours(args, [text], 0)[0]["prefill_tokens_s"]))
    if not speeds:
        return
    medians = [statistics.median(column) for column in zip(*speeds)]
    ratio = statistics.median(b / a for a, b in speeds)
    print(f"prefill, {args.threads} threads: {medians[0]:.0f} tokens/s here, {medians[1]:.0f} ours, median ratio {ratio:.2f}")


sys.exit(main())
