#!/usr/bin/env python3
"""temper merge beside PEFT's add_weighted_adapter, on fresh random models and adapters.

PEFT joins adapters by an SVD of their dW (svd, ties_svd); at full rank the SVD
loses nothing, so its merged weights are what temper merge writes. DARE draws its own random numbers: its share of
elements and its rescaling are held against the definition in tests/unit/test_merge.c. Run by hand where torch,
transformers and peft are installed.

usage: tests/parity/merge_parity.py [--temper build/cpu/temper] [--seed N]"""
import argparse, os, random, subprocess, sys, tempfile, warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, logging

CASES = [("sum", "svd", {}, []),
         ("ties", "ties_svd", dict(density=0.3), ["--density", "0.3"]),
         ("ties", "ties_svd", dict(density=0.7, majority_sign_method="frequency"), ["--density", "0.7", "--sign", "frequency"]),
         ("ties", "ties_svd", dict(density=1.0), ["--density", "1"])]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    print("seed", args.seed)
    torch.manual_seed(args.seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = tempfile.mkdtemp()
    config = LlamaConfig(vocab_size=101, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False)
    base = os.path.join(folder, "base")
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    names, weights = ["a", "b", "c"], [0.7, -0.4, 1.3]
    targets = [["q_proj", "up_proj"], ["q_proj", "v_proj", "up_proj"], ["up_proj", "down_proj", "q_proj"]]
    for name, target, r in zip(names, targets, (3, 5, 4)):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=r, lora_alpha=7, target_modules=target))
        for key, p in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(p, std=0.2)
        model.save_pretrained(os.path.join(folder, name))
    worst = 0.0
    for how, kind, options, flags in CASES:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), os.path.join(folder, "a"), adapter_name="a")
        for name in names[1:]:
            model.load_adapter(os.path.join(folder, name), adapter_name=name)
        model.add_weighted_adapter(names, weights, "joined", combination_type=kind, svd_rank=32, **options)
        model.set_adapter("joined")
        expected = model.merge_and_unload(adapter_names=["joined"]).state_dict()
        out = os.path.join(folder, f"out-{kind}-{len(os.listdir(folder))}")
        command = [args.temper, "merge", "--model", base, "--how", how, "--out", out] + flags
        for name, weight in zip(names, weights):
            command += ["--adapter", f"{os.path.join(folder, name)}:{weight}"]
        subprocess.run(command, check=True, capture_output=True)
        found = load_file(os.path.join(out, "model.safetensors"))
        difference = max((found[k] - expected[k]).abs().max().item() for k in found)
        changed = max((found[k] - load_file(os.path.join(base, "model.safetensors"))[k]).abs().max().item() for k in found)
        print(f"{kind:10} {options}: largest difference of a weight {difference:.2g} (weights moved by up to {changed:.2g})")
        worst = max(worst, difference)
    other = AutoModelForCausalLM.from_config(config)
    tuned, out = os.path.join(folder, "tuned"), os.path.join(folder, "out-wise")
    other.save_pretrained(tuned)
    subprocess.run([args.temper, "merge", "--model", base, "--tuned", tuned + ":0.3", "--how", "wise", "--out", out], check=True, capture_output=True)
    w, v, found = (load_file(os.path.join(f, "model.safetensors")) for f in (base, tuned, out))
    difference = max((found[k] - (0.7 * w[k] + 0.3 * v[k])).abs().max().item() for k in w)
    print(f"wise       0.7 base + 0.3 tuned: largest difference of a weight {difference:.2g}")
    worst = max(worst, difference)
    sys.exit(worst > 2e-5)


main()
