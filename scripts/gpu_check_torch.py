"""Trains a checkpoint with transformers and torch alone, as a bar for gpu-check.sh, and prints its rate as JSON.

Arguments: the folder, the device, the batch, the tokens of a row, the number of steps, and `eager` or `compiled`. Weights are
float32 under autocast to bfloat16, the optimiser is torch's fused AdamW, and the tokens are random.
"""

import json
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, device, batch, seq, steps, way = sys.argv[1:]
device, batch, seq, steps = torch.device(device), int(batch), int(seq), int(steps)
on_gpu = device.type == "cuda"
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = True
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="sdpa").float()
model = model.to(device).train()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def loss_of(ids):
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


if way == "compiled":
    model.forward = torch.compile(model.forward)
durations, losses = [], []
for _ in range(steps):
    ids = torch.randint(0, model.config.vocab_size, (batch, seq + 1), device=device)
    started = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16):
        loss = loss_of(ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    # Copying a number waits for the device.
    losses.append(loss.item())
    durations.append(time.perf_counter() - started)
# The first steps allocate, and compile.
seconds = statistics.median(durations[len(durations) // 2 :])
memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({
    "steps": steps, "tokens_per_second": round(batch * seq / seconds), "first_step_seconds": round(durations[0], 2),
    "losses": [losses[0], losses[-1]], "memory_bytes": memory,
}))  # fmt: skip
