"""The first generation of Qwen (model_type qwen) as a small PyTorch module, written from the published architecture:
transformers has it only as remote code. RMS norms, one c_attn with bias for queries, keys and values, rotary positions in
halves, SwiGLU as w1(x) * silu(w2(x)). Two things happen in evaluation alone: for sequences longer than seq_length the
rotary base grows (use_dynamic_ntk) and queries beyond it are multiplied by log(position + 1) / log(seq_length)
(use_logn_attn)."""
import json, math, os
from types import SimpleNamespace
import torch
from torch import nn
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, inner = c, c["kv_channels"] * c["num_attention_heads"]
        self.c_attn = nn.Linear(c["hidden_size"], 3 * inner)
        self.c_proj = nn.Linear(inner, c["hidden_size"], bias=not c["no_bias"])

    def forward(self, x):
        c, (batch, length, _) = self.c, x.shape
        heads, size = c["num_attention_heads"], c["kv_channels"]
        q, k, v = (part.view(batch, length, heads, size).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        rotated, base = int(size * c["rotary_pct"]), c["rotary_emb_base"]
        long = not self.training and length > c["seq_length"]
        if long and c["use_dynamic_ntk"]:
            alpha = max(2 ** math.ceil(math.log(length / c["seq_length"], 2) + 1) - 1, 1)
            base = base * alpha ** (rotated / (rotated - 2))
        frequency = 1.0 / (base ** (torch.arange(0, rotated, 2).float() / rotated))
        angle = torch.outer(torch.arange(length).float(), frequency)
        angle = torch.cat((angle, angle), dim=-1)

        def turn(y):
            head, rest = y[..., :rotated], y[..., rotated:]
            low, high = head.chunk(2, dim=-1)
            return torch.cat((head * angle.cos() + torch.cat((-high, low), dim=-1) * angle.sin(), rest), dim=-1)

        q, k = turn(q), turn(k)
        if long and c["use_logn_attn"]:
            q = q * torch.tensor([math.log(i, c["seq_length"]) if i > c["seq_length"] else 1.0 for i in range(1, length + 1)])[:, None]
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, heads * size))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        inner, bias = c["intermediate_size"] // 2, not c["no_bias"]
        self.w1, self.w2 = nn.Linear(c["hidden_size"], inner, bias=bias), nn.Linear(c["hidden_size"], inner, bias=bias)
        self.c_proj = nn.Linear(inner, c["hidden_size"], bias=bias)

    def forward(self, x):
        return self.c_proj(self.w1(x) * nn.functional.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn = Norm(c["hidden_size"], c["layer_norm_epsilon"]), Attention(c)
        self.ln_2, self.mlp = Norm(c["hidden_size"], c["layer_norm_epsilon"]), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Qwen(nn.Module):
    DEFAULTS = dict(model_type="qwen", architectures=["QWenLMHeadModel"], kv_channels=128, layer_norm_epsilon=1e-6, rotary_pct=1.0,
                    rotary_emb_base=10000, no_bias=True, use_dynamic_ntk=True, use_logn_attn=True, seq_length=2048,
                    max_position_embeddings=8192, initializer_range=0.02, tie_word_embeddings=False)

    def __init__(self, **config):
        super().__init__()
        c = self.values = {**self.DEFAULTS, **config}
        self.config = PretrainedConfig(tie_word_embeddings=False)  # what PEFT asks for
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.transformer.h = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.transformer.ln_f = Norm(c["hidden_size"], c["layer_norm_epsilon"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=c["initializer_range"])

    def forward(self, input_ids=None, **_):
        x = self.transformer.wte(input_ids)
        for block in self.transformer.h:
            x = block(x)
        return SimpleNamespace(logits=self.lm_head(self.transformer.ln_f(x)))

    def get_input_embeddings(self):
        return self.transformer.wte

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, *_, **__):
        raise NotImplementedError("PEFT asks for the method, not for what it does")

    def save_pretrained(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(self.values, f, indent=1)
        save_file({n: p.detach().clone().contiguous() for n, p in self.named_parameters()}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder):
        with open(os.path.join(folder, "config.json")) as f:
            model = cls(**json.load(f))
        model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
        return model
