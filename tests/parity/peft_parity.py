#!/usr/bin/env python3
"""temper beside transformers + PEFT on models that neither side has seen before, both ways round.

For every family and variant: a fresh random model is written by transformers; temper trains it; the
result is loaded by PEFT (or transformers) and its logits compared with temper's own; then PEFT makes
an adapter, and temper's logits with it are compared with PEFT's. Run by hand where torch, transformers
and peft are installed; figures go to docs/parity.md.

usage: tests/parity/peft_parity.py [--temper build/cpu/temper] [--seed N]"""
import argparse, json, os, random, re, subprocess, sys, tempfile, warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3Config, Gemma3TextConfig, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config
from transformers import logging
from qwen_reference import Qwen
logging.set_verbosity_error()
logging.disable_progress_bar()

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE = dict(vocab_size=211, hidden_size=48, intermediate_size=104, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256)
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None)
GEMMA3 = dict(**BASE, head_dim=20, sliding_window=13, query_pre_attn_scalar=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
              rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6), sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
GPT2 = dict(vocab_size=211, n_embd=48, n_layer=3, n_head=6, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
MODELS = {
    "llama": lambda: LlamaConfig(**BASE, tie_word_embeddings=False),
    "llama-biased-tied": lambda: LlamaConfig(**BASE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: LlamaConfig(**BASE, tie_word_embeddings=True, rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    "llama-linear-rope": lambda: LlamaConfig(**BASE, tie_word_embeddings=True, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    "mistral": lambda: MistralConfig(**BASE, sliding_window=11, tie_word_embeddings=False),
    "mistral-no-window": lambda: MistralConfig(**BASE, sliding_window=None, tie_word_embeddings=False, head_dim=14),
    "qwen2": lambda: Qwen2Config(**BASE, rope_theta=1e6, tie_word_embeddings=True),
    "qwen2-window": lambda: Qwen2Config(**BASE, tie_word_embeddings=False, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**BASE, head_dim=20, tie_word_embeddings=True),
    "llama-yarn": lambda: LlamaConfig(**BASE, tie_word_embeddings=False, rope_parameters=dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=64)),
    "llama-dynamic": lambda: LlamaConfig(**{**BASE, "max_position_embeddings": 24}, tie_word_embeddings=False, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)),
    "mistral-nemo": lambda: MistralConfig(**BASE, sliding_window=None, head_dim=12, rope_theta=1e6, tie_word_embeddings=False),
    "phi3": lambda: Phi3Config(**BASE, **IDS, original_max_position_embeddings=256, sliding_window=17),
    "phi3-longrope": lambda: Phi3Config(**BASE, **IDS, original_max_position_embeddings=32, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.2], long_factor=[1.5, 3.0, 9.0])),
    "gemma": lambda: GemmaConfig(**BASE, head_dim=20),
    "gemma2": lambda: Gemma2Config(**BASE, head_dim=20, sliding_window=13, query_pre_attn_scalar=24, attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA3),
    "gemma3-vision": lambda: Gemma3Config(text_config=GEMMA3, vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14),
                                          mm_tokens_per_image=4, image_token_index=210, boi_token_index=208, eoi_token_index=209),
    "gpt2": lambda: GPT2Config(**GPT2),
    "gpt2-odd": lambda: GPT2Config(**{**GPT2, "n_head": 16, "n_inner": 77}, activation_function="gelu", scale_attn_by_inverse_layer_idx=True),
    "qwen1": lambda: Qwen(vocab_size=211, hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=6, kv_channels=8, seq_length=24),
}
# what other families call llama's modules
NAMES = {
    "gpt2": dict(q_proj="c_attn", k_proj="c_attn", v_proj="c_attn", o_proj="c_proj", gate_proj="c_fc", up_proj="c_fc", down_proj="c_proj", embed_tokens="wte", layers="h"),
    "qwen1": dict(q_proj="c_attn", k_proj="c_attn", v_proj="c_attn", o_proj="c_proj", gate_proj="w2", up_proj="w1", down_proj="c_proj", embed_tokens="wte", layers="h"),
    "phi3": dict(q_proj="qkv_proj", k_proj="qkv_proj", v_proj="qkv_proj", gate_proj="gate_up_proj", up_proj="gate_up_proj"),
}
LEFT_OUT = { # prompts go through transformers' interface, which the reference lacks; the vision part has modules of the same names
    "qwen1": ("prompt",), "gemma3-vision": ("rslora-qv", "dora", "regex", "patterns", "head-saved", "embedding", "embedding-rslora", "embedding-saved", "both-saved", "prompt", "bias-all"),
}
# name: recipe keys of temper, LoraConfig of PEFT
VARIANTS = {
    "lora": (["lora.r=5", "lora.alpha=9"], dict(r=5, lora_alpha=9, target_modules=ALL)),
    "rslora-qv": (["lora.r=6", "lora.use_rslora=true", "lora.target_modules=[q_proj, v_proj]"], dict(r=6, lora_alpha=32, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "dora": (["lora.r=4", "lora.use_dora=true"], dict(r=4, lora_alpha=32, use_dora=True, target_modules=ALL)),
    "regex": (["lora.r=3", r"lora.target_modules='.*layers\.[02]\.mlp\.(up_proj|down_proj)'"], dict(r=3, lora_alpha=32, target_modules=r".*layers\.[02]\.mlp\.(up_proj|down_proj)")),
    "patterns": (["lora.r=4", "lora.rank_pattern={q_proj: 7, layers.1.mlp.up_proj: 2}", "lora.alpha_pattern={q_proj: 3}"],
                 dict(r=4, lora_alpha=32, target_modules=ALL, rank_pattern={"q_proj": 7, "layers.1.mlp.up_proj": 2}, alpha_pattern={"q_proj": 3})),
    "head-saved": (["lora.r=4", "lora.modules_to_save=[lm_head]"], dict(r=4, lora_alpha=32, target_modules=ALL, modules_to_save=["lm_head"])),
    "embedding": (["lora.r=4", "lora.target_modules=[embed_tokens, v_proj]"], dict(r=4, lora_alpha=32, target_modules=["embed_tokens", "v_proj"])),
    "embedding-rslora": (["lora.r=3", "lora.use_rslora=true", "lora.target_modules=[embed_tokens]"], dict(r=3, lora_alpha=32, use_rslora=True, target_modules=["embed_tokens"])),
    "embedding-saved": (["lora.r=4", "lora.modules_to_save=[embed_tokens]"], dict(r=4, lora_alpha=32, target_modules=ALL, modules_to_save=["embed_tokens"])),
    "both-saved": (["lora.r=4", "lora.modules_to_save=[embed_tokens, lm_head]"], dict(r=4, lora_alpha=32, target_modules=ALL, modules_to_save=["embed_tokens", "lm_head"])),
    "prompt": (["method=prompt", "prompt.tokens=7"], dict(num_virtual_tokens=7)),
    "bias-all": (["lora.r=4", "lora.bias=all"], dict(r=4, lora_alpha=32, target_modules=ALL, bias="all")),
}


class Run:
    def __init__(self, temper, seed):
        self.temper, self.random = temper, random.Random(seed)
        torch.manual_seed(seed)
        self.folder = tempfile.mkdtemp()
        self.worst = 0.0

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def call(self, *arguments):
        done = subprocess.run([self.temper, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())

    def rows(self, name, count):
        rows = [[self.random.randrange(BASE["vocab_size"]) for _ in range(self.random.randrange(12, 60))] for _ in range(count)]
        with open(self.path(name), "w") as f:
            for row in rows:
                f.write(json.dumps(dict(input_ids=row)) + "\n")
        return rows

    def ours(self, model, adapter, data):
        out = self.path("logits.safetensors")
        self.call("eval", "--model", model, "--data", data, "--logits", out, "train.seq=64", *(["--adapter", adapter] if adapter else []))
        tensors = load_file(out)
        return [tensors[str(i)] for i in range(len(tensors))]

    def compare(self, what, model, ours, rows):
        with torch.no_grad():
            worst = max(float((logits_of(model, row) - mine).abs().max()) for row, mine in zip(rows, ours))
        scale = max(float(mine.abs().max()) for mine in ours)
        self.worst = max(self.worst, worst / scale)
        print(f"{what:44s} largest difference of logits {worst:.1e} of {scale:.2f}  {'ok' if worst <= 2e-5 * scale else 'DIFFERS'}", flush=True)
        return worst <= 2e-5 * scale


def fresh(config):
    if isinstance(config, Qwen):
        model = config.eval()
    else:
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(4.0)
    return model


def load(folder):
    with open(os.path.join(folder, "config.json")) as f:
        if json.load(f)["model_type"] == "qwen":
            return Qwen.from_pretrained(folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits_of(model, row):
    for module in model.modules(): # dynamic rope keeps the longest length it has seen
        if type(module).__name__ == "LlamaRotaryEmbedding":
            module.__init__(module.config)
    return model(input_ids=torch.tensor([row])).logits[0][-len(row):]


def own(value, names):
    """What is said with llama's names in another family's; what is one module there is named once."""
    if isinstance(value, str):
        value = re.sub(r"[a-z_]+", lambda word: names.get(word.group(0), word.group(0)), value)
        return re.sub(r"(\b[a-z_]+), \1(?=[\],])", r"\1", value)
    if isinstance(value, dict):
        return {own(k, names): own(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return list(dict.fromkeys(own(v, names) for v in value))
    return value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--only", default="", help="part of the names of the checks to make")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    run, good, count = Run(args.temper, args.seed), 0, 0
    print(f"seed {args.seed}, torch {torch.__version__}")
    for name, config in MODELS.items():
        model_dir, data = run.path(name), run.path(name + ".jsonl")
        fresh(config()).save_pretrained(model_dir)
        rows = run.rows(name + ".jsonl", 8)
        base = ["train", f"model={model_dir}", f"data.0.path={data}", "data.0.format=tokens", "train.steps=5", "train.batch=4", "train.lr=5e-3", "train.seq=64", "train.schedule=constant", "train.warmup_steps=0"]
        checks = [(f"{name}: base", lambda: (load(model_dir), run.ours(model_dir, None, data)))]
        names = next((n for family, n in NAMES.items() if name.startswith(family)), {})
        for variant, (keys, peft) in VARIANTS.items():
            if variant in LEFT_OUT.get(name, ()):
                continue
            keys, peft = own(keys, names), own(peft, names)
            if name.startswith("gpt2") and "num_virtual_tokens" not in peft:
                peft["fan_in_fan_out"] = True
            out = run.path(f"{name}-{variant}")
            def trained(out=out, keys=keys):
                run.call(*base, "method=lora", "lora.dropout=0", *keys, f"out={out}") # a later method= wins
                return PeftModel.from_pretrained(load(model_dir), out).eval(), run.ours(model_dir, out, data)
            def made(out=out, peft=peft):
                kind = PromptTuningConfig if "num_virtual_tokens" in peft else LoraConfig
                model = get_peft_model(load(model_dir), kind(task_type="CAUSAL_LM", **peft))
                with torch.no_grad():
                    for n, p in model.named_parameters():
                        if p.requires_grad:
                            p.add_(0.05 * torch.randn_like(p))
                model.save_pretrained(out + "-peft")
                model = PeftModel.from_pretrained(load(model_dir), out + "-peft").eval()
                return model, run.ours(model_dir, out + "-peft", data)
            checks += [(f"{name}: {variant}, temper to PEFT", trained)] + ([(f"{name}: {variant}, PEFT to temper", made)] if name != "gemma3-vision" else [])
        for method in ("full", "bitfit"):
            out = run.path(f"{name}-{method}")
            def full(out=out, method=method):
                run.call(*base, f"method={method}", f"out={out}")
                return load(out), run.ours(out, None, data)
            if method == "full" or not name.startswith(("mistral", "phi3")):
                checks.append((f"{name}: {method}, temper to transformers", full))
                continue
            def biases(out=out): # an adapter of temper's own: its biases put on by hand
                run.call(*base, "method=bitfit", f"out={out}")
                model, named = load(model_dir), load_file(os.path.join(out, "adapter_model.safetensors"))
                for key, bias in named.items():
                    model.get_submodule(key.removesuffix(".bias")).bias = torch.nn.Parameter(bias)
                assert all(float(b.abs().max()) > 0 for b in named.values())
                return model, run.ours(model_dir, out, data)
            checks.append((f"{name}: bitfit, an adapter of biases", biases))
        for what, check in checks:
            if args.only not in what:
                continue
            count += 1
            try:
                model, ours = check()
                good += run.compare(what, model, ours, rows)
            except Exception as problem:
                print(f"{what:44s} FAILED: {str(problem)[:300]}", flush=True)
    print(f"{good} of {count} within 2e-5 of the largest logit; worst {run.worst:.1e}")
    sys.exit(good != count)


if __name__ == "__main__":
    main()
