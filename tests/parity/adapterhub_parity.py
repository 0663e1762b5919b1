#!/usr/bin/env python3
"""temper's Houlsby adapters beside AdapterHub's library, both ways round, on fresh random models.

The library (pip install adapters torch) pins an older transformers than peft_parity.py wants: give it an
environment of its own. Run by hand; figures go to docs/parity.md.

usage: tests/parity/adapterhub_parity.py [--temper build/cpu/temper] [--seed N]"""
import argparse, json, os, random, subprocess, sys, tempfile, warnings

warnings.filterwarnings("ignore")
import adapters, torch, transformers
from adapters import DoubleSeqBnConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

transformers.logging.set_verbosity_error()
BASE = dict(vocab_size=211, hidden_size=48, intermediate_size=104, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256)
MODELS = {
    "llama": lambda: LlamaConfig(**BASE),
    "llama-tied": lambda: LlamaConfig(**BASE, tie_word_embeddings=True, attention_bias=True),
    "mistral": lambda: MistralConfig(**BASE, sliding_window=11),
    "gpt2": lambda: GPT2Config(vocab_size=211, n_embd=48, n_layer=3, n_head=6, n_positions=256),
}
SETTINGS = [(7, "swish"), (16, "relu"), (5, "gelu")]


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    adapters.init(model)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    dice, folder, good, count, worst = random.Random(args.seed), tempfile.mkdtemp(), 0, 0, 0.0
    print(f"seed {args.seed}, adapters {adapters.__version__}, transformers {transformers.__version__}")

    def call(*arguments):
        done = subprocess.run([args.temper, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())

    rows = [[dice.randrange(211) for _ in range(dice.randrange(12, 60))] for _ in range(8)]
    data = os.path.join(folder, "rows.jsonl")
    with open(data, "w") as f:
        f.writelines(json.dumps(dict(input_ids=row)) + "\n" for row in rows)
    for name, config in MODELS.items():
        base = os.path.join(folder, name)
        model = AutoModelForCausalLM.from_config(config()).float().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(4.0)
        model.save_pretrained(base)
        for size, act in SETTINGS:
            ours, theirs = os.path.join(folder, f"{name}-{size}"), os.path.join(folder, f"{name}-{size}-hub")
            call("train", f"model={base}", f"data.0.path={data}", "data.0.format=tokens", "train.steps=5", "train.batch=4", "train.lr=2e-2", "train.seq=64",
                 "train.schedule=constant", "train.warmup_steps=0", "method=adapter", f"adapter.size={size}", f"adapter.activation={act}", f"out={ours}")
            made = load(base)
            made.add_adapter("made", config=DoubleSeqBnConfig(reduction_factor=48 / size, non_linearity=act))
            with torch.no_grad():
                for n, p in made.named_parameters():
                    if ".made." in n:
                        p.add_(0.2 * torch.randn_like(p))
            made.save_adapter(theirs, "made", use_safetensors=True)
            for way, where in (("temper to AdapterHub", ours), ("AdapterHub to temper", theirs)):
                count += 1
                out = os.path.join(folder, "logits.safetensors")
                call("eval", "--model", base, "--adapter", where, "--data", data, "--logits", out, "train.seq=64")
                mine = load_file(out)
                model = load(base)
                model.load_adapter(where, use_safetensors=True, set_active=True)
                with torch.no_grad():
                    difference = max(float((model(input_ids=torch.tensor([row])).logits[0] - mine[str(i)]).abs().max()) for i, row in enumerate(rows))
                scale = max(float(x.abs().max()) for x in mine.values())
                good += difference <= 2e-5 * scale
                worst = max(worst, difference / scale)
                print(f"{name}, size {size}, {act}, {way}: largest difference of logits {difference:.1e} of {scale:.2f}  {'ok' if difference <= 2e-5 * scale else 'DIFFERS'}", flush=True)
    print(f"{good} of {count} within 2e-5 of the largest logit; worst {worst:.1e}")
    sys.exit(good != count)


if __name__ == "__main__":
    main()
