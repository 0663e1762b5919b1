#!/usr/bin/env python3
"""LoRA training on the CPU, temper beside PyTorch + PEFT: same shape, same tokens, same cores, one
process each, order alternated. Prints medians and the ratio; docs/benchmarks.md has a run of it.

usage: bench/cpu_vs_peft.py [--threads 2] [--steps 8] [--rounds 2] [--temper build/cpu/temper]
needs torch, transformers, peft for the peer."""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time

CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
              num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048, rms_norm_eps=1e-5,
              rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, initializer_range=0.02,
              attention_bias=False, mlp_bias=False, torch_dtype="float32")
B, T = 4, 256
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peer(folder, threads, steps):
    """One process: trains with PEFT, prints the seconds of each step and the peak memory."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from peft import LoraConfig, get_peft_model
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type", "torch_dtype")})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    rows = [json.loads(line)["input_ids"] for line in open(folder + "/rows.jsonl")]
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        ids = torch.tensor(rows[step * B:(step + 1) * B])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(dict(seconds=seconds, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, loss=float(loss))))


def ours(folder, threads, steps, temper):
    out = tempfile.mkdtemp(dir=folder)
    command = [temper, "train", f"model={folder}", "init=random", f"data.0.path={folder}/rows.jsonl", "data.0.format=tokens", "method=lora",
               "lora.dropout=0", f"train.batch={B}", f"train.steps={steps}", f"train.seq={T}", "train.shuffle=false", "train.checkpoint_every=0",
               f"threads={threads}", f"out={out}/run"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(error.decode())
    rows = [json.loads(line) for line in open(out + "/run/timing.jsonl")]
    losses = [json.loads(line)["loss"] for line in open(out + "/run/metrics.jsonl")]
    return dict(seconds=[r["seconds"] for r in rows], peak=usage.ru_maxrss * 1024, loss=losses[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--only", choices=["temper", "peer"])
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.threads, args.steps)
    import random
    folder = tempfile.mkdtemp()
    json.dump(CONFIG, open(folder + "/config.json", "w"))
    generator = random.Random(1)
    with open(folder + "/rows.jsonl", "w") as f:
        for _ in range(B * args.steps):
            f.write(json.dumps(dict(input_ids=[generator.randrange(CONFIG["vocab_size"]) for _ in range(T)])) + "\n")
    results = dict(temper=[], peer=[])
    for _ in range(args.rounds):
        if args.only != "peer":
            results["temper"].append(ours(folder, args.threads, args.steps, args.temper))
        if args.only != "temper":
            command = [sys.executable, __file__, "--peer", folder, "--threads", str(args.threads), "--steps", str(args.steps)]
            results["peer"].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    medians = {}
    for name, runs in results.items():
        if not runs:
            continue
        seconds = sorted(s for r in runs for s in r["seconds"][2:])
        medians[name] = statistics.median(seconds), max(r["peak"] for r in runs)
        print(f"{name:8s} step {medians[name][0]:.3f} s (quartiles {seconds[len(seconds) // 4]:.3f} to {seconds[3 * len(seconds) // 4]:.3f}), "
              f"{B * T / medians[name][0]:.0f} tokens/s, peak {medians[name][1] / 2**30:.2f} GiB")
    if len(medians) == 2:
        print(f"temper is {medians['peer'][0] / medians['temper'][0]:.2f}x as fast at {medians['temper'][1] / medians['peer'][1]:.2f}x the memory")


if __name__ == "__main__":
    main()
