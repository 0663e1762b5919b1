#!/usr/bin/env python3
"""Fine-tuning on one GPU, temper beside PyTorch + PEFT: same random weights, same tokens, one process each, on one
machine, one after the other. Prints a row a case: tokens a second (median of the synchronised steps after the warm-up),
peak memory as the driver reports it, temper's planned peak. docs/benchmarks.md has runs of it.

usage: bench/gpu_vs_peft.py [--temper build/cpu/temper] [--cases 7b-lora,0.5b-lora,...] [--peers eager,compiled]
       [--work DIR] [--steps 40] [--warm 3] [--override KEY=VALUE ...]
needs torch (for the weights), transformers and peft (for the peers)."""
import argparse, json, os, random, statistics, subprocess, sys, tempfile, threading, time

from gpu_cases import CASES, RANK, SHAPES, VOCABULARY

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(shape):
    hidden, ffn, layers, heads, kv, tied = SHAPES[shape]
    return dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv, vocab_size=VOCABULARY, max_position_embeddings=32768, rms_norm_eps=1e-6,
                rope_theta=1e6, hidden_act="silu", tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, initializer_range=0.02,
                torch_dtype="bfloat16", use_sliding_window=False)


def write_model(folder, shape):
    import torch
    from safetensors.torch import save_file
    if os.path.exists(folder + "/done"):
        return
    os.makedirs(folder, exist_ok=True)
    hidden, ffn, layers, heads, kv, tied = SHAPES[shape]
    head = hidden // heads
    torch.manual_seed(0)
    where = "cuda" if torch.cuda.is_available() else "cpu"

    def normal(*size):
        return (torch.randn(*size, device=where, dtype=torch.bfloat16) * 0.02).cpu()
    tensors = {"model.embed_tokens.weight": normal(VOCABULARY, hidden), "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    if not tied:
        tensors["lm_head.weight"] = normal(VOCABULARY, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, rows in (("q", heads * head), ("k", kv * head), ("v", kv * head)):
            tensors[p + f"self_attn.{name}_proj.weight"] = normal(rows, hidden)
            tensors[p + f"self_attn.{name}_proj.bias"] = normal(rows)
        tensors[p + "self_attn.o_proj.weight"] = normal(hidden, heads * head)
        tensors[p + "mlp.gate_proj.weight"] = normal(ffn, hidden)
        tensors[p + "mlp.up_proj.weight"] = normal(ffn, hidden)
        tensors[p + "mlp.down_proj.weight"] = normal(hidden, ffn)
        for norm in ("input", "post_attention"):
            tensors[p + norm + "_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, folder + "/model.safetensors", metadata={"format": "pt"})
    json.dump(config(shape), open(folder + "/config.json", "w"))
    open(folder + "/done", "w").close()


def row_lengths(rows, length, steps):
    """-1: instruction data as they come: lengths log-normal around 250 tokens, 16 to 2048."""
    if length > 0:
        return [length] * (rows * steps)
    lot = random.Random(7)
    return [min(2048, max(16, int(lot.lognormvariate(5.5, 0.8)))) for _ in range(rows * steps)]


def write_rows(path, rows, length, steps):
    lot = random.Random(3)
    with open(path, "w") as f:
        for n in row_lengths(rows, length, steps):
            f.write(json.dumps({"input_ids": [lot.randrange(10, VOCABULARY) for _ in range(n)]}) + "\n")


class Memory(threading.Thread):
    """The largest use of the GPU's memory that the driver reports, of all processes, while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.on = 0, True

    def run(self):
        while self.on:
            out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
            if out.strip():
                self.peak = max(self.peak, int(out.split()[0]) << 20)
            time.sleep(0.2)


def ours(case, folder, rows_file, steps, temper, overrides):
    shape, method, rows, length = CASES[case]
    out = tempfile.mkdtemp()
    tokens = sum(row_lengths(rows, length, steps)) // steps
    command = [temper, "train", f"model={folder}", f"data.0.path={rows_file}", "data.0.format=tokens", f"method={method}", "device=cuda", f"train.batch={rows}",
               f"train.steps={steps}", "train.seq=2048", "train.shuffle=false", "train.checkpoint_every=0", "train.max_grad_norm=1",
               f"out={out}/run"] + overrides
    if method == "lora":
        command += ["lora.dropout=0", f"lora.r={RANK}"]
    memory = Memory()
    memory.start()
    start = time.time()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = None
    while child.poll() is None:
        time.sleep(0.02)
        if first is None and os.path.exists(out + "/run/timing.jsonl") and os.path.getsize(out + "/run/timing.jsonl"):
            first = time.time() - start
    memory.on = False
    if child.returncode:
        return dict(error=child.stderr.read()[-2000:])
    timing = [json.loads(line) for line in open(out + "/run/timing.jsonl")]
    losses = [json.loads(line) for line in open(out + "/run/metrics.jsonl")]
    run = json.load(open(out + "/run/run.json"))
    return dict(seconds=[t["seconds"] for t in timing], tokens=[m["tokens"] for m in losses if "tokens" in m], whole=time.time() - start, first=first,
                losses=[m["loss"] for m in losses if "loss" in m][:3], driver=memory.peak, own=run.get("peak_bytes"), planned=run.get("planned_bytes"))


def peer(case, folder, rows_file, steps, kind):
    """In a process of its own: trains with PEFT (or plain transformers), prints seconds and peak."""
    import torch
    from transformers import AutoModelForCausalLM
    shape, method, rows, length = CASES[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
    model.config.use_cache = False
    if method == "lora":
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    run = torch.compile(model) if kind.startswith("compiled") else model
    data = [json.loads(line)["input_ids"] for line in open(rows_file)]
    seconds, tokens = [], []
    for step in range(steps):
        part = data[step * rows:(step + 1) * rows]
        longest = max(map(len, part))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in part]).cuda()
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in part]).cuda()
        labels = ids.masked_fill(mask == 0, -100)
        torch.cuda.synchronize()
        start = time.perf_counter()
        ragged = length < 0
        loss = run(input_ids=ids, attention_mask=mask if ragged else None, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        tokens.append(sum(map(len, part)))
    print(json.dumps(dict(seconds=seconds, tokens=tokens, losses=[float(loss)], torch=torch.cuda.max_memory_reserved())))


def prepare(case, work, steps):
    """The case's model and rows, made where they are not there."""
    shape, method, rows, length = CASES[case]
    folder, rows_file = f"{work}/{shape}", f"{work}/{case}.jsonl"
    subprocess.run([sys.executable, __file__, "--write", folder, shape], check=True)  # its own process: it holds GPU memory
    write_rows(rows_file, rows, length, steps)
    return folder, rows_file


def compile_together(cases, work, at_once, limit):
    """torch.compile takes minutes of one processor: here for several cases at a time, so that the timed runs find its results in
    the compiler's own cache."""
    waiting, running, end = list(cases), [], time.time() + limit
    while (waiting or running) and time.time() < end:
        while waiting and len(running) < at_once:
            case = waiting.pop(0)
            command = [sys.executable, __file__, "--peer", case, f"{work}/{CASES[case][0]}", f"{work}/{case}.jsonl", "2", "compiled"]
            running.append((case, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)))
        for case, child in list(running):
            if child.poll() is not None:
                print(f"{case}: compiled{'' if child.returncode == 0 else ', failed'}, {limit - (end - time.time()):.0f} s", flush=True)
                running.remove((case, child))
        time.sleep(0.2)
    for case, child in running:
        print(f"{case}: not compiled in {limit} s", flush=True)
        child.kill()
        child.wait()


def rate(result, warmup):
    per = [t / s for t, s in zip(result["tokens"][warmup:], result["seconds"][warmup:])]
    quartile = statistics.quantiles(per, n=4) if len(per) > 3 else [min(per), statistics.median(per), max(per)]
    return quartile


def show(case, who, r, warmup):
    if "error" in r:
        print(f"{case:12} {who:10} failed: {r['error'][-700:]}", flush=True)
        return
    q = rate(r, warmup)
    memory = "".join(f" {k} {r[k] / 2**30:.3f} GiB" for k in ("driver", "own", "planned", "torch") if r.get(k))
    print(f"{case:12} {who:10} {q[1]:10.0f} tokens/s ({q[0]:.0f} to {q[2]:.0f}) {statistics.median(r['seconds'][warmup:]) * 1e3:8.1f} ms a step"
          f"{memory} losses {['%.5f' % x for x in r['losses']]} first step {r['seconds'][0]:.2f} s, done {r.get('first') or 0:.1f} s after start", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--peers", default="eager,compiled")
    parser.add_argument("--work", default=tempfile.gettempdir() + "/temper-bench")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--limit", type=int, default=240, help="seconds a peer may take")
    parser.add_argument("--warm", type=int, default=0, help="so many compilations at once before anything is timed")
    parser.add_argument("--out")
    parser.add_argument("--override", nargs="*", default=[])
    parser.add_argument("--peer", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--no-temper", action="store_true", help="the peers alone")
    a = parser.parse_args()
    if a.write:
        return write_model(*a.write)
    if a.peer:
        case, folder, rows_file, steps, kind = a.peer
        return peer(case, folder, rows_file, int(steps), kind)
    results, ready = {}, {}
    for case in a.cases.split(","):
        start = time.time()
        ready[case] = prepare(case, a.work, a.steps)
        print(f"{case}: model and rows in {time.time() - start:.1f} s", flush=True)
    if a.warm:
        compile_together(ready, a.work, a.warm, a.limit)
    for case, (folder, rows_file) in ready.items():
        results[case] = {}
        if not a.no_temper:
            results[case]["temper"] = ours(case, folder, rows_file, a.steps, a.temper, a.override)
            show(case, "temper", results[case]["temper"], a.warmup)
        for kind in filter(None, a.peers.split(",")):
            try:
                done = subprocess.run([sys.executable, __file__, "--peer", case, folder, rows_file, str(a.steps), kind], capture_output=True, text=True, timeout=a.limit)
                r = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else dict(error=done.stderr)
            except subprocess.TimeoutExpired:
                r = dict(error=f"more than {a.limit} s")
            results[case][kind] = r
            show(case, kind, r, a.warmup)
        median = {who: rate(r, a.warmup)[1] for who, r in results[case].items() if "error" not in r}
        peers = [median[who] for who in median if who != "temper"]
        if "temper" in median and peers:
            print(f"{case:12} ratio      {median['temper'] / max(peers):10.2f} x the better peer", flush=True)
    if a.out:
        json.dump(results, open(a.out, "w"), indent=1)


main()
