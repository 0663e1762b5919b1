"""Rates of the variants in gemm.cu and of cuBLAS (through PyTorch) side by side: rounds in turn, so that a chip that
throttles by power treats them alike.  python3 bench/lab/gemm.py [library] [seconds] [text in the variant's name]"""
import ctypes
import sys

import torch

lab = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "build/lab/libgemm.so")
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.3
wanted = sys.argv[3].split(",") if len(sys.argv) > 3 else [""]
lab.lab_name.restype = ctypes.c_char_p
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64
lab.lab_run.argtypes = [ctypes.c_int, LONG, LONG, LONG, POINTER, POINTER, POINTER, POINTER]
variants = []
while lab.lab_name(len(variants)):
    variants.append((lab.lab_name(len(variants)).decode(), lab.lab_turned(len(variants))))
# tokens, outputs, inputs
shapes = [(8192, 8192, 8192), (8192, 4608, 3584), (8192, 3584, 3584), (8192, 37888, 3584), (8192, 3584, 18944), (2048, 152064, 3584),
          (16384, 17920, 1536), (16384, 1536, 8960), (16384, 2048, 1536), (16384, 9728, 896), (16384, 896, 4864), (16384, 1152, 896)]
stream = torch.cuda.current_stream().cuda_stream
names = sorted({v[0] for v in variants if any(w in v[0] for w in wanted)}, key=[v[0] for v in variants].index)
print("%-24s %-7s" % ("tokens outputs inputs", "") + "".join("%10s" % n for n in ["cublas"] + names))
for turned in (0, 1, 2):
    for tokens, outputs, inputs in shapes:
        m, n, k = [(tokens, outputs, inputs), (tokens, inputs, outputs), (outputs, inputs, tokens)][turned]
        a = torch.randn(k, m, device="cuda", dtype=torch.bfloat16) if turned == 2 else torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16) if turned else torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        left, right = (a.t() if turned == 2 else a), (b if turned else b.t())
        out = torch.zeros(m, n, device="cuda", dtype=torch.float32 if turned == 2 else torch.bfloat16)
        half = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        runs = [("cublas", lambda: torch.matmul(left, right, out=half))]
        for i, (name, t) in enumerate(variants):
            if t == turned and name in names:
                runs.append((name, lambda i=i: lab.lab_run(i, m, n, k, a.data_ptr(), b.data_ptr(), out.data_ptr(), stream)))
        flops = 2.0 * m * n * k
        count = max(2, int(seconds / 3 / (flops / 650e12)))
        time_of = {name: [] for name, _ in runs}
        errors = {}
        torch.matmul(left, right, out=half)
        for name, run in runs[1:]:
            out.zero_()
            run()
            errors[name] = ((out.float() - half.float()).norm() / half.float().norm()).item()
        for _ in range(3):
            for name, run in runs:
                e = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                run()
                e[0].record()
                for _ in range(count):
                    run()
                e[1].record()
                torch.cuda.synchronize()
                time_of[name].append(e[0].elapsed_time(e[1]) / count)
        print("%6d %7d %7d   %-7s" % (tokens, outputs, inputs, ["forward", "input", "weight"][turned]) +
              "".join("%9.0f%s" % (flops / sorted(t)[1] * 1e-9, "!" if errors.get(name, 0) > 5e-3 else " ") for name, t in time_of.items()), flush=True)
        del a, b, left, right, out, half
