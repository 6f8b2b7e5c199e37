#!/usr/bin/env python3
"""Makes the tiny random models in tiny/ and what they should compute: an independent forward pass in numpy, float64.

Two models, as different as two Llama-type models may be, and a Gemma 3:

tiny.gguf          tied embedding, GQA, Llama 3.1's RoPE scaling as GGUF has it (rope_freqs.weight), tensors of Q4_1,
                   Q8_0, F16 and F32, query and key rows interleaved as converters do; a byte-level tokenizer
hf/                config.json and model.safetensors: own output matrix, no GQA, biases, linear RoPE scaling, F16, BF16
gemma3.gguf        norms of heads and behind attention and feed-forward network, GELU, scaled embeddings, windows of 20
                   tokens in all layers but every third, two bases of RoPE, Q5_0; a tokenizer as SentencePiece's

expected.safetensors holds, for each, `NAME.tokens` [300] (i32), `NAME.rows` [6] (i32), and the logits of these rows,
[6, vocabulary] (f32): `NAME.logits` with keys and values kept exact, `NAME.logits_f16` with keys and values rounded to
f16 before anybody attends to them.

Run it without arguments in any folder; it needs numpy only. Its output is the same each time.
"""

import json
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "tiny"
ROWS = [0, 1, 100, 255, 256, 299]
TOKENS = 300


# The forward pass.

def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def forward(model, tokens, round_kv):
    c, w = model["config"], model["weights"]
    dim, heads, kv_heads = c["head_dim"], c["heads"], c["kv_heads"]
    gemma = c.get("gemma", False)
    x = w["embedding"][tokens] * (np.sqrt(c["hidden"]) if gemma else 1.0)
    positions = np.arange(len(tokens))
    age = positions[:, None] - positions
    for layer in w["layers"]:
        angles = positions[:, None] * layer.get("frequencies", model["frequencies"])
        cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
        mask = np.where((age >= 0) & (age < layer.get("window", len(tokens))), 0.0, -np.inf)

        def rope(x):
            a, b = x[..., : dim // 2], x[..., dim // 2:]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        def norm(x, name):
            return rms_norm(x, layer[name], c["epsilon"]) if gemma else x

        h = rms_norm(x, layer["attention_norm"], c["epsilon"])
        q, k, v = (h @ layer[n].T + layer.get(n + "_bias", 0.0) for n in "qkv")
        q = rope(norm(q.reshape(-1, heads, dim), "query_norm"))
        k = rope(norm(k.reshape(-1, kv_heads, dim), "key_norm"))
        v = v.reshape(-1, kv_heads, dim)
        if round_kv:
            k, v = (t.astype(np.float16).astype(np.float64) for t in (k, v))
        out = np.empty_like(q)
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, kv].T / np.sqrt(dim) + mask
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, kv]
        x = x + norm(out.reshape(len(tokens), -1) @ layer["o"].T, "attention_post_norm")
        h = rms_norm(x, layer["feed_forward_norm"], c["epsilon"])
        gate, up = h @ layer["gate"].T, h @ layer["up"].T
        if gemma:
            gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        x = x + norm((gate * up) @ layer["down"].T, "feed_forward_post_norm")
    return rms_norm(x, w["norm"], c["epsilon"]) @ w["output"].T


# Element types: what is stored, and the values it stands for.

def f16(x):
    y = x.astype("<f2")
    return y.tobytes(), y.astype(np.float64)


def f32(x):
    y = x.astype("<f4")
    return y.tobytes(), y.astype(np.float64)


def bf16(x):
    y = (x.astype("<f4").view("<u4") >> 16).astype("<u2")
    return y.tobytes(), (y.astype("<u4") << 16).view("<f4").astype(np.float64)


def q8_0(x):
    blocks = x.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 127).astype("<f2")
    q = np.rint(blocks / scale.astype(np.float64)[:, None]).clip(-128, 127).astype(np.int8)
    data = b"".join(s.tobytes() + row.tobytes() for s, row in zip(scale, q))
    return data, (scale.astype(np.float64)[:, None] * q).reshape(x.shape)


