#!/usr/bin/env python3
"""ParScale in PyTorch, as a peer for measurements: what torch.compile and CUDA graphs make of it.

    peer_torch.py --size 1.8B --streams 1,2,4,8 --contexts 512,2000 --prompt 1984 [--label TEXT]
    peer_torch.py --check tests/data/golden/NAME

The first prints rows of the form of tests/gpu.sh's bench.csv, of a model with random weights on
the GPU, batch 1, bf16. A decode step has a static cache and is one CUDA graph, its layers and its
head compiled by torch.compile; the chosen token stays on the device. Prefill is
compiled too, its attention is SDPA (flash attention with causal_lower_right: prefix entries are
seen by every position).

The second loads a golden folder, computes in fp32 on the CPU without a compiler, by prefill and by
decode steps, and compares with what the published code computes. It needs torch and safetensors.

Written from the description of the model (arXiv 2505.10475), not from its published code.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import linear, scaled_dot_product_attention, silu

# hidden_size and intermediate_size of the published models; 16 heads, 2 kv heads, 36 layers.
SIZES = {"0.7B": (896, 4864), "0.9B": (1024, 5504), "1.3B": (1280, 6912), "1.8B": (1536, 8320),
         "3B": (2048, 11008), "4.7B": (2560, 13824)}
LOGIT_BAR = 2e-4  # largest difference of a logit from the published fp32, over the largest logit
WARM_UP, STEPS, PROMPTS = 20, 100, 5


@dataclass
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    streams: int
    prefix: int  # prefix tokens, 0 if there is one stream
    eps: float
    theta: float
    smoothing: float
    tied: bool

    @property
    def head_dim(self):
        return self.hidden // self.heads


def shape_of_config(c):
    streams = c.get("parscale_n", 1)
    return Shape(c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"],
                 c["num_attention_heads"], c["num_key_value_heads"], c["vocab_size"], streams,
                 c.get("parscale_n_tokens", 48) if streams > 1 else 0, c["rms_norm_eps"],
                 c["rope_theta"], c.get("parscale_attn_smooth", 0.01), c["tie_word_embeddings"])


def shape_of_size(size, streams):
    hidden, intermediate = SIZES[size]
    return Shape(hidden, intermediate, 36, 16, 2, 151936, streams, 48 if streams > 1 else 0, 1e-6,
                 10000.0, 0.1, True)


# ---- weights: a dictionary for each layer, one for the rest ------------------------------------


def published_weights(folder):
    """name -> fp32 tensor, of all safetensors files of a folder."""
    from safetensors.torch import load_file
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(path))
    return {name: tensor.float() for name, tensor in tensors.items()}


def layer_of(shape, tensors, index):
    """q, k, v and gate, up as one matrix each."""
    at = f"model.layers.{index}."
    attention, mlp = at + "self_attn.", at + "mlp."
    layer = {
        "input_norm": tensors[at + "input_layernorm.weight"],
        "post_norm": tensors[at + "post_attention_layernorm.weight"],
        "qkv": torch.cat([tensors[f"{attention}{x}_proj.weight"] for x in "qkv"]),
        "qkv_bias": torch.cat([tensors[f"{attention}{x}_proj.bias"] for x in "qkv"]),
        "o": tensors[attention + "o_proj.weight"],
        "gate_up": torch.cat([tensors[mlp + "gate_proj.weight"], tensors[mlp + "up_proj.weight"]]),
        "down": tensors[mlp + "down_proj.weight"],
    }
    if shape.prefix:
        layer["prefix_k"] = tensors[attention + "prefix_k"]  # [P, kv_heads, T, head_dim]
        layer["prefix_v"] = tensors[attention + "prefix_v"]
    return layer


def rest_of(shape, tensors):
    embedding = tensors["model.embed_tokens.weight"]
    rest = {"embedding": embedding, "norm": tensors["model.norm.weight"],
            "head": embedding if shape.tied else tensors["lm_head.weight"]}
    if shape.streams > 1:
        for name, index in (("mix", 0), ("weigh", 2)):
            rest[name] = tensors[f"model.aggregate_layer.{index}.weight"]
            rest[name + "_bias"] = tensors[f"model.aggregate_layer.{index}.bias"]
    return rest


def random_weights(shape, device):
    s, d = shape, shape.head_dim

    def matrix(rows, columns):
        return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) / math.sqrt(columns)

    def vector(n):
        return 1 + torch.randn(n, device=device, dtype=torch.bfloat16) / 10

    layers = []
    for _ in range(s.layers):
        rows = (s.heads + 2 * s.kv_heads) * d
        layer = {"input_norm": vector(s.hidden), "post_norm": vector(s.hidden),
                 "qkv": matrix(rows, s.hidden), "qkv_bias": vector(rows),
                 "o": matrix(s.hidden, s.heads * d),
                 "gate_up": matrix(2 * s.intermediate, s.hidden),
                 "down": matrix(s.hidden, s.intermediate)}
        if s.prefix:
            size = (s.streams, s.kv_heads, s.prefix, d)
            layer["prefix_k"] = torch.randn(size, device=device, dtype=torch.bfloat16)
            layer["prefix_v"] = torch.randn(size, device=device, dtype=torch.bfloat16)
        layers.append(layer)
    rest = {"embedding": matrix(s.vocab, s.hidden), "norm": vector(s.hidden)}
    rest["head"] = rest["embedding"] if s.tied else matrix(s.vocab, s.hidden)
    if s.streams > 1:
        rest.update(mix=matrix(s.hidden, s.streams * s.hidden), mix_bias=vector(s.hidden),
                    weigh=matrix(s.streams, s.hidden), weigh_bias=vector(s.streams))
    return layers, rest


# ---- the model ---------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x, cosine, sine):
    """x [..., d]; cosine, sine [..., d / 2], fp32: pairs are i and i + d / 2."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1).to(x.dtype)


