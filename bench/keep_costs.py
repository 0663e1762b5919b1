#!/usr/bin/env python3
"""What every method that keeps skills costs: time of a step and bytes, beside plain training in turn with it (the least of
the rounds' medians of both), and beside what the planner said. A model of 12 million parameters at random, 4 examples of
256 tokens a step. Prints the table of docs/howto-keep.md; what differs from the plan goes to stderr.

usage: bench/keep_costs.py [--threads 2] [--steps 10] [--rounds 2] [--temper build/cpu/temper] [--only WORD]"""
import argparse, json, os, random, re, statistics, subprocess, sys, tempfile

CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
              num_attention_heads=6, num_key_value_heads=2, vocab_size=8192, max_position_embeddings=512, rms_norm_eps=1e-5,
              rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, torch_dtype="float32")
B, T = 4, 256
OLD = "OLD"  # a file of old rows
METHODS = [
    ("replay", [f"keep.replay={{path: {OLD}, format: tokens, fraction: 0.05}}"]),
    ("token masking", ["keep.stm.fraction=0.2"]),
    ("L2-SP", ["keep.l2sp.lambda=0.01"]),
    ("EWC", [f"keep.ewc={{lambda: 1, path: {OLD}, samples: 8}}"]),
    ("KL to base", ["keep.kl.beta=0.1"]),
    ("DER++", [f"keep.replay={{path: {OLD}, format: tokens, fraction: 0.25}}", "keep.der={alpha: 0.1, beta: 0.5}"]),
    ("EMA", ["keep.average={kind: ema, every: 1}"]),
    ("SWA", ["keep.average={kind: swa, every: 2}"]),
    ("Lookahead", ["keep.average={kind: lookahead, every: 5}"]),
    ("WiSE-FT", ["keep.wise.scale=0.5"]),
    ("OSF", ["keep.osf.share=0.25"]),
    ("O-LoRA", ["keep.orthogonal={previous: [PREVIOUS], lambda: 0.5}"]),
]


def rows(path, count, seed):
    dice = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(count):
            file.write(json.dumps({"input_ids": [dice.randrange(3, CONFIG["vocab_size"]) for _ in range(T)]}) + "\n")


def run(options, folder, name, method, settings):
    out = f"{folder}/{name}"
    command = [options.temper, "train", f"model={folder}", "init=random", f"data.0.path={folder}/rows.jsonl", "data.0.format=tokens", f"method={method}",
               f"train.batch={B}", f"train.steps={options.steps}", f"train.seq={T}", "train.checkpoint_every=0", f"threads={options.threads}", f"out={out}"]
    command += [s.replace(OLD, f"{folder}/old.jsonl").replace("PREVIOUS", f"{folder}/previous") for s in settings]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1:]
    described = json.load(open(f"{out}/run.json"))
    steps = [json.loads(line)["seconds"] for line in open(f"{out}/timing.jsonl")]
    return dict(ms=1000 * statistics.median(steps[2:]), planned=described["planned_bytes"], peak=described["peak_bytes"]), None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    json.dump(CONFIG, open(f"{folder}/config.json", "w"))
    rows(f"{folder}/rows.jsonl", 64, 1)
    rows(f"{folder}/old.jsonl", 16, 2)
    run(options, folder, "previous", "lora", [])
    print("| method | LoRA: a step | more memory | full: a step | more memory |\n|---|---|---|---|---|")
    count = 0
    for name, settings in METHODS:
        if options.only and not re.search(options.only, name):
            continue
        cells = []
        for method in ("lora", "full"):
            best = {}
            for _ in range(options.rounds):
                for kind, chosen in (("plain", []), ("with", settings)):
                    count += 1
                    got, failed = run(options, folder, f"run{count}", method, chosen)
                    if got:
                        best[kind] = min(best.get(kind, got), got, key=lambda g: g["ms"])
            if "with" not in best:
                cells += ["-", "-"]
                print(f"{name}, {method}: {failed}", file=sys.stderr)
                continue
            if best["with"]["peak"] != best["with"]["planned"]:
                print(f"{name}, {method}: planned {best['with']['planned']}, taken {best['with']['peak']}", file=sys.stderr)
            cells += [f"{best['with']['ms'] / best['plain']['ms']:.2f} x", f"{(best['with']['peak'] - best['plain']['peak']) / 2**20:.1f} MiB"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