def q4_1(x):
    blocks = x.reshape(-1, 32)
    low = blocks.min(1).astype("<f2")
    scale = ((blocks.max(1) - blocks.min(1)) / 15).astype("<f2")
    s, m = scale.astype(np.float64)[:, None], low.astype(np.float64)[:, None]
    q = np.rint((blocks - m) / s).clip(0, 15).astype(np.uint8)
    packed = q[:, :16] | q[:, 16:] << 4
    data = b"".join(a.tobytes() + b.tobytes() + row.tobytes() for a, b, row in zip(scale, low, packed))
    return data, (s * q + m).reshape(x.shape)


def q5_0(x):
    blocks = x.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 15).astype("<f2")
    q = (np.rint(blocks / scale.astype(np.float64)[:, None]) + 16).clip(0, 31).astype(np.uint32)
    packed = (q[:, :16] & 15 | (q[:, 16:] & 15) << 4).astype(np.uint8)
    high = ((q >> 4) << np.arange(32, dtype=np.uint32)).sum(1).astype("<u4")
    data = b"".join(a.tobytes() + b.tobytes() + row.tobytes() for a, b, row in zip(scale, high, packed))
    return data, (scale.astype(np.float64)[:, None] * (q.astype(np.float64) - 16)).reshape(x.shape)


# tiny.gguf, gemma3.gguf

GGML = {f32: 0, f16: 1, q4_1: 3, q5_0: 6, q8_0: 8}


def text(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    if isinstance(v[0], str):
        kind, items = 8, [text(s) for s in v]
    elif isinstance(v[0], float):
        kind, items = 6, [struct.pack("<f", x) for x in v]
    else:
        kind, items = 5, [struct.pack("<i", n) for n in v]
    return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(items)


def interleave(rows, dim):
    """Row i of a head's first half and row i of its second half become neighbours."""
    return rows.reshape(-1, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def byte_letters():
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + n) for n in range(256))
    return [chr(b) if b in plain else next(others) for b in range(256)]