class Model:
    """Weights, a static cache of prefix and `positions` entries, and two ways to run: prefill and a
    decode step, which reads and advances `token` and `position`, both on the device. mode: of
    torch.compile; None: nothing is compiled."""

    def __init__(self, shape, layers, rest, positions, mode=None):
        self.shape, self.layers, self.rest = shape, layers, rest
        s, weight = shape, rest["embedding"]
        self.device, self.dtype = weight.device, weight.dtype
        self.length = s.prefix + positions
        half = torch.arange(s.head_dim // 2, device=self.device, dtype=torch.float64)
        angles = torch.outer(torch.arange(positions, device=self.device, dtype=torch.float64),
                             s.theta ** (-2 * half / s.head_dim))
        self.cosine, self.sine = angles.cos().float(), angles.sin().float()  # [positions, d / 2]
        size = (s.streams, s.kv_heads, self.length, s.head_dim)
        self.caches = []
        for layer in layers:
            pair = [torch.zeros(size, device=self.device, dtype=self.dtype) for _ in "kv"]
            if s.prefix:
                pair[0][:, :, :s.prefix] = layer["prefix_k"]
                pair[1][:, :, :s.prefix] = layer["prefix_v"]
            self.caches.append(pair)
        self.token = torch.zeros(1, device=self.device, dtype=torch.long)
        self.position = torch.zeros(1, device=self.device, dtype=torch.long)
        self.logits = torch.zeros(s.vocab, device=self.device, dtype=self.dtype)
        maybe = (lambda f: torch.compile(f, mode=mode, dynamic=False)) if mode else (lambda f: f)
        self.decode_layer = maybe(self._decode_layer)
        self.head = maybe(self._head)
        self.qkv = maybe(self._qkv)
        self.finish_layer = maybe(self._finish_layer)

    def _qkv(self, normed, weights, cosine, sine):
        """normed [P, S, hidden] -> q [P, heads, S, d], k, v [P, kv_heads, S, d]."""
        s = self.shape
        joined = linear(normed, weights["qkv"], weights["qkv_bias"])
        joined = joined.view(s.streams, -1, s.heads + 2 * s.kv_heads, s.head_dim).transpose(1, 2)
        q, k, v = joined.split([s.heads, s.kv_heads, s.kv_heads], 1)
        return rotate(q, cosine, sine), rotate(k, cosine, sine), v

    def _finish_layer(self, x, attended, weights, next_norm):
        """What follows attention; the next layer's norm too, so that it is fused with the sum."""
        x = x + linear(attended, weights["o"])
        gate, up = linear(rms_norm(x, weights["post_norm"], self.shape.eps),
                          weights["gate_up"]).chunk(2, -1)
        x = x + linear(silu(gate) * up, weights["down"])
        return x, rms_norm(x, next_norm, self.shape.eps)

    def _decode_layer(self, x, normed, weights, next_norm, keys, values, position):
        """x, normed [P, 1, hidden]; keys, values [P, kv_heads, length, d]."""
        s = self.shape
        q, k, v = self._qkv(normed, weights, self.cosine[position], self.sine[position])
        keys.index_copy_(2, position + s.prefix, k)
        values.index_copy_(2, position + s.prefix, v)
        # The heads of a kv head are the rows of one product: the cache is read once.
        q = q.view(s.streams, s.kv_heads, s.heads // s.kv_heads, s.head_dim)
        scores = (q @ keys.transpose(2, 3)).float() / math.sqrt(s.head_dim)
        seen = torch.arange(self.length, device=self.device) <= position + s.prefix
        chances = scores.masked_fill(~seen, -math.inf).softmax(-1).to(self.dtype)
        attended = (chances @ values).reshape(s.streams, 1, s.heads * s.head_dim)
        return self._finish_layer(x, attended, weights, next_norm)

    def _head(self, y):
        """y [P, hidden], after the final norm -> logits [vocab]."""
        s, rest = self.shape, self.rest
        if s.streams == 1:
            return linear(y[0], rest["head"])
        mixed = silu(linear(y.t().reshape(1, -1), rest["mix"], rest["mix_bias"]))
        chances = linear(mixed, rest["weigh"], rest["weigh_bias"]).float().softmax(-1)
        chances = chances * (1 - s.smoothing) + s.smoothing / s.streams
        return linear((chances.to(self.dtype) @ y)[0], rest["head"])

    def next_norm(self, index):
        last = index + 1 == self.shape.layers
        return self.rest["norm"] if last else self.layers[index + 1]["input_norm"]

    def embed(self, ids):
        """ids [S] -> x, normed [P, S, hidden]."""
        x = self.rest["embedding"][ids].repeat(self.shape.streams, 1, 1)
        return x, rms_norm(x, self.layers[0]["input_norm"], self.shape.eps)

    def decode(self):
        x, normed = self.embed(self.token)
        for i, (weights, (keys, values)) in enumerate(zip(self.layers, self.caches)):
            x, normed = self.decode_layer(x, normed, weights, self.next_norm(i), keys, values,
                                          self.position)
        self.logits.copy_(self.head(normed[:, 0]))
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    def prefill(self, ids, every=False):
        """ids [S], from position 0. Returns the logits of the last one, or of every one."""
        s, count = self.shape, len(ids)
        cosine, sine = self.cosine[:count], self.sine[:count]
        bias = causal_lower_right(count, s.prefix + count)
        x, normed = self.embed(ids)
        for i, (weights, (keys, values)) in enumerate(zip(self.layers, self.caches)):
            q, k, v = self.qkv(normed, weights, cosine, sine)
            keys[:, :, s.prefix:s.prefix + count] = k
            values[:, :, s.prefix:s.prefix + count] = v
            attended = scaled_dot_product_attention(
                q, keys[:, :, :s.prefix + count], values[:, :, :s.prefix + count], attn_mask=bias,
                enable_gqa=True)
            attended = attended.transpose(1, 2).reshape(s.streams, count, s.heads * s.head_dim)
            x, normed = self.finish_layer(x, attended, weights, self.next_norm(i))
        if every:
            return torch.stack([self._head(normed[:, t]) for t in range(count)])
        return self.head(normed[:, -1])


# ---- the check ---------------------------------------------------------------------------------


def check(folder):
    """Whether prefill and decode equal the published code's logits and greedy tokens."""
    from safetensors.torch import load_file
    shape = shape_of_config(json.loads((folder / "config.json").read_text()))
    expected = load_file(folder / "expected.safetensors")
    ids, reference = expected["input_ids"].long(), expected["logits"]
    greedy = expected["greedy_ids"].tolist()
    tensors = published_weights(folder)
    layers = [layer_of(shape, tensors, i) for i in range(shape.layers)]
    positions = len(ids) + len(greedy)
    scale = reference.abs().max().item()
    results = {}
    with torch.inference_mode():
        model = Model(shape, layers, rest_of(shape, tensors), positions)
        results["prefill"] = (model.prefill(ids, every=True) - reference).abs().max().item()
        for pair in model.caches:  # decode must not use what prefill left
            for half in pair:
                half[:, :, shape.prefix:] = 7.0
        steps = []
        for token in ids:
            model.token.fill_(token)
            model.decode()
            steps.append(model.logits.clone())
        results["decode"] = (torch.stack(steps) - reference).abs().max().item()
        chosen = []
        for _ in greedy:
            chosen.append(model.token.item())
            model.decode()
    same = sum(a == b for a, b in zip(chosen, greedy))
    good = same == len(greedy) and all(value <= LOGIT_BAR * scale for value in results.values())
    print(f"{folder.name}: largest difference of a logit: prefill {results['prefill']:.2g}, decode "
          f"{results['decode']:.2g}, of logits up to {scale:.2g}; greedy tokens equal: {same} of "
          f"{len(greedy)}: {'good' if good else 'BAD'}")
    return good


# ---- measuring ---------------------------------------------------------------------------------


def milliseconds(run, warm_up, count):
    """The median of `count` runs; each ends when the device is done."""
    times = []
    for i in range(warm_up + count):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i >= warm_up:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure_decode(shape, weights, context, mode):
    """A step behind `context` positions, of random numbers; the cache has no more room than the
    measurement needs, as all of it is read."""
    room = -(-(context + WARM_UP + STEPS + 8) // 64) * 64
    model = Model(shape, *weights, room, mode)
    for pair in model.caches:
        for half in pair:
            half[:, :, shape.prefix:].normal_()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles
        for _ in range(3):
            model.decode()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        model.decode()
    model.position.fill_(context)
    return milliseconds(graph.replay, WARM_UP, STEPS)


def measure_prefill(shape, weights, prompt, mode):
    model = Model(shape, *weights, prompt, mode)
    ids = torch.randint(shape.vocab, (prompt,), device="cuda")
    return milliseconds(lambda: model.prefill(ids), 2, PROMPTS)


def measure(options):
    label = options.label or f"{torch.cuda.get_device_name()},,"
    with torch.inference_mode():
        for streams in options.streams:
            shape = shape_of_size(options.size, streams)
            weights = random_weights(shape, "cuda")

            def row(what, context, value):
                print(f"torch.compile,{label},{options.size},bf16,{streams},{what},{context},"
                      f"{value:.4f}", flush=True)

            for context in options.contexts:
                row("decode_ms", context, measure_decode(shape, weights, context, options.mode))
            if options.prompt:
                row("prefill_ms", options.prompt,
                    measure_prefill(shape, weights, options.prompt, options.mode))
            torch.compiler.reset()
            del weights
            torch.cuda.empty_cache()


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--size", choices=SIZES, default="1.8B")
    parser.add_argument("--streams", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--contexts", type=numbers, default=[512])
    parser.add_argument("--prompt", type=int, default=1984, help="0: no prefill")
    parser.add_argument("--mode", default="max-autotune-no-cudagraphs", help="of torch.compile")
    parser.add_argument("--label", help="device,driver,power limit: the columns of the CSV")
    options = parser.parse_args()
    if options.check:
        sys.exit(0 if check(options.check) else 1)
    measure(options)


if __name__ == "__main__":
    main()
