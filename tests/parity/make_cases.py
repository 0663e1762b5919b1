#!/usr/bin/env python3
"""Writes golden cases of what the shared ones do not cover: phi3, the first Qwen, gemma, gemma3 with both kinds of layers, YaRN and
dynamic NTK. The layout of a case is that of tests/data/golden (README there); PyTorch sees every row by itself, so that
rope that depends on the length of an example sees the example's own. Run by hand; the cases are committed.

usage: tests/parity/make_cases.py OUT_DIR [CASE ...]"""
import json, math, os, sys, warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GemmaConfig, LlamaConfig, Phi3Config
from transformers import logging
from qwen_reference import Qwen

logging.set_verbosity_error()
torch.use_deterministic_algorithms(True)
VOCAB, ROWS, STEPS = 40, 2, 8
BASE = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=28, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
ROPE = dict(rope_theta=10000.0)
CONFIGS = {
    "phi3": lambda: Phi3Config(**BASE, max_position_embeddings=48, original_max_position_embeddings=12, sliding_window=9, resid_pdrop=0.0,
                               rope_parameters=dict(rope_type="longrope", partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.5, 4.0], **ROPE)),
    "yarn": lambda: LlamaConfig(**BASE, max_position_embeddings=64, tie_word_embeddings=True,
                                rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, **ROPE)),
    "dynamic": lambda: LlamaConfig(**BASE, max_position_embeddings=12, attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type="dynamic", factor=2.0, **ROPE)),
    "gemma": lambda: GemmaConfig(**{**BASE, "pad_token_id": 0}, head_dim=10, max_position_embeddings=64),
    "gemma3mix": lambda: Gemma3TextConfig(**{**BASE, "pad_token_id": 0}, head_dim=10, max_position_embeddings=64, sliding_window=6, query_pre_attn_scalar=7,
                                          layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True,
                                          rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6), sliding_attention=dict(rope_type="default", rope_theta=10000.0))),
    "qwen1": lambda: Qwen(vocab_size=VOCAB, hidden_size=24, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3, kv_channels=8, seq_length=12, max_position_embeddings=64),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {"phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "qwen1": ["c_attn", "c_proj", "w1", "w2"]}
CASES = ["phi3-lora", "phi3-full", "qwen1-lora", "qwen1-full", "yarn-lora", "dynamic-lora", "gemma-full", "gemma3mix-lora"]


def make_model(family, folder):
    config = CONFIGS[family]()
    if isinstance(config, Qwen):
        model = config
    else:
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():  # biases and norms away from their trivial first values, so that a wrong sign or a missed term shows
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(6.0)
    model.save_pretrained(folder)
    path = os.path.join(folder, "generation_config.json")
    if os.path.exists(path):
        os.remove(path)
    return model.train()


def logits_of(model, row):
    for module in model.modules():  # dynamic rope keeps the longest length it has seen
        if type(module).__name__ == "LlamaRotaryEmbedding":
            module.__init__(module.config)
    return model(input_ids=torch.tensor([row])).logits[0]


def write_case(out, name):
    family, method = name.split("-")
    torch.manual_seed(CASES.index(name) + 1)
    folder = os.path.join(out, name)
    model = make_model(family, os.path.join(folder, "model"))
    rows = []
    for i in range(ROWS * STEPS):
        start, stride, n = (int(torch.randint(a, b, (1,))) for a, b in ((0, VOCAB), (1, 5), (6, 21)))
        rows.append([1 + (start + stride * t) % (VOCAB - 1) for t in range(n)])
    rows[0] = (rows[0] * 4)[:20]  # the first step has a long row and a short one
    rows[1] = (rows[1] * 2)[:8]
    with open(os.path.join(folder, "batches.jsonl"), "w") as f:
        for row in rows:
            f.write(json.dumps(dict(input_ids=row, labels=row)) + "\n")
    options = dict(method=method)
    if method == "lora":
        options.update(r=3, alpha=6, targets=TARGETS.get(family, ALL))
        model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, task_type=None if family == "qwen1" else "CAUSAL_LM", target_modules=options["targets"]))
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_B" in n:
                    p.copy_(0.05 * torch.randn_like(p))
        model.save_pretrained(os.path.join(folder, "adapter_init"))
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hyper = dict(optimizer="adamw", lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, max_grad_norm=1.0, schedule="cosine", warmup_steps=2, steps=STEPS, batch=ROWS, accum=1)
    optimizer = torch.optim.AdamW(params.values(), lr=hyper["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=hyper["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: s / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / (STEPS - 2))))
    with torch.no_grad():
        first = [logits_of(model, row) for row in rows[:ROWS]]
    expect = {"logits": torch.nn.utils.rnn.pad_sequence(first, batch_first=True)}
    losses, norms = [], []
    for step in range(STEPS):
        batch = rows[step * ROWS:(step + 1) * ROWS]
        targets, total = sum(len(row) - 1 for row in batch), 0.0
        for row in batch:
            loss = torch.nn.functional.cross_entropy(logits_of(model, row)[:-1], torch.tensor(row[1:]), reduction="sum") / targets
            loss.backward()
            total += loss.item()
        if step == 0:
            expect.update({"grad." + n: p.grad.clone() for n, p in params.items()})
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), hyper["max_grad_norm"]).item())
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        losses.append(total)
    save_file({k: v.contiguous() for k, v in expect.items()}, os.path.join(folder, "expect.safetensors"))
    if method == "lora":
        model.save_pretrained(os.path.join(folder, "adapter_final"))
        for part in ("adapter_init", "adapter_final"):
            readme = os.path.join(folder, part, "README.md")
            if os.path.exists(readme):
                os.remove(readme)
    else:
        save_file({n: p.detach().clone().contiguous() for n, p in model.named_parameters()}, os.path.join(folder, "full_final.safetensors"))
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(dict(name=name, arch=family, options=options, hyperparameters=hyper, losses=losses, grad_norms=norms, torch=torch.__version__), f, indent=1)
    print(name, losses[0], "->", losses[-1], flush=True)


for case in sys.argv[2:] or CASES:
    write_case(sys.argv[1], case)