def gguf(rng):
    c = dict(hidden=64, feed_forward=96, heads=4, kv_heads=2, head_dim=16, layers=2, epsilon=1e-5)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]
    vocabulary = byte_letters() + [m.replace(" ", "") for m in merges] + ["<|end|>", "<|user|>"]
    tensors, layers = {}, []

    def tensor(name, kind, shape, scale, mean=0.0):
        x = mean + scale * rng.standard_normal(shape)
        data, x = kind(x)
        tensors[name] = (GGML[kind], shape, data)
        return x

    def rotated(name, kind, shape, scale):
        """Stored interleaved, used as it was."""
        x = kind(scale * rng.standard_normal(shape))[1]
        tensors[name] = (GGML[kind], shape, kind(interleave(x, c["head_dim"]))[0])
        assert np.allclose(kind(interleave(x, c["head_dim"]))[1], interleave(x, c["head_dim"]))
        return x

    embedding = tensor("token_embd.weight", q8_0, (len(vocabulary), 64), 0.5)
    for i in range(c["layers"]):
        n = f"blk.{i}."
        layers.append(dict(
            attention_norm=tensor(n + "attn_norm.weight", f32, (64,), 0.1, 1.0),
            q=rotated(n + "attn_q.weight", f16, (64, 64), 0.35),
            k=rotated(n + "attn_k.weight", f16, (32, 64), 0.35),
            v=tensor(n + "attn_v.weight", q4_1, (32, 64), 0.15),
            o=tensor(n + "attn_output.weight", q4_1, (64, 64), 0.15),
            feed_forward_norm=tensor(n + "ffn_norm.weight", f32, (64,), 0.1, 1.0),
            gate=tensor(n + "ffn_gate.weight", q4_1, (96, 64), 0.15),
            up=tensor(n + "ffn_up.weight", q4_1, (96, 64), 0.15),
            down=tensor(n + "ffn_down.weight", q8_0, (64, 96), 0.15),
        ))
    norm = tensor("output_norm.weight", f32, (64,), 0.1, 1.0)

    plain = 10000.0 ** (-np.arange(8) / 8)
    factor, low, high, context = 8.0, 1.0, 4.0, 700
    ramp = ((context * plain / (2 * np.pi) - low) / (high - low)).clip(0, 1)
    frequencies = plain * (ramp + (1 - ramp) / factor)
    tensors["rope_freqs.weight"] = (0, (8,), (plain / frequencies).astype("<f4").tobytes())

    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.block_count": c["layers"],
        "llama.embedding_length": c["hidden"],
        "llama.feed_forward_length": c["feed_forward"],
        "llama.attention.head_count": c["heads"],
        "llama.attention.head_count_kv": c["kv_heads"],
        "llama.attention.layer_norm_rms_epsilon": c["epsilon"],
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [1] * (len(vocabulary) - 2) + [3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    write_gguf(HERE / "tiny.gguf", metadata, tensors)
    weights = dict(embedding=embedding, output=embedding, norm=norm, layers=layers)
    return dict(config=c, weights=weights, frequencies=frequencies, vocabulary=len(vocabulary))


def write_gguf(path, metadata, tensors):
    head, data = b"", b""
    for name, (kind, shape, bytes_) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += bytes_ + bytes(-len(bytes_) % 32)
    head = (b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
            + b"".join(text(k) + value(v) for k, v in metadata.items()) + head)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def gemma3(rng):
    c = dict(hidden=32, feed_forward=64, heads=4, kv_heads=2, head_dim=16, layers=4, epsilon=1e-6, gemma=True)
    tensors, layers = {}, []

    def tensor(name, kind, shape, scale, mean=0.0):
        data, x = kind(mean + scale * rng.standard_normal(shape))
        tensors[name] = (GGML[kind], shape, data)
        return x

    # Chosen texts, bytes, and pieces, the best first; letters last.
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
    chosen = ["\n", "\n\n", "  ", "   ", "<b>"]
    pieces = ["he", "▁w", "ll", "hell", "▁he", "or", "hello", "▁wor", "ld", "▁world", "ow"]
    letters = sorted({letter for piece in pieces for letter in piece})
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    vocabulary = special + chosen + bytes_ + pieces + letters
    normal = len(pieces) + len(letters)

    embedding = tensor("token_embd.weight", q8_0, (len(vocabulary), 32), 0.5)
    half = np.arange(8) / 8
    for i in range(c["layers"]):
        n = f"blk.{i}."
        layer = dict(
            attention_norm=tensor(n + "attn_norm.weight", f32, (32,), 0.1, 1.0),
            q=tensor(n + "attn_q.weight", q5_0, (64, 32), 0.3),
            k=tensor(n + "attn_k.weight", q5_0, (32, 32), 0.3),
            v=tensor(n + "attn_v.weight", q8_0, (32, 32), 0.3),
            query_norm=tensor(n + "attn_q_norm.weight", f32, (16,), 0.2, 1.5),
            key_norm=tensor(n + "attn_k_norm.weight", f32, (16,), 0.2, 1.5),
            o=tensor(n + "attn_output.weight", q5_0, (32, 64), 0.3),
            attention_post_norm=tensor(n + "post_attention_norm.weight", f32, (32,), 0.3, 1.5),
            feed_forward_norm=tensor(n + "ffn_norm.weight", f32, (32,), 0.1, 1.0),
            gate=tensor(n + "ffn_gate.weight", q5_0, (64, 32), 0.3),
            up=tensor(n + "ffn_up.weight", q5_0, (64, 32), 0.3),
            down=tensor(n + "ffn_down.weight", q8_0, (32, 64), 0.3),
            feed_forward_post_norm=tensor(n + "post_ffw_norm.weight", f32, (32,), 0.3, 1.5),
        )
        if (i + 1) % 3:
            layer.update(window=20, frequencies=1e4 ** -half)
        layers.append(layer)
    norm = tensor("output_norm.weight", f32, (32,), 0.1, 1.0)
    write_gguf(HERE / "gemma3.gguf", {
        "general.architecture": "gemma3",
        "gemma3.context_length": 512,
        "gemma3.block_count": c["layers"],
        "gemma3.embedding_length": c["hidden"],
        "gemma3.feed_forward_length": c["feed_forward"],
        "gemma3.attention.head_count": c["heads"],
        "gemma3.attention.head_count_kv": c["kv_heads"],
        "gemma3.attention.key_length": c["head_dim"],
        "gemma3.attention.value_length": c["head_dim"],
        "gemma3.attention.layer_norm_rms_epsilon": c["epsilon"],
        "gemma3.attention.sliding_window": 20,
        "gemma3.attention.sliding_window_pattern": 3,
        "gemma3.rope.freq_base": 200000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.scores": [-1000.0] * 10 + [0.0] * 256 + [-float(i) for i in range(normal)],
        "tokenizer.ggml.token_type": [3] * 5 + [4] * 5 + [6] * 256 + [1] * normal,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }, tensors)
    weights = dict(embedding=embedding, output=embedding, norm=norm, layers=layers)
    return dict(config=c, weights=weights, frequencies=200000.0 ** -half, vocabulary=len(vocabulary))


# hf/

def safetensors(path, tensors):
    """name: (type, shape, bytes)"""
    header, data = {}, b""
    for name, (kind, shape, bytes_) in tensors.items():
        header[name] = dict(dtype=kind, shape=list(shape), data_offsets=[len(data), len(data) + len(bytes_)])
        data += bytes_
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def hugging_face(rng):
    c = dict(hidden=24, feed_forward=40, heads=3, kv_heads=3, head_dim=8, layers=2, epsilon=1e-6)
    tensors, layers = {}, []

    def tensor(name, kind, shape, scale, mean=0.0):
        data, x = kind(mean + scale * rng.standard_normal(shape))
        tensors[name] = ({f32: "F32", f16: "F16", bf16: "BF16"}[kind], shape, data)
        return x

    embedding = tensor("model.embed_tokens.weight", bf16, (50, 24), 0.5)
    for i in range(c["layers"]):
        n = f"model.layers.{i}."
        layers.append(dict(
            attention_norm=tensor(n + "input_layernorm.weight", f32, (24,), 0.1, 1.0),
            q=tensor(n + "self_attn.q_proj.weight", f16, (24, 24), 0.4),
            q_bias=tensor(n + "self_attn.q_proj.bias", f16, (24,), 0.4),
            k=tensor(n + "self_attn.k_proj.weight", f16, (24, 24), 0.4),
            k_bias=tensor(n + "self_attn.k_proj.bias", f16, (24,), 0.4),
            v=tensor(n + "self_attn.v_proj.weight", bf16, (24, 24), 0.2),
            v_bias=tensor(n + "self_attn.v_proj.bias", f16, (24,), 0.4),
            o=tensor(n + "self_attn.o_proj.weight", bf16, (24, 24), 0.2),
            feed_forward_norm=tensor(n + "post_attention_layernorm.weight", f32, (24,), 0.1, 1.0),
            gate=tensor(n + "mlp.gate_proj.weight", bf16, (40, 24), 0.2),
            up=tensor(n + "mlp.up_proj.weight", bf16, (40, 24), 0.2),
            down=tensor(n + "mlp.down_proj.weight", bf16, (24, 40), 0.2),
        ))
    norm = tensor("model.norm.weight", f32, (24,), 0.1, 1.0)
    output = tensor("lm_head.weight", bf16, (50, 24), 0.5)
    folder = HERE / "hf"
    folder.mkdir(exist_ok=True)
    safetensors(folder / "model.safetensors", tensors)
    config = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": c["hidden"],
        "intermediate_size": c["feed_forward"],
        "max_position_embeddings": 512,
        "num_attention_heads": c["heads"],
        "num_hidden_layers": c["layers"],
        "rms_norm_eps": c["epsilon"],
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 1000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 50,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = dict(embedding=embedding, output=output, norm=norm, layers=layers)
    frequencies = 1000.0 ** (-np.arange(4) / 4) / 4.0
    return dict(config=c, weights=weights, frequencies=frequencies, vocabulary=50)


def main():
    HERE.mkdir(exist_ok=True)
    rng, other = np.random.default_rng(2026), np.random.default_rng(2027)
    models = [("gguf", rng, gguf(rng)), ("hf", rng, hugging_face(rng)), ("gemma3", other, gemma3(other))]
    expected = {}
    for name, rng, model in models:
        tokens = rng.integers(0, model["vocabulary"], TOKENS)
        expected[f"{name}.tokens"] = ("I32", (TOKENS,), tokens.astype("<i4").tobytes())
        expected[f"{name}.rows"] = ("I32", (len(ROWS),), np.array(ROWS, "<i4").tobytes())
        for key, round_kv in (("logits", False), ("logits_f16", True)):
            logits = forward(model, tokens, round_kv)[ROWS]
            print(name, key, logits.shape, "deviation", logits.std())
            expected[f"{name}.{key}"] = ("F32", logits.shape, logits.astype("<f4").tobytes())
    safetensors(HERE / "expected.safetensors", expected)


main()
