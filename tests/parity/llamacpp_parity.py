#!/usr/bin/env python3
"""temper beside llama.cpp: what temper exports is loaded by llama.cpp and says the same, and the other way round.

Models: stories260K and a random Qwen2 whose rows are multiples of 256 (so that every block type is used), with a
byte-level tokenizer. For each: tokens, greedy text, logits of exported files; adapters; and files that llama.cpp's
quantiser writes, read by temper. Run by hand where llama-cpp-python and numpy are; figures go to docs/parity.md.

usage: tests/parity/llamacpp_parity.py [--temper build/cpu/temper] [--seed N]"""
import argparse, ctypes, json, os, shutil, struct, subprocess, sys, tempfile
import numpy as np
import llama_cpp
from llama_cpp import Llama

parser = argparse.ArgumentParser()
parser.add_argument("--temper", default="build/cpu/temper")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()
rng = np.random.default_rng(args.seed)
work = tempfile.mkdtemp(prefix="llamacpp-parity-")
checks, failures = 0, 0
NULL_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *a: None)
llama_cpp.llama_log_set(NULL_LOG, None)

CACHE = dict(type_k=0, type_v=0)  # keys and values in F32: F16, the default, is a difference of its own
TEXTS = ["Once upon a time, there was a little dog.", " leading space", "two  spaces   three", "Ёжик в тумане, 42!", "don't  I'LL we've",
         "你好，世界 🙂👍🏽", "tabs\tand\nnew\n\nlines\r\n", "1234567890 3.14159", "a", "", "<s>not special</s> <|im_start|>", "é è ñ ẞ", "x" * 300]


def check(name, ok, detail):
    global checks, failures
    checks += 1
    failures += not ok
    print(f"{'ok ' if ok else 'BAD'} {name}: {detail}", flush=True)


def temper(*words, text=None):
    done = subprocess.run([args.temper, *words], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"temper {' '.join(words)}: {done.stderr}")
    return done


def tensors(path):
    with open(path, "rb") as f:
        head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    kinds = {"F32": np.float32, "BF16": np.uint16}
    return {k: np.frombuffer(data[v["data_offsets"][0]:v["data_offsets"][1]], kinds[v["dtype"]]).reshape(v["shape"]).astype(np.float32)
            for k, v in head.items() if k != "__metadata__"}


def save(path, values):
    head, data = {"__metadata__": {"format": "pt"}}, b""
    for k in sorted(values):
        v = values[k].astype(np.float32)
        head[k] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [len(data), len(data) + v.nbytes]}
        data += v.tobytes()
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def logits_temper(model, ids, adapter=None):
    data, out = f"{work}/ids.jsonl", f"{work}/logits.safetensors"
    with open(data, "w") as f:
        f.write(json.dumps({"input_ids": ids}) + "\n")
    temper("eval", "--model", model, *(["--adapter", adapter] if adapter else []), "--data", data, "--logits", out, "eval.0.format=tokens")
    return tensors(out)["0"]


def logits_llama(model, ids, lora=None):
    l = Llama(model, n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, lora_path=lora, flash_attn=False, **CACHE)
    l.eval(ids)
    out = np.array(l.scores[:len(ids)], dtype=np.float32)
    l.close()
    return out


def kl(a, b):
    p, q = (x.astype(np.float64) - x.max(-1, keepdims=True) for x in (a, b))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).max())


def compare(name, a, b, bound):
    worst, top = kl(a, b), (a.argmax(-1) == b.argmax(-1)).mean()
    relative = float(np.abs(a - b).max() / np.abs(a).max())
    check(name, worst <= bound, f"largest KL {worst:.2g} (bound {bound:g}), largest difference {relative:.2g} of the largest logit, first choice agrees {top:.0%}")


def export(model, name, kind, *more):
    path = f"{work}/{name}-{kind}.gguf"
    said = temper("export", "--model", model, "--gguf", path, "--type", kind, *more).stderr.strip()
    return path, said


