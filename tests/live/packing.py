#!/usr/bin/env python3
"""Feed-forward experts that lie side by side for the kernels of transformers 5, and what users do to models meanwhile.

    python tests/live/packing.py --binary target/release/bam-convert --fixtures fixtures [--code DIR]

Each check packs the experts of a small mixture, changes the model, and compares its logits with the logits of the loop.
"""

import argparse
import copy
import io
import pickle
import sys
import traceback
from pathlib import Path

import modeling  # sets the folder of remote code before transformers is imported
import torch
import transformers

TOKENS = torch.tensor([modeling.TOKENS])


def forward(model):
    with torch.no_grad():
        return model(TOKENS).logits


def layers(model):
    return [block.mlp.experts for block in model.model.layers]


def weights(model):
    return [parameter for experts in layers(model) for parameter in experts.parameters()]


def memory(model):
    """Bytes that the experts' weights keep alive."""
    storages = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights(model)}
    return sum(storages.values())


def is_packed(model):
    """Whether the experts of each layer lie in two pieces of memory."""
    return all(len({w.untyped_storage().data_ptr() for w in experts.parameters()}) == 2 for experts in layers(model))


def check(model, tolerance=1e-5):
    """The next pass packs, computes what the loop does, and leaves no weight a second time in memory."""
    packed = forward(model)
    assert is_packed(model), "the experts are not packed"
    passes = []
    experts = layers(model)[0]
    experts.one_by_one = lambda *inputs: passes.append(1) or type(experts).one_by_one(experts, *inputs)
    forward(model)
    del experts.one_by_one
    assert not passes, "the slow loop ran"
    assert memory(model) == sum(w.nbytes for w in weights(model)), "weights are twice in memory"
    model.config._experts_implementation, kind = "eager", model.config._experts_implementation
    looped = forward(model)
    model.config._experts_implementation = kind
    difference = modeling.largest(packed, looped)
    assert difference <= tolerance, f"kernel and loop differ by {difference:.3g}"
    return packed


def train(model):
    """One step of each weight, by gradient."""
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    before = forward(model.eval())
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.5 * weight.grad
            weight.grad = None
    assert modeling.largest(check(model), before) > 1e-3, "training changed nothing"


def trained_after_inference_mode(model):
    with torch.inference_mode():
        model(TOKENS)
    assert is_packed(model) and not any(w.is_inference() for w in weights(model))
    train(model)


def made_in_inference_mode(model):
    with torch.inference_mode():
        made = copy.deepcopy(model)
        logits = made(TOKENS).logits
    assert is_packed(made) and modeling.largest(logits, check(model)) <= 1e-5


def trained_after_packing(model):
    check(model)
    train(model)


def moved_and_cast(model):
    before = check(model)
    model.to("cpu")
    assert torch.equal(check(model), before)
    model.double()
    assert memory(model) == sum(w.nbytes for w in weights(model))
    assert modeling.largest(forward(model), before) <= 1e-5  # no kernel has float64
    model.float().half()
    check(model, 1e-2)


def copied(model):
    before = check(model)
    twin = copy.deepcopy(model)
    assert memory(twin) == memory(model)
    with torch.no_grad():
        for weight in weights(twin):
            weight.zero_()
    assert torch.equal(check(model), before), "the copy shares weights with the model"
    check(twin)


def saved_and_loaded(model):
    before = check(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert buffer.tell() < 1.2 * sum(p.nbytes for p in model.parameters()) + 100_000, "weights are saved twice"
    buffer.seek(0)
    assert torch.equal(check(torch.load(buffer, weights_only=False)), before)
    assert torch.equal(check(pickle.loads(pickle.dumps(model))), before)
    folder = modeling.WORK / "packed"
    model.save_pretrained(folder)
    assert torch.equal(check(modeling.load(folder)), before)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert torch.equal(check(model), before)


def shared(model):
    before = check(model)
    model.share_memory()
    assert torch.equal(check(model), before)


def partly_replaced(model):
    before = check(model)
    expert = layers(model)[0][1]
    expert.up_proj.weight.data = expert.up_proj.weight.data * 2
    assert modeling.largest(check(model), before) > 1e-3
    expert.up_proj.weight = torch.nn.Parameter(expert.up_proj.weight / 2)
    assert torch.equal(check(model), before)


def tied(model):
    """Experts that share a weight still share it, in the loop."""
    first, second = layers(model)[0][0], layers(model)[0][1]
    second.down_proj.weight = first.down_proj.weight
    before = forward(model)
    with torch.no_grad():
        first.down_proj.weight *= 3
    after = forward(model)
    assert second.down_proj.weight is first.down_proj.weight and modeling.largest(before, after) > 1e-3


def part_of_others(model):
    """A weight in someone else's memory stays there."""
    linear = layers(model)[0][0].up_proj
    theirs = torch.zeros(2, *linear.weight.shape)
    theirs[1] = linear.weight.detach()
    linear.weight.data = theirs[1]
    before = forward(model)
    theirs *= 2
    assert modeling.largest(forward(model), before) > 1e-3


CHECKS = [
    trained_after_inference_mode, made_in_inference_mode, trained_after_packing, moved_and_cast, copied, saved_and_loaded,
    shared, partly_replaced, tied, part_of_others,
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--code", type=Path, help="folder of configuration_bam.py and modeling_bam.py")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    # Rows of whole 16 bytes in every dtype, as the kernel needs them.
    folder = modeling.by_hand(arguments, "packing", dict(num_experts_per_tok=2))
    faults = 0
    for run in CHECKS:
        try:
            run(modeling.load(folder))
            print(f"{run.__name__:30} ok")
        except Exception:
            faults += 1
            print(f"{run.__name__:30} FAULT\n{traceback.format_exc(limit=-3)}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {faults} faults")
    modeling.shutil.rmtree(modeling.WORK)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
