#!/usr/bin/env python3
"""Where a step of a case of bench/gpu_vs_peft.py goes: a table by kernel from a profile of the engine (time, bytes, operations,
share of the limit), and what the case's bar would need. docs/benchmarks.md has its tables.

usage: TEMPER_CUDA_PROFILE=FILE temper train ... (lora.dropout 0, nothing computed again, rows of one length), then
       bench/where_time_goes.py CASE FILE [--step MS: the same step measured without the profile]

Every op of a step is listed here with the bytes of its operands, as the profile counts them, and its calls; a row of the profile that is
not in the list, or comes more or less often, is an error, so the operations belong to what ran. They are checked against the closed form
(2 x rows x elements of matrices forward, for the input's gradient and for the weight's)."""
import argparse, collections, dataclasses, sys

from gpu_cases import BARS, CASES, RANK, SHAPES, VOCABULARY

TENSOR, HELD, COPY = 989e12, 655e12, 4300e9  # data sheet, dense bf16; large products at the power limit (640 to 670) and copies: docs/decisions.md

# row: of the table. operands: bytes as the profile counts them. moved: what must be read and written, every operand once each way.
# flops: products; low: those with low-rank factors.
Op = collections.namedtuple("Op", "row name operands calls moved flops low kind")


class Step:
    """The ops of one step, in no order."""

    def __init__(self, case, tokens, micro_batches):
        shape, method, rows, length = CASES[case]
        self.c, self.f, self.layers, heads, kv_heads, self.tied = SHAPES[shape]
        self.full, self.length, self.t, self.micro = method == "full", length, tokens, micro_batches
        self.heads, self.head = heads, self.c // heads
        self.kv = kv_heads * self.head
        self.weight = 4 if self.full else 2  # bytes of an element of a matrix
        self.examples = tokens // length
        self.per_slice = max(1, min(self.examples, 2048 // (length - 1)))
        self.ops = []
        self.layer_ops()
        self.head_ops()
        self.once()

    def add(self, row, name, operands, moved, calls=1, flops=0, low=0, kind="memory", a_step=False):
        self.ops.append(Op(row, name, int(operands), calls * (1 if a_step else self.micro), moved, flops, low, kind))

    def low(self, rows, modules, inputs):
        """xa and its product with B, of all modules of a group; backward has dxa and its product with A, and dA and dB. The output matrix has none."""
        return 0 if self.full or modules == [VOCABULARY] else sum(2 * rows * RANK * (inputs + n) for n in modules)

    def forward(self, row, rows, modules, inputs, bias=0, glu=False, calls=1):
        """A group's product: modules are the outputs of each."""
        out = sum(modules)
        moved = 2 * rows * (inputs + out) + self.weight * inputs * out + 4 * bias + (rows * out if glu else 0)
        self.add(row + ": forward", "lora_forward", moved, moved, calls, 2 * rows * inputs * out, self.low(rows, modules, inputs), "products")

    def backward(self, row, rows, modules, inputs, bias=0, dx=1, calls=1, apart=False, weight_row=None):
        """Input gradient with everything low-rank (apart: down's, whose input is made again in between), weight gradients in full."""
        out = sum(modules)
        dy, x, w = 2 * rows * out, 2 * rows * inputs, self.weight * inputs * out
        product, low = 2 * rows * inputs * out * dx, self.low(rows, modules, inputs)
        if self.full:
            for n in modules:
                b = 4 * n if bias else 0
                self.add(weight_row, "linear_backward_weight", 2 * rows * n + x + 4 * n * inputs + b, 2 * rows * n + x + 8 * n * inputs + 2 * b, calls, 2 * rows * n * inputs, 0, "products")
            self.add(row + ": input gradient", "lora_backward", dy + 2 * x + w, dy + x + w, calls, product, 0, "products")
        elif apart:
            self.add(row + ": backward", "lora_backward", dy + 2 * x + w, dy + x + w, calls, product, low, "products")
            self.add(row + ": gradients of A and B", "lora_backward", dy + x + w, dy + x, calls, 0, low, "low-rank")
        else:  # without dx nobody asks for dxa A, nor reads w
            not_asked = 0 if dx else 2 * rows * RANK * inputs * len(modules)
            read_x = x if low else 0
            self.add(row + ": backward", "lora_backward", dy + (1 + dx) * x + w, dy + read_x + dx * (x + w), calls, product, 2 * low - not_asked, "products")

    def layer_ops(self):
        t, c, f, n = self.t, self.c, self.f, self.layers
        x, g = 2 * t * c, 2 * t * f
        norm = 4 * c + 4 * t  # weights and rstd
        self.add("norms", "rmsnorm_forward", 3 * x + norm, 2 * x)  # of the first block: nothing to add yet; the sum is there
        self.add("norms", "rmsnorm_forward", 4 * x + norm, 4 * x, 2 * n)
        self.add("norms", "rmsnorm_forward", 3 * x + norm, 2 * x, 2 * n)  # again, for the gradients of A or the weights
        own = 4 * c if self.full else 0
        self.add("norms", "rmsnorm_backward", 3 * x + norm + own, 4 * x, 2 * n + (1 if self.full else 0))
        qkv = [c, self.kv, self.kv]
        self.forward("q, k, v", t, qkv, c, bias=sum(qkv), calls=n)
        self.forward("o", t, [c], c, calls=n)
        self.forward("gate and up", t, [f, f], c, glu=True, calls=n)
        self.forward("down", t, [c], f, calls=n)
        small, large = "weight gradients: q, k, v, o", "weight gradients: gate, up, down"
        self.backward("down", t, [c], f, calls=n, apart=True, weight_row=large)
        self.backward("gate and up", t, [f, f], c, calls=n, weight_row=large)
        self.backward("o", t, [c], c, calls=n, weight_row=small)
        self.backward("q, k, v", t, qkv, c, bias=1, calls=n if self.full else n - 1, weight_row=small)
        if not self.full:  # below the first block nobody wants a gradient
            self.backward("q, k, v", t, qkv, c, dx=0)
        self.add("gate times up: gradient, and h again", "glu_backward", 6 * g, 6 * g, n)
        tables = 2 * 4 * t * self.head // 2
        for columns in (c, self.kv):
            for way, operands in (("forward", 2), ("backward", 3)):  # backward is given x, which it does not need here
                self.add("rope", "rope_" + way, operands * 2 * t * columns + tables, 4 * t * columns, n)
        pairs = self.examples * self.length * (self.length + 1) // 2 * self.heads * self.head
        lse, kv = 4 * t * self.heads, 2 * t * self.kv
        self.add("attention: forward", "attention_forward", 2 * x + 2 * kv + lse, 2 * x + 2 * kv + lse, n, 4 * pairs, 0, "attention")
        self.add("attention: backward", "attention_backward", 4 * x + 4 * kv + 2 * lse, 4 * x + 4 * kv + 2 * lse, n, 10 * pairs, 0, "attention")

    def head_ops(self):
        t, c, v = self.t, self.c, VOCABULARY
        x = 2 * t * c
        at = "embedding, rows moved, zeros"
        self.add(at, "embed_forward", self.weight * v * c + x, t * c * (self.weight + 2))
        for first in range(0, self.examples, self.per_slice):
            rows = min(self.per_slice, self.examples - first) * (self.length - 1)
            self.add(at, "gather_rows", x + 2 * rows * c, 4 * rows * c)
            self.forward("output matrix", rows, [v], c)
            self.add("loss", "xent", 2 * rows * v + 12 * rows, 4 * rows * v)
            self.backward("output matrix", rows, [v], c, weight_row="weight gradients: output matrix")
        self.add(at, "scatter_rows", 2 * x, 2 * x)
        self.add(at, "fill", x, x)
        if self.full:
            self.add(at, "embed_backward", x + 4 * v * c, t * c * 10)

    def once(self):
        c, f, kv, v = self.c, self.f, self.kv, VOCABULARY
        if self.full:  # matrices, norms, biases
            trained = self.layers * (c * (c + 2 * kv) + c * c + 3 * c * f + 2 * c + c + 2 * kv) + c + v * c * (1 if self.tied else 2)
        else:
            trained = self.layers * RANK * (2 * (c + c) + 2 * (c + kv) + 3 * (c + f))
        for name, each in (("grad_norm", 4), ("adamw", 28), ("trail", 4)):
            self.add("norm of gradients, AdamW, trail", name, 0, each * trained, a_step=True)
        if self.full and self.tied:
            self.add("embedding, rows moved, zeros", "axpy", 8 * v * c, 12 * v * c, a_step=True)

    def closed_form(self):
        """Operations of all products of matrices that are not low-rank: what the listed ones must add up to."""
        c, f, kv = self.c, self.f, self.kv
        matrices = self.layers * (c * (c + 2 * kv) + c * c + 3 * c * f)
        forward = 2 * (self.t * matrices + self.examples * (self.length - 1) * VOCABULARY * c)
        dropped = 0 if self.full else 2 * self.t * c * (c + 2 * kv)  # below the first block nobody wants a gradient
        return self.micro * (forward * (3 if self.full else 2) - dropped)


def check(good, what):
    if not good:
        sys.exit("where_time_goes.py: " + what)


def read_profile(path):
    rows = []
    with open(path) as f:
        check(f.readline().split()[:1] == ["op"], f"{path} is no profile")
        for line in f:
            name, operands, calls, ms = line.split()[:4]
            rows.append((name, int(operands), int(calls), float(ms)))
    first = next(i for i, r in enumerate(rows) if r[0] == "embed_forward")
    check(all(r[0] == "fill" for r in rows[:first]), f"{path}: ops other than fill before the first step")
    return rows[first:]


@dataclasses.dataclass
class Row:
    kind: str
    ms: float = 0
    moved: int = 0
    flops: int = 0
    low: int = 0


def matched(step, rows, steps):
    """Rows of the table, of one step each."""
    want = collections.defaultdict(list)
    for op in step.ops:
        want[op.name, op.operands].append(op)
    table = {}
    for name, operands, calls, ms in rows:
        ops = want.pop((name, operands), None)
        check(ops, f"{name} with operands of {operands} bytes is no op of this case")
        check(sum(op.calls for op in ops) * steps == calls, f"{name} with operands of {operands} bytes: {calls} calls in {steps} steps, expected {sum(op.calls for op in ops)} a step")
        row = table.setdefault(ops[0].row, Row(kind=ops[0].kind))
        check({(op.row, op.kind) for op in ops} == {(ops[0].row, row.kind)}, f"{name} with operands of {operands} bytes may be {[op.row for op in ops]}")
        row.ms += ms / steps
        for op in ops:
            row.moved += op.moved * op.calls
            row.flops += op.flops * op.calls
            row.low += op.low * op.calls
    check(not want, f"never ran: {sorted(want)}")
    done = sum(row.flops for row in table.values() if row.kind == "products")
    check(done == step.closed_form(), f"products of {done} operations, the closed form gives {step.closed_form()}")
    return table


def line(name, row, total):
    work = " + ".join(([f"{row.flops / 1e12:.1f}"] if row.flops else []) + ([f"{row.low / 1e12:.2f}"] if row.low else []))
    rate, bandwidth = row.flops / row.ms * 1e3, row.moved / row.ms * 1e3
    if row.kind == "all":
        reached = limit = ""
    elif row.flops:
        reached, limit = f"{rate / 1e12:.0f} TFLOP/s", f"{rate / TENSOR:.2f}; {rate / HELD:.2f}"
    else:
        reached, limit = f"{bandwidth / 1e9:,.0f} GB/s", f"{bandwidth / COPY:.2f}"
    return f"| {name} | {row.ms:.1f} | {100 * row.ms / total:.1f} % | {row.moved / 1e9:.1f} | {work} | {reached} | {limit} |"


def show(table):
    every = Row("all", *(sum(getattr(row, what) for row in table.values()) for what in ("ms", "moved", "flops", "low")))
    print("| op | ms a step | share | GB | TFLOP | reached | of the limit |")
    print("|---|---|---|---|---|---|---|")
    for name, row in sorted(table.items(), key=lambda item: -item[1].ms):
        print(line(name, row, every.ms))
    print(line("all ops", every, every.ms))
    return every.ms


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=[case for case in CASES if CASES[case][3] > 0])
    parser.add_argument("profile")
    parser.add_argument("--step", type=float, help="milliseconds of a step without the profile")
    a = parser.parse_args()
    rows = read_profile(a.profile)
    shape, method, examples, length = CASES[a.case]
    steps = next((calls for name, _, calls, _ in rows if name == "adamw"), 0)
    check(steps, "no step was done")
    micro = next(calls for name, _, calls, _ in rows if name == "embed_forward") // steps
    step = Step(a.case, examples * length // micro, micro)
    table = matched(step, rows, steps)
    total = show(table)
    kinds = collections.Counter()
    for row in table.values():
        kinds[row.kind] += row.ms
    flops, tokens, bar = step.closed_form(), examples * length, examples * length / BARS[a.case] * 1e3
    held, rest = flops / HELD * 1e3, bar - kinds["attention"] - kinds["memory"]
    print(f"\n{a.case}: {tokens} tokens, {total:.1f} ms in ops ({steps} steps in the profile)" + (f", {a.step:.1f} without the profile" if a.step else ""))
    print(f"ops with products {kinds['products']:.1f} ms, low-rank alone {kinds['low-rank']:.1f}, attention {kinds['attention']:.1f}, others {kinds['memory']:.1f}")
    print(f"products {flops / 1e12:.1f} TFLOP, as the closed form; {held:.1f} ms at {HELD / 1e12:.0f} TFLOP/s, which leaves {kinds['products'] - held:.1f} for what else their ops do")
    print(f"bar {BARS[a.case]} tokens/s: {bar:.1f} ms; attention and the others as they are leave {rest:.1f}: {flops / rest / 1e9:.0f} TFLOP/s in all products, with nothing "
          f"low-rank; {flops / bar / 1e9:.0f} if products were all there is")


main()