def make_qwen():
    """A random Qwen2 with sizes of multiples of 256, nine layers (so that the mix of Q4_K_M shows) and spread logits."""
    d = f"{work}/qwen"
    os.makedirs(d)
    C, F, L, V, H, K = 256, 512, 9, 3261, 4, 2
    config = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=L,
                  num_attention_heads=H, num_key_value_heads=K, max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=1000000.0,
                  tie_word_embeddings=False, hidden_act="silu", eos_token_id=3258)
    json.dump(config, open(f"{d}/config.json", "w"))
    n = lambda *s: rng.standard_normal(s).astype(np.float32)
    t = {"model.embed_tokens.weight": n(V, C), "lm_head.weight": n(V, C) * 0.15, "model.norm.weight": 1 + 0.1 * n(C)}
    for i in range(L):
        p = f"model.layers.{i}."
        for name, rows, cols in (("q", H * 64, C), ("k", K * 64, C), ("v", K * 64, C), ("o", C, H * 64)):
            t[p + f"self_attn.{name}_proj.weight"] = n(rows, cols) / np.sqrt(cols)
            if name != "o":
                t[p + f"self_attn.{name}_proj.bias"] = 0.1 * n(rows)
        for name, rows, cols in (("gate", F, C), ("up", F, C), ("down", C, F)):
            t[p + f"mlp.{name}_proj.weight"] = n(rows, cols) / np.sqrt(cols)
        t[p + "input_layernorm.weight"] = 1 + 0.1 * n(C)
        t[p + "post_attention_layernorm.weight"] = 1 + 0.1 * n(C)
    save(f"{d}/model.safetensors", t)
    shutil.copy("tests/data/tokenizers/bytelevel/tokenizer.json", d)
    json.dump({"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}, open(f"{d}/tokenizer_config.json", "w"))
    return d


def tokens(name, model, path):
    rows = temper("tokenize", "--tokenizer", model, "--jsonl", "/dev/stdin", "--add-special", text="".join(json.dumps(t) + "\n" for t in TEXTS)).stdout
    ours = [json.loads(r) for r in rows.splitlines()]
    l = Llama(path, vocab_only=True, verbose=False)
    theirs = [l.tokenize(t.encode(), add_bos=True, special=True) for t in TEXTS]
    wrong = [TEXTS[i] for i in range(len(TEXTS)) if ours[i] != theirs[i]]
    check(f"{name}: tokens of {len(TEXTS)} texts", not wrong, f"differ: {wrong}" if wrong else "equal")
    l.close()


def greedy(name, model, path, prompt, n):
    ours = temper("generate", "--model", model, "--prompt", prompt, "--max-tokens", str(n), "--temperature", "0").stdout.rstrip("\n")
    l = Llama(path, n_ctx=512, n_threads=1, verbose=False, logits_all=True, flash_attn=False, **CACHE)
    start = l.tokenize(prompt.encode(), add_bos=True, special=True) if prompt else [l.token_bos()]
    ids = list(start)
    l.eval(ids)
    tie = None  # of a random model: where the two best logits differ by less than two programs' rounding
    while len(ids) < len(start) + n:
        row = np.asarray(l.scores[len(ids) - 1])
        best, second = (int(i) for i in np.argsort(-row, kind="stable")[:2])
        if tie is None and row[best] - row[second] < 1e-4 * np.abs(row).max():
            tie = len(ids)
        if best == l.token_eos():
            break
        ids.append(best)
        l.eval([best])
    l.close()
    whole, before, sure = (json.loads(r) for r in temper("tokenize", "--tokenizer", model, "--jsonl", "/dev/stdin", "--decode",
                                                          text=f"{json.dumps(ids)}\n{json.dumps(start)}\n{json.dumps(ids[:tie])}\n").stdout.splitlines())
    theirs, sure = (t[len(before) if prompt else 0:].replace("<s>", "").strip() for t in (whole, sure))
    same = ours.strip() == theirs
    said = "equal" if same else f"equal up to a tie at token {tie - len(start)}" if tie and ours.strip().startswith(sure.rstrip("\ufffd")) else "differs"
    check(f"{name}: greedy text of {n} tokens", said != "differs", said)


def quantise(source, kind, pure):
    path = f"{work}/llama-{kind}.gguf"
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.pure, p.nthread, p.allow_requantize = kind, pure, 1, True
    if llama_cpp.llama_model_quantize(source.encode(), path.encode(), p):
        sys.exit(f"llama_model_quantize {kind} failed")
    return path


def same_tensors(name, ours, theirs):
    """Bytes and types of every tensor, and where they lie, are the same in both files."""
    def read(path):
        data = open(path, "rb").read()
        at = 24
        def take(fmt):
            nonlocal at
            v = struct.unpack_from("<" + fmt, data, at)
            at += struct.calcsize("<" + fmt)
            return v[0]
        def text():
            nonlocal at
            n = take("Q")
            at += n
            return data[at - n:at]
        def value(kind):
            if kind == 8:
                return text()
            if kind == 9:
                inner, n = take("I"), take("Q")
                return [value(inner) for _ in range(n)]
            return take("BbHhIif?.?QqdXX"[kind] if kind < 8 else {10: "Q", 11: "q", 12: "d"}[kind])
        count, keys = struct.unpack_from("<QQ", data, 8)
        meta = {text().decode(): value(take("I")) for _ in range(keys)}
        infos = []
        for _ in range(count):
            n = text().decode()
            dims = [take("Q") for _ in range(take("I"))]
            infos.append((n, dims, take("I"), take("Q")))
        base = (at + 31) // 32 * 32
        ends = sorted(i[3] for i in infos) + [len(data) - base]
        return meta, {n: (d, t, data[base + o:base + ends[ends.index(o) + 1]]) for n, d, t, o in infos}
    a, b = read(ours)[1], read(theirs)[1]
    wrong = [n for n in b if n not in a or a[n][1] != b[n][1] or a[n][2] != b[n][2]]
    types = sorted({(t[1]) for t in b.values()})
    check(name, not wrong and len(a) == len(b), f"{len(b)} tensors, types {types}: " + (f"differ: {wrong[:6]}" if wrong else "the same bytes"))


def adapters(name, model, base, keys):
    run = f"{work}/{name}-adapter"
    data = f"{work}/{name}.jsonl"
    with open(data, "w") as f:
        for i in range(8):
            f.write(json.dumps({"input_ids": [int(x) for x in rng.integers(3, 500, 40)]}) + "\n")
    temper("train", "--model", model, "--data", data, "--out", run, "data.0.format=tokens", "train.steps=12", "train.batch=4", "train.lr=0.01",
           "train.warmup_steps=0", "train.seed=3", *keys)
    path = f"{work}/{name}-lora.gguf"
    said = temper("export", "--model", model, "--adapter", run, "--gguf", path, "--adapter-only").stderr.strip()
    ids = [int(x) for x in rng.integers(3, 500, 30)]
    plain, ours, theirs = logits_temper(model, ids), logits_temper(model, ids, run), logits_llama(base, ids, path)
    moved = kl(plain, ours)
    check(f"{name}: the adapter changes something", moved > 1e-3, f"KL {moved:.3g}; {said}")
    compare(f"{name}: logits with the adapter, llama.cpp against temper", ours, theirs, 1e-7)
    merged, _ = export(model, f"{name}-merged", "f32", "--adapter", run)
    compare(f"{name}: logits of the merged export in llama.cpp", ours, logits_llama(merged, ids), 1e-7)


def make_phi3():
    """A random Phi-3: fused q, k, v and gate, up; a part of each head rotated."""
    d = f"{work}/phi3"
    os.makedirs(d)
    C, F, L, V, H, K, D = 64, 96, 3, 128, 4, 2, 16
    config = dict(architectures=["Phi3ForCausalLM"], model_type="phi3", vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=L,
                  num_attention_heads=H, num_key_value_heads=K, max_position_embeddings=128, original_max_position_embeddings=128, rms_norm_eps=1e-5,
                  rope_theta=10000.0, tie_word_embeddings=False, hidden_act="silu", sliding_window=None, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    json.dump(config, open(f"{d}/config.json", "w"))
    n = lambda *s: rng.standard_normal(s).astype(np.float32)
    t = {"model.embed_tokens.weight": n(V, C), "lm_head.weight": n(V, C) * 0.3, "model.norm.weight": 1 + 0.1 * n(C)}
    for i in range(L):
        p = f"model.layers.{i}."
        for name, rows, cols in (("self_attn.qkv_proj", (H + 2 * K) * D, C), ("self_attn.o_proj", C, H * D), ("mlp.gate_up_proj", 2 * F, C), ("mlp.down_proj", C, F)):
            t[f"{p}{name}.weight"] = n(rows, cols) / np.sqrt(cols)
        t[p + "input_layernorm.weight"] = 1 + 0.1 * n(C)
        t[p + "post_attention_layernorm.weight"] = 1 + 0.1 * n(C)
    save(f"{d}/model.safetensors", t)
    return d


def family(name, model, adapter):
    """A tiny model without a tokenizer, and an adapter: llama.cpp computes the same. GELU is a table of f16 there."""
    copy = f"{work}/{name}"
    if not os.path.exists(copy):
        shutil.copytree(model, copy)
    config = json.load(open(f"{copy}/config.json"))
    if "query_pre_attn_scalar" in config:  # llama.cpp knows no other scale of scores than the head size
        config["query_pre_attn_scalar"] = config["head_dim"]
        json.dump(config, open(f"{copy}/config.json", "w"))
    path, _ = export(copy, name, "f32")
    positions = config.get("sliding_window") if config["model_type"] == "mistral" else None
    ids = [int(x) for x in rng.integers(3, 120, positions or 48)]
    compare(f"{name} f32: logits, llama.cpp against the source in temper", logits_temper(copy, ids), logits_llama(path, ids), 1e-7)
    compare(f"{name} f32: logits of the file, both ways", logits_temper(copy, ids), logits_temper(path, ids), 1e-12)
    if adapter and os.path.exists(adapter):
        lora = f"{work}/{name}-adapter.gguf"
        temper("export", "--model", copy, "--adapter", adapter, "--gguf", lora, "--adapter-only")
        ours = logits_temper(copy, ids, adapter)
        check(f"{name}: the adapter changes something", kl(logits_temper(copy, ids), ours) > 1e-6, "yes")
        compare(f"{name}: logits with PEFT's adapter, llama.cpp against temper", ours, logits_llama(path, ids, lora), 1e-7)


def blocks():
    """ggml's blocks against ggml's own library: random bits unpacked, floats of eight kinds packed."""
    library = f"{work}/blocks.so"
    subprocess.run(["cc", "-std=gnu17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Isrc", "-Iinclude", "src/io/ggml_quant.c", "src/io/ggml_pack.c",
                    "src/base/dtype.c", "-o", library, "-lm"], check=True)
    ours, theirs = ctypes.CDLL(library), ctypes.CDLL(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.so"))
    ours.tm_ggml_type_of.restype = ctypes.c_void_p
    at = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    N, n = 256 * 400, ctypes.c_int64(256 * 400)
    inputs = [rng.standard_normal(N) * .02, rng.standard_t(2, N) * .01, rng.uniform(0, 1, N), rng.uniform(-3, -2, N), np.round(rng.standard_normal(N) * 3) / 8,
              rng.standard_normal(N) * (rng.random(N) < .05), rng.standard_normal(N) * 1e-6, np.repeat(rng.standard_normal(N // 64), 64)]
    kinds = {"q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "q8_0": (8, 32, 34), "q2_K": (10, 256, 84), "q3_K": (11, 256, 110),
             "q4_K": (12, 256, 144), "q5_K": (13, 256, 176), "q6_K": (14, 256, 210), "iq4_nl": (20, 32, 18), "iq4_xs": (23, 256, 136), "tq2_0": (35, 256, 66)}
    for name, (number, block, size) in kinds.items():
        kind = ctypes.c_void_p(ours.tm_ggml_type_of(ctypes.c_uint32(number)))
        bits = rng.integers(0, 256, N // block * size, dtype=np.uint8)
        a, b = np.zeros(N, np.float32), np.zeros(N, np.float32)
        getattr(theirs, f"dequantize_row_{name}")(at(bits), at(a), n)
        ours.tm_ggml_unpack(kind, at(bits), at(b), n)
        differ = int(((a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))).sum())
        packed = 0
        if name in ("q4_0", "q5_0", "q5_1", "q8_0", "q4_K", "q5_K", "q6_K"):
            for x in inputs:
                x, p, q = x.astype(np.float32), np.zeros(N // block * size, np.uint8), np.zeros(N // block * size, np.uint8)
                getattr(theirs, f"quantize_row_{name}_ref")(at(x), at(p), n)
                ours.tm_ggml_pack(kind, at(x), at(q), n)
                packed += int((p != q).sum())
        check(f"blocks {name}", differ == 0 and packed == 0, f"{differ} of {N} unpacked values differ, {packed} packed bytes")


print(f"llama-cpp-python {llama_cpp.__version__}")
blocks()
for name in ("llama", "llama3rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"):
    golden = f"tests/data/golden/{name}-lora"
    family(name, f"{golden}/model", f"{golden}/adapter_final")
family("phi3", make_phi3(), None)
stories, qwen = "models/stories260K", make_qwen()
BOUNDS = {"f32": 1e-7, "f16": 1e-3, "bf16": 2e-2, "q8_0": 2e-2, "q4_k_m": 0.5}
for name, model, prompt in (("stories260K", stories, ""), ("qwen2", qwen, "The little dog")):
    ids = [int(x) for x in rng.integers(3, 500, 60)]
    source = logits_temper(model, ids)
    files = {}
    for kind, bound in BOUNDS.items():
        path, said = export(model, name, kind)
        files[kind] = path
        compare(f"{name} {kind}: logits, llama.cpp against the source in temper", source, logits_llama(path, ids), bound)
        # The same file in both: what remains is how activations are rounded in llama.cpp.
        compare(f"{name} {kind}: logits of the file, llama.cpp against temper", logits_temper(path, ids), logits_llama(path, ids), {"f32": 1e-7, "f16": 1e-3, "bf16": 2e-2}.get(kind, 5e-2))
    tokens(name, model, files["f32"])
    tokens(f"{name}, the tokenizer in the GGUF file", files["f32"], files["f32"])
    greedy(f"{name} f32", model, files["f32"], prompt, 199)
    if name == "stories260K":  # the random model has near ties, and llama.cpp rounds activations to f16 there
        greedy(f"{name} f16", files["f16"], files["f16"], prompt, 199)
    same_tensors(f"{name}: Q8_0 as llama-quantize writes it", files["q8_0"], quantise(files["f32"], 7, False)) if name == "qwen2" else None
    same_tensors(f"{name}: Q4_K_M as llama-quantize writes it", files["q4_k_m"], quantise(files["f32"], 15, False))
    adapters(name, model, files["f32"], ["lora.r=4", "lora.alpha=8"])
    adapters(f"{name}-rslora", model, files["f32"], ["lora.r=3", "lora.alpha=8", "lora.use_rslora=true", "lora.target_modules=[q_proj, k_proj]"])

# Every block type out of llama.cpp's quantiser, all matrices alike.
KINDS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30}
base, _ = export(qwen, "qwen2", "f32")
ids = [int(x) for x in rng.integers(3, 500, 60)]
for kind, number in KINDS.items():
    path = quantise(base, number, True)
    ours, theirs = logits_temper(path, ids), logits_llama(path, ids)
    compare(f"llama-quantize {kind}: logits, llama.cpp against temper", ours, theirs, 5e-2)

print(f"{checks - failures} of {checks} checks passed")
shutil.rmtree(work)
sys.exit(failures > 0)
