"""What bench/gpu_vs_peft.py times and bench/where_time_goes.py takes apart: shapes of Qwen2, cases, and the bars they are held to."""

SHAPES = {  # hidden, ffn, layers, heads, kv heads, tied
    "0.5b": (896, 4864, 24, 14, 2, True),
    "1.5b": (1536, 8960, 28, 12, 2, True),
    "7b": (3584, 18944, 28, 28, 4, False),
}
CASES = {  # shape, method, rows of a step, tokens of a row (-1: ragged)
    "7b-lora": ("7b", "lora", 4, 2048),
    "1.5b-lora": ("1.5b", "lora", 8, 2048),
    "0.5b-lora": ("0.5b", "lora", 16, 2048),
    "1.5b-full": ("1.5b", "full", 8, 2048),
    "0.5b-short": ("0.5b", "lora", 4, 256),
    "7b-ragged": ("7b", "lora", 32, -1),
    "0.5b-ragged": ("0.5b", "lora", 64, -1),
}
BARS = {"7b-lora": 20000, "1.5b-lora": 85000, "0.5b-lora": 200000, "1.5b-full": 60000, "0.5b-short": 60000}  # tokens a second
VOCABULARY = 151936
RANK = 16
