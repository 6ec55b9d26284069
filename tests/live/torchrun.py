#!/usr/bin/env python3
"""A mixture trains on several ranks although some experts get no token.

    torchrun --nproc_per_node 2 tests/live/torchrun.py --model DIR [--how ddp,fsdp,…] [--steps 8]

DIR is an export with `modeling_bam.py`. Every rank sees other data, and feed-forward routers are pinned so that each
rank uses one expert, another on each: expert r on rank r, and the last expert nowhere. `ddp` is DistributedDataParallel,
`fsdp` FullyShardedDataParallel and `fully_shard` FSDP 2 a block, `experts` FSDP 2 with each feed-forward expert a unit of
its own. `accelerate` is what accelerate prepares (DDP: it has no FSDP on CPU), `policy` FSDP wrapped as accelerate's plugin
chooses. Checked for each: steps end in time, the loss falls, and all ranks hold the same weights after each step. One
process on the joined batches has equal weights. An expert without tokens stays as it was. Runs on CPU with gloo; exits
1 on a fault. A modeling file that skips experts without tokens fails `ddp`, `fully_shard` and `experts`.
"""

import argparse
import datetime
import functools
import os
import sys

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

RATE = 0.05


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).train()


def classes(model):
    module = sys.modules[type(model).__module__]
    return module.BamBlock, module.BamMlp, module.BamMixture


def pin_routers(model, expert):
    """All tokens to one feed-forward expert; the router stays in the graph and gets a zero gradient.

    `expert` is a number, or a function of the number of tokens that gives each token's.
    """
    for module in model.modules():
        if isinstance(module, classes(model)[2]):

            def pinned(x, router=module.router):
                row = torch.zeros(len(x), router.weight.shape[0])
                row[torch.arange(len(x)), expert(len(x)) if callable(expert) else expert] = 20.0
                return row + 0 * router.weight.sum()

            module.router.forward = pinned


def batch(rank, vocabulary):
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randint(0, vocabulary, (2, 24), generator=generator)


def wrap(how, model):
    """The parallel model and its optimiser."""
    block, mlp, _ = classes(model)
    if how == "ddp":
        model = DistributedDataParallel(model)
    elif how in ("fsdp", "policy"):
        policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={block})
        if how == "policy":
            from accelerate import FullyShardedDataParallelPlugin

            plugin = FullyShardedDataParallelPlugin(fsdp_version=1, auto_wrap_policy="transformer_based_wrap")
            plugin.set_auto_wrap_policy(model)
            policy = plugin.auto_wrap_policy
            assert policy.keywords["transformer_layer_cls"] == {block}, policy.keywords
        model = FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    elif how == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
        assert isinstance(model, DistributedDataParallel)
        return model, optimiser, accelerator.backward
    else:
        for layer in model.model.layers:
            if how == "experts":
                for expert in layer.mlp.experts:
                    fully_shard(expert)
            fully_shard(layer)
        fully_shard(model)
    return model, torch.optim.SGD(model.parameters(), lr=RATE), lambda loss: loss.backward()


def whole(how, model):
    """Every weight, gathered, by the name that it has on disk."""
    if how in ("fsdp", "policy"):
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig()):
            state = model.state_dict()
    else:
        state = model.state_dict()
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in state.items()}


def alone(folder, steps, world):
    """One process, the ranks' batches one after another: what the ranks together must reach."""
    model = load(folder)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        for rank in range(world):
            pin_routers(model, rank)
            tokens = batch(rank, model.config.vocab_size)
            (model(tokens, labels=tokens).loss / world).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def run(how, arguments, rank, world, expected):
    model = load(arguments.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pin_routers(model, rank)
    tokens, last = batch(rank, model.config.vocab_size), model.config.num_experts - 1
    assert last >= world, f"{arguments.model} needs more experts than there are ranks"
    model, optimiser, backward = wrap(how, model)
    losses = []
    for _ in range(arguments.steps):
        optimiser.zero_grad()
        loss = model(tokens, labels=tokens).loss
        backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
        state = whole(how, model)
        # A weight sum that differs between ranks would be a weight that differs.
        mine = torch.stack([tensor.double().pow(2).sum() for tensor in state.values()])
        theirs = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(theirs, mine)
        assert all(torch.equal(other, mine) for other in theirs), "ranks hold different weights"
    assert losses[-1] < losses[0], f"loss did not fall: {losses}"
    worst = max(float((state[name] - tensor).abs().max()) for name, tensor in expected.items())
    assert worst < 1e-4, f"differs from one process by {worst:.3g}"
    idle = [name for name in state if f".mlp.experts.{last}." in name]
    busy = [name for name in state if f".mlp.experts.{rank}." in name]
    assert idle and all(torch.equal(state[name], before[name]) for name in idle), "an expert without tokens moved"
    assert busy and not any(torch.equal(state[name], before[name]) for name in busy), (
        "an expert with tokens did not move"
    )
    return f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {worst:.1e} from one process"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--how", default="ddp,fsdp,fully_shard,experts,accelerate,policy")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))  # a hang becomes an error
    rank, world = dist.get_rank(), dist.get_world_size()
    expected = alone(arguments.model, arguments.steps, world)
    faults = 0
    if rank == 0:
        print(
            f"transformers {transformers.__version__}, torch {torch.__version__}, {world} ranks, {arguments.model}",
            flush=True,
        )
    for how in arguments.how.split(","):
        try:
            said = run(how, arguments, rank, world, expected)
        except Exception as error:
            if os.environ.get("TRACE"):
                raise
            faults, said = faults + 1, f"FAULT {type(error).__name__}: {error}"
        if rank == 0 or "FAULT" in said:
            print(f"{how:12} rank {rank}  {said}", flush=True)
    dist.destroy_process_group()
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
