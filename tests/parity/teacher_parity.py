#!/usr/bin/env python3
"""Methods with a teacher, beside PEFT: KL to the base and DER++ for LoRA (the base is PEFT's disable_adapter()), KL for full
fine-tuning (the base is a second model).

Both sides take the same steps of plain SGD on fresh random models, from an adapter that PEFT made and moved away from the
base; loss and penalty of every step and what the steps changed are compared. Run by hand where torch, transformers and peft
are installed; figures go to docs/parity.md.

usage: tests/parity/teacher_parity.py [--temper build/cpu/temper] [--seed N]"""
import argparse, copy, json, os, random, sys, warnings

warnings.filterwarnings("ignore")
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from peft_parity import ALL, MODELS, Run, fresh, load

LR, STEPS, BETA, ALPHA, CE = 0.2, 3, 0.7, 0.05, 0.4
FAMILIES = ["llama-biased-tied", "qwen3", "gemma2", "mistral"]


def terms(model, base, row):
    """Of every target: cross-entropy, KL(base || model), mean square between logits. base: logits without gradient."""
    ids = torch.tensor([row])
    z, y = model(input_ids=ids).logits[0, :-1], base(ids)[0, :-1]
    p, q = F.log_softmax(z, -1), F.log_softmax(y, -1)
    return F.nll_loss(p, ids[0, 1:], reduction="none"), F.kl_div(p, q, log_target=True, reduction="none").sum(-1), ((z - y) ** 2).mean(-1)


def of_adapter(model):
    def logits(ids):
        with torch.no_grad(), model.disable_adapter():
            return model(input_ids=ids).logits
    return logits


def of_copy(model):
    frozen = copy.deepcopy(model).eval()
    def logits(ids):
        with torch.no_grad():
            return frozen(input_ids=ids).logits
    return logits


def step(model, loss, penalty):
    model.zero_grad()
    (loss + penalty).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and p.grad is not None:
                p -= LR * p.grad
    return float(loss), float(penalty)


def whole_batch(model, base, rows):
    """A step over all rows with KL at every target."""
    ce, kl, _ = (torch.cat(x) for x in zip(*(terms(model, base, row) for row in rows)))
    return step(model, ce.mean(), BETA * kl.mean())


def one_row(model, base, new, old, loss):
    """A step of DER++ on the task's row or on the replayed one: the one whose loss it was."""
    ce_new, ce_old = float(terms(model, base, new)[0].mean().detach()), CE * float(terms(model, base, old)[0].mean().detach())
    if abs(ce_new - loss) <= abs(ce_old - loss):
        ce, kl, _ = terms(model, base, new)
        return step(model, ce.mean(), BETA * kl.mean())
    ce, _, square = terms(model, base, old)
    return step(model, CE * ce.mean(), ALPHA * square.mean())


def steps_of(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [row for row in map(json.loads, f) if "penalty" in row]


def compare(what, seen, rows, before, after, ours):
    """Largest relative difference of losses and penalties; of what all steps changed, L2 a tensor."""
    loss = max(abs(a["loss"] - b[0]) / abs(b[0]) for a, b in zip(rows, seen))
    penalty = max(abs(a["penalty"] - b[1]) / max(abs(b[1]), 1e-4) for a, b in zip(rows, seen))
    moved = {n: after[n] - before[n] for n in after}
    most = max(float(m.norm()) for m in moved.values())
    change = max(float((ours[n] - before[n] - m).norm()) / max(float(m.norm()), 1e-3 * most) for n, m in moved.items())
    good = max(loss, penalty) <= 1e-5 and change <= 1e-4
    print(f"{what:28s} loss {loss:.1e}, penalty {penalty:.1e} (last {seen[-1][1]:.3f}), change of weights {change:.1e}  {'ok' if good else 'DIFFERS'}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--temper", default="build/cpu/temper")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    run, good, count = Run(args.temper, args.seed), 0, 0
    print(f"seed {args.seed}, torch {torch.__version__}")
    for name in FAMILIES:
        folder = run.path(name)
        fresh(MODELS[name]()).save_pretrained(folder)
        rows, old = run.rows(name + ".jsonl", 8), run.rows(name + "-old.jsonl", 1)
        with open(run.path(name + "-one.jsonl"), "w") as f:
            f.write(json.dumps(dict(input_ids=rows[0])) + "\n")
        common = ["train", f"model={folder}", "data.0.format=tokens", f"train.steps={STEPS}", f"train.lr={LR}", "train.seq=64", "train.schedule=constant", "train.warmup_steps=0",
                  "train.optimizer=sgd", "train.momentum=0", "train.max_grad_norm=0", "train.weight_decay=0", "train.save_dtype=f32", f"keep.kl.beta={BETA}"]
        adapted = get_peft_model(load(folder), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=ALL))
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.add_(0.05 * torch.randn_like(p))
        adapted.save_pretrained(run.path(name + "-start"))
        start = load_file(run.path(name + "-start", "adapter_model.safetensors"))
        lora = ["method=lora", "lora.r=4", "lora.alpha=8", "lora.dropout=0", f"lora.init={run.path(name + '-start')}"]

        def peft():
            return PeftModel.from_pretrained(load(folder), run.path(name + "-start"), is_trainable=True).eval()

        def changed(model):
            model.save_pretrained(run.path(name + "-after"))
            return load_file(run.path(name + "-after", "adapter_model.safetensors"))

        out = run.path(name + "-kl")
        run.call(*common, *lora, f"data.0.path={folder}.jsonl", "train.batch=8", f"out={out}")
        model = peft()
        seen = [whole_batch(model, of_adapter(model), rows) for _ in range(STEPS)]
        good += compare(f"{name}: LoRA, KL", seen, steps_of(out), start, changed(model), load_file(os.path.join(out, "adapter_model.safetensors")))

        out = run.path(name + "-der")
        run.call(*common, *lora, f"data.0.path={folder}-one.jsonl", "train.batch=1", "train.steps=8", f"keep.replay.path={folder}-old.jsonl", "keep.replay.format=tokens", "keep.replay.fraction=0.5",
                 f"keep.der.alpha={ALPHA}", f"keep.der.beta={CE}", f"out={out}")
        model, metrics = peft(), steps_of(out)
        seen = [one_row(model, of_adapter(model), rows[0], old[0], row["loss"]) for row in metrics]
        good += compare(f"{name}: LoRA, DER++", seen, metrics, start, changed(model), load_file(os.path.join(out, "adapter_model.safetensors")))

        out = run.path(name + "-full")
        run.call(*common, "method=full", f"data.0.path={folder}.jsonl", "train.batch=8", f"out={out}")
        model = load(folder)
        base, before = of_copy(model), {n: p.detach().clone() for n, p in model.named_parameters()}
        seen = [whole_batch(model, base, rows) for _ in range(STEPS)]
        ours = dict(load(out).named_parameters())
        good += compare(f"{name}: full, KL", seen, steps_of(out), before, {n: p.detach() for n, p in model.named_parameters()}, {n: p.detach() for n, p in ours.items()})
        count += 3
    print(f"{good} of {count} alike")
    sys.exit(good != count)


if __name__ == "__main__":
    main()
