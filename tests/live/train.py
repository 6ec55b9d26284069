"""The losses of `bam-convert train` against torch: same weights, same rows, same AdamW.

Trains CKPT with the binary in float32, reads the rows and learning rates that it used, and takes the same steps with
transformers (or the exported modeling_bam.py) and torch.optim.AdamW. Every step's loss must agree.

    python train.py --binary bam-convert --checkpoint seed --data code=tokens/code --data law=tokens/law
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--binary", required=True)
parser.add_argument("--checkpoint", required=True)
parser.add_argument("--data", action="append", required=True)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--seq", type=int, default=64)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--tolerance", type=float, default=1e-3)
options, further = parser.parse_known_args()

with tempfile.TemporaryDirectory() as work:
    out, rows_file = Path(work) / "out", Path(work) / "rows.jsonl"
    command = [
        options.binary, "train", options.checkpoint, "--out", out, "--steps", options.steps, "--batch", options.batch,
        "--seq", options.seq, "--learning-rate", options.learning_rate, "--dump-rows", rows_file,
        "--validate-every", 0, "--save-every", 0, *further,
    ]  # fmt: skip
    for data in options.data:
        command += ["--data", data]
    subprocess.run([str(part) for part in command], check=True)
    records = [json.loads(line) for line in open(f"{out}.run/metrics.jsonl")]
    rows = [json.loads(line) for line in open(rows_file)]
settings = next(record for record in records if record["kind"] == "start")["settings"]
steps = [record for record in records if record["kind"] == "step"]

model = AutoModelForCausalLM.from_pretrained(
    options.checkpoint, trust_remote_code=True, torch_dtype=torch.float32, attn_implementation="sdpa"
)
model.train()
decaying = [parameter for parameter in model.parameters() if parameter.dim() > 1]
others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
optimiser = torch.optim.AdamW(
    [{"params": decaying, "weight_decay": settings["weight-decay"]}, {"params": others, "weight_decay": 0.0}],
    betas=(settings["beta1"], settings["beta2"]), eps=settings["epsilon"],
)  # fmt: skip
is_mixture = model.config.model_type == "bam"

worst = {"nll": 0.0, "loss": 0.0, "gradient_norm": 0.0}
for step in steps:
    ids = torch.tensor([row["ids"] for row in rows if row["step"] == step["step"]])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    # The labels only make a mixture return the losses of its routers.
    output = model(input_ids=inputs, labels=inputs, use_cache=False) if is_mixture else model(input_ids=inputs)
    nll = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    loss = nll + output.aux_loss if is_mixture else nll
    optimiser.zero_grad(set_to_none=False)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"] or float("inf"))
    for group in optimiser.param_groups:
        group["lr"] = step["learning_rate"]
    optimiser.step()
    for key, value in (("nll", nll), ("loss", loss), ("gradient_norm", norm)):
        worst[key] = max(worst[key], abs(step[key] - value.item()))

print(f"{options.checkpoint}: {len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f};", end=" ")
print("largest differences " + ", ".join(f"{key} {value:.2e}" for key, value in worst.items()))
assert len(steps) == options.steps
assert worst["loss"] < options.tolerance and worst["nll"] < options.tolerance, "losses differ"
