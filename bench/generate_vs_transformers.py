#!/usr/bin/env python3
"""Greedy generation on one GPU, temper (bench/generate) beside transformers' generate: same random weights in bf16, prompts of
128 tokens, 128 new ones, one machine, one after the other. Prints tokens a second by how many texts are written at a time,
and their ratio. docs/benchmarks.md has a run of it.

usage: bench/generate_vs_transformers.py [--generate build/cpu/bench/generate] [--shapes 0.5b,1.5b] [--texts 1,4,16,32] [--work DIR]
needs torch (for the weights) and transformers; TEMPER_CUDA_LIBRARY where the library is not beside the program."""
import argparse, json, re, subprocess, sys, tempfile, time

from gpu_cases import VOCABULARY

PROMPT = NEW = 128


def peer(folder, counts):
    """In a process of its own: {texts: tokens a second}, the best of three after one that warms up."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
    prompt = [(i * 7919 + 11) % VOCABULARY for i in range(PROMPT)]
    rates = {}
    for n in counts:
        ids = torch.tensor([prompt] * n).cuda()
        seconds = {}
        for new in (1, NEW):  # what is read before the first token is not counted
            best = 1e9
            for _ in range(4):
                torch.cuda.synchronize()
                start = time.perf_counter()
                model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0)
                torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
            seconds[new] = best
        rates[n] = n * (NEW - 1) / (seconds[NEW] - seconds[1])
    print(json.dumps(rates))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--generate", default="build/cpu/bench/generate")
    parser.add_argument("--shapes", default="0.5b,1.5b")
    parser.add_argument("--texts", default="1,4,16,32")
    parser.add_argument("--work", default=tempfile.gettempdir() + "/temper-bench")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    counts = [int(n) for n in args.texts.split(",")]
    if args.peer:
        return peer(args.peer, counts)
    for shape in args.shapes.split(","):
        folder = f"{args.work}/{shape}"
        subprocess.run([sys.executable, sys.path[0] + "/gpu_vs_peft.py", "--write", folder, shape], check=True)
        printed = subprocess.run([args.generate, folder, "cuda", "0", str(PROMPT), str(NEW)], capture_output=True, text=True)
        print(printed.stdout + printed.stderr[-500:], flush=True)
        ours = {int(n): float(rate) for n, rate in re.findall(r"^ *(\d+) texts: +([\d.]+) tokens/s", printed.stdout, re.M)}
        other = subprocess.run([sys.executable, __file__, "--peer", folder, "--texts", args.texts], capture_output=True, text=True)
        if other.returncode:
            print(f"{shape}: transformers failed: {other.stderr[-500:]}", flush=True)
            continue
        for n, rate in json.loads(other.stdout.splitlines()[-1]).items():
            if int(n) in ours:
                print(f"{shape:6} {n:>3} texts: temper {ours[int(n)]:9.1f}, transformers {rate:9.1f} tokens/s, ratio {ours[int(n)] / rate:.2f}", flush=True)


main()
